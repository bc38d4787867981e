"""The localizer: presets, their parts, and images of any size."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import cam_tf
from cam_tf.localization.localizer import PRESETS, Localizer


@pytest.fixture
def network():
    """Strides 2 and 2, maps 8x8 at its own 32 pixels."""
    layers = [
        layer
        for width in (6, 8)
        for layer in (
            keras.layers.Conv2D(width, 3, 2, padding="same", activation="relu"),
            keras.layers.Conv2D(width, 3, padding="same", activation="relu"),
        )
    ]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(6, activation="softmax")]
    return keras.Sequential([keras.Input((32, 32, 3)), *layers, *head])


@pytest.fixture
def images(rng):
    return rng.uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)


def test_without_arguments_it_is_cam(network, images):
    found = Localizer(network)(images, [1, 2], top_k=3).numpy()
    expected = cam_tf.CAM(network)(images, [1, 2], top_k=3).numpy()
    np.testing.assert_array_equal(found.maps, expected.maps)
    np.testing.assert_array_equal(found.class_ids, expected.class_ids)
    assert Localizer(network).image_size is None


def test_its_parts_are_those_of_the_package(network, images):
    options = {"scales": (1.0, 2.0), "flip": True, "output_stride": 2}
    found = Localizer(network, refine="grabcut", **options)(images, top_k=2).numpy()
    large = np.stack([np.float32(one) for one in _bicubic(images, 64)])
    dense = cam_tf.with_output_stride(network, 2, any_size=True)
    views = cam_tf.CAM(dense, scales=(0.5, 1.0), flip=True)(large, top_k=2).numpy()
    assert views.maps.shape == (2, 2, 32, 32)
    np.testing.assert_array_equal(found.class_ids, views.class_ids)
    np.testing.assert_allclose(found.maps, cam_tf.refine(images, views.maps), atol=1e-4)
    assert found.image_size == (32, 32)


def _bicubic(images, side):
    large = tf.image.resize(images, (side, side), "bicubic", antialias=True)
    low, high = images.min(axis=(1, 2, 3)), images.max(axis=(1, 2, 3))
    return np.clip(large, low[:, None, None, None], high[:, None, None, None])


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 64), (40, 90), (20, 100)])
def test_an_image_of_any_size_is_brought_to_the_networks_area(network, height, width, rng):
    localizer = Localizer(network, scales=(1.5,))
    found = localizer(rng.uniform(0, 255, (1, height, width, 3)))
    positions = found.maps.shape[2] * found.maps.shape[3]
    assert positions == pytest.approx((48 / 4) ** 2, rel=0.25)
    assert found.image_size == (height, width)
    assert localizer.image_size == (48, 48)


def test_a_network_of_any_size_takes_the_images_size_for_its_own(network, rng):
    network = cam_tf.with_output_stride(network, any_size=True)
    image = rng.uniform(0, 255, (1, 20, 28, 3))
    assert Localizer(network, scales=(2.0,))(image).maps.shape == (1, 1, 10, 14)
    sized = Localizer(network, scales=(2.0,), size=(32, 32))
    assert sized(image).maps.shape == (1, 1, 14, 19)
    assert sized.image_size == (64, 64)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_on_the_default_network(preset):
    model = cam_tf.build_classifier("EfficientNetLite0")
    photo = cam_tf.load_image(cam_tf.demo_photos()[0])
    images = cam_tf.resize_image(photo, (224, 224))[None]
    localizer = Localizer(model, preset=preset)
    found = localizer(images, top_k=2)
    assert found.class_ids[0, 0] == cam_tf.CAM(model)(images).class_ids[0, 0]
    box = cam_tf.boxes(found)[0, 0]
    assert (box[2:] - box[:2] > 0.2).all()
    described = localizer.describe()
    assert described["method"] == "prototypecam" and described["output_stride"] == 16


def test_arguments_take_the_place_of_the_presets(network):
    localizer = Localizer(
        network, preset="localization", output_stride=4, method="cam", refine="none", flip=False
    )
    assert localizer.describe() == {
        "method": "cam",
        "output_stride": 4,
        "scales": [1.0, 10 / 7, 2.0],
        "flip": False,
        "refine": "none",
        "size": [32, 32],
        "layer": None,
        "options": {},
    }


def test_it_tells_the_layer_and_the_options(network):
    """An evaluation goes on only where these are the same."""

    def target(scores):
        return scores[:, 0]

    layer = network.layers[1]
    for given in (layer, layer.name):
        assert Localizer(network, method="gradcam", layer=given).describe()["layer"] == layer.name
    described = Localizer(network, method="scorecam", max_channels=3).describe()
    assert described["options"] == {"max_channels": 3}
    described = Localizer(network, method="gradcam", layer=layer, target=target).describe()
    assert "target" in described["options"]["target"]
    assert "0x" not in described["options"]["target"]  # an address, another in each process


def test_inputs_of_another_range_are_not_cut_off(network, images):
    """A network of -1..1 sees the same as one with the rescaling inside."""
    inner = keras.Input((32, 32, 3))
    whole = keras.Model(inner, network(keras.layers.Rescaling(1 / 127.5, -1)(inner)))
    expected = Localizer(whole, scales=(1.0, 1.5))(images, [0, 1])
    found = Localizer(network, scales=(1.0, 1.5))(images / 127.5 - 1, [0, 1])
    np.testing.assert_allclose(found.maps, expected.maps, atol=1e-5)


@pytest.mark.parametrize(("scale", "shift"), [(1 / 127.5, -1.0), (1 / 255, 0.0), (2.0, 0.0)])
def test_only_pixels_are_refined(network, images, scale, shift):
    localizer = Localizer(network, refine="grabcut")
    with pytest.raises(ValueError, match=r"cam_tf.refine\(photos, localize\(images\)\)"):
        localizer(images * scale + shift)
    for black in (np.zeros((1, 32, 32, 3)), np.ones((1, 32, 32, 3), np.uint8)):
        localizer(black)


def test_a_preset_that_the_model_cannot_have(network):
    with pytest.raises(ValueError, match=r"preset 'fast' is not for this model.*output_stride=4"):
        Localizer(network, preset="fast")
    assert Localizer(network, preset="fast", output_stride=4).settings.output_stride == 4
    with pytest.raises(ValueError, match=r"^with_output_stride"):  # as it was asked for
        Localizer(network, preset="fast", output_stride=3)


@pytest.mark.parametrize("side", [32, None])
def test_scales_of_a_model_that_resizes_inside(network, side):
    image = keras.Input((side, side, 3))
    resizing = keras.Model(image, network(keras.layers.Resizing(32, 32, name="inside")(image)))
    with pytest.raises(ValueError, match=r"'inside' \(Resizing\) brings them all to \(32, 32\)"):
        Localizer(resizing, scales=(1.0, 2.0))
    with pytest.raises(ValueError, match=r"preset 'fast'.*scales=\(1.0,\), output_stride=4\."):
        Localizer(resizing, preset="fast")
    assert Localizer(resizing, preset="fast", scales=(1.0,), output_stride=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "localisation"}, "'localization'"),
        ({"method": "gradcam", "flip": True}, "scales and flip are for CAM"),
        ({"scales": ()}, "expected positive"),
        ({"scales": (0.0, 1.0)}, "expected positive"),
        ({"scales": (float("nan"),)}, "expected positive"),
        ({"scales": (float("inf"), 1.0)}, "expected positive"),
        ({"scales": 2.0}, r"scales=2.0: expected positive numbers.*\(1.0, 1.5\)"),
        ({"scales": ("a",)}, "expected positive"),
        ({"size": 64}, r"size=64: expected \(height, width\)"),
        ({"size": (64, 0)}, "expected"),
        ({"refine": "crf"}, "Use 'grabcut'"),
        ({"output_stride": 3}, "stride"),
        ({"method": "gradcamm"}, "gradcam"),
    ],
)
def test_errors(network, options, message):
    with pytest.raises(ValueError, match=message):
        Localizer(network, **options)
