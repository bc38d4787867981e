"""A text detector that has never seen a box: it learns which images hold text, and which none."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from cam_tf.datasets.imagenet import imagenet_classes
from cam_tf.datasets.images import resize_image
from cam_tf.discovery.features import PooledFeatures
from cam_tf.discovery.linear import LinearHead, attach, fit_linear
from cam_tf.localization.boxes import masks
from cam_tf.maps.cam import CAM
from cam_tf.networks.stride import with_output_stride

TEXT_LAYER = "block6c_add"  # of EfficientNet-Lite0, before features become objects
_LEARNT_AT = 224  # pixels of the pictures that are learnt from
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Bold"),
    *("DejaVuSansMono", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmr10", "cmtt10"),
)


@dataclass(frozen=True)
class TextScene:
    """A picture with or without text.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        boxes: (m, 4) float32, relative, one for each line of text; m = 0 without text.
    """

    image: np.ndarray
    boxes: np.ndarray


def render_text_scenes(
    backgrounds: Sequence[np.ndarray], count: int, size: int = 224, seed: int = 0
) -> list[TextScene]:
    """Renders text on photos: every second picture has some, in perspective.

    Words, fonts (those that come with matplotlib), sizes, colours, contrast and places are drawn by
    chance. Pictures without text have lines and shapes instead, so that edges alone tell nothing.

    Args:
        backgrounds: (H, W, 3) uint8 photos without text.
        count: how many pictures.
        size: their side in pixels.
        seed: of all that is drawn.

    Raises:
        ValueError: no background.
    """
    if not backgrounds:
        raise ValueError("there is no background to render text on.")
    rng = np.random.default_rng(seed)
    words = sorted({word for name in imagenet_classes() for word in name.split() if len(word) > 2})
    return [_scene(rng, backgrounds, words, size, with_text=i % 2 == 1) for i in range(count)]


def _scene(rng, backgrounds, words, size: int, with_text: bool) -> TextScene:
    picture = _background(rng, backgrounds[rng.integers(len(backgrounds))], size)
    boxes = []
    for _ in range(rng.integers(1, 4)):
        if with_text:
            boxes += _draw_text(rng, picture, words)
        else:
            _draw_shapes(rng, picture)
    noisy = picture + rng.normal(0, rng.uniform(0, 6), picture.shape)
    image = np.clip(np.rint(noisy), 0, 255).astype(np.uint8)
    return TextScene(image, np.reshape(np.float32(boxes), (-1, 4)))


def _background(rng, photo: np.ndarray, size: int) -> np.ndarray:
    """A crop of a photo, maybe mirrored."""
    height, width = photo.shape[:2]
    side = int(rng.uniform(0.5, 1.0) * min(height, width))
    top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = resize_image(photo[top : top + side, left : left + side], (size, size))
    return (crop[:, ::-1] if rng.random() < 0.5 else crop).astype(np.float64)


def _colour(rng, under: np.ndarray) -> np.ndarray:
    """A colour that can be told from what is under it."""
    for _ in range(20):
        colour = rng.uniform(0, 255, 3)
        if abs(colour.mean() - under.mean()) > 60:
            break
    return colour


def _draw_text(rng, picture: np.ndarray, words: Sequence[str]) -> list[list[float]]:
    """Draws some words, in place, and returns their box if they are inside the picture."""
    size = len(picture)
    text = " ".join(rng.choice(words, rng.integers(1, 4)))
    text = text.upper() if rng.random() < 0.4 else text
    font = ImageFont.truetype(str(_fonts()[rng.integers(len(_fonts()))]), int(rng.uniform(14, 44)))
    left, top, right, bottom = font.getbbox(text)
    layer = Image.new("L", (right - left + 8, bottom - top + 8))
    ImageDraw.Draw(layer).text((4 - left, 4 - top), text, fill=255, font=font)
    height, width = layer.height, layer.width
    scale = min(1.0, 0.95 * size / width)
    corners = np.float32([[0, 0], [width, 0], [width, height], [0, height]])
    target = corners * scale
    target += rng.uniform(-0.18, 0.18, (4, 2)) * scale * height
    angle = rng.normal(0, 0.12)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    target = (target - target.mean(0)) @ turn.T
    span = np.ptp(target, axis=0)
    free = np.maximum(size - span, 1)
    target = np.float32(target - target.min(0) + rng.uniform(0, 1, 2) * free)
    alpha = cv2.warpPerspective(
        np.asarray(layer),
        cv2.getPerspectiveTransform(corners, target),
        (size, size),
        flags=cv2.INTER_AREA,
    )
    drawn = alpha > 64
    if drawn.sum() < 30:
        return []
    share = alpha[..., None] / 255 * rng.uniform(0.75, 1)
    picture[:] = (1 - share) * picture + share * _colour(rng, picture[drawn])
    rows, columns = np.flatnonzero(drawn.any(1)), np.flatnonzero(drawn.any(0))
    box = [rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]
    return [[side / size for side in box]]


def _draw_shapes(rng, picture: np.ndarray) -> None:
    """Draws a few lines, circles or rectangles, in place."""
    size = len(picture)
    canvas = picture.astype(np.uint8)
    for _ in range(rng.integers(1, 5)):
        first, second = (tuple(int(v) for v in rng.integers(0, size, 2)) for _ in range(2))
        colour = _colour(rng, picture).tolist()
        thick = int(rng.integers(1, 6))
        kind = rng.integers(3)
        if kind == 0:
            cv2.line(canvas, first, second, colour, thick, cv2.LINE_AA)
        elif kind == 1:
            cv2.circle(canvas, first, int(rng.integers(4, size // 4)), colour, thick, cv2.LINE_AA)
        else:
            cv2.rectangle(canvas, first, second, colour, thick, cv2.LINE_AA)
    picture[:] = canvas


def _fonts() -> list[Path]:
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return [path for path in (folder / f"{name}.ttf" for name in FONTS) if path.exists()]


def fit_text_detector(
    features: PooledFeatures,
    scenes: Sequence[TextScene],
    *,
    seed: int = 0,
    C: float | None = 1e-3,  # noqa: N803
) -> LinearHead:
    """Fits the classifier text / no text on whole pictures; no box is looked at.

    Strong regularisation (a small C) is not what classifies best, but it localises better.

    Args:
        features: of the network, at the layer that the detector will use.
        scenes: of ``render_text_scenes``.
        seed: see ``fit_linear``.
        C: see ``fit_linear``; None: chosen by cross-validation.

    Raises:
        ValueError: see ``fit_linear``.

    Source: Zhou et al., CVPR 2016, section 4.2, "Weakly supervised text detector".
    """
    images = np.stack([scene.image for scene in scenes])
    labels = np.array([int(len(scene.boxes) > 0) for scene in scenes])
    return fit_linear(features(images), labels, C=C, seed=seed, network=features.fingerprint())


class TextDetector:
    """Finds text in photos of any size.

    Args:
        model: the network, which takes images of any size (``input_shape=(None, None, 3)``).
        head: of ``fit_text_detector``.
        layer: the feature maps, as for ``PooledFeatures``.
        output_stride: of the maps, in pixels; None: the network's own.
        side: photos are resized so that their shorter side has so many pixels.

    Raises:
        ValueError: see ``attach`` and ``with_output_stride``.
    """

    def __init__(
        self,
        model: keras.Model,
        head: LinearHead,
        layer=None,
        *,
        output_stride: int | None = 16,
        side: int = 448,
    ):
        attached = attach(model, head, layer)
        self._decide = CAM(attached)
        if output_stride is not None:
            attached = with_output_stride(attached, output_stride)
        self._explain = CAM(attached)
        self._bias = float(head.bias[0])
        self._side = side

    def decision(self, photo: np.ndarray) -> float:
        """The decision value of the whole photo: above 0 the classifier says that it has text."""
        image = resize_image(photo, (_LEARNT_AT, _LEARNT_AT))
        return float(self._decide(image[None], 0).logits[0, 0])

    def map(self, photo: np.ndarray) -> np.ndarray:
        """The evidence for text, (h, w) float32: above 0 the classifier would say that there is."""
        height, width = photo.shape[:2]
        scale = self._side / min(height, width)
        size = [max(32, round(scale * length / 32) * 32) for length in (height, width)]
        return self._explain(resize_image(photo, size)[None], 0).numpy().maps[0, 0] + self._bias

    def __call__(
        self, photo: np.ndarray, threshold: float = 0.45, smallest: float = 0.001
    ) -> tuple[np.ndarray, np.ndarray]:
        """Finds the boxes of text in a photo (H, W, 3).

        Args:
            photo: RGB 0..255.
            threshold: the share of the map's maximum that text is above.
            smallest: the least share of the photo that a box covers.

        Returns:
            (m, 4) boxes, relative, and (m,) scores, the mean evidence in each, best first; none if
            the classifier does not say that the photo has text.
        """
        if self.decision(photo) <= 0:
            return np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
        evidence = self.map(photo)
        size = photo.shape[:2]
        mask = masks(evidence[None, None], threshold, size=size)[0, 0]
        count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        stretched = cv2.resize(evidence, size[::-1], interpolation=cv2.INTER_LINEAR)
        found, scores = [], []
        for i in range(1, count):
            left, top, width, height, _ = stats[i]
            if width * height >= smallest * size[0] * size[1]:
                box = [
                    top / size[0],
                    left / size[1],
                    (top + height) / size[0],
                    (left + width) / size[1],
                ]
                found.append(box)
                scores.append(float(stretched[labels == i].mean()))
        order = np.argsort(scores)[::-1].astype(int)
        return np.reshape(np.float32(found), (-1, 4))[order], np.float32(scores)[order]


@dataclass(frozen=True)
class TextScores:
    """How well boxes cover text, in pixels and in boxes.

    Attributes:
        pixel_precision: the share of what the boxes cover that is in a true box.
        pixel_recall: the share of the true boxes' area that the boxes cover.
        precision: the share of boxes at least half of which is text.
        recall: the share of true boxes at least half of which is covered.
    """

    pixel_precision: float
    pixel_recall: float
    precision: float
    recall: float


def score_text_boxes(
    found: Sequence[np.ndarray], truth: Sequence[np.ndarray], size: int = 224
) -> TextScores:
    """Scores the boxes of several pictures together.

    A box of the detector may hold several lines: it is judged by area, not by IoU with one of them.

    Args:
        found: for each picture (m, 4) relative boxes.
        truth: for each picture (m', 4).
        size: the raster in which areas are measured.
    """
    both = covered = true = 0
    right, boxes, caught, lines = 0, 0, 0, 0
    for mine, theirs in zip(found, truth, strict=True):
        ours, real = _raster(mine, size), _raster(theirs, size)
        both += (ours & real).sum()
        covered, true = covered + ours.sum(), true + real.sum()
        right += sum(_share(box, real, size) >= 0.5 for box in mine)
        caught += sum(_share(box, ours, size) >= 0.5 for box in theirs)
        boxes, lines = boxes + len(mine), lines + len(theirs)

    def ratio(part, whole) -> float:
        return float(part / whole) if whole else 0.0

    return TextScores(
        ratio(both, covered), ratio(both, true), ratio(right, boxes), ratio(caught, lines)
    )


def _raster(boxes: np.ndarray, size: int) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    for box in boxes:
        mask[_slices(box, size)] = True
    return mask


def _slices(box, size: int) -> tuple[slice, slice]:
    top, left, bottom, right = np.rint(np.asarray(box) * size).astype(int)
    return slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))


def _share(box, mask: np.ndarray, size: int) -> float:
    part = mask[_slices(box, size)]
    return float(part.mean()) if part.size else 0.0
