"""The base of the metrics that hide pixels and watch a class's probability."""

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from cam_tf.faithfulness.probabilities import Probabilities
from cam_tf.localization.metrics import StreamingMetric
from cam_tf.maps.explanation import Array, Explanation

# Zero after the usual normalisation, so what the sources' code puts in the place of pixels.
IMAGENET_MEAN = (123.675, 116.28, 103.53)


class FaithfulnessMetric(StreamingMetric):
    """A metric that is the mean over images of figures measured on each.

    Args:
        settings: the arguments of the constructor, as plain numbers and lists.
        figures: the names of the figures, in the order in which they are shown.
        curves: how many values each curve that is kept besides has, by name.
    """

    def __init__(self, settings: dict, figures: Sequence[str], **curves: int):
        totals = {name: np.zeros(()) for name in figures}
        super().__init__(settings, totals | {name: np.zeros(n) for name, n in curves.items()})
        self.figures = tuple(figures)
        self._curves = tuple(curves)

    @property
    def settings(self) -> dict:
        """The arguments of the constructor, as plain numbers and lists."""
        return self._settings

    @abstractmethod
    def measure(
        self,
        probabilities: Callable[[tf.Tensor], tf.Tensor],
        images: tf.Tensor,
        maps: tf.Tensor,
        class_ids: tf.Tensor,
    ) -> dict[str, tf.Tensor]:
        """Measures a batch in graph mode.

        Args:
            probabilities: from images (N, H, W, channels) to (N, C).
            images: (N, H, W, channels) float32.
            maps: (N, H, W) float32, stretched over the images.
            class_ids: (N,) int32.

        Returns:
            The figures (N,) and curves (N, n) of each image, by name.
        """

    def update(
        self,
        probabilities: Probabilities,
        images: Array,
        maps: Array | Explanation,
        class_ids: Array,
    ) -> dict[str, np.ndarray]:
        """Measures and counts a batch of N images.

        Args:
            probabilities: of the classifier that the maps explain.
            images: (N, H, W, channels) as the model takes them.
            maps: (N, h, w) or (N, 1, h, w) raw maps of any method and resolution, or an
                ``Explanation`` with one class for each image; stretched linearly over the images.
            class_ids: (N,) the class that each map explains.

        Returns:
            The figures (N,) of these images by name, such as for a bootstrap.

        Raises:
            ValueError: shapes that do not fit, maps with NaN or infinity, or unknown class ids.
        """
        measured = probabilities.measure(self, images, maps, class_ids)
        sums = {name: values.sum(axis=0, dtype=np.float64) for name, values in measured.items()}
        self._add(len(class_ids), **sums)
        return {name: measured[name] for name in self.figures}

    def _result(self) -> dict[str, float]:
        return {name: float(self._totals[name]) / self.images for name in self.figures}

    def curves(self) -> dict[str, np.ndarray]:
        """Returns the mean curves of all images so far, by name.

        Raises:
            ValueError: no image was counted yet.
        """
        self.result()
        return {name: self._totals[name] / self.images for name in self._curves}


def check_baseline(baseline: float | Sequence[float]) -> float | list[float]:
    """Returns a colour as plain numbers.

    Raises:
        ValueError: it is neither a number nor one for each channel.
    """
    colour = np.asarray(baseline, np.float64)
    if colour.ndim > 1 or not colour.size or not np.isfinite(colour).all():
        raise ValueError(f"baseline={baseline!r}: give a number, or one for each channel.")
    return colour.tolist()


def as_colour(baseline: float | list[float], images: tf.Tensor) -> tf.Tensor:
    """A baseline as a tensor that broadcasts to the images.

    Raises:
        ValueError: it has another number of channels.
    """
    colour = tf.constant(baseline, tf.float32)
    if colour.shape.rank and colour.shape[0] not in (1, images.shape[-1]):
        raise ValueError(
            f"baseline={baseline} is a colour of {colour.shape[0]} channels, and the images have "
            f"{images.shape[-1]}: give baseline= a number, or one for each channel."
        )
    return colour


def rank_pixels(maps: tf.Tensor) -> tf.Tensor:
    """The rank (N, H, W) int32 of each pixel in maps (N, H, W): 0 is the most relevant.

    Equals are in reading order, from the top left.
    """
    shape = tf.shape(maps)
    order = tf.argsort(
        tf.reshape(maps, [shape[0], -1]), axis=1, direction="DESCENDING", stable=True
    )
    return tf.reshape(tf.argsort(order, axis=1), shape)


def of_class(probabilities: tf.Tensor, class_ids: tf.Tensor) -> tf.Tensor:
    """The probability (N,) of each image's class."""
    return tf.gather(probabilities, class_ids, batch_dims=1)
