"""``cam-tf export``: a SavedModel that TensorFlow Serving answers from, LiteRT or ONNX."""

from collections.abc import Callable
from pathlib import Path

import click
from click.core import ParameterSource

from cam_tf.cli.common import (
    COUNT,
    LOCALIZER,
    MODEL,
    PATH,
    class_names,
    errors_in_a_line,
    find_explainer,
    load_localizer,
    load_sized,
    quiet_tensorflow,
    with_options,
)

_OPTIONS = (
    click.option(
        "--format",
        type=click.Choice(["saved_model", "litert", "onnx", "web"]),
        default="saved_model",
        show_default=True,
        help="For TensorFlow; for phones and boards; for ONNX Runtime; a page for any browser.",
    ),
    click.option(
        "--quantize",
        type=click.Choice(["float16", "int8"]),
        help="For litert: weights of 2 bytes or of 1, in place of 4.",
    ),
    click.option("--top-k", type=COUNT, help="How many predicted classes; default: 5 at most."),
    click.option("--size", type=COUNT, help="Pixels of the input; default: the model's."),
    click.option(
        "--maps",
        type=click.Choice(["raw", "heatmap"]),
        default="raw",
        show_default=True,
        help="Raw: signed and small; heatmap: 0 to 1, of the input's size.",
    ),
    click.option("--max-pixels", type=COUNT, help="Refuse larger photos; default: 33.5 million."),
    click.option(
        "--frozen/--variables",
        default=True,
        show_default=True,
        help="Weights as constants (faster), or as variables.",
    ),
    click.option(
        "--onnxruntime-web",
        type=PATH,
        help="For web: the npm package, a directory or .tgz; default: npm fetches it once.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace an earlier export."),
)
_VIEWS = ("preset", "output_stride", "scales", "flip", "refine")
_OF_FORMATS = {  # options that not every format has a use for
    "top_k": ("saved_model", "web"),
    "threshold": ("saved_model", "web"),
    "maps": ("saved_model",),
    "max_pixels": ("saved_model",),
    "frozen": ("saved_model",),
    "quantize": ("litert",),
    "onnxruntime_web": ("web",),
}


@click.command()
@click.argument("path", type=PATH)
@with_options(*MODEL, *LOCALIZER, *_OPTIONS)
def export(path: Path, **options) -> None:
    """Write a network with its maps to PATH, for where cam_tf is not installed.

    A SavedModel is a directory; it answers photos with classes, maps and boxes, by CAM where that
    is exact and else by Grad-CAM. TensorFlow Serving wants a version number at the end of PATH.
    LiteRT and ONNX are files, NAME.tflite and NAME.onnx; they answer images of the network's size
    with the scores and the class activation maps of all classes. Web is a directory with a page
    that explains the photos a person drops on it; it needs no server and sends nothing.

    \b
      cam-tf export models/lite0/1
      cam-tf export models/mine/1 --model mine.keras --preprocess mobilenet_v2 --labels names.txt
      cam-tf export lite0.tflite --format litert --quantize int8
      cam-tf export lite0.onnx --format onnx
      cam-tf export page --format web
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        _check_options(options["format"])
        with quiet_tensorflow():
            import cam_tf.export.saved_model  # noqa: F401 - all that is heavy
        _export(path, **options)


def _check_options(format: str) -> None:
    """Refuses what was asked for on the command line and this format does not do."""
    context = click.get_current_context()
    for option in context.command.params:
        formats = _OF_FORMATS.get(option.name, (format,))
        source = context.get_parameter_source(option.name)
        if format not in formats and source is ParameterSource.COMMANDLINE:
            name = "/".join(option.opts + option.secondary_opts)
            raise ValueError(f"{name} is for --format {' and '.join(formats)}, not for {format}.")


def _export(path, format, overwrite, **options) -> None:
    own = {name: options.pop(name) for name in _OF_FORMATS}
    own = {name: value for name, value in own.items() if format in _OF_FORMATS[name]}
    size, classifier, explainer = _explainer(format, **options)
    write, card = _exporter(format, path)
    with quiet_tensorflow():  # converters talk
        write(
            explainer,
            path,
            image_size=size,
            class_names=class_names(options["labels"], classifier, explainer.anatomy.classes),
            preprocess=classifier.preprocess,
            overwrite=overwrite,
            **{name: value for name, value in own.items() if value is not None},
        )
    click.echo(f"{path}: {explainer!r}; {card} describes it")


def _exporter(format: str, path: Path) -> tuple[Callable, str]:
    """The function that writes a format, and the name of the card that it writes too."""
    from cam_tf.export.runtimes import card_path

    if format == "litert":
        from cam_tf.export.litert import export_litert

        return export_litert, card_path(path).name
    if format == "onnx":
        from cam_tf.export.onnx import export_onnx

        return export_onnx, card_path(path).name
    if format == "web":
        from cam_tf.export.web import CARD, export_web

        return export_web, CARD
    from cam_tf.export.saved_model import CARD, export_saved_model

    return export_saved_model, CARD


def _explainer(format: str, size, **options) -> tuple:
    """Returns the size, the classifier, and its localizer or, if that is enough, its explainer."""
    from cam_tf.export.runtimes import exact_cam
    from cam_tf.export.saved_model import explainer_for

    if options["method"] is not None or any(options[name] is not None for name in _VIEWS):
        classifier, localizer, _ = load_localizer(size, **options)
        return localizer.image_size or classifier.size, classifier, localizer
    find_explainer(None, options["max_channels"])
    classifier = load_sized(size, options["model"], options["weights"], options["preprocess"])
    explain = explainer_for if format == "saved_model" else exact_cam
    return classifier.size, classifier, explain(classifier.model, options["layer"])
