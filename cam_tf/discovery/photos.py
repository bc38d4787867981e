"""Photos of any size as what a network takes, batch by batch."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from cam_tf.datasets.images import check_image, resize_image
from cam_tf.discovery.features import PooledFeatures

Prepare = Callable[[Sequence[np.ndarray]], np.ndarray]


def prepared(features: PooledFeatures, size: Sequence[int] | None = None) -> Prepare:
    """Returns the function from photos (H, W, 3) to a batch of the network's size, RGB 0..255.

    Raises:
        ValueError: no size, of a network that takes any.
    """
    size = features.anatomy.image.shape[1:3] if size is None else size
    if None in size:
        raise ValueError(
            f"{features.anatomy.name!r} takes images of any size: say which, size=(224, 224)."
        )
    return lambda photos: np.stack([resize_image(photo, size) for photo in photos])


def batches(photos: Sequence, prepare: Prepare, batch_size: int = 32) -> Iterator[np.ndarray]:
    """Batches of photos, which are taken from the sequence when their turn comes."""
    for start in range(0, len(photos), batch_size):
        stop = min(start + batch_size, len(photos))
        yield prepare([photos[i] for i in range(start, stop)])


def cropped(photo: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The part of a photo in a relative box; the whole photo for an empty one."""
    photo = check_image(photo)
    height, width = photo.shape[:2]
    top, left = int(np.floor(box[0] * height)), int(np.floor(box[1] * width))
    bottom, right = int(np.ceil(box[2] * height)), int(np.ceil(box[3] * width))
    part = photo[max(top, 0) : bottom, max(left, 0) : right]
    return part if part.size else photo


class Crops(Sequence):
    """Photos cut by their boxes, each when it is asked for."""

    def __init__(self, photos: Sequence, boxes: np.ndarray):
        self._photos, self._boxes = photos, boxes

    def __len__(self) -> int:
        return len(self._photos)

    def __getitem__(self, index: int) -> np.ndarray:
        return cropped(self._photos[index], self._boxes[index])
