"""Files of answers: TFRecord and Parquet."""

import io
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class Answer(NamedTuple):
    """What a SavedModel answered about one image.

    Attributes:
        key: of the image.
        values: by name, the signature's outputs without their batch axis.
    """

    key: str
    values: dict[str, np.ndarray]

    def columns(self) -> dict[str, np.ndarray]:
        """The flat arrays that are written, in a fixed order."""
        maps = self.values["maps"]
        flat = {**self.values, "maps_shape": np.array(maps.shape)}
        return {name: np.ravel(flat[name]) for name in sorted(flat)}


@dataclass(frozen=True)
class Format:
    """How answers are written.

    Attributes:
        suffix: of a file.
        encode: an answer as it is kept until its file is written.
        joined: the file, of what was kept.
    """

    suffix: str
    encode: Callable
    joined: Callable[[Sequence], bytes]


def _example(answer: Answer) -> bytes:
    """A ``tf.train.Example``, its features in the order of their names."""
    import tensorflow as tf

    def feature(values: np.ndarray):
        if values.dtype.kind == "f":
            return tf.train.Feature(float_list=tf.train.FloatList(value=values))
        if values.dtype.kind in "iu":
            return tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values.tolist()))

    columns = {"key": np.array([answer.key.encode()], object), **answer.columns()}
    features = {name: feature(values) for name, values in columns.items()}
    example = tf.train.Example(features=tf.train.Features(feature=features))
    return example.SerializeToString(deterministic=True)


def _tfrecord(examples: Sequence[bytes]) -> bytes:
    import tensorflow as tf

    with tempfile.NamedTemporaryFile(suffix=".tfrecord") as file:  # TensorFlow writes to files only
        with tf.io.TFRecordWriter(file.name) as writer:
            for one in examples:
                writer.write(one)
        return file.read()


def _parquet(answers: Sequence[Answer]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet

    rows = [one.columns() for one in answers]
    columns = {"key": pa.array([one.key for one in answers], pa.string())}
    for name in rows[0] if rows else ():
        kind = {"f": pa.float32(), "i": pa.int32()}.get(rows[0][name].dtype.kind, pa.string())
        values = [row[name].tolist() for row in rows]
        if kind == pa.string():
            values = [[one.decode() for one in row] for row in values]
        columns[name] = pa.array(values, pa.list_(kind))
    file = io.BytesIO()
    pyarrow.parquet.write_table(pa.table(columns), file)
    return file.getvalue()


FORMATS = {
    "tfrecord": Format(".tfrecord", _example, _tfrecord),
    "parquet": Format(".parquet", lambda answer: answer, _parquet),
}
