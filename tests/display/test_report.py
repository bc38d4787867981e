"""The report, in a real browser: tabs, methods, sliders, units, and what is no photo."""

import json
import re
import shutil
import subprocess
import tarfile

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cam_tf
from cam_tf.cli import main

PIXEL = """([x, y]) => [
    ...document.getElementById("picture").getContext("2d").getImageData(x, y, 1, 1).data
]"""


@pytest.fixture
def model_file(tmp_path):
    """Red, green and blue are their own evidence, on 8x8 pixels."""
    image = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(3, 1, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax", name="scores")(pooled))
    model.set_weights([np.eye(3)[None, None], np.diag([4.0, 2, 1]), np.float32([0, 0.5, 0])])
    model.save(tmp_path / "colours.keras")
    (tmp_path / "labels.txt").write_text("red & <i>\ngreen\nblue\n")
    return tmp_path / "colours.keras"


@pytest.fixture
def run(model_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = ("--model", "colours.keras", "--labels", "labels.txt")
    return lambda *given: CliRunner().invoke(main, ["report", *map(str, given), *model])


@pytest.fixture
def photos(tmp_path):
    """Two photos of 40x20: red in the upper left quarter; green in the lower right one."""
    (tmp_path / "photos").mkdir()
    for name, colour, corner in (("a.png", (255, 0, 0), (0, 0)), ("b.png", (0, 255, 0), (20, 10))):
        picture = Image.new("RGB", (40, 20))
        picture.paste(colour, (*corner, corner[0] + 20, corner[1] + 10))
        picture.save(tmp_path / "photos" / name)
    return tmp_path / "photos"


def _opened(page, path):
    page.goto(path.as_uri())
    page.wait_for_selector("[role=tab][aria-selected=true]")
    return page


def _explained(page) -> dict:
    return page.evaluate("globalThis.explained")


def test_a_person_looks_through_it(run, photos, new_page, tmp_path):
    done = run("photos", "--methods", "cam,gradcam", "--top-k", 3, "--title", "Which <colour>?")
    assert done.exit_code == 0, done.output
    assert "2 photos -> report.html" in done.stdout
    page = _opened(new_page(viewport={"width": 390, "height": 844}), tmp_path / "report.html")
    assert page.title() == "Which <colour>?"
    tabs = page.locator("[role=tab]")
    assert tabs.count() == 3
    assert tabs.nth(0).inner_text().startswith("red & <i>")
    assert _explained(page)["method"] == "CAM"
    np.testing.assert_allclose(_explained(page)["box"], [0, 0, 0.5, 0.5], atol=0.13)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")  # on a phone
    page.locator("#opacity").fill("100")
    assert page.evaluate(PIXEL, [19, 9])[:3] != page.evaluate(PIXEL, [39, 19])[:3]
    page.locator("#box").uncheck()
    assert page.evaluate(PIXEL, [0, 0])[:3] == [252, 255, 164]  # inferno's last colour
    before = _explained(page)["box"]
    page.locator("#threshold").fill("90")
    after = _explained(page)["box"]
    assert after[2] < before[2] or after[3] < before[3]
    page.locator("#method").select_option("GradCAM")
    assert _explained(page)["method"] == "GradCAM"
    tabs.nth(0).focus()
    page.keyboard.press("ArrowRight")
    assert tabs.nth(1).get_attribute("aria-selected") == "true"
    assert page.evaluate("document.activeElement.id") == "tab-1"
    page.keyboard.press("End")
    assert _explained(page)["classId"] == 2
    assert page.locator("#diagnosis").is_visible()  # there is no blue
    assert "flat" in page.locator("#diagnosis").inner_text()
    page.locator("nav button").nth(1).click()
    page.get_by_role("heading", name="b.png").wait_for()
    assert tabs.nth(0).inner_text().startswith("green")
    page.locator("#method").select_option("CAM")
    page.locator("#threshold").fill("20")
    np.testing.assert_allclose(_explained(page)["box"], [0.5, 0.5, 1, 1], atol=0.13)
    # A quarter of the photo is green: F = 0.25 but for the resizing's edges, w = 2.
    cells = page.locator("#units tbody tr").nth(0).locator("th, td").all_inner_texts()
    assert (cells[0], cells[2].strip()) == ("1", "100.0 %")
    assert float(cells[1]) == pytest.approx(0.5, abs=0.01)


def test_the_box_and_the_numbers_are_the_librarys(run, photos, new_page, tmp_path):
    photo = cam_tf.demo_photos()[0]
    model = cam_tf.build_classifier("EfficientNetLite0")
    done = CliRunner().invoke(
        main, ["report", str(photo), "--methods", "layercam,cam", "-o", str(tmp_path / "r.html")]
    )
    assert done.exit_code == 0, done.output
    page = _opened(new_page(), tmp_path / "r.html")
    pixels = cam_tf.resize_image(cam_tf.load_image(photo), (224, 224))[None]
    layer = cam_tf.LayerCAM(model)(pixels, top_k=5)
    for kind, expected in (
        ("LayerCAM", layer),
        ("CAM", cam_tf.CAM(model)(pixels, classes=layer.class_ids.numpy().tolist())),
    ):
        page.locator("#method").select_option(kind)
        for rank in range(5):
            page.locator("[role=tab]").nth(rank).click()
            found = _explained(page)
            assert found["classId"] == int(expected.class_ids[0, rank])
            np.testing.assert_allclose(found["box"], cam_tf.boxes(expected)[0, rank], atol=1 / 224)
    assert page.locator("nav").is_hidden()  # of one photo there is nothing to choose


def test_bad_files_are_named_in_the_page_too(run, photos, new_page, tmp_path):
    (photos / "bad.jpg").write_text("no photo")
    done = run("photos", "nowhere.png", "-o", "all.html")
    assert done.exit_code == 1
    assert "bad.jpg was left out" in done.stderr
    assert "nowhere.png was left out" in done.stderr
    page = _opened(new_page(), tmp_path / "all.html")
    assert page.locator("#left-out li").count() == 2
    assert page.locator("nav button").count() == 2
    alone = run("photos/bad.jpg", "-o", "none.html")
    assert alone.exit_code == 1
    empty = new_page()
    empty.goto((tmp_path / "none.html").as_uri())
    assert empty.locator("#left-out li").count() == 1


def test_two_hundred_photos_stay_usable(run, photos, new_page, tmp_path):
    rng = np.random.default_rng(0)
    for i in range(200):
        noise = rng.integers(0, 255, (16, 16, 3), np.uint8)
        Image.fromarray(noise).resize((640, 480)).save(photos / f"{i:03}.jpg")
    assert run("photos", "-o", "many.html", "--batch-size", 64).exit_code == 0
    assert (tmp_path / "many.html").stat().st_size < 30e6
    page = _opened(new_page(), tmp_path / "many.html")
    assert page.locator("nav button").count() == 202
    page.locator("nav button").nth(150).click()
    page.get_by_role("heading", name="150.jpg").wait_for()
    assert page.evaluate("document.querySelectorAll('canvas').length") == 2


def test_refusals(run, photos, tmp_path):
    for given, what in (
        (("--methods", ","), "names none"),
        (("--methods", "gradcan"), "gradcam"),
        (("--max-channels", 3), "asks no channels|asks channels"),
        (("-o", "photos"), "is a directory"),
        (("--colormap", "rainbows"), "rainbow"),
    ):
        done = run("photos", *given)
        assert done.exit_code == 2
        assert re.search(what, done.stderr), done.stderr
    assert not (tmp_path / "report.html").exists()


def test_a_model_without_units_of_its_own(tmp_path, photos, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image = keras.Input((8, 8, 3))
    dense = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.Conv2D(2, 3)(image)))
    keras.Model(image, dense).save("flat.keras")
    given = ["report", "photos", "--model", "flat.keras", "--methods", "gradcam"]
    done = CliRunner().invoke(main, given)
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text()
    data = re.search(r'class="case"[^>]*>(.*?)</script>', page)[1]
    assert json.loads(data)["units"] is None
    assert "SHA-256" in page


def test_it_has_no_accessibility_violation(run, photos, browser, tmp_path):
    """axe-core, as npm has it, finds nothing."""
    npm = shutil.which("npm")
    if (
        npm is None
        or subprocess.run(
            [npm, "pack", "axe-core@4.10"], cwd=tmp_path, capture_output=True
        ).returncode
    ):
        pytest.skip("no npm to fetch axe-core with")
    (archive,) = tmp_path.glob("axe-core-*.tgz")
    with tarfile.open(archive) as packed:
        axe = packed.extractfile("package/axe.min.js").read().decode()
    (photos / "bad.jpg").write_text("no photo")
    run("photos", "--methods", "cam,gradcam")
    context = browser.new_context(bypass_csp=True)
    page = _opened(context.new_page(), tmp_path / "report.html")
    page.locator("summary").click()
    page.add_script_tag(content=axe)
    found = page.evaluate("axe.run()")
    context.close()
    assert len(found["passes"]) > 20
    assert [one["id"] for one in found["violations"]] == []
