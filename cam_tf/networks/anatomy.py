"""The parts of a classifier that explainers need: feature maps, logits, and the CAM weights."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import keras
import tensorflow as tf
from keras import layers as kl
from keras import tree

from cam_tf.networks.graph import Call, Graph, LinearPart, Value, is_stock
from cam_tf.suggestions import did_you_mean

Layer = str | kl.Layer
_RANKS = ("1D", "2D", "3D")


def _layer_classes(*names: str) -> tuple[type, ...]:
    return tuple(getattr(kl, name) for name in names if hasattr(kl, name))


_GLOBAL_POOLING = _layer_classes(
    *(f"Global{kind}Pooling{rank}" for kind in ("Average", "Max") for rank in _RANKS)
)
_WINDOW_POOLING = _layer_classes(
    *(f"{kind}Pooling{rank}" for kind in ("Average", "Max") for rank in _RANKS),
    *(f"Adaptive{kind}Pooling{rank}" for kind in ("Average", "Max") for rank in _RANKS),
)
_CONVOLUTIONS = _layer_classes("Conv1D", "Conv2D", "Conv3D")
# What does nothing at inference, and what is affine whatever it is given.
_TRANSPARENT = _layer_classes(
    *("Dropout", "SpatialDropout1D", "SpatialDropout2D", "SpatialDropout3D", "GaussianNoise"),
    *("GaussianDropout", "AlphaDropout", "Identity", "ActivityRegularization"),
)
_AFFINE = _TRANSPARENT + _layer_classes(
    *("BatchNormalization", "Rescaling", "Normalization", "Permute"),
    *("Concatenate", "Add", "Subtract", "Average"),
)
_RESHAPING = (kl.Flatten, kl.Reshape)
# keras.ops in a graph have classes without public names; these are known by theirs.
_AFFINE_OPS = {"Add", "Subtract", "Concatenate", "Squeeze", "ExpandDims", "Cast", "Transpose"}
_SCALING_OPS = {"Multiply", "Divide", "TrueDivide", "Negative"}
_PROBABILITY_OPS = {"Softmax", "Sigmoid", "LogSoftmax", "LogSigmoid"}
_PROBABILITIES = (
    keras.activations.softmax,
    keras.activations.sigmoid,
    keras.activations.log_softmax,
    keras.activations.log_sigmoid,
)
_POOLING_OPS = {"Mean", "Max", "Amax"}


@dataclass(frozen=True)
class Anatomy:
    """A classifier taken apart: images -> feature maps -> logits -> scores.

    Weights are those of the model, live. Nothing of the model is copied or modified.

    Attributes:
        name: the model's name.
        graph: the model's calls, flattened.
        inputs: the inputs that ``wanted`` depends on, the image's included.
        image: the image input, (N, H, W, channels).
        layers: the target feature maps, one or more, (N, h, w, K) each.
        pooled: the pooled maps (N, K), if the logits are an affine function of them, else None.
        obstacle: why there is none, in words.
        logits: (N, C), before softmax or sigmoid.
        scores: (N, C), the chosen output.
        wanted: what a forward pass computes: logits and scores, or every output of the model.
    """

    name: str
    graph: Graph
    inputs: tuple[Value, ...]
    image: Value
    layers: tuple[Value, ...]
    pooled: Value | None
    obstacle: str
    logits: Value
    scores: Value
    wanted: tuple[Value, ...]

    @property
    def feature_maps(self) -> Value:
        """The target feature maps, where there is one layer of them."""
        return self.layers[0]

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return int(self.logits.shape[-1])

    @property
    def affine(self) -> bool:
        """Whether the logits are an affine function of the pooled target maps."""
        return self.pooled is not None

    @property
    def gives_probabilities(self) -> bool:
        """Whether a softmax or sigmoid that is known as such makes the scores of the logits."""
        value = self.scores
        while value is not self.logits:
            if _is_probability(value.call):
                return True
            value = value.call.inputs[0]
        return False

    def bind(self, inputs: Sequence[tf.Tensor]) -> dict[Value, tf.Tensor]:
        """Returns the input tensors by what they are in the graph."""
        return dict(zip(self.inputs, inputs, strict=True))

    def kernel(self) -> tf.Tensor:
        """The CAM weights (K, C) of an affine head, float32, as they are now.

        For a dense layer on the pooled maps its kernel; for a chain of layers the derivative of the
        logits by the pooled maps, which does not depend on them.

        Raises:
            ValueError: the head is not affine.
        """
        self.require_affine()
        if self.dense is not None:
            return self.dense.kernel()
        return tf.transpose(self.class_weights(tf.range(self.classes)[None])[0])

    def class_weights(self, class_ids: tf.Tensor) -> tf.Tensor:
        """The CAM weights of given classes, (N, n) ids -> (N, n, K) float32, by differentiation."""
        rows = tf.reshape(class_ids, [-1])
        pooled = tf.zeros([tf.size(rows), *self.pooled.shape[1:]], self.pooled.symbol.dtype)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(pooled)
            logits = self._head(pooled)
            chosen = tf.reduce_sum(tf.gather(logits, rows, batch_dims=1))
        weights = tape.gradient(chosen, pooled)
        return tf.reshape(tf.cast(weights, tf.float32), [*tf.unstack(tf.shape(class_ids)), -1])

    def bias(self) -> tf.Tensor:
        """The logits (C,) of an affine head for maps, and other inputs, that are all zero.

        Raises:
            ValueError: the head is not affine.
        """
        self.require_affine()
        return self._head(tf.zeros([1, *self.pooled.shape[1:]], self.pooled.symbol.dtype))[0]

    def _head(self, pooled: tf.Tensor) -> tf.Tensor:
        """The logits (rows, C) of pooled maps (rows, K), other inputs being zero."""
        given = {self.pooled: pooled}
        for value in self.inputs:
            if value is not self.image:
                shape = [tf.shape(pooled)[0], *(length or 1 for length in value.shape[1:])]
                given[value] = tf.zeros(shape, value.symbol.dtype)
        (logits,) = self.graph.run(given, [self.logits])
        return tf.reshape(tf.cast(logits, tf.float32), [-1, self.classes])

    @functools.cached_property
    def dense(self) -> LinearPart | None:
        """The one matrix between the pooled maps and the logits, if that is all there is."""
        head = self.logits.call.operation
        if not (self.affine and isinstance(head, LinearPart)):
            return None
        value = self.logits.call.inputs[0]
        while value is not self.pooled and is_stock(value.call.operation, _TRANSPARENT):
            value = value.call.inputs[0]
        return head if value is self.pooled and len(value.shape) == 2 else None

    def require_affine(self) -> None:
        """Raises a ValueError that names the layer in the way, unless the head is affine."""
        if not self.affine:
            raise ValueError(
                f"{self.name!r} has no exact class activation map: {self.obstacle}. A CAM needs "
                "feature maps -> global pooling -> dense -> softmax. cam_tf.GradCAM(model) and "
                "its relatives explain this model; cam_tf.build_classifier builds a CAM network."
            )


def dissect(
    model: keras.Model,
    layer: Layer | Sequence[Layer] | None = None,
    *,
    input: str | int | None = None,
    output: str | int | None = None,
    every_output: bool = False,
) -> Anatomy:
    """Takes a classifier apart: the target feature maps, the logits and the CAM weights.

    The target is the tensor that is really pooled (or flattened), after normalisation and addition.
    The logits are found behind a softmax or sigmoid, be it a layer, an operation or the activation
    of the last layer.

    Args:
        model: Functional, Sequential, around nested models of any depth, or subclassed as long as
            its ``call`` works on symbolic tensors.
        layer: other target layers, by name ("conv5_block3_out", or with the names of the nested
            models, "resnet50/conv5_block3_out"), one or several. Default: what is pooled.
        input: the name or index of the image input, where it cannot be told by its shape.
        output: the name or index of the class scores, where the model has several outputs.
        every_output: prepare for targets that are functions of all outputs, whatever they are; the
            outputs then stand for the class scores, and nothing is looked for behind them.

    Returns:
        The ``Anatomy``, with live weights.

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: no feature maps are found; an unknown layer (near names are suggested), one
            without spatial axes, or one that the scores do not depend on; an input or output that
            must be named.
    """
    graph = Graph(model)
    image = _image_input(graph, input)
    on_the_way = graph.downstream(image)
    pooled, obstacle = None, "its target is a function of all outputs"
    if every_output:
        logits = scores = graph.outputs[0]
        wanted = tuple(graph.outputs)
    else:
        scores = _chosen(graph.outputs, output, _names_of_outputs(graph), "output", "class scores")
        _require_class_scores(model, scores)
        logits = _find_logits(graph, scores)
        wanted = (logits, scores)
        pooled, obstacle = _affine_head(logits, on_the_way)
    calls = [
        call
        for call in graph.needed(graph.inputs, wanted)
        if not on_the_way.isdisjoint(call.inputs)
    ]
    _require_channels_last(model, calls)
    default = pooled.call.inputs[0] if pooled is not None else None
    if default is None and layer is None:
        default = _last_maps(model, graph, calls, image)
    targets = _targets(graph, layer, default, calls, image)
    if targets != (default,):
        pooled = None
        obstacle = f"the maps of layer {_written(targets[0])} are not what the model pools"
    inputs = tuple(
        value
        for value in graph.inputs
        if value is image or not graph.downstream(value).isdisjoint(wanted)
    )
    return Anatomy(
        model.name, graph, inputs, image, targets, pooled, obstacle, logits, scores, wanted
    )


def _written(value: Value | None) -> str:
    """What makes a value, for messages."""
    return repr(value.call.path) if value is not None and value.call else "the input"


def _require_class_scores(model: keras.Model, scores: Value) -> None:
    if len(scores.shape) < 2 or not _is_point(scores):
        raise ValueError(
            f"the output of {model.name!r} has shape {scores.shape}, which is not class scores "
            "(N, C). Name another with output=, or say what to explain with target=, for example "
            "cam_tf.GradCAM(model, layer=..., target=lambda y: keras.ops.mean(y[..., 1], (1, 2)))."
        )


def _require_channels_last(model: keras.Model, calls: list[Call]) -> None:
    for call in calls:
        if getattr(call.operation, "data_format", None) == "channels_first":
            raise ValueError(
                f"layer {call.path!r} of {model.name!r} works on channels first; maps are made of "
                "(N, height, width, channels). Rebuild the model with "
                "keras.config.set_image_data_format('channels_last'); the weights stay the same."
            )


def _names_of_outputs(graph: Graph) -> list[str]:
    """The names of the layers that make the outputs, or the keys of a dictionary of outputs."""
    struct = graph.function._outputs_struct
    if isinstance(struct, dict):  # flattened in the order of its keys, not as it was written
        return tree.flatten({key: key for key in struct})
    return [value.call.path if value.call else "input" for value in graph.outputs]


def _chosen(values, choice: str | int | None, names: list[str], kind: str, what: str) -> Value:
    if choice is None and len(values) == 1:
        return values[0]
    listed = ", ".join(f"{name!r} {values[i].shape}" for i, name in enumerate(names))
    if choice is None:
        raise ValueError(
            f"the model has {len(values)} {kind}s, {listed}: name the one with the {what}, "
            f"{kind}={names[0]!r}."
        )
    if isinstance(choice, int) and -len(values) <= choice < len(values):
        return values[choice]
    if choice not in names:
        near = did_you_mean(str(choice), names)
        raise ValueError(f"the model has no {kind} {choice!r}.{near} It has {listed}.")
    return values[names.index(choice)]


def _image_input(graph: Graph, choice: str | int | None) -> Value:
    names = [value.symbol.name for value in graph.inputs]
    if choice is None and len(graph.inputs) > 1:
        images = [value for value in graph.inputs if len(value.shape) == 4]
        if len(images) == 1:
            return images[0]
    return _chosen(graph.inputs, choice, names, "input", "image")


def _kind(call: Call) -> str:
    operation = call.operation
    return type(operation.layer if isinstance(operation, LinearPart) else operation).__name__


def _is_linear(layer) -> bool:
    return getattr(layer, "activation", None) in (None, keras.activations.linear)


def _is_point(value: Value) -> bool:
    """Whether a value has no spatial extent: (N, K), or (N, 1, 1, K)."""
    return all(length == 1 for length in value.shape[1:-1])


def _is_probability(call) -> bool:
    """Whether a call is a softmax or sigmoid: a layer, an operation or an activation."""
    operation = call.operation
    activations = (operation, getattr(operation, "activation", None))
    return (
        is_stock(operation, [kl.Softmax])
        or _kind(call) in _PROBABILITY_OPS
        or any(one in _PROBABILITIES for one in activations)
    )


def _find_logits(graph: Graph, scores: Value) -> Value:
    """Goes back from the scores to what softmax or sigmoid was given, if they end in one."""
    value = scores
    while (call := value.call) is not None:
        operation = call.operation
        activation = getattr(operation, "activation", None)
        if is_stock(operation, [kl.Softmax]) or _kind(call) in _PROBABILITY_OPS:
            return call.inputs[0]
        if is_stock(operation, (kl.Dense, *_CONVOLUTIONS, kl.EinsumDense)):
            known = activation in (None, keras.activations.linear, *_PROBABILITIES)
            return graph.split_activation(value) if known else scores
        if is_stock(operation, [kl.Activation]) and activation in _PROBABILITIES:
            return call.inputs[0]
        # A reshaping or an identity may stand between the scores and the activation.
        passes = is_stock(operation, (*_TRANSPARENT, *_RESHAPING))
        passes = passes or (is_stock(operation, [kl.Activation]) and _is_linear(operation))
        if not passes and _kind(call) not in ("Squeeze", "Cast"):
            return scores
        value = call.inputs[0]
    return scores


def _affine_head(value: Value, on_the_way: set[Value]) -> tuple[Value | None, str]:
    """Goes back from the logits through affine calls to the pooling, or to what is in the way."""
    while True:
        call = value.call
        if call is None:
            return None, "no global pooling stands between the input and the class scores"
        if _is_pooling(call):
            return value, ""
        if not _is_affine(call):
            return None, (
                f"layer {call.path!r} ({_kind(call)}) stands between the pooled maps and the logits"
                if not _is_spatial_end(call)
                else f"layer {call.path!r} ({_kind(call)}) stands where global pooling should"
            )
        branches = [one for one in dict.fromkeys(call.inputs) if one in on_the_way]
        if len(branches) != 1:
            return None, f"layer {call.path!r} joins {len(branches)} branches of the image"
        value = branches[0]


def _is_pooling(call: Call) -> bool:
    operation = call.operation
    if is_stock(operation, _GLOBAL_POOLING):
        return True
    if is_stock(operation, _WINDOW_POOLING):  # a window over the whole map
        before, after = call.inputs[0], call.outputs[0]
        size = getattr(operation, "pool_size", None) or before.shape[1:-1]
        return _is_point(after) and tuple(size) == before.shape[1:-1]
    if _kind(call) in _POOLING_OPS:
        rank = len(call.inputs[0].shape)
        axes = operation.axis if isinstance(operation.axis, (tuple, list)) else [operation.axis]
        return None not in axes and sorted(axis % rank for axis in axes) == list(range(1, rank - 1))
    return False


def _is_affine(call: Call) -> bool:
    operation = call.operation
    if isinstance(operation, LinearPart):
        return operation.is_matrix and _is_point(call.inputs[0])
    if is_stock(operation, _AFFINE):
        return True
    if is_stock(operation, [kl.Dense]):
        return _is_linear(operation) and operation.quantization_mode is None
    if is_stock(operation, [kl.Activation]):
        return _is_linear(operation)
    if is_stock(operation, _CONVOLUTIONS):
        return _is_linear(operation) and _is_point(call.inputs[0])
    if is_stock(operation, _RESHAPING) or _kind(call) == "Reshape":
        return _is_point(call.inputs[0])
    if _kind(call) in _SCALING_OPS:
        first = call.args[0] if call.args else None
        return len(call.inputs) == 1 and (isinstance(first, Value) or _kind(call) == "Multiply")
    return _kind(call) in _AFFINE_OPS


def _is_spatial_end(call: Call) -> bool:
    """Whether a call takes away the spatial axes: pooling, flattening, a full convolution."""
    if isinstance(call.operation, kl.TimeDistributed):  # of each frame
        return is_stock(call.operation.layer, _GLOBAL_POOLING)
    before, after = call.inputs[0], call.outputs[0]
    return 3 <= len(before.shape) <= 5 and not _is_point(before) and _is_point(after)


def _last_maps(model: keras.Model, graph: Graph, calls: list[Call], image: Value) -> Value:
    """The last maps on the way to the outputs, of a head that is not affine.

    Those that nothing with spatial axes follows; maps with as many axes as the image are preferred
    to sequences made of them.
    """
    ends = [call for call in reversed(calls) if _is_pooling(call) or _is_spatial_end(call)]
    found = list(dict.fromkeys(call.inputs[0] for call in ends))
    found = [one for one in found if len(one.shape) == len(image.shape)] or found
    for one in found:
        after = graph.downstream(one)
        if not any(other in after for other in found if other is not one):
            if one is not image:
                return one
            raise ValueError(
                f"{model.name!r} goes from the image to no maps in one step, "
                f"{ends[0].path!r}, whose inside cannot be read. Restructure it as a Functional "
                "model, or name a target layer that can be read with layer=."
            )
    raise ValueError(
        f"{model.name!r} has no feature maps: nothing on the way from the image {image.shape} to "
        "its outputs has spatial axes (N, h, w, K) and then loses them. Maps need a convolutional "
        "classifier; for other networks name layer= and target=."
    )


def _targets(graph, layer, default: Value, calls: list[Call], image: Value) -> tuple[Value, ...]:
    if layer is None:
        return (default,)
    wanted = [layer] if isinstance(layer, (str, kl.Layer)) else layer
    if not isinstance(wanted, (list, tuple)) or not wanted:
        raise ValueError(f"layer={layer!r}: expected a layer's name, or a list of names.")
    computed = {value for call in calls for value in call.outputs} | {image}
    return tuple(_target(graph, one, computed, default) for one in wanted)


def _target(graph: Graph, layer: Layer, computed: set[Value], default: Value | None) -> Value:
    name = layer.name if isinstance(layer, kl.Layer) else layer
    hint = f" The maps that it pools are those of {_written(default)}." if default else ""
    calls = {
        path: [values for operation, values in made if operation is layer or layer == name]
        for path, made in graph.named.items()
        if path == name or path.endswith(f"/{name}")
    }
    returned = [value for values in calls.values() for each in values for value in each]
    if not returned:
        short = {path.rpartition("/")[2] for path in graph.named}
        raise ValueError(f"the model has no layer {name!r}.{did_you_mean(name, short)}{hint}")
    used = [value for value in returned if value in computed]
    if not used:
        raise ValueError(f"the scores do not depend on layer {name!r} by way of the image.")
    if len(used) > 1:
        raise ValueError(
            f"layer {name!r} stands for {len(used)} tensors ({', '.join(calls)}): give the whole "
            "path of one that is called once."
        )
    (value,) = used
    after = default is not None and value is not default and value in graph.downstream(default)
    if after or not 3 <= len(value.shape) <= 5:
        where = "it stands after the pooling" if after else "it is no map"
        raise ValueError(
            f"layer {name!r} returns shape {value.shape}, without spatial axes: {where}. Choose a "
            f"layer before it.{hint}"
        )
    return value
