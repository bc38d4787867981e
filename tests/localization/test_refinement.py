"""Refinement: a blurred map takes the object's edges; what cannot be refined is left as it is."""

import cv2
import numpy as np
import pytest

import cam_tf
from cam_tf.localization.true_boxes import iou


@pytest.fixture
def disc():
    """A red disc on textured green (1, 96, 96, 3), a blurred and shifted map, and the true mask."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:96, :96]
    mask = (y - 40) ** 2 + (x - 52) ** 2 < 24**2
    image = rng.integers(0, 40, (96, 96, 3)).astype(np.uint8)
    image[..., 1] += 120
    image[mask] = rng.integers(150, 200, (mask.sum(), 3)) * [1, 0, 0]
    blurred = cv2.GaussianBlur(np.float32(np.roll(mask, 8, 1)), (0, 0), 14)
    return image[None], cv2.resize(blurred, (12, 12))[None, None] - 0.2, mask


def _box_error(maps, mask):
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    truth = np.float64([[rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]]) / 96
    return 1 - iou(cam_tf.boxes(maps, size=(96, 96))[0].astype(float), truth).max()


def test_the_box_becomes_the_objects(disc):
    image, coarse, mask = disc
    fine = cam_tf.refine(image, coarse, weight=1.0)
    assert fine.shape == (1, 1, 96, 96) and fine.dtype == np.float32
    assert _box_error(coarse, mask) > 0.15 and _box_error(fine, mask) < 0.05
    level, top = 0.2 * coarse.max(), coarse.max()
    inside, outside = fine[0, 0][mask], fine[0, 0][~mask]
    assert np.mean(np.isclose(inside, top, rtol=0.01)) > 0.97
    assert np.mean(np.isclose(outside, 2 * level - top, rtol=0.05)) > 0.97


def test_the_weight_and_the_threads(disc):
    image, coarse, _ = disc
    whole = cam_tf.refine(image, coarse, weight=1.0)
    stretched = cam_tf.refine(image, coarse, weight=0.0)
    np.testing.assert_allclose(stretched[0, 0], cv2.resize(coarse[0, 0], (96, 96)), atol=1e-6)
    part = cam_tf.refine(image, coarse, weight=0.25)
    np.testing.assert_allclose(part, 0.75 * stretched + 0.25 * whole, atol=1e-5)
    images, maps = np.repeat(image, 6, axis=0), np.repeat(coarse, 6, axis=0)
    many = cam_tf.refine(images.astype(np.float32), maps, workers=3)
    np.testing.assert_array_equal(many, np.repeat(cam_tf.refine(image, coarse, workers=1), 6, 0))


def test_images_of_several_sizes(disc):
    image, coarse, _ = disc
    small, large = image[0, :60], cv2.resize(image[0], (400, 200))
    found = cam_tf.refine([small, large], np.repeat(coarse, 2, axis=0))
    assert [one.shape for one in found] == [(1, 60, 96), (1, 79, 158)]


@pytest.mark.parametrize("value", [-1.0, 0.0, np.nan])
def test_maps_without_positive_evidence_are_only_stretched(disc, value):
    found = cam_tf.refine(disc[0], np.full((1, 2, 4, 4), value, np.float32))
    np.testing.assert_array_equal(found, np.full((1, 2, 96, 96), value))


def test_a_flat_positive_map_and_a_plain_image():
    white = np.full((1, 32, 32, 3), 255, np.uint8)
    flat = cam_tf.refine(white, np.ones((1, 1, 4, 4), np.float32))
    np.testing.assert_allclose(flat, 1)
    peak = np.zeros((1, 1, 4, 4), np.float32)
    peak[0, 0, 1, 1] = 1
    assert np.isfinite(cam_tf.refine(white, peak)).all()


def test_an_explanation_stays_one(tiny_model):
    images = np.random.default_rng(0).integers(0, 255, (2, 32, 24, 3)).astype(np.float32)
    explained = cam_tf.CAM(tiny_model)(images, top_k=2)
    found = cam_tf.refine(images, explained)
    assert found.maps.shape == (2, 2, 32, 24) and found.image_size == (32, 24)
    np.testing.assert_array_equal(found.class_ids, explained.class_ids)
    assert cam_tf.refine(images[:0], explained[:0]).maps.shape == explained[:0].maps.shape


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        ((1, 8, 8, 3), {"method": "grabcat"}, "'grabcut'"),
        ((2, 8, 8, 3), {}, "2 images and maps"),
        ((1, 8, 8, 1), {}, "not RGB"),
        ((1, 8, 8, 3), {"weight": 2}, "weight=2"),
        ((1, 8, 8, 3), {"threshold": 1}, "threshold=1"),
    ],
)
def test_errors(images, options, message):
    with pytest.raises(ValueError, match=message):
        cam_tf.refine(np.zeros(images), np.ones((1, 1, 2, 2)), **options)
