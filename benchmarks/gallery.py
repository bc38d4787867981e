"""Draws photos with the maps of every method side by side, for one class each.

    python benchmarks/gallery.py [PHOTO ...] [--model EfficientNetLite0] [-o methods.png]

Without photos: those that come with cam_tf. The perturbation methods ask 128 channels.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from matplotlib.figure import Figure

import cam_tf
from cam_tf.maps.methods import METHODS
from cam_tf.maps.perturbations import PerturbationExplainer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", type=Path)
    parser.add_argument("--model", default="EfficientNetLite0")
    parser.add_argument("-o", "--output", type=Path, default=Path("methods.png"))
    arguments = parser.parse_args()
    photos = [cam_tf.load_image(path) for path in arguments.photos or cam_tf.demo_photos()]
    model = cam_tf.build_classifier(arguments.model)
    size, names = model.input_shape[1:3], cam_tf.imagenet_classes()
    images = [cam_tf.resize_image(photo, size) for photo in photos]
    columns, rows = len(METHODS) // 2 + 1, 2 * len(photos)
    figure = Figure(figsize=(1.5 * columns, 1.25 * rows), dpi=150, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for panel in axes.flat:
        panel.set_axis_off()
    for method, explainer_class in METHODS.items():
        asks = issubclass(explainer_class, PerturbationExplainer)
        explainer = explainer_class(model, **({"max_channels": 128} if asks else {}))
        column, half = list(METHODS).index(method) % (columns - 1) + 1, 0
        half = list(METHODS).index(method) // (columns - 1)
        for i, (photo, image) in enumerate(zip(photos, images, strict=True)):
            result = explainer(image[None])
            heatmap = cam_tf.heatmaps(result, photo.shape[:2])[0, 0].numpy()
            panel = axes[2 * i + half, column]
            panel.imshow(cam_tf.overlay(photo, heatmap))
            panel.set_title(explainer_class.__name__, fontsize=7, pad=2)
            axes[2 * i, 0].imshow(photo)
            axes[2 * i, 0].set_title(names[int(result.class_ids[0, 0])], fontsize=7, pad=2)
    figure.savefig(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
