"""Keras callbacks: how well a classifier localises, while it is trained."""

from collections.abc import Callable

import keras
import numpy as np

from cam_tf.localization.boxes import boxes
from cam_tf.localization.max_box_acc import MaxBoxAcc
from cam_tf.localization.metrics import GTKnown, LocalizationError
from cam_tf.localization.score_maps import score_maps
from cam_tf.localization.true_boxes import Boxes, check_sizes, check_true_boxes
from cam_tf.maps.cam import CAM
from cam_tf.maps.explainer import Explainer
from cam_tf.maps.explanation import Array


class LocalizationCallback(keras.callbacks.Callback):
    """Measures localization on fixed images after an epoch and writes it into the logs.

    Writes ``val_loc_maxboxacc``, ``val_loc_maxboxaccv2`` and ``val_loc_gt_known`` (of the maps of
    the true classes), ``val_loc_top1_error`` and, from five classes on, ``val_loc_top5_error``: so
    ``History``, ``CSVLogger``, ``TensorBoard``, ``EarlyStopping(monitor="val_loc_maxboxaccv2",
    mode="max")`` and ``ModelCheckpoint`` see them, if they come after it in the list of callbacks.
    Boxes follow the paper's 20 % rule. The explainer is compiled once and explains the live
    weights; each time costs a forward pass over the images and about 10 ms an image for the
    metrics.

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
        explainer: Callable[[keras.Model], Explainer] = CAM,
        batch_size: int = 32,
    ):
        super().__init__()
        if every < 1 or batch_size < 1:
            raise ValueError(f"every={every} and batch_size={batch_size}: use at least 1.")
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
        self._every, self._batch_size = every, batch_size
        self._make_explainer, self._explainer, self._explained = explainer, None, None

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Makes the explainer, so that a model that it cannot explain fails before training."""
        if self._explained is not self.model:
            self._explainer, self._explained = self._make_explainer(self.model), self.model

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Measures, if it is this epoch's turn."""
        last = epoch + 1 == (self.params or {}).get("epochs")
        if logs is not None and (epoch % self._every == 0 or last):
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
            drawn = boxes(explained)
            error.update(explained.class_ids[:, :k], drawn[:, :k], ids, truth)
            known.update(drawn[:, k], truth)
            sizes = None if self._sizes is None else self._sizes[part]
            accuracy.update(score_maps(explained.maps[:, k]), truth, sizes)
        found = {**accuracy.result(), **known.result(), **error.result()}
        names = ["maxboxacc", "maxboxaccv2", "gt_known", "loc_top1_error"]
        names += ["loc_top5_error"] * (k == 5)
        return {f"val_loc_{name.removeprefix('loc_')}": found[name] for name in names}
