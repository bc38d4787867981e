"""Model cards: what an export is, for people and programs, in plain data."""

import datetime
import json
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

import cam_tf
from cam_tf.localization.localizer import Localizer
from cam_tf.maps.explainer import Explainer
from cam_tf.maps.methods import METHODS

RESIZING = "bilinear, antialiased, aspect ratio not kept"


def written_card(card: dict) -> bytes:
    """The card as a JSON file."""
    return (json.dumps(card, indent=2) + "\n").encode()


def beginning(about: str) -> dict:
    """What it is, when it was made, and with what."""
    return {
        "about": about,
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "cam_tf": cam_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
    }


def model_part(explainer: Explainer, class_names: Sequence[str] | None, weights: str) -> dict:
    """The classifier, and how its weights are kept."""
    return {
        "name": explainer.anatomy.name,
        "classes": explainer.anatomy.classes,
        "class_names": class_names,
        "weights": weights,
    }


def method_part(explainer: Explainer, localizer: Localizer | None) -> dict:
    """How the maps are made."""
    kind = type(explainer)
    return {
        "name": {one: name for name, one in METHODS.items()}.get(kind, kind.__name__),
        "layers": [one.call.path if one.call else "input" for one in explainer.anatomy.layers],
        "unit": explainer.unit,
        "localizer": None if localizer is None else localizer.describe(),
    }


def matrix_part(matrix: np.ndarray | None, offset: np.ndarray | None) -> dict:
    """From RGB to the network's input, which the export does itself."""
    return {
        "matrix": None if matrix is None else matrix.tolist(),
        "offset": None if offset is None else offset.tolist(),
    }


def spec_part(spec: tf.TensorSpec | tf.Tensor) -> dict:
    """An input's or an output's type and shape."""
    return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}
