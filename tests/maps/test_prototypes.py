"""Prototype CAM and the centred Gaussian against references written another way."""

import keras
import numpy as np
import pytest

import cam_tf


def _reference(features, kernel, class_id):
    """The formula for one image (h, w, K), position by position, in float64."""
    height, width, _ = features.shape
    evidence = np.maximum(features @ kernel[:, class_id], 0)
    rows, columns = (max(round(0.05 * length), 1) for length in (height, width))
    v, everywhere, border = 0, [], []
    for y in range(height):
        for x in range(width):
            length = np.linalg.norm(features[y, x])
            u = features[y, x] / length if length else features[y, x]
            v = v + evidence[y, x] * u
            everywhere.append(u)
            if not (rows <= y < height - rows and columns <= x < width - columns):
                border.append(u)
    v = v / evidence.sum() if evidence.sum() else v
    b = (np.mean(everywhere, axis=0) + np.mean(border, axis=0)) / 2
    result = np.empty((height, width))
    for (y, x), u in zip(np.ndindex(height, width), everywhere, strict=True):
        s, t = max(u @ v, 0), max(u @ b, 0)
        result[y, x] = (s - t) / (s + t) if s + t else -1
    return result


def _network(channels, shape=(None, None, 3)):
    image = keras.Input(shape)
    maps = keras.layers.Conv2D(channels, 3, padding="same", activation="relu", name="maps")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    return keras.Model(image, keras.layers.Dense(3)(pooled))


@pytest.mark.parametrize("size", [(9, 7), (3, 50), (1, 4), (31, 33)])
def test_against_the_formula(size, rng):
    model = _network(5)
    images = rng.normal(0, 1, (2, *size, 3)).astype(np.float32)
    features = keras.Model(model.inputs, model.get_layer("maps").output)(images).numpy()
    kernel = model.layers[-1].get_weights()[0].astype(np.float64)
    result = cam_tf.PrototypeCAM(model)(images, "all").numpy()
    for n, c in np.ndindex(2, 3):
        expected = _reference(np.float64(features[n]), kernel, c)
        np.testing.assert_allclose(result.maps[n, c], expected, atol=2e-5)


def test_signed_features_stay_within_one(rng):
    model = keras.Sequential(
        [keras.Input((None, None, 2)), keras.layers.Conv2D(4, 1), *_head(keras.layers.Dense(2))]
    )
    images = rng.normal(0, 1, (3, 8, 8, 2)).astype(np.float32)
    maps = cam_tf.PrototypeCAM(model)(images, "all").numpy().maps
    assert maps.min() >= -1 and maps.max() <= 1 and np.ptp(maps) > 0.5


def _head(dense):
    return keras.layers.GlobalAveragePooling2D(), dense


def test_literal_map_and_the_parts_that_look_alike(tiny_model):
    # Red is evidence for class 0, green is not: a pixel's share of red alone decides, not its
    # strength, so that the weak red pixel is as much object as the strong one.
    image = np.zeros((1, 3, 3, 3), np.float32)
    image[..., 1] = 7  # all green ...
    image[0, 1, 1] = 200, 0, 0  # ... but two pixels
    image[0, 1, 2] = 1, 0, 0
    found = cam_tf.PrototypeCAM(tiny_model)(image, 0).numpy().maps[0, 0]
    # v = (1, 0); b is the mean of (2/9, 7/9) and, over the 8 border pixels, (1/8, 7/8).
    red = (2 / 9 + 1 / 8) / 2
    expected = np.full((3, 3), -1.0)
    expected[1, 1] = expected[1, 2] = (1 - red) / (1 + red)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_no_evidence_and_no_features(tiny_model):
    images = np.zeros((2, 4, 4, 3), np.float32)
    images[1, ..., 1] = 5  # class 2 has the weights (1, -1)
    found = cam_tf.PrototypeCAM(tiny_model)(images, 2)
    np.testing.assert_array_equal(found.maps, np.full((2, 1, 4, 4), -1))
    assert [one[0].status for one in found.diagnosis()] == ["flat", "flat"]


def test_what_is_not_finite_stays_so(tiny_model):
    tiny_model.get_layer("scores").set_weights([np.full((2, 3), np.nan), np.zeros(3)])
    found = cam_tf.PrototypeCAM(tiny_model)(np.ones((1, 4, 4, 3)), 0)
    assert found.diagnosis()[0][0].status == "not finite"


def test_views_signals_and_frozen(tiny_model, rng):
    images = rng.uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    live = cam_tf.PrototypeCAM(tiny_model, flip=True)(images, "all").numpy().maps
    frozen = cam_tf.PrototypeCAM(tiny_model, flip=True, frozen=True)(images, "all").numpy().maps
    np.testing.assert_allclose(live, frozen, atol=1e-6)
    plain = cam_tf.PrototypeCAM(tiny_model)
    mirrored = plain(images[:, :, ::-1], "all").numpy().maps[..., ::-1]
    np.testing.assert_allclose(live, (plain(images, "all").numpy().maps + mirrored) / 2, atol=1e-6)
    layers = [keras.layers.Conv1D(3, 3, activation="relu"), keras.layers.GlobalAveragePooling1D()]
    signal = keras.Sequential([keras.Input((9, 2)), *layers, keras.layers.Dense(2)])
    assert cam_tf.PrototypeCAM(signal)(rng.normal(0, 1, (2, 9, 2))).maps.shape == (2, 1, 7)


def test_centre_gaussian(rng):
    model = _network(4, (6, 8, 3))
    images = rng.normal(0, 1, (2, 6, 8, 3)).astype(np.float32)
    found = cam_tf.CenterGaussian(model)(images, top_k=2).numpy()
    np.testing.assert_array_equal(found.class_ids, cam_tf.CAM(model)(images, top_k=2).class_ids)
    y, x = (np.arange(6) + 0.5) / 6 - 0.5, (np.arange(8) + 0.5) / 8 - 0.5
    expected = np.exp(-8 * (y[:, None] ** 2 + x**2))  # 1 / (2 * 0.25 ** 2) = 8
    np.testing.assert_allclose(found.maps, np.broadcast_to(expected, (2, 2, 6, 8)), rtol=1e-5)
