"""The probabilities that a classifier gives to images, and the calls compiled for its metrics."""

import json
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from cam_tf.localization.score_maps import check_maps
from cam_tf.maps.explanation import Array, Explanation
from cam_tf.maps.heatmaps import resize_maps
from cam_tf.networks.anatomy import dissect


class Probabilities:
    """The class probabilities of a classifier, which the metrics of faithfulness are made of.

    They are the model's output, if it ends in a softmax or sigmoid, and otherwise (a model of
    logits) the softmax of its output. Weights are live. Metrics run in one compiled call each.

    Args:
        model: a classifier of images (N, H, W, channels), its only input.
        output: the name or index of the class scores, where the model has several outputs.
        batch_size: images in one forward pass.

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: the model has other inputs than images, or no maps.
    """

    def __init__(
        self, model: keras.Model, *, output: str | int | None = None, batch_size: int = 32
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use at least 1.")
        self.anatomy = dissect(model, output=output)
        shape = self.anatomy.image.shape
        if len(self.anatomy.inputs) > 1 or len(shape) != 4:
            names = [one.symbol.name for one in self.anatomy.inputs]
            raise ValueError(
                f"model {self.anatomy.name!r} takes {names}, the image being {shape}: faithfulness "
                "is measured of models whose only input is (N, H, W, channels)."
            )
        self.batch_size = batch_size
        self._compiled: dict[str, Callable] = {}

    def of(self, images: tf.Tensor) -> tf.Tensor:
        """The probabilities (N, C) of images (N, H, W, channels) float32, in graph mode too."""
        parts = self.anatomy
        dtype = tf.as_dtype(parts.image.symbol.dtype)
        if dtype.is_integer:
            images = tf.clip_by_value(tf.round(images), float(dtype.min), float(dtype.max))
        (scores,) = parts.graph.run(parts.bind([tf.cast(images, dtype)]), [parts.scores])
        scores = tf.reshape(tf.cast(scores, tf.float32), [-1, parts.classes])
        return scores if parts.gives_probabilities else tf.nn.softmax(scores)

    def predicted(self, images: Array) -> np.ndarray:
        """The likeliest class (N,) int32 of each image."""
        return self._run("predicted", lambda some: {"id": tf.argmax(self.of(some), 1)}, images)[
            "id"
        ]

    def measure(
        self, metric, images: Array, maps: Array | Explanation, class_ids: Array
    ) -> dict[str, np.ndarray]:
        """Runs a metric's ``measure``, compiled; returns what it measured of each image.

        Args:
            metric: a ``FaithfulnessMetric``.
            images: (N, H, W, channels) as the model takes them.
            maps: (N, h, w) or (N, 1, h, w), or an ``Explanation``.
            class_ids: (N,) the class that each map explains.

        Raises:
            ValueError: shapes that do not fit, maps with NaN or infinity, or unknown class ids.
        """
        maps = _one_map(maps)
        class_ids = np.asarray(class_ids, np.int32)
        images = self._check(images)
        if not len(images) == len(maps) == len(class_ids) or class_ids.ndim != 1:
            raise ValueError(
                f"{len(images)} images, maps {maps.shape} and class ids {class_ids.shape}: give "
                "each image one map and one class."
            )
        classes = self.anatomy.classes
        if len(class_ids) and not 0 <= class_ids.min() <= class_ids.max() < classes:
            raise ValueError(f"class_ids={class_ids.tolist()}: the model has 0..{classes - 1}.")

        def run(images, maps, class_ids):
            stretched = resize_maps(maps[:, None], tf.unstack(tf.shape(images)[1:3]))[:, 0]
            return metric.measure(self.of, images, stretched, class_ids)

        key = f"{type(metric).__qualname__} {json.dumps(metric.settings)}"
        return self._run(key, run, images, np.float32(maps), class_ids)

    def _check(self, images: Array) -> np.ndarray:
        images = np.asarray(images, np.float32)
        expected = self.anatomy.image.shape
        fits = images.ndim == 4 and all(
            wanted in (None, given)
            for wanted, given in zip(expected[1:], images.shape[1:], strict=True)
        )
        if not fits or not images.size:
            raise ValueError(
                f"model {self.anatomy.name!r} takes images {expected}; got {images.shape}."
            )
        return images

    def _run(self, key: str, function: Callable, *arrays: np.ndarray) -> dict[str, np.ndarray]:
        """Calls a function, compiled once, batch by batch."""
        arrays = (self._check(arrays[0]), *arrays[1:])
        if key not in self._compiled:
            shapes = [[None, *self.anatomy.image.shape[1:]], [None, None, None], [None]]
            dtypes = [tf.float32, tf.float32, tf.int32]
            signature = [tf.TensorSpec(*one) for one in zip(shapes, dtypes, strict=True)]
            signature = signature[: len(arrays)]
            self._compiled[key] = tf.function(function, signature, autograph=False)
        found = []
        for start in range(0, len(arrays[0]), self.batch_size):
            batch = [tf.constant(one[start : start + self.batch_size]) for one in arrays]
            found.append(self._compiled[key](*batch))
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


def _one_map(maps: Array | Explanation) -> np.ndarray:
    """Maps (N, h, w), of maps or an explanation with one class for each image."""
    maps = np.asarray(maps.maps if isinstance(maps, Explanation) else maps)
    if maps.ndim == 4 and maps.shape[1] == 1:
        maps = maps[:, 0]
    return check_maps(maps)
