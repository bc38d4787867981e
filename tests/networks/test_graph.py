"""Reading a model's graph: nested models are listed in place, and nothing of them changes."""

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.networks.graph import Graph


def _backbone(name):
    image = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same", name="conv")(image)
    x = keras.layers.BatchNormalization(name="norm")(x)
    return keras.Model(image, keras.layers.Add(name="sum")([x, keras.ops.relu(x)]), name=name)


def _nested(levels):
    """A classifier around a backbone that is `levels` models deep."""
    backbone = _backbone("inner.most")
    for level in range(1, levels):
        image = keras.Input((8, 8, 3))
        backbone = keras.Model(image, backbone(image), name=f"level{level}")
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.RandomFlip(),
            backbone,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(3, activation="softmax"),
        ]
    )


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_nested_models_give_the_same_maps_as_the_model_itself(levels, rng):
    model = _nested(levels)
    for variable in model.weights:
        if variable.dtype == "float32":  # not the state of RandomFlip
            variable.assign(rng.uniform(0.1, 1, variable.shape))
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    result = cam_tf.CAM(model)(images, "all").numpy()
    np.testing.assert_allclose(result.scores, model(images, training=False), atol=1e-6)
    inner = model.layers[1]
    kernel, bias = model.layers[-1].get_weights()
    expected = np.moveaxis(inner(images, training=False).numpy() @ kernel, -1, 1)
    np.testing.assert_allclose(result.maps, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result.maps.mean((2, 3)) + bias, result.logits, atol=1e-5)


def test_the_model_is_not_modified():
    model = _nested(2)
    before = [(layer, len(layer._inbound_nodes)) for layer in model._flatten_layers()]
    cam_tf.CAM(model)(np.zeros((1, 8, 8, 3)))
    assert before == [(layer, len(layer._inbound_nodes)) for layer in model._flatten_layers()]


def test_paths_name_the_nested_models():
    paths = [call.path for call in Graph(_nested(2)).calls]
    assert [path for path in paths if path.endswith("/conv")] == ["level1/inner.most/conv"]


def test_a_shared_layer_is_called_as_often_as_in_the_model(rng):
    image = keras.Input((4, 4, 2))
    shared = keras.layers.Conv2D(2, 1, name="shared")
    pooled = keras.layers.GlobalAveragePooling2D()(shared(shared(image)))
    model = keras.Model(image, keras.layers.Dense(2)(pooled))
    images = rng.normal(size=(3, 4, 4, 2)).astype(np.float32)
    result = cam_tf.CAM(model)(images, "all")
    np.testing.assert_allclose(result.logits, model(images), atol=1e-6)


def test_a_nested_model_in_half_precision_casts_as_keras_does(rng):
    image = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 1, dtype="mixed_float16")(image)
    inner_image = keras.Input((4, 4, 3))  # float32, so that the float16 maps are cast
    inner = keras.Model(inner_image, keras.layers.Conv2D(4, 1)(inner_image))
    pooled = keras.layers.GlobalAveragePooling2D()(inner(x))
    model = keras.Model(image, keras.layers.Dense(2)(pooled))
    images = rng.normal(size=(3, 4, 4, 2)).astype(np.float32)
    result = cam_tf.CAM(model)(images, "all")
    np.testing.assert_allclose(result.logits, model(images), atol=1e-6)


class _Subclassed(keras.Model):
    def call(self, images):
        return images


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Subclassed(name="mine"), "is a subclassed model.*model = keras.Model"),
        (keras.Sequential([keras.layers.Dense(2)]), "has no input shape yet"),
        ("model.keras", "expected a keras.Model, got str"),
    ],
)
def test_what_has_no_graph(model, message):
    with pytest.raises(TypeError, match=message):
        cam_tf.CAM(model)
