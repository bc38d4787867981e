"""Units: their weights, the images that activate them most, and what they see."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers as kl

import cam_tf
from cam_tf.discovery import (
    PooledFeatures,
    TopActivations,
    class_units,
    contributing_units,
    empirical_receptive_field,
    receptive_field,
    top_activations,
)
from cam_tf.discovery.units import region_around
from cam_tf.networks.anatomy import dissect


def test_units_by_weight(tiny_model):
    units, weights = class_units(tiny_model, 1, 2)
    np.testing.assert_array_equal(units, [1, 0])
    np.testing.assert_allclose(weights, [2, 0])
    with pytest.raises(ValueError, match="class_id=3"):
        class_units(tiny_model, 3)


def test_units_by_contribution(tiny_model, tiny_image):
    # red 2.5, green 1.5: the logits are 2.5, 3.5 and 0, so class 1 is predicted; green gives it 3
    found = contributing_units(tiny_model, [tiny_image, tiny_image], [1], 2)
    np.testing.assert_array_equal(found[1][0], [1, 0])
    np.testing.assert_allclose(found[1][1], [3, 0], atol=1e-6)
    with pytest.raises(ValueError, match=r"predicted to be of the classes \[2\]"):
        contributing_units(tiny_model, [tiny_image], [1, 2])


def test_streaming_equals_a_full_sort(rng):
    maps = rng.normal(size=(57, 4, 5, 6)).astype(np.float32)
    found = TopActivations([4, 0, 5], 7)
    for start in range(0, 57, 8):
        found.update(maps[start : start + 8], list(range(start, min(start + 8, 57))))
    for row, unit in enumerate([4, 0, 5]):
        each = maps[..., unit].reshape(57, -1)
        order = np.argsort(-each.max(1))[:7]
        np.testing.assert_array_equal(found.keys[row], order)
        np.testing.assert_array_equal(found.values[row], each.max(1)[order])
        expected = np.stack(np.unravel_index(each.argmax(1)[order], (4, 5)), -1)
        np.testing.assert_array_equal(found.positions[row], expected)
    assert found.images == 57
    few = TopActivations([0], 3)
    few.update(maps[:1], ["one"])
    assert few.keys[0].tolist() == ["one", None, None]


def test_top_activations_of_a_network(tiny_model):
    images = np.zeros((4, 3, 3, 3), np.float32)
    images[2, 1, 2, 0] = 9  # red is unit 0
    images[1, 0, 0, 0] = 5
    found = top_activations(PooledFeatures(tiny_model), [(images, "abcd")], [0], 2)
    assert found.keys.tolist() == [["c", "b"]]
    np.testing.assert_array_equal(found.positions[0], [[1, 2], [0, 0]])
    with pytest.raises(ValueError, match="the network has 2"):
        top_activations(PooledFeatures(tiny_model), [(images, "abcd")], [2])
    with pytest.raises(ValueError, match="no image"):
        top_activations(PooledFeatures(tiny_model), [], [0])


def _chain(*layers):
    def apply(value):
        for layer in layers:
            value = type(layer).from_config(layer.get_config())(value)
        return value

    return apply


def _residual(image):
    maps = kl.Conv2D(4, 3, 2, padding="same")(image)
    more = kl.Conv2D(4, 5, padding="same", dilation_rate=2)(maps)
    return kl.Add()([maps, more])


NETWORKS = {
    "same": _chain(kl.Conv2D(4, 3, 2, padding="same"), kl.Conv2D(4, 3, padding="same")),
    "same, odd sizes": _chain(
        kl.Conv2D(4, 4, 3, padding="same"), kl.AveragePooling2D(3, 2, padding="same")
    ),
    "valid": _chain(kl.Conv2D(4, 5, 2), kl.AveragePooling2D(2), kl.Conv2D(4, (1, 3))),
    "padded": _chain(
        kl.ZeroPadding2D(((1, 0), (2, 1))), kl.Conv2D(4, 3, 2), kl.Cropping2D(((1, 0), (0, 1)))
    ),
    "depthwise, dilated": _chain(
        kl.DepthwiseConv2D(3, dilation_rate=2, padding="same"), kl.SeparableConv2D(4, 3, 2)
    ),
    "residual": _residual,
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [(31, 29), (32, 24)])
def test_it_is_the_support_of_the_gradient(name, size):
    image = keras.Input((*size, 3))
    maps = NETWORKS[name](image)
    model = keras.Model(image, kl.Dense(2)(kl.GlobalAveragePooling2D()(maps)))
    field = receptive_field(model)
    height, width = maps.shape[1:3]
    for y, x in [(0, 0), (height // 2, width // 2), (height - 1, width - 1)]:
        support = _support(model, y, x)
        top, left, bottom, right = field.region(y, x)
        rows, columns = np.flatnonzero(support.any(1)), np.flatnonzero(support.any(0))
        assert (rows[0], rows[-1] + 1) == (max(top, 0), min(bottom, size[0]))
        assert (columns[0], columns[-1] + 1) == (max(left, 0), min(right, size[1]))


def _support(model, y, x) -> np.ndarray:
    """The pixels (H, W) that a position depends on, by differentiation."""
    parts = dissect(model)
    image = tf.random.stateless_normal((1, *parts.image.shape[1:]), (0, 1))
    with tf.GradientTape() as tape:
        tape.watch(image)
        (maps,) = parts.graph.run({parts.image: image}, [parts.feature_maps])
        value = tf.reduce_sum(maps[0, y, x])
    return np.abs(tape.gradient(value, image)[0]).sum(-1) > 0


def test_known_networks():
    vgg = cam_tf.build_classifier("VGG16-GAP", 3, weights=None)
    # conv5_3 sees 196 pixels, and the 3x3 convolution on it 32 more.
    assert (receptive_field(vgg).size, receptive_field(vgg).stride) == ((228, 228), (16, 16))
    resnet = keras.applications.ResNet50(weights=None)  # strides in the 1x1 convolutions
    assert receptive_field(resnet).size == (483, 483)
    gated = keras.applications.EfficientNetB0(weights=None)
    assert receptive_field(gated).gates
    assert not receptive_field(resnet).gates


def test_a_layer_without_a_known_window(tiny_model):
    image = keras.Input((8, 8, 3))
    maps = kl.UpSampling2D()(kl.Conv2D(2, 3)(image))
    model = keras.Model(image, kl.Dense(2)(kl.GlobalAveragePooling2D()(maps)))
    with pytest.raises(ValueError, match="UpSampling2D"):
        receptive_field(model)


def test_occlusion_finds_what_a_unit_looks_at(rng):
    image = keras.Input((40, 40, 3))
    maps = kl.Conv2D(1, 9, padding="same", use_bias=False)(image)
    model = keras.Model(image, kl.Dense(1)(kl.GlobalAveragePooling2D()(maps)))
    model.layers[1].set_weights([np.full((9, 9, 3, 1), 0.01)])
    images = rng.uniform(0, 50, (3, 40, 40, 3))
    for one, (y, x) in zip(images, [(12, 12), (20, 25), (28, 20)], strict=True):
        one[y - 4 : y + 5, x - 4 : x + 5] = 255
    features = PooledFeatures(model)
    found = empirical_receptive_field(features, 0, images, patch=4, step=1)
    assert found.map.shape == (79, 79)
    assert all(7 <= length <= 13 for length in found.size)
    centre = np.argwhere(found.map >= found.map.max() / 2).mean(0)
    np.testing.assert_allclose(centre, [39, 39], atol=1)
    for wrong in ({"unit": 1}, {"patch": 41}, {"step": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            empirical_receptive_field(features, **{"unit": 0, "images": images, **wrong})


def test_regions_stay_inside():
    assert region_around((0, 0), (7, 7), (224, 224), (112, 56)) == (0.0, 0.0, 0.5, 0.25)
    assert region_around((6, 3), (7, 7), (224, 224), (112, 56)) == (0.5, 0.375, 1.0, 0.625)
    assert region_around((3, 3), (7, 7), (224, 224), (999, 999)) == (0.0, 0.0, 1.0, 1.0)
