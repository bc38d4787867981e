"""The command line, as a person uses it: files, names, mistakes, and silence."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cam_tf
from cam_tf.cli import main


@pytest.fixture
def model_file(tmp_path):
    """Three classes on 8x8 pixels: red, green and blue are their own evidence."""
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="scores")(pooled))
    model.get_layer("scores").set_weights([np.eye(3), np.zeros(3)])
    model.save(tmp_path / "colours.keras")
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    return tmp_path / "colours.keras"


@pytest.fixture
def run(model_file, tmp_path):
    def invoke(*arguments, model=("--model", "colours.keras", "--labels", "labels.txt")):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tmp_path)
            return CliRunner().invoke(main, ["explain", *map(str, arguments), *model])

    return invoke


@pytest.fixture
def red_corner(tmp_path):
    """A 40x20 photo, black but for its upper left quarter, which is red."""
    pixels = np.zeros((20, 40, 3), np.uint8)
    pixels[:10, :20, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "red.png")
    return tmp_path / "red.png"


def test_it_writes_a_figure_an_overlay_and_a_record(run, red_corner, tmp_path):
    done = run("red.png", "-o", "out", "--npy", "--top-k", 2)
    assert done.exit_code == 0, done.output
    assert "red.png: red 39.1%" in done.stdout
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "red.json",
        "red_figure.png",
        "red_maps.npy",
        "red_overlay.png",
    ]
    record = json.loads((tmp_path / "out" / "red.json").read_text())
    assert (record["height"], record["width"], record["map_size"]) == (20, 40, [8, 8])
    assert record["photo"] == "red.png"
    assert record["model"] == "colours.keras"
    first = record["classes"][0]
    assert (first["id"], first["name"]) == (0, "red")
    probability = np.exp(0.25) / (np.exp(0.25) + 2)
    assert first["probability"] == pytest.approx(probability, abs=1e-5)
    assert first["logit"] == pytest.approx(0.25, abs=1e-5)
    box = first["box"]
    assert (box["ymin"], box["xmin"]) == (0, 0)
    assert abs(box["ymax"] - 10) <= 2
    assert abs(box["xmax"] - 20) <= 4
    maps = np.load(tmp_path / "out" / "red_maps.npy")
    assert maps.dtype == np.float32
    np.testing.assert_allclose(maps[0, :3, :3], 1, rtol=1e-5)  # the edge between is antialiased
    np.testing.assert_array_equal(maps[0, 5:], 0)
    np.testing.assert_allclose(maps[0].mean(), first["logit"], rtol=1e-5)
    assert Image.open(tmp_path / "out" / "red_overlay.png").size == (40, 20)


def test_classes_by_name_and_by_id(run, red_corner, tmp_path):
    done = run("red.png", "-o", "out", "--classes", "Blue, 0", "--json")
    records = json.loads(done.stdout)  # nothing else is on stdout
    assert [entry["name"] for entry in records[0]["classes"]] == ["blue", "red"]
    assert records[0]["classes"][0]["box"] is None  # no blue anywhere


def test_a_bad_file_among_good_ones(run, red_corner, tmp_path):
    (tmp_path / "text.jpg").write_text("I am not a photo")
    Image.open(red_corner).save(tmp_path / "red.bmp")
    done = run("red.png", "text.jpg", "red.bmp", "gone.png", "-o", "out", "--batch-size", 2)
    assert done.exit_code == 1
    assert "text.jpg was left out: text.jpg is not a readable image" in done.stderr
    assert "gone.png was left out: there is no file gone.png" in done.stderr
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"red.json", "red-2.json"} <= names
    assert "Traceback" not in done.output


def test_a_directory_of_photos_in_batches(run, red_corner, tmp_path):
    (tmp_path / "photos").mkdir()
    for i in range(5):
        Image.open(red_corner).rotate(90 * i).save(tmp_path / "photos" / f"{i}.png")
    done = run("photos", "-o", "out", "--batch-size", 2)
    assert done.exit_code == 0, done.output
    assert len(list((tmp_path / "out").glob("*_figure.png"))) == 5


def test_an_empty_directory_among_photos(run, red_corner, tmp_path):
    (tmp_path / "empty").mkdir()
    done = run("empty", "red.png", "-o", "out")
    assert done.exit_code == 1
    assert "empty was left out: no image in empty" in done.stderr
    assert (tmp_path / "out" / "red_figure.png").exists()


@pytest.mark.parametrize("method", ["gradcam", "Grad-CAM++", "LayerCAM", "scorecam", "eigencam"])
def test_methods_on_a_model_file(run, red_corner, tmp_path, method):
    done = run("red.png", "-o", "out", "--method", method, "--json")
    assert done.exit_code == 0, done.output
    (record,) = json.loads(done.stdout)
    assert record["method"].lower().replace("plusplus", "++") == method.lower().replace("-", "")
    assert record["classes"][0]["name"] == "red"


def test_gray_models_and_preprocessing(run, red_corner, tmp_path):
    image = keras.Input((None, None, 1))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    dense = keras.layers.Dense(2, kernel_initializer="ones", bias_initializer="zeros")
    keras.Model(image, dense(pooled)).save(tmp_path / "gray.keras")
    model = ["--model", "gray.keras", "--preprocess", "0.01,1"]
    done = run("red.png", "-o", "out", "--json", "--classes", "1", model=model)
    (record,) = json.loads(done.stdout)
    gray = 0.299 * 255 / 4  # a quarter is red; 0.01 x + 1 in the mean
    assert record["classes"][0]["logit"] == pytest.approx(0.01 * gray + 1, abs=2e-3)
    assert record["map_size"] == [224, 224]


def test_a_network_that_is_broken_is_said_to_be(run, red_corner, tmp_path, model_file):
    model = keras.models.load_model(model_file)
    model.get_layer("scores").set_weights([np.full((3, 3), np.nan), np.zeros(3)])
    model.save(model_file)
    done = run("red.png", "-o", "out")
    assert "is not finite. The network overflows" in done.stdout
    record = json.loads((tmp_path / "out" / "red.json").read_text())
    assert record["classes"][0]["probability"] is None
    assert record["classes"][0]["map"] == "not finite"


@pytest.mark.parametrize(
    ("arguments", "model", "message"),
    [
        (["--classes", "gren"], None, "no class is named 'gren'. Did you mean 'green'"),
        (["--classes", "3"], None, "class id 3 is out of range"),
        ([], ["--model", "ResNet5"], "Did you mean 'ResNet50'"),
        ([], ["--model", "nowhere.keras"], "no model file nowhere.keras"),
        ([], ["--model", "red.keras"], "red.keras is damaged, or no .keras file"),
        ([], ["--model", "empty.h5"], "empty.h5 could not be loaded"),
        ([], ["--model", "red.png"], "red.png is not a Keras model"),
        ([], ["--model", "lambda.keras"], "lambda.keras could not be loaded: it has a Lambda"),
        (["--classes", ","], None, "names no class"),
        (["--method", "gradcm"], None, "Did you mean 'gradcam'"),
        (["--layer", "nowhere"], None, "the model has no layer 'nowhere'"),
        (["--preprocess", "mobilnet_v2"], None, "Did you mean 'mobilenet_v2'"),
        (["--weights", "w.h5"], None, "weights belong to a backbone"),
        ([], ["--model", "colours.keras", "--labels", "imagenet"], "imagenet names 1000 classes"),
        ([], ["--model", "VGG16", "--weights", "vgg.h5"], "vgg.h5"),
        (["--colormap", "virids"], None, "Did you mean 'viridis'"),
        (["-o", "red.png"], None, "red.png"),
    ],
)
def test_mistakes_end_in_one_line(run, red_corner, arguments, model, message, tmp_path):
    (tmp_path / "red.keras").write_bytes(red_corner.read_bytes())
    (tmp_path / "empty.h5").write_bytes(b"")
    layer = keras.layers.Lambda(lambda x: x)
    keras.Sequential([keras.Input((8, 8, 3)), layer]).save(tmp_path / "lambda.keras")
    done = run("red.png", *arguments, **({"model": model} if model else {}))
    assert done.exit_code == 2
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_backbone_without_a_pretrained_classifier_is_refused(run, red_corner, tmp_path):
    network = keras.applications.MobileNetV3Small(weights=None, include_top=False)
    network.save(tmp_path / "notop.h5")
    done = run("red.png", model=["--model", "MobileNetV3Small", "--weights", "notop.h5"])
    assert done.exit_code == 2
    assert "random weights" in done.stderr
    assert "'cam-tf backbones' shows which networks come with a classifier" in done.stderr


def test_the_list_of_backbones():
    done = CliRunner().invoke(main, ["backbones"])
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == cam_tf.list_backbones()
    assert "EfficientNetLite0    224x224  pretrained" in lines
    assert "VGG16                224x224  must be trained anew" in lines


def test_the_demo_says_only_what_the_program_says(tmp_path):
    command = [sys.executable, "-c", "from cam_tf.cli import main; main()", "demo"]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=300, check=True
    )
    lines = done.stdout.splitlines()
    assert [line.split(" -> ")[1] for line in lines] == [
        f"demo/{photo.stem}_figure.png" for photo in cam_tf.demo_photos()
    ]
    assert "Egyptian cat 8" in lines[0]
    assert done.stderr.strip() in ("", "Explaining")
    assert len(list((tmp_path / "demo").iterdir())) == 3 * len(lines)
