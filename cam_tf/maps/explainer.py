"""The base of all explainers: checks the inputs, selects the classes, runs one compiled call."""

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from cam_tf.maps.explanation import Array, Explanation
from cam_tf.maps.freezing import freeze
from cam_tf.maps.selection import ALL, Classes, select_classes
from cam_tf.networks.anatomy import Layer, dissect
from cam_tf.networks.graph import Value

Inputs = Array | Sequence[Array] | Mapping[str, Array]
# The ways of selection, each with a traced call of its own: all classes; the top k and given ones;
# and where XLA wants fixed numbers, given ones only (with a top k, the number k is the key).
_ALL, _SELECTED, _GIVEN = "all", "selected", "given"


class Explainer(ABC):
    """A callable from images to an ``Explanation``, compiled once for any batch size.

    Weights stay live: after ``fit`` the same explainer explains the trained model.

    Args:
        model: the classifier: Functional, Sequential, around nested models, or subclassed as long
            as its ``call`` works on symbolic tensors. It is not modified.
        layer: the target layer or layers, by name. Default: the maps that are really pooled.
        input: the name or index of the image input, where it cannot be told by its shape.
        output: the name or index of the class scores, where the model has several outputs.
        target: what to explain in place of class logits: a callable on the model's output (a list,
            where it has several) that returns (N,) or (N, m) values; they take the place of the
            logits and of the classes.
        jit_compile: compile with XLA. Default: where a GPU is visible (on the CPU it is slower).
        frozen: fold the weights into the compiled call as constants (batch normalisation into
            convolutions too), which is faster. The explainer then explains the model as it was when
            it was first called, until ``refreeze()``. Not together with ``jit_compile=True``.

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: the model has no feature maps that this method can use, or a layer, an input or
            an output is unknown or must be named.
    """

    unit = "evidence"  # what the raw values of the maps are, for the label of a colour bar

    def __init__(
        self,
        model: keras.Model,
        layer: Layer | Sequence[Layer] | None = None,
        *,
        input: str | int | None = None,
        output: str | int | None = None,
        target: Callable | None = None,
        jit_compile: bool | None = None,
        frozen: bool = False,
    ):
        if target is not None and not callable(target):
            raise ValueError(
                f"target={target!r}: expected a function of the model's output, such as "
                "lambda scores: scores[:, 3] - scores[:, 5]."
            )
        if frozen and jit_compile:
            raise ValueError("frozen=True and jit_compile=True do not go together: choose one.")
        if jit_compile is None:
            jit_compile = not frozen and bool(tf.config.list_logical_devices("GPU"))
        self.anatomy = dissect(
            model, layer, input=input, output=output, every_output=target is not None
        )
        self.frozen = frozen
        self._target = target
        self._jit_compile = jit_compile
        self._compiled: dict[int | str, Callable] = {}
        self._check()

    def _check(self) -> None:  # noqa: B027 - most methods have nothing to refuse
        """Raises a ValueError if the method cannot explain this model."""

    def __repr__(self) -> str:
        layers = ", ".join(repr(_name(value)) for value in self.anatomy.layers)
        state = ", frozen (refreeze() after training)" if self.frozen else ""
        return f"{type(self).__name__}({self.anatomy.name!r}, layer={layers}{state})"

    def refreeze(self) -> None:
        """Takes the model's present weights at the next call. Only a frozen explainer needs it."""
        self._compiled.clear()

    @abstractmethod
    def _explain(self, inputs: list[tf.Tensor], class_ids: tf.Tensor | None, top_k) -> dict:
        """Explains in graph mode.

        Args:
            inputs: the tensors of ``anatomy.inputs``.
            class_ids: (N, n) int32, or None.
            top_k: how many of the predicted classes come before them, a scalar tensor, or 0; with
                class ids None, 0 means all classes.

        Returns:
            What ``_result`` makes.
        """

    def _image(self, inputs: list[tf.Tensor]) -> tf.Tensor:
        """The image among the inputs, in float32."""
        return tf.cast(inputs[self.anatomy.inputs.index(self.anatomy.image)], tf.float32)

    def _with_image(self, inputs: list[tf.Tensor], image: tf.Tensor) -> list[tf.Tensor]:
        """The inputs with another image, cast (rounded where the model takes integers)."""
        position = self.anatomy.inputs.index(self.anatomy.image)
        dtype = inputs[position].dtype
        if dtype.is_integer:
            image = tf.clip_by_value(tf.round(image), float(dtype.min), float(dtype.max))
        return [tf.cast(image, dtype) if i == position else one for i, one in enumerate(inputs)]

    def _forward(self, inputs, tape: tf.GradientTape | None = None) -> tuple:
        """One forward pass: the target maps (a list), the logits and the scores, all float32.

        A ``tape`` begins to record at the target maps.
        """
        maps = {}

        def watch(value: Value, tensor: tf.Tensor) -> tf.Tensor:
            maps[value] = tf.cast(tensor, tf.float32)
            if tape is not None:
                tape.watch(maps[value])
            return tf.cast(maps[value], tensor.dtype)

        parts, given = self.anatomy, self.anatomy.bind(inputs)
        if parts.image in parts.layers:
            given[parts.image] = watch(parts.image, given[parts.image])
        intercept = {
            value: lambda tensor, value=value: watch(value, tensor) for value in parts.layers
        }
        logits, scores = self._evaluate(given, intercept)
        return [maps[value] for value in parts.layers], logits, scores

    def _evaluate(self, given: Mapping[Value, tf.Tensor], intercept=None) -> tuple:
        """The logits and scores (N, C) that follow from given tensors."""
        parts = self.anatomy
        found = parts.graph.run(given, parts.wanted, intercept)
        if self._target is None:
            return [tf.reshape(tf.cast(one, tf.float32), [-1, parts.classes]) for one in found]
        try:
            values = tf.cast(self._target(found if len(found) > 1 else found[0]), tf.float32)
        except Exception as error:
            raise ValueError(
                f"target failed on the model's symbolic output: {error}. It must be made of "
                "tensor operations (tf or keras.ops), without .numpy()."
            ) from error
        # Only what keeps the batch axis, whose length is not known yet, has a value for each image.
        if values.shape.rank not in (1, 2) or values.shape[0] is not None:
            raise ValueError(
                f"target returned shape {tuple(values.shape)}: expected (N,) or (N, m), a value "
                "for each image, such as outputs[:, 3] - outputs[:, 5]."
            )
        values = values[:, None] if values.shape.rank == 1 else values
        return [values, values]

    @staticmethod
    def _select(logits: tf.Tensor, class_ids: tf.Tensor | None, top_k):
        """Class ids (N, n): the top k and the given ones, or all of them."""
        if tf.is_tensor(top_k):
            return tf.concat([tf.math.top_k(logits, top_k).indices, class_ids], axis=1)
        if class_ids is not None:
            return class_ids
        return tf.repeat(tf.range(tf.shape(logits)[1])[None], tf.shape(logits)[0], axis=0)

    @staticmethod
    def _result(maps, class_ids, scores, logits, **details) -> dict:
        """Picks the scores and logits (N, n) of the explained classes."""
        return {
            "maps": maps,
            "class_ids": class_ids,
            "scores": tf.gather(scores, class_ids, batch_dims=1),
            "logits": tf.gather(logits, class_ids, batch_dims=1),
            "details": details,
        }

    def __call__(
        self,
        images: Inputs,
        classes: Classes = None,
        top_k: int | None = None,
        *,
        batch_size: int = 32,
    ) -> Explanation:
        """Explains a batch of images.

        Args:
            images: (N, H, W, channels) as the model takes them; for networks of
                ``build_classifier`` RGB 0..255, uint8 or float. For a model of several inputs all
                of them, as a dictionary by name or a list in the model's order.
            classes: None: the ``top_k`` predicted classes of each image, best first. An int: that
                class for every image. A flat list: one id for each image. A list of lists: several
                ids for each image; a single inner list serves every image. ``"all"``.
            top_k: how many predicted classes to explain; 1 when ``classes`` is None too. With
                ``classes`` too, the predicted ones come first and then those given, in one pass.
                Ignored with a ``target``, whose values are all explained.
            batch_size: more images than this go through the network in several batches.

        Returns:
            An ``Explanation`` with maps (N, n, h, w).

        Raises:
            ValueError: images of the wrong rank, size or channel count, or with NaN or infinity;
                class ids that are out of range or do not match the images; ``top_k`` out of range.
            TypeError: classes that are not integers.
        """
        batch_size = operator.index(batch_size)
        inputs = self._check_inputs(images)
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use at least 1.")
        total = len(inputs[0])
        class_ids, top_k = self._selection(classes, top_k, total)
        arrays = [*inputs] if class_ids is None else [*inputs, tf.constant(class_ids)]
        if total == 0:  # TensorFlow's CPU kernels fail on empty batches, so an image stands in
            arrays = [tf.zeros([1, *one.shape[1:]], one.dtype) for one in arrays]
        result = self._in_batches(arrays, top_k, batch_size)
        return result if total else result[:0]

    def _selection(self, classes: Classes, top_k: int | None, total: int) -> tuple:
        """Class ids (N, m) and how many of the predicted classes come first; None for all."""
        num_classes = self.anatomy.classes
        everything = isinstance(classes, str) and classes == ALL
        if self._target is not None:
            if classes is not None and not everything:
                raise ValueError("classes belong to class scores; this explainer has a target.")
            return None, 0
        if top_k is None:
            top_k = 0 if classes is not None else 1
        elif not 1 <= operator.index(top_k) <= num_classes:
            raise ValueError(f"top_k={top_k} is not between 1 and {num_classes} classes.")
        if classes is None:
            return np.zeros((total, 0), np.int32), top_k
        if everything and top_k:
            raise ValueError(
                f"classes='all' has the {top_k} predicted ones already: leave top_k out."
            )
        if everything and not self.frozen:  # a frozen explainer has one graph, of one moment
            return None, 0
        return select_classes(classes, total, num_classes), top_k

    def _in_batches(self, arrays: list, top_k: int, batch_size: int) -> Explanation:
        everything = len(arrays) == len(self.anatomy.inputs)
        if everything:
            key = _ALL
        elif self._jit_compile:  # XLA wants the number of classes to be fixed
            key = top_k or _GIVEN
        else:
            key = _SELECTED
        if key not in self._compiled:
            self._compiled[key] = self._compile(key)
        rest = [tf.constant(top_k)] if key == _SELECTED else []
        image = arrays[self.anatomy.inputs.index(self.anatomy.image)]
        parts = []
        for start in range(0, len(image), batch_size):
            batch = arrays
            if len(image) > batch_size:
                batch = [one[start : start + batch_size] for one in arrays]
            explained = self._compiled[key](*batch, *rest)
            parts.append(Explanation(**explained, image_size=tuple(image.shape[1:-1])))
        return Explanation.concatenate(parts)

    def _compile(self, key: int | str) -> Callable:
        """Traces the call for one way of selection, for any batch size."""
        signature = [
            tf.TensorSpec([None, *value.shape[1:]], value.symbol.dtype)
            for value in self.anatomy.inputs
        ]
        if key != _ALL:
            signature.append(tf.TensorSpec([None, None], tf.int32))
        if key == _SELECTED:
            signature.append(tf.TensorSpec([], tf.int32))
        count = len(self.anatomy.inputs)

        def explain(*given):
            inputs, (class_ids, top_k) = list(given[:count]), (*given[count:], None, None)[:2]
            if key == _SELECTED:
                return self._explain(inputs, class_ids, top_k)
            if key in (_ALL, _GIVEN):
                return self._explain(inputs, class_ids, 0)
            return self._explain(inputs, class_ids, tf.constant(key))

        compiled = tf.function(
            explain,
            input_signature=signature,
            autograph=False,  # as Keras itself runs layers
            jit_compile=self._jit_compile or None,
        ).get_concrete_function()
        return freeze(compiled) if self.frozen else compiled

    def _check_inputs(self, images: Inputs) -> list[tf.Tensor]:
        every, wanted = self.anatomy.graph.inputs, self.anatomy.inputs
        given = {wanted[0]: images} if len(every) == 1 else _by_value(images, every, wanted)
        inputs = [self._check_input(given[value], value) for value in wanted]
        counts = {value.symbol.name: len(one) for value, one in zip(wanted, inputs, strict=True)}
        if len(set(counts.values())) > 1:
            raise ValueError(f"the inputs hold different numbers of examples: {counts}.")
        return inputs

    def _check_input(self, images, value: Value) -> tf.Tensor:
        expected = value.shape
        what = "images" if value is self.anatomy.image else f"input {value.symbol.name!r}"
        wanted = f"model {self.anatomy.name!r} takes {what} of shape {_write_shape(expected)}"
        try:
            images = tf.convert_to_tensor(images)
        except (ValueError, TypeError) as error:
            raise ValueError(
                f"{wanted}, and what was given is no such array: {error}. Images of different "
                "sizes must be resized to one size first (cam_tf.resize_image)."
            ) from error
        given = tuple(images.shape)
        if len(given) == len(expected) - 1:
            raise ValueError(
                f"{wanted}; got {given}, without a batch axis: pass images[None] for one image."
            )
        if len(given) != len(expected):
            raise ValueError(f"{wanted}; got {given}.")
        for axis in range(1, len(given)):
            if expected[axis] not in (None, given[axis]):
                is_channel = axis == len(given) - 1
                raise ValueError(f"{wanted}; got {given}. " + (_CHANNELS if is_channel else _SIZE))
        if images.dtype.is_floating:
            _refuse_non_finite(images, what)
            if value.symbol.dtype in _INTEGERS and tf.reduce_any(images != tf.round(images)):
                raise ValueError(
                    f"{wanted}, of {value.symbol.dtype}; got fractions, which a cast would cut "
                    "off: pass the pixels as they were, 0..255."
                )
        return tf.cast(images, value.symbol.dtype)


_INTEGERS = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64")
_SIZE = (
    "Resize them (cam_tf.resize_image), or build the network for any size: "
    "input_shape=(None, None, 3)."
)
_CHANNELS = "The channels are the last axis; load photos as RGB with cam_tf.load_image."


def _by_value(images, every: Sequence[Value], wanted: Sequence[Value]) -> dict[Value, Array]:
    """Matches a dictionary or a list of arrays with the inputs of a model."""
    names = [value.symbol.name for value in every]
    needed = [value.symbol.name for value in wanted]
    if isinstance(images, Mapping):
        missing = [name for name in needed if name not in images]
        if missing:
            raise ValueError(f"inputs {missing} are missing: the model takes {names}.")
        return {value: images[value.symbol.name] for value in wanted}
    if len(wanted) == 1 and not isinstance(images, (list, tuple)):
        return {wanted[0]: images}
    if not isinstance(images, (list, tuple)) or len(images) != len(every):
        raise ValueError(
            f"the model takes {len(every)} inputs: pass a list of them in the order {names}, or a "
            "dictionary by name."
        )
    return dict(zip(every, images, strict=True))


def _refuse_non_finite(images: tf.Tensor, what: str) -> None:
    if tf.reduce_all(tf.math.is_finite(images)):
        return
    rest = list(range(1, images.shape.rank))
    bad = np.flatnonzero(~tf.reduce_all(tf.math.is_finite(images), axis=rest).numpy())
    raise ValueError(
        f"{what} {bad.tolist()} hold NaN or infinity, from which no map can be made: leave them "
        "out, or replace the values (numpy.nan_to_num)."
    )


def _name(value: Value) -> str:
    return value.call.path if value.call is not None else value.symbol.name


def _write_shape(shape: tuple[int | None, ...]) -> str:
    letters = ["N", *("any" if length is None else str(length) for length in shape[1:])]
    return f"({', '.join(letters)})"
