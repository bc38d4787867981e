"""Class activation maps (Zhou et al., CVPR 2016): M_c(x, y) = sum_k w_k^c f_k(x, y)."""

from collections.abc import Sequence

import tensorflow as tf

from cam_tf.maps.explainer import Explainer
from cam_tf.maps.heatmaps import resize_maps


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
        scales: the image is seen at these sizes, as shares of the given one; a model of a fixed
            size takes only (1.0,).
        flip: the image is seen mirrored left to right too.

    With several views, scores and logits are means over views. Each view's map is mirrored back and
    stretched linearly to the largest view's map, and the mean of them is returned: the sum of a map
    then equals the mean logit only up to what stretching does.

    Raises:
        ValueError: the head is not affine (the message names the layer in the way), or the model
            cannot be given other sizes.

    Example:
        >>> model = cam_tf.build_classifier("EfficientNetLite0")
        >>> result = cam_tf.CAM(model)(images, top_k=5)
        >>> result.maps.shape
        TensorShape([8, 5, 7, 7])

    Source: Zhou et al., "Learning Deep Features for Discriminative Localization", CVPR 2016.
    """

    unit = "contribution to the logit"

    def __init__(
        self, model, layer=None, *, scales: Sequence[float] = (1.0,), flip: bool = False, **options
    ):
        mirrors = (False, True) if flip else (False,)
        self._views = [(float(scale), mirror) for scale in scales for mirror in mirrors]
        super().__init__(model, layer, **options)

    def _check(self):
        if self._target is not None:
            raise ValueError("CAM maps class logits; for another target use cam_tf.GradCAM.")
        self.anatomy.require_affine()
        scales = [scale for scale, _ in self._views]
        if not scales or min(scales) <= 0:
            raise ValueError(f"scales={scales}: expected positive shares of the image's size.")
        fixed = any(length is not None for length in self.anatomy.image.shape[1:-1])
        if fixed and set(scales) != {1.0}:
            raise ValueError(
                f"{self.anatomy.name!r} takes images of one size, {self.anatomy.image.shape[1:]}, "
                f"not at scales {scales}: build it with input_shape=(None, None, 3)."
            )
        if len(self._views) > 1 and len(self.anatomy.image.shape) != 4:
            raise ValueError("scales and flip are for images (N, H, W, channels).")

    def _explain(self, inputs, class_ids, top_k):
        views = [self._forward(self._view(inputs, *view)) for view in self._views]
        maps = [found[0] for found, _, _ in views]
        logits = tf.add_n([logits for _, logits, _ in views]) / len(views)
        scores = tf.add_n([scores for _, _, scores in views]) / len(views)
        if class_ids is not None:
            class_ids = self._select(logits, class_ids, top_k)
        found = [self._project(one, class_ids) for one in maps]
        if len(views) > 1:
            found = self._average(found)
        else:
            (found,) = found
        if class_ids is None:
            class_ids = self._select(logits, None, 0)
        return self._result(found, class_ids, scores, logits)

    def _project(self, feature_maps, class_ids) -> tf.Tensor:
        """The maps (N, n, h, w) of the classes, or of all of them."""
        if self.anatomy.dense is not None or class_ids is None:
            return class_activation_maps(feature_maps, self.anatomy.kernel(), class_ids)
        weights = self.anatomy.class_weights(class_ids)
        return tf.einsum("n...k,nck->nc...", feature_maps, weights)

    def _view(self, inputs, scale: float, mirror: bool) -> list[tf.Tensor]:
        """The inputs with the image resized and mirrored."""
        if scale == 1.0 and not mirror:
            return inputs
        image = self._image(inputs)
        if scale != 1.0:
            size = tf.round(tf.cast(tf.shape(image)[1:3], tf.float32) * scale)
            size = tf.cast(tf.maximum(size, 1.0), tf.int32)
            image = tf.image.resize(image, size, antialias=True)
        return self._with_image(inputs, tf.reverse(image, [2]) if mirror else image)

    def _average(self, found: list[tf.Tensor]) -> tf.Tensor:
        size = tf.reduce_max([tf.shape(one)[2:] for one in found], axis=0)
        aligned = [
            resize_maps(tf.reverse(one, [3]) if mirror else one, tf.unstack(size))
            for one, (_, mirror) in zip(found, self._views, strict=True)
        ]
        return tf.add_n(aligned) / len(aligned)
