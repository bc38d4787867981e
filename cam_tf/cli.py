"""The command line: ``cam-tf explain``, ``cam-tf demo``, ``cam-tf backbones``."""

import contextlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

import cam_tf
from cam_tf.files import written_whole

MODEL_FILES = (".keras", ".h5", ".hdf5")
Failure = tuple[Path, Exception]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(cam_tf.__version__, prog_name="cam-tf")
def main() -> None:
    """Class activation maps: why a Keras network calls a photo what it does."""
    _quieten_tensorflow()


def _options(command):
    """The options that ``explain`` and ``demo`` share."""
    options = [
        click.option(
            "--model",
            default="EfficientNetLite0",
            show_default=True,
            help="A backbone's name (cam-tf backbones lists them) or a .keras file.",
        ),
        click.option(
            "--weights",
            type=click.Path(dir_okay=False, path_type=Path),
            help="A weights file for --model NAME, instead of its ImageNet weights.",
        ),
        click.option(
            "--labels",
            type=click.Path(dir_okay=False, path_type=Path),
            help="A text file with one class name a line, for a model of other classes.",
        ),
        click.option(
            "--classes",
            help="Explain these classes, by name or id: \"tabby,281\". Default: the predicted ones.",
        ),
        click.option(
            "--top-k",
            type=click.IntRange(1),
            default=3,
            show_default=True,
            help="How many predicted classes to explain.",
        ),
        click.option(
            "--threshold",
            type=click.FloatRange(0, 1, max_open=True),
            default=0.2,
            show_default=True,
            help="The box holds what is above this share of the map's maximum.",
        ),
        click.option("--colormap", help="A matplotlib colour map for the maps, for example jet."),
        click.option("--alpha", type=click.FloatRange(0, 1), help="Opacity of the map."),
        click.option("--npy", is_flag=True, help="Also write the raw maps, as .npy."),
        click.option(
            "--batch-size", type=click.IntRange(1), default=8, show_default=True, hidden=True
        ),
        click.option("--json", "as_json", is_flag=True, help="Print the records as JSON."),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def _output_option(default: str):
    return click.option(
        "-o",
        "--output",
        type=click.Path(file_okay=False, path_type=Path),
        default=default,
        show_default=True,
        help="The directory to write to.",
    )


@main.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@_options
@_output_option("explanations")
def explain(photos: Sequence[Path], **options) -> None:
    """Explain PHOTOS (files, or directories of them): a figure, an overlay and a record of each."""
    _run(photos, **options)


@main.command()
@_options
@_output_option("demo")
def demo(**options) -> None:
    """Explain the photos that come with cam_tf, with no download."""
    from cam_tf.datasets.images import demo_photos

    _run(demo_photos(), **options)


@main.command()
def backbones() -> None:
    """List the networks that --model takes."""
    from cam_tf.networks.applications import BACKBONES

    click.echo(f"{'name':20} {'input':>7}  ImageNet maps")
    for row in BACKBONES.values():
        pretrained = "its new head must be trained" if row.head == "other" else "pretrained"
        click.echo(f"{row.name:20} {row.size:>3}x{row.size}  {pretrained}")


@dataclass
class _Job:
    """What to write for each photo, and where."""

    explainer: "cam_tf.CAM"
    model: str
    names: list[str] | None
    size: tuple[int, int]
    classes: list[int] | None
    top_k: int
    threshold: float
    npy: bool
    output: Path
    style: dict = field(default_factory=dict)
    taken: set[str] = field(default_factory=set)


def _run(
    photos, *, model, weights, labels, classes, top_k, threshold, colormap, alpha, npy, batch_size,
    as_json, output,
) -> None:
    style = {"colormap": colormap, "alpha": alpha}
    with _clear_errors():
        photos = cam_tf.datasets_images().find_images(photos)
    raise SystemExit(0)


@contextlib.contextmanager
def _clear_errors() -> Iterator[None]:
    """What a user can mend ends in one line and status 2, without a traceback."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        raise click.UsageError(str(error)) from error


def _quieten_tensorflow() -> None:
    """Imports TensorFlow without its banner, which is written past Python to the process's stderr.

    If the import fails, all that was said is shown.
    """
