"""Boxes at the door of the protocols: checks, inclusive pixels, and overlaps."""

from collections.abc import Sequence

import numpy as np

from cam_tf.maps.explanation import Array

Boxes = Array | Sequence[Array]
TIE = 1e-6  # float32 boxes: an overlap of exactly one half may come out a little below


def check_true_boxes(boxes: Boxes, images: int) -> list[np.ndarray]:
    """Returns true boxes as a list of (b, 4) float64, b >= 1, for each of N images.

    Raises:
        ValueError: another number of images, boxes that are not (b, 4), no box for an image, or
            boxes that are negative, not relative, not finite, or upside down.
    """
    boxes = [np.atleast_2d(np.asarray(one, np.float64)) for one in boxes]
    if len(boxes) != images:
        raise ValueError(f"true boxes of {len(boxes)} images were given for {images} images.")
    for image, one in enumerate(boxes):
        if one.ndim != 2 or (one.shape[1] != 4 and one.size):
            raise ValueError(f"the true boxes of image {image} have shape {one.shape}, not (b, 4).")
        one = boxes[image] = one[one.any(axis=1)] if one.size else one.reshape(0, 4)
        if not len(one):
            raise ValueError(
                f"image {image} of the batch has no true box, so it cannot be right or wrong: "
                "leave it out."
            )
        check_relative(one, f"true boxes of image {image}")
    return boxes


def check_sizes(image_sizes: Array | None, maps: np.ndarray) -> np.ndarray:
    """Returns (N, 2) sizes of the original images; default: that of the maps (N, H, W)."""
    if image_sizes is None:
        return np.tile(maps.shape[1:], (len(maps), 1))
    sizes = np.asarray(image_sizes)
    if sizes.shape != (len(maps), 2) or (sizes < 1).any():
        raise ValueError(
            f"image_sizes of shape {sizes.shape} are not a height and a width in pixels for each "
            f"of {len(maps)} images, ({len(maps)}, 2)."
        )
    return sizes


def check_relative(boxes: np.ndarray, what: str) -> None:
    """Raises a ValueError for boxes (..., 4) that are not relative, or upside down.

    A box may hang over an edge by an annotator's pixel; pixel coordinates are refused.
    """
    if not np.isfinite(boxes).all() or (boxes < 0).any() or (boxes > 1.5).any():
        raise ValueError(
            f"{what} are not relative: [ymin, xmin, ymax, xmax] lie between 0 and 1. Divide pixels "
            "by the image's height and width."
        )
    if (boxes[..., 2:] < boxes[..., :2]).any():
        raise ValueError(
            f"{what} have ymin > ymax or xmin > xmax: the order is [ymin, xmin, ymax, xmax]."
        )


def pixel_boxes(boxes: np.ndarray, image_size: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """Converts relative boxes to the inclusive pixels of the WSOL protocol.

    Args:
        boxes: (b, 4) float ``[ymin, xmin, ymax, xmax]``, an annotation's pixels divided by the
            size of the image.
        image_size: the (H, W) in pixels of the image that was annotated.
        size: the (H, W) of the score map.

    Returns:
        (b, 4) int64 x0, y0, x1, y1: the annotation's whole pixels, scaled and truncated. The
        protocol counts both ends as pixels of the box.
    """
    old, new = np.asarray(image_size)[[1, 0, 1, 0]], np.asarray(size)[[1, 0, 1, 0]]
    return (np.rint(boxes[:, [1, 0, 3, 2]] * old) * new / old).astype(np.int64)


def iou(first: np.ndarray, second: np.ndarray, pixel: int = 0) -> np.ndarray:
    """Intersection over union of every box of (n, 4) with every box of (m, 4).

    Args:
        first: boxes, low corner then high corner, in either order of axes.
        second: the same.
        pixel: 1 where both ends are pixels that belong to the box, 0 where they are edges.

    Returns:
        (n, m) float64; 0 where neither box has an area.
    """
    common = intersections(first, second, pixel)
    union = areas(first, pixel)[:, None] + areas(second, pixel) - common
    return np.divide(common, union, out=np.zeros(union.shape), where=union > 0)


def intersections(first: np.ndarray, second: np.ndarray, pixel: int = 0) -> np.ndarray:
    """The areas (n, m) that boxes share; arguments as for ``iou``."""
    low = np.maximum(first[:, None, :2], second[:, :2])
    high = np.minimum(first[:, None, 2:], second[:, 2:])
    return np.maximum(high - low + pixel, 0).prod(axis=-1)


def areas(boxes: np.ndarray, pixel: int = 0) -> np.ndarray:
    """The areas (n,) of boxes; arguments as for ``iou``."""
    return (boxes[:, 2:] - boxes[:, :2] + pixel).prod(axis=-1)
