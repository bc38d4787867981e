"""The page of ``cam-tf app``, asked as its clients ask it."""

import pytest
from click.testing import CliRunner

import cam_tf
from cam_tf.cli import main
from cam_tf.cli.app import build_app


@pytest.fixture
def client():
    pytest.importorskip("gradio")
    gradio_client = pytest.importorskip("gradio_client")
    page = build_app("EfficientNetLite0")
    _, url, _ = page.launch(
        prevent_thread_lock=True, quiet=True, server_name="127.0.0.1", max_file_size=200_000
    )
    yield gradio_client.Client(url, verbose=False), gradio_client
    page.close()


def test_it_explains_photos_and_refuses_the_rest(client, tmp_path):
    asked, gradio_client = client
    photo = gradio_client.handle_file(str(cam_tf.demo_photos()[0]))
    picture, text = asked.predict(
        photo, "EfficientNetLite0", "gradcam", 2, 0.2, api_name="/explain"
    )
    assert text.splitlines()[0].startswith("Egyptian cat: 81")
    assert len(text.splitlines()) == 2
    assert cam_tf.load_image(picture).shape[1] > 500
    (tmp_path / "bad.png").write_text("no photo")
    bad = gradio_client.handle_file(str(tmp_path / "bad.png"))
    with pytest.raises(Exception, match="not a readable image"):
        asked.predict(bad, "EfficientNetLite0", "cam", 1, 0.2, api_name="/explain")
    (tmp_path / "large.png").write_bytes(b"0" * 300_000)
    with pytest.raises(Exception, match=r"(?i)size|large|413"):
        large = gradio_client.handle_file(str(tmp_path / "large.png"))
        asked.predict(large, "EfficientNetLite0", "cam", 1, 0.2, api_name="/explain")


def test_the_command_says_what_is_wrong(tmp_path):
    done = CliRunner().invoke(main, ["app", "--model", str(tmp_path / "nowhere.keras")])
    assert done.exit_code == 2
    assert "no model file" in done.stderr
    assert "127.0.0.1" in CliRunner().invoke(main, ["app", "--help"]).stdout
