"""The command line: ``cam-tf explain``, ``cam-tf demo``, ``cam-tf backbones``."""

import contextlib
import itertools
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import click

import cam_tf

_MODEL_FILES = (".keras", ".h5", ".hdf5")


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cam_tf.__version__, prog_name="cam-tf")
def main() -> None:
    """Class activation maps: why a Keras network calls a photo what it does."""


def _explaining(default_output: str):
    """Adds the options that ``explain`` and ``demo`` share."""
    path = click.Path(path_type=Path)
    options = [
        click.option(
            "--model",
            default="EfficientNetLite0",
            show_default=True,
            metavar="NAME|FILE",
            help="A backbone ('cam-tf backbones' lists them), or a .keras file.",
        ),
        click.option("--weights", type=path, help="Weights for --model NAME; default: ImageNet's."),
        click.option("--labels", help="A file of class names, one a line, or 'imagenet'."),
        click.option("--classes", help="Explain these: 'tabby,281'. Default: the predicted ones."),
        click.option("--top-k", type=click.IntRange(1), default=3, show_default=True,
                     help="How many predicted classes to explain."),
        click.option("--threshold", type=click.FloatRange(0, 1, max_open=True), default=0.2,
                     show_default=True, help="Share of a map's maximum that its box holds."),
        click.option("--alpha", type=click.FloatRange(0, 1), help="Opacity of the maps."),
        click.option("--colormap", help="A colour map of matplotlib, such as 'jet'."),
        click.option("--npy", "raw_maps", is_flag=True, help="Write the raw maps too, as .npy."),
        click.option("--json", "as_json", is_flag=True, help="Print the records, as JSON."),
        click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True,
                     help="Photos in one forward pass."),
        click.option("-o", "--output", type=path, default=default_output, show_default=True,
                     help="The directory to write to."),
    ]

    def decorate(command):
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


@main.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@_explaining("explanations")
def explain(photos: Sequence[Path], **options) -> None:
    """Explain PHOTOS: files, or directories of them.

    Writes for each photo a figure, an overlay and a JSON record. A photo that cannot be read is
    named, the others are explained, and the exit status is 1.
    """
    _explain(photos, **options)


@main.command()
@_explaining("demo")
def demo(**options) -> None:
    """Explain the photos that come with cam_tf; nothing is downloaded."""
    from cam_tf.datasets.images import demo_photos

    _explain(demo_photos(), **options)


@main.command()
def backbones() -> None:
    """List the networks that --model takes."""
    with _quiet_tensorflow():
        from cam_tf.networks.applications import BACKBONES
    click.echo(f"{'name':20} {'pixels':>7}  ImageNet classifier")
    for row in BACKBONES.values():
        head = "must be trained anew" if row.head == "other" else "pretrained"
        click.echo(f"{row.name:20} {row.size:>3}x{row.size}  {head}")


class _Network(NamedTuple):
    """A loaded classifier and what the command line needs to know of it."""

    name: str
    cam: "cam_tf.CAM"
    size: tuple[int, int]
    class_names: list[str] | None


def _explain(photos, model, weights, labels, classes, top_k, output, as_json, batch_size, **write):
    with _errors_in_a_line():
        with _quiet_tensorflow():
            from cam_tf.datasets.images import find_images
        photos = find_images(photos)
        network = _load_network(model, weights, labels)
        classes = _class_ids(classes, network)
        top_k = min(top_k, network.cam.anatomy.classes)
        output.mkdir(parents=True, exist_ok=True)
        stems = dict(zip(photos, _stems(photos), strict=True))
        records, failures = [], []
        # The bar goes to stderr: with --json stdout holds JSON alone.
        with click.progressbar(length=len(photos), label="Explaining", file=sys.stderr) as bar:
            for start in range(0, len(photos), batch_size):
                images, unreadable = _load(photos[start : start + batch_size])
                failures += unreadable
                bar.update(len(unreadable))
                for photo, image, result in _explained(images, network, classes, top_k):
                    target = output, stems[photo]
                    records.append(_write(*target, photo, image, result, network, write))
                    bar.update(1)
    _report(records, failures, output, as_json)


def _load_network(model: str, weights: Path | None, labels: str | None) -> _Network:
    from cam_tf.datasets.imagenet import imagenet_classes, read_class_names

    if Path(model).suffix.lower() in _MODEL_FILES:
        name, classifier, size = _open_model_file(Path(model), weights)
    else:
        name, classifier, size = _build_backbone(model, weights)
        labels = labels or "imagenet"
    names = None
    if labels is not None:
        names = imagenet_classes() if labels == "imagenet" else read_class_names(labels)
    cam = cam_tf.CAM(classifier)
    if names is not None and len(names) != cam.anatomy.classes:
        raise ValueError(
            f"{labels} names {len(names)} classes, and {name} has {cam.anatomy.classes}."
        )
    return _Network(name, cam, size, names)


def _build_backbone(model: str, weights: Path | None):
    from cam_tf.networks.applications import find_backbone
    from cam_tf.networks.classifier import UntrainedHeadWarning, build_classifier

    row = find_backbone(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UntrainedHeadWarning)
        try:
            classifier = build_classifier(row.name, weights=weights or "imagenet")
        except UntrainedHeadWarning as warning:
            raise ValueError(
                f"{warning} 'cam-tf backbones' shows which networks come with a classifier; give "
                "a trained model as --model FILE.keras."
            ) from warning
    return row.name, classifier, (row.size, row.size)


def _open_model_file(path: Path, weights: Path | None):
    import keras

    if weights is not None:
        raise ValueError("--weights belongs to --model NAME; a model file has its own.")
    if not path.is_file():
        raise FileNotFoundError(f"there is no model file {path}.")
    classifier = keras.models.load_model(path, compile=False, safe_mode=True)
    size = tuple(length or 224 for length in classifier.input_shape[1:3])
    return path.name, classifier, size


def _class_ids(classes: str | None, network: _Network) -> list[list[int]] | None:
    """From "tabby,281" to what explainers take: one list for all images."""
    from cam_tf.datasets.imagenet import class_id

    if classes is None:
        return None
    known = network.class_names or [str(i) for i in range(network.cam.anatomy.classes)]
    wanted = [name for name in classes.split(",") if name.strip()]
    return [[class_id(name, known) for name in wanted]]


def _stems(photos: Sequence[Path]) -> list[str]:
    """A file stem for each photo; where two photos have the same name, the later becomes NAME-2."""
    stems: list[str] = []
    for photo in photos:
        numbered = (f"{photo.stem}-{number}" for number in itertools.count(2))
        free = (stem for stem in itertools.chain([photo.stem], numbered) if stem not in stems)
        stems.append(next(free))
    return stems


def _load(photos: Sequence[Path]) -> tuple[list[tuple], list[tuple]]:
    """Reads photos; returns (photo, image) pairs and (photo, error) pairs."""
    images, failures = [], []
    for photo in photos:
        try:
            images.append((photo, cam_tf.load_image(photo)))
        except (OSError, ValueError) as error:
            failures.append((photo, error))
    return images, failures


def _explained(images, network: _Network, classes, top_k) -> Iterator[tuple]:
    """Explains one batch of (photo, image) pairs; yields (photo, image, explanation)."""
    import numpy as np

    if images:
        batch = np.stack([cam_tf.resize_image(image, network.size) for _, image in images])
        results = network.cam(batch, classes, top_k, batch_size=len(batch)).numpy()
        for (photo, image), result in zip(images, results, strict=True):
            yield photo, image, result


def _write(output, stem, photo, image, result, network: _Network, options) -> dict:
    from cam_tf.display.records import write_explanation

    about = {
        "photo": str(photo),
        "model": network.name,
        "method": "CAM",
        "cam_tf": cam_tf.__version__,
    }
    options = {name: value for name, value in options.items() if value is not None}
    return write_explanation(
        output, stem, image, result, about=about, class_names=network.class_names, **options
    )


def _report(records, failures, output: Path, as_json: bool) -> None:
    """Prints what was found and what failed; ends the process with status 1 after a failure."""
    if as_json:
        click.echo(json.dumps(records, indent=2))
    else:
        for one in records:
            found = ", ".join(
                f"{entry['name'] or 'class ' + str(entry['id'])} {entry['probability']:.1%}"
                for entry in one["classes"]
            )
            click.echo(f"{one['photo']}: {found} -> {output / one['files']['figure']}")
    for photo, error in failures:
        click.echo(f"cam-tf: {photo} was left out: {error}", err=True)
    if failures:
        raise SystemExit(1)


@contextlib.contextmanager
def _errors_in_a_line() -> Iterator[None]:
    """What a user can mend ends in one line and status 2, without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        click.echo(f"cam-tf: {error}", err=True)
        raise SystemExit(2) from error


@contextlib.contextmanager
def _quiet_tensorflow() -> Iterator[None]:
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
