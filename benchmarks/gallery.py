"""Draws photos with the maps of every method side by side, for one class each.

    python benchmarks/gallery.py [PHOTO ...] [--model EfficientNetLite0] [-o methods.png]

Without photos: those that come with cam_tf. The perturbation methods ask 128 channels.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import cam_tf
from cam_tf.display.discovery_sheets import Panel, photo_sheet
from cam_tf.maps.baselines import CenterGaussian, RandomMap
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
    methods = [kind for kind in METHODS.values() if kind not in (CenterGaussian, RandomMap)]
    explainers = [
        kind(model, **({"max_channels": 128} if issubclass(kind, PerturbationExplainer) else {}))
        for kind in methods
    ]
    panels = []
    for photo in photos:
        image = cam_tf.resize_image(photo, size)[None]
        results = [explain(image).numpy() for explain in explainers]
        panels.append(Panel(photo, names[int(results[0].class_ids[0, 0])]))
        panels += [
            Panel(photo, kind.__name__, result.maps[0, 0])
            for kind, result in zip(methods, results, strict=True)
        ]
    photo_sheet(panels, columns=(len(methods) + 2) // 2).savefig(arguments.output)
    print(arguments.output)


if __name__ == "__main__":
    main()
