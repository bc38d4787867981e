"""Fine-tuning from published weights: frozen, then unfrozen, and the maps stay exact throughout."""

import keras
import numpy as np
import pytest
from keras import applications
from keras.src.utils import file_utils

import cam_tf

SIDE, CLASSES = 64, 3


@pytest.fixture
def published(tmp_path, monkeypatch, photos):
    """Writes a ``..._notop.h5`` in the published format and lets Keras's download find it."""

    def write(name: str, module) -> tuple[list[np.ndarray], list[str]]:
        network = getattr(module, name)(weights=None, include_top=False)
        pixels = module.preprocess_input(photos[0].copy())
        norms = [x for x in network.layers if isinstance(x, keras.layers.BatchNormalization)]
        for layer in norms:
            layer.momentum = 0.0  # takes these images' statistics, as if trained on their like
        network(pixels, training=True)
        path = tmp_path / f"{network.name}_notop.h5"
        network.save(path)
        asked = []

        def found(fname, *args, **kwargs):
            asked.append(fname)
            return str(path)

        monkeypatch.setattr(file_utils, "get_file", found)
        return network.get_weights(), asked

    return write


@pytest.fixture
def photos(rng):
    """Two photos of each class, which differ by the colour of a square in noise."""
    labels = np.arange(2 * CLASSES) % CLASSES
    images = rng.uniform(0, 90, (len(labels), SIDE, SIDE, 3)).astype(np.float32)
    for image, label in zip(images, labels, strict=True):
        y, x = rng.integers(0, SIDE // 2, 2)
        image[y : y + SIDE // 2, x : x + SIDE // 2, label] = 255
    return images, labels


def _error_of_the_identity(model, explainer, images) -> float:
    result = explainer(images, "all").numpy()
    bias = model.get_layer("predictions").get_weights()[1]
    error = np.abs(result.maps.mean(axis=(2, 3)) + bias - result.logits)
    np.testing.assert_allclose(result.scores, model(images, training=False), rtol=1e-3, atol=1e-6)
    return float((error / np.abs(result.logits).max(axis=1, keepdims=True)).max())


def _fit(model, images, labels, rate, epochs) -> list[float]:
    # XLA, Keras's default, takes longer to compile than this test to run.
    optimizer = keras.optimizers.Adam(rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", jit_compile=False)
    data = {"batch_size": len(images), "shuffle": False, "verbose": 0}
    return model.fit(images, labels, epochs=epochs, **data).history["loss"]


@pytest.mark.parametrize(
    ("name", "module", "file"),
    [
        ("MobileNet", applications.mobilenet, "mobilenet_1_0_224_tf_no_top.h5"),
        pytest.param(
            *("MobileNetV2", applications.mobilenet_v2, "_1.0_224_no_top.h5"),
            marks=pytest.mark.slow,
        ),
        pytest.param("ResNet50", applications.resnet, "_notop.h5", marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_frozen_then_unfrozen(name, module, file, published, photos, tmp_path):
    images, labels = photos
    before, asked = published(name, module)
    model = cam_tf.build_classifier(
        name, CLASSES, weights="imagenet", input_shape=(SIDE, SIDE, 3), trainable_backbone=False
    )
    assert len(asked) == 1 and asked[0].endswith(file)
    body = keras.Model(model.input, model.get_layer("feature_maps").output)
    for one, other in zip(body.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(model.trainable_variables) == 2  # the kernel and the bias of the head
    explainer = cam_tf.CAM(model)  # of the live weights
    assert _error_of_the_identity(model, explainer, images) < 1e-4

    losses = _fit(model, images, labels, rate=1e-3, epochs=3)
    assert losses[-1] < losses[0]
    for one, other in zip(body.get_weights(), before, strict=True):
        np.testing.assert_array_equal(one, other)  # moving averages of batch normalisation too
    assert _error_of_the_identity(model, explainer, images) < 1e-4

    for layer in model.layers:
        layer.trainable = True
    losses = _fit(model, images, labels, rate=1e-5, epochs=3)
    assert losses[-1] < losses[0]
    assert any((one != other).any() for one, other in zip(body.get_weights(), before, strict=True))
    assert _error_of_the_identity(model, explainer, images) < 1e-4

    model.save(tmp_path / "tuned.keras")
    again = keras.models.load_model(tmp_path / "tuned.keras")
    for one, other in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    first, second = (one(images, "all").numpy().maps for one in (explainer, cam_tf.CAM(again)))
    np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)
