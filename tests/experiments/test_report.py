"""The report of an experiment's methods: means over seeds, and what differs between trainings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from experiments.report import from_results, seed_findings, write_report
from experiments.summary import SCALARS, summarize
from keras_git.errors import InputError
from keras_git.report import sentences

ROOT = Path(__file__).parents[2]


def entry(accuracy: list, ekld: list, error: float = 0.01) -> dict:
    seen = [a for a in accuracy if a is not None]
    return {
        **dict.fromkeys(SCALARS, sum(seen) / len(seen)),
        "per_class_accuracy": accuracy,
        "parameters": 10,
        "invariance": {
            "grey_level": {
                "ekld": ekld,
                "ekld_standard_error": [None if e is None else error for e in ekld],
                "consistency": [None if e is None else 1 - e for e in ekld],
                "consistency_standard_error": [None if e is None else 0.0 for e in ekld],
            }
        },
    }


@pytest.fixture
def results() -> dict:
    drs = {"0": entry([0.9, 0.6, 0.3, None], [0.1, 0.2, 0.3, None]),
           "1": entry([0.9, 0.6, 0.5, None], [0.1, 0.2, 0.5, None])}  # fmt: skip
    git = {"0": entry([0.9, 0.8, 0.4, None], [0.1, 0.2, 0.2, None]),
           "1": entry([0.9, 0.8, 0.6, None], [0.1, 0.2, 0.4, None])}  # fmt: skip
    made = {
        "dataset": "signs",
        "class_counts": [900, 300, 5, 15],
        "class_names": ["a", "<b>", "c", "d"],
        "methods": {"drs": {"seeds": drs}, "git": {"seeds": git}},
    }
    summarize(made)
    return made


def test_seeds_are_averaged_with_both_parts_of_the_error(results: dict) -> None:
    audit = from_results(results)
    drs, git = audit.models
    assert (drs.name, git.name, drs.parameters) == ("drs", "git", 10)
    np.testing.assert_allclose(drs.per_class_accuracy, [0.9, 0.6, 0.4, np.nan])
    (measured,) = drs.measurements
    np.testing.assert_allclose(measured.ekld, [0.1, 0.2, 0.4, np.nan])
    # Images 0.01; seeds: the deviation of (0.3, 0.5), over the root of 2, is 0.1.
    np.testing.assert_allclose(
        measured.ekld_standard_error, [0.01, 0.01, np.hypot(0.01, 0.1), np.nan]
    )
    assert measured.groups["many"]["ekld"] == pytest.approx(0.15)
    assert measured.groups["few"] == pytest.approx({"ekld": 0.4, "consistency": 0.6})
    assert measured.trend.rho == pytest.approx(-1) and measured.trend.num_classes == 3
    assert audit.num_images.tolist() == [-1, -1, -1, 0]
    assert np.isnan(measured.accuracy).all()


def test_known_numbers_of_images_are_used(results: dict) -> None:
    results["images_per_class"] = [40, 40, 40, 0]
    assert from_results(results).num_images.tolist() == [40, 40, 40, 0]
    assert "tested on 120 images in 3 classes" in sentences(from_results(results))[0]


def test_differences_between_trainings_are_said(results: dict) -> None:
    (finding,) = seed_findings(results)
    assert finding.sentences[0].startswith("All numbers are means over 2 trainings per method")
    assert finding.sentences[1].startswith(
        "git against drs: accuracy (mean over the classes) +10.0 ± 0.0 points, better"
    )
    assert "eKLD under grey level on the smallest third" in finding.sentences[1]
    for method in results["methods"].values():
        del method["seeds"]["1"]
    summarize(results)
    (finding,) = seed_findings(results)
    assert "trained once" in finding.sentences[0]


def test_versions_are_called_versions(results: dict) -> None:
    (finding,) = seed_findings({**results, "repetitions": "versions"})
    assert finding.title == "From version to version"
    assert finding.sentences[0].startswith("All numbers are means over 2 versions, which")


def test_the_report_is_written(tmp_path: Path, results: dict) -> None:
    path = write_report(results, tmp_path / "report.html", settings={"epochs": 3})
    text = path.read_text("utf-8")
    assert "<h1>drs, git on signs</h1>" in text and "&lt;b&gt;" in text
    assert "From training to training" in text and "no images" in text and "<img" not in text


def test_the_recorded_quickstart_says_what_its_notes_say(tmp_path: Path) -> None:
    results = json.loads(
        (ROOT / "experiments" / "results" / "quickstart_tensorflow_2cores.json").read_text()
    )
    text = " ".join(sentences(from_results(results)))
    assert "git: 86.1 % accuracy (mean over the classes); not invariant to grey level" in text
    # The same number as in the README.
    assert "| git | 86.1 % |" in (ROOT / "README.md").read_text("utf-8")
    assert "erm: the smaller the class, the less invariant, under grey level" in text
    assert write_report(results, tmp_path / "report.html").stat().st_size < 500_000


@pytest.mark.parametrize("broken", [{}, {"class_counts": [1], "methods": {}}, {"methods": None}])
def test_unfinished_results_are_refused(broken: dict) -> None:
    with pytest.raises(InputError, match="these results"):
        from_results(broken)
