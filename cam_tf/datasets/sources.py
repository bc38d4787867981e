"""Where images for training come from: data sets of TFDS, and folders of class folders."""

import contextlib
import os
import types
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from cam_tf.datasets.imagenet import class_id
from cam_tf.datasets.images import PathLike, find_images
from cam_tf.datasets.localization import Example, Examples
from cam_tf.datasets.tfds import import_tfds
from cam_tf.suggestions import did_you_mean

_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("validation", "val", "valid", "dev"),
    "test": ("test", "testing"),
}
_SHUFFLE_BYTES = 2**29  # of encoded images, held in memory to be shuffled


class Source(NamedTuple):
    """Records of one worker in an order that never changes.

    Attributes:
        classes: the names, by class id.
        count: this worker's records.
        largest: the records of the worker that has most of them.
        records: (index, id, label, data): an int64 that is unique among all workers, a string, an
            int32, and the bytes of an image file or (``files``) its path.
        buffer: how many records to hold in memory to shuffle them.
        files: ``data`` are paths, and the id is too.
    """

    classes: list[str]
    count: int
    largest: int
    records: tf.data.Dataset
    buffer: int
    files: bool


def folder_source(
    folder: PathLike,
    split: str,
    *,
    classes: Sequence[str] | None,
    validation_share: float,
    split_seed: int,
    shard: tuple[int, int],
) -> Source:
    """Opens a folder of class folders; see ``training_data``."""
    root = Path(folder)
    names, files = _class_files(root, split, classes, validation_share, split_seed)
    index, workers = shard
    mine = range(index, len(files), workers)
    paths = [os.fspath(files[i][0]) for i in mine]
    labels = np.int32([files[i][1] for i in mine])
    records = tf.data.Dataset.from_tensor_slices(
        (np.int64(mine), tf.constant(paths, tf.string), labels, tf.constant(paths, tf.string))
    )
    largest = -(-len(files) // workers)
    return Source(names, len(paths), largest, records, max(1, len(paths)), files=True)


def _class_files(
    root: Path, split: str, wanted: Sequence[str] | None, share: float, seed: int
) -> tuple[list[str], list[tuple[Path, int]]]:
    """Returns the class names, and each file of the split with its class id."""
    if split not in (*_FOLDERS, "all"):
        raise ValueError(
            f"split={split!r} of the folder {root}: expected 'train', 'validation', 'test' or "
            f"'all'.{did_you_mean(split, _FOLDERS)}"
        )
    if not 0 <= share < 1:
        raise ValueError(f"validation_share={share}: expected a share from 0 to less than 1.")
    parts = _split_folders(root)
    training = parts.get("train", root)
    names = _class_names(training, wanted)
    if split == "test" and "test" not in parts:
        raise ValueError(
            f"{root} has no folder test/ beside train/: evaluate on split='validation', a "
            "share of the images (validation_share)."
        )
    if split == "test":
        return names, _other_files(parts["test"], training, names)
    files = _training_files(training, names)
    if "validation" in parts:
        other = _other_files(parts["validation"], training, names)
        return names, {"train": files, "validation": other, "all": files + other}[split]
    if split == "all" or share == 0:
        return names, [] if split == "validation" else files
    return names, _share(root, files, share, seed, rest=split == "train")


def _subfolders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))


def _split_folders(root: Path) -> dict[str, Path]:
    """Finds train/, validation/, test/. Without class folders in it, train/ is a class: a train."""
    found = {}
    for one in _subfolders(root):
        for split, names in _FOLDERS.items():
            if one.name.lower() in names:
                found.setdefault(split, one)
    return found if "train" in found and _subfolders(found["train"]) else {}


def _class_names(folder: Path, wanted: Sequence[str] | None) -> list[str]:
    found = [one.name for one in _subfolders(folder)]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no class folders: put the images of each class into a folder of its "
            f"own, {folder / 'cat'}, {folder / 'dog'}, or these into {folder / 'train'}."
        )
    return chosen_classes(found, wanted, os.fspath(folder))


def chosen_classes(found: list[str], wanted: Sequence[str] | None, where: str) -> list[str]:
    """Returns the class names that are wanted, as they are spelled in the data.

    Raises:
        ValueError: a name is unknown or repeated, or there are less than two classes.
    """
    names = found if wanted is None else [found[class_id(name, found)] for name in wanted]
    if len(set(names)) < len(names):
        raise ValueError(f"classes={list(wanted)}: a class is named twice.")
    if len(names) < 2:
        raise ValueError(
            f"{where} gives only one class, {names}: a classifier needs two or more. Add a "
            "class of what is not one, say 'background'."
        )
    return names


def _training_files(folder: Path, names: list[str]) -> list[tuple[Path, int]]:
    files = _listed(folder, names)
    missing = set(range(len(names))) - {label for _, label in files}
    if missing:
        empty = [names[label] for label in sorted(missing)]
        raise ValueError(
            f"no image in the class folders {empty} of {folder}: fill them, remove them, or pass "
            f"classes={[name for name in names if name not in empty]}."
        )
    return files


def _other_files(folder: Path, training: Path, names: list[str]) -> list[tuple[Path, int]]:
    found, known = ({one.name for one in _subfolders(one)} for one in (folder, training))
    if found - known:
        raise ValueError(
            f"{folder} has class folders that {training} has not: {sorted(found - known)}. The "
            "class folders of all splits have the same names."
        )
    return _listed(folder, names)


def _listed(folder: Path, names: list[str]) -> list[tuple[Path, int]]:
    found = []
    for label, name in enumerate(names):
        with contextlib.suppress(FileNotFoundError):  # no such folder, or no image in it
            if (folder / name).is_dir():
                found += [(path, label) for path in find_images(folder / name, recursive=True)]
    return found


def _share(
    root: Path, files: list[tuple[Path, int]], share: float, seed: int, rest: bool
) -> list[tuple[Path, int]]:
    """Returns a share of each class, or the rest; of two or more images both have at least one."""
    found = []
    for label in sorted({label for _, label in files}):
        mine = [path for path, one in files if one == label]
        examples = Examples(
            Example(path.relative_to(root).as_posix(), label, path) for path in mine
        )
        count = min(max(1, round(share * len(mine))), len(mine) - 1)
        parts = examples.split(count / len(mine), seed)
        found += [(one.image, label) for one in parts[rest]]
    return found


def tfds_source(
    name: str,
    split: str,
    *,
    classes: Sequence[str] | None,
    data_dir: PathLike | None,
    download: bool,
    shard: tuple[int, int],
) -> Source:
    """Opens a data set of TFDS for classification; see ``training_data``."""
    tfds = import_tfds("training_data")
    known = tfds.list_builders(with_community_datasets=False)
    if name.split("/")[0].split(":")[0] not in known:
        raise ValueError(
            f"{name!r} is neither a folder nor a data set of TFDS.{did_you_mean(name, known)} "
            "'cluttered_digits' needs no download; a folder holds a folder for each class."
        )
    builder = tfds.builder(name, data_dir=data_dir)
    image, label = _image_and_label(tfds, name, builder.info)
    if download:
        builder.download_and_prepare()
    found = builder.info.features[label].names
    names = chosen_classes(found, classes, repr(name))
    ids = np.full(len(found), -1, np.int32)
    ids[[found.index(one) for one in names]] = np.arange(len(names))

    def read(part, *keys: str) -> tf.data.Dataset:
        undecoded = {image: tfds.decode.SkipDecoding()} if image in keys else {}
        raw = builder.as_dataset(
            split=part,
            decoders=tfds.decode.PartialDecoding(dict.fromkeys(keys, True), undecoded),
            read_config=tfds.ReadConfig(add_tfds_id=True),
            shuffle_files=False,
        )
        if len(names) == len(found):
            return raw
        return raw.filter(lambda values: class_id(values) >= 0)

    def class_id(values: dict) -> tf.Tensor:
        unlabelled = (
            f"{name!r} has records without a label (-1) in split {split!r}, as the test splits of "
            "contests have: choose another split."
        )
        with tf.control_dependencies([tf.debugging.assert_non_negative(values[label], unlabelled)]):
            return tf.gather(ids, values[label])

    def record(number: tf.Tensor, values: dict) -> tuple:
        index = number * workers + worker
        return index, values["tfds_id"], class_id(values), values[image]

    worker, workers = shard
    parts = tfds.even_splits(split, workers, drop_remainder=False)
    if len(names) == len(found):
        counts = [builder.info.splits[part].num_examples for part in parts]
    else:
        counts = [int(read(part, label).reduce(0, lambda n, _: n + 1)) for part in parts]
    records = read(parts[worker], image, label).enumerate().map(record)
    splits = builder.info.splits.values()
    size = sum(one.num_bytes for one in splits) // sum(one.num_examples for one in splits)
    buffer = max(1, min(counts[worker], _SHUFFLE_BYTES // max(1, size)))
    return Source(names, counts[worker], max(counts), records, buffer, files=False)


def _image_and_label(tfds: types.ModuleType, name: str, info) -> tuple[str, str]:
    """Returns the keys of the one image and the one class label that a record has."""
    found = []
    for kind in (tfds.features.Image, tfds.features.ClassLabel):
        keys = [key for key, feature in info.features.items() if isinstance(feature, kind)]
        named = [key for key in keys if key in tf.nest.flatten(info.supervised_keys or ())]
        found.append(named or keys)
    if [len(keys) for keys in found] != [1, 1]:
        images, labels = found
        raise ValueError(
            f"{name!r} is not made for classification: a record has the images {images} and the "
            f"class labels {labels}, where one of each is needed."
        )
    return found[0][0], found[1][0]
