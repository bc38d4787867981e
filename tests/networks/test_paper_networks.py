"""The paper's networks: layers of Caffe's time, map sizes, and torchvision's weights."""

import functools
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch_reference
from torch_reference import ODD, images, tensor

import cam_tf
from cam_tf.networks import pretrained
from cam_tf.networks.applications import find_backbone
from cam_tf.networks.caffe import LocalResponseNormalization, max_pooling


def _relative(one, other) -> float:
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    assert one.shape == other.shape
    return np.abs(one - other).max() / np.abs(other).max()


# Layers.


def test_response_normalization_is_that_of_caffe(rng):
    maps = rng.normal(size=(2, 3, 4, 7)) * 30
    expected = np.empty_like(maps)
    for k in range(7):
        near = maps[..., max(0, k - 2) : k + 3]
        expected[..., k] = maps[..., k] / (1 + 1e-2 / 5 * (near**2).sum(-1)) ** 0.75
    layer = LocalResponseNormalization(alpha=1e-2)
    assert _relative(layer(maps.astype(np.float32)), expected) < 1e-5
    three = LocalResponseNormalization(3, alpha=2.0, beta=1.0, bias=2.0)
    ones = np.ones((1, 1, 1, 3), np.float32)
    np.testing.assert_allclose(np.ravel(three(ones)), [3 / 10, 1 / 4, 3 / 10], rtol=1e-6)
    again = LocalResponseNormalization.from_config(three.get_config())
    np.testing.assert_array_equal(again(ones), three(ones))
    with pytest.raises(ValueError, match=r"size=4: .* odd number"):
        LocalResponseNormalization(4)


def test_response_normalization_in_half_precision():
    maps = np.full((1, 1, 1, 5), 1000, np.float16)  # whose squares float16 cannot hold
    normalized = LocalResponseNormalization(alpha=1.0, beta=0.5, dtype="float16")(maps)
    assert normalized.dtype == "float16"
    assert float(normalized[0, 0, 0, 2]) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("length", range(3, 10))
def test_pooling_rounds_up(size, stride, length, rng):
    maps = rng.uniform(0, 1, (1, length, length + 1, 2)).astype(np.float32)
    height, width = (-(-(n - size) // stride) + 1 for n in (length, length + 1))
    expected = np.empty((1, height, width, 2))
    for i in range(height):
        for j in range(width):
            y, x = i * stride, j * stride
            expected[:, i, j] = maps[:, y : y + size, x : x + size].max((1, 2))
    image = keras.Input((None, None, 2))
    model = keras.Model(image, max_pooling(image, "pool", size, stride))
    np.testing.assert_array_equal(model(maps), expected)


# Networks.


@pytest.mark.parametrize(
    ("name", "variant", "size", "maps", "weights"),
    [  # weights without the dense layer; those of whole networks as published
        ("AlexNet", "caffe", 227, (6, 6, 256), 60_965_224 - 58_631_144),
        ("AlexNet", "torchvision", 224, (6, 6, 256), 61_100_840 - 58_631_144),
        ("AlexNet-GAP", "caffe", 227, (13, 13, 1024), 2_334_080 + 9 * 256 * 1024 + 1024),
        ("AlexNet-GAP", "torchvision", 224, (13, 13, 1024), None),
        ("AlexNet*-GAP", "caffe", 227, (13, 13, 512), 2_334_080 + 9 * 768 * 512 + 1024),
        ("AlexNet*-GAP", "torchvision", 224, (13, 13, 512), None),
        ("VGG16-GAP", "caffe", 224, (14, 14, 1024), 14_714_688 + 9 * 512 * 1024 + 1024),
        ("VGG16-GAP", "torchvision", 224, (14, 14, 1024), None),
        ("GoogLeNet", "caffe", 224, (7, 7, 1024), 6_998_552 - 1_025_000),
        ("GoogLeNet", "torchvision", 224, (7, 7, 1024), 6_624_904 - 1_025_000),
        ("GoogLeNet-GAP", "caffe", 224, (14, 14, 1024), None),
        ("GoogLeNet-GAP", "torchvision", 224, (14, 14, 1024), None),
        ("NIN", None, 224, (6, 6, 1024), 7_595_176 - 1_025_000),
    ],
)
@pytest.mark.parametrize("pooling", ["avg", pytest.param("max", marks=pytest.mark.slow)])
def test_map_sizes_and_weights_are_the_published(name, variant, size, maps, weights, pooling):
    model = cam_tf.build_classifier(name, 2, weights=None, variant=variant, pooling=pooling)
    assert model.input_shape == (None, size, size, 3)
    assert model.get_layer("feature_maps").output.shape[1:] == maps
    assert type(model.get_layer("pooling")).__name__.startswith(f"Global{pooling.title()[:2]}")
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    if weights is not None:
        count = sum(int(np.prod(one.shape)) for one in model.trainable_weights)
        assert count - 2 * (maps[2] + 1) == weights


def test_caffe_takes_bgr_without_the_mean(rng):
    model = cam_tf.build_classifier("AlexNet", 2, weights=None)
    kernel, bias = (rng.normal(size=shape) for shape in ((11, 11, 3, 96), (96,)))
    model.get_layer("conv1").set_weights([kernel, bias])
    images = rng.integers(0, 256, (1, 227, 227, 3))
    bgr = images[..., ::-1] - np.array([104, 117, 123])
    window = bgr[0, 8 : 8 + 11, 216:227]
    expected = np.maximum(np.tensordot(window, kernel, 3) + bias, 0)
    maps = keras.Model(model.input, model.get_layer("conv1").output)(images)
    assert maps.shape == (1, 55, 55, 96)
    np.testing.assert_allclose(maps[0, 2, 54], expected, rtol=1e-4, atol=1e-2)


def test_caffe_has_groups_and_normalizes_before_it_pools():
    model = cam_tf.build_classifier("AlexNet*-GAP", 2, weights=None, head_groups=2)
    groups = {x.name: x.groups for x in model.layers if isinstance(x, keras.layers.Conv2D)}
    two = {"conv2", "conv4", "conv5", "head_conv", "head_conv_2"}
    assert groups == {"conv1": 1, "conv3": 1, **dict.fromkeys(two, 2)}
    names = [layer.name for layer in model.layers]
    assert names[2:6] == ["conv1", "norm1", "pool1_pad", "pool1"]
    assert model.get_layer("head_conv_2").kernel.shape == (3, 3, 256, 512)
    google = cam_tf.build_classifier("GoogLeNet-GAP", 2, weights=None, head_conv=())
    names = [layer.name for layer in google.layers]
    assert names.index("pool1") < names.index("norm1") < names.index("norm2")
    assert names.index("norm2") < names.index("pool2")
    assert names[-4:] == ["inception4e", "feature_maps", "pooling", "predictions"]


def test_they_are_found_by_any_spelling():
    for name in ("alexnet-gap", "AlexNetGAP", "alexnet_gap"):
        assert find_backbone(name).name == "AlexNet-GAP"
    assert find_backbone("alexnet*gap").name == "AlexNet*-GAP"
    assert find_backbone("VGG16GAP").head_conv == (1024,)
    with pytest.raises(ValueError, match=r"'VGGnet-GAP' is unknown.*'VGG16-GAP'"):
        find_backbone("VGGnet-GAP")
    model = cam_tf.build_classifier("AlexNet*-GAP", 2, weights=None, input_shape=(64, 64, 3))
    assert model.name == "alexnet_star_gap_cam"


@pytest.mark.slow
def test_they_save_and_load_in_another_process(tmp_path, rng):
    model = cam_tf.build_classifier("AlexNet", 3, weights=None, input_shape=(None, None, 3))
    images = rng.uniform(0, 255, (1, 80, 70, 3)).astype(np.float32)
    model.save(tmp_path / "model.keras")
    np.savez(tmp_path / "arrays.npz", images=images, scores=model(images))
    program = (
        "from cam_tf.networks.loading import load_classifier\n"
        "import numpy as np\n"
        "model = load_classifier('model.keras').model\n"
        "arrays = np.load('arrays.npz')\n"
        "assert np.abs(model(arrays['images']) - arrays['scores']).max() < 1e-6\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_they_train(rng):
    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    model = cam_tf.build_classifier(
        "AlexNet-GAP", 3, weights=None, input_shape=(64, 64, 3), head_conv=8, head_groups=2
    )
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy")
    model.fit(images, np.array([0, 2]), verbose=0)
    changed = [np.any(a != b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert all(changed)


# Weights of torchvision, with tensors as ``torch_reference`` makes them.


def _torch_shape(variable) -> tuple[int, ...]:
    height, width, *rest = variable.shape
    return (*rest[::-1], height, width)


@functools.cache
def _tensors(name):
    """What torchvision's checkpoint of a network holds (of the classifier: one tensor, or fc)."""
    model = cam_tf.build_classifier(name, 2, weights=None, variant="torchvision", head_conv=())
    shapes = {"classifier.6.bias": (1000,)}
    if name == "GoogLeNet":
        shapes = {"fc.weight": (1000, 1024), "fc.bias": (1000,), "aux1.fc1.bias": (1024,)}
    for layer, source in find_backbone(name).torchvision.tensors.items():
        weight, *others = model.get_layer(layer).weights
        shape = _torch_shape(weight) if len(weight.shape) == 4 else tuple(weight.shape)
        names = ["bias", "running_mean", "running_var"][: len(others)]
        shapes |= {f"{source}.weight": shape}
        shapes |= {f"{source}.{one}": tuple(weight.shape[-1:]) for one in names}
    return {key: tensor(key, shape) for key, shape in shapes.items()}


def _checkpoint(name):
    return dict(_tensors(name))


@pytest.fixture
def load(monkeypatch, tmp_path):
    """Builds a network on tensors as if a file held them."""

    def build(name, tensors, classes=1000, **arguments):
        (tmp_path / "torch.pth").write_bytes(b"")
        monkeypatch.setattr(pretrained, "read_torch_checkpoint", lambda path: tensors)
        return cam_tf.build_classifier(
            name, classes, weights=tmp_path / "torch.pth", input_shape=(ODD, ODD, 3), **arguments
        )

    return build


def _maps(model, images):
    return cam_tf.cam_model(model)(images, training=False)[0].numpy()


# What torch 2.15.0 and torchvision 0.29.2 compute from these tensors: four values of the maps of
# the first image, at their second row and column, and the mean of the maps.
GOLDEN = {
    "AlexNet": (5.767466, 0, 2.243938, 1.850665, 4.016387),
    "AlexNet-GAP": (0.3032467, 0, 0, 0, 1.748692),
    "VGG16-GAP": (3.720196, 0, 0, 3.31042, 1.724242),
    "GoogLeNet": (0, 0, 7.845259, 0, 4.428087),
}


@pytest.mark.parametrize("name", GOLDEN)
def test_torchvisions_weights_give_what_torch_gives(name, load):
    arguments = {} if name in ("AlexNet", "GoogLeNet") else {"head_conv": ()}
    classes = 1000 if name == "GoogLeNet" else 2
    maps = _maps(load(name, _checkpoint(name), classes, **arguments), images(ODD))
    *values, mean = GOLDEN[name]
    np.testing.assert_allclose(maps[0, 1, 1, 10:14], values, rtol=1e-4, atol=1e-4 * maps.max())
    assert maps.mean() == pytest.approx(mean, rel=1e-4)


def test_googlenet_keeps_its_own_classifier(load):
    tensors = _checkpoint("GoogLeNet")
    model = load("GoogLeNet", tensors)
    kernel, bias = model.get_layer("predictions").get_weights()
    np.testing.assert_array_equal(kernel, tensors["fc.weight"].T)
    np.testing.assert_array_equal(bias, tensors["fc.bias"])
    tensors |= {"fc.weight": tensors["fc.weight"][:5], "fc.bias": tensors["fc.bias"][:5]}
    five = load("GoogLeNet", tensors, 5)
    np.testing.assert_array_equal(five.get_layer("predictions").bias, tensors["fc.bias"][:5])
    del tensors["fc.weight"], tensors["fc.bias"]
    with pytest.warns(cam_tf.UntrainedHeadWarning, match="does not hold the classifier"):
        load("GoogLeNet", tensors)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("AlexNet", {}, "its own classifier cannot be written as one dense layer"),
        ("AlexNet-GAP", {}, "the convolution before it is new"),
        ("VGG16-GAP", {"head_conv": ()}, "its own classifier cannot be written"),
        ("GoogLeNet", {"pooling": "max"}, "trained on averages"),
    ],
)
def test_a_new_head_on_torchvisions_weights_is_said_plainly(name, arguments, why, load):
    with pytest.warns(cam_tf.UntrainedHeadWarning, match=f"{name}: .*random weights.*{why}"):
        load(name, _checkpoint(name), **arguments)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("AlexNet", lambda t: t.pop("features.8.bias"), "has no tensor 'features.8.bias'"),
        (
            "AlexNet-GAP",
            lambda t: t.update({"features.3.weight": np.zeros((192, 32, 5, 5))}),
            r"gives 'features.3.weight' the shape \(5, 5, 32, 192\), not \(5, 5, 64, 192\)",
        ),
        (
            "VGG16-GAP",
            lambda t: t.update({"features.30.weight": np.zeros((512, 512, 3, 3))}),
            "has 'features.30.weight', which has no place in the network",
        ),
        (
            "VGG16-GAP",
            lambda t: t.update({"features.2.weight": np.zeros(64)}),
            r"'features.2.weight' the shape \(64,\)",
        ),
        (
            "GoogLeNet",
            lambda t: t.update({"fc.weight": np.zeros((1000, 512))}),
            r"'fc.weight' and 'fc.bias' the shapes \[\(1000, 512\), \(1000,\)\], not C, 1024",
        ),
        ("GoogLeNet", lambda t: t.pop("fc.bias"), r"the shapes \[\(1000, 1024\)\]"),
        ("GoogLeNet", lambda t: t.pop("conv1.bn.running_var"), "no tensor 'conv1.bn.running_var'"),
    ],
)
def test_checkpoints_that_do_not_fit(name, change, message, load):
    tensors = _checkpoint(name)
    change(tensors)
    with pytest.raises(cam_tf.CheckpointError, match=f"does not fit {name} as torch.*{message}"):
        load(name, tensors)


def test_the_weights_of_another_network(load):
    with pytest.raises(cam_tf.CheckpointError, match=r"has no tensor 'features.0.weight'"):
        load("AlexNet", _checkpoint("GoogLeNet"))
    with pytest.raises(cam_tf.CheckpointError, match=r"GoogLeNet-GAP.*'conv1.conv.weight'"):
        load("GoogLeNet-GAP", _checkpoint("AlexNet"))


def test_a_file_that_is_no_checkpoint(tmp_path):
    (tmp_path / "alexnet.pth").write_text("<html>")
    with pytest.raises(cam_tf.CheckpointError, match="an HTML or XML page"):
        cam_tf.build_classifier("AlexNet", weights=tmp_path / "alexnet.pth")


def test_the_variant_goes_with_the_weights(load, tmp_path):
    model = load("VGG16-GAP", _checkpoint("VGG16-GAP"), 2)
    whole = tmp_path / "whole.weights.h5"
    model.save_weights(whole)
    small = {"weights": whole, "input_shape": (ODD, ODD, 3)}
    with pytest.raises(ValueError, match=r"which variant of VGG16-GAP.*variant='torchvision' if"):
        cam_tf.build_classifier("VGG16-GAP", 2, **small)
    again = cam_tf.build_classifier("VGG16-GAP", 2, variant="torchvision", **small)
    np.testing.assert_allclose(again(images(ODD)), model(images(ODD)), rtol=1e-4, atol=1e-6)
    other = cam_tf.build_classifier("VGG16-GAP", 2, variant="caffe", **small)
    assert np.abs(_maps(other, images(ODD)) - _maps(model, images(ODD))).max() > 1e-2
    with pytest.raises(ValueError, match="PyTorch file, which is for variant='torchvision'"):
        load("VGG16-GAP", {}, variant="caffe")


def test_vgg16_gap_has_the_weights_of_keras(tmp_path):
    network = keras.applications.VGG16(weights=None, include_top=False, input_shape=(64, 64, 3))
    network.save(tmp_path / "vgg16_notop.h5")
    with pytest.warns(cam_tf.UntrainedHeadWarning, match="VGG16-GAP.*convolution before it is new"):
        model = cam_tf.build_classifier(
            "VGG16-GAP", weights=tmp_path / "vgg16_notop.h5", input_shape=(64, 64, 3)
        )
    before = keras.Model(model.input, model.get_layer("block5_conv3").output)
    pixels = keras.applications.vgg16.preprocess_input(images(64))
    expected = keras.Model(network.input, network.get_layer("block5_conv3").output)(pixels)
    assert _relative(before(images(64)), expected) < 1e-5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "imagenet"}, "no weights of this AlexNet-GAP.*alexnet-owt-7be5be79.pth"),
        ({"backbone": "NIN", "weights": "imagenet"}, "of this NIN .* for random weights.$"),
        (
            {"backbone": "VGG16-GAP", "weights": "imagenet", "variant": "torchvision"},
            "vgg16-397923af.pth",
        ),
        ({"weights": __file__}, "'.weights.h5', or a '.pth' checkpoint"),
        ({"backbone": "NIN", "weights": __file__}, "use '.weights.h5'.$"),
        ({"variant": "pytorch"}, "'pytorch': AlexNet-GAP has 'caffe' and 'torchvision'"),
        ({"backbone": "NIN", "variant": "torchvision"}, "NIN has no variants"),
        ({"backbone": keras.Sequential([keras.Input((8, 8, 3))]), "variant": "caffe"}, "by name"),
        ({"head_groups": 0}, "head_groups=0"),
        ({"head_groups": 3}, "head_groups=3 does not divide the 256 channels or the 1024 units"),
        ({"head_groups": 2, "head_conv": ()}, "belongs to a head_conv"),
        ({"head_conv": (8, 0)}, r"head_conv=\(8, 0\) is not a number of units"),
        ({"input_shape": (38, 64, 3)}, "at least 39 pixels"),
    ],
)
def test_arguments_that_do_not_fit(arguments, message):
    with pytest.raises(ValueError, match=message):
        cam_tf.build_classifier(**{"backbone": "AlexNet-GAP", "weights": None, **arguments})


@pytest.mark.parametrize(
    "name",
    [
        *("AlexNet", "AlexNet-GAP", "NIN", pytest.param("GoogLeNet", marks=pytest.mark.slow)),
        pytest.param("GoogLeNet-GAP", marks=pytest.mark.slow),
    ],
)
def test_the_smallest_size(name):
    row = find_backbone(name)
    for one in filter(None, (row, row.torchvision)):
        for size in (one.min_size, one.min_size + 1):
            model = cam_tf.build_classifier(
                name,
                2,
                weights=None,
                variant="torchvision" if one is row.torchvision else None,
                input_shape=(size, size, 3),
            )
            assert np.isfinite(model(images(size))).all()


# With torch, where it is installed, or where TORCH_PYTHON is the interpreter that has it.


@pytest.fixture(scope="module")
def torch_files(tmp_path_factory):
    """The files that ``torch_reference`` writes."""
    python = os.environ.get("TORCH_PYTHON", sys.executable)
    if subprocess.run([python, "-c", "import torchvision"], capture_output=True).returncode:
        pytest.skip("torch and torchvision are not installed (TORCH_PYTHON may name a Python)")
    folder = tmp_path_factory.mktemp("torch")
    subprocess.run([python, torch_reference.__file__, str(folder)], check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("size", [224, ODD])
@pytest.mark.parametrize("format", ["legacy", "zip"])
def test_googlenet_with_torch(format, size, torch_files):
    path, expected = torch_files / f"googlenet_{format}.pth", torch_files / f"googlenet_{size}.npz"
    expected = np.load(expected)
    model = cam_tf.build_classifier("GoogLeNet", weights=path, input_shape=(size, size, 3))
    assert _relative(_maps(model, images(size)), expected["last"]) < 1e-4
    result = cam_tf.CAM(model)(images(size), "all").numpy()
    assert _relative(result.logits, expected["logits"]) < 1e-4
    bias = model.get_layer("predictions").bias.numpy()
    assert _relative(result.maps.mean((2, 3)) + bias, expected["logits"]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "source", "size", "key", "groups"),
    [
        ("AlexNet", "alexnet", 224, "last", 1),
        ("AlexNet", "alexnet", ODD, "last", 1),
        ("AlexNet-GAP", "alexnet", 224, "one2", 2),
        ("AlexNet*-GAP", "alexnet", ODD, "two1", 1),
        ("AlexNet*-GAP", "alexnet", ODD, "two2", 2),
        ("VGG16-GAP", "vgg16", ODD, "one1", 1),
        ("VGG16-GAP", "vgg16", ODD, "one2", 2),
        ("GoogLeNet-GAP", "googlenet", 224, "one1", 1),
        ("GoogLeNet-GAP", "googlenet", ODD, "one2", 2),
    ],
)
@pytest.mark.parametrize("format", ["legacy", "zip"])
def test_maps_and_logits_with_torch(name, source, size, key, groups, format, torch_files):
    path = torch_files / f"{source}_{format}.pth"
    expected = np.load(torch_files / f"{source}_{size}.npz")[key]
    shape = {"input_shape": (size, size, 3)}
    model = cam_tf.build_classifier(name, 7, weights=path, head_groups=groups, **shape)
    heads = [layer for layer in model.layers if layer.name.startswith("head_conv")]
    for number, layer in enumerate(heads, start=1):
        kernel = tensor(f"head{number}.weight", _torch_shape(layer.kernel))
        bias = tensor(f"head{number}.bias", tuple(layer.bias.shape))
        layer.set_weights([kernel.transpose(2, 3, 1, 0), bias])
    assert _relative(_maps(model, images(size)), expected) < 1e-4
    kernel, bias = model.get_layer("predictions").get_weights()
    logits = cam_tf.CAM(model)(images(size), "all").logits
    assert _relative(logits, expected.mean((1, 2)) @ kernel + bias) < 1e-4


@pytest.mark.slow
def test_the_golden_values_with_torch(torch_files):
    for name, golden in GOLDEN.items():
        arrays = np.load(torch_files / f"{name.removesuffix('-GAP').lower()}_{ODD}.npz")
        maps = arrays["kept" if name.endswith("-GAP") else "last"]
        np.testing.assert_allclose([*maps[0, 1, 1, 10:14], maps.mean()], golden, rtol=1e-4)
