"""LiteRT and ONNX files against TensorFlow: their size, agreement, localization and cost.

    python benchmarks/runtimes.py [--folder FOLDER] [--model EfficientNetLite0] [--rounds 25]

Each format's own runtime answers the photos of FOLDER (``image_ids.txt``, ... in the format of the
WSOL benchmark, and the images in ``images``; without it the demo photos, and no localization). The
differences are to ``cam_tf.CAM``: of maps as a share of the largest value of the image's maps, of
all classes; the largest over images, and the median. Accuracy and localization are those of
``cam_tf.evaluate``. The cost is that of one image, maps included: the ratio to the plain forward
pass ``tf.function(model)``, paired as in ``overhead.py``.
"""

import argparse
import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from overhead import _devices, _paired_times, _print_block

import cam_tf

FORMATS = ("litert", "litert float16", "litert int8", "onnx")
FIGURES = ("cls_top1_error", "loc_top1_error", "gt_known", "maxboxaccv2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--model", default="EfficientNetLite0")
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    cam = cam_tf.CAM(cam_tf.build_classifier(arguments.model))
    with tempfile.TemporaryDirectory() as directory:
        paths = {name: _export(name, cam, Path(directory)) for name in FORMATS}
        runtimes = {name: Runtime(cam, path) for name, path in paths.items()}
        print(f"{arguments.model}; TensorFlow {tf.__version__}, {_devices()}")
        _agreement(cam, paths, runtimes, _photos(arguments.folder, cam))
        if arguments.folder is not None:
            _localization({"tensorflow": cam, **runtimes}, arguments.folder)
        _cost(cam, runtimes, arguments.model, arguments.rounds)


def _export(name: str, cam: cam_tf.CAM, directory: Path) -> Path:
    format, _, quantize = name.partition(" ")
    path = directory / name.replace(" ", "_")
    if format == "onnx":
        return cam_tf.export_onnx(cam, path.with_suffix(".onnx"))
    return cam_tf.export_litert(cam, path.with_suffix(".tflite"), quantize=quantize or None)


class Runtime:
    """An exported file in its own runtime, called as an explainer is."""

    def __init__(self, cam: cam_tf.CAM, path: Path):
        self.anatomy = cam.anatomy
        self._path = path
        if path.suffix == ".onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(path))
            names = [one.name for one in session.get_outputs()]
            self.answer = lambda images: dict(
                zip(names, session.run(names, {"images": images}), strict=True)
            )
        else:
            from ai_edge_litert.interpreter import Interpreter

            interpreter = Interpreter(str(path), num_threads=os.cpu_count())
            run = interpreter.get_signature_runner("serving_default")
            self.answer = lambda images: _joined([run(images=one[None]) for one in images])

    def describe(self) -> dict:
        """What the figures of ``evaluate`` depend on."""
        return {"runtime": self._path.name}

    def __call__(self, images, class_ids, top_k=0, batch_size=None) -> cam_tf.Explanation:
        """Explains the predicted classes, then the given one."""
        images = np.float32(images)
        answer = self.answer(images)
        best = np.argsort(-answer["scores"], axis=1, kind="stable")[:, :top_k]
        ids = np.concatenate([best, np.reshape(class_ids, (-1, 1))], axis=1).astype(np.int32)
        scores = np.take_along_axis(answer["scores"], ids, axis=1)
        maps = np.take_along_axis(answer["maps"], ids[..., None, None], axis=1)
        logits = np.log(np.maximum(scores, 1e-30))
        return cam_tf.Explanation(maps, ids, scores, logits, images.shape[1:3])


def _joined(answers: list[dict]) -> dict:
    return {name: np.concatenate([one[name] for one in answers]) for name in answers[0]}


def _photos(folder: Path | None, cam: cam_tf.CAM, count: int = 50) -> np.ndarray:
    photos = (
        cam_tf.demo_photos()
        if folder is None
        else cam_tf.find_images(folder / "images", recursive=True)
    )
    size = cam.anatomy.image.shape[1:3]
    return np.stack([cam_tf.resize_image(cam_tf.load_image(one), size) for one in photos[:count]])


def _agreement(cam, paths: dict, runtimes: dict, photos: np.ndarray) -> None:
    photos = np.float32(photos)
    expected = cam(photos, "all").numpy()
    scale = np.abs(expected.maps).max(axis=(1, 2, 3))
    print(f"{len(photos)} photos; differences to TensorFlow, largest (median)")
    print(f"{'format':16} {'MB':>6}  {'of maps':>22}  {'of scores':>22}  same class")
    for name, runtime in runtimes.items():
        answer = runtime.answer(photos)
        maps = np.abs(answer["maps"] - expected.maps).max(axis=(1, 2, 3)) / scale
        scores = np.abs(answer["scores"] - expected.scores).max(axis=1)
        same = (answer["scores"].argmax(1) == expected.scores.argmax(1)).mean()
        cells = [f"{each.max():.1e} ({np.median(each):.1e})" for each in (maps, scores)]
        size = paths[name].stat().st_size / 1e6
        print(f"{name:16} {size:>6.1f}  {cells[0]:>22}  {cells[1]:>22}  {same:>10.2f}", flush=True)


def _localization(explainers: dict, folder: Path) -> None:
    examples = cam_tf.wsol_examples(folder / "images", folder)
    print(f"\n{'format':16} {'images':>6}" + "".join(f"  {name:>16}" for name in FIGURES))
    for name, explainer in explainers.items():
        size = explainer.anatomy.image.shape[1:3]
        found = cam_tf.evaluate(explainer, examples, image_size=size)
        figures = found.results()
        cells = "".join(f"  {figures[one].value:>16.3f}" for one in FIGURES)
        print(f"{name:16} {found.images:>6}{cells}", flush=True)


def _cost(cam, runtimes: dict, name: str, rounds: int) -> None:
    images = np.random.default_rng(0).uniform(0, 255, (1, *cam.anatomy.image.shape[1:]))
    images = images.astype(np.float32)
    model = cam_tf.build_classifier(name, weights=None)
    forward, tensor = tf.function(lambda images: model(images, training=False)), tf.constant(images)
    candidates = {"forward": lambda: forward(tensor)}
    for format, runtime in runtimes.items():
        candidates[format] = lambda runtime=runtime: runtime.answer(images)["maps"]
    print("\none image, maps of all classes: ratio to the forward pass, median [quartiles]")
    _print_block(name, 1, _paired_times(candidates, rounds))


if __name__ == "__main__":
    main()
