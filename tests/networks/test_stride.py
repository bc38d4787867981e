"""Denser maps: at the old positions they are the old maps, whatever the network and image size."""

import subprocess
import sys

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.networks.stride import DilatedPooling2D, Sample2D, Shift2D, with_output_stride


def _awake(model, images):
    """Gives random weights the statistics of trained ones: else all maps are nearly constant."""
    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    for layer in model._flatten_layers():
        if type(layer).__name__ == "LayerScale":
            layer.gamma.assign(layer.gamma * 0 + 1)
    momenta = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, momenta, strict=True):
        layer.momentum = momentum


def _errors(name, stride, size, any_size=False):
    """Relative differences of the old maps to the new ones, by the first old position."""
    keras.utils.set_random_seed(0)
    grouped = name.startswith("ConvNeXt")  # its convolutions take minutes in float64
    keras.config.set_dtype_policy("float32" if grouped else "float64")
    images = np.random.default_rng(0).uniform(0, 255, (2, size, size, 3))
    shape = (None, None, 3) if any_size else (size, size, 3)
    model = cam_tf.build_classifier(name, 3, weights=None, input_shape=shape)
    _awake(model, images)
    dense = with_output_stride(model, stride)
    assert {id(one) for one in dense.weights} == {id(one) for one in model.weights}
    old, new = (cam_tf.cam_model(one)(images)[0].numpy() for one in (model, dense))
    rate = (16 if name.endswith("-GAP") else 32) // stride
    assert new.shape[1] >= rate * (old.shape[1] - 1) + 1
    parts = {o: new[:, o::rate, o::rate] for o in range(rate)}
    return {
        o: np.abs(part - old).max() / np.abs(old).max()
        for o, part in parts.items()
        if part.shape == old.shape
    }


_QUICK = [
    ("EfficientNetLite0", 16, 128, 1),
    ("EfficientNetLite0", 8, 128, 3),
    ("EfficientNetLite0", 8, 129, 0),  # 65, 33, 17, 9, 5: odd sizes are padded on both sides
    ("EfficientNetLite0", 8, 80, 1),  # 10 loses the first stride, 5 the second
    ("EfficientNetLite0", 4, 64, 7),
    ("EfficientNetB0", 8, 128, 3),
    ("EfficientNetV2B0", 16, 64, 1),
    ("VGG16", 8, 64, 0),
    ("ResNet50", 8, 64, 0),
    ("ResNet50V2", 8, 64, 0),
    ("MobileNet", 8, 150, 3),
    ("MobileNetV2", 8, 144, 1),
    ("MobileNetV3Small", 8, 128, 3),
    ("DenseNet121", 8, 64, 0),
    ("Xception", 8, 127, 3),
    ("Xception", 16, 75, 0),
    ("GoogLeNet", 16, 95, 1),  # pooling that rounds up pads at the end: it is as even sizes are
    ("NIN", 16, 131, 1),
]
_SLOW = [
    ("InceptionV3", 8, 160, 0),
    ("InceptionResNetV2", 8, 107, 0),
    ("NASNetMobile", 8, 160, 3),
    ("ConvNeXtTiny", 8, 64, 0),
    ("EfficientNetV2S", 8, 64, 3),
    ("DenseNet169", 16, 64, 0),
    ("AlexNet", 8, 131, 3),
    ("AlexNet-GAP", 8, 132, 1),
    ("AlexNet*-GAP", 8, 100, 1),
    ("VGG16-GAP", 4, 64, 0),
    ("GoogLeNet", 8, 96, 3),
    ("GoogLeNet-GAP", 4, 96, 3),
]


@pytest.mark.parametrize(
    "name, stride, size, first",
    _QUICK + [pytest.param(*row, marks=pytest.mark.slow) for row in _SLOW],
)
def test_the_old_maps_are_in_the_new_ones(name, stride, size, first):
    errors = _errors(name, stride, size)
    assert errors.pop(first) < 1e-6
    assert all(error > 0.05 for error in errors.values())


@pytest.mark.parametrize(
    "name, size, first",
    [
        ("EfficientNetLite0", 100, 0),
        ("EfficientNetV2B0", 64, 3),
        ("EfficientNetB0", 97, 3),
        ("MobileNetV2", 70, 3),
        ("ResNet50", 70, 0),
        ("Xception", 150, 1),
        ("VGG16", 70, 0),
        ("GoogLeNet", 96, 3),
    ],
)
def test_they_are_for_any_image_size(name, size, first):
    assert _errors(name, 8, size, any_size=True)[first] < 1e-6


def _small(name="EfficientNetLite0", **arguments):
    return cam_tf.build_classifier(
        name, 3, **{"weights": None, "input_shape": (64, 64, 3), **arguments}
    )


def test_the_variables_are_shared_and_the_layers_are_not(rng):
    model = _small(trainable_backbone=False)
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    dense = with_output_stride(model, 16)
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert [layer.name for layer in dense.layers] == [layer.name for layer in model.layers]
    assert dense.name == model.name
    assert not any(a is b for a, b in zip(model.layers, dense.layers, strict=True))
    assert len(dense.trainable_variables) == len(model.trainable_variables) == 2
    for layer in dense.layers:
        layer.trainable = True
    assert len(dense.trainable_variables) == len(_small().trainable_variables)
    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    before = model(images).numpy()
    dense.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    dense.train_on_batch(images, np.array([0, 2]))
    assert np.abs(model(images) - before).max() > 1e-3


def test_the_builder_takes_an_output_stride(rng, tmp_path):
    dense = _small(output_stride=8, pooling="max", head_conv=4)
    assert dense.get_layer("feature_maps").output.shape == (None, 8, 8, 4)
    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    dense.save_weights(tmp_path / "dense.weights.h5")
    weights = tmp_path / "dense.weights.h5"
    again = _small(output_stride=8, pooling="max", head_conv=4, weights=weights)
    np.testing.assert_allclose(again(images), dense(images), atol=1e-6)
    maps = cam_tf.CAM(_small(output_stride=16))(images)
    assert maps.maps.shape == (2, 1, 4, 4)


def test_it_saves_and_loads_in_another_process(tmp_path, rng):
    dense = _small("Xception", input_shape=(None, None, 3), output_stride=8)
    images = rng.uniform(0, 255, (1, 80, 80, 3)).astype(np.float32)
    dense.save(tmp_path / "dense.keras")
    np.savez(tmp_path / "arrays.npz", images=images, scores=dense(images))
    program = (
        "import cam_tf.networks.stride, keras, numpy as np\n"
        "model = keras.models.load_model('dense.keras', safe_mode=True)\n"
        "arrays = np.load('arrays.npz')\n"
        "assert np.abs(model(arrays['images']) - arrays['scores']).max() < 1e-6\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


@pytest.mark.parametrize("name", ["EfficientNetB0", "VGG16"])
def test_mixed_precision(name, rng):
    keras.config.set_dtype_policy("mixed_float16")
    dense = _small(name, output_stride=8)
    images = rng.uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    maps, scores = cam_tf.cam_model(dense)(images)
    assert maps.dtype == "float16"
    assert scores.dtype == "float32"
    assert not any(layer.compute_dtype == "float32" for layer in dense.layers[4:-3])


def test_nested_models_are_unfolded(rng):
    keras.config.set_dtype_policy("float64")
    inner = keras.applications.MobileNetV2((64, 64, 3), 0.35, include_top=False, weights=None)
    layers = [keras.Input((64, 64, 3)), inner, keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([*layers, keras.layers.Dense(3, "softmax")])
    images = rng.normal(size=(2, 64, 64, 3))
    _awake(model, images)
    dense = with_output_stride(model, 16)
    name = inner.layers[-1].name
    new = keras.Model(dense.input, dense.get_layer(name).output)(images).numpy()
    np.testing.assert_allclose(new[:, 1::2, 1::2], inner(images), atol=1e-9)


def test_a_stride_that_cannot_be():
    model = _small()
    assert with_output_stride(model, 32) is model
    for stride in (64, 12, 0, -8):
        with pytest.raises(ValueError, match=r"a stride of 32.*\[1, 2, 4, 8, 16\]"):
            with_output_stride(model, stride)
    with pytest.raises(TypeError):
        with_output_stride(model, 16.0)


def test_a_layer_that_cannot_be_dilated_is_named():
    model = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=3)
    with pytest.raises(ValueError, match=r"'flatten' \(Flatten\) wants maps of one size"):
        with_output_stride(model, 16)
    image = keras.Input((32, 32, 3))
    maps = keras.layers.Conv2D(4, 3, 2)(image)
    maps = keras.layers.UpSampling2D(name="larger")(maps)
    model = keras.Model(image, keras.layers.GlobalMaxPooling2D()(maps))
    with pytest.raises(ValueError, match=r"'larger' \(UpSampling2D\) has no known counterpart"):
        with_output_stride(model, 1)
    maps = keras.layers.Conv2D(4, 3, (2, 1), name="flat")(image)
    model = keras.Model(image, keras.layers.GlobalMaxPooling2D()(maps))
    with pytest.raises(ValueError, match=r"'flat' \(Conv2D\).*strides 2 and 1 differ"):
        with_output_stride(model, 1)


# Not an even window with "same" padding: its phases are padded elsewhere, see Move.
@pytest.mark.parametrize(
    ("padding", "size"),
    [("valid", (2, 2)), ("valid", (3, 3)), ("valid", (3, 1)), ("same", (3, 3)), ("same", (3, 1))],
)
def test_dilated_pooling_is_pooling_of_every_phase(padding, size, rng):
    maps = rng.normal(size=(2, 12, 12, 3)).astype(np.float32) - 5
    pools = (("max", keras.layers.MaxPooling2D), ("average", keras.layers.AveragePooling2D))
    for mode, pool in pools:
        dense = DilatedPooling2D(size, 2, padding, mode)(maps).numpy()
        for o in (0, 1):
            expected = pool(size, 1, padding)(maps[:, o::2, o::2])
            np.testing.assert_allclose(dense[:, o::2, o::2], expected, atol=1e-5)


def test_shift_and_sample_by_hand():
    maps = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5, 1)
    assert np.ravel(Shift2D([0, 2])(maps)).tolist() == [0, 0, 1, 2, 3]
    assert np.ravel(Shift2D([0, -1])(maps)).tolist() == [2, 3, 4, 5, 0]
    assert np.ravel(Sample2D([0, 1], rate=2)(maps)).tolist() == [2, 4]
    move = [(3, 3), 2, 1, 1]  # of a 3x3 window with stride 2: by 1 where the size is even
    assert np.ravel(Shift2D([0, 0], [move])(maps)).tolist() == [1, 2, 3, 4, 5]
    assert np.ravel(Shift2D([0, 0], [move])(maps[:, :, :4])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["EfficientNetLite0", "MobileNetV2", "VGG16"])
def test_a_model_of_one_size_becomes_one_of_any_size(name, rng):
    model = cam_tf.build_classifier(name, 3, weights=None, input_shape=(64, 64, 3))
    images = rng.uniform(0, 255, (1, 64, 64, 3)).astype(np.float32)
    free = with_output_stride(model, any_size=True)
    np.testing.assert_array_equal(free(images), model(images))
    assert free.input_shape == (None, None, None, 3)
    dense = with_output_stride(model, 16, any_size=True)
    built = cam_tf.build_classifier(name, 3, weights=None, input_shape=(None, None, 3))
    built.set_weights(model.get_weights())
    larger = rng.uniform(0, 255, (1, 96, 80, 3)).astype(np.float32)
    expected = cam_tf.CAM(with_output_stride(built, 16))(larger).maps
    np.testing.assert_allclose(cam_tf.CAM(dense)(larger).maps, expected, rtol=1e-4, atol=1e-6)
    assert with_output_stride(free, any_size=True) is free


def test_a_head_for_one_size_cannot_take_any_size():
    layers = [keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    with pytest.raises(ValueError, match="flatten"):
        with_output_stride(model, any_size=True)
