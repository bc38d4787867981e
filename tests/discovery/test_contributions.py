"""Pooled features, and the contributions of units to a logit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from cam_tf.discovery import PooledFeatures, UnitContributions


def test_literal_features_and_contributions(tiny_model, tiny_image):
    # red [[1, 2], [3, 4]] and green [[0, 1], [0, 5]]: means 2.5 and 1.5
    np.testing.assert_allclose(PooledFeatures(tiny_model)(tiny_image), [[2.5, 1.5]])
    found = UnitContributions(tiny_model)(tiny_image, classes=[[0, 1, 2]])
    np.testing.assert_allclose(found.values, [[[2.5, 0], [0, 3], [2.5, -1.5]]], atol=1e-6)
    np.testing.assert_allclose(found.bias, [[0, 0.5, -1]])
    ids, values = found.top(1)
    np.testing.assert_allclose(values[0, :, 0], [2.5, 3, 2.5], rtol=1e-6)
    np.testing.assert_array_equal(ids[0, :, 0], [0, 1, 0])
    np.testing.assert_allclose(found.share(1), [[1, 1, 2.5]], rtol=1e-6)
    np.testing.assert_allclose(found[0].values, found.values)


def test_batches_are_joined(tiny_model, rng):
    images = rng.uniform(0, 9, (7, 4, 5, 3)).astype(np.float32)
    features = PooledFeatures(tiny_model)
    expected = images[..., :2].mean((1, 2))
    np.testing.assert_allclose(features(images, batch_size=3), expected, rtol=1e-5)
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(7))).batch(2)
    np.testing.assert_allclose(features.extract(data), expected, rtol=1e-5)


def test_the_cache(tiny_model, rng, tmp_path):
    images = rng.uniform(0, 9, (3, 4, 4, 3)).astype(np.float32)
    features, file = PooledFeatures(tiny_model), tmp_path / "f.npz"
    first = features.extract([images], cache=file, key="train")
    np.testing.assert_array_equal(features.extract([], cache=file, key="train"), first)
    with pytest.raises(ValueError, match="another network, layer or set of images"):
        features.extract([images], cache=file, key="test")
    tiny_model.get_layer("scores").set_weights([np.ones((2, 3)), np.zeros(3)])
    with pytest.raises(ValueError, match="another network"):
        features.extract([images], cache=file, key="train")


def test_what_is_refused(tiny_model):
    with pytest.raises(ValueError, match="no image"):
        PooledFeatures(tiny_model)(np.zeros((0, 4, 4, 3)))
    with pytest.raises(ValueError, match="takes images of shape"):
        PooledFeatures(tiny_model)(np.zeros((2, 4, 4, 1)))
    with pytest.raises(ValueError, match="batch_size=0"):
        PooledFeatures(tiny_model)(np.zeros((2, 4, 4, 3)), batch_size=0)
    image = keras.Input((4, 4, 3))
    pooled = keras.layers.GlobalMaxPooling2D()(keras.layers.Conv2D(2, 1)(image))
    maximum = keras.Model(image, keras.layers.Dense(3)(pooled))
    with pytest.raises(ValueError, match="does not average"):
        UnitContributions(maximum)(np.random.default_rng(0).uniform(0, 9, (1, 4, 4, 3)))
