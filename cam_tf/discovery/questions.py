"""Visual question answering by a bag of words and image features, and what its answers rest on."""

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import keras
import numpy as np
from PIL import Image

from cam_tf.files import written_whole
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
            f"{questions} and {annotations} are not questions and annotations of VQA v2: {error!r}."
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


def fit_answers(
    model: keras.Model,
    features: np.ndarray,
    bags: np.ndarray,
    answer_ids: np.ndarray,
    *,
    epochs: int = 30,
    seed: int = 0,
) -> list[float]:
    """Trains the last layer alone, on image features that were taken once.

    Args:
        model: of ``build_question_model``; its last layer is given the weights.
        features: (N, K), ``PooledFeatures`` of its network.
        bags: (N, V), ``Vocabulary.encode``.
        answer_ids: (N,) the answers by their ids.
        epochs: passes over the questions.
        seed: of the order.

    Returns:
        The mean loss of each epoch.

    Raises:
        ValueError: features or bags of another size than the model's.
    """
    dense = model.get_layer("answers")
    both = np.concatenate([features, bags], 1).astype(np.float32)
    if both.shape[1] != dense.kernel.shape[0]:
        raise ValueError(
            f"features {np.shape(features)} and bags {np.shape(bags)} are not of this model, whose "
            f"kernel has {dense.kernel.shape[0]} rows."
        )
    mean, scale = both.mean(0), both.std(0) + 1e-3  # learnt on one scale, folded into the weights
    keras.utils.set_random_seed(seed)
    head = keras.Sequential([keras.Input(both.shape[1:]), keras.layers.Dense(dense.units)])
    head.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    history = head.fit((both - mean) / scale, answer_ids, batch_size=64, epochs=epochs, verbose=0)
    kernel, bias = head.get_weights()
    kernel /= scale[:, None]
    dense.set_weights([kernel, bias - mean @ kernel])
    return history.history["loss"]


def small_network(size: int = 64, width: int = 32) -> keras.Model:
    """A small classifier to begin with, of no weights worth having: maps of stride 8."""
    layers = keras.layers
    image = keras.Input((size, size, 3), name="image")
    maps = layers.Rescaling(1 / 127.5, -1.0)(image)
    for block, units in enumerate((width, 2 * width, 4 * width, 4 * width)):
        stride = 2 if block < 3 else 1
        maps = layers.Conv2D(units, 3, stride, padding="same", use_bias=False)(maps)
        maps = layers.ReLU()(layers.BatchNormalization()(maps))
    return keras.Model(image, layers.Dense(2)(layers.GlobalAveragePooling2D()(maps)))


def train_on_scenes(
    scenes: Sequence["QuestionScene"],
    *,
    epochs: int = 20,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> "QuestionAnswering":
    """Trains the baseline, its network included, on made-up scenes.

    In each epoch every scene is asked one question of each kind in turn.

    Args:
        scenes: of ``question_scenes``.
        epochs: passes over the scenes.
        seed: of the weights and the order.
        progress: is told 1 after each epoch.
    """
    keras.utils.set_random_seed(seed)
    size = len(scenes[0].image)
    texts = [scene.question(kind, v) for scene in scenes for kind in KINDS for v in (0, 1)]
    vocabulary = Vocabulary.of(texts)
    answers = sorted({one for scene in scenes for one in scene.answers.values()})
    model = build_question_model(small_network(size), vocabulary, answers)
    steps = epochs * -(-len(scenes) // 64)
    schedule = keras.optimizers.schedules.CosineDecay(0.003, steps)
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    images = np.stack([scene.image for scene in scenes])
    rng = np.random.default_rng(seed)
    for epoch in range(epochs):
        kinds = [KINDS[(i + epoch) % len(KINDS)] for i in range(len(scenes))]
        asked = [
            scene.question(kind, rng.integers(2)) for scene, kind in zip(scenes, kinds, strict=True)
        ]
        ids = np.array(
            [answers.index(scene.answers[kind]) for scene, kind in zip(scenes, kinds, strict=True)]
        )
        model.fit([images, vocabulary.encode(asked)], ids, batch_size=64, epochs=1, verbose=0)
        if progress is not None:
            progress(1)
    return QuestionAnswering(model, vocabulary, answers)


def score_on_scenes(
    answering: "QuestionAnswering", scenes: Sequence["QuestionScene"]
) -> dict[str, dict[str, float]]:
    """The accuracy of the answers, and of their maps, by kind of question.

    Returns:
        kind -> ``accuracy``; ``pointing``: the share of maps of true answers whose maximum is in
        the region that the question is about; ``chance``: the mean share of the image that this
        region covers.
    """
    found = {}
    for kind in KINDS:
        right, pointing, chance = [], [], []
        for scene in scenes:
            text, truth, box = scene.question(kind), scene.answers[kind], scene.region(kind)
            right.append(answering(scene.image, text).text == truth)
            (raw,) = answering(scene.image, text, truth).explanation.maps[0]
            y, x = (np.unravel_index(raw.argmax(), raw.shape) + np.array(0.5)) / raw.shape
            pointing.append(box[0] <= y <= box[2] and box[1] <= x <= box[3])
            chance.append((box[2] - box[0]) * (box[3] - box[1]))
        found[kind] = {
            "accuracy": float(np.mean(right)),
            "pointing": float(np.mean(pointing)),
            "chance": float(np.mean(chance)),
        }
    return found


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


def write_question_data(folder: str | os.PathLike, scenes: Sequence[QuestionScene]) -> None:
    """Writes made-up scenes in the format of VQA v2, with the regions that answers are about.

    ``images/scene_000000000001.png``, ..., ``questions.json``, ``annotations.json``, and
    ``regions.json``: question id -> relative box.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    questions, annotations, regions = [], [], {}
    for image_id, scene in enumerate(scenes, start=1):
        with written_whole(folder / "images" / f"scene_{image_id:012}.png") as file:
            Image.fromarray(scene.image).save(file, format="PNG")
        for k, kind in enumerate(KINDS):
            known = {"image_id": image_id, "question_id": 10 * image_id + k}
            questions.append({**known, "question": scene.question(kind)})
            answer = {"answer": scene.answers[kind], "answer_confidence": "yes", "answer_id": 1}
            about = {"multiple_choice_answer": scene.answers[kind], "answers": [answer]}
            annotations.append({**known, **about, "question_type": kind})
            regions[known["question_id"]] = scene.region(kind).tolist()
    for name, data in (
        ("questions", {"questions": questions}),
        ("annotations", {"annotations": annotations}),
        ("regions", regions),
    ):
        with written_whole(folder / f"{name}.json") as file:
            file.write(json.dumps(data).encode())
