"""The pictures show the numbers they were given: read back from the drawn artists."""

from __future__ import annotations

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from keras_git import plots
from keras_git.errors import InputError
from keras_git.plots import class_plots


def make_results(class_counts, methods=("erm", "git"), seeds=2, transformations=("shift",)):
    """Invented results with everything that the pictures read."""
    rng = np.random.default_rng(0)
    classes = len(class_counts)
    return {
        "class_counts": list(map(int, class_counts)),
        "methods": {
            method: {
                "seeds": {
                    str(seed): {
                        "per_class_accuracy": rng.uniform(0.3, 1, classes).tolist(),
                        "invariance": {
                            name: {
                                "ekld": rng.uniform(0.1, 1, classes).tolist(),
                                "ekld_standard_error": rng.uniform(0.01, 0.1, classes).tolist(),
                            }
                            for name in transformations
                        },
                    }
                    for seed in range(seeds)
                }
            }
            for method in methods
        },
    }


@pytest.fixture
def drawn(monkeypatch):
    """The figures drawn in the test, for looking inside."""
    figures = []
    original = matplotlib.figure.Figure.savefig

    def savefig(self, *args, **kwargs):
        figures.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return figures


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_few_classes_are_joined_by_their_means_over_seeds(tmp_path, drawn):
    results = make_results([500, 50, 5], transformations=("shift", "rotation"))
    path = plots.ekld_against_class_size(results, tmp_path / "pictures" / "ekld.png")
    assert path == tmp_path / "pictures" / "ekld.png"
    assert Image.open(path).size > (600, 300)
    shift, rotation = drawn[0].axes
    assert [shift.get_title("left"), rotation.get_title("left")] == ["shift", "rotation"]
    assert shift.get_xscale() == "log" and shift.get_ylim()[0] == 0
    for axes, name in ((shift, "shift"), (rotation, "rotation")):
        for method, line in lines(axes).items():
            runs = results["methods"][method]["seeds"].values()
            expected = np.mean([run["invariance"][name]["ekld"] for run in runs], axis=0)
            np.testing.assert_array_equal(line.get_xdata(), [5, 50, 500])
            np.testing.assert_allclose(line.get_ydata(), expected[::-1])


def test_band_is_deviation_over_seeds_or_standard_error_of_one(tmp_path, drawn):
    for seeds in (3, 1):
        results = make_results([100, 10], methods=("erm",), seeds=seeds)
        plots.ekld_against_class_size(results, tmp_path / "ekld.png")
        runs = [run["invariance"]["shift"] for run in results["methods"]["erm"]["seeds"].values()]
        mean = np.mean([run["ekld"] for run in runs], axis=0)
        if seeds == 1:
            spread = np.asarray(runs[0]["ekld_standard_error"])
        else:
            spread = np.std([run["ekld"] for run in runs], axis=0, ddof=1)
        (band,) = drawn[-1].axes[0].collections
        vertices = band.get_paths()[0].vertices
        for size, class_index in ((100, 0), (10, 1)):
            heights = vertices[vertices[:, 0] == size, 1]
            lower = max(mean[class_index] - spread[class_index], 0)
            np.testing.assert_allclose(heights.min(), lower)
            np.testing.assert_allclose(heights.max(), mean[class_index] + spread[class_index])


def test_classes_of_one_size_share_a_place_and_keep_their_points(tmp_path, drawn):
    results = make_results([100, 100, 10, 10], methods=("erm",), seeds=1)
    plots.ekld_against_class_size(results, tmp_path / "ekld.svg")
    axes = drawn[0].axes[0]
    ekld = results["methods"]["erm"]["seeds"]["0"]["invariance"]["shift"]["ekld"]
    np.testing.assert_allclose(
        lines(axes)["erm"].get_ydata(), [np.mean(ekld[2:]), np.mean(ekld[:2])]
    )
    points = axes.collections[-1].get_offsets()
    np.testing.assert_allclose(points, np.stack([[100, 100, 10, 10], ekld], axis=1))


def test_running_mean_is_centred_and_skips_missing_values():
    values = np.array([[1.0, 2.0, 6.0, np.nan, 10.0]])
    np.testing.assert_allclose(class_plots._running_mean(values, 3), [[1, 3, 4, 8, 10]])
    np.testing.assert_allclose(class_plots._running_mean(values, 1), values)


@pytest.mark.parametrize("classes", [3, 40])
def test_accuracy_is_ordered_by_class_size(tmp_path, drawn, classes):
    class_counts = np.random.default_rng(1).permutation(np.arange(1, classes + 1))
    results = make_results(class_counts)
    plots.accuracy_per_class(results, tmp_path / "accuracy.png")
    top, bottom = drawn[0].axes
    heights = [bar.get_height() for bar in bottom.patches]
    assert heights == sorted(class_counts, reverse=True)
    order = np.argsort(-class_counts, kind="stable")
    points = [collection.get_offsets() for collection in top.collections]
    points = [heights[:, 1] for heights in points if len(heights) == classes]
    for method, heights in zip(("erm", "git"), points, strict=True):
        runs = results["methods"][method]["seeds"].values()
        expected = np.mean([run["per_class_accuracy"] for run in runs], axis=0)
        np.testing.assert_allclose(heights, expected[order])
    labels = [text.get_text() for text in top.get_legend().get_texts()]
    for method, label in zip(("erm", "git"), labels, strict=True):
        runs = results["methods"][method]["seeds"].values()
        balanced = [100 * np.mean(run["per_class_accuracy"]) for run in runs]
        assert label == f"{method}: {np.mean(balanced):.1f} ± {np.std(balanced, ddof=1):.1f} %"


def test_class_names_that_cannot_be_drawn(tmp_path, drawn):
    """No formulas, no boxes, no warning: letters that the font lacks give way to a number."""
    results = make_results([30, 10, 5])
    results["class_names"] = ["\u732b", "$\\frac$", "<b>\n\u00f1"]
    plots.accuracy_per_class(results, tmp_path / "accuracy.png")
    labels = [tick.get_text() for tick in drawn[0].axes[-1].get_xticklabels()]
    assert labels == ["class 0", r"\$\frac\$", "<b> \u00f1"]


def test_dataset_names_that_cannot_be_drawn(tmp_path, drawn):
    """As those of classes: a formula that Matplotlib cannot read ended the run."""
    results = {**make_results([30, 10, 5]), "dataset": "my $5 and $6_ folder"}
    plots.accuracy_per_class(results, tmp_path / "picture.png")
    assert drawn[0].axes[0].get_title("left").endswith("\n" + r"my \$5 and \$6_ folder")
    for name, line in (("\u732b", ""), ("a\nb", "\na b"), (None, "")):
        assert class_plots._dataset_line({"dataset": name}) == line


def test_class_names_label_few_classes(tmp_path, drawn):
    results = make_results([5, 500, 50])
    results["class_names"] = ["cat", "dog", "airplane"]
    plots.accuracy_per_class(results, tmp_path / "accuracy.png")
    ticks = [text.get_text() for text in drawn[0].axes[1].get_xticklabels()]
    assert ticks == ["dog", "airplane", "cat"]


def test_missing_values_and_unfinished_methods_leave_gaps(tmp_path):
    results = make_results([100, 10, 1])
    results["methods"]["drs"] = {"seeds": {}}
    for run in results["methods"]["erm"]["seeds"].values():
        run["per_class_accuracy"][2] = None
        run["invariance"]["shift"]["ekld"][2] = float("nan")
    assert plots.ekld_against_class_size(results, tmp_path / "ekld.png").exists()
    assert plots.accuracy_per_class(results, tmp_path / "accuracy.png").exists()


def test_methods_look_different():
    styles = {plots.figures.method_style(index) for index in range(63)}
    assert len(styles) == 63


def test_two_drawings_are_the_same_file(tmp_path):
    results = make_results([100, 10])
    for draw in (plots.ekld_against_class_size, plots.accuracy_per_class):
        assert (
            draw(results, tmp_path / "a.png").read_bytes()
            == draw(results, tmp_path / "b.png").read_bytes()
        )


@pytest.mark.parametrize("draw", [plots.ekld_against_class_size, plots.accuracy_per_class])
def test_bad_results_are_named(tmp_path, draw):
    good = make_results([100, 10])
    with pytest.raises(InputError, match="must end in one of .*png"):
        draw(good, tmp_path / "picture.txt")
    with pytest.raises(InputError, match="class_counts and methods"):
        draw({}, tmp_path / "a.png")
    with pytest.raises(InputError, match="2 entries, but there are 3 classes"):
        draw({**good, "class_counts": [3, 2, 1]}, tmp_path / "a.png")
    with pytest.raises(InputError, match="no eKLD|no accuracies"):
        draw({**good, "methods": {"erm": {"seeds": {}}}}, tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []
