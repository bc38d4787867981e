"""A concept that only a folder or a phrase names, found in images by hard-negative mining."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cam_tf.discovery.linear import Kind, LinearHead, fit_linear
from cam_tf.suggestions import did_you_mean

WITHOUT, WITH = "without", "with"


class Captions(NamedTuple):
    """Image files by what their captions say."""

    having: list[str]
    lacking: list[str]


def captioned(path: str | os.PathLike, phrase: str) -> Captions:
    """Finds the images of a COCO captions file that have a phrase in one of their captions.

    Args:
        path: the JSON file, with ``images`` (``id``, ``file_name``) and ``annotations``
            (``image_id``, ``caption``).
        phrase: words that follow each other, whole, in upper or lower case.

    Raises:
        ValueError: no JSON of captions, an empty phrase, or one that no caption or every image has;
            words that are like it are suggested.
    """
    words = phrase.lower().split()
    if not words:
        raise ValueError(
            "the phrase is empty: give words that captions have, such as 'red umbrella'."
        )
    try:
        data = json.loads(Path(path).read_text("utf-8"))
        files = {one["id"]: one["file_name"] for one in data["images"]}
        captions = [(one["image_id"], one["caption"].lower()) for one in data["annotations"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is no captions file of COCO ({type(error).__name__}: {error}): expected JSON "
            "with 'images' (id, file_name) and 'annotations' (image_id, caption)."
        ) from error
    wanted = re.compile(r"\b" + r"\W+".join(map(re.escape, words)) + r"\b")
    having = {id for id, caption in captions if wanted.search(caption)}
    lacking = {id for id, _ in captions} - having
    if not having:
        known = {word for _, caption in captions for word in re.findall(r"\w+", caption)}
        hint = "".join(did_you_mean(word, known) for word in words if word not in known)
        raise ValueError(f"no caption of {path} has {phrase!r}.{hint}")
    if not lacking:
        raise ValueError(f"every image of {path} has {phrase!r}: there is none to compare with.")
    return Captions([files[id] for id in sorted(having)], [files[id] for id in sorted(lacking)])


def mine_concept(
    having: np.ndarray,
    lacking: np.ndarray,
    *,
    rounds: int = 3,
    kind: Kind = "svm",
    C: float | None = None,  # noqa: N803
    seed: int = 0,
    network: str | None = None,
) -> LinearHead:
    """Fits a classifier of a concept, its negatives chosen by how hard they are.

    It begins with as many images without the concept as there are with it, taken by chance. In each
    round those images without it that the classifier finds most like it join them, as many again,
    and it learns anew.

    Args:
        having: (P, K) pooled features of images with the concept.
        lacking: (M, K) of images without it, which may be many and of all kinds.
        rounds: of mining; 0: only the images taken by chance.
        kind: see ``fit_linear``.
        C: see ``fit_linear``; default: chosen at the beginning.
        seed: of the first images, and of the solver.
        network: see ``fit_linear``.

    Returns:
        The classifier, of ``("without", "with")``: what speaks for the concept is positive in its
        one decision value. ``attach`` makes it a model whose CAM localises the concept.

    Raises:
        ValueError: see ``fit_linear``.

    Source: Zhou et al., CVPR 2016, section 4.2, "Concept localization in weakly labeled images".
    """
    having, lacking = np.asarray(having), np.asarray(lacking)
    order = np.random.default_rng(seed).permutation(len(lacking))
    chosen = list(order[: len(having)])

    def fit(cost: float | None) -> LinearHead:
        features = np.concatenate([having, lacking[chosen]])
        # Two classes have one value, of the second in their order.
        labels = np.array([1] * len(having) + [0] * len(chosen))
        folds = max(2, min(5, len(having), len(chosen)))
        return fit_linear(features, labels, kind, C=cost, folds=folds, seed=seed, network=network)

    head = fit(C)
    for _ in range(rounds):
        rest = np.setdiff1d(np.arange(len(lacking)), chosen)
        if not len(rest):
            break
        values = head.decision(lacking[rest])[:, 0]
        hardest = rest[np.argsort(-values, kind="stable")]
        chosen += list(hardest[: len(having)])
        accuracy = head.accuracy
        head = fit(head.cost)
        head = replace(head, accuracy=accuracy)
    return replace(head, classes=(WITHOUT, WITH))


def average_precision(values: Sequence[float], truth: Sequence[bool]) -> float:
    """The area under the precision-recall curve of decision values, by steps."""
    truth = np.asarray(truth, bool)[np.argsort(-np.asarray(values), kind="stable")]
    precision = np.cumsum(truth) / np.arange(1, len(truth) + 1)
    return float(precision[truth].mean()) if truth.any() else 0.0
