"""Class-specific units: which of them a class listens to, and what each of them looks for."""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import keras
import numpy as np

from cam_tf.discovery.contributions import UnitContributions
from cam_tf.discovery.features import PooledFeatures
from cam_tf.maps.cam import CAM
from cam_tf.networks.anatomy import Layer


def class_units(
    model: keras.Model, class_id: int, count: int = 5, layer: Layer | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """The units that a class weighs most.

    Args:
        model: a classifier whose class activation maps are exact.
        class_id: the class.
        count: how many.
        layer: see ``CAM``.

    Returns:
        Unit ids and their weights w_k^c, (count,) each, largest first.

    Raises:
        ValueError: an unknown class, or a head that is not affine.

    Source: Zhou et al., CVPR 2016, section 5.
    """
    weights = CAM(model, layer).anatomy.kernel().numpy()
    if not 0 <= class_id < weights.shape[1]:
        raise ValueError(f"class_id={class_id} is not among the {weights.shape[1]} classes.")
    order = np.argsort(-weights[:, class_id], kind="stable")[:count]
    return order, weights[order, class_id]


def contributing_units(
    model: keras.Model,
    batches: Iterable[np.ndarray],
    class_ids: Sequence[int],
    count: int = 5,
    layer: Layer | None = None,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The units that contribute most to classes in the images that are predicted to be of them.

    A large weight is of no use to a unit that is never active: this ranks by the mean of w_k^c F_k.

    Args:
        model: see ``UnitContributions``.
        batches: of images, as the model takes them.
        class_ids: the classes.
        count: how many units.
        layer: see ``CAM``.

    Returns:
        class id -> unit ids and their mean contributions, (count,) each, largest first.

    Raises:
        ValueError: no image is predicted to be of a class, or see ``UnitContributions``.
    """
    contributions = UnitContributions(model, layer)
    sums, images = dict.fromkeys(class_ids, 0.0), dict.fromkeys(class_ids, 0)
    for batch in batches:
        found = contributions(batch, top_k=1)
        for class_id in class_ids:
            mine = found.class_ids[:, 0] == class_id
            sums[class_id] = sums[class_id] + found.values[mine, 0].sum(0)
            images[class_id] += int(mine.sum())
    none = [class_id for class_id in class_ids if not images[class_id]]
    if none:
        raise ValueError(
            f"no image is predicted to be of the classes {none}: give images of them, or rank "
            "their units by weight."
        )
    ranked = {}
    for class_id in class_ids:
        mean = sums[class_id] / images[class_id]
        order = np.argsort(-mean, kind="stable")[:count]
        ranked[class_id] = order, mean[order]
    return ranked


@dataclass
class TopActivations:
    """The images that activate units most, found in one pass with bounded memory.

    ``update`` takes images as they come; only the ``count`` best of each unit are kept.

    Args:
        units: the channels of the feature maps that are looked at.
        count: how many images for each unit.

    Attributes:
        values: (U, count) float32, each unit's largest activation in an image, best first; -inf
            while there are fewer images.
        keys: (U, count), the images' keys.
        positions: (U, count, 2) int32, where in the feature maps (y, x).
        images: how many were seen.
    """

    units: Sequence[int]
    count: int = 9
    values: np.ndarray = field(init=False)
    keys: np.ndarray = field(init=False)
    positions: np.ndarray = field(init=False)
    images: int = field(init=False, default=0)

    def __post_init__(self):
        if self.count < 1 or not len(self.units):
            raise ValueError("name at least one unit, and keep at least one image of each.")
        shape = len(self.units), self.count
        self.values = np.full(shape, -np.inf, np.float32)
        self.keys = np.full(shape, None, object)
        self.positions = np.zeros((*shape, 2), np.int32)

    def update(self, maps: np.ndarray, keys: Sequence[Hashable]) -> None:
        """Takes the feature maps (N, h, w, K) of images with their keys.

        Raises:
            ValueError: another number of keys, or a unit that the maps do not have.
        """
        maps = np.asarray(maps)
        if len(keys) != len(maps) or max(self.units) >= maps.shape[-1] or min(self.units) < 0:
            raise ValueError(
                f"maps {maps.shape}, {len(keys)} keys, units up to {max(self.units)}: these do not "
                "fit."
            )
        chosen = maps[..., list(self.units)].reshape(len(maps), -1, len(self.units))
        places = chosen.argmax(1)  # (N, U)
        values = np.take_along_axis(chosen, places[:, None], 1)[:, 0].T
        rows = np.stack(np.unravel_index(places.T, maps.shape[1:3]), -1)
        keys = np.broadcast_to(_objects(keys), values.shape)
        values = np.concatenate([self.values, values], 1)
        order = np.argsort(-values, axis=1, kind="stable")[:, : self.count]
        self.values = np.take_along_axis(values, order, 1)
        self.keys = np.take_along_axis(np.concatenate([self.keys, keys], 1), order, 1)
        positions = np.concatenate([self.positions, rows], 1)
        self.positions = np.take_along_axis(positions, order[..., None], 1).astype(np.int32)
        self.images += len(maps)


def _objects(keys: Sequence[Hashable]) -> np.ndarray:
    found = np.empty(len(keys), object)
    found[:] = list(keys)
    return found


def top_activations(
    features: PooledFeatures,
    batches: Iterable[tuple[np.ndarray, Sequence[Hashable]]],
    units: Sequence[int],
    count: int = 9,
) -> TopActivations:
    """Streams batches of (images, keys) through a network; see ``TopActivations``.

    Raises:
        ValueError: no image, or a unit that the network does not have.
    """
    if any(not 0 <= unit < features.channels for unit in units):
        raise ValueError(f"units={list(units)}: the network has {features.channels}.")
    found = TopActivations(list(units), count)
    for images, keys in batches:
        found.update(features.maps(images), keys)
    if not found.images:
        raise ValueError("there is no image to look for units in.")
    return found


def region_around(
    position: Sequence[int], maps: Sequence[int], size: Sequence[int], field: Sequence[int]
) -> tuple[float, float, float, float]:
    """The box, relative, of a receptive field around a position, moved to lie inside the image.

    Args:
        position: (y, x) in the feature maps.
        maps: their (h, w).
        size: the image's (H, W) in pixels, as the network sees it.
        field: the receptive field's (height, width) in pixels.
    """
    box = []
    for axis in (0, 1):
        share = min(field[axis] / size[axis], 1.0)
        start = (position[axis] + 0.5) / maps[axis] - share / 2
        start = min(max(start, 0.0), 1.0 - share)
        box.append((start, start + share))
    (top, bottom), (left, right) = box
    return top, left, bottom, right
