"""Finding the image, the maps, the pooling and the logits; which heads have an exact CAM."""

import keras
import numpy as np
import pytest

import cam_tf

L, ops = keras.layers, keras.ops


def _randomise(model, rng):
    for layer in model._flatten_layers():
        for weight in getattr(layer, "weights", []) if not layer._layers else []:
            if "seed" not in weight.path:
                low = 0.5 if "variance" in weight.path else -1
                weight.assign(rng.uniform(low, 1, weight.shape))
    return model


def _model(head, rng, shape=(6, 6, 3)):
    """A convolution named "maps", (N, 4, 4, 5), and the head that ``head`` makes of it."""
    image = keras.Input(shape, name="image")
    maps = L.Conv2D(5, 3, activation="relu", name="maps")(image)
    return _randomise(keras.Model(image, head(maps), name="mine"), rng)


def _gap(maps, **options):
    return L.GlobalAveragePooling2D(**options)(maps)


def _chain(*layers):
    """A head of layers after global average pooling; made anew for each test by a lambda."""

    def head(maps):
        x = _gap(maps)
        for layer in layers:
            x = layer(x)
        return x

    return head


# name -> (the head, what it makes of the logits)
AFFINE = {
    "dense": (lambda: _chain(L.Dense(3)), None),
    "no bias": (lambda: _chain(L.Dense(3, use_bias=False)), None),
    "softmax activation": (lambda: _chain(L.Dense(3, activation="softmax")), "softmax"),
    "sigmoid activation": (lambda: _chain(L.Dense(3, activation="sigmoid")), "sigmoid"),
    "a single sigmoid": (lambda: _chain(L.Dense(1, activation="sigmoid")), "sigmoid"),
    "softmax layer": (lambda: _chain(L.Dense(3), L.Softmax()), "softmax"),
    "sigmoid layer": (lambda: _chain(L.Dense(3), L.Activation("sigmoid")), "sigmoid"),
    "softmax op": (lambda: lambda x: ops.softmax(L.Dense(3)(_gap(x))), "softmax"),
    "sigmoid op": (lambda: lambda x: ops.sigmoid(L.Dense(3)(_gap(x))), "sigmoid"),
    "log softmax op": (lambda: lambda x: ops.log_softmax(L.Dense(3)(_gap(x))), "log_softmax"),
    "softmax, then float32": (
        lambda: _chain(L.Dense(3, activation="softmax"), L.Activation("linear", dtype="float32")),
        "softmax",
    ),
    "dropout": (
        lambda: _chain(L.Dropout(0.5), L.Dense(3), L.Dropout(0.1), L.Softmax()),
        "softmax",
    ),
    "noise": (lambda: _chain(L.GaussianNoise(1.0), L.GaussianDropout(0.3), L.Dense(3)), None),
    "batch norm": (
        lambda: _chain(L.BatchNormalization(), L.Dense(3, activation="softmax")),
        "softmax",
    ),
    "batch norm after": (
        lambda: _chain(L.Dense(3), L.BatchNormalization(), L.Softmax()),
        "softmax",
    ),
    "rescaling": (lambda: _chain(L.Rescaling(0.3, 2.0), L.Dense(3)), None),
    "temperature": (
        lambda: lambda x: ops.softmax(L.Dense(3)(2 * _gap(x) - 1) / 1.5),
        "softmax",
    ),
    "linear layers": (
        lambda: _chain(L.Dense(7), L.Dense(4), L.Dense(3, activation="softmax")),
        "softmax",
    ),
    "everything": (
        lambda: _chain(
            *(L.BatchNormalization(), L.Dropout(0.2), L.Dense(4), L.Rescaling(2.0)),
            *(L.Dense(3), L.BatchNormalization(), L.Activation("softmax")),
        ),
        "softmax",
    ),
    "flatten 1x1": (lambda: lambda x: L.Dense(3)(L.Flatten()(_gap(x, keepdims=True))), None),
    "reshape 1x1": (lambda: lambda x: L.Dense(3)(L.Reshape((5,))(_gap(x, keepdims=True))), None),
    "reshape to 1x1, convolution": (
        lambda: _chain(L.Reshape((1, 1, 5)), L.Conv2D(3, 1), L.Flatten(), L.Softmax()),
        "softmax",
    ),
    "convolution with activation": (
        lambda: lambda x: L.Flatten()(L.Conv2D(3, 1, activation="softmax")(_gap(x, keepdims=True))),
        "softmax",
    ),
    "squeeze": (
        lambda: lambda x: ops.softmax(ops.squeeze(L.Conv2D(3, 1)(_gap(x, keepdims=True)), (1, 2))),
        "softmax",
    ),
    "maps of the classes": (lambda: lambda x: L.Softmax()(_gap(L.Conv2D(3, 1)(x))), "softmax"),
    "added to itself": (lambda: lambda x: L.Dense(3)(L.Add()([y := _gap(x), y])), None),
    "mean op": (lambda: lambda x: L.Dense(3)(ops.mean(x, axis=(1, 2))), None),
    "mean op, negative axes": (lambda: lambda x: L.Dense(3)(ops.mean(x, axis=[-3, -2])), None),
    "mean op, keepdims": (
        lambda: lambda x: L.Dense(3)(L.Flatten()(ops.mean(x, axis=(1, 2), keepdims=True))),
        None,
    ),
    "full average pooling": (
        lambda: lambda x: L.Dense(3)(L.Flatten()(L.AveragePooling2D(4)(x))),
        None,
    ),
}


@pytest.mark.parametrize("head", AFFINE)
def test_affine_heads_have_an_exact_map(head, rng):
    make, activation = AFFINE[head]
    model = _model(make(), rng)
    images = rng.normal(size=(3, 6, 6, 3)).astype(np.float32)
    anatomy = cam_tf.dissect(model)
    assert anatomy.affine
    assert anatomy.kernel().shape == (anatomy.feature_maps.shape[-1], anatomy.classes)
    result = cam_tf.CAM(model)(images, "all").numpy()
    bias = anatomy.bias().numpy()
    np.testing.assert_allclose(result.maps.mean((2, 3)) + bias, result.logits, rtol=1e-5, atol=3e-6)
    output = model(images, training=False).numpy()
    np.testing.assert_allclose(result.scores, output, rtol=1e-5, atol=2e-6)
    logits = keras.activations.get(activation)(keras.ops.convert_to_tensor(result.logits))
    np.testing.assert_allclose(logits, output, rtol=1e-4, atol=1e-6)
    some = cam_tf.CAM(model)(images, [[anatomy.classes - 1, 0]]).numpy()
    np.testing.assert_allclose(some.maps, result.maps[:, [-1, 0]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "pool",
    [
        L.GlobalMaxPooling2D,
        lambda: lambda x: ops.max(x, axis=(1, 2)),
        lambda: lambda x: L.Flatten()(L.MaxPooling2D(4)(x)),
        lambda: lambda x: ops.amax(x, axis=(1, 2)),
    ],
)
def test_max_pooling(pool, rng):
    model = _model(lambda maps: L.Dense(3, activation="softmax")(pool()(maps)), rng)
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    anatomy = cam_tf.dissect(model)
    result = cam_tf.CAM(model)(images, "all").numpy()
    maps = keras.Model(model.input, model.get_layer("maps").output)(images).numpy()
    kernel, bias = model.layers[-1].get_weights()
    np.testing.assert_allclose(anatomy.kernel(), kernel)
    np.testing.assert_allclose(result.maps, np.moveaxis(maps @ kernel, -1, 1), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(result.logits, maps.max((1, 2)) @ kernel + bias, rtol=1e-5)


NOT_AFFINE = {
    "a hidden relu": (
        lambda: _chain(L.Dense(4, "relu", name="hidden"), L.Dense(3)),
        r"'hidden' \(Dense\) stands between the pooled maps and the logits",
    ),
    "a relu layer": (
        lambda: _chain(L.Dense(4), L.ReLU(name="bent"), L.Dense(3)),
        r"'bent' \(ReLU\) stands between",
    ),
    "layer normalisation": (
        lambda: _chain(L.LayerNormalization(name="norm"), L.Dense(3, activation="softmax")),
        r"'norm' \(LayerNormalization\)",
    ),
    "flatten of a larger map": (
        lambda: lambda x: L.Dense(3)(L.Flatten(name="flat")(x)),
        r"'flat' \(Flatten\) stands where global pooling should",
    ),
    "a convolution over the map": (
        lambda: lambda x: L.Flatten()(L.Conv2D(3, 4, name="last")(x)),
        r"'last' \(Conv2D\) stands where global pooling should",
    ),
    "pooling of a part": (
        lambda: lambda x: L.Dense(3)(L.Flatten(name="flat")(L.AveragePooling2D(2)(x))),
        r"'flat' \(Flatten\) stands where",
    ),
    "average and max together": (
        lambda: (
            lambda x: L.Dense(3)(L.Concatenate(name="both")([_gap(x), L.GlobalMaxPooling2D()(x)]))
        ),
        r"'both' joins 2 branches of the image",
    ),
    "a gate": (
        lambda: (
            lambda x: L.Dense(3)(
                L.Multiply(name="gate")([y := _gap(x), L.Dense(5, activation="sigmoid")(y)])
            )
        ),
        r"'gate'",
    ),
    "a square": (lambda: lambda x: L.Dense(3)(ops.square(_gap(x))), r"\(Square\)"),
    "a reciprocal": (lambda: lambda x: L.Dense(3)(1.0 / (_gap(x) + 3.0)), r"Divide\)"),
}


@pytest.mark.parametrize("head", NOT_AFFINE)
def test_the_layer_in_the_way_is_named_and_grad_cam_works(head, rng):
    make, message = NOT_AFFINE[head]
    model = _model(make(), rng)
    with pytest.raises(ValueError, match=f"'mine' has no exact class activation map.*{message}"):
        cam_tf.CAM(model)
    with pytest.raises(ValueError, match=r"cam_tf.GradCAM"):
        cam_tf.dissect(model).kernel()
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    result = cam_tf.HiResCAM(model)(images, "all").numpy()
    np.testing.assert_allclose(result.scores, model(images), rtol=1e-5, atol=1e-6)
    assert np.abs(result.maps).max() > 0
    assert np.isfinite(cam_tf.GradCAM(model)(images).numpy().maps).all()


def test_the_target_is_what_is_pooled_not_the_last_convolution(rng):
    def resnet_like(maps):
        x = L.BatchNormalization()(L.Conv2D(5, 1, name="last_conv")(maps))
        x = L.Activation("relu", name="out")(L.Add(name="add")([maps, x]))
        return L.Dense(3, activation="softmax")(_gap(x))

    model = _model(resnet_like, rng)
    assert cam_tf.dissect(model).feature_maps.call.path == "out"
    assert "layer='out'" in repr(cam_tf.CAM(model))
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    maps = keras.Model(model.input, model.get_layer("out").output)(images, training=False)
    expected = np.moveaxis(maps.numpy() @ model.layers[-1].kernel.numpy(), -1, 1)
    result = cam_tf.CAM(model)(images, "all")
    np.testing.assert_allclose(result.maps, expected, rtol=1e-5, atol=1e-6)


def _nested(rng):
    inner_image = keras.Input((6, 6, 3))
    x = L.Conv2D(4, 3, name="conv", activation="relu")(inner_image)
    inner = keras.Model(inner_image, L.Conv2D(5, 1, name="last")(x), name="inner.v1")
    middle_image = keras.Input((6, 6, 3))
    middle = keras.Model(middle_image, inner(middle_image), name="middle")
    image = keras.Input((6, 6, 3))
    x = L.Conv2D(3, 1, name="conv")(image)
    return _randomise(keras.Model(image, L.Dense(3)(_gap(middle(x), name="gap"))), rng)


@pytest.mark.parametrize(
    ("layer", "paths"),
    [
        (None, ["middle/inner.v1/last"]),
        ("last", ["middle/inner.v1/last"]),
        ("inner.v1/conv", ["middle/inner.v1/conv"]),
        ("middle/inner.v1/conv", ["middle/inner.v1/conv"]),
        ("middle", ["middle/inner.v1/last"]),
        (["inner.v1/conv", "last"], ["middle/inner.v1/conv", "middle/inner.v1/last"]),
    ],
)
def test_layers_by_name_and_path(layer, paths, rng):
    anatomy = cam_tf.dissect(_nested(rng), layer)
    assert [value.call.path for value in anatomy.layers] == paths
    assert anatomy.affine == (len(paths) == 1 and paths[0].endswith("last"))


def test_a_layer_object_and_the_input_itself(rng):
    model = _nested(rng)
    layer = model.get_layer("middle").get_layer("inner.v1").get_layer("last")
    assert cam_tf.dissect(model, layer).feature_maps.call.path == "middle/inner.v1/last"


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("lst", "no layer 'lst'.*'last'.*The maps that it pools are those of 'middle/inner.v1/las"),
        ("conv", r"'conv' stands for 2 tensors \(.*middle/inner.v1/conv.*whole path"),
        ("gap", r"'gap' returns shape \(None, 5\), without spatial axes: it stands after"),
        ([], "expected a layer's name, or a list of names"),
        (-1, "expected a layer's name, or a list of names"),
        (["last", "nothing"], "no layer 'nothing'"),
    ],
)
def test_layers_that_do_not_fit(layer, message, rng):
    with pytest.raises(ValueError, match=message):
        cam_tf.GradCAM(_nested(rng), layer)


def test_pooled_maps_of_1x1_are_after_the_pooling_too(rng):
    model = _model(lambda x: L.Dense(3)(L.Flatten()(_gap(x, keepdims=True, name="pool"))), rng)
    with pytest.raises(ValueError, match=r"'pool'.*stands after.*'maps'"):
        cam_tf.GradCAM(model, "pool")


def test_a_layer_that_is_not_pooled_has_no_cam_but_a_grad_cam(rng):
    model = _nested(rng)
    with pytest.raises(ValueError, match=r"'middle/inner.v1/conv' are not what the model pools"):
        cam_tf.CAM(model, "inner.v1/conv")
    with pytest.raises(ValueError, match="no exact class activation map"):
        cam_tf.CAM(model, ["inner.v1/conv", "last"])
    assert cam_tf.GradCAM(model, "inner.v1/conv")(np.ones((1, 6, 6, 3))).maps.shape == (1, 1, 4, 4)


def test_a_layer_beside_the_scores(rng):
    image = keras.Input((6, 6, 3))
    side = L.Conv2D(2, 3, name="side")(image)
    scores = L.Dense(3, name="scores")(_gap(L.Conv2D(4, 3)(image)))
    model = keras.Model(image, [scores, side])
    with pytest.raises(ValueError, match="do not depend on layer 'side'"):
        cam_tf.GradCAM(model, "side", output="scores")


def _two_inputs(rng):
    image, table = keras.Input((6, 6, 3), name="photo"), keras.Input((4,), name="table")
    pooled = _gap(L.Conv2D(5, 3, name="maps")(image))
    tabular = L.Dense(6, activation="relu")(table)
    scores = L.Dense(3, activation="softmax", name="scores")(L.Concatenate()([tabular, pooled]))
    return _randomise(keras.Model([table, image], scores), rng)


def test_image_and_table(rng):
    model = _two_inputs(rng)
    anatomy = cam_tf.dissect(model)
    assert anatomy.image.symbol.name == "photo"
    kernel = model.get_layer("scores").kernel.numpy()
    np.testing.assert_allclose(anatomy.kernel(), kernel[6:], rtol=1e-6)  # the image's slice
    images = rng.normal(size=(3, 6, 6, 3)).astype(np.float32)
    table = rng.normal(size=(3, 4)).astype(np.float32)
    for given in ([table, images], {"photo": images, "table": table}):
        result = cam_tf.CAM(model)(given, "all").numpy()
        np.testing.assert_allclose(result.scores, model([table, images]), atol=1e-6)
        rest = result.logits - result.maps.mean((2, 3))  # what the table contributes
        hidden = np.maximum(
            table @ model.layers[3].kernel.numpy() + model.layers[3].bias.numpy(), 0
        )
        expected = hidden @ kernel[:6] + model.get_layer("scores").bias.numpy()
        np.testing.assert_allclose(rest, expected, rtol=1e-4, atol=1e-5)
    empty = cam_tf.CAM(model)([np.zeros_like(table), images], "all").numpy()
    np.testing.assert_allclose(
        empty.maps.mean((2, 3)) + anatomy.bias(), empty.logits, rtol=1e-5, atol=1e-5
    )
    for given, message in [
        (images, "takes 2 inputs: pass a list"),
        ({"photo": images}, r"inputs \['table'\] are missing"),
        ([table[:2], images], "different numbers of examples"),
    ]:
        with pytest.raises(ValueError, match=message):
            cam_tf.CAM(model)(given)


def _two_images(rng):
    left, right = keras.Input((6, 6, 3), name="left"), keras.Input((6, 6, 3), name="right")
    pooled = [_gap(L.Conv2D(4, 3, name=name)(x)) for name, x in (("a", left), ("b", right))]
    scores = L.Dense(3)(L.Concatenate()(pooled))
    return _randomise(keras.Model([left, right], scores), rng)


def test_two_images_need_a_name(rng):
    model = _two_images(rng)
    with pytest.raises(ValueError, match=r"2 inputs, 'left' \(None, 6, 6, 3\), 'right'.*input='l"):
        cam_tf.CAM(model)
    with pytest.raises(ValueError, match=r"no input 'lift'.*'left'"):
        cam_tf.CAM(model, input="lift")
    images = rng.normal(size=(2, 2, 6, 6, 3)).astype(np.float32)
    logits = model(list(images)).numpy()
    total = 0
    for choice, path in [("left", "a"), (1, "b")]:
        explainer = cam_tf.CAM(model, input=choice)
        assert explainer.anatomy.feature_maps.call.path == path
        result = explainer(list(images), "all").numpy()
        np.testing.assert_allclose(result.logits, logits, rtol=1e-5, atol=1e-6)
        total = total + result.maps.mean((2, 3))
    np.testing.assert_allclose(total + model.layers[-1].bias, logits, rtol=1e-5, atol=1e-5)


def _two_outputs(rng, as_dict=False):
    image = keras.Input((6, 6, 3))
    pooled = _gap(L.Conv2D(4, 3)(image))
    kinds = L.Dense(3, activation="softmax", name="kinds")(pooled)
    age = L.Dense(1, name="age")(pooled)
    outputs = {"kind": kinds, "years": age} if as_dict else [kinds, age]
    return _randomise(keras.Model(image, outputs), rng)


def test_several_outputs(rng):
    model, images = _two_outputs(rng), rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    with pytest.raises(ValueError, match=r"2 outputs, 'kinds' \(None, 3\), 'age'.*output='kinds'"):
        cam_tf.CAM(model)
    with pytest.raises(ValueError, match=r"no output 'ag'.*'age'.*It has 'kinds' \(None, 3\)"):
        cam_tf.CAM(model, output="ag")
    with pytest.raises(ValueError, match="no output 2"):
        cam_tf.CAM(model, output=2)
    expected = model(images)
    for choice, index in [("kinds", 0), (0, 0), ("age", 1), (1, 1), (-1, 1)]:
        result = cam_tf.CAM(model, output=choice)(images, "all").numpy()
        np.testing.assert_allclose(result.scores, expected[index], rtol=1e-5, atol=1e-6)


def test_a_dictionary_of_outputs(rng):
    model, images = _two_outputs(rng, True), rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    result = cam_tf.CAM(model, output="years")(images, "all").numpy()
    np.testing.assert_allclose(result.scores, model(images)["years"], rtol=1e-5, atol=1e-6)


def test_no_spatial_maps_at_all():
    table = keras.Input((4,))
    model = keras.Model(table, L.Dense(2)(L.Dense(3)(table)), name="tabular")
    with pytest.raises(ValueError, match=r"'tabular' has no feature maps.*convolutional"):
        cam_tf.GradCAM(model)
    image = keras.Input((6, 6, 3))
    segmenter = keras.Model(image, L.Conv2D(2, 1, activation="softmax")(image), name="segmenter")
    with pytest.raises(ValueError, match=r"'segmenter' has shape .* not class scores.*target="):
        cam_tf.GradCAM(segmenter)


def test_a_quantized_dense_layer_is_not_read_as_plain_weights(rng):
    model = _model(_chain(L.Dense(3)), rng)
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    before = cam_tf.GradCAM(model)(images, "all").numpy()
    model.layers[-1].quantize("int8")
    after = cam_tf.GradCAM(model)(images, "all").numpy()
    np.testing.assert_allclose(after.logits, model(images), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(after.maps, before.maps, atol=0.02 * before.maps.max())
    with pytest.raises(ValueError, match="no exact class activation map"):
        cam_tf.CAM(model)


def test_dictionary_outputs_are_named_whatever_their_order(rng):
    image = keras.Input((6, 6, 3))
    pooled = L.GlobalAveragePooling2D()(L.Conv2D(4, 3)(image))
    model = keras.Model(image, {"z": L.Dense(3)(pooled), "a": L.Dense(5)(pooled)})
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    for name, classes in (("z", 3), ("a", 5)):
        result = cam_tf.CAM(model, output=name)(images, "all")
        assert result.logits.shape == (2, classes)
        np.testing.assert_allclose(result.logits, model(images)[name], rtol=1e-5, atol=1e-6)


class _Cosine(L.Dense):
    """A dense layer in name only."""

    def call(self, inputs, training=None):
        unit = keras.ops.normalize(inputs, axis=-1)
        return keras.ops.matmul(unit, keras.ops.normalize(self.kernel, axis=0))


def test_a_subclass_with_a_call_of_its_own_is_not_taken_for_its_base(rng):
    model = _model(_chain(_Cosine(3, name="cosine")), rng)
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    with pytest.raises(ValueError, match=r"'cosine' \(_Cosine\) stands between"):
        cam_tf.CAM(model)
    result = cam_tf.GradCAM(model)(images, "all")
    np.testing.assert_allclose(result.logits, model(images), rtol=1e-5, atol=1e-6)


def test_an_activation_that_gives_no_probabilities_stays(rng):
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    for end in ([L.Dense(3), L.Activation("relu")], [L.Dense(3), L.ReLU()], [L.Dense(3, "relu")]):
        model = _model(_chain(*end), rng)
        result = cam_tf.GradCAM(model)(images, "all")
        np.testing.assert_allclose(result.logits, model(images), rtol=1e-5, atol=1e-6)
    model = _model(_chain(L.Dense(3, "softmax"), L.Activation("linear")), rng)
    result = cam_tf.CAM(model)(images, "all")
    np.testing.assert_allclose(result.scores, model(images), rtol=1e-5, atol=1e-6)


class _Backbone(keras.Model):
    """A subclassed model that pools its own maps."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.pool = L.Conv2D(4, 3, name="inner"), L.GlobalAveragePooling2D()

    def call(self, images):
        return self.pool(self.conv(images))


def test_a_nested_subclassed_model_is_opened(rng):
    image = keras.Input((6, 6, 3))
    model = keras.Model(image, L.Dense(3)(_Backbone(name="mine")(image)))
    images = rng.normal(size=(2, 6, 6, 3)).astype(np.float32)
    cam = cam_tf.CAM(model)
    assert "mine/inner" in repr(cam)
    result = cam(images, "all")
    np.testing.assert_allclose(result.logits, model(images), rtol=1e-5, atol=1e-6)


class _Opaque(L.Layer):
    """A layer that goes from the image to pooled features in one step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.conv, self.pool = L.Conv2D(4, 3), L.GlobalAveragePooling2D()

    def build(self, shape):
        self.conv.build(shape)

    def call(self, images):
        return self.pool(self.conv(images))


def test_the_image_itself_is_never_taken_for_the_maps(rng):
    image = keras.Input((6, 6, 3))
    model = keras.Model(image, L.Dense(3)(_Opaque(name="opaque")(image)))
    with pytest.raises(ValueError, match="'opaque', whose inside cannot be read"):
        cam_tf.GradCAM(model)


def test_frames_keep_their_spatial_axes(rng):
    video = keras.Input((3, 8, 8, 3))
    maps = L.TimeDistributed(L.Conv2D(4, 3), name="frames")(video)
    pooled = L.GlobalAveragePooling1D()(L.TimeDistributed(L.GlobalAveragePooling2D())(maps))
    model = keras.Model(video, L.Dense(2, "relu")(L.Dense(5, "relu")(pooled)))
    assert "'frames'" in repr(cam_tf.GradCAM(model))


def test_of_two_scales_the_deeper_is_the_target():
    image = keras.Input((12, 12, 3))
    fine = L.Conv2D(4, 3, name="fine")(image)
    deep = L.Conv2D(4, 3, name="deep")(fine)
    pooled = [L.GlobalAveragePooling2D()(one) for one in (deep, fine)]
    model = keras.Model(image, L.Dense(2)(L.Concatenate()(pooled)))
    assert "'deep'" in repr(cam_tf.GradCAM(model))


def test_a_shared_backbone_is_told_apart_by_the_input(rng):
    backbone = keras.Sequential([keras.Input((6, 6, 3)), L.Conv2D(4, 3, name="top")], name="emb")
    left, right = keras.Input((6, 6, 3), name="l"), keras.Input((6, 6, 3), name="r")
    pooled = [L.GlobalAveragePooling2D()(backbone(one)) for one in (left, right)]
    model = keras.Model([left, right], L.Dense(2)(L.Concatenate()(pooled)))
    images = rng.normal(size=(2, 2, 6, 6, 3)).astype(np.float32)
    named = cam_tf.GradCAM(model, "emb/top", input="l")(list(images), "all")
    default = cam_tf.GradCAM(model, input="l")(list(images), "all")
    np.testing.assert_array_equal(named.maps, default.maps)
    with pytest.raises(ValueError, match="no layer 'top'"):
        cam_tf.GradCAM(model, L.Conv2D(4, 3, name="top"), input="l")
