"""Denser maps from the same weights: strides are removed, and what follows them is dilated.

Sources: Yu and Koltun, "Multi-Scale Context Aggregation by Dilated Convolutions", ICLR 2016; Chen
et al., "DeepLab: Semantic Image Segmentation with Deep Convolutional Nets, Atrous Convolution, and
Fully Connected CRFs", arXiv:1606.00915, section 3.1.
"""

import functools
import operator
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import keras
import tensorflow as tf
from keras import layers as kl
from keras import tree

from cam_tf.networks.graph import Call, Graph, Value

_CONVOLUTIONS = (kl.Conv2D, kl.DepthwiseConv2D, kl.SeparableConv2D)
_POOLING = (kl.MaxPooling2D, kl.AveragePooling2D)
_GLOBAL = (kl.GlobalAveragePooling2D, kl.GlobalMaxPooling2D)
# Layers and operations that treat every position alike, whatever the distance to the next one.
_POINTWISE = (
    *("Activation", "ReLU", "LeakyReLU", "ELU", "Dense", "BatchNormalization"),
    *("LayerNormalization", "Dropout", "SpatialDropout2D", "GaussianNoise", "GaussianDropout"),
    *("Rescaling", "Identity", "Add", "Subtract", "Multiply", "Average", "Maximum", "Minimum"),
    *("Concatenate", "CustomScaleLayer", "LayerScale", "StochasticDepth", "Relu", "Relu6", "Elu"),
    *("LeakyRelu", "Gelu", "Silu", "Sigmoid", "HardSigmoid", "HardSilu", "Tanh", "Divide"),
    *("TrueDivide", "Negative", "Cast", "LocalResponseNormalization"),
)


@dataclass(frozen=True)
class _Move:
    """By how much a SAME padding moves the maps: it depends on their size."""

    kernel: tuple[int, int]
    stride: int
    rate: int

    def __call__(self, size, axis: int):
        """The move along an axis of ``size`` positions in the original network."""
        kernel, stride = self.kernel[axis], self.stride
        given = tf.maximum((-(-size // stride) - 1) * stride + kernel - size, 0)
        return (kernel - 1) * self.rate // 2 - given // 2 * self.rate


@dataclass(frozen=True)
class _Grid:
    """Where the positions of a map are.

    Attributes:
        stride: pixels from one to the next.
        rate: every how many of them the original network has one: the factor removed so far.
        shift: row and column of the first one that the original has.
        moves: what comes to the shift where the size is not known yet.
        same_size: whether no size has changed since the first stride was removed.
    """

    stride: int = 1
    rate: int = 1
    shift: tuple[int, int] = (0, 0)
    moves: tuple[_Move, ...] = ()
    same_size: bool = True


def with_output_stride(
    model: keras.Model, stride: int | None = None, *, any_size: bool = False
) -> keras.Model:
    """Makes the feature maps of a trained classifier denser, without training.

    The last strides of convolutions and pooling layers are removed, and everything behind them is
    dilated by as much: the same weights see the same pixels, at more positions. It is exact: with
    r = the model's own stride / ``stride``, the original maps are ``dense[:, o::r, p::r]``, to
    float rounding, up to the border. The first old row o and column p are 0 for networks that pad
    on both sides alike or not at all (ResNets, VGG, DenseNets, Inception, ConvNeXt), and for those
    that pad on one side (EfficientNets, MobileNets, Xception, NASNet) r - 1 where all maps that
    would lose a stride have even sizes: the new maps are then centred on what they show. It is
    r - 1 for any sizes where pooling pads to round up (Caffe's AlexNet and NIN, GoogLeNet).

    The gates of squeeze-and-excitation go on to pool the old positions only, and so stay as they
    were. The scores pool all positions, of which there are now more, and so change a little.

    Args:
        model: a classifier of ``build_classifier``, or another on one image input. Nested models
            are unfolded; layers keep their names.
        stride: pixels from one position of the new maps to the next: for most networks 16 or 8,
            in place of 32. None: the model's own, for which the model itself is returned.
        any_size: the new model takes images of any size, whatever size the model was built for (its
            layers must be able to).

    Returns:
        A flat Functional ``keras.Model``: images (N, H, W, 3) -> scores (N, C), with maps of about
        (H / stride, W / stride). Its layers are new, and their variables are those of ``model``:
        to train or load one is to do it to the other. (Layers that are made of layers are
        themselves shared. What a ``Normalization`` layer has adapted to is read once, now.)
        To load it from a file, import ``cam_tf.networks.stride`` first: it may hold its layers.

    Raises:
        TypeError: the model has no graph that can be read, or the stride is not an integer.
        ValueError: a stride that the model does not come by, or a layer that has no counterpart
            on denser maps, or with ``any_size`` one that brings images to one size: the message
            names it and says why.
    """
    graph = Graph(model)
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4:
        shapes = [value.shape for value in graph.inputs]
        raise ValueError(f"{model.name!r} must have one image input (N, H, W, C); it has {shapes}.")
    strides = _strides(graph)
    possible = sorted(set(strides.values()))
    stride = possible[-1] if stride is None else operator.index(stride)
    if stride not in possible:
        raise ValueError(
            f"with_output_stride({model.name!r}, {stride}): the maps of this model have a stride "
            f"of {possible[-1]}, which it comes to by way of {possible[:-1]}. Use one of these."
        )
    if any_size and not any(graph.inputs[0].shape[1:3]):
        for call in graph.calls:
            if any(value in strides for value in call.inputs):
                _require_any_size(call, [one.shape for one in call.outputs if one in strides])
        any_size = False
    if stride == possible[-1] and not any_size:
        return model
    return _Builder(graph, stride, strides, any_size).build(model.name)


def possible_strides(model: keras.Model) -> list[int]:
    """The strides that ``with_output_stride`` may be asked for; the last is the model's own."""
    return sorted(set(_strides(Graph(model)).values()))


def flattened(model: keras.Model) -> keras.Model:
    """The same network without nested models: new layers, whose variables are those of ``model``.

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: not one image input, or a layer that cannot be taken over.
    """
    graph = Graph(model)
    if len(graph.inputs) != 1 or len(graph.inputs[0].shape) != 4:
        raise ValueError(f"{model.name!r} must have one image input (N, H, W, C).")
    strides = _strides(graph)
    return _Builder(graph, max(strides.values()), strides, False).build(model.name)


def _require_any_size(call: Call, shapes: Sequence[tuple]) -> None:
    """Refuses a call that makes maps of one size from images of any."""
    for shape in shapes:
        if any(length not in (None, 1) for length in shape[1:3]):
            raise ValueError(
                f"the model cannot be given images of any size: layer {call.path!r} "
                f"({type(call.operation).__name__}) brings them all to {tuple(shape[1:3])}. Use it "
                "at its own size, or take that layer out and resize the images."
            )


def _strides(graph: Graph) -> dict[Value, int]:
    """All maps of the model and their strides, in pixels."""
    strides = dict.fromkeys(graph.inputs, 1)
    for call in graph.calls:
        before = [strides[value] for value in call.inputs if value in strides]
        maps = all(len(value.shape) == 4 for value in call.outputs) and not _is_pooling(call)
        if before and maps:
            strides.update(dict.fromkeys(call.outputs, max(before) * _stride_of(call)))
    return strides


def _is_pooling(call: Call) -> bool:
    """Whether a call takes all positions together."""
    reduces = type(call.operation).__name__ in ("Mean", "Max") and _is_point(call.outputs[0])
    return reduces or isinstance(call.operation, _GLOBAL)


def _stride_of(call: Call) -> int:
    layer = call.operation
    if not isinstance(layer, (*_CONVOLUTIONS, *_POOLING)):
        return 1
    height, width = _pair(layer.strides)
    if height != width:
        raise _refusal(call, f"its strides {height} and {width} differ")
    return height


def _pair(size) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _refusal(call: Call, why: str) -> ValueError:
    kind = type(call.operation).__name__
    return ValueError(f"the output stride cannot be changed: layer {call.path!r} ({kind}) {why}.")


class _Builder:
    """Builds the dense model, call by call."""

    def __init__(self, graph: Graph, stride: int, maps: Container[Value], any_size: bool):
        self.graph, self.stride, self.maps, self.any_size = graph, stride, maps, any_size
        self.grids: dict[Value, _Grid] = {}  # of maps; what was pooled has no grid
        self.symbols: dict[Value, keras.KerasTensor] = {}
        self.clones: dict[int, tuple] = {}
        self.names: set[str] = set()
        self.readers: dict[Value, list[Call]] = {}
        for call in graph.calls:
            for value in call.inputs:
                self.readers.setdefault(value, []).append(call)

    def build(self, name: str) -> keras.Model:
        (image,) = self.graph.inputs
        source = self._unique(image.symbol._keras_history.operation.name)
        self.grids[image] = _Grid()
        shape = (None, None, *image.shape[3:]) if self.any_size else image.shape[1:]
        self.symbols[image] = keras.Input(shape, dtype=image.symbol.dtype, name=source)
        for call in self.graph.calls:
            self._append(call)
        outputs = [self.symbols[value] for value in self.graph.outputs]
        outputs = tree.pack_sequence_as(self.graph.function._outputs_struct, outputs)
        return keras.Model(self.symbols[image], outputs, name=name)

    def _append(self, call: Call) -> None:
        given = {value: self.symbols[value] for value in call.inputs}
        maps = {value: self.grids[value] for value in given if value in self.grids}
        if maps:
            grid = self._align(call, maps, given)
            operation, after = self._dense(call, grid)
            if grid.rate > 1 and self._is_gate(call):
                place = {"shift": grid.shift, "moves": [(*vars(m).values(), 1) for m in grid.moves]}
                self._insert(Sample2D, call, call.inputs[0], given, grid, rate=grid.rate, **place)
        else:
            operation, after = self._clone(call), None
        args, kwargs = tree.map_structure(
            lambda leaf: given[leaf] if isinstance(leaf, Value) else leaf, (call.args, call.kwargs)
        )
        try:
            with _sharing(call.operation, operation):
                results = tree.flatten(operation(*args, **kwargs))
        except ValueError as error:
            raise _refusal(call, f"does not take the denser maps ({error})") from error
        self.symbols.update(zip(call.outputs, results, strict=True))
        if after is not None:
            if self.any_size:
                _require_any_size(call, [one.shape for one in results])
            self.grids.update(dict.fromkeys(call.outputs, after))

    def _align(self, call: Call, maps: dict[Value, _Grid], given: dict) -> _Grid:
        """Moves the maps that meet in a call onto one grid, and returns it."""
        target = max(maps.values(), key=lambda grid: (len(grid.moves), grid.shift))
        for value, grid in maps.items():
            if (grid.stride, grid.rate) != (target.stride, target.rate):
                raise _refusal(call, "joins maps of different strides")
            shift = [new - old for new, old in zip(target.shift, grid.shift, strict=True)]
            moves = Counter(target.moves)
            moves.subtract(grid.moves)
            moves = [(*vars(m).values(), times) for m, times in moves.items() if times]
            if moves or any(shift):
                self._insert(Shift2D, call, value, given, grid, shift=shift, moves=moves)
        return target

    def _is_gate(self, call: Call) -> bool:
        """Whether a call pools what comes back to the maps, as in squeeze-and-excitation."""
        if not _is_pooling(call):
            return False
        pooled = self.graph.downstream(call.outputs[0])
        return any(
            not pooled.isdisjoint(other.inputs) and any(one in self.maps for one in other.inputs)
            for other in self.graph.calls
        )

    def _insert(self, layer, call: Call, value: Value, given: dict, grid: _Grid, **arguments):
        if arguments["moves"] and not grid.same_size:
            raise _refusal(call, "needs a model that is built for a fixed image size")
        name = self._unique(f"{call.operation.name}_{layer.__name__[:-2].lower()}")
        given[value] = layer(**arguments, dtype=value.symbol.dtype, name=name)(given[value])

    def _dense(self, call: Call, grid: _Grid) -> tuple:
        """What is called in the place of a call on maps, and the grid of what it returns."""
        layer, kind = call.operation, type(call.operation).__name__
        if grid.rate > 1 and getattr(layer, "data_format", None) == "channels_first":
            raise _refusal(call, "works on channels first")
        if isinstance(layer, (*_CONVOLUTIONS, *_POOLING)):
            return self._dense_window(call, grid)
        if isinstance(layer, kl.ZeroPadding2D):
            return self._dense_padding(call, grid)
        if _is_pooling(call):
            return self._clone(call), None
        if any(len(value.shape) != 4 for value in call.outputs):
            if grid.rate > 1 or self.any_size:
                raise _refusal(call, "wants maps of one size, and theirs changes")
            return self._clone(call), None
        if grid.rate == 1:
            return self._clone(call), grid
        if isinstance(layer, kl.Cropping2D):
            cropping = [[size * grid.rate for size in sizes] for sizes in layer.cropping]
            return self._clone(call, cropping=cropping), replace(grid, same_size=False)
        axes = set(tree.flatten(getattr(layer, "axis", -1)))
        if kind not in _POINTWISE or not axes <= {-1, 3, None}:
            raise _refusal(call, "has no known counterpart on denser maps")
        return self._clone(call), grid

    def _dense_window(self, call: Call, grid: _Grid) -> tuple:
        layer, stride, rate = call.operation, _stride_of(call), grid.rate
        removed = stride > 1 and grid.stride * stride > self.stride
        if not removed and rate == 1:
            return self._clone(call), replace(grid, stride=grid.stride * stride)
        pooling = isinstance(layer, _POOLING)
        dilation = (1, 1) if pooling else _pair(layer.dilation_rate)
        size = _pair(layer.pool_size if pooling else layer.kernel_size)
        reach = tuple((k - 1) * d + 1 for k, d in zip(size, dilation, strict=True))
        after = replace(grid, rate=rate * stride)
        if layer.padding == "valid":
            after = replace(after, same_size=grid.same_size and reach == (1, 1))
        elif reach != (1, 1) and (stride > 1 or any(k % 2 == 0 for k in reach)):
            sizes = (None, None) if self.any_size else call.inputs[0].shape[1:3]
            after = _moved(after, _Move(reach, stride, rate), sizes)
        if not pooling:
            dilation = tuple(d * rate for d in dilation)
            return self._clone(call, strides=(1, 1), dilation_rate=dilation), after
        if rate == 1 or size == (1, 1):
            return self._clone(call, strides=(1, 1)), after
        mode = "max" if isinstance(layer, kl.MaxPooling2D) else "average"
        name, dtype = self._unique(layer.name), layer.dtype_policy
        return DilatedPooling2D(size, rate, layer.padding, mode, name=name, dtype=dtype), after

    def _dense_padding(self, call: Call, grid: _Grid) -> tuple:
        """Pads by the rate; on both sides alike before a stride that is removed."""
        readers = self.readers.get(call.outputs[0], [])
        strides = [_stride_of(reader) for reader in readers]
        removed = strides and all(s > 1 and grid.stride * s > self.stride for s in strides)
        old = call.operation.padding
        new = [[max(pair)] * 2 if removed else pair for pair in old]
        new = [[size * grid.rate for size in pair] for pair in new]
        if grid.rate == 1 and not removed:
            return self._clone(call), grid
        shift = tuple(
            start + after[0] - before[0] * grid.rate
            for start, before, after in zip(grid.shift, old, new, strict=True)
        )
        return self._clone(call, padding=new), replace(grid, shift=shift, same_size=False)

    def _clone(self, call: Call, **changes):
        """The operation of a call, made anew from its configuration; made of layers, itself."""
        old = call.operation
        if id(old) in self.clones:
            clone, before = self.clones[id(old)]
            if before != changes:
                raise _refusal(call, "is called on maps of different strides")
            return clone
        if isinstance(old, kl.Layer):
            clone = old
            if not _is_composite(old):
                name = old.name if old.name not in self.names else call.path.replace("/", "_")
                config = {**old.get_config(), **changes, "name": self._unique(name)}
                clone = type(old).from_config(config)
        elif isinstance(old, keras.Operation):
            clone = type(old).from_config(old.get_config())
        else:  # the border of a nested model
            dtype = call.outputs[0].symbol.dtype
            clone = kl.Identity(dtype=dtype, name=self._unique("cast"))
        self.clones[id(old)] = clone, changes
        return clone

    def _unique(self, name: str) -> str:
        """The name, or with a number if it is taken."""
        number, unique = 0, name
        while unique in self.names:
            number += 1
            unique = f"{name}_{number}"
        self.names.add(unique)
        return unique


def _moved(grid: _Grid, move: _Move, sizes) -> _Grid:
    if None in sizes:
        return replace(grid, moves=(*grid.moves, move))
    shift = [grid.shift[axis] + int(move(size, axis)) for axis, size in enumerate(sizes)]
    return replace(grid, shift=tuple(shift))


def _is_point(value: Value) -> bool:
    return len(value.shape) < 4 or tuple(value.shape[1:3]) == (1, 1)


def _is_composite(layer: kl.Layer) -> bool:
    return bool(layer._flatten_layers(include_self=False))


@contextmanager
def _sharing(old, new) -> Iterator[None]:
    """What a new layer adds as weights, when it is called and built, are those of the old one."""
    if new is old or not getattr(old, "weights", []):
        yield
        return
    frozen = [variable for variable in old._trainable_variables if not variable.trainable]
    pending = {True: list(old._trainable_variables), False: list(old._non_trainable_variables)}

    def add_weight(*args, trainable=True, **kwargs):
        return pending[trainable].pop(0)

    for variable in frozen:  # else the new layer could not be unfrozen
        variable.trainable = True
    new.add_weight = add_weight
    try:
        yield
    finally:
        del new.add_weight
        for variable in frozen:
            variable.trainable = False
    if [id(one) for one in new.weights] != [id(one) for one in old.weights]:
        raise ValueError(
            f"the weights of {old.name!r} cannot be shared: it makes them in its own way"
        )


@keras.saving.register_keras_serializable(package="cam_tf")
class DilatedPooling2D(kl.Layer):
    """Pooling with stride 1 of pixels that are ``rate`` apart; padding is left out, as in Keras.

    Args:
        pool_size: (height, width) of the window.
        rate: the distance of its elements.
        padding: ``"valid"`` or ``"same"``.
        mode: ``"max"`` or ``"average"``.
        **kwargs: of ``keras.layers.Layer``.
    """

    def __init__(self, pool_size, rate, padding="valid", mode="max", **kwargs):
        super().__init__(**kwargs)
        self.pool_size, self.rate = tuple(pool_size), rate
        self.padding, self.mode = padding, mode

    def call(self, maps: tf.Tensor) -> tf.Tensor:
        """Maps (N, h, w, K) -> (N, h, w, K), or with valid padding (N, h - .., w - .., K)."""
        if self.mode == "max":
            return self._slide(maps, tf.maximum, maps.dtype.min)
        total = self._slide(maps, tf.add, 0)
        return total / self._slide(tf.ones_like(maps[:1, :, :, :1]), tf.add, 0)

    def _slide(self, maps, combine, outside):
        for axis, size in enumerate(self.pool_size, start=1):
            reach = (size - 1) * self.rate
            if self.padding == "same":
                sides = [[0, 0] for _ in range(4)]
                sides[axis] = [reach // 2, reach - reach // 2]
                maps = tf.pad(maps, sides, constant_values=outside)
            window = [slice(None)] * axis
            parts = [
                maps[(*window, slice(start, start - reach or None))]
                for start in range(0, reach + 1, self.rate)
            ]
            maps = functools.reduce(combine, parts)
        return maps

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        names = ("pool_size", "rate", "padding", "mode")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


class _Moving2D(kl.Layer):
    def __init__(self, shift, moves=(), **kwargs):
        super().__init__(**kwargs)
        self.shift, self.moves = list(shift), [list(move) for move in moves]

    def _distance(self, size, axis: int):
        """By how many of ``size`` positions the maps are moved along an axis."""
        distance = self.shift[axis]
        for kernel, stride, rate, times in self.moves:
            distance += times * _Move(kernel, stride, rate)(-(-size // rate), axis)
        return distance

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "shift": self.shift, "moves": self.moves}


@keras.saving.register_keras_serializable(package="cam_tf")
class Shift2D(_Moving2D):
    """Moves maps down and right by some positions; zeros come in, what leaves is cut off.

    Args:
        shift: (rows, columns), or less than 0 for up and left.
        moves: [kernel, stride, rate, times] of paddings whose moves are added, ``times`` each,
            once the size of the maps is known.
        **kwargs: of ``keras.layers.Layer``.
    """

    def call(self, maps: tf.Tensor) -> tf.Tensor:
        """Maps (N, h, w, K) -> (N, h, w, K)."""
        sides, start, size = [[0, 0] for _ in range(4)], [0] * 4, tf.shape(maps)
        for axis in (1, 2):
            distance = self._distance(size[axis], axis - 1)
            sides[axis] = [tf.maximum(distance, 0), tf.maximum(-distance, 0)]
            start[axis] = sides[axis][1]
        return tf.ensure_shape(tf.slice(tf.pad(maps, sides), start, size), maps.shape)


@keras.saving.register_keras_serializable(package="cam_tf")
class Sample2D(_Moving2D):
    """Takes every ``rate``-th position, those that the network has without dilation.

    Args:
        shift: the first (row, column).
        moves: what is added to it, as for ``Shift2D``.
        rate: from one to the next.
        **kwargs: of ``keras.layers.Layer``.
    """

    def __init__(self, shift, moves=(), rate=1, **kwargs):
        super().__init__(shift, moves, **kwargs)
        self.rate = rate

    def call(self, maps: tf.Tensor) -> tf.Tensor:
        """Maps (N, h, w, K) -> (N, about h / rate, w / rate, K)."""
        row, column = (self._distance(tf.shape(maps)[axis + 1], axis) for axis in (0, 1))
        return maps[:, row :: self.rate, column :: self.rate]

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {**super().get_config(), "rate": self.rate}
