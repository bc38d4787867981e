"""Informative objects in scenes: which occur, and which the class activation map looks at."""

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from cam_tf.datasets.images import find_images, load_image
from cam_tf.discovery.features import PooledFeatures
from cam_tf.discovery.linear import LinearHead, fit_linear
from cam_tf.discovery.photos import Prepare, prepared
from cam_tf.localization.boxes import masks
from cam_tf.maps.cam import class_activation_maps


@dataclass(frozen=True)
class SceneImage:
    """One image of a scene with the masks of its objects, read when they are asked for.

    Attributes:
        image: the file.
        scene: the scene's name.
        read_objects: returns object name -> (H, W) bool.
    """

    image: Path
    scene: str
    read_objects: Callable[[], dict[str, np.ndarray]]


class Informative(NamedTuple):
    """An object in a scene.

    Attributes:
        name: of the object.
        frequency: the share of the scene's images that it occurs in.
        overlap: the share of its pixels in the high part of the scene's map, the mean over the
            images it occurs in.
        images: in how many it occurs.
    """

    name: str
    frequency: float
    overlap: float
    images: int


@dataclass(frozen=True)
class SceneObjects:
    """What was found in each scene.

    Attributes:
        objects: scene -> its objects, by name.
        head: the classifier of scenes, None if one was given.
        bad: images left out: file -> reason.
    """

    objects: dict[str, dict[str, Informative]]
    head: LinearHead | None
    bad: dict[str, str]

    def by_frequency(self, scene: str, least: int = 1) -> list[Informative]:
        """The objects of a scene in at least so many images, the most frequent first."""
        return self._ranked(scene, least, lambda one: (-one.frequency, -one.overlap, one.name))

    def by_overlap(self, scene: str, least: int = 1) -> list[Informative]:
        """The objects of a scene in at least so many images, the most looked-at first."""
        return self._ranked(scene, least, lambda one: (-one.overlap, -one.frequency, one.name))

    def _ranked(self, scene: str, least: int, key) -> list[Informative]:
        return sorted((one for one in self.objects[scene].values() if one.images >= least), key=key)


def informative_objects(
    features: PooledFeatures,
    scenes: Sequence[SceneImage],
    *,
    threshold: float = 0.2,
    C: float | None = None,  # noqa: N803
    seed: int = 0,
    size: Sequence[int] | None = None,
    prepare: Prepare | None = None,
    progress: Callable[[int], None] | None = None,
) -> SceneObjects:
    """Ranks the objects of each scene by how often they occur and by how much the map covers them.

    A one-vs-rest linear support vector machine learns the scenes from pooled features. The map of
    an image's own scene is stretched over the image, and its high part is what is above
    ``threshold`` of its maximum. The two rankings differ, which is the finding: a frequent object
    need not be what tells a scene from others.

    Args:
        features: of the network.
        scenes: images with masks, of two scenes or more.
        threshold: of the map's high part.
        C: see ``fit_linear``.
        seed: see ``fit_linear``.
        size: (height, width) that images are resized to; default: the network's.
        prepare: from photos to the network's input, in place of resizing alone.
        progress: is told how many images were seen, two times each.

    Raises:
        ValueError: one scene only, or see ``fit_linear``. An image that cannot be read, or whose
            masks are of another size than itself, is left out and named in ``bad``.

    Source: Zhou et al., CVPR 2016, section 4.2, "Discovering informative objects in the scenes".
    """
    prepare, step = prepare or prepared(features, size), progress or (lambda count: None)
    bad: dict[str, str] = {}
    rows, labels = [], []
    for _, batch in _loaded(scenes, prepare, bad):
        rows.append(features(batch))
        step(1)
    kept = [one for one in scenes if str(one.image) not in bad]
    labels = [one.scene for one in kept]
    counts = [labels.count(name) for name in set(labels)] or [0]
    if not rows:
        raise ValueError(f"no image could be read: {dict(list(bad.items())[:3])}")
    head = fit_linear(np.concatenate(rows), labels, C=C, folds=max(2, min(5, *counts)), seed=seed)
    weights = head.weights
    if weights.shape[1] == 1:
        weights = np.concatenate([-weights, weights], 1)
    overlaps = defaultdict(lambda: defaultdict(list))
    images = defaultdict(int)
    for one, batch in _loaded(kept, prepare, bad):
        photo_size = load_image(one.image).shape[:2]
        try:
            objects = _objects(one, photo_size)
        except (OSError, ValueError) as error:
            bad[str(one.image)] = str(error)
            continue
        ids = [[head.classes.index(one.scene)]]
        maps = class_activation_maps(features.maps(batch), weights, ids)
        high = masks(maps, threshold, size=photo_size)[0, 0]
        images[one.scene] += 1
        for name, mask in objects.items():
            overlaps[one.scene][name].append(float(high[mask].mean()))
        step(1)
    found = {
        scene: {
            name: Informative(name, len(each) / images[scene], float(np.mean(each)), len(each))
            for name, each in overlaps[scene].items()
        }
        for scene in sorted(images)
    }
    return SceneObjects(found, head, bad)


def _loaded(scenes, prepare, bad) -> Iterator[tuple[SceneImage, np.ndarray]]:
    for one in scenes:
        try:
            yield one, prepare([load_image(one.image)])
        except (OSError, ValueError) as error:
            bad[str(one.image)] = str(error)


def _objects(one: SceneImage, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """The masks that are not empty; a ValueError if one is of another size than the image."""
    objects = one.read_objects()
    for name, mask in objects.items():
        if mask.shape != size:
            raise ValueError(
                f"the mask of {name!r} is {mask.shape[0]}x{mask.shape[1]}, and the image "
                f"{size[0]}x{size[1]}: masks must be of the image's own size."
            )
    return {name: mask for name, mask in objects.items() if mask.any()}


def scene_parse_images(
    folder: str | os.PathLike, split: str = "validation", scenes: Iterable[str] | None = None
) -> list[SceneImage]:
    """Reads the layout of ADE20K's scene parsing benchmark (``scene_parse150``).

    ``images/SPLIT/NAME.jpg``, ``annotations/SPLIT/NAME.png`` (an object's number at each pixel, 0
    for none), ``objectInfo150.txt`` (a table with a header, separated by tabs, whose first column
    is the number and whose last is the names) and ``sceneCategories.txt`` (``NAME SCENE``).

    Args:
        folder: what the benchmark's archive unpacks to.
        split: ``"training"`` or ``"validation"``.
        scenes: only these.

    Raises:
        FileNotFoundError: a file or folder of this layout is missing; the message says which.
        ValueError: there is no such scene; those that there are are named.
    """
    folder = Path(folder)
    for name in ("objectInfo150.txt", "sceneCategories.txt", f"images/{split}"):
        if not (folder / name).exists():
            raise FileNotFoundError(f"{folder} has no {name}, as ADE20K's scene parsing data have.")
    names = {}
    for line in (folder / "objectInfo150.txt").read_text("utf-8").splitlines()[1:]:
        cells = line.split("\t")
        names[int(cells[0])] = cells[-1].split(",")[0].strip()
    categories = dict(
        line.split(None, 1)
        for line in (folder / "sceneCategories.txt").read_text().splitlines()
        if line.strip()
    )
    wanted = _wanted(scenes, set(categories.values()), folder)
    found = []
    for image in find_images(folder / "images" / split):
        scene = categories.get(image.stem, "").strip()
        if scene in wanted:
            mask = folder / "annotations" / split / f"{image.stem}.png"
            found.append(SceneImage(image, scene, lambda mask=mask: _numbered(mask, names)))
    return found


def _numbered(path: Path, names: dict[int, str]) -> dict[str, np.ndarray]:
    pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED) if path.exists() else None
    if pixels is None or pixels.ndim != 2:
        raise ValueError(f"{path} is missing, or no picture of object numbers (one channel).")
    present = np.unique(pixels)
    return {names.get(int(k), f"object {k}"): pixels == k for k in present if k}


def labelme_images(
    folder: str | os.PathLike, scenes: Iterable[str] | None = None
) -> list[SceneImage]:
    """Reads LabelMe's JSON files: a folder for each scene, a ``NAME.json`` for each image.

    Each file has ``imagePath`` (relative to it), ``imageHeight``, ``imageWidth`` and ``shapes``
    (``label``, ``points``, ``shape_type``: polygons, rectangles and circles).

    Args:
        folder: with a folder for each scene.
        scenes: only these.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: there is no such scene.
    """
    folder = Path(folder)
    files = sorted(folder.glob("*/*.json"))
    if not files:
        raise FileNotFoundError(f"{folder} has no SCENE/NAME.json, as LabelMe writes them.")
    wanted = _wanted(scenes, {path.parent.name for path in files}, folder)
    found = []
    for path in files:
        if path.parent.name in wanted:
            try:
                data = json.loads(path.read_text("utf-8"))
                image = path.parent / Path(str(data["imagePath"]).replace("\\", "/")).name
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path} is no file of LabelMe: {error!r}.") from error
            found.append(SceneImage(image, path.parent.name, lambda data=data: _drawn(data)))
    return found


def _drawn(data: dict) -> dict[str, np.ndarray]:
    size = int(data["imageHeight"]), int(data["imageWidth"])
    found: dict[str, np.ndarray] = {}
    for shape in data["shapes"]:
        canvas = np.zeros(size, np.uint8)
        points = np.rint(np.float64(shape["points"])).astype(np.int32)
        kind = shape.get("shape_type") or "polygon"
        if kind == "rectangle":
            cv2.rectangle(canvas, points[0].tolist(), points[1].tolist(), 1, -1)
        elif kind == "circle":
            radius = round(float(np.hypot(*(points[1] - points[0]))))
            cv2.circle(canvas, points[0].tolist(), radius, 1, -1)
        elif kind == "polygon":
            cv2.fillPoly(canvas, [points], 1)
        else:  # points and lines have no area
            continue
        mask = canvas.astype(bool)
        found[shape["label"]] = found.get(shape["label"], False) | mask
    return found


def _wanted(scenes: Iterable[str] | None, known: set[str], folder: Path) -> set[str]:
    wanted = known if scenes is None else set(scenes)
    if wanted - known:
        shown = ", ".join(sorted(known)[:10])
        raise ValueError(f"{folder} has no scene {sorted(wanted - known)}: there are {shown} ...")
    return wanted
