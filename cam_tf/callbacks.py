"""Keras callbacks: what a classifier looks at, and how well it localises, while it is trained."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from cam_tf.datasets.images import PathLike
from cam_tf.display.map_sheets import sheet
from cam_tf.display.overlays import rgb_values
from cam_tf.files import written_whole
from cam_tf.localization.boxes import boxes
from cam_tf.localization.max_box_acc import MaxBoxAcc
from cam_tf.localization.metrics import GTKnown, LocalizationError
from cam_tf.localization.score_maps import score_maps
from cam_tf.localization.true_boxes import Boxes, check_sizes, check_true_boxes
from cam_tf.maps.cam import CAM
from cam_tf.maps.explainer import Explainer, Inputs
from cam_tf.maps.explanation import Array

MakeExplainer = Callable[[keras.Model], Explainer]


class _AfterEpochs(keras.callbacks.Callback):
    """Explains after the first epoch, every so many epochs from there, and after the last one."""

    def __init__(self, every: int, explainer: MakeExplainer, batch_size: int):
        super().__init__()
        if every < 1 or batch_size < 1:
            raise ValueError(f"every={every} and batch_size={batch_size}: use at least 1.")
        self._every, self._batch_size = every, batch_size
        self._make_explainer, self._explainer, self._explained = explainer, None, None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Makes the explainer, so that a model that it cannot explain fails before training."""
        if self._explained is not self.model:
            self._explainer, self._explained = self._make_explainer(self.model), self.model

    def _has_turn(self, epoch: int) -> bool:
        return epoch % self._every == 0 or epoch + 1 == (self.params or {}).get("epochs")


class LocalizationCallback(_AfterEpochs):
    """Measures localization on fixed images after an epoch and writes it into the logs.

    Writes ``val_loc_maxboxacc``, ``val_loc_maxboxaccv2`` and ``val_loc_gt_known`` (of the maps of
    the true classes), ``val_loc_top1_error`` and, from five classes on, ``val_loc_top5_error``: so
    ``History``, ``CSVLogger``, ``TensorBoard``, ``EarlyStopping(monitor="val_loc_maxboxaccv2",
    mode="max")`` and ``ModelCheckpoint`` see them, if they come after it in the list of callbacks.
    Boxes of the last three follow the paper's rule, of 20 % or another share. The explainer is
    compiled once and explains the live weights; each time costs a forward pass over the images and
    about 10 ms an image for the metrics.

    Args:
        images: (N, H, W, channels) as the model takes them.
        class_ids: (N,) their true classes.
        true_boxes: for each image (b, 4) relative ``[ymin, xmin, ymax, xmax]``.
        image_sizes: (N, 2) height and width in pixels of the original images, for the protocol's
            truncation. Default: the score maps' 224 x 224.
        every: measure after the first epoch, every so many epochs from there, and the last one.
        explainer: makes the explainer of the model, such as ``cam_tf.GradCAM``, or a
            ``functools.partial`` of one.
        batch_size: images explained at once.
        threshold: the boxes' share of the map's maximum.

    Raises:
        ValueError: numbers of images, boxes, classes and sizes that differ, an image without a
            box, boxes that are not relative, or ``every`` below 1; from ``fit``, what the
            explainer raises for a model that it cannot explain.
    """

    def __init__(
        self,
        images: Array,
        class_ids: Array,
        true_boxes: Boxes,
        *,
        image_sizes: Array | None = None,
        every: int = 1,
        explainer: MakeExplainer = CAM,
        batch_size: int = 32,
        threshold: float = 0.2,
    ):
        super().__init__(every, explainer, batch_size)
        self._threshold = threshold
        self._images, self._class_ids = images, np.asarray(class_ids)
        if not len(images) or self._class_ids.shape != (len(images),):
            raise ValueError(
                f"class_ids {self._class_ids.shape} are not one class for each of {len(images)} "
                "images."
            )
        self._true_boxes = check_true_boxes(true_boxes, len(images))
        self._sizes = None
        if image_sizes is not None:
            self._sizes = check_sizes(image_sizes, images)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measures, if it is this epoch's turn."""
        if logs is not None and self._has_turn(epoch):
            logs.update(self.measure())

    def measure(self) -> dict[str, float]:
        """Measures the present weights; see the class for the names."""
        k = 5 if self._explainer.anatomy.classes >= 5 else 1
        error, known, accuracy = (
            LocalizationError((1, k) if k > 1 else (1,)),
            GTKnown(),
            MaxBoxAcc(),
        )
        for start in range(0, len(self._images), self._batch_size):
            part = slice(start, start + self._batch_size)
            images, ids, truth = self._images[part], self._class_ids[part], self._true_boxes[part]
            explained = self._explainer(images, ids, top_k=k)  # the predicted, then the true class
            drawn = boxes(explained, threshold=self._threshold)
            error.update(explained.class_ids[:, :k], drawn[:, :k], ids, truth)
            known.update(drawn[:, k], truth)
            sizes = None if self._sizes is None else self._sizes[part]
            accuracy.update(score_maps(explained.maps[:, k]), truth, sizes)
        found = {**accuracy.result(), **known.result(), **error.result()}
        names = ["maxboxacc", "maxboxaccv2", "gt_known", "loc_top1_error"]
        names += ["loc_top5_error"] * (k == 5)
        return {f"val_loc_{name.removeprefix('loc_')}": found[name] for name in names}


class CAMCallback(_AfterEpochs):
    """Draws the maps of fixed images after an epoch: into PNG files, for TensorBoard, or both.

    All images are on one sheet, each with its class, its score and the range of its map. After the
    third epoch the sheet is ``directory/epoch_0003.png`` (the number that Keras prints, as for
    ``ModelCheckpoint``) and in TensorBoard the image ``cam`` of the run ``cam`` at step 2 (where
    Keras's own callback has the curves of that epoch). A resumed run replaces equal files, so that
    no epoch is there twice. The explainer is compiled once and explains the live weights. A map
    that is flat or not finite does not stop the training: its panel says so.

    ::

        model.fit(..., callbacks=[CAMCallback(images, directory="maps", class_names=names)])

    Args:
        images: (N, H, W, channels) as the model takes them, or what else the explainer takes; a
            dozen is readable.
        class_ids: (N,) the classes to map, say the true ones. Default: each time the predicted one.
        photos: the N images to draw on, (H, W, 3), RGB in 0..255, of any sizes. Default:
            ``images``. Needed where the model is given something else, as one with its
            preprocessing outside.
        every: draw after the first epoch, every so many epochs from there, and the last one.
        directory: where the PNG files go; made when training begins.
        log_dir: the directory that TensorBoard is given, as for ``keras.callbacks.TensorBoard``.
        class_names: the names of all classes, for the titles. Default: their ids.
        explainer: makes the explainer of the model, such as ``cam_tf.GradCAM``, or a
            ``functools.partial`` of one.
        batch_size: images explained at once.

    Raises:
        ValueError: neither a directory nor a log directory, photos that are not RGB in 0..255,
            numbers of photos and classes that differ, or ``every`` below 1; from ``fit`` before the
            first epoch, what the explainer raises for this model, these images or these classes.
        ImportError: a log directory without the package tensorboard.
    """

    def __init__(
        self,
        images: Inputs,
        class_ids: Array | None = None,
        *,
        photos: Sequence[np.ndarray] | None = None,
        every: int = 1,
        directory: PathLike | None = None,
        log_dir: PathLike | None = None,
        class_names: Sequence[str] | None = None,
        explainer: MakeExplainer = CAM,
        batch_size: int = 32,
    ):
        super().__init__(every, explainer, batch_size)
        if directory is None and log_dir is None:
            raise ValueError("CAMCallback has nowhere to draw: give directory=, log_dir= or both.")
        if log_dir is not None:
            require_tensorboard("CAMCallback(log_dir=...), unlike directory=...,")
        self._images, self._photos = images, _check_photos(images, photos)
        self._class_ids = None if class_ids is None else np.asarray(class_ids)
        if class_ids is not None and self._class_ids.shape != (len(self._photos),):
            raise ValueError(
                f"class_ids {self._class_ids.shape} are not one class for each of "
                f"{len(self._photos)} images."
            )
        self._directory = None if directory is None else Path(directory)
        self._log_dir = None if log_dir is None else Path(log_dir) / "cam"
        self._class_names = class_names

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Draws once for nothing: what does not fit must not come to light after an epoch."""
        super().on_train_begin(logs)
        self.draw()
        for folder in (self._directory, self._log_dir):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Draws and writes, if it is this epoch's turn."""
        if not self._has_turn(epoch):
            return
        buffer = io.BytesIO()
        self.draw(f"epoch {epoch + 1}").savefig(buffer, format="png")
        if self._directory is not None:
            with written_whole(self._directory / f"epoch_{epoch + 1:04d}.png") as file:
                file.write(buffer.getvalue())
        if self._log_dir is not None:
            # Named by the epoch, and sorted by it: so TensorBoard reads the steps in order.
            with written_whole(self._log_dir / f"events.out.tfevents.{epoch:010d}.cam") as file:
                file.write(_image_events(buffer.getvalue(), epoch))

    def draw(self, heading: str = "") -> Figure:
        """Returns the sheet of the present weights, a matplotlib figure."""
        explained = self._explainer(self._images, self._class_ids, batch_size=self._batch_size)
        unit = self._explainer.unit
        return sheet(self._photos, explained, self._class_names, heading=heading, bar_label=unit)


def _check_photos(images: Inputs, photos: Sequence[np.ndarray] | None) -> list[np.ndarray]:
    """Returns what to draw on, as (H, W, 3) uint8."""
    given = images if photos is None else photos
    if photos is None and not hasattr(images, "shape"):
        given = []  # several inputs: which of them is the image is known when there is a model
    found = []
    for i, photo in enumerate(given):
        try:
            found.append(np.rint(rgb_values(photo)).astype(np.uint8))
        except ValueError as error:
            raise ValueError(
                f"photo {i} cannot be drawn on: {error} What the model takes goes into images=, "
                "and the same pictures in RGB 0..255 into photos=."
            ) from error
    if not found:
        raise ValueError("CAMCallback has no photos: give images (N, H, W, 3), or photos=.")
    return found


def require_tensorboard(caller: str) -> None:
    """Says what to do where TensorBoard is not installed; TensorFlow does not bring it.

    Raises:
        ImportError: it is not.
    """
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f'{caller} needs TensorBoard, which is not installed: pip install "cam-tf[train]".'
        ) from error


def _image_events(png: bytes, step: int) -> bytes:
    """The contents of an event file with one image."""
    with tempfile.TemporaryDirectory() as folder:
        writer = tf.summary.create_file_writer(folder)
        with contextlib.closing(writer), writer.as_default():
            tf.summary.image("cam", tf.io.decode_png(png, 3)[None], step=step)
        (path,) = Path(folder).iterdir()
        return path.read_bytes()
