"""Images with boxes or masks, for weakly supervised localization: readers, and tensors from them.

``wsol_examples``, ``xml_examples`` and ``csv_examples`` read annotations of files (TFDS has a file
of its own, ``tfds.py``); ``LocalizationData.dataset`` makes a ``tf.data.Dataset`` of any of them.

Boxes here are an annotation's pixel coordinates divided by the size of the annotated image, as in
the WSOL benchmark: whether a source counts from 0 or 1, or means its last pixel inclusively, is not
evened out (it is one pixel of the original image at most). So ``np.rint(boxes * (h, w, h, w))``
gives back exactly the whole pixels that the annotation holds, as long as the image is not cut.
"""

import copy
import csv
import functools
import hashlib
import io
import xml.etree.ElementTree as ElementTree
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf
from PIL import Image

from cam_tf.datasets.imagenet import class_id, imagenet_classes
from cam_tf.datasets.images import (
    _ORIENTATION_TAG,
    _TRANSPOSES,
    PathLike,
    load_image,
    resize_image,
)

# A box may leave the image by this many pixels: float32 relative boxes multiplied out again.
_SLACK = 0.01
# What turns pixels that load_image has set upright back to how the file stores them.
_AS_STORED = {**_TRANSPOSES, 6: _TRANSPOSES[8], 8: _TRANSPOSES[6]}
_EDGES = ("ymin", "xmin", "ymax", "xmax")


class RecordError(ValueError):
    """A record cannot be used: ``id``, ``kind`` (a few words, to count by) and ``detail``."""

    def __init__(self, id: str, kind: str, detail: str):
        super().__init__(f"{id}: {kind}: {detail}")
        self.id, self.kind, self.detail = id, kind, detail


class Report:
    """The records that were left out and why: ``bad[id] = (kind, detail)``.

    A record counts once, however often the data set is gone through. ``str`` gives a summary.
    """

    def __init__(self):
        self.bad: dict[str, tuple[str, str]] = {}

    def add(self, error: RecordError) -> None:
        """Notes a bad record."""
        self.bad[error.id] = (error.kind, error.detail)

    def merge(self, other: "Report") -> None:
        """Takes over what another worker noted."""
        self.bad |= other.bad

    @property
    def counts(self) -> dict[str, int]:
        """The number of bad records of each kind, the most frequent first."""
        return dict(Counter(kind for kind, _ in self.bad.values()).most_common())

    def __len__(self) -> int:
        return len(self.bad)

    def __str__(self) -> str:
        if not self.bad:
            return "no bad record"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        first = "; ".join(f"{id}: {detail}" for id, (_, detail) in list(self.bad.items())[:3])
        return f"{len(self)} bad records left out ({kinds}): {first}" + "; ..." * (len(self) > 3)


@dataclass(frozen=True)
class Example:
    """One image, one class, and where that class is.

    Attributes:
        id: the record's name, unique in its data set.
        label: the class id.
        image: a path, the bytes of a file, or (H, W, 3) uint8 pixels.
        boxes: (n, 4) ``[ymin, xmin, ymax, xmax]`` in pixels of the original image.
        size: (height, width) of the original image; None: that of ``image``. The file may since
            have been warped to another size.
        masks: one mask for each object: paths, or arrays (H, W), not 0 where the object is.
        ignore: the pixels that do not count, likewise.
        upright: the annotations follow the image's EXIF orientation. False: they were drawn on the
            pixels as stored, as those of the older data sets were.
    """

    id: str
    label: int
    image: PathLike | bytes | np.ndarray
    boxes: np.ndarray = field(default_factory=lambda: np.zeros((0, 4)))
    size: tuple[int, int] | None = None
    masks: tuple[PathLike | np.ndarray, ...] = ()
    ignore: PathLike | np.ndarray | None = None
    upright: bool = False


class _Frame(NamedTuple):
    """The image is resized to ``resized``, then cut to ``size`` at ``corner``; (height, width)."""

    resized: tuple[int, int]
    corner: tuple[int, int]
    size: tuple[int, int]

    @classmethod
    def of(cls, original: Sequence[int], size: tuple[int, int], short_side: int | None) -> "_Frame":
        if short_side is None:
            return cls(size, (0, 0), size)
        shorter = min(original)
        height, width = (length * short_side // shorter for length in original)
        corner = ((height - size[0]) // 2, (width - size[1]) // 2)
        return cls((height, width), corner, size)

    def cut(self, pixels: np.ndarray) -> np.ndarray:
        (top, left), (height, width) = self.corner, self.size
        return pixels[top : top + height, left : left + width]

    def boxes(self, boxes: np.ndarray) -> np.ndarray:
        """Moves relative boxes with the image, and leaves out those that are cut away."""
        if self.resized == self.size:
            return boxes
        moved = (boxes * np.tile(self.resized, 2) - np.tile(self.corner, 2)) / np.tile(self.size, 2)
        seen = (moved[:, 2:] > 0).all(axis=1) & (moved[:, :2] < 1).all(axis=1)
        return np.clip(moved[seen], 0, 1)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        height, width = self.resized
        resized = cv2.resize(np.uint8(mask), (width, height), interpolation=cv2.INTER_NEAREST)
        return self.cut(resized).astype(bool)


class LocalizationData(ABC):
    """Examples from anywhere. ``report`` says which records were left out.

    A subclass gives ``_elements`` (a data set of tuples of tensors) and ``_example`` (from the
    NumPy values of one tuple to an ``Example``).
    """

    def __init__(self, report: Report, strict: bool, has_masks: bool):
        self.report = report
        self.strict = strict
        self.has_masks = has_masks

    @abstractmethod
    def _elements(self) -> tf.data.Dataset:
        """The data set of tuples of tensors, one for each example."""

    @abstractmethod
    def _example(self, *values) -> Example:
        """From the NumPy values of one tuple to an ``Example``."""

    def dataset(
        self,
        size: int | Sequence[int] | None = None,
        *,
        short_side: int | None = None,
        batch_size: int | None = None,
    ) -> tf.data.Dataset:
        """Reads, resizes and batches the examples: in parallel, always in the same order.

        Images are decoded by ``cam_tf.load_image`` and resized by ``cam_tf.resize_image``, so that
        they are the pixels that the rest of the package sees; masks are resized to the nearest
        pixel, as in the benchmark's code (``cv2.INTER_NEAREST``). Bad records (a missing or damaged
        file, a box outside the image or with ymin > ymax, a label out of range, an annotation that
        cannot be read) are left out whole and noted in ``report``.

        Args:
            size: (height, width) of the images, or one number for both; None: as they are.
            short_side: None warps the whole image to ``size``. A number scales the original aspect
                ratio so that the shorter side has so many pixels, then cuts ``size`` from the
                centre: boxes are clipped, and those that are cut away left out.
            batch_size: batches, of which the last may be smaller; boxes are padded with zeros.

        Returns:
            A data set of dictionaries (with a leading batch dimension N when batched):

            - ``image`` (H, W, 3) uint8, RGB; ``label`` int32; ``id`` string;
            - ``boxes`` (n, 4) float32 ``[ymin, xmin, ymax, xmax]`` relative to ``image``, and
              ``box_count`` int32, n before padding;
            - ``size`` (2,) int32, (height, width) of the original image in pixels;
            - ``mask``, ``ignore_mask`` (H, W) bool, where the data have masks (``has_masks``): the
              union of the objects, and the pixels outside them that do not count.

        Raises:
            ValueError: ``size`` or ``short_side`` is not possible, or a batch has no ``size``.
            tf.errors.InvalidArgumentError: while iterating, at the first bad record with
                ``strict=True``; the message names its id.
        """
        size = _check_size(size, short_side, batch_size)
        signature = {
            "image": tf.TensorSpec((*(size or (None, None)), 3), tf.uint8),
            "label": tf.TensorSpec((), tf.int32),
            "boxes": tf.TensorSpec((None, 4), tf.float32),
            "box_count": tf.TensorSpec((), tf.int32),
            "id": tf.TensorSpec((), tf.string),
            "size": tf.TensorSpec((2,), tf.int32),
        }
        if self.has_masks:
            mask = tf.TensorSpec(size or (None, None), tf.bool)
            signature |= {"mask": mask, "ignore_mask": mask}
        read = functools.partial(self._read, signature, size, short_side)

        def tensors(*values):
            types = [tf.bool, *(spec.dtype for spec in signature.values())]
            good, *arrays = tf.numpy_function(read, values, types)
            good.set_shape(())
            named = dict(zip(signature, arrays, strict=True))
            return good, {k: tf.ensure_shape(v, signature[k].shape) for k, v in named.items()}

        examples = self._elements().map(tensors, tf.data.AUTOTUNE, deterministic=True)
        examples = examples.filter(lambda good, _: good).map(lambda _, named: named)
        if batch_size is not None:
            examples = examples.padded_batch(batch_size)
        return examples.prefetch(tf.data.AUTOTUNE)

    def _read(self, signature: dict, size, short_side, *values) -> tuple:
        """Returns whether the record of one element is good, and the arrays of the signature."""
        with _noting(self.report, self.strict):
            arrays = _arrays(self._example(*values), size, short_side, self.has_masks)
            return np.True_, *(arrays[key] for key in signature)
        return np.False_, *map(_blank, signature.values())


@contextmanager
def _noting(report: Report, strict: bool) -> Iterator[None]:
    """Notes a bad record of the block in the report; lets the error through when strict."""
    try:
        yield
    except RecordError as error:
        report.add(error)
        if strict:
            raise


def _blank(spec: tf.TensorSpec) -> np.ndarray | bytes:
    """Something of the right type in the place of a bad record, until it is filtered out."""
    if spec.dtype == tf.string:
        return b""
    return np.zeros([length or 0 for length in spec.shape], spec.dtype.as_numpy_dtype)


def _check_size(size, short_side, batch_size) -> tuple[int, int] | None:
    if size is None:
        if short_side is not None or batch_size is not None:
            raise ValueError("images are cut and batched at one size: pass size=(height, width).")
        return None
    size = (size, size) if isinstance(size, int) else tuple(int(length) for length in size)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size={size}: expected two positive numbers (height, width).")
    if short_side is not None and short_side < max(size):
        raise ValueError(
            f"short_side={short_side} leaves less than size={size} to cut out: use at least "
            f"{max(size)}."
        )
    return size


def _arrays(example: Example, size, short_side, has_masks: bool) -> dict[str, np.ndarray]:
    """Reads the files of one example and resizes all alike, or raises ``RecordError``."""
    image = read_pixels(example.id, example.image, example.upright)
    original = example.size or image.shape[:2]
    frame = _Frame.of(original, size or image.shape[:2], short_side)
    boxes = frame.boxes(relative_boxes(example, original))
    arrays = {
        "image": frame.cut(resize_image(image, frame.resized)),
        "label": np.int32(example.label),
        "boxes": boxes.astype(np.float32),
        "box_count": np.int32(len(boxes)),
        "id": example.id.encode(),
        "size": np.int32(original),
    }
    if has_masks:
        if not example.masks:
            raise RecordError(example.id, "no mask", "the other records have one.")
        masks = [frame.mask(_read_mask(example, mask)) for mask in example.masks]
        arrays["mask"] = np.any(masks, axis=0)
        arrays["ignore_mask"] = np.zeros_like(arrays["mask"])
        if example.ignore is not None:
            ignore = frame.mask(_read_mask(example, example.ignore))
            arrays["ignore_mask"] = ignore & ~arrays["mask"]
    return arrays


def read_pixels(id: str, source: PathLike | bytes | np.ndarray, upright: bool) -> np.ndarray:
    """Returns the (H, W, 3) uint8 pixels of a record's image, or raises ``RecordError``."""
    if isinstance(source, np.ndarray):
        return source
    try:
        pixels = load_image(source)
    except FileNotFoundError as error:
        raise RecordError(id, "missing file", str(error)) from error
    except (OSError, ValueError) as error:
        raise RecordError(id, "damaged image", str(error)) from error
    if upright:
        return pixels
    with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as header:
        turn = header.getexif().get(_ORIENTATION_TAG)
    if turn not in _AS_STORED:
        return pixels
    return np.asarray(Image.fromarray(pixels).transpose(_AS_STORED[turn]))


def _read_mask(example: Example, source: PathLike | np.ndarray) -> np.ndarray:
    """Returns a mask (H, W), true where the file or the array is not 0."""
    if isinstance(source, np.ndarray):
        return source != 0
    return read_pixels(example.id, source, example.upright).any(axis=-1)


def relative_boxes(example: Example, size: Sequence[int]) -> np.ndarray:
    """Returns (n, 4) float64 boxes relative to ``size`` (height, width), or raises ``RecordError``.

    A box may touch the image's edges and may be a single line or point, but not leave the image.
    """
    edges = np.tile(size, 2)
    for box in example.boxes:
        names = ", ".join(f"{name}={edge:g}" for name, edge in zip(_EDGES, box, strict=True))
        where = f"{names}, in an image of height {size[0]} and width {size[1]}."
        if not (box[0] <= box[2] and box[1] <= box[3]):  # also where one is not a number
            raise RecordError(example.id, "ymin > ymax or xmin > xmax", where)
        if (box < -_SLACK).any() or (box > edges + _SLACK).any():
            raise RecordError(example.id, "box outside the image", where)
    return np.clip(example.boxes / edges, 0, 1)


def check_label(id: str, label: int, classes: int | None) -> int:
    """Returns the label, or raises ``RecordError`` if it is not one of 0..classes - 1."""
    if label < 0 or (classes is not None and label >= classes):
        known = "not negative" if classes is None else f"0..{classes - 1}"
        raise RecordError(id, "label out of range", f"label {label}, expected {known}.")
    return label


def check_shard(index: int, count: int) -> None:
    """Raises ``ValueError`` unless 0 <= index < count."""
    if not 0 <= index < count:
        raise ValueError(f"shard {index} of {count}: expected 0 <= index < count.")


class Examples(LocalizationData):
    """A list of ``Example``: ``examples[i]``, ``examples[:100]``, ``len(examples)``.

    Parts (slices, ``shard``, ``split``) share one report.

    Args:
        examples: the examples.
        strict: stop the iteration at a bad record.
        report: where to note bad records, with those that the reader has met.
    """

    def __init__(
        self, examples: Iterable[Example], *, strict: bool = False, report: Report | None = None
    ):
        self._list = list(examples)
        has_masks = any(example.masks for example in self._list)
        super().__init__(Report() if report is None else report, strict, has_masks)

    def __len__(self) -> int:
        return len(self._list)

    def __getitem__(self, index):
        return self._part(self._list[index]) if isinstance(index, slice) else self._list[index]

    def _part(self, examples: list[Example]) -> "Examples":
        part = copy.copy(self)
        part._list = examples
        return part

    def shard(self, index: int, count: int) -> "Examples":
        """Returns every ``count``-th example from ``index`` on: the share of one of the workers.

        Raises:
            ValueError: not 0 <= ``index`` < ``count``.
        """
        check_shard(index, count)
        return self[index::count]

    def split(self, share: float, seed: int = 0) -> tuple["Examples", "Examples"]:
        """Splits the images into two parts, to tune on one and report on the other.

        Which part an image goes to depends on its id and the seed, not on the order; examples of
        several classes in one image stay together.

        Args:
            share: the share of the first part, 0 to 1.
            seed: another number, another split.

        Raises:
            ValueError: ``share`` is not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share={share}: expected a share of the images, from 0 to 1.")
        images = [example.id.partition("#")[0] for example in self._list]

        def place(image: str) -> bytes:
            return hashlib.sha256(f"{seed}/{image}".encode()).digest()

        chosen = set(sorted(set(images), key=place)[: round(share * len(set(images)))])
        parts = [[], []]
        for image, example in zip(images, self._list, strict=True):
            parts[image not in chosen].append(example)
        return self._part(parts[0]), self._part(parts[1])

    def _elements(self) -> tf.data.Dataset:
        return tf.data.Dataset.range(len(self))

    def _example(self, index: int) -> Example:
        return self._list[index]


def wsol_examples(
    images: PathLike,
    metadata: PathLike,
    *,
    split: str | None = None,
    masks: PathLike | None = None,
    classes: int | None = None,
    strict: bool = False,
) -> Examples:
    """Reads a metadata folder of the WSOL benchmark (Choe et al., CVPR 2020): ILSVRC, CUB, ...

    The folder holds ``image_ids.txt`` (a path in each line), ``class_labels.txt`` (id,label) and,
    where there are annotations, ``localization.txt``: id,x0,y0,x1,y1 in pixels of the original
    image, a line for each box; or (OpenImages) id,mask file,ignore mask file, a line for each
    object, where only one line of an image names the ignore mask. ``image_sizes.txt``
    (id,width,height) gives the original sizes, so the image files may have been resized.

    Args:
        images: the folder that the ids are relative to.
        metadata: the folder of the text files, or the one above its splits.
        split: ``"train"``, ``"val"`` or ``"test"``: a folder in ``metadata``.
        masks: the folder that the mask files are relative to. Default: ``images``.
        classes: the number of classes, to find labels out of range.
        strict: stop at the first bad record, with an error that names its id.

    Returns:
        The examples in the order of ``image_ids.txt``. If there is a ``localization.txt``, an image
        that is not in it is a bad record.

    Raises:
        FileNotFoundError: ``image_ids.txt`` or ``class_labels.txt`` is not there.
        RecordError: an annotation is bad, and ``strict``.
    """
    folder = Path(metadata, split or "")
    if not (folder / "image_ids.txt").is_file():
        splits = sorted(path.parent.name for path in folder.glob("*/image_ids.txt"))
        hint = f" Choose split= from {splits}." if splits else ""
        raise FileNotFoundError(f"there is no image_ids.txt in {folder}.{hint}")
    labels = _table(folder / "class_labels.txt", 1)
    sizes = _table(folder / "image_sizes.txt", 2, optional=True)
    places = folder / "localization.txt"
    has_boxes = places.is_file() and places.read_text("utf-8").rstrip()[-1:].isdigit()
    places = _table(places, 4 if has_boxes else 2, optional=True)

    def record(id: str) -> _Record:
        if id not in labels:
            raise RecordError(id, "no label", "it is not in class_labels.txt.")
        if places and id not in places:
            raise RecordError(id, "no box or mask", "it is not in localization.txt.")
        label = check_label(id, *_numbers(id, labels[id][0], 1, int), classes)
        size = _numbers(id, sizes[id][0], 2, int)[::-1] if id in sizes else None
        objects = [_Object(label)]
        if has_boxes:
            rows = [_numbers(id, row, 4) for row in places[id]]
            objects = [_Object(label, (y0, x0, y1, x1)) for x0, y0, x1, y1 in rows]
        elif places:
            objects = [_Object(label, (), *row) for row in places[id]]
        return _Record(id, Path(images, id), objects, size, masks or images)

    return _collect(_lines(folder / "image_ids.txt"), record, strict)


def xml_examples(
    images: PathLike,
    annotations: PathLike,
    *,
    classes: Sequence[str] | None = None,
    strict: bool = False,
) -> Examples:
    """Reads ILSVRC's own annotations, or any in the XML format of PASCAL VOC.

    Args:
        images: the folder of the images, laid out as that of the annotations
            (``val/ILSVRC2012_val_00000001.xml`` describes ``val/ILSVRC2012_val_00000001.JPEG``).
            The extension is that of the XML's ``filename``, or else ``.JPEG``.
        annotations: the folder of the XML files, with its subfolders.
        classes: the names that stand in the XML, by class id. Default: the WordNet ids (synsets) of
            ImageNet, in the order of ``keras.applications``.
        strict: stop at the first bad record, with an error that names its id.

    Returns:
        The examples, sorted by path; the id is the path of the XML file in its folder, without
        ``.xml``. Where an image holds several classes, one example for each, ``id#class id``, with
        the boxes of that class. All objects count, difficult and truncated ones too.

    Raises:
        FileNotFoundError: there is no XML file.
        RecordError: an annotation is bad, and ``strict``.
    """
    names = imagenet_classes() if classes is None else list(classes)
    label_of = functools.cache(functools.partial(class_id, names=names))
    files = {
        path.relative_to(annotations).with_suffix("").as_posix(): path
        for path in sorted(Path(annotations).rglob("*.xml"))
    }
    if not files:
        raise FileNotFoundError(f"there is no XML file in {annotations}.")

    def record(id: str) -> _Record:
        try:
            root = ElementTree.parse(files[id]).getroot()
            sides = [int(root.findtext(f"size/{side}", "0")) for side in ("height", "width")]
            objects = [
                _Object(
                    _named(id, item.findtext("name", ""), label_of),
                    tuple(float(item.findtext(f"bndbox/{edge}", "")) for edge in _EDGES),
                )
                for item in root.iter("object")
            ]
        except RecordError:
            raise
        except (ElementTree.ParseError, ValueError) as error:
            raise RecordError(id, "malformed annotation", f"{files[id]}: {error}") from error
        if not objects:
            raise RecordError(id, "no box or mask", f"{files[id]} has no object.")
        suffix = Path(root.findtext("filename", "")).suffix or ".JPEG"
        return _Record(id, Path(images, id + suffix), objects, sides if all(sides) else None)

    return _collect(files, record, strict)


def csv_examples(
    images: PathLike,
    table: PathLike,
    *,
    classes: int | Sequence[str] | None = None,
    strict: bool = False,
) -> Examples:
    """Reads a CSV table (UTF-8, with a header line) about the images of a folder.

    A row is one object, or one image without annotation. Its columns, in any order:

    - ``image``: the file, relative to the folder; also the id.
    - ``label``: the class id, or with ``classes`` as names the class name.
    - ``xmin,ymin,xmax,ymax`` (optional): the box in pixels; all empty where there is none.
    - ``width,height`` (optional): the size in pixels of the image that the boxes were drawn on, if
      the file has since been resized.
    - ``mask``, ``ignore_mask`` (optional): image files, relative to the folder, not black where the
      object is and where pixels do not count.

    The annotations follow the image's EXIF orientation, as annotation tools do.

    Args:
        images: the folder of the images.
        table: the CSV file.
        classes: the class names by class id, or the number of classes; None: any id.
        strict: stop at the first bad record, with an error that names its id.

    Returns:
        The examples in the order of the table. Where an image holds several classes, one example
        for each, ``id#class id``.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: the columns ``image`` and ``label`` are not there.
        RecordError: a row is bad, and ``strict``.
    """
    with open(table, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, restval="")
        columns = set(reader.fieldnames or ())
        if not {"image", "label"} <= columns:
            raise ValueError(f"{table} has the columns {sorted(columns)}: expected image,label,...")
        rows: dict[str, list[dict[str, str]]] = {}
        for row in reader:
            rows.setdefault(row["image"], []).append(row)

    def cells(id: str, row: dict, names: Sequence[str], kind: type = float) -> tuple:
        found = [row.get(name, "") for name in names]
        return _numbers(id, found, len(names), kind) if any(found) else ()

    def label(id: str, row: dict) -> int:
        if isinstance(classes, int | None):
            return check_label(id, *_numbers(id, [row["label"]], 1, int), classes)
        return _named(id, row["label"], functools.partial(class_id, names=classes))

    def record(id: str) -> _Record:
        if any(None in row for row in rows[id]):
            raise RecordError(id, "malformed annotation", "a row has more cells than the header.")
        objects = [
            _Object(
                label(id, row),
                cells(id, row, _EDGES),
                row.get("mask", ""),
                row.get("ignore_mask", ""),
            )
            for row in rows[id]
        ]
        sizes = [cells(id, row, ("height", "width"), int) for row in rows[id]]
        size = next(filter(None, sizes), None)
        return _Record(id, Path(images, id), objects, size, images, upright=True)

    return _collect(rows, record, strict)


class _Object(NamedTuple):
    """One object of a record: its class, its box in pixels, its masks' names, as far as known."""

    label: int
    box: tuple[float, ...] = ()
    mask: str = ""
    ignore: str = ""


class _Record(NamedTuple):
    id: str
    image: Path
    objects: Sequence[_Object]
    size: Sequence[int] | None = None
    masks: PathLike = ""
    upright: bool = False

    def examples(self) -> Iterator[Example]:
        """Gives an example for each class; checks the boxes where the size is known already."""
        if self.size is not None and min(self.size) < 1:
            raise RecordError(self.id, "malformed annotation", f"size {tuple(self.size)}.")
        labels = dict.fromkeys(found.label for found in self.objects)
        for label in labels:
            mine = [found for found in self.objects if found.label == label]
            example = Example(
                self.id if len(labels) == 1 else f"{self.id}#{label}",
                label,
                self.image,
                np.reshape([found.box for found in mine if found.box], (-1, 4)),
                self.size,
                tuple(Path(self.masks, found.mask) for found in mine if found.mask),
                next((Path(self.masks, found.ignore) for found in mine if found.ignore), None),
                self.upright,
            )
            if self.size is not None:
                relative_boxes(example, self.size)
            yield example


def _collect(ids: Iterable[str], record: Callable[[str], _Record], strict: bool) -> Examples:
    report, found = Report(), []
    for id in dict.fromkeys(ids):
        with _noting(report, strict):
            found += list(record(id).examples())
    return Examples(found, strict=strict, report=report)


def _named(id: str, name: str, label_of: Callable[[str], int]) -> int:
    try:
        return label_of(name)
    except ValueError as error:
        raise RecordError(id, "label out of range", str(error)) from error


def _numbers(id: str, cells: Sequence[str], count: int, kind: type = float) -> tuple:
    """Returns the numbers that the cells hold, or raises ``RecordError``."""
    try:
        numbers = tuple(kind(cell) for cell in cells)
    except ValueError:
        numbers = ()
    if len(numbers) != count:
        raise RecordError(id, "malformed annotation", f"{list(cells)} are not {count} numbers.")
    return numbers


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text("utf-8-sig").splitlines() if line.strip()]


def _table(path: Path, cells: int, optional: bool = False) -> dict[str, list[list[str]]]:
    """Reads lines of an id and so many cells: id -> the cells of each of its lines."""
    rows: dict[str, list[list[str]]] = {}
    for line in [] if optional and not path.is_file() else _lines(path):
        id, *row = line.rsplit(",", cells)  # the id is a path, which may hold a comma
        if len(row) < cells:
            id, *row = line.split(",")
        rows.setdefault(id, []).append(row)
    return rows
