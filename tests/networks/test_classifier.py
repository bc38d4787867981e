"""The builder: one flat model with fixed names that saves, loads, clones, trains and maps."""

import keras
import numpy as np
import pytest

import cam_tf

SMALL = {"weights": None, "input_shape": (32, 32, 3)}


def _small(classes=3, **arguments):
    return cam_tf.build_classifier("EfficientNetLite0", classes, **{**SMALL, **arguments})


def test_it_is_flat_with_documented_names():
    model = _small(head_conv=8, dropout=0.5)
    assert not any(isinstance(layer, keras.Model) for layer in model.layers)
    names = [layer.name for layer in model.layers]
    assert names[:2] == ["image", "preprocessing"]
    assert names[-5:] == ["head_conv", "feature_maps", "pooling", "head_dropout", "predictions"]
    assert model.name == "efficientnetlite0_cam"
    assert _small(name="mine").name == "mine"
    head_conv = model.get_layer("head_conv")
    assert head_conv.kernel.shape == (3, 3, 1280, 8)
    assert head_conv.activation is keras.activations.relu
    assert model.get_layer("feature_maps").output.shape == (None, 1, 1, 8)


def test_pooling_is_average_or_maximum(rng):
    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    for pooling, reduce in (("avg", np.mean), ("max", np.max)):
        model = _small(pooling=pooling, input_shape=(64, 64, 3))
        maps = cam_tf.cam_model(model)(images)[0].numpy()
        pooled = keras.Model(model.input, model.get_layer("pooling").output)(images)
        np.testing.assert_allclose(pooled, reduce(maps, axis=(1, 2)), rtol=1e-5)


def test_it_saves_loads_and_clones(tmp_path, rng):
    model = cam_tf.build_classifier("ResNet50", 3, pooling="max", head_conv=4, **SMALL)
    images = rng.uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    expected = model(images, training=False)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_allclose(loaded(images, training=False), expected, atol=1e-6)
    cloned = keras.models.clone_model(model)
    cloned.set_weights(model.get_weights())
    np.testing.assert_allclose(cloned(images, training=False), expected, atol=1e-6)
    model.save_weights(tmp_path / "model.weights.h5")
    again = cam_tf.build_classifier(
        "ResNet50",
        3,
        weights=tmp_path / "model.weights.h5",
        input_shape=(32, 32, 3),
        pooling="max",
        head_conv=4,
    )
    np.testing.assert_allclose(again(images, training=False), expected, atol=1e-6)


def test_it_trains_and_a_frozen_backbone_stays(rng):
    images = rng.uniform(0, 255, (4, 32, 32, 3)).astype(np.float32)
    model = _small(trainable_backbone=False)
    assert [w.path for w in model.trainable_weights] == ["predictions/kernel", "predictions/bias"]
    before = model.get_weights()
    model.compile("adam", "sparse_categorical_crossentropy")
    model.fit(images, np.array([0, 1, 2, 0]), epochs=1, verbose=0)
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert changed[:-2] == [False] * (len(changed) - 2)
    assert changed[-2:] == [True, True]
    assert len(_small().trainable_weights) > 100


def test_any_image_size(rng):
    model = _small(input_shape=(None, None, 3))
    cam = cam_tf.CAM(model)
    for height, width in [(33, 65), (96, 40)]:
        result = cam(rng.uniform(0, 255, (1, height, width, 3)))
        assert result.maps.shape == (1, 1, -(-height // 32), -(-width // 32))
        assert result.image_size == (height, width)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy, rng):
    keras.config.set_dtype_policy(policy)
    model = _small(input_shape=(64, 64, 3))
    assert model.get_layer("top_conv").compute_dtype == policy.removeprefix("mixed_")
    assert model.output.dtype == "float32"
    images = rng.uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    maps, _ = cam_tf.cam_model(model)(images, training=False)
    assert maps.dtype == policy.removeprefix("mixed_")
    kernel = rng.normal(size=(1280, 3)) / np.abs(maps.numpy().astype(np.float32)).max()
    model.get_layer("predictions").set_weights([kernel, rng.normal(size=3)])
    result = cam_tf.CAM(model)(images, "all").numpy()
    assert result.maps.dtype == np.float32
    bias = model.get_layer("predictions").get_weights()[1]
    np.testing.assert_allclose(result.maps.mean((2, 3)) + bias, result.logits, rtol=1e-4, atol=1e-5)


def test_a_built_model_is_a_backbone_too(rng):
    for rank in (1, 2, 3):
        image = keras.Input((*(8, 7, 6)[:rank], 2))
        convolution = getattr(keras.layers, f"Conv{rank}D")
        backbone = keras.Sequential([image, convolution(4, 3, activation="relu")], name="mine")
        model = cam_tf.build_classifier(backbone, 3, head_conv=5)
        assert model.name == "mine_cam"
        assert model.layers[1] is backbone.layers[0]  # shared, not copied, not nested
        images = rng.normal(size=(2, *image.shape[1:])).astype(np.float32)
        result = cam_tf.CAM(model)(images, "all").numpy()
        mean = result.maps.mean(axis=tuple(range(2, 2 + rank)))
        np.testing.assert_allclose(mean, result.logits, atol=1e-5)


def test_the_second_model_shares_weights_and_predicts_the_same(rng):
    model = _small()
    second = cam_tf.cam_model(model)
    images = rng.uniform(0, 255, (2, 32, 32, 3)).astype(np.float32)
    maps, predictions = second(images, training=False)
    assert maps.shape == (2, 1, 1, 1280)
    np.testing.assert_array_equal(predictions, model(images, training=False))
    assert {id(w) for w in second.weights} == {id(w) for w in model.weights}
    nested = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            cam_tf.EfficientNetLite0(include_top=False, weights=None),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(2),
        ]
    )
    with pytest.raises(ValueError, match=r"inside a nested model.*top_activation.*cam_tf.CAM"):
        cam_tf.cam_model(nested)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"backbone": "ResNet5"}, ValueError, "Did you mean 'ResNet50'"),
        ({"backbone": 3}, ValueError, "a name or a built Functional"),
        ({"classes": 1}, ValueError, "at least 2 classes"),
        ({"pooling": "mean"}, ValueError, "'avg' or 'max'"),
        ({"head_conv": 0}, ValueError, r"head_conv=\(0,\) is not a number of units"),
        ({"dropout": 1.0}, ValueError, "dropout=1.0"),
        ({"input_shape": (32, 32)}, ValueError, r"is not \(height, width, 3\)"),
        ({"input_shape": (32, 32, 1)}, ValueError, "takes RGB images"),
        ({"input_shape": (31, 32, 3)}, ValueError, "at least 32 pixels"),
        ({"backbone": "NASNetMobile", "input_shape": (None, None, 3)}, ValueError, "fixed size"),
        ({"weights": "nowhere.h5"}, FileNotFoundError, "nowhere.h5"),
    ],
)
def test_bad_arguments(arguments, error, message):
    arguments = {"backbone": "EfficientNetLite0", "classes": 3, **SMALL, **arguments}
    with pytest.raises(error, match=message):
        cam_tf.build_classifier(**arguments)


def test_bad_backbone_models():
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    with pytest.raises(ValueError, match=r"ends in shape \(None, 3\).*include_top=False"):
        cam_tf.build_classifier(keras.Model(image, pooled), 3)
    with pytest.raises(ValueError, match="1 inputs and 2 outputs"):
        cam_tf.build_classifier(keras.Model(image, [image, pooled]), 3)
    with pytest.raises(ValueError, match="a model has its own"):
        cam_tf.build_classifier(keras.Model(image, image), 3, input_shape=(8, 8, 3))
    taken = keras.layers.Conv2D(3, 1, name="pooling")(image)
    with pytest.raises(ValueError, match="has a name that the head needs"):
        cam_tf.build_classifier(keras.Model(image, taken), 3)
