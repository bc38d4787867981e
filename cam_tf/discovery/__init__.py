"""What the features of a CAM network can do besides: other tasks, concepts, and single units."""

import importlib

_PUBLIC = {
    "cam_tf.discovery.features": ["PooledFeatures"],
    "cam_tf.discovery.contributions": ["Contributions", "UnitContributions"],
    "cam_tf.discovery.linear": [
        "Accuracy",
        "LinearHead",
        "attach",
        "fit_linear",
        "linear_accuracy",
    ],
    "cam_tf.discovery.receptive_fields": [
        "OcclusionField",
        "ReceptiveField",
        "empirical_receptive_field",
        "receptive_field",
    ],
    "cam_tf.discovery.units": [
        "TopActivations",
        "class_units",
        "contributing_units",
        "top_activations",
    ],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'cam_tf.discovery' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value
