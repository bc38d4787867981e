"""Bulk explanation: nothing lost, nothing doubled, the same for any number of workers."""

import gzip
import io
import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from click.testing import CliRunner
from PIL import Image

import cam_tf
from cam_tf.cli import main

pytest.importorskip("apache_beam")
from cam_tf.export.beam import explain_in_bulk

SIZE, COUNT = 16, 23
BAD = {"004.jpg": "0 bytes", "011.png": "neither a JPEG nor a PNG", "017.jpg": "JPEG"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    keras.utils.set_random_seed(0)
    image = keras.Input((SIZE, SIZE, 3))
    maps = keras.layers.Rescaling(1 / 255)(image)
    maps = keras.layers.Conv2D(4, 3, 2, padding="same", activation="relu")(maps)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(image, keras.layers.Dense(6, activation="softmax")(pooled))
    path = tmp_path_factory.mktemp("model") / "1"
    names = [f"class {i}" for i in range(6)]
    cam_tf.export_saved_model(model, path, top_k=2, class_names=names)
    return path


def _encoded(index: int) -> bytes:
    rng, file = np.random.default_rng(index), io.BytesIO()
    pixels = rng.integers(0, 256, (20 + index, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG" if index % 2 == 0 else "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """23 photos in two folders, of which three are bad."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep").mkdir()
    for i in range(COUNT):
        name = f"{i:03d}.{'jpg' if i % 2 == 0 else 'png'}"
        (folder / ("deep" if i > 12 else ".") / name).write_bytes(_encoded(i))
    (folder / "004.jpg").write_bytes(b"")
    (folder / "011.png").write_bytes(b"no picture at all")
    (folder / "deep" / "017.jpg").write_bytes(_encoded(16)[:200])
    (folder / "deep" / "017.png").unlink()
    return folder


def _rows(output) -> dict[str, dict]:
    """All answers by key; an error if a key is there twice."""
    found = {}
    for path in sorted(output.glob("maps-*.tfrecord")):
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            features = tf.train.Example.FromString(record).features.feature
            (key,) = features["key"].bytes_list.value
            assert key not in found
            found[key.decode()] = {
                "class_ids": list(features["class_ids"].int64_list.value),
                "class_names": list(features["class_names"].bytes_list.value),
                "scores": np.float32(features["scores"].float_list.value),
                "maps": np.float32(features["maps"].float_list.value).reshape(
                    features["maps_shape"].int64_list.value
                ),
                "boxes": np.float32(features["boxes"].float_list.value).reshape(-1, 4),
            }
    return found


def _bad(output) -> dict[str, str]:
    lines = [line for path in output.glob("bad-*") for line in path.read_text().splitlines()]
    return {one["key"]: one["reason"] for one in map(json.loads, lines)}


def _files(output) -> dict[str, bytes]:
    return {one.name: one.read_bytes() for one in output.iterdir() if one.name != "summary.json"}


@pytest.fixture(scope="module")
def answered(saved, photos, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "answers"
    found = explain_in_bulk(f"{photos}/**", saved, output, batch_size=4, shard_size=5, workers=1)
    return output, found


def test_all_are_answered_as_the_model_answers_them(saved, photos, answered):
    output, found = answered
    assert found == {"shards": 5, "shards_there_before": 0, "images": COUNT - 3, "bad": 3}
    rows, bad = _rows(output), _bad(output)
    files = sorted(str(one) for one in photos.rglob("*.*"))
    assert sorted([*rows, *bad]) == files
    assert {os.path.basename(key) for key in bad} == set(BAD)
    for key, reason in bad.items():
        assert BAD[os.path.basename(key)] in reason, reason
        assert "\n" not in reason
    answer = tf.saved_model.load(str(saved)).signatures["serving_bytes"]
    for key, row in rows.items():
        with open(key, "rb") as file:
            expected = answer(image_bytes=tf.constant([file.read()]))
        assert row["class_ids"] == expected["class_ids"][0].numpy().tolist()
        assert row["class_names"] == expected["class_names"][0].numpy().tolist()
        for name in ("scores", "maps", "boxes"):
            np.testing.assert_allclose(row[name], expected[name][0], atol=1e-5)


def test_processes_do_not_change_a_byte(saved, photos, answered, tmp_path):
    output = tmp_path / "two"
    explain_in_bulk(f"{photos}/**", saved, output, batch_size=4, shard_size=5, workers=2)
    assert _files(output) == _files(answered[0])


def test_a_rerun_answers_what_is_missing(saved, photos, answered, tmp_path):
    output, arguments = tmp_path / "again", {"batch_size": 4, "shard_size": 5, "workers": 1}
    explain_in_bulk(f"{photos}/**", saved, output, **arguments)
    before = _files(output)
    lost = [name for name in before if "00001-of" in name or name == "maps-00003-of-00005.tfrecord"]
    for name in lost:
        (output / name).unlink()
    found = explain_in_bulk(f"{photos}/**", saved, output, **arguments)
    assert found["shards_there_before"] == 3
    assert found["images"] == COUNT - 3
    assert _files(output) == before == _files(answered[0])


_KILLED = """
import sys
import cam_tf.export.beam as bulk
whole, written = bulk._write_whole, []
def write(path, content):
    whole(path, content)
    print(path, flush=True)
    if "maps-" in path:
        import time
        time.sleep(0.5)
bulk._write_whole = write
bulk.explain_in_bulk(*sys.argv[1:], batch_size=4, shard_size=5, workers=1)
"""


def test_a_killed_run_goes_on(saved, photos, answered, tmp_path):
    output = tmp_path / "killed"
    given = [sys.executable, "-c", _KILLED, f"{photos}/**", str(saved), str(output)]
    run = subprocess.Popen(given, stdout=subprocess.PIPE, text=True)
    try:
        for line in run.stdout:
            if "maps-00001" in line:
                break
    finally:
        os.kill(run.pid, signal.SIGKILL)
        run.communicate()
    time.sleep(0.1)
    left = {one.name for one in output.glob("maps-*.tfrecord")}
    assert 0 < len(left) < 5
    found = explain_in_bulk(f"{photos}/**", saved, output, batch_size=4, shard_size=5, workers=1)
    assert found["shards_there_before"] == len(left)
    assert _files(output) == _files(answered[0])


@pytest.mark.parametrize("suffix", ["tfrecord", "tfrecord.gz"])
def test_records_in_and_parquet_out(saved, tmp_path, suffix):
    parquet = pytest.importorskip("pyarrow.parquet")
    options = tf.io.TFRecordOptions(compression_type="GZIP" if suffix.endswith("gz") else "")
    for part, indices in enumerate([(0, 1, 2), (3, 4)]):
        with tf.io.TFRecordWriter(str(tmp_path / f"in-{part}.{suffix}"), options) as writer:
            for i in indices:
                features = {"image/encoded": _bytes(_encoded(i))}
                if i != 1:
                    features["image/filename"] = _bytes(b"photo %d" % i)
                if i == 3:
                    del features["image/encoded"]
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
    output = tmp_path / "out"
    found = explain_in_bulk(
        f"{tmp_path}/in-*", saved, output, source="tfrecord", format="parquet", workers=1
    )
    assert (found["shards"], found["images"], found["bad"]) == (2, 4, 1)
    assert _bad(output) == {
        "photo 3": "has none of the features image/encoded, image, image_bytes."
    }
    rows = parquet.read_table(output / "maps-00000-of-00002.parquet").to_pylist()
    assert [row["key"] for row in rows] == ["photo 0", f"in-0.{suffix}:000001", "photo 2"]
    answer = tf.saved_model.load(str(saved)).signatures["serving_bytes"]
    expected = answer(image_bytes=tf.constant([_encoded(0)]))
    np.testing.assert_allclose(rows[0]["scores"], expected["scores"][0], atol=1e-5)
    maps = np.reshape(rows[0]["maps"], rows[0]["maps_shape"])
    np.testing.assert_allclose(maps, expected["maps"][0], atol=1e-5)
    assert rows[0]["class_names"] == [one.decode() for one in expected["class_names"][0].numpy()]


def _bytes(value: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))


def test_a_damaged_file_of_records(saved, tmp_path):
    with tf.io.TFRecordWriter(str(tmp_path / "in.tfrecord")) as writer:
        for i in range(3):
            features = tf.train.Features(feature={"image": _bytes(_encoded(i))})
            writer.write(tf.train.Example(features=features).SerializeToString())
    data = (tmp_path / "in.tfrecord").read_bytes()
    (tmp_path / "in.tfrecord").write_bytes(data[:-30])
    with gzip.open(tmp_path / "other.tfrecord", "wb") as file:
        file.write(b"no records")
    found = explain_in_bulk(
        f"{tmp_path}/*.tfrecord", saved, tmp_path / "out", source="tfrecord", workers=1
    )
    assert found["images"] == 2
    assert set(_bad(tmp_path / "out")) == {"in.tfrecord: the rest", "other.tfrecord: the rest"}


def test_says_what_is_wrong(saved, photos, answered, tmp_path):
    output = answered[0]
    with pytest.raises(ValueError, match="no file matches"):
        explain_in_bulk(f"{tmp_path}/*.jpg", saved, tmp_path / "a")
    with pytest.raises(ValueError, match=r"holds no saved_model\.pb"):
        explain_in_bulk(f"{photos}/**", tmp_path, tmp_path / "a")
    with pytest.raises(ValueError, match="'tfrecord' or 'parquet'"):
        explain_in_bulk(f"{photos}/**", saved, tmp_path / "a", format="csv")
    with pytest.raises(ValueError, match="use at least 1"):
        explain_in_bulk(f"{photos}/**", saved, tmp_path / "a", batch_size=0)
    with pytest.raises(FileExistsError, match="batch_size, shards, input differ"):
        explain_in_bulk(f"{photos}/*", saved, output, batch_size=3)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match="holds other files"):
        explain_in_bulk(f"{photos}/**", saved, tmp_path / "mine")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="name another directory"):
        explain_in_bulk(f"{photos}/**", saved, tmp_path / "file" / "a")


def test_another_run_is_replaced_when_asked(saved, photos, tmp_path):
    output = tmp_path / "out"
    explain_in_bulk(f"{photos}/**", saved, output, shard_size=5, workers=1)
    found = explain_in_bulk(f"{photos}/00*", saved, output, overwrite=True, workers=1)
    assert (found["images"], found["bad"]) == (9, 1)
    assert len(_rows(output)) == 9


def test_the_command_line(saved, photos, tmp_path):
    given = ["bulk", f"{photos}/**", "--model", str(saved), "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, [*given, "--workers", "1"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["images"] == COUNT - 3
    done = CliRunner().invoke(main, [*given, "--batch-size", "3"])
    assert done.exit_code == 2
    assert "another run" in done.stderr
