"""From what a user names, a backbone or a model file, to a classifier and the input it takes."""

import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from cam_tf.datasets.images import resize_image
from cam_tf.networks import stride  # noqa: F401 - registers the layers of dense models
from cam_tf.networks.applications import BACKBONES, find_backbone, find_preprocessing
from cam_tf.networks.classifier import UntrainedHeadWarning, build_classifier

_MODEL_FILES = (".keras", ".h5", ".hdf5")
_DEFAULT_SIZE = 224  # of models that take any
_LUMA = np.float32([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow converts to gray


@dataclass(frozen=True)
class Classifier:
    """A classifier of photos and how photos become its input.

    Attributes:
        name: the backbone's, or the file's.
        model: the Keras model.
        size: (height, width) that photos are resized to.
        channels: 3, or 1 for a model of gray images.
        preprocess: from RGB 0..255 (N, H, W, channels) to what the model was trained on.
        is_imagenet: whether the classes are known to be ImageNet's.
        path: the file that it was loaded from.
    """

    name: str
    model: keras.Model
    size: tuple[int, int]
    channels: int = 3
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None
    is_imagenet: bool = False
    path: Path | None = None

    def images(self, photos: Sequence[np.ndarray]) -> np.ndarray:
        """Turns photos (H, W, 3), RGB 0..255, into a batch (N, height, width, channels)."""
        batch = np.stack([resize_image(photo, self.size) for photo in photos])
        if self.channels == 1:
            batch = luma(batch)
            if "int" in self.model.inputs[0].dtype and self.preprocess is None:
                batch = np.rint(batch)  # a cast would cut off, and an explainer refuses fractions
        return batch if self.preprocess is None else self.preprocess(batch)


def luma(images: np.ndarray) -> np.ndarray:
    """Gray images (N, H, W, 1) of RGB ones (N, H, W, 3)."""
    return (images @ _LUMA)[..., None]


def load_classifier(
    model: str,
    weights: Path | None = None,
    preprocess: str | None = None,
    input_shape: Sequence[int | None] | None = None,
) -> Classifier:
    """Builds a pretrained backbone, or loads a Keras model file in safe mode.

    Args:
        model: a backbone's name, or the path of a ``.keras`` or ``.h5`` file.
        weights: a weights file for a backbone, in place of its ImageNet weights.
        preprocess: what a model file was trained on, see ``find_preprocessing``; default: RGB
            0..255.
        input_shape: of a backbone, see ``build_classifier``; a model file keeps its own.

    Raises:
        ValueError: unknown names, a file that cannot be loaded or takes no photos, or a backbone
            that has no pretrained classifier.
        FileNotFoundError: there is no such file.
    """
    path = Path(model)
    is_file = path.suffix.lower() in _MODEL_FILES or path.exists()
    if model.lower() in map(str.lower, BACKBONES) or not is_file:
        if preprocess is not None:
            raise ValueError(f"{model} has its preprocessing inside: leave --preprocess out.")
        return _load_backbone(model, weights, input_shape)
    if weights is not None:
        raise ValueError(f"weights belong to a backbone's name; {path} has its own.")
    return _load_file(path, None if preprocess is None else find_preprocessing(preprocess))


def _load_backbone(name: str, weights: Path | None, input_shape) -> Classifier:
    row = find_backbone(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedHeadWarning)
        try:
            model = build_classifier(
                row.name, weights=weights or "imagenet", input_shape=input_shape
            )
        except UntrainedHeadWarning as warning:
            raise ValueError(
                f"{warning} 'cam-tf backbones' shows which networks come with a classifier; a "
                "trained model is given as a .keras file."
            ) from warning
    return Classifier(row.name, model, model.input_shape[1:3], is_imagenet=True)


def _load_file(path: Path, preprocess: Callable | None) -> Classifier:
    model = load_keras_file(path)
    shapes = [tuple(tensor.shape[1:]) for tensor in getattr(model, "inputs", None) or []]
    if len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][2] not in (1, 3):
        raise ValueError(
            f"{path} takes inputs of shape {shapes}, not photos (height, width, 3 or 1). Explain "
            "such a model in Python: cam_tf.CAM(model)(inputs)."
        )
    height, width, channels = shapes[0]
    size = (height or _DEFAULT_SIZE, width or _DEFAULT_SIZE)
    return Classifier(path.name, model, size, channels, preprocess, path=path)


def load_keras_file(path: Path) -> keras.Model:
    """Loads a Keras model file in safe mode, with errors that say what is wrong with the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: not a Keras model, damaged, or with code that safe mode refuses.
    """
    if not path.exists():
        raise FileNotFoundError(f"there is no model file {path}.")
    if path.suffix.lower() not in _MODEL_FILES or path.is_dir():
        raise ValueError(
            f"{path} is not a Keras model: expected a .keras or .h5 file. A TFLite, ONNX or "
            "SavedModel export cannot be taken apart: give the Keras model that it was made from."
        )
    if path.suffix.lower() == ".keras" and not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged, or no .keras file: save or fetch it again.")
    try:
        return keras.models.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises whatever it meets
        reason = str(error).strip().splitlines()[0][:200]
        if "Lambda" in str(error) or "unsafe" in str(error):
            reason = (
                "it has a Lambda layer, and loading one runs code that the file brings. Replace it "
                "by a layer or by keras.ops; if you trust the file, load it in Python with "
                "safe_mode=False and call cam_tf.CAM(model)"
            )
        raise ValueError(
            f"{path} could not be loaded: {reason}. A model with layers of its own is loaded in "
            "Python, where they are defined, and explained with cam_tf.CAM(model)."
        ) from error
