"""``cam-tf export``: a directory that TensorFlow Serving answers photos from."""

from pathlib import Path

import click

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
    click.option("--overwrite", is_flag=True, help="Replace an earlier export."),
)
_VIEWS = ("preset", "output_stride", "scales", "flip", "refine")


@click.command()
@click.argument("directory", type=PATH)
@with_options(*MODEL, *LOCALIZER, *_OPTIONS)
def export(directory: Path, **options) -> None:
    """Write a SavedModel into DIRECTORY that answers with classes, maps and boxes.

    Where it is loaded, TensorFlow is enough. The method is CAM where that is exact, else Grad-CAM.
    TensorFlow Serving wants a version number at the end of DIRECTORY.

    \b
      cam-tf export models/lite0/1
      cam-tf export models/mine/1 --model mine.keras --preprocess mobilenet_v2 --labels names.txt
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.export.saved_model  # noqa: F401 - all that is heavy
        _export(directory, **options)


def _export(directory, top_k, threshold, maps, max_pixels, frozen, overwrite, **options) -> None:
    from cam_tf.export.saved_model import CARD, MAX_PIXELS, export_saved_model

    size, classifier, explainer = _explainer(**options)
    export_saved_model(
        explainer,
        directory,
        top_k=top_k,
        image_size=size,
        threshold=threshold,
        class_names=class_names(options["labels"], classifier, explainer.anatomy.classes),
        maps=maps,
        preprocess=classifier.preprocess,
        max_pixels=max_pixels or MAX_PIXELS,
        frozen=frozen,
        overwrite=overwrite,
    )
    click.echo(f"{directory}: {explainer!r}; {CARD} describes it")


def _explainer(size, **options) -> tuple:
    """Returns the size, the classifier, and its localizer or, if that is enough, its explainer."""
    from cam_tf.export.saved_model import explainer_for

    if options["method"] is not None or any(options[name] is not None for name in _VIEWS):
        classifier, localizer, _ = load_localizer(size, **options)
        return localizer.image_size or classifier.size, classifier, localizer
    find_explainer(None, options["max_channels"])
    classifier = load_sized(size, options["model"], options["weights"], options["preprocess"])
    return classifier.size, classifier, explainer_for(classifier.model, options["layer"])
