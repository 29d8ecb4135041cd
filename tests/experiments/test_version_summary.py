"""Versions as one result: ranks, means, intervals and tests against the textbook formulas."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from experiments.summary import SCALARS, per_class_rows
from experiments.version_summary import (
    combine,
    holm,
    interval,
    paired_test_rows,
    rank_rows,
    summary_rows,
    table,
)

SIZES = [90, 30, 10]


def entry(accuracies: list[float], ekld: list[float | None]) -> dict:
    """Accuracies and eKLD by rank."""
    scalars = dict.fromkeys(SCALARS, float(np.mean(accuracies)))
    measured = {"ekld": ekld, "ekld_standard_error": [0.01] * 3, "consistency": [0.9] * 3}
    return {
        **scalars,
        "per_class_accuracy": accuracies,
        "invariance": {"rotation": measured},
        "parameters": 7,
    }


def version(order: list[int], methods: dict[str, list[dict]]) -> dict:
    """Results of a version: `order[rank]` is a class, lists are by class."""

    def by_class(value):
        if isinstance(value, dict):
            return {k: by_class(v) for k, v in value.items()}
        return [value[order.index(c)] for c in range(3)] if isinstance(value, list) else value

    return {
        "dataset": "font-drawn stand-in",
        "nuisance": "rotation",
        "transformed_class_rank": None,
        "class_order": order,
        "class_counts": [SIZES[order.index(c)] for c in range(3)],
        "generator": None,
        "seconds": {},
        "methods": {
            key: {"seeds": {str(i): by_class(e) for i, e in enumerate(entries)}}
            for key, entries in methods.items()
        },
    }


ERM = [[0.9, 0.6, 0.3], [0.8, 0.5, 0.1], [0.9, 0.7, 0.2], [0.9, 0.6, 0.2]]
GIT = [[0.9, 0.6, 0.5], [0.8, 0.6, 0.2], [0.9, 0.7, 0.6], [0.9, 0.5, 0.4]]
ORDERS = [[2, 0, 1], [0, 1, 2], [1, 2, 0], [0, 2, 1]]


@pytest.fixture
def results() -> dict:
    return combine(
        {
            7 - i: version(
                order,
                {
                    "erm": [entry(erm, [0.1, 0.2, 0.3 + i])],
                    "git": [entry(git, [0.1, 0.2, 0.2])],
                },
            )
            for i, (order, erm, git) in enumerate(zip(ORDERS, ERM, GIT, strict=True))
        }
    )


def test_lists_over_classes_become_lists_over_ranks(results):
    assert results["class_counts"] == SIZES and results["num_versions"] == 4
    seeds = results["methods"]["erm"]["seeds"]
    assert list(seeds) == ["4", "5", "6", "7"]
    for i, erm in enumerate(ERM):
        assert seeds[str(7 - i)]["per_class_accuracy"] == erm
        assert seeds[str(7 - i)]["invariance"]["rotation"]["ekld"][2] == pytest.approx(0.3 + i)
        assert seeds[str(7 - i)]["tail_accuracy"] == erm[2]
        assert results["versions"][str(7 - i)]["class_order"] == ORDERS[i]
    json.dumps(results)


def test_intervals_and_tests_are_those_of_the_textbook(results):
    erm, git = (np.array(a)[:, 2] for a in (ERM, GIT))
    half = stats.t.ppf(0.975, 3) * erm.std(ddof=1) / 2
    found = results["methods"]["erm"]["confidence_interval_95"]["tail_accuracy"]
    assert found == pytest.approx([erm.mean() - half, erm.mean() + half])
    test = results["paired_tests"]["git - erm"]["tail_accuracy"]
    assert test["n"] == 4 and test["mean_difference"] == pytest.approx((git - erm).mean())
    assert test["t_test"] == pytest.approx(stats.ttest_rel(git, erm).pvalue)
    assert test["wilcoxon"] == pytest.approx(2 * 0.5**4)  # all four differences have one sign
    same = results["paired_tests"]["git - erm"]["head_accuracy"]
    assert same["mean_difference"] == 0 and same["t_test"] is None and same["wilcoxon"] is None
    ties = results["paired_tests"]["git - erm"]["middle_accuracy"]  # two zeros, +0.1, -0.1
    assert ties["t_test"] == pytest.approx(1.0) and ties["wilcoxon"] == pytest.approx(1.0)
    assert interval([0.5]) is None and interval([None, 1.0]) is None


def test_equal_differences_are_not_tested(results):
    """0.1 + 0.2 - 0.3 spreads by rounding alone: p would be 1e-49."""
    ours = [[0.9, 0.6, value + 0.1] for value in (0.3, 0.1, 0.2, 0.7)]
    base = [[0.9, 0.6, value] for value in (0.3, 0.1, 0.2, 0.7)]
    assert len({a[2] - b[2] for a, b in zip(ours, base, strict=True)}) > 1
    found = combine(
        {
            i: version(ORDERS[0], {"erm": [entry(b, [0.1] * 3)], "git": [entry(a, [0.1] * 3)]})
            for i, (a, b) in enumerate(zip(ours, base, strict=True))
        }
    )["paired_tests"]["git - erm"]["tail_accuracy"]
    assert found["mean_difference"] == pytest.approx(0.1)
    assert found["t_test"] is found["wilcoxon"] is found["t_test_holm"] is None


def test_holm():
    """The example of Holm's adjustment: 0.01 * 4, 0.02 * 3, then never less, never above 1."""
    assert holm([0.03, 0.01, None, 0.02, 0.04]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0] and holm([None]) == [None]


def test_p_values_are_adjusted_over_the_pairs_of_methods():
    methods = {"erm": ERM, "git": GIT, "drs": [[a, b, c + 0.01 * i] for i, (a, b, c) in
                                               enumerate(ERM)]}  # fmt: skip
    found = combine(
        {
            i: version(order, {key: [entry(rows[i], [0.1] * 3)] for key, rows in methods.items()})
            for i, order in enumerate(ORDERS)
        }
    )
    tests = [pair["tail_accuracy"] for pair in found["paired_tests"].values()]
    assert [t["t_test_holm"] for t in tests] == holm([t["t_test"] for t in tests])
    assert [t["wilcoxon_holm"] for t in tests] == holm([t["wilcoxon"] for t in tests])
    assert max(t["t_test_holm"] / t["t_test"] for t in tests) > 1.9
    columns, rows = paired_test_rows(found)
    assert len(rows) == 3 * len(found["paired_tests"]["git - erm"])
    assert all(set(row) == set(columns) for row in rows)
    columns, rows = summary_rows(found)
    assert all(set(row) == set(columns) for row in rows) and {r["versions"] for r in rows} == {4}
    assert "Holm" in table(found)


def test_the_table_and_the_rows(results):
    text = table(results)
    assert "font-drawn stand-in, rotation; 4 versions" in text
    assert "git - erm" in text and "+22.5 points" in text
    columns, rows = rank_rows(*per_class_rows(results), results)
    assert columns[:4] == ["method", "version", "rank", "class"] and len(rows) == 2 * 4 * 3
    row = next(r for r in rows if r["version"] == "7" and r["rank"] == 0 and r["method"] == "git")
    assert row["class"] == 2 and row["accuracy"] == 0.9 and row["training_images"] == 90


def test_seeds_of_a_version_are_averaged_first():
    seeds = [entry([0.9, 0.6, 0.3], [0.1, None, 0.3]), entry([0.7, 0.6, 0.1], [0.3, 0.2, 0.3])]
    results = combine({0: version([0, 1, 2], {"erm": seeds})})
    (found,) = results["methods"]["erm"]["seeds"].values()
    assert found["per_class_accuracy"] == pytest.approx([0.8, 0.6, 0.2])
    assert found["invariance"]["rotation"]["ekld"] == pytest.approx([0.2, 0.2, 0.3])
    assert results["methods"]["erm"]["confidence_interval_95"]["tail_accuracy"] is None
    assert "one version" in table(results)
