"""What the commands share: options, errors of one line, and a quiet TensorFlow."""

import contextlib
import dataclasses
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

import cam_tf

PATH = click.Path(path_type=Path)
COUNT = click.IntRange(1)
Failure = tuple[Path, Exception]
MODEL = (
    click.option(
        "--model",
        default="EfficientNetLite0",
        show_default=True,
        metavar="NAME|FILE",
        help="A backbone ('cam-tf backbones' lists them), or your own .keras or .h5 file.",
    ),
    click.option("--weights", type=PATH, help="Weights for --model NAME; default: ImageNet's."),
    click.option(
        "--preprocess",
        help="What --model FILE was trained on, if not on RGB 0..255: a module's name in "
        "keras.applications (mobilenet_v2), or 'scale,shift'.",
    ),
    click.option("--labels", help="A file of class names, one a line, or 'imagenet'."),
)
_METHODS = "cam, gradcam, gradcam++, layercam, scorecam, ...; an unknown one lists all."
METHOD = (
    click.option("--method", default="cam", show_default=True, help=_METHODS),
    click.option("--layer", help="The target layer's name; default: the maps that are pooled."),
    click.option(
        "--max-channels",
        type=COUNT,
        help="For scorecam and its like: ask only the channels that vary most.",
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.2,
        show_default=True,
        help="A box holds what is above this share of its map's maximum.",
    ),
)


# Where a preset may choose the method.
LOCALIZER = (
    click.option("--preset", help="A tuned way to localize; an unknown one lists all."),
    click.option("--method", help=f"{_METHODS}  [default: cam, or the preset's]"),
    *METHOD[1:],
    click.option("--output-stride", type=COUNT, help="Denser maps, such as 16 or 8."),
    click.option("--scales", help="Average maps of these sizes, such as '1,1.5,2'."),
    click.option("--flip/--no-flip", default=None, help="Average maps of mirrored images too."),
    click.option("--refine", help="Make maps follow the edges of the image, by this method."),
)


def output_option(default: str | None):
    """The option of the directory to write to."""
    return click.option(
        "-o",
        "--output",
        type=PATH,
        default=default,
        show_default=default is not None,
        help="The directory to write to.",
    )


def with_options(*options) -> Callable:
    """Adds options to a command, in the order in which ``--help`` shows them."""

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def find_explainer(method: str | None, max_channels: int | None) -> tuple[type, dict, bool]:
    """Returns a method's class, its options, and whether it makes many passes for each photo.

    Raises:
        ValueError: no such method, or it has no use for ``--max-channels``.
    """
    from cam_tf.maps.methods import find_method
    from cam_tf.maps.perturbations import PerturbationExplainer

    found = find_method(method or "cam")
    if issubclass(found, PerturbationExplainer):
        return found, {"max_channels": max_channels}, True
    if max_channels is not None:
        raise ValueError(f"--max-channels: {method or 'cam'} asks no channels one by one.")
    return found, {}, False


def find_methods(text: str, max_channels: int | None) -> dict[str, tuple[type, dict]]:
    """The classes and options of the methods that are named, by their names."""
    from cam_tf.maps.methods import METHODS, find_method

    kinds = [find_method(name.strip()) for name in text.split(",") if name.strip()]
    if not kinds:
        raise ValueError(f"--methods {text!r} names none: give some, such as cam,scorecam.")
    names = {kind: name for name, kind in METHODS.items()}
    found = {}
    for name in dict.fromkeys(names[kind] for kind in kinds):
        kind, given, many_passes = find_explainer(name, None)
        found[name] = kind, {"max_channels": max_channels} if many_passes else given
    if max_channels is not None and not any(given for _, given in found.values()):
        raise ValueError(f"--max-channels: none of {text} asks channels one by one.")
    return found


def load_localizer(
    size: int | None,
    *,
    model,
    weights,
    preprocess,
    method,
    max_channels,
    layer,
    preset,
    output_stride,
    scales,
    flip,
    refine,
    **_,
) -> tuple:
    """Returns the classifier, what localizes with it, and whether that takes many passes.

    The size is that of the input in pixels, None being the model's; all others are as ``MODEL`` and
    ``LOCALIZER`` give them.
    """
    from cam_tf.localization.localizer import Localizer

    found, options, many_passes = find_explainer(method, max_channels)
    classifier = load_sized(size, model, weights, preprocess)
    localizer = Localizer(
        classifier.model,
        preset=preset,
        method=None if method is None else found,
        output_stride=output_stride,
        scales=_scales(scales),
        flip=flip,
        refine=refine,
        size=classifier.size,
        layer=layer,
        **options,
    )
    return classifier, localizer, many_passes


def load_sized(size: int | None, model, weights, preprocess):
    """Loads a classifier that takes images of a size; None: its own."""
    from cam_tf.networks.loading import load_classifier

    if size is None:
        return load_classifier(model, weights, preprocess, None)
    classifier = load_classifier(model, weights, preprocess, (size, size, 3))
    return dataclasses.replace(classifier, size=(size, size))


def _scales(text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(
            f"--scales {text!r}: expected positive numbers, such as '1,1.5,2'."
        ) from None


def make_writable(directory: Path) -> None:
    """Makes the output directory, and finds out before the work whether it can be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the directory {directory} ({error.strerror}): name another with -o."
        ) from error


def class_names(labels: str | None, classifier, count: int) -> list[str] | None:
    """The names of the classes, if they are known."""
    if labels is None and not (classifier.is_imagenet and count == 1000):
        return None
    imagenet = labels in (None, "imagenet")
    names = cam_tf.imagenet_classes() if imagenet else cam_tf.read_class_names(labels)
    if len(names) != count:
        raise ValueError(f"{labels} names {len(names)} classes, {classifier.name} has {count}.")
    return names


def find_photos(
    photos: Sequence[Path], recursive: bool = False
) -> tuple[list[Path], list[Failure]]:
    """Replaces directories by the images in them; one without images is a failure of its own."""
    found, failures = each(lambda path: cam_tf.find_images(path, recursive=recursive), photos)
    return list(dict.fromkeys(path for paths in found.values() for path in paths)), failures


def each(function: Callable, photos: Sequence[Path]) -> tuple[dict, list[Failure]]:
    """Calls a function on each photo; a photo that fails does not stop the others."""
    results, failures = {}, []
    for photo in photos:
        try:
            results[photo] = function(photo)
        except (OSError, ValueError) as error:
            failures.append((photo, error))
    return results, failures


def chosen_ids(classes: str, names: list[str] | None, count: int) -> list[list[int]]:
    """From "tabby,281" to what explainers take: one list of ids, each once, for all images."""
    names = names or [str(i) for i in range(count)]
    try:
        return [[cam_tf.class_id(classes, names)]]  # a name may have a comma in it
    except ValueError:
        wanted = [name for name in classes.split(",") if name.strip()]
    if not wanted:
        raise ValueError("--classes names no class: give names or ids, as in 'tabby,281'.")
    return [list(dict.fromkeys(cam_tf.class_id(name, names) for name in wanted))]


@contextlib.contextmanager
def errors_in_a_line() -> Iterator[None]:
    """What a user can mend ends in one line and status 2, without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        click.echo(f"cam-tf: {' '.join(str(error).split())}", err=True)
        raise SystemExit(2) from error


@contextlib.contextmanager
def quiet_tensorflow() -> Iterator[None]:
    """Imports TensorFlow without its banner, and shows all that was said if the import fails.

    The banner is written by C++ past ``sys.stderr``, before any log level is read, so the file
    descriptor itself is turned away while the import lasts.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            import tensorflow as tf

            tf.config.list_logical_devices()
            tf.get_logger().setLevel("ERROR")
            yield
        except BaseException:
            said.seek(0)
            os.write(stderr, said.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
