"""cam_tf: class activation maps for Keras 3 on TensorFlow.

Everything public is listed here and is imported when it is first used, so that ``import cam_tf``
costs nothing and the command line can quieten TensorFlow before it starts.
"""

import importlib
import json
import os
import sys
from pathlib import Path

_PUBLIC = {
    "cam_tf.networks.anatomy": ["Anatomy", "dissect"],
    "cam_tf.networks.applications": ["list_backbones"],
    "cam_tf.networks.classifier": ["UntrainedHeadWarning", "build_classifier", "cam_model"],
    "cam_tf.networks.stride": ["with_output_stride"],
    "cam_tf.networks.efficientnet_lite": [
        "EfficientNetLite0",
        "EfficientNetLite1",
        "EfficientNetLite2",
    ],
    "cam_tf.networks.checkpoints": ["CheckpointError", "read_torch_checkpoint"],
    "cam_tf.maps.baselines": ["CenterGaussian", "RandomMap"],
    "cam_tf.maps.cam": ["CAM", "class_activation_maps"],
    "cam_tf.maps.diagnosis": ["Diagnosis"],
    "cam_tf.maps.decompositions": ["EigenCAM"],
    "cam_tf.maps.explanation": ["Explanation"],
    "cam_tf.maps.gradients": [
        "GradCAM",
        "GradCAMPlusPlus",
        "HiResCAM",
        "LayerCAM",
        "SmoothGradCAMPlusPlus",
        "XGradCAM",
    ],
    "cam_tf.maps.perturbations": ["AblationCAM", "ISCAM", "SSCAM", "ScoreCAM"],
    "cam_tf.maps.prototypes": ["PrototypeCAM"],
    "cam_tf.maps.heatmaps": ["BlankMapWarning", "heatmaps"],
    "cam_tf.localization.boxes": ["Boxes", "boxes", "boxes_in_graph", "masks"],
    "cam_tf.localization.evaluation": ["evaluate"],
    "cam_tf.localization.evaluation_files": ["merge_evaluations"],
    "cam_tf.localization.evaluation_result": ["Evaluation"],
    "cam_tf.localization.localizer": ["Localizer"],
    "cam_tf.localization.refinement": ["refine"],
    "cam_tf.datasets.images": [
        "ImageError",
        "demo_photos",
        "find_images",
        "load_image",
        "resize_image",
    ],
    "cam_tf.datasets.localization": ["csv_examples", "wsol_examples", "xml_examples"],
    "cam_tf.datasets.tfds": ["tfds_examples"],
    "cam_tf.datasets.augmentation": ["Augmentation"],
    "cam_tf.datasets.training": ["training_data"],
    "cam_tf.datasets.imagenet": ["class_id", "imagenet_classes", "read_class_names"],
    "cam_tf.export.litert": ["export_litert"],
    "cam_tf.export.onnx": ["export_onnx"],
    "cam_tf.export.saved_model": ["export_saved_model"],
    "cam_tf.export.web": ["export_web"],
    "cam_tf.display.figures": ["plot"],
    "cam_tf.display.overlays": ["overlay"],
    "cam_tf.display.report": ["ReportCase", "write_report"],
    "cam_tf.display.sheets": ["Case", "case_sheet", "evaluation_sheet"],
}
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def _chosen_backend() -> str:
    """The backend that Keras has, or will choose when it is imported."""
    if "keras" in sys.modules:
        return sys.modules["keras"].config.backend()
    if os.environ.get("KERAS_BACKEND"):
        return os.environ["KERAS_BACKEND"]
    home = Path(os.environ.get("KERAS_HOME", Path.home() / ".keras"))
    try:
        return json.loads((home / "keras.json").read_text()).get("backend", "tensorflow")
    except (OSError, ValueError):
        return "tensorflow"


def _require_tensorflow_backend() -> None:
    """Keras chooses its backend once, when it is imported: say so while it can still be mended."""
    backend = _chosen_backend()
    if backend != "tensorflow":
        raise ImportError(
            f"cam_tf needs the TensorFlow backend of Keras, but the backend is {backend!r}. Set "
            "KERAS_BACKEND=tensorflow in the environment before Python imports keras."
        )


_require_tensorflow_backend()


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'cam_tf' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
