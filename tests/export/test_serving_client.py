"""The client of ``training/`` against a stand-in for TensorFlow Serving."""

import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import cam_tf
from cam_tf.export.saved_model import export_saved_model

_PATH = Path(__file__).parents[2] / "training" / "serving_client.py"
_spec = importlib.util.spec_from_file_location("serving_client", _PATH)
client = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(client)
_spec = importlib.util.spec_from_file_location(
    "stand_in_server", Path(__file__).with_name("stand_in_server.py")
)
stand_in = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(stand_in)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    maps = keras.layers.Conv2D(4, 3, 2)
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, activation="softmax")]
    scale = keras.layers.Rescaling(1 / 255)
    return keras.Sequential([keras.Input((24, 24, 3)), scale, maps, *head])


@pytest.fixture(scope="module")
def served(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "1"
    export_saved_model(model, path, top_k=2, class_names=["chat", "café", "fusée"])
    return tf.saved_model.load(str(path)).signatures


@pytest.fixture(scope="module")
def files():
    return [photo.read_bytes() for photo in cam_tf.demo_photos()]


@pytest.fixture(params=["rest", "grpc"])
def ask(request, served):
    if request.param == "rest":
        with stand_in.rest_server(served, "m") as url:
            yield lambda *given: client.ask_rest(url, *given)
        return
    pytest.importorskip("tensorflow_serving", reason="tensorflow-serving-api is not installed")
    with stand_in.grpc_server(served) as target:
        yield lambda *given: client.ask_grpc(target, "m", *given)


def test_it_asks_for_predicted_and_given_classes(model, files, ask):
    images = [cam_tf.resize_image(cam_tf.load_image(file), (24, 24)) for file in files]
    for classes, options in ((None, {"top_k": 2}), ([2, 0], {"classes": [[2, 0]]})):
        expected = cam_tf.CAM(model)(np.stack(images), **options).numpy()
        answers = ask(files, classes)
        ids = [answer["class_ids"] for answer in answers]
        np.testing.assert_array_equal(ids, expected.class_ids)
        names = [["chat", "café", "fusée"][i] for i in ids[0]]
        assert answers[0]["class_names"] == names
        maps = [answer["maps"] for answer in answers]
        np.testing.assert_allclose(maps, expected.maps, atol=0.02)  # a level of 255
        assert np.shape([answer["boxes"] for answer in answers]) == (3, 2, 4)


def test_it_says_what_the_server_says(files, ask):
    with pytest.raises(ValueError, match=r"image 1 of the batch is empty \(0 bytes\)"):
        ask([files[0], b""])
    with pytest.raises(ValueError, match="class id 3 is out of range"):
        ask(files, [3])
    assert len(ask(files[:1])) == 1


def test_the_documented_request(files):
    body = json.loads(json.dumps(client.rest_request(files[:1], [1])))
    assert body["signature_name"] == "given_classes_bytes"
    (row,) = body["instances"]
    assert row["class_ids"] == [1]
    assert row["image_bytes"]["b64"].startswith("/9j/4AAQ")


def test_no_server():
    with pytest.raises(OSError, match="refused"):
        client.ask_rest("http://localhost:9/v1/models/m", [b""])
