"""Run in a process of its own: loads an export where neither cam_tf nor Keras can be imported.

python serve_without_cam_tf.py EXPORT FOLDER: answers in.npz and photo.png with out.npz.
"""

import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
for name in ("cam_tf", "keras", "tf_keras", "cv2", "PIL"):
    sys.modules[name] = None  # an import of it fails

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

export, folder = map(Path, sys.argv[1:])
served = tf.saved_model.load(str(export)).signatures
answers = {}
for batch, images in np.load(folder / "in.npz").items():
    for key, value in served["serving_default"](images=tf.constant(images)).items():
        answers[f"{batch} {key}"] = value.numpy()
photo = (folder / "photo.png").read_bytes()
try:
    served["serving_bytes"](image_bytes=tf.constant([photo, b"\xff\xd8\xff\xe0" + bytes(99)]))
except tf.errors.InvalidArgumentError as error:
    print("InvalidArgumentError", error)
for key, value in served["serving_bytes"](image_bytes=tf.constant([photo])).items():
    answers[f"file {key}"] = value.numpy()
np.savez(folder / "out.npz", **{key: value for key, value in answers.items() if "names" not in key})
