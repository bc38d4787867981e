"""Several methods in one table: the better map wins, bad maps are left out, intervals cover."""

import numpy as np
import pytest

from cam_tf.faithfulness import (
    METRICS,
    AverageDrop,
    Deletion,
    Probabilities,
    bootstrap_interval,
    compare_methods,
)
from cam_tf.faithfulness.comparison import is_low_good


def batches(rng, count=6, size=2):
    images = rng.uniform(0, 1, (count, 4, 4, 3)).astype(np.float32)
    images[..., 1:] = 0  # class 0 is predicted, and its evidence is red
    for start in range(0, count, size):
        part = images[start : start + size]
        yield [f"{start + i}.png" for i in range(len(part))], part


def red(images, class_ids):
    return np.asarray(images)[..., 0]


def wrong(images, class_ids):
    return -red(images, class_ids)[:, None]


MADE = {"deletion": lambda: Deletion(4, 0), "drop": lambda: AverageDrop(0)}


def test_the_true_map_beats_the_opposite(rng, linear_model):
    done = []
    found = compare_methods(
        Probabilities(linear_model),
        {"red": red, "wrong": wrong},
        batches(rng),
        MADE,
        progress=done.append,
    )
    assert done == [2] * 6
    assert found.ids == [f"{i}.png" for i in range(6)]
    assert found.class_ids == [0] * 6
    assert not found.bad
    table = found.estimates(resamples=100)
    assert table["red"]["deletion_auc"].high < table["wrong"]["deletion_auc"].low
    assert table["red"]["average_drop"].value < table["wrong"]["average_drop"].value == 1
    for method, own in table.items():
        for name, one in own.items():
            assert one.low <= one.value <= one.high
            kept = next(m for m in found.metrics[method].values() if name in m.figures)
            assert one.value == pytest.approx(kept.result()[name])
    assert len(found.curves()["red"]["deletion_curve"]) == 5


def test_an_image_without_a_finite_map_is_left_out_for_all(rng, linear_model):
    def breaks(images, class_ids):
        maps = red(images, class_ids).copy()
        maps[(images[..., 0].sum(axis=(1, 2)) == sums[3])] = np.nan
        return maps

    every = list(batches(rng))
    sums = [np.float32(images[..., 0].sum(axis=(1, 2))) for _, images in every]
    sums = np.concatenate(sums)
    found = compare_methods(
        Probabilities(linear_model), {"red": red, "breaks": breaks}, every, MADE
    )
    assert found.ids == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert "by breaks is not finite" in found.bad["3.png"]
    assert {len(each) for own in found.values.values() for each in own.values()} == {5}
    assert found.values["red"] == found.values["breaks"]
    with pytest.raises(ValueError, match=r"3\.png: its map by breaks"):
        compare_methods(Probabilities(linear_model), {"breaks": breaks}, every, MADE, strict=True)


def test_no_image_at_all(linear_model):
    found = compare_methods(Probabilities(linear_model), {"red": red}, [], MADE)
    with pytest.raises(ValueError, match="no image could be measured"):
        found.estimates()


def test_every_figure_says_which_way_is_good():
    figures = {name for kind in METRICS.values() for name in kind().figures}
    assert {name for name in figures if is_low_good(name)} == {
        *("deletion_auc", "average_drop", "road_morf")
    }


def test_the_interval_is_a_mean_s(rng):
    values = rng.normal(3, 2, 400)
    low, high = bootstrap_interval(values)
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert bootstrap_interval(values) == (low, high)
    assert bootstrap_interval(values, seed=1) != (low, high)
    assert bootstrap_interval([0.5, 0.5]) == (0.5, 0.5)
    stats = pytest.importorskip("scipy.stats")
    theirs = stats.bootstrap((values,), np.mean, method="percentile", rng=1).confidence_interval
    assert (low, high) == pytest.approx(tuple(theirs), abs=0.15 * error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([],), "a figure for each image"),
        (([[1.0]],), "a figure for each image"),
        (([1.0], 1.0), "confidence=1.0"),
        (([1.0], 0.9, 0), "resamples=0"),
    ],
)
def test_no_interval(arguments, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(*arguments)
