"""Deletion and insertion: a class's probability while pixels go, or come, by relevance."""

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from cam_tf.faithfulness.metrics import (
    IMAGENET_MEAN,
    FaithfulnessMetric,
    as_colour,
    check_baseline,
    of_class,
    rank_pixels,
)


class _PixelCurve(FaithfulnessMetric):
    """The area under the probability while pixels turn from a start image into a finish image."""

    def __init__(self, steps: int, baseline: float | Sequence[float], **settings):
        if steps < 1:
            raise ValueError(f"steps={steps}: use at least 1; the source takes 28.")
        name = type(self).__name__.lower()
        super().__init__(
            {"steps": int(steps), "baseline": check_baseline(baseline), **settings},
            [f"{name}_auc"],
            **{f"{name}_curve": steps + 1},
        )

    @abstractmethod
    def _ends(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """The images at the start and at the finish."""

    def measure(self, probabilities, images, maps, class_ids):
        """See ``FaithfulnessMetric.measure``."""
        start, finish = self._ends(images)
        ranks, steps = rank_pixels(maps), self._settings["steps"]
        pixels = tf.reduce_prod(tf.shape(maps)[1:])

        def at(step):
            turned = ranks < tf.minimum(step * -(-pixels // steps), pixels)
            mixed = tf.where(turned[..., None], finish, start)
            return of_class(probabilities(mixed), class_ids)

        curve = tf.map_fn(
            at, tf.range(steps + 1), fn_output_signature=tf.float32, parallel_iterations=1
        )
        area = (tf.reduce_sum(curve, axis=0) - curve[0] / 2 - curve[-1] / 2) / steps
        return dict(zip([*self.figures, *self._curves], [area, tf.transpose(curve)], strict=True))


class Deletion(_PixelCurve):
    """Deletion: the area under the probability while the most relevant pixels are taken away.

    The pixels are set to the baseline in the order of the map, an equal number in each step, from
    the whole image to none; p_0 ... p_n are the class's probabilities, and the area is
    (sum p - p_0 / 2 - p_n / 2) / n, in [0, 1]. A small one is good: the map found what the class
    depends on. Figure: ``deletion_auc``; curve: ``deletion_curve``.

    Source: Petsiuk et al., "RISE", BMVC 2018, section 4.2 and Algorithm 1, and its public code:
    224 * 8 pixels of 224 x 224 in a step, which is 28 steps, and zeros of normalised images, which
    is ImageNet's mean colour. Conventions of ours: pixels of equal relevance go in reading order
    (in the source in no certain order), and the baseline is a colour of images as the model takes
    them, which for RGB 0..255 is that same mean.

    Args:
        steps: n; a step is ceil(H W / n) pixels, and the last one what is left.
        baseline: a number, or one for each channel.

    Raises:
        ValueError: ``steps`` below 1, or a ``baseline`` that is no colour.
    """

    def __init__(self, steps: int = 28, baseline: float | Sequence[float] = IMAGENET_MEAN):
        super().__init__(steps, baseline)

    def _ends(self, images):
        return images, tf.zeros_like(images) + as_colour(self._settings["baseline"], images)


class Insertion(_PixelCurve):
    """Insertion: the area under the probability while the most relevant pixels come back.

    As ``Deletion``, from a blurred image to the image. A large area is good. Figure:
    ``insertion_auc``; curve: ``insertion_curve``.

    Source: Petsiuk et al., "RISE", BMVC 2018, section 4.2, and its public code: a kernel of 11 x 11
    pixels, made by a Gaussian of sigma 5 that is reflected at the kernel's own border, over a
    normalised image with zeros around it (here: the baseline colour around the image).

    Args:
        steps: as for ``Deletion``.
        baseline: the colour around the image while it is blurred.
        size: of the kernel in pixels, odd.
        sigma: of the Gaussian in pixels.

    Raises:
        ValueError: ``steps`` below 1, a ``baseline`` that is no colour, an even ``size``, or a
            ``sigma`` that is not positive.
    """

    def __init__(
        self,
        steps: int = 28,
        baseline: float | Sequence[float] = IMAGENET_MEAN,
        size: int = 11,
        sigma: float = 5.0,
    ):
        if size < 1 or size % 2 == 0 or sigma <= 0:
            raise ValueError(f"size={size}, sigma={sigma}: a blur has an odd size, and sigma > 0.")
        super().__init__(steps, baseline, size=int(size), sigma=float(sigma))

    def _ends(self, images):
        colour = as_colour(self._settings["baseline"], images)
        kernel = blur_kernel(self._settings["size"], self._settings["sigma"])
        blurred = images - colour
        for shape in ([-1, 1, 1, 1], [1, -1, 1, 1]):  # the kernel is a product of two lines
            line = tf.repeat(tf.reshape(tf.constant(kernel), shape), images.shape[-1], axis=2)
            blurred = tf.nn.depthwise_conv2d(blurred, line, [1, 1, 1, 1], "SAME")
        return blurred + colour, images


def blur_kernel(size: int, sigma: float) -> np.ndarray:
    """The line (size,) float32 whose square is the source's blur.

    That is an impulse in the middle, filtered by a Gaussian that ends after 4 sigma, mirrored at
    both borders as often as it takes.
    """
    radius = int(4 * sigma + 0.5)
    place = np.arange(-radius, radius + 1)
    gaussian = np.exp(-0.5 * (place / sigma) ** 2)
    impulse = np.zeros(size)
    impulse[size // 2] = 1
    mirrored = np.pad(impulse, radius, mode="symmetric")
    return np.convolve(mirrored, gaussian / gaussian.sum(), mode="valid").astype(np.float32)
