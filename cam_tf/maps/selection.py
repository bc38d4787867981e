"""Which classes to explain: from what a user writes to class ids (N, n)."""

from collections.abc import Sequence

import numpy as np

Classes = None | int | str | Sequence[int] | Sequence[Sequence[int]] | np.ndarray
ALL = "all"


def select_classes(classes: Classes, images: int, num_classes: int) -> np.ndarray:
    """Returns the class ids for each image.

    Args:
        classes: an int (the same class for every image), one id for each image, a list of ids for
            each image (lists of equal length; a single list serves every image), or ``"all"``.
        images: the number of images N.
        num_classes: the number of classes C.

    Returns:
        (N, n) int32.

    Raises:
        TypeError: not integers.
        ValueError: an id out of range, or lists that do not match the images or each other.
    """
    if isinstance(classes, str):
        if classes != ALL:
            raise ValueError(f"classes={classes!r}: use ids, or 'all'.")
        classes = [range(num_classes)]
    ids = _as_array(classes)
    if ids.ndim == 2 and ids.shape[1] == 0:
        raise ValueError("classes names no class: each image needs at least one.")
    if ids.ndim == 0:
        ids = np.full((images, 1), ids)
    elif ids.ndim == 1:
        if len(ids) != images:
            raise ValueError(
                f"classes holds {len(ids)} ids for {images} images: a flat list is one id for each "
                f"image. For several classes of every image pass [{ids.tolist()}]."
            )
        ids = ids[:, None]
    elif len(ids) == 1 != images:
        ids = np.repeat(ids, images, axis=0)
    elif len(ids) != images:
        raise ValueError(
            f"classes holds {len(ids)} lists for {images} images: give one list for each image, "
            "or a single one for all."
        )
    wrong = ids[(ids < 0) | (ids >= num_classes)]
    if wrong.size:
        raise ValueError(
            f"class id {wrong[0]} is out of range: the network has {num_classes} classes, "
            f"0 to {num_classes - 1}."
        )
    return ids.astype(np.int32)


def _as_array(classes: Classes) -> np.ndarray:
    try:
        ids = np.asarray(classes)
    except ValueError:  # NumPy refuses ragged lists
        ids = None
    if ids is None or ids.ndim > 2:
        raise ValueError(
            f"classes={classes!r} has lists of different lengths: every image needs as many "
            "classes as the others. Explain them in separate calls."
        )
    if ids.size and ids.dtype.kind not in "iu":
        raise TypeError(
            f"classes={classes!r} are not class ids: expected integers. Names are turned into ids "
            "by cam_tf.class_id(name)."
        )
    return ids
