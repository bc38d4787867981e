"""``cam-tf faithfulness``: the table, the files, and what is wrong is said in a line."""

import json

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from cam_tf.cli import main


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five photos of noise, a file that is none, and a small model."""
    folder = tmp_path_factory.mktemp("faithfulness")
    rng = np.random.default_rng(0)
    (folder / "photos" / "deep").mkdir(parents=True)
    for i in range(5):
        pixels = rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "photos" / ("deep" if i > 2 else ".") / f"{i}.png")
    (folder / "photos" / "bad.png").write_bytes(b"nothing at all")
    keras.utils.set_random_seed(3)
    image = keras.Input((16, 16, 3))
    maps = keras.layers.Rescaling(1 / 255)(image)
    maps = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(maps)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    keras.Model(image, keras.layers.Dense(3, activation="softmax")(pooled)).save(
        folder / "small.keras"
    )
    return folder


def run(folder, tmp_path, *arguments):
    given = ["faithfulness", "--images", folder / "photos", "--model", folder / "small.keras"]
    given += ["-o", tmp_path / "out", "--steps", "4", "--percentiles", "30,60", *arguments]
    return CliRunner().invoke(main, [*map(str, given)])


def test_the_table_and_the_file(folder, tmp_path):
    done = run(folder, tmp_path, "--methods", "cam,randommap", "--randomize", "2")
    assert done.exit_code == 0, done.output
    assert "5 images, 1 bad" in done.stdout
    assert "bad.png was left out" in done.stderr
    heads = ("deletion (low)", "insertion (high)", "avg. drop (low)", "increase (high)")
    for head in (*heads, "ROAD (high)", "randomised (near 0)"):
        assert head in done.stdout
    found = json.loads((tmp_path / "out" / "faithfulness.json").read_text())
    assert set(found["methods"]) == {"cam", "randommap"}
    assert found["images"] == 5
    assert found["bad_images"]["count"] == 1
    assert found["settings"]["metrics"]["deletion"]["steps"] == 4
    assert found["settings"]["metrics"]["road"]["percentiles"] == [30, 60]
    for method, own in found["methods"].items():
        for name, one in own.items():
            if name != "spearman":
                each = found["per_image"][method][name]
                assert one["value"] == pytest.approx(np.mean(each))
                assert one["low"] <= one["value"] <= one["high"]
    # Chance does not know the weights; a map of the network does.
    assert found["methods"]["randommap"]["spearman"]["value"] == pytest.approx(1)
    assert found["methods"]["cam"]["spearman"]["value"] < 0.99


def test_some_of_the_images_and_json(folder, tmp_path):
    arguments = ("--methods", "cam", "--metrics", "drop", "--limit", "2", "--json")
    first, again = (run(folder, tmp_path, *arguments) for _ in range(2))
    assert first.exit_code == 0, first.output
    found = json.loads(first.stdout)
    assert found["images"] + found["bad_images"]["count"] == 2
    assert list(found["methods"]["cam"]) == ["average_drop", "increase_in_confidence"]
    assert first.stdout == again.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--methods", "camm"), "Did you mean"),
        (("--methods", ","), "names none"),
        (("--metrics", "deletio"), "Did you mean 'deletion'"),
        (("--percentiles", "a,b"), "expected numbers"),
        (("--percentiles", "20,100"), "between 0 and 100"),
        (("--methods", "cam", "--max-channels", "3"), "asks channels one by one"),
        (("--layer", "nowhere"), "nowhere"),
        (("--strict",), "bad.png"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(folder, tmp_path, arguments, message):
    done = run(folder, tmp_path, *arguments)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert "Traceback" not in done.output
    assert not list(tmp_path.glob("out/*"))
