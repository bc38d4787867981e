"""Average drop and increase in confidence: the class's probability of what a map shows."""

from collections.abc import Sequence

import tensorflow as tf

from cam_tf.faithfulness.metrics import (
    IMAGENET_MEAN,
    FaithfulnessMetric,
    as_colour,
    check_baseline,
    of_class,
)
from cam_tf.maps.heatmaps import Rule, heatmaps


class AverageDrop(FaithfulnessMetric):
    """Average drop and increase in confidence.

    With Y the class's probability of the image, and O that of the image seen through its heatmap:
    average drop is the mean of max(0, Y - O) / Y, small being good; increase in confidence is the
    share of images with O > Y, large being good. Both are shares, which papers print times 100.
    Figures: ``average_drop``, ``increase_in_confidence``.

    Source: Chattopadhyay et al., "Grad-CAM++", WACV 2018, section 4.1: the image times its map.
    Conventions of ours: the product is of the image's difference from the baseline, as it is in
    code that multiplies normalised images (``baseline=0`` is the product of the pixels
    themselves), and the map is scaled to [0, 1] by ``rule``. A map that shows nothing leaves the
    baseline alone: it drops what there is to drop. Y = 0 drops nothing.

    Args:
        baseline: what hidden pixels become: a number, or one for each channel.
        rule: of ``cam_tf.heatmaps``: ``"relu"``, the positive part of the map over its maximum, as
            the maps of the source are; or ``"minmax"``.

    Raises:
        ValueError: a ``baseline`` that is no colour, or an unknown rule.
    """

    def __init__(self, baseline: float | Sequence[float] = IMAGENET_MEAN, rule: Rule = "relu"):
        if rule not in ("minmax", "relu"):
            raise ValueError(f"rule={rule!r} is unknown: use 'minmax' or 'relu'.")
        super().__init__(
            {"baseline": check_baseline(baseline), "rule": rule},
            ["average_drop", "increase_in_confidence"],
        )

    def measure(self, probabilities, images, maps, class_ids):
        """See ``FaithfulnessMetric.measure``."""
        rule = self._settings["rule"]
        colour = as_colour(self._settings["baseline"], images)
        shown = heatmaps(maps[:, None], tf.unstack(tf.shape(maps)[1:]), rule=rule)[:, 0, ..., None]
        before = of_class(probabilities(images), class_ids)
        after = of_class(probabilities(colour + shown * (images - colour)), class_ids)
        drop = tf.math.divide_no_nan(tf.nn.relu(before - after), before)
        return {
            "average_drop": drop,
            "increase_in_confidence": tf.cast(after > before, tf.float32),
        }
