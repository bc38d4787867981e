"""What every export is told: a network of photos, their size, preprocessing and class names."""

import operator
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from cam_tf.localization.localizer import Localizer
from cam_tf.maps.explainer import Explainer
from cam_tf.networks.loading import luma

_PREPROCESSING_TOLERANCE = 1e-4  # of the input's range
Matrix = tuple[np.ndarray | None, np.ndarray | None]


def unwrapped(
    given: keras.Model | Explainer | Localizer, explain: Callable[[keras.Model], Explainer]
) -> tuple[Explainer, Localizer | None]:
    """What explains photos, and the localizer that it was given in, if it was.

    Args:
        given: what is to be exported.
        explain: makes the explainer of a model.

    Raises:
        ValueError: a refinement or a target, or anything but one photo at the input.
    """
    localizer = given if isinstance(given, Localizer) else None
    if localizer is not None:
        if localizer.settings.refine not in (None, "none"):
            raise ValueError(
                f"refine={localizer.settings.refine!r} does not work in a TensorFlow graph: export "
                "Localizer(..., refine='none'), and refine the maps where they are received."
            )
        given = localizer.explainer
    explainer = given if isinstance(given, Explainer) else explain(given)
    _require_photos(explainer)
    return explainer, localizer


def _require_photos(explainer: Explainer) -> None:
    """Raises a ValueError unless class scores follow from one photo."""
    parts = explainer.anatomy
    if explainer._target is not None:
        raise ValueError("an explainer with a target has no classes to answer with.")
    if len(parts.inputs) != 1:
        names = [value.symbol.name for value in parts.inputs]
        raise ValueError(
            f"{parts.name!r} takes the inputs {names}: what is exported is sent photos alone."
        )
    shape = parts.image.shape
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(
            f"{parts.name!r} takes inputs of shape {shape}, not photos (N, height, width, 3 or 1)."
        )


def image_size_of(
    explainer: Explainer, localizer: Localizer | None, given: int | Sequence[int] | None
) -> tuple[int, int]:
    """The (height, width) that the network is given: what was asked for, or its own.

    Raises:
        ValueError: no size, of a network that takes any, or one that it does not take.
    """
    own = explainer.anatomy.image.shape[1:3]
    if given is not None:
        size = (given, given) if isinstance(given, (int, np.integer)) else tuple(given)
        if len(size) != 2:
            raise ValueError(f"image_size={given}: expected a number, or (height, width).")
        size = tuple(positive(length, "image_size") for length in size)
    elif localizer is not None and localizer.image_size is not None:
        size = localizer.image_size
    elif None not in own:
        size = own
    else:
        raise ValueError(
            f"{explainer.anatomy.name!r} takes images of any size: say which one photos are "
            "resized to, image_size=224."
        )
    if any(length not in (None, wanted) for length, wanted in zip(own, size, strict=True)):
        raise ValueError(f"image_size={given}: {explainer.anatomy.name!r} takes {own} alone.")
    return size


def checked_names(given: Sequence[str] | None, classes: int) -> list[str] | None:
    """The class names as a list; a TypeError or a ValueError if they are no names for them."""
    if given is None:
        return None
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"class_names={given!r}: expected a list of strings.")
    if len(given) != classes:
        raise ValueError(f"class_names holds {len(given)} names for {classes} classes.")
    return list(given)


def positive(given: int, name: str) -> int:
    """The number of pixels; a ValueError if there is none."""
    if operator.index(given) < 1:
        raise ValueError(f"{name}={given}: expected a positive number of pixels.")
    return int(given)


def preprocessing_of(explainer: Explainer, preprocess: Callable | None) -> Matrix:
    """The matrix (3, channels) and the offset (channels,) from RGB to the network's input.

    Raises:
        ValueError: ``preprocess`` does anything else with a pixel.
    """
    channels = explainer.anatomy.image.shape[-1]
    if preprocess is None and channels == 3:
        return None, None

    def apply(pixels: np.ndarray) -> np.ndarray:
        batch = np.float32(pixels)[None]
        batch = batch if channels == 3 else luma(batch)
        return np.asarray(batch if preprocess is None else preprocess(batch), np.float64)[0]

    black, *primaries = apply(255 * np.eye(4, 3, k=-1)[:, None])[:, 0]
    matrix = (np.stack(primaries) - black) / 255
    pixels = np.random.default_rng(0).uniform(0, 255, (8, 8, 3))
    expected, found = apply(pixels), pixels @ matrix + black
    if not np.abs(found - expected).max() <= _PREPROCESSING_TOLERANCE * np.ptp(expected):
        raise ValueError(
            "preprocess is not affine in each pixel, so it cannot be saved as a matrix: put it "
            "into the model as layers, such as keras.layers.Rescaling or Normalization."
        )
    return matrix.astype(np.float32), black.astype(np.float32)


def preprocessed(images: tf.Tensor, matrix: np.ndarray | None, offset: np.ndarray | None):
    """RGB images (N, H, W, 3) as the network's input; both None: the same."""
    return images if matrix is None else tf.tensordot(images, matrix, 1) + offset
