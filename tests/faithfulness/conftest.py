"""Models whose probabilities are known."""

import keras
import numpy as np
import pytest


@pytest.fixture
def linear_model() -> keras.Model:
    """Class 0 has the mean of red as its probability (for values in 0..1), class 1 of green."""
    image = keras.Input((None, None, 3))
    maps = keras.layers.Conv2D(2, 1, use_bias=False, name="maps")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    scores = keras.layers.Dense(2, activation=_logit_of, name="logit")(pooled)
    model = keras.Model(image, keras.layers.Activation("sigmoid")(scores))
    model.get_layer("maps").set_weights([np.float32([[[[1, 0], [0, 1], [0, 0]]]])])
    model.get_layer("logit").set_weights([np.eye(2), np.zeros(2)])
    return model


def _logit_of(share):
    """The inverse of the sigmoid."""
    share = keras.ops.clip(share, 1e-9, 1.0)
    return keras.ops.log(share) - keras.ops.log(1 - share + 1e-9)


@pytest.fixture
def small_model() -> keras.Model:
    """Two convolutions with random weights, three classes, RGB 0..255, a softmax not saturated."""
    image = keras.Input((None, None, 3))
    maps = keras.layers.Rescaling(1 / 255)(image)
    for filters in (6, 4):
        maps = keras.layers.Conv2D(filters, 3, padding="same", activation="relu")(maps)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    return keras.Model(image, keras.layers.Dense(3, activation="softmax", name="scores")(pooled))
