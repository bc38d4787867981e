"""Visual question answering by a bag of words and image features, and what its answers rest on."""

import json
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np

from cam_tf.maps.cam import CAM
from cam_tf.maps.explanation import Explanation
from cam_tf.networks.anatomy import dissect
from cam_tf.networks.graph import as_functional
from cam_tf.networks.stride import flattened
from cam_tf.suggestions import did_you_mean


@dataclass(frozen=True)
class Question:
    """A question about an image, with its answer if it is known."""

    image_id: int
    text: str
    answer: str | None = None


def read_questions(
    questions: str | os.PathLike, annotations: str | os.PathLike | None = None
) -> list[Question]:
    """Reads the JSON files of VQA v2.

    Args:
        questions: with ``questions`` (``question_id``, ``image_id``, ``question``).
        annotations: with ``annotations`` (``question_id``, ``multiple_choice_answer``).

    Raises:
        ValueError: no such JSON, or a question without an annotation.
    """
    try:
        asked = json.loads(Path(questions).read_text("utf-8"))["questions"]
        answers = {}
        if annotations is not None:
            known = json.loads(Path(annotations).read_text("utf-8"))["annotations"]
            answers = {one["question_id"]: one["multiple_choice_answer"] for one in known}
        return [
            Question(
                one["image_id"],
                one["question"],
                answers[one["question_id"]] if annotations is not None else None,
            )
            for one in asked
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{questions} and {annotations} are not questions and annotations of VQA v2 ({error!r})."
        ) from error


@dataclass(frozen=True)
class Vocabulary:
    """The words that questions are taken as bags of."""

    words: tuple[str, ...]

    @classmethod
    def of(cls, questions: Sequence[str], least: int = 1) -> "Vocabulary":
        """The words that occur in at least so many questions, sorted."""
        counts = Counter(word for text in questions for word in set(split_words(text)))
        return cls(tuple(sorted(word for word, count in counts.items() if count >= least)))

    def encode(self, questions: Sequence[str]) -> np.ndarray:
        """How often each word occurs in each question, (N, V) float32; unknown words are left out.

        Raises:
            ValueError: a question without any known word.
        """
        index = {word: i for i, word in enumerate(self.words)}
        bags = np.zeros((len(questions), len(self.words)), np.float32)
        for row, text in zip(bags, questions, strict=True):
            words = split_words(text)
            for word in words:
                if word in index:
                    row[index[word]] += 1
            if not row.any():
                hint = "".join(did_you_mean(word, self.words) for word in words[:3])
                raise ValueError(f"no word of the question {text!r} is known.{hint}")
        return bags


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case."""
    return re.findall(r"[a-z0-9']+", text.lower())


def build_question_model(
    network: keras.Model, vocabulary: Vocabulary, answers: Sequence[str]
) -> keras.Model:
    """Builds the softmax baseline: answers from pooled image features and a bag of words.

    Args:
        network: a classifier whose pooled feature maps are used; its layers are shared, its head is
            left out.
        vocabulary: of the questions.
        answers: what may be answered.

    Returns:
        A ``keras.Model`` with the inputs ``image`` (as the network takes it) and ``question``
        (N, V), and scores (N, answers). Its last layer's kernel has a slice of K rows for the image
        and one of V rows for the words. ``CAM`` explains it.

    Raises:
        ValueError: fewer than two answers, no word, or no feature maps.

    Source: Zhou et al., CVPR 2016, section 4.2, "Interpreting visual question answering"; the
    baseline is that of Zhou et al., "Simple baseline for visual question answering", 2015.
    """
    if len(answers) < 2 or not vocabulary.words:
        raise ValueError(
            f"{len(answers)} answers and {len(vocabulary.words)} words: at least two and one."
        )
    parts = dissect(network)
    if parts.graph.top_level_symbol(parts.feature_maps) is None:
        network = flattened(network)
        parts = dissect(network)
    maps = parts.graph.top_level_symbol(parts.feature_maps)
    image = (as_functional(network) or parts.graph.function).inputs[0]
    question = keras.Input((len(vocabulary.words),), name="question")
    pooled = keras.layers.GlobalAveragePooling2D(name="image_features")(maps)
    both = keras.layers.Concatenate(name="features")([pooled, question])
    scores = keras.layers.Dense(
        len(answers), activation="softmax", dtype="float32", name="answers"
    )(both)
    return keras.Model([image, question], scores, name="question_answering")


@dataclass(frozen=True)
class Answer:
    """An answer with what it rests on.

    Attributes:
        text: the answer.
        score: its probability.
        explanation: of the image, with the map of the answer.
        words: each known word of the question with what it adds to the answer's logit, the most
            important first.
        image_part: what the image adds to the logit, the mean of the map.
    """

    text: str
    score: float
    explanation: Explanation
    words: list[tuple[str, float]]
    image_part: float


class QuestionAnswering:
    """Answers questions about images, and says what each answer rests on.

    Args:
        model: of ``build_question_model``, trained.
        vocabulary: that it was built with.
        answers: that it was built with.

    Raises:
        ValueError: they do not belong together.
    """

    def __init__(self, model: keras.Model, vocabulary: Vocabulary, answers: Sequence[str]):
        self.model, self.vocabulary, self.answers = model, vocabulary, list(answers)
        self._image = model.inputs[0].name
        self._explain = CAM(model, input=self._image)
        kernel = model.get_layer("answers").kernel
        expected = self._channels + len(vocabulary.words), len(self.answers)
        if tuple(kernel.shape) != expected:
            raise ValueError(
                f"the model's kernel is {tuple(kernel.shape)}, and this vocabulary and these "
                f"answers need {expected}."
            )

    @property
    def _channels(self) -> int:
        return int(self._explain.anatomy.feature_maps.shape[-1])

    def __call__(self, image: np.ndarray, question: str, answer: str | None = None) -> Answer:
        """Answers one question about an image (H, W, channels), as the network takes it.

        Args:
            image: the image.
            question: in words.
            answer: explain this one. Default: the likeliest.

        Raises:
            ValueError: a question of unknown words only, or an unknown answer.
        """
        if answer is not None and answer not in self.answers:
            raise ValueError(
                f"{answer!r} is none of the answers.{did_you_mean(answer, self.answers)}"
            )
        bag = self.vocabulary.encode([question])
        classes = None if answer is None else [[self.answers.index(answer)]]
        result = self._explain(
            {self._image: np.asarray(image)[None], "question": bag}, classes
        ).numpy()
        chosen = int(result.class_ids[0, 0])
        weights = self.model.get_layer("answers").kernel.numpy()[self._channels :, chosen]
        words = [
            (word, float(weights[i] * bag[0, i]))
            for i, word in enumerate(self.vocabulary.words)
            if bag[0, i]
        ]
        return Answer(
            self.answers[chosen],
            float(result.scores[0, 0]),
            result,
            sorted(words, key=lambda pair: -pair[1]),
            float(result.maps[0, 0].mean()),
        )


KINDS = ("colour", "digit", "shape")
_COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 180, 60),
    "blue": (50, 80, 220),
    "yellow": (230, 210, 50),
}
_SHAPES = ("circle", "square", "triangle")
_QUESTIONS = {
    "colour": ("what color is the {shape}?", "which color does the {shape} have?"),
    "digit": ("what number is in the picture?", "which digit is there?"),
    "shape": ("what shape is in the picture?", "which kind of object is there?"),
}


@dataclass(frozen=True)
class QuestionScene:
    """A made-up picture with one coloured shape and one digit, whose places are known.

    Attributes:
        image: (S, S, 3) uint8.
        boxes: "shape" and "digit" -> relative box.
        answers: kind of question -> answer.
    """

    image: np.ndarray
    boxes: dict[str, np.ndarray]
    answers: dict[str, str]

    def question(self, kind: str, variant: int = 0) -> str:
        """A question of a kind."""
        return _QUESTIONS[kind][variant].format(shape=self.answers["shape"])

    def region(self, kind: str) -> np.ndarray:
        """The box of what the answer is about."""
        return self.boxes["digit" if kind == "digit" else "shape"]


def question_scenes(count: int, size: int = 64, seed: int = 0) -> list[QuestionScene]:
    """Makes pictures to ask about: a coloured shape and a white handwritten digit on noise.

    Args:
        count: how many.
        size: their side in pixels.
        seed: of all that is drawn. Digits of even and odd seeds are different ones.

    Raises:
        ImportError: scikit-learn, whose digits they are, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            'question_scenes needs scikit-learn: pip install "cam-tf[discovery]".'
        ) from error
    rng, digits = np.random.default_rng(seed), load_digits()
    return [_question_scene(rng, digits, size, seed % 2) for _ in range(count)]


def _question_scene(rng, digits, size: int, half: int) -> QuestionScene:
    picture = rng.uniform(20, 70, (size, size, 3))
    side = int(rng.uniform(0.25, 0.4) * size)
    cells = rng.permutation(4)[:2]
    places = [
        [
            cell // 2 * size // 2 + rng.integers(0, size // 2 - side + 1),
            cell % 2 * size // 2 + rng.integers(0, size // 2 - side + 1),
        ]
        for cell in cells
    ]
    colour, shape = rng.choice(list(_COLOURS)), rng.choice(_SHAPES)
    (y, x), (v, u) = places
    mask = np.zeros((size, size), np.uint8)
    if shape == "circle":
        cv2.circle(mask, (x + side // 2, y + side // 2), side // 2, 1, -1)
    elif shape == "square":
        mask[y : y + side, x : x + side] = 1
    else:
        corners = [[x, y + side - 1], [x + side - 1, y + side - 1], [x + side // 2, y]]
        cv2.fillPoly(mask, [np.int32(corners)], 1)
    picture[mask > 0] = _COLOURS[colour] + rng.normal(0, 8, 3)
    index = 2 * rng.integers(len(digits.images) // 2) + half
    digit = cv2.resize(digits.images[index] / 16, (side, side), interpolation=cv2.INTER_CUBIC)
    part = picture[v : v + side, u : u + side]
    part += np.clip(digit, 0, 1)[..., None] * (250 - part)
    box = np.float32([[y, x, y + side, x + side], [v, u, v + side, u + side]]) / size
    return QuestionScene(
        np.clip(picture, 0, 255).astype(np.uint8),
        {"shape": box[0], "digit": box[1]},
        {"colour": str(colour), "shape": str(shape), "digit": str(digits.target[index])},
    )
