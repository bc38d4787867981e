"""From raw maps to the score maps of the evaluation protocols."""

from collections.abc import Sequence

import cv2
import numpy as np

from cam_tf.maps.explanation import Array, Explanation

PROTOCOL_SIZE = (224, 224)


def score_maps(explanation: Explanation | Array, size: Sequence[int] = PROTOCOL_SIZE) -> np.ndarray:
    """Stretches raw maps bicubically and normalises each to [0, 1], as the WSOL benchmark does.

    Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR
    2020, and its public code (``cv2.INTER_CUBIC`` in float64, then min-max). It is another rule
    than the linear one of ``cam_tf.heatmaps``, and the figures depend on it.

    Args:
        explanation: an ``Explanation``, or raw maps (..., h, w) with any leading axes.
        size: the (H, W) of the score maps in pixels, 224 x 224 in the protocol.

    Returns:
        (..., H, W) float64 in [0, 1]; a constant map becomes zeros.

    Raises:
        ValueError: maps without two spatial axes, or with NaN or infinity.
    """
    maps = explanation.maps if isinstance(explanation, Explanation) else explanation
    maps = np.asarray(maps, np.float64)
    if maps.ndim < 2 or 0 in maps.shape[-2:]:
        raise ValueError(f"maps of shape {maps.shape} are not (..., h, w).")
    refuse_non_finite(maps)
    height, width = size
    scores = np.zeros((*maps.shape[:-2], height, width))
    for index in np.ndindex(maps.shape[:-2]):
        stretched = cv2.resize(maps[index], (width, height), interpolation=cv2.INTER_CUBIC)
        low, high = stretched.min(), stretched.max()
        if high > low:
            scores[index] = (stretched - low) / (high - low)
    return scores


def protocol_thresholds(interval: float) -> np.ndarray:
    """``arange(0, 1, interval)``; raises a ValueError where that is no list of thresholds."""
    if not 0 < interval < 1:
        raise ValueError(f"interval={interval} is not between 0 and 1: the protocol's is 0.001.")
    return np.arange(0, 1, interval)


def check_score_maps(scores: Array) -> np.ndarray:
    """Returns score maps (N, H, W) as float64.

    Raises:
        ValueError: another rank, an empty grid, NaN, or values outside [0, 1].
    """
    scores = check_maps(scores)
    if scores.size and (scores.min() < 0 or scores.max() > 1):
        raise ValueError(
            f"score maps lie between {scores.min():.4g} and {scores.max():.4g}, not in [0, 1]: "
            "pass them through cam_tf.localization.score_maps first."
        )
    return scores


def check_maps(maps: Array) -> np.ndarray:
    """Returns maps (N, H, W) as float64.

    Raises:
        ValueError: another rank, an empty grid, NaN or infinity.
    """
    maps = np.asarray(maps, np.float64)
    if maps.ndim != 3 or 0 in maps.shape[1:]:
        raise ValueError(
            f"maps of shape {maps.shape} are not (N, H, W), one map for each image: of maps "
            "(N, n, H, W) take one class, maps[:, 0]."
        )
    refuse_non_finite(maps)
    return maps


def refuse_non_finite(maps: np.ndarray) -> None:
    """Raises a ValueError that names the maps (..., h, w) with NaN or infinity."""
    bad = np.argwhere(~np.isfinite(maps).all(axis=(-2, -1)))
    if len(bad):
        raise ValueError(
            f"maps {bad.squeeze(-1).tolist() if bad.shape[1] == 1 else bad.tolist()} hold NaN or "
            "infinity, and a score map must not: Explanation.diagnosis() says why a map is not "
            "finite; leave those images out and count them."
        )
