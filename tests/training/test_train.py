"""A run of the training script: its outputs, and a kill in the midst of it."""

import csv
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder of class folders: images (32, 32) with a red or with a blue square."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for split, count in (("train", 24), ("validation", 8)):
        for name, channel in (("blue", 0), ("red", 2)):  # OpenCV's order of channels
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 60, (32, 32, 3)).astype(np.uint8)
                top, left = rng.integers(2, 18, 2)
                image[top : top + 12, left : left + 12, channel] = 230
                cv2.imwrite(str(folder / split / name / f"{number}.png"), image)
    return folder


def _command(folder, data, *more):
    flags = ["--image-size", "32", "--backbone", "SmallVGG", "--batch-size", "12", "--epochs", "3"]
    command = [sys.executable, "-m", "training.train", "--run", str(folder), "--data", str(data)]
    return [*command, *flags, *more]


def _environment():
    return {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}


def _run(folder, data, *more):
    return subprocess.run(
        _command(folder, data, *more), cwd=ROOT, env=_environment(), capture_output=True, text=True
    )


def _rows(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_killed_run_ends_where_an_uninterrupted_one_ends(shapes, tmp_path):
    done = _run(tmp_path / "whole", shapes)
    assert done.returncode == 0, done.stderr
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        _command(killed, shapes),
        cwd=ROOT,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while not (killed / "last.keras").exists():  # after the first epoch
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.wait()
    done = _run(killed, shapes)
    assert done.returncode == 0, done.stderr
    assert [row["epoch"] for row in _rows(killed)] == ["0", "1", "2"]
    models = [
        keras.models.load_model(tmp_path / name / "last.keras") for name in ("whole", "killed")
    ]
    for one, other in zip(*(model.get_weights() for model in models), strict=True):
        np.testing.assert_array_equal(one, other)
    results = [
        json.loads((tmp_path / name / "results.json").read_text()) for name in ("whole", "killed")
    ]
    assert results[0] == results[1]
    assert sorted(path.name for path in (killed / "pictures").iterdir()) == [
        f"epoch_{number:04d}.png" for number in (1, 2, 3)
    ]


def test_a_misspelt_key_and_a_misspelt_backbone(shapes, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text("bathc_size: 8\n")
    done = _run(tmp_path / "run", shapes, "--config", str(config))
    assert done.returncode == 1 and "batch_size" in done.stderr
    done = _run(tmp_path / "run", shapes, "--backbone", "SmalVGG")
    assert done.returncode == 1 and "'SmalVGG' is unknown" in done.stderr
    assert not (tmp_path / "run" / "last.keras").exists()
