"""The paper's box rule, literally and against an obvious reference."""

import numpy as np
import pytest
import tensorflow as tf

import cam_tf
from cam_tf.localization.boxes import released_boxes
from cam_tf.maps.heatmaps import resize_maps


def _one(rows, **arguments):
    return cam_tf.boxes(np.float32([[rows]]), **arguments)[0, 0].tolist()


def test_literal_boxes():
    assert _one([[0, 0, 0, 0], [0, 5, 5, 0], [0, 0, 0, 0], [9, 0, 0, 0]]) == [0.25, 0.25, 0.5, 0.75]
    assert _one([[1, 1], [1, 1]]) == [0, 0, 1, 1]
    # Diagonal neighbours belong together.
    assert _one([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 9, 0], [0, 0, 0, 9]]) == [0, 0, 1, 1]
    assert _one([[9, 0, 0, 0], [0, 9, 0, 0], [0, 0, 0, 0], [0, 0, 0, 9]]) == [0, 0, 0.5, 0.5]


def test_the_threshold_is_a_share_of_the_maximum_and_strict():
    row = [[10, 2, 1, 3, 0]]
    assert _one(row) == [0, 0, 1, np.float32(0.2)]  # 2 is not above 20 % of 10
    assert _one(row, threshold=0.19) == [0, 0, 1, np.float32(0.4)]
    assert _one(row, threshold=0) == [0, 0, 1, np.float32(0.8)]


def test_negative_evidence_is_not_kept():
    assert _one([[-9, 1], [-9, -9]]) == [0, 0.5, 0.5, 1]


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
def test_a_map_without_evidence_has_no_box(value):
    assert _one([[value, value]]) == [0, 0, 0, 0]


def test_boxes_are_drawn_on_the_stretched_map(tiny_model, tiny_image):
    result = cam_tf.CAM(tiny_model)(tiny_image)
    stretched = cam_tf.boxes(result, size=(64, 64))
    assert stretched.dtype == np.float32
    np.testing.assert_array_equal(
        stretched, cam_tf.boxes(resize_maps(result.maps, (64, 64)).numpy())
    )
    np.testing.assert_array_equal(cam_tf.boxes(result), [[[0.5, 0.5, 1, 1]]])


def _reference(stretched, threshold):
    """Flood fill in plain Python: the largest component, the first of equals."""
    kept = stretched > threshold * stretched.max()
    seen = np.zeros_like(kept)
    largest = []
    for start in zip(*np.nonzero(kept), strict=True):
        if seen[start]:
            continue
        seen[start] = True
        component, pending = [], [start]
        while pending:
            y, x = pending.pop()
            component.append((y, x))
            for neighbour in np.ndindex(3, 3):
                to = (y + neighbour[0] - 1, x + neighbour[1] - 1)
                inside = 0 <= to[0] < kept.shape[0] and 0 <= to[1] < kept.shape[1]
                if inside and kept[to] and not seen[to]:
                    seen[to] = True
                    pending.append(to)
        if len(component) > len(largest):
            largest = component
    ys, xs = np.array(largest).T
    return [ys.min(), xs.min(), ys.max() + 1, xs.max() + 1]


@pytest.mark.parametrize("threshold", [0.1, 0.2, 0.6])
def test_random_maps_against_a_flood_fill(threshold, rng):
    maps = rng.normal(size=(4, 3, 7, 7)).astype(np.float32)
    found = cam_tf.boxes(maps, threshold, size=(21, 28)) * [21, 28, 21, 28]
    stretched = resize_maps(maps, (21, 28)).numpy()
    for index in np.ndindex(4, 3):
        expected = _reference(stretched[index], threshold)
        np.testing.assert_allclose(found[index], expected, atol=1e-4)


def test_what_does_not_fit():
    with pytest.raises(ValueError, match="share of the maximum"):
        cam_tf.boxes(np.ones((1, 1, 2, 2)), threshold=20)
    with pytest.raises(ValueError, match=r"are not \(N, n, h, w\)"):
        cam_tf.boxes(np.ones((1, 1, 4)))


def test_an_empty_batch():
    assert cam_tf.boxes(np.ones((0, 2, 3, 3))).shape == (0, 2, 4)


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("size", [(7, 7), (33, 20), (224, 224)])
def test_the_rule_in_the_graph_is_the_same(threshold, size, rng):
    maps = rng.normal(size=(3, 4, 7, 7)).astype(np.float32)
    maps[0, 0], maps[1, 1], maps[2, 2], maps[2, 3] = 0, -1, np.nan, np.inf
    signature = [tf.TensorSpec((None, None, 7, 7))]
    compiled = tf.function(
        lambda maps: cam_tf.boxes_in_graph(maps, threshold, size=size), input_signature=signature
    )
    np.testing.assert_array_equal(compiled(maps), cam_tf.boxes(maps, threshold, size=size))
    assert compiled(maps[:0]).shape == (0, 4, 4)


def test_the_rule_in_the_graph_on_a_spiral_on_ties_and_on_noise(rng):
    spiral = np.zeros((21, 21), np.float32)
    at, step = np.array([0, 0]), np.array([0, 1])
    spiral[0, 0] = 1
    for length in [20, 20, 20, *np.repeat(np.arange(18, 0, -2), 2)]:
        for _ in range(length):
            at += step
            spiral[tuple(at)] = 1
        step = np.array([step[1], -step[0]])
    ties = np.zeros((21, 21), np.float32)
    ties[5:7, 10:12] = ties[9:11, 2:4] = 1
    noise = rng.uniform(size=(21, 21)).astype(np.float32)
    maps = np.stack([spiral, spiral.T, ties, ties[::-1], ties.T, noise, noise > 0.5])[None]
    maps = maps.astype(np.float32)
    for threshold in (0.2, 0.5, 0.7):
        np.testing.assert_array_equal(
            cam_tf.boxes_in_graph(maps, threshold), cam_tf.boxes(maps, threshold)
        )
    assert cam_tf.boxes(maps)[0, 0].tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(cam_tf.boxes(maps)[0, 2] * 21, [5, 10, 7, 12], rtol=1e-6)


def test_every_component_with_its_score():
    ((first, second),) = cam_tf.boxes(
        np.float32([[[[2, 0, 4], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]]), rule="all"
    )
    np.testing.assert_allclose(first.boxes, [[0, 2 / 3, 0.5, 1], [0, 0, 0.5, 1 / 3]], rtol=1e-6)
    np.testing.assert_array_equal(first.scores, [1, 0.5])
    np.testing.assert_array_equal(first.class_ids, [0, 0])
    assert second.boxes.shape == (0, 4)
    assert second.scores.shape == (0,)


def test_the_heuristic_takes_tight_and_loose_boxes():
    ramp = np.float32([[10, 5, 3, 1]])
    (found,) = cam_tf.boxes(np.stack([ramp, ramp[:, ::-1], 2 * ramp])[None], rule="heuristic")
    np.testing.assert_array_equal(found.class_ids, [0, 0, 1, 1, 2])
    expected = [[0, 0.5], [0, 0.75], [0.5, 1], [0.25, 1], [0, 0.75]]
    np.testing.assert_array_equal(found.boxes[:, [1, 3]], expected)
    with pytest.raises(ValueError, match="top_k=3 or more"):
        cam_tf.boxes(ramp[None, None], rule="heuristic")
    with pytest.raises(ValueError, match="'largest', 'all', 'heuristic' or 'released'"):
        cam_tf.boxes(ramp[None, None], rule="paper")


def test_the_released_generator_on_a_disc():
    rows, columns = np.mgrid[:100, :120]
    distance = np.hypot(rows - 50, columns - 60)
    heatmap = np.where(distance <= 30, 255, np.where(distance <= 40, 60, 0)).astype(np.uint8)
    # Of radius 40 and 30: what is within 10.5 / 255 of the depth is taken off. The second and third
    # threshold see the same disc, which covers more than half of the first: the second is dropped,
    # and the third, which follows a dropped one, is not compared.
    (x, y, width, height), (inner, *_) = released_boxes(heatmap).tolist()
    assert abs(x - 22) <= 1 and abs(y - 12) <= 1
    assert abs(width - 77) <= 2 and abs(height - 77) <= 2
    assert abs(inner - 31) <= 1
    small = np.where(distance <= 20, 255, np.where(distance <= 40, 60, 0)).astype(np.uint8)
    assert len(released_boxes(small)) == 2
    ((one,),) = cam_tf.boxes(small[None, None].astype(np.float32), rule="released")
    assert one.boxes.shape == (2, 4)
    assert released_boxes(np.zeros((50, 50), np.uint8)).shape == (0, 4)


def test_masks():
    maps = np.float32([[[[9, 0, 1, 5], [0, 0, 0, 5]]]])
    np.testing.assert_array_equal(
        cam_tf.masks(maps)[0, 0], [[True, False, False, True], [False, False, False, True]]
    )
    np.testing.assert_array_equal(
        cam_tf.masks(maps, largest=True)[0, 0], [[False] * 3 + [True], [False] * 3 + [True]]
    )
    assert not cam_tf.masks(-maps).any()
    assert cam_tf.masks(maps, size=(4, 8)).shape == (1, 1, 4, 8)
