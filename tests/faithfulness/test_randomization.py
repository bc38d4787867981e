"""The sanity check: what ignores the weights is found out, and the weights come back."""

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.faithfulness import randomization_check
from cam_tf.faithfulness.randomization import spearman


@pytest.fixture
def images(rng):
    return rng.uniform(0, 255, (2, 12, 12, 3)).astype(np.float32)


def brightness(images, class_ids):
    """A map that shows the image, whatever the network."""
    maps = np.asarray(images).mean(axis=-1)[:, None]
    ids = np.reshape(class_ids, (-1, 1)).astype(np.int32)
    return cam_tf.Explanation(maps, ids, np.ones(ids.shape), np.ones(ids.shape), maps.shape[2:])


def weights_of(model):
    return [np.array(one) for one in model.get_weights()]


def test_what_ignores_the_network_stays_alike(small_model, images):
    found = randomization_check(small_model, brightness, images, [0, 1])
    assert [one.layer for one in found] == [
        layer.name for layer in small_model.layers[::-1] if layer.weights
    ]
    for one in found:
        np.testing.assert_allclose(one.spearman, [1, 1], atol=1e-6)
        np.testing.assert_allclose(one.ssim, [1, 1], atol=1e-6)


@pytest.mark.parametrize("frozen", [False, True])
def test_class_activation_maps_change_and_the_weights_come_back(small_model, images, frozen):
    explainer = cam_tf.CAM(small_model, frozen=frozen)
    before, maps = weights_of(small_model), explainer(images, [0, 1]).numpy().maps
    done = []
    found = randomization_check(
        small_model, explainer, images, [0, 1], progress=lambda *counts: done.append(counts)
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert min(np.abs(one.spearman).min() for one in found) < 0.9
    assert min(one.ssim.min() for one in found) < 0.9
    for one, other in zip(weights_of(small_model), before, strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(explainer(images, [0, 1]).numpy().maps, maps)


def test_one_layer_at_a_time(small_model, images):
    explainer = cam_tf.CAM(small_model)
    cascade, alone, again = (
        randomization_check(small_model, explainer, images, [0, 1], independent=way, seed=3)
        for way in (False, True, True)
    )
    np.testing.assert_array_equal(cascade[0].spearman, alone[0].spearman)  # the first is the same
    assert not np.array_equal(cascade[1].spearman, alone[1].spearman)
    for one, other in zip(alone, again, strict=True):
        np.testing.assert_array_equal(one.spearman, other.spearman)


def test_the_weights_come_back_after_an_error(small_model, images):
    before, calls = weights_of(small_model), []

    def breaks(images, class_ids):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("in the middle")
        return brightness(images, class_ids)

    with pytest.raises(RuntimeError, match="in the middle"):
        randomization_check(small_model, breaks, images, [0, 1])
    for one, other in zip(weights_of(small_model), before, strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_to_randomise(images):
    model = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(ValueError, match="nothing to randomise"):
        randomization_check(model, brightness, images, [0, 1])


def test_rank_correlation(rng):
    stats = pytest.importorskip("scipy.stats")
    assert spearman(np.array([1.0, 2, 3]), np.array([5.0, 7, 90])) == pytest.approx(1)
    assert spearman(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1)
    assert spearman(np.array([1.0, 2, 3]), np.ones(3)) == 0
    assert spearman(np.array([1.0, np.nan, 3]), np.arange(3.0)) == 0
    a, b = rng.integers(0, 6, (2, 40)).astype(float)  # with equals
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic)
