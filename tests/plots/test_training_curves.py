"""Loss curves and accuracy by learning rate."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from keras_git.errors import InputError
from keras_git.plots import accuracy_by_learning_rate, loss_curves


def _results():
    runs = {}
    for ratio in (1.0, 100.0):
        for name in ("batch_norm", "whitened"):
            for rate in (0.1, 1.0):
                for seed in (0, 1):
                    diverged = name == "batch_norm" and rate == 1.0
                    runs[f"{ratio} {name} {rate} {seed}"] = {
                        "imbalance_ratio": ratio,
                        "network": name,
                        "batch_size": 16,
                        "learning_rate": rate,
                        "seed": seed,
                        "diverged": diverged,
                        "history": [{"loss": 2.0 - 0.1 * e, "seconds": 1.0} for e in range(4)],
                        "balanced_accuracy": 0.5 + 0.1 * seed,
                    }
    return {"dataset": "planted", "runs": runs}


@pytest.mark.parametrize("draw", [loss_curves, accuracy_by_learning_rate])
def test_pictures_are_written_whole(draw, tmp_path):
    path = draw(_results(), tmp_path / "picture.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    assert pixels.min() < 120 and pixels.mean() > 200  # lines on white
    assert [p.name for p in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("draw", [loss_curves, accuracy_by_learning_rate])
def test_nothing_to_draw_and_unknown_formats_are_refused(draw, tmp_path):
    with pytest.raises(InputError, match="no runs to draw"):
        draw({"runs": {}}, tmp_path / "picture.png")
    with pytest.raises(InputError, match="must end in one of"):
        draw(_results(), tmp_path / "picture.doc")
