"""From maps to bounding boxes and masks, by the rules of Zhou et al. (CVPR 2016), section 3.2."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from cam_tf.maps.explanation import Array, Explanation
from cam_tf.maps.heatmaps import maps_and_size, resize_maps

Rule = Literal["largest", "all", "heuristic", "released"]
# The released generator's thresholds, of 255; its middle one is the tight box of the heuristic.
RELEASED_THRESHOLDS = (20, 100, 110)
TIGHT = 100 / 255


class Boxes(NamedTuple):
    """Several boxes of one map or one image, best first.

    Attributes:
        boxes: (m, 4) float32 ``[ymin, xmin, ymax, xmax]`` relative to the image.
        scores: (m,) float32; what they are depends on the rule.
        class_ids: (m,) int32, the class whose map each box is of.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray


def boxes(
    explanation: Explanation | Array,
    threshold: float = 0.2,
    *,
    rule: Rule = "largest",
    size: Sequence[int] | None = None,
) -> np.ndarray | list:
    """Draws boxes around the evidence in each map.

    The map is stretched linearly over the image, and the part strictly above ``threshold`` times
    its maximum is kept.

    Args:
        explanation: an ``Explanation``, or raw maps (N, n, h, w).
        threshold: the share of the map's maximum, 0.2 in the paper.
        rule: ``"largest"``: the box around the largest 8-connected component of what is kept, by
            number of pixels (the paper's rule). ``"all"``: a box around every component; its score
            is the component's maximum as a share of the map's. ``"heuristic"``: the paper's five
            boxes from the first three classes (an ``Explanation`` with top_k of at least 3): a
            tight and a loose box for the first and for the second class, a loose one for the third;
            loose is ``threshold``, tight 100 / 255 of the maximum. ``"released"``: the boxes of the
            authors' released generator, which the map's thresholds 20, 100 and 110 of 255, a
            distance transform and the suppression of overlaps make; scored by their area;
            ``threshold`` plays no part.
        size: the (H, W) in which the rule is applied; default: the size of the explained images
            (raw maps without a size keep their own, which gives coarse boxes).

    Returns:
        For ``"largest"`` (N, n, 4) float32 boxes ``[ymin, xmin, ymax, xmax]`` relative to the
        image; a map without a positive, finite maximum has no such part: its box is
        ``[0, 0, 0, 0]``. For ``"all"`` and ``"released"`` a list for each image with a ``Boxes``
        for each class, for ``"heuristic"`` a list with a ``Boxes`` for each image.

    Raises:
        ValueError: unknown rule, maps that are not of images, fewer classes than the heuristic
            needs, or ``threshold`` not in [0, 1).
    """
    _check_threshold(threshold)
    stretched, class_ids = _stretched(explanation, size)
    if rule == "largest":
        found = [[_largest(one, threshold) for one in image] for image in stretched]
        return np.reshape(np.asarray(found, np.float32), (*stretched.shape[:2], 4))
    if rule == "heuristic":
        return [_heuristic(*each, threshold) for each in zip(stretched, class_ids, strict=True)]
    if rule not in ("all", "released"):
        raise ValueError(f"rule={rule!r}: use 'largest', 'all', 'heuristic' or 'released'.")
    find = _all if rule == "all" else _released
    return [
        [find(one, int(i), threshold) for one, i in zip(image, ids, strict=True)]
        for image, ids in zip(stretched, class_ids, strict=True)
    ]


def masks(
    explanation: Explanation | Array,
    threshold: float = 0.2,
    *,
    largest: bool = False,
    size: Sequence[int] | None = None,
) -> np.ndarray:
    """Marks the part of each stretched map that is above ``threshold`` times its maximum.

    Args:
        explanation: an ``Explanation``, or raw maps (N, n, h, w).
        threshold: the share of the map's maximum.
        largest: keep only the largest component, the one that ``boxes`` draws its box around.
        size: as for ``boxes``.

    Returns:
        (N, n, H, W) bool; empty for a map without a positive, finite maximum.

    Raises:
        ValueError: maps that are not of images, or ``threshold`` not in [0, 1).
    """
    _check_threshold(threshold)
    stretched, _ = _stretched(explanation, size)
    flat = stretched.reshape(-1, *stretched.shape[2:])
    kept = [_kept(one, threshold) for one in flat]
    if largest:
        kept = [_largest_mask(one) for one in kept]
    return np.asarray(kept, bool).reshape(stretched.shape)


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold={threshold} is not a share of the maximum: use 0 <= threshold < 1."
        )


def _image_maps(explanation, size) -> tuple[tf.Tensor, tuple[int, ...]]:
    maps, size = maps_and_size(explanation, size)
    if maps.shape.rank != 4:
        raise ValueError(
            f"boxes are drawn on images, and maps of shape {tuple(maps.shape)} are not "
            "(N, n, h, w)."
        )
    return maps, size


def _stretched(explanation, size) -> tuple[np.ndarray, np.ndarray]:
    """The maps over the image (N, n, H, W), and their class ids (N, n)."""
    maps, size = _image_maps(explanation, size)
    stretched = resize_maps(maps, size).numpy()
    if isinstance(explanation, Explanation):
        return stretched, np.asarray(explanation.class_ids)
    return stretched, np.broadcast_to(np.arange(maps.shape[1]), maps.shape[:2])


def _kept(stretched: np.ndarray, threshold: float) -> np.ndarray:
    """The pixels (H, W) of one map above the threshold, as 0 and 1."""
    top = stretched.max()
    if not (np.isfinite(stretched).all() and top > 0):
        return np.zeros(stretched.shape, np.uint8)
    return (stretched > np.float32(threshold) * top).astype(np.uint8)


def _components(kept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (H, W), 0 for the background, and [x, y, width, height, area] of labels 1, 2, ..."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(kept, connectivity=8)
    return labels, stats[1:]


def _largest_label(labels: np.ndarray, stats: np.ndarray) -> int:
    """The label of the largest component; of equals the one that comes first, row by row."""
    areas = stats[:, cv2.CC_STAT_AREA]
    equals = np.flatnonzero(areas == areas.max()) + 1
    if len(equals) == 1:
        return int(equals[0])
    flat = labels.ravel()
    return int(flat[np.argmax(np.isin(flat, equals))])


def _largest_mask(kept: np.ndarray) -> np.ndarray:
    labels, stats = _components(kept)
    return labels == _largest_label(labels, stats) if len(stats) else kept


def _relative(stats: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """From rows that begin x, y, width, height in pixels to relative boxes (m, 4)."""
    x, y, width, height = stats[:, :4].T
    rows, columns = shape
    edges = (y / rows, x / columns, (y + height) / rows, (x + width) / columns)
    return np.stack(edges, axis=-1).astype(np.float32)


def _largest(stretched: np.ndarray, threshold: float) -> np.ndarray:
    labels, stats = _components(_kept(stretched, threshold))
    if not len(stats):
        return np.zeros(4, np.float32)
    return _relative(stats[_largest_label(labels, stats) - 1][None], stretched.shape)[0]


def _sorted(found: np.ndarray, scores: np.ndarray, class_id: int) -> Boxes:
    order = np.argsort(-scores, kind="stable")
    ids = np.full(len(order), class_id, np.int32)
    return Boxes(found[order], scores[order].astype(np.float32), ids)


def _all(stretched: np.ndarray, class_id: int, threshold: float) -> Boxes:
    labels, stats = _components(_kept(stretched, threshold))
    tops = [stretched[labels == label].max() for label in range(1, len(stats) + 1)]
    scores = np.asarray(tops, np.float32) / stretched.max() if len(stats) else np.zeros(0)
    return _sorted(_relative(stats, stretched.shape), scores, class_id)


def _heuristic(stretched: np.ndarray, class_ids: np.ndarray, loose: float) -> Boxes:
    if len(stretched) < 3:
        raise ValueError(
            f"the heuristic takes boxes from three classes, and there are {len(stretched)}: "
            "explain with top_k=3 or more."
        )
    chosen = [(0, TIGHT), (0, loose), (1, TIGHT), (1, loose), (2, loose)]
    found = np.stack([_largest(stretched[i], threshold) for i, threshold in chosen])
    ids = np.asarray([class_ids[i] for i, _ in chosen], np.int32)
    return Boxes(found, np.linspace(1, 0.2, 5, dtype=np.float32), ids)


def _released(stretched: np.ndarray, class_id: int, threshold: float) -> Boxes:
    """The released generator: its heatmaps are divided by their maximum and stored in 8 bits."""
    top = stretched.max()
    good = np.isfinite(stretched).all() and top > 0
    gray = np.rint(255 * np.clip(stretched / top, 0, 1)).astype(np.uint8) if good else None
    rows = released_boxes(gray) if good else np.zeros((0, 4), int)
    scores = rows[:, 2] * rows[:, 3] / stretched.size
    return _sorted(_relative(rows, stretched.shape), scores, class_id)


def released_boxes(
    heatmap: np.ndarray, thresholds: Sequence[int] = RELEASED_THRESHOLDS
) -> np.ndarray:
    """The boxes that the authors' released generator draws on an 8-bit heatmap.

    For each threshold the pixels above it are transformed to their L2 distance from the border,
    scaled to 255 and rounded; what is above 10 is kept, and each of its outlines, inner ones too,
    gets a box, kept 5 pixels away from the right and lower edge. Boxes are taken by falling area,
    and of two that overlap by more than half of the larger's area the smaller is dropped; the one
    that follows a dropped box is not compared with the same larger box, as in the original.

    Args:
        heatmap: (H, W) uint8.
        thresholds: of 255.

    Returns:
        (m, 4) int boxes x, y, width, height in pixels.

    Source: github.com/zhoubolei/CAM, the box generator of 2016.
    """
    height, width = heatmap.shape
    found = []
    for threshold in thresholds:
        above = (heatmap > threshold).astype(np.uint8)
        distance = cv2.distanceTransform(above, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        scaled = np.rint(distance * (255 / max(distance.max(), 1e-6)))
        inner = (scaled > 10).astype(np.uint8)
        outlines, _ = cv2.findContours(inner, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        for x, y, w, h in map(cv2.boundingRect, outlines):
            w, h = np.clip(w, 0, max(width - x - 5, 0)), np.clip(h, 0, max(height - y - 5, 0))
            found.append((np.clip(x, 0, width - 5), np.clip(y, 0, height - 5), w, h))
    found.sort(key=lambda box: -box[2] * box[3])
    i = 0
    while i < len(found):
        j = i + 1
        while j < len(found):
            if _overlap(found[i], found[j]) > int(0.5 * found[i][2] * found[i][3]):
                del found[j]
            j += 1
        i += 1
    return np.asarray(found, int).reshape(-1, 4)


def _overlap(one, other) -> int:
    """The area that two boxes x, y, width, height share."""
    sides = [
        min(one[k] + one[k + 2], other[k] + other[k + 2]) - max(one[k], other[k]) for k in (0, 1)
    ]
    return max(0, sides[0]) * max(0, sides[1])


def boxes_in_graph(
    explanation: Explanation | Array, threshold: float = 0.2, *, size: Sequence[int] | None = None
) -> tf.Tensor:
    """The largest-component rule of ``boxes`` in TensorFlow operations alone.

    For use in a ``tf.function`` or a SavedModel. It works on the horizontal runs of kept pixels,
    which are few, not on the pixels.

    Args:
        explanation: an ``Explanation``, or raw maps (N, n, h, w).
        threshold: the share of the map's maximum.
        size: as for ``boxes``; its numbers may be scalar tensors.

    Returns:
        (N, n, 4) float32, equal to ``boxes(explanation, threshold, size=size)``.

    Raises:
        ValueError: as ``boxes``.
    """
    _check_threshold(threshold)
    maps, size = _image_maps(explanation, size)
    stretched = resize_maps(maps, size)
    shape = tf.shape(stretched)
    flat = tf.reshape(stretched, [-1, shape[2], shape[3]])
    top = tf.reduce_max(flat, axis=[1, 2], keepdims=True)
    finite = tf.reduce_all(tf.math.is_finite(flat), axis=[1, 2], keepdims=True)
    kept = (flat > tf.constant(threshold, tf.float32) * top) & (top > 0) & finite
    found = _largest_extents(kept)
    height, width = tf.cast(shape[2], tf.float32), tf.cast(shape[3], tf.float32)
    found = tf.cast(found, tf.float32) / tf.stack([height, width, height, width])
    return tf.reshape(found, [shape[0], shape[1], 4])


def _largest_extents(kept: tf.Tensor) -> tf.Tensor:
    """The largest component's [top, left, bottom, right] in each mask (B, H, W): (B, 4) int64."""
    count = tf.shape(kept, tf.int64)[0]
    edge = tf.pad(kept, [[0, 0], [0, 0], [1, 1]])
    starts = tf.where(kept & ~edge[:, :, :-2])  # (runs, 3): mask, row, column; row by row
    mask, row, left = tf.unstack(starts, axis=1)
    right = tf.where(kept & ~edge[:, :, 2:])[:, 2]
    roots = _roots(mask, row, left, right, tf.shape(kept, tf.int64))
    total = tf.size(mask, tf.int64)
    area = tf.math.unsorted_segment_sum(right - left + 1, roots, total)
    # The best root of each mask; of equals the one that comes first, row by row.
    best_area = tf.math.unsorted_segment_max(area, mask, count)
    runs = tf.range(total)
    candidates = tf.where(area == tf.gather(best_area, mask), runs, total)
    best = tf.math.unsorted_segment_min(candidates, mask, count)
    chosen = tf.where(roots == tf.gather(best, mask))[:, 0]

    def extreme(segment, values):
        return segment(tf.gather(values, chosen), tf.gather(mask, chosen), count)

    lowest, highest = tf.math.unsorted_segment_min, tf.math.unsorted_segment_max
    found = [extreme(lowest, row), extreme(lowest, left)]
    found += [extreme(highest, row + 1), extreme(highest, right + 1)]
    some = tf.math.unsorted_segment_sum(tf.ones_like(chosen), tf.gather(mask, chosen), count) > 0
    return tf.where(some[:, None], tf.stack(found, axis=1), 0)


def _roots(mask, row, left, right, shape) -> tf.Tensor:
    """The first run of each run's component: union-find on the runs that touch in the next row."""
    width = shape[2] + 2  # room for a neighbour outside of the image
    line = mask * (shape[1] + 1) + row
    start_keys, end_keys = line * width + left + 1, line * width + right + 1
    # The runs below a run are consecutive: from the first that ends at its left neighbour's column
    # or later, to the last that begins at its right neighbour's column or earlier.
    first = tf.searchsorted(end_keys, start_keys + width - 1, out_type=tf.int64)
    last = tf.searchsorted(start_keys, end_keys + width + 1, side="right", out_type=tf.int64)
    below = tf.ragged.range(first, tf.maximum(first, last))
    upper, lower = below.value_rowids(), below.flat_values
    runs = tf.range(tf.size(mask, tf.int64))
    ends, others = tf.concat([upper, lower], 0), tf.concat([lower, upper], 0)

    def pass_on(labels, _):
        # The root of each run learns of the smallest root next to the run; then chains are cut.
        heard = tf.math.unsorted_segment_min(
            tf.gather(labels, others), tf.gather(labels, ends), tf.size(labels)
        )
        new = tf.minimum(labels, heard)
        for _ in range(3):
            new = tf.gather(new, new)
        return new, tf.reduce_any(new != labels)

    labels, _ = tf.while_loop(
        lambda labels, changed: changed, pass_on, (runs, tf.constant(True)), parallel_iterations=1
    )
    return labels
