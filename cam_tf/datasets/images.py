"""From image files to RGB arrays: strict about damage and size, faithful to what a viewer shows."""

import io
import os
import threading
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")
EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp", ".tif", ".tiff"})
MAX_PIXELS = 2**26  # 8192 x 8192: the largest common cameras (64 megapixels), 192 MiB as RGB

_ORIENTATION_TAG = 0x0112
_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # TIFF tags
# Silencing Pillow's own bomb warning touches the process-wide filters: one thread at a time.
_HEADER_LOCK = threading.Lock()

PathLike = str | os.PathLike


class ImageError(ValueError):
    """A file is not an image that can be read whole: the message names the file and the reason."""


def load_image(source: PathLike | bytes, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Reads an image file as a viewer shows it.

    JPEG, PNG, GIF, BMP, WebP and TIFF are read; of an animation or a multi-page file the first
    frame. EXIF orientation is applied. Grayscale, palette, CMYK and YCbCr become RGB; transparency
    is composited over white. 16 bits become 8 by x / 257 rounded to nearest (in colour files the
    high byte is kept, at most one level away). Embedded colour profiles are not applied, as they
    are not in the pipelines that networks are trained with.

    Args:
        source: a path, or the bytes of a file.
        max_pixels: files whose header announces more pixels (of the first frame) are refused before
            anything is decoded. Default: 2**26, about 67 megapixels.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: the path is a directory.
        ImageError: not an image of these formats, damaged or cut short, too large, or with pixels
            of no known range (32-bit integers, floats). A damaged file is never padded with gray.
        TypeError: ``source`` is neither a path nor bytes.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        name = f"the image of {len(source)} bytes"
        return _read(io.BytesIO(source), name, max_pixels)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"load_image was given {type(source).__name__}: expected a path or the bytes of a file "
            "(an array needs no loading)."
        )
    path = Path(source)
    if path.is_dir():
        raise IsADirectoryError(
            f"{path} is a directory, not an image: find_images({str(path)!r}) lists its images."
        )
    try:
        stream = path.open("rb")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"there is no file {path} (working directory: {Path.cwd()})."
        ) from None
    with stream:
        return _read(stream, str(path), max_pixels)


def _read(stream: BinaryIO, name: str, max_pixels: int) -> np.ndarray:
    start = stream.read(16)
    if not start:
        raise ImageError(f"{name} is empty (0 bytes): fetch or export it again.")
    stream.seek(0)
    try:
        with _open(stream) as image:
            _check_size(image, name, max_pixels)
            image.load()
            return np.array(_to_rgb(_upright(image), name))
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{name} is not a readable image (it begins with {start!r}): use a "
            f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]} file."
        ) from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{name} is too large: {error} Make it smaller, or for a file that you trust raise "
            "max_pixels and PIL.Image.MAX_IMAGE_PIXELS."
        ) from error
    except Exception as error:  # decoders raise anything on damaged files
        reason = f"{type(error).__name__}: {error}".rstrip(".")
        raise ImageError(
            f"{name} is damaged or cut short ({reason}): fetch or export it again."
        ) from error


def _open(stream: BinaryIO) -> Image.Image:
    """Reads the header; Pillow's limit only warns where ours, checked next, decides."""
    with _HEADER_LOCK, warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(stream, formats=FORMATS)


def _check_size(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(
            f"{name} announces {width} x {height} pixels, more than max_pixels={max_pixels}: make "
            "it smaller, or raise max_pixels for a file that you trust."
        )


def _upright(image: Image.Image) -> Image.Image:
    """Applies the EXIF orientation (Pillow itself has already done so for TIFF)."""
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # broken metadata does not spoil good pixels; viewers ignore it too
        return image
    turn = _TRANSPOSES.get(orientation)
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info  # keeps a transparent colour
    return turned


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I;16"):
        return _gray16_to_rgb(image)
    if image.mode in ("I", "F"):
        kind = "signed or 32-bit integers" if image.mode == "I" else "floats"
        raise ImageError(
            f"{name} holds {kind}, whose black and white points are not known: save it with 8 or "
            "16 bits per channel, or scale its array to 0..255 yourself."
        )
    if image.mode == "LAB":
        raise ImageError(f"{name} holds CIELAB colours: save it as RGB.")
    if not image.has_transparency_data:
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    layer = image.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")


def _gray16_to_rgb(image: Image.Image) -> Image.Image:
    gray = np.asarray(image).astype(np.float64)
    tags = getattr(image, "tag_v2", {})  # TIFF: 12 bits come as they are, and 0 may mean white
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    scaled = np.rint(gray * (255 / (2**bits - 1)))
    if tags.get(_PHOTOMETRIC) == 0:
        scaled = 255 - scaled
    transparent = image.info.get("transparency")  # PNG: one gray value stands for transparent
    if isinstance(transparent, int):
        scaled[gray == transparent] = 255
    return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")


def demo_photos() -> list[Path]:
    """The photos that come with the package: a cat, an espresso, a rocket.

    Free of copyright (CC0 or public domain): ``photos/LICENSES.txt`` names authors and sources.
    """
    return find_images(Path(__file__).parent / "photos")


def check_image(image: np.ndarray) -> np.ndarray:
    """Returns an image as an array (H, W, 3) of numbers, or says what else it is.

    Raises:
        ValueError: the array is empty, not of numbers, or not (H, W, 3).
    """
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] == 3 and image.size and image.dtype.kind in "uif":
        return image
    hint = "Load files with cam_tf.load_image(path)."
    if image.ndim == 4:
        hint = "Pass one image of the batch: images[0]."
    elif image.ndim == 2 or image.shape[-1:] == (1,):
        hint = "Repeat the gray channel: np.repeat(gray.reshape(h, w, 1), 3, axis=-1)."
    elif image.ndim == 3 and image.shape[-1] == 4:
        hint = "Drop the alpha channel: image[..., :3]."
    elif image.ndim == 3 and image.shape[0] == 3:
        hint = "Put the channels last: np.moveaxis(image, 0, -1)."
    raise ValueError(
        f"image has shape {image.shape} and dtype {image.dtype}: expected RGB numbers (H, W, 3). "
        + hint
    )


def resize_image(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Warps the whole image to a size: bilinear, antialiased when it shrinks.

    This is Pillow's bilinear filter, whose support grows with the reduction. Classifiers are
    commonly evaluated with it (torchvision, timm), and it keeps fine texture from aliasing, which
    plain bilinear sampling does not. The aspect ratio is not kept, so relative boxes stay valid.

    Args:
        image: (H, W, 3) numbers.
        size: (height, width) in pixels.

    Returns:
        (height, width, 3): uint8 for a uint8 image (rounded), otherwise float32.

    Raises:
        ValueError: the image is not (H, W, 3), or ``size`` is not two positive numbers.
    """
    image = check_image(image)
    if len(size) != 2 or any(int(length) < 1 for length in size):
        raise ValueError(f"size={tuple(size)}: expected two positive numbers (height, width).")
    height, width = (int(length) for length in size)
    if image.shape[:2] == (height, width):
        return image.copy() if image.dtype == np.uint8 else image.astype(np.float32)

    def resized(plane: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(plane).resize((width, height), Image.Resampling.BILINEAR))

    if image.dtype == np.uint8:
        return resized(np.ascontiguousarray(image)).copy()
    planes = np.ascontiguousarray(np.moveaxis(image.astype(np.float32), -1, 0))
    return np.stack([resized(plane) for plane in planes], axis=-1)


def find_images(paths: PathLike | Iterable[PathLike], *, recursive: bool = False) -> list[Path]:
    """Lists image files: files as given, directories replaced by the images in them.

    Args:
        paths: one path or several. An explicit file is kept whatever its extension, even if it does
            not exist (``load_image`` says so when its turn comes, and the others are not lost).
        recursive: also looks into subdirectories. Hidden files and directories are left out.

    Returns:
        The files without repetition, in the order of ``paths``; a directory's files are sorted by
        path and chosen by extension (``EXTENSIONS``, upper or lower case).

    Raises:
        FileNotFoundError: a directory holds no image.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: list[Path] = []
    for path in map(Path, paths):
        found += _images_in(path, recursive) if path.is_dir() else [path]
    return list(dict.fromkeys(found))


def _images_in(directory: Path, recursive: bool) -> list[Path]:
    files = []
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = [name for name in subfolders if recursive and not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    images = sorted(file for file in files if file.suffix.lower() in EXTENSIONS)
    if not images:
        hint = "" if recursive else " Pass recursive=True to look into its subdirectories."
        raise FileNotFoundError(
            f"no image in {directory}: looked for {', '.join(sorted(EXTENSIONS))}.{hint}"
        )
    return images
