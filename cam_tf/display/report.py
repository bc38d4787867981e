"""A report: explained photos in one HTML file, whose maps a person can look through."""

import html
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cam_tf.datasets.images import check_image, resize_image
from cam_tf.discovery.contributions import Contributions
from cam_tf.display.overlays import ALPHA, COLORMAP
from cam_tf.display.pages import as_json, colours, encoded, page
from cam_tf.files import written_whole
from cam_tf.maps.explanation import Explanation

_PICTURE, _THUMBNAIL = 800, 128  # pixels of the longer side: 200 photos make some 25 MB
_UNITS = 8
_CASES = "<!-- cases -->"


@dataclass(frozen=True)
class ReportCase:
    """One photo of a report.

    Attributes:
        name: of the photo.
        photo: (H, W, 3) RGB 0..255.
        results: by the method's name, an ``Explanation`` of this image alone; all of the same
            classes.
        units: by the method's name, what the values of its maps are.
        contributions: of the same classes, for the table of units; or None.
    """

    name: str
    photo: np.ndarray
    results: Mapping[str, Explanation]
    units: Mapping[str, str]
    contributions: Contributions | None = None


def write_report(
    path: str | os.PathLike,
    cases: Iterable[ReportCase],
    *,
    methods: Sequence[str],
    size: Sequence[int],
    class_names: Sequence[str] | None = None,
    about: Mapping[str, object] | None = None,
    left_out: Mapping[str, str] | None = None,
    title: str = "What the network saw",
    threshold: float = 0.2,
    alpha: float = ALPHA,
    colormap: str = COLORMAP,
) -> Path:
    """Writes a self-contained HTML page of explained photos.

    The page holds the photos (as JPEG, 800 pixels at most) and the raw maps, and draws heatmaps and
    boxes itself, by the rules of ``overlay`` and ``boxes``. It needs no network, and its content
    security policy forbids it to ask for anything.

    Args:
        path: the HTML file. It is written whole or not at all.
        cases: the photos, taken one after the other: one of them is in memory.
        methods: the names of the methods, in the order in which they are offered.
        size: the (height, width) of the network's input, in which boxes are found.
        class_names: the names of all classes.
        about: what is said of the network and its making, name by name.
        left_out: photos that could not be explained: name -> reason. It is read after the cases.
        title: of the page.
        threshold: where the slider of the boxes' threshold begins.
        alpha: where the slider of the opacity begins.
        colormap: a matplotlib colormap's name.

    Returns:
        The path.

    Raises:
        ValueError: a case whose methods explain different classes or have not the names given.
        OSError: the file cannot be written.
    """
    path = Path(path)
    data = {
        "methods": list(methods),
        "size": [int(length) for length in size],
        "threshold": threshold,
        "opacity": alpha,
        "colours": colours(colormap),
        "about": {name: str(value) for name, value in (about or {}).items()},
    }
    with written_whole(path) as file:
        # Cases come before the script, which knows only at the end what was left out.
        first, _ = page("report", title, {}, cases=_CASES).split(_CASES)
        file.write(first.encode())
        count = 0
        for count, case in enumerate(cases, start=1):  # noqa: B007 - used after the loop
            file.write(_written(case, methods, class_names).encode())
        data["left_out"] = dict(left_out or {})
        data["summary"] = _summary(count, methods)
        _, rest = page("report", title, data, cases=_CASES).split(_CASES)
        file.write(rest.encode())
    return path


def _summary(count: int, methods: Sequence[str]) -> str:
    photos = "1 photo" if count == 1 else f"{count} photos"
    return f"{photos}, explained by {', '.join(methods)}."


def _written(case: ReportCase, methods: Sequence[str], names: Sequence[str] | None) -> str:
    """One case as an element of the page, which is read only when it is looked at."""
    results = {name: one.numpy() for name, one in case.results.items()}
    first = results.get(methods[0])
    if list(results) != list(methods) or any(
        not np.array_equal(one.class_ids, first.class_ids) for one in results.values()
    ):
        raise ValueError(
            f"{case.name}: the methods {list(results)} do not explain the same classes, or are not "
            f"{list(methods)}."
        )
    photo = check_image(case.photo)
    photo = np.clip(np.rint(photo), 0, 255).astype(np.uint8)
    classes = [
        {
            "id": int(class_id),
            "name": names[class_id] if names else None,
            "score": _finite(first.scores[0, i]),
            "logit": _finite(first.logits[0, i]),
        }
        for i, class_id in enumerate(first.class_ids[0])
    ]
    data = {
        "title": case.name,
        "photo": _jpeg(photo, _PICTURE),
        "classes": classes,
        "methods": [_method(name, one, case.units[name]) for name, one in results.items()],
        "units": None if case.contributions is None else list(_units(case.contributions)),
    }
    best = classes[0]
    label = best["name"] or f"class {best['id']}"
    return (
        f'<script type="application/json" class="case" data-name="{html.escape(case.name)}" '
        f'data-label="{html.escape(label)}" data-thumbnail="{_jpeg(photo, _THUMBNAIL)}">'
        f"{as_json(data)}</script>\n"
    )


def _method(name: str, result: Explanation, unit: str) -> dict:
    height, width = result.maps.shape[2:]
    maps = [
        {"values": encoded(raw.astype("<f4").tobytes()), "status": one.status, "advice": one.advice}
        for raw, one in zip(result.maps[0], result.diagnosis()[0], strict=True)
    ]
    return {"name": name, "unit": unit, "height": height, "width": width, "maps": maps}


def _units(found: Contributions) -> Iterator[dict]:
    ids, values = found.top(_UNITS)
    for unit, value, total in zip(ids[0], values[0], found.values[0].sum(-1), strict=True):
        pairs = [[int(k), round(float(v), 6)] for k, v in zip(unit, value, strict=True)]
        yield {"top": pairs, "sum": float(total)}


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _jpeg(photo: np.ndarray, longest: int) -> str:
    """A photo as a data URL, no longer than that many pixels."""
    scale = min(1.0, longest / max(photo.shape[:2]))
    small = resize_image(photo, [max(1, round(scale * length)) for length in photo.shape[:2]])
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{encoded(buffer.getvalue())}"
