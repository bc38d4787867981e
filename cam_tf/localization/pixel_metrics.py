"""Localization by pixels: PxAP, the pointing game and the energy-based pointing game."""

import numpy as np

from cam_tf.localization.metrics import StreamingMetric
from cam_tf.localization.score_maps import check_maps, check_score_maps, protocol_thresholds
from cam_tf.localization.true_boxes import Boxes, check_sizes, check_true_boxes
from cam_tf.maps.explanation import Array


class PxAP(StreamingMetric):
    """Pixel average precision: the area under precision and recall over all pixels of the data.

    A pixel is predicted as object where its score is at least the threshold; the pixels of all
    images are pooled before precision and recall are taken: sum of P_l (R_l - R_{l-1}).

    Source: Choe et al., CVPR 2020, section 3.3, and its public code (which prints it times 100).

    Args:
        interval: the step of the thresholds, ``arange(0, 1, interval)``.
    """

    def __init__(self, interval: float = 0.001):
        # The last bin holds the scores of exactly 1.
        self._edges = np.append(protocol_thresholds(interval), 1.0)
        super().__init__(
            {"interval": float(interval)},
            {"background": self._empty(), "object": self._empty()},
        )

    def _empty(self) -> np.ndarray:
        return np.zeros(len(self._edges), np.int64)

    def update(self, score_maps: Array, masks: Array, ignore: Array | None = None) -> None:
        """Counts a batch of N images.

        Args:
            score_maps: (N, H, W) in [0, 1], from ``score_maps``.
            masks: (N, H, W) bool (or 0 and 1), the pixels of the object; the protocol resizes
                them with nearest neighbours.
            ignore: (N, H, W) bool, pixels that are left out where they are not object.

        Raises:
            ValueError: score maps with NaN or outside [0, 1], masks of another shape or with
                other values.
        """
        scores = check_score_maps(score_maps)
        masks = _mask(masks, scores.shape, "masks")
        counted = np.ones_like(masks)
        if ignore is not None:
            counted = masks | ~_mask(ignore, scores.shape, "ignore")
        bins = np.searchsorted(self._edges, scores.ravel(), side="right") - 1
        bins = bins.reshape(scores.shape)
        self._add(
            len(scores),
            background=np.bincount(bins[counted & ~masks], minlength=len(self._edges)),
            object=np.bincount(bins[masks], minlength=len(self._edges)),
        )

    def curve(self) -> dict[str, np.ndarray]:
        """Precision and recall (T + 1,) at falling ``thresholds``.

        Precision is 0 where no pixel is predicted; recall is 0 without any pixel of an object.
        """
        right = self._totals["object"][::-1].cumsum()
        predicted = right + self._totals["background"][::-1].cumsum()
        return {
            "thresholds": self._edges[::-1],
            "precision": right / np.maximum(predicted, 1),
            "recall": right / max(right[-1], 1),
        }

    def _result(self) -> dict[str, float]:
        if not self._totals["object"].any():
            raise ValueError("PxAP needs pixels of objects: every mask so far was empty.")
        curve = self.curve()
        steps = np.diff(curve["recall"], prepend=0.0)
        return {"pxap": float((curve["precision"] * steps).sum())}


class PointingGame(StreamingMetric):
    """The pointing game: is the maximum of the map on the object?

    A map hits if its maximum (the first of equals) lies at most ``tolerance`` pixels of the
    original image from a true box. A constant map has no maximum and misses. The share of hits is
    over images; the source averages it over classes, for which one metric for each class is kept.

    Source: Zhang et al., "Top-down Neural Attention by Excitation Backprop", IJCV 2018, section
    4.2.

    Args:
        tolerance: in pixels, 15 in the source.
    """

    def __init__(self, tolerance: float = 15):
        super().__init__({"tolerance": float(tolerance)}, {"hits": np.zeros((), np.int64)})

    def update(self, maps: Array, true_boxes: Boxes, image_sizes: Array | None = None) -> None:
        """Counts a batch of N images.

        Args:
            maps: (N, H, W) finite maps that stretch over the image, raw or normalised.
            true_boxes: for each image (b, 4) relative boxes; rows of zeros are padding.
            image_sizes: (N, 2) height and width in pixels of the original images, which the
                tolerance is measured in. Default: the size of the maps.

        Raises:
            ValueError: maps with NaN or infinity, shapes that do not fit, or bad boxes.
        """
        maps = check_maps(maps)
        truths = check_true_boxes(true_boxes, len(maps))
        sizes = check_sizes(image_sizes, maps)
        hits = 0
        for one, truth, size in zip(maps, truths, sizes, strict=True):
            if one.min() == one.max():
                continue
            place = np.array(np.unravel_index(one.argmax(), one.shape))
            point = (place + 0.5) / one.shape * size - 0.5  # in pixel centres
            low, high = truth[:, :2] * size, truth[:, 2:] * size - 1
            distance = np.maximum(np.maximum(low - point, point - high), 0)
            hits += bool((np.hypot(*distance.T) <= self._settings["tolerance"] + 1e-4).any())
        self._add(len(maps), hits=hits)

    def _result(self) -> dict[str, float]:
        return {"pointing_game": int(self._totals["hits"]) / self.images}


class EnergyPointingGame(StreamingMetric):
    """The energy-based pointing game: how much of the map's positive part falls on the object.

    For each image the sum of the positive map over the pixels inside the true boxes (those whose
    centre is in any of them), to its whole sum; a map without a positive value gives 0. The result
    is the mean over images.

    Source: Wang et al., "Score-CAM", CVPR workshops 2020, section 4.3.
    """

    def __init__(self):
        super().__init__({}, {"share": np.zeros(())})

    def update(self, maps: Array, true_boxes: Boxes) -> None:
        """Counts a batch of N images.

        Args:
            maps: (N, H, W) finite maps that stretch over the image, raw or normalised.
            true_boxes: for each image (b, 4) relative boxes; rows of zeros are padding.

        Raises:
            ValueError: maps with NaN or infinity, shapes that do not fit, or bad boxes.
        """
        maps = np.maximum(check_maps(maps), 0)
        truths = check_true_boxes(true_boxes, len(maps))
        rows, columns = [(np.arange(length) + 0.5) / length for length in maps.shape[1:]]
        share = 0.0
        for one, truth in zip(maps, truths, strict=True):
            ymin, xmin, ymax, xmax = truth.T[..., None]
            on_y, on_x = (ymin <= rows) & (rows < ymax), (xmin <= columns) & (columns < xmax)
            inside = (on_y[:, :, None] & on_x[:, None]).any(axis=0)
            total = one.sum()
            share += one[inside].sum() / total if total > 0 else 0.0
        self._add(len(maps), share=share)

    def _result(self) -> dict[str, float]:
        return {"energy_pointing_game": float(self._totals["share"]) / self.images}


def _mask(mask: Array, shape: tuple[int, ...], what: str) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.shape != shape:
        raise ValueError(
            f"{what} of shape {mask.shape} do not fit score maps of shape {shape}: resize them "
            "with cv2.INTER_NEAREST."
        )
    if mask.dtype != bool and not np.isin(mask, (0, 1)).all():
        raise ValueError(f"{what} hold other values than 0 and 1: pass bools, such as mask > 127.")
    return mask.astype(bool)
