"""Place and size of foregrounds on images where they are known."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_git.analysis import ForegroundTable, foreground_statistics
from keras_git.analysis.foreground import centre_of_mass, foreground_boxes
from keras_git.errors import InputError


def _masks(boxes, height=20, width=40):
    masks = np.zeros((len(boxes), height, width))
    for mask, (left, top, right, bottom) in zip(masks, boxes, strict=True):
        mask[top : bottom + 1, left : right + 1] = 1.0
    return masks


@given(st.lists(st.tuples(*(st.integers(0, 9) for _ in range(4))), min_size=1, max_size=6))
def test_boxes_are_found(drawn):
    boxes = np.array([(a, b, a + c, b + d) for a, b, c, d in drawn])
    found, valid = foreground_boxes(_masks(boxes))
    np.testing.assert_array_equal(found, boxes)
    assert valid.all()
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    np.testing.assert_allclose(centre_of_mass(_masks(boxes)), middle)


def test_planted_variation_is_told_and_its_axis_named(tmp_path):
    """Class 0 moves along x, class 1 along y, class 2 not at all."""
    rng = np.random.default_rng(0)
    offset = rng.integers(-5, 6, 60)
    boxes = [(18 + o, 8, 21 + o, 11) for o in offset]
    boxes += [(18, 8 + o, 21, 11 + o) for o in offset]
    boxes += [(18, 8, 21, 11)] * 60
    labels = np.repeat([0, 1, 2], 60)
    table = foreground_statistics(_masks(boxes), labels=labels, class_names=["x", "y", "still"])
    along_x, along_y, still, everything = table.rows
    assert along_x["centre_x_std"] == pytest.approx(offset.std() / 40)
    assert max(along_x["centre_y_std"], along_y["centre_x_std"]) < 1e-12
    assert along_y["centre_y_std"] == pytest.approx(offset.std() / 20)
    assert still["spread_hi"] < 1e-12  # the control: nothing varies
    assert along_x["spread_lo"] > 0 and along_x["spread_lo"] < along_x["spread"]
    assert along_x["area_mean"] == pytest.approx(16 / 800) and along_x["area_std"] < 1e-12
    assert everything["class_id"] == -1 and everything["n_images"] == 180
    assert along_x["class_name"] == "x"
    by_box = foreground_statistics(np.array(boxes), (20, 40), labels)
    assert by_box.rows[0]["centre_x_q25"] == along_x["centre_x_q25"]
    again = ForegroundTable.from_json(table.to_json(tmp_path / "foreground.json"))
    assert again.rows == table.rows
    assert len(table.to_csv(tmp_path / "foreground.csv").read_text().splitlines()) == 5
    assert table.summary == "foregrounds of 180 images in 3 classes"


def test_images_without_foreground_are_counted_and_left_out():
    masks = _masks([(1, 1, 2, 2), (3, 3, 4, 4)])
    masks[1] = 0.05  # below the threshold
    table = foreground_statistics(masks)
    assert table.rows[0]["n_images"] == 2 and table.rows[0]["n_foreground"] == 1
    assert np.isnan(table.rows[0]["centre_x_lo"])
    assert table.to_dict()["rows"][0]["centre_x_lo"] is None
    empty = foreground_statistics(np.zeros((2, 4, 4)))
    assert empty.rows[0]["n_foreground"] == 0 and np.isnan(empty.rows[0]["area_mean"])


def test_intervals_hold_what_they_promise():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        left = rng.integers(0, 31, 40)
        boxes = np.column_stack([left, np.full(40, 2), left + 3, np.full(40, 5)])
        row = foreground_statistics(boxes, (20, 40)).rows[0]
        hits += row["spread_lo"] <= np.sqrt((31**2 - 1) / 12) / 40 <= row["spread_hi"]
    assert 0.9 <= hits / 200 <= 0.99


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((3, 5)),), "boxes"),
        ((np.zeros((3, 4)),), "need image_sizes"),
        ((np.array([[0, 0, 40, 5]]), (20, 40)), "in an image of width and height"),
        ((np.array([[5, 0, 2, 5]]), (20, 40)), "box 0"),
        ((np.zeros((3, 4)), (0, 4)), "above 0"),
        ((np.zeros((3, 4)), (20, 40), np.zeros(2, int)), "labels"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        foreground_statistics(*arguments)
