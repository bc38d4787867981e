"""Figures of what was discovered: units with image regions, and photos with maps and boxes."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cam_tf.display.figures import NotebookFigure, _edge, _fit
from cam_tf.display.overlays import overlay
from cam_tf.maps.diagnosis import is_flat
from cam_tf.maps.heatmaps import resize_maps

_DPI = 150
_PANEL, _MARGIN = 1.5, 0.1  # inches
_CHARACTERS = 27  # of a title in a panel's width


@dataclass(frozen=True)
class UnitRow:
    """One unit of a figure: its label, and the image regions that activate it most.

    Attributes:
        label: what is written before the row.
        regions: (h, w, 3) uint8 each, best first.
    """

    label: str
    regions: Sequence[np.ndarray]


def unit_sheet(rows: Sequence[UnitRow], heading: str = "") -> Figure:
    """Draws the units of a class: a row for each, of the image regions that activate it most.

    Raises:
        ValueError: no row.
    """
    if not rows:
        raise ValueError("there is no unit to draw.")
    columns = max(len(row.regions) for row in rows)
    label, side, top = 1.3, 1.0, 0.35 if heading else 0.08
    wide, high = label + columns * (side + 0.05) + 0.1, top + len(rows) * (side + 0.05) + 0.05
    figure = NotebookFigure(figsize=(wide, high), dpi=_DPI, facecolor="white")
    if heading:
        figure.text(0.1 / wide, 1 - 0.1 / high, heading, va="top", fontsize=10.5, parse_math=False)
    for i, row in enumerate(rows):
        bottom = high - top - (i + 1) * (side + 0.05) + 0.05
        middle = (bottom + side / 2) / high
        figure.text(0.1 / wide, middle, row.label, va="center", fontsize=8, parse_math=False)
        for j, region in enumerate(row.regions):
            left = label + j * (side + 0.05)
            axes = figure.add_axes((left / wide, bottom / high, side / wide, side / high))
            axes.imshow(region, aspect="auto")
            axes.set_axis_off()
    return figure


def ranking_sheet(rankings: dict[str, dict[str, Sequence[tuple[str, float]]]]) -> Figure:
    """Draws rankings side by side: a row for each key, a bar chart for each of its rankings.

    Args:
        rankings: key -> title -> names with their values in 0..1, best first; ten are drawn.

    Raises:
        ValueError: no ranking.
    """
    if not rankings:
        raise ValueError("there is no ranking to draw.")
    columns = max(len(each) for each in rankings.values())
    size = (3.6 * columns, 2.3 * len(rankings))
    figure = NotebookFigure(figsize=size, dpi=_DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(len(rankings), columns, squeeze=False)
    for row, (key, each) in zip(panels, rankings.items(), strict=True):
        for axes, (title, ranked) in zip(row, each.items(), strict=False):
            names, values = zip(*ranked[:10], strict=True) if ranked else ((), ())
            axes.barh(range(len(names)), values, color="#0550ae")
            axes.set_yticks(range(len(names)), names, fontsize=7, parse_math=False)
            axes.invert_yaxis()
            axes.set_xlim(0, 1)
            axes.tick_params(axis="x", labelsize=7)
            axes.set_title(f"{key}: {title}", fontsize=8, loc="left", parse_math=False)
            axes.spines[["top", "right"]].set_visible(False)
    return figure


@dataclass(frozen=True)
class Panel:
    """One photo of a figure.

    Attributes:
        photo: (H, W, 3) RGB 0..255.
        title: over it; lines are separated by newlines.
        map: raw (h, w), drawn over the photo from its least to its largest value; None: not drawn.
        boxes: (m, 4) relative.
    """

    photo: np.ndarray
    title: str = ""
    map: np.ndarray | None = None
    boxes: Sequence = ()


def photo_sheet(panels: Sequence[Panel], heading: str = "", columns: int = 5) -> Figure:
    """Draws photos side by side, each with its map and boxes.

    Raises:
        ValueError: no photo.
    """
    if not panels:
        raise ValueError("there is no photo to draw.")
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    titles = [_wrapped(panel.title) for panel in panels]
    lines = max(title.count("\n") + 1 if title else 0 for title in titles)
    title = _MARGIN / 2 + lines * 0.14
    top = 0.35 if heading else _MARGIN
    wide = columns * (_PANEL + _MARGIN) + _MARGIN
    tall = [_tallest(panels[row * columns : (row + 1) * columns]) for row in range(rows)]
    high = sum(tall) + rows * (title + _MARGIN / 2) + top + _MARGIN / 2
    figure = NotebookFigure(figsize=(wide, high), dpi=_DPI, facecolor="white")
    if heading:
        figure.text(
            _MARGIN / wide, 1 - 0.1 / high, heading, va="top", fontsize=10.5, parse_math=False
        )
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        left = _MARGIN + column * (_PANEL + _MARGIN)
        bottom = high - top - sum(tall[: row + 1]) - (row + 1) * (title + _MARGIN / 2)
        bottom += _MARGIN / 2
        axes = figure.add_axes((left / wide, bottom / high, _PANEL / wide, tall[row] / high))
        axes.set_title(titles[index], fontsize=7.5, loc="left", pad=3, parse_math=False)
        _draw(axes, panel)
    return figure


def _wrapped(title: str) -> str:
    """The title, no line of which is wider than a panel."""
    lines = [textwrap.wrap(line, _CHARACTERS) or [""] for line in title.splitlines()]
    return "\n".join(part for line in lines for part in line)


def _tallest(panels: Sequence[Panel]) -> float:
    """The height in inches of a row: no photo is wider or higher than a panel."""
    shapes = [np.shape(panel.photo)[:2] for panel in panels]
    return _PANEL * max(min(1.0, height / width) for height, width in shapes)


def _draw(axes, panel: Panel) -> None:
    photo = _fit(np.asarray(panel.photo, np.float32))
    height, width = photo.shape[:2]
    raw = panel.map
    if raw is not None and np.isfinite(raw).all() and not is_flat(raw.min(), raw.max()):
        stretched = resize_maps(raw[None, None], (height, width)).numpy()[0, 0]
        shares = np.clip((stretched - raw.min()) / np.ptp(raw), 0, 1)
        photo = overlay(photo, shares)
    axes.imshow(photo)
    axes.set_anchor("NW")
    axes.set_axis_off()
    for top, left, bottom, right in np.asarray(panel.boxes, np.float64).reshape(-1, 4):
        if bottom > top and right > left:
            box = Rectangle(
                (left * width - 0.5, top * height - 0.5),
                (right - left) * width,
                (bottom - top) * height,
                fill=False,
                edgecolor="white",
                linewidth=1.1,
                path_effects=_edge(1.8),
            )
            box.set_clip_on(False)
            axes.add_patch(box)
