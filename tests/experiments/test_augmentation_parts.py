"""The comparison of the parts of random-resized-crop."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_git as kg
from experiments.augmentation_parts import Config, blocks, checked, gains, markdown, run
from keras_git.errors import InputError

PARTS = ("none", "coupled", "learned")


def _run(part, seed, accuracy, ratio=100.0):
    ekld = {"ekld": [0.1, 0.2, 0.3], "ekld_standard_error": [0.0, 0.0, 0.0]}
    return {
        "imbalance_ratio": ratio,
        "augmentation_part": part,
        "seed": seed,
        "diverged": False,
        "history": [{"epoch": 0, "loss": 1.0, "seconds": 2.0, "accuracy": 0.5}],
        "per_class_accuracy": accuracy,
        "balanced_accuracy": float(np.mean(accuracy)),
        "invariance": {"rotation": ekld},
    }


def _results(*runs):
    return {
        "dataset": "planted",
        "class_names": ["a", "b", "c"],
        "class_counts": {"100": [100, 10, 1]},
        "runs": {str(number): entry for number, entry in enumerate(runs)},
    }


def test_a_planted_gain_of_small_classes_is_found():
    results = _results(
        _run("none", 0, [0.8, 0.5, 0.1]),
        _run("none", 1, [0.6, 0.5, 0.1]),
        _run("coupled", 0, [0.8, 0.6, 0.3]),
        _run("coupled", 1, [0.6, 0.6, 0.3]),
        _run("scale", 0, [0.8, 0.5, 0.1]),  # brings nothing
        _run("scale", 7, [1.0, 1.0, 1.0]),  # none has no such seed
    )
    found = gains(results, 100.0)
    np.testing.assert_allclose(found["coupled"]["gain"], [0.0, 0.1, 0.2], atol=1e-12)
    np.testing.assert_allclose(found["coupled"]["standard_error"], 0.0, atol=1e-12)
    assert found["coupled"]["rank_correlation"] == pytest.approx(-1.0)
    assert found["scale"]["gain"] == [0.0, 0.0, 0.0] and found["scale"]["seeds"] == 1
    assert found["scale"]["standard_error"] is None
    assert found["scale"]["rank_correlation"] is None
    assert "none" not in found


def test_tables(tmp_path):
    results = _results(_run("none", 0, [0.8, 0.5, 0.1]), _run("coupled", 0, [0.8, 0.6, 0.3]))
    results["gains"] = {"100": gains(results, 100.0)}
    config = Config(
        parts=("none", "coupled"), imbalance_ratios=(100.0,), invariance_transforms=("rotation",)
    )
    accuracy, ekld = blocks(config, results)
    assert accuracy[2][:5] == ["coupled", "56.7", "80.0", "60.0", "30.0"]
    assert accuracy[2][5:] == ["+0.0", "+20.0", "-1.00 (0)"]
    assert ekld[1] == ["none", "rotation", "0.100", "0.200", "0.300"]
    assert markdown(config, results).splitlines()[1] == "|" + "---|" * 8
    picture = kg.plots.gain_against_class_size(results, "100", tmp_path / "gain.png")
    assert picture.stat().st_size > 1000
    with pytest.raises(InputError, match="no gains"):
        kg.plots.gain_against_class_size(results, "1", tmp_path / "gain.png")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": ("none", "zoom")}, "--parts: 'zoom' is unknown"),
        ({"parts": ("coupled",)}, "none, which gains are measured against"),
        ({"parts": ("none", "none")}, "each once"),
        ({"imbalance_ratios": (0.5,)}, "--imbalance_ratios"),
        ({"scale": (0.0, 1.0)}, "--scale"),
        ({"scale": (0.5,)}, "--scale"),
        ({"ratio": (2.0, 1.0)}, "--ratio"),
        ({"translate": 1.5}, "--translate"),
        ({"fill": "green"}, "--fill=green"),
        ({"fill": "edge"}, "--fill=edge: the learned crop"),
        ({"parts": ("none", "learned"), "scale": (0.0, 1.0)}, "--scale"),
        ({"epochs": 0}, "--epochs=0"),
        ({"seeds": ()}, "--seeds"),
        ({"invariance_transforms": ("generator",)}, "'generator' is unknown"),
        ({"learning_rate": 0.0}, "--learning_rate"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        checked(dataclasses.replace(Config(), **changes))


def _data(folder):
    splits = kg.data.glyphs(num_classes=20, largest=24, smallest=24)
    path = folder / "characters.npz"
    np.savez(
        path,
        x_train=splits.train.images,
        y_train=splits.train.labels,
        x_test=splits.test.images,
        y_test=splits.test.labels,
    )
    return str(path)


@pytest.mark.slow
def test_the_whole_comparison_and_its_continuation(tmp_path, monkeypatch):
    config = Config(
        dataset=_data(tmp_path), output_dir=str(tmp_path / "run"), quick=True, parts=PARTS,
        invariance_transforms=("shift",),
    )  # fmt: skip
    results = run(config)
    assert len(results["runs"]) == 2 * 3
    folder = tmp_path / "run"
    for name in ("runs.csv", "per_class.csv", "table.md", "results.json"):
        assert (folder / name).stat().st_size > 100, name
    assert {p.name for p in (folder / "pictures").iterdir()} == {
        "gain_against_class_size_1.png", "gain_against_class_size_6.png",
        "ekld_against_class_size_6.png",
    }  # fmt: skip
    learned = results["runs"]["ratio 1, learned, seed 0"]["learned"]
    start = 4 * 0.3
    assert learned["widths"]["tx"] != pytest.approx(start, abs=1e-6)  # it was trained

    # interrupted before the last training: the same command gives the same result
    stored = json.loads((folder / "results.json").read_text())
    gone = stored["runs"].pop("ratio 6, learned, seed 0")
    (folder / "results.json").write_text(json.dumps(stored))
    again = run(config)["runs"]["ratio 6, learned, seed 0"]
    assert again["per_class_accuracy"] == gone["per_class_accuracy"]
    assert again["learned"] == gone["learned"]
    with pytest.raises(InputError, match="different configuration"):
        run(dataclasses.replace(config, translate=0.2))


@pytest.mark.slow
def test_bad_input_ends_in_one_line(tmp_path):
    command = [
        sys.executable, "-m", "experiments.augmentation_parts", "--parts=coupled",
        f"--output_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and "--parts" in lines[0]
    assert not (tmp_path / "run").exists()
