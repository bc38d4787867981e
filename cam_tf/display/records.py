"""What is written for an explained photo: a figure, an overlay, a record, and the raw maps."""

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from cam_tf.display.figures import plot
from cam_tf.display.overlays import overlay
from cam_tf.files import written_whole
from cam_tf.localization.boxes import boxes
from cam_tf.maps.explanation import Explanation
from cam_tf.maps.heatmaps import BlankMapWarning, heatmaps


def record(
    image_size: Sequence[int],
    result: Explanation,
    class_names: Sequence[str] | None = None,
    threshold: float = 0.2,
) -> dict:
    """Describes the explanation of one photo as plain JSON data.

    Args:
        image_size: the photo's (height, width) in pixels.
        result: the explanation of one image.
        class_names: a name for each class of the network.
        threshold: the boxes' share of the map's maximum.

    Returns:
        ``height``, ``width``, ``map_size``, ``threshold`` and ``classes``: for each its ``id``,
        ``name``, ``probability`` (the model's score), ``logit``, ``box`` in whole pixels of the
        photo (``ymin, xmin, ymax, xmax``, exclusive at the end), or None for a map without
        evidence, and what ``Explanation.diagnosis`` says: ``map`` and ``advice``. Numbers that are
        not finite are None.
    """
    result = result.numpy()
    found = boxes(result, threshold)[0]
    classes = [
        {
            "id": int(class_id),
            "name": class_names[class_id] if class_names else None,
            "probability": _number(result.scores[0, i]),
            "logit": _number(result.logits[0, i]),
            "box": _pixels(found[i], image_size),
            "map": diagnosis.status,
            "advice": diagnosis.advice,
        }
        for i, (class_id, diagnosis) in enumerate(
            zip(result.class_ids[0], result.diagnosis()[0], strict=True)
        )
    ]
    height, width = image_size
    return {
        "height": int(height),
        "width": int(width),
        "map_size": list(result.maps.shape[2:]),
        "threshold": threshold,
        "classes": classes,
    }


def _number(value: np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None


def _pixels(box: np.ndarray, image_size: Sequence[int]) -> dict[str, int] | None:
    """The smallest box of whole pixels around a relative box; None for an empty one."""
    if not box.any():
        return None
    height, width = image_size
    edges = box.astype(float) * [height, width, height, width]
    low, high = np.floor(edges[:2] + 1e-3).astype(int), np.ceil(edges[2:] - 1e-3).astype(int)
    names = ("ymin", "xmin", "ymax", "xmax")
    return dict(zip(names, [*low.tolist(), *high.tolist()], strict=True))


def write_explanation(
    directory: Path,
    stem: str,
    image: np.ndarray,
    result: Explanation,
    *,
    about: dict,
    class_names: Sequence[str] | None = None,
    threshold: float = 0.2,
    raw_maps: bool = False,
    bar_label: str = "contribution to the logit",
    **style,
) -> dict:
    """Writes the files of one photo into a directory, each of them whole or not at all.

    ``STEM_figure.png`` (the photo and a panel for each class), ``STEM_overlay.png`` (the first
    class's heatmap over the photo, in its own pixels), ``STEM.json`` (the record) and, when asked
    for, ``STEM_maps.npy`` ((n, h, w) float32).

    Args:
        directory: where to write; it must exist.
        stem: the beginning of the file names.
        image: the photo, (H, W, 3) RGB 0..255.
        result: its explanation.
        about: what to add to the record, such as the model's name.
        class_names: a name for each class of the network.
        threshold: the boxes' share of the map's maximum.
        raw_maps: whether to write the ``.npy``.
        bar_label: what the raw values of the maps are.
        **style: ``alpha`` and ``colormap`` of the pictures.

    Returns:
        The record, with the names of the files written.

    Raises:
        OSError: the directory cannot be written to.
    """
    size = image.shape[:2]
    labels = {"threshold": threshold, "bar_label": bar_label}
    with warnings.catch_warnings():  # the figure says it in the panel's title
        warnings.simplefilter("ignore", BlankMapWarning)
        heatmap = heatmaps(result.maps[:1, :1], size)[0, 0].numpy()
    picture = overlay(image, heatmap, **style)
    files = {"figure": f"{stem}_figure.png", "overlay": f"{stem}_overlay.png"}
    if raw_maps:
        files["maps"] = f"{stem}_maps.npy"
    whole = {**about, **record(size, result, class_names, threshold), "files": files}
    with written_whole(directory / files["figure"]) as file, warnings.catch_warnings():
        # A script that the font lacks (in a class name) is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        plot(image, result, class_names, **labels, **style).savefig(file, format="png")
    with written_whole(directory / files["overlay"]) as file:
        Image.fromarray(picture).save(file, format="PNG")
    if raw_maps:
        with written_whole(directory / files["maps"]) as file:
            np.save(file, result.numpy().maps[0])
    with written_whole(directory / f"{stem}.json") as file:
        file.write(json.dumps(whole, indent=2, allow_nan=False).encode())
    return whole
