"""Reading a model's graph: nested models are listed in place, and nothing of them changes."""

import keras
import numpy as np
import pytest
import tensorflow as tf

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


class _Classifier(keras.Model):
    """Around a Functional backbone, as the Keras guides write it."""

    def __init__(self, **options):
        super().__init__(**options)
        self.flip = keras.layers.RandomFlip()
        self.backbone = _backbone("inner")
        self.pool = keras.layers.GlobalAveragePooling2D()
        self.drop = keras.layers.Dropout(0.5)
        self.head = keras.layers.Dense(3, activation="softmax")

    def call(self, images, training=False):
        maps = self.backbone(self.flip(images, training=training), training=training)
        return self.head(self.drop(self.pool(maps), training=training))


class _OnValues(_Classifier):
    def call(self, images):
        if keras.ops.max(images) > 1:
            images = images / 255.0
        return super().call(images)


class _OnNumpy(_Classifier):
    def call(self, images):
        return super().call(tf.numpy_function(lambda x: x + 1, [images], tf.float32))


class _OnTwo(keras.Model):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = _backbone("inner"), keras.layers.Dense(3)

    def call(self, inputs):
        pooled = keras.ops.mean(self.backbone(inputs["photo"]), axis=(1, 2))
        return self.head(keras.ops.concatenate([pooled, inputs["table"]], axis=-1))


class _Residual(keras.Model):
    """A Functional model whose `call` does more than its graph shows."""

    def call(self, images):
        return super().call(images) * 2.0


def _recorded(model):
    layers = model._flatten_layers()
    return [(layer, list(layer._inbound_nodes), list(layer._outbound_nodes)) for layer in layers]


def test_a_subclassed_model_is_traced_and_left_as_it_was(rng):
    model = _Classifier(name="mine")
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    model(images)
    before, config = _recorded(model), [weight.path for weight in model.weights]
    for explainer in (cam_tf.CAM(model), cam_tf.GradCAM(model, "inner/sum", relu=False)):
        assert explainer.anatomy.feature_maps.call.path == "inner/sum"
        result = explainer(images, "all").numpy()
        expected = model.backbone(images).numpy() @ model.head.kernel.numpy()
        maps = result.maps * (1 if isinstance(explainer, cam_tf.CAM) else 64)
        np.testing.assert_allclose(maps, np.moveaxis(expected, -1, 1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(result.scores, model(images), atol=1e-6)
    assert _recorded(model) == before
    assert [weight.path for weight in model.weights] == config
    model.head.kernel.assign(rng.normal(size=(4, 3)))  # still live
    expected = model.backbone(images).numpy() @ model.head.kernel.numpy()
    result = cam_tf.CAM(model)(images, "all")
    np.testing.assert_allclose(result.maps, np.moveaxis(expected, -1, 1), rtol=1e-5, atol=1e-5)


def test_a_subclassed_model_of_several_inputs(rng):
    model = _OnTwo()
    given = {
        "photo": rng.normal(size=(2, 8, 8, 3)).astype(np.float32),
        "table": rng.normal(size=(2, 5)).astype(np.float32),
    }
    expected = model(given)
    explainer = cam_tf.CAM(model)
    names = [value.symbol.name for value in explainer.anatomy.graph.inputs]
    assert names == ["photo", "table"]
    np.testing.assert_allclose(explainer(given, "all").logits, expected, rtol=1e-5, atol=1e-6)


def test_a_functional_model_with_a_call_of_its_own(rng):
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(_backbone("inner")(image))
    model = _Residual(image, keras.layers.Dense(3)(pooled))
    images = rng.normal(size=(2, 8, 8, 3)).astype(np.float32)
    model(images)
    before = _recorded(model)
    result = cam_tf.CAM(model)(images, "all")
    np.testing.assert_allclose(result.logits, model(images), rtol=1e-5, atol=1e-6)
    graph_alone = keras.Model(model.input, model.output)
    np.testing.assert_allclose(result.logits, 2 * graph_alone(images), rtol=1e-5, atol=1e-6)
    assert _recorded(model) == before


@pytest.mark.parametrize("kind", [_OnValues, _OnNumpy])
def test_a_subclassed_model_whose_call_needs_real_values(kind):
    model = kind()
    model(np.zeros((1, 8, 8, 3), np.float32))
    before = _recorded(model)
    message = "whose graph cannot be read.*restructure it as a Functional model"
    with pytest.raises(TypeError, match=f"{kind.__name__} is a subclassed model {message}"):
        cam_tf.CAM(model)
    assert _recorded(model) == before


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Classifier(name="mine"), "'mine' has no input shape yet: call it once on a batch"),
        (keras.Sequential([keras.layers.Dense(2)]), "has no input shape yet"),
        ("model.keras", "expected a keras.Model, got str"),
    ],
)
def test_what_has_no_graph(model, message):
    with pytest.raises(TypeError, match=message):
        cam_tf.CAM(model)
