"""What part of an image a unit sees: in theory, from the graph; and in practice, by occlusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import keras
import numpy as np
from keras import layers as kl

from cam_tf.discovery.features import PooledFeatures
from cam_tf.networks.anatomy import Layer, dissect
from cam_tf.networks.graph import Call, Value

Axis = tuple[int, int, int]  # the first pixel and the one past the last of position 0, and the step
_WINDOWS = (
    *(kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D, kl.MaxPooling2D, kl.AveragePooling2D),
)
_SHAPES = (kl.ZeroPadding2D, kl.Cropping2D)
_POINTWISE = (
    *(kl.Activation, kl.ReLU, kl.LeakyReLU, kl.ELU, kl.PReLU, kl.Softmax, kl.BatchNormalization),
    *(kl.Rescaling, kl.Normalization, kl.Dropout, kl.SpatialDropout2D, kl.GaussianNoise),
    *(kl.Identity, kl.Add, kl.Subtract, kl.Multiply, kl.Average, kl.Maximum, kl.Minimum),
    *(kl.Concatenate, kl.ActivityRegularization, kl.Dense),
)


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that a position of feature maps can see.

    Attributes:
        size: (height, width) in pixels.
        stride: pixels from one position to the next, (down, right).
        first: (top, left), the first pixel that position (0, 0) sees; negative in the padding.
        gates: whether squeeze-and-excitation lets the maps depend on the whole image besides.
    """

    size: tuple[int, int]
    stride: tuple[int, int]
    first: tuple[int, int]
    gates: bool = False

    def region(self, y: int, x: int) -> tuple[int, int, int, int]:
        """What position (y, x) sees: ``top, left, bottom, right``, in pixels, exclusive at the end.

        It may reach out of the image.
        """
        top, left = self.first[0] + y * self.stride[0], self.first[1] + x * self.stride[1]
        return top, left, top + self.size[0], left + self.size[1]


def receptive_field(
    model: keras.Model, layer: Layer | None = None, *, size: Sequence[int] | None = None
) -> ReceptiveField:
    """Computes the theoretical receptive field of feature maps from the model's graph.

    Args:
        model: any classifier that ``dissect`` takes, of images.
        layer: the feature maps; default: those that are pooled.
        size: the (height, width) of the images, which "same" padding depends on. Default: the
            model's; for a model of any size, one that all strides divide.

    Raises:
        ValueError: a layer whose window is not known; the message names it.
    """
    parts = dissect(model, layer)
    given = parts.image.shape[1:3] if size is None else tuple(size)
    # values -> (vertical, horizontal, shape); what is not a map of the image has none
    known: dict[Value, tuple[Axis, Axis, tuple]] = {parts.image: ((0, 1, 1), (0, 1, 1), given)}
    gates = False
    for call in parts.graph.needed([parts.image], [parts.feature_maps]):
        maps = [known[value] for value in call.inputs if value in known]
        if not maps:
            continue
        if _is_point(call.outputs[0]):
            continue  # pooled: what is made of it is a gate
        gates |= len(maps) < len(call.inputs) and _merges(call)
        window = _window(call)
        found = [
            _through(window, axis, [one[axis] for one in maps], maps[0][2][axis]) for axis in (0, 1)
        ]
        shape = tuple(length for _, length in found)
        for output in call.outputs:
            known[output] = (found[0][0], found[1][0], shape)
    if parts.feature_maps not in known:
        raise ValueError(f"{parts.name!r}: its feature maps do not come from the image by windows.")
    (top, bottom, down), (left, right, across), _ = known[parts.feature_maps]
    return ReceptiveField((bottom - top, right - left), (down, across), (top, left), gates)


def _is_point(value: Value) -> bool:
    shape = value.shape
    return len(shape) != 4 or tuple(shape[1:3]) == (1, 1)


def _merges(call: Call) -> bool:
    return len(call.inputs) > 1


def _window(call: Call):
    """Kernel, stride, dilation and padding of both axes; padding is "same", or (before, after)."""
    operation = call.operation
    if isinstance(operation, kl.ZeroPadding2D):
        return (1, 1), (1, 1), (1, 1), operation.padding
    if isinstance(operation, kl.Cropping2D):
        return (1, 1), (1, 1), (1, 1), [(-a, -b) for a, b in operation.cropping]
    if isinstance(operation, _WINDOWS):
        pooling = hasattr(operation, "pool_size")
        kernel = operation.pool_size if pooling else operation.kernel_size
        dilation = (1, 1) if pooling else operation.dilation_rate
        padding = "same" if operation.padding == "same" else [(0, 0), (0, 0)]
        return tuple(kernel), tuple(operation.strides), tuple(dilation), padding
    if isinstance(operation, _POINTWISE) or not isinstance(operation, kl.Layer):
        same = all(
            _is_point(value) or value.shape[1:3] == call.outputs[0].shape[1:3]
            for value in call.inputs
        )
        if same:  # activations, arithmetic
            return (1, 1), (1, 1), (1, 1), [(0, 0), (0, 0)]
    raise ValueError(
        f"layer {call.path!r} ({type(operation).__name__}) has no window that is known: name an "
        "earlier layer, or use empirical_receptive_field."
    )


def _through(window, axis: int, before: list[Axis], length: int | None) -> tuple[Axis, int | None]:
    """The axis behind a window, and its number of positions."""
    kernel, stride, dilation, padding = window
    reach, step = (kernel[axis] - 1) * dilation[axis], stride[axis]
    first, last = min(one[0] for one in before), max(one[1] for one in before)
    jump = before[0][2]
    if padding == "same":
        if length is None:
            ahead = max(reach + 1 - step, 0) // 2
        else:
            count = -(-length // step)
            ahead = max((count - 1) * step + reach + 1 - length, 0) // 2
            length = count
    else:
        ahead = padding[axis][0]
        if length is not None:
            length = (length + sum(padding[axis]) - reach - 1) // step + 1
    return (first - ahead * jump, last + (reach - ahead) * jump, jump * step), length


@dataclass(frozen=True)
class OcclusionField:
    """A receptive field as measured by occlusion.

    Attributes:
        map: (2 H - 1, 2 W - 1) float32, how much an occluded pixel changes the unit, around the
            position of its maximum, which is at the centre; the mean over images.
        size: (height, width) in pixels of what is above half of the map's maximum.
    """

    map: np.ndarray
    size: tuple[int, int]


def empirical_receptive_field(
    features: PooledFeatures,
    unit: int,
    images: np.ndarray,
    *,
    patch: int = 16,
    step: int = 8,
    batch_size: int = 32,
    seed: int = 0,
) -> OcclusionField:
    """Measures which pixels a unit depends on where it is most active.

    A patch of noise slides over each image; where it changes the unit's activation at its maximum,
    the unit looks. The maps are brought together at those maxima and averaged. Units see much less
    than they could.

    Args:
        features: of the network.
        unit: the channel of the feature maps.
        images: (N, H, W, channels) that activate it.
        patch: the side of the patch in pixels.
        step: pixels from one place of the patch to the next.
        batch_size: occluded images in one forward pass.
        seed: of the noise.

    Raises:
        ValueError: no such unit, or a patch larger than the images.

    Source: Zhou et al., "Object detectors emerge in deep scene CNNs", ICLR 2015, section 3.2.
    """
    images = np.asarray(images, np.float32)
    height, width = images.shape[1:3]
    if not 0 <= unit < features.channels:
        raise ValueError(f"unit={unit}: there are {features.channels}.")
    if not 0 < patch <= min(height, width) or step < 1:
        raise ValueError(f"patch={patch}, step={step}: not for images of {height}x{width}.")
    noise = np.random.default_rng(seed).choice(images.reshape(-1, images.shape[-1]), patch * patch)
    noise = noise.reshape(patch, patch, -1)
    places = [
        (y, x)
        for y in range(0, height - patch + 1, step)
        for x in range(0, width - patch + 1, step)
    ]
    total = np.zeros((2 * height - 1, 2 * width - 1))
    count = np.zeros_like(total)
    for image in images:
        (bare,) = features.maps(image[None])
        y, x = np.unravel_index(bare[..., unit].argmax(), bare.shape[:2])
        changes = np.zeros((height, width))
        times = np.zeros((height, width))
        for start in range(0, len(places), batch_size):
            some = places[start : start + batch_size]
            batch = np.repeat(image[None], len(some), axis=0)
            for one, (top, left) in zip(batch, some, strict=True):
                one[top : top + patch, left : left + patch] = noise
            change = np.abs(features.maps(batch)[:, y, x, unit] - bare[y, x, unit])
            for value, (top, left) in zip(change, some, strict=True):
                changes[top : top + patch, left : left + patch] += value
                times[top : top + patch, left : left + patch] += 1
        changes /= np.maximum(times, 1)
        centre = int((y + 0.5) * height / len(bare)), int((x + 0.5) * width / bare.shape[1])
        top, left = height - 1 - centre[0], width - 1 - centre[1]
        total[top : top + height, left : left + width] += changes / max(changes.max(), 1e-12)
        count[top : top + height, left : left + width] += 1
    mean = (total / np.maximum(count, 1)).astype(np.float32)
    mean[count < len(images) / 2] = 0  # seen in few images alone
    strong = mean >= mean.max() / 2 if mean.max() > 0 else np.zeros_like(mean, bool)
    size = tuple(
        int(np.ptp(np.flatnonzero(strong.any(axis))) + 1) if strong.any() else 0 for axis in (1, 0)
    )
    return OcclusionField(mean, size)
