"""From raw maps to heatmaps: linear resizing and normalisation to [0, 1], for any spatial rank."""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from cam_tf.maps.diagnosis import is_flat
from cam_tf.maps.explanation import Array, Explanation

Rule = Literal["minmax", "relu"]


class BlankMapWarning(UserWarning):
    """A heatmap came out as zeros: its raw map is flat, has no positive value, or is not finite."""


def resize_maps(maps: Array, size: Sequence[int]) -> tf.Tensor:
    """Resizes maps linearly over their spatial axes (half-pixel centres, as ``tf.image.resize``).

    Args:
        maps: (N, n, ...) float maps with one, two or three spatial axes.
        size: the new spatial size, a number (or scalar tensor) for each spatial axis.

    Returns:
        (N, n, *size) float32, raw values interpolated, no normalisation.

    Raises:
        ValueError: ``size`` does not have one positive number for each spatial axis.
    """
    maps = tf.cast(maps, tf.float32)
    rank = maps.shape.rank - 2
    if len(size) != rank or any(not tf.is_tensor(one) and int(one) < 1 for one in size):
        raise ValueError(
            f"size={tuple(size)} does not fit maps of shape {tuple(maps.shape)}: expected {rank} "
            "positive numbers, one for each spatial axis (height, width for images)."
        )
    for axis, length in enumerate(size, start=2):
        maps = _resize_axis(maps, axis, length)
    return maps


def _resize_axis(maps: tf.Tensor, axis: int, length: int | tf.Tensor) -> tf.Tensor:
    """Multiplies by the (length, old length) matrix of weights, which is faster than gathering."""
    if not tf.is_tensor(length) and maps.shape[axis] == length:
        return maps
    old, new = tf.cast(tf.shape(maps)[axis], tf.float32), tf.cast(length, tf.float32)
    centre = tf.clip_by_value((tf.range(new) + 0.5) * old / new - 0.5, 0.0, old - 1.0)
    distance = tf.abs(centre[:, None] - tf.range(old))
    weights = tf.maximum(1.0 - distance, 0.0)
    spatial = "xyz"[: maps.shape.rank - 2]
    source = spatial[axis - 2]
    return tf.einsum(f"nc{spatial},a{source}->nc{spatial.replace(source, 'a')}", maps, weights)


def heatmaps(
    explanation: Explanation | Array, size: Sequence[int] | None = None, *, rule: Rule = "minmax"
) -> tf.Tensor:
    """Resizes maps to an image's size and normalises each of them to [0, 1].

    Args:
        explanation: an ``Explanation``, or raw maps (N, n, ...).
        size: the spatial size, (H, W) for images. Default: the size of the explained images; raw
            maps without a size keep their own.
        rule: ``"minmax"``: (m - min m) / (max m - min m): the whole range, evidence against the
            class included. ``"relu"``: max(m, 0) / max m: only evidence for the class, as Grad-CAM
            draws it.

    Returns:
        (N, n, *size) float32 in [0, 1]. A map that cannot be normalised (flat; for ``"relu"``
        without a positive value; with NaN or infinity) becomes zeros.

    Warns:
        BlankMapWarning: outside of a ``tf.function``, naming the maps that became zeros and why.

    Raises:
        ValueError: unknown rule, or a size that does not fit the maps.
    """
    if rule not in ("minmax", "relu"):
        raise ValueError(f"rule={rule!r} is unknown: use 'minmax' or 'relu'.")
    maps, size = maps_and_size(explanation, size)
    resized = resize_maps(maps, size)
    if rule == "relu":
        resized = tf.nn.relu(resized)
    spatial = list(range(2, resized.shape.rank))
    top = tf.reduce_max(resized, axis=spatial, keepdims=True)
    bottom = tf.reduce_min(resized, axis=spatial, keepdims=True)
    if rule == "relu":
        bottom = tf.zeros_like(top)
    good = tf.math.is_finite(top - bottom) & ~is_flat(bottom, top)
    if tf.executing_eagerly():
        _report_blank(good, top, rule)
    # Division by zero is zero here, also of NaN.
    return tf.math.divide_no_nan(resized - bottom, tf.where(good, top - bottom, 0.0))


def maps_and_size(
    explanation: Explanation | Array, size: Sequence[int] | None
) -> tuple[tf.Tensor, tuple[int, ...]]:
    """Returns raw maps (N, n, ...) and the size to stretch them to.

    Raises:
        ValueError: the maps have no batch, class and spatial axes.
    """
    if isinstance(explanation, Explanation):
        maps, default = tf.convert_to_tensor(explanation.maps), explanation.image_size
    else:
        maps = tf.convert_to_tensor(explanation)
        default = tuple(maps.shape[2:])
    if maps.shape.rank is None or maps.shape.rank < 3:
        raise ValueError(
            f"maps have shape {tuple(maps.shape)}: expected (N, n, h, w), images by classes by "
            "space. Add the missing axes, for example maps[None, None] for one map."
        )
    return maps, tuple(default if size is None else size)


def _report_blank(good: tf.Tensor, top: tf.Tensor, rule: Rule) -> None:
    blank = np.argwhere(~good.numpy().reshape(good.shape[:2]))
    if not len(blank):
        return
    top = top.numpy().reshape(top.shape[:2])

    def reason(i: int, j: int) -> str:
        if not np.isfinite(top[i, j]):
            return "not finite"
        return "flat" if rule == "minmax" else "without a positive value"

    shown = ", ".join(f"image {i} map {j} is {reason(i, j)}" for i, j in blank[:5])
    more = f" and {len(blank) - 5} more" if len(blank) > 5 else ""
    warnings.warn(f"heatmaps set to zeros: {shown}{more}.", BlankMapWarning, stacklevel=3)
