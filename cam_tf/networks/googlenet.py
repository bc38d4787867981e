"""GoogLeNet, as Caffe has it (response normalization) and as torchvision has it (batch norm).

Caffe's is ``bvlc_googlenet``, that of the paper. torchvision's, whose weights were trained in
TensorFlow, has batch normalization in place of biases and response normalization, a 2 x 2 window
for the fourth pooling, and 3 x 3 convolutions where the paper has 5 x 5: a mistake that was kept,
since the weights are made for it. The auxiliary classifiers, which are for training, are left out.

Sources: Szegedy et al., "Going deeper with convolutions", CVPR 2015, Table 1;
``models/bvlc_googlenet`` of Caffe; ``torchvision/models/googlenet.py``.
"""

from collections.abc import Callable

import keras
from keras import layers as kl

from cam_tf.networks.caffe import LocalResponseNormalization, convolution, max_pooling

# Filters of each block: 1x1; 1x1 and the 3x3 on it; 1x1 and the 5x5 on it; 1x1 on the pooling.
_BLOCKS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
# Convolutions -> their names in torchvision's checkpoints; with "_bn" their normalization.
_STEM = {"conv1": "conv1", "conv2_reduce": "conv2", "conv2": "conv3"}
_BRANCHES = {
    "1x1": "branch1",
    "3x3_reduce": "branch2.0",
    "3x3": "branch2.1",
    "5x5_reduce": "branch3.0",
    "5x5": "branch3.1",
    "pool_proj": "branch4.1",
}
_CONVOLUTIONS = _STEM | {
    f"inception{block}_{name}": f"inception{block}.{source}"
    for block in _BLOCKS
    for name, source in _BRANCHES.items()
}
TORCHVISION = {
    f"{name}{suffix}": f"{source}.{part}"
    for name, source in _CONVOLUTIONS.items()
    for suffix, part in (("", "conv"), ("_bn", "bn"))
}


def caffe_inception4e(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Preprocessed images (N, H, W, 3) -> maps (N, h, w, 832) of stride 16."""
    maps = max_pooling(_strided(convolution, pixels), "pool1")
    maps = LocalResponseNormalization(name="norm1")(maps)
    maps = convolution(maps, 64, 1, "conv2_reduce")
    maps = convolution(maps, 192, 3, "conv2")
    maps = LocalResponseNormalization(name="norm2")(maps)
    return _up_to_4e(convolution, maps, fifth=5)


def caffe_inception5b(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Preprocessed images (N, H, W, 3) -> maps (N, h, w, 1024) of stride 32."""
    maps = max_pooling(caffe_inception4e(pixels), "pool4")
    return _blocks(convolution, maps, "5a 5b", fifth=5)


def torchvision_inception4e(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """As ``caffe_inception4e``, for torchvision's weights."""
    maps = max_pooling(_strided(_normalized, pixels), "pool1")
    maps = _normalized(maps, 64, 1, "conv2_reduce")
    maps = _normalized(maps, 192, 3, "conv2")
    return _up_to_4e(_normalized, maps, fifth=3)


def torchvision_inception5b(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """As ``caffe_inception5b``, for torchvision's weights."""
    maps = max_pooling(torchvision_inception4e(pixels), "pool4", size=2)
    return _blocks(_normalized, maps, "5a 5b", fifth=3)


def _strided(convolve: Callable, pixels: keras.KerasTensor) -> keras.KerasTensor:
    # Three pixels on each side: "same" would put one less at the start of even sizes.
    pixels = kl.ZeroPadding2D(3, "channels_last", name="conv1_pad")(pixels)
    return convolve(pixels, 64, 7, "conv1", stride=2, padding="valid")


def _up_to_4e(convolve: Callable, maps: keras.KerasTensor, fifth: int) -> keras.KerasTensor:
    maps = _blocks(convolve, max_pooling(maps, "pool2"), "3a 3b", fifth)
    return _blocks(convolve, max_pooling(maps, "pool3"), "4a 4b 4c 4d 4e", fifth)


def _blocks(convolve: Callable, maps, names: str, fifth: int) -> keras.KerasTensor:
    """Appends inception blocks; ``fifth`` is the kernel size where the paper has five."""
    for name in names.split():
        filters, block = _BLOCKS[name], f"inception{name}"
        one = convolve(maps, filters[0], 1, f"{block}_1x1")
        three = convolve(maps, filters[1], 1, f"{block}_3x3_reduce")
        three = convolve(three, filters[2], 3, f"{block}_3x3")
        five = convolve(maps, filters[3], 1, f"{block}_5x5_reduce")
        five = convolve(five, filters[4], fifth, f"{block}_5x5")
        pooled = kl.MaxPooling2D(3, 1, "same", "channels_last", name=f"{block}_pool")(maps)
        pooled = convolve(pooled, filters[5], 1, f"{block}_pool_proj")
        maps = kl.Concatenate(name=block)([one, three, five, pooled])
    return maps


def _normalized(maps, filters, kernel, name, *, stride=1, padding="same") -> keras.KerasTensor:
    maps = kl.Conv2D(
        filters, kernel, stride, padding, use_bias=False, data_format="channels_last", name=name
    )(maps)
    maps = kl.BatchNormalization(momentum=0.9, epsilon=1e-3, name=f"{name}_bn")(maps)
    return kl.ReLU(name=f"{name}_relu")(maps)
