"""Checkpoints that a kill at any moment leaves whole: the model and where it stands in one file.

Keras's ``BackupAndRestore`` and ``ModelCheckpoint`` open their file to write over it, so that a
kill in the midst leaves neither the old nor the new one; the former also writes the weights and the
epoch one after the other, and a kill between them trains an epoch twice. Here ``last.keras`` takes
its name when it is complete, with the epoch and the best figure in it.
"""

import csv
import errno
import io
import json
import math
import os
import re
import shutil
import tempfile
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

import keras
import tensorflow as tf

from cam_tf.files import written_whole

LAST, BEST, LOG = "last.keras", "best.keras", "log.csv"
_STATE = "training_state.json"
_UNFINISHED = ".unfinished."


class TrainingError(RuntimeError):
    """The training cannot go on; the last good checkpoint is intact."""


class NotFiniteError(TrainingError):
    """A figure is NaN or infinite."""


@dataclass
class State:
    """Where a run stands.

    Attributes:
        epochs: how many are complete.
        best: the best value of what is monitored, None before the first.
        best_epoch: the epoch that it is of, counted from 0.
        seeds: the states of the model's random generators (of dropout, for one), which Keras does
            not save.
    """

    epochs: int = 0
    best: float | None = None
    best_epoch: int | None = None
    seeds: list[list[int]] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> "State":
        """Reads the state of the run in a folder.

        Raises:
            ValueError: ``last.keras`` is damaged, or is of something else.
        """
        path = folder / LAST
        if not path.exists():
            return cls()
        try:
            with zipfile.ZipFile(path) as archive:
                return cls(**json.loads(archive.read(_STATE)))
        except (zipfile.BadZipFile, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is damaged or not of a training run ({error}). Move it away to begin anew."
            ) from error


class Checkpoint(keras.callbacks.Callback):
    """Writes ``best.keras`` and then ``last.keras``, which makes the epoch complete.

    The last of the callbacks: what others write for an epoch is there before it counts, and is
    written again, alike, if a kill comes between.

    Args:
        folder: of the run.
        monitor: the name in the logs whose best value is kept. Errors and losses are to be small.
        state: where the run stands; it is brought up to date.

    Raises:
        TrainingError: from ``fit``, if a figure is not finite, the disk is full, or ``monitor`` is
            not in the logs. The files of the epoch before are as they were.
    """

    def __init__(self, folder: Path, monitor: str, state: State):
        super().__init__()
        self._folder, self._monitor, self._state = folder, monitor, state
        self._sign = -1 if monitor.endswith(("loss", "error")) else 1

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the files."""
        logs = logs or {}
        bad = [name for name, value in logs.items() if not math.isfinite(value)]
        if bad:
            raise NotFiniteError(f"{', '.join(bad)} of epoch {epoch + 1} is not finite.")
        if self._monitor not in logs:
            raise TrainingError(f"monitor={self._monitor!r} is none of {', '.join(logs)}.")
        value, best = float(logs[self._monitor]), self._state.best
        if best is None or self._sign * value > self._sign * best:
            self._state.best, self._state.best_epoch = value, epoch
            save_whole(self.model, self._folder / BEST)
        self._state.epochs = epoch + 1
        self._state.seeds = [seed.numpy().tolist() for seed in _seeds(self.model)]
        save_whole(self.model, self._folder / LAST, self._state)


_RAISED = re.compile(r"[\w.]+(?:Error|Exception): (.+)")


def explained(error: Exception) -> str:
    """What went wrong in a training, and the way out."""
    lines = str(error).strip().splitlines() or [""]
    raised = [found[1] for found in map(_RAISED.match, lines) if found]  # by Python, in a graph
    text = (raised or lines)[-1 if raised else 0][:500]
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"The disk is full ({text}). Make room; the same command then goes on."
    if "NaN or Inf" in text or isinstance(error, NotFiniteError):
        return (
            f"{text} Begin another run with a smaller learning rate or with warm-up; the same "
            "command would come to the same end."
        )
    if isinstance(error, tf.errors.UnavailableError | tf.errors.AbortedError):
        text = str(error).strip().splitlines()[-1][:300]
        return f"A worker is lost ({text}). Start all again with the same command."
    return f"{text} ({type(error).__name__}). The same command goes on when that is mended."


def save_whole(model: keras.Model, path: Path, state: State | None = None) -> None:
    """Saves a model to a ``.keras`` file that is there whole or not at all.

    Raises:
        OSError: it cannot be written; a file that was there before is as it was.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=_UNFINISHED) as folder:
        unfinished = Path(folder) / path.name
        model.save(unfinished)
        if state is not None:
            with zipfile.ZipFile(unfinished, "a") as archive:
                archive.writestr(_STATE, json.dumps(asdict(state)))
        os.replace(unfinished, path)


def restore(model: keras.Model, folder: Path, state: State) -> None:
    """Loads weights and optimizer of ``last.keras`` into a model compiled for the same phase."""
    try:
        model.load_weights(folder / LAST)
        for seed, value in zip(_seeds(model), state.seeds, strict=True):
            seed.assign(value)
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(
            f"{folder / LAST} does not fit the run's network: {str(error).strip()[:300]}"
        ) from error


def _seeds(model: keras.Model) -> list[keras.Variable]:
    return [variable for variable in model.variables if "seed_generator" in variable.path]


def tidy(folder: Path, epochs: int) -> None:
    """Removes what a killed run left unfinished, and the lines of ``log.csv`` from an epoch on."""
    for left in folder.glob(".*"):
        if left.name.startswith(_UNFINISHED):
            shutil.rmtree(left)
        elif left.name.startswith((f".{LOG}.", ".config.yaml.", ".results.json.")):
            left.unlink()
    path = folder / LOG
    if not path.exists():
        return
    # A line that was torn is of an epoch that is not complete, and goes too.
    header, *lines = path.read_text().splitlines(keepends=True) or [""]
    kept = [line for line in lines[:epochs] if line.endswith("\n")]
    numbers = [row[0] for row in csv.reader(io.StringIO("".join(kept)))]
    if numbers != [str(number) for number in range(epochs)]:
        raise ValueError(f"{path} does not hold epochs 0 to {epochs - 1}: was it edited?")
    with written_whole(path) as file:
        file.write((header + "".join(kept) if epochs else "").encode())


class AveragedWeights(keras.callbacks.SwapEMAWeights):
    """Keras's exchange of the weights with their average, which can go on from a checkpoint.

    Between epochs the model holds the averages and the optimizer what is trained: so checkpoints,
    figures and pictures that come after it are of the averages.

    Args:
        exchanged: whether the model holds the averages now, as a restored one does.
    """

    def __init__(self, exchanged: bool):
        super().__init__(swap_on_epoch=True)
        self._ema_weights_in_model = exchanged
