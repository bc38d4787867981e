import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cam_tf.datasets import cluttered_digits
from cam_tf.datasets.augmentation import Augmentation, Preparation, decode
from cam_tf.datasets.images import load_image, resize_image
from cam_tf.datasets.localization import Example, Examples
from cam_tf.datasets.training import training_data

tfds = pytest.importorskip("tensorflow_datasets")


def flat(number: int) -> Image.Image:
    """An image that tells its number: all its pixels are (number, 100, 200)."""
    return Image.new("RGB", (12, 10), (number, 100, 200))


def write(folder: Path, numbers) -> None:
    folder.mkdir(parents=True)
    for number in numbers:
        flat(number).save(folder / f"{number:03d}.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    """13 images 0..12 of class ``cat``, 7 images 100..106 of class ``dog``."""
    write(tmp_path / "cat", range(13))
    write(tmp_path / "dog", range(100, 107))
    return tmp_path


def numbers(dataset) -> list[list[int]]:
    """The numbers of the images in each batch; checks their class."""
    found = []
    for images, labels in dataset.as_numpy_iterator():
        assert (images.dtype, labels.dtype) == (np.float32, np.int32)
        first = images[:, 0, 0, 0].astype(int)
        np.testing.assert_array_equal(labels, first >= 100)
        found.append(first.tolist())
    return found


def flatten(batches) -> list[int]:
    return [number for batch in batches for number in batch]


def test_evaluation_goes_once_through_all_in_order(folder):
    data = training_data(folder, "all", size=8, batch_size=8)
    assert data.classes == ["cat", "dog"]
    assert (data.count, data.steps) == (20, 3)
    batches = numbers(data.dataset)
    assert flatten(batches) == [*range(13), *range(100, 107)]
    assert [len(batch) for batch in batches] == [8, 8, 4]
    few = training_data(str(folder), "all", size=8, batch_size=8, drop_remainder=True)
    assert few.steps == len(numbers(few.dataset)) == 2


def test_epochs_depend_on_seed_and_number_alone(folder):
    data = training_data(folder, "all", size=8, batch_size=4, shuffle=True)
    assert data.steps == 5
    keras.utils.set_random_seed(1)
    batches = numbers(data.epochs().take(15))
    epochs = [flatten(batches[i : i + 5]) for i in (0, 5, 10)]
    for epoch in epochs:
        assert sorted(epoch) == [*range(13), *range(100, 107)]
    assert len({tuple(epoch) for epoch in epochs}) == 3
    keras.utils.set_random_seed(2)
    assert flatten(numbers(data.epochs(2).take(5))) == epochs[2]
    assert flatten(numbers(data.dataset)) == epochs[0]
    other = training_data(folder, "all", size=8, batch_size=4, shuffle=True, seed=5)
    assert flatten(numbers(other.epoch(0))) != epochs[0]
    with pytest.raises(ValueError, match="start=-1"):
        data.epochs(-1)


def linear_model() -> keras.Model:
    layers = [keras.layers.Rescaling(1 / 255), keras.layers.Flatten(), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    model.layers[-1].set_weights([np.zeros((192, 2)), np.zeros(2)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(folder):
    noise = np.random.default_rng(0).integers(0, 256, (20, 12, 14, 3), np.uint8)
    for image, path in zip(noise, sorted(folder.rglob("*.png")), strict=True):
        Image.fromarray(image).save(path)

    data = training_data(folder, size=8, batch_size=4, augment=True)

    def fit(model, start, end):
        model.fit(
            data.epochs(start),
            steps_per_epoch=data.steps,
            initial_epoch=start,
            epochs=end,
            shuffle=False,
            verbose=0,
        )
        return model.layers[-1].get_weights()[0]

    whole = fit(linear_model(), 0, 3)
    resumed = linear_model()
    half = fit(resumed, 0, 1)
    np.testing.assert_allclose(fit(resumed, 1, 3), whole, rtol=1e-5, atol=1e-7)
    assert np.abs(half - whole).max() > 1e-3


def damage(folder: Path) -> dict[str, str]:
    """Adds bad files to the class cat; gives a part of the reason by file name."""
    rng = np.random.default_rng(0)
    photo = io.BytesIO()
    Image.fromarray(rng.integers(0, 255, (40, 40, 3), np.uint8)).save(photo, "JPEG")
    png = (folder / "cat/000.png").read_bytes()
    bad = {
        "a.jpg": (photo.getvalue()[:-300], "cut short"),
        "b.png": (png[:-30], "cut short"),
        "c.png": (b"", "empty"),
        "d.jpg": (b"<html>not found</html>", "not a readable image"),
        "e.gif": (b"GIF89a" + bytes(40), "not a readable image"),
    }
    for name, (data, _) in bad.items():
        (folder / "cat" / name).write_bytes(data)
    (folder / "dog" / "z.jpg").symlink_to(folder / "gone.jpg")
    reasons = {f"cat/{name}": reason for name, (_, reason) in bad.items()}
    return reasons | {"dog/z.jpg": "no file"}


def test_bad_files_are_left_out_of_evaluation_and_counted(folder):
    reasons = damage(folder)
    data = training_data(folder, "all", size=8, batch_size=8)
    assert data.count == 26
    assert flatten(numbers(data.dataset)) == [*range(13), *range(100, 107)]
    assert set(data.report.bad) == {str(folder / name) for name in reasons}
    assert data.report.counts == {"damaged image": 5, "missing file": 1}
    for name, reason in reasons.items():
        assert reason in data.report.bad[str(folder / name)][1]


def test_bad_files_do_not_change_the_length_of_an_epoch(folder):
    damage(folder)
    data = training_data(folder, "all", size=8, batch_size=4, shuffle=True)
    assert (data.count, data.steps) == (26, 6)
    batches = numbers(data.epochs().take(12))
    assert all(len(batch) == 4 for batch in batches)
    for epoch in (flatten(batches[:6]), flatten(batches[6:])):
        # 26 places for 20 good records: of 24, all appear, and some once more.
        counts = Counter(epoch)
        assert len(counts) == 20
        assert set(counts.values()) == {1, 2}
    assert flatten(numbers(data.epochs(1).take(6))) == flatten(batches[6:])
    assert len(data.report) == 6


@pytest.mark.parametrize("bad", [0, 3, 7])
@pytest.mark.parametrize("optimized", [True, False])
def test_the_neighbours_of_a_bad_file_are_kept(folder, bad, optimized):
    path = sorted((folder / "cat").iterdir())[bad]
    kept = sorted(flatten(numbers(training_data(folder, "all", size=8, batch_size=4).dataset)))
    kept.remove(int(path.stem))
    path.write_bytes(b"nothing at all")
    data = training_data(folder, "all", size=8, batch_size=4)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = optimized
    assert sorted(flatten(numbers(data.dataset.with_options(options)))) == kept
    assert len(data.report) == 1


def test_strict_stops_at_a_bad_file_and_names_it(folder):
    (folder / "dog" / "103.png").write_bytes(b"nothing at all")
    data = training_data(folder, "all", size=8, batch_size=1, strict=True)
    found = iter(data.dataset)
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"dog/103\.png: damaged image"):
        for _ in range(20):
            next(found)


def test_nothing_but_bad_files_ends_in_an_error_not_in_a_search_without_end(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"x")
    data = training_data(folder, "all", size=8, batch_size=2, shuffle=True)
    with pytest.raises(tf.errors.InvalidArgumentError, match="no record is good: 20 bad records"):
        next(iter(data.epochs()))


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_all_formats_are_read_as_load_image_reads_them(tmp_path, rng):
    ramp = np.add.outer(np.arange(30) * 3, np.arange(40) * 2)[..., None] + rng.integers(
        0, 30, (30, 40, 3)
    )
    image = Image.fromarray(ramp.astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    red, clear = tuple(int(value) for value in ramp[0, 0]), Image.new("L", image.size, 90)
    files = {
        "a.jpg": encoded(image, "JPEG"),
        "b.jpg": encoded(image.convert("L"), "JPEG"),
        "c.jpg": encoded(image, "JPEG", exif=turned),
        "d.jpg": encoded(image.convert("CMYK"), "JPEG"),
        "e.png": encoded(image, "PNG"),
        "f.png": encoded(Image.merge("RGBA", (*image.split(), clear)), "PNG"),
        "g.png": encoded(image, "PNG", transparency=red),
        "h.png": encoded(image.quantize(20), "PNG"),
        "i.png": encoded(Image.fromarray(ramp[..., 0].astype(np.uint16) * 200), "PNG"),
        "j.webp": encoded(image, "WEBP"),
        "k.bmp": encoded(image, "BMP"),
        "l.tiff": encoded(image, "TIFF"),
        "m.gif": encoded(image, "GIF"),
    }
    write(tmp_path / "other", [0])
    (tmp_path / "all").mkdir()
    for name, data in files.items():
        (tmp_path / "all" / name).write_bytes(data)
    data = training_data(tmp_path, "all", size=(20, 24), batch_size=20, classes=["all", "other"])
    ((images, _),) = data.dataset.as_numpy_iterator()
    assert len(images) == len(files) + 1
    for name, found in zip(files, images, strict=False):
        expected = resize_image(load_image(tmp_path / "all" / name), (20, 24))
        assert np.abs(found - expected).max() <= 1, name  # Pillow computes in fixed point
    # Which files the graph decodes itself, and then to the same pixels.
    other = tf.zeros((1, 1, 3), tf.uint8)
    plain = []
    for name in list(files)[:9]:
        pixels = decode(tf.constant(files[name]), lambda: other, upright=True).numpy()
        if pixels.shape != (1, 1, 3):
            np.testing.assert_array_equal(pixels, load_image(files[name]))
            plain.append(name[0])
    assert plain == ["a", "b", "e"]


def test_short_side_is_that_of_the_localization_data(tmp_path, rng):
    pixels = [rng.integers(0, 255, (h, w, 3), np.uint8) for h, w in ((50, 31), (27, 64))]
    for name, image in zip("ab", pixels, strict=True):
        (tmp_path / name).mkdir()
        Image.fromarray(image).save(tmp_path / name / "x.png")
    data = training_data(tmp_path, "all", size=(16, 20), short_side=24, batch_size=2)
    ((images, _),) = data.dataset.as_numpy_iterator()
    examples = Examples(Example(str(i), 0, image) for i, image in enumerate(pixels))
    for found, truth in zip(images, examples.dataset((16, 20), short_side=24), strict=True):
        assert np.abs(found - np.float32(truth["image"])).max() <= 1


def test_validation_is_a_share_of_each_class_that_depends_on_names_alone(folder):
    def paths(split, **options):
        data = training_data(folder, split, size=8, batch_size=50, **options)
        return {id.decode() for _, id, _, _ in data._records.as_numpy_iterator()}

    held, rest = paths("validation"), paths("train")
    assert held | rest == paths("all")
    assert not held & rest
    assert Counter(Path(path).parent.name for path in held) == {"cat": 3, "dog": 1}
    assert paths("validation", seed=9) == held
    assert any(paths("validation", split_seed=seed) != held for seed in (1, 2))
    (folder / "cat/new.png").write_bytes(b"")  # another file moves few of the others
    assert len(paths("validation") - held) <= 1
    assert paths("train", validation_share=0) == paths("all")
    with pytest.raises(ValueError, match="no record in split='validation'"):
        paths("validation", validation_share=0)
    with pytest.raises(ValueError, match=r"validation_share=1\.5"):
        paths("train", validation_share=1.5)


def test_folders_of_splits(tmp_path):
    write(tmp_path / "train/cat", range(4))
    write(tmp_path / "train/dog", range(100, 103))
    write(tmp_path / "val/dog", [110])
    write(tmp_path / "test/cat", [20, 21])

    def found(split, **options):
        return flatten(
            numbers(training_data(tmp_path, split, size=8, batch_size=50, **options).dataset)
        )

    assert found("train") == [0, 1, 2, 3, 100, 101, 102]
    assert found("validation") == [110]
    assert found("test") == [20, 21]
    (tmp_path / "val/bird").mkdir()
    with pytest.raises(ValueError, match=r"has class folders that .*train has not: \['bird'\]"):
        found("validation")
    with pytest.raises(ValueError, match="Did you mean 'validation'"):
        found("validatoin")


def test_a_train_can_be_a_class(tmp_path):
    write(tmp_path / "train", [0])
    write(tmp_path / "val", [100])
    assert training_data(tmp_path, "all", size=8, batch_size=1).classes == ["train", "val"]
    with pytest.raises(ValueError, match=r"no folder test/.*split='validation'"):
        training_data(tmp_path, "test", size=8, batch_size=1)


def test_bad_folders_say_what_to_do(folder):
    def opened(source=folder, **options):
        return training_data(source, **{"split": "all", "size": 8, "batch_size": 4} | options)

    assert opened(classes=["dog", "cat"]).classes == ["dog", "cat"]
    with pytest.raises(ValueError, match=r"Did you mean 'cat'"):
        opened(classes=["cats", "dog"])
    with pytest.raises(ValueError, match="only one class"):
        opened(classes=["cat"])
    with pytest.raises(ValueError, match="named twice"):
        opened(classes=["cat", "cat"])
    with pytest.raises(FileNotFoundError, match="cat has no class folders"):
        opened(folder / "cat")
    (folder / "bird").mkdir()
    (folder / "bird" / "notes.txt").write_text("none yet")
    with pytest.raises(ValueError, match=r"\['bird'\] of .* classes=\['cat', 'dog'\]"):
        opened()
    assert opened(classes=["cat", "dog"]).count == 20


def test_impossible_numbers_say_what_is_possible(folder):
    def opened(**options):
        return training_data(folder, **{"split": "all", "size": 8, "batch_size": 4} | options)

    with pytest.raises(ValueError, match="does not divide among 4 replicas: use 8 or 12"):
        opened(batch_size=10, replicas=4)
    with pytest.raises(ValueError, match="does not divide among 4 replicas: use 4"):
        opened(batch_size=3, replicas=4)
    with pytest.raises(ValueError, match="batch_size=0"):
        opened(batch_size=0)
    with pytest.raises(ValueError, match="use at most 20"):
        opened(batch_size=21, drop_remainder=True)
    assert opened(batch_size=21, shuffle=True).steps == 1
    with pytest.raises(ValueError, match="shard 2 of 2"):
        opened(shard=(2, 2))
    with pytest.raises(ValueError, match="short_side goes without augmentation"):
        opened(short_side=9, augment=True)
    with pytest.raises(ValueError, match="short_side=7"):
        opened(short_side=7)
    with pytest.raises(ValueError, match="area="):
        Augmentation(area=(0.5, 1.5))
    with pytest.raises(ValueError, match="aspect="):
        Augmentation(aspect=(2, 1))
    with pytest.raises(ValueError, match="colour=2"):
        Augmentation(colour=2)


def test_workers_share_the_records_and_make_equally_many_batches(folder):
    def opened(index, **options):
        return training_data(folder, "all", size=8, batch_size=1, shard=(index, 3), **options)

    shares = [flatten(numbers(opened(index).dataset)) for index in range(3)]
    assert [len(share) for share in shares] == [7, 7, 6]
    assert sorted(flatten(shares)) == [*range(13), *range(100, 107)]
    data = opened(2, shuffle=True)
    assert [opened(index, shuffle=True).steps for index in range(3)] == [7] * 3 == [data.steps] * 3
    assert Counter(flatten(numbers(data.epoch(0)))).keys() == set(shares[2])


@pytest.mark.parametrize("file", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_cached_records_are_read_once(folder, tmp_path_factory, file):
    cache = tmp_path_factory.mktemp("cache") / "records" if file else True
    damage(folder)
    data = training_data(folder, "all", size=8, batch_size=4, shuffle=True, cache=cache)
    batches = data.epochs().as_numpy_iterator()
    first = [next(batches) for _ in range(data.steps)]
    for path in folder.glob("*/*.png"):
        path.unlink()
    second = [next(batches) for _ in range(data.steps)]
    for epoch in (first, second):
        seen = {int(value) for images, _ in epoch for value in images[:, 0, 0, 0]}
        assert seen == {*range(13), *range(100, 107)}


def crops(augmentation: Augmentation, count: int) -> np.ndarray:
    """Augments an image whose red is the row and whose green is the column; (count, 16, 16, 3)."""
    image = np.zeros((100, 200, 3), np.uint8)
    image[..., 0], image[..., 1] = np.arange(100)[:, None], np.arange(200)
    prepare = tf.function(Preparation((16, 16), None, augmentation).__call__)
    seeds = tf.constant([[3, i] for i in range(count)], tf.int64)
    return np.stack([prepare(tf.constant(image), seed).numpy() for seed in seeds]).astype(float)


def test_crops_are_of_the_areas_and_aspects_that_are_asked_for():
    found = crops(Augmentation(area=(0.3, 0.6), aspect=(0.8, 1.25), flip=True, colour=0), 150)
    # The centres of the first and the last of 16 pixels are 15/16 of the crop's side apart.
    heights = np.abs(found[:, -1, 8, 0] - found[:, 0, 8, 0]) * 16 / 15
    widths = np.abs(found[:, 8, -1, 1] - found[:, 8, 0, 1]) * 16 / 15
    areas, aspects = heights * widths / 20_000, widths / heights
    assert 0.28 < areas.min() < 0.35
    assert 0.45 < areas.max() < 0.62
    assert 0.77 < aspects.min() < 0.85
    assert 1.15 < aspects.max() < 1.3
    mirrored = found[:, 8, -1, 1] < found[:, 8, 0, 1]
    assert 0.38 < mirrored.mean() < 0.62  # 150 tosses of a coin: standard error 0.04
    assert (found[:, -1, 8, 0] > found[:, 0, 8, 0]).all()
    assert len(np.unique(found.reshape(150, -1), axis=0)) == 150


def test_colours_change_as_much_as_asked_for():
    augmentation = Augmentation(flip=False, colour=0.2)
    image = np.full((2, 2, 3), (100, 120, 140), np.float32)
    image[0, 0] = (110, 130, 150)
    repaint = tf.function(augmentation.repaint)
    seeds = tf.constant([[1, i] for i in range(300)], tf.int64)
    found = np.stack([repaint(tf.constant(image), seed).numpy() for seed in seeds])
    gray = found @ [0.2989, 0.587, 0.114]
    moved = gray.mean(axis=(1, 2)) - (image @ [0.2989, 0.587, 0.114]).mean()
    assert -25.7 < moved.min() < -22
    assert 22 < moved.max() < 25.7
    contrast = (gray[:, 0, 0] - gray[:, 1, 1]) / 10
    assert 0.79 < contrast.min() < 0.82
    assert 1.18 < contrast.max() < 1.21
    # red and blue are 40 apart, whatever the contrast (a channel's contrast is about its mean)
    saturation = (found[:, 1, 1, 2] - found[:, 1, 1, 0]) / 40
    assert 0.79 < saturation.min() < 0.82
    assert 1.18 < saturation.max() < 1.21
    still = Augmentation(flip=False, colour=0).repaint(tf.constant(image), seeds[0])
    np.testing.assert_array_equal(still, image)


@pytest.fixture(scope="module")
def digits_dir(tmp_path_factory):
    pytest.importorskip("sklearn")
    with pytest.MonkeyPatch.context() as patch:
        counts = {"train": 50, "validation": 20, "test": 20}
        patch.setattr(cluttered_digits, "_COUNTS", counts)
        folder = tmp_path_factory.mktemp("tfds")
        training_data("cluttered_digits/64", size=64, batch_size=1, data_dir=folder)
    return folder


def test_a_data_set_of_tfds(digits_dir):
    def opened(split, **options):
        return training_data("cluttered_digits/64", split, size=64, data_dir=digits_dir, **options)

    data = opened("validation", batch_size=20)
    builder = tfds.builder("cluttered_digits/64", data_dir=digits_dir)
    truth = list(tfds.as_numpy(builder.as_dataset(split="validation")))
    assert data.classes == [str(digit) for digit in range(10)]
    ((images, labels),) = data.dataset.as_numpy_iterator()
    np.testing.assert_array_equal(images, [one["image"] for one in truth])
    np.testing.assert_array_equal(labels, [one["label"] for one in truth])

    train = opened("train[:80%]", batch_size=8, augment=True, seed=3)
    assert (train.count, train.steps) == (40, 5)
    assert not train.augmentation.flip
    epochs = list(train.epochs(0).take(10))
    again = list(train.epochs(1).take(5))
    for (images, labels), (other, same) in zip(epochs[5:], again, strict=True):
        np.testing.assert_array_equal(images, other)
        np.testing.assert_array_equal(labels, same)
    first, second = (np.concatenate([y for _, y in epochs[i : i + 5]]) for i in (0, 5))
    assert sorted(first) == sorted(second)
    assert first.tolist() != second.tolist()

    two = opened("validation", batch_size=50, classes=["7", "3"])
    expected = [{7: 0, 3: 1}[one["label"]] for one in truth if one["label"] in (3, 7)]
    assert (two.classes, two.count) == (["7", "3"], len(expected))
    assert [label for _, labels in two.dataset for label in labels.numpy()] == expected
    shares = [opened("validation", batch_size=1, shard=(i, 3)) for i in range(3)]
    assert [share.count for share in shares] == [7, 7, 6]
    indices = [int(index) for share in shares for index, *_ in share._records]
    assert sorted(set(indices)) == sorted(indices)


class DamagedPhotos(tfds.core.GeneratorBasedBuilder):
    """Ten photos, of which two are damaged."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(10):
            data = encoded(flat(i + 100 * (i % 2)), "PNG")
            yield i, {"image": io.BytesIO(data[:-30] if i in (4, 7) else data), "label": i % 2}


def test_damaged_records_of_tfds_are_named(tmp_path):
    data = training_data("damaged_photos", size=8, batch_size=10, data_dir=tmp_path)
    found = flatten(numbers(data.dataset))
    assert sorted(found) == [0, 2, 6, 8, 101, 103, 105, 109]
    assert len(data.report) == 2
    for id, (kind, _) in data.report.bad.items():
        assert id.startswith("damaged_photos-train.tfrecord")
        assert kind == "damaged image"


def test_unknown_data_sets_and_what_cannot_be_classified_say_what_to_do(monkeypatch):
    with pytest.raises(
        ValueError, match=r"neither a folder nor .* Did you mean 'cluttered_digits'"
    ):
        training_data("clutered_digits/64", size=64, batch_size=2)
    with pytest.raises(ValueError, match="neither a folder nor"):
        training_data("./nowhere", size=64, batch_size=2)
    with pytest.raises(ValueError, match="not made for classification"):
        training_data("coco/2017", size=64, batch_size=2, download=False)
    with pytest.raises(FileNotFoundError):
        training_data(Path("nowhere"), size=64, batch_size=2)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r'training_data needs.*pip install "cam-tf\[train\]"'):
        training_data("mnist", size=64, batch_size=2)


@pytest.mark.slow
def test_python_ends_while_images_are_still_being_read(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for i in range(40):
            flat(i).convert("RGBA").resize((200, 200)).save(tmp_path / name / f"{i}.png")
    script = (
        "import sys; from pathlib import Path\n"
        "from cam_tf.datasets.training import training_data\n"
        "data = training_data(Path(sys.argv[1]), size=8, batch_size=4, shuffle=True)\n"
        "alive = data.epochs().as_numpy_iterator()\n"
        "for _ in range(50): next(alive)\n"
    )
    for _ in range(3):
        subprocess.run([sys.executable, "-c", script, tmp_path], check=True, timeout=120)


class WithoutLabels(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(),
            "label": tfds.features.ClassLabel(num_classes=3),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for number in range(2):
            yield number, {"image": np.zeros((8, 8, 3), np.uint8), "label": -1}


@pytest.mark.parametrize("classes", [None, ["0", "1"]])
def test_records_without_labels_are_an_error_that_says_so(tmp_path, classes):
    WithoutLabels(data_dir=tmp_path).download_and_prepare()
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"without a label .* split .*test"):
        data = training_data(
            "without_labels", "test", size=8, batch_size=2, data_dir=tmp_path, classes=classes
        )
        list(data.dataset)
