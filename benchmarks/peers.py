"""Which Keras models each library's Grad-CAM explains, asked as its documentation asks it.

    python benchmarks/peers.py

Wants an environment of its own with cam_tf and any of tf-keras-vis, tf-explain and xplique. The
same classifier is written in four ways, with the same weights. No layer is named unless the library
wants one; then it is given the name of the last convolution, as in its examples. Whether a map
comes out is all that is compared: what the libraries do with it afterwards is not the same.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import cam_tf

_CLASS = 2


def _backbone() -> keras.Model:
    image = keras.Input((64, 64, 3), name="backbone_image")
    maps = keras.layers.Conv2D(8, 5, 4, activation="relu", name="first")(image)
    maps = keras.layers.Conv2D(16, 3, 2, activation="relu", name="last_conv")(maps)
    return keras.Model(image, maps, name="backbone")


def _models() -> dict[str, keras.Model]:
    """The same classifier in four ways."""
    keras.utils.set_random_seed(0)
    backbone = _backbone()
    pool, dense = (
        keras.layers.GlobalAveragePooling2D(name="pool"),
        keras.layers.Dense(5, activation="softmax", name="scores"),
    )
    image = keras.Input((64, 64, 3))
    models = {
        "flat": keras.Model(backbone.input, dense(pool(backbone.output))),
        "nested": keras.Model(image, dense(pool(backbone(image)))),
        "Sequential": keras.Sequential(
            [keras.Input((64, 64, 3)), *backbone.layers[1:], pool, dense]
        ),
        "nested in Sequential": keras.Sequential([image, backbone, pool, dense]),
    }
    for model in models.values():
        model(tf.zeros((1, 64, 64, 3)))
    return models


def _ours(model, images):
    return cam_tf.GradCAM(model)(images, classes=_CLASS).maps[:, 0]


def _tf_keras_vis(model, images):
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.model_modifiers import ReplaceToLinear
    from tf_keras_vis.utils.scores import CategoricalScore

    theirs = Gradcam(model, model_modifier=ReplaceToLinear(), clone=True)
    return theirs(CategoricalScore([_CLASS] * len(images)), images, expand_cam=False)


def _tf_explain(model, images):
    from tf_explain.core.grad_cam import GradCAM

    guided = GradCAM.get_gradients_and_filters(
        model, images, "last_conv", _CLASS, use_guided_grads=False
    )
    return GradCAM.generate_ponderated_output(*guided)


def _xplique(model, images):
    from xplique.attributions import GradCAM

    labels = tf.one_hot([_CLASS] * len(images), 5)
    return GradCAM(model)(tf.constant(images), labels)


_LIBRARIES = {
    "cam_tf": _ours,
    "tf-keras-vis": _tf_keras_vis,
    "tf-explain": _tf_explain,
    "xplique": _xplique,
}


def main() -> None:
    models = _models()
    images = np.random.default_rng(0).uniform(0, 1, (2, 64, 64, 3)).astype(np.float32)
    print(f"TensorFlow {tf.__version__}, Keras {keras.__version__}")
    for library, explain in _LIBRARIES.items():
        for name, model in models.items():
            try:
                found = np.asarray(explain(model, images), np.float32)
                usable = np.isfinite(found).all() and np.ptp(found) > 0
                answer = "a map" if usable else "a map that is flat or not finite"
            except Exception as error:
                reason = " ".join(str(error).split())[:90]
                answer = f"fails: {type(error).__name__}: {reason}"
            print(f"{library:14} {name:22} {answer}")


if __name__ == "__main__":
    main()
