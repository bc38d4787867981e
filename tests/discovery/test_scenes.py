"""Informative objects: made-up scenes in the layouts of ADE20K and LabelMe, with known answers."""

import json

import keras
import numpy as np
import pytest
from PIL import Image

from cam_tf.discovery import PooledFeatures
from cam_tf.discovery.scenes import informative_objects, labelme_images, scene_parse_images

# A kitchen has a red oven, a bedroom a blue bed; both have a gray floor, the most frequent object.
OBJECTS = {"oven": (1, (250, 20, 20)), "bed": (2, (20, 20, 250)), "floor": (3, (90, 90, 90))}
SCENES = {"kitchen": "oven", "bedroom": "bed"}


@pytest.fixture
def network():
    image = keras.Input((16, 16, 3))
    maps = keras.layers.AveragePooling2D(4)(keras.layers.Rescaling(1 / 255)(image))
    return keras.Model(image, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling2D()(maps)))


def _picture(rng, scene, with_object):
    """A picture of 32x48 and its object numbers: the floor below, the scene's object above it."""
    numbers = np.zeros((32, 48), np.uint8)
    numbers[24:] = 3
    if with_object:
        x = rng.integers(0, 4) * 12
        numbers[0:8, x : x + 12] = OBJECTS[SCENES[scene]][0]
    picture = rng.integers(120, 140, (32, 48, 3), np.uint8)
    for number, colour in OBJECTS.values():
        picture[numbers == number] = colour
    return picture, numbers


@pytest.fixture
def ade(tmp_path, rng):
    root = tmp_path / "ade"
    for part in ("images", "annotations"):
        (root / part / "validation").mkdir(parents=True)
    lines = []
    for scene in SCENES:
        for i in range(10):
            name = f"ADE_val_{scene}{i}"
            picture, numbers = _picture(rng, scene, with_object=i > 1)
            Image.fromarray(picture).save(root / "images/validation" / f"{name}.png")
            Image.fromarray(numbers).save(root / "annotations/validation" / f"{name}.png")
            lines.append(f"{name} {scene}")
    (root / "sceneCategories.txt").write_text("\n".join(lines) + "\nADE_train_1 beach\n")
    table = "Idx\tRatio\tTrain\tVal\tStuff\tName\n"
    table += "".join(
        f"{number}\t0.1\t1\t1\t0\t{name}, other name\n" for name, (number, _) in OBJECTS.items()
    )
    (root / "objectInfo150.txt").write_text(table)
    return root


def test_the_two_rankings_differ(ade, network):
    images = scene_parse_images(ade)
    assert (len(images), images[0].scene) == (20, "bedroom")
    told = []
    found = informative_objects(PooledFeatures(network), images, C=1.0, progress=told.append)
    assert sum(told) == 40
    for scene, thing in SCENES.items():
        assert found.by_frequency(scene)[0].name == "floor"
        assert found.by_overlap(scene)[0].name == thing
        assert found.objects[scene]["floor"].frequency == 1.0
        assert found.objects[scene][thing].frequency == pytest.approx(0.8)
        assert found.objects[scene][thing].overlap > 0.9
        assert found.objects[scene]["floor"].overlap < 0.3
        assert found.by_overlap(scene, least=9)[0].name == "floor"
    assert found.bad == {}


def test_bad_images_and_masks_are_named(ade, network, rng):
    (ade / "images/validation/ADE_val_kitchen0.png").write_text("no picture")
    Image.new("L", (5, 5)).save(ade / "annotations/validation/ADE_val_kitchen1.png")
    (ade / "annotations/validation/ADE_val_kitchen2.png").unlink()
    Image.fromarray(np.ones((5, 5), np.uint8)).save(
        ade / "annotations/validation/ADE_val_kitchen1.png"
    )
    found = informative_objects(PooledFeatures(network), scene_parse_images(ade), C=1.0)
    reasons = {path[-5]: why for path, why in found.bad.items()}
    assert "not a readable image" in reasons["0"]
    assert "5x5, and the image 32x48" in reasons["1"]
    assert "missing" in reasons["2"]
    assert found.objects["kitchen"]["oven"].images == 7
    with pytest.raises(ValueError, match="of one class"):
        informative_objects(PooledFeatures(network), scene_parse_images(ade, scenes=["bedroom"]))
    with pytest.raises(ValueError, match=r"no scene \['beech'\]"):
        scene_parse_images(ade, scenes=["beech"])
    with pytest.raises(FileNotFoundError, match="images/training"):
        scene_parse_images(ade, "training")


def test_labelme(tmp_path, rng, network):
    for scene in SCENES:
        (tmp_path / scene).mkdir()
        for i in range(4):
            picture, numbers = _picture(rng, scene, with_object=True)
            Image.fromarray(picture).save(tmp_path / scene / f"{i}.png")
            left = int(np.flatnonzero(numbers[0])[0])
            thing = {"label": SCENES[scene], "shape_type": "rectangle"}
            floor = {"label": "floor", "points": [[0, 24], [47, 24], [47, 31], [0, 31]]}
            data = {
                "imagePath": f"..\\{scene}\\{i}.png",
                "imageHeight": 32,
                "imageWidth": 48,
                "shapes": [
                    {**thing, "points": [[left, 0], [left + 11, 7]]},
                    {**floor, "shape_type": "polygon"},
                    {"label": "lamp", "points": [[5, 5]], "shape_type": "point"},
                    {"label": "clock", "points": [[20, 15], [23, 15]], "shape_type": "circle"},
                ],
            }
            (tmp_path / scene / f"{i}.json").write_text(json.dumps(data))
    images = labelme_images(tmp_path)
    objects = images[0].read_objects()
    assert set(objects) == {"bed", "floor", "clock"}
    assert (objects["floor"].sum(), objects["bed"].sum()) == (8 * 48, 8 * 12)
    assert 25 <= objects["clock"].sum() <= 37
    found = informative_objects(PooledFeatures(network), images, C=1.0)
    assert found.objects["kitchen"]["oven"].overlap > 0.9
    (tmp_path / "kitchen" / "0.json").write_text("{}")
    with pytest.raises(ValueError, match="no file of LabelMe"):
        labelme_images(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"SCENE/NAME\.json"):
        labelme_images(tmp_path / "kitchen")
