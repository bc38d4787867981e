"""The sheet of many images: who stands where, and that nothing is cut off or overlaps."""

import numpy as np
import pytest

import cam_tf
from cam_tf.display.map_sheets import sheet


@pytest.fixture
def explained(rng):
    def make(count, classes=1):
        maps = rng.normal(size=(count, classes, 4, 4)).astype(np.float32)
        ids = np.arange(count * classes).reshape(count, classes) % 5
        scores = np.linspace(0.1, 0.9, count * classes).reshape(count, classes)
        return cam_tf.Explanation(maps, ids, scores, 9 * scores, (32, 32))

    return make


@pytest.mark.parametrize("shapes", [[(32, 32)], [(30, 90), (90, 30)] * 4, [(24, 32)] * 11])
def test_every_panel_has_its_place(shapes, explained):
    photos = [np.full((*shape, 3), 100, np.uint8) for shape in shapes]
    names = ["cat", "a name that is so long that it needs two lines", "dog", "hen", "ox"]
    figure = sheet(photos, explained(len(photos)), names, heading="epoch 12")
    assert figure.get_figwidth() < 10
    figure.canvas.draw()
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    boxes += [text.get_window_extent() for text in figure.texts if text.get_text()]
    whole = figure.bbox
    for box in boxes:
        assert whole.x0 <= box.x0 and box.x1 <= whole.x1
        assert whole.y0 <= box.y0 and box.y1 <= whole.y1
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert len(panels) == len(photos)
    pictures = [axes.get_window_extent() for axes in panels]
    for i, panel in enumerate(panels):
        title = panel._left_title.get_window_extent()
        for j, other in enumerate(pictures):
            assert i == j or not title.overlaps(other)
    for panel, shape in zip(panels, shapes, strict=True):
        extent = panel.get_window_extent()
        assert extent.width / extent.height == pytest.approx(shape[1] / shape[0], rel=1e-3)


def test_the_pictures_are_the_overlays(explained):
    photos = np.full((2, 32, 32, 3), 100, np.uint8)
    result = explained(2, classes=3)
    figure = sheet(photos, result)
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left").split("  ")[0] for axes in panels] == [
        f"class {class_id}" for class_id in result.class_ids.ravel()
    ]
    heatmaps = cam_tf.heatmaps(result.maps).numpy().reshape(6, 4, 4)
    for k, axes in enumerate(panels):
        expected = cam_tf.overlay(photos[0], heatmaps[k])
        shown = axes.images[0].get_array()
        assert np.abs(shown.astype(int) - expected).max() <= 8  # a step of the colour table


def test_what_does_not_fit(explained):
    photos = np.full((2, 32, 32, 3), 100, np.uint8)
    with pytest.raises(ValueError, match="2 photos do not go with 3"):
        sheet(photos, explained(3))
    with pytest.raises(ValueError, match="0 photos"):
        sheet([], explained(1)[:0])
    with pytest.raises(ValueError, match="unknown to matplotlib"):
        sheet(photos, explained(2), colormap="infern")
    with pytest.raises(ValueError, match=r"expected RGB in 0\.\.255"):
        sheet(photos - 200.0, explained(2))
