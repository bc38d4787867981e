"""What an evaluation has measured: figures with their standard errors, a table, and its state."""

import copy
import html
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

from cam_tf.datasets.localization import Report
from cam_tf.files import written_whole
from cam_tf.localization.classification import ClassificationError
from cam_tf.localization.max_box_acc import MaxBoxAcc
from cam_tf.localization.metrics import GTKnown, LocalizationError, StreamingMetric
from cam_tf.localization.pixel_metrics import PxAP

RECORDS, SUMMARY, SHEET = "images.jsonl", "evaluation.json", "cases.png"
# In the settings: where the data lie, which is not the same for workers on several machines.
PATHS = "paths"
_METRICS = {
    "classification": ClassificationError,
    "localization": LocalizationError,
    "gt_known": GTKnown,
    "boxes": MaxBoxAcc,
    "pixels": PxAP,
}
_NAMES = {
    "cls_top1_error": "classification error, top-1",
    "cls_top5_error": "classification error, top-5",
    "loc_top1_error": "localization error, top-1",
    "loc_top5_error": "localization error, top-5",
    "gt_known": "GT-known accuracy",
    "maxboxacc": "MaxBoxAcc",
    "maxboxaccv2": "MaxBoxAccV2",
    "pxap": "PxAP",
}


def new_metrics(top: Sequence[int]) -> dict[str, StreamingMetric]:
    """Returns the metrics of an evaluation, of no image yet; ``top`` as in LocalizationError."""
    of_top = ("classification", "localization")
    return {name: kind(top) if name in of_top else kind() for name, kind in _METRICS.items()}


class Figure(NamedTuple):
    """One figure: a share in [0, 1].

    Attributes:
        value: the share.
        images: the number n of images that it is of.
        standard_error: sqrt(p (1 - p) / n); None where the figure is no share of the images.
        threshold: the share of the map's maximum (for MaxBoxAcc: the score) that boxes are drawn
            at; None where there is not one.
    """

    value: float
    images: int
    standard_error: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The sums of an evaluation, whole or up to some image; made by ``evaluate``.

    Attributes:
        settings: all that the figures depend on, in plain data.
        metrics: the streaming metrics by name.
        bad: the records left out: id -> (kind, detail).
        seconds: the time it ran, of all workers together, loading and pauses left out.
        position: how many examples of the data it has gone through, bad ones and those of other
            shards too.
        bytes: the length of the records of these images in ``images.jsonl``.
        finished: whether that was all; not where all records were bad.
        workers: how many evaluations it was merged from.
        directory: where the records are.
    """

    settings: dict
    metrics: dict[str, StreamingMetric]
    bad: dict[str, tuple[str, str]] = field(default_factory=dict)
    seconds: float = 0.0
    position: int = 0
    bytes: int = 0
    finished: bool = False
    workers: int = 1
    directory: Path | None = None

    @property
    def images(self) -> int:
        """The number of images that were evaluated."""
        return self.metrics["classification"].images

    @property
    def images_per_second(self) -> float:
        """Images for each second that a worker ran."""
        return self.images / self.seconds if self.seconds else 0.0

    def plus(self, metrics: Mapping[str, StreamingMetric], **changed) -> "Evaluation":
        """Returns the evaluation with the images of more metrics; this one stays as it is."""
        return replace(self, metrics=_sum([self.metrics, metrics]), **changed)

    def results(self) -> dict[str, Figure]:
        """Returns the figures by name; those that the data have no boxes or masks for are absent.

        ``cls_top1_error``, ``cls_top5_error``, ``loc_top1_error``, ``loc_top5_error`` (top-5 from
        five classes on), ``gt_known``, ``maxboxacc``, ``maxboxaccv2`` and, for each overlap,
        ``maxboxaccv2_50``; ``pxap``.

        Raises:
            ValueError: no image was evaluated.
        """
        found = self._results()
        if not found:
            report = Report()
            report.bad = dict(self.bad)
            raise ValueError(f"no image was evaluated: {report}")
        return found

    def _results(self) -> dict[str, Figure]:
        found = {}
        for metric in self.metrics.values():
            if metric.images and not _is_empty(metric):
                values = metric.result()
                for name in values:
                    # Of all images, not only of those with a box.
                    if name not in found and not name.endswith("_threshold"):
                        found[name] = self._figure(name, values, metric.images)
        return found

    def _figure(self, name: str, values: Mapping[str, float], images: int) -> Figure:
        value, error = values[name], None
        if name not in ("maxboxaccv2", "pxap"):  # a mean of three shares, and an area
            error = math.sqrt(value * (1 - value) / images)
        fixed = self.settings["threshold"] if name[:3] in ("loc", "gt_") else None
        return Figure(value, images, error, values.get(f"{name}_threshold", fixed))

    def summary(self) -> dict:
        """Returns all that is worth keeping as plain data, for JSON."""
        kinds = Counter(kind for kind, _ in self.bad.values())
        listed = [{"id": id, "kind": kind, "detail": text} for id, (kind, text) in self.bad.items()]
        return {
            "settings": self.settings,
            "images": self.images,
            "bad_records": {
                "count": len(self.bad),
                "kinds": dict(kinds.most_common()),
                "records": listed,
            },
            "seconds": round(self.seconds, 3),
            "images_per_second": round(self.images_per_second, 3),
            "workers": self.workers,
            "results": {name: found._asdict() for name, found in self._results().items()},
        }

    def write(self, path: Path, paths: Mapping[str, str] | None = None) -> None:
        """Writes ``summary()`` as a JSON file, after the ``paths`` that the data were read from."""
        whole = json.dumps({PATHS: dict(paths or {}), **self.summary()}, indent=2, allow_nan=False)
        with written_whole(path) as file:
            file.write(whole.encode() + b"\n")

    def records(self) -> Iterator[dict]:
        """Reads what was noted of each image, in the order of the data.

        Raises:
            ValueError: they were not kept.
        """
        if self.directory is None or not (self.directory / RECORDS).is_file():
            raise ValueError("the records of the images were not kept: evaluate with a directory.")
        with open(self.directory / RECORDS, encoding="utf-8") as file:
            yield from map(json.loads, file)

    def cases(self, count: int = 6) -> dict[str, list[dict]]:
        """Chooses records by their ``overlap``: the best, those around the median, and the worst.

        Args:
            count: how many of each, fewer where there are fewer than three times as many images.

        Returns:
            "best", "median" and "worst", each from the better to the worse, no image twice.
        """
        ranked = [one for one in self.records() if overlap(one) is not None]
        ranked.sort(key=lambda one: (-overlap(one), one["index"]))
        count = min(count, max(1, len(ranked) // 3))
        middle = max(count, (len(ranked) - count) // 2)
        ends = {"best": (0, count), "median": (middle, min(middle + count, len(ranked) - count))}
        chosen = {name: ranked[low:high] for name, (low, high) in ends.items()}
        chosen["worst"] = ranked[max(len(ranked) - count, count) :]
        return {name: rows for name, rows in chosen.items() if rows}

    def state(self) -> dict:
        """Returns all there is to go on from, as plain data."""
        kept = ("settings", "bad", "seconds", "position", "bytes", "finished", "workers")
        states = {name: metric.state() for name, metric in self.metrics.items()}
        return {**{name: getattr(self, name) for name in kept}, "metrics": states}

    @classmethod
    def from_state(cls, state: dict, directory: Path | None = None) -> "Evaluation":
        """Returns the evaluation that ``state()`` was called on.

        Raises:
            KeyError, TypeError, ValueError: it is not such a state.
        """
        states = state["metrics"]
        metrics = {name: kind.from_state(states[name]) for name, kind in _METRICS.items()}
        bad = {id: tuple(reason) for id, reason in state["bad"].items()}
        return cls(**{**state, "metrics": metrics, "bad": bad, "directory": directory})

    def __str__(self) -> str:
        return table(self)

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


def overlap(record: Mapping) -> float | None:
    """A record's IoU with the best true box, or else with the mask; None if it has neither."""
    return record.get("mask_iou") if record["iou"] is None else record["iou"]


def compared(settings: Mapping) -> dict:
    """The settings that all shards of an evaluation share."""
    return {name: value for name, value in settings.items() if name not in ("shard", PATHS)}


def combined(parts: Sequence[Evaluation]) -> Evaluation:
    """Adds up the shards of an evaluation.

    Raises:
        ValueError: a shard is unfinished, missing or there twice, or the settings differ.
    """
    shards = [part.settings["shard"] for part in parts]
    count = int(shards[0].split("/")[1])
    for part in parts:
        changes = differences(compared(part.settings), compared(parts[0].settings))
        if changes:
            raise ValueError(
                f"{part.directory} and {parts[0].directory} are no shards of one evaluation: "
                f"{changes[0]}."
            )
        if not part.finished:
            raise ValueError(
                f"{part.directory} is not finished: it has seen {part.images} images and "
                f"{len(part.bad)} bad records. Run its command again, and merge then."
            )
    missing = sorted({f"{i}/{count}" for i in range(count)} - set(shards))
    if missing or len(shards) != count:
        twice = [shard for shard, times in Counter(shards).items() if times > 1]
        what = f"{', '.join(missing)} is missing" if missing else f"{twice[0]} is there twice"
        raise ValueError(f"these are not the shards of one evaluation: shard {what}.")
    bad = {id: reason for part in parts for id, reason in part.bad.items()}
    return replace(
        parts[0],
        settings={**parts[0].settings, "shard": "0/1"},
        metrics=_sum([part.metrics for part in parts]),
        bad=dict(sorted(bad.items())),
        seconds=sum(part.seconds for part in parts),
        position=max(part.position for part in parts),
        workers=sum(part.workers for part in parts),
    )


def _sum(every: Iterable[Mapping[str, StreamingMetric]]) -> dict[str, StreamingMetric]:
    first, *rest = every
    total = copy.deepcopy(dict(first))
    for metrics in rest:
        for name, metric in metrics.items():
            total[name].merge(metric)
    return total


def _is_empty(metric: StreamingMetric) -> bool:
    """Whether PxAP has seen no pixel of an object, and so has no result."""
    return isinstance(metric, PxAP) and not metric.curve()["recall"][-1]


def differences(new: Mapping, old: Mapping) -> list[str]:
    """Says which settings are not the same, in words."""
    new, old = _flat(new), _flat(old)
    return [
        f"{name} is {new.get(name, 'not set')} and was {old.get(name, 'not set')}"
        for name in dict.fromkeys([*new, *old])
        if new.get(name) != old.get(name)
    ]


def _flat(settings: Mapping, prefix: str = "") -> dict:
    found = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = value
    return found


def table(evaluation: Evaluation) -> str:
    """Writes the figures in percent, with standard errors and thresholds, a line for each."""
    speed = f"{evaluation.images_per_second:.1f} images/s" + " a worker" * (evaluation.workers > 1)
    left_out = f"{len(evaluation.bad)} bad record{'' if len(evaluation.bad) == 1 else 's'}"
    lines = [f"{evaluation.images} images, {left_out}, {speed}"]
    if not evaluation.images:
        return lines[0]
    lines += [""]
    lines.append(f"{'':28} {'%':>7} {'± s.e.':>7} {'threshold':>10}")
    for name, found in evaluation.results().items():
        shown = _NAMES.get(name) or f"  IoU {float(name.rpartition('_')[2]) / 100:g}"
        error = "" if found.standard_error is None else f"{100 * found.standard_error:.2f}"
        at = "" if found.threshold is None else f"{found.threshold:.3f}"
        lines.append(f"{shown:28} {100 * found.value:7.2f} {error:>7} {at:>10}".rstrip())
    return "\n".join(lines)
