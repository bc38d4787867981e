"""The data of a run, as ``fit`` takes them."""

import tensorflow as tf

from cam_tf.datasets.training import TrainingData, training_data
from training.config import Config


def open_data(
    config: Config,
    split: str,
    *,
    replicas: int = 1,
    training: bool = False,
    like: TrainingData | None = None,
    shard: tuple[int, int] = (0, 1),
) -> TrainingData:
    """Opens a split of the data, to train on or to measure.

    Raises:
        ValueError: the classes are not those of ``like``, and as for ``training_data``.
    """
    data = training_data(
        config.data,
        split,
        size=config.image_size,
        batch_size=config.batch_size // shard[1],
        augment=training and config.augment,
        shuffle=training,
        seed=config.seed,
        replicas=replicas // shard[1],
        cache=config.cache,
        strict=config.strict,
        data_dir=config.data_dir,
        download=config.download,
        shard=shard,
    )
    if like is not None and data.classes != like.classes:
        raise ValueError(f"{split!r} has other classes than {config.train_split!r}.")
    return data


def one_hot(batches: tf.data.Dataset, classes: int) -> tf.data.Dataset:
    """Class ids as distributions, which label smoothing needs."""
    return plainly(batches.map(lambda images, labels: (images, tf.one_hot(labels, classes))))


def plainly(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Leaves out the optimizations of tf.data that do not bear deterministic operations.

    With ``enable_op_determinism`` one iterator in three of nested data sets was refused by
    TensorFlow 2.21 ("input ^Const is not found"), of 70 made without them none.
    """
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False
    return dataset.with_options(options)
