"""Images a second of ``cam-tf bulk``, against the bare forward pass of images in memory.

    python benchmarks/bulk.py --images FOLDER [--count 10000] [--workers 1] [--rounds 3]

The images of FOLDER (default: the demo photos) are linked under as many new names as it takes.
EfficientNet-Lite0 is exported, and its answers (five classes with maps and boxes) to the files are
timed from the first look at the folder to the last file of answers. The forward pass is
``tf.function(model)`` on batches of the same size that are in memory already, for a few seconds
before and after it, on all cores. The peak memory of the processes together is read once a second.
"""

import argparse
import contextlib
import itertools
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import psutil
import tensorflow as tf

import cam_tf
from cam_tf.export.beam import explain_in_bulk

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=10000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()
    photos = cam_tf.demo_photos()
    if arguments.images is not None:
        photos = cam_tf.find_images(arguments.images, recursive=True)
    model = cam_tf.build_classifier("EfficientNetLite0")
    forward = tf.function(lambda images: model(images, training=False))
    images = tf.random.stateless_uniform((BATCH, *model.input_shape[1:]), (0, 0), 0, 255)
    with tempfile.TemporaryDirectory() as directory:
        folder, saved = Path(directory, "photos"), Path(directory, "1")
        folder.mkdir()
        for i, photo in zip(range(arguments.count), itertools.cycle(photos), strict=False):
            (folder / f"{i:07d}{photo.suffix}").symlink_to(photo.resolve())
        cam_tf.export_saved_model(model, saved)
        size = sum(one.stat().st_size for one in photos) / len(photos)
        print(f"{arguments.count} files of {size / 1e3:.0f} kB, {arguments.workers} workers,")
        print(f"{os.cpu_count()} CPU cores")
        ratios = []
        for i in range(arguments.rounds):
            before = _forward(forward, images)
            with _Memory() as memory:
                start = time.perf_counter()
                found = explain_in_bulk(
                    f"{folder}/*", saved, Path(directory, f"out{i}"), workers=arguments.workers
                )
                speed = arguments.count / (time.perf_counter() - start)
            bare = statistics.mean([before, _forward(forward, images)])
            ratios.append(speed / bare)
            print(f"{found}")
            print(f"bulk {speed:.1f} images/s, forward pass {bare:.1f}: ratio {ratios[-1]:.2f}")
            print(f"memory at each fifth of the time, MB: {memory.fifths()}", flush=True)
        print(f"ratio, median: {statistics.median(ratios):.2f}")


def _forward(forward, images, seconds: float = 10.0) -> float:
    """Images a second."""
    forward(images)
    start, batches = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        forward(images).numpy()
        batches += 1
    return batches * BATCH / (time.perf_counter() - start)


class _Memory:
    """The resident memory of this process and its children, in MB, over time."""

    def __enter__(self):
        self._seen, self._done = [], threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()

    def fifths(self) -> list[int]:
        """The largest in each fifth of the time."""
        parts = [
            self._seen[len(self._seen) * i // 5 : len(self._seen) * (i + 1) // 5] for i in range(5)
        ]
        return [round(max(part)) for part in parts if part]

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._done.wait(1):
            total = 0
            for one in [me, *me.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    total += one.memory_info().rss
            self._seen.append(total / 1e6)


if __name__ == "__main__":
    main()
