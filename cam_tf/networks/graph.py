"""A Keras model as one flat list of calls, however deeply its parts are nested.

Keras cannot build a model across the border of a nested model ("not connected to inputs"), and
calling a user's layers on new symbolic tensors would add nodes to them. So the graph is read, not
rebuilt: the calls of nested Functional and Sequential models are listed in place, and are then made
on real tensors. A subclassed model is first run on symbolic tensors, and what that recorded in its
layers is taken out again. Weights are shared and the user's model is not touched.
"""

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf
from keras import tree

# keras.Model(inputs, outputs) makes an instance of this class, which has no public name.
_ANY = keras.Input((1,))
_Functional = type(keras.Model(_ANY, _ANY))


@dataclass(eq=False)
class Value:
    """A tensor of the graph: its symbolic shape, and the call that makes it."""

    symbol: keras.KerasTensor
    call: "Call | None" = None

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The static shape, batch axis included."""
        return tuple(self.symbol.shape)


@dataclass(eq=False)
class Call:
    """One call of one operation, with its arguments, in which ``Value`` stands for tensors."""

    operation: Callable
    path: str
    args: Any
    kwargs: Any
    outputs: list[Value] = field(default_factory=list)

    @property
    def inputs(self) -> list[Value]:
        """The values among the arguments, in order."""
        leaves = tree.flatten((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Value)]

    def __call__(self, known: Mapping[Value, tf.Tensor]) -> None:
        """Calls the operation in inference mode and adds what it returns to ``known``."""
        args, kwargs = tree.map_structure(
            lambda leaf: known[leaf] if isinstance(leaf, Value) else leaf, (self.args, self.kwargs)
        )
        if "training" in getattr(self.operation, "_call_context_args", ()):
            kwargs = {**kwargs, "training": False}
        results = tree.flatten(self.operation(*args, **kwargs))
        known.update(zip(self.outputs, results, strict=True))


class Graph:
    """The calls of a model in an order in which they can be made.

    Args:
        model: a model that has been built: Functional, Sequential, or subclassed as long as its
            ``call`` works on symbolic tensors.

    Attributes:
        calls: the calls, nested models' included.
        named: path of a layer or nested model -> (layer, what it returns) for each of its calls.
        inputs: the model's inputs, flat.
        outputs: the model's outputs, flat.

    Raises:
        TypeError: the model has no graph that can be read.
    """

    def __init__(self, model: keras.Model):
        function = as_functional(model) or _traced(model)
        self.calls: list[Call] = []
        self.named: dict[str, list[tuple[keras.Operation, list[Value]]]] = {}
        self._values = {id(tensor): Value(tensor) for tensor in function.inputs}
        self.inputs = list(self._values.values())
        self._list_calls(function, self._values, prefix="")
        self.outputs = [self._values[id(tensor)] for tensor in function.outputs]
        self.function = function

    def _list_calls(self, function: keras.Model, values: dict[int, Value], prefix: str) -> None:
        """Appends the calls of ``function``; ``values`` knows its inputs and learns the rest."""
        by_depth = function._nodes_by_depth
        for depth in sorted(by_depth, reverse=True):
            for node in by_depth[depth]:
                if not node.is_input:
                    self._list_call(node, values, prefix)

    def _list_call(self, node, values: dict[int, Value], prefix: str) -> None:
        args, kwargs = tree.map_structure(
            lambda leaf: values[id(leaf)] if isinstance(leaf, keras.KerasTensor) else leaf,
            (node.arguments.args, node.arguments.kwargs),
        )
        path = prefix + node.operation.name
        nested = _readable(node.operation)
        if nested is None:
            outputs = self._append(node.operation, path, args, kwargs, node.outputs)
        else:
            given = [leaf for leaf in tree.flatten((args, kwargs)) if isinstance(leaf, Value)]
            inner = {
                id(tensor): self._as_dtype(value, tensor.dtype, path)
                for tensor, value in zip(nested.inputs, given, strict=True)
            }
            self._list_calls(nested, inner, prefix=f"{path}/")
            outputs = [inner[id(tensor)] for tensor in nested.outputs]
        self.named.setdefault(path, []).append((node.operation, outputs))
        values.update(zip(map(id, node.outputs), outputs, strict=True))

    def _append(self, operation, path, args, kwargs, symbols) -> list[Value]:
        call = Call(operation, path, args, kwargs)
        call.outputs = [Value(symbol, call) for symbol in symbols]
        self.calls.append(call)
        return call.outputs

    def _as_dtype(self, value: Value, dtype: str, path: str) -> Value:
        """A nested model casts what it is given to the dtype of its inputs; so does the graph."""
        if value.symbol.dtype == dtype:
            return value
        symbol = keras.KerasTensor(value.shape, dtype)
        return self._append(lambda x: tf.cast(x, dtype), f"{path}/cast", (value,), {}, [symbol])[0]

    def split_activation(self, output: Value) -> Value:
        """Splits the call that makes ``output`` into a linear part and an activation.

        Only for a layer with an ``activation`` of its own. The weights are shared.

        Returns:
            What the activation is given, float32.
        """
        call = output.call
        layer = call.operation
        linear = Call(LinearPart(layer), call.path, call.args, call.kwargs)
        logits = Value(keras.KerasTensor(output.shape, "float32"), linear)
        linear.outputs = [logits]
        output.call = Call(layer.activation, f"{call.path}/activation", (logits,), {}, [output])
        place = self.calls.index(call)
        self.calls[place : place + 1] = [linear, output.call]
        return logits

    def top_level_symbol(self, value: Value) -> keras.KerasTensor | None:
        """The symbolic tensor of a value that is not inside a nested model, else None."""
        symbol = value.symbol
        return symbol if self._values.get(id(symbol)) is value else None

    def run(
        self,
        given: Mapping[Value, tf.Tensor],
        wanted: Sequence[Value],
        intercept: Mapping[Value, Callable[[tf.Tensor], tf.Tensor]] | None = None,
    ) -> list[tf.Tensor]:
        """Computes the wanted values from the given ones, in inference mode, and nothing else.

        A value in ``intercept`` is replaced, once it is computed, by what its function returns.
        """
        known = dict(given)
        for call in self.needed(known, wanted):
            call(known)
            for value in call.outputs:
                if intercept and value in intercept:
                    known[value] = intercept[value](known[value])
        return [known[value] for value in wanted]

    def needed(self, known: Iterable[Value], wanted: Iterable[Value]) -> list[Call]:
        """The calls that lead from the known values to the wanted ones, in order."""
        known, needed = set(known), set()
        pending = [value for value in wanted if value not in known]
        while pending:
            call = pending.pop().call
            if call is None:
                raise ValueError("the wanted tensors depend on inputs that were not given.")
            if call not in needed:
                needed.add(call)
                pending += [value for value in call.inputs if value not in known]
        return [call for call in self.calls if call in needed]

    def boundary(self, source: Value, wanted: Sequence[Value]) -> list[Value]:
        """What else than ``source`` has to be known to compute ``wanted`` from it."""
        dependent = self.downstream(source)
        calls = [
            call
            for call in self.needed(self.inputs, wanted)
            if call.outputs[0] in dependent and source not in call.outputs
        ]
        inputs = dict.fromkeys([value for call in calls for value in call.inputs] + [*wanted])
        return [value for value in inputs if value not in dependent]

    def downstream(self, source: Value) -> set[Value]:
        """All values that depend on ``source``, itself included."""
        reached = {source}
        for call in self.calls:
            if not reached.isdisjoint(call.inputs):
                reached.update(call.outputs)
        return reached


def is_stock(operation: Any, classes: Sequence[type]) -> bool:
    """Whether an operation is of one of these classes, and computes what they compute.

    A subclass with a ``call`` of its own may do anything.
    """
    return any(isinstance(operation, one) and type(operation).call is one.call for one in classes)


class LinearPart:
    """A Keras layer without its activation; a dense layer or 1x1 convolution computes in float32.

    Of other layers the activation is set aside while they are traced, and put back.
    """

    def __init__(self, layer: keras.layers.Layer):
        self.layer = layer
        kernel = getattr(layer, "kernel", None)
        sizes = () if kernel is None else tuple(kernel.shape[:-2])
        plain = isinstance(layer, keras.layers.Dense) or getattr(layer, "groups", 0) == 1
        plain = plain and layer.quantization_mode is None  # else it rounds, and scales its kernel
        self.is_matrix = kernel is not None and plain and all(size == 1 for size in sizes)

    def kernel(self) -> tf.Tensor:
        """The weights (K, C), float32, as they are now."""
        kernel = tf.cast(self.layer.kernel, tf.float32)
        return tf.reshape(kernel, kernel.shape[-2:])

    def __call__(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns what the activation is given."""
        layer = self.layer
        if self.is_matrix:
            outputs = tf.tensordot(tf.cast(inputs, tf.float32), self.kernel(), 1)
            return outputs + tf.cast(layer.bias, tf.float32) if layer.use_bias else outputs
        activation, layer.activation = layer.activation, keras.activations.linear
        try:
            return tf.cast(layer(inputs), tf.float32)
        finally:
            layer.activation = activation


def as_functional(operation: Any) -> keras.Model | None:
    """Returns the Functional model that an operation is, or that a Sequential holds, else None."""
    if isinstance(operation, keras.Sequential):
        return operation._functional if operation.built else None
    # A subclass of Functional with a call of its own does something that its graph does not show.
    readable = isinstance(operation, _Functional) and type(operation).call is _Functional.call
    return operation if readable else None


def _readable(operation: Any) -> keras.Model | None:
    """The Functional model that a nested model is or amounts to; None for layers and the opaque."""
    functional = as_functional(operation)
    if functional is None and isinstance(operation, keras.Model):
        with contextlib.suppress(TypeError):
            functional = _traced(operation)
    return functional


def _traced(model: keras.Model) -> keras.Model:
    """Runs a subclassed model on symbolic tensors and returns the Functional model it amounts to.

    Raises:
        TypeError: it is no such model, was never called, or does what only real tensors can do.
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            f"expected a keras.Model, got {type(model).__name__}. Load a model with "
            "keras.models.load_model, or build one with cam_tf.build_classifier."
        )
    if isinstance(model, keras.Sequential) or not model.built:
        raise TypeError(
            f"{model.name!r} has no input shape yet: call it once on a batch of images, "
            "or begin a Sequential one with keras.Input(shape)."
        )
    layers = model._flatten_layers(include_self=False)
    before = [(layer, len(layer._inbound_nodes), len(layer._outbound_nodes)) for layer in layers]
    try:
        inputs = _symbolic_inputs(model)
        accepts = model._call_has_context_arg.get("training")
        outputs = model.call(inputs, **({"training": False} if accepts else {}))
        return keras.Model(inputs, outputs, name=model.name)
    except Exception as error:
        raise TypeError(
            f"{type(model).__name__} is a subclassed model whose graph cannot be read: its call "
            f"fails on symbolic tensors ({str(error).strip().splitlines()[0]}). Use keras.ops in "
            "it in place of tf functions, or restructure it as a Functional model: images = "
            "keras.Input(shape); model = keras.Model(images, head(backbone(images)))."
        ) from error
    finally:
        for layer, inbound, outbound in before:
            del layer._inbound_nodes[inbound:], layer._outbound_nodes[outbound:]


def _symbolic_inputs(model: keras.Model) -> Any:
    """New symbolic inputs like those that a model was built on."""
    if isinstance(model, _Functional):
        return tree.map_structure(
            lambda one: keras.Input(one.shape[1:], dtype=one.dtype, name=one.name),
            model._inputs_struct,
        )
    if not model._build_shapes_dict:  # Keras itself could not run the call symbolically
        raise ValueError("Keras recorded no shapes when it built the model")
    shapes = next(iter(model._build_shapes_dict.values()))
    if isinstance(shapes, dict):
        return {name: keras.Input(shape[1:], name=name) for name, shape in shapes.items()}
    return tree.map_shape_structure(lambda shape: keras.Input(shape[1:]), shapes)
