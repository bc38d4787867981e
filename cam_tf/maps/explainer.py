"""The base of all explainers: checks the images, selects the classes, runs one compiled call."""

from abc import ABC, abstractmethod

import keras
import numpy as np
import tensorflow as tf

from cam_tf.maps.explanation import Explanation
from cam_tf.maps.selection import ALL, Classes, select_classes
from cam_tf.networks.anatomy import dissect


class Explainer(ABC):
    """A callable from images to an ``Explanation``, compiled once for any batch size.

    Weights stay live: after ``fit`` the same explainer explains the trained model.

    Args:
        model: the classifier.
        jit_compile: compile with XLA. Default: where a GPU is visible (on the CPU it is slower).

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: the model has no feature maps that this method can use.
    """

    def __init__(self, model: keras.Model, *, jit_compile: bool | None = None):
        self.anatomy = dissect(model)
        if jit_compile is None:
            jit_compile = bool(tf.config.list_logical_devices("GPU"))
        self._jit_compile = jit_compile
        self._compiled: dict[int | str, tf.types.experimental.GenericFunction] = {}

    @abstractmethod
    def _maps(self, images: tf.Tensor, class_ids: tf.Tensor | None, top_k: int) -> tuple:
        """Computes maps, class ids, and the scores and logits of all classes, in graph mode.

        Args:
            images: (N, H, W, channels).
            class_ids: (N, n) int32, or None.
            top_k: without class ids, how many of the predicted classes; 0 means all classes.

        Returns:
            Maps (N, n, h, w) float32, class ids (N, n) or None for all, scores (N, C), logits
            (N, C).
        """

    def __call__(
        self,
        images: np.ndarray | tf.Tensor,
        classes: Classes = None,
        top_k: int = 1,
        *,
        batch_size: int = 32,
    ) -> Explanation:
        """Explains a batch of images.

        Args:
            images: (N, H, W, channels) as the model takes them; for networks of
                ``build_classifier`` RGB 0..255, uint8 or float.
            classes: None: the ``top_k`` predicted classes of each image, best first. An int: that
                class for every image. A flat list: one id for each image. A list of lists: several
                ids for each image; a single inner list serves every image. ``"all"``.
            top_k: how many predicted classes to explain when ``classes`` is None.
            batch_size: more images than this go through the network in several batches.

        Returns:
            An ``Explanation`` with maps (N, n, h, w).

        Raises:
            ValueError: images of the wrong rank, size or channel count, or with NaN or infinity;
                class ids that are out of range or do not match the images; ``top_k`` out of range.
            TypeError: classes that are not integers.
        """
        images = self._check_images(images)
        total, num_classes = images.shape[0], self.anatomy.classes
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use at least 1.")
        if classes is None and not 1 <= top_k <= num_classes:
            raise ValueError(f"top_k={top_k} is not between 1 and {num_classes} classes.")
        everything = isinstance(classes, str) and classes == ALL
        key = top_k if classes is None else 0 if everything else "ids"
        ids = select_classes(classes, total, num_classes) if key == "ids" else None
        if total == 0:  # TensorFlow's CPU kernels fail on empty batches, so an image stands in
            images = tf.zeros([1, *images.shape[1:]], images.dtype)
            ids = None if ids is None else np.zeros((1, ids.shape[1]), np.int32)
        explained = self._function(key)
        parts = []
        for start in range(0, len(images), batch_size):
            given = [images] if ids is None else [images, ids]
            if len(images) > batch_size:
                given = [values[start : start + batch_size] for values in given]
            parts.append(Explanation(*explained(*given), tuple(images.shape[1:-1])))
        result = Explanation.concatenate(parts)
        return result if total else result[:0]

    def _check_images(self, images) -> tf.Tensor:
        expected = self.anatomy.image.shape
        wanted = f"model {self.anatomy.name!r} takes images of shape {_write_shape(expected)}"
        try:
            images = tf.convert_to_tensor(images)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{wanted}, and what was given is no such array: {error}. Images of different "
                "sizes must be resized to one size first (cam_tf.resize_image)."
            ) from error
        given = tuple(images.shape)
        if len(given) == len(expected) - 1:
            raise ValueError(
                f"{wanted}; got {given}, without a batch axis: pass images[None] for one image."
            )
        if len(given) != len(expected):
            raise ValueError(f"{wanted}; got {given}.")
        for axis in range(1, len(given)):
            if expected[axis] not in (None, given[axis]):
                is_channel = axis == len(given) - 1
                raise ValueError(f"{wanted}; got {given}. " + (_CHANNELS if is_channel else _SIZE))
        if images.dtype.is_floating:
            self._refuse_non_finite(images)
        return tf.cast(images, self.anatomy.image.symbol.dtype)

    @staticmethod
    def _refuse_non_finite(images: tf.Tensor) -> None:
        if tf.reduce_all(tf.math.is_finite(images)):
            return
        rest = list(range(1, images.shape.rank))
        bad = np.flatnonzero(~tf.reduce_all(tf.math.is_finite(images), axis=rest).numpy())
        raise ValueError(
            f"images {bad.tolist()} hold NaN or infinity, from which no map can be made: leave "
            "them out, or replace the values (numpy.nan_to_num)."
        )

    def _function(self, key: int | str):
        """The compiled call for given class ids ("ids"), all classes (0) or the top k."""
        if key not in self._compiled:
            image = self.anatomy.image
            signature = [tf.TensorSpec([None, *image.shape[1:]], image.symbol.dtype)]
            if key == "ids":
                signature.append(tf.TensorSpec([None, None], tf.int32))
            top_k = key if isinstance(key, int) else 0
            self._compiled[key] = tf.function(
                lambda images, class_ids=None: self._explain(images, class_ids, top_k),
                input_signature=signature,
                jit_compile=self._jit_compile,
            )
        return self._compiled[key]

    def _explain(self, images, class_ids, top_k):
        maps, class_ids, scores, logits = self._maps(images, class_ids, top_k)
        if class_ids is None:
            every = tf.range(self.anatomy.classes)[None]
            return maps, tf.repeat(every, tf.shape(images)[0], axis=0), scores, logits
        chosen = [tf.gather(values, class_ids, batch_dims=1) for values in (scores, logits)]
        return maps, class_ids, *chosen


_SIZE = (
    "Resize them (cam_tf.resize_image), or build the network for any size: "
    "input_shape=(None, None, 3)."
)
_CHANNELS = "The channels are the last axis; load photos as RGB with cam_tf.load_image."


def _write_shape(shape: tuple[int | None, ...]) -> str:
    letters = ["N", *("any" if length is None else str(length) for length in shape[1:])]
    return f"({', '.join(letters)})"
