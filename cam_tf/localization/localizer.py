"""One callable for localization: a method, denser maps, several views, refinement; or a preset."""

import copy
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import keras
import numpy as np
import tensorflow as tf

from cam_tf.localization.refinement import refine as refine_maps
from cam_tf.maps.cam import CAM
from cam_tf.maps.explainer import Explainer
from cam_tf.maps.explanation import Array, Explanation
from cam_tf.maps.methods import METHODS, find_method
from cam_tf.maps.selection import Classes
from cam_tf.networks.stride import possible_strides, with_output_stride
from cam_tf.suggestions import did_you_mean


@dataclass(frozen=True)
class Preset:
    """A way to localize: the arguments of ``Localizer`` by the same names."""

    method: str = "cam"
    output_stride: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    refine: str | None = None


# README has what each of them gains and costs.
PRESETS = {
    "fast": Preset("prototypecam", 16, (10 / 7,)),
    "localization": Preset("prototypecam", 16, (1.0, 10 / 7, 2.0), True, "grabcut"),
}


class Localizer:
    """Explains images like an ``Explainer``, with maps made for localization.

    Args:
        model: a classifier as ``CAM`` takes it; it is not modified. For an output stride or scales
            it must be a network of one image input, see ``with_output_stride``.
        preset: ``"fast"`` or ``"localization"``, or None for plain CAM. What is also given as an
            argument of its own takes the place of the preset's.
        method: an explainer's class or its name.
        output_stride: see ``with_output_stride``.
        scales: the image is seen at these sizes, as shares of ``size``, and the maps are averaged;
            images of any size, also the model's own, are resized to them.
        flip: the image is seen mirrored too.
        refine: the method of ``cam_tf.refine``, or ``"none"`` to do without the preset's.
        size: (height, width) that the network was made for, which the scales refer to: an image is
            brought to the same area, its aspect ratio kept. Default: the model's input size; for a
            model of any size, the size of the images themselves.
        layer: the target layer, as for ``Explainer``.
        **options: of the method.

    Raises:
        ValueError: an unknown preset, method or refinement; scales or a size that are not numbers;
            scales or flip for a method that takes none; a model whose strides cannot be changed or
            that cannot take other sizes; when called, images to ``refine`` that are not 0..255.

    Example:
        >>> localize = cam_tf.Localizer(model, preset="localization")
        >>> cam_tf.boxes(localize(images, top_k=5))
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        preset: str | None = None,
        method: str | type[Explainer] | None = None,
        output_stride: int | None = None,
        scales: Sequence[float] | None = None,
        flip: bool | None = None,
        refine: str | None = None,
        size: Sequence[int] | None = None,
        layer=None,
        **options,
    ):
        given = {"method": method, "output_stride": output_stride, "flip": flip, "refine": refine}
        given["scales"] = None if scales is None else _check_scales(scales)
        given = {name: value for name, value in given.items() if value is not None}
        self.settings = settings = replace(_find_preset(preset), **given)
        if isinstance(settings.method, str):
            explainer = find_method(settings.method)
        else:
            explainer = settings.method
        self._largest = max(settings.scales)
        self._resizes = settings.scales != (1.0,)
        views = {}
        if self._resizes or settings.flip:
            if not issubclass(explainer, CAM):
                raise ValueError(
                    f"{explainer.__name__} sees one view of an image: scales and flip are for CAM "
                    "and PrototypeCAM."
                )
            shares = tuple(scale / self._largest for scale in settings.scales)
            views = {"scales": shares, "flip": settings.flip}
        if settings.refine not in (None, "none"):  # finds out now whether the method is known
            refine_maps([], tf.zeros([0, 1, 1, 1]), settings.refine)
        self._size = () if size is None else _check_size(size)
        if self._resizes or settings.output_stride is not None:
            self._size = self._size or _fixed_size(model)
            try:
                model = with_output_stride(model, settings.output_stride, any_size=self._resizes)
            except ValueError as error:
                way_out = _way_out(model, settings, self._resizes)
                if preset is None or not set(way_out).isdisjoint(given):
                    raise
                instead = ", ".join(f"{name}={value}" for name, value in way_out.items())
                raise ValueError(
                    f"preset {preset!r} is not for this model as it is: {error} In place of what "
                    f"the preset says, give {instead}."
                ) from error
        self.explainer = explainer(model, layer, **views, **options)
        self._given = {"layer": _plain(layer), "options": _plain(options)}

    @property
    def anatomy(self):
        """The anatomy of the network that is explained, see ``dissect``."""
        return self.explainer.anatomy

    @property
    def unit(self) -> str:
        """What the values of the maps are."""
        return self.explainer.unit

    @property
    def image_size(self) -> tuple[int, int] | None:
        """The (height, width) to read images at, that of the largest view; None: any."""
        if not (self._resizes and self._size):
            return None
        height, width = self._size
        return round(height * self._largest), round(width * self._largest)

    def unrefined(self) -> "Localizer":
        """The same localizer without its refinement."""
        bare = copy.copy(self)
        bare.settings = replace(self.settings, refine="none")
        return bare

    def describe(self) -> dict:
        """All settings, in plain numbers and strings."""
        method = type(self.explainer)
        names = {kind: name for name, kind in METHODS.items()}
        size = list(self._size) if self._resizes else None
        return {
            **asdict(self.settings),
            "method": names.get(method, method.__name__),
            "scales": list(self.settings.scales),
            "size": size or None,
            **self._given,
        }

    def __repr__(self) -> str:
        return f"Localizer({self.anatomy.name!r}, {self.describe()})"

    def __call__(
        self,
        images: Array,
        classes: Classes = None,
        top_k: int | None = None,
        *,
        batch_size: int = 32,
    ) -> Explanation:
        """Explains images; see ``Explainer.__call__``.

        With scales, images (N, H, W, channels) may have any size, and go through the network in
        batches of ``batch_size`` for every view.
        """
        if self.settings.refine not in (None, "none"):
            _check_photos(images)
        seen = self._enlarged(images) if self._resizes else images
        found = self.explainer(seen, classes, top_k, batch_size=batch_size)
        if self._resizes:
            found = replace(found, image_size=tuple(images.shape[1:3]))
        if self.settings.refine not in (None, "none"):
            found = refine_maps(images, found, self.settings.refine)
        return found

    def _enlarged(self, images: Array) -> tf.Tensor:
        """The images at the largest of the scales."""
        images = tf.convert_to_tensor(images)
        if images.shape.rank != 4 or 0 in images.shape[1:3]:
            return images  # the explainer says what is wrong
        given = images.shape[1:3]
        own = self._size or given
        scale = self._largest * (own[0] * own[1] / (given[0] * given[1])) ** 0.5
        size = [max(round(length * scale), 1) for length in given]
        if size == list(given):
            return images
        resized = tf.image.resize(images, size, "bicubic", antialias=True)
        # A bicubic filter overshoots the range, which only the images themselves tell.
        low, high = (
            tf.cast(reduce(images, axis=[1, 2, 3], keepdims=True), tf.float32)
            for reduce in (tf.reduce_min, tf.reduce_max)
        )
        resized = tf.clip_by_value(resized, low, high)
        return tf.round(resized) if self.anatomy.image.symbol.dtype.startswith(_WHOLE) else resized


_WHOLE = ("uint", "int")


def _find_preset(name: str | None) -> Preset:
    if name is None:
        return Preset()
    if name not in PRESETS:
        raise ValueError(
            f"preset {name!r} is unknown.{did_you_mean(str(name), PRESETS)} There are: "
            f"{', '.join(PRESETS)}."
        )
    return PRESETS[name]


def _fixed_size(model: keras.Model) -> tuple[int, ...]:
    size = tuple(model.inputs[0].shape[1:3]) if getattr(model, "inputs", None) else ()
    return () if None in size else size


def _check_scales(scales: Sequence[float]) -> tuple[float, ...]:
    try:
        found = tuple(float(scale) for scale in scales)
    except (TypeError, ValueError):
        found = ()
    if not found or not all(math.isfinite(scale) and scale > 0 for scale in found):
        raise ValueError(
            f"scales={scales!r}: expected positive numbers, shares of the size, such as "
            "scales=(1.0, 1.5)."
        )
    return found


def _check_size(size: Sequence[int]) -> tuple[int, int]:
    try:
        height, width = (int(length) for length in size)
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise ValueError(f"size={size!r}: expected (height, width) in pixels, such as (224, 224).")
    return height, width


def _way_out(model: keras.Model, settings: Preset, resizes: bool) -> dict:
    """Which settings, changed, would let a model be localized with."""
    strides, changed = possible_strides(model), {}
    try:
        with_output_stride(model, any_size=resizes)
    except ValueError:
        changed["scales"] = (1.0,)
    if not changed or settings.output_stride not in strides:
        changed["output_stride"] = strides[-1]
    return changed


def _check_photos(images: Array) -> None:
    """Raises a ValueError if images to be refined are not pixels."""
    pixels = np.asarray(images)
    if pixels.dtype.kind == "u" or not pixels.size or not np.isfinite(pixels).all():
        return  # what is not finite, the explainer refuses
    low, high = pixels.min(), pixels.max()
    is_fraction = pixels.dtype.kind == "f" and 0 < high <= 1
    if low < 0 or high > 255.5 or is_fraction:
        raise ValueError(
            f"images of {low:.4g} to {high:.4g} cannot be refined: their edges are found in RGB "
            "0..255. For a model of other inputs refine the photos themselves: with "
            "refine='none', cam_tf.refine(photos, localize(images))."
        )


def _plain(value):
    """A setting in plain data: itself, the name of a layer, or in words without an address."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, keras.layers.Layer):
        return value.name
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
