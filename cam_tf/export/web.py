"""One HTML page that explains photos in the browser, with the network inside."""

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from cam_tf.display.pages import colours, encoded, page
from cam_tf.export.onnx import export_onnx
from cam_tf.export.runtimes import WAY_OUT, card_path
from cam_tf.files import written_whole
from cam_tf.localization.localizer import Localizer
from cam_tf.maps.explainer import Explainer

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
PAGE, CARD = "index.html", "model_card.json"
_SCRIPT, _WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
_LARGEST_MODEL = 350 * 2**20  # a browser's strings end at 512 MiB, and base64 takes a third more


@dataclass(frozen=True)
class Runtime:
    """The files of onnxruntime-web that a page needs."""

    script: bytes
    wasm: bytes


def export_web(
    model_or_explainer: keras.Model | Explainer | Localizer,
    path: str | os.PathLike,
    *,
    top_k: int = 5,
    threshold: float = 0.2,
    image_size: int | Sequence[int] | None = None,
    class_names: Sequence[str] | None = None,
    preprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    onnxruntime_web: str | os.PathLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Writes a directory with ``index.html``, which explains photos in any current browser.

    The page holds the network (as ``export_onnx`` writes it) and onnxruntime-web. It needs no
    server and no network: a double click opens it, and its content security policy forbids it to
    send anything. A person drops a photo on it and sees the likeliest classes, the map of each, its
    box, and sliders for the opacity and the threshold. ``model_card.json`` says what the network
    is.

    Args:
        model_or_explainer: see ``export_onnx``.
        path: the directory; it is made.
        top_k: how many classes are shown, all if there are fewer.
        threshold: where the slider of the boxes' threshold begins, a share of the map's maximum.
        image_size: see ``export_onnx``.
        class_names: the names that the page shows; without them it shows the classes' ids.
        preprocess: see ``export_onnx``.
        onnxruntime_web: the npm package ``onnxruntime-web``, as a directory or as the ``.tgz`` that
            ``npm pack`` writes. Default: ``npm`` fetches it once, into the user's cache.
        overwrite: replace an earlier export.

    Returns:
        The path of the page.

    Raises:
        ImportError: tf2onnx is not installed.
        FileNotFoundError: there is no onnxruntime-web, and no npm to fetch it.
        FileExistsError: the page exists, and ``overwrite`` is False.
        ValueError: see ``export_onnx``; or a network too large for a page.
        OSError: the place cannot be written to, or the disk is full.
    """
    if top_k < 1:
        raise ValueError(f"top_k={top_k}: show at least one class.")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold={threshold} is not a share of the maximum: use 0 up to 1.")
    path = Path(path)
    _check_directory(path, overwrite)
    runtime = find_runtime(onnxruntime_web)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / "model.onnx"
        options = {"image_size": image_size, "class_names": class_names, "preprocess": preprocess}
        export_onnx(model_or_explainer, file, **options)
        card, model = card_path(file).read_text(), file.read_bytes()
    if len(model) > _LARGEST_MODEL:
        raise ValueError(
            f"a network of {len(model) >> 20} MiB does not fit in a page: {_LARGEST_MODEL >> 20} "
            f"MiB is the most. Take a smaller one, or {WAY_OUT}."
        )
    content = _page(model, json.loads(card), runtime, top_k, threshold)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with written_whole(path / CARD) as described, written_whole(path / PAGE) as file:
            described.write(card.encode())
            described.flush()
            file.write(content.encode())
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): name another one.") from error
    return path / PAGE


def find_runtime(given: str | os.PathLike | None = None) -> Runtime:
    """Reads onnxruntime-web from a directory or a ``.tgz``, or from npm by way of a cache.

    Raises:
        FileNotFoundError: it is not there, or there is no npm to fetch it.
        OSError: npm could not fetch it.
    """
    if given is None:
        given = _cached()
    given = Path(given)
    if given.is_file():
        return _packed(given)
    for directory in (given, given / "dist", given / "package" / "dist"):
        if (directory / _SCRIPT).is_file() and (directory / _WASM).is_file():
            return Runtime((directory / _SCRIPT).read_bytes(), (directory / _WASM).read_bytes())
    raise FileNotFoundError(
        f"{given} holds no {_SCRIPT} and {_WASM}: give the package {PACKAGE} of npm (1.20 or "
        "newer), as a directory or as the .tgz of `npm pack onnxruntime-web`."
    )


def _packed(path: Path) -> Runtime:
    try:
        with tarfile.open(path) as archive:
            files = [archive.extractfile(f"package/dist/{name}") for name in (_SCRIPT, _WASM)]
            return Runtime(*(file.read() for file in files))
    except (tarfile.TarError, KeyError, AttributeError, EOFError) as error:
        raise FileNotFoundError(
            f"{path} is not the package {PACKAGE} ({error}): `npm pack {PACKAGE}` writes it."
        ) from error


def _cached() -> Path:
    """The package in the user's cache, fetched by npm when it is not there."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "cam_tf"
    wanted = cache / f"{PACKAGE}-{VERSION}.tgz"
    if wanted.is_file():
        return wanted
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(
            f"the page needs {PACKAGE}, and there is no npm to fetch it: install Node.js, or fetch "
            f"the package elsewhere (npm pack {PACKAGE}@{VERSION}) and name it: onnxruntime_web=, "
            "or --onnxruntime-web."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        done = subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}", "--pack-destination", temporary],
            capture_output=True,
            text=True,
            cwd=temporary,
        )
        found = Path(temporary) / wanted.name
        if done.returncode or not found.is_file():
            reason = (done.stderr.strip().splitlines() or ["no file"])[-1]
            raise OSError(
                f"npm could not fetch {PACKAGE} {VERSION} ({reason}): try again, or name the "
                "package: onnxruntime_web=, or --onnxruntime-web."
            )
        _packed(found)  # whole
        os.replace(found, wanted)
    return wanted


def _check_directory(path: Path, overwrite: bool) -> None:
    if path.exists() and not path.is_dir():
        raise FileExistsError(f"{path} is a file: name a directory.")
    for one in (path / PAGE, path / CARD):
        if one.exists() and not overwrite:
            raise FileExistsError(
                f"{one} exists: name another directory, or replace it with overwrite=True."
            )
    ground = next(one for one in (path, *path.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=ground):
            pass
    except OSError as error:
        raise OSError(f"cannot write {path} ({error.strerror}): name another one.") from error


def _page(model: bytes, card: dict, runtime: Runtime, top_k: int, threshold: float) -> str:
    names = card["model"]["class_names"]
    data = {
        "size": card["preprocessing"]["resized_to"],
        "class_names": names,
        "top_k": top_k,
        "threshold": threshold,
        "colours": colours(),
    }
    return page(
        "web",
        f"What does {card['model']['name']} see?",
        data,
        runtime=encoded(runtime.script),
        wasm=encoded(runtime.wasm),
        model=encoded(model),
    )
