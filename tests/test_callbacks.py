"""The callback writes what the metrics say of the live weights."""

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.callbacks import LocalizationCallback
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
