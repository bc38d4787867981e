"""``cam-tf evaluate``: classification and localization on a data set with boxes or masks."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import click

from cam_tf.cli.common import (
    COUNT,
    LOCALIZER,
    MODEL,
    PATH,
    class_names,
    errors_in_a_line,
    load_localizer,
    make_writable,
    output_option,
    quiet_tensorflow,
    with_options,
)

_SHOWN = 10  # bad records on the screen; all are in evaluation.json
_PATHS = ("images", "metadata", "masks", "data_dir")
_INTERRUPTED = 130  # the exit status of a program that Ctrl-C has ended
_DATA = (
    click.option("--images", type=PATH, help="The folder of the images."),
    click.option(
        "--metadata",
        type=PATH,
        help="Their annotations: a metadata folder of the WSOL benchmark, a folder of XML files "
        "(ILSVRC, PASCAL VOC), or a .csv table (image,label,xmin,ymin,xmax,ymax).",
    ),
    click.option("--dataset", help="In place of both: a data set of TFDS, such as voc/2012."),
    click.option("--data-dir", help="Where TFDS keeps its data."),
    click.option("--split", help="The split, of WSOL metadata (train, val, test) or of TFDS."),
    click.option("--masks", type=PATH, help="The folder of WSOL masks; default: --images."),
    click.option("--limit", type=COUNT, help="Only the first so many."),
    click.option("--sample", type=COUNT, help="Only so many, chosen by chance with --seed."),
    click.option("--seed", type=int, default=0, show_default=True, help="Of --sample."),
)
_RUN = (
    click.option("--size", type=COUNT, help="Pixels of the input; default: the model's."),
    click.option(
        "--short-side", type=COUNT, help="Keep the aspect ratio and cut the centre, from this size."
    ),
    click.option(
        "--batch-size", type=COUNT, help="Images in one forward pass; default: 32, 1 for scorecam."
    ),
    click.option("--shard", help="'0/4': the first of four workers; --merge puts them together."),
    click.option("--merge", is_flag=True, help="Merge the finished shards in DIRECTORIES."),
    click.option("--strict", is_flag=True, help="Stop at the first bad record."),
    click.option("--overwrite", is_flag=True, help="Begin anew, whatever --output holds."),
    click.option(
        "--save-every",
        type=click.FloatRange(0),
        default=5.0,
        show_default=True,
        help="Seconds from one saved state to the next.",
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON, not a table."),
)


@click.command()
@click.argument("directories", nargs=-1, type=PATH)
@with_options(*_DATA, *MODEL, *LOCALIZER, *_RUN, output_option(None))
def evaluate(directories: Sequence[Path], merge: bool, **options) -> None:
    """Measure classification and localization on images with boxes or masks.

    Prints top-1 and top-5 errors, GT-known accuracy, MaxBoxAcc, MaxBoxAccV2 and, where there are
    masks, PxAP. Writes evaluation.json, images.jsonl (a line for each image) and cases.png (the
    best, median and worst) into --output, by default "evaluation". A bad record is named and
    left out. A run that was ended, in whatever way, goes on when the same command is given again.

    \b
      cam-tf evaluate --images val --metadata metadata/ilsvrc --split val
      cam-tf evaluate ... --shard 0/2 -o part0;  cam-tf evaluate ... --shard 1/2 -o part1
      cam-tf evaluate --merge part0 part1 -o whole
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.localization.evaluation  # noqa: F401 - all that is heavy
        if directories and not merge:
            raise ValueError("DIRECTORIES go with --merge; images are given by --images DIR.")
        if merge:
            _merge(directories, **options)
        else:
            _evaluate(**options)


def _evaluate(output, as_json, shard, overwrite, save_every, **options) -> None:
    index, count = _shard(shard)
    default = "evaluation" if count == 1 else f"evaluation-{index}-of-{count}"
    output = output or Path(default)
    make_writable(output)
    task = _Task.of(**options)
    with _interruptible(), _bar() as progress:
        evaluation = task.evaluate((index, count), output, overwrite, save_every, progress)
    _finish(evaluation, task, output, as_json, options)


def _merge(directories, output, as_json, overwrite, shard, save_every, **options) -> None:
    from cam_tf.localization.evaluation_files import merge_evaluations

    if not directories:
        raise ValueError("--merge wants the directories of the shards: --merge part0 part1.")
    output = output or Path("evaluation")
    task = None
    if options["images"] or options["dataset"]:  # the pictures are wanted too
        task = _Task.of(**options)

    def check(merged) -> None:
        if task is not None:
            task.check(merged)
        make_writable(output)

    evaluation = merge_evaluations(directories, output, overwrite=overwrite, check=check)
    _finish(evaluation, task, output, as_json, options)


def _shard(text: str | None) -> tuple[int, int]:
    try:
        index, count = map(int, (text or "0/1").split("/"))
    except ValueError:
        raise ValueError(f"--shard {text}: expected 'index/count', such as 0/4.") from None
    if not 0 <= index < count:
        raise ValueError(f"--shard {text}: the first of {count} is 0/{count}.")
    return index, count


@dataclasses.dataclass(frozen=True)
class _Task:
    """A localizer and the data that it is evaluated on."""

    localizer: Callable
    examples: object
    names: list[str] | None
    shared: dict  # of evaluate and explain_records
    rest: dict  # of evaluate alone

    @classmethod
    def of(cls, size, short_side, batch_size, threshold, limit, sample, seed, **options) -> "_Task":
        classifier, localizer, many_passes, short_side = _localizer(size, short_side, **options)
        names = class_names(options["labels"], classifier, localizer.anatomy.classes)
        examples = _examples(names, localizer.anatomy.classes, **options)
        if sample is not None:
            examples = _sampled(examples, sample, seed)
        data_dir = options["data_dir"]
        settings = {
            "model": classifier.name,
            "file": None if classifier.path is None else _file_digest(classifier.path),
            "weights": _digest(classifier.model),
            "preprocess": options["preprocess"],
            "data": options["dataset"] or _kind(options["metadata"], options["split"]),
            "split": options["split"],
            "sample": None if sample is None else f"{sample} by seed {seed}",
            "paths": {} if data_dir is None else {"data_dir": os.path.realpath(data_dir)},
        }
        shared = {
            "image_size": classifier.size,
            "short_side": short_side,
            "prepare": classifier.images,
        }
        rest = {
            "batch_size": batch_size or (1 if many_passes else 32),
            "threshold": threshold,
            "limit": limit,
            "settings": settings,
        }
        return cls(localizer, examples, names, shared, rest)

    def evaluate(self, shard, output, overwrite, save_every, progress):
        """Evaluates, or goes on."""
        from cam_tf.localization.evaluation import evaluate

        return evaluate(
            self.localizer,
            self.examples,
            **self.shared,
            **self.rest,
            shard=shard,
            directory=output,
            overwrite=overwrite,
            save_every=save_every,
            progress=progress,
        )

    def check(self, evaluation) -> None:
        """Raises a ValueError if the evaluation is not of this model and these data."""
        from cam_tf.localization.evaluation import settings_of
        from cam_tf.localization.evaluation_result import compared, differences

        rest = {name: value for name, value in self.rest.items() if name != "settings"}
        mine = settings_of(
            self.localizer,
            self.examples,
            settings=self.rest["settings"],
            image_size=self.shared["image_size"],
            short_side=self.shared["short_side"],
            **rest,
        )
        changes = differences(compared(mine), compared(evaluation.settings))
        if changes:
            raise ValueError(
                f"the shards are not of this model and these data: {'; '.join(changes)}."
            )

    def draw(self, evaluation, path: Path) -> None:
        """Draws the sheet of the best, median and worst cases."""
        from cam_tf.display.sheets import evaluation_sheet
        from cam_tf.files import written_whole

        figure = evaluation_sheet(
            evaluation,
            self.localizer,
            self.examples,
            prepare=self.shared["prepare"],
            class_names=self.names,
            title=_heading(evaluation.settings),
        )
        with written_whole(path) as file, warnings.catch_warnings():
            # A script that the font lacks (in a class name) is drawn as boxes.
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            figure.savefig(file, format="png")


def _localizer(size: int | None, short_side: int | None, **options) -> tuple:
    """Returns the classifier, what localizes with it, whether that takes many passes, and the side.

    The size and the short side are those of the largest view.
    """
    classifier, localizer, many_passes = load_localizer(size, **options)
    own = classifier.size
    _check_sizes(size, own, short_side, localizer.anatomy.image.shape[1:3])
    if localizer.image_size is not None:  # photos are read at the size of the largest view
        classifier = dataclasses.replace(classifier, size=localizer.image_size)
        if short_side is not None:
            short_side = round(short_side * classifier.size[0] / own[0])
    return classifier, localizer, many_passes, short_side


def _check_sizes(size, own, short_side, wanted) -> None:
    if any(length not in (None, given) for length, given in zip(wanted, own, strict=True)):
        height, width = wanted
        raise ValueError(
            f"--size {size}: the model takes images of {height} x {width} pixels only: leave "
            "--size out."
        )
    if short_side is not None and short_side < max(own):
        raise ValueError(
            f"--short-side {short_side} leaves less than the {max(own)} pixels to cut out: give at "
            "least so many, or a smaller --size."
        )


def _digest(model) -> str:
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(weight.tobytes())
    return f"sha256 {digest.hexdigest()[:16]}"


def _file_digest(path: Path) -> str:
    """Of the whole file: the layers and their settings belong to a model too."""
    return f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"


def _kind(metadata: Path, split: str | None) -> str:
    """Tells the format of the annotations.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is none of the known ones.
    """
    _require(metadata=metadata)
    if metadata.suffix.lower() == ".csv":
        return "csv"
    if (metadata / (split or "") / "image_ids.txt").is_file() or any(
        metadata.glob("*/image_ids.txt")
    ):
        return "wsol"
    if metadata.is_dir() and next(metadata.rglob("*.xml"), None) is not None:
        return "xml"
    raise ValueError(
        f"--metadata {metadata}: expected a folder with image_ids.txt (the WSOL benchmark's), a "
        "folder of XML files, or a .csv table."
    )


def _require(**paths: Path | None) -> None:
    for option, path in paths.items():
        if path is not None and not path.exists():
            raise FileNotFoundError(f"--{option} {path}: there is no {path}.")


def _examples(
    names, classes: int, images, metadata, dataset, data_dir, split, masks, strict, labels, **_
):
    """Opens the data, and says what they are."""
    from cam_tf.datasets.localization import csv_examples, wsol_examples, xml_examples

    if dataset is not None:
        return _tfds(dataset, data_dir, split, strict, classes, images or metadata or masks)
    if images is None or metadata is None:
        raise ValueError("give the data: --images DIR and --metadata DIR, or --dataset NAME.")
    _require(images=images, masks=masks)
    kind = _kind(metadata, split)
    if kind != "wsol" and (split or masks):
        raise ValueError("--split and --masks belong to WSOL metadata; choose by the files here.")
    if kind == "wsol":
        examples = wsol_examples(images, metadata, split=split, masks=masks, strict=strict)
    elif kind == "csv":
        examples = csv_examples(images, metadata, classes=names, strict=strict)
    else:
        given = names if labels not in (None, "imagenet") else None
        examples = xml_examples(images, metadata, classes=given, strict=strict)
    formats = {"wsol": "WSOL metadata", "csv": "a CSV table", "xml": "XML annotations"}
    found = f"{metadata}: {formats[kind]}, {len(examples)} examples"
    if not len(examples):
        raise ValueError(f"{found}, so there is nothing to evaluate; {examples.report}.")
    click.echo(f"{found} {_places(examples)}", err=True)
    return examples


def _places(examples) -> str:
    """What the examples have, in words."""
    if examples.has_masks:
        return "with masks"
    boxed = sum(len(example.boxes) > 0 for example in examples)
    if boxed == len(examples):
        return "with boxes"
    if not boxed:
        return "without a box or a mask: the classification alone is measured"
    return f"of which {boxed} have boxes"


def _tfds(dataset, data_dir, split, strict, classes, files):
    from cam_tf.datasets.tfds import tfds_examples

    if files is not None:
        raise ValueError("--dataset takes the place of --images, --metadata and --masks.")
    if split is None:
        raise ValueError("--dataset wants a split: --split test, or --split 'test[:10%]'.")
    examples = tfds_examples(dataset, split, data_dir=data_dir, strict=strict)
    if examples._classes not in (None, classes):
        raise ValueError(
            f"{dataset} has {examples._classes} classes and the model {classes}: give the model "
            "that was trained on them."
        )
    return examples


def _sampled(examples, count: int, seed: int):
    """So many of the examples, chosen by chance, in their order."""
    import numpy as np

    from cam_tf.datasets.localization import Examples

    if not isinstance(examples, Examples):
        raise ValueError("--sample is for files; of TFDS take a part by --split 'test[:10%]'.")
    count = min(count, len(examples))
    chosen = np.random.default_rng(seed).choice(len(examples), count, replace=False)
    picked = [examples[int(i)] for i in np.sort(chosen)]
    return Examples(picked, strict=examples.strict, report=examples.report)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Ctrl-C, and a cluster's SIGTERM, end the run with its state saved and a line that says so."""
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            "\ncam-tf: interrupted. What is done is saved: the same command goes on from there.",
            err=True,
        )
        raise SystemExit(_INTERRUPTED) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr, of what is still to be done: stdout has the result alone."""
    with contextlib.ExitStack() as stack:
        bar, last = None, 0

        def progress(done: int, total: int | None) -> None:
            nonlocal bar, last
            if bar is None:
                if done:
                    click.echo(f"going on after {done} examples", err=True)
                steps = itertools.count() if total is None else range(total - done)
                bar = click.progressbar(steps, label="Evaluating", show_pos=True, file=sys.stderr)
                stack.enter_context(bar)
            else:
                bar.update(done - last)
            last = done

        yield progress
        if bar is None:
            click.echo("evaluated before; --overwrite would begin anew", err=True)


def _finish(evaluation, task: _Task | None, output: Path, as_json: bool, options: dict) -> None:
    """Writes the result and the pictures, and prints them.

    Raises:
        ValueError: there were images, and none could be evaluated.
    """
    from cam_tf.localization.evaluation_files import naming
    from cam_tf.localization.evaluation_result import RECORDS, SHEET, SUMMARY, overlap

    paths = {name: str(options[name]) for name in _PATHS if options[name]}
    written = [SUMMARY, RECORDS]
    with naming(output):
        evaluation.write(output / SUMMARY, paths)
        if not (evaluation.images or evaluation.finished):
            evaluation.results()  # says why there are none
        if task is not None and any(overlap(one) is not None for one in evaluation.records()):
            task.draw(evaluation, output / SHEET)
            written.append(SHEET)
    if as_json:
        click.echo(json.dumps({"paths": paths, **evaluation.summary()}, indent=2, allow_nan=False))
    else:
        click.echo(_heading(evaluation.settings))
        click.echo(f"{evaluation}\n")
        click.echo(f"{', '.join(written)} -> {output}")
    _warn(evaluation, output / SUMMARY)


def _warn(evaluation, summary: Path) -> None:
    """Names bad records, and says what looks wrong."""
    bad = list(evaluation.bad.items())
    for id, (kind, detail) in bad[:_SHOWN]:
        click.echo(f"cam-tf: {id} was left out: {kind}: {detail}", err=True)
    if len(bad) > _SHOWN:
        click.echo(f"cam-tf: and {len(bad) - _SHOWN} more, see {summary}", err=True)
    if evaluation.images >= 20 and evaluation.results()["cls_top1_error"].value == 1:
        click.echo(
            "cam-tf: not one prediction is right: are the labels those of the model?", err=True
        )
    if not evaluation.images:
        click.echo("cam-tf: there was no example in this part of the data.", err=True)


def _heading(settings: dict) -> str:
    (height, width), how = settings["image_size"], settings["localizer"]
    named = [settings["model"], how["method"], f"{height} x {width} pixels"]
    return ", ".join(named)
