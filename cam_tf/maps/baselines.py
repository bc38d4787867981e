"""Maps that do not look at the image: what a method must beat."""

import tensorflow as tf

from cam_tf.maps.explainer import Explainer


class CenterGaussian(Explainer):
    """A Gaussian in the centre of the image, the same for every image and class.

    The baseline of weakly supervised localization: objects tend to be in the middle. The
    predictions are the model's own; the map has the resolution of the model's feature maps and its
    standard deviation is a quarter of each side (figures at the best threshold do not depend on
    it).

    Source: Choe et al., "Evaluating Weakly Supervised Object Localization Methods Right", CVPR
    2020, section 5.2.
    """

    unit = "closeness to the centre"

    def _explain(self, inputs, class_ids, top_k):
        maps, logits, scores = self._forward(inputs)
        class_ids = self._select(logits, class_ids, top_k)
        size = tf.shape(maps[0])[1:-1]
        gaussian = tf.ones([])
        for axis in range(maps[0].shape.rank - 2):
            length = tf.cast(size[axis], tf.float32)
            place = (tf.range(length) + 0.5) / length - 0.5
            gaussian = gaussian[..., None] * tf.exp(-0.5 * tf.square(place / 0.25))
        leading = [tf.shape(class_ids)[0], tf.shape(class_ids)[1]]
        found = tf.broadcast_to(gaussian, tf.concat([leading, size], axis=0))
        return self._result(found, class_ids, scores, logits)
