"""Every method against its formula in float64 NumPy, and against the identities of the theory.

The reference below shares no code with the package: convolution, bilinear resizing, gradients and
the maps are written out in NumPy, for one image and one class at a time.
"""

import gc
from pathlib import Path

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf

import cam_tf

L = keras.layers
HEADS = ["gap", "gmp", "gap hidden", "flat hidden"]
GRADIENT_METHODS = [
    *("GradCAM", "GradCAMPlusPlus", "XGradCAM", "HiResCAM", "LayerCAM", "SmoothGradCAMPlusPlus"),
]
PERTURBATION_METHODS = ["ScoreCAM", "SSCAM", "ISCAM", "AblationCAM"]
METHODS = [*GRADIENT_METHODS, *PERTURBATION_METHODS, "EigenCAM"]
EXACT = {"rtol": 1e-5, "atol": 4e-7}


class Reference:
    """A convolution (3x3, stride 2), a ReLU and a head, in float64; feature maps (4, 3, 5)."""

    def __init__(self, head, rng, relu=True):
        self.head, self.relu = head, relu
        self.conv = rng.normal(size=(3, 3, 2, 5)), rng.uniform(-0.5, 1.5, 5)
        width = 5 * 12 if head.startswith("flat") else 5
        if "hidden" in head:
            self.hidden = rng.normal(size=(width, 6)) / np.sqrt(width), rng.normal(size=6)
            width = 6
        self.dense = rng.normal(size=(width, 4)), rng.normal(size=4)
        # What the network in float32 has.
        for name in ("conv", "hidden", "dense"):
            if hasattr(self, name):
                pair = getattr(self, name)
                setattr(self, name, [np.float64(np.float32(one)) for one in pair])

    def keras(self, activation="softmax", nested=False, dtype=None):
        image = keras.Input((9, 7, 2))
        conv = L.Conv2D(5, 3, strides=2, activation="relu" if self.relu else None, name="maps")
        maps = conv(image)
        if nested:
            maps = keras.Model(image, maps, name="inner")(outer := keras.Input((9, 7, 2)))
            image = outer
        pool = {"gap": L.GlobalAveragePooling2D, "gmp": L.GlobalMaxPooling2D, "flat": L.Flatten}
        x = pool[self.head.split()[0]]()(maps)
        layers = [conv]
        if "hidden" in self.head:
            layers.append(L.Dense(6, activation="tanh"))
            x = layers[-1](x)
        layers.append(L.Dense(4, activation=activation, dtype=dtype))
        model = keras.Model(image, layers[-1](x))
        weights = [self.conv, *([self.hidden] if "hidden" in self.head else []), self.dense]
        for layer, pair in zip(layers, weights, strict=True):
            layer.set_weights(pair)
        return model

    def maps(self, image):
        kernel, bias = self.conv
        out = np.zeros((4, 3, 5))
        for i in range(4):
            for j in range(3):
                patch = image[2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
                out[i, j] = np.tensordot(patch, kernel, 3) + bias
        return np.maximum(out, 0) if self.relu else out

    def logits(self, maps):
        return self.dense[1] + self._features(maps) @ self.dense[0]

    def scores(self, maps):
        logits = self.logits(maps)
        return np.exp(logits) / np.exp(logits).sum()

    def _pooled(self, maps):
        pool = {"gap": lambda a: a.mean((0, 1)), "gmp": lambda a: a.max((0, 1)), "flat": np.ravel}
        return pool[self.head.split()[0]](maps)

    def _features(self, maps):
        x = self._pooled(maps)
        return np.tanh(x @ self.hidden[0] + self.hidden[1]) if "hidden" in self.head else x

    def gradient(self, maps, c):
        by_features = self.dense[0][:, c]
        if "hidden" in self.head:
            by_features = self.hidden[0] @ ((1 - self._features(maps) ** 2) * by_features)
        if self.head.startswith("flat"):
            return by_features.reshape(maps.shape)
        if self.head.startswith("gmp"):
            return (maps == maps.max((0, 1))) * by_features
        return np.ones_like(maps) * by_features / 12


def _upsample(a, size):
    """Bilinear, half-pixel centres, one axis after the other."""
    for axis, length in enumerate(size):
        old = a.shape[axis]
        centres = (np.arange(length) + 0.5) * old / length - 0.5
        a = np.apply_along_axis(lambda line: np.interp(centres, np.arange(old), line), axis, a)  # noqa: B023
    return a


def _plus_plus(a, first, second, third):
    below = 2 * second + third * a.sum((0, 1))
    alpha = np.divide(second, below, out=np.zeros_like(second), where=below != 0)
    return (a * (alpha * np.maximum(first, 0)).sum((0, 1))).sum(-1)


def _masked(a, image):
    """The images seen through each channel that varies: (m, H, W, 2), and those channels."""
    live = np.flatnonzero(np.ptp(a, axis=(0, 1)) > 0)
    masks = [_upsample(a[..., k], image.shape[:2]) for k in live]
    masks = [(mask - mask.min()) / np.ptp(mask) for mask in masks]
    return np.array([image * mask[..., None] for mask in masks]), live


def _score_cam(ref, a, image, c, answer, weighting="softmax"):
    masked, live = _masked(a, image)
    weights = np.array([answer(one) for one in masked])[:, c]
    if weighting == "softmax":
        weights = np.exp(weights) / np.exp(weights).sum()
    return np.maximum(a[..., live] @ weights, 0)


def expected_map(method, ref, image, c, **options):
    """The map of one image (H, W, 2) and class, by the formula of the method's paper."""
    image = np.float64(image)
    a = ref.maps(image)
    g = ref.gradient(a, c)
    if method == "GradCAM":
        return np.maximum((a * g.mean((0, 1))).sum(-1), 0)
    if method in ("GradCAMPlusPlus", "SmoothGradCAMPlusPlus"):
        return np.maximum(_plus_plus(a, g, g**2, g**3), 0)
    if method == "XGradCAM":
        total = a.sum((0, 1))
        weights = np.divide((g * a).sum((0, 1)), total, out=np.zeros(5), where=total != 0)
        return np.maximum(a @ weights, 0)
    if method == "HiResCAM":
        return (g * a).sum(-1)
    if method == "LayerCAM":
        return np.maximum((np.maximum(g, 0) * a).sum(-1), 0)
    if method == "EigenCAM":
        _, _, right = np.linalg.svd(a.reshape(-1, 5), full_matrices=False)
        first = a @ right[0]
        return first if first.sum() >= 0 else -first
    if method == "AblationCAM":
        y = ref.logits(a)[c]
        kept = [a * (np.arange(5) != k) for k in range(5)]
        weights = [(y - ref.logits(one)[c]) / y for one in kept]
        varies = np.ptp(a, axis=(0, 1)) > 0
        return np.maximum(a @ (weights * varies), 0)
    weighting = options.get("weighting", "softmax")
    ask = ref.logits if weighting == "softmax" else ref.scores
    if method == "ISCAM":
        steps = options["samples"]

        def answer(masked):
            each = [ask(ref.maps(masked * i / steps)) for i in range(1, steps + 1)]
            return np.mean(each, axis=0)

    else:

        def answer(masked):
            return ask(ref.maps(masked))

    return _score_cam(ref, a, image, c, answer, weighting)


@pytest.fixture
def images(rng):
    return rng.normal(size=(3, 9, 7, 2)).astype(np.float32)


OPTIONS = {
    "SmoothGradCAMPlusPlus": {"samples": 3, "noise": 0.0},
    "SSCAM": {"samples": 2, "noise": 0.0},
    "ISCAM": {"samples": 4},
}


def _explainer(method, model, **options):
    return getattr(cam_tf, method)(model, **{**OPTIONS.get(method, {}), **options})


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("method", METHODS)
def test_the_formula_in_float64(method, head, images, rng):
    ref = Reference(head, rng)
    nested = head in ("gmp", "flat hidden")
    result = _explainer(method, ref.keras(nested=nested))(images, "all").numpy()
    options = OPTIONS.get(method, {})
    expected = [[expected_map(method, ref, x, c, **options) for c in range(4)] for x in images]
    assert np.abs(expected).max() > 0.01
    scale = np.abs(expected).max()
    np.testing.assert_allclose(result.maps, expected, rtol=1e-5, atol=2e-6 * scale)
    np.testing.assert_allclose(result.logits, [ref.logits(ref.maps(x)) for x in images], rtol=2e-5)


@pytest.mark.parametrize("method", ["ScoreCAM", "SSCAM", "ISCAM"])
def test_the_probability_weighting(method, images, rng):
    ref = Reference("flat hidden", rng)
    options = {"weighting": "probability", **OPTIONS.get(method, {})}
    result = _explainer(method, ref.keras(), weighting="probability")(images, "all")
    expected = [[expected_map(method, ref, x, c, **options) for c in range(4)] for x in images]
    np.testing.assert_allclose(result.maps, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="use 'softmax' or 'probability'"):
        _explainer(method, ref.keras(), weighting="mean")


def test_smooth_grad_cam_plus_plus_averages_the_derivatives_over_noise(images, rng):
    ref = Reference("flat hidden", rng)
    samples, noise, seed = 3, 0.2, 5
    explainer = cam_tf.SmoothGradCAMPlusPlus(ref.keras(), samples=samples, noise=noise, seed=seed)
    draws = [tf.random.stateless_normal((9, 7, 2), [seed, i]).numpy() for i in range(samples)]
    result = explainer(images, 2).numpy()
    for n, image in enumerate(np.float64(images)):
        gs = [ref.gradient(ref.maps(image + noise * np.ptp(image) * draw), 2) for draw in draws]
        moments = [np.mean([g**p for g in gs], axis=0) for p in (1, 2, 3)]
        expected = np.maximum(_plus_plus(ref.maps(image), *moments), 0)
        np.testing.assert_allclose(result.maps[n, 0], expected, rtol=2e-5, atol=1e-6)
    np.testing.assert_array_equal(explainer(images, 2).maps, result.maps)
    one_by_one = explainer(images, 2, batch_size=1)
    np.testing.assert_allclose(one_by_one.maps, result.maps, rtol=1e-5, atol=1e-6)
    several = explainer(images, [[2, 0]])
    np.testing.assert_allclose(several.maps[:, :1], result.maps, rtol=1e-5, atol=1e-6)
    other = cam_tf.SmoothGradCAMPlusPlus(ref.keras(), samples=samples, noise=noise, seed=6)
    assert np.abs(other(images, 2).maps - result.maps).max() > 1e-3


def test_ss_cam_averages_the_scores_over_noise_and_not_over_chunks(images, rng):
    ref = Reference("flat hidden", rng)
    samples, noise, seed = 3, 0.2, 5
    draws = [tf.random.stateless_normal((9, 7, 2), [seed, i]).numpy() for i in range(samples)]

    def answer(masked):
        noisy = [masked + noise * np.ptp(masked) * draw for draw in draws]
        return np.mean([ref.logits(ref.maps(one)) for one in noisy], axis=0)

    expected = [[_score_cam(ref, ref.maps(x), x, 1, answer)] for x in np.float64(images)]
    for chunk in (1, 2, 32):
        explainer = cam_tf.SSCAM(
            ref.keras(), samples=samples, noise=noise, seed=seed, batch_size=chunk
        )
        np.testing.assert_allclose(explainer(images, 1).maps, expected, rtol=2e-5, atol=1e-6)


# The identities of a network whose logits are affine in pooled maps, before any ReLU.


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
@pytest.mark.parametrize("relu", [False, True], ids=["signed maps", "positive maps"])
def test_identities_of_average_pooling(nested, relu, images, rng):
    ref = Reference("gap", rng, relu=relu)
    model = ref.keras(nested=nested)
    kernel, bias = ref.dense
    cam = cam_tf.CAM(model)(images, "all").numpy()
    np.testing.assert_allclose(cam.maps.mean((2, 3)) + bias, cam.logits, **EXACT)
    hires = cam_tf.HiResCAM(model)(images, "all").numpy()
    np.testing.assert_allclose(hires.maps.sum((2, 3)) + bias, hires.logits, **EXACT)
    scale = np.abs(cam.maps).max()
    for method in ("GradCAM", "HiResCAM", "XGradCAM"):
        maps = 12 * _explainer(method, model, relu=False)(images, "all").numpy().maps
        np.testing.assert_allclose(maps, cam.maps, rtol=1e-5, atol=1e-6 * scale)
    maps = np.array([ref.maps(x) for x in np.float64(images)])
    positive = np.maximum(kernel, 0)
    expected = np.moveaxis(maps @ positive, -1, 1)
    layer = 12 * cam_tf.LayerCAM(model, relu=False)(images, "all").numpy().maps
    np.testing.assert_allclose(layer, expected, rtol=1e-5, atol=1e-6 * scale)
    weights = positive / (2 + kernel * maps.mean((1, 2))[..., None])
    expected = np.einsum("nhwk,nkc->nchw", maps, weights)
    plus = cam_tf.GradCAMPlusPlus(model, relu=False)(images, "all").numpy().maps
    np.testing.assert_allclose(plus, expected, rtol=1e-4, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_identities_of_max_pooling(nested, images, rng):
    ref = Reference("gmp", rng)
    model = ref.keras(nested=nested)
    cam = cam_tf.CAM(model)(images, "all").numpy()
    grad = 12 * cam_tf.GradCAM(model, relu=False)(images, "all").numpy().maps
    np.testing.assert_allclose(grad, cam.maps, rtol=1e-5, atol=1e-6 * np.abs(cam.maps).max())
    hires = cam_tf.HiResCAM(model)(images, "all").numpy()
    assert np.abs(12 * hires.maps - cam.maps).max() > 0.1 * np.abs(cam.maps).max()
    np.testing.assert_allclose(hires.maps.sum((2, 3)) + ref.dense[1], hires.logits, **EXACT)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
@pytest.mark.parametrize("method", [*GRADIENT_METHODS, "AblationCAM"])
def test_the_score_is_the_logit(method, activation, images, rng):
    ref = Reference("flat hidden", rng)
    linear = _explainer(method, ref.keras(None))(images, "all").numpy()
    other = _explainer(method, ref.keras(activation))(images, "all").numpy()
    np.testing.assert_allclose(other.maps, linear.maps, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(other.logits, linear.scores, rtol=1e-6)
    np.testing.assert_allclose(other.scores, ref.keras(activation)(images), rtol=1e-5)


def test_the_gradient_of_the_softmax_is_another_map_and_has_to_be_asked_for(images, rng):
    ref = Reference("gap", rng)
    kernel, _ = ref.dense
    softmax = cam_tf.GradCAM(ref.keras(), relu=False, target=lambda scores: scores)
    result = softmax(images).numpy()
    for n, image in enumerate(images):
        maps = ref.maps(image)
        p = ref.scores(maps)
        weights = p * (kernel - (kernel @ p)[:, None]) / 12
        np.testing.assert_allclose(
            result.maps[n], np.moveaxis(maps @ weights, -1, 0), rtol=1e-4, atol=1e-7
        )


# Batches, classes, layers, targets.


@pytest.mark.parametrize("method", METHODS)
def test_classes_and_images_at_once_or_one_at_a_time(method, images, rng):
    explainer = _explainer(method, Reference("flat hidden", rng).keras())
    whole = explainer(images, "all").numpy()
    for c in range(4):
        np.testing.assert_allclose(explainer(images, c).maps[:, 0], whole.maps[:, c], **EXACT)
    picked = explainer(images, [[3, 0], [1, 1], [2, 3]]).numpy()
    for n, ids in enumerate([[3, 0], [1, 1], [2, 3]]):
        np.testing.assert_allclose(picked.maps[n], whole.maps[n, ids], **EXACT)
    split = explainer(images, "all", batch_size=2).numpy()
    np.testing.assert_allclose(split.maps, whole.maps, **EXACT)
    for n in range(3):
        one = explainer(images[n : n + 1], "all")
        np.testing.assert_allclose(one.maps[0], whole.maps[n], **EXACT)
    best = explainer(images, top_k=2).numpy()
    np.testing.assert_array_equal(best.class_ids, np.argsort(-whole.logits)[:, :2])
    chosen = np.take_along_axis(whole.maps, best.class_ids[..., None, None], 1)
    np.testing.assert_allclose(best.maps, chosen, **EXACT)
    empty = explainer(images[:0], "all")
    assert tuple(empty.maps.shape) == (0, 4, 4, 3)
    assert whole.maps.dtype == np.float32


def _deep(rng):
    """Two layers of maps, (4, 3) and (2, 2)."""
    image = keras.Input((9, 7, 2))
    first = L.Conv2D(5, 3, strides=2, activation="relu", name="first")(image)
    last = L.Conv2D(4, 2, padding="same", strides=2, activation="relu", name="last")(first)
    model = keras.Model(image, L.Dense(3)(L.GlobalAveragePooling2D()(last)))
    model.set_weights([rng.normal(0.1, 1, w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_several_layers_are_scaled_and_their_maximum_is_taken(method, images, rng):
    model = _deep(rng)
    fused = _explainer(method, model, layer=["first", "last"])(images, "all").numpy()
    expected = []
    for layer in ("first", "last"):
        one = _explainer(method, model, layer=layer, relu=True)(images, "all").numpy()
        one = np.array([[_upsample(np.float64(m), (4, 3)) for m in maps] for maps in one.maps])
        top = one.max((2, 3), keepdims=True)
        expected.append(np.tanh(2 * np.divide(one, top, out=np.zeros_like(one), where=top > 0)))
    np.testing.assert_allclose(fused.maps, np.maximum(*expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["EigenCAM", *PERTURBATION_METHODS])
def test_methods_of_one_layer(method, rng):
    with pytest.raises(ValueError, match=f"{method} takes one target layer"):
        _explainer(method, _deep(rng), layer=["first", "last"])


@pytest.mark.parametrize("method", ["GradCAM", "XGradCAM", "LayerCAM", "ScoreCAM", "AblationCAM"])
def test_maps_without_relu(method, images, rng):
    model = Reference("flat hidden", rng).keras()
    signed = _explainer(method, model, relu=False)(images, "all").numpy()
    positive = _explainer(method, model, relu=True)(images, "all").numpy()
    np.testing.assert_allclose(np.maximum(signed.maps, 0), positive.maps, **EXACT)
    if method not in ("LayerCAM", "ScoreCAM"):  # which add up positive terms of positive maps
        assert signed.maps.min() < -1e-3


def test_targets(images, rng):
    ref = Reference("flat hidden", rng)
    model = ref.keras(None)
    every = cam_tf.HiResCAM(model)(images, "all").numpy()

    def difference(y):
        return y[:, 1] - 2 * y[:, 3]

    result = cam_tf.HiResCAM(model, target=difference)(images).numpy()
    assert result.maps.shape == (3, 1, 4, 3)
    expected = every.maps[:, 1] - 2 * every.maps[:, 3]
    np.testing.assert_allclose(result.maps[:, 0], expected, rtol=1e-5, atol=1e-6)
    expected = every.logits[:, 1] - 2 * every.logits[:, 3]
    np.testing.assert_allclose(result.logits[:, 0], expected, rtol=1e-5)
    np.testing.assert_allclose(result.scores, result.logits)
    several = cam_tf.HiResCAM(model, target=lambda y: y[:, 2:] * 3)(images).numpy()
    np.testing.assert_allclose(several.maps, 3 * every.maps[:, 2:], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(several.class_ids, [[0, 1]] * 3)
    with pytest.raises(ValueError, match="classes belong to class scores"):
        cam_tf.HiResCAM(model, target=difference)(images, 1)
    with pytest.raises(ValueError, match=r"target returned shape \(None, 4, 1\): expected \(N,\)"):
        cam_tf.GradCAM(model, target=lambda y: y[..., None])(images)
    with pytest.raises(ValueError, match=r"target returned shape \(\)"):
        cam_tf.GradCAM(model, target=tf.reduce_sum)(images)
    with pytest.raises(ValueError, match="CAM maps class logits"):
        cam_tf.CAM(Reference("gap", rng).keras(), target=difference)


@pytest.mark.parametrize("method", ["GradCAM", *PERTURBATION_METHODS, "EigenCAM"])
def test_a_target_that_is_a_class_gives_the_map_of_the_class(method, images, rng):
    model = Reference("flat hidden", rng).keras(None)
    result = _explainer(method, model, target=lambda y: y[:, 2])(images)
    np.testing.assert_allclose(result.maps, _explainer(method, model)(images, 2).maps, **EXACT)


def test_a_target_on_several_outputs(images, rng):
    image = keras.Input((9, 7, 2))
    pooled = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, name="maps")(image))
    model = keras.Model(image, [L.Dense(3)(pooled), L.Dense(2)(pooled)])
    result = cam_tf.HiResCAM(model, target=lambda outputs: outputs[0][:, 0] + outputs[1][:, 1])
    first = cam_tf.HiResCAM(model, output=0)(images, 0).maps
    second = cam_tf.HiResCAM(model, output=1)(images, 1).maps
    np.testing.assert_allclose(result(images).maps, first + second, rtol=1e-5, atol=1e-6)


# Perturbations: chunks, channels, progress.


@pytest.mark.parametrize("method", ["ScoreCAM", "AblationCAM"])
def test_the_size_of_a_chunk_does_not_matter(method, images, rng):
    model = Reference("flat hidden", rng).keras()
    whole = _explainer(method, model)(images, "all").maps
    for chunk in (1, 2, 3, 5):
        maps = _explainer(method, model, batch_size=chunk)(images, "all").maps
        np.testing.assert_allclose(maps, whole, **EXACT)


def _with_extra_channels(rng, extra, constant):
    """A convolution of 4 live channels and, if asked, 3 between them that do not vary.

    Two of those are zero everywhere and one has the value ``constant``.
    """
    kernel, bias = rng.normal(size=(3, 3, 2, 4)), rng.uniform(0, 1, 4)
    weights = rng.normal(size=(4, 3)), rng.normal(size=3)
    if extra:
        dead = np.zeros((3, 3, 2, 1))
        kernel = np.concatenate([dead, kernel[..., :2], dead, dead, kernel[..., 2:]], axis=-1)
        bias = np.concatenate([[-5], bias[:2], [constant], [0], bias[2:]])
        row = [[0.0, 0, 0]]  # so that the constant channel says nothing to the logits
        weights = (
            np.concatenate([row, weights[0][:2], row, row, weights[0][2:]]),
            weights[1],
        )
    image = keras.Input((9, 7, 2))
    maps = L.Conv2D(len(bias), 3, strides=2, activation="relu", name="maps")(image)
    model = keras.Model(image, L.Dense(3, activation="softmax")(L.GlobalAveragePooling2D()(maps)))
    model.set_weights([kernel, bias, *weights])
    return model


@pytest.mark.parametrize("method", PERTURBATION_METHODS)
def test_channels_that_do_not_vary_change_nothing(method, images):
    # A constant channel has no mask, but it has an activation to take away.
    constant = 0.0 if method == "AblationCAM" else 2.5
    models = [
        _with_extra_channels(np.random.default_rng(4), extra, constant) for extra in (False, True)
    ]
    maps = [_explainer(method, model)(images, "all") for model in models]
    assert np.abs(maps[0].maps).max() > 0.01
    np.testing.assert_allclose(maps[1].maps, maps[0].maps, **EXACT)
    np.testing.assert_allclose(maps[1].details["kept_share"], 1, rtol=1e-6)


def test_ablation_asks_a_constant_channel_too(images, rng):
    ref = Reference("gap", rng)
    ref.conv[0][..., 1], ref.conv[1][1] = 0, 2.0  # channel 1 is 2 everywhere
    result = cam_tf.AblationCAM(ref.keras(), relu=False)(images, "all").numpy()
    for n, image in enumerate(np.float64(images)):
        maps = ref.maps(image)
        for c in range(4):
            y = ref.logits(maps)[c]
            weights = [(y - ref.logits(maps * (np.arange(5) != k))[c]) / y for k in range(5)]
            np.testing.assert_allclose(result.maps[n, c], maps @ weights, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", [one for one in PERTURBATION_METHODS if one != "AblationCAM"])
def test_a_network_without_a_channel_that_varies(method, images, rng):
    model = Reference("gap", rng).keras()
    model.get_layer("maps").set_weights([np.zeros((3, 3, 2, 5)), np.float32([0, 1, 0, 2, -1])])
    result = _explainer(method, model)(images, "all").numpy()
    np.testing.assert_array_equal(result.maps, np.zeros((3, 4, 4, 3)))
    np.testing.assert_allclose(result.scores, model(images), rtol=1e-6)
    mixed = Reference("gap", rng)  # one image of a batch has nothing, the others do
    mixed.conv[1][:] = 0
    both = np.concatenate([np.zeros_like(images[:1]), images])
    maps = _explainer(method, mixed.keras())(both, "all").numpy().maps
    assert not maps[0].any()
    alone = _explainer(method, mixed.keras())(images, "all")
    np.testing.assert_allclose(maps[1:], alone.maps, **EXACT)


@pytest.mark.parametrize("method", ["ScoreCAM", "AblationCAM"])
def test_the_most_varied_channels_and_their_share(method, images, rng):
    ref = Reference("gap", rng)
    model = ref.keras()
    result = _explainer(method, model, max_channels=2)(images, "all").numpy()
    for n, image in enumerate(np.float64(images)):
        maps = ref.maps(image)
        spread = maps.std((0, 1)) if method == "ScoreCAM" else np.abs(maps).mean((0, 1))
        kept = np.sort(np.argsort(spread)[-2:])
        share = spread[kept].sum() / spread.sum()
        np.testing.assert_allclose(result.details["kept_share"][n], share, rtol=1e-5)
        for c in range(4):
            if method == "ScoreCAM":
                alone = np.where(np.isin(np.arange(5), kept), maps, 0)
                expected = _score_cam(ref, alone, image, c, lambda x: ref.logits(ref.maps(x)))
            else:
                y = ref.logits(maps)[c]
                weights = [(y - ref.logits(maps * (np.arange(5) != k))[c]) / y for k in kept]
                expected = np.maximum(maps[..., kept] @ weights, 0)
            np.testing.assert_allclose(result.maps[n, c], expected, rtol=1e-5, atol=1e-6)
    every = _explainer(method, model, max_channels=99)(images, "all")
    np.testing.assert_allclose(every.maps, _explainer(method, model)(images, "all").maps, **EXACT)
    np.testing.assert_allclose(every.details["kept_share"], 1, rtol=1e-6)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"max_channels": 0}])
def test_numbers_below_one(options, rng):
    with pytest.raises(ValueError, match="use at least 1"):
        cam_tf.ScoreCAM(Reference("gap", rng).keras(), **options)
    with pytest.raises(ValueError, match="use at least 1"):
        cam_tf.SSCAM(Reference("gap", rng).keras(), samples=0)
    with pytest.raises(ValueError, match="at least 0"):
        cam_tf.SmoothGradCAMPlusPlus(Reference("gap", rng).keras(), noise=-1)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", ["ScoreCAM", "AblationCAM"])
def test_progress_is_shown_where_it_is_asked_for(method, frozen, images, rng, capfd):
    model = Reference("gap", rng).keras()
    plain = _explainer(method, model)(images, 1)
    assert "15/15" not in capfd.readouterr().out
    shown = _explainer(method, model, progress=True, batch_size=2, frozen=frozen)
    for _ in range(2):
        np.testing.assert_allclose(shown(images, 1).maps, plain.maps, **EXACT)
        assert "15/15" in capfd.readouterr().out  # 3 images of 5 channels


# Precision, compilation, freezing, memory, rank.


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_mixed_precision_gives_float32_maps_that_are_close(method, policy, images, rng):
    ref = Reference("gap hidden", rng)
    expected = _explainer(method, ref.keras())(images, "all").numpy()
    keras.config.set_dtype_policy(policy)
    result = _explainer(method, ref.keras(dtype="float32"))(images, "all").numpy()
    assert result.maps.dtype == result.logits.dtype == np.float32
    scale = np.abs(expected.maps).max()
    tolerance = 0.01 if policy == "mixed_float16" else 0.1
    np.testing.assert_allclose(result.maps, expected.maps, atol=tolerance * scale)


@pytest.mark.parametrize("method", [*METHODS, "CAM"])
def test_a_frozen_explainer_stays_as_it_is_until_it_is_told(method, images, rng):
    model = Reference("gap", rng).keras()
    live, frozen = _explainer(method, model), _explainer(method, model, frozen=True)
    assert "frozen (refreeze() after training)" in repr(frozen)
    assert "frozen" not in repr(live)
    before = live(images, "all").numpy()
    result = frozen(images, "all").numpy()
    np.testing.assert_allclose(result.maps, before.maps, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.scores, before.scores, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(result.class_ids, before.class_ids)
    assert result.details.keys() == before.details.keys()
    for weight in model.weights:
        weight.assign(rng.normal(0.2, 1, weight.shape))
    np.testing.assert_array_equal(frozen(images, "all").maps, result.maps)
    frozen.refreeze()
    after = live(images, "all").numpy()
    assert np.abs(after.maps - before.maps).max() > 0.01
    np.testing.assert_allclose(frozen(images, "all").maps, after.maps, rtol=1e-4, atol=1e-6)
    assert frozen(images[:1], 2).maps.shape == (1, 1, 4, 3)


@pytest.mark.parametrize("method", [*METHODS, "CAM"])
def test_xla_gives_the_same_maps(method, images, rng):
    model = Reference("gap", rng).keras()
    live, compiled = (_explainer(method, model, jit_compile=on) for on in (False, True))
    expected = live(images, [0, 1, 2], top_k=2).numpy()
    result = compiled(images, [0, 1, 2], top_k=2).numpy()
    np.testing.assert_array_equal(result.class_ids, expected.class_ids)
    np.testing.assert_array_equal(compiled(images, top_k=2).class_ids, expected.class_ids[:, :2])
    scale = np.abs(expected.maps).max()
    np.testing.assert_allclose(result.maps, expected.maps, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("method", METHODS)
def test_signals_and_volumes(method, rank, rng):
    size = (6, 5, 4)[:rank]
    image = keras.Input((*size, 2))
    maps = getattr(L, f"Conv{rank}D")(4, 2, activation="relu")(image)
    pooled = getattr(L, f"GlobalAveragePooling{rank}D")()(maps)
    model = keras.Model(image, L.Dense(3, activation="softmax")(pooled))
    given = rng.normal(size=(2, *size, 2)).astype(np.float32)
    result = _explainer(method, model)(given, "all").numpy()
    space = tuple(length - 1 for length in size)
    assert result.maps.shape == (2, 3, *space)
    cam = cam_tf.CAM(model)(given, "all").numpy().maps
    if method == "GradCAM":
        np.testing.assert_allclose(np.prod(space) * result.maps, np.maximum(cam, 0), atol=2e-6)
    elif method == "HiResCAM":
        np.testing.assert_allclose(np.prod(space) * result.maps, cam, atol=2e-6)
    else:
        assert np.isfinite(result.maps).all() and np.abs(result.maps).max() > 0


def test_500_calls_trace_nothing_and_keep_nothing(rng):
    explainer = cam_tf.GradCAM(Reference("flat hidden", rng).keras())
    images = rng.normal(size=(9, 9, 7, 2)).astype(np.float32)
    process = psutil.Process()

    def calls(count):
        for i in range(count):
            explainer(images[: 1 + i % 9], top_k=2)
            explainer(images[: 1 + i % 9], i % 4)
        gc.collect()
        return process.memory_info().rss

    before = calls(100)
    compiled = dict(explainer._compiled)
    assert calls(250) - before < 10e6
    assert explainer._compiled == compiled
    assert set(compiled) == {"selected"}


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_grad_cam_of_tf_keras_vis(layer):
    """Made with tf-keras-vis 0.8.7 on Keras 3.15, for each layer, of the model and images below.

    Gradcam(model, clone=False)(CategoricalScore([2, 0, 3]), images, penultimate_layer=layer,
    seek_penultimate_conv_layer=False, normalize_cam=False, expand_cam=False), on a model whose last
    layer is linear, where it is right.
    """
    rng = np.random.default_rng(3)
    image = keras.Input((12, 10, 3))
    x = L.Conv2D(5, 3, strides=2, padding="same", activation="relu", name="conv1")(image)
    x = L.Conv2D(6, 3, activation="relu", name="conv2")(x)
    x = L.Dense(7, activation="tanh")(L.Flatten()(x))
    model = keras.Model(image, L.Dense(4)(x))
    model.set_weights([rng.normal(0, 0.3, w.shape).astype(np.float32) for w in model.get_weights()])
    images = rng.normal(size=(3, 12, 10, 3)).astype(np.float32)
    golden = np.load(Path(__file__).parent / "golden" / "tf_keras_vis_gradcam.npz")[layer]
    assert golden.max() > 0.01
    result = cam_tf.GradCAM(model, layer)(images, [2, 0, 3])
    np.testing.assert_allclose(result.maps[:, 0], golden, rtol=1e-4, atol=1e-7)


def _two_heads(rng):
    image, table = keras.Input((9, 7, 2), name="image"), keras.Input((3,), name="table")
    maps = L.Conv2D(4, 3, activation="relu", name="mid")(image)
    mask = L.Conv2D(2, 1, name="mask")(maps)
    scores = L.Dense(3, name="class")(L.GlobalAveragePooling2D()(maps))
    other = L.Dense(2, name="other")(L.Concatenate()([L.GlobalAveragePooling2D()(maps), table]))
    return keras.Model([image, table], [mask, scores, other])


@pytest.mark.parametrize("method", ["GradCAM", "AblationCAM", "ScoreCAM"])
def test_a_target_may_be_of_any_output_and_of_all_inputs(method, images, rng):
    model = _two_heads(rng)
    table = rng.normal(size=(3, 3)).astype(np.float32)
    explainer = _explainer(method, model, layer="mid", target=lambda y: y[2][:, 1] - y[1][:, 0])
    result = explainer([images, table])
    _, scores, other = model([images, table])
    np.testing.assert_allclose(
        result.logits[:, 0], other[:, 1] - scores[:, 0], rtol=1e-4, atol=1e-6
    )
    assert result.maps.shape == (3, 1, 7, 5)
    segment = _explainer(method, model, layer="mid", target=lambda y: tf.reduce_mean(y[0], (1, 2)))
    assert segment([images, table]).maps.shape == (3, 2, 7, 5)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("logit", "expected a function of the model's output"),
        (lambda y: y[0], r"target returned shape \(4,\)"),
        (lambda y: None, "target failed on the model's symbolic output"),
        (lambda y: y.numpy()[:, 0], r"without \.numpy"),
        (lambda y: tf.stop_gradient(y[:, 0]), "does not depend on the target layer"),
    ],
)
def test_targets_that_are_none(target, message, images, rng):
    with pytest.raises(ValueError, match=message):
        cam_tf.GradCAM(Reference("gap", rng).keras(), target=target)(images)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_of_integer_pixels(method, rng):
    def model(dtype):
        keras.utils.set_random_seed(1)
        image = keras.Input((9, 7, 3), dtype=dtype)
        x = L.Rescaling(1 / 255)(image)
        x = L.GlobalAveragePooling2D()(L.Conv2D(4, 3, activation="relu")(x))
        return keras.Model(image, L.Dense(3)(x))

    images = rng.integers(0, 256, (2, 9, 7, 3))
    options = {} if "Smooth" not in method and method != "SSCAM" else {"noise": 0.0}
    expected = _explainer(method, model("float32"), **options)(images, "all").numpy().maps
    result = _explainer(method, model("uint8"), **options)(images, "all").numpy().maps
    # Masked pixels are rounded to whole levels, no more.
    np.testing.assert_allclose(result, expected, atol=0.01 * np.abs(expected).max())
    with pytest.raises(ValueError, match="got fractions"):
        _explainer(method, model("uint8"))(images / 255)


def test_a_frozen_explainer_is_of_one_moment(images, rng):
    model = Reference("gap", rng).keras()
    frozen = cam_tf.GradCAM(model, frozen=True)
    before = frozen(images, "all").numpy()
    model.set_weights([2 * weight for weight in model.get_weights()])
    top = frozen(images, top_k=2).numpy()
    np.testing.assert_allclose(top.logits, np.sort(before.logits)[:, ::-1][:, :2], rtol=1e-5)
    np.testing.assert_allclose(frozen(images, 1).logits[:, 0], before.logits[:, 1], rtol=1e-5)
    with pytest.raises(ValueError, match="do not go together"):
        cam_tf.GradCAM(model, frozen=True, jit_compile=True)


@pytest.mark.parametrize("channels", [2, 40])
def test_eigen_cam_by_either_gram_matrix(channels, images, rng):
    layers = [L.Conv2D(channels, 3, activation="relu", name="maps"), L.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((9, 7, 2)), *layers, L.Dense(2)])
    maps = keras.Model(model.inputs, model.get_layer("maps").output)(images).numpy()
    result = cam_tf.EigenCAM(model)(images).numpy().maps
    for n in range(len(images)):
        flat = np.float64(maps[n].reshape(-1, channels))
        first = flat @ np.linalg.svd(flat)[2][0]
        first *= np.sign(first.sum())
        np.testing.assert_allclose(result[n, 0].ravel(), first, rtol=1e-3, atol=1e-4)


def test_eigen_cam_of_maps_that_are_not_finite(images, rng):
    model = Reference("gap", rng, relu=False).keras()
    kernel, bias = model.get_layer("maps").get_weights()
    model.get_layer("maps").set_weights([kernel, bias * np.nan])
    result = cam_tf.EigenCAM(model)(images)
    assert [one[0].status for one in result.diagnosis()] == ["not finite"] * 3
