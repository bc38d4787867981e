"""The network of a run, and its phases: first the new head alone, then from a chosen layer on."""

from typing import NamedTuple

import keras

from cam_tf.networks.classifier import (
    FEATURE_MAPS,
    HEAD_CONV,
    HEAD_DROPOUT,
    POOLING,
    PREDICTIONS,
    build_classifier,
)
from cam_tf.suggestions import did_you_mean
from training.config import Config
from training.small_vgg import NAME, small_vgg

_HEAD = (HEAD_CONV, FEATURE_MAPS, POOLING, HEAD_DROPOUT, PREDICTIONS)


class Phase(NamedTuple):
    """Epochs ``start`` to ``end`` (exclusive), of the head alone or of all that is trained."""

    start: int
    end: int
    head_only: bool


def phases(config: Config) -> list[Phase]:
    """The phases that have epochs, one or two."""
    first = Phase(0, config.head_epochs, True)
    second = Phase(config.head_epochs, config.all_epochs, False)
    return [phase for phase in (first, second) if phase.end > phase.start]


def build(config: Config, classes: int) -> keras.Model:
    """Builds the classifier; its random weights come from the seed.

    Raises:
        ValueError: as for ``cam_tf.build_classifier``, or an unknown layer to train from.
    """
    keras.utils.set_random_seed(config.seed)
    shared = {
        "pooling": config.pooling,
        "head_conv": config.head_conv,
        "head_groups": config.head_groups,
        "output_stride": config.output_stride,
        "dropout": config.dropout,
    }
    if config.backbone.lower() == NAME.lower():
        backbone = small_vgg(config.image_size)
        model = build_classifier(backbone, classes, weights=config.weights, **shared)
    else:
        shape = (config.image_size, config.image_size, 3)
        shared |= {"weights": config.weights, "input_shape": shape}
        model = build_classifier(config.backbone, classes, **shared)
    _first_trained(model, config.fine_tune_from)  # an unknown layer is an error now, not later
    return model


def _first_trained(model: keras.Model, name: str | None) -> int:
    names = [layer.name for layer in model.layers]
    if name is not None and name not in names:
        raise ValueError(
            f"fine_tune_from={name!r} is no layer of {model.name!r}.{did_you_mean(name, names)}"
        )
    return names.index(name) if name else 0


def prepare(model: keras.Model, config: Config, phase: Phase, steps: int) -> None:
    """Freezes what the phase does not train, and compiles with an optimizer of its own.

    Args:
        model: from ``build``.
        config: of the run.
        phase: one of its phases.
        steps: those of an epoch.
    """
    first = _first_trained(model, config.fine_tune_from)
    for number, layer in enumerate(model.layers):
        is_head = layer.name.startswith(_HEAD)
        layer.trainable = is_head if phase.head_only else number >= first
    model.compile(
        _optimizer(config, phase, steps),
        **loss_and_metrics(config, model.output_shape[-1]),
        jit_compile=config.xla,
    )
    model.optimizer.build(model.trainable_variables)  # so that a checkpoint finds its variables


def loss_and_metrics(config: Config, classes: int) -> dict:
    """What ``compile`` takes besides the optimizer."""
    metrics = [keras.metrics.CategoricalAccuracy(name="accuracy")]
    if classes > 5:
        metrics.append(keras.metrics.TopKCategoricalAccuracy(5, name="top5_accuracy"))
    loss = keras.losses.CategoricalCrossentropy(label_smoothing=config.label_smoothing)
    return {"loss": loss, "metrics": metrics}


def _optimizer(config: Config, phase: Phase, steps: int) -> keras.optimizers.Optimizer:
    rate = config.head_learning_rate if phase.head_only else config.learning_rate
    more = {"gradient_accumulation_steps": config.gradient_accumulation}
    if config.gradient_accumulation == 1:
        more = {}
    if config.weight_decay is not None:
        more["weight_decay"] = config.weight_decay
    if config.ema is not None:
        more |= {"use_ema": True, "ema_momentum": config.ema}
    if config.optimizer == "sgd":
        more["momentum"] = config.momentum
    make = {
        "sgd": keras.optimizers.SGD,
        "adam": keras.optimizers.Adam,
        "adamw": keras.optimizers.AdamW,
    }[config.optimizer]
    return make(_schedule(config, rate, (phase.end - phase.start) * steps, steps), **more)


def _schedule(config: Config, rate: float, all_steps: int, steps: int):
    # Keras counts the steps of gradient accumulation one by one here.
    warmup = min(round(config.warmup_epochs * steps), all_steps)
    if config.schedule == "constant" and not warmup:
        return rate
    rising = {"initial_learning_rate": 0.0, "warmup_target": rate, "warmup_steps": warmup}
    return keras.optimizers.schedules.CosineDecay(
        **(rising if warmup else {"initial_learning_rate": rate}),
        decay_steps=max(1, all_steps - warmup),
        alpha=1.0 if config.schedule == "constant" else 0.0,
    )
