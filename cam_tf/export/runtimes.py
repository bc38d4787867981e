"""What LiteRT and ONNX exports share: the network to convert, its model card, and the files."""

import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cam_tf.export.arguments import (
    checked_names,
    image_size_of,
    preprocessed,
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
from cam_tf.export.serving import check_bytes
from cam_tf.files import written_whole
from cam_tf.localization.localizer import Localizer
from cam_tf.maps.cam import CAM
from cam_tf.maps.explainer import Explainer
from cam_tf.networks.anatomy import Layer

WAY_OUT = "export it as a SavedModel, with cam_tf.export_saved_model"


@dataclass(frozen=True)
class Network:
    """A network that answers photos of one size with scores and class activation maps.

    Attributes:
        explainer: the ``CAM`` of the network.
        localizer: what it was given in, or None.
        size: (height, width) of the photos.
        class_names: or None.
        matrix, offset: see ``preprocessing_of``.
    """

    explainer: CAM
    localizer: Localizer | None
    size: tuple[int, int]
    class_names: Sequence[str] | None
    matrix: np.ndarray | None
    offset: np.ndarray | None

    @classmethod
    def of(
        cls,
        given: keras.Model | Explainer | Localizer,
        image_size: int | Sequence[int] | None,
        class_names: Sequence[str] | None,
        preprocess: Callable | None,
    ) -> "Network":
        """Checks the arguments of an export.

        Raises:
            TypeError: the model has no graph that can be read, or names that are none.
            ValueError: no plain CAM, or an argument that does not fit.
        """
        explainer, localizer = unwrapped(given, exact_cam)
        if type(explainer) is not CAM:
            raise ValueError(
                f"{type(explainer).__name__} cannot be exported to this format: only CAM makes its "
                f"maps in the forward pass. Export cam_tf.CAM(model), or {WAY_OUT}."
            )
        if explainer._views != [(1.0, False)]:
            raise ValueError(
                "scales and flip cannot be exported to this format, in which an image is seen "
                f"once: export cam_tf.CAM(model) without them, or {WAY_OUT}."
            )
        return cls(
            explainer,
            localizer,
            image_size_of(explainer, localizer, image_size),
            checked_names(class_names, explainer.anatomy.classes),
            *preprocessing_of(explainer, preprocess),
        )

    def traced(
        self, batch: int | None
    ) -> tuple[tf.Module, tf.types.experimental.PolymorphicFunction]:
        """Returns what holds the weights, and the function from ``images`` to the answer.

        Args:
            batch: the number of images, or None for any.

        Raises:
            ValueError: the network is too large for one file.
        """
        module = tf.Module()
        dense = self.explainer.anatomy.dense is not None
        # Without one dense layer the kernel takes a differentiation: done once, here.
        constant = None if dense else self.explainer.anatomy.kernel().numpy()
        module.answer = tf.function(
            functools.partial(self._answer, constant),
            input_signature=[tf.TensorSpec([batch, *self.size, 3], tf.float32, "images")],
            autograph=False,
        )
        module.weights = list(module.answer.get_concrete_function().variables)
        check_bytes(module.weights, "export a SavedModel of variables, with frozen=False")
        return module, module.answer

    def _answer(self, kernel: np.ndarray | None, images) -> dict[str, tf.Tensor]:
        explainer, parts = self.explainer, self.explainer.anatomy
        images = preprocessed(images, self.matrix, self.offset)
        inputs = explainer._with_image([tf.zeros([], parts.image.symbol.dtype)], images)
        (feature_maps,), _, scores = explainer._forward(inputs)
        # A product of matrices: converters know it, and no einsum with an ellipsis. They keep one
        # copy of the dense layer's weights for it and for the layer.
        maps = tf.matmul(feature_maps, parts.kernel() if kernel is None else kernel)
        return {"scores": scores, "maps": tf.transpose(maps, [0, 3, 1, 2])}

    def card(self, about: str, weights: str, runtime: dict, function) -> dict:
        """What the file is, in plain data."""
        height, width = self.size
        concrete = function.get_concrete_function()
        (images,) = concrete.structured_input_signature[0]
        outputs = concrete.structured_outputs
        return {
            **beginning(about),
            "runtime": runtime,
            "model": model_part(self.explainer, self.class_names, weights),
            "method": method_part(self.explainer, self.localizer),
            "preprocessing": {
                "images": f"RGB, 0..255, (N, {height}, {width}, 3), resized before they are given",
                "resized_to": [height, width],
                "resizing": RESIZING,
                **matrix_part(self.matrix, self.offset),
            },
            "answer": {
                "scores": "of every class, as the model gives them",
                "maps": "of every class: raw and signed, rows from the top, stretched over the "
                "whole image; the map of a class has its largest values where its evidence is",
            },
            "inputs": {"images": spec_part(images)},
            "outputs": {name: spec_part(one) for name, one in outputs.items()},
        }


def exact_cam(model: keras.Model, layer: Layer | None = None) -> CAM:
    """The class activation maps of a model; a ValueError that names the way out if it has none."""
    try:
        return CAM(model, layer)
    except ValueError as error:
        raise ValueError(f"{error} For serving such a model, {WAY_OUT}.") from error


def card_path(path: Path) -> Path:
    """Where the model card of a file is: ``lite0.onnx`` has ``lite0.onnx.json``."""
    return path.with_name(f"{path.name}.json")


def check_place(path: str | os.PathLike, suffix: str, overwrite: bool) -> Path:
    """Finds out before the work whether the files can be written, and returns the path.

    Raises:
        ValueError: another suffix, so that a mistaken path does not cost other data.
        FileExistsError: there is such a file and ``overwrite`` is False, or it is a directory.
        OSError: the place cannot be written to.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise ValueError(f"{path}: name a file that ends in {suffix}, such as model{suffix}.")
    for one in (path, card_path(path)):
        if one.is_dir():
            raise FileExistsError(f"{one} is a directory: name another file.")
        if one.exists() and not overwrite:
            raise FileExistsError(
                f"{one} exists: name another file, or replace it with overwrite=True."
            )
    ground = next(one for one in path.absolute().parents if one.exists())
    try:
        with tempfile.TemporaryFile(dir=ground):
            return path
    except OSError as error:
        raise _cannot_write(path, error) from error


def write(path: Path, content: bytes, card: dict) -> None:
    """Writes the model and its card, both whole or neither.

    Raises:
        OSError: the place cannot be written to, or the disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(card_path(path)) as described, written_whole(path) as model:
            described.write(written_card(card))
            described.flush()  # both are on the disk before the first of them takes its name
            model.write(content)
    except OSError as error:
        raise _cannot_write(path, error) from error


def _cannot_write(path: Path, error: OSError) -> OSError:
    return OSError(f"cannot write {path} ({error.strerror}): name another file.")
