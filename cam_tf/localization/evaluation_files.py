"""The directory of an evaluation, from which a killed run goes on without loss or repetition.

``state.json`` holds the sums, how far the data are gone through, and how many bytes of
``images.jsonl`` belong to these images; it is replaced in one step. Records are appended before
the state that counts them is saved, and what a killed run has appended beyond it is cut off.
"""

import contextlib
import heapq
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cam_tf.files import written_whole
from cam_tf.localization.evaluation_result import (
    RECORDS,
    SHEET,
    SUMMARY,
    Evaluation,
    combined,
    differences,
)

try:
    import fcntl
except ImportError:  # Windows: no lock, two runs at once are not noticed
    fcntl = None

STATE = "state.json"


class RunFiles:
    """The files of one running evaluation: open them with ``with``.

    Args:
        directory: where they are; it is made if it is not there.
        settings: what the figures depend on, in plain data.
        overwrite: begin anew, whatever the directory holds.
        save_every: seconds from one state to the next.

    Raises:
        ValueError: the directory holds an evaluation with other settings, or a damaged one, or is
            in use.
    """

    def __init__(self, directory: Path, settings: dict, overwrite: bool, save_every: float):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._every, self._saved = save_every, time.monotonic()
        self._file = open(directory / RECORDS, "ab")  # noqa: SIM115 - open as long as it runs
        try:
            _lock(self._file, directory)
            if overwrite:  # the state first: what a kill leaves is no evaluation, or the old one
                for name in (STATE, SUMMARY, SHEET):
                    (directory / name).unlink(missing_ok=True)
            for left in directory.glob(f".{STATE}.*"):  # of a run killed while it wrote
                left.unlink()
            self.found = read_state(directory)
            if self.found and not (self.found.images or self.found.finished):
                self.found = None  # nothing to go on from
            self._check(settings)
            self._file.truncate(self.found.bytes if self.found else 0)
        except BaseException:
            self._file.close()
            raise

    def _check(self, settings: dict) -> None:
        if self.found is None:
            return
        way_out = "go on with the same settings and data, begin anew with overwrite (on the "
        way_out += "command line --overwrite), or name another directory."
        changes = differences(settings, self.found.settings)
        if changes:
            raise ValueError(
                f"{self.directory} holds an evaluation with other settings: {'; '.join(changes)}. "
                f"Either {way_out}"
            )
        if (self.directory / RECORDS).stat().st_size < self.found.bytes:
            raise ValueError(
                f"{self.directory / RECORDS} is shorter than {STATE} says: begin anew with "
                "overwrite (on the command line --overwrite)."
            )

    def __enter__(self) -> "RunFiles":
        return self

    def __exit__(self, *error) -> None:
        with naming(self.directory):
            self._file.close()

    def append(self, records: Sequence[dict]) -> int:
        """Writes the records of some images, and returns how long they are in bytes."""
        lines = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records).encode()
        return self.write(lines)

    def write(self, lines: bytes) -> int:
        """Writes records that are lines already, and returns how long they are in bytes."""
        with naming(self.directory):
            return self._file.write(lines)

    def save(self, evaluation: Evaluation, now: bool = True) -> None:
        """Saves the state; with ``now=False`` only if the last time is long enough ago."""
        if not now and time.monotonic() - self._saved < self._every:
            return
        with naming(self.directory):
            _flush(self._file)
            with written_whole(self.directory / STATE) as file:
                file.write(json.dumps(evaluation.state(), allow_nan=False).encode())
                _flush(file)
        self._saved = time.monotonic()


@contextlib.contextmanager
def naming(directory: Path) -> Iterator[None]:
    """Says of an error in writing, such as a full disk, where it was and what is left."""
    try:
        yield
    except OSError as error:
        raise OSError(
            f"{directory} cannot be written to ({error.strerror or error}). What was saved before "
            "is kept: make room, and the same command goes on from there."
        ) from error


def _lock(file, directory: Path) -> None:
    """Holds the directory until the file is closed, or the process is gone."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(
            f"another process is evaluating into {directory}: wait for it, or name another "
            "directory."
        ) from None


def _flush(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def read_state(directory: Path) -> Evaluation | None:
    """Reads the evaluation that a directory holds, finished or not; None if there is none.

    Raises:
        ValueError: the state is damaged.
    """
    path = directory / STATE
    try:
        return Evaluation.from_state(json.loads(path.read_bytes()), directory)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is no state of an evaluation ({type(error).__name__}: {error}): begin anew "
            "with overwrite (on the command line --overwrite)."
        ) from error


def merge_evaluations(
    directories: Sequence[Path],
    output: Path,
    *,
    overwrite: bool = False,
    check: Callable[[Evaluation], None] | None = None,
) -> Evaluation:
    """Merges the finished shards of one evaluation, and writes them as one into a directory.

    Args:
        directories: those of all shards 0/n to n-1/n, in any order.
        output: the directory of the merged ``state.json`` and ``images.jsonl``.
        overwrite: replace an evaluation that is there.
        check: called with what is merged before anything is written; it may raise.

    Returns:
        What one worker would have measured; the records are in the order of the data.

    Raises:
        ValueError: no evaluation in a directory, a shard that is unfinished, missing or there
            twice, other settings, records that are not those of the state, or an evaluation in
            ``output``, or one that is running there.
    """
    parts = [read_state(directory) for directory in directories]
    for directory, part in zip(directories, parts, strict=True):
        if part is None:
            raise ValueError(f"{directory} holds no evaluation: there is no {STATE} in it.")
        _check_records(part)
    merged = combined(parts)
    is_part = output.resolve() in [directory.resolve() for directory in directories]
    if is_part or (read_state(output) is not None and not overwrite):
        raise ValueError(f"{output} holds an evaluation: name another directory, or overwrite it.")
    if check is not None:
        check(merged)
    with contextlib.ExitStack() as stack:
        written = stack.enter_context(RunFiles(output, merged.settings, overwrite, 0.0))
        files = [stack.enter_context(open(part.directory / RECORDS, "rb")) for part in parts]
        lines = heapq.merge(*files, key=lambda line: json.loads(line)["index"])
        merged = replace(merged, bytes=sum(map(written.write, lines)), directory=output)
        written.save(merged)
    return merged


def _check_records(part: Evaluation) -> None:
    path = part.directory / RECORDS
    size = path.stat().st_size if path.exists() else 0
    if part.finished and size != part.bytes:
        raise ValueError(
            f"{path} has {size} bytes, and {STATE} says {part.bytes}: it is damaged. Run the "
            "command of this shard again with overwrite (on the command line --overwrite)."
        )
