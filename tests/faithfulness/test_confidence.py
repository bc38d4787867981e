"""Average drop and increase in confidence: literal answers, and a slow reference."""

import numpy as np
import pytest

from cam_tf.faithfulness import AverageDrop, Probabilities

RED = np.float32([[0.8, 0.4], [0.2, 0.2]])  # p = 0.4, see linear_model


@pytest.fixture
def image():
    found = np.zeros((1, 2, 2, 3), np.float32)
    found[0, ..., 0] = RED
    return found


@pytest.mark.parametrize(
    ("baseline", "map_", "drop", "increase"),
    [
        (0, [[5, 0], [0, 0]], 0.5, 0),  # 0.8 is left, the mean of which is 0.2
        (0, [[1, 1], [1, 1]], 0, 0),  # all is left
        (0, [[4, 2], [-1, 0]], 1 - 0.25 / 0.4, 0),  # 0.8 + 0.4 / 2
        (0, [[-1, -2], [-3, -4]], 1, 0),  # nothing is left
        (1, [[1, 0], [0, 0]], 0, 1),  # 0.8 and white: 0.95
    ],
)
def test_literal_answers(linear_model, image, baseline, map_, drop, increase):
    metric = AverageDrop(baseline=baseline)
    found = metric.update(Probabilities(linear_model), image, np.float32([map_]), [0])
    np.testing.assert_allclose(found["average_drop"], [drop], atol=1e-6)
    np.testing.assert_allclose(found["increase_in_confidence"], [increase])


def test_the_rule_of_the_heatmap(linear_model, image):
    metric = AverageDrop(baseline=0, rule="minmax")
    metric.update(Probabilities(linear_model), image, np.float32([[[-1, -2], [-3, -3]]]), [0])
    # 1, 0.5, 0, 0 are shown: (0.8 + 0.2) / 4 of 0.4
    assert metric.result()["average_drop"] == pytest.approx(1 - 0.25 / 0.4)


def test_agrees_with_the_slow_reference(rng, small_model):
    images = rng.uniform(0, 255, (5, 9, 7, 3)).astype(np.float32)
    maps, class_ids = rng.normal(size=(5, 9, 7)), [0, 1, 2, 1, 0]
    colour = np.float32([120, 110, 100])
    metric = AverageDrop(baseline=colour)
    metric.update(Probabilities(small_model, batch_size=2), images, maps, class_ids)
    drops, increases = [], []
    for image, map_, class_id in zip(images, maps, class_ids, strict=True):
        shown = np.maximum(map_, 0) / map_.max()
        seen = colour + shown[..., None] * (image - colour)
        before, after = (float(small_model(one[None])[0, class_id]) for one in (image, seen))
        drops.append(max(0.0, before - after) / before)
        increases.append(after > before)
    expected = {"average_drop": np.mean(drops), "increase_in_confidence": np.mean(increases)}
    assert metric.result() == pytest.approx(expected, abs=1e-5)


def test_an_unknown_rule():
    with pytest.raises(ValueError, match="use 'minmax' or 'relu'"):
        AverageDrop(rule="abs")
