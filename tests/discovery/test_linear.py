"""Linear classifiers on pooled features, and the identity of their maps."""

import keras
import numpy as np
import pytest

import cam_tf
from cam_tf.discovery import PooledFeatures, attach, fit_linear, linear_accuracy


def _backbone():
    image = keras.Input((12, 12, 3))
    maps = keras.layers.Conv2D(6, 3, activation="relu")(image)
    return keras.Model(image, keras.layers.Conv2D(8, 3, activation="relu", name="last")(maps))


@pytest.fixture
def network():
    backbone = _backbone()
    pooled = keras.layers.GlobalAveragePooling2D()(backbone.output)
    return keras.Model(backbone.input, keras.layers.Dense(4, activation="softmax")(pooled))


@pytest.fixture
def nested():
    return keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            keras.layers.Rescaling(1 / 255),
            _backbone(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, activation="softmax"),
        ]
    )


@pytest.fixture
def coloured(rng):
    """Noise with a red, green or blue square, 20 of each."""
    images = rng.uniform(0, 40, (60, 12, 12, 3)).astype(np.float32)
    labels = np.repeat(["red", "green", "blue"], 20)
    for image, channel in zip(images, np.repeat([0, 1, 2], 20), strict=True):
        y, x = rng.integers(0, 7, 2)
        image[y : y + 5, x : x + 5, channel] = 255
    return images, labels


@pytest.mark.parametrize("kind", ["svm", "logistic"])
@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("model", ["network", "nested"])
def test_the_mean_of_a_map_and_the_bias_are_the_decision_value(
    request, coloured, kind, classes, model
):
    model = request.getfixturevalue(model)
    images, labels = (part[: 20 * classes] for part in coloured)
    take = PooledFeatures(model)
    features = take(images)
    head = fit_linear(features, labels, kind, folds=3, network=take.fingerprint())
    assert head.classes == tuple(sorted(set(labels)))
    assert head.weights.shape == (8, 1 if classes == 2 else 3)
    assert head.accuracy[0] > 0.9
    assert np.mean(head.predict(features) == labels) > 0.95
    attached = attach(model, head)
    result = cam_tf.CAM(attached)(images, classes="all").numpy()
    expected = head.decision(features)
    np.testing.assert_allclose(result.logits, expected, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(result.maps.mean((2, 3)) + head.bias, expected, rtol=1e-3, atol=1e-3)
    scores = attached.predict(images, verbose=0)
    if kind == "svm":
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-3)
    elif classes == 2:
        np.testing.assert_allclose(scores, 1 / (1 + np.exp(-expected)), atol=1e-4)
    else:
        np.testing.assert_allclose(scores.sum(1), 1, atol=1e-5)
    boxes = cam_tf.boxes(result)  # an attached model is like any other
    assert boxes.shape == (len(images), head.weights.shape[1], 4)


def test_attaching_leaves_the_network_alone(network, coloured, tmp_path):
    images, labels = coloured
    before = network.predict(images, verbose=0)
    attached = attach(network, fit_linear(PooledFeatures(network)(images), labels, C=0.01))
    np.testing.assert_array_equal(network.predict(images, verbose=0), before)
    attached.save(tmp_path / "new.keras")
    loaded = keras.models.load_model(tmp_path / "new.keras")
    np.testing.assert_allclose(
        loaded.predict(images, verbose=0), attached.predict(images, verbose=0), atol=1e-5
    )


def test_standardisation_is_folded_in(rng):
    features = rng.normal(size=(40, 3)) * [1, 1000, 0.001] + [5, -2000, 0]
    labels = (features[:, 1] > -2000).astype(int)
    head = fit_linear(features, labels, C=10.0)
    assert np.mean(head.predict(features) == labels) == 1
    assert head.cost == 10.0 and head.accuracy is None
    constant = np.concatenate([features, np.ones((40, 1))], 1)
    assert np.isfinite(fit_linear(constant, labels, C=1.0).weights).all()


def test_accuracy_over_splits_is_of_images_that_were_held_out(rng):
    labels = np.repeat([0, 1], 30)
    noise = rng.normal(size=(60, 200))  # 200 features separate any 60 images
    found = linear_accuracy(noise, labels, splits=5, C=1.0)
    assert len(found.values) == 5
    assert 0.25 < found.mean < 0.75
    assert found.spread == pytest.approx(np.std(found.values, ddof=1))
    assert np.mean(found.predictions == labels) == pytest.approx(found.mean)
    signal = noise.copy()
    signal[:, :50] += 5 * labels[:, None]
    assert linear_accuracy(signal, labels, splits=3).mean > 0.95
    assert linear_accuracy(signal, labels, (signal, labels), C=1.0).values == (1.0,)


def test_what_is_refused(network, coloured, rng):
    images, labels = coloured
    features = PooledFeatures(network)(images)
    with pytest.raises(ValueError, match="of one class"):
        fit_linear(features[:20], labels[:20])
    with pytest.raises(ValueError, match="'green' has 3 images, fewer than 5 folds"):
        fit_linear(features[:23], labels[:23])
    with pytest.raises(ValueError, match="do not fit"):
        fit_linear(features, labels[:-1])
    with pytest.raises(ValueError, match="NaN"):
        fit_linear(np.full_like(features, np.nan), labels)
    with pytest.raises(ValueError, match="'svm' or 'logistic'"):
        fit_linear(features, labels, "forest")
    with pytest.raises(ValueError, match="C=0"):
        fit_linear(features, labels, C=0)
    with pytest.raises(ValueError, match=r"classes that training has not: \['pink'\]"):
        linear_accuracy(features, labels, (features[:1], ["pink"]))
    head = fit_linear(features, labels, C=1.0, network=PooledFeatures(network).fingerprint())
    with pytest.raises(ValueError, match="of another network"):
        head.decision(features[:, :-1])
    keras.utils.set_random_seed(5)
    other = keras.models.clone_model(network)
    with pytest.raises(ValueError, match="another network than"):
        attach(other, head)
    small = fit_linear(rng.normal(size=(60, 5)), labels, C=1.0)
    with pytest.raises(ValueError, match=r"has 8 feature maps.*fitted on 5"):
        attach(network, small)
