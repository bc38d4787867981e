"""A sheet of many explained images: for each the map over the photo, with its class and score."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure

from cam_tf.display.figures import (
    _CHARACTER,
    _FONT,
    _GUTTER,
    _LINE,
    _MARGIN,
    _NARROWEST,
    _SMALL,
    _WIDEST_FIGURE,
    NotebookFigure,
    _draw_bar,
    _fault,
    _fit,
    _one_image,
    _panel_size,
    _show,
    _title,
)
from cam_tf.display.overlays import ALPHA, COLORMAP, find_colormap, overlay, rgb_values
from cam_tf.maps.explanation import Explanation
from cam_tf.maps.heatmaps import resize_maps

_HEADING = 10.5  # points
_DPI = 150  # a sheet is looked through on a screen


def sheet(
    photos: Sequence[np.ndarray],
    result: Explanation,
    class_names: Sequence[str] | None = None,
    *,
    heading: str = "",
    alpha: float = ALPHA,
    colormap: str | Colormap = COLORMAP,
    bar_label: str = "contribution to the logit",
) -> Figure:
    """Draws the maps of many images over their photos, as ``cam_tf.plot`` does for one.

    Each panel has the class and its score for a title, and a colour bar with the raw values: the
    colours run from the map's minimum to its maximum. A map that is flat or not finite has the bare
    photo and says so.

    Args:
        photos: N images (H, W, 3), RGB in 0..255, uint8 or float, of any sizes.
        result: an ``Explanation`` of N images; each of its n classes has a panel.
        class_names: the names of all C classes; without them the ids are shown.
        heading: a line over the sheet.
        alpha: the share of the colours over the photos.
        colormap: a matplotlib colormap or its name.
        bar_label: what the raw values are, written beside the heading.

    Returns:
        A matplotlib ``Figure`` at 150 dpi, at most about 10 inches wide.

    Raises:
        ValueError: photos that are not N RGB images in 0..255, maps that are not (N, n, h, w), or
            an argument out of range.
    """
    find_colormap(colormap)
    if not len(photos) or len(photos) != len(result):
        raise ValueError(f"{len(photos)} photos do not go with {len(result)} explained images.")
    parts = [_one_image(result, index) for index in range(len(photos))]
    photos = [_fit(rgb_values(photo)) for photo in photos]
    width = max(_NARROWEST, *(_panel_size(*photo.shape[:2])[1] for photo in photos))
    characters = int((width + _GUTTER - _MARGIN) / _CHARACTER)  # a title may run over the bar
    titles, pictures = [], []
    for photo, one in zip(photos, parts, strict=True):
        for j, raw in enumerate(one.maps[0]):
            fault = _fault(raw)
            titles.append(_title(one, j, class_names, characters) + ([fault] if fault else []))
            pictures.append((photo, None if fault else raw))
    figure, panels = _grid(titles, [photo.shape[:2] for photo, _ in pictures], heading, bar_label)
    for axes, (photo, raw) in zip(panels, pictures, strict=True):
        if raw is None:
            _show(axes, photo, *photo.shape[:2])
            continue
        norm = Normalize(float(raw.min()), float(raw.max()))
        stretched = resize_maps(raw[None, None], photo.shape[:2]).numpy()[0, 0]
        picture = overlay(photo, norm(stretched).data, alpha, colormap)
        _show(axes, picture, *photo.shape[:2])
        _draw_bar(axes, norm, colormap)
    return figure


def _grid(
    titles: list[list[str]], shapes: list[tuple[int, int]], heading: str, label: str
) -> tuple[NotebookFigure, list[Axes]]:
    """Returns a figure with a titled panel for each photo, in reading order."""
    sizes = [_panel_size(*shape) for shape in shapes]
    height = max(size[0] for size in sizes)
    across = max(_NARROWEST, *(size[1] for size in sizes)) + _GUTTER
    down = height + max(map(len, titles)) * _LINE + 2 * _MARGIN
    rows = math.ceil(len(titles) / max(1, int(_WIDEST_FIGURE // across)))
    columns = math.ceil(len(titles) / rows)
    top = 1.6 * _HEADING / 72 if heading or label else 0.0
    wide, high = columns * across + _MARGIN, rows * down + top + _MARGIN
    figure = NotebookFigure(figsize=(wide, high), dpi=_DPI, facecolor="white")
    line = (high - _MARGIN) / high
    figure.text(_MARGIN / wide, line, heading, fontsize=_HEADING, weight="bold", va="top")
    if label and columns > 1:  # beside the heading there is room for it
        place = ((wide - _MARGIN) / wide, line)
        figure.text(
            *place, f"colours: {label}", fontsize=_SMALL, color="0.35", va="top", ha="right"
        )
    panels = []
    for k, (title, size) in enumerate(zip(titles, sizes, strict=True)):
        row, column = divmod(k, columns)
        left = _MARGIN + column * across
        bottom = high - top - (row + 1) * down + (height - size[0])  # titles stand in one line
        place = (left / wide, bottom / high, size[1] / wide, size[0] / high)
        axes = figure.add_axes(place)
        axes.set_title("\n".join(title), fontsize=_FONT, loc="left", pad=4, parse_math=False)
        panels.append(axes)
    return figure, panels
