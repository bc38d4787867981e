"""The SavedModel answers what the library answers, and refuses what it cannot."""

import io
import json
import resource
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cam_tf
from cam_tf.export.saved_model import export_saved_model
from cam_tf.localization.localizer import Localizer

SIZE = 32
NAMES = [f"class {i}, café" for i in range(6)]
_FRESH = Path(__file__).with_name("serve_without_cam_tf.py")


def _network(size=SIZE, channels=3, head="gap", dtype="float32") -> keras.Model:
    """Convolutions with batch normalisation that has statistics, and six classes."""
    keras.utils.set_random_seed(1)
    maps = image = keras.Input((size, size, channels), dtype=dtype)
    maps = keras.layers.Rescaling(1 / 255)(maps)
    for width in (6, 8):
        maps = keras.layers.Conv2D(width, 3, 2, padding="same", use_bias=False)(maps)
        maps = keras.layers.BatchNormalization()(maps)
        maps = keras.layers.ReLU()(maps)
    if head == "gap":
        features = keras.layers.GlobalAveragePooling2D()(maps)
    else:
        features = keras.layers.Dense(9, activation="tanh")(keras.layers.Flatten()(maps))
    scores = keras.layers.Dense(6, activation="softmax")(features)
    model = keras.Model(image, scores, name=f"small_{head}")
    rng = np.random.default_rng(2)
    for weight in model.weights:
        weight.assign(weight + rng.uniform(0, 0.5, weight.shape))
    return model


@pytest.fixture(scope="module")
def model():
    return _network()


@pytest.fixture(scope="module")
def exported(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "small" / "1"
    assert export_saved_model(model, path, top_k=3, class_names=NAMES) == path
    return path


@pytest.fixture(scope="module")
def served(exported):
    return tf.saved_model.load(str(exported)).signatures


def _images(count=2, size=(SIZE, SIZE), seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 255, (count, *size, 3)).astype(np.float32)


def _file(pixels, kind="PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def _assert_answer(answer, expected: cam_tf.Explanation, threshold=0.2):
    expected = expected.numpy()
    scale = np.abs(expected.maps).max()
    np.testing.assert_array_equal(answer["class_ids"], expected.class_ids)
    np.testing.assert_allclose(answer["scores"], expected.scores, atol=1e-5)
    np.testing.assert_allclose(answer["maps"], expected.maps, rtol=1e-5, atol=1e-5 * max(scale, 1))
    np.testing.assert_allclose(answer["boxes"], cam_tf.boxes(expected, threshold), atol=1e-5)


def _load(path, name="serving_default"):
    return tf.saved_model.load(str(path)).signatures[name]


def test_a_process_with_tensorflow_alone_serves_it(model, exported, tmp_path):
    sizes = [(1, (SIZE, SIZE)), (64, (SIZE, SIZE)), (3, (17, 101)), (2, (1, 1)), (7, (33, 31))]
    batches = {f"batch{i}": _images(*one, seed=i) for i, one in enumerate(sizes)}
    photo = _images(1, (40, 50))[0].astype(np.uint8)
    (tmp_path / "photo.png").write_bytes(_file(photo))
    np.savez(tmp_path / "in.npz", **batches)
    command = [sys.executable, str(_FRESH), str(exported), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "InvalidArgumentError" in done.stdout  # of the corrupt file, which it outlived
    assert "Invalid JPEG data" in done.stdout
    answers = np.load(tmp_path / "out.npz")
    cam = cam_tf.CAM(model)
    for name, images in batches.items():
        images = tf.image.resize(images, (SIZE, SIZE), antialias=True)
        answer = {key: answers[f"{name} {key}"] for key in _KEYS}
        _assert_answer(answer, cam(images, top_k=3, batch_size=64))
    warped = cam_tf.resize_image(photo, (SIZE, SIZE))[None]
    answer = {key: answers[f"file {key}"] for key in _KEYS}
    np.testing.assert_allclose(answer["scores"], cam(warped, top_k=3).scores, atol=1e-3)


_KEYS = ("class_ids", "scores", "maps", "boxes")


@pytest.mark.slow
def test_saved_model_cli_runs_it(model, exported, tmp_path):
    np.save(tmp_path / "images.npy", _images())
    program = "from tensorflow.python.tools.saved_model_cli import main; main()"
    command = [sys.executable, "-c", program, "run", "--dir", str(exported), "--tag_set", "serve"]
    command += ["--signature_def", "serving_default", "--inputs", f"images={tmp_path}/images.npy"]
    done = subprocess.run([*command, "--outdir", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = {key: np.load(tmp_path / f"{key}.npy") for key in _KEYS}
    _assert_answer(answer, cam_tf.CAM(model)(_images(), top_k=3))


def test_the_signatures(model, served):
    images = _images().round()
    expected = cam_tf.CAM(model)(images, top_k=3)
    _assert_answer(served["serving_default"](images=tf.constant(images)), expected)
    whole = images.astype(np.uint8)
    _assert_answer(served["serving_uint8"](images=tf.constant(whole)), expected)
    files = tf.constant([_file(image) for image in whole])
    answer = served["serving_bytes"](image_bytes=files)
    _assert_answer(answer, expected)
    named = [[NAMES[i] for i in ids] for ids in expected.class_ids.numpy()]
    assert [[name.decode() for name in row] for row in answer["class_names"].numpy()] == named
    ids = tf.constant([[5, 0], [1, 1]])
    expected = cam_tf.CAM(model)(images, ids.numpy())
    inputs = {"": images, "_uint8": whole}
    for suffix, given in inputs.items():
        answer = served[f"given_classes{suffix}"](images=tf.constant(given), class_ids=ids)
        _assert_answer(answer, expected)
    _assert_answer(served["given_classes_bytes"](image_bytes=files, class_ids=ids), expected)
    assert len(served) == 6


def test_files_of_several_sizes(model, served):
    photos = [_images(1, size)[0].astype(np.uint8) for size in ((SIZE, SIZE), (90, 41), (5, 9))]
    answer = served["serving_bytes"](image_bytes=tf.constant([_file(one) for one in photos]))
    warped = [tf.image.resize(one, (SIZE, SIZE), antialias=True) for one in photos]
    _assert_answer(answer, cam_tf.CAM(model)(np.round(warped), top_k=3))


def test_grad_cam_for_other_heads(tmp_path):
    model = _network(head="flatten")
    export_saved_model(model, tmp_path / "grad", threshold=0.5)
    answer = _load(tmp_path / "grad")(images=tf.constant(_images(3)))
    _assert_answer(answer, cam_tf.GradCAM(model)(_images(3), top_k=5), threshold=0.5)
    card = json.loads((tmp_path / "grad" / "model_card.json").read_text())
    assert card["method"]["name"] == "gradcam"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["LayerCAM", "EigenCAM", "ScoreCAM", "SmoothGradCAMPlusPlus"])
def test_other_explainers(model, tmp_path, method):
    explainer = getattr(cam_tf, method)(model)
    export_saved_model(explainer, tmp_path / "one", top_k=2)
    answer = _load(tmp_path / "one")(images=tf.constant(_images()))
    _assert_answer(answer, explainer(_images(), top_k=2))


@pytest.mark.slow
def test_a_localizer_of_several_views(tmp_path):
    localizer = Localizer(_network(), method="prototypecam", scales=(1.0, 1.5), flip=True)
    assert localizer.image_size == (48, 48)
    export_saved_model(localizer, tmp_path / "views", top_k=2)
    images = _images(2, (48, 48))
    answer = _load(tmp_path / "views")(images=tf.constant(images))
    _assert_answer(answer, localizer(images, top_k=2))


@pytest.mark.slow
def test_heatmaps(model, tmp_path):
    export_saved_model(model, tmp_path / "heat", maps="heatmap", frozen=False)
    answer = _load(tmp_path / "heat")(images=tf.constant(_images()))
    expected = cam_tf.heatmaps(cam_tf.CAM(model)(_images(), top_k=5))
    assert answer["maps"].shape == (2, 5, SIZE, SIZE)
    np.testing.assert_allclose(answer["maps"], expected, atol=1e-5)


def test_variables_and_constants(model, exported, tmp_path):
    export_saved_model(model, tmp_path / "live", top_k=3, class_names=NAMES, frozen=False)
    live, frozen = (tf.saved_model.load(str(path)) for path in (tmp_path / "live", exported))
    variables = live.signatures["serving_default"].variables
    assert len(variables) == len(model.weights)
    assert not frozen.signatures["serving_default"].variables
    images = tf.constant(_images())
    answer = live.signatures["serving_default"](images=images)
    _assert_answer(answer, cam_tf.CAM(model)(images, top_k=3))


def test_the_graph_is_plain_and_holds_the_weights_once(model, exported):
    reader = tf.compat.v1.saved_model.load
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        functions = reader(session, ["serve"], str(exported)).graph_def.library.function
    assert not [one for one in functions if one.attr["_XlaMustCompile"].b]
    nodes = [node for one in functions for node in one.node_def]
    python = {"PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaLaunch"}
    assert not {node.op for node in nodes} & python
    weights = 4 * model.count_params()
    constants = [node.attr["value"].tensor for node in nodes if node.op == "Const"]
    stored = sum(len(tensor.tensor_content) for tensor in constants)
    assert weights * 0.9 < stored < weights * 2  # once, not for each of six signatures


def test_batch_normalisation_is_folded_in_what_runs(exported, model, tmp_path):
    export_saved_model(model, tmp_path / "live", frozen=False)
    live, frozen = _ops(tmp_path / "live"), _ops(exported)
    assert live.count("Rsqrt") == 2  # batch normalisation as it is
    assert live.count("Mul") - frozen.count("Mul") >= 4
    assert not {"Rsqrt", "FusedBatchNormV3", "ReadVariableOp", "PartitionedCall"} & set(frozen)


def _ops(path) -> list[str]:
    """The operations that a session runs, after TensorFlow has optimised them."""
    options = tf.compat.v1.RunOptions(output_partition_graphs=True)
    told = tf.compat.v1.RunMetadata()
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
        signature = meta.signature_def["serving_default"]
        feed = {signature.inputs["images"].name: _images()}
        session.run(signature.outputs["maps"].name, feed, options=options, run_metadata=told)
    return [node.op for part in told.partition_graphs for node in part.node]


@pytest.mark.slow
def test_preprocessing_becomes_a_matrix(tmp_path):
    model = _network()
    for name in ("mobilenet_v2", "vgg16"):
        preprocess = getattr(keras.applications, name).preprocess_input
        export_saved_model(model, tmp_path / name, preprocess=preprocess, top_k=2)
        answer = _load(tmp_path / name)(images=tf.constant(_images()))
        _assert_answer(answer, cam_tf.CAM(model)(preprocess(_images()), top_k=2))
    with pytest.raises(ValueError, match="not affine in each pixel"):
        export_saved_model(model, tmp_path / "no", preprocess=lambda images: images - images.mean())
    card = json.loads((tmp_path / "vgg16" / "model_card.json").read_text())
    np.testing.assert_allclose(card["preprocessing"]["matrix"], np.eye(3)[::-1], atol=1e-6)
    offset = card["preprocessing"]["offset"]
    np.testing.assert_allclose(offset, [-103.939, -116.779, -123.68], rtol=1e-6)


@pytest.mark.slow
def test_networks_of_gray_and_of_whole_numbers(tmp_path):
    gray = _network(channels=1)
    export_saved_model(gray, tmp_path / "gray", top_k=2)
    images = _images()
    luma = (images @ np.float32([0.299, 0.587, 0.114]))[..., None]
    answer = _load(tmp_path / "gray")(images=tf.constant(images))
    _assert_answer(answer, cam_tf.CAM(gray)(luma, top_k=2))
    whole = _network(dtype="uint8")
    export_saved_model(whole, tmp_path / "whole", top_k=2)
    answer = _load(tmp_path / "whole")(images=tf.constant(images))
    _assert_answer(answer, cam_tf.CAM(whole)(images.round(), top_k=2))


def test_a_network_of_any_size_must_be_told_one(tmp_path):
    model = _network(size=None)
    with pytest.raises(ValueError, match="image_size=224"):
        export_saved_model(model, tmp_path / "any")
    export_saved_model(model, tmp_path / "any", image_size=(40, 24), top_k=1)
    images = _images(2, (40, 24))
    answer = _load(tmp_path / "any")(images=tf.constant(images))
    _assert_answer(answer, cam_tf.CAM(model)(images, top_k=1))


def test_the_model_card(exported):
    card = json.loads((exported / "model_card.json").read_text())
    assert card["versions"]["tensorflow"] == tf.__version__
    assert card["model"]["class_names"] == NAMES
    assert card["method"]["name"] == "cam"
    assert card["preprocessing"]["resized_to"] == [SIZE, SIZE]
    assert (card["answer"]["top_k"], card["answer"]["box_threshold"]) == (3, 0.2)
    assert set(card["signatures"]) == {
        f"{name}{suffix}"
        for name, suffixes in {
            "serving": ("_default", "_uint8", "_bytes"),
            "given_classes": ("", "_uint8", "_bytes"),
        }.items()
        for suffix in suffixes
    }
    given = card["signatures"]["given_classes_bytes"]
    assert given["inputs"]["image_bytes"] == {"dtype": "string", "shape": [None]}
    assert given["outputs"]["maps"]["dtype"] == "float32"


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("serving_default", {"images": np.zeros((0, 8, 8, 3), np.float32)}, "holds no image"),
        ("serving_uint8", {"images": np.zeros((0, 8, 8, 3), np.uint8)}, "holds no image"),
        ("serving_bytes", {"image_bytes": np.array([], object)}, "holds no image"),
        ("serving_default", {"images": np.zeros((1, 0, 8, 3), np.float32)}, "8 x 0 = 0 pixels"),
        ("serving_default", {"images": np.full((1, 8, 8, 3), np.nan, np.float32)}, "NaN"),
        ("serving_uint8", {"images": np.zeros((1, 5800, 5800, 3), np.uint8)}, "33640000 pixels"),
        ("serving_bytes", {"image_bytes": np.array([b""], object)}, "empty"),
        ("given_classes", {"images": _images(1), "class_ids": [[6]]}, "class id 6 is out of range"),
        ("given_classes", {"images": _images(1), "class_ids": [[0, -1]]}, "class id -1 is out"),
        ("given_classes", {"images": _images(1), "class_ids": [[]]}, "names no class"),
        ("given_classes", {"images": _images(2), "class_ids": [[1]]}, "1 rows for 2 images"),
        ("given_classes", {"images": _images(0), "class_ids": np.zeros((0, 1))}, "no image"),
    ],
)
def test_requests_that_are_refused(served, name, inputs, message):
    specs = served[name].structured_input_signature[1]
    inputs = {key: tf.constant(value, specs[key].dtype) for key, value in inputs.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        served[name](**inputs)
    assert served["serving_default"](images=tf.constant(_images(1)))["maps"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 7}, "top_k=7 is not between 1 and 6 classes"),
        ({"top_k": 0}, "top_k=0"),
        ({"class_names": NAMES[:5]}, "5 names for 6 classes"),
        ({"image_size": 33}, "takes"),
        ({"image_size": (1, 2, 3)}, "height, width"),
        ({"maps": "warm"}, "'raw' or 'heatmap'"),
        ({"threshold": 1.0}, "0 <= threshold < 1"),
        ({"max_pixels": 0}, "max_pixels=0"),
    ],
)
def test_arguments_that_do_not_fit(model, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(model, tmp_path / "parent" / "bad", **options)
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_be_exported(model, tmp_path):
    flat = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="softmax")])
    pair = [keras.Input((8, 8, 3)), keras.Input((2,), name="age")]
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3)(pair[0]))
    two = keras.Model(pair, keras.layers.Dense(3)(keras.layers.Concatenate()([pooled, pair[1]])))
    cases = {
        "feature maps|takes inputs of shape": flat,
        "age": two,
        "target": cam_tf.GradCAM(model, target=lambda scores: scores[:, 0]),
        "refine='none'": Localizer(model, refine="grabcut"),
    }
    for message, given in cases.items():
        with pytest.raises(ValueError, match=message):
            export_saved_model(given, tmp_path / "bad")
    assert not list(tmp_path.iterdir())


def test_class_names_that_are_one_string(model, tmp_path):
    with pytest.raises(TypeError, match="list of strings"):
        export_saved_model(model, tmp_path / "bad", class_names="abcdef")


def test_what_exists_is_not_overwritten(model, tmp_path):
    path = tmp_path / "1"
    export_saved_model(model, path, top_k=1)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        export_saved_model(model, path)
    export_saved_model(model, path, top_k=2, overwrite=True)
    assert _load(path)(images=tf.constant(_images()))["maps"].shape[1] == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="something else"):
        export_saved_model(model, other, overwrite=True)
    with pytest.raises(FileExistsError, match="is a file"):
        export_saved_model(model, other / "thesis.tex", overwrite=True)
    with pytest.raises(OSError, match="name another directory"):
        export_saved_model(model, other / "thesis.tex" / "1")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["1", "other"]


def test_an_unwritable_place(model):
    with pytest.raises(OSError, match="name another directory"):
        export_saved_model(model, "/proc/models/1")


def test_a_full_disk_leaves_the_old_export(model, tmp_path):
    export_saved_model(model, tmp_path / "1", top_k=1)
    before = {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))  # the bytes that a file may have
    try:
        with pytest.raises(OSError, match="Is the disk full"):
            export_saved_model(model, tmp_path / "1", top_k=2, overwrite=True)
        with pytest.raises(OSError, match="Is the disk full"):
            export_saved_model(model, tmp_path / "new" / "1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {one: one.read_bytes() for one in tmp_path.rglob("*") if one.is_file()} == before
    assert [one.name for one in tmp_path.iterdir()] == ["1"]


def test_an_interrupted_export_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(module, path, **_):
        Path(path).mkdir()
        Path(path, "saved_model.pb").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(tf.saved_model, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        export_saved_model(model, tmp_path / "a" / "1")
    assert not list(tmp_path.iterdir())


def test_weights_beyond_two_gigabytes(model, tmp_path, monkeypatch):
    monkeypatch.setattr("cam_tf.export.serving._MAX_CONSTANTS", 100)
    with pytest.raises(ValueError, match="frozen=False"):
        export_saved_model(model, tmp_path / "1")
    assert not list(tmp_path.iterdir())
