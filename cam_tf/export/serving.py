"""The calls that a server answers with: photos or files in, classes with maps and boxes out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from cam_tf.export.arguments import preprocessed
from cam_tf.export.photos import decoded, require, resized
from cam_tf.localization.boxes import boxes_in_graph
from cam_tf.maps.explainer import Explainer
from cam_tf.maps.heatmaps import heatmaps

_MAX_CONSTANTS = 1_900_000_000  # bytes: a graph is one protocol buffer, which ends at 2 GiB


@dataclass(frozen=True)
class Serving:
    """What a server is to answer with; see ``cam_tf.export_saved_model``.

    Attributes:
        explainer: what makes the maps.
        size: (height, width) that photos are resized to.
        top_k: how many predicted classes are explained.
        threshold: of the boxes.
        maps: "raw" or "heatmap".
        class_names: or None.
        matrix, offset: from RGB (N, H, W, 3) to the network's input, images @ matrix + offset; or
            None, where the network takes RGB.
        max_pixels: the largest photo that is taken.
        frozen: whether weights become constants.
    """

    explainer: Explainer
    size: tuple[int, int]
    top_k: int
    threshold: float
    maps: str
    class_names: Sequence[str] | None
    matrix: np.ndarray | None
    offset: np.ndarray | None
    max_pixels: int
    frozen: bool

    def module(self) -> tuple[tf.Module, dict[str, tf.types.experimental.ConcreteFunction]]:
        """Traces everything: a module to save, and its signatures by name.

        All signatures call one function with the network inside, so its weights are saved once.

        Raises:
            ValueError: the network is too large for constants.
        """
        module = tf.Module()
        core = tf.function(
            self._explain,
            input_signature=[
                tf.TensorSpec([None, *self.size, 3], tf.float32),
                tf.TensorSpec([None, None], tf.int32),
                tf.TensorSpec([], tf.int32),
            ],
            autograph=False,
        )
        core = core.get_concrete_function()
        if self.frozen:
            check_bytes(core.variables, "export them as variables, with frozen=False")
            core = _frozen(core)
        else:
            module.weights = list(core.variables)
        signatures = {}
        for kind, (spec, prepare) in self._inputs().items():
            predicted, given = self._answers(core, spec, prepare)
            signatures[f"serving_{kind}"] = predicted.get_concrete_function()
            suffix = "" if kind == "default" else f"_{kind}"
            signatures[f"given_classes{suffix}"] = given.get_concrete_function()
        return module, signatures

    def _explain(self, images, class_ids, top_k) -> dict[str, tf.Tensor]:
        """From RGB images of the network's size to what is answered."""
        images = preprocessed(images, self.matrix, self.offset)
        explainer = self.explainer
        expected = explainer.anatomy.image.symbol.dtype
        inputs = explainer._with_image([tf.zeros([], expected)], images)
        found = explainer._explain(inputs, class_ids, top_k)
        answer = {name: found[name] for name in ("class_ids", "scores", "maps")}
        answer["boxes"] = boxes_in_graph(found["maps"], self.threshold, size=self.size)
        if self.maps == "heatmap":
            answer["maps"] = heatmaps(found["maps"], self.size)
        return answer

    def _inputs(self) -> dict[str, tuple[tf.TensorSpec, Callable]]:
        """The ways to send photos: what is sent, and the function to images of the model's size."""

        def images(dtype):
            return tf.TensorSpec([None, None, None, 3], dtype, "images")

        return {
            "default": (images(tf.float32), self._resized),
            "uint8": (images(tf.uint8), self._resized),
            "bytes": (tf.TensorSpec([None], tf.string, "image_bytes"), self._decoded),
        }

    def _resized(self, images) -> tf.Tensor:
        count, height, width = tf.unstack(tf.shape(images, tf.int64)[:3])
        pixels = height * width
        checks = [
            require(count > 0, _NO_IMAGE),
            require(
                (pixels > 0) & (pixels <= self.max_pixels),
                *("the images have ", width, " x ", height, " = ", pixels),
                f" pixels: this server takes 1 to {self.max_pixels}.",
            ),
        ]
        with tf.control_dependencies(checks):
            images = tf.identity(images)
        if images.dtype.is_floating:
            images = tf.debugging.check_numerics(images, "the images hold NaN or infinity")
        return tf.ensure_shape(resized(images, self.size), [None, *self.size, 3])

    def _decoded(self, encoded) -> tf.Tensor:
        with tf.control_dependencies([require(tf.size(encoded) > 0, _NO_IMAGE)]):
            encoded = tf.identity(encoded)
        return decoded(encoded, self.size, self.max_pixels)

    def _answers(self, core: Callable, spec: tf.TensorSpec, prepare: Callable) -> tuple:
        """The functions that explain the predicted classes, and given ones."""
        prepare = tf.function(prepare, input_signature=[spec], autograph=False)

        @tf.function(input_signature=[spec], autograph=False)
        def predicted(photos):
            images = prepare(photos)
            none = tf.zeros([tf.shape(images)[0], 0], tf.int32)
            return self._named(core(images, none, tf.constant(self.top_k)))

        ids = tf.TensorSpec([None, None], tf.int32, "class_ids")

        @tf.function(input_signature=[spec, ids], autograph=False)
        def given(photos, class_ids):
            with tf.control_dependencies(self._check_ids(class_ids, tf.shape(photos)[0])):
                images, class_ids = prepare(tf.identity(photos)), tf.identity(class_ids)
            return self._named(core(images, class_ids, tf.constant(0)))

        return predicted, given

    def _check_ids(self, class_ids, count) -> list[tf.Operation]:
        rows, columns = tf.unstack(tf.shape(class_ids))
        classes = self.explainer.anatomy.classes
        known = (class_ids >= 0) & (class_ids < classes)
        first = tf.concat([tf.boolean_mask(class_ids, ~known), [0]], axis=0)[0]
        last = f" is out of range: the network has {classes} classes, 0 to {classes - 1}."
        return [
            require(rows == count, "class_ids has ", rows, " rows for ", count, " images."),
            require(columns > 0, "class_ids names no class: each image needs at least one."),
            require(tf.reduce_all(known), "class id ", first, last),
        ]

    def _named(self, found: dict) -> dict[str, tf.Tensor]:
        if self.class_names is None:
            return found
        return {
            **found,
            "class_names": tf.gather(tf.constant(self.class_names), found["class_ids"]),
        }


_NO_IMAGE = "the batch holds no image (N = 0): send at least one."


def _frozen(core) -> Callable:
    """The function with its variables as constants.

    Unlike in ``freeze`` loops stay operations of their own: only then does TensorFlow inline the
    function into a signature and optimise the whole.
    """
    names = sorted(core.structured_outputs)
    constant = convert_variables_to_constants_v2(core, lower_control_flow=False)
    return lambda *inputs: dict(zip(names, constant(*inputs), strict=True))


def check_bytes(variables: Sequence[tf.Variable], way_out: str) -> None:
    """Raises a ValueError if the weights are too large to be constants of a graph."""
    size = sum(int(np.prod(one.shape)) * one.dtype.size for one in variables)
    if size > _MAX_CONSTANTS:
        raise ValueError(
            f"the weights take {size / 1e9:.1f} GB, and as constants of a graph they may take "
            f"{_MAX_CONSTANTS / 1e9} GB: {way_out}."
        )
