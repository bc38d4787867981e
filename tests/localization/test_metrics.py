"""Top-1/top-5 localization error and GT-known accuracy, literally and against plain loops."""

import json

import numpy as np
import pytest

from cam_tf.localization.metrics import GTKnown, LocalizationError
from cam_tf.localization.true_boxes import iou

LEFT, RIGHT, WHOLE, NONE = [0, 0, 1, 0.5], [0, 0.5, 1, 1], [0, 0, 1, 1], [0, 0, 0, 0]


def test_iou():
    found = iou(np.array([LEFT, WHOLE, NONE]), np.array([LEFT, RIGHT, NONE]))
    np.testing.assert_array_equal(found, [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]])
    pixels = np.array([[0, 0, 1, 1]]), np.array([[1, 1, 2, 2], [1, 1, 1, 1]])
    np.testing.assert_array_equal(iou(*pixels, pixel=1), [[1 / 7, 1 / 4]])


def test_literal_errors():
    metric = LocalizationError(top=(1, 2))
    class_ids = [[3, 4], [3, 4], [3, 4], [3, 4], [3, 4]]
    truth = [3, 3, 4, 4, 5]
    boxes = [[LEFT, RIGHT]] * 5
    # Right at once; wrong box; right second with the second's box; the first's box does not help.
    metric.update(class_ids, boxes, truth, [[LEFT], [RIGHT], [RIGHT], [LEFT], [LEFT]])
    assert metric.result() == pytest.approx(
        {
            "cls_top1_error": 3 / 5,
            "cls_top2_error": 1 / 5,
            "loc_top1_error": 4 / 5,
            "loc_top2_error": 3 / 5,
        }
    )


def test_any_of_several_boxes_and_any_true_box():
    metric = LocalizationError(top=(1,))
    metric.update([[0], [0]], [[[NONE, RIGHT]], [[LEFT, NONE]]], [0, 0], [[LEFT, RIGHT], [RIGHT]])
    assert metric.result()["loc_top1_error"] == 0.5


def test_one_half_is_enough_and_padding_is_no_box():
    known = GTKnown()
    known.update([WHOLE, NONE], np.array([[LEFT, NONE], [LEFT, NONE]]))
    assert known.result() == {"gt_known": 0.5}
    thirds = np.float32([[0, 0, 1 / 3, 1]]), np.float32([[[0, 0, 2 / 3, 1]]])
    known.update(*thirds)
    assert known.result()["gt_known"] == pytest.approx(2 / 3)


def _slow_overlap(one, other):
    """The share of a fine grid's cells, whose corners all boxes of the test lie on."""
    grid = np.zeros((2, 20, 20), bool)
    for layer, box in zip(grid, (one, other), strict=True):
        ymin, xmin, ymax, xmax = np.rint(np.array(box) * 20).astype(int)
        layer[ymin:ymax, xmin:xmax] = True
    return (grid[0] & grid[1]).sum() / max((grid[0] | grid[1]).sum(), 1)


def _random_boxes(rng, *shape):
    low = rng.integers(0, 10, (*shape, 2))
    return np.concatenate([low, low + rng.integers(1, 11, (*shape, 2))], axis=-1) / 20


def test_random_batches_against_plain_loops(rng):
    whole, first, second = (LocalizationError() for _ in range(3))
    known = GTKnown()
    class_ids = np.stack([rng.permutation(7)[:5] for _ in range(60)])
    labels, boxes = rng.integers(0, 7, 60), _random_boxes(rng, 60, 5)
    truth = [_random_boxes(rng, rng.integers(1, 4)) for _ in range(60)]
    whole.update(class_ids, boxes, labels, truth)
    known.update(boxes[:, 0], truth)
    wrong = dict.fromkeys(whole.result(), 0)
    right_known = 0
    for ids, own, label, true in zip(class_ids, boxes, labels, truth, strict=True):
        overlaps = [max(_slow_overlap(box, one) for one in true) for box in own]
        right_known += overlaps[0] >= 0.5
        for n in (1, 5):
            hits = [i for i in range(n) if ids[i] == label]
            wrong[f"cls_top{n}_error"] += not hits
            wrong[f"loc_top{n}_error"] += not any(overlaps[i] >= 0.5 for i in hits)
    assert whole.result() == pytest.approx({name: count / 60 for name, count in wrong.items()})
    assert known.result()["gt_known"] == right_known / 60

    first.update(class_ids[:25], boxes[:25], labels[:25], truth[:25])
    second.update(class_ids[25:], boxes[25:], labels[25:], truth[25:])
    second = LocalizationError.from_state(json.loads(json.dumps(second.state())))
    first.merge(second)
    assert first.state() == whole.state()


@pytest.mark.parametrize(
    ("boxes", "true_boxes", "message"),
    [
        ([[10, 20, 30, 40]], [[WHOLE]], "predicted boxes are not relative"),
        ([WHOLE], [[[0, 0, 100, 100]]], "true boxes of image 0 are not relative"),
        ([WHOLE], [[[0, np.nan, 1, 1]]], "true boxes of image 0 are not relative"),
        ([WHOLE], [[[0.5, 0, 0.4, 1]]], "ymin > ymax"),
        ([WHOLE], [[NONE]], "image 0 of the batch has no true box"),
        ([WHOLE], [[]], "image 0 of the batch has no true box"),
        ([WHOLE], [[WHOLE], [WHOLE]], "true boxes of 2 images were given for 1"),
        ([WHOLE], [[[0, 1, 2]]], r"have shape \(1, 3\), not \(b, 4\)"),
        ([[0, 1, 2]], [[WHOLE]], "do not end in"),
        ([0.5], [[WHOLE]], "do not fit"),
    ],
)
def test_boxes_that_do_not_fit(boxes, true_boxes, message):
    metric = GTKnown()
    with pytest.raises(ValueError, match=message):
        metric.update(boxes, true_boxes)
    assert metric.images == 0


def test_what_else_does_not_fit():
    metric = LocalizationError()
    with pytest.raises(ValueError, match="explain with top_k=5"):
        metric.update([[0, 1]], [[WHOLE, WHOLE]], [0], [[WHOLE]])
    with pytest.raises(ValueError, match=r"are not \(N, k\) and \(N,\)"):
        metric.update([[0] * 5], [[WHOLE] * 5], [0, 1], [[WHOLE]])
    with pytest.raises(ValueError, match="no result of no images"):
        metric.result()
    with pytest.raises(ValueError, match="not merged"):
        metric.merge(GTKnown())
    with pytest.raises(ValueError, match="state of GTKnown, not of LocalizationError"):
        LocalizationError.from_state(GTKnown().state())
    state = metric.state()
    state["totals"]["classified"] = [1]
    with pytest.raises(ValueError, match="damaged"):
        LocalizationError.from_state(state)
    with pytest.raises(ValueError, match="numbers of predictions"):
        LocalizationError(top=(0,))


def test_an_empty_batch_adds_nothing():
    metric = GTKnown()
    metric.update(np.zeros((0, 4)), [])
    assert metric.images == 0
