"""Fine-grained crops, concepts by mining, and the text detector, on data with known truth."""

import json

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.discovery import PooledFeatures, attach
from cam_tf.discovery.concepts import average_precision, captioned, mine_concept
from cam_tf.discovery.fine_grained import fine_grained
from cam_tf.discovery.photos import cropped, prepared
from cam_tf.discovery.text import (
    TEXT_LAYER,
    TextDetector,
    fit_text_detector,
    render_text_scenes,
    score_text_boxes,
)


@pytest.fixture
def colours():
    """Feature maps that are the colours, each position one of 16x16 pixels' 4x4 blocks."""
    image = keras.Input((16, 16, 3))
    maps = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(image))
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    return keras.Model(image, keras.layers.Dense(2)(pooled))


def _bird(rng, channel):
    """A photo of 40x30 of noise with a square of a colour, and the square's box."""
    photo = rng.integers(0, 120, (30, 40, 3), np.uint8)
    photo[rng.integers(0, 30, 90), rng.integers(0, 40, 90)] = 255
    y, x = rng.integers(0, 20), rng.integers(0, 30)
    photo[y : y + 10, x : x + 10] = np.eye(3, dtype=np.uint8)[channel] * 255
    return photo, [y / 30, x / 40, (y + 10) / 30, (x + 10) / 40]


def test_fine_grained_rows(colours, rng):
    labels = [0, 1, 2] * 12
    photos, boxes = zip(*(_bird(rng, label) for label in labels), strict=True)
    told = []
    found = fine_grained(
        PooledFeatures(colours), photos, labels, np.array(boxes), splits=3, progress=told.append
    )
    assert len(found.whole.values) == len(found.cam_crop.values) == 3
    assert found.box_crop.mean == 1.0  # nothing but the colour is left
    assert found.cam_crop.mean > 0.8
    assert found.boxes.shape == (36, 4)
    assert sum(told) == (2 + 2 * 3) * 36
    inside = [
        box[0] <= (true[0] + true[2]) / 2 <= box[2] and box[1] <= (true[1] + true[3]) / 2 <= box[3]
        for box, true in zip(found.boxes, boxes, strict=True)
    ]
    assert np.mean(inside) > 0.8
    without = fine_grained(PooledFeatures(colours), photos[:24], labels[:24], splits=2, C=1.0)
    assert without.box_crop is None
    with pytest.raises(ValueError, match="as many labels"):
        fine_grained(PooledFeatures(colours), photos, labels[:-1])


def test_crops():
    photo = np.arange(12 * 10 * 3).reshape(12, 10, 3).astype(np.uint8)
    np.testing.assert_array_equal(cropped(photo, [0.25, 0.5, 0.5, 1]), photo[3:6, 5:])
    np.testing.assert_array_equal(cropped(photo, [0, 0, 0, 0]), photo)


def test_a_network_of_any_size_must_be_told(tiny_model):
    with pytest.raises(ValueError, match="any size"):
        prepared(PooledFeatures(tiny_model))


def test_mining_finds_the_hard_negatives(colours, rng):
    """Many images without the concept are far from it; a few look like it but for one colour."""
    take = PooledFeatures(colours)
    red = rng.integers(0, 120, (30, 16, 16, 3), np.uint8)
    red[:, 4:8, 8:12] = [255, 0, 0]
    easy = rng.integers(0, 120, (300, 16, 16, 3), np.uint8)
    orange = easy[:20].copy()
    orange[:, 4:8, 8:12] = [255, 200, 0]
    having, lacking = take(red), np.concatenate([take(easy), take(orange)])
    truth = [True] * 30 + [False] * 320
    values = {}
    for rounds in (0, 3):
        head = mine_concept(having, lacking, rounds=rounds, C=1.0, network=take.fingerprint())
        everything = np.concatenate([having, lacking])
        values[rounds] = head.decision(everything)[:, 0]
        assert head.classes == ("without", "with")
    assert average_precision(values[3], truth) > average_precision(values[0], truth) - 0.01
    assert average_precision(values[3], truth) > 0.9
    result = cam_tf.CAM(attach(colours, head))(red[:5].astype(np.float32), 0).numpy()
    assert all(np.unravel_index(one.argmax(), one.shape) == (1, 2) for one in result.maps[:, 0])


def test_average_precision_by_hand():
    assert average_precision([3, 2, 1], [True, False, True]) == pytest.approx((1 + 2 / 3) / 2)
    assert average_precision([1.0], [False]) == 0


def test_captions(tmp_path):
    file = tmp_path / "captions.json"
    data = {
        "images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(4)],
        "annotations": [
            {"image_id": 0, "caption": "A Red, umbrella on a beach"},
            {"image_id": 0, "caption": "someone"},
            {"image_id": 1, "caption": "a red car and an umbrella"},
            {"image_id": 2, "caption": "Umbrellas"},
        ],
    }
    file.write_text(json.dumps(data))
    found = captioned(file, "red umbrella")
    assert found.having == ["0.jpg"]
    assert found.lacking == ["1.jpg", "2.jpg"]  # image 3 has no caption
    with pytest.raises(ValueError, match=r"no caption.*umbrella"):
        captioned(file, "umbrela")
    with pytest.raises(ValueError, match="phrase is empty"):
        captioned(file, " ")
    file.write_text("[]")
    with pytest.raises(ValueError, match="no captions file of COCO"):
        captioned(file, "car")


def test_text_scenes_are_what_they_say(rng):
    backgrounds = [rng.integers(0, 255, (60, 90, 3), np.uint8)]
    scenes = render_text_scenes(backgrounds, 10, size=96, seed=1)
    again = render_text_scenes(backgrounds, 10, size=96, seed=1)
    assert all(np.array_equal(a.image, b.image) for a, b in zip(scenes, again, strict=True))
    assert [len(scene.boxes) > 0 for scene in scenes].count(True) >= 4
    assert all(len(scene.boxes) == 0 for scene in scenes[::2])
    for scene in scenes:
        assert scene.image.shape == (96, 96, 3)
        assert ((scene.boxes >= 0) & (scene.boxes <= 1)).all()
        assert (scene.boxes[:, 2:] > scene.boxes[:, :2]).all()
    with pytest.raises(ValueError, match="no background"):
        render_text_scenes([], 3)


def test_text_is_drawn_in_its_box():
    flat = [np.full((100, 100, 3), 128, np.uint8)]
    for scene in render_text_scenes(flat, 20, size=128, seed=3)[1::2]:
        far = np.abs(scene.image.astype(int) - 128).max(-1) > 45
        rows, columns = np.nonzero(far)
        inside = np.zeros(len(rows), bool)
        for top, left, bottom, right in scene.boxes * 128:
            inside |= (
                (rows >= top - 2)
                & (rows < bottom + 2)
                & (columns >= left - 2)
                & (columns < right + 2)
            )
        assert inside.mean() > 0.98


def test_scores_of_boxes_by_hand():
    truth = [np.float32([[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]), np.zeros((0, 4))]
    found = [np.float32([[0, 0, 0.5, 1.0]]), np.float32([[0, 0, 0.25, 0.25]])]
    scores = score_text_boxes(found, truth, 16)
    # boxes: 128 + 16 pixels, truth: 64 + 64, both: 64
    assert scores.pixel_precision == pytest.approx(64 / 144)
    assert scores.pixel_recall == pytest.approx(0.5)
    assert (scores.precision, scores.recall) == (0.5, 0.5)


def test_the_detector_finds_text_on_photos():
    """EfficientNet-Lite0's features, learnt from whole pictures, cover rendered text."""
    network = cam_tf.build_classifier("EfficientNetLite0", input_shape=(None, None, 3))
    backgrounds = [cam_tf.load_image(path) for path in cam_tf.demo_photos()]
    features = PooledFeatures(network, TEXT_LAYER)
    head = fit_text_detector(features, render_text_scenes(backgrounds, 160, seed=0), C=1e-3)
    test = render_text_scenes(backgrounds, 40, seed=9)
    right = (head.decision(features(np.stack([one.image for one in test])))[:, 0] > 0) == [
        len(one.boxes) > 0 for one in test
    ]
    assert np.mean(right) > 0.75
    detect = TextDetector(network, head, TEXT_LAYER)
    texts = [one for one in test if len(one.boxes)]
    scores = score_text_boxes([detect(one.image)[0] for one in texts], [o.boxes for o in texts])
    assert scores.pixel_recall > 0.5
    assert scores.pixel_precision > 2 * np.mean(
        [((o.boxes[:, 2] - o.boxes[:, 0]) * (o.boxes[:, 3] - o.boxes[:, 1])).sum() for o in texts]
    )
    plain = np.full((100, 150, 3), 90, np.uint8)
    assert detect.map(plain).max() < detect.map(texts[0].image).max()
