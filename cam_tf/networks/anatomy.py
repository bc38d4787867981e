"""The parts of a classifier that explainers need: feature maps, pooling, logits, CAM weights."""

from collections.abc import Callable
from dataclasses import dataclass

import keras
import tensorflow as tf

from cam_tf.networks.graph import Call, Graph, Value

_LAYERS = keras.layers
_POOLING = tuple(
    getattr(_LAYERS, f"Global{kind}Pooling{rank}D") for kind in ("Average", "Max") for rank in "123"
)
# What does nothing to its input at inference.
_TRANSPARENT = (_LAYERS.Dropout, _LAYERS.Identity, _LAYERS.ActivityRegularization)


@dataclass(frozen=True)
class Anatomy:
    """A GAP or GMP classifier, taken apart: images -> feature maps -> pooled -> logits -> scores.

    Weights are those of the model, live. Nothing of the model is copied or modified.

    Attributes:
        name: the model's name.
        graph: the model's calls, flattened.
        image: the input, (N, H, W, channels) for images.
        feature_maps: the tensor that is pooled, (N, h, w, K).
        pooled: (N, K).
        dense: the layer between the pooled maps and the logits.
        activation: from logits to scores.
    """

    name: str
    graph: Graph
    image: Value
    feature_maps: Value
    pooled: Value
    dense: keras.layers.Dense
    activation: Callable[[tf.Tensor], tf.Tensor]

    @property
    def classes(self) -> int:
        """The number of classes C."""
        return int(self.dense.units)

    def kernel(self) -> tf.Tensor:
        """The CAM weights (K, C), float32, as they are now."""
        return tf.cast(self.dense.kernel, tf.float32)

    def __call__(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """One forward pass, to be called inside a ``tf.function``.

        Args:
            images: (N, H, W, channels), of the input's dtype.

        Returns:
            Feature maps (N, h, w, K), logits (N, C) float32 and scores (N, C) float32.
        """
        maps, pooled = self.graph.run({self.image: images}, [self.feature_maps, self.pooled])
        logits = tf.matmul(tf.cast(pooled, tf.float32), self.kernel())
        if self.dense.use_bias:
            logits += tf.cast(self.dense.bias, tf.float32)
        return maps, logits, self.activation(logits)


def dissect(model: keras.Model) -> Anatomy:
    """Finds the feature maps, the pooling and the dense layer of a classifier.

    Args:
        model: a Functional or Sequential model, of nested models too, with one input and one
            output, that ends in global average or max pooling and a dense layer.

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: no such end is found; the message names the layer in the way.
    """
    graph = Graph(model)
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ValueError(
            f"{model.name!r} has {len(graph.inputs)} inputs and {len(graph.outputs)} outputs: "
            "expected one image input and one output of class scores. Make a model of those two "
            "with keras.Model(image, scores)."
        )
    activation, call = _output_activation(graph.outputs[0].call)
    dense = call.operation if call is not None else None
    if not isinstance(dense, _LAYERS.Dense):
        raise ValueError(_in_the_way(model, call, "a dense layer that gives the class scores"))
    call = _producer(call.inputs[0])
    if call is None or not isinstance(call.operation, _POOLING):
        raise ValueError(_in_the_way(model, call, "global average or max pooling"))
    maps, pooled = call.inputs[0], call.outputs[0]
    return Anatomy(model.name, graph, graph.inputs[0], maps, pooled, dense, activation)


def _producer(value: Value) -> Call | None:
    """The call that makes a value, behind those that do nothing at inference."""
    call = value.call
    while call is not None and isinstance(call.operation, _TRANSPARENT):
        call = call.inputs[0].call
    return call


def _output_activation(call: Call | None) -> tuple[Callable, Call | None]:
    """Splits the last activation from what makes the logits."""
    if call is None:
        return keras.activations.linear, None
    if isinstance(call.operation, _LAYERS.Softmax):
        return keras.activations.softmax, _producer(call.inputs[0])
    if isinstance(call.operation, _LAYERS.Activation):
        return call.operation.activation, _producer(call.inputs[0])
    return getattr(call.operation, "activation", keras.activations.linear), call


def _in_the_way(model: keras.Model, call: Call | None, expected: str) -> str:
    found = "the input" if call is None else (
        f"layer {call.path!r} ({type(call.operation).__name__})"
    )
    return (
        f"{model.name!r} has no exact class activation map: where {expected} should be stands "
        f"{found}. A CAM needs feature maps -> global pooling -> dense -> softmax; "
        "cam_tf.build_classifier(backbone, classes) builds it from a backbone."
    )
