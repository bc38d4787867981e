"""Prototype CAM: what in the image looks to the network like the evidence for a class."""

import tensorflow as tf

from cam_tf.maps.cam import CAM

_BORDER = 0.05  # the share of an axis that counts as border, on either side
_BORDER_WEIGHT = 0.5  # of the background prototype, what comes from the border


class PrototypeCAM(CAM):
    """The class activation map carried over to all positions with features like the evidence's.

    A class activation map marks the most telling parts; an object's other parts have similar
    features. With u the features f(x, y) scaled to length 1 and M the class activation map,

        v_c = sum max(M_c, 0) u / sum max(M_c, 0),   b = (mean u + mean of u over the border) / 2,

    the map is (s - t) / (s + t), s = max(u . v_c, 0), t = max(u . b, 0): positive where a position
    is more like the class's evidence than like the rest of the image, whose background is likelier
    at the border (a twentieth of each side). It lies in [-1, 1], and is -1 where no feature is
    active, and everywhere if the class has no positive evidence. No training, no gradient, and no
    cost beside the forward pass. The identity of CAM, mean(M) + bias = logit, does not hold.

    Args:
        model, layer, scales, flip, input, output, jit_compile, frozen: see ``CAM``. It was measured
            on maps of output stride 16 at about 1.5 times the network's own image size; maps of
            few positions gain little.

    Sources: image-specific prototypes as in Chen et al., "Self-supervised Image-specific Prototype
    Exploration for Weakly Supervised Semantic Segmentation", CVPR 2022, section 3.2, here without
    training; the border as background: Wei et al., "Geodesic Saliency Using Background Priors",
    ECCV 2012. The quotient is this library's.
    """

    unit = "likeness to the evidence"

    def _project(self, feature_maps, class_ids):
        return _contrast(feature_maps, super()._project(feature_maps, class_ids))


def _contrast(feature_maps: tf.Tensor, maps: tf.Tensor) -> tf.Tensor:
    """From feature maps (N, ..., K) and class activation maps (N, n, ...) to maps (N, n, ...)."""
    shape = tf.shape(maps)
    features = tf.reshape(feature_maps, [shape[0], -1, feature_maps.shape[-1]])
    directions = tf.math.divide_no_nan(features, tf.norm(features, axis=-1, keepdims=True))
    evidence = _shares(tf.nn.relu(tf.reshape(maps, [shape[0], shape[1], -1])))
    border = _shares(_border(shape[2:], feature_maps.shape.rank - 2))
    everywhere = 1 / tf.cast(tf.size(border), tf.float32)
    background = _BORDER_WEIGHT * border + (1 - _BORDER_WEIGHT) * everywhere
    foreground = tf.einsum("ncp,npk->nck", evidence, directions)
    alike = tf.nn.relu(tf.einsum("npk,nck->ncp", directions, foreground))
    prototype = tf.einsum("p,npk->nk", background, directions)
    unlike = tf.nn.relu(tf.einsum("npk,nk->np", directions, prototype))[:, None]
    total = alike + unlike
    found = tf.where(total == 0, -1.0, tf.math.divide_no_nan(alike - unlike, total))
    return tf.reshape(found, shape)


def _shares(weights: tf.Tensor) -> tf.Tensor:
    """Weights (..., p) that sum to 1; zeros stay zeros."""
    return tf.math.divide_no_nan(weights, tf.reduce_sum(weights, axis=-1, keepdims=True))


def _border(size: tf.Tensor, rank: int) -> tf.Tensor:
    """1 at the positions (p,) of a grid that lie at its border, and 0 inside."""
    inside = tf.ones([1] * rank)
    for axis in range(rank):
        length = size[axis]
        width = tf.maximum(tf.cast(tf.round(_BORDER * tf.cast(length, tf.float32)), tf.int32), 1)
        place = tf.range(length)
        within = (place >= width) & (place < length - width)
        inside *= tf.reshape(
            tf.cast(within, tf.float32), [-1 if i == axis else 1 for i in range(rank)]
        )
    return tf.reshape(1 - inside, [-1])
