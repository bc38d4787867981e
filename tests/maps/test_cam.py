"""The map itself: literal values, the identity of the theory, selection, compilation, memory."""

import gc

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf

import cam_tf

# tiny_model on tiny_image: pooled (2.5, 1.5), so logits 2.5, 3.5, 0.
MAPS = np.float32([[[1, 2], [3, 4]], [[0, 2], [0, 10]], [[1, 1], [3, -1]]])
LOGITS = np.float32([2.5, 3.5, 0])
PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum()


def test_literal_maps_of_all_classes(tiny_model, tiny_image):
    result = cam_tf.CAM(tiny_model)(tiny_image, "all").numpy()
    np.testing.assert_array_equal(result.maps[0], MAPS)
    np.testing.assert_array_equal(result.class_ids, [[0, 1, 2]])
    np.testing.assert_allclose(result.logits[0], LOGITS, rtol=1e-6)
    np.testing.assert_allclose(result.scores[0], PROBABILITIES, rtol=1e-6)
    assert result.image_size == (2, 2)
    assert result.maps.dtype == result.scores.dtype == result.logits.dtype == np.float32
    assert result.class_ids.dtype == np.int32


def test_the_predicted_class_is_the_default_and_top_k_comes_best_first(tiny_model, tiny_image):
    cam = cam_tf.CAM(tiny_model)
    result = cam(tiny_image).numpy()
    np.testing.assert_array_equal(result.class_ids, [[1]])
    np.testing.assert_array_equal(result.maps[0, 0], MAPS[1])
    result = cam(tiny_image, top_k=3).numpy()
    np.testing.assert_array_equal(result.class_ids, [[1, 0, 2]])
    np.testing.assert_array_equal(result.maps[0], MAPS[[1, 0, 2]])
    np.testing.assert_allclose(result.scores[0], PROBABILITIES[[1, 0, 2]], rtol=1e-6)


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (2, [[2], [2], [2]]),
        ([0, 1, 2], [[0], [1], [2]]),
        ([[0, 1], [1, 2], [2, 0]], [[0, 1], [1, 2], [2, 0]]),
        ([[2, 0]], [[2, 0]] * 3),
        (np.array([1, 1, 0]), [[1], [1], [0]]),
    ],
)
def test_given_classes(tiny_model, tiny_image, classes, expected):
    images = np.concatenate([tiny_image, 2 * tiny_image, -tiny_image])
    result = cam_tf.CAM(tiny_model)(images, classes).numpy()
    np.testing.assert_array_equal(result.class_ids, expected)
    for image, factor in enumerate([1, 2, -1]):
        np.testing.assert_array_equal(result.maps[image], factor * MAPS[expected[image]])


def test_predicted_and_given_classes_in_one_pass(tiny_model, tiny_image):
    cam = cam_tf.CAM(tiny_model)
    images = np.concatenate([tiny_image, -tiny_image])
    result = cam(images, [2, 1], top_k=2).numpy()
    np.testing.assert_array_equal(result.class_ids[0], [1, 0, 2])
    np.testing.assert_array_equal(result.class_ids[:, :2], cam(images, top_k=2).class_ids)
    np.testing.assert_array_equal(result.maps[1], -MAPS[result.class_ids[1]])
    with pytest.raises(ValueError, match="leave top_k out"):
        cam(images, "all", top_k=2)


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (3, ValueError, "class id 3 is out of range: the network has 3 classes, 0 to 2"),
        (-1, ValueError, "class id -1 is out of range"),
        ([0, 1], ValueError, r"2 ids for 1 images.*pass \[\[0, 1\]\]"),
        ([[0], [1]], ValueError, "2 lists for 1 images"),
        ([[0], [1, 2]], ValueError, "lists of different lengths"),
        ("tabby", ValueError, "use ids, or 'all'"),
        (1.5, TypeError, "expected integers"),
    ],
)
def test_classes_that_do_not_fit(tiny_model, tiny_image, classes, error, message):
    with pytest.raises(error, match=message):
        cam_tf.CAM(tiny_model)(tiny_image, classes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x[0], r"without a batch axis: pass images\[None\]"),
        (lambda x: x[None], r"takes images of shape \(N, any, any, 3\); got \(1, 1, 2, 2, 3\)"),
        (lambda x: x[..., :1], r"got \(1, 2, 2, 1\). The channels are the last axis"),
        (lambda x: np.where(x == 5, np.nan, x), r"images \[0\] hold NaN or infinity"),
        (lambda x: np.where(x == 5, np.inf, x), r"images \[0\] hold NaN or infinity"),
        (lambda x: [x[0], x[0, :1]], "different sizes must be resized"),
        (lambda x: "photo.jpg", "got"),
    ],
)
def test_images_that_do_not_fit(tiny_model, tiny_image, change, message):
    with pytest.raises(ValueError, match=message):
        cam_tf.CAM(tiny_model)(change(tiny_image))


def test_an_image_of_another_size_than_a_fixed_network_takes():
    model = cam_tf.build_classifier("EfficientNetLite0", 3, weights=None, input_shape=(64, 64, 3))
    with pytest.raises(ValueError, match=r"input_shape=\(None, None, 3\)"):
        cam_tf.CAM(model)(np.zeros((1, 65, 64, 3)))


@pytest.mark.parametrize("top_k", [0, 4])
def test_top_k_out_of_range(tiny_model, tiny_image, top_k):
    with pytest.raises(ValueError, match=f"top_k={top_k} is not between 1 and 3"):
        cam_tf.CAM(tiny_model)(tiny_image, top_k=top_k)


def test_batches_of_zero_one_and_many_and_odd_sizes(tiny_model, rng):
    cam = cam_tf.CAM(tiny_model)
    images = rng.uniform(0, 255, (11, 7, 5, 3)).astype(np.float32)
    whole = cam(images, top_k=2).numpy()
    assert whole.maps.shape == (11, 2, 7, 5)
    split = cam(images, top_k=2, batch_size=4).numpy()
    np.testing.assert_array_equal(whole.class_ids, split.class_ids)
    np.testing.assert_allclose(whole.maps, split.maps, rtol=1e-6)
    np.testing.assert_allclose(whole[3].maps, cam(images[3:4], top_k=2).maps, rtol=1e-6)
    for classes, top_k, n in ((None, 2, 2), (1, None, 1), (1, 2, 3), ("all", None, 3)):
        empty = cam(images[:0], classes, top_k)
        assert tuple(empty.maps.shape) == (0, n, 7, 5)
        assert tuple(empty.scores.shape) == (0, n)
    one = cam(images[:1, :1, :1])
    assert tuple(one.maps.shape) == (1, 1, 1, 1)


def test_uint8_images_are_taken_as_they_are(tiny_model, rng):
    images = rng.integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    cam = cam_tf.CAM(tiny_model)
    np.testing.assert_array_equal(cam(images).maps, cam(images.astype(np.float32)).maps)


def test_weights_are_live(tiny_model, tiny_image):
    cam = cam_tf.CAM(tiny_model)
    cam(tiny_image, 0)
    layer = tiny_model.get_layer("scores")
    kernel, bias = layer.get_weights()
    layer.set_weights([3 * kernel, bias])
    np.testing.assert_array_equal(cam(tiny_image, 0).maps[0, 0], 3 * MAPS[0])
    tiny_model.compile("sgd", "sparse_categorical_crossentropy")
    tiny_model.fit(tiny_image, np.array([2]), verbose=0)
    expected = tiny_model.get_layer("maps")(tiny_image) @ layer.kernel[:, :1]
    np.testing.assert_allclose(cam(tiny_image, 0).maps[0, 0], expected[0, :, :, 0], rtol=1e-5)


def test_traced_once_for_any_batch_and_image_size_without_growing(tiny_model, rng):
    cam = cam_tf.CAM(tiny_model)
    images = rng.uniform(0, 255, (9, 33, 33, 3)).astype(np.float32)
    process = psutil.Process()

    def call(i):
        cam(images[: 1 + i % 9, : 20 + i % 13], top_k=2)
        cam(images[: 1 + i % 9], [i % 3] * (1 + i % 9))

    for i in range(200):
        call(i)
    gc.collect()
    before = process.memory_info().rss
    for i in range(1000):
        call(i)
    gc.collect()
    assert process.memory_info().rss - before < 20e6
    assert set(cam._compiled) == {"selected"}  # one traced function for both


def test_xla_gives_the_same_maps(tiny_model, tiny_image):
    result = cam_tf.CAM(tiny_model, jit_compile=True)(tiny_image, top_k=2)
    np.testing.assert_allclose(result.maps[0], MAPS[[1, 0]], rtol=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("pooling", ["Average", "Max"])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_identity_for_signals_images_and_volumes_in_any_precision(rank, pooling, policy, rng):
    keras.config.set_dtype_policy(policy)
    layers = keras.layers
    image = keras.Input((*(6, 5, 4)[:rank], 2))
    maps = getattr(layers, f"Conv{rank}D")(8, 3, padding="same", activation="relu")(image)
    pool = getattr(layers, f"Global{pooling}Pooling{rank}D")(dtype="float32", name="pool")
    scores = layers.Dense(3, activation="sigmoid", dtype="float32", name="scores")(pool(maps))
    model = keras.Model(image, scores)
    kernel, bias = model.get_layer("scores").get_weights()
    model.get_layer("scores").set_weights([kernel, rng.normal(size=bias.shape)])
    images = rng.normal(size=(3, *image.shape[1:])).astype(np.float32)
    result = cam_tf.CAM(model)(images, "all").numpy()
    assert result.maps.shape == (3, 3, *image.shape[1:-1])
    assert result.maps.dtype == np.float32
    assert np.abs(result.maps).max() > 0.01
    bias = model.get_layer("scores").get_weights()[1]
    space = tuple(range(2, 2 + rank))
    if pooling == "Average":
        np.testing.assert_allclose(result.maps.mean(space) + bias, result.logits, atol=1e-5)
    else:  # the maps of each unit, taken where that unit is largest, sum to the logit
        model_maps = keras.Model(image, maps)(images).numpy().astype(np.float32)
        largest = model_maps.max(axis=tuple(range(1, 1 + rank)))
        kernel = model.get_layer("scores").get_weights()[0]
        np.testing.assert_allclose(largest @ kernel + bias, result.logits, atol=1e-5)
        expected = np.moveaxis(model_maps @ kernel, -1, 1)
        np.testing.assert_allclose(result.maps, expected, atol=1e-5)
    np.testing.assert_allclose(result.scores, model(images).numpy(), atol=1e-6)


def test_the_function_is_an_einsum_of_any_rank_in_a_graph_and_differentiable(rng):
    kernel = rng.normal(size=(4, 5)).astype(np.float32)
    ids = np.array([[3, 0], [1, 1]])

    @tf.function
    def in_graph(maps):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            total = tf.reduce_sum(cam_tf.class_activation_maps(maps, kernel, ids))
        return cam_tf.class_activation_maps(maps, kernel, ids), tape.gradient(total, maps)

    for space in [(), (3,), (3, 2), (3, 2, 2)]:
        maps = rng.normal(size=(2, *space, 4)).astype(np.float32)
        result, gradient = in_graph(tf.constant(maps))
        assert result.dtype == tf.float32
        for n in range(2):
            expected = np.moveaxis(maps[n] @ kernel[:, ids[n]], -1, 0)
            np.testing.assert_allclose(result[n], expected, rtol=1e-5, atol=1e-6)
            slope = np.broadcast_to(kernel[:, ids[n]].sum(axis=1), maps[n].shape)
            np.testing.assert_allclose(gradient[n], slope, rtol=1e-5)
        every = cam_tf.class_activation_maps(maps, kernel)
        np.testing.assert_allclose(every, np.moveaxis(maps @ kernel, -1, 1), rtol=1e-5, atol=1e-6)


def test_the_function_refuses_what_does_not_fit():
    maps = np.zeros((2, 3, 3, 4))
    with pytest.raises(ValueError, match="kernel of shape"):
        cam_tf.class_activation_maps(maps, np.zeros((5, 4)))
    with pytest.raises(ValueError, match="a row for each image"):
        cam_tf.class_activation_maps(maps, np.zeros((4, 5)), [1, 2])


def test_the_explanation_is_plain_data(tiny_model, tiny_image):
    images = np.concatenate([tiny_image, 2 * tiny_image])
    result = cam_tf.CAM(tiny_model)(images, "all")
    assert isinstance(result.maps, tf.Tensor)
    assert isinstance(result.numpy().maps, np.ndarray)
    assert len(result) == 2
    np.testing.assert_array_equal(result[-1].maps[0], 2 * MAPS)
    np.testing.assert_array_equal([one.maps[0] for one in result], [MAPS, 2 * MAPS])
    assert len(result[:1]) == 1
    with pytest.raises(IndexError):
        result[2]
    assert repr(result).startswith("Explanation(maps=(2, 3, 2, 2), class_ids=[[0, 1, 2], [0, 1")


def test_flipped_and_scaled_views_are_averaged(rng):
    image = keras.Input((None, None, 3))
    maps = keras.layers.Conv2D(4, 3, padding="same", activation="relu")(image)
    pooled = keras.layers.GlobalAveragePooling2D()(maps)
    model = keras.Model(image, keras.layers.Dense(3, activation="softmax")(pooled))
    images = rng.uniform(0, 1, (2, 8, 6, 3)).astype(np.float32)
    plain = cam_tf.CAM(model)
    mirrored = plain(images[:, :, ::-1], "all").numpy()
    straight = plain(images, "all").numpy()
    result = cam_tf.CAM(model, flip=True)(images, "all").numpy()
    np.testing.assert_allclose(
        result.maps, (straight.maps + mirrored.maps[..., ::-1]) / 2, rtol=1e-5, atol=1e-6
    )
    np.testing.assert_allclose(result.logits, (straight.logits + mirrored.logits) / 2, rtol=1e-5)
    larger = plain(tf.image.resize(images, (16, 12), antialias=True), "all").numpy()
    result = cam_tf.CAM(model, scales=(1.0, 2.0))(images, "all").numpy()
    small = tf.image.resize(np.moveaxis(straight.maps, 1, -1), (16, 12))
    expected = (np.moveaxis(small.numpy(), -1, 1) + larger.maps) / 2
    np.testing.assert_allclose(result.maps, expected, rtol=1e-4, atol=1e-5)
    assert result.image_size == (8, 6)
    top = cam_tf.CAM(model, scales=(1.0, 2.0), flip=True)(images, top_k=2).numpy()
    assert top.maps.shape == (2, 2, 16, 12)


def test_views_that_a_model_cannot_have(tiny_model):
    with pytest.raises(ValueError, match="expected positive shares"):
        cam_tf.CAM(tiny_model, scales=(0.0,))
    image = keras.Input((8, 8, 3))
    pooled = keras.layers.GlobalAveragePooling2D()(image)
    fixed = keras.Model(image, keras.layers.Dense(2)(pooled))
    with pytest.raises(ValueError, match=r"build it with input_shape=\(None, None, 3\)"):
        cam_tf.CAM(fixed, scales=(1.0, 1.5))
