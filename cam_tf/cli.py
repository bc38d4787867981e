"""The command line: ``cam-tf explain``, ``cam-tf demo``, ``cam-tf backbones``."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

import cam_tf

Failure = tuple[Path, Exception]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cam_tf.__version__, prog_name="cam-tf")
def main() -> None:
    """Class activation maps: why a Keras network calls a photo what it does."""


def _explaining(default_output: str):
    """Adds the options that ``explain`` and ``demo`` share."""
    path = click.Path(path_type=Path)
    count = click.IntRange(1)
    options = [
        click.option(
            "--model",
            default="EfficientNetLite0",
            show_default=True,
            metavar="NAME|FILE",
            help="A backbone ('cam-tf backbones' lists them), or your own .keras or .h5 file.",
        ),
        click.option("--weights", type=path, help="Weights for --model NAME; default: ImageNet's."),
        click.option(
            "--preprocess",
            help="What --model FILE was trained on, if not on RGB 0..255: a module's name in "
            "keras.applications (mobilenet_v2), or 'scale,shift'.",
        ),
        click.option("--labels", help="A file of class names, one a line, or 'imagenet'."),
        click.option("--classes", help="Explain these: 'tabby,281'. Default: the predicted ones."),
        click.option(
            "--top-k", type=count, default=3, show_default=True, help="How many predicted classes."
        ),
        click.option(
            "--method",
            default="cam",
            show_default=True,
            help="cam, gradcam, gradcam++, layercam, scorecam, ...; an unknown one lists all.",
        ),
        click.option("--layer", help="The target layer's name; default: the maps that are pooled."),
        click.option(
            "--max-channels",
            type=count,
            help="For scorecam and its like: ask only the channels that vary most.",
        ),
        click.option(
            "--threshold",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.2,
            show_default=True,
            help="A box holds what is above this share of its map's maximum.",
        ),
        click.option("--alpha", type=click.FloatRange(0, 1), help="Opacity of the maps."),
        click.option("--colormap", help="A colour map of matplotlib, such as 'jet'."),
        click.option("--npy", "raw_maps", is_flag=True, help="Write the raw maps too, as .npy."),
        click.option("--json", "as_json", is_flag=True, help="Print the records, as JSON."),
        click.option(
            "--batch-size",
            type=count,
            default=8,
            show_default=True,
            help="Photos in one forward pass.",
        ),
        click.option(
            "-o",
            "--output",
            type=path,
            default=default_output,
            show_default=True,
            help="The directory to write to.",
        ),
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
    with _errors_in_a_line(), _quiet_tensorflow():
        from cam_tf.networks.applications import BACKBONES
    click.echo(f"{'name':20} {'pixels':>7}  ImageNet classifier")
    for row in BACKBONES.values():
        head = "must be trained anew" if row.head == "other" else "pretrained"
        click.echo(f"{row.name:20} {row.size:>3}x{row.size}  {head}")


def _explain(
    photos,
    model,
    weights,
    preprocess,
    labels,
    classes,
    top_k,
    method,
    max_channels,
    layer,
    output,
    as_json,
    batch_size,
    **written,
) -> None:
    with _errors_in_a_line():
        with _quiet_tensorflow():
            from cam_tf.display.records import write_explanation
            from cam_tf.maps.methods import find_method
            from cam_tf.maps.perturbations import PerturbationExplainer
            from cam_tf.networks.loading import load_classifier
        _make_writable(output)
        photos, failures = _find(photos)
        explainer_class = find_method(method)
        classifier = load_classifier(model, weights, preprocess)
        options = {}
        if issubclass(explainer_class, PerturbationExplainer):
            options, batch_size = {"max_channels": max_channels}, 1  # many passes for each photo
        elif max_channels is not None:
            raise ValueError(f"--max-channels: {method} asks no channels one by one.")
        explainer = explainer_class(classifier.model, layer, **options)
        count = explainer.anatomy.classes
        names = _class_names(labels, classifier, count)
        selection = {"classes": _class_ids(classes, names, count), "top_k": min(top_k, count)}
        about = {"model": classifier.name, "method": explainer_class.__name__}
        written = {name: value for name, value in written.items() if value is not None}
        written |= {"class_names": names, "bar_label": explainer.unit}
        _check_style(written)
    records, stems = [], dict(zip(photos, _stems(photos), strict=True))

    def write(photo: Path) -> dict:
        known = {"photo": str(photo), **about, "cam_tf": cam_tf.__version__}
        return write_explanation(
            output, stems[photo], images[photo], results[photo], about=known, **written
        )

    # The bar goes to stderr: with --json stdout holds JSON alone.
    try:
        with click.progressbar(length=len(photos), label="Explaining", file=sys.stderr) as bar:
            for start in range(0, len(photos), batch_size):
                batch = photos[start : start + batch_size]
                images, unreadable = _each(cam_tf.load_image, batch)
                results = _results(explainer, classifier, images, selection)
                done, unwritten = _each(write, images)
                records += done.values()
                failures += unreadable + unwritten
                bar.update(len(batch))
    finally:  # what is done is reported even if the run is interrupted
        _report(records, failures, output, as_json)
    if failures:
        raise SystemExit(1)


def _results(explainer, classifier, images: dict, selection: dict) -> dict:
    """Explains photos in one forward pass: path -> explanation."""
    if not images:
        return {}
    found = explainer(classifier.images(list(images.values())), **selection).numpy()
    return dict(zip(images, found, strict=True))


def _make_writable(directory: Path) -> None:
    """Makes the output directory, and finds out before the work whether it can be written to."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to the directory {directory} ({error.strerror}): name another with -o."
        ) from error


def _find(photos: Sequence[Path]) -> tuple[list[Path], list[Failure]]:
    """Replaces directories by the images in them; one without images is a failure of its own."""
    found, failures = _each(cam_tf.find_images, photos)
    return list(dict.fromkeys(path for paths in found.values() for path in paths)), failures


def _each(function: Callable, photos: Sequence[Path]) -> tuple[dict, list[Failure]]:
    """Calls a function on each photo; a photo that fails does not stop the others."""
    results, failures = {}, []
    for photo in photos:
        try:
            results[photo] = function(photo)
        except (OSError, ValueError) as error:
            failures.append((photo, error))
    return results, failures


def _class_names(labels: str | None, classifier, count: int) -> list[str] | None:
    """The names of the classes, if they are known."""
    if labels is None and not (classifier.is_imagenet and count == 1000):
        return None
    imagenet = labels in (None, "imagenet")
    names = cam_tf.imagenet_classes() if imagenet else cam_tf.read_class_names(labels)
    if len(names) != count:
        raise ValueError(f"{labels} names {len(names)} classes, {classifier.name} has {count}.")
    return names


def _class_ids(classes: str | None, names: list[str] | None, count: int) -> list[list[int]] | None:
    """From "tabby,281" to what explainers take: one list of ids, each once, for all images."""
    if classes is None:
        return None
    names = names or [str(i) for i in range(count)]
    try:
        return [[cam_tf.class_id(classes, names)]]  # a name may have a comma in it
    except ValueError:
        wanted = [name for name in classes.split(",") if name.strip()]
    if not wanted:
        raise ValueError("--classes names no class: give names or ids, as in 'tabby,281'.")
    return [list(dict.fromkeys(cam_tf.class_id(name, names) for name in wanted))]


def _check_style(written: dict) -> None:
    from cam_tf.display.overlays import find_colormap

    if "colormap" in written:
        find_colormap(written["colormap"])


def _stems(photos: Sequence[Path]) -> list[str]:
    """A file stem for each photo; where two photos have the same name, the later becomes NAME-2.

    Case is not enough to tell names apart: some file systems ignore it.
    """
    taken: set[str] = set()
    used: dict[str, int] = {}
    stems = []
    for photo in photos:
        stem = photo.stem
        while stem.casefold() in taken:
            used[photo.stem] = used.get(photo.stem, 1) + 1
            stem = f"{photo.stem}-{used[photo.stem]}"
        taken.add(stem.casefold())
        stems.append(stem)
    return stems


def _report(records, failures: Sequence[Failure], output: Path, as_json: bool) -> None:
    """Prints what was found, and names what failed."""
    if as_json:
        click.echo(json.dumps(records, indent=2, allow_nan=False))
    for one in [] if as_json else records:
        found = ", ".join(
            f"{entry['name'] or 'class ' + str(entry['id'])} {_percent(entry['probability'])}"
            for entry in one["classes"]
        )
        click.echo(f"{one['photo']}: {found} -> {output / one['files']['figure']}")
        for entry in one["classes"]:
            if entry["advice"]:
                name = entry["name"] or f"class {entry['id']}"
                click.echo(f"    the map of {name} is {entry['map']}. {entry['advice']}")
    for photo, error in failures:
        click.echo(f"cam-tf: {photo} was left out: {error}", err=True)


def _percent(score: float | None) -> str:
    return "nan" if score is None else f"{score:.1%}"


@contextlib.contextmanager
def _errors_in_a_line() -> Iterator[None]:
    """What a user can mend ends in one line and status 2, without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        click.echo(f"cam-tf: {' '.join(str(error).split())}", err=True)
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
