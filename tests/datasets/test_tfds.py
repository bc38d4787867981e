import sys

import numpy as np
import pytest
import tensorflow as tf

from cam_tf.datasets.tfds import tfds_examples

tfds = pytest.importorskip("tensorflow_datasets")

BOX = (0.2, 0.2, 0.8, 0.7)


def photo(box=BOX, size=(60, 100)) -> np.ndarray:
    """Red where the relative box is, black elsewhere."""
    ymin, xmin, ymax, xmax = np.rint(np.array(box) * np.tile(size, 2)).astype(int)
    image = np.zeros((*size, 3), np.uint8)
    image[ymin:ymax, xmin:xmax, 0] = 255
    return image


def encoded(image) -> bytes:
    return tf.io.encode_png(image).numpy()


def mocked(records):
    """The data sets of TFDS hold these records, images as the bytes of their files."""

    def as_dataset(self, *args, decoders=None, **kwargs):
        assert isinstance(decoders["image"], tfds.decode.SkipDecoding)
        info = self.info.features.get_tensor_info()
        specs = tf.nest.map_structure(lambda one: tf.TensorSpec(one.shape, one.dtype), info)
        specs = {key: specs[key] for key in records[0]}
        specs["image"] = tf.TensorSpec((), tf.string)
        for key in set(specs) & {"objects"}:
            specs[key] = {
                name: tf.TensorSpec((None, *spec.shape[1:]), spec.dtype)
                for name, spec in specs[key].items()
                if name in records[0][key]
            }
        return tf.data.Dataset.from_generator(lambda: iter(records), output_signature=specs)

    return tfds.testing.mock_data(as_dataset_fn=as_dataset)


def as_list(dataset) -> list[dict]:
    return list(dataset.as_numpy_iterator())


MASK = photo()[..., :1]
OBJECTS = {"bbox": np.float32([BOX, (0, 0, 0.1, 0.2)])}
TRIMAP = np.full((60, 100, 1), 2, np.uint8)
TRIMAP[10:50, 20:80] = 3
TRIMAP[12:48, 22:78] = 1


@pytest.mark.parametrize(
    ("name", "record", "boxes", "id"),
    [
        (
            "caltech_birds2010",
            {"image/filename": "a/b.jpg", "bbox": BOX, "segmentation_mask": MASK // 255},
            [BOX],
            b"a/b.jpg",
        ),
        (
            "caltech_birds2011",
            {"image/filename": "a/b.jpg", "bbox": BOX, "segmentation_mask": MASK // 5 * 4},
            [BOX],
            b"a/b.jpg",
        ),
        ("cars196", {"id": "00001", "bbox": BOX}, [BOX], b"00001"),
        (
            "stanford_dogs",
            {"image/filename": "d.jpg", "objects": OBJECTS},
            OBJECTS["bbox"],
            b"d.jpg",
        ),
        (
            "oxford_iiit_pet",
            {"file_name": "p.jpg", "segmentation_mask": TRIMAP, "head_bbox": (0, 0, 0.1, 0.1)},
            [(10 / 60, 0.2, 50 / 60, 0.8)],
            b"p.jpg",
        ),
    ],
)
def test_an_image_of_one_class(name, record, boxes, id):
    record = {"image": encoded(photo()), "label": 7, **record}
    with mocked([record]):
        data = tfds_examples(name, "train")
        (one,) = as_list(data.dataset())
        (warped,) = as_list(data.dataset((30, 30)))
    assert (one["id"], one["label"], one["size"].tolist()) == (id, 7, [60, 100])
    np.testing.assert_array_equal(one["image"], photo())
    np.testing.assert_allclose(one["boxes"], boxes, atol=1e-7)
    np.testing.assert_allclose(warped["boxes"], boxes, atol=1e-7)
    assert not data.report
    if name == "oxford_iiit_pet":
        np.testing.assert_array_equal(one["mask"], TRIMAP[..., 0] == 1)
        np.testing.assert_array_equal(one["ignore_mask"], TRIMAP[..., 0] == 3)
    elif data.has_masks:
        np.testing.assert_array_equal(one["mask"], photo()[..., 0] > 0)
        np.testing.assert_array_equal(warped["mask"], warped["image"][..., 0] > 127)


def test_annotators_of_birds_decide_by_majority():
    levels = np.uint8([[0, 51, 102], [153, 204, 255]])[..., None]
    record = {
        "image": encoded(np.zeros((2, 3, 3), np.uint8)),
        "label": 0,
        "image/filename": "a",
        "bbox": (0, 0, 1, 1),
        "segmentation_mask": levels,
    }
    with mocked([record]):
        (one,) = as_list(tfds_examples("caltech_birds2011", "test").dataset())
    assert one["mask"].tolist() == [[False] * 3, [True] * 3]


@pytest.mark.parametrize("name", ["voc", "voc/2012", "coco/2017"])
def test_an_image_of_several_classes_gives_an_example_for_each(name):
    boxes = np.float32([BOX, (0, 0, 0.1, 0.2), (0.5, 0.5, 1, 1), (0, 0, 1, 1)])
    objects = {"bbox": boxes, "label": [11, 14, 11, 14]}
    if name.startswith("coco"):
        objects["is_crowd"] = [False, False, False, True]
    empty = {key: np.asarray(value)[:0] for key, value in objects.items()}
    single = {key: np.asarray(value)[:1] for key, value in objects.items()}
    records = [
        {"image": encoded(photo()), "image/filename": f"{i}.jpg", "objects": one}
        for i, one in enumerate((objects, empty, single))
    ]
    with mocked(records):
        dog, person, alone = as_list(tfds_examples(name, "train").dataset())
    assert [one["id"] for one in (dog, person, alone)] == [b"0.jpg#11", b"0.jpg#14", b"2.jpg"]
    assert [one["label"] for one in (dog, person, alone)] == [11, 14, 11]
    np.testing.assert_array_equal(dog["boxes"], boxes[[0, 2]])
    np.testing.assert_array_equal(person["boxes"], boxes[[1]] if "coco" in name else boxes[[1, 3]])
    np.testing.assert_array_equal(alone["boxes"], boxes[:1])


def car(id: str, **changes) -> dict:
    return {"image": encoded(photo()), "label": 3, "id": id, "bbox": BOX} | changes


def test_bad_records_are_reported_and_the_others_go_on():
    records = [
        car("good"),
        car("corrupt", image=b"nothing"),
        car("upside", bbox=(0.5, 0, 0.4, 1)),
        car("outside", bbox=(0, 0, 1.5, 1)),
        car("label", label=196),
        car("last"),
    ]
    with mocked(records):
        data = tfds_examples("cars196", "train")
        assert [one["id"] for one in as_list(data.dataset(8))] == [b"good", b"last"]
        strict = tfds_examples("cars196", "train", strict=True).dataset(8).as_numpy_iterator()
        assert next(strict)["id"] == b"good"
        with pytest.raises(tf.errors.InvalidArgumentError, match="corrupt: damaged image"):
            next(strict)
    assert {id: kind for id, (kind, _) in data.report.bad.items()} == {
        "corrupt": "damaged image",
        "upside": "ymin > ymax or xmin > xmax",
        "outside": "box outside the image",
        "label": "label out of range",
    }


def test_a_trimap_without_animal_is_a_bad_record():
    record = {
        "image": encoded(photo()),
        "label": 0,
        "file_name": "p",
        "segmentation_mask": np.full((60, 100, 1), 2, np.uint8),
    }
    with mocked([record]):
        data = tfds_examples("oxford_iiit_pet", "test")
        assert as_list(data.dataset()) == []
    assert data.report.counts == {"no box or mask": 1}


def test_shards_are_the_shares_of_the_workers():
    with mocked([car(str(i)) for i in range(5)]):
        data = tfds_examples("cars196", "train")
        ids = [[one["id"] for one in as_list(data.shard(i, 2).dataset(8))] for i in range(2)]
        (batch, _, _) = as_list(data.dataset(8, batch_size=2))
    assert ids == [[b"0", b"2", b"4"], [b"1", b"3"]]
    assert batch["boxes"].shape == (2, 1, 4)
    with pytest.raises(ValueError, match="shard 2 of 2"):
        data.shard(2, 2)


def test_images_that_a_mock_has_decoded_already_are_taken_as_they_are():
    record = car("a", image=photo())

    def as_dataset(self, *args, **kwargs):
        return tf.data.Dataset.from_tensors(record)

    with tfds.testing.mock_data(as_dataset_fn=as_dataset):
        (one,) = as_list(tfds_examples("cars196", "train").dataset())
    np.testing.assert_array_equal(one["image"], photo())


def test_unknown_data_sets_and_a_missing_package_say_what_to_do(monkeypatch):
    with pytest.raises(ValueError, match="Did you mean 'stanford_dogs'"):
        tfds_examples("stanford_dog", "train")
    with pytest.raises(ValueError, match="has no objects"):
        tfds_examples("coco/2017_panoptic", "train")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'pip install "cam-tf\[train\]"'):
        tfds_examples("voc", "train")
