"""From raw maps to score maps: literal values, and what does not fit."""

import cv2
import numpy as np
import pytest

from cam_tf.localization.score_maps import check_score_maps, score_maps
from cam_tf.maps.explanation import Explanation


def test_literal_values():
    raw = np.float32([[[[1, 3], [5, 9]], [[-4, -4], [-4, -4]]]])
    expected = [[[[0, 0.25], [0.5, 1]], [[0, 0], [0, 0]]]]
    np.testing.assert_array_equal(score_maps(raw, size=(2, 2)), expected)


def test_the_benchmarks_own_order_of_operations(rng):
    raw = rng.normal(size=(3, 2, 7, 5))
    found = score_maps(raw)
    assert found.shape == (3, 2, 224, 224)
    for index in np.ndindex(3, 2):
        cam = cv2.resize(raw[index], (224, 224), interpolation=cv2.INTER_CUBIC)
        cam -= cam.min()
        cam /= cam.max()
        np.testing.assert_array_equal(found[index], cam)


def test_an_explanation_and_no_images():
    maps, none = np.ones((2, 1, 3, 3), np.float32), np.zeros((2, 1))
    explanation = Explanation(maps, none, none, none, (9, 9))
    np.testing.assert_array_equal(score_maps(explanation), np.zeros((2, 1, 224, 224)))
    assert score_maps(maps[:0]).shape == (0, 1, 224, 224)


def test_what_does_not_fit():
    maps = np.zeros((2, 3, 4, 4))
    maps[1, 2, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"maps \[\[1, 2\]\] hold NaN or infinity"):
        score_maps(maps)
    with pytest.raises(ValueError, match=r"are not \(\.\.\., h, w\)"):
        score_maps(np.zeros(3))
    with pytest.raises(ValueError, match=r"between 0 and 2, not in \[0, 1\]"):
        check_score_maps(np.array([[[0, 2]]]))
    with pytest.raises(ValueError, match=r"maps \[0\] hold NaN"):
        check_score_maps(np.array([[[0, np.nan]]]))
    with pytest.raises(ValueError, match=r"take one class, maps\[:, 0\]"):
        check_score_maps(maps)
