"""LiteRT and ONNX files answer what TensorFlow answers, and mistakes leave nothing behind."""

import json
import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import cam_tf
from cam_tf.cli import main
from cam_tf.export.litert import export_litert
from cam_tf.export.onnx import export_onnx

SIZE = 32
NAMES = [f"class {i}, café" for i in range(6)]
# Largest differences of maps, as shares of the largest value, and of scores.
TOLERANCES = {"litert": 1e-4, "onnx": 1e-4, "float16": 5e-3, "int8": 0.1}


def _network(channels=3, dtype="float32", linear_head=False, last=None) -> keras.Model:
    """Convolutions large enough to be quantized, and batch normalisation that has statistics."""
    keras.utils.set_random_seed(1)
    image = keras.Input((SIZE, SIZE, channels), dtype=dtype)
    maps = keras.layers.Rescaling(1 / 255)(image)
    for width in (16, 32):
        maps = keras.layers.Conv2D(width, 3, 2, padding="same", use_bias=False)(maps)
        maps = keras.layers.BatchNormalization()(maps)
        maps = keras.layers.ReLU()(maps)
    maps = maps if last is None else last(maps)
    features = keras.layers.GlobalAveragePooling2D()(maps)
    features = keras.layers.Dense(5)(features) if linear_head else features
    model = keras.Model(image, keras.layers.Dense(6, activation="softmax")(features), name="small")
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([one + rng.uniform(0, 0.5, one.shape) for one in layer.get_weights()])
    return model


@pytest.fixture(scope="module")
def model():
    return _network()


def _images(count=3, size=(SIZE, SIZE)) -> np.ndarray:
    return np.random.default_rng(0).uniform(0, 255, (count, *size, 3)).astype(np.float32)


def _export(format, given, path, **options):
    """Exports to ``path`` with the suffix of the format."""
    if format == "onnx":
        pytest.importorskip("tf2onnx")
        return export_onnx(given, path.with_suffix(".onnx"), **options)
    quantize = None if format == "litert" else format
    return export_litert(given, path.with_suffix(".tflite"), quantize=quantize, **options)


def _answer(path, images) -> dict[str, np.ndarray]:
    """What the format's own runtime answers."""
    if path.suffix == ".onnx":
        session = pytest.importorskip("onnxruntime").InferenceSession(str(path))
        names = [one.name for one in session.get_outputs()]
        return dict(zip(names, session.run(names, {"images": images}), strict=True))
    runtime = pytest.importorskip("ai_edge_litert.interpreter")
    run = runtime.Interpreter(str(path)).get_signature_runner("serving_default")
    answers = [run(images=image[None]) for image in images]
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}


def _assert_agree(answer, explained: cam_tf.Explanation, tolerance):
    """The same maps of all classes, and scores."""
    explained = explained.numpy()
    scale = np.abs(explained.maps).max()
    np.testing.assert_allclose(answer["maps"], explained.maps, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(answer["scores"], explained.scores, rtol=0, atol=tolerance)


@pytest.mark.parametrize("format", TOLERANCES)
def test_literal_answers(tiny_model, tiny_image, tmp_path, format):
    path = _export(format, tiny_model, tmp_path / "tiny", image_size=2)
    answer = _answer(path, tiny_image)
    red, green = np.float32([[1, 2], [3, 4]]), np.float32([[0, 1], [0, 5]])
    np.testing.assert_allclose(answer["maps"], [[red, 2 * green, red - green]], atol=1e-5)
    logits = np.array([2.5, 3.5, 0.0])  # the means of the maps, and biases 0, 0.5, -1
    np.testing.assert_allclose(answer["scores"], [np.exp(logits) / np.exp(logits).sum()], atol=1e-5)


@pytest.mark.parametrize(("format", "tolerance"), TOLERANCES.items())
def test_they_agree_with_tensorflow(model, tmp_path, format, tolerance):
    path = _export(format, model, tmp_path / "models" / "small", class_names=NAMES)
    images = _images()
    _assert_agree(_answer(path, images), cam_tf.CAM(model)(images, "all"), tolerance)
    card = json.loads((path.parent / f"{path.name}.json").read_text())
    assert card["runtime"]["format"] == path.suffix[1:].replace("tflite", "litert")
    assert card["model"]["class_names"] == NAMES
    assert (card["method"]["name"], card["versions"]["keras"]) == ("cam", keras.__version__)
    assert card["preprocessing"]["resized_to"] == [SIZE, SIZE]
    batch = None if format == "onnx" else 1
    assert card["inputs"] == {"images": {"dtype": "float32", "shape": [batch, SIZE, SIZE, 3]}}
    assert card["outputs"]["maps"] == {"dtype": "float32", "shape": [batch, 6, 8, 8]}
    assert sorted(one.name for one in path.parent.iterdir()) == [path.name, f"{path.name}.json"]


def test_quantized_files_are_small(model, tmp_path):
    sizes = {
        format: _export(format, model, tmp_path / format).stat().st_size
        for format in ("litert", "float16", "int8")
    }
    floats = model.count_params() * 4
    assert sizes["litert"] - sizes["float16"] > 0.4 * floats
    assert sizes["float16"] - sizes["int8"] > 0.15 * floats


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_heads_inputs_and_preprocessing(model, tmp_path, format):
    images, tolerance = _images(), TOLERANCES[format]
    head = _network(linear_head=True)  # two dense layers, which are one matrix
    path = _export(format, cam_tf.CAM(head), tmp_path / "head")
    _assert_agree(_answer(path, images), cam_tf.CAM(head)(images, "all"), tolerance)
    gray = _network(channels=1)
    luma = (images @ np.float32([0.299, 0.587, 0.114]))[..., None]
    path = _export(format, cam_tf.Localizer(gray), tmp_path / "gray")
    _assert_agree(_answer(path, images), cam_tf.CAM(gray)(luma, "all"), tolerance)
    whole = _network(dtype="uint8")
    path = _export(format, whole, tmp_path / "whole")
    _assert_agree(_answer(path, images), cam_tf.CAM(whole)(images.round(), "all"), tolerance)
    preprocess = keras.applications.vgg16.preprocess_input  # BGR, less a mean
    path = _export(format, model, tmp_path / "vgg", preprocess=preprocess)
    expected = cam_tf.CAM(model)(preprocess(images.copy()), "all")
    _assert_agree(_answer(path, images), expected, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(("format", "tolerance"), TOLERANCES.items())
def test_a_real_network_on_real_photos(tmp_path, format, tolerance):
    model = cam_tf.build_classifier("EfficientNetLite0")
    photos = [cam_tf.resize_image(cam_tf.load_image(one), (224, 224)) for one in _photos()]
    images = np.stack(photos).astype(np.float32)
    expected = cam_tf.CAM(model)(images, "all").numpy()
    answer = _answer(_export(format, model, tmp_path / "lite0"), images)
    _assert_agree(answer, expected, tolerance)
    np.testing.assert_array_equal(answer["scores"].argmax(1), expected.scores.argmax(1))


def _photos():
    return cam_tf.demo_photos()


@pytest.mark.parametrize("format", ["litert", "onnx"])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"class_names": NAMES[:5]}, ValueError, "5 names for 6 classes"),
        ({"class_names": "abcdef"}, TypeError, "list of strings"),
        ({"image_size": 33}, ValueError, "image_size=33"),
        ({"preprocess": lambda images: images - images.mean()}, ValueError, "not affine"),
    ],
)
def test_arguments_that_do_not_fit(model, tmp_path, format, options, error, message):
    with pytest.raises(error, match=message):
        _export(format, model, tmp_path / "parent" / "bad", **options)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_models_that_cannot_be_exported(model, tiny_model, tmp_path, format):
    image = keras.Input((8, 8, 3))
    flat = keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(image))
    hidden = keras.layers.Dense(4, activation="tanh")(flat)
    vector = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    cases = {
        "no exact class activation map.*export_saved_model": keras.Model(
            image, keras.layers.Dense(3)(hidden)
        ),
        "export_saved_model|takes inputs of shape": vector,
        "only CAM makes its maps in the forward pass": cam_tf.GradCAM(model),
        "seen once": cam_tf.CAM(model, flip=True),
        "refine='none'": cam_tf.Localizer(model, refine="grabcut"),
        "image_size=224": tiny_model,  # of any size
        "(LiteRT cannot run|ONNX cannot express) 'small'.*export_saved_model": _network(
            last=_Bessel(name="bessel")
        ),
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=message):
            _export(format, given, tmp_path / "bad")
    assert not list(tmp_path.iterdir())


class _Bessel(keras.layers.Layer):
    """An operation that neither LiteRT nor ONNX has."""

    def call(self, maps):
        return tf.math.bessel_i0e(maps)

    def compute_output_shape(self, shape):
        return shape


def test_an_unknown_quantization(model, tmp_path):
    with pytest.raises(ValueError, match="'float16' or 'int8'"):
        export_litert(model, tmp_path / "a.tflite", quantize="int4")


def test_weights_beyond_two_gigabytes(model, tmp_path, monkeypatch):
    monkeypatch.setattr("cam_tf.export.serving._MAX_CONSTANTS", 100)
    with pytest.raises(ValueError, match="frozen=False"):
        export_litert(model, tmp_path / "a.tflite")


def test_a_missing_package_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tf2onnx", None)
    with pytest.raises(ImportError, match=r"cam-tf\[onnx\]"):
        export_onnx(model, tmp_path / "a.onnx")


@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_what_exists_is_not_overwritten(model, tmp_path, format):
    path = _export(format, model, tmp_path / "a")
    card = path.with_name(f"{path.name}.json")
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        _export(format, model, path)
    path.unlink()
    with pytest.raises(FileExistsError, match="json exists"):  # a card may be of another model
        _export(format, model, path)
    path.write_bytes(before[:9])
    _export(format, model, path, overwrite=True, class_names=NAMES)
    _assert_agree(_answer(path, _images()), cam_tf.CAM(model)(_images(), "all"), 1e-4)
    assert json.loads(card.read_text())["model"]["class_names"] == NAMES


def test_places_that_cannot_be_written_to(model, tmp_path):
    (tmp_path / "d.tflite").mkdir()
    with pytest.raises(FileExistsError, match="is a directory"):
        export_litert(model, tmp_path / "d.tflite", overwrite=True)
    with pytest.raises(ValueError, match=r"ends in \.tflite"):
        export_litert(model, tmp_path / "thesis.tex", overwrite=True)
    (tmp_path / "file").touch()
    for place in ("/proc/models/a.tflite", tmp_path / "file" / "a.tflite"):
        with pytest.raises(OSError, match="name another file"):
            export_litert(model, place)


def test_a_full_disk_leaves_the_old_export(model, tmp_path):
    path = export_litert(model, tmp_path / "a.tflite")
    before = {one: one.read_bytes() for one in tmp_path.iterdir()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, limits[1]))  # the bytes that a file may have
    try:
        with pytest.raises(OSError, match=r"cannot write .*a\.tflite"):
            export_litert(model, path, overwrite=True, class_names=NAMES)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {one: one.read_bytes() for one in tmp_path.iterdir()} == before


def _run(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_the_command_line(model, tmp_path):
    model.save(tmp_path / "small.keras")
    given = ("--model", tmp_path / "small.keras")
    path = tmp_path / "a.tflite"
    done = _run(path, "--format", "litert", "--quantize", "int8", *given)
    assert done.exit_code == 0, done.output
    assert f"{path}: CAM(" in done.stdout
    assert "a.tflite.json describes it" in done.stdout
    _assert_agree(_answer(path, _images()), cam_tf.CAM(model)(_images(), "all"), 0.1)
    mistakes = {
        ("--format", "litert"): "exists",
        ("--format", "litert", "--overwrite", "--layer", "nowhere"): "nowhere",
        ("--format", "onnx"): "ends in .onnx",
        ("--format", "onnx", "--quantize", "int8"): "--quantize is for --format litert, not for",
        ("--format", "litert", "--no-flip", "--maps", "raw"): "--maps is for --format saved_model",
        ("--format", "litert", "--variables"): "--frozen/--variables is for",
        ("--format", "litert", "--overwrite", "--method", "gradcam"): "only CAM makes its maps",
        ("--format", "litert", "--overwrite", "--flip"): "seen once",
    }
    before = path.read_bytes()
    for arguments, message in mistakes.items():
        done = _run(path, *arguments, *given)
        assert (done.exit_code, message in done.stderr) == (2, True), (arguments, done.output)
        assert len(done.stderr.strip().splitlines()) == 1
    assert path.read_bytes() == before
