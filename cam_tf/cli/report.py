"""``cam-tf report``: explained photos in one HTML file."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

import cam_tf
from cam_tf.cli.common import (
    COUNT,
    METHOD,
    MODEL,
    PATH,
    chosen_ids,
    class_names,
    each,
    errors_in_a_line,
    find_methods,
    find_photos,
    load_sized,
    make_writable,
    quiet_tensorflow,
    with_options,
)

_OPTIONS = (
    *MODEL,
    click.option(
        "--methods",
        default="cam",
        show_default=True,
        help="Methods to switch between, such as 'cam,gradcam,layercam'; an unknown one lists all.",
    ),
    *METHOD[1:],
    click.option("--classes", help="Explain these: 'tabby,281'. Default: the predicted ones."),
    click.option(
        "--top-k", type=COUNT, default=5, show_default=True, help="How many predicted classes."
    ),
    click.option("--size", type=COUNT, help="Pixels of the input; default: the model's."),
    click.option("--title", default="What the network saw", show_default=True, help="Of the page."),
    click.option("--alpha", type=click.FloatRange(0, 1), help="Opacity to begin with."),
    click.option("--colormap", help="A colour map of matplotlib, such as 'viridis'."),
    click.option(
        "-o", "--output", type=PATH, default="report.html", show_default=True, help="The file."
    ),
    click.option(
        "--batch-size", type=COUNT, default=8, show_default=True, help="Photos in one forward pass."
    ),
)


@click.command()
@click.argument("photos", nargs=-1, required=True, type=PATH)
@with_options(*_OPTIONS)
def report(photos: Sequence[Path], **options) -> None:
    """Write a page on which PHOTOS (files, or directories of them) can be looked through.

    One HTML file, which needs no network: for each photo the predicted classes, the map of each
    method, its box, sliders, and what the network's units contribute. A photo that cannot be read
    is named, in the page too, and the exit status is 1.

    \b
      cam-tf report photos/ --methods cam,gradcam,layercam -o report.html
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            from cam_tf.display.report import write_report
        failures = _write(write_report, photos, **options)
    for name, why in failures.items():
        click.echo(f"cam-tf: {name} was left out: {why}", err=True)
    if failures:
        raise SystemExit(1)


def _write(write_report, photos, methods, output, labels, classes, top_k, size, **options) -> dict:
    make_writable(output.parent)
    if output.is_dir():
        raise IsADirectoryError(f"{output} is a directory: name a file, -o {output}/report.html.")
    photos, failures = find_photos(photos)
    left_out = {str(photo): str(why) for photo, why in failures}
    found = find_methods(methods, options["max_channels"])
    classifier = load_sized(size, options["model"], options["weights"], options["preprocess"])
    explainers = {
        kind.__name__: kind(classifier.model, options["layer"], **given)
        for kind, given in found.values()
    }
    first = next(iter(explainers.values()))
    count = first.anatomy.classes
    names = class_names(labels, classifier, count)
    selection = {"top_k": min(top_k, count)}
    if classes is not None:
        selection = {"classes": chosen_ids(classes, names, count)}
    style = {name: options[name] for name in ("alpha", "colormap") if options[name] is not None}
    with click.progressbar(length=len(photos), label="Explaining", file=sys.stderr) as bar:
        write_report(
            output,
            _cases(
                photos,
                classifier,
                explainers,
                selection,
                left_out,
                options["batch_size"],
                options["layer"],
                bar,
            ),
            methods=list(explainers),
            size=classifier.size,
            class_names=names,
            about=_about(classifier, first, options),
            left_out=left_out,
            title=options["title"],
            threshold=options["threshold"],
            **style,
        )
    click.echo(f"{len(photos) + len(failures) - len(left_out)} photos -> {output}")
    return left_out


def _cases(photos, classifier, explainers, selection, left_out, batch_size, layer, bar) -> Iterator:
    """Explains batch by batch; what cannot be read goes into ``left_out``."""
    from cam_tf.discovery.contributions import UnitContributions
    from cam_tf.display.report import ReportCase

    try:
        contributions = UnitContributions(classifier.model, layer)
    except ValueError:  # not a CAM network: there is no such table
        contributions = None
    units = {name: one.unit for name, one in explainers.items()}
    for start in range(0, len(photos), batch_size):
        batch = photos[start : start + batch_size]
        read, failures = each(cam_tf.load_image, batch)
        left_out.update({str(photo): str(why) for photo, why in failures})
        bar.update(len(batch))
        if not read:
            continue
        images = classifier.images(list(read.values()))
        results, chosen = {}, selection
        for name, explain in explainers.items():
            results[name] = explain(images, **chosen).numpy()
            chosen = {"classes": results[name].class_ids.tolist()}  # the same for all methods
        parts = None
        if contributions is not None:
            try:
                parts = contributions(images, **chosen)
            except ValueError:  # max pooling
                contributions = None
        for i, (path, photo) in enumerate(read.items()):
            mine = {name: one[i] for name, one in results.items()}
            part = None if parts is None else parts[i]
            yield ReportCase(path.name, photo, mine, units, part)


def _about(classifier, explainer, options: dict) -> dict:
    """Where the explanations come from."""
    import datetime

    import keras
    import tensorflow as tf

    from cam_tf.discovery.features import weights_hash

    height, width = classifier.size
    given = options["preprocess"]
    return {
        "Network": classifier.name if classifier.path is None else str(classifier.path.name),
        "Weights": options["weights"] or ("ImageNet" if classifier.path is None else "in the file"),
        "SHA-256 of the weights": weights_hash(classifier.model),
        "Target layer": ", ".join(
            one.call.path if one.call else "input" for one in explainer.anatomy.layers
        ),
        "Preprocessing": f"resized whole to {height}x{width}, bilinear, antialiased; "
        + ("RGB 0..255, the rest is inside the network" if given is None else given),
        "Made": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cam_tf": cam_tf.__version__,
        "TensorFlow": tf.__version__,
        "Keras": keras.__version__,
    }
