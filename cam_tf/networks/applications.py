"""The table of backbones: constructor, input size and preprocessing of each pretrained network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import keras

from cam_tf.networks import efficientnet_lite
from cam_tf.suggestions import did_you_mean

# What a network's published classifier is, between its last feature maps and the class scores:
# "dense": global average pooling and a dense layer; "conv": the same, written as a 1x1 convolution;
# "other": something that no dense layer on the pooled maps can express.
Head = Literal["dense", "conv", "other"]


@dataclass(frozen=True)
class Backbone:
    """A row of the table.

    Attributes:
        name: the constructor's name, as in ``keras.applications``.
        size: the published input size in pixels, height and width.
        preprocessing: ``"caffe"``, ``"tf"``, ``"torch"`` (the modes of keras.applications),
            ``"lite"`` ((x - 127) / 128), or ``"inside"`` where the network has it already.
        head: what the network's own classifier is made of.
        min_size: the smallest height and width that it takes.
        any_size: whether it can be built without a fixed size.
    """

    name: str
    size: int
    preprocessing: str
    head: Head = "dense"
    min_size: int = 32
    any_size: bool = True

    @property
    def constructor(self) -> Callable[..., keras.Model]:
        """The function that builds it, with the arguments of keras.applications."""
        library = efficientnet_lite if self.preprocessing == "lite" else keras.applications
        return getattr(library, self.name)

    def preprocess(self, image: keras.KerasTensor) -> keras.KerasTensor:
        """Appends what turns RGB values 0..255 into what the network was trained on.

        In float32 under any policy: half precision would round the pixels before they are scaled.
        """
        if self.preprocessing == "inside":
            return image
        if self.preprocessing == "caffe":  # RGB to BGR, centred, not scaled
            image = keras.ops.flip(image, axis=-1)
        scale, offset = _SCALE_AND_OFFSET[self.preprocessing]
        return keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(image)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STDDEV = (0.229, 0.224, 0.225)
_SCALE_AND_OFFSET = {
    "caffe": ([1.0, 1.0, 1.0], [-103.939, -116.779, -123.68]),
    "tf": (1 / 127.5, -1.0),
    "torch": (
        [1 / (255 * stddev) for stddev in IMAGENET_STDDEV],
        [-mean / stddev for mean, stddev in zip(IMAGENET_MEAN, IMAGENET_STDDEV, strict=True)],
    ),
    "lite": (1 / 128, -127 / 128),
}


def _family(names: str, sizes: int | list[int], preprocessing: str, **more) -> list[Backbone]:
    names = names.split()
    sizes = sizes if isinstance(sizes, list) else [sizes] * len(names)
    return [
        Backbone(name, size, preprocessing, **more) for name, size in zip(names, sizes, strict=True)
    ]


BACKBONES: dict[str, Backbone] = {
    row.name: row
    for row in (
        *_family("EfficientNetLite0 EfficientNetLite1 EfficientNetLite2", [224, 240, 260], "lite"),
        *_family("VGG16 VGG19", 224, "caffe", head="other"),
        *_family("ResNet50 ResNet101 ResNet152", 224, "caffe"),
        *_family("ResNet50V2 ResNet101V2 ResNet152V2", 224, "tf"),
        *_family("InceptionV3 InceptionResNetV2", 299, "tf", min_size=75),
        *_family("Xception", 299, "tf", min_size=71),
        *_family("MobileNet", 224, "tf", head="conv"),
        *_family("MobileNetV2", 224, "tf"),
        *_family("MobileNetV3Small MobileNetV3Large", 224, "inside", head="other"),
        *_family("DenseNet121 DenseNet169 DenseNet201", 224, "torch"),
        *_family("NASNetMobile NASNetLarge", [224, 331], "tf", any_size=False),
        *_family(
            " ".join(f"EfficientNetB{i}" for i in range(8)),
            [224, 240, 260, 300, 380, 456, 528, 600],
            "inside",
        ),
        *_family(
            "EfficientNetV2B0 EfficientNetV2B1 EfficientNetV2B2 EfficientNetV2B3 "
            "EfficientNetV2S EfficientNetV2M EfficientNetV2L",
            [224, 240, 260, 300, 384, 480, 480],
            "inside",
        ),
        *_family(
            "ConvNeXtTiny ConvNeXtSmall ConvNeXtBase ConvNeXtLarge ConvNeXtXLarge",
            224,
            "inside",
            head="other",
        ),
    )
}


def find_preprocessing(text: str) -> Callable:
    """Returns what turns RGB 0..255 arrays (N, H, W, 3) into a model's input.

    Args:
        text: a module of keras.applications ("mobilenet_v2"), or two numbers "scale,shift" for
            image * scale + shift ("0.0078431,-1").

    Raises:
        ValueError: neither.
    """
    numbers = text.split(",")
    if len(numbers) == 2:
        try:
            scale, shift = map(float, numbers)
        except ValueError:
            pass
        else:
            return lambda images: images.astype("float32") * scale + shift
    modules = {
        name: module
        for name, module in vars(keras.applications).items()
        if hasattr(module, "preprocess_input") and name != "imagenet_utils"
    }
    if text not in modules:
        raise ValueError(
            f"preprocessing {text!r} is unknown.{did_you_mean(text, modules)} Use 'scale,shift' or "
            f"one of {', '.join(modules)}."
        )
    return lambda images: modules[text].preprocess_input(images.astype("float32"))


def list_backbones() -> list[str]:
    """Returns the names that ``build_classifier`` takes."""
    return list(BACKBONES)


def find_backbone(name: str) -> Backbone:
    """Returns the row of a backbone; case does not matter.

    Raises:
        ValueError: no backbone has that name.
    """
    for row in BACKBONES.values():
        if row.name.lower() == name.lower():
            return row
    raise ValueError(
        f"backbone {name!r} is unknown.{did_you_mean(name, BACKBONES)} "
        "cam_tf.list_backbones() lists all; a built keras.Model is taken too."
    )
