"""Backbones by name, with their weights and, where it can be kept, their own classifier."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import h5py
import keras
import numpy as np

from cam_tf.networks.applications import IMAGENET_STDDEV, TORCH_FILES, Backbone
from cam_tf.networks.checkpoints import CheckpointError, read_torch_checkpoint
from cam_tf.networks.torch_weights import find_assignments

Head = list[np.ndarray]  # kernel (K, C) and bias (C,)


def pretrained_backbone(
    row: Backbone,
    weights: str | Path | None,
    input_shape: Sequence[int | None] | None,
    classes: int | None,
) -> tuple[keras.KerasTensor, keras.KerasTensor, Head | None]:
    """Builds a backbone of the table.

    Args:
        row: which one.
        weights: ``"imagenet"``, ``None``, or the path of a ``.h5`` or ``.pth`` file.
        input_shape: (height, width, 3), or None for the published size.
        classes: keep the network's own classifier if it has as many classes; None: never.

    Returns:
        The input (N, H, W, 3), the last feature maps (N, h, w, K), and the weights of the network's
        own classifier as those of a dense layer, or None.

    Raises:
        ValueError: the input shape or the file does not fit the network, or it has no ImageNet
            weights.
        CheckpointError: a PyTorch file that cannot be read, or is of another network.
        ConnectionError: the ImageNet weights could not be downloaded.
    """
    image = keras.Input(_input_shape(row, input_shape), name="image")
    pixels = row.preprocess(image)
    if weights == "imagenet" and (row.body or row.tensors):
        raise ValueError(_not_published(row))
    if weights not in (None, "imagenet"):
        suffix = Path(weights).suffix.lower()
        if suffix in TORCH_FILES and row.tensors:
            return image, *_from_torch_file(row, Path(weights), image, pixels, classes)
        if suffix in (".h5", ".hdf5") and not (row.body or row.tensors):
            return image, *_from_keras_file(row, Path(weights), pixels, classes)
        if not (suffix in TORCH_FILES and row.preprocessing == "lite"):
            raise ValueError(_not_readable(row, weights))
    if weights is None and row.body:
        return image, row.body(pixels), None
    with_top = weights is not None and row.head != "other" and classes == 1000
    network = _construct(row, include_top=with_top, weights=weights, input_tensor=pixels)
    if not with_top:
        return image, _last_maps(row, network), None
    return image, _pooled_maps(network), _dense_weights(network)


def _input_shape(row: Backbone, given: Sequence[int | None] | None) -> tuple[int | None, ...]:
    shape = (row.size, row.size, 3) if given is None else tuple(given)
    if len(shape) != 3 or shape[2] != 3:
        raise ValueError(
            f"input_shape={shape} is not (height, width, 3): {row.name} takes RGB images. Repeat a "
            "gray channel three times."
        )
    if any(size is not None and size < row.min_size for size in shape[:2]):
        raise ValueError(
            f"input_shape={shape} is too small: {row.name} needs at least {row.min_size} pixels "
            "in height and width."
        )
    if None in shape and not row.any_size:
        raise ValueError(
            f"input_shape={shape}: {row.name} cannot be built without a fixed size (its cells "
            f"compare sizes). Give one, for example ({row.size}, {row.size}, 3)."
        )
    return shape


def _not_published(row: Backbone) -> str:
    way = "weights=None for random weights"
    source = row if row.checkpoint else row.torchvision
    if source is not None:
        way += f", or the path of torchvision's {source.checkpoint}"
    return f"weights='imagenet': no weights of this {row.name} can be downloaded. Give {way}."


def _not_readable(row: Backbone, weights: str | Path) -> str:
    hint = "'.weights.h5'" + ("" if row.body or row.tensors else " or '.h5'")
    if row.preprocessing == "lite" or row.tensors or row.torchvision:
        hint += ", or a '.pth' checkpoint"
    if str(weights).endswith(".keras"):
        hint += "; a '.keras' file is a whole model: keras.models.load_model(path)"
    return f"weights={str(weights)!r} is not a file that {row.name} can be read from: use {hint}."


def _construct(row: Backbone, **arguments) -> keras.Model:
    try:
        with warnings.catch_warnings():
            # The MobileNets say so of every size that they have no weights of its own for.
            warnings.filterwarnings("ignore", message="`input_shape` is undefined or non-square")
            return row.constructor(**arguments)
    except Exception as error:
        # Keras raises a bare Exception when a download fails.
        if arguments["weights"] != "imagenet" or "URL fetch failure" not in str(error):
            raise
        raise ConnectionError(
            f"the ImageNet weights of {row.name} could not be downloaded ({error}). Give "
            "weights='path/to/file.h5' if you have them, weights=None for random weights, or use "
            "'EfficientNetLite0', whose weights are installed with cam_tf."
        ) from error


def _last_maps(row: Backbone, network: keras.Model) -> keras.KerasTensor:
    return network.get_layer(row.last).output if row.last else network.outputs[0]


def _classifier_index(network: keras.Model) -> int:
    """The index of the pooling layer with which the network's own classifier begins."""
    pools = [
        index
        for index, layer in enumerate(network.layers)
        if isinstance(layer, keras.layers.GlobalAveragePooling2D)
    ]
    return pools[-1]


def _pooled_maps(network: keras.Model) -> keras.KerasTensor:
    return network.layers[_classifier_index(network)].input


def _dense_weights(network: keras.Model) -> Head:
    """The kernel (K, C) and bias of the one layer with weights behind the pooling."""
    above = network.layers[_classifier_index(network) :]
    (layer,) = [layer for layer in above if layer.weights]
    kernel, bias = layer.get_weights()
    # A 1x1 convolution on pooled maps is a dense layer: (1, 1, K, C) -> (K, C).
    return [kernel.reshape(kernel.shape[-2:]), bias]


def _from_keras_file(
    row: Backbone, path: Path, pixels: keras.KerasTensor, classes: int | None
) -> tuple[keras.KerasTensor, Head | None]:
    """Loads a ``.h5`` file of keras.applications, which says nowhere whether it has a top."""
    layers, outputs = _layers_in(path)
    own_head = row.head != "other"
    network = _construct(
        row,
        include_top=own_head,
        weights=None,
        input_tensor=pixels,
        **({"classes": outputs} if own_head else {}),
    )
    maps = _pooled_maps(network) if own_head else _last_maps(row, network)
    body = keras.Model(network.inputs, maps)
    with_top = own_head and layers == _count_weighted(network)
    if not with_top and layers != _count_weighted(body):
        raise ValueError(
            f"{path} holds {layers} layers with weights, and {row.name} has "
            f"{_count_weighted(body)} without its top: it is of another network"
            + ("." if own_head else ", or has a top; use the file without (often '..._notop.h5').")
        )
    try:
        (network if with_top else body).load_weights(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is of another network than {row.name}. Keras says: {error}"
        ) from error
    square_stddev(network)
    return maps, _dense_weights(network) if with_top and classes == outputs else None


def _from_torch_file(
    row: Backbone,
    path: Path,
    image: keras.KerasTensor,
    pixels: keras.KerasTensor,
    classes: int | None,
) -> tuple[keras.KerasTensor, Head | None]:
    """Loads a checkpoint of torchvision, with the classifier where it is a dense layer."""
    tensors = read_torch_checkpoint(path)
    if row.body:
        maps = row.body(pixels)
    else:
        maps = _last_maps(
            row, _construct(row, include_top=False, weights=None, input_tensor=pixels)
        )
    head = [tensors[name] for name in ("fc.weight", "fc.bias") if name in tensors]
    try:
        pairs = find_assignments(keras.Model(image, maps), tensors, row.tensors, row.unused)
        if row.head == "dense" and head:
            head = _dense_tensors(head, maps.shape[-1])
    except ValueError as error:
        raise CheckpointError(
            f"The checkpoint {str(path)!r} does not fit {row.name} as torchvision has it: it "
            f"{error}."
        ) from error
    for variable, value in pairs:
        variable.assign(value)
    return maps, head if row.head == "dense" and head and classes == len(head[1]) else None


def _dense_tensors(head: list[np.ndarray], units: int) -> Head:
    shapes = [one.shape for one in head]
    if len(head) != 2 or head[1].ndim != 1 or head[0].shape != (len(head[1]), units):
        raise ValueError(
            f"gives 'fc.weight' and 'fc.bias' the shapes {shapes}, not C, {units} and C"
        )
    return [head[0].T, head[1]]


def _layers_in(path: Path) -> tuple[int, int]:
    """The number of layers with weights in a legacy ``.h5`` file, and its last layer's units."""
    try:
        with h5py.File(path) as file:
            group = file.get("model_weights", file)
            names = [_text(name) for name in group.attrs["layer_names"]]
            weighted = [name for name in names if len(group[name].attrs["weight_names"])]
            last = group[weighted[-1]]
            return len(weighted), int(last[_text(last.attrs["weight_names"][-1])].shape[-1])
    except (OSError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path} is not a weights file of keras.applications: {error}. Weights saved with "
            "model.save_weights must keep their ending '.weights.h5'."
        ) from error


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _count_weighted(network: keras.Model) -> int:
    return sum(bool(layer.weights) for layer in network.layers)


def square_stddev(network: keras.Model) -> None:
    """Mends the published EfficientNet files, which hold the deviation in place of the variance.

    For ``weights="imagenet"`` keras.applications makes up for it with one more Rescaling layer;
    a network whose file was loaded afterwards has none.
    """
    for layer in network.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.weights:
            mean, variance, *rest = layer.get_weights()
            if np.allclose(np.ravel(variance), IMAGENET_STDDEV, atol=1e-5):
                layer.set_weights([mean, np.square(variance), *rest])
                layer.finalize_state()
