"""The paper's box rule, literally and against an obvious reference."""

import numpy as np
import pytest

import cam_tf
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
