"""Several methods on the same images: one table of faithfulness, with confidence intervals."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from cam_tf.faithfulness.bootstrap import bootstrap_interval
from cam_tf.faithfulness.confidence import AverageDrop
from cam_tf.faithfulness.deletion import Deletion, Insertion
from cam_tf.faithfulness.metrics import FaithfulnessMetric
from cam_tf.faithfulness.probabilities import Probabilities
from cam_tf.faithfulness.road import ROAD
from cam_tf.maps.explanation import Array, Explanation

METRICS: dict[str, type[FaithfulnessMetric]] = {
    "deletion": Deletion,
    "insertion": Insertion,
    "drop": AverageDrop,
    "road": ROAD,
}
_LOW_IS_GOOD = {"deletion_auc", "average_drop", "road_morf"}


class Estimate(NamedTuple):
    """A figure, the mean over images, and the ends of its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(eq=False)
class Comparison:
    """What was measured of several methods on the same images; made by ``compare_methods``.

    Attributes:
        metrics: by method and name, the streaming metrics: sums, curves, and states to store.
        values: by method and figure, a number for each image.
        ids: the images that were measured.
        class_ids: the class of each that was explained.
        bad: the images left out: id -> reason.
    """

    metrics: dict[str, dict[str, FaithfulnessMetric]]
    values: dict[str, dict[str, list[float]]]
    ids: list[str] = field(default_factory=list)
    class_ids: list[int] = field(default_factory=list)
    bad: dict[str, str] = field(default_factory=dict)

    def estimates(
        self, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
    ) -> dict[str, dict[str, Estimate]]:
        """Returns each method's figures with their bootstrap intervals, see bootstrap_interval.

        Raises:
            ValueError: no image was measured.
        """
        if not self.ids:
            reasons = "; ".join(f"{id}: {why}" for id, why in list(self.bad.items())[:3])
            raise ValueError(f"no image could be measured. {reasons or 'There was none.'}")
        settings = {"confidence": confidence, "resamples": resamples, "seed": seed}
        return {
            method: {
                name: Estimate(float(np.mean(each)), *bootstrap_interval(each, **settings))
                for name, each in figures.items()
            }
            for method, figures in self.values.items()
        }

    def _repr_html_(self) -> str:
        from cam_tf.display.notebook import table  # a room above, for notebooks alone

        found = self.estimates()
        figures = list(dict.fromkeys(name for row in found.values() for name in row))
        rows = [
            [method, *(_shown(row.get(name)) for name in figures)] for method, row in found.items()
        ]
        return table(["method", *figures], rows, f"{len(self.ids)} images, 95 % intervals")

    def curves(self) -> dict[str, dict[str, list[float]]]:
        """Returns each method's mean curves by name."""
        return {
            method: {name: curve.tolist() for one in kept.values() for name, curve in _curves(one)}
            for method, kept in self.metrics.items()
        }


def compare_methods(
    probabilities: Probabilities,
    explainers: Mapping[str, Callable[..., Explanation | Array]],
    batches: Iterable[tuple[Sequence[str], Array]],
    metrics: Mapping[str, Callable[[], FaithfulnessMetric]] = METRICS,
    *,
    strict: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Measures how faithful several methods are, on the same images and classes.

    The class explained is the one that the model predicts. An image for which a method gives a map
    that is not finite is left out for all of them.

    Args:
        probabilities: of the classifier that is explained.
        explainers: by name, explainers or other functions from ``(images, class_ids)`` to an
            ``Explanation`` or maps, one for each image (N, h, w) or (N, 1, h, w): precomputed maps
            too, in the order of the images.
        batches: of ids and images (N, H, W, channels) as the model takes them.
        metrics: by name, what makes the metrics; default: all, with the sources' settings.
        strict: raise in place of leaving an image out.
        progress: called with the number of images that a step has measured, one step for each
            method and batch.

    Returns:
        The comparison.

    Raises:
        ValueError: maps that do not fit the images; with ``strict``, a map that is not finite.
    """
    kept = {method: {name: make() for name, make in metrics.items()} for method in explainers}
    values = {
        method: {name: [] for metric in own.values() for name in metric.figures}
        for method, own in kept.items()
    }
    found = Comparison(kept, values)
    for ids, images in batches:
        ids, images = np.asarray(ids, object), np.asarray(images)
        class_ids = probabilities.predicted(images)
        maps = {name: _maps(one(images, class_ids.tolist())) for name, one in explainers.items()}
        good = _finite(maps, ids, found.bad, strict)
        found.ids += ids[good].tolist()
        found.class_ids += class_ids[good].tolist()
        for method, own in kept.items():
            for metric in own.values() if good.any() else ():
                given = images[good], maps[method][good], class_ids[good]
                for name, each in metric.update(probabilities, *given).items():
                    values[method][name] += each.tolist()
            if progress is not None:
                progress(len(ids))
    return found


def _shown(found: Estimate | None) -> str:
    return "" if found is None else f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


def is_low_good(figure: str) -> bool:
    """Whether a small value of a figure is good."""
    return figure in _LOW_IS_GOOD


def _curves(metric: FaithfulnessMetric) -> Iterable[tuple[str, np.ndarray]]:
    return metric.curves().items() if metric.images else ()


def _maps(maps: Explanation | Array) -> np.ndarray:
    maps = np.asarray(maps.maps if isinstance(maps, Explanation) else maps)
    return maps[:, 0] if maps.ndim == 4 else maps


def _finite(maps: Mapping[str, np.ndarray], ids, bad: dict[str, str], strict: bool) -> np.ndarray:
    """Which images (N,) have finite maps by every method; notes the others."""
    good = np.ones(len(ids), bool)
    for method, each in maps.items():
        finite = np.isfinite(each).all(axis=tuple(range(1, each.ndim)))
        for id in ids[good & ~finite]:
            bad[id] = f"its map by {method} is not finite, see Explanation.diagnosis()."
            if strict:
                raise ValueError(f"{id}: {bad[id]}")
        good &= finite
    return good
