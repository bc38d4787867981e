"""Files decoded in the graph against ``load_image`` and ``resize_image``."""

import io
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cam_tf
from cam_tf.export.photos import decoded, resized

SIZE, MAX_PIXELS = (56, 48), 10**6


@pytest.fixture(scope="module")
def decode():
    return tf.function(
        lambda files: decoded(files, SIZE, MAX_PIXELS),
        input_signature=[tf.TensorSpec([None], tf.string)],
    )


@pytest.fixture(scope="module")
def photo():
    return Image.open(cam_tf.demo_photos()[0]).convert("RGB").crop((40, 30, 240, 161))


def _file(image, kind="JPEG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _assert_like_the_library(decode, files: list[bytes], levels: int = 1):
    """Both resize in steps of their own: rounding may set a pixel one level apart."""
    for file, found in zip(files, decode(tf.constant(files)).numpy(), strict=True):
        expected = cam_tf.resize_image(cam_tf.load_image(file), SIZE).astype(np.float32)
        difference = np.abs(found - expected)
        assert difference.max() <= levels
        assert difference.mean() < 0.35


@pytest.mark.parametrize("byte_order", ["little", "big"])
def test_exif_orientation(decode, photo, byte_order):
    files = []
    for orientation in range(10):
        exif = Image.Exif()
        exif.endian = "<" if byte_order == "little" else ">"
        exif[0x010F], exif[0x0112] = "a camera", orientation
        files.append(_file(photo, exif=exif.tobytes()))
    assert (b"MM\0*" in files[0][:40]) == (byte_order == "big")
    _assert_like_the_library(decode, files)


def test_exif_behind_other_segments(decode, photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    file = _file(photo, exif=exif)
    comment = b"\xff\xfe" + struct.pack(">H", 3002) + b"Exif\0\0" * 500
    _assert_like_the_library(decode, [file[:2] + comment + file[2:]])


def test_broken_exif_does_not_spoil_the_pixels(decode, photo):
    tiff = Image.Exif()
    tiff[0x0112] = 6
    # The orientation stands in bytes 24 and 25.
    broken = [tiff.tobytes()[:cut] + b"\xff" * 9 for cut in (6, 12, 16, 20, 24)]
    files = [_file(photo), *(_file(photo, exif=exif) for exif in broken)]
    upright, *found = decode(tf.constant(files)).numpy()
    for one in found:
        np.testing.assert_array_equal(one, upright)


def test_kinds_of_jpeg(decode, photo):
    kinds = [_file(photo.convert(mode)) for mode in ("CMYK", "L", "RGB")]
    _assert_like_the_library(decode, [*kinds, _file(photo, progressive=True)])


def test_kinds_of_png(decode, photo, rng):
    files = []
    for mode in ("RGB", "RGBA", "LA", "L", "P", "1"):
        image = photo.convert(mode)
        if mode.endswith("A"):
            alpha = rng.integers(0, 256, image.size[::-1]).astype(np.uint8)
            image.putalpha(Image.fromarray(alpha))
        files.append(_file(image, "PNG"))
    files.append(_file(photo, "PNG", transparency=photo.getpixel((5, 5))))
    _assert_like_the_library(decode, files)


def test_palettes(decode, photo):
    files = []
    for bits in (1, 2, 4, 8):
        image = photo.convert("P", palette=Image.Palette.ADAPTIVE, colors=2**bits)
        files += [_file(image, "PNG", bits=bits), _file(image, "PNG", bits=bits, transparency=1)]
    _assert_like_the_library(decode, files)


def test_gray_of_few_bits(decode):
    files = [_gray_of_few_bits(bits) for bits in (1, 2, 4)]
    _assert_like_the_library(decode, files, levels=0)


def _gray_of_few_bits(bits: int) -> bytes:
    """A PNG of the size itself, which Pillow cannot write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = (b"\0" + bytes([0x1B]) * (SIZE[1] * bits // 8)) * SIZE[0]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", SIZE[1], SIZE[0], bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_16_bits_are_two_levels_apart_at_most(decode, rng):
    gray = Image.fromarray(rng.integers(0, 2**16, (70, 90)).astype(np.uint16))
    _assert_like_the_library(decode, [_file(gray, "PNG")], levels=2)


def test_a_batch_of_different_sizes(decode, photo):
    files = [_file(photo), _file(photo.resize((31, 77)), "PNG"), _file(photo.resize((1, 1)))]
    together = decode(tf.constant(files)).numpy()
    for file, one in zip(files, together, strict=True):
        np.testing.assert_array_equal(one, decode(tf.constant([file])).numpy()[0])


@pytest.mark.parametrize("shape", [(97, 333, 3), (20, 30, 3), (56, 48, 3), (1, 1, 3)])
def test_arrays_are_resized_like_the_library_does(rng, shape):
    images = rng.uniform(0, 255, (2, *shape)).astype(np.float32)
    expected = [cam_tf.resize_image(image, SIZE) for image in images]
    np.testing.assert_allclose(resized(tf.constant(images), SIZE), expected, atol=0.01)
    whole = images.astype(np.uint8)
    expected = np.stack([cam_tf.resize_image(image, SIZE) for image in whole]).astype(np.float32)
    found = resized(tf.constant(whole), SIZE).numpy()
    np.testing.assert_array_equal(found, np.round(found))
    assert np.abs(found - expected).max() <= 1


def test_files_that_are_refused_are_named(decode, photo):
    good = _file(photo)
    png = _file(photo, "PNG")
    bomb = png[:16] + struct.pack(">II", 10_000, 6_000) + png[24:]
    cases = {
        b"": "image 1 of the batch is empty (0 bytes)",
        b"GIF89a" + bytes(30): "image 1 of the batch (36 bytes) is neither a JPEG nor a PNG",
        b"\x89PNG\r\n\x1a\n": "image 1 of the batch is a PNG that is cut short",
        png[:16] + bytes(4) + png[20:]: "has 0 x 131 = 0 pixels",
        _file(Image.new("L", (1001, 1000))): "has 1001 x 1000 = 1001000 pixels: this server takes",
        bomb: "image 1 of the batch has 10000 x 6000 = 60000000 pixels",
        good[: len(good) // 2]: "Invalid JPEG data",
        good[:30]: "Invalid JPEG data",
        png[: len(png) // 2]: "Invalid PNG data",
    }
    for file, message in cases.items():
        with pytest.raises(tf.errors.InvalidArgumentError) as error:
            decode(tf.constant([good, file]))
        assert message in str(error.value), (message, str(error.value))
    assert decode(tf.constant([good])).shape == (1, *SIZE, 3)
