"""Explains any number of images with an exported SavedModel, in an Apache Beam pipeline.

The unit of work is a shard, which becomes one file of answers: a list of image files, or one
TFRecord file. What a shard holds is decided before the pipeline runs, and its images are answered
in the same batches wherever that happens, so that the answer depends on no number of workers. A
shard's file takes its name when it is whole; a run that was killed goes on with those that are
missing.
"""

import dataclasses
import functools
import hashlib
import json
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal, NamedTuple

import numpy as np

from cam_tf.export.records import FORMATS, Answer

try:
    import apache_beam as beam
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.ml.inference.base import ModelHandler, RunInference
    from apache_beam.options.pipeline_options import DirectOptions, PipelineOptions
except ImportError as error:
    raise ImportError(
        'cam_tf.export.beam needs Apache Beam, which is not installed: pip install "cam-tf[bulk]".'
    ) from error

MANIFEST, SUMMARY = "manifest.json", "summary.json"
_READERS = 8  # threads that read image files
_LANES = 2  # batches that are answered at a time: one is decoded while one is explained
_KEYS = ("image/filename", "image/key", "key", "id")  # of an example, the first that is there
_IMAGES = ("image/encoded", "image", "image_bytes")


@dataclasses.dataclass(frozen=True)
class Shard:
    """What becomes one file of answers.

    Attributes:
        name: of its files, without a suffix.
        kind: ``"files"``: ``sources`` are image files, and their keys; ``"tfrecord"``: it is one
            TFRecord file of ``tf.train.Example``.
        sources: paths.
    """

    name: str
    kind: str
    sources: tuple[str, ...]


class Counts(NamedTuple):
    """How many images a shard holds that were answered, and that were not."""

    good: int
    bad: int


def explain_in_bulk(
    patterns: str | Sequence[str],
    model: str | os.PathLike,
    output: str | os.PathLike,
    *,
    source: Literal["files", "tfrecord"] = "files",
    format: Literal["tfrecord", "parquet"] = "tfrecord",
    batch_size: int = 32,
    shard_size: int = 500,
    workers: int | None = None,
    overwrite: bool = False,
    options: Sequence[str] = (),
) -> dict:
    """Answers images with classes, scores, maps and boxes, in shards, on any of Beam's runners.

    ``output`` then holds ``maps-00000-of-00020.tfrecord`` (or ``.parquet``), ..., in each of which
    the images are in the order of their keys or, of TFRecord files, in theirs; for each the
    features ``key``, ``class_ids`` (n), ``class_names`` (n) if the model knows them, ``scores``
    (n), ``maps`` (n h w, flat, rows first), ``maps_shape`` (3) and ``boxes`` (n 4, flat). Images
    that cannot be answered are in ``bad-00000-of-00020.jsonl``, a key and a reason in each line.
    ``manifest.json`` says what was asked for, ``summary.json`` what came of it.

    The same input gives the same files for any number of workers. A run that was killed goes on
    when it is called again: shards that are whole are not answered twice, and none is ever half.

    Args:
        patterns: of files, such as ``"photos/**"``; Beam's file systems work too (``gs://``, with
            the packages that Beam wants for them).
        model: a directory that ``export_saved_model`` wrote.
        output: the directory to write.
        source: ``"files"``: JPEG and PNG files, whose paths are the keys; ``"tfrecord"``: TFRecord
            files, plain or ``.gz``, of ``tf.train.Example`` with the image in ``image/encoded``,
            ``image`` or ``image_bytes``, and the key in ``image/filename``, ``image/key``, ``key``
            or ``id``; without one the key is the file's name and the number in it.
        format: of the answers.
        batch_size: images in one forward pass.
        shard_size: image files in a shard. A TFRecord file is a shard.
        workers: processes of the direct runner, which this machine's cores are divided among;
            default: one for each two cores.
        overwrite: replace what another run left in ``output``.
        options: Beam's own, such as ``["--runner=FlinkRunner", "--flink_master=..."]``.

    Returns:
        What is in ``summary.json``: the numbers of shards, of shards that were there already, of
        images, and of bad ones.

    Raises:
        ValueError: no file matches, an unknown format, an argument below 1, or no SavedModel of
            ``export_saved_model``.
        FileExistsError: ``output`` holds the answers of another run, and ``overwrite`` is False.
        OSError: ``output`` cannot be written to.
    """
    if format not in FORMATS or source not in ("files", "tfrecord"):
        raise ValueError(
            f"source={source!r}, format={format!r}: use 'files' or 'tfrecord', and "
            f"{' or '.join(map(repr, FORMATS))}."
        )
    if min(batch_size, shard_size, workers or 1) < 1:
        raise ValueError(
            f"batch_size={batch_size}, shard_size={shard_size}, workers={workers}: use at least 1."
        )
    model, output = os.fspath(model), os.fspath(output)
    fingerprint = _fingerprint(model)
    shards = _plan([patterns] if isinstance(patterns, str) else patterns, source, shard_size)
    manifest = {
        "model": fingerprint,
        "source": source,
        "format": format,
        "batch_size": batch_size,
        "shards": len(shards),
        "input": _digest(repr(shards).encode()),
    }
    _begin(output, manifest, overwrite)
    suffix = FORMATS[format].suffix
    there = _present(output)
    missing = [one for one in shards if f"maps-{one.name}{suffix}" not in there]
    if missing:
        _run(missing, model, output, format, batch_size, workers, options)
    return _summarise(output, shards, len(shards) - len(missing))


def _run(shards, model, output, format, batch_size, workers, options) -> None:
    given = PipelineOptions(list(options))
    own = given.get_all_options(drop_default=True)
    if "runner" not in own:
        workers = workers or max(1, (os.cpu_count() or 1) // 2)
        mode = "multi_processing" if workers > 1 else "in_memory"
        options = [*options, "--runner=FnApiRunner", f"--direct_running_mode={mode}"]
        given = PipelineOptions([*options, f"--direct_num_workers={workers}"])
        workers = given.view_as(DirectOptions).direct_num_workers
    elif workers is not None:
        raise ValueError(f"workers={workers} are the direct runner's: leave it out, or runner.")
    threads = None if workers is None else max(1, (os.cpu_count() or 1) // workers)
    with beam.Pipeline(options=given) as pipeline:
        (
            pipeline
            | "Shards" >> beam.Create(shards, reshuffle=False)
            | "Spread" >> beam.Reshuffle(num_buckets=len(shards))
            | "Explain" >> RunInference(_Handler(model, format, batch_size, threads))
            | "Write" >> beam.ParDo(_Write(output, format))
        )


def _plan(patterns: Iterable[str], source: str, size: int) -> list[Shard]:
    """The shards of all files that match."""
    paths: set[str] = set()
    for pattern in patterns:
        (found,) = FileSystems.match([os.fspath(pattern)])
        if not found.metadata_list:
            raise ValueError(f"no file matches {pattern!r}: quote patterns such as 'photos/**'.")
        paths.update(one.path for one in found.metadata_list)
    ordered = sorted(path for path in paths if not os.path.isdir(path))
    if not ordered:
        raise ValueError(f"{list(patterns)} match directories alone: add /** for what is in them.")
    size = size if source == "files" else 1
    parts = [tuple(ordered[i : i + size]) for i in range(0, len(ordered), size)]
    return [Shard(f"{i:05d}-of-{len(parts):05d}", source, part) for i, part in enumerate(parts)]


def _fingerprint(model: str) -> str:
    """What tells a SavedModel from others; a ValueError if it is none of ours."""
    digests = []
    for name in ("saved_model.pb", "model_card.json", "variables/variables.index"):
        path = FileSystems.join(model, name)
        if FileSystems.exists(path):
            with FileSystems.open(path, compression_type="uncompressed") as file:
                digests.append(_digest(file.read()))
        elif name != "variables/variables.index":
            raise ValueError(
                f"{model} holds no {name}: give a directory that cam_tf.export_saved_model or "
                "'cam-tf export' wrote."
            )
    return _digest("".join(digests).encode())


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _begin(output: str, manifest: dict, overwrite: bool) -> None:
    """Makes the directory of answers, or finds it as the same run left it."""
    path = FileSystems.join(output, MANIFEST)
    if FileSystems.exists(path):
        with FileSystems.open(path) as file:
            before = json.loads(file.read())
        if before == manifest:
            _delete(output, lambda name: name.endswith(".part"))  # of a run that was killed
            return
        if not overwrite:
            changed = [name for name in manifest if before.get(name) != manifest[name]]
            raise FileExistsError(
                f"{output} holds the answers of another run ({', '.join(changed)} differ): name "
                "another directory, or replace them with overwrite=True."
            )
        _delete(output, lambda name: name.startswith(("maps-", "bad-", "count-")))
    try:
        if not FileSystems.exists(output):
            FileSystems.mkdirs(output)
        elif _present(output) - {MANIFEST, SUMMARY} and not FileSystems.exists(path):
            raise FileExistsError(f"{output} holds other files: name another directory.")
        _write_whole(path, json.dumps(manifest, indent=2).encode())
    except FileExistsError:
        raise
    except Exception as error:  # Beam's file systems raise their own
        raise OSError(f"cannot write to {output} ({error}): name another directory.") from error


def _delete(output: str, chosen: Callable[[str], bool]) -> None:
    paths = [FileSystems.join(output, name) for name in _present(output) if chosen(name)]
    if paths:
        FileSystems.delete(paths)


def _present(output: str) -> set[str]:
    """The names of the files in the directory of answers."""
    (found,) = FileSystems.match([FileSystems.join(output, "*")])
    return {os.path.basename(one.path) for one in found.metadata_list}


def _write_whole(path: str, content: bytes) -> None:
    """Writes a file that takes its name when it is whole."""
    temporary = f"{path}.{os.getpid()}-{threading.get_ident()}.part"
    with FileSystems.create(temporary, compression_type="uncompressed") as file:
        file.write(content)
    FileSystems.rename([temporary], [path])


class _Handler(ModelHandler[Shard, tuple[Shard, list[Answer], dict[str, str]], object]):
    """Loads the SavedModel once in a process, and answers shards.

    Beam batches elements as they come; here an element is a shard, whose batches are always the
    same.
    """

    def __init__(self, model: str, format: str, batch_size: int, threads: int | None):
        super().__init__(min_batch_size=1, max_batch_size=1)
        self._model, self._batch_size, self._threads = model, batch_size, threads
        self._encode = FORMATS[format].encode

    def load_model(self):
        """The signature, with no more threads than this process's share of the cores."""
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        if self._threads is not None:
            try:
                tf.config.threading.set_intra_op_parallelism_threads(self._threads)
                tf.config.threading.set_inter_op_parallelism_threads(self._threads)
            except RuntimeError:
                pass  # TensorFlow runs already, in a process that is not ours alone
        return tf.saved_model.load(self._model)

    def run_inference(self, batch: Sequence[Shard], model, inference_args=None):
        """Answers each shard: its answers, and the keys that have none with the reasons."""
        answer = model.signatures["serving_bytes"]
        return [self._explained(shard, answer) for shard in batch]

    def _explained(self, shard: Shard, answer: Callable) -> tuple:
        good: list = []
        bad: dict[str, str] = {}
        work = functools.partial(_answered, answer=answer)
        for answers, reasons in _in_lanes(work, _batches(shard, self._batch_size)):
            good += [self._encode(one) for one in answers]
            bad |= reasons
        return shard.name, good, bad

    def get_num_bytes(self, batch: Sequence[Shard]) -> int:
        """For Beam's own figures."""
        return sum(len(path) for one in batch for path in one.sources)

    def get_metrics_namespace(self) -> str:
        """Of Beam's own figures."""
        return "cam_tf"


def _answered(
    batch: list[tuple[str, bytes | Exception]], answer: Callable
) -> tuple[list[Answer], dict[str, str]]:
    """The answers of a batch, and why keys have none."""
    bad = {key: str(data) for key, data in batch if isinstance(data, Exception)}
    read = [(key, data) for key, data in batch if not isinstance(data, Exception)]
    return list(_answers(read, answer, bad)), bad


def _answers(batch: list[tuple[str, bytes]], answer: Callable, bad: dict) -> Iterator[Answer]:
    """Answers files; where one is bad, in halves, so that its neighbours are answered."""
    import tensorflow as tf

    if not batch:
        return
    try:
        found = answer(image_bytes=tf.constant([data for _, data in batch]))
    except tf.errors.InvalidArgumentError as error:
        if len(batch) == 1:
            bad[batch[0][0]] = _reason(error)
            return
        half = len(batch) // 2
        yield from _answers(batch[:half], answer, bad)
        yield from _answers(batch[half:], answer, bad)
        return
    arrays = {name: each.numpy() for name, each in found.items()}
    for index, (key, _) in enumerate(batch):
        yield Answer(key, {name: each[index] for name, each in arrays.items()})


def _reason(error) -> str:
    """The line of TensorFlow's message that tells what is wrong with the file."""
    lines = [one.strip() for one in error.message.splitlines() if one.strip()]
    told = [one for one in lines if "image 0 of the batch" in one or "nvalid" in one]
    text = (told or lines or ["it cannot be decoded"])[0]
    return (
        text.replace("assertion failed: ", "").strip("[]b'\" ").replace("image 0 of the batch ", "")
    )


def _batches(shard: Shard, size: int) -> Iterator[list[tuple[str, bytes | Exception]]]:
    """Keys with files, or with the error of reading them."""
    read = _from_files if shard.kind == "files" else _from_records
    batch = []
    for one in read(shard.sources):
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _from_files(paths: Sequence[str]) -> Iterator[tuple[str, bytes | Exception]]:
    def read(path: str) -> tuple[str, bytes | Exception]:
        try:
            with FileSystems.open(path, compression_type="uncompressed") as file:
                return path, file.read()
        except Exception as error:  # of whatever file system it is
            return path, OSError(f"cannot be read: {error}")

    with ThreadPoolExecutor(_READERS) as pool:
        for start in range(0, len(paths), 4 * _READERS):  # never all files in memory
            yield from pool.map(read, paths[start : start + 4 * _READERS])


def _from_records(paths: Sequence[str]) -> Iterator[tuple[str, bytes | Exception]]:
    import tensorflow as tf

    for path in paths:
        compression = "GZIP" if path.endswith(".gz") else ""
        name = os.path.basename(path)
        records = enumerate(tf.data.TFRecordDataset(path, compression).prefetch(2))
        while True:
            try:
                index, record = next(records)
            except StopIteration:
                break
            except tf.errors.OpError as error:  # nothing after it can be found
                yield f"{name}: the rest", ValueError(f"damaged records: {error.message}")
                break
            yield _example(record.numpy(), f"{name}:{index:06d}")


def _example(record: bytes, number: str) -> tuple[str, bytes | Exception]:
    import tensorflow as tf

    try:
        features = tf.train.Example.FromString(record).features.feature
    except Exception as error:  # of protobuf, which has no public name for it
        return number, ValueError(f"is no tf.train.Example: {error}")
    values = {
        name: list(features[name].bytes_list.value)
        for name in (*_KEYS, *_IMAGES)
        if name in features
    }
    key = next(
        (values[name][0].decode("utf-8", "replace") for name in _KEYS if values.get(name)), number
    )
    image = next((values[name][0] for name in _IMAGES if values.get(name)), None)
    if image is None:
        return key, ValueError(f"has none of the features {', '.join(_IMAGES)}.")
    return key, image


def _in_lanes(work: Callable, items: Iterable) -> Iterator:
    """Works on a few items at a time, and yields the results in the order of the items."""
    with ThreadPoolExecutor(_LANES) as pool:
        waiting: deque = deque()
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > _LANES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _Write(beam.DoFn):
    """Writes the files of a shard: last the answers, which make it whole."""

    def __init__(self, output: str, format: str):
        self._output, self._format = output, format

    def process(self, element):
        """Yields nothing: the files are the result."""
        name, good, bad = element
        lines = [json.dumps({"key": key, "reason": why}) + "\n" for key, why in bad.items()]
        path = FileSystems.join(self._output, f"bad-{name}.jsonl")
        _write_whole(path, "".join(lines).encode())
        kind = FORMATS[self._format]
        _write_whole(path, "".join(lines).encode())
        counts = json.dumps(Counts(len(good), len(bad))._asdict())
        _write_whole(FileSystems.join(self._output, f"count-{name}.json"), counts.encode())
        kind = FORMATS[self._format]
        path = FileSystems.join(self._output, f"maps-{name}{kind.suffix}")
        _write_whole(path, kind.joined(good))


def _summarise(output: str, shards: Sequence[Shard], kept: int) -> dict:
    """Adds the shards up, and writes the sums."""
    totals = np.zeros(2, int)
    for shard in shards:
        with FileSystems.open(FileSystems.join(output, f"count-{shard.name}.json")) as file:
            totals += list(json.loads(file.read()).values())
    found = {
        "shards": len(shards),
        "shards_there_before": kept,
        "images": int(totals[0]),
        "bad": int(totals[1]),
    }
    _write_whole(FileSystems.join(output, SUMMARY), json.dumps(found, indent=2).encode())
    return found
