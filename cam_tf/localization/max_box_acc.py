"""MaxBoxAcc and MaxBoxAccV2: box accuracy at the best threshold."""

from collections.abc import Sequence

import cv2
import numpy as np

from cam_tf.localization.metrics import StreamingMetric
from cam_tf.localization.score_maps import check_score_maps, protocol_thresholds
from cam_tf.localization.true_boxes import (
    TIE,
    Boxes,
    areas,
    check_sizes,
    check_true_boxes,
    intersections,
    iou,
    pixel_boxes,
)
from cam_tf.maps.explanation import Array


class MaxBoxAcc(StreamingMetric):
    """MaxBoxAcc and MaxBoxAccV2, both from one pass over the contours.

    BoxAcc(t, d) is the share of images whose best IoU, over boxes drawn at threshold t and true
    boxes, is at least d. MaxBoxAcc takes the box of the contour of largest polygon area and the
    maximum over t at d = 0.5. MaxBoxAccV2 takes the boxes of all contours (those of holes too),
    the maximum over t for each d, and their mean. With the maps of the true classes both are
    GT-known figures.

    Source: Choe et al., CVPR 2020, sections 3.3 and 4.1 (V2: its journal version), and its public
    code, to which the counts are equal at every threshold: only the at most 256 distinct levels
    of the map in 8 bits are looked at, each inside the box around what is left.

    Args:
        interval: the step of the thresholds, ``arange(0, 1, interval)``.
        deltas: the overlaps d of V2.
    """

    def __init__(self, interval: float = 0.001, deltas: Sequence[float] = (0.3, 0.5, 0.7)):
        if not len(deltas) or not all(0 < delta <= 1 for delta in deltas):
            raise ValueError(
                f"deltas={deltas} are not overlaps: use shares such as (0.3, 0.5, 0.7)."
            )
        self.thresholds = protocol_thresholds(interval)
        super().__init__(
            {"interval": float(interval), "deltas": [float(delta) for delta in deltas]},
            {
                "largest": np.zeros(len(self.thresholds), np.int64),
                "every": np.zeros((len(deltas), len(self.thresholds)), np.int64),
            },
        )

    def update(
        self, score_maps: Array, true_boxes: Boxes, image_sizes: Array | None = None
    ) -> None:
        """Counts a batch of N images.

        Args:
            score_maps: (N, H, W) in [0, 1], from ``score_maps``: 224 x 224 in the protocol.
            true_boxes: for each image (b, 4) relative boxes; rows of zeros are padding. They
                become whole pixels of the original image and then, truncated, of the score map.
            image_sizes: (N, 2) height and width in pixels of the original images, in which the
                boxes were annotated. Default: the size of the score maps, which may move a box by
                a pixel against the protocol.

        Raises:
            ValueError: score maps with NaN or outside [0, 1], shapes that do not fit, an image
                without a true box, or boxes that are not relative or have ymin > ymax.
        """
        scores = check_score_maps(score_maps)
        truths = check_true_boxes(true_boxes, len(scores))
        sizes = check_sizes(image_sizes, scores)
        deltas = np.asarray(self._settings["deltas"])[:, None]
        largest = np.zeros_like(self._totals["largest"])
        every = np.zeros_like(self._totals["every"])
        for score, truth, size in zip(scores, truths, sizes, strict=True):
            truth = pixel_boxes(truth, size, score.shape)
            of_largest, of_every = self._overlaps(score, truth)
            largest += of_largest >= 0.5
            every += of_every >= deltas
        self._add(len(scores), largest=largest, every=every)

    def _overlaps(self, score: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The best IoU (T,) at each threshold, of the largest contour and of all contours.

        Where no box can reach the smallest overlap that is asked for, it is 0.
        """
        image = (score * 255).astype(np.uint8)
        levels = (self.thresholds * float(image.max())).astype(np.int64)
        # Between two values that occur in the map, the part above the level does not change: it
        # is what has the next value or more.
        values = np.append(np.flatnonzero(np.bincount(image.ravel())), 256)
        values, back = np.unique(
            values[np.searchsorted(values, levels, "right")], return_inverse=True
        )
        extents = _extents(image, values)
        # A box ends one pixel behind its contour, so it lies inside the extent and one pixel more.
        within = extents + np.array([0, 0, 1, 1])
        reach = intersections(within, truth, pixel=1) / areas(truth, pixel=1)
        asked = min(0.5, *self._settings["deltas"])
        wanted = (reach.max(axis=1) >= asked - TIE) | (values > image.max())
        boxes, starts, largest = _contour_boxes(image, values[wanted], extents[wanted])
        overlaps = iou(boxes, truth, pixel=1).max(axis=1)
        best = np.zeros((2, len(values)))
        if len(starts):
            best[:, wanted] = overlaps[largest], np.maximum.reduceat(overlaps, starts)
        return best[0, back], best[1, back]

    def curves(self) -> dict[str, np.ndarray]:
        """BoxAcc at every threshold: ``thresholds`` (T,), ``largest`` (T,), ``every`` (d, T)."""
        shares = {name: self._totals[name] / max(self.images, 1) for name in ("largest", "every")}
        return {"thresholds": self.thresholds, **shares}

    def _result(self) -> dict[str, float]:
        curves = self.curves()
        found = self._best("maxboxacc", curves["largest"])
        best = curves["every"].max(axis=1)
        found["maxboxaccv2"] = float(best.mean())
        for delta, curve in zip(self._settings["deltas"], curves["every"], strict=True):
            found |= self._best(f"maxboxaccv2_{100 * delta:.3g}", curve)
        return found

    def _best(self, name: str, curve: np.ndarray) -> dict[str, float]:
        at = int(curve.argmax())
        return {name: float(curve[at]), f"{name}_threshold": float(self.thresholds[at])}


def _extents(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """For each value the inclusive x0, y0, x1, y1 around the pixels (H, W) that have it or more."""
    low, high = [], []
    for axis in (0, 1):  # columns, then rows
        highest = image.max(axis=axis)
        low.append(np.searchsorted(np.maximum.accumulate(highest), values))
        from_end = np.searchsorted(np.maximum.accumulate(highest[::-1]), values)
        high.append(len(highest) - 1 - from_end)
    return np.stack(low + high, axis=1)


def _contour_boxes(image: np.ndarray, values: np.ndarray, extents: np.ndarray) -> tuple:
    """The boxes of the contours around the pixels that have a value or more, for each value.

    Returns:
        Inclusive pixel boxes (n, 4) x0, y0, x1, y1 of all values in turn; for each value where its
        boxes start, and where the box of its contour of largest area is.
    """
    boxes, starts, largest = [], [], []
    for value, (left, top, right, bottom) in zip(values.tolist(), extents.tolist(), strict=True):
        starts.append(len(boxes))
        largest.append(len(boxes))
        part = image[top : bottom + 1, left : right + 1]
        if not part.size:
            boxes.append((0, 0, 0, 0))
            continue
        kept = cv2.threshold(part, value - 1, 255, cv2.THRESH_BINARY)[1]
        contours = cv2.findContours(
            kept, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE, offset=(left, top)
        )[-2]
        boxes += map(cv2.boundingRect, contours)
        if len(contours) > 1:
            polygons = list(map(cv2.contourArea, contours))
            largest[-1] += polygons.index(max(polygons))
    boxes = np.reshape(boxes, (-1, 4)).astype(np.int64)
    boxes[:, 2:] = np.minimum(boxes[:, :2] + boxes[:, 2:], [image.shape[1] - 1, image.shape[0] - 1])
    return boxes, starts, largest
