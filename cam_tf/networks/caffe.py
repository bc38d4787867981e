"""What networks of Caffe's time are made of: response normalization, pooling that rounds up."""

import keras
import tensorflow as tf
from keras import layers as kl


@keras.saving.register_keras_serializable(package="cam_tf")
class LocalResponseNormalization(kl.Layer):
    """Divides each value by its neighbours across channels, with Caffe's parameters.

    ``x / (bias + alpha / size * s) ** beta``, s being the sum of squares of the ``size`` channels
    around x, itself included. The division of alpha by size is Caffe's (and PyTorch's); Krizhevsky
    et al. and ``tf.nn.local_response_normalization`` do without. It computes in float32 under any
    policy: in float16 the squares of common activations would be infinite.

    Args:
        size: the number of channels in a sum, odd.
        alpha: the scale.
        beta: the exponent.
        bias: what is added, k in the paper.
        **kwargs: of ``keras.layers.Layer``.

    Raises:
        ValueError: the size is not odd and positive.

    Source: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks",
    NIPS 2012, section 3.3; ``lrn_layer.cpp`` of Caffe.
    """

    def __init__(self, size=5, alpha=1e-4, beta=0.75, bias=1.0, **kwargs):
        super().__init__(**kwargs)
        if size < 1 or size % 2 == 0:
            raise ValueError(
                f"size={size!r}: the channels around one are an odd number, such as 5."
            )
        self.size, self.alpha, self.beta, self.bias = size, alpha, beta, bias

    def call(self, maps: tf.Tensor) -> tf.Tensor:
        """Maps (N, h, w, K) -> (N, h, w, K)."""
        normalized = tf.nn.local_response_normalization(
            tf.cast(maps, tf.float32), self.size // 2, self.bias, self.alpha / self.size, self.beta
        )
        return tf.cast(normalized, maps.dtype)

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        names = ("size", "alpha", "beta", "bias")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


def convolution(
    maps: keras.KerasTensor,
    filters: int,
    kernel: int,
    name: str,
    *,
    stride: int = 1,
    groups: int = 1,
    padding: str = "same",
) -> keras.KerasTensor:
    """Appends a convolution with bias and ReLU."""
    return kl.Conv2D(
        filters,
        kernel,
        stride,
        padding,
        groups=groups,
        activation="relu",
        data_format="channels_last",
        name=name,
    )(maps)


def max_pooling(
    maps: keras.KerasTensor, name: str, size: int = 3, stride: int = 2
) -> keras.KerasTensor:
    """Appends max pooling whose last window may reach over the border, of maps from 0 up.

    As always in Caffe, and in PyTorch with ``ceil_mode=True``: of n positions
    ceil((n - size) / stride) + 1 are left, so that none is without a window. With stride - 1 zeros
    at the end that is rounding down; zeros do no harm to the maximum of what has been through a
    ReLU. (Keras's "same" padding is the same for even n alone.)
    """
    end = (0, stride - 1)
    maps = kl.ZeroPadding2D((end, end), "channels_last", name=f"{name}_pad")(maps)
    return kl.MaxPooling2D(size, stride, data_format="channels_last", name=name)(maps)
