"""TensorFlow Datasets by name, as examples with boxes and masks for weakly supervised localization.

TFDS gives boxes as this package does, relative ``[ymin, xmin, ymax, xmax]``; the data sets differ
in where they stand, in what their masks mean, and in whether an image has one class or several.
"""

import types
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cam_tf.datasets.localization import (
    Example,
    LocalizationData,
    RecordError,
    Report,
    check_label,
    check_shard,
    read_pixels,
)
from cam_tf.suggestions import did_you_mean


class _Layout(NamedTuple):
    """Where a data set keeps what; ``mask`` gives from its array (object, pixels to ignore)."""

    id: str = "image/filename"
    label: tuple[str, ...] = ("label",)
    boxes: tuple[str, ...] | None = ("bbox",)
    crowd: tuple[str, ...] | None = None
    mask_key: str = "segmentation_mask"
    mask: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]] | None = None


_LAYOUTS = {
    "caltech_birds2010": _Layout(mask=lambda mask: (mask > 0, None)),
    # 255 times the share of the five annotators who saw the bird there: the majority decides.
    "caltech_birds2011": _Layout(mask=lambda mask: (mask > 127, None)),
    "cars196": _Layout(id="id"),
    "cluttered_digits": _Layout(id="id", mask_key="mask", mask=lambda mask: (mask > 0, None)),
    "stanford_dogs": _Layout(boxes=("objects", "bbox")),
    # The trimap: 1 animal, 2 background, 3 the border, which is not classified. ``head_bbox`` is
    # the head only.
    "oxford_iiit_pet": _Layout(
        id="file_name", boxes=None, mask=lambda trimap: (trimap == 1, trimap == 3)
    ),
    "voc": _Layout(label=("objects", "label"), boxes=("objects", "bbox")),
    "coco": _Layout(
        label=("objects", "label"), boxes=("objects", "bbox"), crowd=("objects", "is_crowd")
    ),
}


def tfds_examples(
    name: str,
    split: str,
    *,
    data_dir: str | None = None,
    download: bool = True,
    strict: bool = False,
) -> "TFDSExamples":
    """Opens a data set of TensorFlow Datasets that carries boxes, as examples for localization.

    ============================  ===================================  ============================
    name                          boxes                                masks
    ============================  ===================================  ============================
    ``caltech_birds2010``, 2011   the bird                             the bird
    ``cars196``                   the car
    ``cluttered_digits``          the whole digit (made here,          the whole digit
                                  offline: 64 or 96 pixels)
    ``stanford_dogs``             every dog
    ``oxford_iiit_pet``           around all that is not background:   the animal; its border, not
                                  ``head_bbox`` is the head only       classified, is ignored
    ``voc``, ``coco``             every object of the class, difficult
                                  ones too, COCO's crowds left out
    ============================  ===================================  ============================

    An image of ``voc`` or ``coco`` gives one example for each of its classes, with the boxes of
    that class (its id is ``file#class id`` if there are several), and none if nothing is annotated.

    Args:
        name: the data set, with its configuration if wanted: ``"voc/2012"``.
        split: as in TFDS: ``"train"``, ``"test[:10%]"``.
        data_dir: where TFDS keeps its data. Default: TFDS's own.
        download: download and prepare the data set if it is not there.
        strict: stop the iteration at the first bad record, with an error that names its id.

    Returns:
        The examples, always in the same order: ``.dataset(size, ...)`` gives the tensors (see
        ``LocalizationData.dataset``), ``.report`` the records left out, ``.shard(index, count)``
        the share of one worker.

    Raises:
        ImportError: tensorflow-datasets is not installed.
        ValueError: not one of these data sets, or a configuration without boxes.
    """
    tfds = import_tfds("tfds_examples")
    layout = _LAYOUTS.get(name.split("/")[0].split(":")[0])
    if layout is None:
        raise ValueError(
            f"{name!r} is not a data set whose boxes are known.{did_you_mean(name, _LAYOUTS)} "
            f"Known: {', '.join(_LAYOUTS)}. csv_examples reads any other from a table."
        )
    builder = tfds.builder(name, data_dir=data_dir)
    features = builder.info.features
    missing = {path[0] for path in (layout.label, layout.boxes) if path} - set(features)
    if missing:
        raise ValueError(
            f"{name!r} has no {', '.join(sorted(missing))}: choose another of its "
            f"configurations, {', '.join(builder.builder_configs)}."
        )
    if download:
        builder.download_and_prepare()
    undecoded = {"image": tfds.decode.SkipDecoding()}
    raw = builder.as_dataset(split=split, decoders=undecoded, shuffle_files=False)
    return TFDSExamples(raw, layout, _at(features, layout.label).num_classes, strict)


def import_tfds(caller: str) -> types.ModuleType:
    """Imports tensorflow_datasets, which thereby knows ``cluttered_digits``, or says what to do."""
    try:
        import tensorflow_datasets
    except ImportError as error:
        raise ImportError(
            f"{caller} needs tensorflow-datasets, which is not installed: "
            'pip install "cam-tf[train]".'
        ) from error
    import cam_tf.datasets.cluttered_digits  # noqa: F401  (registers itself)

    return tensorflow_datasets


def _at(nested, path: tuple[str, ...]):
    for key in path:
        nested = nested[key]
    return nested


class TFDSExamples(LocalizationData):
    """Examples of TensorFlow Datasets; made by ``tfds_examples``."""

    def __init__(self, raw: tf.data.Dataset, layout: _Layout, classes: int | None, strict: bool):
        super().__init__(Report(), strict, layout.mask is not None)
        self._raw, self._layout, self._classes = raw, layout, classes

    def shard(self, index: int, count: int) -> "TFDSExamples":
        """Returns the examples of every ``count``-th image from ``index`` on, for one worker.

        Raises:
            ValueError: not 0 <= ``index`` < ``count``.
        """
        check_shard(index, count)
        raw = self._raw.shard(count, index)
        return TFDSExamples(raw, self._layout, self._classes, self.strict)

    def _elements(self) -> tf.data.Dataset:
        """Gives (id, label, image file, boxes, mask) for each class of each image."""
        return self._raw.flat_map(self._by_class)

    def _by_class(self, record: dict) -> tf.data.Dataset:
        layout = self._layout
        id, image = record[layout.id], record["image"]
        boxes = tf.zeros((0, 4)) if layout.boxes is None else _at(record, layout.boxes)
        boxes = tf.reshape(boxes, (-1, 4))
        labels = _at(record, layout.label)
        mask = record[layout.mask_key] if layout.mask else tf.zeros((0, 0, 1), tf.uint8)
        if labels.shape.rank == 0:
            return tf.data.Dataset.from_tensors((id, labels, image, boxes, mask))
        if layout.crowd:
            single = tf.logical_not(_at(record, layout.crowd))
            boxes, labels = boxes[single], labels[single]
        classes = tf.unique(labels).y

        def example(label):
            several = tf.size(classes) > 1
            name = id + tf.where(several, "#" + tf.strings.as_string(label), "")
            return name, label, image, boxes[labels == label], mask

        return tf.data.Dataset.from_tensor_slices(classes).map(example)

    def _example(self, id: bytes, label: int, image, boxes: np.ndarray, mask) -> Example:
        id = id.decode()
        check_label(id, int(label), self._classes)
        pixels = read_pixels(id, image, upright=False)  # TFDS's boxes know nothing of EXIF
        size = pixels.shape[:2]
        masks, ignore = (), None
        if self._layout.mask:
            found, ignore = self._layout.mask(mask[..., 0])
            masks = (found,)
            if self._layout.boxes is None:
                boxes = _around(id, found | ignore)
        boxes = np.float64(boxes) * np.tile(size, 2)
        return Example(id, int(label), pixels, boxes, size, masks, ignore)


def _around(id: str, mask: np.ndarray) -> np.ndarray:
    """Returns the relative box (1, 4) around a mask's pixels, or raises ``RecordError``."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not rows.size:
        raise RecordError(id, "no box or mask", "the mask is background everywhere.")
    box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    return np.array([box]) / np.tile(mask.shape, 2)
