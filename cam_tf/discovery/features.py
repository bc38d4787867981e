"""Globally average-pooled feature maps: a description of an image for other tasks."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from cam_tf.files import written_whole
from cam_tf.networks.anatomy import Layer, dissect


class PooledFeatures:
    """The pooled feature maps of a network, F_k = mean over (x, y) of f_k(x, y).

    These are the generic features of Zhou et al., CVPR 2016, section 3.3: a linear classifier on
    them has class activation maps over the same feature maps (``fit_linear``, ``attach``).

    Args:
        model: any classifier that ``CAM`` or ``GradCAM`` takes; nested backbones are no obstacle.
        layer: the feature maps, see ``dissect``. Default: those that are pooled.

    Attributes:
        anatomy: the network's parts.
        channels: K.

    Raises:
        TypeError, ValueError: see ``dissect``.
    """

    def __init__(self, model: keras.Model, layer: Layer | None = None):
        self.model = model
        self.anatomy = dissect(model, layer)
        self.channels = int(self.anatomy.feature_maps.shape[-1])
        self._compiled: dict[str, tf.types.experimental.PolymorphicFunction] = {}

    def __call__(self, images, *, batch_size: int = 32) -> np.ndarray:
        """Returns the features (N, K), float32, of images (N, H, W, channels) as the model takes.

        Raises:
            ValueError: images of another shape, no image, or a batch size below 1.
        """
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: use at least 1.")
        images = np.asarray(images)
        starts = range(0, len(images), batch_size)
        return self._joined(self._batch(images[start : start + batch_size]) for start in starts)

    def extract(
        self, batches: Iterable, *, cache: str | os.PathLike | None = None, key: str = ""
    ) -> np.ndarray:
        """Streams batches through the network: one of them and the features are in memory.

        Args:
            batches: a ``tf.data.Dataset`` or any iterable, of images (N, H, W, channels), or of
                tuples that begin with them.
            cache: a ``.npz`` file. If it holds features of the same network and ``key``, they are
                read from it and nothing is computed; otherwise it is written.
            key: what tells these images from others, such as the data set's name and split.

        Returns:
            (N, K) float32.

        Raises:
            ValueError: no image; or a cache of other features, which is not overwritten.
        """
        if cache is None:
            return self._joined(self._batch(_images(batch)) for batch in batches)
        path, mark = Path(cache), f"{self.fingerprint()} {key}"
        if path.exists():
            return _read(path, mark)
        features = self.extract(batches)
        with written_whole(path) as file:
            np.savez(file, features=features, mark=np.array(mark))
        return features

    def maps(self, images) -> np.ndarray:
        """The feature maps (N, h, w, K), float32, of one batch of images."""
        return self._compile("maps")(self._checked(images)).numpy()

    def fingerprint(self) -> str:
        """Tells networks apart: a hash of the target layer's path and all weights."""
        value = self.anatomy.feature_maps
        digest = hashlib.sha256((value.call.path if value.call else "input").encode())
        digest.update(weights_hash(self.model).encode())
        return digest.hexdigest()

    def _joined(self, parts: Iterable[np.ndarray]) -> np.ndarray:
        parts = list(parts)
        if not parts:
            raise ValueError("there is no image to take features of.")
        return np.concatenate(parts)

    def _batch(self, images) -> np.ndarray:
        return self._compile("pooled")(self._checked(images)).numpy()

    def _checked(self, images) -> tf.Tensor:
        shape = self.anatomy.image.shape
        if len(np.shape(images)) != len(shape) or np.shape(images)[-1] != shape[-1]:
            raise ValueError(
                f"{self.anatomy.name!r} takes images of shape {shape}, not {np.shape(images)}."
            )
        return tf.cast(images, self.anatomy.image.symbol.dtype)

    def _compile(self, wanted: str) -> tf.types.experimental.PolymorphicFunction:
        """Traces what is wanted of a batch of any size, once."""
        if wanted not in self._compiled:
            image = self.anatomy.image
            self._compiled[wanted] = tf.function(
                self._maps if wanted == "maps" else self._pooled,
                input_signature=[tf.TensorSpec([None, *image.shape[1:]], image.symbol.dtype)],
                autograph=False,
            )
        return self._compiled[wanted]

    def _maps(self, images: tf.Tensor) -> tf.Tensor:
        parts = self.anatomy
        (maps,) = parts.graph.run({parts.image: images}, [parts.feature_maps])
        return tf.cast(maps, tf.float32)

    def _pooled(self, images: tf.Tensor) -> tf.Tensor:
        maps = self._maps(images)
        return tf.reduce_mean(maps, axis=list(range(1, maps.shape.rank - 1)))


def weights_hash(model: keras.Model) -> str:
    """SHA-256 of all weights of a model, in their order."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(keras.ops.convert_to_numpy(weight)).tobytes())
    return digest.hexdigest()


def _images(batch):
    return batch[0] if isinstance(batch, (tuple, list)) else batch


def _read(path: Path, mark: str) -> np.ndarray:
    with np.load(path, allow_pickle=False) as found:
        if "mark" not in found or str(found["mark"]) != mark:
            raise ValueError(
                f"{path} holds features of another network, layer or set of images: name another "
                "cache, or delete it."
            )
        return found["features"]
