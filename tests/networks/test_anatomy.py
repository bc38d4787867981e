"""Finding the maps, the pooling and the dense layer; refusing models that have no exact CAM."""

import keras
import numpy as np
import pytest

import cam_tf

L = keras.layers


def _model(*layers):
    return keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(4, 3, name="conv"), *layers])


@pytest.mark.parametrize(
    "head",
    [
        lambda: [L.Dense(3)],
        lambda: [L.Dense(3, activation="softmax")],
        lambda: [L.Dense(3, activation="sigmoid", use_bias=False)],
        lambda: [L.Dense(3), L.Softmax()],
        lambda: [L.Dropout(0.5), L.Dense(3), L.Dropout(0.1), L.Activation("sigmoid")],
    ],
)
def test_heads_whose_logits_are_found(head, rng):
    model = _model(L.GlobalAveragePooling2D(), *head())
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    result = cam_tf.CAM(model)(images, "all").numpy()
    np.testing.assert_allclose(result.scores, model(images, training=False), atol=1e-6)
    (dense,) = [layer for layer in model.layers if isinstance(layer, L.Dense)]
    bias = dense.get_weights()[1] if dense.use_bias else 0
    np.testing.assert_allclose(result.maps.mean((2, 3)) + bias, result.logits, atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([L.GlobalAveragePooling2D(), L.Dense(4, "relu", name="hidden"), L.Dense(3)], "'hidden'"),
        ([L.Flatten(name="flat"), L.Dense(3)], "where global average or max pooling.*'flat'"),
        ([L.GlobalAveragePooling2D(name="top")], "where a dense layer.*'top'"),
        ([L.Conv2D(3, 4, name="last"), L.Flatten(name="flat")], "'flat'"),
    ],
)
def test_the_layer_in_the_way_is_named(layers, message):
    with pytest.raises(ValueError, match=f"no exact class activation map.*{message}"):
        cam_tf.CAM(_model(*layers))


def test_a_model_without_layers_between_input_and_output():
    image = keras.Input((3,))
    with pytest.raises(ValueError, match="stands the input"):
        cam_tf.CAM(keras.Model(image, L.Dense(2)(image)))


def test_two_inputs_are_refused():
    image, table = keras.Input((6, 6, 3)), keras.Input((2,))
    pooled = L.Concatenate()([L.GlobalAveragePooling2D()(image), table])
    with pytest.raises(ValueError, match="2 inputs and 1 outputs"):
        cam_tf.CAM(keras.Model([image, table], L.Dense(2)(pooled)))
