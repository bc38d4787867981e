"""ROAD, Remove and Debias: the class's probability while pixels are imputed."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cam_tf.faithfulness.imputation import impute, value_range
from cam_tf.faithfulness.metrics import FaithfulnessMetric, of_class, rank_pixels

_CURVES = ("morf", "lerf", "morf_accuracy", "lerf_accuracy")


class ROAD(FaithfulnessMetric):
    """ROAD: remove the most relevant pixels first, and the least relevant first, by imputation.

    At each percentile that many per cent of the pixels, the most relevant (MoRF) or the least
    relevant (LeRF), are replaced by noisy linear imputation (``impute``), which hides that pixels
    were removed. Figures: ``road_morf`` and ``road_lerf``, the class's probability, a mean over
    percentiles: small and large are good; ``road_combined`` = (LeRF - MoRF) / 2, large is good and
    0 is a random map's; ``road_combined_accuracy``, the same of accuracy, the share of images whose
    likeliest class is still this one. Curves over percentiles: ``morf``, ``lerf``,
    ``morf_accuracy``, ``lerf_accuracy``.

    Source: Rong et al., "A Consistent and Efficient Evaluation Strategy for Attribution Methods",
    ICML 2022, which shows curves of accuracy; the combined figure is that of the pytorch-grad-cam
    library. Conventions of ours: the class is the one explained, the noise is a share of the
    image's own range (of 0..1 in the source), one draw for each percentile serves both orders and
    all images, and equals are in reading order.

    Args:
        percentiles: of pixels removed, each between 0 and 100.
        noise: its standard deviation.
        seed: of the noise.

    Raises:
        ValueError: no percentile or one outside of (0, 100), or negative noise.
    """

    def __init__(
        self,
        percentiles: Sequence[float] = (10, 20, 30, 40, 50, 60, 70, 80, 90),
        noise: float = 0.01,
        seed: int = 0,
    ):
        percentiles = np.asarray(percentiles, np.float64).tolist()
        if not percentiles or not 0 < min(percentiles) <= max(percentiles) < 100 or noise < 0:
            raise ValueError(
                f"percentiles={percentiles}, noise={noise}: give percentiles between 0 and 100, "
                "such as (20, 40, 60, 80), and noise of at least 0."
            )
        super().__init__(
            {"percentiles": percentiles, "noise": float(noise), "seed": int(seed)},
            ["road_morf", "road_lerf", "road_combined", "road_combined_accuracy"],
            **dict.fromkeys(_CURVES, len(percentiles)),
        )

    def measure(self, probabilities, images, maps, class_ids):
        """See ``FaithfulnessMetric.measure``."""
        ranks, pixels = rank_pixels(maps), tf.reduce_prod(tf.shape(maps)[1:])
        spread = self._settings["noise"] * value_range(images)
        shares = tf.constant(self._settings["percentiles"]) / 100

        def at(index):
            count = tf.cast(tf.round(shares[index] * tf.cast(pixels, tf.float32)), tf.int32)
            count = tf.minimum(count, pixels - 1)  # something must be left to impute from
            seed = tf.stack([self._settings["seed"], index])
            noise = spread * tf.random.stateless_normal(tf.shape(images)[1:], seed)
            found = []
            for removed in (ranks < count, ranks >= pixels - count):
                scores = probabilities(impute(images, removed, noise))
                found.append(of_class(scores, class_ids))
                found.append(tf.cast(tf.argmax(scores, 1, tf.int32) == class_ids, tf.float32))
            return tf.stack(found, axis=-1)

        found = tf.map_fn(
            at, tf.range(shares.shape[0]), fn_output_signature=tf.float32, parallel_iterations=1
        )
        morf, morf_right, lerf, lerf_right = tf.unstack(tf.transpose(found, [2, 1, 0]))
        return {
            **dict(zip(_CURVES, (morf, lerf, morf_right, lerf_right), strict=True)),
            "road_morf": tf.reduce_mean(morf, axis=1),
            "road_lerf": tf.reduce_mean(lerf, axis=1),
            "road_combined": tf.reduce_mean(lerf - morf, axis=1) / 2,
            "road_combined_accuracy": tf.reduce_mean(lerf_right - morf_right, axis=1) / 2,
        }
