"""From the tensors of a PyTorch checkpoint to the variables of Keras layers."""

from collections.abc import Mapping, Sequence

import keras
import numpy as np

_TENSORS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def find_assignments(
    model: keras.Model,
    tensors: Mapping[str, np.ndarray],
    sources: Mapping[str, str],
    unused: Sequence[str] = (),
) -> list[tuple[keras.Variable, np.ndarray]]:
    """Finds the tensor of each variable; nothing is assigned before everything is known to fit.

    Args:
        model: the network.
        tensors: what the checkpoint holds, by name.
        sources: names of layers -> what the names of their tensors begin with, up to the last dot.
        unused: beginnings of the names of tensors that the network may do without.

    Returns:
        Pairs of a variable and its value.

    Raises:
        ValueError: of the first tensor that does not fit, in words that "the checkpoint" precedes.
    """
    pairs, left = [], dict(tensors)
    for layer in model.layers:
        for variable in layer.weights if layer.name in sources else ():
            name = f"{sources[layer.name]}.{_TENSORS[variable.name]}"
            if name not in left:
                raise ValueError(f"has no tensor {name!r}")
            value, needed = _keras_layout(layer, left.pop(name)), tuple(variable.shape)
            if value.shape != needed:
                raise ValueError(
                    f"gives {name!r} the shape {value.shape}, not {needed} (Keras order)"
                )
            pairs.append((variable, value))
    for name in left:
        if not name.startswith(tuple(unused)) and not name.endswith("num_batches_tracked"):
            raise ValueError(f"has {name!r}, which has no place in the network")
    return pairs


def _keras_layout(layer: keras.Layer, tensor: np.ndarray) -> np.ndarray:
    """Transposes PyTorch's convolution (O, I, H, W), depthwise (C, 1, H, W) and linear (O, I)."""
    if tensor.ndim == 4:
        depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
        return tensor.transpose((2, 3, 0, 1) if depthwise else (2, 3, 1, 0))
    return tensor.T
