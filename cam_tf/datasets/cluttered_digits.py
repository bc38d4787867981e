"""``cluttered_digits``: a TFDS data set made offline, on which everything can be tried in minutes.

Each image holds one whole handwritten digit, enlarged and placed at random, among pieces of
other digits. The class is that of the whole digit; its box and mask are known exactly.

The digits are the 1,797 that come inside scikit-learn (8 x 8 pixels, 17 gray levels): the test part
of "Optical Recognition of Handwritten Digits", E. Alpaydin and C. Kaynak, UCI Machine Learning
Repository, 1998 (CC BY 4.0). Cluttered digits as a task: Mnih et al., "Recurrent Models of Visual
Attention", NeurIPS 2014, section 4.1, with pieces of MNIST's digits.
"""

import functools
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_COUNTS = {"train": 6000, "validation": 1000, "test": 1000}
_SOURCE_SHARES = {"train": 0.7, "validation": 0.15, "test": 0.15}
_SEED = 1998
_LEVELS = 16  # of scikit-learn's digits: 0..16
_PIECE = (3, 5)  # sides of the clutter, in pixels of a digit of 8 x 8
_VISIBLE = 80  # the opacity, of 255, from which ink belongs to the mask
_TRIES = 10  # to find a place for a piece of clutter that does not touch the digit


@dataclass
class ClutteredDigitsConfig(tfds.core.BuilderConfig):
    """The size of the images, and what they hold.

    Attributes:
        size: height and width of the images in pixels.
        digit: the least and the greatest height of the whole digit in pixels.
        pieces: the least and the greatest number of pieces of other digits.
    """

    size: int = 64
    digit: tuple[int, int] = (26, 40)
    pieces: tuple[int, int] = (5, 9)


class ClutteredDigits(tfds.core.GeneratorBasedBuilder):
    """One whole handwritten digit among pieces of other digits, with its box and mask.

    Configurations ``64`` and ``96`` (pixels), splits ``train``, ``validation`` and ``test``, which
    share no source digit, neither whole nor in pieces. An image depends on nothing but its
    configuration, split and number: generated twice, it is the same to the bit.

    Raises:
        ImportError: while generating, if scikit-learn is not installed.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = (
        ClutteredDigitsConfig(name="64", description="64 x 64 pixels, 5 to 9 pieces"),
        ClutteredDigitsConfig(
            name="96",
            description="96 x 96 pixels, 8 to 14 pieces",
            size=96,
            digit=(30, 56),
            pieces=(8, 14),
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        size = self.builder_config.size
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__.partition("Raises:")[0].strip(),
            features=tfds.features.FeaturesDict(
                {
                    "id": tfds.features.Text(),
                    "image": tfds.features.Image(shape=(size, size, 3), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=[str(digit) for digit in range(10)]),
                    "bbox": tfds.features.BBoxFeature(),
                    "mask": tfds.features.Image(shape=(size, size, 1), encoding_format="png"),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
            license="CC BY 4.0 (the source digits)",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict:
        return {split: self._generate_examples(split) for split in _COUNTS}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        digits, labels = _sources()[split]
        for number in range(_COUNTS[split]):
            id = f"{split}-{number:05d}"
            # RandomState's stream is frozen for good (NEP 19), that of default_rng is not.
            seed = zlib.crc32(f"{self.builder_config.name}/{id}".encode())
            scene = draw(digits, number, self.builder_config, np.random.RandomState(seed))
            rows, columns = (np.flatnonzero(scene.mask.any(axis=axis)) for axis in (1, 0))
            edges = np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
            yield (
                id,
                {
                    "id": id,
                    "image": scene.image,
                    "label": int(labels[number % len(labels)]),
                    "bbox": tfds.features.BBox(*(edges / self.builder_config.size).tolist()),
                    "mask": scene.mask[..., None],
                },
            )


class Scene(NamedTuple):
    """``image`` (size, size, 3) uint8; ``mask`` (size, size) uint8, 255 on the digit, else 0."""

    image: np.ndarray
    mask: np.ndarray


def draw(
    digits: np.ndarray, number: int, config: ClutteredDigitsConfig, rng: np.random.RandomState
) -> Scene:
    """Draws the whole digit ``digits[number % n]`` among pieces of the others.

    Pieces may cover each other, and come up to the digit's box, but not into it.

    Args:
        digits: (n, 8, 8) uint8, 0..255.
        number: chooses the digit.
        config: sizes and numbers.
        rng: everything else is drawn from it.
    """
    size = config.size
    image = np.broadcast_to(rng.randint(0, 64, 3), (size, size, 3)).astype(np.uint8)
    whole = _ink(digits[number % len(digits)])
    whole = _enlarged(whole, rng.randint(config.digit[0], config.digit[1] + 1) / len(whole))
    place = _place(whole, size, rng)
    _paint(image, whole, place, rng)
    mask = np.zeros((size, size), np.uint8)
    mask[place] = np.where(whole >= _VISIBLE, 255, 0)
    free = np.ones((size, size), bool)
    free[place] = False
    for _ in range(rng.randint(config.pieces[0], config.pieces[1] + 1)):
        other = _ink(digits[(number + rng.randint(1, len(digits))) % len(digits)])
        scale = rng.randint(config.digit[0], config.digit[1] + 1) / len(other)
        piece = _enlarged(_piece(other, rng), scale)
        places = (_place(piece, size, rng) for _ in range(_TRIES))
        place = next((place for place in places if free[place].all()), None)
        if place is not None:
            _paint(image, piece, place, rng)
    return Scene(image, mask)


def _ink(digit: np.ndarray) -> np.ndarray:
    """Cuts a digit to where there is ink."""
    rows, columns = (np.flatnonzero(digit.any(axis=axis)) for axis in (1, 0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _piece(digit: np.ndarray, rng: np.random.RandomState) -> np.ndarray:
    """Cuts a piece from a digit: at most half of it in each direction, or little more."""
    height, width = (min(rng.randint(_PIECE[0], _PIECE[1] + 1), side) for side in digit.shape)
    top, left = rng.randint(len(digit) - height + 1), rng.randint(digit.shape[1] - width + 1)
    return digit[top : top + height, left : left + width]


def _enlarged(ink: np.ndarray, scale: float) -> np.ndarray:
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    # Pillow resizes 8-bit images in fixed-point arithmetic: the same on any machine.
    return np.asarray(Image.fromarray(ink).resize((width, height), Image.Resampling.BICUBIC))


def _place(ink: np.ndarray, size: int, rng: np.random.RandomState) -> tuple[slice, slice]:
    """Returns the rows and columns of a random place inside the image."""
    corner = (rng.randint(size - side + 1) for side in ink.shape)
    return tuple(slice(start, start + side) for start, side in zip(corner, ink.shape, strict=True))


def _paint(
    image: np.ndarray, ink: np.ndarray, place: tuple[slice, slice], rng: np.random.RandomState
) -> None:
    """Paints ink of any light colour over a place in the image."""
    opacity = ink[..., None].astype(int)
    image[place] = (opacity * rng.randint(128, 256, 3) + (255 - opacity) * image[place]) // 255


@functools.cache
def _sources() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Deals the digits out to the splits, class by class: (n, 8, 8) uint8 0..255 and (n,) labels.

    The last split takes what is left. Consecutive digits of a split are of all classes.
    """
    images, labels = _load_digits()
    parts: dict[str, list[int]] = {split: [] for split in _SOURCE_SHARES}
    rng = np.random.RandomState(_SEED)
    for label in range(10):
        mine = rng.permutation(np.flatnonzero(labels == label))
        ends = np.rint(np.cumsum(list(_SOURCE_SHARES.values())) * len(mine)).astype(int)
        for split, part in zip(parts, np.split(mine, ends[:-1]), strict=True):
            parts[split] += part.tolist()
    scaled = (images.astype(int) * 255 // _LEVELS).astype(np.uint8)
    mixed = {split: rng.permutation(part) for split, part in parts.items()}
    return {split: (scaled[part], labels[part]) for split, part in mixed.items()}


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "cluttered_digits is made from the digits of scikit-learn, which is not installed: "
            'pip install "cam-tf[train]".'
        ) from error
    found = load_digits()
    return found.images, found.target
