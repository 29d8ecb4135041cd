"""The comparison of whitened networks with batch normalization."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import keras_git as kg
from experiments import whitening
from experiments.whitening import Config, best_runs, checked, run, table
from keras_git.errors import InputError


def _config(folder, **changes):
    """A run on twenty balanced classes of drawn characters."""
    path = folder.parent / "characters.npz"
    if not path.exists():
        splits = kg.data.glyphs(num_classes=20, largest=24, smallest=24)
        np.savez(
            path,
            x_train=splits.train.images,
            y_train=splits.train.labels,
            x_test=splits.test.images,
            y_test=splits.test.labels,
        )
    return Config(dataset=str(path), output_dir=str(folder), quick=True, **changes)


def _run(network, rate, loss, accuracy, seed=0, ratio=100.0):
    ekld = {"ekld": [0.1, 0.2, 0.3], "ekld_standard_error": [0.0, 0.0, 0.0]}
    return {
        "imbalance_ratio": ratio,
        "network": network,
        "batch_size": 64,
        "learning_rate": rate,
        "seed": seed,
        "diverged": not np.isfinite(loss),
        "history": [{"epoch": 0, "loss": loss, "seconds": 2.0, "accuracy": accuracy}],
        "epochs_to_target": 1 if accuracy > 0.5 else None,
        "seconds_to_target": 2.0 if accuracy > 0.5 else None,
        "balanced_accuracy": accuracy,
        "invariance": {"rotation": ekld},
    }


def _results(*runs):
    return {
        "dataset": "planted",
        "class_names": ["a", "b", "c"],
        "class_counts": {"100": [100, 10, 1]},
        "runs": {str(number): entry for number, entry in enumerate(runs)},
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"networks": ("plain",)}, "--networks: 'plain' is unknown; use batch_norm"),
        ({"networks": ()}, "--networks: name at least one"),
        ({"learning_rates": (0.1, 0.1)}, "--learning_rates"),
        ({"imbalance_ratios": (0.5,)}, "--imbalance_ratios"),
        ({"batch_sizes": (0,)}, "--batch_sizes"),
        ({"epochs": 0}, "--epochs=0: use 1 or more"),
        ({"seeds": (-1,)}, "--seeds"),
        ({"target_accuracy": 0.0}, "--target_accuracy=0.0"),
        ({"invariance_transforms": ("generator",)}, "--invariance_transforms: 'generator'"),
    ],
)
def test_bad_settings_are_refused(changes, message):
    with pytest.raises(InputError, match=message):
        checked(dataclasses.replace(Config(), **changes))


def test_best_runs_are_those_of_the_lowest_loss_and_never_a_diverged_one():
    results = _results(
        _run("batch_norm", 0.1, 1.0, 0.9),
        _run("batch_norm", 0.3, 0.5, 0.2),
        _run("batch_norm", 1.0, np.nan, 0.0),
        _run("whitened", 0.1, 0.4, 0.6, seed=0),
        _run("whitened", 0.1, 0.6, 0.6, seed=1),
        # lower, but of one seed only
        _run("whitened", 0.3, 0.1, 0.6, seed=0),
    )
    methods = best_runs(results, 100.0)["methods"]
    assert methods["batch_norm"]["learning_rate"] == 0.3
    assert methods["whitened"]["learning_rate"] == 0.1
    assert list(methods["whitened"]["seeds"]) == ["0", "1"]


def test_table_says_accuracy_time_and_divergence():
    text = table(_results(_run("batch_norm", 0.1, 1.0, 0.9), _run("batch_norm", 1.0, np.nan, 0.0)))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "batch_norm 64 90.0 diverged" in lines
    assert "batch_norm 64 1 (2) -" in lines
    assert "batch_norm, batch 64, rate 0.1 rotation 0.100 0.200 0.300" in lines


def test_cosine_schedule_starts_at_the_rate_and_falls():
    config = Config(epochs=4)
    factors = [whitening._factor(config, epoch) for epoch in range(4)]
    np.testing.assert_allclose(factors, [1.0, 0.853553, 0.5, 0.146447], atol=1e-6)
    assert whitening._factor(dataclasses.replace(config, schedule="constant"), 3) == 1.0


@pytest.mark.slow
def test_a_run_continues_and_ends_in_the_same_result(tmp_path, monkeypatch):
    """Killed after its first training, the second call trains only what is missing."""
    whole = run(_config(tmp_path / "whole", networks=("batch_norm", "whitened+sample")))
    assert len(whole["runs"]) == 2 * 2 * 2
    for name in ("runs.csv", "results.json", "pictures/loss_curves.png", "pictures/accuracy.png"):
        assert (tmp_path / "whole" / name).stat().st_size > 0

    config = _config(tmp_path / "parts", networks=("batch_norm", "whitened+sample"))
    trained = []
    original = whitening.Training.run

    def counted(self, rate, seed, label):
        if len(trained) == 1:
            trained.append("stop")
            raise KeyboardInterrupt
        trained.append(label)
        return original(self, rate, seed, label)

    monkeypatch.setattr(whitening.Training, "run", counted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    stored = json.loads((tmp_path / "parts" / "results.json").read_text())
    assert len(stored["runs"]) == 1
    parts = run(config)
    assert len(trained) == 1 + 1 + 7
    for key, entry in whole["runs"].items():
        assert parts["runs"][key]["history"][-1]["loss"] == entry["history"][-1]["loss"]
        assert parts["runs"][key]["per_class_accuracy"] == entry["per_class_accuracy"]
    with pytest.raises(InputError, match="different configuration: l2 was"):
        run(dataclasses.replace(config, l2=0.1))


@pytest.mark.slow
def test_benchmark_gives_ratios_to_the_first_network(tmp_path):
    config = _config(tmp_path / "times", benchmark=True, batch_sizes=(8,))
    found = run(config)
    assert found["ratios"]["batch_norm, training step"] == 1.0
    assert found["ratios"]["whitened, folded inference"] > 0
    assert (
        json.loads((tmp_path / "times" / "benchmark.json").read_text())["ratios"] == found["ratios"]
    )
