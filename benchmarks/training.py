"""Whether the input pipeline keeps up: images/s of ``fit`` against the training step alone.

    python benchmarks/training.py [--data FOLDER] [--batch 32] [--steps 20] [--rounds 9]

Trains EfficientNet-Lite0 at 224 pixels for 10 classes. The bare step is Keras's own compiled
``train_step`` on one batch in memory; ``fit`` reads JPEG files through
``cam_tf.datasets.training``, with and without augmentation. All run in turn in one process, round
after round, in an order shuffled anew for each; a ratio is of two rates of the same round. Median
and quartiles over the rounds. Beside them the processor time of an image, which also holds on a
machine that others use: where the processor is all that computes, the ratio of the bare step's to
that of ``fit`` is what an idle machine would show. The first steps of each ``fit`` are not timed:
they start the pipeline, which happens once in a training. Then the pipeline alone, without a
network.

Without ``--data``: JPEG files of 500 x 375 pixels, ImageNet's mean size, cut from the photos that
come with cam_tf, in a temporary folder of 10 class folders.
"""

import argparse
import os
import random
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

import cam_tf
from cam_tf.datasets.training import TrainingData, training_data

SIZE, CLASSES = 224, 10
STARTING = 3  # steps until the pipeline runs evenly
WAYS = {"with augmentation": True, "without augmentation": False}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="a folder of class folders")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=20, help="timed steps in a round")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("float32", "mixed_float16", "mixed_bfloat16"))
    parser.add_argument("--xla", action="store_true", help="compile the step with XLA")
    arguments = parser.parse_args()
    if arguments.precision:
        keras.config.set_dtype_policy(arguments.precision)
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    print(
        f"TensorFlow {tf.__version__}, {', '.join(gpus) or 'no GPU'}, {os.cpu_count()} CPU cores, "
        f"batches of {arguments.batch}, {arguments.steps} steps, {arguments.rounds} rounds"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.data or write_photos(Path(temporary))
        measure(folder, arguments)


def write_photos(root: Path, count: int = 32) -> Path:
    """Writes JPEG files, ``count`` for each class."""
    photos, chosen = [Image.open(path) for path in cam_tf.demo_photos()], random.Random(0)
    for number in range(CLASSES * count):
        photo = chosen.choice(photos)
        width = chosen.randint(photo.width // 2, photo.width)
        height = min(photo.height, width * 3 // 4)
        left = chosen.randint(0, photo.width - width)
        top = chosen.randint(0, photo.height - height)
        cut = photo.crop((left, top, left + width, top + height)).resize((500, 375))
        folder = root / f"class_{number % CLASSES}"
        folder.mkdir(exist_ok=True)
        cut.convert("RGB").save(folder / f"{number}.jpg", quality=92)
    return root


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Prints the rates."""
    batch, steps = arguments.batch, arguments.steps
    sources = {name: _source(folder, batch, augment) for name, augment in WAYS.items()}
    classes = len(next(iter(sources.values())).classes)
    model = cam_tf.build_classifier("EfficientNetLite0", classes, weights=None)
    model.compile(
        keras.optimizers.SGD(1e-3), "sparse_categorical_crossentropy", jit_compile=arguments.xla
    )
    candidates = {"bare step": _bare_step(model, batch, steps, classes)}
    for name, source in sources.items():
        candidates[f"fit {name}"] = _fit(model, source, steps)
    for run in candidates.values():  # traces, then fills caches
        run()
    spent = {name: [] for name in candidates}
    for _ in range(arguments.rounds):
        for name in random.sample(list(candidates), len(candidates)):
            spent[name].append(candidates[name]() / (batch * steps))
    for name in candidates:
        _print(name, spent[name], None if name == "bare step" else spent["bare step"])
    for name, source in sources.items():
        alone = [_alone(source, steps) / (batch * steps) for _ in range(arguments.rounds)]
        _print(f"pipeline alone {name}", alone)


def _source(folder: Path, batch: int, augment: bool) -> TrainingData:
    return training_data(folder, "all", size=SIZE, batch_size=batch, augment=augment, shuffle=True)


def _bare_step(model: keras.Model, batch: int, steps: int, classes: int):
    images = tf.random.stateless_uniform((batch, SIZE, SIZE, 3), (0, 0), 0, 255)
    labels = tf.range(batch) % classes
    step = tf.function(model.train_step, jit_compile=model.jit_compile)

    def run() -> np.ndarray:
        start = _now()
        for _ in range(steps):
            logs = step((images, labels))
        np.asarray(logs["loss"])  # waits for the device
        return _now() - start

    return run


def _now() -> np.ndarray:
    """Seconds that have passed, and seconds of all processors that this process has used."""
    return np.array([time.perf_counter(), time.process_time()])


class _Clock(keras.callbacks.Callback):
    """The seconds from the end of the starting steps to the end of the epoch."""

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if batch == STARTING:
            self._wait()
            self.start = _now()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self._wait()
        self.seconds = _now() - self.start

    def _wait(self) -> None:
        np.asarray(self.model.optimizer.iterations)


def _fit(model: keras.Model, source: TrainingData, steps: int):
    def run() -> np.ndarray:
        clock = _Clock()
        model.fit(
            source.epochs(),
            steps_per_epoch=STARTING + steps,
            callbacks=[clock],
            shuffle=False,
            verbose=0,
        )
        return clock.seconds

    return run


def _alone(source: TrainingData, steps: int) -> np.ndarray:
    """The seconds of the pipeline with nobody who computes."""
    batches = iter(source.epochs())
    for _ in range(STARTING):
        next(batches)
    start = _now()
    for _ in range(steps):
        next(batches)
    return _now() - start


def _print(name: str, spent: list[np.ndarray], bare: list[np.ndarray] | None = None) -> None:
    """A line of rates and of ratios, from seconds for an image: passed, and of processors."""
    passed, used = np.transpose(spent)
    low, middle, high = np.quantile(1 / passed, [0.25, 0.5, 0.75])
    line = f"{name:36} {middle:7.1f} images/s [{low:.1f}, {high:.1f}]"
    line += f" {1e3 * np.median(used):6.1f} ms of processors"
    if bare is not None:
        ratios = np.quantile(np.divide(bare, spent), [0.25, 0.5, 0.75], axis=0).T
        for what, (low, middle, high) in zip(("time", "processors"), ratios, strict=True):
            line += f"; ratio by {what} {middle:5.3f} [{low:.3f}, {high:.3f}]"
    print(line, flush=True)


if __name__ == "__main__":
    main()
