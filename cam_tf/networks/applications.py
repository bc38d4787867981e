"""The table of backbones: constructor, input size and preprocessing of each pretrained network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import keras

from cam_tf.networks import alexnet, efficientnet_lite, googlenet, nin
from cam_tf.suggestions import did_you_mean

# What a network's published classifier is, between its last feature maps and the class scores:
# "dense": global average pooling and a dense layer; "conv": the same, written as a 1x1 convolution;
# "other": something that no dense layer on the pooled maps can express.
Head = Literal["dense", "conv", "other"]
TORCH_FILES = (".pth", ".pt")


@dataclass(frozen=True)
class Backbone:
    """A row of the table.

    Attributes:
        name: the constructor's name, as in ``keras.applications``, or the paper's.
        size: the published input size in pixels, height and width.
        preprocessing: ``"caffe"``, ``"tf"``, ``"torch"`` (the modes of keras.applications),
            ``"bvlc"`` (as ``"caffe"``, with the means of Caffe's own models), ``"lite"``
            ((x - 127) / 128), or ``"inside"`` where the network has it already.
        head: what the network's own classifier is made of.
        min_size: the smallest height and width that it takes.
        any_size: whether it can be built without a fixed size.
        head_conv: the units of the 3x3 convolutions that the paper puts before the pooling.
        body: what builds the feature maps on preprocessed images, where no constructor does.
        application: the constructor's name, where it is not the network's.
        last: the layer whose maps are kept; none: the constructor's last.
        tensors: layer -> beginning of its tensors' names in a checkpoint of torchvision.
        unused: what the names of tensors begin with that it does without.
        checkpoint: the file that torchvision publishes.
        torchvision: the same network as torchvision has it, if that is another variant.
    """

    name: str
    size: int
    preprocessing: str
    head: Head = "dense"
    min_size: int = 32
    any_size: bool = True
    head_conv: tuple[int, ...] = ()
    body: Callable[[keras.KerasTensor], keras.KerasTensor] | None = None
    application: str = ""
    last: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    unused: tuple[str, ...] = ()
    checkpoint: str = ""
    torchvision: "Backbone | None" = None

    @property
    def constructor(self) -> Callable[..., keras.Model]:
        """The function that builds it, with the arguments of keras.applications."""
        library = efficientnet_lite if self.preprocessing == "lite" else keras.applications
        return getattr(library, self.application or self.name)

    def variant(self, name: str | None, weights: str | Path | None) -> "Backbone":
        """The variant of that name, or the one that the weights are for.

        Raises:
            ValueError: there is no such variant, the weights are of another, or cannot tell.
        """
        if name not in ("caffe", "torchvision", None) or (name and self.torchvision is None):
            has = "no variants" if self.torchvision is None else "'caffe' and 'torchvision'"
            raise ValueError(f"variant={name!r}: {self.name} has {has}.")
        if self.torchvision is None:
            return self
        if name is None and str(weights).endswith(".weights.h5"):
            raise ValueError(
                f"weights={str(weights)!r} does not say of which variant of {self.name} it is. Say "
                "variant='torchvision' if training began from a '.pth' file, else variant='caffe'."
            )
        from_torch = Path(weights or "").suffix.lower() in TORCH_FILES
        if name == "caffe" and from_torch:
            raise ValueError(
                f"weights={str(weights)!r} is a PyTorch file, which is for variant='torchvision' "
                f"of {self.name}, not for 'caffe'."
            )
        return self.torchvision if name == "torchvision" or from_torch else self

    def preprocess(self, image: keras.KerasTensor) -> keras.KerasTensor:
        """Appends what turns RGB values 0..255 into what the network was trained on.

        In float32 under any policy: half precision would round the pixels before they are scaled.
        """
        if self.preprocessing == "inside":
            return image
        if self.preprocessing in ("caffe", "bvlc"):  # RGB to BGR, centred, not scaled
            image = keras.ops.flip(image, axis=-1)
        scale, offset = _SCALE_AND_OFFSET[self.preprocessing]
        return keras.layers.Rescaling(scale, offset, dtype="float32", name="preprocessing")(image)


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STDDEV = (0.229, 0.224, 0.225)
_SCALE_AND_OFFSET = {
    "caffe": ([1.0, 1.0, 1.0], [-103.939, -116.779, -123.68]),
    "bvlc": ([1.0, 1.0, 1.0], [-104.0, -117.0, -123.0]),
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


def _of_torchvision(name: str, preprocessing: str = "torch", **more) -> Backbone:
    return Backbone(name, 224, preprocessing, **more)


def _alexnet(name: str, last: str, head_conv: tuple[int, ...] = ()) -> Backbone:
    more = {"head": "other", "head_conv": head_conv}
    return Backbone(
        name,
        227,
        "bvlc",
        min_size=39,
        body=getattr(alexnet, f"caffe_{last}"),
        torchvision=_of_torchvision(
            name,
            min_size=63,
            body=getattr(alexnet, f"torchvision_{last}"),
            tensors=alexnet.TORCHVISION,
            unused=("classifier.",),
            checkpoint="alexnet-owt-7be5be79.pth",
            **more,
        ),
        **more,
    )


def _googlenet(name: str, last: str, head: Head, head_conv=(), unused=()) -> Backbone:
    more = {"head": head, "head_conv": head_conv}
    return Backbone(
        name,
        224,
        "bvlc",
        body=getattr(googlenet, f"caffe_{last}"),
        torchvision=_of_torchvision(
            name,
            "tf",  # its transform_input turns mean and deviation of ImageNet into this
            body=getattr(googlenet, f"torchvision_{last}"),
            tensors=googlenet.TORCHVISION,
            unused=("fc.", "aux1.", "aux2.", *unused),
            checkpoint="googlenet-1378be20.pth",
            **more,
        ),
        **more,
    )


def _vgg16_gap() -> Backbone:
    more = {"application": "VGG16", "last": "block5_conv3", "head": "other", "head_conv": (1024,)}
    # In torchvision's list of layers a ReLU follows each convolution, and a pooling each block.
    blocks = [
        f"block{b}_conv{c}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for c in range(1, n + 1)
    ]
    tensors = {name: f"features.{2 * i + int(name[5]) - 1}" for i, name in enumerate(blocks)}
    of_torchvision = _of_torchvision(
        "VGG16-GAP",
        tensors=tensors,
        unused=("classifier.",),
        checkpoint="vgg16-397923af.pth",
        **more,
    )
    return Backbone("VGG16-GAP", 224, "caffe", torchvision=of_torchvision, **more)


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
        # The networks of Zhou et al., section 3. Those named GAP end before the last pooling.
        _alexnet("AlexNet", "pool5"),
        _alexnet("AlexNet-GAP", "conv5", (1024,)),
        _alexnet("AlexNet*-GAP", "conv5", (512, 512)),
        _vgg16_gap(),
        _googlenet("GoogLeNet", "inception5b", "dense"),
        _googlenet("GoogLeNet-GAP", "inception4e", "other", (1024,), unused=("inception5",)),
        Backbone("NIN", 224, "bvlc", "conv", min_size=39, body=nin.caffe_cccp7),
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
    """Returns the row of a backbone; case, hyphens and underscores do not matter.

    Raises:
        ValueError: no backbone has that name.
    """
    for row in BACKBONES.values():
        if _plain(row.name) == _plain(name):
            return row
    raise ValueError(
        f"backbone {name!r} is unknown.{did_you_mean(name, BACKBONES)} "
        "cam_tf.list_backbones() lists all; a built keras.Model is taken too."
    )


def _plain(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")
