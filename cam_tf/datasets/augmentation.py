"""From the bytes of an image file to the pixels that a classifier trains on, in TensorFlow's graph.

Everything random is stateless: the same seed, the same pixels.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import tensorflow as tf

from cam_tf.datasets.images import MAX_PIXELS

_BRIGHTNESS = 128  # levels of 255 by which ``colour=1`` may move the brightness
_WHOLE = [[[0.0, 0.0, 1.0, 1.0]]]
_BIG_ENDIAN = [2**24, 2**16, 2**8, 1]
_TRANSPARENT = r"(?s)\C*tRNS\C*"


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images: a resized crop, a mirror image, colours.

    The crop is that of Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, section 6. Its
    smallest area there, 0.08 of the image, is for weeks of training.

    Attributes:
        area: the smallest and the largest share of the image that the crop covers.
        aspect: the smallest and the largest ratio of the crop's width to its height.
        flip: mirror every second image. Not for letters and digits.
        colour: the strength s of the changes of colour, 0 to 1: contrast and saturation are
            multiplied by 1 - s to 1 + s, and up to 128 s levels added to all channels.

    Raises:
        ValueError: not such numbers.
    """

    area: tuple[float, float] = (0.25, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip: bool = True
    colour: float = 0.2

    def __post_init__(self):
        if not (0 < self.area[0] <= self.area[1] <= 1 and 0 < self.aspect[0] <= self.aspect[1]):
            raise ValueError(
                f"area={self.area}, aspect={self.aspect}: expected (least, greatest), greater than "
                "0, and areas up to 1."
            )
        if not 0 <= self.colour <= 1:
            raise ValueError(f"colour={self.colour}: expected a strength from 0 to 1.")

    def crop(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Cuts a random window from an image (H, W, 3)."""
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            tf.shape(image),
            _WHOLE,
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=self.aspect,
            area_range=self.area,
        )
        return tf.slice(image, begin, size)

    def repaint(self, image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Mirrors at random, and changes the colours of a float image (H, W, 3) of 0..255."""
        seeds = tf.unstack(tf.random.split(seed, 4))
        if self.flip:
            image = tf.image.stateless_random_flip_left_right(image, seeds[0])
        if not self.colour:
            return image
        least, most = 1 - self.colour, 1 + self.colour
        image = tf.image.stateless_random_brightness(image, self.colour * _BRIGHTNESS, seeds[1])
        # TensorFlow draws a contrast below the upper limit only, and wants them to differ.
        image = tf.image.stateless_random_contrast(image, least, most, seeds[2])
        # tf.image's saturation goes through HSV and costs more than decoding the file.
        factor = tf.random.stateless_uniform((), seeds[3], least, most)
        gray = tf.image.rgb_to_grayscale(image)
        return tf.clip_by_value(gray + factor * (image - gray), 0, 255)


class Preparation(NamedTuple):
    """How pixels become an input of the network.

    Attributes:
        size: (height, width) of the result.
        short_side: None warps the whole image; a number resizes the shorter side to it, and cuts
            ``size`` from the centre. Without augmentation only.
        augmentation: what is random.
    """

    size: tuple[int, int]
    short_side: int | None
    augmentation: Augmentation | None

    def __call__(self, pixels: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """From (H, W, 3) to (height, width, 3) uint8."""
        if self.augmentation is None:
            image = self._whole_or_centre(pixels)
        else:
            seed, other = tf.unstack(tf.random.split(seed))
            image = _resized(self.augmentation.crop(pixels, seed), self.size)
            image = self.augmentation.repaint(image, other)
        return tf.ensure_shape(tf.cast(tf.round(image), tf.uint8), (*self.size, 3))

    def _whole_or_centre(self, pixels: tf.Tensor) -> tf.Tensor:
        if self.short_side is None:
            return _resized(pixels, self.size)
        shape = tf.shape(pixels)[:2]
        shape = shape * self.short_side // tf.reduce_min(shape)
        corner = (shape - self.size) // 2
        return tf.slice(_resized(pixels, shape), [*tf.unstack(corner), 0], (*self.size, 3))


def _resized(pixels: tf.Tensor, size: Sequence[int] | tf.Tensor) -> tf.Tensor:
    """Resizes as ``cam_tf.resize_image`` does: bilinear, antialiased when it shrinks."""
    return tf.cond(
        tf.reduce_all(tf.shape(pixels)[:2] <= size),
        lambda: tf.image.resize(pixels, size),  # the same numbers then, in a third of the time
        lambda: tf.image.resize(pixels, size, antialias=True),
    )


def decode(data: tf.Tensor, other: Callable[[], tf.Tensor], upright: bool) -> tf.Tensor:
    """Decodes the bytes of a file as ``load_image`` does, in the graph if it can.

    It can for JPEG and PNG, gray or RGB, with 8 bits per channel, and then gives the same pixels.

    Args:
        data: the file, a string tensor. A damaged or shortened file is an error.
        other: reads what the graph cannot.
        upright: files with Exif data, which may tell to turn the image, are for ``other``.

    Returns:
        (H, W, 3) uint8.
    """

    def jpeg() -> tf.Tensor:
        return tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE")

    def png() -> tf.Tensor:
        return tf.io.decode_png(data, 3)

    return tf.cond(
        tf.io.is_jpeg(data),
        lambda: tf.cond(_is_plain_jpeg(data, upright), jpeg, other),
        lambda: tf.cond(_is_plain_png(data), png, other),
    )


def _is_plain_jpeg(data: tf.Tensor, upright: bool) -> tf.Tensor:
    shape = tf.cast(tf.io.extract_jpeg_shape(data), tf.int64)
    plain = (shape[2] <= 3) & (shape[0] * shape[1] <= MAX_PIXELS)
    if upright:  # Exif is the first segment, or the second after JFIF's of 18 bytes
        head = tf.strings.substr(data, 0, 28)
        plain &= tf.strings.substr(head, 6, 4) != b"Exif"
        plain &= tf.strings.substr(head, 24, 4) != b"Exif"
    return plain


def _is_plain_png(data: tf.Tensor) -> tf.Tensor:
    header = tf.io.decode_raw(tf.strings.substr(data, 0, 26), tf.uint8, fixed_length=26)
    header = tf.cast(header, tf.int64)
    width, height = (tf.reduce_sum(header[i : i + 4] * _BIG_ENDIAN) for i in (16, 20))
    bits, colours = header[24], header[25]
    plain = tf.reduce_all(header[:8] == list(b"\x89PNG\r\n\x1a\n"))
    plain &= (bits == 8) & ((colours == 0) | (colours == 2)) & (width * height <= MAX_PIXELS)
    # A chunk tRNS, between header and pixels, makes one colour transparent.
    return plain & ~tf.strings.regex_full_match(tf.strings.substr(data, 0, 512), _TRANSPARENT)
