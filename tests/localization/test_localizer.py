"""The localizer: presets, their parts, and images of any size."""

import keras
import numpy as np
import pytest

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
    import tensorflow as tf

    return tf.clip_by_value(
        tf.image.resize(images, (side, side), "bicubic", antialias=True), 0, 255
    )


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
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "localisation"}, "'localization'"),
        ({"method": "gradcam", "flip": True}, "scales and flip are for CAM"),
        ({"scales": ()}, "expected positive"),
        ({"scales": (0.0, 1.0)}, "expected positive"),
        ({"refine": "crf"}, "Use 'grabcut'"),
        ({"output_stride": 3}, "stride"),
        ({"method": "gradcamm"}, "gradcam"),
    ],
)
def test_errors(network, options, message):
    with pytest.raises(ValueError, match=message):
        Localizer(network, **options)
