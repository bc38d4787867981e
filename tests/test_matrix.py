"""The same weights in every shape of model: every method gives the maps of the flat model."""

import functools

import keras
import numpy as np
import pytest

import cam_tf

L = keras.layers
METHODS = ["CAM", "GradCAM", "LayerCAM", "ScoreCAM"]
SHAPE = (12, 10, 3)
TABLE = 4


def _maps(image):
    x = L.Conv2D(4, 3, strides=2, activation="relu", name="conv1")(image)
    x = L.BatchNormalization(name="norm")(x)
    return L.Conv2D(5, 3, activation="relu", name="conv2")(x)


def _backbone(pooled=False, name="backbone.v1"):
    image = keras.Input(SHAPE)
    maps = _maps(image)
    return keras.Model(image, L.GlobalAveragePooling2D()(maps) if pooled else maps, name=name)


def _scores(pooled):
    return L.Dense(3, activation="softmax", name="scores")(pooled)


def _around(*layers):
    """A Functional model of layers, one after the other, with global average pooling."""
    x = image = keras.Input(SHAPE, name="image")
    for layer in layers:
        x = layer(x)
    return keras.Model(image, _scores(L.GlobalAveragePooling2D()(x)))


def _flat():
    return _around(_maps)


def _sequential():
    layers = (
        *(L.Conv2D(4, 3, strides=2, activation="relu", name="conv1"),),
        *(L.BatchNormalization(name="norm"), L.Conv2D(5, 3, activation="relu", name="conv2")),
        *(L.GlobalAveragePooling2D(), L.Dense(3, activation="softmax", name="scores")),
    )
    return keras.Sequential([keras.Input(SHAPE), *layers])


def _sequential_around():
    head = (L.GlobalAveragePooling2D(), L.Dropout(0.5), L.Dense(3, "softmax", name="scores"))
    return keras.Sequential([keras.Input(SHAPE), _backbone(), *head])


def _nested_twice():
    image = keras.Input(SHAPE)
    return _around(keras.Model(image, _backbone()(image), name="outer.model"))


def _own_pooling():
    image = keras.Input(SHAPE)
    return keras.Model(image, _scores(L.Dropout(0.3)(_backbone(pooled=True)(image))))


def _augmented():
    augmentation = keras.Sequential([L.RandomFlip(), L.RandomRotation(0.4), L.RandomZoom(0.3)])
    return _around(augmentation, L.Rescaling(1.0), _backbone())


def _two_inputs():
    image, table = keras.Input(SHAPE, name="image"), keras.Input((TABLE,), name="table")
    pooled = L.GlobalAveragePooling2D()(_backbone()(image))
    return keras.Model([image, table], _scores(L.Concatenate()([pooled, table])))


def _two_outputs():
    image = keras.Input(SHAPE)
    pooled = L.GlobalAveragePooling2D()(_backbone()(image))
    return keras.Model(image, [L.Dense(1, name="age")(pooled), _scores(pooled)])


class _Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.backbone, self.pool = _backbone(), L.GlobalAveragePooling2D()
        self.head = L.Dense(3, activation="softmax", name="scores")

    def call(self, images, training=False):
        return self.head(self.pool(self.backbone(images, training=training)))


def _subclassed():
    model = _Subclassed()
    model(np.zeros((1, *SHAPE), np.float32))
    return model


SHAPES = {
    "flat": _flat,
    "Sequential": _sequential,
    "Sequential around a backbone": _sequential_around,
    "nested": lambda: _around(_backbone()),
    "nested twice": _nested_twice,
    "own pooling": _own_pooling,
    "augmentation": _augmented,
    "reloaded .keras": lambda: _around(_backbone()),
    "reloaded .h5": lambda: _around(_backbone()),
    "flat .h5": _flat,
    "two inputs": _two_inputs,
    "two outputs": _two_outputs,
    "subclassed": _subclassed,
}


@functools.cache
def _weights():
    rng = np.random.default_rng(7)
    return {
        "conv1": [rng.normal(size=(3, 3, 3, 4)) / 3, rng.uniform(size=4)],
        "norm": [rng.uniform(0.5, 1.5, 4), *rng.normal(size=(2, 4)), rng.uniform(0.5, 2, 4)],
        "conv2": [rng.normal(size=(3, 3, 4, 5)) / 3, rng.uniform(size=5)],
        "scores": [rng.normal(size=(5, 3)), rng.normal(size=3)],
        "age": [rng.normal(size=(5, 1)), rng.normal(size=1)],
        "table": rng.normal(size=(TABLE, 3)),
    }


def _filled(shape):
    model = SHAPES[shape]()
    for layer in model._flatten_layers():
        if layer.weights and layer.name in _weights():
            weights = _weights()[layer.name]
            if layer.name == "scores" and shape == "two inputs":
                weights = [np.concatenate([weights[0], _weights()["table"]]), weights[1]]
            layer.set_weights(weights)
    return model


def _images():
    rng = np.random.default_rng(8)
    return rng.uniform(-1, 2, (3, *SHAPE)).astype(np.float32)


@functools.cache
def _expected(method):
    """The maps of the flat model, as NumPy."""
    return getattr(cam_tf, method)(_filled("flat"))(_images(), "all").numpy()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", SHAPES)
def test_maps_do_not_depend_on_the_shape_of_the_model(shape, method, tmp_path):
    model, images, options = _filled(shape), _images(), {}
    if "." in shape:
        path = tmp_path / f"model.{shape.rpartition('.')[2]}"
        model.save(path)
        model = keras.models.load_model(path)
    given = images
    if shape == "two inputs":
        given = [images, np.random.default_rng(9).normal(size=(3, TABLE)).astype(np.float32)]
    if shape == "two outputs":
        options["output"] = "scores"
    before = [weight.numpy() for weight in model.weights]
    result = getattr(cam_tf, method)(model, **options)(given, "all").numpy()
    expected = _expected(method)
    scale = np.abs(expected.maps).max()
    assert scale > 0.01
    np.testing.assert_allclose(result.maps, expected.maps, rtol=1e-5, atol=1e-6 * scale)
    output = model(given, training=False)
    output = output[1] if shape == "two outputs" else output
    np.testing.assert_allclose(result.scores, output, rtol=1e-5, atol=1e-6)
    if shape != "two inputs":  # whose table adds to the logits
        np.testing.assert_allclose(result.logits, expected.logits, rtol=1e-5, atol=1e-6)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)
