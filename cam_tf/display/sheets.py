"""A sheet of cases: photos with the map of their class, the true boxes, and the box drawn."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, Normalize
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from cam_tf.datasets.images import check_image
from cam_tf.datasets.localization import LocalizationData
from cam_tf.display.figures import NotebookFigure, _edge, _fault
from cam_tf.display.overlays import ALPHA, COLORMAP, find_colormap, overlay
from cam_tf.localization.evaluation import explain_records
from cam_tf.localization.evaluation_result import Evaluation, overlap
from cam_tf.maps.explanation import Explanation
from cam_tf.maps.heatmaps import resize_maps

# Both stay visible on inferno and are told apart by the colour-blind: white is the brighter.
TRUE, DRAWN = "#3df07a", "white"
_CELL = 1.55  # inches, of the photo's longer side
_GAP, _ROW_LABEL, _MARGIN = 0.14, 0.3, 0.12
_FONT, _SMALL = 8.0, 6.0  # points
_TITLE, _CAPTION = 0.38, 0.42  # inches
_LEGEND, _LINE = 2.35, 0.2  # inches: its width, and the height of a line of the head
_CHARACTER = 0.54 / 72  # inches for each point of the font, on average
_DPI = 200


@dataclass(frozen=True)
class Case:
    """One photo of a sheet.

    Attributes:
        image: (H, W, 3) RGB in 0..255.
        map: (h, w) the raw map of the true class, which stretches over the image.
        overlap: the IoU.
        name: the true class.
        id: what the photo is called.
        predicted: the predicted class, where it is another.
        boxes: (n, 4) true boxes, relative ``[ymin, xmin, ymax, xmax]``.
        box: (4,) the box that was drawn; zeros for none.
        size: the original's (height, width), whose shape the photo is shown in; default: its own.
        mask: (H, W) bool, shown by its outline where there is no box.
    """

    image: np.ndarray
    map: np.ndarray
    overlap: float
    name: str
    id: str
    predicted: str | None = None
    boxes: np.ndarray = ()
    box: np.ndarray = (0.0, 0.0, 0.0, 0.0)
    size: Sequence[int] | None = None
    mask: np.ndarray | None = None


def evaluation_sheet(
    evaluation: Evaluation,
    localizer: Callable[..., Explanation],
    examples: LocalizationData,
    *,
    prepare: Callable[[np.ndarray], np.ndarray] | None = None,
    class_names: Sequence[str] | None = None,
    title: str = "",
    count: int = 6,
) -> NotebookFigure:
    """Draws the best, the median and the worst images of an evaluation, which it reads once more.

    Args:
        evaluation: made by ``cam_tf.evaluate`` with a ``directory``.
        localizer: what was evaluated.
        examples: the same data.
        prepare: as it was evaluated.
        class_names: by class id.
        title: a line above all.
        count: how many of each, at most.

    Returns:
        See ``case_sheet``.

    Raises:
        ValueError: no image with a box or a mask was evaluated, or the records were not kept.

    Example:
        >>> done = cam_tf.evaluate(localize, examples, image_size=(224, 224), directory=here)
        >>> cam_tf.evaluation_sheet(done, localize, examples).savefig("cases.png")
    """
    rows = evaluation.cases(count)
    found = explain_records(
        localizer,
        examples,
        list(itertools.chain(*rows.values())),
        image_size=evaluation.settings["image_size"],
        short_side=evaluation.settings["short_side"],
        prepare=prepare,
    )

    def name(label: int) -> str:
        return class_names[label] if class_names else f"class {label}"

    def case(record: dict) -> Case:
        label, first = record["label"], record["predicted"][0]
        return Case(
            **found[record["id"]],
            overlap=overlap(record),
            name=name(label),
            id=record["id"],
            predicted=None if first == label else name(first),
            box=record["box"],
        )

    there = {
        name: [case(record) for record in row if record["id"] in found]
        for name, row in rows.items()
    }
    return case_sheet({name: row for name, row in there.items() if row}, title)


def case_sheet(
    rows: Mapping[str, Sequence[Case]],
    title: str = "",
    *,
    alpha: float = ALPHA,
    colormap: str | Colormap = COLORMAP,
) -> NotebookFigure:
    """Draws rows of cases, such as the best, the median and the worst of an evaluation.

    Each photo lies under the colours of its map, from the map's minimum to its maximum, with the
    true boxes (or the outline of the true mask) in green and the box that was drawn in white.

    Args:
        rows: the cases of each row, by the name that is written beside it.
        title: a line above all.
        alpha: the share of the colours over the photo.
        colormap: a matplotlib colormap or its name.

    Returns:
        A matplotlib ``Figure`` at 200 dpi (``figure.savefig("cases.png")``), independent of pyplot.

    Raises:
        ValueError: no case, an image that is not RGB, or an argument out of range.
    """
    find_colormap(colormap)
    columns = max(map(len, rows.values()), default=0)
    if not columns:
        raise ValueError("there is no case to draw: pass a row of at least one Case.")
    width = _MARGIN + _ROW_LABEL + columns * (_CELL + _GAP)
    width = max(width, 4.2)  # room for the legend
    room = width - _MARGIN - _ROW_LABEL - _GAP
    longest = int(room / (_CHARACTER * (_FONT + 1)))
    fits = len(title) * _CHARACTER * (_FONT + 1) + _LEGEND <= room
    head = _MARGIN + _TITLE + (0 if fits or not title else _LINE)
    high = head + len(rows) * (_CELL + _CAPTION + _GAP)
    figure = NotebookFigure(figsize=(width, high), dpi=_DPI, facecolor="white")
    _head(figure, _shortened(title, longest, keep_end=False), head - _TITLE, width, high)
    for i, (name, cases) in enumerate(rows.items()):
        top = high - head - i * (_CELL + _CAPTION + _GAP)
        place = ((_MARGIN + 0.5 * _ROW_LABEL) / width, (top - _CELL / 2) / high)
        style = {"rotation": 90, "ha": "center", "va": "center", "weight": "bold"}
        figure.text(*place, name, fontsize=_FONT + 1, **style)
        for j, case in enumerate(cases):
            left = _MARGIN + _ROW_LABEL + j * (_CELL + _GAP)
            _draw(figure, case, left, top, alpha, colormap)
    return figure


def _head(figure: NotebookFigure, title: str, legend: float, width: float, high: float) -> None:
    """Writes the title, and the legend so many inches below the top: beside it or below."""
    style = {"va": "center", "parse_math": False}
    y = 1 - (_MARGIN + 0.08) / high
    figure.text((_MARGIN + _ROW_LABEL) / width, y, title, fontsize=_FONT + 1, **style)
    kinds = {"true box": (TRUE, 1.7), "box of the map": (DRAWN, 1.0)}
    lines = [
        Line2D([], [], color=colour, linewidth=thick, path_effects=_edge(thick + 0.8), label=label)
        for label, (colour, thick) in kinds.items()
    ]
    figure.legend(
        handles=lines,
        loc="center right",
        bbox_to_anchor=(1 - _GAP / width, 1 - (legend + 0.08) / high),
        ncols=2,
        fontsize=_FONT,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        handlelength=1.6,
    )


def _draw(figure, case: Case, left: float, top: float, alpha: float, colormap) -> None:
    image = check_image(case.image)
    height, width = image.shape[:2] if case.size is None else case.size
    scale = _CELL / max(height, width)
    across, down = width * scale, height * scale
    wide, high = figure.get_size_inches()
    left += (_CELL - across) / 2
    bottom = top - _CELL  # photos stand on their captions
    axes = figure.add_axes((left / wide, bottom / high, across / wide, down / high))
    axes.imshow(_coloured(case, image, alpha, colormap), extent=(0, 1, 1, 0), aspect="auto")
    axes.set_axis_off()
    if case.mask is not None and not len(case.boxes):
        _outline(axes, case.mask)
    for box in case.boxes:
        _rectangle(axes, box, TRUE, 1.7)
    # Narrower, so that both are seen where they coincide.
    _rectangle(axes, case.box, DRAWN, 1.0)
    left -= (_CELL - across) / 2
    lines = [(f"IoU {case.overlap:.2f}  ", _FONT, "black", case.name)]
    wrong = "" if case.predicted is None else f"predicted: {case.predicted}"
    lines += [("", _SMALL, "#a02020", wrong)] if wrong else []
    lines += [("", _SMALL, "#777777", case.id)]
    y = bottom - 0.05
    for lead, size, colour, text in lines:
        characters = int(_CELL / (_CHARACTER * size)) - len(lead)
        shown = lead + _shortened(text, characters, keep_end=text == case.id)
        figure.text(
            left / wide, y / high, shown, fontsize=size, color=colour, va="top", parse_math=False
        )
        y -= 1.25 * size / 72


def _shortened(text: str, characters: int, keep_end: bool) -> str:
    if len(text) <= characters:
        return text
    return "…" + text[1 - characters :] if keep_end else text[: characters - 1].rstrip() + "…"


def _coloured(case: Case, image: np.ndarray, alpha: float, colormap) -> np.ndarray:
    """The photo under its map; the bare photo where the map cannot be drawn."""
    raw = np.asarray(case.map, np.float32)
    if _fault(raw):
        return np.rint(image).astype(np.uint8)
    stretched = resize_maps(raw[None, None], image.shape[:2]).numpy()[0, 0]
    norm = Normalize(float(stretched.min()), float(stretched.max()))
    return overlay(image, norm(stretched).data, alpha, colormap)


def _outline(axes: Axes, mask: np.ndarray) -> None:
    rows, columns = ((np.arange(length) + 0.5) / length for length in mask.shape)
    lines = axes.contour(columns, rows, np.float32(mask), [0.5], colors=TRUE, linewidths=1.1)
    lines.set_path_effects(_edge(1.9))


def _rectangle(axes: Axes, box: np.ndarray, colour: str, linewidth: float) -> None:
    top, left, bottom, right = (float(side) for side in box)
    if not (bottom > top and right > left):
        return
    outline = Rectangle(
        (left, top),
        right - left,
        bottom - top,
        fill=False,
        edgecolor=colour,
        linewidth=linewidth,
        path_effects=_edge(linewidth + 0.8),
    )
    outline.set_clip_on(False)  # a box along the border keeps its whole line
    axes.add_patch(outline)
