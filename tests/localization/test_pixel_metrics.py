"""PxAP and the pointing games, literally and against plain loops."""

import json

import numpy as np
import pytest

from cam_tf.localization.pixel_metrics import EnergyPointingGame, PointingGame, PxAP


def test_pxap_by_hand():
    metric = PxAP(interval=0.1)
    scores = np.array([[[1.0, 0.85], [0.55, 0.05]]])
    metric.update(scores, [[[1, 0], [1, 0]]])
    # P and R at 1: 1, 1/2; at 0.8: 1/2, 1/2; at 0.5: 2/3, 1; below, recall does not grow.
    assert metric.result()["pxap"] == pytest.approx(0.5 + 2 / 3 * 0.5)
    curve = metric.curve()
    assert curve["thresholds"][[0, -1]].tolist() == [1, 0]
    assert curve["precision"][[0, -1]].tolist() == [1, 0.5]
    assert curve["recall"][[0, -1]].tolist() == [0.5, 1]


def test_ignored_pixels_are_left_out_unless_they_are_object():
    scores = np.array([[[1.0, 0.85], [0.55, 0.05]]])
    metric = PxAP(interval=0.1)
    metric.update(scores, [[[1, 0], [1, 0]]], ignore=[[[1, 1], [0, 0]]])
    assert metric.result()["pxap"] == 1


def _direct_pxap(scores, masks, ignore, thresholds):
    """All pixels of the data set, precision and recall anew at every threshold."""
    counted = masks | ~ignore
    values, positive = scores[counted], masks[counted]
    area, before = 0.0, 0.0
    for threshold in [1.0, *thresholds[::-1]]:
        predicted = values >= threshold
        if predicted.any():
            recall = (predicted & positive).sum() / positive.sum()
            area += (predicted & positive).sum() / predicted.sum() * (recall - before)
            before = recall
    return area


@pytest.mark.parametrize("interval", [0.001, 0.07])
def test_random_maps_against_the_direct_definition(interval, rng):
    scores = rng.random((6, 9, 11))
    scores[0, 0, :4] = [0, 1, 0.5, 0.007]  # on the edges of bins
    masks, ignore = rng.random((2, 6, 9, 11)) < np.array([0.4, 0.2])[:, None, None, None]
    whole, first, second = (PxAP(interval) for _ in range(3))
    whole.update(scores, masks, ignore)
    expected = _direct_pxap(scores, masks, ignore, np.arange(0, 1, interval))
    assert whole.result()["pxap"] == pytest.approx(expected, rel=1e-12)
    first.update(scores[:4], masks[:4], ignore[:4])
    second.update(scores[4:], masks[4:], ignore[4:])
    first = PxAP.from_state(json.loads(json.dumps(first.state())))
    first.merge(second)
    assert first.state() == whole.state()


def test_pxap_of_what_does_not_fit():
    metric, scores = PxAP(), np.zeros((1, 2, 2))
    with pytest.raises(ValueError, match="resize them"):
        metric.update(scores, np.zeros((1, 3, 3)))
    with pytest.raises(ValueError, match="mask > 127"):
        metric.update(scores, np.full((1, 2, 2), 255))
    with pytest.raises(ValueError, match="score_maps first"):
        metric.update(scores + 2, scores)
    metric.update(scores, scores)
    with pytest.raises(ValueError, match="every mask so far was empty"):
        metric.result()


def _points(*places, size=100):
    maps = np.zeros((len(places), size, size))
    for one, place in zip(maps, places, strict=True):
        one[place] = 2
    return maps


def test_the_pointing_game_tolerates_fifteen_pixels():
    box = [[0.4, 0.4, 0.6, 0.6]]  # pixels 40..59
    inside_and_near = _points((50, 50), (25, 50), (74, 50), (40 - 9, 40 - 12))
    outside = _points((24, 50), (75, 50), (40 - 9, 40 - 13))
    metric = PointingGame()
    metric.update(inside_and_near, [box] * 4)
    assert metric.result() == {"pointing_game": 1}
    metric.update(outside, [box] * 3)
    assert metric.result()["pointing_game"] == 4 / 7
    strict = PointingGame(tolerance=0)
    strict.update(inside_and_near, [box] * 4)
    assert strict.result()["pointing_game"] == 1 / 4


def test_the_pointing_game_counts_pixels_of_the_original_image():
    box, maps = [[0.4, 0.4, 0.6, 0.6]], _points((24, 50))  # 16 of 100 away
    metric = PointingGame()
    metric.update(maps, [box], [[50, 100]])  # 8 of 50
    assert metric.result()["pointing_game"] == 1
    metric.update(maps, [box], [[200, 100]])
    assert metric.result()["pointing_game"] == 0.5


def test_ties_constant_maps_and_several_boxes():
    metric = PointingGame(tolerance=0)
    tie = np.zeros((1, 10, 10))
    tie[0, 0, 0] = tie[0, 9, 9] = 1
    metric.update(tie, [[[0.9, 0.9, 1, 1]]])  # the first maximum is at the other corner
    metric.update(np.ones((1, 10, 10)), [[[0, 0, 1, 1]]])
    assert metric.result()["pointing_game"] == 0
    metric.update(tie, [[[0.9, 0.9, 1, 1], [0, 0, 0.1, 0.1]]])
    assert metric.result()["pointing_game"] == pytest.approx(1 / 3)


def _direct_energy(one, truth):
    """Pixel by pixel."""
    inside = total = 0.0
    for (y, x), value in np.ndenumerate(one):
        value = max(value, 0)
        total += value
        centre = (y + 0.5) / one.shape[0], (x + 0.5) / one.shape[1]
        if any(b[0] <= centre[0] < b[2] and b[1] <= centre[1] < b[3] for b in truth):
            inside += value
    return inside / total


def test_the_energy_on_the_object(rng):
    metric = EnergyPointingGame()
    metric.update([[[3, 1], [-8, 0]]], [[[0, 0, 1, 0.5]]])
    assert metric.result() == {"energy_pointing_game": 0.75}
    metric.update([[[-1, 0], [-8, 0]]], [[[0, 0, 1, 1]]])
    assert metric.result()["energy_pointing_game"] == 0.375

    maps = rng.normal(size=(8, 9, 12))
    low = rng.random((8, 2, 2)) / 2
    truth = np.concatenate([low, low + 0.1 + 0.4 * rng.random((8, 2, 2))], axis=-1)
    whole, first, second = (EnergyPointingGame() for _ in range(3))
    whole.update(maps, truth)
    expected = np.mean([_direct_energy(*each) for each in zip(maps, truth, strict=True)])
    assert whole.result()["energy_pointing_game"] == pytest.approx(expected, rel=1e-12)
    first.update(maps[:3], truth[:3])
    second.update(maps[3:], truth[3:])
    first = EnergyPointingGame.from_state(json.loads(json.dumps(first.state())))
    first.merge(second)
    assert first.result() == pytest.approx(whole.result(), rel=1e-14)


def test_maps_that_are_not_finite():
    for metric in (PointingGame(), EnergyPointingGame()):
        with pytest.raises(ValueError, match=r"maps \[1\] hold NaN or infinity"):
            metric.update([[[0, 1]], [[0, np.inf]]], [[[0, 0, 1, 1]]] * 2)
        assert metric.images == 0
