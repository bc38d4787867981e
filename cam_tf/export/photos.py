"""Photos as a server is sent them, in TensorFlow operations: decoding, orientation, resizing."""

from collections.abc import Sequence

import tensorflow as tf

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = 25  # bytes, which every PNG file begins with: width, height and bits end them
_EXIF = b"Exif\0\0"
_SEGMENT_HEAD = 4 + len(_EXIF)
_MAX_SEGMENTS = 100  # of a JPEG, before the one with EXIF; it is the first or the second, mostly
_ORIENTATION, _SHORT = 0x0112, 3
_MAX_TAGS = 512


def require(condition: tf.Tensor, *message) -> tf.Operation:
    """An operation that fails with InvalidArgument and a message, made of strings and tensors."""
    parts = [part if isinstance(part, str) else tf.strings.as_string(part) for part in message]
    return tf.raw_ops.Assert(condition=condition, data=[tf.strings.join(parts)], summarize=1)


def resized(images: tf.Tensor, size: Sequence[int]) -> tf.Tensor:
    """Warps images as ``cam_tf.resize_image`` does: bilinear, antialiased; rounded if integers.

    Args:
        images: (N, H, W, 3) or (H, W, 3), uint8 or float32.
        size: (height, width), numbers or scalar tensors.

    Returns:
        float32, of that size.
    """
    size = tf.stack(size)

    def resize():
        found = tf.image.resize(images, size, "bilinear", antialias=True)
        return tf.round(found) if images.dtype.is_integer else found

    same = tf.reduce_all(tf.shape(images)[-3:-1] == size)
    return tf.cond(same, lambda: tf.cast(images, tf.float32), resize)


def decoded(encoded: tf.Tensor, size: Sequence[int], max_pixels: int) -> tf.Tensor:
    """Decodes JPEG and PNG files as ``cam_tf.load_image`` does, and resizes them.

    The EXIF orientation of a JPEG file is applied, and transparency is composited over white.

    Args:
        encoded: (N,) files as byte strings; their sizes may differ.
        size: (height, width) in pixels.
        max_pixels: files whose header announces more are refused before anything is decoded.

    Returns:
        (N, height, width, 3) float32, whole numbers 0..255.

    Raises:
        tf.errors.InvalidArgumentError: when it runs: a file is empty, neither JPEG nor PNG, too
            large, or damaged. For all but damage the message says which of the batch.
    """
    return tf.map_fn(
        lambda one: _decoded_one(*one, size, max_pixels),
        (tf.range(tf.size(encoded)), encoded),
        fn_output_signature=tf.TensorSpec([*size, 3], tf.float32),
    )


def _decoded_one(index, data, size, max_pixels) -> tf.Tensor:
    which, length = ("image ", index, " of the batch "), tf.strings.length(data)
    with tf.control_dependencies([require(length > 0, *which, "is empty (0 bytes).")]):
        is_png = tf.strings.substr(data, 0, len(_PNG)) == _PNG
        is_jpeg = tf.strings.substr(data, 0, len(_JPEG)) == _JPEG
    known = require(is_png | is_jpeg, *which, "(", length, " bytes) is neither a JPEG nor a PNG.")
    whole = require(is_jpeg | (length >= _PNG_HEADER), *which, "is a PNG that is cut short.")
    with tf.control_dependencies([known, whole]):
        data = tf.identity(data)
    height, width = tf.unstack(tf.cond(is_png, lambda: _png_size(data), lambda: _jpeg_size(data)))
    pixels = tf.cast(height, tf.int64) * tf.cast(width, tf.int64)
    small = require(
        (pixels <= max_pixels) & (pixels > 0),
        *(*which, "has ", width, " x ", height, " = ", pixels, " pixels: this server takes "),
        f"1 to {max_pixels}.",
    )
    with tf.control_dependencies([small]):
        data = tf.identity(data)
    return tf.cond(is_png, lambda: _read_png(data, size), lambda: _read_jpeg(data, size))


def _jpeg_size(data) -> tf.Tensor:
    return tf.io.extract_jpeg_shape(data)[:2]


def _png_size(data) -> tf.Tensor:
    numbers = tf.io.decode_raw(tf.strings.substr(data, 16, 8), tf.int32, little_endian=False)
    return tf.ensure_shape(tf.reverse(numbers, [0]), [2])


def _read_png(data, size) -> tf.Tensor:
    pixels = tf.io.decode_png(data, channels=4)

    def over_white():
        colours, alpha = tf.split(tf.cast(pixels, tf.float32), [3, 1], axis=-1)
        blend = tf.round(255 + (colours - 255) * (alpha / 255))
        return tf.cast(blend, tf.uint8)

    # Of files with fewer than 8 bits and no transparency TensorFlow makes the opacity 2**bits - 1.
    bits = tf.cast(
        tf.io.decode_raw(tf.strings.substr(data, _PNG_HEADER - 1, 1), tf.uint8)[0], tf.int32
    )
    alpha = tf.cast(pixels[..., 3], tf.int32)
    opaque = tf.reduce_all(alpha == tf.bitwise.left_shift(1, tf.minimum(bits, 8)) - 1)
    pixels = tf.cond(opaque, lambda: pixels[..., :3], over_white)
    return tf.ensure_shape(resized(pixels, size), [*size, 3])


def _read_jpeg(data, size) -> tf.Tensor:
    # The accurate transform is the one that Pillow uses.
    pixels = tf.io.decode_jpeg(data, channels=3, dct_method="INTEGER_ACCURATE")
    orientation = _exif_orientation(data)
    lies = orientation >= 5  # on its side: height and width change places
    height, width = tf.unstack(tf.where(lies, list(size)[::-1], list(size)))
    image = resized(pixels, (height, width))
    image = tf.cond(orientation == 1, lambda: image, lambda: _turned(image, orientation))
    return tf.ensure_shape(image, [*size, 3])


def _turned(image, orientation) -> tf.Tensor:
    """The image (H, W, 3) upright, from EXIF orientation 2 to 8."""
    image = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    upside_down = tf.reduce_any(orientation == [3, 4, 7, 8])
    mirrored = tf.reduce_any(orientation == [2, 3, 6, 7])
    return tf.reverse(image, tf.where(tf.stack([upside_down, mirrored]))[:, 0])


def _exif_orientation(data) -> tf.Tensor:
    """The orientation tag, 1 to 8, of a JPEG file; 1 where there is none that makes sense."""
    length = tf.strings.length(data)

    def segment(position) -> tuple:
        head = tf.strings.substr(data, position, _SEGMENT_HEAD)  # marker, 2 bytes of length, ...
        numbers = tf.cast(tf.io.decode_raw(head, tf.uint8), tf.int32)
        found = (numbers[1] == 0xE1) & (tf.strings.substr(head, 4, len(_EXIF)) == _EXIF)
        more = (numbers[0] == 0xFF) & (numbers[1] != 0xDA)  # after DA come the pixels
        return found, more, 2 + 256 * numbers[2] + numbers[3]

    def step(position, *_):
        found, more, size = segment(position)
        beyond = position + size + _SEGMENT_HEAD > length
        return tf.where(found, position, position + size), found, more & ~found & ~beyond

    position, found, _ = tf.while_loop(
        lambda position, found, more: more,
        step,
        (tf.constant(2), tf.constant(False), length >= 2 + _SEGMENT_HEAD),
        maximum_iterations=_MAX_SEGMENTS,
    )

    def read():
        tiff = tf.strings.substr(data, position + _SEGMENT_HEAD, segment(position)[-1])
        return _tiff_orientation(tf.io.decode_raw(tiff, tf.uint8))

    return tf.cond(found, read, lambda: 1)


def _tiff_orientation(tiff) -> tf.Tensor:
    """Looks the orientation up in the first directory of a TIFF structure, given as bytes."""
    tiff = tf.cast(tf.concat([tiff, [0]], axis=0), tf.int64)  # beyond the end there are zeros
    last = tf.size(tiff, tf.int64) - 1
    little = tiff[0] == ord("I")

    def number(offset, length: int):
        places = tf.range(length, dtype=tf.int64)
        found = tf.gather(tiff, tf.minimum(offset[..., None] + places, last))
        powers = tf.constant([256**i for i in range(length)], tf.int64)
        return tf.reduce_sum(found * tf.where(little, powers, powers[::-1]), axis=-1)

    directory = number(tf.constant(4, tf.int64), 4)
    count = tf.minimum(number(directory, 2), _MAX_TAGS)
    entries = directory + 2 + 12 * tf.range(count)
    wanted = (number(entries, 2) == _ORIENTATION) & (number(entries + 2, 2) == _SHORT)
    values = tf.boolean_mask(number(entries + 8, 2), wanted)
    value = tf.cast(tf.concat([values, [1]], axis=0)[0], tf.int32)
    return tf.where((value >= 1) & (value <= 8), value, 1)
