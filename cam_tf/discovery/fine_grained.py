"""Fine-grained recognition: the whole image, against the part that its map shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cam_tf.discovery.features import PooledFeatures
from cam_tf.discovery.linear import Accuracy, LinearHead, fit_linear, stratified
from cam_tf.discovery.photos import Crops, Prepare, batches, prepared
from cam_tf.localization.boxes import boxes
from cam_tf.maps.cam import class_activation_maps


@dataclass(frozen=True)
class FineGrained:
    """Accuracies on images that were held out, for each way to look at them.

    Attributes:
        whole: of the whole images.
        cam_crop: of the crops to the boxes of class activation maps.
        box_crop: of the crops to the true boxes, if there are any.
        boxes: (N, 4), the box of each image when it was held out.
    """

    whole: Accuracy
    cam_crop: Accuracy
    box_crop: Accuracy | None
    boxes: np.ndarray


def fine_grained(
    features: PooledFeatures,
    photos: Sequence[np.ndarray],
    labels: Sequence,
    true_boxes: np.ndarray | None = None,
    *,
    threshold: float = 0.2,
    splits: int = 5,
    kind: str = "svm",
    C: float | None = None,  # noqa: N803
    seed: int = 0,
    size: Sequence[int] | None = None,
    prepare: Prepare | None = None,
    progress: Callable[[int], None] | None = None,
) -> FineGrained:
    """The three rows of the paper's fine-grained experiment, by cross-validation.

    In each split a linear classifier learns from whole images. Its class activation maps give a box
    for each image, of the true class where it learns and of the predicted class where it is tested.
    A second classifier learns from, and is tested on, the features of these crops.

    Args:
        features: of the network.
        photos: (H, W, 3) RGB 0..255 each; any sequence, such as one that reads files.
        labels: N labels.
        true_boxes: (N, 4) relative, for the third row.
        threshold: of the boxes, the paper's 20 %.
        splits: of the cross-validation.
        kind: see ``fit_linear``.
        C: see ``fit_linear``; default: chosen in each split, on its training images.
        seed: of the splits.
        size: (height, width) that photos are resized to; default: the network's.
        prepare: from photos to the network's input, in place of resizing alone.
        progress: is told how many images went through the network, (2 + 2 splits) N in all.

    Raises:
        ValueError: see ``fit_linear``; another number of labels or boxes than photos.

    Source: Zhou et al., CVPR 2016, section 4.1 and table 4.
    """
    labels = np.asarray(labels)
    if len(labels) != len(photos) or (true_boxes is not None and len(true_boxes) != len(photos)):
        raise ValueError(f"{len(photos)} photos need as many labels, and boxes if there are any.")
    prepare = prepare or prepared(features, size)
    step = progress or (lambda count: None)

    def taken(chosen: Sequence) -> np.ndarray:
        def each():
            for batch in batches(chosen, prepare):
                yield batch
                step(len(batch))

        return features.extract(each())

    folds = stratified(labels, splits, seed)
    options = {"kind": kind, "C": C, "folds": 3, "seed": seed}
    whole = taken(photos)
    rows = {"whole": [], "cam_crop": [], "box_crop": []}
    predicted = {name: labels.copy() for name in rows}
    found = np.zeros((len(photos), 4), np.float32)

    def score(name: str, given: np.ndarray, train, test) -> LinearHead:
        head = fit_linear(given[train], labels[train], **options)
        predicted[name][test] = head.predict(given[test])
        rows[name].append(float(np.mean(predicted[name][test] == labels[test])))
        return head

    for train, test in folds:
        head = score("whole", whole, train, test)
        shown = labels.copy()
        shown[test] = predicted["whole"][test]
        here = _boxes(features, photos, prepare, head, shown, threshold, step)
        found[test] = here[test]
        score("cam_crop", taken(Crops(photos, here)), train, test)
    if true_boxes is not None:
        crops = taken(Crops(photos, np.asarray(true_boxes)))
        for train, test in folds:
            score("box_crop", crops, train, test)
    done = {name: Accuracy(tuple(rows[name]), predicted[name]) for name in rows if rows[name]}
    return FineGrained(done["whole"], done["cam_crop"], done.get("box_crop"), found)


def _boxes(features, photos, prepare, head: LinearHead, shown, threshold, step) -> np.ndarray:
    """The box (N, 4) of each photo's map of one class."""
    order = {label: i for i, label in enumerate(head.classes)}
    ids = np.array([order[label] for label in shown.tolist()])
    weights = head.weights
    if weights.shape[1] == 1:  # of two classes
        weights = np.concatenate([-weights, weights], 1)
    found, start = [], 0
    for batch in batches(photos, prepare):
        maps = class_activation_maps(
            features.maps(batch), weights, ids[start : start + len(batch), None]
        )
        found.append(boxes(maps, threshold, size=batch.shape[1:3])[:, 0])
        start += len(batch)
        step(len(batch))
    return np.concatenate(found)
