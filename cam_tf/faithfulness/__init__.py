"""Faithfulness: does a map show what the network's decision depends on?

The pointing games ask instead whether a map lies on the object, and so are of
``cam_tf.localization``; they are listed here because the field reports them together.
"""

from cam_tf.faithfulness.bootstrap import bootstrap_interval
from cam_tf.faithfulness.comparison import METRICS, Comparison, Estimate, compare_methods
from cam_tf.faithfulness.confidence import AverageDrop
from cam_tf.faithfulness.deletion import Deletion, Insertion
from cam_tf.faithfulness.imputation import impute
from cam_tf.faithfulness.metrics import FaithfulnessMetric
from cam_tf.faithfulness.probabilities import Probabilities
from cam_tf.faithfulness.randomization import RandomizedLayer, randomization_check
from cam_tf.faithfulness.road import ROAD
from cam_tf.localization.pixel_metrics import EnergyPointingGame, PointingGame

__all__ = [
    "METRICS",
    "ROAD",
    "AverageDrop",
    "Comparison",
    "Deletion",
    "EnergyPointingGame",
    "Estimate",
    "FaithfulnessMetric",
    "Insertion",
    "PointingGame",
    "Probabilities",
    "RandomizedLayer",
    "bootstrap_interval",
    "compare_methods",
    "impute",
    "randomization_check",
]
