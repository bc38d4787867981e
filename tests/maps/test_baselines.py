"""The baselines: what does not look at the image, and knows no class."""

import keras
import numpy as np
import pytest

import cam_tf


@pytest.fixture
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((12, 8, 3))
    maps = keras.layers.Conv2D(4, 3, 2, padding="same")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    return keras.Model(image, keras.layers.Dense(3, activation="softmax")(pooled))


def test_a_random_map_is_drawn_for_each_image_class_and_seed(model, rng):
    images = rng.uniform(0, 255, (4, 12, 8, 3)).astype(np.float32)
    found = cam_tf.RandomMap(model)(images, "all").numpy()
    assert found.maps.shape == (4, 3, 6, 4)
    np.testing.assert_allclose(found.scores, model(images), atol=1e-6)
    assert len(np.unique(found.maps)) > 0.99 * found.maps.size  # all drawn anew
    assert 0 <= found.maps.min() < 0.05
    assert 0.95 < found.maps.max() < 1
    assert found.maps.mean() == pytest.approx(0.5, abs=4 / np.sqrt(12 * found.maps.size))
    alone = cam_tf.RandomMap(model)(images[2:3], [1]).numpy()  # in any batch
    np.testing.assert_array_equal(alone.maps[0, 0], found.maps[2, 1])
    other = cam_tf.RandomMap(model, seed=1)(images, "all").numpy()
    assert not np.array_equal(other.maps, found.maps)


def test_a_random_map_of_whole_numbers(rng):
    image = keras.Input((8, 8, 3), dtype="uint8")
    maps = keras.layers.Conv2D(2, 1)(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(maps)))
    images = rng.integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    maps = cam_tf.RandomMap(model)(images, top_k=1).numpy().maps
    assert not np.array_equal(maps[0], maps[1])
