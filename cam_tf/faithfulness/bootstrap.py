"""Bootstrap confidence intervals of means over images."""

import numpy as np

from cam_tf.maps.explanation import Array

_CHUNK = 2**22  # values resampled at a time: bounds the memory


def bootstrap_interval(
    values: Array, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of a mean.

    The images are drawn with replacement, as many as there are; the interval is what lies between
    the quantiles (1 - confidence) / 2 and (1 + confidence) / 2 of the means. The draws depend on
    the seed and the number of images alone, so figures of the same images are resampled alike.

    Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, section 13.3.

    Args:
        values: (N,) a figure of each image.
        confidence: the probability of the interval, in (0, 1).
        resamples: how many times the images are drawn.
        seed: of the draws.

    Returns:
        The lower and the upper end.

    Raises:
        ValueError: no values, a confidence outside of (0, 1), or ``resamples`` below 1.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not values.size:
        raise ValueError(f"values of shape {values.shape}: give a figure for each image, (N,).")
    if not 0 < confidence < 1 or resamples < 1:
        raise ValueError(
            f"confidence={confidence}, resamples={resamples}: use 0.95, and at least 1."
        )
    random, means = np.random.default_rng(seed), []
    chunk = max(1, _CHUNK // len(values))
    for start in range(0, resamples, chunk):
        count = min(chunk, resamples - start)
        drawn = random.integers(len(values), size=(count, len(values)))
        means.append(values[drawn].mean(axis=1))
    ends = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(np.concatenate(means), ends)
    return float(low), float(high)
