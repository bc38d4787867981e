"""Localization: boxes from maps, and the metrics that the field reports."""

from cam_tf.localization.classification import ClassificationError
from cam_tf.localization.max_box_acc import MaxBoxAcc
from cam_tf.localization.metrics import GTKnown, LocalizationError, StreamingMetric
from cam_tf.localization.pixel_metrics import EnergyPointingGame, PointingGame, PxAP
from cam_tf.localization.score_maps import score_maps

__all__ = [
    "ClassificationError",
    "EnergyPointingGame",
    "GTKnown",
    "LocalizationError",
    "MaxBoxAcc",
    "PointingGame",
    "PxAP",
    "StreamingMetric",
    "score_maps",
]
