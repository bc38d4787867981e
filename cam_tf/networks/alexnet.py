"""AlexNet, as Caffe has it (two groups, response normalization) and as torchvision has it.

Caffe's is ``bvlc_alexnet``, that of the paper: 227 x 227 pixels make 13 x 13 maps. torchvision's is
the narrower network of "One weird trick": 64 and 192 filters, no groups, no normalization, two
pixels of padding around (so 224 x 224 pixels make 13 x 13 maps), pooling that rounds down.

The model that Zhou et al. released as AlexNet*-GAP differs from their text, which is followed here:
it pools before it normalizes, and has 384 filters in conv5, pooled with stride 1 to 11 x 11 maps.

Sources: Krizhevsky et al., "ImageNet Classification with Deep Convolutional Neural Networks", NIPS
2012; ``models/bvlc_alexnet`` of Caffe; Krizhevsky, "One weird trick for parallelizing convolutional
neural networks", arXiv:1404.5997; ``torchvision/models/alexnet.py``.
"""

import keras
from keras import layers as kl

from cam_tf.networks.caffe import LocalResponseNormalization, convolution, max_pooling

# Layers -> their names in torchvision's checkpoints.
TORCHVISION = {
    "conv1": "features.0",
    "conv2": "features.3",
    "conv3": "features.6",
    "conv4": "features.8",
    "conv5": "features.10",
}


def caffe_conv5(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Preprocessed images (N, H, W, 3) -> maps (N, h, w, 256) of stride 16."""
    maps = convolution(pixels, 96, 11, "conv1", stride=4, padding="valid")
    maps = max_pooling(LocalResponseNormalization(name="norm1")(maps), "pool1")
    maps = convolution(maps, 256, 5, "conv2", groups=2)
    maps = max_pooling(LocalResponseNormalization(name="norm2")(maps), "pool2")
    maps = convolution(maps, 384, 3, "conv3")
    maps = convolution(maps, 384, 3, "conv4", groups=2)
    return convolution(maps, 256, 3, "conv5", groups=2)


def caffe_pool5(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Preprocessed images (N, H, W, 3) -> maps (N, h, w, 256) of stride 32."""
    return max_pooling(caffe_conv5(pixels), "pool5")


def torchvision_conv5(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """As ``caffe_conv5``, for torchvision's weights."""
    maps = kl.ZeroPadding2D(2, "channels_last", name="conv1_pad")(pixels)
    maps = convolution(maps, 64, 11, "conv1", stride=4, padding="valid")
    maps = convolution(_pooled(maps, "pool1"), 192, 5, "conv2")
    maps = convolution(_pooled(maps, "pool2"), 384, 3, "conv3")
    maps = convolution(maps, 256, 3, "conv4")
    return convolution(maps, 256, 3, "conv5")


def torchvision_pool5(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """As ``caffe_pool5``, for torchvision's weights."""
    return _pooled(torchvision_conv5(pixels), "pool5")


def _pooled(maps: keras.KerasTensor, name: str) -> keras.KerasTensor:
    return kl.MaxPooling2D(3, 2, data_format="channels_last", name=name)(maps)
