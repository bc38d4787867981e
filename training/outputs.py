"""What a run leaves behind: callbacks for each epoch, and the figures at its end."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import keras
import numpy as np

from cam_tf.callbacks import CAMCallback, LocalizationCallback
from cam_tf.datasets.tfds import tfds_examples
from cam_tf.datasets.training import TrainingData
from cam_tf.files import written_whole
from training.checkpoints import BEST, LAST, LOG, AveragedWeights, Checkpoint, State
from training.config import Config
from training.data import plainly

RESULTS = "results.json"
_LOOKED_THROUGH = 1000  # images that are decoded to choose those of the pictures


def epoch_callbacks(
    config: Config,
    held_out: TrainingData,
    state: State,
    resumed: bool,
) -> list[keras.callbacks.Callback]:
    """The callbacks of one phase, in the order in which they need each other.

    Args:
        config: of the run.
        held_out: the validation data.
        state: where the run stands.
        resumed: whether the phase goes on from a checkpoint.

    Raises:
        ImportError: TensorBoard is asked for and is not installed.
    """
    found = [keras.callbacks.TerminateOnNaN(raise_error=True)]
    if config.ema is not None:
        found.append(AveragedWeights(exchanged=resumed))
    localization = localization_callback(
        config, config.validation_split, config.localization_images
    )
    if localization:
        found.append(localization)
    found.append(keras.callbacks.CSVLogger(config.folder / LOG, append=True))
    board = config.folder / "tensorboard" if config.tensorboard else None
    if board:
        _require_tensorboard()
        found.append(keras.callbacks.TensorBoard(board, write_graph=False))
    if config.picture_images:
        found.append(_pictures(config, held_out, config.folder / "pictures", board))
    return [*found, Checkpoint(config.folder, config.monitor, state)]


def _require_tensorboard() -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "--tensorboard needs TensorBoard, which is not installed: "
            'pip install "cam-tf[tensorboard]". '
            "Without it log.csv has the same figures and pictures/ the same pictures."
        ) from error


def _pictures(config: Config, data: TrainingData, directory: Path, board: Path | None):
    images, labels = _some(data, config.picture_images)
    return CAMCallback(images, labels, directory=directory, log_dir=board, class_names=data.classes)


def _some(data: TrainingData, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images at even distances, since folders come class by class, and their class ids."""
    step = max(1, min(data.count, _LOOKED_THROUGH) // count)
    spread = data.dataset.unbatch().take(step * count).shard(step, 0)
    return next(plainly(spread.batch(count)).as_numpy_iterator())


def localization_callback(
    config: Config, split: str, most: int | None = None, **options
) -> LocalizationCallback | None:
    """Measures localization on the images of a split, or None if there are no boxes.

    Args:
        config: of the run.
        split: of a data set of TFDS.
        most: how many images; None for all.
        **options: of ``LocalizationCallback``.
    """
    try:
        found = annotated(config, split, most)
    except ValueError as error:
        print(f"No figures of localization: {error}")
        return None
    if found is None:
        return None
    images, class_ids, boxes, sizes = found
    return LocalizationCallback(images, class_ids, boxes, image_sizes=sizes, **options)


def annotated(config: Config, split: str, most: int | None = None) -> tuple | None:
    """The images, class ids, true boxes and sizes in pixels of a split; None for folders.

    Raises:
        ValueError: the data set has no boxes.
    """
    if most == 0 or Path(config.data).expanduser().is_dir():
        return None
    examples = tfds_examples(config.data, split, data_dir=config.data_dir, download=config.download)
    wanted = {"image": [], "label": [], "boxes": [], "size": []}
    some = examples.dataset(config.image_size).take(-1 if most is None else most)
    for example in plainly(some):
        for name, values in wanted.items():
            values.append(example[name].numpy())
    images, class_ids, sizes = (np.stack(wanted[name]) for name in ("image", "label", "size"))
    return images, class_ids, wanted["boxes"], sizes


def write_results(
    config: Config,
    models: dict[str, keras.Model],
    data: TrainingData,
    held_out: Sequence,
    state: State,
) -> dict:
    """Measures the last and the best model, writes ``results.json`` and ``sheet.png``.

    Args:
        config: of the run.
        models: by ``"last"`` and ``"best"``, compiled.
        data: the test data.
        held_out: the same as batches for ``evaluate``.
        state: where the run stands.

    Returns:
        What is in the file.
    """
    split = config.test_split or config.validation_split
    measure = localization_callback(config, split)
    found: dict = {"split": split, "epochs": state.epochs, "best_epoch": state.best_epoch}
    for name, model in models.items():
        figures = model.evaluate(held_out, return_dict=True, verbose=0)
        if measure:
            measure.set_model(model)
            measure.on_train_begin()
            figures |= {k.removeprefix("val_"): v for k, v in measure.measure().items()}
        found[name] = {k: float(v) for k, v in figures.items()}
        if not all(map(math.isfinite, found[name].values())):
            raise ValueError(f"{name}.keras gives figures that are not finite: {found[name]}")
    if config.picture_images:
        _draw_sheet(config, models["best"], data)
    found["files"] = [BEST, LAST, LOG]
    with written_whole(config.folder / RESULTS) as file:
        file.write((json.dumps(found, indent=2) + "\n").encode())
    return found


def _draw_sheet(config: Config, model: keras.Model, data: TrainingData) -> None:
    drawing = _pictures(config, data, config.folder, None)
    drawing.set_model(model)
    keras.callbacks.CallbackList([drawing], model=model).on_train_begin()
    with written_whole(config.folder / "sheet.png") as file:
        drawing.draw("best model").savefig(file, format="png")
