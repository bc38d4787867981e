"""Network in Network, as Caffe has it: convolutions, each followed by two of 1 x 1.

It has ended in global average pooling from the start. Its last layer, a 1 x 1 convolution to one
map for each class and the average of it, is the same as the average and then a dense layer, which
is how ``build_classifier`` writes it. Caffe's model has a ReLU between the two: it is left out
here, for with it the maps would show no evidence against a class.

Sources: Lin et al., "Network In Network", ICLR 2014; ``nin_imagenet`` of Caffe's model zoo.
"""

import keras

from cam_tf.networks.caffe import convolution, max_pooling


def caffe_cccp7(pixels: keras.KerasTensor) -> keras.KerasTensor:
    """Preprocessed images (N, H, W, 3) -> maps (N, h, w, 1024) of stride 32."""
    maps = convolution(pixels, 96, 11, "conv1", stride=4, padding="valid")
    maps = convolution(convolution(maps, 96, 1, "cccp1"), 96, 1, "cccp2")
    maps = convolution(max_pooling(maps, "pool1"), 256, 5, "conv2")
    maps = convolution(convolution(maps, 256, 1, "cccp3"), 256, 1, "cccp4")
    maps = convolution(max_pooling(maps, "pool2"), 384, 3, "conv3")
    maps = convolution(convolution(maps, 384, 1, "cccp5"), 384, 1, "cccp6")
    maps = keras.layers.Dropout(0.5, name="drop")(max_pooling(maps, "pool3"))
    return convolution(convolution(maps, 1024, 3, "conv4"), 1024, 1, "cccp7")
