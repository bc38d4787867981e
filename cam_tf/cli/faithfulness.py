"""``cam-tf faithfulness``: methods compared by what the network's prediction depends on."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

import cam_tf
from cam_tf.cli.common import (
    COUNT,
    MODEL,
    PATH,
    errors_in_a_line,
    find_methods,
    load_sized,
    make_writable,
    output_option,
    quiet_tensorflow,
    with_options,
)

SUMMARY = "faithfulness.json"
_SHOWN = 10  # bad images on the screen; all are in the file
_TITLES = {
    "deletion_auc": "deletion",
    "insertion_auc": "insertion",
    "average_drop": "avg. drop",
    "increase_in_confidence": "increase",
    "road_combined": "ROAD",
    "spearman": "randomised",
}
_OPTIONS = (
    click.option("--images", type=PATH, required=True, help="A folder of images, or one image."),
    click.option(
        "--methods",
        default="cam,gradcam,centergaussian,randommap",
        show_default=True,
        help="The methods to compare; an unknown one lists all.",
    ),
    click.option(
        "--metrics",
        default="deletion,insertion,drop,road",
        show_default=True,
        help="What to measure.",
    ),
    *MODEL[:3],
    click.option("--layer", help="The target layer's name; default: the maps that are pooled."),
    click.option(
        "--max-channels",
        type=COUNT,
        help="For scorecam and its like: ask only the channels that vary most.",
    ),
    click.option("--size", type=COUNT, help="Pixels of the input; default: the model's."),
    click.option("--limit", type=COUNT, help="Only so many images, chosen by chance with --seed."),
    click.option(
        "--seed", type=int, default=0, show_default=True, help="Of --limit, noise and intervals."
    ),
    click.option(
        "--steps",
        type=COUNT,
        default=28,
        show_default=True,
        help="Steps of deletion and insertion.",
    ),
    click.option(
        "--percentiles",
        default="10,20,30,40,50,60,70,80,90",
        show_default=True,
        help="Of ROAD, per cent of pixels removed.",
    ),
    click.option(
        "--randomize",
        type=COUNT,
        help="Also the sanity check by randomised weights, on the first so many images.",
    ),
    click.option(
        "--resamples", type=COUNT, default=2000, show_default=True, help="Of the bootstrap."
    ),
    click.option(
        "--batch-size", type=COUNT, default=8, show_default=True, help="Images in one forward pass."
    ),
    click.option("--strict", is_flag=True, help="Stop at the first bad image."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, not a table."),
)


@click.command()
@with_options(*_OPTIONS, output_option("faithfulness"))
def faithfulness(**options) -> None:
    """Measure how faithful methods are, on the classes that the model predicts.

    Prints for each method deletion and insertion AUC, average drop, increase in confidence, and
    ROAD (combined), as per cent with 95 % bootstrap intervals over the images, and writes
    faithfulness.json, with the curves and every image's figures, into --output. A bad image is
    named and left out. Compare with centergaussian and randommap, which do not look at the image.

    \b
      cam-tf faithfulness --images val --methods cam,gradcam++,scorecam,randommap --max-channels 32
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.faithfulness  # noqa: F401 - all that is heavy
        _measure(**options)


def _measure(images, methods, metrics, strict, limit, seed, batch_size, output, **options) -> None:
    from cam_tf.faithfulness import Probabilities, compare_methods

    make_writable(output)
    found = find_methods(methods, options["max_channels"])
    makers = _find_metrics(metrics)
    photos = _chosen(cam_tf.find_images(images, recursive=True), limit, seed)
    classifier = load_sized(
        options["size"], options["model"], options["weights"], options["preprocess"]
    )
    settings = _settings(classifier, seed, options)
    explainers = {
        name: kind(classifier.model, options["layer"], **given)
        for name, (kind, given) in found.items()
    }
    probabilities = Probabilities(classifier.model, batch_size=batch_size)
    made = {name: _maker(kind, settings) for name, kind in makers.items()}
    unreadable: dict[str, str] = {}
    batches = _batches(photos, classifier, batch_size, strict, unreadable)
    length = len(photos) * len(explainers)
    with click.progressbar(length=length, label="Measuring", file=sys.stderr) as bar:
        comparison = compare_methods(
            probabilities, explainers, batches, made, strict=strict, progress=bar.update
        )
        bar.update(length - bar.pos)  # of what could not be read
    comparison.bad.update(unreadable)
    sanity = {}
    if options["randomize"] is not None and comparison.ids:
        sanity = _sanity(comparison, photos, classifier, explainers, options["randomize"], seed)
    about = {
        "model": classifier.name,
        "weights": None if options["weights"] is None else str(options["weights"]),
        "image_size": list(classifier.size),
        "layer": options["layer"],
        "max_channels": options["max_channels"],
        "seed": seed,
        "resamples": options["resamples"],
        "confidence": 0.95,
        "metrics": {
            name: one.settings for name, one in next(iter(comparison.metrics.values())).items()
        },
    }
    _finish(comparison, sanity, about, output, options["as_json"])


def _find_metrics(text: str) -> dict[str, type]:
    from cam_tf.faithfulness import METRICS
    from cam_tf.suggestions import did_you_mean

    names = [name.strip().lower() for name in text.split(",") if name.strip()]
    for name in names or [text]:
        if name not in METRICS:
            raise ValueError(
                f"metric {name!r} is unknown.{did_you_mean(name, METRICS)} There are: "
                f"{', '.join(METRICS)}."
            )
    return {name: METRICS[name] for name in dict.fromkeys(names)}


def _settings(classifier, seed: int, options: dict) -> dict:
    """The settings of the metrics that the options give."""
    import numpy as np

    from cam_tf.faithfulness.metrics import IMAGENET_MEAN

    try:
        percentiles = [float(one) for one in options["percentiles"].split(",")]
    except ValueError:
        raise ValueError(
            f"--percentiles {options['percentiles']!r}: expected numbers, such as '20,40,60,80'."
        ) from None
    # The colour as the model takes it: gray, or through its own preprocessing.
    photo = np.broadcast_to(np.float32(IMAGENET_MEAN), (*classifier.size, 3))
    colour = classifier.images([photo])[0, 0, 0]
    return {
        "steps": options["steps"],
        "percentiles": percentiles,
        "baseline": colour.tolist(),
        "seed": seed,
    }


def _maker(kind: type, settings: dict) -> Callable:
    """What makes a metric, with those of the settings that it has; it is made once, to check."""
    given = {name: value for name, value in settings.items() if name in kind().settings}
    kind(**given)
    return lambda: kind(**given)


def _chosen(photos: list[Path], limit: int | None, seed: int) -> list[Path]:
    """So many of the photos, chosen by chance, in their order."""
    import numpy as np

    if limit is None or limit >= len(photos):
        return photos
    chosen = np.random.default_rng(seed).choice(len(photos), limit, replace=False)
    return [photos[i] for i in sorted(chosen)]


def _batches(
    photos: Sequence[Path], classifier, batch_size: int, strict: bool, bad: dict[str, str]
) -> Iterator[tuple[list[str], object]]:
    """Reads the photos; notes those that cannot be read."""
    waiting: dict[str, object] = {}
    for photo in photos:
        try:
            waiting[str(photo)] = classifier.images([cam_tf.load_image(photo)])[0]
        except (OSError, ValueError) as error:
            if strict:
                raise
            bad[str(photo)] = str(error)
        if len(waiting) == batch_size:
            yield list(waiting), list(waiting.values())
            waiting = {}
    if waiting:
        yield list(waiting), list(waiting.values())


def _sanity(comparison, photos, classifier, explainers, count, seed) -> dict[str, dict]:
    """By method, the likeness that is left when every layer is randomised, and layer by layer."""
    from cam_tf.faithfulness import randomization_check

    ids = comparison.ids[:count]
    images = classifier.images([cam_tf.load_image(id) for id in ids])
    found = {}
    for name, explainer in explainers.items():
        with click.progressbar(length=1, label=f"Randomising {name}", file=sys.stderr) as bar:

            def show(done: int, total: int, bar=bar) -> None:
                bar.length = total
                bar.update(done - bar.pos)

            layers = randomization_check(
                classifier.model,
                explainer,
                images,
                comparison.class_ids[:count],
                seed=seed,
                progress=show,
            )
        found[name] = {
            "images": len(ids),
            "layers": [one.layer for one in layers],
            "spearman": [one.spearman.tolist() for one in layers],
            "ssim": [one.ssim.tolist() for one in layers],
        }
    return found


def _finish(comparison, sanity: dict, about: dict, output: Path, as_json: bool) -> None:
    """Writes the result, and prints it."""
    from cam_tf.faithfulness import bootstrap_interval
    from cam_tf.faithfulness.comparison import Estimate
    from cam_tf.files import written_whole

    drawn = {"resamples": about["resamples"], "seed": about["seed"]}
    estimates = comparison.estimates(**drawn)
    for method, one in sanity.items():
        last = one["spearman"][-1]
        mean = sum(last) / len(last)
        estimates[method]["spearman"] = Estimate(mean, *bootstrap_interval(last, **drawn))
    summary = {
        "cam_tf": cam_tf.__version__,
        "settings": about,
        "images": len(comparison.ids),
        "bad_images": {"count": len(comparison.bad), "reasons": comparison.bad},
        "methods": {
            method: {name: each._asdict() for name, each in figures.items()}
            for method, figures in estimates.items()
        },
        "curves": comparison.curves(),
        "randomization": sanity,
    }
    per_image = {"ids": comparison.ids, "class_ids": comparison.class_ids, **comparison.values}
    with written_whole(output / SUMMARY) as file:
        whole = {**summary, "per_image": per_image}
        file.write(json.dumps(whole, indent=1, allow_nan=False).encode() + b"\n")
    if as_json:
        click.echo(json.dumps(summary, indent=2, allow_nan=False))
    else:
        size = " x ".join(map(str, about["image_size"]))
        click.echo(f"{about['model']}, {size} pixels")
        bad = len(comparison.bad)
        click.echo(f"{len(comparison.ids)} images, {bad} bad; per cent, [95 % interval]\n")
        click.echo(_table(estimates))
        click.echo(f"\n{SUMMARY} -> {output}")
    for id, reason in list(comparison.bad.items())[:_SHOWN]:
        click.echo(f"cam-tf: {id} was left out: {reason}", err=True)
    if len(comparison.bad) > _SHOWN:
        rest = len(comparison.bad) - _SHOWN
        click.echo(f"cam-tf: and {rest} more, see {output / SUMMARY}", err=True)


def _table(estimates: dict) -> str:
    """A line for each method, and which way each figure is good."""
    from cam_tf.faithfulness.comparison import is_low_good

    figures = [name for name in _TITLES if name in next(iter(estimates.values()))]
    width = max(len("method"), *map(len, estimates))
    good = ["low" if is_low_good(name) else "high" for name in figures]
    good = [
        "near 0" if name == "spearman" else way for name, way in zip(figures, good, strict=True)
    ]
    heads = [f"{_TITLES[name]} ({way})" for name, way in zip(figures, good, strict=True)]
    lines = ["  ".join([f"{'method':{width}}", *(f"{head:>19}" for head in heads)])]
    for method, own in estimates.items():
        cells = [
            f"{100 * one.value:5.1f} [{100 * one.low:5.1f},{100 * one.high:5.1f}]"
            for one in (own[name] for name in figures)
        ]
        lines.append("  ".join([f"{method:{width}}", *(f"{cell:>19}" for cell in cells)]))
    return "\n".join(lines)
