import sys

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("sklearn")

from sklearn.datasets import load_digits  # noqa: E402

from cam_tf.datasets import cluttered_digits  # noqa: E402
from cam_tf.datasets.cluttered_digits import ClutteredDigits, draw  # noqa: E402
from cam_tf.datasets.tfds import tfds_examples  # noqa: E402

COUNTS = {"train": 30, "validation": 12, "test": 12}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluttered_digits, "_COUNTS", COUNTS)
        folder = tmp_path_factory.mktemp("tfds")
        for name in ("64", "96"):
            tfds.builder(f"cluttered_digits/{name}", data_dir=folder).download_and_prepare()
    return folder


def records(data_dir, size, split) -> list[dict]:
    builder = tfds.builder(f"cluttered_digits/{size}", data_dir=data_dir)
    return list(tfds.as_numpy(builder.as_dataset(split=split)))


@pytest.mark.parametrize("size", [64, 96])
def test_records_hold_image_label_box_and_mask(data_dir, size):
    _, labels = cluttered_digits._sources()["train"]
    found = records(data_dir, size, "train")
    assert len(found) == 30
    for one in found:
        assert set(one) == {"id", "image", "label", "bbox", "mask"}
        assert one["image"].shape == (size, size, 3)
        assert one["label"] == labels[int(one["id"].decode().removeprefix("train-"))]
        # The box is tight: the first and the last pixel of the mask along each axis.
        points = np.argwhere(one["mask"][..., 0] == 255)
        np.testing.assert_allclose(one["bbox"][:2] * size, points.min(axis=0))
        np.testing.assert_allclose(one["bbox"][2:] * size, points.max(axis=0) + 1)
        height = points[:, 0].max() + 1 - points[:, 0].min()
        assert size // 4 < height <= (40 if size == 64 else 56)
    assert len({one["image"].tobytes() for one in found}) == 30


def test_the_same_files_again(data_dir, tmp_path, monkeypatch):
    monkeypatch.setattr(cluttered_digits, "_COUNTS", COUNTS)
    np.random.seed(7)  # of no importance
    builder = tfds.builder("cluttered_digits/64", data_dir=tmp_path)
    builder.download_and_prepare()
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.tfrecord*"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / file).read_bytes() == (data_dir / file).read_bytes()


def test_splits_share_no_source_digit_and_have_all_classes():
    truth = load_digits()
    label_of = {
        (image.astype(int) * 255 // 16).astype(np.uint8).tobytes(): label
        for image, label in zip(truth.images, truth.target, strict=True)
    }
    assert len(label_of) == 1797  # no two of the sources are the same
    seen = set()
    for digits, labels in cluttered_digits._sources().values():
        keys = {digit.tobytes() for digit in digits}
        assert len(keys) == len(digits)
        assert not keys & seen
        seen |= keys
        assert [label_of[digit.tobytes()] for digit in digits] == labels.tolist()
        shares = np.bincount(labels) / len(labels)
        np.testing.assert_allclose(shares, np.bincount(truth.target) / 1797, atol=0.005)
    assert seen == set(label_of)
    sizes = [len(labels) for _, labels in cluttered_digits._sources().values()]
    assert sizes == pytest.approx([0.7 * 1797, 0.15 * 1797, 0.15 * 1797], abs=5)


def test_the_whole_digit_stands_alone_in_its_box_among_pieces_of_others():
    digits, _ = cluttered_digits._sources()["test"]
    config = ClutteredDigits.BUILDER_CONFIGS[0]
    clutter = []
    for number in range(20):
        scene = draw(digits, number, config, np.random.RandomState(number))
        rows, columns = np.nonzero(scene.mask)
        box = np.s_[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        colours, counts = np.unique(scene.image.reshape(-1, 3), axis=0, return_counts=True)
        background = colours[counts.argmax()]
        assert (background < 64).all()
        away = np.abs(scene.image.astype(int) - background).sum(axis=-1)
        # In the box there is nothing but one colour of ink, more or less of it.
        ink = scene.image[box].reshape(-1, 3) - background.astype(float)
        assert np.linalg.svd(ink, compute_uv=False)[1:].max() < 0.05 * np.linalg.norm(ink)
        away[box] = 0
        clutter.append((away > 64).mean())
    assert min(clutter) > 0.02
    assert 0.1 < np.mean(clutter) < 0.4


def test_a_piece_is_no_more_than_a_part_of_a_digit(rng):
    random = np.random.RandomState(0)
    whole = np.arange(1, 65, dtype=np.uint8).reshape(8, 8)
    sides = set()
    for _ in range(200):
        piece = cluttered_digits._piece(whole, random)
        top, left = divmod(int(piece[0, 0]) - 1, 8)
        np.testing.assert_array_equal(
            piece, whole[top : top + len(piece), left : left + piece.shape[1]]
        )
        sides.add(piece.shape)
    assert {side for shape in sides for side in shape} == {3, 4, 5}


def test_examples_for_localization(data_dir):
    data = tfds_examples("cluttered_digits/64", "test", data_dir=data_dir)
    found = list(data.dataset(batch_size=4, size=64).as_numpy_iterator())
    assert len(found) == 3
    assert not data.report
    truth = {one["id"]: one for one in records(data_dir, 64, "test")}
    for batch in found:
        assert batch["boxes"].shape == (4, 1, 4)
        for i, id in enumerate(batch["id"]):
            np.testing.assert_array_equal(batch["image"][i], truth[id]["image"])
            np.testing.assert_array_equal(batch["mask"][i], truth[id]["mask"][..., 0] > 0)
            np.testing.assert_allclose(batch["boxes"][i, 0], truth[id]["bbox"])
            assert batch["label"][i] == truth[id]["label"]
            assert not batch["ignore_mask"][i].any()


def test_without_scikit_learn_generating_says_what_to_install(tmp_path, monkeypatch):
    cluttered_digits._sources.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r'scikit-learn.*pip install "cam-tf\[train\]"'):
        tfds.builder("cluttered_digits", data_dir=tmp_path).download_and_prepare()


@pytest.mark.slow
@pytest.mark.parametrize("size", ["64", "96"])
def test_the_whole_data_set(tmp_path, size):
    builder = tfds.builder(f"cluttered_digits/{size}", data_dir=tmp_path)
    builder.download_and_prepare()
    counts = {name: split.num_examples for name, split in builder.info.splits.items()}
    assert counts == {"train": 6000, "validation": 1000, "test": 1000}
    assert builder.info.dataset_size < 150 * 2**20
