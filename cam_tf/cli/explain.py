"""``cam-tf explain`` and ``cam-tf demo``: a figure, an overlay and a record for each photo."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

import cam_tf
from cam_tf.cli.common import (
    COUNT,
    METHOD,
    MODEL,
    Failure,
    chosen_ids,
    class_names,
    each,
    errors_in_a_line,
    find_explainer,
    find_photos,
    make_writable,
    output_option,
    quiet_tensorflow,
    with_options,
)

_OPTIONS = (
    *MODEL,
    click.option("--classes", help="Explain these: 'tabby,281'. Default: the predicted ones."),
    click.option(
        "--top-k", type=COUNT, default=3, show_default=True, help="How many predicted classes."
    ),
    *METHOD,
    click.option("--alpha", type=click.FloatRange(0, 1), help="Opacity of the maps."),
    click.option("--colormap", help="A colour map of matplotlib, such as 'jet'."),
    click.option("--npy", "raw_maps", is_flag=True, help="Write the raw maps too, as .npy."),
    click.option("--json", "as_json", is_flag=True, help="Print the records, as JSON."),
    click.option(
        "--batch-size", type=COUNT, default=8, show_default=True, help="Photos in one forward pass."
    ),
)


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@with_options(*_OPTIONS, output_option("explanations"))
def explain(photos: Sequence[Path], **options) -> None:
    """Explain PHOTOS: files, or directories of them.

    Writes for each photo a figure, an overlay and a JSON record. A photo that cannot be read is
    named, the others are explained, and the exit status is 1.
    """
    _explain(photos, **options)


@click.command()
@with_options(*_OPTIONS, output_option("demo"))
def demo(**options) -> None:
    """Explain the photos that come with cam_tf; nothing is downloaded."""
    from cam_tf.datasets.images import demo_photos

    _explain(demo_photos(), **options)


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
    with errors_in_a_line():
        with quiet_tensorflow():
            from cam_tf.display.records import write_explanation
            from cam_tf.networks.loading import load_classifier
        make_writable(output)
        photos, failures = find_photos(photos)
        explainer_class, options, many_passes = find_explainer(method, max_channels)
        batch_size = 1 if many_passes else batch_size
        classifier = load_classifier(model, weights, preprocess)
        explainer = explainer_class(classifier.model, layer, **options)
        count = explainer.anatomy.classes
        names = class_names(labels, classifier, count)
        selection = {"top_k": min(top_k, count)}
        if classes is not None:
            selection = {"classes": chosen_ids(classes, names, count)}
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
                images, unreadable = each(cam_tf.load_image, batch)
                results = _results(explainer, classifier, images, selection)
                done, unwritten = each(write, images)
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
