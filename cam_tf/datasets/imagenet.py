"""Class names: of ImageNet, of a labels file, and from a name to its class id.

``imagenet_classes.txt`` holds one class on each line, its WordNet id and its WordNet lemmas, in the
order of ``keras.applications`` (sorted WordNet ids). It is taken from the metadata of timm 1.0.31
(https://github.com/huggingface/pytorch-image-models, Apache License 2.0), whose lemmas come from
WordNet 3.0 (copyright 2006 by Princeton University, WordNet License).
"""

import functools
import operator
import os
from collections.abc import Sequence
from pathlib import Path

from cam_tf.suggestions import did_you_mean

# Where the first lemma is shared by two classes (compared without regard to case).
_DISPLAY_NAMES = {
    "n02012849": "crane (bird)",
    "n02113186": "Cardigan Welsh corgi",
    "n03126707": "crane (machine)",
    "n03710721": "tank suit",
}


@functools.cache
def _imagenet() -> tuple[tuple[str, str], ...]:
    """The (WordNet id, comma-separated lemmas) of the 1,000 classes."""
    lines = Path(__file__).with_name("imagenet_classes.txt").read_text("utf-8").splitlines()
    return tuple(tuple(line.split(" ", 1)) for line in lines)


def imagenet_classes() -> list[str]:
    """Returns the 1,000 class names of ImageNet (ILSVRC 2012), ``names[class_id]``.

    The names are short (the first WordNet lemma: ``"tabby"``) and unique, also without regard to
    case; the order is that of ``keras.applications``.
    """
    return [_DISPLAY_NAMES.get(wnid, lemmas.split(", ")[0]) for wnid, lemmas in _imagenet()]


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Reads a labels file: UTF-8 text, the name of class i on line i (counted from 0).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is empty, not UTF-8, or has an empty line before its last name.
    """
    try:
        lines = Path(path).read_text("utf-8-sig").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a UTF-8 text file ({error}).") from error
    names = [line.strip() for line in lines]
    if names == [""]:
        raise ValueError(f"{path} is empty: write one class name on each line.")
    if "" in names:
        raise ValueError(
            f"line {names.index('') + 1} of {path} is empty, which would leave a class without a "
            "name: write one class name on each line, in the order of the model's outputs."
        )
    return names


def class_id(name_or_id: str | int, names: Sequence[str] | None = None) -> int:
    """Resolves a class name or a class id, also one written as text, to the class id.

    Names are compared without regard to case: first with whole names, then with each of their
    comma-separated synonyms. For ImageNet, WordNet ids (``"n02123045"``) and all WordNet lemmas
    (``"tabby cat"``) are synonyms too. Digits are an id unless they are themselves a name.

    Args:
        name_or_id: ``"tabby"``, ``281`` or ``"281"``.
        names: the model's class names in the order of its outputs. Default: ImageNet.

    Returns:
        The class id, 0 <= id < C.

    Raises:
        ValueError: no class has that name (the nearest are suggested), several have, or the id is
            out of range.
        TypeError: neither text nor an integer.
    """
    shown = imagenet_classes() if names is None else list(names)
    if not isinstance(name_or_id, str):
        return _in_range(operator.index(name_or_id), shown)
    wanted = name_or_id.strip().lower()
    whole, synonyms = _index(tuple(shown))
    ids = whole.get(wanted) or synonyms.get(wanted) or ()
    if len(ids) == 1:
        return ids[0]
    if ids:
        classes = " or ".join(f"{i} ({shown[i]!r})" for i in ids)
        raise ValueError(f"{name_or_id!r} is the name of several classes: use the id, {classes}.")
    try:
        number = int(wanted)
    except ValueError:
        known = [*shown, *synonyms]
        raise ValueError(
            f"no class is named {name_or_id!r}.{did_you_mean(name_or_id, known)} A class id "
            f"0..{len(shown) - 1} works too."
        ) from None
    return _in_range(number, shown)


def _in_range(number: int, names: Sequence[str]) -> int:
    if 0 <= number < len(names):
        return number
    raise ValueError(
        f"class id {number} is out of range: the {len(names)} classes are 0..{len(names) - 1}."
    )


@functools.lru_cache(maxsize=4)
def _index(names: tuple[str, ...]) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """From lower-case whole names, and from lower-case synonyms, to class ids."""
    spelled = names
    if names == tuple(imagenet_classes()):
        spelled = tuple(f"{wnid}, {lemmas}" for wnid, lemmas in _imagenet())
    whole: dict[str, list[int]] = {}
    synonyms: dict[str, list[int]] = {}
    for i, (name, spelling) in enumerate(zip(names, spelled, strict=True)):
        whole.setdefault(name.strip().lower(), []).append(i)
        for synonym in dict.fromkeys(part.strip().lower() for part in spelling.split(",")):
            synonyms.setdefault(synonym, []).append(i)
    return whole, synonyms
