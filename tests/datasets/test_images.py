import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from cam_tf.datasets.images import (
    ImageError,
    demo_photos,
    find_images,
    load_image,
    resize_image,
)

# Six colours (2, 3, 3) that tell all orientations apart.
PIXELS = np.uint8(
    [[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[10, 20, 30], [200, 100, 50], [255, 255, 255]]]
)
# From the EXIF standard: where row 0 and column 0 of the stored pixels stand in the picture.
ORIENTATIONS = {
    1: PIXELS,  # top, left
    2: PIXELS[:, ::-1],  # top, right
    3: PIXELS[::-1, ::-1],  # bottom, right
    4: PIXELS[::-1],  # bottom, left
    5: PIXELS.transpose(1, 0, 2),  # left, top
    6: PIXELS.transpose(1, 0, 2)[:, ::-1],  # right, top
    7: PIXELS.transpose(1, 0, 2)[::-1, ::-1],  # right, bottom
    8: PIXELS.transpose(1, 0, 2)[::-1],  # left, bottom
}


def encoded(image, format="PNG", **options) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))
    image.save(stream, format, **options)
    return stream.getvalue()


def png(width, height, depth, colour, rows: bytes, *extra: bytes) -> bytes:
    """A PNG file written by hand: ``rows`` are raw scanlines, each after its filter byte."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    middle = b"".join(chunk(item[:4], item[4:]) for item in extra)
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + middle + body


@pytest.mark.parametrize("extension", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, extension):
    path = tmp_path / f"photo.{extension}"
    Image.fromarray(PIXELS).save(path, **({"lossless": True} if extension == "webp" else {}))
    loaded = load_image(path)
    np.testing.assert_array_equal(loaded, PIXELS)
    assert loaded.dtype == np.uint8 and loaded.flags.writeable


def test_sources_of_every_kind(tmp_path):
    path, data = tmp_path / "photo.png", encoded(PIXELS)
    path.write_bytes(data)
    for source in (path, str(path), data, bytearray(data), memoryview(data)):
        np.testing.assert_array_equal(load_image(source), PIXELS)


def test_one_pixel():
    assert load_image(encoded(np.uint8([[[1, 2, 3]]]))).tolist() == [[[1, 2, 3]]]


def test_jpeg_is_near_and_gray_jpeg_becomes_rgb():
    flat = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    assert np.abs(load_image(encoded(flat, "JPEG", quality=95)).astype(int) - flat).max() <= 2
    gray = load_image(encoded(flat[..., 0], "JPEG", quality=95))
    np.testing.assert_array_equal(gray, np.full((16, 16, 3), 200))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_exif_orientation(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = ORIENTATIONS[orientation]
    np.testing.assert_array_equal(load_image(encoded(PIXELS, format, exif=exif)), expected)


def test_exif_orientation_of_jpeg():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.zeros((16, 32, 3), np.uint8)
    stored[:, :16] = 255  # white at the left, which a quarter turn clockwise brings to the top
    loaded = load_image(encoded(stored, "JPEG", exif=exif))
    np.testing.assert_array_equal(loaded[:16], np.full((16, 16, 3), 255))
    np.testing.assert_array_equal(loaded[16:], np.zeros((16, 16, 3)))


@pytest.mark.parametrize("orientation", [0, 9])
def test_orientations_outside_the_standard_are_ignored(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(load_image(encoded(PIXELS, exif=exif)), PIXELS)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_broken_exif_does_not_spoil_the_pixels():
    data = encoded(PIXELS, exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    np.testing.assert_array_equal(load_image(data), PIXELS)


def test_16_bit_gray_png_is_divided_by_257():
    gray = np.uint16([[0, 128, 129, 257, 32768, 65535]])
    data = png(6, 1, 16, 0, b"\0" + gray.astype(">u2").tobytes())
    expected = [0, 0, 1, 1, 128, 255]  # x / 257 to nearest: 128 / 257 < 0.5 < 129 / 257
    np.testing.assert_array_equal(load_image(data)[0], np.repeat(expected, 3).reshape(6, 3))


def test_transparent_value_of_16_bit_gray_png_is_white():
    gray = np.uint16([[0, 257, 514]])
    data = png(3, 1, 16, 0, b"\0" + gray.astype(">u2").tobytes(), b"tRNS" + struct.pack(">H", 257))
    assert load_image(data)[0, :, 0].tolist() == [0, 255, 2]


def test_16_bit_rgb_png_keeps_the_high_byte():
    colour = np.uint16([[[0x12FF, 0x3400, 0xFFFF]]])
    data = png(1, 1, 16, 2, b"\0" + colour.astype(">u2").tobytes())
    assert load_image(data).tolist() == [[[0x12, 0x34, 0xFF]]]


def test_16_bit_tiff_is_scaled_and_turned():
    gray = np.uint16([[0, 257, 65535]])
    loaded = load_image(encoded(gray, "TIFF"))
    assert loaded[0].tolist() == [[0, 0, 0], [1, 1, 1], [255, 255, 255]]
    turned = load_image(encoded(gray, "TIFF", tiffinfo={0x0112: 6}))
    assert turned[:, 0, 0].tolist() == [0, 1, 255]
    zero_is_white = load_image(encoded(gray, "TIFF", tiffinfo={262: 0}))
    assert zero_is_white[0, :, 0].tolist() == [255, 254, 0]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_of_unknown_range_are_refused(dtype):
    with pytest.raises(ImageError, match="black and white points are not known"):
        load_image(encoded(np.ones((2, 2), dtype), "TIFF"))


def test_palette_gray_and_one_bit():
    palette = Image.fromarray(np.uint8([[0, 1, 2]]), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 7, 8, 9])
    assert load_image(encoded(palette)).tolist() == [[[255, 0, 0], [0, 255, 0], [7, 8, 9]]]
    assert load_image(encoded(np.uint8([[0, 77]]))).tolist() == [[[0] * 3, [77] * 3]]
    assert load_image(encoded(np.array([[True, False]]))).tolist() == [[[255] * 3, [0] * 3]]


def test_transparency_is_composited_over_white():
    rgba = np.uint8([[[100, 0, 200, 255], [100, 0, 200, 0], [100, 0, 200, 51]]])  # 51 / 255 = 0.2
    expected = [[100, 0, 200], [255, 255, 255], [224, 204, 244]]  # 0.2 colour + 0.8 * 255
    assert load_image(encoded(rgba))[0].tolist() == expected
    gray_alpha = Image.fromarray(np.uint8([[[100, 255], [100, 0], [100, 51]]]), "LA")
    assert load_image(encoded(gray_alpha))[0, :, 0].tolist() == [100, 255, 224]
    palette = Image.fromarray(np.uint8([[0, 1]]), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0])
    assert load_image(encoded(palette, transparency=0))[0].tolist() == [[255] * 3, [0, 255, 0]]
    keyed = encoded(PIXELS, transparency=(10, 20, 30))  # one RGB colour stands for transparent
    assert load_image(keyed)[1].tolist() == [[255] * 3, [200, 100, 50], [255] * 3]


def test_transparent_colour_survives_a_turn():
    exif = Image.Exif()
    exif[0x0112] = 3
    data = encoded(PIXELS, transparency=(255, 0, 0), exif=exif)
    assert load_image(data)[1, 2].tolist() == [255, 255, 255]


@pytest.mark.parametrize("ink, rgb", [((0, 0, 0, 0), 255), ((0, 0, 0, 255), 0)])
def test_cmyk_jpeg_is_not_inverted(ink, rgb):
    # Pillow writes the Adobe marker and stores the inks inverted, as Photoshop does.
    data = encoded(Image.new("CMYK", (8, 8), ink), "JPEG")
    assert b"Adobe" in data
    np.testing.assert_allclose(load_image(data), rgb, atol=2)


def test_cmyk_jpeg_colours():
    cyan = load_image(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG"))
    np.testing.assert_allclose(cyan, np.broadcast_to([0, 255, 255], (8, 8, 3)), atol=3)


@pytest.mark.parametrize("format", ["GIF", "WEBP", "TIFF", "PNG", "MPO"])
def test_first_frame(format):
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(first, format, save_all=True, append_images=[second], **options)
    np.testing.assert_allclose(load_image(data)[3, 3], [255, 0, 0], atol=1)


@pytest.mark.parametrize("side", [20_000, 9_000, 8_200])  # Pillow would raise, warn, say nothing
def test_bombs_are_refused_before_decoding_and_without_warning(side):
    data = png(side, side, 8, 2, b"")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ImageError, match=r"too large|max_pixels=67108864"):
            load_image(data)


def test_the_limit_is_inclusive_and_can_be_raised():
    np.testing.assert_array_equal(load_image(encoded(PIXELS), max_pixels=6), PIXELS)
    with pytest.raises(ImageError, match="announces 3 x 2 pixels, more than max_pixels=5"):
        load_image(encoded(PIXELS), max_pixels=5)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_cut_files_are_refused(rng, format):
    data = encoded(rng.integers(0, 256, (64, 64, 3), np.uint8), format)
    assert load_image(data).shape == (64, 64, 3)
    with pytest.raises(ImageError, match=r"damaged or cut short|not a readable image"):
        load_image(data[: len(data) // 2])


def test_a_flipped_bit_of_a_png_is_found(rng):
    data = bytearray(encoded(rng.integers(0, 256, (64, 64, 3), np.uint8)))
    data[len(data) // 2] ^= 1
    with pytest.raises(ImageError, match="damaged"):
        load_image(data)


def test_files_that_are_no_images(tmp_path):
    text, empty = tmp_path / "text.jpg", tmp_path / "empty.png"
    text.write_text("Not a photo, but long enough to look at.")
    empty.touch()
    with pytest.raises(ImageError, match=r"text\.jpg is not a readable image \(it begins with"):
        load_image(text)
    with pytest.raises(ImageError, match=r"empty\.png is empty"):
        load_image(empty)
    with pytest.raises(ImageError, match="0 bytes"):
        load_image(b"")
    with pytest.raises(ImageError, match="JPEG, PNG, GIF, BMP, WEBP or TIFF"):
        load_image(encoded(PIXELS, "PPM"))  # Pillow reads it, but it is not in the contract


def test_wrong_sources(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file .*absent\.png"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(IsADirectoryError, match="find_images"):
        load_image(tmp_path)
    for source in (PIXELS, 3, None):
        with pytest.raises(TypeError, match="expected a path or the bytes"):
            load_image(source)


def test_resize_to_half_is_antialiased():
    # The triangle filter of radius 2 over 4 pixels: its weights are 3, 3, 1 (and 1, 3, 3) sevenths.
    row = np.float32([0, 70, 140, 210])
    image = np.repeat(row.reshape(1, 4, 1), 3, axis=-1)
    expected = [(0 * 3 + 70 * 3 + 140) / 7, (70 + 140 * 3 + 210 * 3) / 7]  # 50, 160
    resized = resize_image(image, (1, 2))
    assert resized.dtype == np.float32
    np.testing.assert_allclose(resized[0, :, 0], expected, rtol=1e-6)
    whole = resize_image(image.astype(np.uint8), (1, 2))
    assert whole.dtype == np.uint8 and whole.flags.writeable
    np.testing.assert_array_equal(whole[0], [[50] * 3, [160] * 3])


def test_resize_to_double_interpolates_between_centres():
    image = np.repeat(np.float32([[[0.0]], [[4.0]]]), 3, axis=-1)
    resized = resize_image(image, [4, 1])
    np.testing.assert_allclose(resized[:, 0], np.repeat([[0], [1], [3], [4]], 3, axis=1))


def test_resize_keeps_channels_apart_and_floats_unclipped():
    image = np.broadcast_to(np.float64([-5.5, 0, 300]), (4, 6, 3))
    expected = np.broadcast_to(np.float32([-5.5, 0, 300]), (9, 2, 3))
    np.testing.assert_allclose(resize_image(image, (9, 2)), expected, rtol=1e-6)


def test_resize_to_the_same_size_is_a_copy():
    resized = resize_image(PIXELS, (2, 3))
    np.testing.assert_array_equal(resized, PIXELS)
    assert not np.shares_memory(resized, PIXELS)


@pytest.mark.parametrize("size", [(0, 5), (5,), (5, 5, 3), (-1, 2)])
def test_resize_refuses_sizes(size):
    with pytest.raises(ValueError, match="two positive numbers"):
        resize_image(PIXELS, size)


@pytest.mark.parametrize(
    "shape, hint",
    [
        ((1, 4, 5, 3), r"images\[0\]"),
        ((4, 5), "Repeat the gray channel"),
        ((4, 5, 1), "Repeat the gray channel"),
        ((4, 5, 4), "alpha"),
        ((3, 4, 5), "channels last"),
        ((0, 5, 3), "load_image"),
    ],
)
def test_resize_refuses_other_arrays(shape, hint):
    with pytest.raises(ValueError, match=hint):
        resize_image(np.zeros(shape, np.uint8), (2, 2))


def test_find_images(tmp_path):
    for name in ("b.JPG", "a.png", "note.txt", ".hidden.png", "sub/c.webp", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    a, b, c = tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "sub" / "c.webp"
    assert find_images(tmp_path) == [a, b]
    assert find_images(str(tmp_path), recursive=True) == [a, b, c]
    absent, text = tmp_path / "absent", tmp_path / "note.txt"
    assert find_images([b, absent, text, tmp_path, os.fspath(b)]) == [b, absent, text, a]
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no image in .*recursive=True"):
        find_images(tmp_path / "empty")


def test_demo_photos():
    photos = demo_photos()
    assert [photo.name for photo in photos] == ["cat.jpg", "espresso.jpg", "rocket.jpg"]
    shapes = [load_image(photo).shape for photo in photos]
    assert shapes == [(300, 451, 3), (400, 600, 3), (427, 640, 3)]
    licences = (photos[0].parent / "LICENSES.txt").read_text("utf-8")
    assert all(photo.name in licences for photo in photos)
