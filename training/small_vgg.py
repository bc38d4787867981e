"""A small network in the manner of VGG, for images of 64 pixels on two CPU cores."""

from collections.abc import Sequence

import keras

NAME = "SmallVGG"


def small_vgg(size: int | None = None, units: Sequence[int] = (16, 32, 64, 128, 128)):
    """Builds blocks of one 3x3 convolution, with 2x2 max pooling between them.

    After Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image
    Recognition", ICLR 2015, with batch normalization in each block. As in VGG16-GAP no pooling
    follows the last block.

    Args:
        size: height and width of the images; None for any.
        units: of the blocks; each but the first doubles the stride, to 16 for five of them.

    Returns:
        A ``keras.Model``: RGB images 0..255 (N, H, W, 3) -> feature maps (N, H/16, W/16, 128).
    """
    layers = keras.layers
    image = keras.Input((size, size, 3), name="image")
    maps = layers.Rescaling(1 / 127.5, -1.0, dtype="float32", name="preprocessing")(image)
    for block, width in enumerate(units, start=1):
        if block > 1:
            maps = layers.MaxPooling2D(name=f"block{block - 1}_pool")(maps)
        convolution = layers.Conv2D(
            width, 3, padding="same", use_bias=False, name=f"block{block}_conv"
        )
        maps = layers.BatchNormalization(name=f"block{block}_norm")(convolution(maps))
        maps = layers.ReLU(name=f"block{block}_relu")(maps)
    return keras.Model(image, maps, name="small_vgg")
