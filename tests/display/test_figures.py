import io
import warnings

import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from cam_tf.display.figures import plot
from cam_tf.display.overlays import overlay
from cam_tf.maps.explanation import Explanation

NAMES = [f"name {i}" for i in range(12)]


@pytest.fixture(autouse=True)
def _no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def explanation(maps, scores=None) -> Explanation:
    """Of images of 8 x 8 pixels; the classes are 0, 1, ... and the scores 0.5, 0.25, ..."""
    maps = np.float32(maps)
    count, n = maps.shape[:2]
    scores = 0.5 ** np.arange(1, n + 1) if scores is None else scores
    scores = np.broadcast_to(np.float32(scores), (count, n))
    ids = np.broadcast_to(np.arange(n, dtype=np.int32), (count, n))
    return Explanation(maps, ids, scores, np.log(scores), (8, 8))


def photo(height=40, width=60) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)


def panels(figure):
    return [axes for axes in figure.axes if axes.images]


def bars(figure):
    """The colour bars: axes that matplotlib hung a colorbar on."""
    return [axes for axes in figure.axes if hasattr(axes, "_colorbar")]


def titles(figure):
    return [axes.get_title(loc="left") for axes in panels(figure)]


def test_panels_show_the_photo_and_the_overlays():
    image, raw = photo(), np.float32([[-2, 0], [1, 3]])
    figure = plot(image, explanation([[raw, raw.T]]), NAMES, alpha=0.3, colormap="viridis")
    shown = [axes.images[0] for axes in panels(figure)]
    assert [picture.get_extent() for picture in shown] == [[0, 60, 40, 0]] * 3
    np.testing.assert_array_equal(shown[0].get_array(), image)
    for picture, one in zip(shown[1:], (raw, raw.T), strict=True):
        expected = overlay(image, (one + 2) / 5, 0.3, "viridis").astype(int)
        difference = np.abs(picture.get_array().astype(int) - expected)
        assert difference.max() <= 2  # a value between two colours may fall to either
        assert (difference > 0).mean() < 0.01


def test_colour_bars_run_over_the_raw_values_and_mark_zero():
    maps = [[[[-2, 0], [1, 3]], [[1, 2], [3, 9]], [[-4, -3], [-2, -1]]]]
    figure = plot(photo(), explanation(maps))
    assert [axes.get_ylim() for axes in bars(figure)] == [(-2, 3), (1, 9), (-4, -1)]
    marks = [[line.get_ydata()[0] for line in axes.lines] for axes in bars(figure)]
    assert marks == [[0], [], []]
    assert [text.get_text() for text in figure.texts] == ["contribution to the logit"]
    renamed = plot(photo(), explanation(maps), bar_label="relevance")
    assert [text.get_text() for text in renamed.texts] == ["relevance"]


@pytest.mark.parametrize(
    "limits, labels",
    [
        ((-20, 20), ["-20", "-10", "0", "10", "20"]),
        ((0, 2e-6), ["0", "5e-7", "1e-6", "1.5e-6", "2e-6"]),
        ((0, 1e7), ["0", "2e6", "4e6", "6e6", "8e6", "1e7"]),
    ],
)
def test_numbers_of_the_colour_bar(limits, labels):
    figure = plot(photo(), explanation([[[limits, limits]]]))
    figure.draw_without_rendering()
    shown = [text.get_text() for text in bars(figure)[0].get_yticklabels()]
    assert shown == [label.replace("-", "\N{MINUS SIGN}") for label in labels]


@pytest.mark.parametrize("height, width", [(40, 60), (60, 40), (400, 30)])
def test_box_in_pixels_of_the_photo(height, width):
    raw = np.zeros((8, 8), np.float32)
    raw[2:4, 4:8] = 1
    figure = plot(photo(height, width), explanation([[raw]]))
    (box,) = panels(figure)[1].patches
    assert (box.get_x(), box.get_y()) == (width / 2, height / 4)
    assert (box.get_width(), box.get_height()) == (width / 2, height / 4)
    assert not panels(plot(photo(), explanation([[raw]]), threshold=None))[1].patches


def test_no_box_where_there_is_no_evidence():
    figure = plot(photo(), explanation([[[[-2, -1], [-3, -1]]]]))
    assert len(bars(figure)) == 1
    assert not panels(figure)[1].patches


def test_threshold_widens_the_box():
    raw = np.tile(np.arange(8, dtype=np.float32), (8, 1))  # above 0.5 * 7 from column 4 on
    lefts = [
        panels(plot(photo(8, 8), explanation([[raw]]), threshold=threshold))[1].patches[0].get_x()
        for threshold in (0.1, 0.5)
    ]
    assert lefts == [1, 4]


@pytest.mark.parametrize(
    "score, shown",
    [
        (0.8123, "81.2 %"),
        (1, "100.0 %"),
        (0, "0.0 %"),
        (4e-4, "< 0.1 %"),
        (-1.5, "score -1.50"),
        (12, "score 12.00"),
    ],
)
def test_titles_have_name_and_score(score, shown):
    with np.errstate(divide="ignore", invalid="ignore"):
        result = explanation([[[[0, 1], [2, 3]]]], scores=[score])
    assert titles(plot(photo(), result, NAMES)) == ["image", f"name 0  {shown}"]
    assert titles(plot(photo(), result)) == ["image", f"class 0  {shown}"]


def test_flat_and_broken_maps_say_so_and_show_the_photo():
    image, good = photo(), [[0, 1], [2, 3]]
    maps = [[np.full((2, 2), 7), [[0, np.nan], [1, 2]], [[0, np.inf], [1, 2]], good]]
    figure = plot(image, explanation(maps), NAMES)
    figure.savefig(io.BytesIO())
    assert titles(figure) == [
        "image",
        "name 0  50.0 %\nflat map",
        "name 1  25.0 %\nmap not finite",
        "name 2  12.5 %\nmap not finite",
        "name 3  6.2 %",
    ]
    for axes in panels(figure)[:-1]:
        np.testing.assert_array_equal(axes.images[0].get_array(), image)
        assert not axes.patches
    assert len(bars(figure)) == 1
    assert not plot(image, explanation(maps)[0:1]._map_arrays(lambda a: a[:, :3])).texts


@pytest.mark.parametrize("height, width", [(30, 45), (45, 25), (40, 40), (20, 100), (100, 8)])
@pytest.mark.parametrize("n", [1, 2, 3, 10])
def test_nothing_overlaps_or_is_clipped(rng, height, width, n):
    names = ["a name of many words, and then some more words and more of them", *NAMES]
    result = explanation(rng.normal(size=(1, n, 7, 7)))
    figure = plot(photo(height, width), result, names)
    assert len(panels(figure)) == n + 1
    for axes in panels(figure):  # the photo keeps its shape
        place = axes.get_window_extent()
        assert place.height / place.width == pytest.approx(height / width)
    renderer, inside = FigureCanvasAgg(figure).get_renderer(), figure.bbox
    parts = [axes.get_tightbbox(renderer) for axes in panels(figure) + bars(figure)]
    labels = [text.get_window_extent(renderer) for text in figure.texts]
    for part in parts + labels:
        assert inside.x0 <= part.x0 and part.x1 <= inside.x1
        assert inside.y0 <= part.y0 and part.y1 <= inside.y1
    places = [axes.get_window_extent() for axes in panels(figure)]
    numbered = parts[len(places) :]
    assert not any(label.overlaps(part) for label in labels for part in places + numbered)
    for i, one in enumerate(places):
        for j, (other, part) in enumerate(zip(places, parts, strict=False)):
            assert i == j or not one.overlaps(other)
            assert i == j or not one.padded(-1).overlaps(part.padded(-1))  # no title over a photo


def test_two_classes_fit_the_text_width_of_a_paper():
    figure = plot(photo(40, 60), explanation(np.ones((1, 2, 2, 2)) * [[1, 2], [3, 4]]))
    assert 6.5 <= figure.get_figwidth() <= 7.1


def test_large_photos_are_reduced_but_keep_their_coordinates():
    raw = np.zeros((8, 8), np.float32)
    raw[:4, :4] = 1
    figure = plot(np.zeros((100, 2560, 3), np.uint8), explanation([[raw]]))
    assert panels(figure)[1].images[0].get_array().shape == (50, 1280, 3)
    assert panels(figure)[1].patches[0].get_width() == 1280


def test_index_chooses_the_image_of_a_batch():
    maps = np.stack([np.eye(2)[None], 5 * np.eye(2)[None]])
    for index, top in ((0, 1), (1, 5), (-1, 5)):
        assert bars(plot(photo(), explanation(maps), index=index))[0].get_ylim() == (0, top)
    with pytest.raises(IndexError, match=r"holds 2 image"):
        plot(photo(), explanation(maps), index=2)


def test_dollars_in_names_are_no_formula():
    figure = plot(photo(), explanation([[[[0, 1], [2, 3]]]]), ["$x^{"])
    figure.savefig(io.BytesIO())
    assert titles(figure)[1].startswith("$x^{")


def test_notebooks_display_it_and_pyplot_does_not_know_it():
    figure = plot(photo(), explanation([[[[0, 1], [2, 3]]]]))
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        width, height = figure.get_size_inches() * 200
        assert picture.size == (int(width), int(height))
    assert not pyplot.get_fignums()


def test_the_picture_has_the_colours_of_the_photo():
    flat = np.full((40, 60, 3), (200, 100, 50), np.uint8)
    figure = plot(flat, explanation([[[[0, 1], [2, 3]]]]))
    with Image.open(io.BytesIO(figure._repr_png_())) as picture:
        place = panels(figure)[0].get_window_extent()
        row = picture.height - (place.y0 + place.y1) / 2
        assert picture.getpixel((int((place.x0 + place.x1) / 2), int(row)))[:3] == (200, 100, 50)
        assert picture.getpixel((0, 0))[:3] == (255, 255, 255)


def test_wrong_arguments():
    result = explanation([[[[0, 1], [2, 3]]] * 3])
    with pytest.raises(ValueError, match="class_names has 1 names, but class 1"):
        plot(photo(), result, ["only"])
    with pytest.raises(ValueError, match="images"):
        plot(photo(), Explanation(np.zeros((1, 1, 5)), None, None, None, (10,)))
    with pytest.raises(ValueError, match="unknown to matplotlib"):
        plot(photo(), result, colormap="nope")
    with pytest.raises(ValueError, match="threshold"):
        plot(photo(), result, threshold=1)
    with pytest.raises(ValueError, match="is not a share"):
        plot(photo(), result, alpha=2)
    with pytest.raises(ValueError, match="before the network's preprocessing"):
        plot(photo() - 300.0, result)
