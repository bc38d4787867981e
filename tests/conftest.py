"""Small networks with known weights, shared by the tests."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.backend.clear_session()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def tiny_model() -> keras.Model:
    """A 1x1 convolution that passes two channels on, average pooling, three classes.

    f_0 = red, f_1 = green; the weights of the classes are (1, 0), (0, 2), (1, -1) and the biases
    0, 0.5, -1.
    """
    image = keras.Input((None, None, 3), name="image")
    maps = keras.layers.Conv2D(2, 1, use_bias=False, name="maps")(image)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(maps)
    scores = keras.layers.Dense(3, activation="softmax", name="scores")(pooled)
    model = keras.Model(image, scores, name="tiny")
    model.get_layer("maps").set_weights([np.float32([[[[1, 0], [0, 1], [0, 0]]]])])
    kernel = np.float32([[1, 0, 1], [0, 2, -1]])
    model.get_layer("scores").set_weights([kernel, np.float32([0, 0.5, -1])])
    return model


@pytest.fixture
def tiny_image() -> np.ndarray:
    """A 2x2 image (1, 2, 2, 3) whose red is [[1, 2], [3, 4]] and green [[0, 1], [0, 5]]."""
    red, green = [[1, 2], [3, 4]], [[0, 1], [0, 5]]
    return np.float32(np.stack([red, green, np.zeros((2, 2))], axis=-1))[None]
