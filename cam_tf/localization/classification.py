"""Top-1 and top-5 classification error, also of images that have no box."""

from collections.abc import Sequence

import numpy as np

from cam_tf.localization.metrics import StreamingMetric
from cam_tf.maps.explanation import Array


class ClassificationError(StreamingMetric):
    """Top-n classification error: none of the first n predictions names the image's class.

    ``LocalizationError`` gives the same of the images that it counts, which must have boxes.

    Args:
        top: the numbers n; (1,) for a network of fewer than five classes.
    """

    def __init__(self, top: Sequence[int] = (1, 5)):
        super().__init__(
            {"top": [int(n) for n in top]}, {"classified": np.zeros(len(top), np.int64)}
        )

    def update(self, class_ids: Array, true_class_ids: Array) -> None:
        """Counts a batch of N images.

        Args:
            class_ids: (N, k) the predicted classes, best first; k is at least the largest n.
            true_class_ids: (N,) the classes of the images.

        Raises:
            ValueError: shapes that do not fit, or fewer than n predictions.
        """
        class_ids, labels = np.asarray(class_ids), np.asarray(true_class_ids)
        top = self._settings["top"]
        if class_ids.ndim != 2 or labels.shape != class_ids.shape[:1]:
            raise ValueError(
                f"class_ids {class_ids.shape} and true_class_ids {labels.shape} are not (N, k) "
                "and (N,)."
            )
        if class_ids.shape[1] < max(top):
            raise ValueError(f"{class_ids.shape[1]} predictions are too few for top-{max(top)}.")
        right = class_ids == labels[:, None]
        self._add(len(labels), classified=[right[:, :n].any(axis=1).sum() for n in top])

    def _result(self) -> dict[str, float]:
        counts = zip(self._settings["top"], self._totals["classified"], strict=True)
        return {f"cls_top{n}_error": 1 - int(count) / self.images for n, count in counts}
