"""The page of ``export --format web``, in a real browser, against the library's own answers."""

import json
import os
import re
import tarfile
from pathlib import Path

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import cam_tf
from cam_tf.cli import main
from cam_tf.export import web


@pytest.fixture(scope="module")
def runtime():
    """The npm package, from the cache or from npm."""
    pytest.importorskip("tf2onnx")
    try:
        return web._cached()
    except OSError as error:
        pytest.skip(f"no onnxruntime-web: {error}")


@pytest.fixture
def stand_in(tmp_path):
    """A directory with the package's file names."""
    for name in (web._SCRIPT, web._WASM):
        (tmp_path / "package" / "dist").mkdir(parents=True, exist_ok=True)
        (tmp_path / "package" / "dist" / name).write_bytes(name.encode())
    return tmp_path / "package"


def _ready(page, path: Path):
    page.goto(path.as_uri())
    page.get_by_text("Ready.").wait_for(timeout=60_000)
    return page


def _answer(page, photo) -> dict:
    page.set_input_files("#file", photo)  # hides an earlier result
    page.locator("#result").wait_for(timeout=60_000)
    return page.evaluate(
        "({ids: explained.ids, scores: explained.scores, box: explained.box, maps: "
        "explained.maps.map((map) => ({values: [...map.values], shape: [map.height, map.width]}))})"
    )


def test_the_browser_sees_what_the_library_sees(runtime, new_page, tmp_path):
    model = cam_tf.build_classifier("EfficientNetLite0")
    names = cam_tf.imagenet_classes()
    path = cam_tf.export_web(model, tmp_path / "page", class_names=names, onnxruntime_web=runtime)
    page = _ready(new_page(viewport={"width": 390, "height": 844}), path)
    explain = cam_tf.CAM(model)
    for photo in cam_tf.demo_photos():
        pixels = cam_tf.load_image(photo)
        lossless = tmp_path / "photo.png"
        Image.fromarray(pixels).save(lossless)
        expected = explain(cam_tf.resize_image(pixels, (224, 224))[None], top_k=5).numpy()
        found = _answer(page, lossless)
        assert found["ids"] == expected.class_ids[0].tolist()
        # The resized photos differ by a step of 255 in a few places: Pillow adds in fixed point.
        np.testing.assert_allclose(found["scores"], expected.scores[0], atol=0.01)
        maps = [np.reshape(one["values"], one["shape"]) for one in found["maps"]]
        np.testing.assert_allclose(maps, expected.maps[0], atol=0.01 * np.abs(expected.maps).max())
        np.testing.assert_allclose(found["box"], cam_tf.boxes(expected)[0, 0], atol=1.01 / 224)
        found = _answer(page, photo)  # the JPEG, by the browser's own decoder
        assert found["ids"][0] == expected.class_ids[0, 0]
        maps = np.reshape(found["maps"][0]["values"], found["maps"][0]["shape"])
        np.testing.assert_allclose(maps, expected.maps[0, 0], atol=0.1 * expected.maps[0, 0].max())


@pytest.fixture
def colours(tmp_path):
    """Red, green and blue are their own evidence, on 8x8 pixels."""
    image = keras.Input((8, 8, 3))
    maps = keras.layers.Conv2D(3, 1, use_bias=False)(keras.layers.Rescaling(1 / 255)(image))
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(pooled))
    model.set_weights([np.eye(3)[None, None], np.eye(3), np.zeros(3)])
    return model


def _photo(path: Path, box=(0, 0, 20, 10)) -> Path:
    """Black, 40x20, but for a red rectangle (left, top, right, bottom)."""
    picture = Image.new("RGB", (40, 20))
    picture.paste((255, 0, 0), box)
    picture.save(path)
    return path


def test_a_person_can_use_it(runtime, new_page, colours, tmp_path):
    names = ["red & <b>", "green", "blue"]
    path = cam_tf.export_web(
        colours, tmp_path / "page", class_names=names, onnxruntime_web=runtime, top_k=9
    )
    context = new_page()
    page = _ready(context, path)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    found = _answer(page, _photo(tmp_path / "red.png"))
    assert (found["ids"][0], len(found["ids"])) == (0, 3)
    np.testing.assert_allclose(found["box"], [0, 0, 0.5, 0.5], atol=0.13)
    buttons = page.locator("#classes button")
    assert "red & <b>" in buttons.nth(0).inner_text()
    assert buttons.nth(0).get_attribute("aria-pressed") == "true"
    bare = page.locator("#picture").screenshot()
    page.locator("#opacity").fill("0")
    assert page.locator("#picture").screenshot() != bare
    pixel = "[...document.getElementById('picture').getContext('2d').getImageData({}).data]"
    page.locator("#box").uncheck()
    assert page.evaluate(pixel.format("5, 5, 1, 1")) == [255, 0, 0, 255]  # the photo itself
    page.locator("#opacity").fill("100")
    assert page.evaluate(pixel.format("0, 0, 1, 1"))[:3] == [252, 255, 164]  # inferno's last colour
    assert page.evaluate(pixel.format("39, 19, 1, 1"))[:3] == [0, 0, 4]  # and its first
    page.locator("#threshold").fill("90")
    smaller = page.evaluate("explained.box")
    assert smaller[2] < found["box"][2] and smaller[3] <= found["box"][3]
    buttons.nth(1).focus()
    page.keyboard.press("Enter")
    assert buttons.nth(1).get_attribute("aria-pressed") == "true"
    assert "flat" in page.locator("#about").inner_text()  # there is no green
    assert all(url.startswith(("data:", "blob:")) for url in asked)


def test_dropped_files_and_what_is_no_photo(runtime, new_page, colours, tmp_path):
    page = _ready(new_page(), cam_tf.export_web(colours, tmp_path, onnxruntime_web=runtime))
    for name, content in {"notes.jpg": b"not a picture", "empty.png": b""}.items():
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file", tmp_path / name)
        page.get_by_text(f"{name} is not a picture").wait_for()
        assert page.locator("#result").is_hidden()
    content = list(_photo(tmp_path / "red.png").read_bytes())
    page.evaluate(
        """(content) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], "red.png", {type: "image/png"}));
            dispatchEvent(new DragEvent("drop", {dataTransfer: data}));
        }""",
        content,
    )
    page.get_by_text("red.png: class 0").wait_for()


def test_its_files_and_its_refusals(colours, stand_in, tmp_path):
    pytest.importorskip("tf2onnx")
    place = tmp_path / "deep" / "page"
    path = cam_tf.export_web(colours, place, onnxruntime_web=stand_in)
    assert sorted(one.name for one in place.iterdir()) == ["index.html", "model_card.json"]
    card = json.loads((place / "model_card.json").read_text())
    assert card["preprocessing"]["resized_to"] == [8, 8]
    assert re.search(r"https?://", path.read_text()) is None  # the page asks no one
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match="overwrite=True"):
        cam_tf.export_web(colours, place, onnxruntime_web=stand_in)
    with pytest.raises(FileExistsError, match="is a file"):
        cam_tf.export_web(colours, path, onnxruntime_web=stand_in)
    for wrong in ({"top_k": 0}, {"threshold": 1.0}, {"class_names": ["one"]}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))}"):
            cam_tf.export_web(colours, place, onnxruntime_web=stand_in, overwrite=True, **wrong)
    assert path.read_bytes() == before
    cam_tf.export_web(colours, place, onnxruntime_web=stand_in, overwrite=True, top_k=1)
    assert path.read_bytes() != before


def test_a_network_too_large_for_a_page(colours, stand_in, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    monkeypatch.setattr(web, "_LARGEST_MODEL", 100)
    with pytest.raises(ValueError, match="does not fit in a page"):
        cam_tf.export_web(colours, tmp_path / "page", onnxruntime_web=stand_in)
    assert not (tmp_path / "page").exists()


def test_where_onnxruntime_web_comes_from(stand_in, tmp_path, monkeypatch):
    with tarfile.open(tmp_path / "it.tgz", "w:gz") as archive:
        archive.add(stand_in, "package")
    assert web.find_runtime(tmp_path / "it.tgz") == web.find_runtime(stand_in)
    assert web.find_runtime(stand_in / "dist").wasm == web._WASM.encode()
    (tmp_path / "notes.tgz").write_text("no archive")
    for wrong in (tmp_path / "notes.tgz", tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match="npm pack onnxruntime-web"):
            web.find_runtime(wrong)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="--onnxruntime-web"):
        web.find_runtime()
    npm = tmp_path / "npm"
    npm.write_text("#!/bin/sh\necho 'no network' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), "/usr/bin", "/bin"]))
    with pytest.raises(OSError, match=r"no network.*try again"):
        web.find_runtime()
    npm.write_text(f"#!/bin/sh\ncp {tmp_path}/it.tgz $4/{web.PACKAGE}-{web.VERSION}.tgz\n")
    assert web.find_runtime().script == web._SCRIPT.encode()
    npm.unlink()
    assert web.find_runtime().script == web._SCRIPT.encode()  # from the cache


def test_the_command(colours, stand_in, tmp_path, monkeypatch):
    pytest.importorskip("tf2onnx")
    monkeypatch.chdir(tmp_path)
    colours.save("colours.keras")
    Path("labels.txt").write_text("red\ngreen\nblue\n")

    def run(*options):
        given = ("--model", "colours.keras", "--onnxruntime-web", stand_in, *options)
        return CliRunner().invoke(main, ["export", "page", "--format", "web", *map(str, given)])

    done = run("--labels", "labels.txt", "--threshold", 0.3, "--top-k", 2)
    assert done.exit_code == 0, done.output
    assert "model_card.json describes it" in done.stdout
    text = Path("page/index.html").read_text()
    assert '"class_names": ["red", "green", "blue"], "top_k": 2, "threshold": 0.3' in text
    again = run()
    assert (again.exit_code, "exists" in again.stderr) == (2, True)
    done = run("--quantize", "int8", "--overwrite")
    assert (done.exit_code, "--quantize is for" in done.stderr) == (2, True)
