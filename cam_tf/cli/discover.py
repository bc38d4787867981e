"""``cam-tf discover``: what the features of a network can do besides, and what its units see."""

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import numpy as np

import cam_tf
from cam_tf.cli.common import (
    COUNT,
    MODEL,
    PATH,
    chosen_ids,
    class_names,
    each,
    errors_in_a_line,
    find_photos,
    load_sized,
    make_writable,
    output_option,
    quiet_tensorflow,
    with_options,
)
from cam_tf.files import written_whole

_NETWORK = (
    *MODEL[:3],
    click.option("--layer", help="The feature maps' layer; default: the maps that are pooled."),
    click.option("--size", type=COUNT, help="Pixels of the input; default: the model's."),
)
_CLASSIFIER = (
    click.option(
        "--kind",
        type=click.Choice(["svm", "logistic"]),
        default="svm",
        show_default=True,
        help="The linear classifier.",
    ),
    click.option("--cost", type=float, help="Its C; default: chosen by cross-validation."),
    click.option("--seed", type=int, default=0, show_default=True),
)
_SPLITS = click.option("--splits", type=click.IntRange(2), default=5, show_default=True)
_THRESHOLD = click.option(
    "--threshold",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.2,
    show_default=True,
    help="What is above this share of a map's maximum is in its box.",
)
_BATCH = 32


@click.group()
def discover() -> None:
    """Use the pooled features of a network for other tasks, and look at its units."""


class _Photos(Sequence):
    """Photos that are read when they are asked for."""

    def __init__(self, paths: Sequence[Path]):
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> np.ndarray:
        return cam_tf.load_image(self.paths[index])


def _features(options: dict):
    """The classifier and its pooled features."""
    from cam_tf.discovery import PooledFeatures

    classifier = load_sized(
        options["size"], options["model"], options["weights"], options["preprocess"]
    )
    return classifier, PooledFeatures(classifier.model, options["layer"])


def _bar(length: int, label: str):
    return click.progressbar(length=length, label=label, file=sys.stderr)


def _take(classifier, features, paths: Sequence[Path], label: str, bad: dict) -> tuple:
    """The features of the photos that can be read, and which these are."""
    kept: list[Path] = []

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            read, failures = each(cam_tf.load_image, batch)
            bad.update({str(path): str(why) for path, why in failures})
            bar.update(len(batch))
            if read:
                kept.extend(read)
                yield classifier.images(list(read.values()))

    with _bar(len(paths), label) as bar:
        return features.extract(batches()), kept


def _class_folders(folder: Path) -> tuple[list[Path], list[str]]:
    """The images of a folder of class folders, and their labels."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    names = sorted(one.name for one in folder.iterdir() if one.is_dir() and one.name[0] != ".")
    found = [
        (path, name) for name in names for path in cam_tf.find_images(folder / name, recursive=True)
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder} has no class folders: expected {folder}/CLASS/photo.jpg."
        )
    return [path for path, _ in found], [label for _, label in found]


def _write_json(directory: Path, name: str, data: dict) -> None:
    with written_whole(directory / name) as file:
        file.write((json.dumps(data, indent=2, allow_nan=False) + "\n").encode())


def _write_figure(directory: Path, name: str, figure) -> None:
    with written_whole(directory / name) as file:
        figure.savefig(file, format="png")


def _write_model(directory: Path, name: str, model) -> None:
    """Saves a Keras model whole or not at all."""
    import os

    temporary = directory / f".{name}"
    model.save(temporary)
    os.replace(temporary, directory / name)


def _warn(bad: dict) -> None:
    for name, why in list(bad.items())[:10]:
        click.echo(f"cam-tf: {name} was left out: {why}", err=True)
    if len(bad) > 10:
        click.echo(f"cam-tf: and {len(bad) - 10} more", err=True)


def _shown(accuracy) -> str:
    spread = f" ± {100 * accuracy.spread:.1f}" if len(accuracy.values) > 1 else ""
    return f"{100 * accuracy.mean:.1f}{spread}"


@discover.command()
@click.argument("source")
@with_options(
    click.option("--test", help="Test images, likewise; for a data set of TFDS its split."),
    click.option("--split", default="train", show_default=True, help="Of a data set of TFDS."),
    _SPLITS,
    *_CLASSIFIER,
    *_NETWORK,
    output_option("features"),
)
def features(source: str, **options) -> None:
    """Measure the pooled features of a network on another task, by a linear classifier.

    SOURCE is a folder of class folders, or a data set of TFDS by name. Without --test the accuracy
    is cross-validated. Writes results.json, labels.txt, and classifier.keras: the network with the
    new head, which `cam-tf explain`, `evaluate` and `export` take.

    \b
      cam-tf discover features flowers/
      cam-tf discover features caltech101 --split train --test test
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.discovery  # noqa: F401
        _measure_features(source, **options)


def _measure_features(source, test, split, splits, kind, cost, seed, output, **options) -> None:
    from cam_tf.discovery import attach, fit_linear, linear_accuracy

    make_writable(output)
    classifier, take = _features(options)
    bad: dict[str, str] = {}
    given, labels = _labelled(source, split, classifier, take, "Training images", bad)
    held_out = None
    if test is not None:
        is_folder = Path(source).is_dir()
        held_out = _labelled(
            test if is_folder else source, test, classifier, take, "Test images", bad
        )
    found = linear_accuracy(given, labels, held_out, kind=kind, C=cost, splits=splits, seed=seed)
    head = fit_linear(
        given, labels, kind, C=cost, folds=splits, seed=seed, network=take.fingerprint()
    )
    _write_model(output, "classifier.keras", attach(classifier.model, head, options["layer"]))
    names = [str(name) for name in head.classes]
    with written_whole(output / "labels.txt") as file:
        file.write("".join(f"{name}\n" for name in names).encode())
    _write_json(
        output,
        "results.json",
        {
            "source": source,
            "test": test,
            "model": classifier.name,
            "layer": options["layer"],
            "features": take.channels,
            "images": len(labels),
            "classes": names,
            "kind": kind,
            "cost": head.cost,
            "accuracy": found.mean,
            "spread": found.spread,
            "splits": list(found.values),
            "bad": bad,
        },
    )
    _warn(bad)
    how = f"{splits} splits" if held_out is None else f"{len(held_out[1])} test images"
    click.echo(
        f"{len(labels)} images, {len(names)} classes, {take.channels} features: accuracy "
        f"{_shown(found)} % ({how}) -> {output}"
    )


def _labelled(source: str, split: str, classifier, take, label: str, bad: dict) -> tuple:
    """Features and labels of a folder or of a data set of TFDS."""
    if Path(source).is_dir():
        paths, labels = _class_folders(Path(source))
        by_path = dict(zip(paths, labels, strict=True))
        given, kept = _take(classifier, take, paths, label, bad)
        return given, [by_path[path] for path in kept]
    data = cam_tf.training_data(source, split, size=classifier.size, batch_size=_BATCH)
    labels: list[str] = []

    def batches() -> Iterator[np.ndarray]:
        for images, ids in data.dataset:
            labels.extend(data.classes[i] for i in ids.numpy())
            bar.update(len(ids))
            yield classifier.images(list(images.numpy()))

    with _bar(data.count, label) as bar:
        given = take.extract(batches())
    bad.update({str(id): f"{kind}: {why}" for id, (kind, why) in data.report.bad.items()})
    return given, labels


@discover.command("fine-grained")
@click.argument("folder", type=PATH)
@with_options(
    click.option(
        "--boxes",
        type=PATH,
        help="A CSV table of true boxes: image (relative to FOLDER),ymin,xmin,ymax,xmax, as shares "
        "of the image.",
    ),
    _SPLITS,
    _THRESHOLD,
    *_CLASSIFIER,
    *_NETWORK,
    output_option("fine_grained"),
)
def fine_grained(folder: Path, **options) -> None:
    """Compare whole images with crops to the boxes of class activation maps.

    FOLDER holds a folder for each class. The rows are those of the paper's fine-grained experiment.
    """
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.discovery  # noqa: F401
        _fine_grained(folder, **options)


def _fine_grained(folder, boxes, splits, threshold, kind, cost, seed, output, **options) -> None:
    from cam_tf.discovery.fine_grained import fine_grained
    from cam_tf.display.discovery_sheets import Panel, photo_sheet

    make_writable(output)
    paths, labels = _class_folders(folder)
    classifier, take = _features(options)
    true_boxes = None if boxes is None else _read_boxes(boxes, folder, paths)
    photos = _Photos(paths)
    with _bar((2 + 2 * splits) * len(paths), "Looking") as bar:
        found = fine_grained(
            take,
            photos,
            labels,
            true_boxes,
            threshold=threshold,
            splits=splits,
            kind=kind,
            C=cost,
            seed=seed,
            prepare=classifier.images,
            progress=bar.update,
        )
        bar.update(bar.length - bar.pos)
    rows = {"whole image": found.whole, "CAM box": found.cam_crop, "true box": found.box_crop}
    rows = {name: row for name, row in rows.items() if row is not None}
    results = {
        name: {"accuracy": row.mean, "spread": row.spread, "splits": list(row.values)}
        for name, row in rows.items()
    }
    records = [
        {"image": path.relative_to(folder).as_posix(), "label": label, "box": box.tolist()}
        | {name: str(row.predictions[i]) for name, row in rows.items()}
        for i, (path, label, box) in enumerate(zip(paths, labels, found.boxes, strict=True))
    ]
    settings = {"model": classifier.name, "threshold": threshold, "seed": seed, "kind": kind}
    _write_json(output, "results.json", {**settings, "rows": results, "images": records})
    some = np.linspace(0, len(paths) - 1, min(15, len(paths))).astype(int)
    panels = [
        Panel(photos[i], str(found.whole.predictions[i])[:24], None, found.boxes[i : i + 1])
        for i in some
    ]
    _write_figure(output, "boxes.png", photo_sheet(panels, "Predicted from the whole image"))
    for name, row in rows.items():
        click.echo(f"{name:12} {_shown(row)} %")
    click.echo(f"{len(paths)} images, {splits} splits -> {output}")


def _read_boxes(table: Path, folder: Path, paths: Sequence[Path]) -> np.ndarray:
    with open(table, encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    sides = ("ymin", "xmin", "ymax", "xmax")
    try:
        known = {row["image"]: [float(row[side]) for side in sides] for row in rows}
        return np.array([known[path.relative_to(folder).as_posix()] for path in paths])
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(
            f"{table}: no box for {error}: expected the columns image,{','.join(sides)} and a row "
            "for each image."
        ) from error


@discover.command()
@click.argument("folder", type=PATH)
@with_options(
    click.option(
        "--layout",
        type=click.Choice(["ade20k", "labelme"]),
        default="ade20k",
        show_default=True,
        help="ADE20K's scene parsing benchmark (scene_parse150), or SCENE/NAME.json of LabelMe.",
    ),
    click.option("--split", default="validation", show_default=True, help="Of ade20k."),
    click.option("--scenes", help="Only these: 'kitchen,bathroom'."),
    click.option(
        "--least", type=COUNT, default=3, show_default=True, help="Images that an object is in."
    ),
    _THRESHOLD,
    *_CLASSIFIER[1:],
    *_NETWORK,
    output_option("scenes"),
)
def scenes(folder: Path, **options) -> None:
    """Rank the objects of scenes by how often they occur, and by how much maps look at them."""
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.discovery  # noqa: F401
        _rank_objects(folder, **options)


def _rank_objects(
    folder, layout, split, scenes, least, threshold, cost, seed, output, **options
) -> None:
    from cam_tf.discovery.scenes import informative_objects, labelme_images, scene_parse_images
    from cam_tf.display.discovery_sheets import ranking_sheet

    make_writable(output)
    wanted = None if scenes is None else [name.strip() for name in scenes.split(",")]
    if layout == "ade20k":
        images = scene_parse_images(folder, split, wanted)
    else:
        images = labelme_images(folder, wanted)
    classifier, take = _features(options)
    with _bar(2 * len(images), "Looking") as bar:
        found = informative_objects(
            take,
            images,
            threshold=threshold,
            C=cost,
            seed=seed,
            prepare=classifier.images,
            progress=bar.update,
        )
        bar.update(bar.length - bar.pos)
    report, drawn = {}, {}
    for scene in found.objects:
        lists = {
            "by_frequency": found.by_frequency(scene, least),
            "by_overlap": found.by_overlap(scene, least),
        }
        report[scene] = {name: [one._asdict() for one in ranked] for name, ranked in lists.items()}
        drawn[scene] = {
            "how often": [(one.name, one.frequency) for one in lists["by_frequency"]],
            "share looked at": [(one.name, one.overlap) for one in lists["by_overlap"]],
        }
        click.echo(f"{scene}: frequent: {_names(lists['by_frequency'])}")
        click.echo(f"{'':{len(scene)}}  looked at: {_names(lists['by_overlap'])}")
    _write_figure(output, "objects.png", ranking_sheet(drawn))
    accuracy = found.head.accuracy
    _write_json(
        output,
        "results.json",
        {
            "model": classifier.name,
            "threshold": threshold,
            "scene_accuracy": accuracy,
            "scenes": report,
            "bad": found.bad,
        },
    )
    _warn(found.bad)
    click.echo(f"{len(images) - len(found.bad)} images -> {output}")


def _names(ranked) -> str:
    return ", ".join(one.name for one in ranked[:6]) or "none"


@discover.command()
@click.argument("photos", nargs=-1, type=PATH)
@with_options(
    click.option("--with", "having", type=PATH, help="A folder of images with the concept."),
    click.option("--without", "lacking", type=PATH, help="A folder of images without it."),
    click.option("--captions", type=PATH, help="COCO's captions JSON, in place of the folders."),
    click.option("--phrase", help="The concept in words that captions have."),
    click.option("--images", type=PATH, help="The folder of the captions' images."),
    click.option(
        "--rounds", type=click.IntRange(0), default=3, show_default=True, help="Of mining."
    ),
    _THRESHOLD,
    *_CLASSIFIER,
    *_NETWORK,
    output_option("concept"),
)
def concept(photos: Sequence[Path], **options) -> None:
    """Learn a concept from two folders, or captions and a phrase, and find it in PHOTOS.

    Half of the images are held out: the average precision is theirs, and without PHOTOS those of
    them that are most like the concept are drawn. Writes concept.keras, results.json, concept.png.

    \b
      cam-tf discover concept --with cups/ --without others/
      cam-tf discover concept --captions captions.json --images train2017 --phrase 'red umbrella'
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.discovery  # noqa: F401
        _learn_concept(photos, **options)


def _learn_concept(
    photos,
    having,
    lacking,
    captions,
    phrase,
    images,
    rounds,
    threshold,
    kind,
    cost,
    seed,
    output,
    **options,
) -> None:
    from cam_tf.discovery import attach
    from cam_tf.discovery.concepts import average_precision, mine_concept
    from cam_tf.display.discovery_sheets import Panel, photo_sheet

    make_writable(output)
    positive, negative = _two_sets(having, lacking, captions, phrase, images)
    classifier, take = _features(options)
    bad: dict[str, str] = {}
    first, positive = _take(classifier, take, positive, "With", bad)
    second, negative = _take(classifier, take, negative, "Without", bad)
    if min(len(positive), len(negative)) < 4:
        raise ValueError(
            f"{len(positive)} images with the concept and {len(negative)} without it: at least 4 "
            "of each are needed, half of which are held out."
        )
    settings = {"rounds": rounds, "kind": kind, "seed": seed, "network": take.fingerprint()}
    head = mine_concept(first[::2], second[::2], C=cost, **settings)
    values = head.decision(np.concatenate([first[1::2], second[1::2]]))[:, 0]
    truth = np.arange(len(values)) < len(first[1::2])
    precision = average_precision(values, truth)
    model = attach(classifier.model, head, options["layer"])
    _write_model(output, "concept.keras", model)
    if photos:
        chosen, failures = find_photos(photos, recursive=True)
        bad.update({str(path): str(why) for path, why in failures})
    else:
        held_out = positive[1::2] + negative[1::2]
        chosen = [held_out[i] for i in np.argsort(-values)[:15]]
    read, failures = each(cam_tf.load_image, chosen)
    bad.update({str(path): str(why) for path, why in failures})
    explain, panels, records = cam_tf.CAM(model), [], []
    for path, photo in read.items():
        result = explain(classifier.images([photo]), 0).numpy()
        box, value = cam_tf.boxes(result, threshold)[0, 0], float(result.logits[0, 0])
        panels.append(Panel(photo, f"{value:+.2f}", result.maps[0, 0], [box] if value > 0 else []))
        records.append({"photo": str(path), "decision": value, "box": box.tolist()})
    if panels:
        heading = phrase or (having.name if having else "concept")
        _write_figure(output, "concept.png", photo_sheet(panels[:30], heading))
    share = float(truth.mean())
    _write_json(
        output,
        "results.json",
        {
            "model": classifier.name,
            "with": len(positive),
            "without": len(negative),
            "average_precision": precision,
            "share_with": share,
            "cost": head.cost,
            **{name: settings[name] for name in ("rounds", "kind", "seed")},
            "photos": records,
            "bad": bad,
        },
    )
    _warn(bad)
    click.echo(
        f"{len(positive)} images with it, {len(negative)} without: average precision "
        f"{100 * precision:.1f} % on the half held out (by chance {100 * share:.1f}) -> {output}"
    )


def _two_sets(having, lacking, captions, phrase, images) -> tuple[list[Path], list[Path]]:
    from cam_tf.discovery.concepts import captioned

    if captions is not None and phrase is not None and images is not None:
        found = captioned(captions, phrase)
        return [images / name for name in found.having], [images / name for name in found.lacking]
    if having is None or lacking is None or captions is not None:
        raise ValueError(
            "give two folders, --with and --without, or --captions, --images and --phrase."
        )
    return tuple(cam_tf.find_images(one, recursive=True) for one in (having, lacking))


@discover.command()
@click.argument("photos", nargs=-1, required=True, type=PATH)
@with_options(
    click.option(
        "--backgrounds",
        type=PATH,
        help="A folder of photos without text to learn on; default: those of cam_tf.",
    ),
    click.option(
        "--scenes", type=COUNT, default=600, show_default=True, help="Pictures to learn from."
    ),
    click.option(
        "--side", type=COUNT, default=448, show_default=True, help="Pixels of the shorter side."
    ),
    click.option(
        "--threshold",
        type=click.FloatRange(0, 1, max_open=True),
        default=0.45,
        show_default=True,
        help="Text is above this share of the map's maximum.",
    ),
    click.option("--layer", help="The feature maps' layer; default: one of the middle."),
    click.option("--seed", type=int, default=0, show_default=True),
    output_option("text"),
)
def text(photos: Sequence[Path], **options) -> None:
    """Learn what text is from pictures with and without, and draw boxes around it in PHOTOS.

    Text is rendered on photos for learning; only whether a picture has some is learnt from. The
    network is EfficientNet-Lite0.
    """
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.discovery  # noqa: F401
        _detect_text(photos, **options)


def _detect_text(photos, backgrounds, scenes, side, threshold, layer, seed, output) -> None:
    from cam_tf.discovery import PooledFeatures
    from cam_tf.discovery.text import (
        TEXT_LAYER,
        TextDetector,
        fit_text_detector,
        render_text_scenes,
        score_text_boxes,
    )
    from cam_tf.display.discovery_sheets import Panel, photo_sheet

    make_writable(output)
    chosen, failures = find_photos(photos, recursive=True)
    bad = {str(path): str(why) for path, why in failures}
    paths = (
        cam_tf.demo_photos()
        if backgrounds is None
        else cam_tf.find_images(backgrounds, recursive=True)
    )
    loaded = [cam_tf.load_image(path) for path in paths[:500]]
    network = cam_tf.build_classifier("EfficientNetLite0", input_shape=(None, None, 3))
    layer = layer or TEXT_LAYER
    take = PooledFeatures(network, layer)
    head = fit_text_detector(take, render_text_scenes(loaded, scenes, seed=seed), seed=seed)
    detect = TextDetector(network, head, layer, side=side)
    test = render_text_scenes(loaded, 100, seed=seed + 1)
    says = head.decision(take(np.stack([one.image for one in test])))[:, 0] > 0
    accuracy = float(np.mean(says == [len(one.boxes) > 0 for one in test]))
    held_out = [one for one in test if len(one.boxes)]
    scores = score_text_boxes(
        [detect(one.image, threshold)[0] for one in held_out], [one.boxes for one in held_out]
    )
    read, failures = each(cam_tf.load_image, chosen)
    bad.update({str(path): str(why) for path, why in failures})
    panels, records = [], []
    for path, photo in read.items():
        boxes, values = detect(photo, threshold)
        panels.append(Panel(photo, path.name, None, boxes))
        panels.append(Panel(photo, f"{len(boxes)} boxes", detect.map(photo), ()))
        records.append({"photo": str(path), "boxes": boxes.tolist(), "scores": values.tolist()})
        click.echo(f"{path}: {len(boxes)} boxes")
    if panels:
        _write_figure(output, "text.png", photo_sheet(panels, "Text", columns=6))
    _write_json(
        output,
        "results.json",
        {
            "layer": layer,
            "accuracy": accuracy,
            "on_rendered": vars(scores),
            "threshold": threshold,
            "photos": records,
            "bad": bad,
        },
    )
    _warn(bad)
    click.echo(
        f"text or not: {100 * accuracy:.1f} % of other pictures; boxes on rendered text: "
        f"pixel precision {100 * scores.pixel_precision:.0f} %, recall "
        f"{100 * scores.pixel_recall:.0f} % -> {output}"
    )
    if bad:
        raise SystemExit(1)


@discover.command()
@with_options(
    click.option("--questions", type=PATH, help="VQA v2's questions JSON."),
    click.option("--annotations", type=PATH, help="VQA v2's annotations JSON."),
    click.option("--images", type=PATH, help="The folder of images, whose names end in the id."),
    click.option(
        "--made-up", type=COUNT, help="Without data: train on so many made-up pictures, and test."
    ),
    click.option(
        "--answers", type=COUNT, default=1000, show_default=True, help="The most frequent ones."
    ),
    click.option("--epochs", type=COUNT, default=21, show_default=True),
    click.option("--seed", type=int, default=0, show_default=True),
    *_NETWORK,
    output_option("vqa"),
)
def vqa(**options) -> None:
    """Train the bag-of-words baseline of question answering, and show what its answers rest on.

    \b
      cam-tf discover vqa --made-up 3000
      cam-tf discover vqa --questions q.json --annotations a.json --images train2014
    """  # noqa: D301 - \b keeps click from wrapping what follows
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.discovery  # noqa: F401
        _answer_questions(**options)


def _answer_questions(made_up, questions, annotations, images, output, **options) -> None:
    from cam_tf.discovery.questions import (
        KINDS,
        question_scenes,
        score_on_scenes,
        train_on_scenes,
        write_question_data,
    )
    from cam_tf.display.discovery_sheets import Panel, photo_sheet

    make_writable(output)
    if made_up is None:
        if None in (questions, annotations, images):
            raise ValueError("give --questions, --annotations and --images, or --made-up 3000.")
        _answer_files(questions, annotations, images, output, **options)
        return
    seed = options["seed"]
    with _bar(options["epochs"], "Training") as bar:
        answering = train_on_scenes(
            question_scenes(made_up, seed=2 * seed),
            epochs=options["epochs"],
            seed=seed,
            progress=bar.update,
        )
    test = question_scenes(200, seed=2 * seed + 1)
    write_question_data(output / "test", test)
    results = score_on_scenes(answering, test)
    panels = []
    for scene in test[:5]:
        for kind in KINDS:
            asked = scene.question(kind)
            found = answering(scene.image, asked)
            panels.append(
                Panel(scene.image, f"{asked}\n{found.text}", found.explanation.maps[0, 0])
            )
    _write_figure(output, "answers.png", photo_sheet(panels, "Questions and answers", columns=3))
    _save_answering(output, answering, results)
    for kind, row in results.items():
        click.echo(
            f"{kind:7} accuracy {100 * row['accuracy']:.0f} %, the map's maximum where the answer "
            f"is {100 * row['pointing']:.0f} % (by chance {100 * row['chance']:.0f})"
        )
    click.echo(f"{made_up} pictures to learn from, {len(test)} to test -> {output}")


def _save_answering(output: Path, answering, results: dict) -> None:
    _write_model(output, "answers.keras", answering.model)
    _write_json(
        output,
        "results.json",
        {
            "results": results,
            "words": list(answering.vocabulary.words),
            "answers": answering.answers,
        },
    )


def _answer_files(questions, annotations, images, output, answers, epochs, seed, **options) -> None:
    from collections import Counter

    from cam_tf.discovery.questions import (
        QuestionAnswering,
        Vocabulary,
        build_question_model,
        fit_answers,
        read_questions,
    )
    from cam_tf.display.discovery_sheets import Panel, photo_sheet

    asked = read_questions(questions, annotations)
    known = [name for name, _ in Counter(one.answer for one in asked).most_common(answers)]
    by_id = {
        int(digits): path
        for path in cam_tf.find_images(images, recursive=True)
        if (digits := _last_number(path.stem))
    }
    asked = [one for one in asked if one.answer in known and one.image_id in by_id]
    if not asked:
        raise ValueError(f"{images} holds no image that {questions} asks about.")
    classifier, take = _features(options)
    vocabulary = Vocabulary.of([one.text for one in asked])
    bad: dict[str, str] = {}
    paths = [by_id[id] for id in sorted({one.image_id for one in asked})]
    given, kept = _take(classifier, take, paths, "Images", bad)
    row = {path: i for i, path in enumerate(kept)}
    asked = [one for one in asked if by_id[one.image_id] in row]
    rows = [row[by_id[one.image_id]] for one in asked]
    bags = vocabulary.encode([one.text for one in asked])
    ids = np.array([known.index(one.answer) for one in asked])
    model = build_question_model(classifier.model, vocabulary, known)
    held_out = np.array([one.image_id % 5 == 0 for one in asked])
    if held_out.all() or not held_out.any():
        held_out = np.arange(len(asked)) % 5 == 0
    learnt = ~held_out
    fit_answers(model, given[rows][learnt], bags[learnt], ids[learnt], epochs=epochs, seed=seed)
    answering = QuestionAnswering(model, vocabulary, known)
    kernel, bias = model.get_layer("answers").get_weights()
    found = (np.concatenate([given[rows], bags], 1) @ kernel + bias).argmax(1)
    accuracy = float(np.mean(found[held_out] == ids[held_out]))
    panels = []
    for i in np.flatnonzero(held_out)[:15]:
        photo = cam_tf.load_image(by_id[asked[i].image_id])
        one = answering(classifier.images([photo])[0], asked[i].text)
        words = ", ".join(word for word, _ in one.words[:3])
        panels.append(
            Panel(photo, f"{asked[i].text[:32]}\n{one.text} ({words})", one.explanation.maps[0, 0])
        )
    _write_figure(output, "answers.png", photo_sheet(panels, "Questions and answers", columns=3))
    _save_answering(output, answering, {"accuracy": accuracy, "questions": len(asked)})
    _warn(bad)
    click.echo(
        f"{len(asked)} questions, {len(known)} answers: {100 * accuracy:.1f} % of those of the "
        f"images held out are answered as annotated -> {output}"
    )


def _last_number(stem: str) -> str:
    import re

    found = re.findall(r"\d+", stem)
    return found[-1] if found else ""


@discover.command()
@click.argument("images", nargs=-1, required=True, type=PATH)
@with_options(
    click.option("--classes", required=True, help="Of these: 'tabby,goldfish'."),
    click.option("--labels", help="A file of class names, one a line, or 'imagenet'."),
    click.option(
        "--by",
        type=click.Choice(["weight", "contribution"]),
        default="weight",
        show_default=True,
        help="What ranks units: their weight, as in the paper, or their mean contribution in those "
        "of IMAGES that are predicted to be of the class.",
    ),
    click.option("--units", type=COUNT, default=5, show_default=True, help="For each class."),
    click.option("--regions", type=COUNT, default=7, show_default=True, help="For each unit."),
    click.option(
        "--field",
        type=COUNT,
        help="Pixels of a region at the network's size; default: measured by occlusion.",
    ),
    *_NETWORK,
    output_option("units"),
)
def units(images: Sequence[Path], **options) -> None:
    """Show the units that classes listen to, by the regions of IMAGES that activate them most.

    Any number of images, in one pass with bounded memory. Regions are cut by the receptive field.
    """
    with errors_in_a_line():
        with quiet_tensorflow():
            import cam_tf.discovery  # noqa: F401
        _show_units(images, **options)


def _show_units(images, classes, labels, by, units, regions, field, output, **options) -> None:
    from cam_tf.discovery import (
        class_units,
        contributing_units,
        receptive_field,
        top_activations,
    )
    from cam_tf.discovery.photos import cropped
    from cam_tf.discovery.units import region_around
    from cam_tf.display.discovery_sheets import UnitRow, unit_sheet

    make_writable(output)
    classifier, take = _features(options)
    count = take.anatomy.classes
    names = class_names(labels, classifier, count)
    (ids,) = chosen_ids(classes, names, count)
    paths, failures = find_photos(images, recursive=True)
    bad = {str(path): str(why) for path, why in failures}
    layer = options["layer"]

    def batches():
        for start in range(0, len(paths), _BATCH):
            batch = paths[start : start + _BATCH]
            read, failed = each(cam_tf.load_image, batch)
            bad.update({str(path): str(why) for path, why in failed})
            bar.update(len(batch))
            if read:
                yield classifier.images(list(read.values())), list(read)

    if by == "weight":
        weights = {i: class_units(classifier.model, i, units, layer) for i in ids}
    else:
        with _bar(len(paths), "Ranking") as bar:
            seen = (given for given, _ in batches())
            weights = contributing_units(classifier.model, seen, ids, units, layer)
    wanted = sorted({int(unit) for found, _ in weights.values() for unit in found})
    with _bar(len(paths), "Looking") as bar:
        best = top_activations(take, batches(), wanted, regions)
    try:
        theory = list(receptive_field(classifier.model, options["layer"]).size)
    except ValueError:
        theory = None
    if field is None:
        field = _measured_field(classifier, take, best, wanted)
    maps = take.anatomy.feature_maps.shape[1:3]
    if None in maps:
        maps = take.maps(classifier.images([cam_tf.load_image(best.keys[0, 0])])).shape[1:3]
    report = {}
    for i in ids:
        rows, records = [], []
        name = names[i] if names else f"class {i}"
        for unit, weight in zip(*weights[i], strict=True):
            at = wanted.index(int(unit))
            found = [
                (path, region_around(place, maps, classifier.size, (field, field)), value)
                for path, place, value in zip(
                    best.keys[at], best.positions[at], best.values[at], strict=True
                )
                if path is not None
            ]
            pictures = [
                cam_tf.resize_image(cropped(cam_tf.load_image(path), box), (160, 160))
                for path, box, _ in found
            ]
            rows.append(UnitRow(f"unit {unit}\n{by} {weight:.3f}", pictures))
            records.append(
                {
                    "unit": int(unit),
                    by: float(weight),
                    "regions": [
                        {"image": str(path), "box": list(map(float, box)), "value": float(value)}
                        for path, box, value in found
                    ],
                }
            )
        report[str(name)] = records
        stem = "".join(c if c.isalnum() else "_" for c in str(name))
        _write_figure(output, f"{stem}.png", unit_sheet(rows, f"{name}: units by {by}"))
        click.echo(f"{name}: units {', '.join(str(one['unit']) for one in records)}")
    _write_json(
        output,
        "results.json",
        {
            "model": classifier.name,
            "images": best.images,
            "receptive_field": {"theoretical": theory, "used": field},
            "classes": report,
            "bad": bad,
        },
    )
    _warn(bad)
    click.echo(f"{best.images} images, regions of {field} pixels -> {output}")


def _measured_field(classifier, take, best, wanted) -> int:
    """The mean empirical receptive field of a few units, in pixels."""
    from cam_tf.discovery import empirical_receptive_field

    sizes = []
    chosen = np.linspace(0, len(wanted) - 1, min(4, len(wanted))).astype(int)
    patch = max(4, min(classifier.size) // 14)
    for at in chosen:
        paths = [path for path in best.keys[at][:3] if path is not None]
        images = classifier.images([cam_tf.load_image(path) for path in paths])
        found = empirical_receptive_field(take, wanted[at], images, patch=patch, step=patch)
        sizes.append(np.mean(found.size))
    return max(1, round(float(np.mean(sizes))))
