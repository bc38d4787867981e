"""Resizing equals TensorFlow's, normalisation is literal, blank maps are reported and never NaN."""

import warnings

import numpy as np
import pytest
import tensorflow as tf

import cam_tf
from cam_tf.maps.heatmaps import resize_maps


@pytest.mark.parametrize("size", [(7, 7), (1, 1), (224, 224), (31, 50), (5, 3)])
def test_resizing_is_that_of_tensorflow(size, rng):
    maps = rng.normal(size=(2, 3, 7, 7)).astype(np.float32)
    expected = tf.image.resize(np.moveaxis(maps, 1, -1), size, method="bilinear")
    np.testing.assert_allclose(
        resize_maps(maps, size), np.moveaxis(expected, -1, 1), rtol=1e-5, atol=1e-6
    )


def test_resizing_signals_and_volumes_literally():
    np.testing.assert_allclose(
        resize_maps(np.float32([[[0, 1]]]), (4,)), [[[0, 0.25, 0.75, 1]]], rtol=1e-6
    )
    ramp = np.arange(8, dtype=np.float32).reshape(1, 1, 2, 2, 2)
    stretched = resize_maps(ramp, (4, 4, 4)).numpy()[0, 0]
    line = np.float32([0, 0.25, 0.75, 1])
    expected = 4 * line[:, None, None] + 2 * line[:, None] + line
    np.testing.assert_allclose(stretched, expected, rtol=1e-6)


def test_both_rules_literally():
    maps = np.float32([[[[-1, 0], [1, 3]]]])
    np.testing.assert_allclose(cam_tf.heatmaps(maps), [[[[0, 0.25], [0.5, 1]]]], rtol=1e-6)
    np.testing.assert_allclose(
        cam_tf.heatmaps(maps, rule="relu"), [[[[0, 0], [1 / 3, 1]]]], rtol=1e-6
    )


def test_each_map_is_normalised_by_itself(rng):
    maps = rng.normal(size=(3, 4, 7, 7)).astype(np.float32) * np.logspace(-20, 20, 4)[:, None, None]
    heat = cam_tf.heatmaps(maps, (20, 30)).numpy()
    assert heat.shape == (3, 4, 20, 30)
    np.testing.assert_array_equal(heat.min((2, 3)), 0)
    np.testing.assert_array_equal(heat.max((2, 3)), 1)


@pytest.mark.parametrize(
    ("value", "rule", "reason"),
    [
        (0.0, "minmax", "image 0 map 1 is flat"),
        (-2.7, "minmax", "image 0 map 1 is flat"),
        (1e30, "minmax", "image 0 map 1 is flat"),
        (-1.0, "relu", "image 0 map 1 is without a positive value"),
        (np.nan, "minmax", "image 0 map 1 is not finite"),
        (np.inf, "relu", "image 0 map 1 is not finite"),
    ],
)
def test_blank_maps_become_zeros_and_are_reported(value, rule, reason):
    maps = np.float32([[[[0, 1], [2, 3]], [[value, value], [value, value]]]])
    with pytest.warns(cam_tf.BlankMapWarning, match=reason):
        heat = cam_tf.heatmaps(maps, (4, 4), rule=rule).numpy()
    np.testing.assert_array_equal(heat[0, 1], 0)
    assert heat[0, 0].max() == 1


def test_a_constant_positive_map_is_evidence_everywhere_under_relu():
    np.testing.assert_array_equal(cam_tf.heatmaps(np.full((1, 1, 2, 2), 3.0), rule="relu"), 1)


def test_an_explanation_stretches_over_its_images(tiny_model, tiny_image):
    result = cam_tf.CAM(tiny_model)(np.repeat(tiny_image, 2, axis=1), top_k=2)
    assert cam_tf.heatmaps(result).shape == (1, 2, 4, 2)
    assert cam_tf.heatmaps(result, (9, 8)).shape == (1, 2, 9, 8)


def test_in_a_graph_with_unknown_batch(rng):
    maps = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    specification = tf.TensorSpec((None, None, 4, 5))
    compiled = tf.function(lambda x: cam_tf.heatmaps(x, (8, 8)), input_signature=[specification])
    np.testing.assert_allclose(compiled(maps), cam_tf.heatmaps(maps, (8, 8)), atol=1e-6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not np.isnan(compiled(0 * maps)).any()


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="'minmax' or 'relu'"):
        cam_tf.heatmaps(np.ones((1, 1, 2, 2)), rule="max")
    with pytest.raises(ValueError, match=r"maps\[None, None\] for one map"):
        cam_tf.heatmaps(np.ones((2, 2)))
    for size in [(4,), (4, 0), (4, 4, 4)]:
        with pytest.raises(ValueError, match="expected 2 positive numbers"):
            cam_tf.heatmaps(np.ones((1, 1, 2, 2)), size)
