"""The evaluation of a classifier's maps on a data set: every metric from one pass over the images.

While the network runs on one batch, the next are decoded and the metrics of the last are computed,
each in threads of their own.
"""

import collections
import functools
import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import cv2
import keras
import numpy as np
import tensorflow as tf

import cam_tf
from cam_tf.datasets.images import resize_image
from cam_tf.datasets.localization import (
    Example,
    Examples,
    LocalizationData,
    RecordError,
    Report,
    check_shard,
)
from cam_tf.localization.boxes import boxes, masks
from cam_tf.localization.evaluation_files import RunFiles
from cam_tf.localization.evaluation_result import Evaluation, new_metrics
from cam_tf.localization.localizer import Localizer
from cam_tf.localization.metrics import StreamingMetric
from cam_tf.localization.refinement import refine
from cam_tf.localization.score_maps import PROTOCOL_SIZE, score_maps
from cam_tf.localization.true_boxes import TIE, iou
from cam_tf.maps.explanation import Explanation

_THREADS = 2  # for the metrics: half of their time is Python's, which more threads do not shorten
_LONGEST = 640  # pixels of a photo that is shown


def evaluate(
    localizer: Callable[..., Explanation],
    examples: LocalizationData,
    *,
    image_size: Sequence[int],
    short_side: int | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    batch_size: int = 32,
    threshold: float = 0.2,
    limit: int | None = None,
    shard: tuple[int, int] = (0, 1),
    settings: dict | None = None,
    directory: Path | None = None,
    overwrite: bool = False,
    save_every: float = 5.0,
    progress: Callable[[int, int | None], None] | None = None,
) -> Evaluation:
    """Measures classification and localization on a data set.

    The map of the true class gives the boxes, also those of the top-1 and top-5 localization error:
    there a prediction only counts if it is the true class, so the maps are the same. GT-known and
    the localization errors draw the box of the largest region above ``threshold``; MaxBoxAcc,
    MaxBoxAccV2 and PxAP follow the WSOL protocol, whose score maps have 224 x 224 pixels whatever
    the network takes. An image whose map is not finite is a bad record.

    With a ``directory`` a run that was killed at any moment goes on where it was, in the same
    batches: the figures are those of a run that was not.

    Args:
        localizer: a ``Localizer`` or an explainer.
        examples: the images with their classes, and boxes or masks.
        image_size: (height, width) of the images that the network is given.
        short_side: see ``LocalizationData.dataset``; None warps the whole image.
        prepare: from (N, H, W, 3) uint8 RGB to what the model takes.
        batch_size: images in one forward pass.
        threshold: the share of the map's maximum.
        limit: only the first so many examples.
        shard: (index, count): every ``count``-th example from ``index`` on, for one worker;
            ``merge_evaluations`` puts the workers' directories together.
        settings: what else the figures depend on, in plain data, such as the model's name; under
            ``paths``, where the data lie, which workers on several machines need not share.
        directory: where to keep ``images.jsonl`` (a record for each image) and ``state.json``.
        overwrite: begin anew, whatever the directory holds.
        save_every: seconds from one saved state to the next.
        progress: called after each batch with the number of examples gone through, and their total
            if it is known.

    Returns:
        The evaluation: ``results()`` gives the figures, ``str`` a table. Without a ``directory``
        its ``records()`` are gone.

    Raises:
        ValueError: a model with one output, a label that the model does not have, ids that are not
            unique, a directory with an evaluation of other settings, or what the localizer raises
            for these images.
        RecordError: the first bad record of examples that are ``strict``.
        OSError: the directory cannot be written to; what was saved before is kept.
    """
    check_shard(*shard)
    classes = localizer.anatomy.classes
    _check_examples(examples, classes)
    top = (1, 5) if classes >= 5 else (1,)
    about = settings_of(
        localizer,
        examples,
        image_size=image_size,
        short_side=short_side,
        batch_size=batch_size,
        threshold=threshold,
        limit=limit,
        shard=shard,
        settings=settings,
    )
    temporary = tempfile.TemporaryDirectory() if directory is None else nullcontext(directory)
    with temporary as folder, RunFiles(Path(folder), about, overwrite, save_every) as files:
        done = files.found or Evaluation(about, new_metrics(top), _sorted(examples.report.bad))
        done = Evaluation.from_state(done.state(), Path(folder))
        if done.finished:
            return done
        selected = _Selected(examples, shard, limit, done.position)
        selected.remember(done)
        batches = selected.dataset(image_size, short_side=short_side, batch_size=batch_size)
        localizer, sharpen = _without_refinement(localizer)
        measure = _Measure(top, threshold, sharpen, short_side is not None, examples.strict)
        before, start = done.seconds, time.monotonic()
        if progress is not None:
            progress(selected.gone_through(done.position), selected.total)
        try:
            for counted in _in_step(batches, selected, localizer, prepare, measure):
                written = files.append(counted.records)
                done = done.plus(
                    counted.metrics,
                    bad=_sorted({**done.bad, **selected.bad(counted.position), **counted.bad}),
                    seconds=before + time.monotonic() - start,
                    position=counted.position,
                    bytes=done.bytes + written,
                )
                files.save(done, now=False)
                if progress is not None:
                    progress(selected.gone_through(done.position), selected.total)
            bad = _sorted({**done.bad, **selected.bad()})
            # Where all was bad, the next run is to try again: the data may be mended.
            is_empty = bad.keys() <= examples.report.bad.keys()
            done = done.plus({}, bad=bad, finished=done.images > 0 or is_empty)
        finally:  # also of an interrupted run: ``done`` is one whole step or the next
            files.save(done)
    return done


def settings_of(
    localizer: Callable[..., Explanation],
    examples: LocalizationData,
    *,
    settings: dict | None = None,
    shard: tuple[int, int] = (0, 1),
    **given,
) -> dict:
    """Returns all that the figures of an evaluation depend on, as plain data.

    Args:
        localizer: as for ``evaluate``.
        examples: the data; of files their ids, labels and boxes are told by a digest.
        settings: what else there is.
        shard: as for ``evaluate``.
        **given: arguments of ``evaluate``.
    """
    if hasattr(localizer, "describe"):
        described = localizer.describe()
    else:  # not by the names of layers, which Keras counts up within a process
        layers = [list(value.shape[1:]) for value in localizer.anatomy.layers]
        described = {"method": type(localizer).__name__, "layers": layers}
    settings = settings or {}
    whole = {
        **settings,
        "paths": {**settings.get("paths", {}), **_folders(examples)},
        "localizer": described,
        **given,
        "shard": "{}/{}".format(*shard),
        "examples": _fingerprint(examples),
        "versions": _versions(),
    }
    return json.loads(json.dumps(whole))


def explain_records(
    localizer: Callable[..., Explanation],
    examples: LocalizationData,
    records: Collection[dict],
    *,
    image_size: Sequence[int],
    short_side: int | None = None,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, dict]:
    """Reads and explains some of the images again, to look at them.

    Args:
        localizer: as for ``evaluate``, and so are the rest.
        examples: the same data.
        records: of ``Evaluation.records()``.
        image_size: as it was evaluated.
        short_side: as it was evaluated.
        prepare: as it was evaluated.

    Returns:
        For each id that is still there ``image`` (h, w, 3) uint8, at most 640 pixels long, ``map``
        (h, w) of its class, ``boxes`` (n, 4), ``size`` of the original, and ``mask`` if there is
        one.
    """
    localizer, sharpen = _without_refinement(localizer)
    selected = _Selected(examples, chosen=[record["index"] for record in records])
    size = None if short_side is None else image_size
    found = {}
    for one in selected.dataset(size, short_side=short_side).as_numpy_iterator():
        image = one["image"]
        resized = resize_image(image, image_size)[None]
        seen = resized if prepare is None else prepare(resized)
        raw = sharpen(resized, localizer(seen, [int(one["label"])]).maps)[0, 0]
        scale = min(1.0, _LONGEST / max(image.shape[:2]))
        shown = resize_image(image, [max(1, round(scale * side)) for side in image.shape[:2]])
        found[one["id"].decode()] = {
            "image": shown,
            "map": raw,
            "boxes": one["boxes"],
            "size": image.shape[:2] if short_side is not None else tuple(one["size"]),
            "mask": one.get("mask"),
        }
    return found


def _without_refinement(localizer: Callable) -> tuple[Callable, Callable]:
    """Takes the refinement out of a localizer, and returns both.

    Only the true class's map is to be refined, which may take longer than all the rest; and that
    can be done in threads, on the pixels as they were before the model's own preprocessing.
    """
    method = localizer.settings.refine if isinstance(localizer, Localizer) else None
    if method in (None, "none"):
        return localizer, lambda images, maps: np.asarray(maps)
    return localizer.unrefined(), functools.partial(refine, method=method)


def _versions() -> dict[str, str]:
    modules = {"cam_tf": cam_tf, "tensorflow": tf, "keras": keras, "numpy": np}
    return {name: module.__version__ for name, module in modules.items()}


def _sorted(bad: dict) -> dict:
    return dict(sorted(bad.items()))


def _check_examples(examples: LocalizationData, classes: int) -> None:
    """Finds out before the work what can be known by then."""
    if classes < 2:
        raise ValueError(
            "the model has one output, and so no classes to rank: top-1 and the map of the true "
            "class need an output for each class, such as Dense(2, activation='softmax')."
        )
    if not isinstance(examples, Examples):
        return
    counts = collections.Counter(example.id for example in examples)
    if counts and max(counts.values()) > 1:
        id, times = counts.most_common(1)[0]
        raise ValueError(f"the id {id!r} belongs to {times} examples: ids must be unique.")
    for example in examples:
        _check_label(example.id, example.label, classes)


def _check_label(id: str, label: int, classes: int) -> None:
    if not 0 <= label < classes:
        raise ValueError(
            f"{id} has label {label}, and the model has the classes 0..{classes - 1}: the data are "
            "of other classes than the model. Give the model that was trained on them."
        )


def _fingerprint(examples: LocalizationData) -> str | None:
    """A digest of the ids, labels, boxes and masks, where they are known before reading.

    Masks are told by their names in their folder, which another machine may have elsewhere.
    """
    if not isinstance(examples, Examples):
        return None
    digest, start = hashlib.sha256(), len(_common_folder(map(_masks, examples)) or "")
    for example in examples:
        places = np.asarray(example.boxes, np.float64).tolist()
        digest.update(repr((example.id, example.label, example.size, places)).encode())
        for mask in _masks(example):
            is_file = _is_path(mask)
            digest.update(os.path.abspath(mask)[start:].encode() if is_file else mask.tobytes())
    return f"{len(examples)} examples, sha256 {digest.hexdigest()[:16]}"


def _folders(examples: LocalizationData) -> dict[str, str]:
    """The folders that the files lie in."""
    if not isinstance(examples, Examples):
        return {}
    files = {"images": ([one.image] for one in examples), "masks": map(_masks, examples)}
    found = {name: _common_folder(paths) for name, paths in files.items()}
    return {name: os.path.realpath(folder) for name, folder in found.items() if folder}


def _masks(example: Example) -> list:
    masks = [*example.masks, example.ignore]
    return [mask for mask in masks if mask is not None]


def _common_folder(files: Iterable[Iterable]) -> str | None:
    """The absolute path of the folder that holds all of the files; None if there are none."""
    folders = {
        os.path.dirname(os.path.abspath(one)) for some in files for one in some if _is_path(one)
    }
    return os.path.commonpath(folders) if folders else None


def _is_path(source) -> bool:
    return isinstance(source, (str, os.PathLike))


class _Selected(LocalizationData):
    """Some of the examples, by their index in the data; it knows the index of each id."""

    def __init__(
        self,
        base: LocalizationData,
        shard: tuple[int, int] = (0, 1),
        limit: int | None = None,
        position: int = 0,
        chosen: Sequence[int] | None = None,
    ):
        super().__init__(Report(), base.strict, base.has_masks)
        self._base, self._shard, self._chosen = base, shard, chosen
        self._index: dict[str, int] = {}
        self.fault: ValueError | None = None  # TensorFlow would hide what kind of error it is
        elements = base._elements().enumerate().take(-1 if limit is None else limit)
        elements = elements.shard(shard[1], shard[0])
        total = int(elements.cardinality())
        self.total = total if total >= 0 else None
        self._all = elements.skip(self.gone_through(position))

    def gone_through(self, position: int) -> int:
        """How many examples of this shard lie before a position in the data."""
        index, count = self._shard
        return max(0, math.ceil((position - index) / count))

    def remember(self, done: Evaluation) -> None:
        """Knows the images of an evaluation that goes on, to tell if one comes again."""
        if done.images:
            self._index = {one["id"]: one["index"] for one in done.records()}

    def _note(self, id: str, index: int) -> None:
        before = self._index.setdefault(id, index)
        if before != index:
            self.fault = ValueError(
                f"the id {id!r} belongs to the examples {before} and {index}: ids must be unique."
            )
            raise self.fault

    def _elements(self) -> tf.data.Dataset:
        elements = self._all
        if self._chosen is not None:
            chosen = tf.constant(self._chosen, tf.int64)
            elements = elements.filter(lambda index, *_: tf.reduce_any(chosen == index))
        return elements.map(lambda *values: tuple(tf.nest.flatten(values)))

    def _example(self, index, *values):
        try:
            example = self._base._example(*values)
        except RecordError as error:
            self._note(error.id, int(index))
            raise
        self._note(example.id, int(index))
        return example

    def index_of(self, id: str) -> int:
        """Where an example that was read stands in the data."""
        return self._index[id]

    def bad(self, position: int | None = None) -> dict[str, tuple[str, str]]:
        """The bad records before a position; those behind it, read ahead, come later."""
        noted = list(self.report.bad.items())
        return {
            id: reason for id, reason in noted if position is None or self._index[id] < position
        }


class _Counted(NamedTuple):
    """What came of one batch."""

    metrics: dict[str, StreamingMetric]
    records: list[dict]
    bad: dict[str, tuple[str, str]]
    position: int


def _in_step(batches, selected: _Selected, localizer, prepare, measure) -> Iterator[_Counted]:
    """Explains batch after batch; the metrics of the last few are computed meanwhile."""
    pending: collections.deque = collections.deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for batch in _strictly(batches, selected):
            images = batch["image"] if prepare is None else prepare(batch["image"])
            batch["id"] = [id.decode() for id in batch["id"]]
            for id, label in zip(batch["id"], batch["label"].tolist(), strict=True):
                _check_label(id, label, localizer.anatomy.classes)
            batch["index"] = [selected.index_of(id) for id in batch["id"]]
            explained = localizer(images, batch["label"], top_k=measure.k, batch_size=len(images))
            pending.append(pool.submit(measure, batch, explained))
            while len(pending) > _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _strictly(batches: tf.data.Dataset, selected: _Selected) -> Iterator[dict]:
    """The batches; a bad record that stops them raises its own error, not TensorFlow's."""
    try:
        yield from batches.as_numpy_iterator()
    except tf.errors.InvalidArgumentError:
        if selected.fault is not None:
            raise selected.fault from None
        bad = selected.bad()
        if not bad:
            raise
        id = min(bad, key=selected.index_of)
        raise RecordError(id, *bad[id]) from None


class _Measure:
    """From a batch and its explanation to metrics and records; called in threads."""

    def __init__(
        self, top: Sequence[int], threshold: float, sharpen: Callable, cut: bool, strict: bool
    ):
        self.k = max(top)
        self._top, self._threshold, self._sharpen = top, threshold, sharpen
        self._cut, self._strict = cut, strict

    def __call__(self, batch: dict, explained: Explanation) -> _Counted:
        maps = self._sharpen(batch.pop("image"), explained.maps[:, self.k :])[:, 0]
        position = batch["index"][-1] + 1
        finite = np.isfinite(maps).all(axis=tuple(range(1, maps.ndim)))
        bad = {
            id: ("map not finite", "the network overflows, see Explanation.diagnosis().")
            for id, good in zip(batch["id"], finite, strict=True)
            if not good
        }
        if bad and self._strict:
            id = next(iter(bad))
            raise RecordError(id, *bad[id])
        batch = {name: _where(values, finite) for name, values in batch.items()}
        batch["predicted"] = np.asarray(explained.class_ids)[finite, : self.k]
        metrics = new_metrics(self._top)
        if not finite.any():
            return _Counted(metrics, [], bad, position)
        maps = maps[finite]
        drawn = boxes(maps[:, None], self._threshold, size=explained.image_size)[:, 0]
        metrics["classification"].update(batch["predicted"], batch["label"])
        overlaps = {"iou": self._boxes(metrics, batch, maps, drawn)}
        if "mask" in batch:
            overlaps["mask_iou"] = self._masks(metrics, batch, maps)
        records = _records(batch, drawn, overlaps, self._top)
        return _Counted(metrics, records, bad, position)

    def _boxes(self, metrics: dict, batch: dict, maps, drawn) -> list[float | None]:
        """Counts the images that have a true box, and returns the best overlap of each."""
        truths = [one[one.any(axis=1)] for one in batch["boxes"]]
        boxed = np.array([len(one) > 0 for one in truths])
        if not boxed.any():
            return [None] * len(truths)
        best = [
            float(iou(box[None].astype(np.float64), truth.astype(np.float64)).max())
            if len(truth)
            else None
            for box, truth in zip(drawn, truths, strict=True)
        ]
        truths = _where(truths, boxed)
        # A prediction counts only where it is the true class, whose box this is.
        every = np.repeat(drawn[boxed, None], self.k, axis=1)
        ids, labels = batch["predicted"][boxed], batch["label"][boxed]
        metrics["localization"].update(ids, every, labels, truths)
        metrics["gt_known"].update(drawn[boxed], truths)
        sizes = None if self._cut else batch["size"][boxed]
        metrics["boxes"].update(score_maps(maps[boxed]), truths, sizes)
        return best

    def _masks(self, metrics: dict, batch: dict, maps) -> list[float]:
        """Counts pixels, and returns the overlap of each image's region and mask."""
        true, ignore = batch["mask"], batch["ignore_mask"]
        metrics["pixels"].update(score_maps(maps), _at_protocol(true), _at_protocol(ignore))
        kept = masks(maps[:, None], self._threshold, size=true.shape[1:])[:, 0]
        common = (kept & true).sum(axis=(1, 2))
        union = ((kept & ~ignore) | true).sum(axis=(1, 2))
        return (common / np.maximum(union, 1)).tolist()


def _at_protocol(masks: np.ndarray) -> np.ndarray:
    """Masks (N, H, W) bool at the protocol's size."""
    height, width = PROTOCOL_SIZE
    resized = [
        cv2.resize(np.uint8(one), (width, height), interpolation=cv2.INTER_NEAREST) for one in masks
    ]
    return np.stack(resized).astype(bool)


def _where(values, chosen: np.ndarray):
    """The chosen ones of an array or a list."""
    if isinstance(values, np.ndarray):
        return values[chosen]
    return [value for value, keep in zip(values, chosen, strict=True) if keep]


def _records(
    batch: dict, drawn: np.ndarray, overlaps: dict[str, Sequence], top: Sequence[int]
) -> list[dict]:
    """What is noted of each image: plain data, for a line of JSON; None where it has no box."""
    rows = []
    for i, overlap in enumerate(overlaps["iou"]):
        label, predicted = int(batch["label"][i]), batch["predicted"][i].tolist()
        hit = None if overlap is None else overlap >= 0.5 - TIE
        right = {n: label in predicted[:n] for n in top}
        rows.append(
            {
                "index": batch["index"][i],
                "id": batch["id"][i],
                "label": label,
                "predicted": predicted,
                **{name: values[i] for name, values in overlaps.items()},
                "box": [float(edge) for edge in drawn[i]],
                **{f"cls_top{n}": right[n] for n in top},
                **{f"loc_top{n}": None if hit is None else right[n] and hit for n in top},
                "gt_known": hit,
            }
        )
    return rows
