"""Class activation maps (Zhou et al., CVPR 2016): M_c(x, y) = sum_k w_k^c f_k(x, y)."""

import tensorflow as tf

from cam_tf.maps.explainer import Explainer


def class_activation_maps(
    feature_maps: tf.Tensor, kernel: tf.Tensor, class_ids: tf.Tensor | None = None
) -> tf.Tensor:
    """Projects the weights of classes back on the feature maps (equation 2 of the paper).

    Differentiable, and usable in any ``tf.function``. With mean pooling and a bias b, the mean of
    a map is the class's logit less its bias: mean(M_c) + b_c = logit_c.

    Args:
        feature_maps: (N, ..., K) feature maps of any spatial rank, any float dtype.
        kernel: (K, C) weights of the dense layer.
        class_ids: (N, n) integer ids of the classes of each image, or None for all C classes.
            As in ``tf.gather``, an id out of range is an error on the CPU and zeros on a GPU.

    Returns:
        (N, n, ...) float32 maps, raw and signed.

    Raises:
        ValueError: ranks or sizes that do not fit together.
    """
    feature_maps = tf.cast(feature_maps, tf.float32)
    kernel = tf.cast(kernel, tf.float32)
    if kernel.shape.rank != 2 or not kernel.shape[:1].is_compatible_with(feature_maps.shape[-1:]):
        raise ValueError(
            f"kernel of shape {tuple(kernel.shape)} does not fit feature maps of shape "
            f"{tuple(feature_maps.shape)}: expected (K, C) for maps (N, ..., K)."
        )
    if class_ids is None:
        return tf.einsum("n...k,kc->nc...", feature_maps, kernel)
    class_ids = tf.convert_to_tensor(class_ids)
    if class_ids.shape.rank != 2:
        raise ValueError(
            f"class_ids of shape {tuple(class_ids.shape)}: expected (N, n), a row for each image."
        )
    weights = tf.gather(kernel, class_ids, axis=1)
    return tf.einsum("n...k,knc->nc...", feature_maps, weights)


class CAM(Explainer):
    """Class activation maps of a classifier whose logits are affine in its pooled feature maps.

    The maps come out of the same forward pass as the prediction. For average pooling
    mean(M_c) + b_c = logit_c holds, where b_c is what the head gives for maps of zeros; for max
    pooling the map is formed the same way, without that identity. A head of several layers is taken
    as the one matrix that it amounts to at inference.

    Args:
        model, layer, input, output, jit_compile, frozen: see ``Explainer``.

    Raises:
        ValueError: the head is not affine; the message names the layer in the way.

    Example:
        >>> model = cam_tf.build_classifier("EfficientNetLite0")
        >>> result = cam_tf.CAM(model)(images, top_k=5)
        >>> result.maps.shape
        TensorShape([8, 5, 7, 7])

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """

    unit = "contribution to the logit"

    def _check(self):
        if self._target is not None:
            raise ValueError("CAM maps class logits; for another target use cam_tf.GradCAM.")
        self.anatomy.require_affine()

    def _explain(self, inputs, class_ids, top_k):
        (feature_maps,), logits, scores = self._forward(inputs)
        if class_ids is not None or top_k:
            class_ids = self._select(logits, class_ids, top_k)
        if self.anatomy.dense is not None or class_ids is None:
            maps = class_activation_maps(feature_maps, self.anatomy.kernel(), class_ids)
        else:
            weights = self.anatomy.class_weights(class_ids)
            maps = tf.einsum("n...k,nck->nc...", feature_maps, weights)
        if class_ids is None:
            class_ids = self._select(logits, None, 0)
        return self._result(maps, class_ids, scores, logits)
