"""What maps cost beside the prediction: ratios to the plain forward pass.

    python benchmarks/overhead.py [--models ResNet50 ...] [--batches 1 8] [--rounds 25]
    python benchmarks/overhead.py --perturbations     # Score-CAM against K forward passes
    python benchmarks/overhead.py --peers             # other libraries in the same table

All candidates of a block run in turn in one process, round after round, in an order shuffled anew
for each round; a ratio is the median over rounds of a candidate's time to the forward pass of the
same round, with the quartiles as its spread. The forward pass is ``tf.function(model)`` with live
weights. Random weights: the cost does not depend on them.

``--peers`` wants an environment of its own with cam_tf and any of tf-keras-vis, tf-explain and
xplique installed; one that is absent, or fails, is said to.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf

import cam_tf

ONE_PASS = ["GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "EigenCAM"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--perturbations", action="store_true")
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)  # a process of its own for its memory
    arguments = parser.parse_args()
    if arguments.peak_of:
        _print_peak(arguments.peak_of)
        return
    print(f"TensorFlow {tf.__version__}, {_devices()}, {arguments.rounds} rounds")
    if arguments.perturbations:
        for name in arguments.models or ["MobileNetV2"]:
            _perturbations(name)
        return
    print(f"{'model':18} {'batch':>5} {'forward':>10}  ratio to it: median [quartiles]")
    for name in arguments.models or ["ResNet50", "MobileNetV2", "EfficientNetLite0"]:
        model = cam_tf.build_classifier(name, weights=None)
        for batch in arguments.batches:
            images = tf.random.stateless_uniform((batch, *model.input_shape[1:]), (0, 0), 0, 255)
            candidates = _candidates(model, images)
            if arguments.peers:
                candidates |= _peers(model, images)
            _print_block(name, batch, _paired_times(candidates, arguments.rounds))


def _candidates(model, images) -> dict:
    forward = tf.function(lambda images: model(images, training=False))
    cam, frozen = cam_tf.CAM(model), cam_tf.CAM(model, frozen=True)
    candidates = {
        "forward": lambda: forward(images),
        "CAM top 1": lambda: cam(images).maps,
        "CAM top 5": lambda: cam(images, top_k=5).maps,
        "CAM all classes": lambda: cam(images, "all").maps,
        "CAM top 1 frozen": lambda: frozen(images).maps,
        "CAM top 5 + heatmaps": lambda: cam_tf.heatmaps(cam(images, top_k=5)),
        "model.predict": lambda: model.predict(images, verbose=0),
    }
    for name in ONE_PASS:
        live, folded = getattr(cam_tf, name)(model), getattr(cam_tf, name)(model, frozen=True)
        candidates[name] = lambda live=live: live(images).maps
        candidates[f"{name} frozen"] = lambda folded=folded: folded(images).maps
    return candidates


def _peers(model, images) -> dict:
    """The Grad-CAM of other libraries on the same model and images."""
    candidates, last = {}, cam_tf.dissect(model).feature_maps.call.path
    classes = [0] * len(images)
    array = images.numpy()
    try:
        from tf_keras_vis.gradcam import Gradcam
        from tf_keras_vis.utils.scores import CategoricalScore

        theirs = Gradcam(model, clone=False)
        score = CategoricalScore(classes)
        candidates["tf-keras-vis Gradcam"] = lambda: theirs(score, array, penultimate_layer=last)
    except Exception as error:
        print(f"tf-keras-vis: {type(error).__name__}: {error}")
    try:
        from tf_explain.core.grad_cam import GradCAM as ExplainGradCAM

        explainer = ExplainGradCAM()
        candidates["tf-explain GradCAM"] = lambda: explainer.explain(
            (array, None), model, class_index=0, layer_name=last
        )
    except Exception as error:
        print(f"tf-explain: {type(error).__name__}: {error}")
    try:
        from xplique.attributions import GradCAM as XpliqueGradCAM

        attribution = XpliqueGradCAM(model, conv_layer=last)
        labels = tf.one_hot(classes, model.output_shape[-1])
        candidates["xplique GradCAM"] = lambda: attribution(images, labels)
    except Exception as error:
        print(f"xplique: {type(error).__name__}: {error}")
    for name, run in list(candidates.items()):
        try:
            run()
        except Exception as error:
            print(f"{name} fails on this model: {type(error).__name__}: {str(error)[:200]}")
            del candidates[name]
    return candidates


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


def _print_block(name: str, batch: int, times: dict[str, list[float]]) -> None:
    forward = times.pop("forward")
    print(f"{name:18} {batch:>5} {statistics.median(forward) * 1e3:>7.1f} ms")
    for candidate, own in times.items():
        ratios = [one / base for one, base in zip(own, forward, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"{'':36} {candidate:24} {middle:5.2f} [{low:.2f}, {high:.2f}]", flush=True)


def _perturbations(name: str, rounds: int = 3) -> None:
    """One image: K perturbed passes in chunks of 32, against K images through the forward pass."""
    model = cam_tf.build_classifier(name, weights=None)
    images = tf.random.stateless_uniform((32, *model.input_shape[1:]), (0, 0), 0, 255)
    forward = tf.function(lambda images: model(images, training=False))
    channels = cam_tf.dissect(model).feature_maps.shape[-1]

    def passes():
        for _ in range(-(-channels // 32)):
            forward(images)

    explainers = {
        "ScoreCAM": cam_tf.ScoreCAM(model),
        "ScoreCAM frozen": cam_tf.ScoreCAM(model, frozen=True),
        "ScoreCAM 10 % of channels": cam_tf.ScoreCAM(model, max_channels=channels // 10),
        "AblationCAM": cam_tf.AblationCAM(model),
    }
    for run in (passes, *(lambda one=one: one(images[:1]) for one in explainers.values())):
        run()
    print(f"{name}: one image, K = {channels} channels, in units of K forward passes")
    for _ in range(rounds):
        base = _seconds(passes)
        shares = [
            f"{method} {_seconds(lambda one=one: one(images[:1]).maps.numpy()) / base:.2f}"
            for method, one in explainers.items()
        ]
        print(f"  {base:.1f} s; " + ", ".join(shares), flush=True)
    command = [sys.executable, __file__, "--peak-of", name]
    print(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())


def _print_peak(name: str) -> None:
    model = cam_tf.build_classifier(name, weights=None)
    image = tf.random.stateless_uniform((1, *model.input_shape[1:]), (0, 0), 0, 255)
    before = _peak_gigabytes()
    cam_tf.ScoreCAM(model)(image)
    print(
        f"  ScoreCAM in a process of its own: peak {_peak_gigabytes():.2f} GB, of which "
        f"{before:.2f} before it was made (TensorFlow and the model)"
    )


def _peak_gigabytes() -> float:
    """The most memory that this process has held (Linux; getrusage counts the parent's too)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e6


def _seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _devices() -> str:
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    return ", ".join(gpus) or f"{os.cpu_count()} CPU cores"


if __name__ == "__main__":
    main()
