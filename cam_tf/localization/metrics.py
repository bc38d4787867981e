"""Streaming metrics: their base, top-1/top-5 localization error, and GT-known accuracy.

Every metric of this package is a sum over images, kept in a few arrays: it takes batches
(``update``), is merged from several workers (``merge``), and is stored and restored as plain
numbers (``state``, ``from_state``), so that a killed evaluation goes on where it was.

Boxes, predicted and true, are ``[ymin, xmin, ymax, xmax]`` relative to the image; true ones are an
annotation's pixel coordinates divided by the image's size, as the readers of ``cam_tf.datasets``
give them. All results are shares in [0, 1], which papers print times 100.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from cam_tf.localization.true_boxes import TIE, Boxes, check_relative, check_true_boxes, iou
from cam_tf.maps.explanation import Array


class StreamingMetric(ABC):
    """A metric made of sums over images.

    Args:
        settings: the arguments of the constructor, as plain numbers and lists.
        totals: the sums, arrays of zeros by name; ``images`` is added to them.
    """

    def __init__(self, settings: dict, totals: dict[str, np.ndarray]):
        self._settings = settings
        self._totals = {"images": np.zeros((), np.int64), **totals}

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self._totals["images"])

    @abstractmethod
    def _result(self) -> dict[str, float]:
        """The result, of at least one image."""

    def result(self) -> dict[str, float]:
        """Returns the figures by name, of all images so far.

        Raises:
            ValueError: no image was counted yet.
        """
        if not self.images:
            raise ValueError(f"{type(self).__name__} has no result of no images: update() first.")
        return self._result()

    def _add(self, images: int, **sums) -> None:
        for name, value in {"images": images, **sums}.items():
            self._totals[name] += value

    def merge(self, other: "StreamingMetric") -> None:
        """Adds the images that another worker counted.

        Raises:
            ValueError: ``other`` is another metric, or has other settings.
        """
        if type(self) is not type(other) or self._settings != other._settings:
            raise ValueError(f"{other!r} does not measure what {self!r} measures: not merged.")
        self._add(**other._totals)

    def state(self) -> dict:
        """Returns all there is to store, in plain numbers, lists and strings (for JSON)."""
        totals = {name: total.tolist() for name, total in self._totals.items()}
        return {"metric": type(self).__name__, "settings": self._settings, "totals": totals}

    @classmethod
    def from_state(cls, state: dict) -> "StreamingMetric":
        """Returns the metric that ``state()`` was called on.

        Raises:
            ValueError: the state is of another metric, or is damaged.
        """
        if state.get("metric") != cls.__name__:
            raise ValueError(f"this is the state of {state.get('metric')}, not of {cls.__name__}.")
        metric = cls(**state["settings"])
        found = {name: np.asarray(total) for name, total in state["totals"].items()}
        shapes = {name: total.shape for name, total in metric._totals.items()}
        if {name: total.shape for name, total in found.items()} != shapes:
            raise ValueError(f"the stored state of {cls.__name__} is damaged: measure anew.")
        metric._add(**found)
        return metric

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value}" for name, value in self._settings.items())
        return f"{type(self).__name__}({settings}) of {self.images} images"


class LocalizationError(StreamingMetric):
    """Top-n classification and localization error, by the rule of ILSVRC.

    An image is right among its first n predictions if one of them names its class, and for
    localization if a box of that prediction also overlaps a true box with IoU >= 0.5.

    Source: Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015,
    section 4.2; Zhou et al., CVPR 2016, section 3.2. Overlaps are of relative edges; the
    challenge's code counts both end pixels, which differs by a pixel of the original image.

    Args:
        top: the numbers n; (1,) for a network of fewer than five classes.
    """

    def __init__(self, top: Sequence[int] = (1, 5)):
        if not len(top) or min(top) < 1:
            raise ValueError(f"top={top}: give numbers of predictions, such as (1, 5).")
        super().__init__(
            {"top": [int(n) for n in top]},
            {name: np.zeros(len(top), np.int64) for name in ("classified", "localized")},
        )

    def update(
        self, class_ids: Array, boxes: Array, true_class_ids: Array, true_boxes: Boxes
    ) -> None:
        """Counts a batch of N images.

        Args:
            class_ids: (N, k) the predicted classes, best first; k is at least the largest n.
            boxes: (N, k, 4) a box for each of them, or (N, k, m, 4) several, any of which may hit.
            true_class_ids: (N,) the classes of the images.
            true_boxes: for each image (b, 4) boxes of its class; rows of zeros are padding.

        Raises:
            ValueError: shapes that do not fit, fewer than n predictions, an image without a true
                box, or boxes that are not relative or have ymin > ymax or xmin > xmax.
        """
        top = self._settings["top"]
        class_ids, labels = np.asarray(class_ids), np.asarray(true_class_ids)
        if class_ids.ndim != 2 or labels.shape != class_ids.shape[:1]:
            raise ValueError(
                f"class_ids {class_ids.shape} and true_class_ids {labels.shape} are not (N, k) "
                "and (N,)."
            )
        if class_ids.shape[1] < max(top):
            raise ValueError(
                f"{class_ids.shape[1]} predicted classes are too few for top-{max(top)}: explain "
                f"with top_k={max(top)}, or use LocalizationError(top=...) with smaller numbers."
            )
        boxes = _predicted(boxes, class_ids.shape)
        right = class_ids == labels[:, None]
        hit = right & (_best_overlaps(boxes, true_boxes) >= 0.5 - TIE)
        self._add(
            len(labels),
            classified=[right[:, :n].any(axis=1).sum() for n in top],
            localized=[hit[:, :n].any(axis=1).sum() for n in top],
        )

    def _result(self) -> dict[str, float]:
        errors = {}
        for kind, name in (("cls", "classified"), ("loc", "localized")):
            for n, count in zip(self._settings["top"], self._totals[name], strict=True):
                errors[f"{kind}_top{n}_error"] = 1 - int(count) / self.images
        return errors


class GTKnown(StreamingMetric):
    """GT-known localization accuracy: IoU >= 0.5 of the box drawn for the true class.

    With the boxes of ``cam_tf.boxes`` on the true class's map it is the paper's 20 % rule at its
    one fixed threshold; ``MaxBoxAcc`` gives the figure at the best threshold.
    """

    def __init__(self):
        super().__init__({}, {"localized": np.zeros((), np.int64)})

    def update(self, boxes: Array, true_boxes: Boxes) -> None:
        """Counts a batch of N images.

        Args:
            boxes: (N, 4) a box for each image's true class, or (N, m, 4) several.
            true_boxes: for each image (b, 4) boxes of its class; rows of zeros are padding.

        Raises:
            ValueError: as for ``LocalizationError.update``.
        """
        boxes = np.asarray(boxes)
        boxes = _predicted(boxes, boxes.shape[:1])
        overlaps = _best_overlaps(boxes[:, None], true_boxes)[:, 0]
        self._add(len(boxes), localized=(overlaps >= 0.5 - TIE).sum())

    def _result(self) -> dict[str, float]:
        return {"gt_known": int(self._totals["localized"]) / self.images}


def _predicted(boxes: Array, leading: tuple[int, ...]) -> np.ndarray:
    """Returns predicted boxes as (*leading, m, 4) float64."""
    boxes = np.asarray(boxes, np.float64)
    if boxes.ndim == len(leading) + 1:
        boxes = boxes[..., None, :]
    if boxes.ndim != len(leading) + 2 or boxes.shape[: len(leading)] != leading:
        raise ValueError(f"boxes of shape {boxes.shape} do not fit {leading}: add (4,) or (m, 4).")
    if boxes.shape[-1] != 4:
        raise ValueError(f"boxes of shape {boxes.shape} do not end in [ymin, xmin, ymax, xmax].")
    check_relative(boxes, "predicted boxes")
    return boxes


def _best_overlaps(boxes: np.ndarray, true_boxes: Boxes) -> np.ndarray:
    """The best IoU (N, k) of boxes (N, k, m, 4) with each image's true boxes."""
    truths = check_true_boxes(true_boxes, len(boxes))
    best = np.zeros(boxes.shape[:2])
    for index, (own, truth) in enumerate(zip(boxes, truths, strict=True)):
        best[index] = iou(own.reshape(-1, 4), truth).max(axis=1).reshape(own.shape[:2]).max(axis=1)
    return best
