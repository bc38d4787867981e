"""Compiled calls with their weights folded in as constants."""

from collections.abc import Callable

import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2


def freeze(function: tf.types.experimental.ConcreteFunction) -> Callable:
    """Returns a compiled call in which the variables are constants, as they are now.

    TensorFlow's graph optimiser then folds what is constant; batch normalisation becomes part of
    the convolution before it.

    Args:
        function: what ``tf.function.get_concrete_function`` returns; its outputs may be nested.

    Returns:
        A callable that takes and returns what ``function`` does.
    """
    structure = function.structured_outputs
    frozen = convert_variables_to_constants_v2(function)

    def call(*inputs):
        outputs = frozen(*inputs)
        outputs = outputs if isinstance(outputs, (list, tuple)) else [outputs]
        return tf.nest.pack_sequence_as(structure, outputs)

    return call
