"""Maps without a class: what varies most in the feature maps."""

import numpy as np
import tensorflow as tf

from cam_tf.maps.explainer import Explainer


class EigenCAM(Explainer):
    """Eigen-CAM: the projection of the feature maps (hw x K) on their first right singular vector.

    It does not depend on the class: each class of an image has the same map. The sign of a singular
    vector is arbitrary; it is chosen so that the map's sum is not negative.

    Source: Muhammad and Yeasin, IJCNN 2020, equations 3 and 4 (the maps are not centred).
    """

    def _explain(self, inputs, class_ids, top_k):
        (maps,), logits, scores = self._forward(inputs)
        class_ids = self._select(logits, class_ids, top_k)
        shape = tf.shape(maps)
        area = maps.shape[1:-1].num_elements()  # None where a size is not fixed
        flat = tf.reshape(maps, [shape[0], -1 if area is None else area, maps.shape[-1]])
        finite = tf.reduce_all(tf.math.is_finite(flat), axis=[1, 2])[:, None]
        first = self._project(tf.where(finite[..., None], flat, 0.0))
        first = tf.where(finite, first, np.nan)  # said by diagnosis(), not by the eigensolver
        first *= tf.where(tf.reduce_sum(first, axis=1, keepdims=True) < 0, -1.0, 1.0)
        one = tf.reshape(first, shape[:-1])
        repeated = tf.repeat(one[:, None], tf.shape(class_ids)[1], axis=1)
        return self._result(repeated, class_ids, scores, logits)

    @staticmethod
    def _project(flat: tf.Tensor) -> tf.Tensor:
        """The projection (N, hw) of (N, hw, K), by way of the smaller of its two Gram matrices."""
        positions, channels = flat.shape[1:]
        if positions is not None and positions <= channels:
            # The first eigenvector over positions, times the singular value, is the projection.
            values, vectors = tf.linalg.eigh(tf.matmul(flat, flat, transpose_b=True))
            return vectors[..., -1] * tf.sqrt(tf.nn.relu(values[:, -1:]))
        _, vectors = tf.linalg.eigh(tf.matmul(flat, flat, transpose_a=True))
        return tf.matmul(flat, vectors[..., -1:])[..., 0]

    def _check(self):
        if len(self.anatomy.layers) > 1:
            raise ValueError("EigenCAM takes one target layer: name one.")
