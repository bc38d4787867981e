import errno
import json
import random
import resource
import time

import keras
import numpy as np
import pytest
from runs import start, weights

from training.checkpoints import TrainingError, tidy
from training.config import Config
from training.train import train


class Interrupt(keras.callbacks.Callback):
    """Does something before a batch of an epoch, both counted from 0."""

    def __init__(self, epoch: int, batch: int, action):
        super().__init__()
        self._at, self._action, self._epoch = (epoch, batch), action, None

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self._epoch, batch) == self._at:
            self._action(self.model)


def stop(model) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def interrupt(monkeypatch):
    """Makes the next trainings come to an interruption."""
    from training.outputs import epoch_callbacks

    def at(epoch, batch=0, action=stop):
        def more(*args):
            return [Interrupt(epoch, batch, action), *epoch_callbacks(*args)]

        monkeypatch.setattr("training.train.epoch_callbacks", more)

    yield at


PLAIN = {"epochs": 3}
ALL = {
    "head_epochs": 2,
    "fine_tune_from": "block2_conv",
    "dropout": 0.5,
    "ema": 0.9,
    "gradient_accumulation": 3,  # does not divide the 4 steps of an epoch
    "warmup_epochs": 0.5,
    "label_smoothing": 0.1,
    "optimizer": "sgd",
    "learning_rate": 0.01,
}


@pytest.mark.parametrize(
    ("more", "places"),
    [
        (PLAIN, [(0, 2), (2, 1)]),
        (ALL, [(1, 2), (2, 0), (3, 3)]),  # in the first phase, between the two, in the second
        pytest.param({"mixed_precision": "float16"}, [(1, 2)], marks=pytest.mark.slow),
        pytest.param({"xla": True, "deterministic": False}, [(1, 2)], marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_ends_as_another(
    settings, tmp_path, tiny_network, interrupt, monkeypatch, more, places
):
    whole = Config(**{**settings, **more})
    expected = train(whole)
    broken = Config(**{**settings, **more, "run": str(tmp_path / "broken")})
    for place in places:
        interrupt(*place)
        with pytest.raises(KeyboardInterrupt):
            train(broken)
    monkeypatch.undo()
    monkeypatch.setattr("training.phases.small_vgg", whole_network)
    assert train(broken) == expected
    for name in ("last.keras", "best.keras"):
        for one, other in zip(weights(whole, name), weights(broken, name), strict=True):
            np.testing.assert_array_equal(one, other)
    assert (whole.folder / "log.csv").read_text() == (broken.folder / "log.csv").read_text()
    assert expected["epochs"] == whole.all_epochs
    assert train(broken) == expected  # nothing is left to do


def whole_network(size):
    from training.small_vgg import small_vgg

    return small_vgg(size, (4, 8))


def test_frozen_layers_stay_as_they_were(settings, tiny_network):
    config = Config(**{**settings, "head_epochs": 1, "epochs": 1, "fine_tune_from": "predictions"})
    train(config)
    from training.phases import build

    trained = keras.models.load_model(config.folder / "last.keras")
    for layer in build(config, 3).layers:
        same = [
            np.array_equal(one, other)
            for one, other in zip(
                layer.get_weights(), trained.get_layer(layer.name).get_weights(), strict=True
            )
        ]
        assert all(same) == (layer.name != "predictions")


def test_a_loss_that_is_no_number(settings, tiny_network, interrupt):
    def spoil(model):
        model.get_layer("predictions").bias.assign([np.nan] * 3)

    config = Config(**settings)
    interrupt(1, 2, spoil)
    with pytest.raises(
        TrainingError, match=r"NaN or Inf loss.*smaller learning rate.*after epoch 1"
    ):
        train(config)
    assert all(np.isfinite(value).all() for value in weights(config))


def test_a_full_disk(settings, tiny_network, interrupt):
    """The limit of a file's size makes writing fail midway, as a full disk does."""
    config, before = Config(**settings), {}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(model):
        before["last"] = (config.folder / "last.keras").read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before["last"]) // 2, limit[1]))

    interrupt(1, 3, fill)
    try:
        with pytest.raises(TrainingError, match=r"The disk is full.*after epoch 1"):
            train(config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert (config.folder / "last.keras").read_bytes() == before["last"]
    assert not list(config.folder.glob(".unfinished*"))


def test_a_damaged_checkpoint_is_named(settings, tiny_network):
    config = Config(**settings)
    config.folder.mkdir()
    (config.folder / "last.keras").write_bytes(b"PK half a file")
    with pytest.raises(ValueError, match=r"last.keras is damaged.*Move it away"):
        train(config)


def test_lines_of_epochs_that_do_not_count_are_removed(tmp_path):
    (tmp_path / ".unfinished.abc").mkdir()
    (tmp_path / "log.csv").write_text("epoch,loss\n0,1.5\n1,1.25\n2,1.")
    tidy(tmp_path, 2)
    assert (tmp_path / "log.csv").read_text() == "epoch,loss\n0,1.5\n1,1.25\n"
    assert [path.name for path in tmp_path.iterdir()] == ["log.csv"]
    with pytest.raises(ValueError, match="does not hold epochs 0 to 3"):
        tidy(tmp_path, 4)
    tidy(tmp_path, 0)
    assert (tmp_path / "log.csv").read_text() == ""


def test_outputs(settings, tiny_network):
    pytest.importorskip("tensorboard")
    config = Config(**{**settings, "picture_images": 2, "tensorboard": True, "epochs": 2})
    results = train(config)
    written = {path.name for path in config.folder.iterdir()} - {".lock"}
    assert written == {
        *("config.yaml", "best.keras", "last.keras", "log.csv", "pictures", "tensorboard"),
        *("results.json", "sheet.png"),
    }
    assert json.loads((config.folder / "results.json").read_text()) == results
    names = sorted(path.name for path in (config.folder / "pictures").iterdir())
    assert names == ["epoch_0001.png", "epoch_0002.png"]
    lines = (config.folder / "log.csv").read_text().splitlines()
    last = dict(zip(lines[0].split(","), lines[-1].split(","), strict=True))
    assert float(last["val_accuracy"]) == pytest.approx(results["last"]["accuracy"])
    assert float(last["val_loss"]) == pytest.approx(results["last"]["loss"], rel=1e-5)


def test_two_processes_do_not_share_a_run(settings, tiny_network):
    from training.train import alone

    config = Config(**settings)
    config.folder.mkdir()
    with alone(config.folder), pytest.raises(ValueError, match="another process trains"):
        train(config)


def test_errno_of_a_full_disk_is_known():
    from training.checkpoints import explained

    assert "disk is full" in explained(OSError(errno.ENOSPC, "No space left on device"))


@pytest.mark.slow
def test_killed_at_random_moments(settings, tmp_path):
    """kill -9, again and again, in processes of their own."""
    settings |= {"epochs": 6, "dropout": 0.3, "picture_images": 2}
    whole = {**settings, "run": str(tmp_path / "whole")}
    began = time.monotonic()
    process = start(whole, tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    seconds = time.monotonic() - began
    draw, kills = random.Random(0), 0
    for _ in range(4):
        process = start(settings, tmp_path)
        time.sleep(draw.uniform(0.4, 0.9) * seconds)
        if process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
    process = start(settings, tmp_path)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert kills
    one, other = Config(**whole), Config(**settings)
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("log.csv", "results.json"):
        assert (one.folder / name).read_text() == (other.folder / name).read_text()
