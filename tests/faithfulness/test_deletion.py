"""Deletion and insertion: literal answers on a model of one pixel, and a slow reference."""

import keras
import numpy as np
import pytest

from cam_tf.faithfulness import Deletion, Insertion, Probabilities
from cam_tf.faithfulness.deletion import blur_kernel


def slow_curve(probability, start, finish, map_, steps):
    """The source's loop: some pixels after the other, one forward pass for each step."""
    order = np.argsort(-map_.ravel(), kind="stable")
    step = -(-map_.size // steps)
    image, curve = start.copy(), []
    for i in range(steps + 1):
        curve.append(probability(image))
        for pixel in order[step * i : step * (i + 1)]:
            y, x = divmod(pixel, map_.shape[1])
            image[y, x] = finish[y, x]
    curve = np.array(curve)
    return curve, (curve.sum() - curve[0] / 2 - curve[-1] / 2) / steps


def test_literal_curves_of_a_mean(linear_model):
    # p = mean of red; its pixels 0.8, 0.4, 0.2, 0.2 sum to 1.6, so p falls from 0.4.
    image = np.zeros((1, 2, 2, 3), np.float32)
    image[0, ..., 0] = [[0.8, 0.4], [0.2, 0.2]]
    metric = Deletion(steps=4, baseline=0)
    found = metric.update(Probabilities(linear_model), image, image[..., 0], [0])
    np.testing.assert_allclose(
        metric.curves()["deletion_curve"], [0.4, 0.2, 0.1, 0.05, 0], 1e-6, 1e-8
    )
    # (0.75 - 0.2 - 0) / 4
    np.testing.assert_allclose(found["deletion_auc"], [0.1375], 1e-6)
    assert metric.result() == pytest.approx({"deletion_auc": 0.1375})
    worst = Deletion(steps=4, baseline=0)
    worst.update(Probabilities(linear_model), image, -image[..., 0], [0])
    # The two equal pixels first: 0.4, 0.35, 0.3, 0.2, 0.
    assert worst.result()["deletion_auc"] == pytest.approx((1.25 - 0.2) / 4)


def test_literal_insertion_without_a_blur(linear_model):
    # A blur of one pixel is the image itself: the curve is flat.
    image = np.full((1, 2, 2, 3), 0.5, np.float32)
    metric = Insertion(steps=2, baseline=0, size=1)
    metric.update(Probabilities(linear_model), image, image[..., 0], [0])
    np.testing.assert_allclose(metric.curves()["insertion_curve"], [0.5, 0.5, 0.5], 1e-6)
    assert metric.result()["insertion_auc"] == pytest.approx(0.5)


def test_the_last_step_takes_what_is_left(linear_model):
    # 4 pixels in 3 steps: 2, 2, 0, as the source counts them.
    image = np.ones((1, 2, 2, 3), np.float32)
    metric = Deletion(steps=3, baseline=0)
    metric.update(Probabilities(linear_model), image, image[..., 0], [0])
    np.testing.assert_allclose(metric.curves()["deletion_curve"], [1, 0.5, 0, 0], 1e-6, 1e-8)


@pytest.mark.parametrize("kind", [Deletion, Insertion])
def test_agrees_with_the_slow_reference(kind, rng, small_model):
    images = rng.uniform(0, 255, (3, 12, 10, 3)).astype(np.float32)
    maps, class_ids = rng.normal(size=(3, 12, 10)), [2, 0, 1]
    colour = np.float32([120, 110, 100])
    metric = kind(steps=7, baseline=colour)
    found = metric.update(Probabilities(small_model, batch_size=2), images, maps, class_ids)
    (name,) = found
    areas, curves = [], []
    for image, map_, class_id in zip(images, maps, class_ids, strict=True):
        other = np.broadcast_to(colour, image.shape)
        start, finish = image, other
        if kind is Insertion:
            start, finish = slow_blur(image, colour), image
        curve, area = slow_curve(
            lambda one, c=class_id: float(small_model(one[None])[0, c]), start, finish, map_, 7
        )
        curves.append(curve)
        areas.append(area)
    np.testing.assert_allclose(found[name], areas, atol=2e-6)
    (curve,) = metric.curves().values()
    np.testing.assert_allclose(curve, np.mean(curves, axis=0), atol=2e-6)


def slow_blur(image, colour):
    """A convolution by the source's kernel of 11 x 11, with zeros (the colour) around."""
    kernel = np.outer(blur_kernel(11, 5), blur_kernel(11, 5))
    padded = np.pad(image - colour, ((5, 5), (5, 5), (0, 0)))
    found = np.empty_like(image)
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            window = padded[y : y + 11, x : x + 11]
            found[y, x] = (window * kernel[..., None]).sum(axis=(0, 1)) + colour
    return found


def test_the_kernel_is_the_source_s():
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.zeros((11, 11))
    impulse[5, 5] = 1
    line = blur_kernel(11, 5)
    np.testing.assert_allclose(np.outer(line, line), ndimage.gaussian_filter(impulse, 5), atol=1e-8)
    assert line.sum() == pytest.approx(1)


def test_streams_merges_and_is_stored(rng, small_model):
    images = rng.uniform(0, 255, (5, 8, 8, 3)).astype(np.float32)
    maps, class_ids = rng.normal(size=(5, 4, 4)), [0, 1, 2, 0, 1]
    probabilities = Probabilities(small_model)
    whole, first, second = (Deletion(steps=4) for _ in range(3))
    whole.update(probabilities, images, maps, class_ids)
    first.update(probabilities, images[:2], maps[:2], class_ids[:2])
    second.update(probabilities, images[2:], maps[2:], class_ids[2:])
    first.merge(Deletion.from_state(second.state()))
    assert first.images == 5
    assert first.result() == pytest.approx(whole.result(), abs=1e-6)
    with pytest.raises(ValueError, match="not merged"):
        first.merge(Deletion(steps=5))


def test_takes_explanations_and_maps_with_a_class_axis(rng, small_model):
    import cam_tf

    images = rng.uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    explained = cam_tf.CAM(small_model)(images, [1, 0])
    results = []
    for maps in (explained, explained.maps, np.asarray(explained.maps)[:, 0]):
        metric = Deletion(steps=4)
        metric.update(Probabilities(small_model), images, maps, [1, 0])
        results.append(metric.result()["deletion_auc"])
    assert results[0] == results[1] == results[2]


def test_says_what_is_wrong(rng, small_model):
    probabilities, images = Probabilities(small_model), np.zeros((2, 8, 8, 3))
    maps = np.zeros((2, 4, 4))
    with pytest.raises(ValueError, match="at least 1; the source takes 28"):
        Deletion(steps=0)
    with pytest.raises(ValueError, match="one for each channel"):
        Deletion(baseline=[[1, 2]])
    with pytest.raises(ValueError, match="odd size"):
        Insertion(size=10)
    with pytest.raises(ValueError, match="colour of 2 channels"):
        Deletion(baseline=(1, 2)).update(probabilities, images, maps, [0, 1])
    with pytest.raises(ValueError, match="each image one map and one class"):
        Deletion().update(probabilities, images, maps[:1], [0, 1])
    with pytest.raises(ValueError, match=r"the model has 0\.\.2"):
        Deletion().update(probabilities, images, maps, [0, 3])
    with pytest.raises(ValueError, match="NaN or infinity"):
        Deletion().update(probabilities, images, maps * np.nan, [0, 1])
    with pytest.raises(ValueError, match=r"takes images .* got \(8, 8, 3\)"):
        Deletion().update(probabilities, images[0], maps, [0, 1])
    with pytest.raises(ValueError, match="no result of no images"):
        Deletion().result()


def test_probabilities_of_logits_and_of_whole_numbers(rng):
    image = keras.Input((4, 4, 3), dtype="uint8")
    maps = keras.layers.Conv2D(2, 1)(keras.layers.Rescaling(1 / 255)(image))
    logits = keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(maps))
    model = keras.Model(image, logits)
    images = rng.integers(0, 256, (3, 4, 4, 3)).astype(np.uint8)
    expected = keras.ops.softmax(model(images)).numpy()
    probabilities = Probabilities(model)
    np.testing.assert_allclose(probabilities.of(np.float32(images)), expected, atol=1e-6)
    assert probabilities.predicted(images).tolist() == expected.argmax(axis=1).tolist()
