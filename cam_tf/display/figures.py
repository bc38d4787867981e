"""A figure of one explained image: the photo, then each class with its map, score and box."""

import io
import math
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator

from cam_tf.datasets.images import resize_image
from cam_tf.display.overlays import ALPHA, COLORMAP, find_colormap, overlay, rgb_values
from cam_tf.localization.boxes import boxes
from cam_tf.maps.diagnosis import is_flat
from cam_tf.maps.explanation import Explanation
from cam_tf.maps.heatmaps import resize_maps

# The layout in inches: a 3:2 photo with two classes is as wide as the text of a paper (7 in).
_AREA = 1.5**2  # of the photo in a panel, whatever its shape ...
_LONGEST = 2.9  # ... as long as it is not a panorama
_NARROWEST = 0.9  # leaves room for a name over a narrow portrait
_BAR_GAP, _BAR, _BAR_TEXT = 0.06, 0.07, 0.4  # before the colour bar, the bar, its numbers
_GUTTER = _BAR_GAP + _BAR + _BAR_TEXT
_MARGIN = 0.1
_WIDEST_FIGURE = 9.6  # a 3:2 photo and three classes in one row
_FONT, _SMALL = 8.5, 7.0  # points
_LINE, _SMALL_LINE = 1.2 * _FONT / 72, 1.2 * _SMALL / 72
_CHARACTER, _SMALL_CHARACTER = 0.62 * _FONT / 72, 0.52 * _SMALL / 72  # mean widths
_DPI = 200
_LARGEST_PICTURE = 1280  # pixels: more would not show in print (over 440 dpi)


class NotebookFigure(Figure):
    """A figure without pyplot, hence without global state, that notebooks display by themselves."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def plot(
    image: np.ndarray,
    result: Explanation,
    class_names: Sequence[str] | None = None,
    *,
    index: int = 0,
    threshold: float | None = 0.2,
    alpha: float = ALPHA,
    colormap: str | Colormap = COLORMAP,
    bar_label: str = "contribution to the logit",
) -> Figure:
    """Draws a photo and, for each class of its explanation, the map over the photo.

    Each class has its name and score for a title, the box of its largest region, and a colour bar.
    The colours run from the map's minimum to its maximum, evidence against the class included, so
    they compare places within one map; the colour bar gives the raw values, which compare maps.
    A line across the bar marks 0, where evidence for the class turns into evidence against it.

    Args:
        image: (H, W, 3) RGB in 0..255, uint8 or float, of any size; maps are stretched over it.
        result: an ``Explanation`` of images; n of at most about 10 classes is readable.
        class_names: the names of all C classes, ``class_names[class_id]``; without them the ids
            are shown.
        index: which image of ``result`` this is.
        threshold: boxes cover the largest region above this share of the map's maximum
            (``cam_tf.boxes``); None draws no box.
        alpha: the share of the colours over the photo.
        colormap: a matplotlib colormap or its name.
        bar_label: what the raw values are, written at the end of each row; the default holds for
            class activation maps.

    Returns:
        A matplotlib ``Figure`` at 200 dpi (``figure.savefig("why.png")``). It is independent of
        pyplot and its backends, and notebooks display it. A map that is flat or not finite has the
        bare photo and says so in its title.

    Raises:
        ValueError: the image is not RGB in 0..255, the maps are not (N, n, h, w), or an argument is
            out of range.
        IndexError: ``result`` has no image ``index``.
    """
    image = rgb_values(image)
    find_colormap(colormap)
    one, shape = _one_image(result, index), image.shape[:2]
    found = None if threshold is None else boxes(one, threshold)[0]
    photo = _fit(image)
    faults = [_fault(raw) for raw in one.maps[0]]
    size = _panel_size(*shape)
    # A title may run on over the colour bar.
    characters = int((max(size[1], _NARROWEST) + _GUTTER - _MARGIN) / _CHARACTER)
    titles = [["image"]]
    for j, fault in enumerate(faults):
        titles.append(_title(one, j, class_names, characters) + ([fault] if fault else []))
    figure, panels = _layout(titles, *size, "" if all(faults) else bar_label)
    _show(panels[0], photo, *shape)
    for j, (axes, raw) in enumerate(zip(panels[1:], one.maps[0], strict=True)):
        if faults[j]:
            _show(axes, photo, *shape)
            continue
        norm = Normalize(float(raw.min()), float(raw.max()))
        stretched = resize_maps(raw[None, None], photo.shape[:2]).numpy()[0, 0]
        _show(axes, overlay(photo, norm(stretched).data, alpha, colormap), *shape)
        _draw_bar(axes, norm, colormap)
        if found is not None:
            _draw_box(axes, found[j], *shape)
    return figure


def _fit(image: np.ndarray) -> np.ndarray:
    """The photo as uint8, no larger than a panel can show."""
    height, width = image.shape[:2]
    scale = min(1.0, _LARGEST_PICTURE / max(height, width))
    photo = np.rint(image).astype(np.uint8)
    return resize_image(photo, [max(1, round(scale * height)), max(1, round(scale * width))])


def _one_image(result: Explanation, index: int) -> Explanation:
    if len(result.maps.shape) != 4:
        raise ValueError(
            f"maps of shape {tuple(result.maps.shape)} are not of images (N, n, h, w): plot draws "
            "images; draw signals and volumes from result.maps."
        )
    if not -len(result) <= index < len(result):
        raise IndexError(f"index={index}: the explanation holds {len(result)} image(s).")
    return result[index].numpy()


def _fault(raw: np.ndarray) -> str | None:
    """Says why a map cannot be drawn, by the measure of ``cam_tf.heatmaps``; None if it can."""
    if not np.isfinite(raw).all():
        return "map not finite"
    return "flat map" if is_flat(raw.min(), raw.max()) else None


def _title(
    one: Explanation, j: int, class_names: Sequence[str] | None, characters: int
) -> list[str]:
    """The lines of a title: the class's name, on two lines at most, and its score."""
    name, score = _name(int(one.class_ids[0, j]), class_names), float(one.scores[0, j])
    if not 0 <= score <= 1:
        shown = f"score {score:.2f}"
    else:
        shown = f"{100 * score:.1f} %" if score >= 0.0005 or score == 0 else "< 0.1 %"
    lines = textwrap.wrap(name, characters, max_lines=2, placeholder="…") or [""]
    if len(lines[-1]) + 2 + len(shown) <= characters:
        return [*lines[:-1], f"{lines[-1]}  {shown}"]
    return [*lines, shown]


def _name(class_id: int, class_names: Sequence[str] | None) -> str:
    if class_names is None:
        return f"class {class_id}"
    if class_id >= len(class_names):
        raise ValueError(
            f"class_names has {len(class_names)} names, but class {class_id} is explained: pass "
            "the names of all classes, in the order of the model's outputs."
        )
    return str(class_names[class_id])


def _panel_size(height: int, width: int) -> tuple[float, float]:
    """The (height, width) in inches of a photo of that many pixels."""
    scale = min(math.sqrt(_AREA / (height * width)), _LONGEST / max(height, width))
    return height * scale, width * scale


def _layout(
    titles: list[list[str]], height: float, width: float, label: str
) -> tuple[NotebookFigure, list[Axes]]:
    """Returns a figure and its titled panels in reading order, with room for the colour bars."""
    label_lines = textwrap.wrap(label, max(12, int((height + _MARGIN) / _SMALL_CHARACTER)))
    across = max(width, _NARROWEST) + _GUTTER
    down = height + max(map(len, titles)) * _LINE + _MARGIN
    rows = math.ceil(len(titles) / max(1, int(_WIDEST_FIGURE // across)))
    columns = math.ceil(len(titles) / rows)
    # The photo has no colour bar: in a single row the others move up to it.
    saved = _GUTTER - _MARGIN if rows == 1 else 0.0
    wide = columns * across - saved + len(label_lines) * _SMALL_LINE + 2 * _MARGIN
    high = rows * down + _MARGIN
    figure = NotebookFigure(figsize=(wide, high), dpi=_DPI, facecolor="white")
    panels = []
    for k, title in enumerate(titles):
        row, column = divmod(k, columns)
        left = _MARGIN + column * across - (saved if column else 0.0)
        bottom = high - (row + 1) * down
        axes = figure.add_axes((left / wide, bottom / high, width / wide, height / high))
        axes.set_title("\n".join(title), fontsize=_FONT, loc="left", pad=4, parse_math=False)
        panels.append(axes)
        if label_lines and (column == columns - 1 or k == len(titles) - 1):
            place = ((left + width + _GUTTER - _MARGIN) / wide, (bottom + height / 2) / high)
            text = "\n".join(label_lines)
            figure.text(*place, text, fontsize=_SMALL, rotation=90, va="center", ma="center")
    return figure, panels


def _show(axes: Axes, picture: np.ndarray, height: int, width: int) -> None:
    # Coordinates are pixel edges of the photo: a box from 0 to W covers its whole width.
    axes.imshow(picture, extent=(0, width, height, 0), aspect="auto")
    axes.set_axis_off()


def _draw_bar(axes: Axes, norm: Normalize, colormap: str | Colormap) -> None:
    figure, place = axes.get_figure(), axes.get_position()
    inch = 1 / figure.get_figwidth()
    bar_axes = figure.add_axes((place.x1 + _BAR_GAP * inch, place.y0, _BAR * inch, place.height))
    bar = figure.colorbar(ScalarMappable(norm, find_colormap(colormap)), cax=bar_axes)
    bar.locator = MaxNLocator(nbins=6, steps=[1, 2, 5, 10])
    bar.formatter = FuncFormatter(lambda value, _: _number(value))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=_SMALL, length=2, width=0.5, pad=1.5)
    if norm.vmin < 0 < norm.vmax:
        bar.ax.axhline(0, color="white", linewidth=1.1, path_effects=_edge(1.8))


def _number(value: float) -> str:
    """As short as a tick must be, with its power of ten: an offset would run into the title."""
    text = f"{value + 0.0:g}"  # never "-0"
    return text.replace("e+0", "e").replace("e-0", "e-").replace("-", "\N{MINUS SIGN}")


def _draw_box(axes: Axes, box: np.ndarray, height: int, width: int) -> None:
    top, left, bottom, right = (float(side) for side in box)
    if not (bottom > top and right > left):
        return
    corner, size = (left * width, top * height), ((right - left) * width, (bottom - top) * height)
    outline = Rectangle(
        corner, *size, fill=False, edgecolor="white", linewidth=1.1, path_effects=_edge(1.8)
    )
    outline.set_clip_on(False)  # a box along the border keeps its whole line
    axes.add_patch(outline)


def _edge(linewidth: float) -> list[patheffects.AbstractPathEffect]:
    """A dark edge that keeps a white line visible on bright photos."""
    return [patheffects.withStroke(linewidth=linewidth, foreground="black")]
