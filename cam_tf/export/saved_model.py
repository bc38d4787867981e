"""A SavedModel that answers with classes, maps and boxes, where only TensorFlow is installed."""

import operator
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from cam_tf.export.arguments import (
    checked_names,
    image_size_of,
    positive,
    preprocessing_of,
    unwrapped,
)
from cam_tf.export.cards import (
    RESIZING,
    beginning,
    matrix_part,
    method_part,
    model_part,
    spec_part,
    written_card,
)
from cam_tf.export.directories import directory_written_whole
from cam_tf.export.serving import Serving
from cam_tf.localization.localizer import Localizer
from cam_tf.maps.cam import CAM
from cam_tf.maps.explainer import Explainer
from cam_tf.maps.gradients import GradCAM
from cam_tf.networks.anatomy import Layer, dissect

CARD = "model_card.json"
MAX_PIXELS = 2**25  # 33.5 megapixels, 96 MiB as RGB
_DEFAULT_TOP_K = 5


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
    explainer, localizer = unwrapped(model_or_explainer, explainer_for)
    matrix, offset = preprocessing_of(explainer, preprocess)
    serving = Serving(
        explainer=explainer,
        size=image_size_of(explainer, localizer, image_size),
        top_k=_top_k(top_k, explainer.anatomy.classes),
        threshold=float(threshold),
        maps=_maps(maps),
        class_names=checked_names(class_names, explainer.anatomy.classes),
        matrix=matrix,
        offset=offset,
        max_pixels=positive(max_pixels, "max_pixels"),
        frozen=bool(frozen),
    )
    with directory_written_whole(path, overwrite=overwrite, marker="saved_model.pb") as directory:
        module, signatures = serving.module()
        try:
            tf.saved_model.save(module, str(directory), signatures=signatures)
            card = written_card(_card(serving, localizer, signatures))
            (directory / CARD).write_bytes(card)
        except (tf.errors.OpError, OSError) as error:
            raise OSError(
                f"cannot write {path}: {str(error).splitlines()[0]}. Is the disk full?"
            ) from error
    return Path(path)


def explainer_for(model: keras.Model, layer: Layer | None = None) -> Explainer:
    """The explainer that a classifier is exported with: CAM where it is exact, else Grad-CAM."""
    return (CAM if dissect(model, layer).affine else GradCAM)(model, layer)


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


def _card(serving: Serving, localizer: Localizer | None, signatures) -> dict:
    """What the export is, in plain data."""
    explainer = serving.explainer
    return {
        **beginning("a SavedModel of cam_tf: photos in; classes, scores, maps and boxes out"),
        "model": model_part(
            explainer, serving.class_names, "constants" if serving.frozen else "variables"
        ),
        "method": method_part(explainer, localizer),
        "preprocessing": {
            "images": "RGB, 0..255, (N, height, width, 3), any size",
            "files": "JPEG (EXIF orientation applied) and PNG (transparency becomes white)",
            "max_pixels": serving.max_pixels,
            "resized_to": list(serving.size),
            "resizing": RESIZING,
            **matrix_part(serving.matrix, serving.offset),
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
    inputs = function.structured_input_signature[0]
    outputs = function.structured_outputs
    return {
        "inputs": {spec.name: spec_part(spec) for spec in inputs},
        "outputs": {name: spec_part(spec) for name, spec in outputs.items()},
    }
