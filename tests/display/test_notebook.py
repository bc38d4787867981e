"""Explanations show themselves in notebooks."""

import base64
import io
import re

import numpy as np
from PIL import Image

import cam_tf
from cam_tf.faithfulness import Comparison
from cam_tf.localization.classification import ClassificationError
from cam_tf.localization.evaluation_result import Evaluation


def _pictures(text):
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(one)))) for one in found]


def test_an_explanation_is_a_table_of_maps(tiny_model, tiny_image):
    text = cam_tf.CAM(tiny_model)(tiny_image, top_k=2)._repr_html_()
    assert text.count("<tr>") == 2  # the header and one image
    first, second = _pictures(text)
    assert second.shape == first.shape
    assert first.shape == (112, 112, 3)
    assert "class 1<br>score" in text
    # class 1 maps 2 x green = [[0, 2], [0, 10]]: brightest at the lower right
    assert first[-1, -1].sum() > first[0, -1].sum() > first[0, 0].sum()


def test_flat_maps_and_many_images(tiny_model, tiny_image):
    text = cam_tf.CAM(tiny_model)(
        np.repeat(0 * tiny_image, 20, axis=0), classes="all"
    )._repr_html_()
    assert _pictures(text) == []
    assert "flat" in text
    assert "12 more images" in text


def test_comparisons_and_evaluations_are_tables():
    values = {"cam": {"deletion_auc": [0.25, 0.25]}, "randommap": {"deletion_auc": [0.5, 0.5]}}
    text = Comparison({}, values, ids=["a", "b"], class_ids=[1, 2])._repr_html_()
    assert "<td>cam</td><td>0.250 [0.250, 0.250]</td>" in text
    assert "2 images" in text
    none = Evaluation({}, {"classification": ClassificationError()}, {"x": ("kind", "<bad>")})
    assert none._repr_html_().startswith("<pre>0 images, 1 bad record")
