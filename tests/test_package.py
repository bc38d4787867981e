"""The package itself: what is public, and what the environment must be."""

import json
import os
import subprocess
import sys

import pytest

import cam_tf


def _python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_everything_public_is_there_and_documented():
    for name in cam_tf.__all__:
        assert getattr(cam_tf, name).__doc__, name
    assert set(cam_tf.__all__) <= set(dir(cam_tf))
    with pytest.raises(AttributeError, match="no attribute 'Cam'"):
        cam_tf.Cam  # noqa: B018


def test_importing_it_does_not_import_tensorflow():
    done = _python("import cam_tf, sys; assert 'tensorflow' not in sys.modules")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["jax", "torch", "numpy"])
def test_another_backend_is_refused_at_import(backend):
    done = _python("import cam_tf", KERAS_BACKEND=backend)
    assert done.returncode != 0
    assert f"but the backend is '{backend}'. Set KERAS_BACKEND=tensorflow" in done.stderr


def test_another_backend_in_the_configuration_of_keras_is_refused(tmp_path):
    (tmp_path / "keras.json").write_text(json.dumps({"backend": "jax"}))
    code = "import os; os.environ.pop('KERAS_BACKEND', None); import cam_tf"
    done = _python(code, KERAS_HOME=str(tmp_path))
    assert "Set KERAS_BACKEND=tensorflow" in done.stderr
    assert _python("import cam_tf", KERAS_HOME=str(tmp_path / "absent")).returncode == 0
