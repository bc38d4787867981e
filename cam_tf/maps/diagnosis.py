"""What is the matter with a map: said in words, in place of a blank picture."""

from typing import NamedTuple

import numpy as np

FINE, NOT_FINITE, FLAT, ALL_NEGATIVE, SATURATED = (
    "fine",
    "not finite",
    "flat",
    "all negative",
    "saturated",
)
_SATURATION = 0.9999  # of a score between 0 and 1
_ADVICE = {
    FINE: "",
    NOT_FINITE: "The network overflows: check that the images are preprocessed as in training, and "
    "its weights; under mixed_float16 try mixed_bfloat16 or float32.",
    FLAT: "No place differs from another. If the map has one cell, use larger images or an earlier "
    "layer; if a ReLU left nothing, use relu=False or CAM, or explain a class that is predicted; "
    "otherwise the features are dead: check preprocessing and weights.",
    ALL_NEGATIVE: "Every place speaks against this class: explain a class that is predicted, or "
    "read the map as evidence against it (heatmaps with rule='minmax').",
    SATURATED: "The map is of the logit and is good, but the score hardly changes with the image: "
    "compare logits, and do not weight by probability (ScoreCAM's weighting='softmax').",
}


def is_flat(low, high):
    """Whether maps with these extremes are flat: differences in the last bits are only rounding."""
    return high - low <= 2 * np.finfo(np.float32).eps * (abs(low) + abs(high))


class Diagnosis(NamedTuple):
    """The state of one map.

    Attributes:
        image: the index of the image.
        class_id: the class.
        status: "fine", "not finite", "flat", "all negative" or "saturated".
        advice: what to do, or "" for a map that is fine.
    """

    image: int
    class_id: int
    status: str
    advice: str


def diagnose(maps: np.ndarray, class_ids: np.ndarray, scores: np.ndarray) -> list[list[Diagnosis]]:
    """Looks at maps (N, n, ...) with their class ids and scores (N, n).

    Returns:
        A list for each image, with a ``Diagnosis`` for each of its classes.
    """
    return [
        [
            Diagnosis(i, int(class_ids[i, j]), status, _ADVICE[status])
            for j in range(maps.shape[1])
            for status in [_status(maps[i, j], float(scores[i, j]))]
        ]
        for i in range(maps.shape[0])
    ]


def _status(one: np.ndarray, score: float) -> str:
    top, bottom = one.max(), one.min()
    if not np.isfinite([top, bottom]).all():
        return NOT_FINITE
    if is_flat(bottom, top):
        return FLAT
    if top <= 0:
        return ALL_NEGATIVE
    return SATURATED if _SATURATION <= score <= 1 else FINE
