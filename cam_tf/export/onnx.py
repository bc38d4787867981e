"""An ONNX file that answers with scores and class activation maps."""

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np

from cam_tf.export.runtimes import WAY_OUT, Network, check_place, write
from cam_tf.localization.localizer import Localizer
from cam_tf.maps.explainer import Explainer

OPSET = 18  # of December 2022: known to ONNX Runtime from 1.14 on, in browsers too


def export_onnx(
    model_or_explainer: keras.Model | Explainer | Localizer,
    path: str | os.PathLike,
    *,
    image_size: int | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes an ``.onnx`` file that answers photos with scores and maps, for ONNX Runtime.

    One file, float32, of standard operations alone (opset 18), which ``onnxruntime`` runs, and
    ``onnxruntime-web`` in a browser. It takes ``images`` (N, height, width, 3) float32, RGB 0..255,
    any number of them and already of the network's size, and answers with ``scores`` (N, C) and
    ``maps`` (N, C, h, w), raw and signed at the resolution of the feature maps, of all classes:
    they cost one product of matrices.

    The weights are those of this moment. Beside the file, as ``NAME.onnx.json``, a model card tells
    people and programs what it is.

    Args:
        model_or_explainer: a classifier whose class activation maps are exact; or its ``CAM``, or a
            ``Localizer`` of one view without refinement.
        path: the file to write, which ends in ``.onnx``. It is written whole or not at all, and
            missing directories are made.
        image_size: the size in pixels, or (height, width). Default: the network's own; one that
            takes any size must be told.
        class_names: a name for each class, for the card.
        preprocess: see ``export_saved_model``.
        overwrite: replace an earlier export.

    Returns:
        The path.

    Raises:
        ImportError: tf2onnx is not installed.
        TypeError: the model has no graph that can be read.
        ValueError: a head that is not affine, another method or several views, operations that
            ONNX does not have, or an argument that does not fit.
        FileExistsError: the file exists, and ``overwrite`` is False.
        OSError: the place cannot be written to, or the disk is full.
    """
    tf2onnx = _require_tf2onnx()
    path = check_place(path, ".onnx", overwrite)
    network = Network.of(model_or_explainer, image_size, class_names, preprocess)
    module, function = network.traced(batch=None)
    try:
        model, _ = tf2onnx.convert.from_function(function, function.input_signature, opset=OPSET)
        _make_standard(model, _shapes(function))
    except Exception as error:  # of many types; an operation that stays TensorFlow's is one
        name, reason = network.explainer.anatomy.name, str(error).strip().splitlines()[0]
        raise ValueError(f"ONNX cannot express {name!r} ({reason}): {WAY_OUT}.") from error
    del module  # it held the weights
    card = network.card(
        "an ONNX file of cam_tf: photos in; scores and maps of all classes out",
        "float32",
        {"format": "onnx", "opset": OPSET, "batch": None, "tf2onnx": tf2onnx.__version__},
        function,
    )
    write(path, model.SerializeToString(), card)
    return path


def _shapes(function) -> dict[str, list[int | None]]:
    """The shapes of the inputs and outputs."""
    (images,) = function.input_signature
    outputs = function.get_concrete_function().structured_outputs
    return {name: one.shape.as_list() for name, one in {"images": images, **outputs}.items()}


def _require_tf2onnx():
    try:
        return importlib.import_module("tf2onnx")
    except ImportError as error:
        raise ImportError(
            'export_onnx needs tf2onnx, which is not installed: pip install "cam-tf[onnx]". '
            f"Or {WAY_OUT}."
        ) from error


def _make_standard(model, shapes: dict) -> None:
    """Writes the shapes, None as N, and raises an error unless all operations are the standard's.

    tf2onnx goes on where it knows no operation of ONNX, and leaves TensorFlow's.
    """
    import onnx

    for value in (*model.graph.input, *model.graph.output):
        for axis, length in zip(value.type.tensor_type.shape.dim, shapes[value.name], strict=True):
            if length is None:
                axis.dim_param = "N"
            else:
                axis.dim_value = length
    standard = [one for one in model.opset_import if one.domain in ("", "ai.onnx")]
    del model.opset_import[:]
    model.opset_import.extend(standard)
    onnx.checker.check_model(model)
