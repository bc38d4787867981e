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


class RandomMap(Explainer):
    """Values drawn by chance, uniformly in [0, 1), at the resolution of the feature maps.

    The baseline of faithfulness: what a map must beat to tell anything. The predictions are the
    model's own. The draw depends on the seed, the class and the image's values alone, so that an
    image has the same map in any batch.

    Args:
        model, layer, input, output, target, jit_compile, frozen: see ``Explainer``.
        seed: of the draws.
    """

    unit = "chance"

    def __init__(self, model, layer=None, *, seed: int = 0, **options):
        self._seed = seed
        super().__init__(model, layer, **options)

    def _explain(self, inputs, class_ids, top_k):
        maps, logits, scores = self._forward(inputs)
        class_ids = self._select(logits, class_ids, top_k)
        shape = tf.concat([tf.shape(class_ids), tf.shape(maps[0])[1:-1]], axis=0)
        image = self._image(inputs)
        # A sum of integers is the same in whatever order it is added up.
        bits = tf.reshape(tf.bitcast(image, tf.int32), [tf.shape(image)[0], -1])
        keys = tf.reduce_sum(bits, axis=1)[:, None] + 7919 * class_ids
        found = tf.map_fn(
            lambda key: tf.random.stateless_uniform(shape[2:], tf.stack([self._seed, key])),
            tf.reshape(keys, [-1]),
            fn_output_signature=tf.float32,
        )
        return self._result(tf.reshape(found, shape), class_ids, scores, logits)
