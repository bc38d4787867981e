"""Which units made a prediction: w_k^c F_k, whose sum and the bias are the logit."""

from dataclasses import dataclass

import keras
import numpy as np

from cam_tf.discovery.features import PooledFeatures
from cam_tf.maps.cam import CAM
from cam_tf.maps.selection import Classes
from cam_tf.networks.anatomy import Layer


@dataclass(frozen=True)
class Contributions:
    """What each unit of the last feature maps adds to a logit.

    Attributes:
        values: (N, n, K) float32, w_k^c F_k.
        bias: (N, n) float32; ``values.sum(-1) + bias`` is the logit.
        class_ids: (N, n) int32.
    """

    values: np.ndarray
    bias: np.ndarray
    class_ids: np.ndarray

    def __getitem__(self, index: int) -> "Contributions":
        """Those of one image, still with a batch axis of 1."""
        one = slice(index, index + 1)
        return Contributions(self.values[one], self.bias[one], self.class_ids[one])

    def top(self, count: int) -> tuple[np.ndarray, np.ndarray]:
        """The ``count`` largest contributions: unit ids and values, (N, n, count) each."""
        ids = np.argsort(-self.values, axis=-1, kind="stable")[..., :count]
        return ids, np.take_along_axis(self.values, ids, axis=-1)

    def share(self, count: int) -> np.ndarray:
        """The share (N, n) of the logit, less its bias, that the ``count`` largest carry.

        Units that speak against the class are in the whole, so that a share may exceed 1.
        """
        return self.top(count)[1].sum(-1) / self.values.sum(-1)


class UnitContributions:
    """Takes the logits of images apart, unit by unit: S_c = sum_k w_k^c F_k.

    Args:
        model: a classifier with average pooling whose class activation maps are exact.
        layer: see ``CAM``.

    Raises:
        ValueError: the head is not affine in its pooled maps, or does not average them.

    Source: Zhou et al., CVPR 2016, equation 1.
    """

    def __init__(self, model: keras.Model, layer: Layer | None = None):
        self._explain = CAM(model, layer)
        self._features = PooledFeatures(model, layer)

    def __call__(self, images, classes: Classes = None, top_k: int | None = None) -> Contributions:
        """Returns the contributions of all units to the logits of classes, chosen as in ``CAM``."""
        parts = self._explain.anatomy
        result = self._explain(images, classes, top_k).numpy()
        values = self._features(images)[:, None] * parts.kernel().numpy().T[result.class_ids]
        bias = parts.bias().numpy()[result.class_ids]
        scale = np.abs(values).sum(-1) + 1
        if np.any(np.abs(values.sum(-1) + bias - result.logits) > 1e-3 * scale):
            raise ValueError(
                f"{parts.name!r} does not average its feature maps, so its logits are not sums of "
                "contributions of mean activations: this is for average pooling alone."
            )
        return Contributions(values, bias, result.class_ids)
