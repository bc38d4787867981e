"""How results show themselves in a notebook: small tables of HTML."""

import html
import io
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from cam_tf.display.overlays import COLORMAP, colour_table, find_colormap
from cam_tf.display.pages import encoded
from cam_tf.maps.diagnosis import FINE, is_flat
from cam_tf.maps.explanation import Explanation

_PIXELS = 112  # of a map's longer side
_IMAGES, _CLASSES = 8, 5


def explanation_html(result: Explanation) -> str:
    """A row for each of the first images: the map, the id and the score of each class."""
    one = result[:_IMAGES].numpy()
    states = one.diagnosis()
    rows = []
    for i in range(len(one)):
        cells = [str(i)]
        for j in range(min(one.maps.shape[1], _CLASSES)):
            picture = _picture(one.maps[i, j]) if one.maps.ndim == 4 else ""
            state = states[i][j].status
            note = "" if state == FINE else f"<br>{html.escape(state)}"
            text = f"class {one.class_ids[i, j]}<br>score {one.scores[i, j]:.3g}{note}"
            cells.append(f"{picture}{text}")
        rows.append(cells)
    count = min(one.maps.shape[1], _CLASSES)
    left_out = max(len(result) - len(one), 0), one.maps.shape[1] - count
    caption = (
        f"{result!r}"
        if len(result) * one.maps.shape[1] <= 20
        else (f"Explanation of {len(result)} images, maps {tuple(result.maps.shape)}")
    )
    if any(left_out):
        caption += f"; {left_out[0]} more images and {left_out[1]} more classes are not shown"
    return table(["image", *(f"map {j}" for j in range(count))], rows, caption)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> str:
    """An HTML table; cells are HTML, header and caption are text."""
    head = "".join(f'<th scope="col">{html.escape(text)}</th>' for text in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _picture(raw: np.ndarray) -> str:
    """A map from its least to its largest value, enlarged smoothly."""
    low, high = raw.min(), raw.max()
    if not np.isfinite(raw).all() or is_flat(low, high):
        return ""
    scale = _PIXELS / max(raw.shape)
    size = [max(1, round(scale * length)) for length in reversed(raw.shape)]
    smooth = Image.fromarray(np.float32((raw - low) / (high - low))).resize(size, Image.BILINEAR)
    colours = np.rint(colour_table(find_colormap(COLORMAP))).astype(np.uint8)
    steps = np.minimum(np.asarray(smooth) * len(colours), len(colours) - 1).astype(np.intp)
    buffer = io.BytesIO()
    Image.fromarray(colours[steps]).save(buffer, "PNG")
    source = f"data:image/png;base64,{encoded(buffer.getvalue())}"
    return f'<img alt="map" style="margin:0" src="{source}"><br>'
