"""The result of an explainer: raw maps, the classes they are of, and their scores."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf

from cam_tf.maps.diagnosis import Diagnosis, diagnose

Array = np.ndarray | tf.Tensor


@dataclass(frozen=True, eq=False)
class Explanation:
    """Raw class activation maps of a batch, with the classes and the scores they belong to.

    Plain data: TensorFlow tensors as they left the compiled call (still on the device), or NumPy
    arrays after ``numpy()``. N images, n classes for each, C classes in all.

    Attributes:
        maps: (N, n, h, w) float32, raw and signed, at the resolution of the feature maps; (N, n, t)
            for signals, (N, n, d, h, w) for volumes.
        class_ids: (N, n) int32, the class of each map.
        scores: (N, n) float32, the model's output for that class (a probability after softmax).
        logits: (N, n) float32, the score before softmax or sigmoid.
        image_size: the input's spatial size in pixels, (H, W), which maps stretch over.
        details: what a method tells besides, arrays with a row for each image; for ``ScoreCAM``
            ``kept_share``.
    """

    maps: Array
    class_ids: Array
    scores: Array
    logits: Array
    image_size: tuple[int, ...]
    details: dict[str, Array] = field(default_factory=dict)

    def _arrays(self) -> dict:
        names = ("maps", "class_ids", "scores", "logits", "details")
        return {name: getattr(self, name) for name in names}

    def _map_arrays(self, function) -> "Explanation":
        return replace(self, **tf.nest.map_structure(function, self._arrays()))

    def numpy(self) -> "Explanation":
        """Returns the same explanation with NumPy arrays in main memory."""
        return self._map_arrays(np.asarray)

    def diagnosis(self) -> list[list[Diagnosis]]:
        """Says of each map whether it is fine, and what to do if it is not.

        Returns:
            A list for each image, with a ``Diagnosis`` for each class: its ``status`` is "fine",
            "not finite", "flat", "all negative", or "saturated" (a score next to 1).
        """
        result = self.numpy()
        return diagnose(result.maps, result.class_ids, result.scores)

    def __len__(self) -> int:
        """The number of images N."""
        return int(self.maps.shape[0])

    def __getitem__(self, index: int | slice) -> "Explanation":
        """The explanation of one image (still with a batch axis of 1) or of a slice of images."""
        if not isinstance(index, slice):
            index = range(len(self))[index]  # raises IndexError, resolves negative indices
            index = slice(index, index + 1)
        return self._map_arrays(lambda array: array[index])

    def __iter__(self) -> Iterator["Explanation"]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"Explanation(maps={tuple(self.maps.shape)}, class_ids="
            f"{np.asarray(self.class_ids).tolist()}, image_size={self.image_size})"
        )

    def _repr_html_(self) -> str:
        from cam_tf.display.notebook import explanation_html  # a room above, for notebooks alone

        return explanation_html(self)

    @classmethod
    def concatenate(cls, parts: list["Explanation"]) -> "Explanation":
        """Joins explanations of the same n and map size along the batch axis."""
        if len(parts) == 1:
            return parts[0]
        arrays = [part._arrays() for part in parts]
        joined = tf.nest.map_structure(lambda *each: tf.concat(each, axis=0), *arrays)
        return replace(parts[0], **joined)
