"""What a class activation map costs beside the prediction: ratios to the plain forward pass.

    python benchmarks/overhead.py [--models ResNet50 ...] [--batches 1 8] [--rounds 25]

All candidates of a row run in turn in one process, round after round, in an order shuffled anew
for each round; a ratio is the median over rounds of a candidate's time to the forward pass of the
same round, with the quartiles as its spread. Random weights: the cost does not depend on them.
"""

import argparse
import os
import random
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import cam_tf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--models", nargs="+", default=["ResNet50", "MobileNetV2", "EfficientNetLite0"]
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    print(f"TensorFlow {tf.__version__}, devices: {_devices()}, {arguments.rounds} rounds")
    print(f"{'model':18} {'batch':>5} {'forward':>10}  ratio to it: median [quartiles]")
    for name in arguments.models:
        model = cam_tf.build_classifier(name, weights=None)
        for batch in arguments.batches:
            images = np.random.default_rng(0).uniform(0, 255, (batch, *model.input_shape[1:]))
            images = tf.constant(images, tf.float32)
            times = _paired_times(_candidates(model, images), arguments.rounds)
            _print_row(name, batch, times)


def _candidates(model, images):
    forward = tf.function(lambda images: model(images, training=False))
    cam = cam_tf.CAM(model)
    return {
        "forward": lambda: forward(images),
        "CAM top 1": lambda: cam(images).maps,
        "CAM top 5": lambda: cam(images, top_k=5).maps,
        "CAM all classes": lambda: cam(images, "all").maps,
        "CAM top 5 + heatmaps": lambda: cam_tf.heatmaps(cam(images, top_k=5)),
        "model.predict": lambda: model.predict(images, verbose=0),
    }


def _paired_times(candidates, rounds: int) -> dict[str, list[float]]:
    times = {name: [] for name in candidates}
    for _ in range(2):  # traces, then fills caches
        for run in candidates.values():
            run()
    for _ in range(rounds):
        for name in random.sample(list(candidates), len(candidates)):
            start = time.perf_counter()
            np.asarray(candidates[name]())  # waits for the device
            times[name].append(time.perf_counter() - start)
    return times


def _print_row(name: str, batch: int, times: dict[str, list[float]]) -> None:
    forward = times.pop("forward")
    print(f"{name:18} {batch:>5} {statistics.median(forward) * 1e3:>7.1f} ms")
    for candidate, own in times.items():
        ratios = [one / base for one, base in zip(own, forward, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{'':36} {candidate:22} {middle:.2f} [{low:.2f}, {high:.2f}]", flush=True)


def _devices() -> str:
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    return ", ".join(gpus) or f"{os.cpu_count()} CPU cores"


if __name__ == "__main__":
    main()
