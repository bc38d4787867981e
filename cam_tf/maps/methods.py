"""The methods by name, for the command line and for tables."""

from cam_tf.maps.baselines import CenterGaussian, RandomMap
from cam_tf.maps.cam import CAM
from cam_tf.maps.decompositions import EigenCAM
from cam_tf.maps.explainer import Explainer
from cam_tf.maps.gradients import (
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    SmoothGradCAMPlusPlus,
    XGradCAM,
)
from cam_tf.maps.perturbations import ISCAM, SSCAM, AblationCAM, ScoreCAM
from cam_tf.maps.prototypes import PrototypeCAM
from cam_tf.suggestions import did_you_mean

METHODS: dict[str, type[Explainer]] = {
    "cam": CAM,
    "prototypecam": PrototypeCAM,
    "gradcam": GradCAM,
    "gradcam++": GradCAMPlusPlus,
    "smoothgradcam++": SmoothGradCAMPlusPlus,
    "xgradcam": XGradCAM,
    "hirescam": HiResCAM,
    "layercam": LayerCAM,
    "scorecam": ScoreCAM,
    "sscam": SSCAM,
    "iscam": ISCAM,
    "ablationcam": AblationCAM,
    "eigencam": EigenCAM,
    "centergaussian": CenterGaussian,
    "randommap": RandomMap,
}


def find_method(name: str) -> type[Explainer]:
    """Returns the method of that name; case, hyphens and "PlusPlus" for "++" do not matter.

    Raises:
        ValueError: there is none; the nearest names are suggested.
    """
    plain = name.lower().replace("-", "").replace("_", "").replace("plusplus", "++")
    if plain not in METHODS:
        raise ValueError(
            f"method {name!r} is unknown.{did_you_mean(plain, METHODS)} There are: "
            f"{', '.join(METHODS)}."
        )
    return METHODS[plain]
