"""The sheet of cases: places, colours and words."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from cam_tf.display.overlays import overlay
from cam_tf.display.sheets import DRAWN, TRUE, Case, case_sheet


def case(**changed) -> Case:
    ramp = np.linspace(0, 1, 8, dtype=np.float32)[:, None] * np.ones((8, 8), np.float32)
    given = {
        "image": np.full((20, 40, 3), 100, np.uint8),
        "map": ramp,
        "overlap": 0.625,
        "name": "tabby",
        "id": "val/cat.png",
        "boxes": np.array([[0.1, 0.2, 0.6, 0.5], [0, 0, 1, 1]]),
        "box": np.array([0.25, 0.5, 0.75, 1]),
    }
    return Case(**{**given, **changed})


def words(figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_boxes_maps_and_words():
    figure = case_sheet({"best": [case()], "worst": [case(predicted="dog")]}, "A model")
    assert words(figure) == [
        *("A model", "best", "IoU 0.62  tabby", "val/cat.png"),
        *("worst", "IoU 0.62  tabby", "predicted: dog", "val/cat.png"),
    ]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "true box",
        "box of the map",
    ]
    first, second = figure.axes
    drawn = [one for one in first.patches if isinstance(one, Rectangle)]
    found = [(to_hex(one.get_edgecolor()), np.round(one.get_bbox().extents, 6)) for one in drawn]
    expected = [
        (TRUE, [0.2, 0.1, 0.5, 0.6]),
        (TRUE, [0, 0, 1, 1]),
        ("#ffffff", [0.5, 0.25, 1, 0.75]),
    ]
    assert DRAWN == "white"
    for (colour, place), (wanted, where) in zip(found, expected, strict=True):
        assert colour == wanted
        np.testing.assert_allclose(place, where)
    picture = first.images[0].get_array()
    # The map runs from its minimum on top to its maximum below.
    np.testing.assert_array_equal(picture[0, 0], overlay(case().image, np.zeros((1, 1)))[0, 0])
    np.testing.assert_array_equal(picture[-1, -1], overlay(case().image, np.ones((1, 1)))[0, 0])
    assert second.get_position().y1 < first.get_position().y0


def test_photos_keep_the_shape_of_the_original():
    figure = case_sheet({"best": [case(), case(size=(30, 20)), case(image=np.zeros((9, 9, 3)))]})
    width, height = figure.get_size_inches()
    shapes = [axes.get_position() for axes in figure.axes]
    ratios = [one.width * width / (one.height * height) for one in shapes]
    np.testing.assert_allclose(ratios, [2, 2 / 3, 1])
    assert shapes[0].x1 < shapes[1].x0
    assert shapes[1].x1 < shapes[2].x0


def test_no_box_a_mask_and_a_map_that_cannot_be_drawn():
    mask = np.zeros((20, 40), bool)
    mask[5:10, 10:20] = True
    flat = case(map=np.ones((4, 4)), boxes=(), box=(0, 0, 0, 0), mask=mask)
    (axes,) = case_sheet({"best": [flat]}).axes
    assert not axes.patches
    (outline,) = axes.collections
    low, high = (
        np.concatenate([path.vertices for path in outline.get_paths()]).min(axis=0),
        np.concatenate([path.vertices for path in outline.get_paths()]).max(axis=0),
    )
    np.testing.assert_allclose(low, [0.25, 0.25], atol=0.02)
    np.testing.assert_allclose(high, [0.5, 0.5], atol=0.02)
    np.testing.assert_array_equal(axes.images[0].get_array(), flat.image)
    broken = case(map=np.full((4, 4), np.nan))
    (axes,) = case_sheet({"best": [broken]}).axes
    np.testing.assert_array_equal(axes.images[0].get_array(), broken.image)


def test_long_names_are_shortened_and_dollars_are_no_formulas(tmp_path):
    name, id = "a very long name of a class that nobody will read", "deep/" * 20 + "end.png"
    figure = case_sheet({"best": [case(name=name, id=id), case(name="$x_1$")]}, "$100")
    shown = words(figure)
    assert shown[2].startswith("IoU 0.62  a very")
    assert shown[2].endswith("…")
    assert shown[3].startswith("…")
    assert shown[3].endswith("end.png")
    figure.savefig(tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 5_000


def test_mistakes():
    with pytest.raises(ValueError, match="no case to draw"):
        case_sheet({})
    with pytest.raises(ValueError, match="no case to draw"):
        case_sheet({"best": []})
    with pytest.raises(ValueError, match=r"expected RGB numbers \(H, W, 3\)"):
        case_sheet({"best": [case(image=np.zeros((4, 4)))]})
    with pytest.raises(ValueError, match="Did you mean 'viridis'"):
        case_sheet({"best": [case()]}, colormap="virids")


@pytest.mark.parametrize("columns", [1, 2, 6])
@pytest.mark.parametrize(
    "title", ["CAM", "a model of a long name, prototypecam, 224 x 224", "a long name, " * 30]
)
def test_the_title_and_the_legend_stand_apart(columns, title):
    figure = case_sheet({"best": [case()] * columns}, title)
    renderer = FigureCanvasAgg(figure).get_renderer()
    written = figure.texts[0].get_window_extent(renderer)
    legend = figure.legends[0].get_window_extent(renderer)
    assert not written.overlaps(legend)
    photo = figure.axes[0].get_window_extent(renderer)
    for one in (written, legend):
        assert figure.bbox.x0 <= one.x0 and one.x1 <= figure.bbox.x1
        assert photo.y1 < one.y0 and one.y1 <= figure.bbox.y1
