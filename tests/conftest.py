"""Small networks with known weights, shared by the tests."""

import os
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import pytest


@pytest.fixture(autouse=True)
def _fresh_keras():
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")
    keras.backend.clear_session()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def tiny_model() -> keras.Model:
    """A 1x1 convolution that passes two channels on, average pooling, three classes.

    f_0 = red, f_1 = green; the weights of the classes are (1, 0), (0, 2), (1, -1) and the biases
    0, 0.5, -1.
    """
    image = keras.Input((None, None, 3), name="image")
    maps = keras.layers.Conv2D(2, 1, use_bias=False, name="maps")(image)
    pooled = keras.layers.GlobalAveragePooling2D(name="pool")(maps)
    scores = keras.layers.Dense(3, activation="softmax", name="scores")(pooled)
    model = keras.Model(image, scores, name="tiny")
    model.get_layer("maps").set_weights([np.float32([[[[1, 0], [0, 1], [0, 0]]]])])
    kernel = np.float32([[1, 0, 1], [0, 2, -1]])
    model.get_layer("scores").set_weights([kernel, np.float32([0, 0.5, -1])])
    return model


@pytest.fixture
def tiny_image() -> np.ndarray:
    """A 2x2 image (1, 2, 2, 3) whose red is [[1, 2], [3, 4]] and green [[0, 1], [0, 5]]."""
    red, green = [[1, 2], [3, 4]], [[0, 1], [0, 5]]
    return np.float32(np.stack([red, green, np.zeros((2, 2))], axis=-1))[None]


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next((found for found in map(shutil.which, names) if found), None)
    with playwright.sync_playwright() as started:
        if program is None and not os.path.exists(started.chromium.executable_path):
            pytest.skip("no Chromium: install one, or run `playwright install chromium`")
        opened = started.chromium.launch(executable_path=program)
        yield opened
        opened.close()


@pytest.fixture
def new_page(browser):
    """Makes browser pages that fail the test at its end if they wrote an error to the console."""
    contexts, errors = [], []

    def make(**options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        return page

    yield make
    for context in contexts:
        context.close()
    assert errors == []
