"""Pages that need no network: templates, styles and scripts put together in one HTML file."""

import base64
import html
import json
import re
from importlib import resources

import numpy as np

from cam_tf.display.overlays import COLORMAP, colour_table, find_colormap


def page(template: str, title: str, data: dict, **embedded: str) -> str:
    """Returns a self-contained HTML page.

    Args:
        template: the name of ``assets/NAME.html``, ``.css`` and ``.js``.
        title: of the page, plain text.
        data: what the script finds as JSON in the element ``data``.
        **embedded: other parts of the template, as they are.
    """
    parts = {
        "title": html.escape(title),
        "style": _asset("style.css") + _asset(f"{template}.css"),
        "script": _asset("maps.js") + _asset(f"{template}.js"),
        "data": as_json(data),
        **embedded,
    }
    return re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], _asset(f"{template}.html"))


def as_json(data: dict) -> str:
    """JSON that may stand in a script element."""
    return json.dumps(data, allow_nan=False).replace("<", "\\u003c")


def colours(colormap: str = COLORMAP) -> str:
    """The colours of a colormap, from the least to the largest value: RGB bytes in base64."""
    return encoded(np.rint(colour_table(find_colormap(colormap))).astype(np.uint8).tobytes())


def encoded(content: bytes) -> str:
    """Bytes as base64, which a page can hold."""
    return base64.b64encode(content).decode("ascii")


def _asset(name: str) -> str:
    return (resources.files("cam_tf.display") / "assets" / name).read_text("utf-8")
