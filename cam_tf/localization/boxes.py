"""From maps to bounding boxes, by the rule of Zhou et al. (CVPR 2016), section 3.2."""

from collections.abc import Sequence

import cv2
import numpy as np

from cam_tf.maps.explanation import Array, Explanation
from cam_tf.maps.heatmaps import maps_and_size, resize_maps


def boxes(
    explanation: Explanation | Array,
    threshold: float = 0.2,
    *,
    size: Sequence[int] | None = None,
) -> np.ndarray:
    """Draws for each map the box that covers its largest connected component.

    The map is stretched linearly over the image, the part strictly above ``threshold`` times its
    maximum is kept, and the box covers the largest 8-connected component of what is left (by number
    of pixels).

    Args:
        explanation: an ``Explanation``, or raw maps (N, n, h, w).
        threshold: the share of the map's maximum, 0.2 in the paper.
        size: the (H, W) in which the rule is applied; default: the size of the explained images
            (raw maps without a size keep their own, which gives coarse boxes).

    Returns:
        (N, n, 4) float32 boxes ``[ymin, xmin, ymax, xmax]`` relative to the image. A map without a
        positive, finite maximum has no such part: its box is ``[0, 0, 0, 0]``.

    Raises:
        ValueError: the maps are not of images, or ``threshold`` is not in [0, 1).
    """
    if not 0 <= threshold < 1:
        raise ValueError(
            f"threshold={threshold} is not a share of the maximum: use 0 <= threshold < 1."
        )
    maps, size = maps_and_size(explanation, size)
    if maps.shape.rank != 4:
        raise ValueError(
            f"boxes are drawn on images, and maps of shape {tuple(maps.shape)} are not "
            "(N, n, h, w)."
        )
    stretched = resize_maps(maps, size).numpy()
    found = [_largest_component(one, threshold) for one in stretched.reshape((-1, *size))]
    return np.reshape(np.asarray(found, np.float32), (*maps.shape[:2], 4))


def _largest_component(stretched: np.ndarray, threshold: float) -> tuple[float, ...]:
    """Returns the relative box of the largest component of one stretched map (H, W)."""
    top = stretched.max()
    if not (np.isfinite(stretched).all() and top > 0):
        return (0.0, 0.0, 0.0, 0.0)
    kept = (stretched > threshold * top).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(kept, connectivity=8)
    components = stats[1:]  # label 0 is the background
    x, y, width, height, _ = components[np.argmax(components[:, cv2.CC_STAT_AREA])]
    rows, columns = stretched.shape
    return (y / rows, x / columns, (y + height) / rows, (x + width) / columns)
