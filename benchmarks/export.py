"""What a SavedModel's answer costs: ratios to the plain forward pass of the Keras model.

    python benchmarks/export.py [--models EfficientNetLite0 ...] [--batches 1 8] [--rounds 25]

All candidates of a block run in turn in one process, as in ``overhead.py``; the forward pass is
``tf.function(model)`` with live weights. ``serving_default`` is what ``tf.saved_model.load`` gives,
with everything that it answers: the top five classes, their scores, maps and boxes; a session is
how TensorFlow Serving runs the same. "JPEG files" are the demo photos, decoded and resized: by the
signature, and by ``load_image`` and ``resize_image`` before the forward pass.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import tensorflow as tf
from overhead import _devices, _paired_times, _print_block

import cam_tf
from cam_tf.export.saved_model import export_saved_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["EfficientNetLite0", "ResNet50"])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--rounds", type=int, default=25)
    arguments = parser.parse_args()
    print(f"TensorFlow {tf.__version__}, {_devices()}, {arguments.rounds} rounds")
    for name in arguments.models:
        model = cam_tf.build_classifier(name, weights=None)
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory, "1")
            seconds = _seconds(lambda: export_saved_model(model, path))  # noqa: B023
            size = sum(one.stat().st_size for one in path.rglob("*") if one.is_file())
            loading = _seconds(lambda: tf.saved_model.load(str(path)))  # noqa: B023
            print(f"{name}: exported in {seconds:.1f} s, {size / 1e6:.1f} MB, ", end="")
            print(
                f"of which weights {model.count_params() * 4 / 1e6:.1f}; loaded in {loading:.1f} s"
            )
            for batch in arguments.batches:
                candidates = _candidates(model, path, batch)
                _print_block(name, batch, _paired_times(candidates, arguments.rounds))


def _candidates(model, path: Path, batch: int) -> dict:
    size = model.input_shape[1:3]
    images = tf.random.stateless_uniform((batch, *size, 3), (0, 0), 0, 255)
    photos = cam_tf.demo_photos()
    files = [photos[i % len(photos)].read_bytes() for i in range(batch)]
    forward = tf.function(lambda images: model(images, training=False))
    served = tf.saved_model.load(str(path)).signatures
    session = tf.compat.v1.Session(graph=tf.Graph())
    with session.graph.as_default():
        meta = tf.compat.v1.saved_model.load(session, ["serve"], str(path))
    signature = meta.signature_def["serving_default"]
    feed = {signature.inputs["images"].name: images.numpy()}

    outputs = [one.name for one in signature.outputs.values()]

    def from_files():
        loaded = [cam_tf.resize_image(cam_tf.load_image(file), size) for file in files]
        return forward(tf.constant(np.stack(loaded), tf.float32))

    return {
        "forward": lambda: forward(images),
        "serving_default": lambda: served["serving_default"](images=images)["boxes"],
        "the same in a session": lambda: session.run(outputs, feed)[0],
        "JPEG files, serving_bytes": lambda: served["serving_bytes"](image_bytes=files)["boxes"],
        "JPEG files, forward": from_files,
    }


def _seconds(run) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
