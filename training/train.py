r"""Trains a classifier whose evidence can be mapped.

    python -m training.train --run runs/digits --data cluttered_digits/64 --image-size 64 \
        --backbone SmallVGG --batch-size 64 --epochs 10
    python -m training.train --config digits.yaml --seed 1 --run runs/digits-1

Killed at any moment and started again with the same command, it goes on after the last complete
epoch and ends where an uninterrupted run ends. In the folder of the run are then
``config.yaml`` (all that was resolved), ``best.keras`` and ``last.keras``, ``log.csv``,
``pictures/`` (the maps of some images after each epoch), ``tensorboard/`` if it was asked for,
``results.json`` and ``sheet.png``.
"""

import fcntl
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import click
import keras
import tensorflow as tf

from cam_tf.datasets.training import TrainingData
from cam_tf.networks.loading import load_keras_file
from training.checkpoints import BEST, LAST, State, TrainingError, explained, restore, tidy
from training.config import Config, config_options, read_config, save_config
from training.data import one_hot, open_data
from training.devices import open_strategy, worker
from training.outputs import RESULTS, epoch_callbacks, write_results
from training.phases import Phase, build, loss_and_metrics, phases, prepare


@click.command(
    help=__doc__.partition("\n")[0], context_settings={"help_option_names": ["-h", "--help"]}
)
@config_options
def main(path: Path | None, **flags) -> None:
    """Reads flags and file, and trains."""
    given = {name: value for name, value in flags.items() if value not in (None, ())}
    try:
        results = train(read_config(path, given))
    except (TrainingError, ValueError, OSError, ImportError, tf.errors.OpError) as error:
        raise click.ClickException(str(error)) from error
    if results:
        click.echo(json.dumps(results, indent=2))


def train(config: Config) -> dict:
    """Trains, or goes on with, the run of a configuration.

    Returns:
        What is in ``results.json``.

    Raises:
        TrainingError: the loss is no number any more, the disk is full, a worker is lost: the last
            good checkpoint is intact, and the same call goes on from there.
        ValueError: the configuration, the data or the folder do not fit.
    """
    strategy = open_strategy(config)
    _, workers = worker(strategy)
    keras.config.set_dtype_policy(
        f"mixed_{config.mixed_precision}" if config.mixed_precision else "float32"
    )
    if config.deterministic:
        tf.config.experimental.enable_op_determinism()
    if workers > 1:
        from training.multi_worker import train_together

        return train_together(config, strategy)
    config.folder.mkdir(parents=True, exist_ok=True)
    with alone(config.folder):
        state = State.of(config.folder)
        save_config(config, begun=state.epochs > 0)
        if (config.folder / RESULTS).exists():
            return json.loads((config.folder / RESULTS).read_text())
        with explaining_errors(config), warnings.catch_warnings():
            # Keras warns after each pass over data whose damaged files nobody has counted.
            warnings.filterwarnings("ignore", message=".*ran out of data")
            warnings.filterwarnings("ignore", message=".*shuffle=True. was passed")
            return _train(config, strategy, state)


def _train(config: Config, strategy: tf.distribute.Strategy, state: State) -> dict:
    tidy(config.folder, state.epochs)
    replicas = strategy.num_replicas_in_sync
    data = open_data(config, config.train_split, replicas=replicas, training=True)
    held_out = open_data(config, config.validation_split, replicas=replicas, like=data)
    keras.backend.clear_session()
    with strategy.scope():
        model = build(config, len(data.classes))
        for phase, resumed in remaining(model, config, state, data.steps):
            batches = one_hot(data.epochs(state.epochs), len(data.classes))
            model.fit(
                batches,
                steps_per_epoch=data.steps,
                initial_epoch=state.epochs,
                epochs=phase.end,
                validation_data=one_hot(held_out.dataset, len(data.classes)),
                callbacks=epoch_callbacks(config, held_out, state, resumed),
                verbose=2,
            )
        print(f"Training data: {data.report}", f"Validation data: {held_out.report}", sep="\n")
        return finish(config, model, data, state)


def remaining(
    model: keras.Model, config: Config, state: State, steps: int
) -> Iterator[tuple[Phase, bool]]:
    """Prepares the model for each phase that is not complete, as it stands in the checkpoint.

    Yields:
        The phase, and whether it goes on from a checkpoint within it.
    """
    restored = state.epochs == 0
    for phase in phases(config):
        if phase.end < state.epochs or (restored and phase.end == state.epochs):
            continue
        prepare(model, config, phase, steps)
        inside = False
        if not restored:
            restore(model, config.folder, state)
            restored = inside = True
            print(f"Going on after epoch {state.epochs} of {config.all_epochs}.")
        if state.epochs < phase.end:
            yield phase, inside


def finish(config: Config, model: keras.Model, data: TrainingData, state: State) -> dict:
    """Measures the run's last and best model on the test split."""
    replicas = tf.distribute.get_strategy().num_replicas_in_sync
    split = config.test_split or config.validation_split
    test = open_data(config, split, replicas=replicas, like=data)
    best = load_keras_file(config.folder / BEST)
    best.compile(**loss_and_metrics(config, len(data.classes)), jit_compile=config.xla)
    batches = one_hot(test.dataset, len(data.classes))
    return write_results(config, {"last": model, "best": best}, test, batches, state)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder, until the process ends, however it ends."""
    with open(folder / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"another process trains in {folder}.") from error
        yield


@contextmanager
def explaining_errors(config: Config) -> Iterator[None]:
    """Turns the errors of a running training into one that says where the run stands."""
    try:
        yield
    except (RuntimeError, OSError, tf.errors.OpError) as error:
        state, path = State.of(config.folder), config.folder / LAST
        stands = f"{path} is whole, after epoch {state.epochs}" if state.epochs else "no epoch was"
        stands += "." if state.epochs else " complete."
        raise TrainingError(f"{explained(error)} As for what is kept: {stands}") from error


if __name__ == "__main__":
    main()
