"""``cam-tf export`` as a person uses it."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner

import cam_tf
from cam_tf.cli import main


@pytest.fixture
def model_file(tmp_path):
    """Red, green and blue are their own evidence, on 8x8 pixels scaled to -1..1."""
    image = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(3, 1, use_bias=False, name="maps")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="scores")(pooled))
    model.set_weights([np.eye(3)[None, None], np.eye(3), np.zeros(3)])
    model.save(tmp_path / "colours.keras")
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    return tmp_path / "colours.keras"


@pytest.fixture
def run(model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("--model", "colours.keras", "--labels", "labels.txt")
    return lambda *arguments: CliRunner().invoke(main, ["export", *arguments, *model])


def test_it_exports_a_model_file(run, tmp_path):
    done = run("models/colours/1", "--preprocess", "mobilenet_v2", "--top-k", "2")
    assert done.exit_code == 0, done.output
    assert "models/colours/1: CAM(" in done.stdout
    served = tf.saved_model.load(str(tmp_path / "models/colours/1")).signatures
    red = np.zeros((1, 30, 20, 3), np.uint8)
    red[:, :15, :, 0] = 255
    answer = served["serving_uint8"](images=tf.constant(red))
    assert [name.decode() for name in answer["class_names"].numpy()[0]] == ["red", "green"]
    np.testing.assert_allclose(answer["maps"][0, 0, 0], 1, atol=1e-6)
    np.testing.assert_allclose(answer["maps"][0, 0, -1], -1, atol=1e-6)
    np.testing.assert_allclose(answer["boxes"][0, 0], [0, 0, 0.5, 1], atol=0.13)
    again = run("models/colours/1")
    assert again.exit_code == 2
    assert "exists" in again.stderr
    assert "Traceback" not in again.output


def test_methods_views_and_sizes(run, tmp_path):
    done = run("views", "--method", "gradcam", "--maps", "heatmap", "--variables")
    assert done.exit_code == 0, done.output
    card = json.loads((tmp_path / "views" / "model_card.json").read_text())
    assert card["method"]["name"] == "gradcam"
    assert (card["answer"]["maps"], card["model"]["weights"]) == ("heatmap", "variables")
    assert card["model"]["class_names"] == ["red", "green", "blue"]
    assert card["versions"]["cam_tf"] == cam_tf.__version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--top-k", "4"), "top_k=4 is not between 1 and 3"),
        (("--size", "9"), "image_size=(9, 9)"),
        (("--refine", "grabcut"), "refine='none'"),
        (("--method", "gradcan"), "Did you mean 'gradcam'"),
        (("--max-channels", "3"), "asks no channels"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, arguments, message):
    done = run("out", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
