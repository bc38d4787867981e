"""Data for training classifiers: TFDS by name, or a folder of class folders, as ``tf.data``.

Order and augmentation are functions of (seed, epoch) alone, so that a run which is resumed at an
epoch sees what an uninterrupted one sees. Every epoch has the same number of batches, on every
worker, whatever files turn out to be damaged: the place of a bad record is taken by a good one.
``keras.utils.image_dataset_from_directory`` and TFDS's ``ImageFolder`` end at the first damaged
file, turn no photo upright, and reshuffle as the process goes.
"""

import atexit
import functools
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from cam_tf.datasets.augmentation import Augmentation, Preparation, decode
from cam_tf.datasets.images import PathLike
from cam_tf.datasets.localization import (
    RecordError,
    Report,
    _check_size,
    _noting,
    check_shard,
    read_pixels,
)
from cam_tf.datasets.sources import Source, folder_source, tfds_source

# Letters and digits: a mirror image is another sign, or none, and a narrow crop cuts it off.
_SIGNS = ("cluttered_digits", "emnist", "kmnist", "mnist", "mnist_corrupted", "svhn_cropped")
_MOST_READERS = 64
_CHUNK = 8  # records read by one of them at a time


def training_data(
    source: PathLike,
    split: str = "train",
    *,
    size: int | Sequence[int],
    batch_size: int,
    augment: bool | Augmentation = False,
    shuffle: bool | None = None,
    seed: int = 0,
    short_side: int | None = None,
    classes: Sequence[str] | None = None,
    validation_share: float = 0.2,
    split_seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    replicas: int | None = None,
    drop_remainder: bool | None = None,
    cache: bool | PathLike = False,
    strict: bool = False,
    data_dir: PathLike | None = None,
    download: bool = True,
) -> "TrainingData":
    """Opens images with class labels, for ``fit`` and ``evaluate``.

    ::

        data = training_data("cluttered_digits/64", size=64, batch_size=32, augment=True)
        held_out = training_data("cluttered_digits/64", "validation", size=64, batch_size=100)
        model.fit(
            data.epochs(start),  # 0, or the epoch at which an interrupted run goes on
            steps_per_epoch=data.steps,
            initial_epoch=start,
            epochs=10,
            shuffle=False,  # keeps Keras from warning that it will not shuffle once more
            validation_data=held_out.dataset,
        )

    Args:
        source: a folder (a path, or text that is one), or the name of a data set of TFDS with its
            configuration if wanted, such as ``"cluttered_digits/64"``. In a folder, each class has
            a folder of its own; these stand in it directly or in its folders ``train``,
            ``validation`` (or ``val``) and ``test``. The classes are those of training, sorted.
        split: of a folder ``"train"``, ``"validation"``, ``"test"`` or ``"all"``, the first two
            together; of TFDS as there: ``"train[:90%]"``.
        size: (height, width) of the images, or one number for both.
        batch_size: images in a batch.
        augment: change the images at random. True: ``Augmentation()``, or for digits and letters
            of TFDS one that does not mirror and hardly crops.
        shuffle: mix the records anew in each epoch, and make each epoch equally long. Default: if
            there is augmentation. Folders and cached data are mixed thoroughly, others in a window
            of as many records as take 512 MiB (TFDS has mixed them once on the disk).
        seed: another number, another order and augmentation.
        short_side: without augmentation: None warps the whole image to ``size``; a number resizes
            the shorter side to so many pixels and cuts ``size`` from the centre.
        classes: the names of the classes to use, in the order of their ids; the others are left
            out. Default: all. (TFDS: reads all labels once to count.)
        validation_share: of a folder without a validation folder, the share of each class's images
            that is ``"validation"``; the rest is ``"train"``.
        split_seed: which images these are depends on their names and this number, not on ``seed``:
            else two runs with different seeds could not share a validation set.
        shard: (index, count) of this worker among several: a share of the records. While shuffling
            all workers have equally many batches.
        replicas: how many replicas share a batch. Default: those of the current
            ``tf.distribute`` strategy.
        drop_remainder: leave out the last batch if it is smaller. Default: while shuffling, if
            there is a full one.
        cache: keep the encoded images, not the decoded ones, after the first reading: in memory
            (True) or in a file of this name.
        strict: stop the iteration at the first bad record, with an error that names it.
        data_dir: where TFDS keeps its data. Default: TFDS's own.
        download: download and prepare the data set of TFDS if it is not there.

    Raises:
        FileNotFoundError: the folder has no class folders.
        ImportError: tensorflow-datasets, or for cluttered_digits scikit-learn, is not installed.
        ValueError: neither a folder nor a data set of TFDS (the nearest names are suggested), one
            that is not made for classification, an unknown split or class, a class folder without
            images, only one class, no record at all, a batch that does not divide among the
            replicas or is larger than an epoch while ``drop_remainder``, or impossible numbers.
    """
    check_shard(*shard)
    _check_batch(batch_size, replicas)
    size = _check_size(size, short_side, batch_size)
    is_folder = not isinstance(source, str) or Path(source).expanduser().is_dir()
    if is_folder:
        found = folder_source(
            Path(source).expanduser(),
            split,
            classes=classes,
            validation_share=validation_share,
            split_seed=split_seed,
            shard=shard,
        )
    else:
        found = tfds_source(
            source, split, classes=classes, data_dir=data_dir, download=download, shard=shard
        )
    if not found.count:
        raise ValueError(
            f"{os.fspath(source)!r} has no record in split={split!r}, shard={shard}"
            + (f", validation_share={validation_share}." if is_folder else ".")
        )
    augmentation = _augmentation(augment, "" if is_folder else str(source))
    if augmentation and short_side is not None:
        raise ValueError("short_side goes without augmentation, which crops by itself.")
    return TrainingData(
        found,
        Preparation(size, short_side, augmentation),
        batch_size=batch_size,
        shuffle=augmentation is not None if shuffle is None else shuffle,
        seed=seed,
        drop_remainder=drop_remainder,
        cache=cache,
        strict=strict,
    )


def _check_batch(batch_size: int, replicas: int | None) -> None:
    if replicas is None:
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
    if batch_size < 1 or replicas < 1:
        raise ValueError(f"batch_size={batch_size}, replicas={replicas}: use at least 1.")
    if batch_size % replicas:
        lower = batch_size // replicas * replicas
        ways = " or ".join(str(size) for size in (lower, lower + replicas) if size)
        raise ValueError(
            f"batch_size={batch_size} does not divide among {replicas} replicas: use {ways}."
        )


def _augmentation(augment: bool | Augmentation, name: str) -> Augmentation | None:
    if not isinstance(augment, bool):
        return augment
    if not augment:
        return None
    if name.split("/")[0].split(":")[0] in _SIGNS:
        return Augmentation(area=(0.8, 1.0), aspect=(0.9, 1.1), flip=False)
    return Augmentation()


class TrainingData:
    """Batches of (images (N, H, W, 3) float32 of 0..255, class ids (N,) int32).

    Made by ``training_data``. JPEG and PNG are decoded in TensorFlow's graph, which gives the same
    pixels as ``cam_tf.load_image``; that reads the rest, and says what is the matter with files
    that cannot be read.

    Attributes:
        classes: the class names, by class id.
        count: the examples of an epoch. Without shuffling, bad records included.
        report: the bad records met so far: ``report.bad[path or id] = (kind, detail)``.
        augmentation: an ``Augmentation`` or None.
    """

    def __init__(
        self,
        source: Source,
        preparation: Preparation,
        *,
        batch_size: int,
        shuffle: bool,
        seed: int,
        drop_remainder: bool | None,
        cache: bool | PathLike,
        strict: bool,
    ):
        self.classes = source.classes
        self.count = source.largest if shuffle else source.count
        self.report = Report()
        self.augmentation = preparation.augmentation
        self._source, self._preparation = source, preparation
        self._shuffle, self._seed, self._strict = shuffle, seed, strict
        self._batch_size = batch_size
        if drop_remainder is None:
            drop_remainder = shuffle and self.count >= batch_size
        self._drop_remainder = drop_remainder
        if not self.steps:
            raise ValueError(
                f"batch_size={batch_size} with drop_remainder leaves no batch of {self.count} "
                f"examples: use at most {self.count}."
            )
        self._records = _cached(source, cache) if cache else source.records
        self._buffer = source.count if cache else source.buffer
        self._read = tf.function(self._read_in_graph, autograph=False)  # traced once, used twice

    @property
    def steps(self) -> int:
        """The batches of an epoch: ``steps_per_epoch``."""
        full, rest = divmod(self.count, self._batch_size)
        return full + (rest > 0 and not self._drop_remainder)

    @property
    def dataset(self) -> tf.data.Dataset:
        """All the data once: for evaluation. While shuffling, this is the first epoch only."""
        return self.epoch(0)

    def epoch(self, number: int) -> tf.data.Dataset:
        """Returns one epoch, counted from 0.

        While shuffling it has ``steps`` batches. Otherwise bad records are left out, and there may
        be fewer.
        """
        found = self.epochs(number).take(self.steps) if self._shuffle else self._batches(0)
        return self._finished(found)

    def epochs(self, start: int = 0) -> tf.data.Dataset:
        """Returns the epochs from ``start`` on, one after the other, without end.

        For ``fit(..., steps_per_epoch=data.steps, initial_epoch=start)``.
        """
        if start < 0:
            raise ValueError(f"start={start}: epochs are counted from 0.")
        numbers = tf.data.Dataset.range(start, tf.int64.max)
        return self._finished(numbers.flat_map(self._batches))

    def _finished(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        options = tf.data.Options()
        options.deterministic = True
        # The workers' shares are made here, by ``shard``.
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return dataset.with_options(options).prefetch(tf.data.AUTOTUNE)

    def _batches(self, epoch: int | tf.Tensor) -> tf.data.Dataset:
        seed = _fold(tf.constant([self._seed, 0], tf.int64), epoch)
        if self._shuffle:  # goes through the records again if bad ones leave too few
            passes = tf.data.Dataset.range(tf.int64.max)
            examples = passes.flat_map(lambda number: self._examples(_fold(seed, number)))
            examples = examples.take(self.count)
        else:
            examples = self._examples(_fold(seed, 0))
        batches = examples.batch(self._batch_size, self._drop_remainder)
        return batches.map(lambda images, labels: (tf.cast(images, tf.float32), labels))

    def _examples(self, seed: tf.Tensor) -> tf.data.Dataset:
        """The (image, class id) of each good record, in an order given by the seed."""
        records = self._records
        if self._shuffle:
            records = _shuffled(records, self._buffer, seed)
        readers = min(_MOST_READERS, 2 * (os.cpu_count() or 1))
        chunks = records.batch(_CHUNK).interleave(
            functools.partial(self._chunk, seed),
            cycle_length=readers,
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        return chunks.unbatch()

    def _chunk(self, seed: tf.Tensor, *records: tf.Tensor) -> tf.data.Dataset:
        """Reads some records: a data set of one batch, or none if all are bad.

        A graph cannot catch an error; a data set can leave out what ends in one. Setting up a data
        set costs about as much as decoding a small image, so first all are tried at once; if that
        fails, one by one, and what then fails is read by ``load_image``, which says why.
        """
        each = tf.data.Dataset.from_tensor_slices(records)
        read = functools.partial(self._read, seed)
        explain = functools.partial(self._explain, seed)
        whole = each.map(read).batch(_CHUNK)
        single = each.flat_map(functools.partial(_first, [read, explain]))
        single = single.filter(lambda good, *_: good).batch(_CHUNK)
        # After an error the rest of the batch may come, or nothing, depending on tf.data's options.
        count = tf.shape(records[0])[0]
        whole = whole.ignore_errors().filter(lambda good, *_: tf.equal(tf.size(good), count))
        found = whole.concatenate(single).take(1)
        return found.map(lambda good, images, labels: (images, labels))

    def _read_in_graph(self, seed, index, id, label, data) -> tuple:
        """Returns (True, image, class id) of a record, or ends in an error."""
        source = data
        if self._source.files and self._records is self._source.records:
            data = tf.io.read_file(data)

        def other() -> tf.Tensor:
            return tf.numpy_function(self._pixels, [id, source], tf.uint8)

        pixels = tf.ensure_shape(decode(data, other, self._source.files), (None, None, 3))
        return True, self._preparation(pixels, _fold(seed, index)), label

    def _explain(self, seed, index, id, label, data) -> tuple:
        """Returns (whether it is good, image, class id) of a record that ended in an error."""
        good, pixels = tf.numpy_function(self._load, [id, data], [tf.bool, tf.uint8])
        good, pixels = tf.ensure_shape(good, ()), tf.ensure_shape(pixels, (None, None, 3))
        return good, self._preparation(pixels, _fold(seed, index)), label

    def _pixels(self, id: bytes, data: bytes) -> np.ndarray:
        _Readers.enter()
        name = os.fsdecode(id)
        files = self._source.files
        return read_pixels(name, name if files else data, upright=files)

    def _load(self, id: bytes, data: bytes) -> tuple[np.ndarray, np.ndarray]:
        """Returns whether a record is good and its pixels; notes in the report what is bad."""
        with _noting(self.report, self._strict):
            return np.True_, self._pixels(id, data)
        if len(self.report) >= self._source.count:
            raise RecordError(os.fsdecode(id), "nothing left", f"no record is good: {self.report}")
        return np.False_, np.zeros((1, 1, 3), np.uint8)


class _Readers:
    """Brings TensorFlow's threads to rest before Python ends.

    An iterator that is still alive then waits for its threads, and a thread that comes to read an
    image waits for Python, which no longer answers: the process would hang. So from the beginning
    of the end they are turned away, until the iterators' buffers are full of errors and none comes.
    """

    last: float | None = None  # when a thread came
    leaving = False

    @classmethod
    def enter(cls) -> None:
        cls.last = time.monotonic()
        if cls.leaving:
            raise RuntimeError("Python is about to end.")

    @classmethod
    def leave(cls) -> None:
        cls.leaving = True
        deadline = time.monotonic() + 5
        while cls.last and cls.last + 0.1 > time.monotonic() < deadline:
            time.sleep(0.02)


atexit.register(_Readers.leave)


def _fold(seed: tf.Tensor, number: int | tf.Tensor) -> tf.Tensor:
    """Makes of a seed (2,) and a number another seed (2,)."""
    return tf.random.fold_in(seed, tf.cast(number, tf.int64))


def _shuffled(records: tf.data.Dataset, buffer: int, seed: tf.Tensor) -> tf.data.Dataset:
    # The order would also depend on the global seed of TensorFlow, if this graph had none.
    tf.compat.v1.set_random_seed(1)
    number = tf.random.stateless_uniform((), seed, 0, tf.int32.max, tf.int32)
    return records.shuffle(buffer, tf.cast(number, tf.int64), reshuffle_each_iteration=False)


def _first(ways: Sequence[Callable], *element: tf.Tensor) -> tf.data.Dataset:
    """A data set of the one value of the first way that raises no error (the last may raise)."""
    one = tf.data.Dataset.from_tensors(element)
    *tries, last = (one.map(way) for way in ways)
    found = last
    for attempt in reversed(tries):
        found = attempt.ignore_errors().concatenate(found)
    return found.take(1)


def _cached(source: Source, cache: bool | PathLike) -> tf.data.Dataset:
    """The records with the files' bytes as their data; empty where a file cannot be read."""
    records = source.records
    if source.files:
        ways = [
            lambda index, id, label, path: (index, id, label, tf.io.read_file(path)),
            lambda index, id, label, path: (index, id, label, ""),
        ]
        records = records.interleave(
            functools.partial(_first, ways), cycle_length=16, num_parallel_calls=tf.data.AUTOTUNE
        )
    return records.cache("" if cache is True else os.fspath(cache))
