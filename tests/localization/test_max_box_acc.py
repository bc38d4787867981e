"""MaxBoxAcc and V2: hand-made cases, and equality with a direct implementation."""

import json

import cv2
import numpy as np
import pytest

from cam_tf.localization.max_box_acc import MaxBoxAcc
from cam_tf.localization.score_maps import score_maps
from cam_tf.localization.true_boxes import pixel_boxes


def _direct_boxes(score, threshold):
    """The benchmark's rule at one threshold: the box of the largest contour, and all boxes."""
    height, width = score.shape
    image = (score * 255).astype(np.uint8)
    kept = np.uint8(255 * (image > int(threshold * image.max())))
    contours = cv2.findContours(kept, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]
    boxes, areas = [], []
    for contour in contours:
        x, y, w, h = cv2.boundingRect(contour)
        boxes.append([x, y, min(x + w, width - 1), min(y + h, height - 1)])
        areas.append(cv2.contourArea(contour))
    if not boxes:
        return [0, 0, 0, 0], [[0, 0, 0, 0]]
    return boxes[areas.index(max(areas))], boxes


def _direct_iou(one, other):
    sides = [min(one[i + 2], other[i + 2]) - max(one[i], other[i]) + 1 for i in (0, 1)]
    common = max(sides[0], 0) * max(sides[1], 0)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, other)]
    return common / (sum(areas) - common)


def _direct_counts(scores, pixels, thresholds, deltas):
    """How many images are right at each threshold: V1 at 0.5, and V2 for each delta."""
    largest, every = np.zeros(len(thresholds), int), np.zeros((len(deltas), len(thresholds)), int)
    for score, truth in zip(scores, pixels, strict=True):
        for t, threshold in enumerate(thresholds):
            box, boxes = _direct_boxes(score, threshold)
            largest[t] += max(_direct_iou(box, true) for true in truth) >= 0.5
            best = max(_direct_iou(one, true) for one in boxes for true in truth)
            every[:, t] += [best >= delta for delta in deltas]
    return largest, every


def _relative(pixels, height, width):
    """Pixels x0, y0, x1, y1 of an annotation as [ymin, xmin, ymax, xmax]."""
    return np.float32(pixels)[:, [1, 0, 3, 2]] / np.float32([height, width, height, width])


def _smooth(rng, size):
    return score_maps(rng.normal(size=(5, size, size)), (48, 56))


def _peaks(rng):
    return score_maps(rng.normal(size=(5, 6, 6)) ** 4, (48, 56))


def _steps(rng):
    """Few levels, so ties, holes and equal areas."""
    return np.kron(rng.integers(0, 4, (5, 12, 14)), np.ones((4, 4))) / 3


def _dim(rng):
    """Not stretched to [0, 1]: the lowest value is above 0 and the highest below 1."""
    return 0.2 + 0.3 * _smooth(rng, 5)


@pytest.mark.parametrize(
    "make",
    [lambda rng: _smooth(rng, 7), _peaks, _steps, _dim, lambda rng: rng.random((5, 48, 56))],
    ids=["smooth", "peaks", "steps", "dim", "noise"],
)
def test_equal_to_the_direct_implementation_at_every_threshold(make, rng):
    scores, deltas = make(rng), (0.3, 0.5, 0.7)
    height, width = 61, 53
    metric = MaxBoxAcc(interval=0.004, deltas=deltas)
    annotated, pixels = [], []
    for count in (1, 2, 3, 1, 2):
        corners = np.sort(rng.integers(0, (53, 61), (count, 2, 2)), axis=1).reshape(-1, 4)
        annotated.append(_relative(corners, height, width))
        scale = np.array([56 / width, 48 / height] * 2)
        pixels.append([[int(value) for value in row * scale] for row in corners])
    metric.update(scores, annotated, np.tile([height, width], (5, 1)))
    largest, every = _direct_counts(scores, pixels, metric.thresholds, deltas)
    curves = metric.curves()
    np.testing.assert_array_equal(curves["largest"], largest / 5)
    np.testing.assert_array_equal(curves["every"], every / 5)
    result = metric.result()
    assert result["maxboxacc"] == largest.max() / 5
    assert result["maxboxaccv2"] == pytest.approx(every.max(axis=1).mean() / 5)
    assert result["maxboxaccv2_70"] == every[2].max() / 5
    assert result["maxboxaccv2_70_threshold"] == metric.thresholds[every[2].argmax()]


def test_a_thousand_thresholds_at_the_protocols_size(rng):
    scores = score_maps(rng.normal(size=(1, 7, 7)))
    metric = MaxBoxAcc()
    assert len(metric.thresholds) == 1000
    metric.update(scores, _relative([[30, 40, 180, 200]], 224, 224)[None])
    pixels = [[[30, 40, 180, 200]]]
    largest, every = _direct_counts(scores, pixels, metric.thresholds, (0.3, 0.5, 0.7))
    np.testing.assert_array_equal(metric.curves()["largest"], largest)
    np.testing.assert_array_equal(metric.curves()["every"], every)


def _right(score, pixels, delta=1.0):
    """Whether V1 and V2 reach an overlap of delta at threshold 0 (V1: of a half)."""
    metric = MaxBoxAcc(interval=0.5, deltas=(delta,))
    score = np.asarray(score, float)
    metric.update(score[None], [_relative([pixels], *score.shape)])
    curves = metric.curves()
    return curves["largest"][0], curves["every"][0, 0]


def test_a_box_ends_one_pixel_behind_its_contour_but_inside_the_map():
    score = np.zeros((10, 10))
    score[2:5, 3:6] = 1
    assert _right(score, [3, 2, 6, 5])[1] == 1  # x + w = 6, not the last pixel 5
    assert _right(score, [3, 2, 5, 4])[1] == 0
    score = np.zeros((10, 10))
    score[7:, 8:] = 1
    assert _right(score, [8, 7, 9, 9])[1] == 1


def test_a_part_that_reaches_a_box_by_its_last_pixel_only():
    score = np.zeros((30, 30))
    score[0, 0], score[2:4, 2:4] = 0.4, 1
    # The upper part alone draws 2..4 by 2..4: 9 pixels of 30, where its own 4 could not reach 0.3.
    metric = MaxBoxAcc(interval=0.1, deltas=(0.3,))
    metric.update(score[None], [_relative([[2, 2, 6, 7]], 30, 30)])
    assert metric.curves()["every"][0].tolist() == [1] * 10


def test_the_largest_contour_is_by_polygon_area_and_v2_takes_all():
    score = np.zeros((20, 20))
    score[0, :18] = 1  # 18 pixels in a line: a polygon without an area
    score[10:14, 10:14] = 1  # 16 pixels around an area of 9
    assert _right(score, [10, 10, 14, 14]) == (1, 1)
    assert _right(score, [0, 0, 18, 1]) == (0, 1)


def test_the_border_of_a_hole_is_a_contour():
    score = np.zeros((20, 20))
    score[1:19, 1:19] = 1
    score[8:12, 9:13] = 0
    assert _right(score, [8, 7, 14, 13]) == (0, 1)  # pixels 8..13 and 7..12 surround the hole


def test_of_equal_areas_the_first_contour_counts():
    score = np.zeros((20, 20))
    score[1:5, 1:5] = score[12:16, 12:16] = 1
    found = [_right(score, pixels)[0] for pixels in ([1, 1, 5, 5], [12, 12, 16, 16])]
    direct = _direct_boxes(score, 0)[0]
    assert found == [direct == [1, 1, 5, 5], direct == [12, 12, 16, 16]]
    assert sum(found) == 1


def test_an_empty_map_has_the_box_of_the_first_pixel():
    assert _right(np.zeros((5, 5)), [0, 0, 1, 0], 0.5) == (1, 1)
    assert _right(np.zeros((5, 5)), [0, 0, 1, 1], 0.5) == (0, 0)
    assert _right(np.full((5, 5), 1e-3), [0, 0, 1, 0], 0.5) == (1, 1)  # 0 in 8 bits


def test_the_level_is_truncated_and_strict():
    score = np.zeros((4, 4))
    score[0, 0], score[2:, 2:] = 1, 0.5  # 0.5 is 127 in 8 bits
    metric = MaxBoxAcc(interval=0.001, deltas=(1.0,))
    metric.update(score[None], [_relative([[2, 2, 3, 3]], 4, 4)])
    # int(t * 255) < 127 up to 0.498: there the square is kept.
    np.testing.assert_array_equal(metric.curves()["every"][0], metric.thresholds < 0.4985)
    assert metric.result()["maxboxaccv2_100_threshold"] == 0


def test_true_boxes_are_truncated_to_pixels():
    box = _relative([[38, 33, 469, 252]], 375, 500)
    expected = [
        int(38 * 224 / 500),
        int(33 * 224 / 375),
        int(469 * 224 / 500),
        int(252 * 224 / 375),
    ]
    assert pixel_boxes(np.float64(box), (375, 500), (224, 224)).tolist() == [expected]
    whole = _relative([[0, 0, 499, 374]], 375, 500)
    assert pixel_boxes(whole, (375, 500), (224, 224)).tolist() == [[0, 0, 223, 223]]


def test_merging_and_storing(rng):
    scores = _smooth(rng, 6)
    truth = rng.random((5, 2)) / 2
    truth = np.concatenate([truth, truth + 0.4], axis=1)
    whole, first, second = (MaxBoxAcc(interval=0.01) for _ in range(3))
    whole.update(scores, truth)
    first.update(scores[:2], truth[:2])
    second.update(scores[2:], truth[2:])
    first = MaxBoxAcc.from_state(json.loads(json.dumps(first.state())))
    first.merge(second)
    assert first.images == 5
    assert first.state() == whole.state()
    assert first.result() == whole.result()
    with pytest.raises(ValueError, match="not merged"):
        first.merge(MaxBoxAcc(interval=0.02))


def test_a_batch_that_is_refused_leaves_no_trace():
    metric = MaxBoxAcc(interval=0.1)
    good, bad = [[0, 0, 1, 1]], [[0.5, 0, 0.4, 1]]
    with pytest.raises(ValueError, match="ymin > ymax"):
        metric.update(np.zeros((2, 4, 4)), [good, bad])
    with pytest.raises(ValueError, match="image_sizes of shape"):
        metric.update(np.zeros((2, 4, 4)), [good, good], [[4, 4]])
    assert metric.images == 0
    with pytest.raises(ValueError, match="no result of no images"):
        metric.result()


def test_bad_settings():
    with pytest.raises(ValueError, match=r"0\.001"):
        MaxBoxAcc(interval=0)
    with pytest.raises(ValueError, match="shares such as"):
        MaxBoxAcc(deltas=(30, 50, 70))
