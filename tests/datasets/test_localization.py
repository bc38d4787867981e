import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from cam_tf.datasets.images import load_image, resize_image
from cam_tf.datasets.localization import (
    Example,
    Examples,
    RecordError,
    Report,
    csv_examples,
    wsol_examples,
    xml_examples,
)

HEIGHT, WIDTH = 60, 100
RED = (255, 0, 0)


def rectangle(x0, y0, x1, y1, size=(HEIGHT, WIDTH)) -> np.ndarray:
    """A red rectangle [x0, x1) x [y0, y1) on black."""
    image = np.zeros((*size, 3), np.uint8)
    image[y0:y1, x0:x1] = RED
    return image


def save(path, pixels, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def red_box(image) -> list[int]:
    """[ymin, xmin, ymax, xmax], edges in pixels, of what is more red than not."""
    rows, columns = (np.flatnonzero((image[..., 0] > 127).any(axis)) for axis in (1, 0))
    return [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]


def write(folder, **tables) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in tables.items():
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")


@pytest.fixture
def wsol(tmp_path):
    """Two images: a.png has boxes (20, 12, 70, 48) and (0, 0, 99, 59), b,c.png (40, 20, 60, 40)."""
    save(tmp_path / "images/val/a.png", rectangle(20, 12, 70, 48))
    save(tmp_path / "images/val/b,c.png", rectangle(40, 20, 60, 40))
    write(
        tmp_path / "metadata/val",
        image_ids=["val/b,c.png", "val/a.png"],
        class_labels=["val/a.png,3", "val/b,c.png,1"],
        image_sizes=["val/a.png,100,60", "val/b,c.png,100,60"],
        localization=["val/a.png,20,12,70,48", "val/b,c.png,40,20,60,40", "val/a.png,0,0,99,59"],
    )
    return tmp_path


def read(wsol, **options) -> Examples:
    return wsol_examples(wsol / "images", wsol / "metadata", split="val", **options)


def as_list(dataset) -> list[dict]:
    return list(dataset.as_numpy_iterator())


def test_wsol_boxes_are_relative_in_the_order_of_the_ids_and_give_back_their_pixels(wsol):
    examples = read(wsol)
    first, second = as_list(examples.dataset())
    assert (first["id"], second["id"]) == (b"val/b,c.png", b"val/a.png")
    assert (first["label"], second["label"]) == (1, 3)
    assert second["image"].dtype == np.uint8
    np.testing.assert_array_equal(second["image"], rectangle(20, 12, 70, 48))
    expected = np.float32([[0.2, 0.2, 0.8, 0.7], [0, 0, 59 / 60, 0.99]])
    np.testing.assert_array_equal(second["boxes"], expected)
    assert second["size"].tolist() == [60, 100]
    assert second["box_count"] == 2
    assert len(examples) == 2 and not examples.report


def test_whole_pixels_come_back_by_rounding_for_any_size_of_an_image(rng):
    for _ in range(200):
        size = rng.integers(1, 6000, 2)
        low = rng.integers(0, size)
        pixels = np.array([[*low, *rng.integers(low, size + 1)]])
        example = Example("a", 0, np.zeros((2, 3, 3), np.uint8), pixels, tuple(size.tolist()))
        (one,) = as_list(Examples([example]).dataset()) if _ < 5 else [None]
        boxes = one["boxes"] if one else np.float32(pixels / np.tile(size, 2))
        np.testing.assert_array_equal(np.rint(boxes * np.float64(np.tile(size, 2))), pixels)


@pytest.mark.parametrize("on_disk", [(HEIGHT, WIDTH), (90, 90)])
def test_the_rectangle_stays_under_its_box_when_warped(wsol, on_disk):
    """Also where the file was warped already, as the 227 x 227 files of ILSVRC copies are."""
    save(wsol / "images/val/a.png", resize_image(rectangle(20, 12, 70, 48), on_disk))
    warped = as_list(read(wsol).dataset((40, 50)))[1]
    assert warped["image"].shape == (40, 50, 3)
    np.testing.assert_allclose(warped["boxes"][0], [0.2, 0.2, 0.8, 0.7], atol=1e-7)
    assert red_box(warped["image"]) == [8, 10, 32, 35]
    assert warped["size"].tolist() == [60, 100]


@pytest.mark.parametrize("on_disk", [(HEIGHT, WIDTH), (90, 90)])
def test_the_rectangle_stays_under_its_box_when_cut(wsol, on_disk):
    """Short side 60 -> 30: 30 x 50 pixels, of which rows 5..25 and columns 15..35 are kept."""
    save(wsol / "images/val/a.png", resize_image(rectangle(20, 12, 70, 48), on_disk))
    cut = as_list(read(wsol).dataset(20, short_side=30))[1]
    assert cut["image"].shape == (20, 20, 3)
    # x 20..70 -> 10..35 -> -5..20, y 12..48 -> 6..24 -> 1..19
    np.testing.assert_allclose(cut["boxes"][0], [0.05, 0, 0.95, 1], atol=1e-7)
    assert red_box(cut["image"]) == [1, 0, 19, 20]


def test_a_box_that_is_cut_away_is_left_out(tmp_path):
    boxes = np.array([[0, 0, 60, 10], [20, 40, 40, 60]])
    example = Example("a", 0, rectangle(40, 20, 60, 40), boxes)
    (cut,) = as_list(Examples([example]).dataset((60, 60), short_side=60))
    np.testing.assert_allclose(cut["boxes"], [[1 / 3, 1 / 3, 2 / 3, 2 / 3]], atol=1e-7)
    assert cut["box_count"] == 1
    assert red_box(cut["image"]) == [20, 20, 40, 40]


def test_batches_pad_the_boxes_and_count_them(wsol):
    batches = read(wsol).dataset((6, 10), batch_size=2)
    assert batches.element_spec["image"].shape == (None, 6, 10, 3)
    (batch,) = as_list(batches)
    assert batch["box_count"].tolist() == [1, 2]
    assert batch["boxes"].shape == (2, 2, 4)
    assert batch["boxes"][0, 1].tolist() == [0, 0, 0, 0]
    assert batch["id"].tolist() == [b"val/b,c.png", b"val/a.png"]


def test_openimages_masks_are_united_and_ignored_outside(tmp_path):
    left, right = np.zeros((2, 8, 8), np.uint8)
    left[2:4, 0:4], right[2:4, 4:6] = 255, 1
    ignore = np.zeros((8, 8), np.uint8)
    ignore[0:4] = 255
    for name, mask in {"left": left, "right": right, "ignore": ignore}.items():
        save(tmp_path / f"masks/{name}.png", mask)
    save(tmp_path / "images/a.png", np.zeros((16, 16, 3), np.uint8))
    save(tmp_path / "images/b.png", np.zeros((16, 16, 3), np.uint8))
    write(
        tmp_path / "metadata",
        image_ids=["a.png", "b.png"],
        class_labels=["a.png,5", "b.png,6"],
        localization=["a.png,left.png,ignore.png", "a.png,right.png,", "b.png,none.png,"],
    )
    data = wsol_examples(tmp_path / "images", tmp_path / "metadata", masks=tmp_path / "masks")
    for size, scale in ((None, 2), (8, 1), (4, 1 / 2)):
        (one,) = as_list(data.dataset(size))
        ends = [int(end * scale) for end in (2, 4, 6)]
        expected = np.zeros(one["image"].shape[:2], bool)
        expected[ends[0] : ends[1], : ends[2]] = True
        np.testing.assert_array_equal(one["mask"], expected)
        expected[: ends[1]] ^= True
        np.testing.assert_array_equal(one["ignore_mask"], expected)
        assert one["boxes"].shape == (0, 4) and one["size"].tolist() == [16, 16]
    assert data.report.bad["b.png"][0] == "missing file"
    (batch,) = as_list(data.dataset(8, batch_size=4))
    assert batch["mask"].shape == (1, 8, 8)


def test_masks_are_cut_with_the_image():
    image = rectangle(30, 10, 60, 50)
    mask = image[..., 0]
    example = Example("a", 0, image, masks=(mask,), ignore=np.ones_like(mask))
    (cut,) = as_list(Examples([example]).dataset((40, 40), short_side=60))
    np.testing.assert_array_equal(cut["mask"], cut["image"][..., 0] > 127)
    np.testing.assert_array_equal(cut["ignore_mask"], ~cut["mask"])
    assert cut["mask"].sum() == 30 * 40


def bad_wsol(wsol) -> None:
    """Adds a bad record of every kind."""
    ids = ["missing", "corrupt", "cut", "outside", "upside", "label", "no_label", "row", "no_box"]
    ids += ["negative"]
    folder = wsol / "metadata/val"
    for name in set(ids) - {"missing", "corrupt", "cut"}:
        save(wsol / f"images/{name}", rectangle(1, 1, 2, 2), format="PNG")
    (wsol / "images/corrupt").write_bytes(b"no image at all")
    whole = (wsol / "images/val/a.png").read_bytes()
    (wsol / "images/cut").write_bytes(whole[: len(whole) // 2])
    boxes = {name: "1,2,3,4" for name in ids if name != "no_box"}
    boxes |= {"outside": "1,2,101,4", "upside": "1,9,3,4", "row": "1,2,x,4", "negative": "-1,2,3,4"}
    labels = {name: 0 for name in ids if name != "no_label"} | {"label": 4}
    extra = {
        "image_ids": ids,
        "class_labels": [f"{name},{label}" for name, label in labels.items()],
        "image_sizes": [f"{name},100,60" for name in ids],
        "localization": [f"{name},{box}" for name, box in boxes.items()],
    }
    for table, lines in extra.items():
        path = folder / f"{table}.txt"
        path.write_text("\n".join(lines) + "\n" + path.read_text())


def test_bad_records_are_reported_and_counted_and_the_others_go_on(wsol):
    bad_wsol(wsol)
    data = read(wsol, classes=4)
    for _ in range(2):  # going through again counts nothing twice
        assert [one["id"] for one in as_list(data.dataset(8))] == [b"val/b,c.png", b"val/a.png"]
    assert {id: kind for id, (kind, _) in data.report.bad.items()} == {
        "missing": "missing file",
        "corrupt": "damaged image",
        "cut": "damaged image",
        "outside": "box outside the image",
        "negative": "box outside the image",
        "upside": "ymin > ymax or xmin > xmax",
        "label": "label out of range",
        "no_label": "no label",
        "row": "malformed annotation",
        "no_box": "no box or mask",
    }
    assert data.report.counts["damaged image"] == 2 and len(data.report) == 10
    assert "ymin=2, xmin=1, ymax=4, xmax=101" in data.report.bad["outside"][1]
    assert str(data.report).startswith("10 bad records left out (2 ")


@pytest.mark.parametrize("kind", ["outside", "upside", "label", "no_label", "row", "no_box"])
def test_strict_reading_stops_at_a_bad_annotation(wsol, kind):
    bad_wsol(wsol)
    (wsol / "metadata/val/image_ids.txt").write_text(f"val/a.png\n{kind}\n")
    with pytest.raises(RecordError, match=f"^{kind}: "):
        read(wsol, classes=4, strict=True)


@pytest.mark.parametrize("kind", ["missing", "corrupt", "cut"])
def test_strict_iteration_stops_at_a_bad_file(wsol, kind):
    bad_wsol(wsol)
    (wsol / "metadata/val/image_ids.txt").write_text(f"val/a.png\n{kind}\n")
    dataset = read(wsol, strict=True).dataset(8).as_numpy_iterator()
    assert next(dataset)["id"] == b"val/a.png"
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"{kind}: "):
        next(dataset)


def test_reports_of_workers_are_merged():
    reports = [Report(), Report()]
    for report, id in zip(reports, "ab", strict=True):
        report.add(RecordError("both", "missing file", "x"))
        report.add(RecordError(id, "damaged image", "y"))
    reports[0].merge(reports[1])
    assert reports[0].counts == {"damaged image": 2, "missing file": 1}
    assert str(Report()) == "no bad record"


def test_shards_and_splits_are_disjoint_complete_and_repeatable():
    image = np.zeros((2, 2, 3), np.uint8)
    data = Examples([Example(f"{i}.png#{c}", c, image) for i in range(50) for c in (0, 1)])
    ids = [example.id for example in data]
    shards = [[example.id for example in data.shard(i, 3)] for i in range(3)]
    assert sorted(shards[0] + shards[1] + shards[2]) == sorted(ids) and shards[1][:2] == [
        ids[1],
        ids[4],
    ]
    with pytest.raises(ValueError, match="shard 3 of 3"):
        data.shard(3, 3)
    tune, rest = data.split(0.3)
    assert (len(tune), len(rest)) == (30, 70)
    images = [{example.id.split("#")[0] for example in part} for part in (tune, rest)]
    assert not images[0] & images[1]  # no image is in both
    again, _ = Examples(list(data)[::-1]).split(0.3)
    assert {e.id for e in again} == {e.id for e in tune} != {e.id for e in data.split(0.3, 1)[0]}
    assert [example.id for example in tune] == [id for id in ids if id in {e.id for e in tune}]
    with pytest.raises(ValueError, match="share=2"):
        data.split(2)
    assert [example.id for example in data[10:12]] == ids[10:12]


XML = """<annotation><folder>val</folder><filename>{filename}</filename>
<size><width>100</width><height>60</height><depth>3</depth></size>{objects}</annotation>"""
OBJECT = """<object><name>{}</name><difficult>0</difficult><bndbox>
<xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"""


def write_xml(path, *objects, filename="a") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shown = "".join(OBJECT.format(*one) for one in objects)
    path.write_text(XML.format(filename=filename, objects=shown))


def test_ilsvrc_annotations_give_class_ids_from_synsets(tmp_path):
    save(tmp_path / "images/val/b.JPEG", rectangle(20, 12, 70, 48), quality=95)
    write_xml(tmp_path / "xml/val/b.xml", ("n02123045", 20, 12, 70, 48), ("n02123045", 0, 0, 9, 9))
    write_xml(tmp_path / "xml/val/c.xml", ("n00000000", 20, 12, 70, 48))
    write_xml(tmp_path / "xml/val/d.xml")
    (tmp_path / "xml/val/e.xml").write_text("<annotation>")
    write_xml(tmp_path / "xml/val/f.xml", ("n02123045", 20, 12, "", 48))
    data = xml_examples(tmp_path / "images", tmp_path / "xml")
    (one,) = as_list(data.dataset())
    assert (one["id"], one["label"]) == (b"val/b", 281)
    np.testing.assert_allclose(one["boxes"], [[0.2, 0.2, 0.8, 0.7], [0, 0, 0.15, 0.09]], atol=1e-7)
    assert red_box(one["image"]) == [12, 20, 48, 70]
    assert {id: kind for id, (kind, _) in data.report.bad.items()} == {
        "val/c": "label out of range",
        "val/d": "no box or mask",
        "val/e": "malformed annotation",
        "val/f": "malformed annotation",
    }
    with pytest.raises(FileNotFoundError, match="no XML file"):
        xml_examples(tmp_path / "images", tmp_path / "images")


def test_an_image_of_several_classes_gives_an_example_for_each(tmp_path):
    save(tmp_path / "images/2007_1.png", rectangle(20, 12, 70, 48))
    objects = [("dog", 20, 12, 70, 48), ("cat", 1, 2, 3, 4), ("dog", 5, 6, 7, 8)]
    write_xml(tmp_path / "xml/2007_1.xml", *objects, filename="2007_1.png")
    data = xml_examples(tmp_path / "images", tmp_path / "xml", classes=["cat", "dog"])
    dog, cat = as_list(data.dataset())
    assert (dog["id"], dog["label"], dog["box_count"]) == (b"2007_1#1", 1, 2)
    assert (cat["id"], cat["label"], cat["box_count"]) == (b"2007_1#0", 0, 1)


def test_csv_rows_give_boxes_masks_sizes_and_class_names(tmp_path):
    save(tmp_path / "a.png", rectangle(20, 12, 70, 48))
    save(tmp_path / "b.png", rectangle(20, 12, 70, 48, size=(120, 200)))
    table = tmp_path / "table.csv"
    table.write_text(
        "label,image,xmin,ymin,xmax,ymax,width,height\n"
        "cat,b.png,20,12,70,48,100,60\n"
        "dog,a.png,20,12,70.5,48,,\n"
        "dog,a.png,0,0,100,60,,\n"
        "cat,c.png,,,,,,\n"
        "cow,d.png,,,,,,\n"
        "dog,e.png,1,2,,4,,\n"
        "dog,f.png,1,2,3,4,0,60\n"
        "dog,g.png,1,2,3,4,100,60,8\n"
    )
    data = csv_examples(tmp_path, table, classes=["cat", "dog"])
    b, a = as_list(data.dataset())
    assert (b["id"], b["label"], b["size"].tolist()) == (b"b.png", 0, [60, 100])
    np.testing.assert_allclose(b["boxes"], [[0.2, 0.2, 0.8, 0.7]], atol=1e-7)
    assert (a["label"], a["size"].tolist()) == (1, [60, 100])
    np.testing.assert_allclose(a["boxes"], [[0.2, 0.2, 0.8, 0.705], [0, 0, 1, 1]], atol=1e-7)
    assert {id: kind for id, (kind, _) in data.report.bad.items()} == {
        "c.png": "missing file",
        "d.png": "label out of range",
        **dict.fromkeys(["e.png", "f.png", "g.png"], "malformed annotation"),
    }
    table.write_text("image,label,mask\na.png,0,a.png\na.png,7,a.png\nb.png,1,\n")
    data = csv_examples(tmp_path, table)
    first, second = as_list(data.dataset(60))
    assert (first["id"], second["id"], second["label"]) == (b"a.png#0", b"a.png#7", 7)
    assert first["mask"].any() and not first["ignore_mask"].any()
    assert data.report.bad["b.png"][0] == "no mask"
    assert csv_examples(tmp_path, table, classes=5).report.counts == {"label out of range": 1}
    table.write_text("file,label\n")
    with pytest.raises(ValueError, match="expected image,label"):
        csv_examples(tmp_path, table)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_of_old_data_sets_are_those_of_the_stored_pixels(tmp_path, orientation):
    """CSV tables follow the EXIF orientation instead: the box of what a viewer shows."""
    stored = rectangle(8, 16, 40, 24, size=(48, 64))
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "a.png", stored, exif=exif)
    write_xml(tmp_path / "a.xml", ("n02123045", 8, 16, 40, 24), filename="a.png")
    (tmp_path / "a.xml").write_text((tmp_path / "a.xml").read_text().replace(">100<", ">64<"))
    (one,) = as_list(xml_examples(tmp_path, tmp_path).dataset())
    np.testing.assert_array_equal(one["image"], stored)
    shown = load_image(tmp_path / "a.png")
    ymin, xmin, ymax, xmax = red_box(shown)
    row = f"image,label,xmin,ymin,xmax,ymax\na.png,0,{xmin},{ymin},{xmax},{ymax}\n"
    (tmp_path / "a.csv").write_text(row)
    (one,) = as_list(csv_examples(tmp_path, tmp_path / "a.csv").dataset())
    np.testing.assert_array_equal(one["image"], shown)


def test_impossible_calls_say_what_would_work(wsol):
    data = read(wsol)
    with pytest.raises(ValueError, match=r"pass size=\(height, width\)"):
        data.dataset(batch_size=2)
    with pytest.raises(ValueError, match="use at least 224"):
        data.dataset(224, short_side=200)
    with pytest.raises(ValueError, match="two positive numbers"):
        data.dataset((0, 3))
    message = re.escape("Choose split= from ['val']")
    with pytest.raises(FileNotFoundError, match=message):
        wsol_examples(wsol / "images", wsol / "metadata")
