"""The callbacks write what the metrics say of the live weights, and draw what they look at."""

import sys
from functools import partial

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.callbacks import CAMCallback, LocalizationCallback
from cam_tf.localization.max_box_acc import MaxBoxAcc
from cam_tf.localization.score_maps import score_maps

NAMES = ["maxboxacc", "maxboxaccv2", "gt_known", "top1_error"]


@pytest.fixture
def photos():
    """Three photos with a bright red, green and red square; class 0 is red, class 1 is green."""
    images, squares = np.zeros((3, 32, 32, 3), np.float32), [(4, 4), (16, 8), (8, 16)]
    for image, (y, x), channel in zip(images, squares, (0, 1, 0), strict=True):
        image[y : y + 12, x : x + 12, channel] = 9
    boxes = [np.array([[y, x, y + 12, x + 12]]) / 32 for y, x in squares]
    return images, np.array([0, 1, 0]), boxes


def test_literal_figures(tiny_model, photos):
    callback = LocalizationCallback(*photos, batch_size=2)
    callback.set_model(tiny_model)
    callback.on_train_begin()
    logs = {"loss": 1.0}
    callback.on_epoch_end(0, logs)
    assert logs.pop("loss") == 1
    # Red is class 0 or 2 by the bias of 0 against -1; both are right, as every map is its square.
    assert logs == {f"val_loc_{name}": 1 - ("error" in name) for name in NAMES}


def test_the_threshold_of_the_boxes(tiny_model, photos):
    """The whole image has a faint evidence of a tenth: at 5 % the box is the image."""
    images, labels, boxes = photos
    images = np.where(images == images.max(axis=-1, keepdims=True), images, 0)
    images[..., :2] = np.maximum(images[..., :2], 0.9)
    for threshold, known in ((0.05, 0.0), (0.2, 1.0)):
        callback = LocalizationCallback(images, labels, boxes, threshold=threshold)
        callback.set_model(tiny_model)
        callback.on_train_begin()
        assert callback.measure()["val_loc_gt_known"] == known


def test_the_figures_are_of_the_live_weights_and_equal_the_metrics(tiny_model, photos):
    images, labels, boxes = photos
    tiny_model.compile("sgd", "sparse_categorical_crossentropy")
    sizes = np.tile([64, 48], (3, 1))
    callback = LocalizationCallback(images, labels, boxes, image_sizes=sizes)
    history = tiny_model.fit(images, labels, epochs=2, callbacks=[callback], verbose=0).history
    metric = MaxBoxAcc()
    metric.update(score_maps(cam_tf.CAM(tiny_model)(images, labels))[:, 0], boxes, sizes)
    assert history["val_loc_maxboxaccv2"][-1] == metric.result()["maxboxaccv2"]
    assert {f"val_loc_{name}" for name in NAMES} < set(history)

    kernel, bias = tiny_model.get_layer("scores").get_weights()
    tiny_model.get_layer("scores").set_weights([-kernel, bias])  # evidence against the square
    assert callback.measure()["val_loc_gt_known"] == 0


def test_every_so_many_epochs_and_the_last(tiny_model, photos):
    images, labels, _ = photos
    tiny_model.compile("sgd", "sparse_categorical_crossentropy")
    callback = LocalizationCallback(*photos, every=3, explainer=cam_tf.GradCAM)
    epochs = []
    spy = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epochs.append(epoch) if "val_loc_gt_known" in logs else 0
    )
    tiny_model.fit(images, labels, epochs=6, callbacks=[callback, spy], verbose=0)
    assert epochs == [0, 3, 5]


def test_top_five_from_five_classes_on(photos):
    model = cam_tf.build_classifier("MobileNetV2", classes=6, weights=None, input_shape=(32, 32, 3))
    callback = LocalizationCallback(*photos)
    callback.set_model(model)
    callback.on_train_begin()
    found = callback.measure()
    assert set(found) == {f"val_loc_{name}" for name in [*NAMES, "top5_error"]}
    assert found["val_loc_top5_error"] <= found["val_loc_top1_error"]


def test_what_does_not_fit(photos):
    images, labels, boxes = photos
    with pytest.raises(ValueError, match="not one class for each of 3"):
        LocalizationCallback(images, labels[:2], boxes)
    with pytest.raises(ValueError, match="true boxes of 2 images were given for 3"):
        LocalizationCallback(images, labels, boxes[:2])
    with pytest.raises(ValueError, match="image_sizes of shape"):
        LocalizationCallback(images, labels, boxes, image_sizes=[[4, 4]])
    with pytest.raises(ValueError, match="use at least 1"):
        LocalizationCallback(images, labels, boxes, every=0)


@pytest.fixture
def compiled(tiny_model):
    tiny_model.compile(keras.optimizers.SGD(0.01), "sparse_categorical_crossentropy")
    return tiny_model


def _titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]


def _ready(callback, model):
    callback.set_model(model)
    callback.on_train_begin()
    return callback


def test_the_sheet_shows_the_live_weights(tiny_model, photos, tmp_path):
    images, names = photos[0], ["red", "green", "both"]
    callback = _ready(CAMCallback(images, directory=tmp_path, class_names=names), tiny_model)
    # A square of 12 x 12 in 32 x 32 with the value 9: a mean of 1.265625 in its channel.
    red, green = np.float32([1.265625, 0.5, 0.265625]), np.float32([0, 3.03125, -2.265625])
    shares = [np.exp(one).max() / np.exp(one).sum() for one in (red, green)]
    first, second = f"red  {100 * shares[0]:.1f} %", f"green  {100 * shares[1]:.1f} %"
    assert _titles(callback.draw()) == [first, second, first]
    kernel, bias = tiny_model.get_layer("scores").get_weights()
    tiny_model.get_layer("scores").set_weights([kernel, bias + np.float32([50, 0, 0])])
    sure = "red  100.0 %"
    assert _titles(callback.draw()) == [sure, f"{sure}\nflat map", sure]  # no red in the second


def test_the_sheet_of_given_classes(tiny_model, photos, tmp_path):
    callback = CAMCallback(photos[0], [2, 1, 2], directory=tmp_path, explainer=cam_tf.GradCAM)
    figure = _ready(callback, tiny_model).draw("epoch 7")
    assert [title.split("  ")[0] for title in _titles(figure)] == ["class 2", "class 1", "class 2"]
    assert "epoch 7" in [text.get_text() for text in figure.texts]


def test_a_picture_after_its_epochs(compiled, photos, tmp_path):
    images, labels, _ = photos
    callback = CAMCallback(images, labels, every=3, directory=tmp_path / "new" / "maps")
    compiled.fit(images, labels, epochs=5, callbacks=[callback], verbose=0)
    names = ["epoch_0001.png", "epoch_0004.png", "epoch_0005.png"]
    assert sorted(path.name for path in (tmp_path / "new" / "maps").iterdir()) == names
    sheet = cam_tf.load_image(tmp_path / "new" / "maps" / names[0])
    assert (np.ptp(sheet.astype(int), axis=-1) > 60).mean() > 0.01  # the squares' colours


def test_a_resumed_run_draws_no_epoch_twice(compiled, photos, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    images, labels, _ = photos
    places = {"directory": tmp_path / "maps", "log_dir": tmp_path / "logs"}
    for start, end in [(0, 3), (1, 4)]:  # killed in the third epoch, resumed after the first
        callback = CAMCallback(images, labels, **places)
        compiled.fit(
            images, labels, initial_epoch=start, epochs=end, callbacks=[callback], verbose=0
        )
    assert len(list((tmp_path / "maps").iterdir())) == 4
    events = accumulator.EventAccumulator(str(tmp_path / "logs" / "cam"))
    events.Reload()
    found = events.Tensors("cam")
    assert [one.step for one in found] == [0, 1, 2, 3]
    for one in found:
        picture = cam_tf.load_image(one.tensor_proto.string_val[2])
        written = cam_tf.load_image(tmp_path / "maps" / f"epoch_{one.step + 1:04d}.png")
        np.testing.assert_array_equal(picture, written)


@pytest.mark.parametrize(("weight", "says"), [(0.0, "flat map"), (np.nan, "map not finite")])
def test_a_map_that_cannot_be_drawn_stops_nothing(weight, says, compiled, photos, tmp_path):
    images, labels, _ = photos
    compiled.get_layer("maps").set_weights([np.full((1, 1, 3, 2), weight, np.float32)])
    compiled.get_layer("maps").trainable = False
    callback = CAMCallback(images, labels, directory=tmp_path)
    compiled.fit(images, labels, epochs=1, callbacks=[callback], verbose=0)
    assert (tmp_path / "epoch_0001.png").is_file()
    assert [title.splitlines()[-1] for title in _titles(callback.draw())] == [says] * 3


def test_a_model_with_its_preprocessing_outside(compiled, photos, tmp_path):
    images, labels, _ = photos
    scaled = images / 127.5 - 1
    with pytest.raises(ValueError, match=r"photo 0 cannot be drawn on: .* into photos="):
        CAMCallback(scaled, directory=tmp_path)
    with pytest.raises(ValueError, match=r"Repeat the gray channel.* into photos="):
        CAMCallback(images[..., :1], directory=tmp_path)
    with pytest.raises(ValueError, match="has no photos"):
        CAMCallback({"image": images}, directory=tmp_path)
    large = [np.full((40, 60, 3), 200, np.uint8), *images.astype(np.uint8)[1:]]
    callback = CAMCallback(scaled, labels, photos=large, directory=tmp_path)
    assert len(_titles(_ready(callback, compiled).draw())) == 3


def test_a_model_of_two_inputs(tiny_model, photos, tmp_path):
    image, gain = tiny_model.input, keras.Input((1,), name="gain")
    model = keras.Model([image, gain], keras.layers.Multiply()([tiny_model(image), gain]))
    given = {"image": photos[0], "gain": np.float32([[1], [2], [3]])}
    callback = CAMCallback(
        given,
        photos=photos[0],
        directory=tmp_path,
        explainer=partial(cam_tf.GradCAM, input="image"),
    )
    assert len(_titles(_ready(callback, model).draw())) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"class_ids": [0, 1, 3]}, "3"),
        ({"class_names": ["red"]}, "class_names has 1 names"),
        ({"photos": np.full((2, 8, 8, 3), 9.0)}, "2 photos do not go with 3"),
        ({"images": np.full((3, 8, 8, 4), 9.0), "photos": np.full((3, 8, 8, 3), 9.0)}, "takes"),
    ],
)
def test_what_does_not_fit_is_said_before_training(wrong, message, compiled, photos, tmp_path):
    images, labels, _ = photos
    before = compiled.get_weights()
    callback = CAMCallback(**{"images": images, "directory": tmp_path / "maps", **wrong})
    with pytest.raises(ValueError, match=message):
        compiled.fit(images, labels, callbacks=[callback], verbose=0)
    assert not (tmp_path / "maps").exists()
    for one, other in zip(before, compiled.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_model_without_class_activation_maps_is_said_before_training(photos, tmp_path):
    images, labels, _ = photos
    layers = keras.layers.Conv2D(2, 3), keras.layers.Flatten(), keras.layers.Dense(8, "relu")
    model = keras.Sequential([keras.Input((32, 32, 3)), *layers, keras.layers.Dense(3, "softmax")])
    model.compile("sgd", "sparse_categorical_crossentropy")
    ended = []
    spy = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: ended.append(epoch))
    with pytest.raises(ValueError, match=r"cam_tf\.GradCAM"):
        callback = CAMCallback(images, directory=tmp_path)
        model.fit(images, labels, callbacks=[spy, callback], verbose=0)
    assert not ended
    callback = CAMCallback(images, directory=tmp_path, explainer=cam_tf.GradCAM)
    model.fit(images, labels, callbacks=[spy, callback], verbose=0)
    assert ended == [0]


def test_a_callback_with_nowhere_to_draw(photos, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"directory=, log_dir= or both"):
        CAMCallback(photos[0])
    with pytest.raises(ValueError, match="not one class for each of 3"):
        CAMCallback(photos[0], [0, 1], directory=tmp_path)
    with pytest.raises(ValueError, match="use at least 1"):
        CAMCallback(photos[0], directory=tmp_path, every=0)
    monkeypatch.setitem(sys.modules, "tensorboard", None)  # as if it were not installed
    with pytest.raises(ImportError, match=r'pip install "cam-tf\[train\]"'):
        CAMCallback(photos[0], log_dir=tmp_path)
    CAMCallback(photos[0], directory=tmp_path)
