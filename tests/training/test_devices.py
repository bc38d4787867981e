"""Several devices on this machine: logical CPUs, and processes on loopback."""

import contextlib
import json
import socket
import subprocess
import time

import numpy as np
import pytest
from runs import start, weights

from training.config import Config
from training.devices import open_strategy

EXACT = {"augment": False, "deterministic": True, "optimizer": "sgd", "learning_rate": 0.05}


def finished(process: subprocess.Popen, seconds: float = 300) -> str:
    output, _ = process.communicate(timeout=seconds)
    assert process.returncode == 0, output
    return output


def workers(settings: dict, folder, environment: dict | None = None) -> list[subprocess.Popen]:
    """Two processes that are one cluster."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind(("localhost", 0))
        hosts = [f"localhost:{one.getsockname()[1]}" for one in sockets]
    found = []
    for index in range(2):
        task = {"cluster": {"worker": hosts}, "task": {"type": "worker", "index": index}}
        more = {"TF_CONFIG": json.dumps(task), **(environment or {})}
        found.append(start({**settings, "strategy": "multi_worker"}, folder, more))
    return found


def close(one: Config, other: Config) -> None:
    """The same data, in the same order: the same weights, up to the order of sums."""
    for a, b in zip(weights(one), weights(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_two_logical_cpus_are_told_from_one_by_batch_statistics_alone(settings, tmp_path):
    """Frozen, batch normalization leaves nothing that knows how a batch was divided."""
    frozen = {**settings, **EXACT, "fine_tune_from": "predictions"}
    one = {**frozen, "run": str(tmp_path / "one")}
    finished(start(one, tmp_path))
    two = {**frozen, "run": str(tmp_path / "two"), "strategy": "mirrored", "logical_cpus": 2}
    finished(start(two, tmp_path))
    close(Config(**one), Config(**two))


@pytest.mark.slow
def test_two_logical_cpus_go_on_after_a_kill(settings, tmp_path):
    more = {"strategy": "mirrored", "logical_cpus": 2, "dropout": 0.3, "epochs": 3}
    whole = {**settings, **more, "run": str(tmp_path / "whole")}
    finished(start(whole, tmp_path))
    broken = {**settings, **more, "run": str(tmp_path / "broken")}
    process, first = start(broken, tmp_path), Config(**broken).folder / "last.keras"
    while not first.exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.kill()
    process.communicate()
    finished(start(broken, tmp_path))
    for a, b in zip(weights(Config(**whole)), weights(Config(**broken)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.slow
def test_two_workers_train_as_one_does(settings, tmp_path):
    """In one batch of all images, which the shares of two workers make up too."""
    frozen = {**settings, **EXACT, "fine_tune_from": "predictions", "batch_size": 24, "epochs": 4}
    one = {**frozen, "run": str(tmp_path / "one")}
    finished(start(one, tmp_path))
    two = {**frozen, "run": str(tmp_path / "two")}
    for process in workers(two, tmp_path):
        finished(process)
    close(Config(**one), Config(**two))
    found = [json.loads((Config(**of).folder / "results.json").read_text()) for of in (one, two)]
    assert found[0]["last"] == pytest.approx(found[1]["last"], rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_worker_ends_the_others_and_all_go_on(settings, tmp_path, lost):
    settings |= {"epochs": 30}
    folder = Config(**settings, strategy="multi_worker").folder
    team = workers(settings, tmp_path, {"CAM_TF_PATIENCE": "20"})
    while not (folder / "last.keras").exists():
        assert all(process.poll() is None for process in team), team[0].communicate()
        time.sleep(0.05)
    team[lost].kill()
    output, _ = team[1 - lost].communicate(timeout=120)
    team[lost].communicate()
    assert team[1 - lost].returncode == 1
    assert "same command" in output
    for process in workers({**settings}, tmp_path):
        finished(process)
    assert json.loads((folder / "results.json").read_text())["epochs"] == 30


def test_a_batch_that_does_not_divide(settings, tmp_path):
    settings |= {"batch_size": 7, "strategy": "mirrored", "logical_cpus": 2}
    output, _ = start(settings, tmp_path).communicate(timeout=120)
    assert "batch_size=7" in output and "2" in output and "Traceback" not in output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "TF_CONFIG is not set"),
        ("{", "TF_CONFIG='{' is not such as"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}', "is not such"),
        ('{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}', "is not such"),
    ],
)
def test_the_cluster_is_checked(monkeypatch, text, message):
    if text is None:
        monkeypatch.delenv("TF_CONFIG", raising=False)
    else:
        monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match=message):
        open_strategy(Config(run="r", data="d", strategy="multi_worker"))
