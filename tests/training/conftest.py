"""A tiny data set and a tiny network."""

import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorflow.python.framework import config as framework_config

# The scripts stand beside the package and are not installed with it.
sys.path.append(str(Path(__file__).parents[2]))

from training.small_vgg import small_vgg


@pytest.fixture(autouse=True)
def _without_traces():
    """Determinism of operations is a switch of the process: other tests draw without a seed."""
    yield
    framework_config.disable_op_determinism()


@pytest.fixture(scope="session")
def colours(tmp_path_factory) -> Path:
    """Squares of 3 colours on noise: 8 images of each to train on, 3 to validate."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in {"train": 8, "validation": 3}.items():
        for channel, name in enumerate(("red", "green", "blue")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                image = rng.integers(0, 120, (16, 16, 3), dtype=np.uint8)
                top, left = rng.integers(0, 8, 2)
                image[top : top + 8, left : left + 8, channel] = 255
                Image.fromarray(image).save(folder / split / name / f"{number}.png")
    return folder


@pytest.fixture
def settings(colours, tmp_path) -> dict:
    """A run of a second or two: 4 steps an epoch."""
    return {
        "run": str(tmp_path / "run"),
        "data": str(colours),
        "backbone": "SmallVGG",
        "image_size": 16,
        "batch_size": 6,
        "epochs": 2,
        "picture_images": 0,
    }


@pytest.fixture
def tiny_network(monkeypatch) -> None:
    """SmallVGG of two blocks."""
    monkeypatch.setattr("training.phases.small_vgg", lambda size: small_vgg(size, (4, 8)))
