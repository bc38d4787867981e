"""The evaluation: literal figures, bad records, kills at any moment, shards, and conventions."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import cam_tf
from cam_tf.datasets.localization import Example, Examples, RecordError
from cam_tf.datasets.tfds import TFDSExamples, _Layout
from cam_tf.localization import LocalizationError, MaxBoxAcc, PxAP, score_maps
from cam_tf.localization.evaluation import evaluate, explain_records
from cam_tf.localization.evaluation_files import RunFiles, merge_evaluations, read_state
from cam_tf.localization.evaluation_result import Figure
from cam_tf.localization.localizer import Localizer
from cam_tf.localization.refinement import refine

SIDE = 32


def colours(classes: int = 3) -> keras.Model:
    """The map of class c is channel c of the image, from 0 to 1; classes from 3 on never win."""
    image = keras.Input((None, None, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, keras.layers.Dense(classes, activation="softmax", name="s")(pooled))
    model.get_layer("s").set_weights([np.eye(3, classes), np.float32([0] * 3 + [-9] * 9)[:classes]])
    return model


def photo(*squares: tuple[int, int, int, int], side: int = SIDE) -> np.ndarray:
    """Black, with a square (channel, value, top, left) of 12 pixels for each."""
    image = np.zeros((side, side, 3), np.uint8)
    for channel, value, top, left in squares:
        image[top : top + 12, left : left + 12, channel] = value
    return image


def three() -> list[Example]:
    """Right everywhere; class right but IoU 1/3; class wrong but the true class's map right."""
    box = np.array([[8, 4, 20, 16]])
    return [
        Example("right", 0, photo((0, 255, 8, 4)), box),
        Example("beside", 1, photo((1, 255, 8, 4)), box + np.array([0, 6, 0, 6])),
        Example("other", 0, photo((0, 90, 8, 4), (2, 255, 18, 18)), box),
    ]


def many(count: int, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        label, (top, left) = int(rng.integers(3)), rng.integers(0, 20, 2)
        image = photo((label, 200, top, left), (int(rng.integers(3)), 255, 2, 2))
        move = rng.integers(-4, 5, 2)
        box = np.clip(np.array([top, left, top + 12, left + 12]) + np.tile(move, 2), 0, SIDE)
        examples.append(Example(f"{i:03}", label, image, box[None].astype(float)))
    return examples


def run(examples, **options):
    options = {"image_size": (SIDE, SIDE), "batch_size": 4, **options}
    return evaluate(cam_tf.CAM(colours()), examples, **options)


def test_literal_figures(tmp_path):
    found = run(Examples(three()), directory=tmp_path)
    third = 1 - 2 / 3
    error = (2 / 9 / 3) ** 0.5
    results = found.results()
    assert results["cls_top1_error"] == Figure(pytest.approx(third), 3, pytest.approx(error))
    expected = Figure(pytest.approx(2 / 3), 3, pytest.approx(error), 0.2)
    assert results["loc_top1_error"] == expected
    assert results["gt_known"] == expected
    assert results["maxboxacc"].value == results["maxboxaccv2_50"].value == 2 / 3
    assert results["maxboxaccv2_30"].value == 1
    assert results["maxboxaccv2"] == Figure(pytest.approx(7 / 9), 3)
    assert 0 < results["maxboxacc"].threshold < 1
    assert "pxap" not in results
    assert "cls_top5_error" not in results  # of three classes
    first, second, third = found.records()
    assert first == {
        "index": 0,
        "id": "right",
        "label": 0,
        "predicted": [0],
        "iou": pytest.approx(1),
        "box": [8 / 32, 4 / 32, 20 / 32, 16 / 32],
        "cls_top1": True,
        "loc_top1": True,
        "gt_known": True,
    }
    assert second["iou"] == pytest.approx(1 / 3)
    assert (second["cls_top1"], second["loc_top1"]) == (True, False)
    assert (third["predicted"], third["cls_top1"], third["gt_known"]) == ([2], False, True)


def test_the_table_and_the_summary(tmp_path):
    found = run(Examples(three()), directory=tmp_path)
    lines = str(found).splitlines()
    assert lines[0].startswith("3 images, 0 bad records, ")
    assert "localization error, top-1      66.67   27.22      0.200" in lines
    assert "MaxBoxAccV2                    77.78" in lines
    assert any(line.startswith("  IoU 0.3                     100.00    0.00 ") for line in lines)
    found.write(tmp_path / "evaluation.json", {"images": "there"})
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert (written["images"], written["paths"]) == (3, {"images": "there"})
    assert written["settings"]["examples"].startswith("3 examples, sha256 ")
    assert written["results"]["gt_known"]["value"] == pytest.approx(2 / 3)
    assert written["seconds"] > 0


def test_the_figures_are_those_of_the_metrics_from_five_classes_on():
    examples = Examples(many(30))
    cam = cam_tf.CAM(colours(8))
    found = evaluate(cam, examples, image_size=(SIDE, SIDE), batch_size=7).results()
    error, accuracy = LocalizationError(), MaxBoxAcc()
    for one in examples.dataset(SIDE, batch_size=30).as_numpy_iterator():
        predicted = cam(one["image"], top_k=5)
        drawn = cam_tf.boxes(predicted)
        error.update(predicted.class_ids, drawn, one["label"], one["boxes"])
        scores = score_maps(cam(one["image"], one["label"]))[:, 0]
        accuracy.update(scores, one["boxes"], one["size"])
    for name, value in {**error.result(), **accuracy.result()}.items():
        if not name.endswith("_threshold"):
            assert found[name].value == value, name
    assert 0 < found["loc_top5_error"].value <= found["loc_top1_error"].value < 1


def test_bad_records_are_named_counted_and_left_out(tmp_path):
    good, box = three(), np.array([[8.0, 4, 20, 16]])
    (tmp_path / "text.jpg").write_text("no image")
    bad = [
        Example("gone", 0, tmp_path / "gone.jpg", box),
        Example("text", 0, tmp_path / "text.jpg", box),
        Example("outside", 0, photo(), box + 20),
        Example("upside", 0, photo(), box[:, [2, 1, 0, 3]]),
    ]
    mixed = [bad[0], good[0], bad[1], bad[2], good[1], good[2], bad[3]]
    found = run(Examples(mixed), batch_size=2)
    assert found.results() == run(Examples(good), batch_size=2).results()
    assert {id: kind for id, (kind, _) in found.bad.items()} == {
        "gone": "missing file",
        "outside": "box outside the image",
        "text": "damaged image",
        "upside": "ymin > ymax or xmin > xmax",
    }
    assert found.summary()["bad_records"]["count"] == 4
    with pytest.raises(RecordError, match="text: damaged image"):
        run(Examples(mixed[1:], strict=True), batch_size=1)
    found = run(Examples(bad))
    with pytest.raises(
        ValueError, match=r"no image was evaluated: 4 bad records .*1 missing file.*gone: "
    ):
        found.results()
    assert (found.summary()["results"], found.summary()["bad_records"]["count"]) == ({}, 4)
    assert not found.finished


def test_a_map_that_is_not_finite_is_a_bad_record():
    cam = cam_tf.CAM(colours())

    def broken(images, *given, **options):
        found = cam(images, *given, **options)
        maps = np.where(np.asarray(images)[:, :1, :1, :1] == 7, np.nan, found.maps)
        return replace(found, maps=maps)

    broken.anatomy = cam.anatomy
    examples = three()
    examples[1].image[0, 0, 0] = 7
    found = evaluate(broken, Examples(examples), image_size=(SIDE, SIDE))
    assert (found.images, list(found.bad)) == (2, ["beside"])
    assert found.bad["beside"][0] == "map not finite"
    assert found.results()["gt_known"].value == 1
    with pytest.raises(RecordError, match="beside: map not finite"):
        evaluate(broken, Examples(examples, strict=True), image_size=(SIDE, SIDE))


def test_masks_without_boxes(tmp_path):
    mask = photo((0, 1, 8, 4))[..., 0]
    examples = [
        Example("right", 0, photo((0, 255, 8, 4)), masks=(mask,)),
        Example("beside", 0, photo((0, 255, 8, 10)), masks=(mask,)),
    ]
    found = run(Examples(examples[:1])).results()
    assert set(found) == {"cls_top1_error", "pxap"}
    assert found["pxap"].value == pytest.approx(1, abs=1e-4)  # stretched to 224 x 224
    both = run(Examples(examples), directory=tmp_path)
    assert 0.25 < both.results()["pxap"].value < 1
    first, second = both.records()
    assert (first["mask_iou"], second["mask_iou"]) == (1, pytest.approx(1 / 3))
    for record in (first, second):  # in no count of the table
        assert [record[name] for name in ("iou", "gt_known", "loc_top1")] == [None] * 3
    assert [one["id"] for row in both.cases().values() for one in row] == ["right", "beside"]


def test_pixels_are_counted_at_the_protocols_size():
    """The figure of a mask does not depend on what the network takes."""
    rng = np.random.default_rng(0)
    image = np.repeat(np.repeat(rng.integers(0, 255, (7, 7, 3)), 32, axis=0), 32, axis=1)
    mask = np.zeros((224, 224), bool)
    mask[32:160, 64:192] = True
    example = Example("one", 0, image.astype(np.uint8), masks=(mask,), ignore=~mask)
    cam = cam_tf.CenterGaussian(colours())
    expected = PxAP()
    expected.update(score_maps(cam(np.float32(image[None]), 0))[:, 0], mask[None], ~mask[None])
    for size in (56, 224, 448):
        found = evaluate(cam, Examples([example]), image_size=(size, size))
        curve = found.metrics["pixels"].curve()
        np.testing.assert_array_equal(found.metrics["pixels"]._totals["object"].sum(), 128**2)
        if size == 224:
            np.testing.assert_allclose(curve["recall"], expected.curve()["recall"])


def test_masks_of_another_folder_are_other_data(tmp_path):
    for folder in "abc":
        (tmp_path / folder).mkdir()
        for name in ("m", "n"):
            Image.fromarray(photo((0, 255, 8, 4))).save(tmp_path / folder / f"{name}.png")

    def examples(masks, name="m"):
        mask = (tmp_path / masks / f"{name}.png",)
        return Examples([Example("one", 0, tmp_path / "a" / "m.png", masks=mask)])

    run(examples("b"), directory=tmp_path / "out")
    with pytest.raises(ValueError, match=r"paths.masks is .*c and was .*b\. "):
        run(examples("c"), directory=tmp_path / "out")
    with pytest.raises(ValueError, match="examples is 1 examples"):
        run(examples("b", "n"), directory=tmp_path / "out")


def test_what_was_all_bad_is_tried_again(tmp_path):
    """With another path too: there is nothing to be lost."""
    for folder in ("empty", "full"):
        (tmp_path / folder).mkdir()
    Image.fromarray(photo((0, 255, 8, 4))).save(tmp_path / "full" / "one.png")

    def examples(folder):
        box = np.array([[8, 4, 20, 16]])
        return Examples([Example("one", 0, tmp_path / folder / "one.png", box)])

    assert not run(examples("empty"), directory=tmp_path / "out").finished
    found = run(examples("full"), directory=tmp_path / "out")
    assert (found.images, found.bad, found.finished) == (1, {}, True)
    assert len(list(found.records())) == 1
    with pytest.raises(ValueError, match=r"paths.images is .*empty and was .*full"):
        run(examples("empty"), directory=tmp_path / "out")


def test_workers_need_not_have_the_data_in_one_place(tmp_path):
    for i in range(2):
        (tmp_path / f"data{i}").mkdir()
        files = [tmp_path / f"data{i}" / f"{name}.png" for name in "ab"]
        for path in files:
            Image.fromarray(photo((0, 255, 8, 4))).save(path)
        examples = [Example(path.stem, 0, path, masks=(path,)) for path in files]
        run(Examples(examples), directory=tmp_path / f"part{i}", shard=(i, 2))
    merged = merge_evaluations([tmp_path / "part0", tmp_path / "part1"], tmp_path / "whole")
    assert merged.images == 2


def test_a_shard_without_examples(tmp_path):
    whole = run(Examples(three()))
    parts = [tmp_path / str(i) for i in range(4)]
    for i, part in enumerate(parts):
        found = run(Examples(three()), directory=part, shard=(i, 4))
    assert (found.images, found.finished) == (0, True)
    assert str(found).startswith("0 images")
    assert merge_evaluations(parts, tmp_path / "out").results() == whole.results()


def test_a_full_disk_is_named_and_the_run_goes_on(tmp_path, monkeypatch):
    flush, calls = os.fsync, []

    def full(descriptor):
        calls.append(1)
        if len(calls) > 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"out cannot be written to \(No space left.*goes on"):
        run(Examples(many(23)), directory=tmp_path / "out", save_every=0)
    monkeypatch.undo()
    assert 0 < read_state(tmp_path / "out").images < 23
    found = run(Examples(many(23)), directory=tmp_path / "out")
    assert found.results() == run(Examples(many(23))).results()
    assert [one["index"] for one in found.records()] == list(range(23))


def test_the_sheet_of_an_evaluation(tmp_path):
    cam, examples = cam_tf.CAM(colours()), Examples(many(12))
    found = run(examples, directory=tmp_path)
    names = ["red", "green", "blue"]
    figure = cam_tf.evaluation_sheet(found, cam, examples, class_names=names, title="Squares")
    assert len(figure.axes) == 12
    texts = {text.get_text() for text in figure.texts}
    assert {"Squares", "best", "median", "worst", "000", "011"} <= texts
    assert any(text.endswith("green") for text in texts)
    with pytest.raises(ValueError, match="were not kept: evaluate with a directory"):
        cam_tf.evaluation_sheet(run(examples), cam, examples)


def test_an_image_whose_box_is_cut_away_still_counts_for_classification():
    examples = Examples(
        [
            Example("seen", 0, photo((0, 255, 30, 30), side=64), np.array([[30, 30, 42, 42]])),
            Example("cut", 0, photo((0, 255, 30, 30), side=64), np.array([[0, 0, 4, 4]])),
        ]
    )
    found = run(examples, short_side=64).results()
    assert found["cls_top1_error"] == Figure(0, 2, 0)
    assert found["gt_known"] == Figure(1, 1, 0, 0.2)
    assert found["maxboxacc"].images == 1


def test_box_conventions_from_the_file_to_the_figure(tmp_path):
    """Edges, exclusive at the end, as TFDS has them, overlap to exactly 1, in both protocols.

    An annotation that names its last pixels inclusively is one pixel smaller, as it is in the
    reference code, whose own boxes (x, y, x + w, y + h) end behind their last pixel too.
    """
    image = np.zeros((224, 224, 3), np.uint8)
    image[40:120, 60:160, 0] = 255
    edges, inclusive = np.array([[40, 60, 120, 160]]), np.array([[40, 60, 119, 159]])
    cam = cam_tf.CAM(colours())
    for box, overlap in ((edges, 1), (inclusive, 79 * 99 / (80 * 100))):
        examples = Examples([Example("one", 0, image, box)])
        found = evaluate(cam, examples, image_size=(224, 224), directory=tmp_path, overwrite=True)
        (record,) = found.records()
        assert record["iou"] == pytest.approx(overlap, abs=1e-6)
        exact = MaxBoxAcc(deltas=(1.0,))
        exact.update(score_maps(cam(image[None], 0))[:, 0], [box / 224], [[224, 224]])
        assert exact.result()["maxboxaccv2"] == (overlap == 1)


def test_an_interrupted_run_goes_on(tmp_path):
    examples = [*many(23), Example("gone", 0, tmp_path / "gone.png", np.ones((1, 4)))]
    examples.insert(5, Example("gone too", 0, tmp_path / "gone.png", np.ones((1, 4))))
    whole = run(Examples(examples), directory=tmp_path / "whole")

    seen = []

    def interrupt(done, total):
        seen.append((done, total))
        if len(seen) % 3 == 0:
            raise KeyboardInterrupt

    for every in (0.0, 99.0):
        part = tmp_path / str(every)
        for _ in range(20):
            try:
                found = run(
                    Examples(examples), directory=part, progress=interrupt, save_every=every
                )
                break
            except KeyboardInterrupt:
                with open(part / "images.jsonl", "a") as file:
                    file.write('{"id": "of a run that was killed before it saved th')
        assert found.results() == whole.results()
        assert found.bad == whole.bad
        lines = (part / "images.jsonl").read_bytes()
        assert lines == (tmp_path / "whole" / "images.jsonl").read_bytes()
        assert lines.count(b"\n") == 23
    assert seen[0] == (0, 25)
    again = run(Examples(examples), directory=part, progress=lambda *_: pytest.fail("it was done"))
    assert again.state() == found.state()


_SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
from test_evaluation import *
for _ in range(3):
    child = os.fork()  # TensorFlow is imported, and has not begun to run
    if not child:
        run(Examples(many(80)), directory=Path({directory!r}), save_every=0.0, batch_size=2)
        os._exit(0)
    kill_at_random(child, Path({directory!r}), 5_000)
"""


def kill_at_random(pid: int, directory: Path, most: int) -> None:
    """Kills a process that evaluates once it has written up to so many bytes more."""
    path = directory / "images.jsonl"
    wanted = (path.stat().st_size if path.exists() else 0) + random.SystemRandom().randint(1, most)
    for _ in range(10_000):
        if os.waitpid(pid, os.WNOHANG)[0]:
            return
        if path.exists() and path.stat().st_size >= wanted:
            break
        time.sleep(0.002)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def test_runs_killed_at_random_moments_lose_nothing_and_repeat_nothing(tmp_path):
    whole = run(Examples(many(80)), directory=tmp_path / "whole", batch_size=2)
    directory, root = tmp_path / "killed", Path(cam_tf.__file__).parents[1]
    script = _SCRIPT.format(
        tests=str(Path(__file__).parent), root=str(root), directory=str(directory)
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
    left = read_state(directory)  # None if each was killed before its first state
    assert left is None or not left.finished
    found = run(Examples(many(80)), directory=directory, batch_size=2)
    assert found.results() == whole.results()
    assert found.metrics["boxes"].state() == whole.metrics["boxes"].state()
    records = list(found.records())
    assert [one["id"] for one in records] == [f"{i:03}" for i in range(80)]
    assert records == list(whole.records())


def test_other_settings_or_data_are_refused(tmp_path):
    examples = many(6)
    run(Examples(examples), directory=tmp_path, settings={"model": "a"})
    for changed, message in (
        ({"batch_size": 3}, "batch_size is 3 and was 4"),
        ({"settings": {"model": "b"}}, "model is b and was a"),
        ({"shard": (0, 2)}, "shard is 0/2 and was 0/1"),
    ):
        with pytest.raises(ValueError, match=f"{message}.*--overwrite.*another directory"):
            run(Examples(examples), directory=tmp_path, **{"settings": {"model": "a"}, **changed})
    with pytest.raises(ValueError, match="examples is 5 examples"):
        run(Examples(examples[1:]), directory=tmp_path, settings={"model": "a"})
    found = run(Examples(examples[1:]), directory=tmp_path, overwrite=True)
    assert (found.images, len(list(found.records()))) == (5, 5)


def test_a_damaged_directory_and_one_in_use(tmp_path):
    examples = Examples(many(3))
    done = run(examples, directory=tmp_path)
    with (
        RunFiles(tmp_path, done.settings, False, 5.0),
        pytest.raises(ValueError, match="another process is evaluating into"),
    ):
        run(examples, directory=tmp_path)
    (tmp_path / "images.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="shorter than state"):
        run(examples, directory=tmp_path)
    (tmp_path / "state.json").write_text('{"settings"')
    with pytest.raises(ValueError, match="is no state of an evaluation"):
        run(examples, directory=tmp_path)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="is no state of an evaluation"):
        run(examples, directory=tmp_path)


def test_shards_merge_to_the_whole(tmp_path):
    examples = many(22)
    examples.insert(3, Example("gone", 0, tmp_path / "gone.png", np.ones((1, 4))))
    whole = run(Examples(examples), directory=tmp_path / "whole", limit=20)
    parts = [tmp_path / f"part{i}" for i in range(3)]
    for i, part in enumerate(parts):
        run(Examples(examples), directory=part, shard=(i, 3), limit=20)
    merged = merge_evaluations(parts[::-1], tmp_path / "merged")
    assert merged.results() == whole.results()
    assert (merged.bad, merged.workers, merged.images) == (whole.bad, 3, 19)
    assert merged.settings == whole.settings
    lines = (tmp_path / "merged" / "images.jsonl").read_bytes()
    assert lines == (tmp_path / "whole" / "images.jsonl").read_bytes()
    assert read_state(tmp_path / "merged").state() == merged.state()

    with pytest.raises(ValueError, match="shard 1/3 is missing"):
        merge_evaluations([parts[0], parts[2]], tmp_path / "no")
    with pytest.raises(ValueError, match="shard 0/3 is there twice"):
        merge_evaluations([*parts, parts[0]], tmp_path / "no")
    with pytest.raises(ValueError, match=r"limit is 20 and was None|limit is None and was 20"):
        run(Examples(examples), directory=tmp_path / "other", shard=(0, 3))
        merge_evaluations([tmp_path / "other", *parts[1:]], tmp_path / "no")
    with pytest.raises(ValueError, match="holds an evaluation"):
        merge_evaluations(parts, tmp_path / "whole")
    with pytest.raises(ValueError, match="holds no evaluation"):
        merge_evaluations([tmp_path], tmp_path / "no")
    around = tmp_path / "whole" / ".." / "part1"  # by another name
    with pytest.raises(ValueError, match="holds an evaluation"):
        merge_evaluations(parts, around, overwrite=True)
    with (
        RunFiles(tmp_path / "merged", merged.settings, False, 5.0),
        pytest.raises(ValueError, match="another process is evaluating into"),
    ):
        merge_evaluations(parts, tmp_path / "merged", overwrite=True)

    def refuse(merged):
        raise ValueError(f"{merged.images} images of another model")

    with pytest.raises(ValueError, match="19 images of another model"):
        merge_evaluations(parts, tmp_path / "no", check=refuse)
    assert not (tmp_path / "no").exists()
    os.truncate(parts[1] / "images.jsonl", 100)
    with pytest.raises(ValueError, match=r"images.jsonl has 100 bytes, and state.json says"):
        merge_evaluations(parts, tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_an_unfinished_shard_is_not_merged(tmp_path):
    def stop(done, total):
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(Examples(many(9)), directory=tmp_path, progress=stop)
    with pytest.raises(ValueError, match="is not finished: it has seen 4 images and 0 bad"):
        merge_evaluations([tmp_path], tmp_path / "no")


def test_labels_of_other_classes_and_ids_twice():
    with pytest.raises(ValueError, match=r"x has label 3, and the model has the classes 0\.\.2"):
        run(Examples([Example("x", 3, photo(), np.ones((1, 4)))]))
    with pytest.raises(ValueError, match="the id 'right' belongs to 2 examples"):
        run(Examples(three() + three()[:1]))


def test_a_model_of_one_output_ranks_nothing():
    image = keras.Input((SIDE, SIDE, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(image))
    model = keras.Model(image, keras.layers.Dense(1, activation="sigmoid")(pooled))
    with pytest.raises(ValueError, match="the model has one output, and so no classes to rank"):
        evaluate(cam_tf.CAM(model), Examples(three()), image_size=(SIDE, SIDE))


def test_ids_twice_in_a_stream(tmp_path):
    """Found when they come; those before a run that goes on too."""
    examples = many(9)
    examples[7] = replace(examples[7], id="002")
    with pytest.raises(ValueError, match=r"the id '002#\d' belongs to the examples [45] and 1[45]"):
        run(_as_tfds(examples), directory=tmp_path)
    assert 0 < read_state(tmp_path).images <= 12
    with pytest.raises(ValueError, match="ids must be unique"):
        run(_as_tfds(examples), directory=tmp_path)


def _as_tfds(examples: list[Example], strict: bool = False) -> TFDSExamples:
    """Two objects of two classes in each image, as in VOC."""

    def records():
        for one in examples:
            box = np.float32(one.boxes / SIDE)
            yield {
                "image": tf.io.encode_png(one.image).numpy(),
                "image/filename": one.id,
                "objects": {
                    "bbox": np.concatenate([box, box]),
                    "label": np.array([one.label, (one.label + 1) % 3]),
                },
            }

    spec = {
        "image": tf.TensorSpec((), tf.string),
        "image/filename": tf.TensorSpec((), tf.string),
        "objects": {
            "bbox": tf.TensorSpec((None, 4), tf.float32),
            "label": tf.TensorSpec((None,), tf.int64),
        },
    }
    raw = tf.data.Dataset.from_generator(records, output_signature=spec)
    layout = _Layout(label=("objects", "label"), boxes=("objects", "bbox"))
    return TFDSExamples(raw, layout, 3, strict)


def test_a_stream_of_several_classes_an_image_goes_on_too(tmp_path):
    examples = many(9)
    whole = run(_as_tfds(examples), directory=tmp_path / "whole")
    assert whole.images == 18

    def stop(done, total):
        assert total is None
        if done in (4, 12):
            raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(_as_tfds(examples), directory=tmp_path / "part", progress=stop)
    found = run(_as_tfds(examples), directory=tmp_path / "part")
    assert found.results() == whole.results()
    assert list(found.records()) == list(whole.records())


def test_the_cases_and_their_maps(tmp_path):
    examples = Examples(many(20))
    found = run(examples, directory=tmp_path)
    cases = found.cases(4)
    assert {name: len(rows) for name, rows in cases.items()} == {"best": 4, "median": 4, "worst": 4}
    overlaps = sorted((one["iou"] for one in found.records()), reverse=True)
    assert [one["iou"] for one in cases["best"]] == overlaps[:4]
    assert [one["iou"] for one in cases["median"]] == overlaps[8:12]
    assert [one["iou"] for one in cases["worst"]] == overlaps[-4:]
    shown = explain_records(
        cam_tf.CAM(colours()), examples, cases["worst"], image_size=(SIDE, SIDE)
    )
    record = cases["worst"][0]
    one, example = shown[record["id"]], examples[record["index"]]
    np.testing.assert_array_equal(one["image"], example.image)
    np.testing.assert_allclose(one["map"], example.image[..., example.label] / 255, atol=1e-6)
    np.testing.assert_allclose(one["boxes"], example.boxes / SIDE)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_images_stand_in_one_row_only(tmp_path, count):
    found = run(Examples(many(count)), directory=tmp_path)
    ids = [one["id"] for rows in found.cases().values() for one in rows]
    assert len(ids) == len(set(ids)) == min(count, 3)


def test_a_refining_localizer_is_asked_for_the_map_of_the_true_class_alone(tmp_path, monkeypatch):
    examples = Examples(many(5))
    localizer = Localizer(colours(8), refine="grabcut")
    shapes = []

    def spy(images, maps, method):
        shapes.append(maps.shape[:2])
        return refine(images, maps, method)

    monkeypatch.setattr("cam_tf.localization.evaluation.refine", spy)
    found = evaluate(localizer, examples, image_size=(SIDE, SIDE), directory=tmp_path)
    assert shapes == [(5, 1)]
    assert found.settings["localizer"]["refine"] == "grabcut"
    assert localizer.settings.refine == "grabcut"
    (batch,) = examples.dataset(SIDE, batch_size=5).as_numpy_iterator()
    drawn = cam_tf.boxes(localizer(batch["image"], batch["label"]))[:, 0]
    np.testing.assert_array_equal([one["box"] for one in found.records()], drawn)
    shown = explain_records(
        localizer, examples, list(found.records())[:1], image_size=(SIDE, SIDE)
    )["000"]["map"]
    np.testing.assert_allclose(
        shown, localizer(batch["image"][:1], batch["label"][:1]).maps[0, 0], atol=1e-6
    )
