"""A Keras model as one flat list of calls, however deeply its parts are nested.

Keras cannot build a model across the border of a nested model ("not connected to inputs"), and
calling a user's layers on new symbolic tensors would add nodes to them. So the graph is read, not
rebuilt: the calls of nested Functional and Sequential models are listed in place, and are then made
on real tensors. Weights are shared and the user's model is not touched.
"""

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
        model: a Functional or Sequential model that has been built.

    Raises:
        TypeError: the model has no graph: it is subclassed, or not built yet.
    """

    def __init__(self, model: keras.Model):
        function = as_functional(model)
        if function is None:
            raise TypeError(_no_graph(model))
        self.calls: list[Call] = []
        self._values = {id(tensor): Value(tensor) for tensor in function.inputs}
        self.inputs = list(self._values.values())
        self._list_calls(function, self._values, prefix="")
        self.outputs = [self._values[id(tensor)] for tensor in function.outputs]

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
        nested = as_functional(node.operation)
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

    def top_level_symbol(self, value: Value) -> keras.KerasTensor | None:
        """The symbolic tensor of a value that is not inside a nested model, else None."""
        symbol = value.symbol
        return symbol if self._values.get(id(symbol)) is value else None

    def run(
        self, given: Mapping[Value, tf.Tensor], wanted: Sequence[Value]
    ) -> list[tf.Tensor]:
        """Computes the wanted values from the given ones, in inference mode, and nothing else."""
        known = dict(given)
        for call in self._needed(known, wanted):
            call(known)
        return [known[value] for value in wanted]

    def _needed(self, known: Iterable[Value], wanted: Iterable[Value]) -> list[Call]:
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


def as_functional(operation: Any) -> keras.Model | None:
    """Returns the Functional model that an operation is, or that a Sequential holds, else None."""
    if isinstance(operation, keras.Sequential):
        return operation._functional if operation.built else None
    # A subclass of Functional with a call of its own does something that its graph does not show.
    readable = isinstance(operation, _Functional) and type(operation).call is _Functional.call
    return operation if readable else None


def _no_graph(model: Any) -> str:
    if not isinstance(model, keras.Model):
        return (
            f"expected a keras.Model, got {type(model).__name__}. Load a model with "
            "keras.models.load_model, or build one with cam_tf.build_classifier."
        )
    if isinstance(model, keras.Sequential):
        return (
            f"the Sequential model {model.name!r} has no input shape yet. Begin it with "
            "keras.Input(shape), or call it once on a batch of images."
        )
    return (
        f"{type(model).__name__} is a subclassed model, and its graph cannot be read. Restructure "
        "it as a Functional model: images = keras.Input(shape); "
        "model = keras.Model(images, head(backbone(images)))."
    )
