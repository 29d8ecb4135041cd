from __future__ import annotations

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from keras_git.errors import InputError
from keras_git.plots import style_grid


@pytest.fixture
def mosaics(monkeypatch):
    """The pixel arrays handed to Matplotlib in the test."""
    arrays = []
    original = matplotlib.figure.Figure.savefig

    def savefig(self, *args, **kwargs):
        arrays.append(np.asarray(self.axes[0].images[0].get_array()))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return arrays


@pytest.mark.parametrize("channels", [1, 3])
def test_every_image_is_at_its_place(tmp_path, mosaics, channels):
    rng = np.random.default_rng(0)
    contents = rng.integers(0, 256, (4, 10, 8, channels), dtype=np.uint8)
    generated = rng.integers(0, 256, (3, 4, 10, 8, channels), dtype=np.uint8)
    path = style_grid(contents, generated, tmp_path / "grid.png", title="step 100")
    assert Image.open(path).mode == "RGBA"
    (mosaic,) = mosaics
    assert mosaic.shape == (4 * 10 + 6 + 2 * 2, 4 * 8 + 3 * 2, 3)
    for column in range(4):
        left = 10 * column
        np.testing.assert_array_equal(
            mosaic[:10, left : left + 8], np.broadcast_to(contents[column], (10, 8, 3))
        )
        for row in range(3):
            top = 16 + 12 * row
            np.testing.assert_array_equal(
                mosaic[top : top + 10, left : left + 8],
                np.broadcast_to(generated[row, column], (10, 8, 3)),
            )


def test_real_values_are_rounded_and_clipped(tmp_path, mosaics):
    contents = np.array([-5.0, 0.4, 254.6, 300.0], "float32").reshape(1, 2, 2, 1)
    style_grid(contents, contents[None], tmp_path / "grid.png")
    assert mosaics[0][:2, :, 0].tolist() == [[0, 0], [255, 255]]


def test_labels_stand_beside_their_rows_and_columns(tmp_path, monkeypatch):
    labels = []
    monkeypatch.setattr(
        matplotlib.figure.Figure,
        "savefig",
        lambda figure, path, **_: (
            labels.append(
                (
                    [text.get_text() for text in figure.axes[0].get_xticklabels()],
                    [text.get_text() for text in figure.axes[0].get_yticklabels()],
                )
            ),
            path.touch(),
        ),
    )
    contents = np.zeros((2, 4, 4, 1))
    style_grid(contents, contents[None], tmp_path / "a.png", content_labels=["cat", "dog"])
    style_grid(contents, contents[None], tmp_path / "a.png", style_labels=["night"])
    assert labels == [(["cat", "dog"], ["input", "style 1"]), ([], ["input", "night"])]


@pytest.mark.parametrize(
    "contents, generated, options, message",
    [
        ((2, 4, 4), (1, 2, 4, 4), {}, r"contents has shape \(2, 4, 4\)"),
        ((2, 4, 4, 2), (1, 2, 4, 4, 2), {}, "1 or 3 channels"),
        ((0, 4, 4, 1), (1, 0, 4, 4, 1), {}, "at least one"),
        ((2, 4, 4, 1), (1, 3, 4, 4, 1), {}, r"here \(styles, 2, 4, 4, 1\)"),
        ((2, 4, 4, 1), (0, 2, 4, 4, 1), {}, "at least one style"),
        ((2, 4, 4, 1), (1, 2, 4, 4, 1), {"content_labels": ["a"]}, "1 entries, but 2"),
        ((2, 4, 4, 1), (1, 2, 4, 4, 1), {"style_labels": ["a", "b"]}, "2 entries, but 1"),
    ],
)
def test_bad_input_is_named(tmp_path, contents, generated, options, message):
    with pytest.raises(InputError, match=message):
        style_grid(np.zeros(contents), np.zeros(generated), tmp_path / "a.png", **options)
    assert list(tmp_path.iterdir()) == []
