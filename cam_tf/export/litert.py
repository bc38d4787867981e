"""A LiteRT (TensorFlow Lite) file that answers with scores and class activation maps."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from cam_tf.export.runtimes import WAY_OUT, Network, check_place, write
from cam_tf.localization.localizer import Localizer
from cam_tf.maps.explainer import Explainer

_WEIGHTS = {
    None: "float32",
    "float16": "float16, computed in float32",
    "int8": "int8 for each channel (dynamic range), activations float32",
}


def export_litert(
    model_or_explainer: keras.Model | Explainer | Localizer,
    path: str | os.PathLike,
    *,
    quantize: Literal["float16", "int8"] | None = None,
    image_size: int | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a ``.tflite`` file that answers a photo with scores and maps, for phones and boards.

    It is made of LiteRT's built-in operations, and runs wherever LiteRT does (in Python the package
    ``ai-edge-litert``). Its one signature, ``serving_default``, takes ``images``
    (1, height, width, 3) float32, RGB 0..255, one photo at a time and already of the network's
    size; it answers with ``scores`` (1, C) and ``maps`` (1, C, h, w), raw and signed at the
    resolution of the feature maps, of all classes: they cost one product of matrices.

    The weights are those of this moment. Beside the file, as ``NAME.tflite.json``, a model card
    tells people and programs what it is.

    Args:
        model_or_explainer: a classifier whose class activation maps are exact; or its ``CAM``, or a
            ``Localizer`` of one view without refinement.
        path: the file to write, which ends in ``.tflite``. It is written whole or not at all, and
            missing directories are made.
        quantize: ``"float16"``: weights of half the bytes; ``"int8"``: weights of a quarter of the
            bytes, with a scale for each channel, and activations quantized on the way where the
            runtime gains by it (dynamic range; no calibration images are needed).
        image_size: the size in pixels, or (height, width). Default: the network's own; one that
            takes any size must be told.
        class_names: a name for each class, for the card.
        preprocess: see ``export_saved_model``.
        overwrite: replace an earlier export.

    Returns:
        The path.

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: a head that is not affine, another method or several views, operations that
            LiteRT does not have, or an argument that does not fit.
        FileExistsError: the file exists, and ``overwrite`` is False.
        OSError: the place cannot be written to, or the disk is full.
    """
    if quantize not in _WEIGHTS:
        raise ValueError(f"quantize={quantize!r}: use None, 'float16' or 'int8'.")
    path = check_place(path, ".tflite", overwrite)
    network = Network.of(model_or_explainer, image_size, class_names, preprocess)
    module, function = network.traced(batch=1)
    content = _converted(module, function, quantize, network.explainer.anatomy.name)
    card = network.card(
        "a LiteRT file of cam_tf: a photo in; scores and maps of all classes out",
        _WEIGHTS[quantize],
        {"format": "litert", "quantize": quantize, "batch": 1},
        function,
    )
    write(path, content, card)
    return path


def _converted(module: tf.Module, function, quantize: str | None, name: str) -> bytes:
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [function.get_concrete_function()], module
    )
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    try:
        return converter.convert()
    except Exception as error:  # the converter's own error has no public name
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"LiteRT cannot run {name!r} ({reason}): {WAY_OUT}.") from error
