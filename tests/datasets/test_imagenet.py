import numpy as np
import pytest

from cam_tf.datasets.imagenet import class_id, imagenet_classes, read_class_names


def test_a_thousand_unique_names():
    names = imagenet_classes()
    assert len(names) == 1000
    assert len({name.lower() for name in names}) == 1000
    assert all(name == name.strip() and name for name in names)


@pytest.mark.parametrize(
    "number, name",
    [
        (0, "tench"),
        (134, "crane (bird)"),
        (281, "tabby"),
        (517, "crane (machine)"),
        (638, "maillot"),
        (639, "tank suit"),
        (963, "pizza"),
        (967, "espresso"),
        (999, "toilet tissue"),
    ],
)
def test_known_classes(number, name):
    assert imagenet_classes()[number] == name
    assert class_id(name) == number


def test_every_name_finds_its_class():
    assert [class_id(name) for name in imagenet_classes()] == list(range(1000))


@pytest.mark.parametrize(
    "spelling", ["tabby", "TABBY", " Tabby ", "tabby cat", "n02123045", 281, "281", np.int64(281)]
)
def test_spellings_of_tabby(spelling):
    assert class_id(spelling) == 281


def test_a_shared_lemma_is_refused_with_both_classes():
    with pytest.raises(
        ValueError, match=r"134 \('crane \(bird\)'\) or 517 \('crane \(machine\)'\)"
    ):
        class_id("crane")


def test_unknown_names_get_suggestions():
    with pytest.raises(ValueError, match=r"no class is named 'tabbi'\. Did you mean 'tabby'"):
        class_id("tabbi")
    with pytest.raises(ValueError, match=r"A class id 0\.\.1 works too"):
        class_id("zebra", ["ant", "bee"])


@pytest.mark.parametrize("number", [-1, 1000, "1000", "-1"])
def test_ids_out_of_range(number):
    with pytest.raises(ValueError, match=r"out of range: the 1000 classes are 0\.\.999"):
        class_id(number)


@pytest.mark.parametrize("number", [281.0, None])
def test_only_text_and_integers(number):
    with pytest.raises(TypeError):
        class_id(number)


def test_names_of_the_caller():
    names = ["Ant", "bee, honeybee", "7", "honeybee"]
    assert class_id("ant", names) == 0
    assert class_id("bee", names) == 1
    assert class_id("honeybee", names) == 3  # a whole name before a synonym
    assert class_id("7", names) == 2  # digits that are a name
    assert class_id("1", names) == 1
    with pytest.raises(ValueError, match=r"several classes: use the id, 0 .* or 1 "):
        class_id("cat", ["cat, kitten", "cat, tiger"])


def test_read_class_names(tmp_path):
    path = tmp_path / "labels.txt"
    path.write_bytes("\N{BOM}ant\r\n caf\N{LATIN SMALL LETTER E WITH ACUTE} \r\n\r\n".encode())
    assert read_class_names(path) == ["ant", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"]


@pytest.mark.parametrize(
    "content, message",
    [(b"", "is empty"), (b"\n \n", "is empty"), (b"a\n\nb", "line 2"), (b"a\n\xff", "not a UTF-8")],
)
def test_bad_labels_files(tmp_path, content, message):
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_class_names(path)


def test_a_missing_labels_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_class_names(tmp_path / "absent.txt")
