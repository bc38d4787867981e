"""Every backbone of the table, and weights: from Keras, from files, and of other networks."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.utils import file_utils

import cam_tf
from cam_tf.networks.applications import BACKBONES, IMAGENET_MEAN, IMAGENET_STDDEV

SLOW = {
    *("ResNet101", "ResNet152", "ResNet101V2", "ResNet152V2", "InceptionResNetV2", "VGG19"),
    *("DenseNet169", "DenseNet201", "NASNetLarge", "MobileNetV3Large", "EfficientNetLite1"),
    *("EfficientNetB1", "EfficientNetB2", "EfficientNetB3", "EfficientNetB4", "EfficientNetB5"),
    *("EfficientNetB6", "EfficientNetB7", "EfficientNetV2B1", "EfficientNetV2B2"),
    *("EfficientNetV2B3", "EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L"),
    *("ConvNeXtSmall", "ConvNeXtBase", "ConvNeXtLarge", "ConvNeXtXLarge", "AlexNet*-GAP"),
    *("GoogLeNet", "VGG16-GAP"),
}
EVERY_BACKBONE = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in BACKBONES
]


def test_the_table_holds_every_keras_application():
    constructors = {name for name in dir(keras.applications) if name[0].isupper()}
    lite = {"EfficientNetLite0", "EfficientNetLite1", "EfficientNetLite2"}
    paper = {"AlexNet", "AlexNet-GAP", "AlexNet*-GAP", "VGG16-GAP", "GoogLeNet", "GoogLeNet-GAP"}
    assert set(cam_tf.list_backbones()) == constructors | lite | paper | {"NIN"}
    assert len(constructors) >= 40


@pytest.mark.parametrize("name", EVERY_BACKBONE)
def test_the_identity_holds_for_every_class(name, rng):
    side = 96 if BACKBONES[name].min_size > 64 else 64
    model = cam_tf.build_classifier(name, 1000, weights=None, input_shape=(side, side, 3))
    images = rng.uniform(0, 255, (2, side, side, 3)).astype(np.float32)
    second = cam_tf.cam_model(model)
    maps, _ = second(images, training=False)
    # Random networks give features of any scale, zero among them: make the logits of order 1.
    scale = np.abs(maps).max()
    assert scale > 0
    kernel = rng.normal(size=(maps.shape[-1], 1000)) / scale
    model.get_layer("predictions").set_weights([kernel, rng.normal(size=1000)])
    result = cam_tf.CAM(model)(images, "all").numpy()
    bias = model.get_layer("predictions").get_weights()[1]
    from_maps = result.maps.mean(axis=(2, 3))
    assert np.abs(from_maps).max() > 0.1
    error = np.abs(from_maps + bias - result.logits).max(axis=1)
    assert (error <= 1e-4 * np.abs(result.logits).max(axis=1)).all()
    predictions = model(images, training=False)
    np.testing.assert_array_equal(second(images, training=False)[1], predictions)
    np.testing.assert_allclose(result.scores, predictions, rtol=1e-3, atol=1e-6)


def _random_weights(model, rng):
    """Gives every weight a random value of its own, so that no two layers can be mistaken."""
    for variable in model.weights:
        spread = rng.uniform(0.5, 1.5, variable.shape) / max(1, np.prod(variable.shape[:-1])) ** 0.5
        variable.assign(spread * (1 if variable.ndim == 1 else rng.choice([-1, 1], variable.shape)))


@pytest.fixture
def published(tmp_path, monkeypatch, rng):
    """Writes weights in the format of keras.applications and lets its download find them."""

    def write(constructor, include_top=True, **arguments):
        network = constructor(weights=None, include_top=include_top, **arguments)
        _random_weights(network, rng)
        path = tmp_path / f"{network.name}_{'tf' if include_top else 'notop'}.h5"
        network.save(path)
        monkeypatch.setattr(file_utils, "get_file", lambda *args, **kwargs: str(path))
        return network, path

    return write


def _preprocessed(name, images):
    """What the application's own preprocess_input makes of images."""
    module = {
        "MobileNet": keras.applications.mobilenet,
        "MobileNetV2": keras.applications.mobilenet_v2,
        "ResNet50": keras.applications.resnet,
        "DenseNet121": keras.applications.densenet,
        "VGG16": keras.applications.vgg16,
    }[name]
    return module.preprocess_input(images.copy())


@pytest.mark.parametrize("name", ["MobileNet", "MobileNetV2", "DenseNet121", "ResNet50"])
@pytest.mark.parametrize("source", ["imagenet", "path"])
def test_the_own_classifier_is_kept(name, source, published, rng):
    network, path = published(getattr(keras.applications, name))
    weights = source if source == "imagenet" else path
    model = cam_tf.build_classifier(name, weights=weights)
    images = rng.uniform(0, 255, (2, 224, 224, 3)).astype(np.float32)
    expected = network(_preprocessed(name, images), training=False)
    np.testing.assert_allclose(model(images, training=False), expected, rtol=2e-3, atol=1e-6)
    assert np.ptp(expected.numpy(), axis=1).min() > 1e-4  # not the uniform distribution
    any_size = cam_tf.build_classifier(name, weights=weights, input_shape=(None, None, 3))
    np.testing.assert_allclose(any_size(images, training=False), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.parametrize("source", ["imagenet", "path"])
def test_another_number_of_classes_uses_the_file_without_top(source, published, rng):
    network, path = published(keras.applications.MobileNetV2, include_top=False)
    weights = source if source == "imagenet" else path
    model = cam_tf.build_classifier(
        "MobileNetV2", 7, weights=weights, input_shape=(64, 64, 3), trainable_backbone=False
    )
    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    maps, predictions = cam_tf.cam_model(model)(images, training=False)
    expected = network(_preprocessed("MobileNetV2", images), training=False)
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-5)
    assert predictions.shape == (2, 7)


def test_a_file_with_a_top_of_other_classes_serves_too(published, rng):
    network, path = published(keras.applications.MobileNetV2, classes=7)
    images = rng.uniform(0, 255, (2, 224, 224, 3)).astype(np.float32)
    expected = network(_preprocessed("MobileNetV2", images), training=False)
    kept = cam_tf.build_classifier("MobileNetV2", 7, weights=path)
    np.testing.assert_allclose(kept(images, training=False), expected, rtol=1e-3, atol=1e-6)
    new = cam_tf.build_classifier("MobileNetV2", 5, weights=path)
    assert new.output_shape == (None, 5)
    for one, other in zip(kept.weights[:-2], new.weights[:-2], strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("VGG16", {}, "cannot be written as one dense layer"),
        ("MobileNetV3Small", {}, "cannot be written as one dense layer"),
        ("MobileNetV2", {"pooling": "max"}, "trained on averages"),
        ("MobileNetV2", {"head_conv": 4}, "the convolution before it is new"),
    ],
)
def test_a_new_head_on_pretrained_maps_is_said_plainly(name, arguments, why, published):
    published(getattr(keras.applications, name), include_top=False)
    with pytest.warns(cam_tf.UntrainedHeadWarning, match=f"{name}.*random weights.*{why}"):
        cam_tf.build_classifier(name, input_shape=(64, 64, 3), **arguments)


def test_a_file_without_top_for_1000_classes_is_said_plainly(published):
    _, path = published(keras.applications.MobileNetV2, include_top=False)
    with pytest.warns(cam_tf.UntrainedHeadWarning, match="does not hold the classifier"):
        cam_tf.build_classifier("MobileNetV2", weights=path, input_shape=(64, 64, 3))


def test_vgg_maps_from_a_file_without_top(published, rng):
    network, path = published(keras.applications.VGG16, include_top=False)
    model = cam_tf.build_classifier("VGG16", 3, weights=path, input_shape=(64, 64, 3))
    images = rng.uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    maps, _ = cam_tf.cam_model(model)(images, training=False)
    expected = network(_preprocessed("VGG16", images))
    np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("source", ["imagenet", "path", "weights.h5"])
def test_the_published_efficientnets_divide_by_the_deviation(source, published, tmp_path, rng):
    """Their files hold the deviation where Keras expects the variance (keras.applications)."""
    network, path = published(keras.applications.EfficientNetB0)
    (norm,) = [x for x in network.layers if isinstance(x, keras.layers.Normalization)]
    norm.set_weights([np.float32(IMAGENET_MEAN), np.float32(IMAGENET_STDDEV), np.int64(0)])
    network.save(path)
    weights = path if source == "path" else "imagenet"
    model = cam_tf.build_classifier("EfficientNetB0", weights=weights)
    if source == "weights.h5":
        model.save_weights(tmp_path / "whole.weights.h5")
        model = cam_tf.build_classifier("EfficientNetB0", weights=tmp_path / "whole.weights.h5")
    images = rng.uniform(0, 255, (2, 224, 224, 3)).astype(np.float32)
    (stem,) = [x for x in model.layers if x.name == "stem_conv_pad"]
    normalized = keras.Model(model.input, stem.input)(images)
    expected = (images / 255 - IMAGENET_MEAN) / IMAGENET_STDDEV
    np.testing.assert_allclose(normalized, expected, rtol=1e-4, atol=1e-5)


def test_a_weights_file_of_another_network(published, tmp_path):
    _, path = published(keras.applications.MobileNet, classes=3)
    with pytest.raises(ValueError, match="is of another network"):
        cam_tf.build_classifier("MobileNetV2", 3, weights=path)
    narrow = keras.applications.MobileNet(weights=None, alpha=0.5, classes=3)
    narrow.save(tmp_path / "narrow.h5")
    with pytest.raises(ValueError, match=r"is of another network than MobileNet\. Keras says"):
        cam_tf.build_classifier("MobileNet", 3, weights=tmp_path / "narrow.h5")
    _, path = published(keras.applications.VGG16, classes=3, input_shape=(32, 32, 3))
    with pytest.raises(ValueError, match="use the file without"):
        cam_tf.build_classifier("VGG16", 3, weights=path)
    other = cam_tf.build_classifier("MobileNet", 3, weights=None)
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="does not hold the weights of 'mobilenetv2_cam'"):
        cam_tf.build_classifier("MobileNetV2", 3, weights=tmp_path / "other.weights.h5")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("model.h5", "is not a weights file of keras.applications"),
        ("model.weights.h5", "does not hold the weights"),
        ("model.keras", "keras.models.load_model"),
        ("model.pth", "is not a file that MobileNetV2 can be read from"),
        ("model", "is not a file that MobileNetV2 can be read from"),
    ],
)
def test_a_file_that_is_no_weights_file(name, message, tmp_path):
    (tmp_path / name).write_text("weights")
    with pytest.raises(ValueError, match=message):
        cam_tf.build_classifier("MobileNetV2", 3, weights=tmp_path / name)


def test_a_download_that_fails_names_the_way_out(monkeypatch):
    def fail(*args, **kwargs):
        raise Exception("URL fetch failure on https://example.org/x.h5: None -- no route")

    monkeypatch.setattr(file_utils, "get_file", fail)
    with pytest.raises(ConnectionError, match=r"ResNet50 could not be downloaded.*weights=None"):
        cam_tf.build_classifier("ResNet50")


def test_efficientnet_lite0_knows_a_cat():
    model = cam_tf.build_classifier("EfficientNetLite0")
    photo = next(path for path in cam_tf.demo_photos() if "cat" in path.stem)
    image = cam_tf.resize_image(cam_tf.load_image(photo), (224, 224))[None]
    result = cam_tf.CAM(model)(image, top_k=2)
    names = [cam_tf.imagenet_classes()[i] for i in result.class_ids.numpy()[0]]
    assert names[0] in ("tabby", "tiger cat", "Egyptian cat")
    bias = model.get_layer("predictions").bias.numpy()[result.class_ids.numpy()]
    np.testing.assert_allclose(tf.reduce_mean(result.maps, (2, 3)) + bias, result.logits, rtol=1e-4)
