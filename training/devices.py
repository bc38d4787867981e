"""The devices that share a batch: one, all of this machine, or those of several."""

import json
import math
import os
import sys
import threading
import time

import tensorflow as tf

from training.config import Config

_PATIENCE = 300  # seconds in which a worker must hear of the others


def open_strategy(config: Config) -> tf.distribute.Strategy:
    """Returns the strategy of a run; to be called before TensorFlow has used any device.

    Raises:
        ValueError: ``TF_CONFIG`` is missing or is not what it must be, or the CPU cannot be
            divided any more.
    """
    if config.logical_cpus > 1:
        _divide_cpu(config.logical_cpus)
    if config.strategy == "multi_worker":
        _check_cluster(os.environ.get("TF_CONFIG"))
        with Watch():  # TensorFlow waits for the others, for an hour
            return tf.distribute.MultiWorkerMirroredStrategy()
    if config.strategy == "mirrored":
        devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
        return tf.distribute.MirroredStrategy([device.name for device in devices])
    return tf.distribute.get_strategy()


def _divide_cpu(count: int) -> None:
    device = tf.config.list_physical_devices("CPU")[0]
    try:
        tf.config.set_logical_device_configuration(
            device, [tf.config.LogicalDeviceConfiguration()] * count
        )
    except RuntimeError as error:  # TensorFlow is at work already
        if len(tf.config.list_logical_devices("CPU")) != count:
            raise ValueError(
                f"logical_cpus={count}: this process has used the CPU already; start another."
            ) from error


def _check_cluster(text: str | None) -> None:
    example = (
        '\'{"cluster": {"worker": ["host1:9000", "host2:9000"]}, "task": {"type": "worker", '
        '"index": 0}}\''
    )
    if not text:
        raise ValueError(
            "strategy 'multi_worker' takes the machines from the environment, and TF_CONFIG is not "
            f"set. Set it on each worker, with an index of its own: TF_CONFIG={example}."
        )
    try:
        found = json.loads(text)
        workers, index = found["cluster"]["worker"], found["task"]["index"]
        fits = isinstance(workers[index], str) and found["task"]["type"] == "worker" and index >= 0
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise ValueError(f"TF_CONFIG={text!r} is not such as {example}.") from error
    if not fits:
        raise ValueError(f"TF_CONFIG={text!r} is not such as {example}.")


def worker(strategy: tf.distribute.Strategy) -> tuple[int, int]:
    """This process's (index, count) among the workers."""
    cluster = strategy.cluster_resolver
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy) or cluster is None:
        return 0, 1
    return cluster.task_id or 0, max(1, len(cluster.cluster_spec().as_dict().get("worker", [0])))


class Watch:
    """Ends the process if nothing is heard for long: a collective may wait without end.

    The environment variable ``CAM_TF_PATIENCE`` gives the seconds; the default is 300.
    """

    def __init__(self):
        self._patience = float(os.environ.get("CAM_TF_PATIENCE", _PATIENCE))
        self._last, self._over = math.inf, threading.Event()

    def __enter__(self) -> "Watch":
        self._last = time.monotonic()
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()

    def alive(self) -> None:
        """A step is complete."""
        self._last = time.monotonic()

    def _look(self) -> None:
        while not self._over.wait(1.0):
            waited = time.monotonic() - self._last
            if waited > self._patience:
                print(
                    f"Error: nothing was heard of the other workers for {waited:.0f} s: one is "
                    "lost, stuck or not started. The last checkpoint is whole: start all again "
                    "with the same command.",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
