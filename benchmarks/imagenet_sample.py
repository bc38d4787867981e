"""Top-1 and top-5 accuracy of a backbone on a folder of ILSVRC images: a check of its port.

    python benchmarks/imagenet_sample.py FOLDER [--model EfficientNetLite0]

FOLDER is in the format of the WSOL benchmark: ``class_labels.txt`` has lines ``ID,class``, and the
images are at ``images/ID``. Images are resized whole to the network's size.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import cam_tf


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="EfficientNetLite0")
    arguments = parser.parse_args()
    lines = (arguments.folder / "class_labels.txt").read_text().splitlines()
    model = cam_tf.build_classifier(arguments.model)
    cam, size = cam_tf.CAM(model), model.input_shape[1:3]
    right = []
    for start in range(0, len(lines), 32):
        names, labels = zip(*(line.split(",") for line in lines[start : start + 32]), strict=True)
        photos = [cam_tf.load_image(arguments.folder / "images" / name) for name in names]
        images = np.stack([cam_tf.resize_image(photo, size) for photo in photos])
        found = cam(images, top_k=5).numpy().class_ids
        right.append(found == np.array(labels, int)[:, None])
    right = np.concatenate(right)
    top1, top5 = right[:, 0].mean(), right.any(axis=1).mean()
    error = (top1 * (1 - top1) / len(right)) ** 0.5
    print(
        f"{arguments.model}: top-1 {top1:.3f} (standard error {error:.3f}), top-5 {top5:.3f} "
        f"on {len(right)} images"
    )


if __name__ == "__main__":
    main()
