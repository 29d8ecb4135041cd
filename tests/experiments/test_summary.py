"""Means, paired differences and the table, on results that can be checked by hand."""

from __future__ import annotations

import json

import pytest

from experiments.summary import SCALARS, per_class_rows, summarize, summary


def entry(accuracies: list[float], ekld: list[float]) -> dict:
    scalars = dict.fromkeys(SCALARS, sum(accuracies) / 3)
    scalars["tail_accuracy"] = accuracies[-1]
    measured = {"ekld": ekld, "ekld_standard_error": [0.01] * 3, "consistency": [0.9] * 3}
    return {**scalars, "per_class_accuracy": accuracies, "invariance": {"rotation": measured}}


@pytest.fixture
def results() -> dict:
    results = {
        "dataset": "test",
        "class_counts": [90, 30, 10],
        "generator": None,
        "methods": {
            "drs": {
                "seeds": {
                    "0": entry([0.9, 0.6, 0.3], [0.1, 0.2, 0.3]),
                    "1": entry([0.9, 0.6, 0.5], [0.1, 0.2, 0.5]),
                }
            },
            "git": {
                "seeds": {
                    "0": entry([0.9, 0.6, 0.4], [0.1, 0.2, 0.2]),
                    "1": entry([0.9, 0.6, 0.7], [0.1, 0.2, 0.6]),
                }
            },
        },
    }
    summarize(results)
    return results


def test_means_and_deviations_over_seeds(results: dict) -> None:
    drs = results["methods"]["drs"]
    assert drs["mean"]["tail_accuracy"] == pytest.approx(0.4)
    assert drs["std"]["tail_accuracy"] == pytest.approx(0.02**0.5)
    assert drs["mean"]["tail_ekld.rotation"] == pytest.approx(0.4)


def test_a_difference_counts_only_beyond_its_standard_error(results: dict) -> None:
    compared = results["comparisons"]["git - drs"]
    accuracy, ekld = compared["tail_accuracy"], compared["tail_ekld.rotation"]
    assert accuracy["differences"] == pytest.approx([0.1, 0.2])
    assert accuracy["mean"] == pytest.approx(0.15)
    assert accuracy["standard_error"] == pytest.approx(0.05)
    assert accuracy["larger_than_standard_error"] is True
    assert ekld["differences"] == pytest.approx([-0.1, 0.1])
    assert ekld["larger_than_standard_error"] is False
    text = summary(results, "folder")
    assert "tail_accuracy: +10.0, +20.0; mean +15.0 points +-5.0: better" in text
    assert "nats +-0.100: undecided" in text


def test_one_row_per_method_seed_and_class(results: dict) -> None:
    columns, rows = per_class_rows(results)
    assert len(rows) == 2 * 2 * 3
    assert rows[2]["training_images"] == 10 and rows[2]["ekld.rotation"] == 0.3
    assert set(rows[0]) == set(columns)
    json.dumps(results)


def test_a_third_without_test_images_has_no_number(results: dict) -> None:
    for entry in results["methods"].values():
        for seed in entry["seeds"].values():
            seed["tail_accuracy"] = None
            seed["invariance"]["rotation"]["ekld"][2] = None
    summarize(results)
    compared = results["comparisons"]["git - drs"]
    assert compared["tail_accuracy"] is None and compared["tail_ekld.rotation"] is None
    assert results["methods"]["git"]["mean"]["tail_accuracy"] is None
    assert "tail_accuracy: -" in summary(results, "folder")
