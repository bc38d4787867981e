"""Imputation and ROAD: literal answers, and a direct solution of the source's equations."""

import numpy as np
import pytest

from cam_tf.faithfulness import ROAD, Probabilities, impute

DIRECT, DIAGONAL = 2, 1  # 1/6 and 1/12


def slow_impute(image, removed):
    """Solves the dense system: each removed pixel is the weighted mean of its neighbours."""
    height, width = removed.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    system, right = np.eye(len(places)), image.reshape(len(places), -1).astype(float)
    for i, (y, x) in enumerate(places):
        if not removed[y, x]:
            continue
        weights = {
            (y + dy) * width + x + dx: DIRECT if 0 in (dy, dx) else DIAGONAL
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if (dy, dx) != (0, 0) and 0 <= y + dy < height and 0 <= x + dx < width
        }
        right[i] = 0
        for j, weight in weights.items():
            system[i, j] = -weight / sum(weights.values())
    return np.linalg.solve(system, right).reshape(image.shape)


def test_one_removed_pixel_is_the_mean_of_its_neighbours():
    image = np.arange(9, dtype=np.float32).reshape(1, 3, 3, 1) ** 2
    removed = np.zeros((1, 3, 3), bool)
    removed[0, 1, 1] = True
    found = impute(image, removed).numpy()
    expected = (1 + 9 + 25 + 49) / 6 + (0 + 4 + 36 + 64) / 12
    assert found[0, 1, 1, 0] == pytest.approx(expected, abs=0.01)
    np.testing.assert_array_equal(found[~removed], image[~removed])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_agrees_with_the_direct_solution(rng, share):
    images = rng.uniform(0, 255, (3, 20, 18, 3)).astype(np.float32)
    removed = rng.uniform(size=(3, 20, 18)) < share
    found = impute(images, removed).numpy()
    for one, image, gone in zip(found, images, removed, strict=True):
        np.testing.assert_allclose(one, slow_impute(image, gone), atol=0.01 * 255)
        np.testing.assert_array_equal(one[~gone], image[~gone])


def test_what_is_solved_waits_for_the_others(rng):
    images = np.full((3, 40, 40, 3), 7, np.float32)
    images[1] = rng.uniform(0, 255, (40, 40, 3))
    removed = rng.uniform(size=(3, 40, 40)) < 0.9
    found = impute(images, removed).numpy()
    np.testing.assert_allclose(found[[0, 2]], 7, atol=1e-3)
    alone = impute(images[1:2], removed[1:2]).numpy()
    np.testing.assert_allclose(found[1:2], alone, atol=1e-3)


def test_noise_is_added_to_what_was_removed(rng):
    images = np.full((2, 8, 8, 3), 7, np.float32)
    removed = rng.uniform(size=(2, 8, 8)) < 0.5
    np.testing.assert_allclose(impute(images, removed), images, atol=1e-3)
    noise = rng.normal(size=images.shape).astype(np.float32)
    expected = np.where(removed[..., None], images + noise, images)
    np.testing.assert_allclose(impute(images, removed, noise), expected, atol=1e-3)


def test_literal_answers(linear_model):
    image = np.zeros((1, 2, 2, 3), np.float32)
    image[0, ..., 0] = [[0.8, 0.4], [0.2, 0.2]]
    metric = ROAD(percentiles=[25], noise=0)
    metric.update(Probabilities(linear_model), image, image[..., 0], [0])
    found = metric.result()
    # 0.8 becomes (2 * 0.4 + 2 * 0.2 + 0.2) / 5 = 0.28, and p = 1.08 / 4.
    assert found["road_morf"] == pytest.approx(0.27, abs=1e-3)
    # The last 0.2, of the two equals, becomes (2 * 0.4 + 2 * 0.2 + 0.8) / 5 = 0.4.
    assert found["road_lerf"] == pytest.approx(0.45, abs=1e-3)
    assert found["road_combined"] == pytest.approx(0.09, abs=1e-3)
    assert found["road_combined_accuracy"] == 0  # it stays class 0: green is 0


def test_agrees_with_the_slow_reference(rng, small_model):
    images = rng.uniform(0, 255, (3, 10, 10, 3)).astype(np.float32)
    maps, class_ids, percentiles = rng.normal(size=(3, 10, 10)), [2, 0, 1], [20, 50, 80]
    metric = ROAD(percentiles, noise=0)
    metric.update(Probabilities(small_model, batch_size=2), images, maps, class_ids)
    curves = {name: np.zeros(3) for name in ("morf", "lerf", "morf_accuracy", "lerf_accuracy")}
    for image, map_, class_id in zip(images, maps, class_ids, strict=True):
        order = np.argsort(-map_.ravel(), kind="stable")
        for i, percentile in enumerate(percentiles):
            for name, first in (("morf", order), ("lerf", order[::-1])):
                removed = np.zeros(100, bool)
                removed[first[:percentile]] = True
                seen = slow_impute(image, removed.reshape(10, 10)).astype(np.float32)
                scores = small_model(seen[None])[0].numpy()
                curves[name][i] += scores[class_id] / 3
                curves[f"{name}_accuracy"][i] += (scores.argmax() == class_id) / 3
    for name, curve in metric.curves().items():
        np.testing.assert_allclose(curve, curves[name], atol=2e-3)
    combined = (curves["lerf"] - curves["morf"]).mean() / 2
    assert metric.result()["road_combined"] == pytest.approx(combined, abs=2e-3)


def test_noise_has_a_seed(rng, small_model):
    images = rng.uniform(0, 255, (2, 8, 8, 3)).astype(np.float32)
    maps = rng.normal(size=(2, 8, 8))
    found = []
    for seed in (0, 0, 1):
        metric = ROAD([50], noise=0.2, seed=seed)
        metric.update(Probabilities(small_model), images, maps, [0, 1])
        found.append(metric.result()["road_morf"])
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize(
    "settings",
    [{"percentiles": []}, {"percentiles": [0]}, {"percentiles": [100]}, {"noise": -1}],
)
def test_says_what_is_wrong(settings):
    with pytest.raises(ValueError, match="give percentiles between 0 and 100"):
        ROAD(**settings)
