"""A SavedModel that answers with classes, maps and boxes, where only TensorFlow is installed."""

import datetime
import json
import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

import cam_tf
from cam_tf.export.directories import directory_written_whole
from cam_tf.export.serving import Serving
from cam_tf.localization.localizer import Localizer
from cam_tf.maps.cam import CAM
from cam_tf.maps.explainer import Explainer
from cam_tf.maps.gradients import GradCAM
from cam_tf.maps.methods import METHODS
from cam_tf.networks.anatomy import Layer, dissect
from cam_tf.networks.loading import Classifier

CARD = "model_card.json"
MAX_PIXELS = 2**25  # 33.5 megapixels, 96 MiB as RGB
_DEFAULT_TOP_K = 5
_PREPROCESSING_TOLERANCE = 1e-4  # of the input's range


def export_saved_model(
    model_or_explainer: keras.Model | Explainer | Localizer,
    path: str | os.PathLike,
    *,
    top_k: int | None = None,
    image_size: int | Sequence[int] | None = None,
    threshold: float = 0.2,
    class_names: Sequence[str] | None = None,
    maps: Literal["raw", "heatmap"] = "raw",
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    max_pixels: int = MAX_PIXELS,
    frozen: bool = True,
    overwrite: bool = False,
) -> Path:
    """Writes a SavedModel that answers photos with classes, scores, maps and boxes.

    It is made of TensorFlow's own operations: where it is loaded, neither cam_tf nor Keras is
    needed. Photos are RGB, 0..255, of any size; the warp to the network's size is inside
    (bilinear, antialiased, as ``cam_tf.resize_image``). Signatures:

    - ``serving_default``: ``images`` (N, H, W, 3) float32. A signature has one type of numbers, and
      JSON knows no other than these; the same for uint8, a quarter of the bytes, is
      ``serving_uint8``.
    - ``serving_bytes``: ``image_bytes`` (N,), JPEG or PNG files, of different sizes if need be; in
      JSON ``{"b64": ...}``. EXIF orientation (of JPEG) is applied, transparency becomes white.
    - ``given_classes``, ``given_classes_uint8``, ``given_classes_bytes``: the same, and
      ``class_ids`` (N, n) int32, the classes to explain in place of the predicted ones.

    Each answers with ``class_ids`` (N, n) int32, ``scores`` (N, n), ``maps`` (N, n, h, w),
    ``boxes`` (N, n, 4), relative ``[ymin, xmin, ymax, xmax]`` of the largest component, and
    ``class_names`` (N, n) if they are known; n is top_k, best first, or the number of given ids.
    What cannot be answered is an InvalidArgument error: a batch of 0, NaN, ids out of range, and
    files that are empty, too large or of another format (which of the batch, it says too) or that
    the decoder finds damaged.

    ``model_card.json`` in the directory tells people and programs what it is.

    Args:
        model_or_explainer: a classifier, explained by ``CAM`` if that is exact and by ``GradCAM``
            if not; or any explainer of one image input; or a ``Localizer`` without refinement.
        path: the directory to write, for TensorFlow Serving one that ends in a version number. It
            is written whole or not at all.
        top_k: how many of the predicted classes are explained. Default: 5, or all where there are
            fewer.
        image_size: the size in pixels, or (height, width), that photos are resized to. Default: the
            network's own; one that takes any size must be told.
        threshold: the boxes' share of the map's maximum.
        class_names: a name for each class.
        maps: ``"raw"``: signed, at the resolution of the feature maps; ``"heatmap"``: in [0, 1], at
            the image size, (N, n, height, width), as of ``cam_tf.heatmaps``.
        preprocess: for a network that was not trained on RGB 0..255: the function from such images
            to its input, as ``keras.applications.*.preprocess_input``. It must be affine in each
            pixel, and is saved as a matrix.
        max_pixels: photos of more pixels are refused, files before they are decoded.
        frozen: save weights as constants, with batch normalisation folded into convolutions when it
            is loaded, which is faster. Else as variables.
        overwrite: replace an earlier export.

    Returns:
        The path.

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: a model without feature maps or with several inputs, a ``target``, a refinement,
            or an argument that does not fit.
        FileExistsError: the path exists, and ``overwrite`` is False or it holds something else.
        OSError: the place cannot be written to, or the disk is full.
    """
    explainer, localizer = _explainer(model_or_explainer)
    matrix, offset = _preprocessing(explainer, preprocess)
    serving = Serving(
        explainer=explainer,
        size=_size(explainer, localizer, image_size),
        top_k=_top_k(top_k, explainer.anatomy.classes),
        threshold=float(threshold),
        maps=_maps(maps),
        class_names=_names(class_names, explainer.anatomy.classes),
        matrix=matrix,
        offset=offset,
        max_pixels=_positive(max_pixels, "max_pixels"),
        frozen=bool(frozen),
    )
    with directory_written_whole(path, overwrite=overwrite, marker="saved_model.pb") as directory:
        module, signatures = serving.module()
        try:
            tf.saved_model.save(module, str(directory), signatures=signatures)
            card = json.dumps(_card(serving, localizer, signatures), indent=2)
            (directory / CARD).write_text(card + "\n", encoding="utf-8")
        except (tf.errors.OpError, OSError) as error:
            raise OSError(
                f"cannot write {path}: {str(error).splitlines()[0]}. Is the disk full?"
            ) from error
    return Path(path)


def explainer_for(model: keras.Model, layer: Layer | None = None) -> Explainer:
    """The explainer that a classifier is exported with: CAM where it is exact, else Grad-CAM."""
    return (CAM if dissect(model, layer).affine else GradCAM)(model, layer)


def _explainer(given) -> tuple[Explainer, Localizer | None]:
    localizer = given if isinstance(given, Localizer) else None
    if localizer is not None:
        if localizer.settings.refine not in (None, "none"):
            raise ValueError(
                f"refine={localizer.settings.refine!r} does not work in a TensorFlow graph: export "
                "Localizer(..., refine='none'), and refine the maps where they are received."
            )
        given = localizer.explainer
    explainer = given if isinstance(given, Explainer) else explainer_for(given)
    parts = explainer.anatomy
    if explainer._target is not None:
        raise ValueError("an explainer with a target has no classes to answer with.")
    if len(parts.inputs) != 1:
        names = [value.symbol.name for value in parts.inputs]
        raise ValueError(f"{parts.name!r} takes the inputs {names}: a server is sent photos alone.")
    shape = parts.image.shape
    if len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(
            f"{parts.name!r} takes inputs of shape {shape}, not photos (N, height, width, 3 or 1)."
        )
    return explainer, localizer


def _size(explainer, localizer, given) -> tuple[int, int]:
    own = explainer.anatomy.image.shape[1:3]
    if given is not None:
        size = (given, given) if isinstance(given, (int, np.integer)) else tuple(given)
        if len(size) != 2:
            raise ValueError(f"image_size={given}: expected a number, or (height, width).")
        size = tuple(_positive(length, "image_size") for length in size)
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


def _top_k(given: int | None, classes: int) -> int:
    if given is None:
        return min(_DEFAULT_TOP_K, classes)
    if not 1 <= operator.index(given) <= classes:
        raise ValueError(f"top_k={given} is not between 1 and {classes} classes.")
    return int(given)


def _maps(given: str) -> str:
    if given not in ("raw", "heatmap"):
        raise ValueError(f"maps={given!r}: use 'raw' or 'heatmap'.")
    return given


def _names(given: Sequence[str] | None, classes: int) -> list[str] | None:
    if given is None:
        return None
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"class_names={given!r}: expected a list of strings.")
    if len(given) != classes:
        raise ValueError(f"class_names holds {len(given)} names for {classes} classes.")
    return list(given)


def _positive(given: int, name: str) -> int:
    if operator.index(given) < 1:
        raise ValueError(f"{name}={given}: expected a positive number of pixels.")
    return int(given)


def _preprocessing(explainer, preprocess) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The matrix (3, channels) and the offset (channels,) from RGB to the network's input.

    Raises:
        ValueError: ``preprocess`` does anything else with a pixel.
    """
    channels = explainer.anatomy.image.shape[-1]
    if preprocess is None and channels == 3:
        return None, None

    def apply(pixels: np.ndarray) -> np.ndarray:
        classifier = Classifier("", None, pixels.shape[:2], channels, preprocess)
        return np.asarray(classifier.images([pixels])[0], np.float64)

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


def _card(serving: Serving, localizer: Localizer | None, signatures) -> dict:
    """What the export is, in plain data."""
    explainer, parts = serving.explainer, serving.explainer.anatomy
    kind = type(explainer)
    return {
        "about": "a SavedModel of cam_tf: photos in; classes, scores, maps and boxes out",
        "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "versions": {
            "cam_tf": cam_tf.__version__,
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "model": {
            "name": parts.name,
            "classes": parts.classes,
            "class_names": serving.class_names,
            "weights": "constants" if serving.frozen else "variables",
        },
        "method": {
            "name": {one: name for name, one in METHODS.items()}.get(kind, kind.__name__),
            "layers": [value.call.path if value.call else "input" for value in parts.layers],
            "unit": explainer.unit,
            "localizer": None if localizer is None else localizer.describe(),
        },
        "preprocessing": {
            "images": "RGB, 0..255, (N, height, width, 3), any size",
            "files": "JPEG (EXIF orientation applied) and PNG (transparency becomes white)",
            "max_pixels": serving.max_pixels,
            "resized_to": list(serving.size),
            "resizing": "bilinear, antialiased, aspect ratio not kept",
            "matrix": None if serving.matrix is None else serving.matrix.tolist(),
            "offset": None if serving.offset is None else serving.offset.tolist(),
        },
        "answer": {
            "top_k": serving.top_k,
            "maps": serving.maps,
            "box_threshold": serving.threshold,
            "boxes": "[ymin, xmin, ymax, xmax] relative to the image; zeros: no evidence",
        },
        "signatures": {name: _written_signature(one) for name, one in signatures.items()},
    }


def _written_signature(function) -> dict:
    def written(spec):
        return {"dtype": spec.dtype.name, "shape": spec.shape.as_list()}

    inputs = function.structured_input_signature[0]
    outputs = function.structured_outputs
    return {
        "inputs": {spec.name: written(spec) for spec in inputs},
        "outputs": {name: written(spec) for name, spec in outputs.items()},
    }
