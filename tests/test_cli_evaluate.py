"""``cam-tf evaluate``, as a person uses it: folders, mistakes, Ctrl-C, and shards."""

import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image

import cam_tf
from cam_tf.cli import main
from cam_tf.datasets.tfds import TFDSExamples, _Layout

BOX = (16, 8, 40, 32)  # ymin, xmin, ymax, xmax of 64 pixels


def save_photo(path, channel: int, box=BOX) -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[box[0] : box[2], box[1] : box[3], channel] = 255
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(image).save(path)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Photos a to f of a red, green, ... square, WSOL metadata, and a model of three colours.

    The boxes of a to d are right, that of e has IoU 1/3, and the label of f is wrong.
    """
    monkeypatch.chdir(tmp_path)
    image = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="scores")(pooled))
    model.get_layer("scores").set_weights([np.eye(3), np.zeros(3)])
    model.save("colours.keras")
    (tmp_path / "labels.txt").write_text("red\ngreen\nblue\n")
    (tmp_path / "meta").mkdir()
    ids, labels, boxes = [], [], []
    for i, name in enumerate("abcdef"):
        save_photo(tmp_path / "photos" / f"{name}.png", i % 3)
        ids.append(f"{name}.png")
        labels.append(f"{name}.png,{1 if name == 'f' else i % 3}")
        move = 12 * (name == "e")
        boxes.append(f"{name}.png,{BOX[1] + move},{BOX[0]},{BOX[3] + move},{BOX[2]}")
    for name, lines in (("image_ids", ids), ("class_labels", labels), ("localization", boxes)):
        (tmp_path / "meta" / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


MODEL = ("--model", "colours.keras", "--labels", "labels.txt", "--size", "64")
WSOL = ("--images", "photos", "--metadata", "meta", *MODEL)


def run(*arguments):
    return CliRunner().invoke(main, ["evaluate", *map(str, arguments)])


def test_the_table_the_record_and_the_pictures(here):
    done = run(*WSOL, "-o", "out")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "colours.keras, cam, 64 x 64 pixels"
    assert lines[1].startswith("6 images, 0 bad records, ")
    assert lines[4:7] == [
        "classification error, top-1    16.67   15.21",
        "localization error, top-1      33.33   19.25      0.200",
        "GT-known accuracy              66.67   19.25      0.200",
    ]
    assert lines[7].startswith("MaxBoxAcc                      66.67   19.25 ")
    assert lines[-1] == "evaluation.json, images.jsonl, cases.png -> out"
    assert "meta: WSOL metadata, 6 examples with boxes" in done.stderr
    written = json.loads((here / "out" / "evaluation.json").read_text())
    assert (written["images"], written["paths"]) == (6, {"images": "photos", "metadata": "meta"})
    assert written["settings"]["paths"] == {"images": str((here / "photos").resolve())}
    assert written["results"]["loc_top1_error"]["value"] == pytest.approx(1 / 3)
    assert written["settings"]["weights"].startswith("sha256 ")
    assert written["settings"]["localizer"]["method"] == "cam"
    records = [json.loads(line) for line in (here / "out" / "images.jsonl").open()]
    assert [one["id"] for one in records] == [f"{name}.png" for name in "abcdef"]
    assert Image.open(here / "out" / "cases.png").width > 800


def test_it_is_not_done_twice(here):
    run(*WSOL, "-o", "out")
    first = (here / "out" / "evaluation.json").read_bytes()
    done = run(*WSOL, "-o", "out", "--json")
    assert "evaluated before; --overwrite would begin anew" in done.stderr
    assert json.loads(done.stdout)["images"] == 6
    assert (here / "out" / "evaluation.json").read_bytes() == first
    done = run(*WSOL, "-o", "out", "--threshold", 0.5)
    assert done.exit_code == 2
    assert "threshold is 0.5 and was 0.2" in done.stderr
    assert "--overwrite" in done.stderr
    assert run(*WSOL, "-o", "out", "--threshold", 0.5, "--overwrite").exit_code == 0


def test_weights_trained_on_are_other_settings(here):
    run(*WSOL, "-o", "out")
    model = keras.models.load_model("colours.keras")
    model.get_layer("scores").set_weights([np.eye(3), np.ones(3)])
    model.save("colours.keras")
    done = run(*WSOL, "-o", "out")
    assert done.exit_code == 2
    assert "weights is sha256" in done.stderr


def test_layers_trained_between_others_are_other_settings(here):
    """The weights are the same: what differs is the scale of a Rescaling."""
    run(*WSOL, "-o", "out")
    model = keras.models.load_model("colours.keras")
    config = model.get_config()
    (rescaling,) = [one for one in config["layers"] if one["class_name"] == "Rescaling"]
    rescaling["config"]["scale"] = 1 / 127
    changed = keras.Model.from_config(config)
    changed.set_weights(model.get_weights())
    changed.save("colours.keras")
    done = run(*WSOL, "-o", "out")
    assert done.exit_code == 2
    assert "file is sha256" in done.stderr
    assert "weights is" not in done.stderr


@pytest.mark.parametrize("option", [("--layer", "rescaling"), ("--max-channels", 2)])
def test_another_layer_or_option_is_another_setting(here, option):
    method = ("--method", "scorecam", "--limit", 1, "-o", "out")
    assert run(*WSOL, *method, "--max-channels", 1).exit_code == 0
    done = run(*WSOL, *method, "--max-channels", 1, *option)
    assert done.exit_code == 2
    name = option[0][2:].replace("-", "_")
    assert f"{name} is {option[1]} and was" in done.stderr


def test_images_of_another_folder(here):
    """A wrong folder is not remembered; another right one is another setting."""
    (here / "wrong").mkdir()
    wrong = ("--images", "wrong", *WSOL[2:], "-o", "out")
    done = run(*wrong)
    assert done.exit_code == 2
    assert "no image was evaluated: 6 bad records left out (6 missing file): a.png: " in done.stderr
    written = json.loads((here / "out" / "evaluation.json").read_text())
    assert (written["images"], written["bad_records"]["count"], written["results"]) == (0, 6, {})
    done = run(*WSOL, "-o", "out")
    assert (done.exit_code, "6 images, 0 bad records" in done.stdout) == (0, True), done.output
    done = run(*wrong)
    assert done.exit_code == 2
    assert "paths.images is" in done.stderr


def test_overwriting_leaves_nothing_old(here):
    assert run(*WSOL, "-o", "out").exit_code == 0
    text = (here / "meta" / "class_labels.txt").read_text()
    (here / "meta" / "class_labels.txt").write_text(text.replace("a.png,0", "a.png,x"))
    done = run(*WSOL, "-o", "out", "--overwrite", "--limit", 1, "--strict")
    assert done.exit_code == 2
    (here / "photos" / "b.png").write_text("no image")
    done = run(*WSOL, "-o", "out", "--overwrite", "--limit", 1)
    assert done.exit_code == 2
    assert not (here / "out" / "cases.png").exists()
    assert json.loads((here / "out" / "evaluation.json").read_text())["images"] == 0


def test_what_there_is_to_evaluate(here):
    (here / "classes.csv").write_text("image,label\na.png,0\nb.png,1\n")
    (here / "some.csv").write_text("image,label,xmin,ymin,xmax,ymax\na.png,0,8,16,32,40\nb.png,1\n")
    (here / "none.csv").write_text("image,label\n")
    data = ("--images", "photos", "--model", "colours.keras", "--size", 64)
    done = run(*data, "--metadata", "classes.csv", "-o", "out", "--json")
    assert "2 examples without a box or a mask: the classification alone is measured" in done.stderr
    assert list(json.loads(done.stdout)["results"]) == ["cls_top1_error"]
    done = run(*data, "--metadata", "some.csv", "-o", "some")
    assert "2 examples of which 1 have boxes" in done.stderr
    done = run(*data, "--metadata", "none.csv", "-o", "none")
    assert done.exit_code == 2
    assert "0 examples, so there is nothing to evaluate; no bad record" in done.stderr
    done = run(*data, "--metadata", "some.csv", "-o", "part", "--shard", "2/3")
    assert (done.exit_code, "no example in this part" in done.stderr) == (0, True), done.output


def save_network(path, side, channels=3, dtype="float32"):
    """Strides up to 4 of random weights."""
    image = keras.Input((side, side, channels), dtype=dtype)
    network = keras.layers.Rescaling(1 / 255)(image)
    for _ in range(2):
        network = keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu")(network)
    pooled = keras.layers.GlobalAveragePooling2D()(network)
    keras.Model(image, keras.layers.Dense(3, activation="softmax")(pooled)).save(path)


def test_the_size_of_a_model_that_has_one(here):
    save_network("fixed.keras", 32)
    data = (*WSOL[:4], "--model", "fixed.keras", "--json", "-o", "out", "--overwrite")
    done = run(*data, "--size", 64)
    assert done.exit_code == 2
    assert "--size 64: the model takes images of 32 x 32 pixels only: leave --size" in done.stderr
    assert "examples" not in done.stderr  # before the data are read
    done = run(*data, "--size", 64, "--scales", 1.5)
    assert json.loads(done.stdout)["settings"]["image_size"] == [96, 96]
    done = run(*data, "--short-side", 40, "--preset", "fast", "--output-stride", 2)
    settings = json.loads(done.stdout)["settings"]
    assert (settings["image_size"], settings["short_side"]) == ([46, 46], 58)
    done = run(*data, "--short-side", 30, "--preset", "fast", "--output-stride", 2)
    assert "--short-side 30 leaves less than the 32 pixels" in done.stderr


def test_a_gray_model_of_whole_numbers(here):
    save_network("gray.keras", 32, 1, "uint8")
    done = run(*WSOL[:4], "--model", "gray.keras", "--json", "-o", "out")
    assert (done.exit_code, done.stdout and json.loads(done.stdout)["images"]) == (0, 6)


def test_bad_records_are_named_and_strict_stops(here):
    (here / "photos" / "b.png").unlink()
    (here / "photos" / "c.png").write_text("no image")
    text = (here / "meta" / "localization.txt").read_text()
    text = text.replace("a.png,8,16,32,40", "a.png,8,16,32,400")
    text = text.replace("d.png,8,16,32,40", "d.png,8,40,32,16")
    (here / "meta" / "localization.txt").write_text(text)
    done = run(*WSOL, "-o", "out")
    assert done.exit_code == 0, done.output
    assert "2 images, 4 bad records" in done.stdout
    for id, kind in (
        ("a", "box outside the image"),
        ("b", "missing file"),
        ("c", "damaged image"),
        ("d", "ymin > ymax"),
    ):
        assert f"cam-tf: {id}.png was left out: {kind}" in done.stderr
    written = json.loads((here / "out" / "evaluation.json").read_text())["bad_records"]
    assert written["count"] == 4
    assert [one["id"] for one in written["records"]] == ["a.png", "b.png", "c.png", "d.png"]
    done = run(*WSOL, "-o", "strict", "--strict")
    assert done.exit_code == 2
    assert "cam-tf: a.png: box outside the image" in done.stderr
    assert "Traceback" not in done.output


def test_shards_and_their_merge(here):
    whole = json.loads(run(*WSOL, "-o", "whole", "--json").stdout)
    for i in range(2):
        assert run(*WSOL, "--shard", f"{i}/2").exit_code == 0
    parts = ["evaluation-0-of-2", "evaluation-1-of-2"]
    done = run("--merge", *parts, "-o", "merged", "--json")
    merged = json.loads(done.stdout)
    assert merged["results"] == whole["results"]
    assert merged["workers"] == 2
    assert not (here / "merged" / "cases.png").exists()
    done = run("--merge", *parts, "-o", "pictured", *WSOL)
    assert done.exit_code == 0, done.output
    assert (here / "pictured" / "cases.png").exists()
    done = run("--merge", *parts, "-o", "no", *WSOL, "--threshold", 0.3)
    assert "not of this model and these data: threshold is 0.3 and was 0.2" in done.stderr
    assert not (here / "no").exists()
    done = run("--merge", parts[0], "-o", "no")
    assert (done.exit_code, "shard 1/2 is missing" in done.stderr) == (2, True)


def test_xml_and_csv(here):
    rows = ["image,label,xmin,ymin,xmax,ymax"]
    (here / "xml").mkdir()
    for i, name in enumerate("abc"):
        colour = ("red", "green", "blue")[i]
        rows.append(f"{name}.png,{colour},8,16,32,40")
        (here / "xml" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.png</filename><object><name>{colour}</name><bndbox>"
            "<xmin>8</xmin><ymin>16</ymin><xmax>32</xmax><ymax>40</ymax></bndbox></object>"
            "</annotation>"
        )
    (here / "table.csv").write_text("\n".join(rows))
    for metadata, kind in (("table.csv", "a CSV table"), ("xml", "XML annotations")):
        done = run("--images", "photos", "--metadata", metadata, *MODEL, "-o", kind, "--json")
        assert f"{metadata}: {kind}, 3 examples with boxes" in done.stderr
        results = json.loads(done.stdout)["results"]
        assert results["gt_known"]["value"] == 1, done.output
        assert results["cls_top1_error"]["value"] == 0


def test_parts_of_the_data(here):
    first = json.loads(run(*WSOL, "-o", "a", "--limit", 2, "--json").stdout)
    assert first["images"] == 2
    run(*WSOL, "-o", "b", "--sample", 4, "--seed", 3)
    run(*WSOL, "-o", "c", "--sample", 4, "--seed", 3)
    chosen = [(here / name / "images.jsonl").read_text() for name in "bc"]
    assert chosen[0] == chosen[1]
    ids = [json.loads(line)["id"] for line in chosen[0].splitlines()]
    assert len(set(ids)) == 4
    assert ids == sorted(ids)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "photos", *MODEL], "give the data: --images DIR and --metadata DIR"),
        (
            ["--images", "photos", "--metadata", "photos", *MODEL],
            "expected a folder with image_ids",
        ),
        ([*WSOL, "--split", "val"], "--metadata meta: expected"),
        ([*WSOL, "--shard", "2/2"], "--shard 2/2: the first of 2 is 0/2"),
        ([*WSOL, "--shard", "one"], "expected 'index/count'"),
        ([*WSOL, "--scales", "1,big"], "--scales '1,big': expected positive numbers"),
        ([*WSOL, "--method", "gradcm"], "Did you mean 'gradcam'"),
        ([*WSOL, "meta"], "DIRECTORIES go with --merge"),
        ([*WSOL, "--scales", "1,nan"], "expected positive numbers"),
        (["--images", "photos", "--metadata", "nope", *MODEL], "--metadata nope: there is no nope"),
        (["--images", "photos", "--metadata", "no.csv", *MODEL], "there is no no.csv"),
        (["--images", "nope", "--metadata", "meta", *MODEL], "--images nope: there is no nope"),
        ([*WSOL, "--preset", "fast"], "preset 'fast' is not for this model"),
        (["--merge"], "--merge wants the directories"),
        (["--merge", "photos"], "photos holds no evaluation"),
        (["--dataset", "vok", "--split", "test", *MODEL], "Did you mean 'voc'"),
        (["--dataset", "voc", *MODEL], "--dataset wants a split"),
        (["--dataset", "voc", *WSOL], "--dataset takes the place of --images"),
    ],
)
def test_mistakes_end_in_one_line(here, arguments, message):
    done = run(*arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output


def test_a_model_of_other_classes(here):
    path = here / "meta" / "class_labels.txt"
    path.write_text(path.read_text().replace("c.png,2", "c.png,7"))
    done = run(*WSOL)
    assert done.exit_code == 2
    assert "c.png has label 7, and the model has the classes 0..2" in done.stderr


@pytest.mark.slow
def test_ctrl_c_and_sigterm_leave_what_can_go_on(here):
    command = [sys.executable, "-c", "from cam_tf.cli import main; main()", "evaluate", *WSOL]
    command += ["-o", "out", "--batch-size", "1", "--save-every", "60"]
    names = [f"{i:04}.png" for i in range(600)]
    for name in names:
        os.link(here / "photos" / "a.png", here / "photos" / name)
    (here / "meta" / "image_ids.txt").write_text("\n".join(names))
    (here / "meta" / "class_labels.txt").write_text("\n".join(f"{name},0" for name in names))
    rows = "\n".join(f"{name},8,16,32,40" for name in names)
    (here / "meta" / "localization.txt").write_text(rows)
    seen = 0
    for number in (signal.SIGINT, signal.SIGTERM):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        lines = here / "out" / "images.jsonl"
        while process.poll() is None and not (lines.exists() and lines.stat().st_size > seen):
            time.sleep(0.01)
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        assert process.returncode == 130, said
        assert "interrupted. What is done is saved: the same command goes on from there" in said
        assert "Traceback" not in said
        seen = lines.stat().st_size
    done = run(*command[4:])
    assert "going on after" in done.stderr
    assert json.loads((here / "out" / "evaluation.json").read_text())["images"] == 600
    assert [json.loads(line)["id"] for line in lines.open()] == names


def test_backbones_are_built_for_the_size_that_is_asked_for(here):
    done = run(
        *("--images", here / "photos", "--metadata", here / "meta", "--size", 64, "--limit", 1),
        *("--model", "EfficientNetLite0", "--method", "gradcam", "--json", "-o", "out"),
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["settings"]["image_size"] == [64, 64]
    record = json.loads((here / "out" / "images.jsonl").read_text())
    assert len(record["predicted"]) == 5
    assert cam_tf.__version__ == json.loads(done.stdout)["settings"]["versions"]["cam_tf"]


def test_a_data_set_of_tfds(here, monkeypatch):
    def records():
        for name in "abc":
            yield {
                "image": (here / "photos" / f"{name}.png").read_bytes(),
                "image/filename": f"{name}.png",
                "label": "abc".index(name),
                "bbox": np.float32(BOX) / 64,
            }

    spec = {
        "image": tf.TensorSpec((), tf.string),
        "image/filename": tf.TensorSpec((), tf.string),
        "label": tf.TensorSpec((), tf.int64),
        "bbox": tf.TensorSpec((4,), tf.float32),
    }
    asked = {}

    def opened(name, split, *, data_dir, strict):
        asked.update(name=name, split=split, data_dir=data_dir)
        raw = tf.data.Dataset.from_generator(records, output_signature=spec)
        return TFDSExamples(raw, _Layout(), 4 if name == "voc" else 3, strict)

    monkeypatch.setattr("cam_tf.datasets.tfds.tfds_examples", opened)
    options = ("--split", "test[:3]", "--data-dir", "there", *MODEL, "--json", "-o", "out")
    done = run("--dataset", "cars196", *options)
    assert done.exit_code == 0, done.output
    assert asked == {"name": "cars196", "split": "test[:3]", "data_dir": "there"}
    written = json.loads(done.stdout)
    assert written["settings"]["data"] == "cars196"
    assert (written["images"], written["results"]["gt_known"]["value"]) == (3, 1)
    assert (here / "out" / "cases.png").exists()
    done = run("--dataset", "voc", *options)
    assert "voc has 4 classes and the model 3" in done.stderr
    done = run("--dataset", "cars196", "--sample", 2, *options)
    assert "--sample is for files" in done.stderr
