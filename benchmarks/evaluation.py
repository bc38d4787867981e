"""What the metrics cost: images a second, against the reference algorithm at every threshold.

    python benchmarks/evaluation.py [--maps 60] [--folder FOLDER] [--interval 0.001] [--rounds 5]
    python benchmarks/evaluation.py --localizers [--rounds 5]

Maps are real ones, of EfficientNet-Lite0 on the demo photos (the most likely classes of each), or
on the images of FOLDER, in the format of the WSOL benchmark. The reference algorithm thresholds
the map, traces its contours and draws boxes anew for each of the 1,000 thresholds, and is written
here as directly as OpenCV and NumPy allow; it makes one pass for MaxBoxAcc and one for V2, where
``MaxBoxAcc`` makes one for both. Both must give the same counts. A ratio is the median over maps,
each timed next to the other.

With FOLDER (``image_ids.txt``, ... and the images in ``images``) also the whole evaluation with
CAM, from files to figures, against the bare forward pass of the same images, in memory already:
both in turn in one process, round after round.

With --localizers instead what denser maps, several views, refinement and the presets cost: the maps
of the predicted class of 8 images, against the forward pass of the same images, in turn.
"""

import argparse
import os
import statistics
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cv2
import numpy as np
import tensorflow as tf

import cam_tf
from cam_tf.datasets.localization import wsol_examples
from cam_tf.localization.evaluation import evaluate
from cam_tf.localization.max_box_acc import MaxBoxAcc
from cam_tf.localization.pixel_metrics import EnergyPointingGame, PointingGame, PxAP
from cam_tf.localization.score_maps import score_maps

DELTAS = (0.3, 0.5, 0.7)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--maps", type=int, default=60)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--interval", type=float, default=0.001)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--localizers", action="store_true")
    arguments = parser.parse_args()
    if arguments.localizers:
        _localizers(arguments.rounds)
        return
    raw = _raw_maps(arguments.folder, arguments.maps)
    scores = score_maps(raw)
    boxes = [_random_boxes(np.random.default_rng(seed)) for seed in range(len(scores))]
    print(f"{len(scores)} maps {raw.shape[1:]}, {os.cpu_count()} CPU cores, one used")
    _against_the_reference(scores, boxes, arguments.interval)
    masks = scores > 0.5
    rest = {
        "score_maps": lambda: score_maps(raw),
        "PxAP": lambda: PxAP(arguments.interval).update(scores, masks),
        "PointingGame": lambda: PointingGame().update(scores, boxes),
        "EnergyPointingGame": lambda: EnergyPointingGame().update(scores, boxes),
    }
    for name, run in rest.items():
        print(f"{name:24} {len(scores) / _seconds(run):8.0f} images/s")
    if arguments.folder is not None:
        _whole_evaluation(arguments.folder, arguments.rounds)


def _whole_evaluation(folder: Path, rounds: int) -> None:
    model = cam_tf.build_classifier("EfficientNetLite0")
    cam, size = cam_tf.CAM(model), model.input_shape[1:3]
    examples = wsol_examples(folder / "images", folder)
    batches = [one["image"] for one in examples.dataset(size, batch_size=32)]
    forward = tf.function(lambda images: model(images, training=False))
    k = len(batches[0])
    candidates = {
        "forward pass": lambda: [forward(images).numpy() for images in batches],
        "forward pass and maps": lambda: [
            cam(images, [0] * len(images), top_k=5).maps.numpy() for images in batches
        ],
        "decoding": lambda: [len(one["id"]) for one in examples.dataset(size, batch_size=32)],
        "whole evaluation": lambda: evaluate(cam, examples, image_size=size),
    }
    count = len(examples)
    print(f"EfficientNet-Lite0, {count} images, batches of {k}, {rounds} rounds")
    _compare(candidates, count, rounds)


_LOCALIZERS = {
    "CAM": {},
    "output stride 16": {"output_stride": 16},
    "output stride 8": {"output_stride": 8},
    "views 1, 10/7, mirrored": {"scales": (1, 10 / 7), "flip": True},
    "GrabCut": {"refine": "grabcut"},
    "PrototypeCAM, stride 16": {"method": "prototypecam", "output_stride": 16},
    "fast": {"preset": "fast"},
    "localization, unrefined": {"preset": "localization", "refine": "none"},
    "localization": {"preset": "localization"},
}


def _localizers(rounds: int) -> None:
    model = cam_tf.build_classifier("EfficientNetLite0")
    photos = [cam_tf.load_image(path) for path in cam_tf.demo_photos()]
    images = np.stack([cam_tf.resize_image(photos[i % len(photos)], (224, 224)) for i in range(8)])
    forward = tf.function(lambda: model(tf.cast(images, tf.float32), training=False))
    candidates = {"forward pass": lambda: forward().numpy()}
    for name, options in _LOCALIZERS.items():
        localizer = cam_tf.Localizer(model, **options)
        candidates[name] = lambda localizer=localizer: np.asarray(localizer(images).maps)
    print(f"EfficientNet-Lite0, 8 images of 224 x 224, {rounds} rounds, {os.cpu_count()} CPU cores")
    _compare(candidates, len(images), rounds)


def _compare(candidates: dict, count: int, rounds: int) -> None:
    """Times the candidates in turn and prints them as ratios to the first."""
    for run in candidates.values():  # traces
        run()
    times = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            times[name].append(_seconds(run))
    for name, seconds in times.items():
        pairs = zip(seconds, times["forward pass"], strict=True)
        low, middle, high = statistics.quantiles([one / base for one, base in pairs], n=4)
        speed = count / statistics.median(seconds)
        print(f"{name:24} {speed:8.1f} images/s, {middle:.2f} [{low:.2f}, {high:.2f}] of its time")


def _against_the_reference(scores, boxes, interval: float) -> None:
    thresholds = np.arange(0, 1, interval)
    ours, v1, v2 = [], [], []
    metric = MaxBoxAcc(interval, DELTAS)
    largest = np.zeros(len(thresholds), int)
    every = np.zeros((len(DELTAS), len(thresholds)), int)
    for score, truth in zip(scores, boxes, strict=True):
        pixels = np.rint(truth * 224).astype(int)[:, [1, 0, 3, 2]]
        ours.append(_seconds(lambda: metric.update(score[None], [truth])))  # noqa: B023
        start = time.perf_counter()
        of_largest = _reference(score, pixels, thresholds, False)
        middle = time.perf_counter()
        of_every = _reference(score, pixels, thresholds, True)
        v1.append(middle - start)
        v2.append(time.perf_counter() - middle)
        largest += of_largest >= 0.5
        every += of_every >= np.array(DELTAS)[:, None]
    curves = metric.curves()
    same = (curves["largest"] == largest / len(scores)).all()
    same &= (curves["every"] == every / len(scores)).all()
    print(f"counts at all {len(thresholds)} thresholds: {'equal' if same else 'DIFFERENT'}")
    print(f"{'MaxBoxAcc, V1 and V2':24} {1 / statistics.median(ours):8.0f} images/s")
    both = [one + two for one, two in zip(v1, v2, strict=True)]
    for name, seconds in {"V1 alone": v1, "V2 alone": v2, "V1, then V2": both}.items():
        ratios = [theirs / own for theirs, own in zip(seconds, ours, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        speed = 1 / statistics.median(seconds)
        ratio = f"{middle:.1f} [{low:.1f}, {high:.1f}] times slower"
        print(f"{'reference, ' + name:24} {speed:8.0f} images/s, {ratio}")


def _reference(score, truth, thresholds, multi_contour: bool) -> np.ndarray:
    """The best IoU (T,) at each threshold."""
    height, width = score.shape
    image = (score * 255).astype(np.uint8)
    found, counts = [], []
    for threshold in thresholds:
        level = int(threshold * image.max())
        _, kept = cv2.threshold(image, level, 255, cv2.THRESH_BINARY)
        contours = cv2.findContours(kept, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[-2]
        if contours and not multi_contour:
            contours = [max(contours, key=cv2.contourArea)]
        rectangles = [cv2.boundingRect(contour) for contour in contours] or [(0, 0, 0, 0)]
        found += [
            (x, y, min(x + w, width - 1), min(y + h, height - 1)) for x, y, w, h in rectangles
        ]
        counts.append(len(rectangles))
    drawn = np.array(found)[:, None]
    sides = np.minimum(drawn[..., 2:], truth[:, 2:]) - np.maximum(drawn[..., :2], truth[:, :2]) + 1
    common = np.maximum(sides, 0).prod(axis=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2] + 1).prod(axis=-1) for boxes in (drawn, truth)]
    overlaps = (common / (areas[0] + areas[1] - common)).max(axis=1)
    return np.maximum.reduceat(overlaps, np.cumsum([0, *counts[:-1]]))


def _raw_maps(folder: Path | None, count: int) -> np.ndarray:
    cam = cam_tf.CAM(cam_tf.build_classifier("EfficientNetLite0"))
    paths, top_k = cam_tf.demo_photos(), -(-count // 3)
    if folder is not None:
        paths, top_k = sorted((folder / "images").rglob("*.JPEG"))[:count], 1
    size = cam.anatomy.image.shape[1:3]
    photos = np.stack([cam_tf.resize_image(cam_tf.load_image(path), size) for path in paths])
    maps = cam(photos, top_k=top_k).numpy().maps
    return maps.reshape(-1, *maps.shape[2:])[:count]


def _random_boxes(rng) -> np.ndarray:
    """One or two boxes of whole pixels in 224 x 224, relative."""
    return np.sort(rng.integers(0, 224, (rng.integers(1, 3), 2, 2)), axis=1).reshape(-1, 4) / 224


def _seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
