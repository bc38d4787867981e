"""Question answering: literal kernels, the two slices, VQA's files, and a trained baseline."""

import json

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.discovery.questions import (
    KINDS,
    QuestionAnswering,
    Vocabulary,
    build_question_model,
    fit_answers,
    question_scenes,
    read_questions,
    score_on_scenes,
    train_on_scenes,
    write_question_data,
)

WORDS = Vocabulary(("color", "how", "many"))
ANSWERS = ("red", "two")


@pytest.fixture
def answering(tiny_model):
    model = build_question_model(tiny_model, WORDS, ANSWERS)
    kernel = np.float32([[1, 0], [0, 2], [3, -1], [0, 4], [0, 5]])  # red, green; color, how, many
    model.get_layer("answers").set_weights([kernel, np.float32([0.5, 0])])
    return QuestionAnswering(model, WORDS, ANSWERS)


def test_the_logit_is_the_sum_of_its_parts(answering, tiny_image):
    # red [[1, 2], [3, 4]], green [[0, 1], [0, 5]]
    found = answering(tiny_image[0], "Color?")
    assert found.text == "red"
    np.testing.assert_allclose(found.explanation.maps[0, 0], [[1, 2], [3, 4]])
    assert (found.words, found.image_part) == ([("color", 3.0)], 2.5)
    assert found.explanation.logits[0, 0] == pytest.approx(2.5 + 3 + 0.5)
    found = answering(tiny_image[0], "How many, many strange ones?")
    assert found.text == "two"
    assert found.words == [("many", 10.0), ("how", 4.0)]
    np.testing.assert_allclose(found.explanation.maps[0, 0], [[0, 2], [0, 10]])
    other = answering(tiny_image[0], "how many", answer="red")
    assert (other.text, other.words) == ("red", [("how", 0.0), ("many", 0.0)])


def test_what_is_refused(answering, tiny_image, tiny_model):
    with pytest.raises(ValueError, match=r"no word of the question.*many"):
        answering(tiny_image[0], "manny")
    with pytest.raises(ValueError, match="none of the answers"):
        answering(tiny_image[0], "how", "blue")
    with pytest.raises(ValueError, match="at least two and one"):
        build_question_model(tiny_model, WORDS, ["yes"])
    with pytest.raises(ValueError, match="this vocabulary"):
        QuestionAnswering(answering.model, Vocabulary(("how",)), ANSWERS)


def test_the_vocabulary():
    words = Vocabulary.of(["What is it?", "What's that, is it?", "is"], least=2)
    assert words.words == ("is", "it")
    np.testing.assert_array_equal(words.encode(["Is is IT 5"]), [[2, 1]])


def test_files_of_vqa(tmp_path):
    asked = [{"question_id": 7, "image_id": 3, "question": "how many?"}]
    (tmp_path / "q.json").write_text(json.dumps({"questions": asked}))
    answered = [{"question_id": 7, "multiple_choice_answer": "two", "answers": []}]
    (tmp_path / "a.json").write_text(json.dumps({"annotations": answered}))
    (found,) = read_questions(tmp_path / "q.json", tmp_path / "a.json")
    assert (found.image_id, found.text, found.answer) == (3, "how many?", "two")
    assert read_questions(tmp_path / "q.json")[0].answer is None
    for wrong in ({"annotations": []}, []):
        (tmp_path / "a.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="not questions and annotations of VQA v2"):
            read_questions(tmp_path / "q.json", tmp_path / "a.json")


def test_a_nested_network_is_flattened():
    inner_input = keras.Input((8, 8, 3))
    inner = keras.Model(inner_input, keras.layers.Conv2D(4, 3)(inner_input))
    nested = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            inner,
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    model = build_question_model(nested, WORDS, ANSWERS)
    found = QuestionAnswering(model, WORDS, ANSWERS)(np.ones((8, 8, 3)), "how many")
    assert found.explanation.maps.shape == (1, 1, 6, 6)


def test_made_up_data_are_in_the_format_of_vqa(tmp_path):
    scenes = question_scenes(4, seed=2)
    write_question_data(tmp_path, scenes)
    found = read_questions(tmp_path / "questions.json", tmp_path / "annotations.json")
    assert len(found) == 12
    assert (found[3].image_id, found[3].answer) == (2, scenes[1].answers["colour"])
    image = cam_tf.load_image(tmp_path / "images" / "scene_000000000002.png")
    np.testing.assert_array_equal(image, scenes[1].image)
    regions = json.loads((tmp_path / "regions.json").read_text())
    np.testing.assert_allclose(regions["21"], scenes[1].boxes["digit"])


def test_scenes_are_what_they_say():
    scenes = question_scenes(30, seed=1)
    again = question_scenes(30, seed=1)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))
    for scene in scenes:
        top, left, bottom, right = (scene.boxes["digit"] * 64).round().astype(int)
        digit = scene.image[top:bottom, left:right].min(-1)  # white alone is bright in all channels
        assert digit.max() > 180
        top, left, bottom, right = (scene.boxes["shape"] * 64).round().astype(int)
        pixel = scene.image[(top + bottom) // 2, (left + right) // 2].astype(int)
        brightest = {"red": [0], "green": [1], "blue": [2], "yellow": [0, 1]}
        assert pixel.argmax() in brightest[scene.answers["colour"]]
        assert scene.answers["shape"] in scene.question("colour")


@pytest.mark.slow
def test_the_baseline_learns_and_looks_where_the_answer_is():
    """Each kind of question is answered far above chance, and its map peaks at the right thing."""
    answering = train_on_scenes(question_scenes(3000, seed=0), epochs=21)
    results = score_on_scenes(answering, question_scenes(100, seed=1))
    assert set(results) == set(KINDS)
    for kind, least in {"colour": 0.9, "digit": 0.4, "shape": 0.6}.items():
        assert results[kind]["accuracy"] > least
        assert results[kind]["pointing"] > 4 * results[kind]["chance"]


def test_the_last_layer_alone(tiny_model, rng):
    """Answers that follow from one channel and one word are learnt on features taken once."""
    model = build_question_model(tiny_model, WORDS, ANSWERS)
    features = np.float32(rng.uniform(0, 9, (200, 2)))
    bags = np.eye(3, dtype=np.float32)[rng.integers(0, 3, 200)]
    truth = (features[:, 1] + 5 * bags[:, 2] > 6).astype(int)
    losses = fit_answers(model, features, bags, truth, epochs=150)
    assert losses[-1] < 0.5 * losses[0]
    kernel, bias = model.get_layer("answers").get_weights()
    found = (np.concatenate([features, bags], 1) @ kernel + bias).argmax(1)
    assert np.mean(found == truth) > 0.9
    with pytest.raises(ValueError, match="not of this model"):
        fit_answers(model, features[:, :1], bags, truth)
