"""A heatmap over its photo."""

import matplotlib
import numpy as np
from matplotlib.colors import Colormap

from cam_tf.datasets.images import check_image
from cam_tf.maps.explanation import Array
from cam_tf.maps.heatmaps import resize_maps
from cam_tf.suggestions import did_you_mean

# Perceptually uniform: equal steps of evidence look equal, also in gray print and to the
# colour-blind. Its dark end dims what the map leaves out, so the evidence stands out of any photo.
# jet, the field's habit, shows edges that the map does not have.
COLORMAP = "inferno"
ALPHA = 0.5
_ROUNDING = 1e-5  # how far float arithmetic may carry a heatmap out of [0, 1]


def overlay(
    image: np.ndarray,
    heatmap: Array,
    alpha: float = ALPHA,
    colormap: str | Colormap = COLORMAP,
) -> np.ndarray:
    """Blends the colours of a heatmap over an image: (1 - alpha) image + alpha colour.

    Args:
        image: (H, W, 3) RGB in 0..255, uint8 or float.
        heatmap: (h, w) in [0, 1], as ``cam_tf.heatmaps`` returns for each image and class;
            stretched linearly over the image when its size differs.
        alpha: the share of the colours, 0 (only the image) to 1 (only the heatmap).
        colormap: a matplotlib colormap or its name, for example ``"viridis"`` or ``"jet"``.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        ValueError: the image is not RGB in 0..255, the heatmap is not (h, w) in [0, 1], ``alpha``
            is not in [0, 1], or the colormap is unknown.
    """
    image = rgb_values(image)
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha={alpha} is not a share: use 0 (image) to 1 (heatmap).")
    heatmap = _check_heatmap(heatmap)
    if heatmap.shape != image.shape[:2]:
        heatmap = resize_maps(heatmap[None, None], image.shape[:2]).numpy()[0, 0]
    colours = colour_table(find_colormap(colormap))
    steps = np.minimum((heatmap * len(colours)).astype(np.intp), len(colours) - 1)
    return np.rint((1 - alpha) * image + alpha * colours[steps]).astype(np.uint8)


def colour_table(colormap: Colormap) -> np.ndarray:
    """The colours (N, 3) in 0..255: faster to look up than by the colormap itself."""
    return (colormap(np.arange(colormap.N))[:, :3] * 255).astype(np.float32)


def rgb_values(image: np.ndarray) -> np.ndarray:
    """Returns an image as float32 (H, W, 3) after checking that it is RGB in 0..255.

    Raises:
        ValueError: another shape or range.
    """
    image = check_image(image)
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= 255):  # also true of NaN
        raise ValueError(
            f"image values go from {low:.4g} to {high:.4g}: expected RGB in 0..255. Pass the image "
            "as it was before the network's preprocessing."
        )
    if image.dtype.kind == "f" and 0 < high <= 1:
        raise ValueError(
            f"image values go from {low:.4g} to {high:.4g}, which is black on the scale 0..255: "
            "pass image * 255."
        )
    return image.astype(np.float32)


def _check_heatmap(heatmap: Array) -> np.ndarray:
    heatmap = np.asarray(heatmap)
    if heatmap.ndim != 2 or not heatmap.size:
        raise ValueError(
            f"heatmap has shape {heatmap.shape}: expected (h, w), one map. From a batch "
            "(N, n, h, w) pass one image and one class: heatmaps[0, 0]."
        )
    heatmap = heatmap.astype(np.float32)
    low, high = heatmap.min(), heatmap.max()
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # also true of NaN
        raise ValueError(
            f"heatmap values go from {low:.4g} to {high:.4g}: expected finite values in [0, 1]. "
            "A raw map? Use cam_tf.heatmaps(...) first."
        )
    return heatmap.clip(0, 1)


def find_colormap(colormap: str | Colormap) -> Colormap:
    """Returns the matplotlib colormap of that name.

    Raises:
        ValueError: there is none; the nearest names are suggested.
    """
    if isinstance(colormap, Colormap):
        return colormap
    if colormap not in matplotlib.colormaps:
        near = did_you_mean(str(colormap), matplotlib.colormaps)
        raise ValueError(
            f"colormap={colormap!r} is unknown to matplotlib.{near} Good choices are 'inferno', "
            "'magma', 'viridis', 'cividis' and 'turbo'."
        )
    return matplotlib.colormaps[colormap]
