"""``cam-tf discover`` as a person uses it, on folders made here."""

import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cam_tf
from cam_tf.cli import main

COLOURS = {"blue": (20, 20, 250), "green": (20, 250, 20), "red": (250, 20, 20)}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A network of 16x16 pixels whose feature maps are the colours."""
    image = keras.Input((16, 16, 3))
    maps = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(image))
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(image, keras.layers.Dense(3)(pooled))
    model.set_weights([np.eye(3), np.zeros(3)])
    model.save(tmp_path / "colours.keras")
    monkeypatch.chdir(tmp_path)

    def invoke(command, *given, model=("--model", "colours.keras")):
        return CliRunner().invoke(main, ["discover", command, *map(str, given), *model])

    return invoke


@pytest.fixture
def folder(tmp_path, rng):
    """12 photos of each class: noise with a square of the class's colour."""
    for name, colour in COLOURS.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(12):
            photo = rng.integers(60, 120, (30, 40, 3), np.uint8)
            y, x = rng.integers(0, 20), rng.integers(0, 30)
            photo[y : y + 10, x : x + 10] = colour
            Image.fromarray(photo).save(tmp_path / "photos" / name / f"{i:02}.png")
    return tmp_path / "photos"


def test_features(run, folder, tmp_path):
    (folder / "red" / "bad.png").write_text("no photo")
    done = run("features", "photos", "--splits", 3)
    assert done.exit_code == 0, done.output
    assert "36 images, 3 classes, 3 features: accuracy 100.0" in done.stdout
    assert "bad.png was left out" in done.stderr
    results = json.loads((tmp_path / "features" / "results.json").read_text())
    assert (results["accuracy"], len(results["splits"])) == (1.0, 3)
    assert (tmp_path / "features" / "labels.txt").read_text() == "blue\ngreen\nred\n"
    model = tmp_path / "features" / "classifier.keras"
    found = cam_tf.CAM(keras.models.load_model(model))(np.full((1, 16, 16, 3), [250.0, 0, 0]))
    assert int(found.class_ids[0, 0]) == 2
    labels = ("--model", model, "--labels", "features/labels.txt")
    explained = CliRunner().invoke(main, ["explain", str(folder / "red/00.png"), *map(str, labels)])
    assert "red" in explained.stdout
    tested = run("features", "photos", "--test", "photos", "--cost", 1, "-o", "again")
    assert "36 test images" in tested.stdout


def test_features_of_a_data_set_by_name(run):
    pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("sklearn")
    done = run("features", "cluttered_digits/64", "--split", "train[:300]", "--test", "test[:50]")
    assert done.exit_code == 0, done.output
    assert "300 images, 10 classes" in done.stdout
    assert "(50 test images)" in done.stdout


def test_fine_grained(run, folder, tmp_path):
    table = ["image,ymin,xmin,ymax,xmax"]
    table += [f"{path.relative_to(folder)},0,0,1,1" for path in sorted(folder.glob("*/*.png"))]
    (tmp_path / "boxes.csv").write_text("\n".join(table))
    done = run("fine-grained", "photos", "--splits", 2, "--boxes", "boxes.csv", "--cost", 1)
    assert done.exit_code == 0, done.output
    assert "whole image  100.0" in done.stdout
    results = json.loads((tmp_path / "fine_grained" / "results.json").read_text())
    assert set(results["rows"]) == {"whole image", "CAM box", "true box"}
    assert len(results["images"]) == 36
    assert (tmp_path / "fine_grained" / "boxes.png").stat().st_size > 5000
    (tmp_path / "boxes.csv").write_text("\n".join(table[:3]))
    done = run("fine-grained", "photos", "--boxes", "boxes.csv")
    assert (done.exit_code, "no box for" in done.stderr) == (2, True)


def test_concept(run, folder, tmp_path):
    (tmp_path / "others").mkdir()
    for name in ("blue", "green"):
        (folder / name).rename(tmp_path / "others" / name)
    done = run("concept", "--with", "photos", "--without", "others")
    assert done.exit_code == 0, done.output
    assert "12 images with it, 24 without: average precision 100.0 %" in done.stdout
    results = json.loads((tmp_path / "concept" / "results.json").read_text())
    assert len(results["photos"]) == 15
    assert results["photos"][0]["decision"] > 0 > results["photos"][-1]["decision"]
    assert (tmp_path / "concept" / "concept.keras").exists()
    one = run("concept", "others/blue/00.png", "--with", "photos", "--without", "others")
    assert one.exit_code == 0
    for wrong in (("--with", "photos"), ("--captions", "c.json", "--phrase", "red")):
        done = run("concept", *wrong)
        assert (done.exit_code, "give two folders" in done.stderr) == (2, True)


def test_concept_by_captions(run, folder, tmp_path):
    paths = sorted(folder.glob("*/*.png"))
    captions = {
        "images": [
            {"id": i, "file_name": str(one.relative_to(folder))} for i, one in enumerate(paths)
        ],
        "annotations": [
            {"image_id": i, "caption": f"a {one.parent.name} square"} for i, one in enumerate(paths)
        ],
    }
    (tmp_path / "c.json").write_text(json.dumps(captions))
    given = ("--captions", "c.json", "--images", "photos", "--phrase")
    done = run("concept", *given, "Green square")
    assert done.exit_code == 0, done.output
    assert "12 images with it, 24 without" in done.stdout
    done = run("concept", *given, "grean")
    assert (done.exit_code, "green" in done.stderr) == (2, True)


def test_units(run, folder, tmp_path):
    given = ("photos", "--classes", "2,0", "--units", 2, "--regions", 3)
    done = run("units", *given)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "units" / "results.json").read_text())
    assert results["images"] == 36
    assert results["receptive_field"]["theoretical"] == [4, 4]
    found = results["classes"]["class 2"]
    assert found[0]["unit"] == 2
    assert all("blue" in one["image"] for one in found[0]["regions"])  # unit 2 is blue
    assert (tmp_path / "units" / "class_2.png").stat().st_size > 3000
    assert run("units", *given, "--field", 8, "--by", "contribution").exit_code == 0
    found = json.loads((tmp_path / "units" / "results.json").read_text())["classes"]["class 0"][0]
    assert found["unit"] == 0  # red
    assert found["contribution"] > 0.2
    done = run("units", "photos", "--classes", "7")
    assert done.exit_code == 2


def test_scenes(run, tmp_path, rng):
    for scene, colour in (("kitchen", (250, 20, 20)), ("bedroom", (20, 20, 250))):
        (tmp_path / "rooms" / scene).mkdir(parents=True)
        for i in range(4):
            photo = rng.integers(90, 110, (32, 32, 3), np.uint8)
            photo[:8, 8:16] = colour
            Image.fromarray(photo).save(tmp_path / "rooms" / scene / f"{i}.png")
            thing = {"label": f"{scene} thing", "points": [[8, 0], [15, 7]]}
            data = {
                "imagePath": f"{i}.png",
                "imageHeight": 32,
                "imageWidth": 32,
                "shapes": [{**thing, "shape_type": "rectangle"}],
            }
            (tmp_path / "rooms" / scene / f"{i}.json").write_text(json.dumps(data))
    done = run("scenes", "rooms", "--layout", "labelme", "--cost", 1)
    assert done.exit_code == 0, done.output
    assert "looked at: kitchen thing" in done.stdout
    assert (tmp_path / "scenes" / "objects.png").stat().st_size > 5000
    done = run("scenes", "rooms")
    assert (done.exit_code, "objectInfo150.txt" in done.stderr) == (2, True)


def test_questions(run, folder, tmp_path):
    """Which colour there is follows from the image."""
    paths = sorted(folder.glob("*/*.png"))
    (tmp_path / "vqa").mkdir()
    asked, answered = [], []
    for i, path in enumerate(paths):
        path.rename(tmp_path / "vqa" / f"COCO_train2014_{i:012}.png")
        for kind in (0, 1):
            text = ("what color is it?", "is it a square?")[kind]
            asked.append({"question_id": 2 * i + kind, "image_id": i, "question": text})
            answer = (path.parent.name, "yes")[kind]
            answered.append({"question_id": 2 * i + kind, "multiple_choice_answer": answer})
    (tmp_path / "q.json").write_text(json.dumps({"questions": asked}))
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answered}))
    given = ("--questions", "q.json", "--annotations", "a.json", "--images", "vqa")
    done = run("vqa", *given, "-o", "out", "--epochs", 200)
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["results"]["questions"] == 72
    assert results["results"]["accuracy"] > 0.7
    assert sorted(results["answers"]) == ["blue", "green", "red", "yes"]
    assert (tmp_path / "out" / "answers.png").exists()
    done = run("vqa", "--questions", "q.json")
    assert (done.exit_code, "--made-up" in done.stderr) == (2, True)


def test_made_up_questions(run, tmp_path):
    done = run("vqa", "--made-up", 64, "--epochs", 1, "-o", "out")
    assert done.exit_code == 0, done.output
    assert "64 pictures to learn from, 200 to test" in done.stdout
    given = [f"--{name}" for name in ("questions", "annotations", "images")]
    paths = ["out/test/questions.json", "out/test/annotations.json", "out/test/images"]
    both = [part for pair in zip(given, paths, strict=True) for part in pair]
    assert run("vqa", *both, "--epochs", 2, "-o", "again").exit_code == 0
    assert set(json.loads((tmp_path / "out" / "results.json").read_text())["results"]) == {
        "colour",
        "digit",
        "shape",
    }


def test_text(run, tmp_path):
    Image.new("RGB", (200, 150), "gray").save(tmp_path / "plain.png")
    (tmp_path / "bad.png").write_text("no photo")
    done = run("text", "plain.png", "bad.png", "--scenes", 40, "-o", "out", model=())
    assert done.exit_code == 1, done.output
    assert "bad.png was left out" in done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 <= results["on_rendered"]["pixel_recall"] <= 1
    assert (tmp_path / "out" / "text.png").exists()
