"""The sanity check by randomised weights: a map of a network must change with the network."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from cam_tf.maps.explanation import Array, Explanation
from cam_tf.maps.heatmaps import heatmaps

# The initialisers of weights that are not called by the weight's name.
_INITIALIZERS = {
    "kernel": "depthwise_initializer",
    "depthwise_kernel": "depthwise_initializer",
    "pointwise_kernel": "pointwise_initializer",
}


class RandomizedLayer(NamedTuple):
    """What was left of the maps after a layer was randomised.

    Attributes:
        layer: the layer's name.
        spearman: (N,) rank correlation of the map's values with those of the trained network's map,
            at the resolution of the maps; 0 where a map is constant.
        ssim: (N,) structural similarity of the two heatmaps (min-max, at the image's size).
    """

    layer: str
    spearman: np.ndarray
    ssim: np.ndarray


def randomization_check(
    model: keras.Model,
    explainer: Callable[..., Explanation],
    images: Array,
    class_ids: Array,
    *,
    independent: bool = False,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[RandomizedLayer]:
    """Randomises a network layer by layer, from the logits down, and compares its maps.

    A method whose maps stay alike (a correlation near 1) does not explain the network's weights:
    it shows the image, as an edge detector does, or the place. The weights, and the state of the
    optimizer aside all other variables, are restored bit by bit when the check ends, be it with an
    error.

    Source: Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018, section 3: cascading
    and independent randomisation, compared by rank correlation and SSIM (it also compares HOG).
    Conventions of ours: weights come from the layer's own initializers, as in the source (biases
    become 0 and the statistics of normalisation those of a new layer); weights without one are
    shuffled. ``Normalization`` layers, which hold the data's statistics, are left as they are.

    Args:
        model: the classifier that the explainer explains.
        explainer: from ``(images, class_ids)`` to an ``Explanation`` of one class for each image;
            a frozen one is frozen anew after each layer.
        images: (N, H, W, channels) as the model takes them.
        class_ids: (N,) the classes to explain, the same for all networks.
        independent: randomise one layer at a time, all others trained, in place of the cascade.
        seed: of the weights.
        progress: called after each layer with the number done, and their total.

    Returns:
        A ``RandomizedLayer`` for each layer with weights, from the last to the first.

    Raises:
        ValueError: the model has no layer with weights.
    """
    layers = list(dict.fromkeys(_layers_with_weights(model)))[::-1]
    if not layers:
        raise ValueError(f"model {model.name!r} has no weights, so there is nothing to randomise.")
    class_ids = np.asarray(class_ids).tolist()
    found = []
    with restored(model, explainer):
        trained = explainer(images, class_ids).numpy()
        saved = _values(model)
        for index, layer in enumerate(layers):
            if independent:
                _assign(model, saved)
            _randomize(layer, [seed, index])
            _refreeze(explainer)
            maps = explainer(images, class_ids).numpy()
            found.append(RandomizedLayer(layer.name, *_likeness(trained, maps)))
            if progress is not None:
                progress(index + 1, len(layers))
    return found


@contextmanager
def restored(model: keras.Model, explainer: Callable | None = None) -> Iterator[None]:
    """Restores all variables of a model bit by bit when the block ends, be it with an error."""
    saved = _values(model)
    try:
        yield
    finally:
        _assign(model, saved)
        _refreeze(explainer)


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """The rank correlation of two arrays of one size; equals share their mean rank.

    Returns:
        A number in [-1, 1]; 0 if either array is constant, or not finite.
    """
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return 0.0
    a, b = (_ranks(one) - (one.size - 1) / 2 for one in (first, second))
    norm = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / norm) if norm else 0.0


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts + 1) / 2)[place.ravel()]


def _likeness(first: Explanation, second: Explanation) -> tuple[np.ndarray, np.ndarray]:
    pairs = zip(first.maps[:, 0], second.maps[:, 0], strict=True)
    ranked = np.array([spearman(*pair) for pair in pairs])
    size = tf.constant(first.image_size)
    return ranked, _ssim(first.maps, second.maps, size, window=min(11, *first.image_size)).numpy()


@tf.function(autograph=False, reduce_retracing=True)
def _ssim(first, second, size, window: int) -> tf.Tensor:
    """The structural similarity (N,) of maps (N, 1, h, w), drawn as heatmaps."""
    drawn = [heatmaps(one, tf.unstack(size, 2))[:, 0, ..., None] for one in (first, second)]
    return tf.image.ssim(*drawn, max_val=1.0, filter_size=window)


def _layers_with_weights(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """The layers that hold weights themselves, in the order of the model."""
    for layer in model.layers:
        if getattr(layer, "layers", None):
            yield from _layers_with_weights(layer)
        elif layer.weights and not isinstance(layer, keras.layers.Normalization):
            yield layer


def _randomize(layer: keras.layers.Layer, seed: list[int]) -> None:
    random = np.random.default_rng(seed)
    for weight in layer.weights:
        if not weight.dtype.startswith(("float", "bfloat")):
            continue  # the states of random generators
        initializer = _initializer(layer, weight.name)
        if initializer is None:
            shuffled = random.permutation(keras.ops.convert_to_numpy(weight).ravel())
            weight.assign(shuffled.reshape(weight.shape))
            continue
        config = initializer.get_config()
        if "seed" in config:
            config["seed"] = int(random.integers(2**31))
        weight.assign(type(initializer).from_config(config)(weight.shape, dtype=weight.dtype))


def _initializer(layer: keras.layers.Layer, name: str) -> keras.initializers.Initializer | None:
    for attribute in (f"{name}_initializer", _INITIALIZERS.get(name, "")):
        found = getattr(layer, attribute, None)
        if isinstance(found, keras.initializers.Initializer):
            return found
    return None


def _values(model: keras.Model) -> list[np.ndarray]:
    return [np.array(keras.ops.convert_to_numpy(one)) for one in model.variables]


def _assign(model: keras.Model, values: list[np.ndarray]) -> None:
    for variable, value in zip(model.variables, values, strict=True):
        variable.assign(value)


def _refreeze(explainer: Callable | None) -> None:
    if getattr(explainer, "frozen", False):
        explainer.refreeze()
