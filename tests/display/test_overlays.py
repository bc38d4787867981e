import matplotlib
import numpy as np
import pytest
import tensorflow as tf
from matplotlib.colors import ListedColormap

from cam_tf.display.overlays import overlay

RED_BLUE = ListedColormap([(1, 0, 0), (0, 0, 1)])  # red below 0.5, blue from there on


def test_blending_formula():
    image = np.uint8([[[0, 0, 0], [100, 100, 100]], [[255, 255, 255], [8, 16, 24]]])
    heatmap = np.float32([[0, 0.49], [0.5, 1]])
    expected = [[[64, 0, 0], [139, 75, 75]], [[191, 191, 255], [6, 12, 82]]]  # 3/4 image + 1/4 hue
    blended = overlay(image, heatmap, 0.25, RED_BLUE)
    assert blended.dtype == np.uint8
    np.testing.assert_array_equal(blended, expected)


def test_the_ends_of_alpha(rng):
    image = rng.integers(0, 256, (5, 7, 3), np.uint8)
    heatmap = rng.random((5, 7), np.float32)
    np.testing.assert_array_equal(overlay(image, heatmap, 0), image)
    colours = matplotlib.colormaps["viridis"](heatmap)[..., :3] * 255
    np.testing.assert_array_equal(overlay(image, heatmap, 1, "viridis"), np.rint(colours))


def test_colours_of_the_default_are_those_of_inferno():
    black = np.zeros((1, 2, 3), np.uint8)
    ends = overlay(black, np.float32([[0, 1]]), 1)
    np.testing.assert_array_equal(ends, [[[0, 0, 4], [252, 255, 164]]])
    np.testing.assert_array_equal(overlay(black, [[0, 1]], 1, "inferno"), ends)


def test_images_of_floats_and_tensors():
    image = np.full((2, 2, 3), 10.4)
    assert overlay(image, tf.zeros((2, 2)), 0).tolist() == [[[10] * 3] * 2] * 2
    assert overlay(np.zeros((1, 1, 3)), np.zeros((1, 1)), 0).tolist() == [[[0] * 3]]


def test_smaller_heatmaps_are_stretched_linearly():
    gray = ListedColormap(np.repeat(np.linspace(0, 1, 256)[:, None], 3, axis=1))
    stretched = overlay(np.zeros((1, 4, 3), np.uint8), np.float32([[0, 1]]), 1, gray)
    np.testing.assert_array_equal(stretched[0, :, 0], [0, 64, 192, 255])  # 0, 1/4, 3/4, 1 of 256


def test_the_image_is_left_as_it_was():
    image = np.zeros((2, 2, 3), np.float32)
    overlay(image, np.ones((2, 2)))
    assert not image.any()


def test_rounding_errors_of_heatmaps_are_forgiven():
    image = np.zeros((1, 2, 3), np.uint8)
    exact = overlay(image, np.float32([[0, 1]]), 1)
    np.testing.assert_array_equal(overlay(image, np.float32([[-1e-6, 1 + 1e-6]]), 1), exact)


@pytest.mark.parametrize("heatmap", [[[-0.1, 1]], [[0, 3]], [[0, np.nan]], [[0, np.inf]]])
def test_heatmaps_out_of_range(heatmap):
    with pytest.raises(ValueError, match="expected finite values"):
        overlay(np.zeros((1, 2, 3), np.uint8), np.float32(heatmap))


@pytest.mark.parametrize("shape", [(1, 1, 2, 2), (2, 2, 1), (4,), (0, 2)])
def test_heatmaps_of_other_shapes(shape):
    with pytest.raises(ValueError, match="expected \\(h, w\\), one map"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    "value, message",
    [(-1.0, "before the network's preprocessing"), (256.0, "0..255"), (np.nan, "0..255"),
     (0.5, r"image \* 255")],
)  # fmt: skip
def test_images_out_of_range(value, message):
    image = np.zeros((2, 2, 3), np.float32)
    image[0, 0, 0] = value
    with pytest.raises(ValueError, match=message):
        overlay(image, np.zeros((2, 2)))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_out_of_range(alpha):
    with pytest.raises(ValueError, match="is not a share"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), alpha)


def test_unknown_colormaps_get_suggestions():
    with pytest.raises(ValueError, match="Did you mean 'viridis'"):
        overlay(np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2)), colormap="viridi")
