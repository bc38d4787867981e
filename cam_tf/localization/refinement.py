"""Sharpening maps with the edges of the image itself."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Literal

import cv2
import numpy as np

from cam_tf.maps.explanation import Array, Explanation
from cam_tf.suggestions import did_you_mean

Method = Literal["grabcut"]
# What is surely object, probably object and surely background, in levels (see _levels). GrabCut
# depends much on where it starts, so it starts several times.
_SEEDS = ((0.75, 0.0, -0.8), (0.75, 0.2, -0.7), (0.85, 0.05, -0.5), (0.85, -0.2, -0.8))
_ROUNDS = 3


def refine(
    images: Sequence[Array],
    maps: Explanation | Array,
    method: Method = "grabcut",
    *,
    weight: float = 0.2,
    threshold: float = 0.2,
    size: int = 112,
    workers: int | None = None,
) -> Explanation | np.ndarray:
    """Sharpens maps along the edges of their images.

    ``"grabcut"`` separates the object from its background by colour, in four runs of GrabCut that
    begin at different levels of the map. With p the share of the runs that take a pixel for object,
    m the map, and the level l = ``threshold`` times its maximum, the result is

        m + weight * (l + (2p - 1) (max m - l) - m):

    in the units of the map, with the box rule's level where it was.

    Args:
        images: N images (H, W, 3), RGB 0..255, of one size or of several.
        maps: an ``Explanation`` of these images, or raw maps (N, n, h, w).
        method: ``"grabcut"``, the only one so far.
        weight: the share of the segmentation in the result, 0 to 1.
        threshold: the share of a map's maximum that separates object from background, as in
            ``cam_tf.boxes``.
        size: the side, in pixels, of a square as large as the image in which the work is done; its
            cost is proportional to ``size ** 2``.
        workers: threads; default: one for each core.

    Returns:
        What was given, with maps of the working size: for an ``Explanation`` another one; for maps
        an array (N, n, h', w') float32, or for images of several sizes a list of N arrays
        (n, h', w'). A map with NaN, or without a positive value, is only stretched.

    Raises:
        ValueError: an unknown method, numbers of images and maps that differ, images that are not
            RGB or of several sizes for one ``Explanation``, or arguments out of range.

    Source: Rother, Kolmogorov and Blake, "GrabCut: Interactive Foreground Extraction using Iterated
    Graph Cuts", SIGGRAPH 2004, as in OpenCV.
    """
    if method not in _METHODS:
        known = ", ".join(map(repr, _METHODS))
        raise ValueError(
            f"method {method!r} is unknown.{did_you_mean(str(method), _METHODS)} Use {known}."
        )
    if not (0 <= weight <= 1 and 0 <= threshold < 1 and size >= 8):
        raise ValueError(
            f"weight={weight}, threshold={threshold}, size={size}: expected shares of at most 1, "
            "a threshold below 1, and at least 8 pixels."
        )
    raw = np.asarray(maps.maps if isinstance(maps, Explanation) else maps, np.float32)
    if raw.ndim != 4 or len(raw) != len(images):
        raise ValueError(
            f"{len(images)} images and maps of shape {raw.shape} do not go together: expected maps "
            "(N, n, h, w) of N images."
        )

    def refined(image: Array, own: np.ndarray) -> np.ndarray:
        pixels = _shrink(_as_pixels(image), size)
        stretched = [cv2.resize(one, pixels.shape[1::-1]) for one in own]
        return np.stack([_refine(pixels, one, method, weight, threshold) for one in stretched])

    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        found = list(pool.map(refined, images, raw))
    if len({one.shape for one in found}) == 1:
        found = np.stack(found)
    if not isinstance(maps, Explanation):
        return found if len(images) else raw
    if isinstance(found, list) and found:
        raise ValueError("an Explanation holds maps of one size: refine images of one size.")
    return replace(maps, maps=found) if len(images) else maps


def _as_pixels(image: Array) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] != 3 or 0 in image.shape:
        raise ValueError(f"an image of shape {image.shape} is not RGB (H, W, 3).")
    return np.ascontiguousarray(np.clip(np.rint(image), 0, 255).astype(np.uint8))


def _shrink(pixels: np.ndarray, size: int) -> np.ndarray:
    """The image with about ``size ** 2`` pixels, or as it is if it has fewer."""
    height, width = pixels.shape[:2]
    scale = size / (height * width) ** 0.5
    if scale >= 1:
        return pixels
    shape = max(round(width * scale), 1), max(round(height * scale), 1)
    return cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA)


def _refine(pixels, map_, method: Method, weight: float, threshold: float) -> np.ndarray:
    top = map_.max()
    if not np.isfinite(map_).all() or top <= 0:
        return map_
    level = threshold * top
    share = _METHODS[method](pixels, _levels(map_, level))
    return map_ + weight * (level + (2 * share - 1) * (top - level) - map_)


def _levels(map_: np.ndarray, level: float) -> np.ndarray:
    """The map in levels: 1 at its maximum, 0 at the box rule's level, -1 at its minimum."""
    low, above = map_.min(), map_ - level
    return np.where(above > 0, above / (map_.max() - level), above / max(level - low, 1e-12))


def _grabcut(pixels: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """The share of runs, (h, w) in [0, 1], that take a pixel for the object."""
    return np.mean([_one_grabcut(pixels, levels, *seeds) for seeds in _SEEDS], axis=0)


def _one_grabcut(pixels, levels, sure: float, probable: float, background: float) -> np.ndarray:
    labels = np.select(
        [levels > sure, levels > probable, levels > background],
        [cv2.GC_FGD, cv2.GC_PR_FGD, cv2.GC_PR_BGD],
        cv2.GC_BGD,
    ).astype(np.uint8)
    is_object = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if is_object.any() and not is_object.all():  # else there is nothing to tell apart
        cv2.setRNGSeed(0)  # it begins with k-means; the generator is the thread's own
        models = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(pixels, labels, None, *models, _ROUNDS, cv2.GC_INIT_WITH_MASK)
        is_object = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return is_object.astype(np.float32)


_METHODS = {"grabcut": _grabcut}
