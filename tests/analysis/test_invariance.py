"""Invariance, equivariance, several models, line-up and checks, where the answer is known."""

from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from keras import ops

from keras_git.analysis import (
    FactorTable,
    InvarianceTable,
    TransformSet,
    compare,
    explain_variation,
    lines_up,
    measure_equivariance,
    measure_invariance,
    similarity_checks,
)
from keras_git.analysis.equivariance import pair_cosines
from keras_git.analysis.invariance import expected_invariance, invariance_cell, ratio_with_left_out
from keras_git.analysis.line_up import invariance_operation
from keras_git.analysis.similarity import derangement
from keras_git.errors import InputError
from tests.analysis.planted import SIDE, network, pixels, planted_images, planted_set

_IDENTITY = TransformSet.custom({"identity": lambda images: images})


def _mean_colour(images):
    """Does not see where pixels are."""
    return ops.mean(images, axis=(1, 2)) + 0.1


def _flips():
    return TransformSet.custom(
        {
            "flip": lambda images: ops.flip(images, axis=2),
            "invert": lambda images: 1.0 - images,
            "identity": lambda images: images,
        }
    )


@pytest.mark.parametrize("metric", ["cosine", "l2"])
@pytest.mark.parametrize("reduce", ["median", "ratio_of_means"])
def test_known_invariance(metric, reduce):
    data = planted_images(12)
    table = measure_invariance(_mean_colour, data, _flips(), metric=metric, reduce=reduce)
    flip, invert, identity = table.rows
    assert flip["invariance"] == pytest.approx(1.0, abs=1e-3)
    assert invert["invariance"] < 0.5
    assert identity["invariance"] == pytest.approx(1.0, abs=1e-6)
    assert identity["lo"] == pytest.approx(1.0, abs=1e-6)
    for row in table:
        assert row["lo"] <= row["invariance"] <= row["hi"] and row["n_images"] == 36


def test_a_network_that_loses_the_image_has_no_invariance():
    """The control: embeddings of transformed images that have nothing to do with the image."""
    generator = np.random.default_rng(0)
    z, other = generator.normal(size=(2, 400, 8))
    for baseline in ("expected", "derangement"):
        for metric in ("cosine", "l2"):
            cell = invariance_cell(z, other, 0, metric=metric, baseline=baseline)
            assert abs(cell.whole) < 0.06
            assert abs(np.median(cell.each)) < 0.12


def test_the_expected_baseline_is_the_mean_over_derangements():
    generator = np.random.default_rng(0)
    z, zt = generator.normal(size=(2, 7, 3))
    for metric, distance in (
        ("cosine", lambda a, b: 1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b)),
        ("l2", lambda a, b: np.linalg.norm(a - b)),
    ):
        baseline, own, each = expected_invariance(z, zt, metric)
        brute = np.array(
            [np.mean([distance(z[i], zt[j]) for j in range(7) if j != i]) for i in range(7)]
        )
        np.testing.assert_allclose(baseline, brute)
        np.testing.assert_allclose(each, 1 - own / brute)
        drawn = [derangement(7, generator) for _ in range(4000)]
        mean = np.mean([[distance(z[i], zt[o[i]]) for i in range(7)] for o in drawn[:600]], axis=0)
        np.testing.assert_allclose(mean, brute, atol=0.15)
        whole, left_out = ratio_with_left_out(z, zt, metric)
        rest = np.arange(1, 7)
        b, t, _ = expected_invariance(z[rest], zt[rest], metric)
        assert left_out[0] == pytest.approx(1 - t.mean() / b.mean())
        assert whole == pytest.approx(1 - own.mean() / brute.mean())


def test_turning_the_embedding_space_changes_nothing():
    generator = np.random.default_rng(0)
    z, zt = generator.normal(size=(2, 20, 5))
    turn, _ = np.linalg.qr(generator.normal(size=(5, 5)))
    for metric in ("cosine", "l2"):
        one = expected_invariance(z, zt, metric)[2]
        np.testing.assert_allclose(expected_invariance(z @ turn, zt @ turn, metric)[2], one)
    lengths = generator.uniform(0.5, 2, (20, 1))
    np.testing.assert_allclose(
        expected_invariance(lengths * z, zt)[2], expected_invariance(z, zt)[2], atol=1e-12
    )


def test_layers_classes_and_files(tmp_path):
    model, data = network(), planted_images(8)
    chosen = TransformSet.paper_invariance(SIDE).filter(["rotate", "posterize"], indices=range(6))
    table = measure_invariance(model, data, chosen, layer=["maps", "pool", None], per_class=True)
    assert set(table["layer"]) == {"maps", "pool", "output"}
    assert len(table) == 3 * len(chosen) * 4
    first = table.select(layer="pool", transform="rotate", magnitude=0.0, class_id=-1)
    assert first.rows[0]["invariance"] == pytest.approx(1.0, abs=1e-6)
    # feature maps and their mean are the same embedding
    np.testing.assert_allclose(
        table.select(layer="maps")["invariance"],
        table.select(layer="pool")["invariance"],
        atol=1e-5,
    )
    again = InvarianceTable.from_json(table.to_json(tmp_path / "table.json"))
    np.testing.assert_array_equal(again["invariance"], table["invariance"])
    # two magnitudes of posterize are 4 bits: computed once, reported twice
    four = table.select(transform="posterize", magnitude=4.0, layer="pool", class_id=-1)
    assert len(four) == 2 and len({row["invariance"] for row in four}) == 1
    assert np.isfinite(table["visible_fraction"]).all()


def test_batches_do_not_matter():
    model, data = network(), planted_images(6)
    chosen = TransformSet.geometric(SIDE, shear=(), scale=())
    whole = measure_invariance(model, data, chosen, layer="pool")
    parts = measure_invariance(model, data, chosen, layer="pool", batch_size=5)
    np.testing.assert_allclose(parts["invariance"], whole["invariance"], atol=1e-4)


def _shifted(images):
    """Brightening by a constant moves this embedding by a constant: f(T x) = f(x) + c."""
    flat = ops.reshape(images, (ops.shape(images)[0], -1))
    return flat[:, :20]


def _noisy(images):
    return ops.sin(40.0 * _shifted(images))


def _bright():
    return TransformSet.custom(
        {"lighter": lambda images: images + 0.1, "identity": lambda images: images}
    )


def test_additive_equivariance():
    data = planted_images(10)
    table = measure_equivariance(_shifted, data, _bright())
    lighter, identity = table.rows
    assert lighter["equivariance"] == pytest.approx(1.0, abs=1e-4)
    assert lighter["q_value"] < 1e-6 and abs(lighter["null"]) < 0.2
    assert identity["n_moved"] == 0 and math.isnan(identity["equivariance"])
    axis = measure_equivariance(_shifted, data, _bright(), score="axis")
    assert axis.rows[0]["equivariance"] == pytest.approx(1.0, abs=1e-4)
    # the original score does not see it
    paper = measure_equivariance(_shifted, data, _bright(), score="paper_alignment")
    assert paper.rows[0]["equivariance"] == pytest.approx(0.0, abs=1e-3)
    # a median: interval and p-value are those of its signs
    noisy = measure_equivariance(_noisy, data, _bright(), score="paper_alignment").rows[0]
    assert (noisy["q_value"] < 0.05) == (not noisy["lo"] <= 0 <= noisy["hi"])


def test_random_displacements_share_nothing():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(60):
        d = generator.normal(size=(30, 6))
        mean, left_out = pair_cosines(d)
        error = np.sqrt(29 / 30 * ((left_out - left_out.mean()) ** 2).sum())
        covered += abs(mean) <= 2.05 * error
    assert covered >= 52
    assert pair_cosines(generator.normal(size=(4000, 5)), 2)[0] == pytest.approx(0.2, abs=0.01)
    one_axis = np.outer(generator.choice([-1.0, 1.0], 50), generator.normal(size=4))
    assert abs(pair_cosines(one_axis)[0]) < 0.1
    assert pair_cosines(one_axis, 2)[0] == pytest.approx(1.0)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("width", [3, 20])
def test_pair_cosines_are_brute_force(power, width):
    generator = np.random.default_rng(0)
    d = generator.normal(size=(8, width))
    d[3] = 0
    x = d[[0, 1, 2, 4, 5, 6, 7]]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    off = ~np.eye(7, dtype=bool)
    mean, left_out = pair_cosines(d, power)
    assert mean == pytest.approx(((x @ x.T) ** power)[off].mean())
    assert left_out[3] == mean
    inner = (x[1:] @ x[1:].T) ** power
    assert left_out[0] == pytest.approx(inner[~np.eye(6, dtype=bool)].mean())


@pytest.mark.parametrize("reduce", ["median", "ratio_of_means"])
def test_compare(reduce):
    data = planted_images(12)
    models = {"colour": _mean_colour, "pixels": pixels, "twin": _mean_colour}
    table = compare(models, data, _flips(), reduce=reduce)
    assert table.models == ["colour", "pixels", "twin"] and len(table) == 9
    rows = {(r["model"], r["other"], r["transform"]): r for r in table.differences}
    known = rows["colour", "pixels", "flip"]
    assert known["difference"] > 0.1 and known["lo"] > 0 and known["q_value"] < 0.05
    nothing = rows["colour", "twin", "invert"]
    assert nothing["difference"] == nothing["lo"] == nothing["hi"] == 0.0
    assert nothing["q_value"] == 1.0
    json.dumps(table.to_dict())
    moved = compare(models, data, _bright(), measure="equivariance")
    assert len(moved.differences) == 6
    with pytest.raises(InputError, match="two names"):
        compare({"one": pixels}, data, _flips())


def _made_up(slope: float, noise: float, seed: int = 0):
    """Factors and invariance of 12 operations that go together, or do not."""
    generator = np.random.default_rng(seed)
    scores = np.linspace(-1, 1, 12)
    names = [f"operation{i}" for i in range(12)]
    factors = FactorTable(
        [
            {
                "class_id": label,
                "class_name": str(label),
                "transform": name,
                "gain": score,
                "net_gain": score,
                "share": (score + 1) / 2,
                "self_similarity": 0.5,
            }
            for label in range(3)
            for name, score in zip(names, scores, strict=True)
        ],
        {"score": "gain", "n_images": 30},
    )
    gaps = slope * scores + noise * generator.normal(size=12)
    tables = [
        InvarianceTable(
            [
                {
                    "model": "m",
                    "layer": "l",
                    "transform": name,
                    "index": index,
                    "class_id": -1,
                    "class_name": "all",
                    "invariance": 0.3 + (gap if trained else 0.0) + 0.01 * index,
                }
                for name, gap in zip(names, gaps, strict=True)
                for index in range(10)
            ]
        )
        for trained in (True, False)
    ]
    return factors, *tables, gaps


def test_what_lines_up():
    factors, trained, reference, gaps = _made_up(1.0, 0.2)
    result = lines_up(factors, trained, reference, n_permutations=2000)
    assert result.rho > 0.9 and result.p < 0.01 and result.ci[0] > 0.5
    assert 0.5 < result.detectable < 0.65  # 0.587 of tables for twelve
    np.testing.assert_allclose(result["gap"], gaps, atol=1e-9)
    bars = lines_up(factors, trained, reference, statistic="paper_bars", n_permutations=2000)
    # the five best are all among those whose invariance rises: 3 classes x 5 of 15
    assert bars.bars["decreases"][0] == 0.0 and bars.bars["increases"][0] > 0.1
    assert bars.p < 0.05
    assert "12 transformations" in result.summary
    json.dumps(result.to_dict())


def test_what_does_not_line_up():
    factors, trained, reference, _ = _made_up(0.0, 1.0, seed=3)
    result = lines_up(factors, trained, reference, n_permutations=2000)
    assert abs(result.rho) < result.detectable and result.p > 0.05
    low, high = result.ci
    assert low < 0 < high


@pytest.mark.slow_on("jax")
def test_line_up_of_measured_tables():
    """A trained model that ignores place, against one that sees it; factors of planted data."""
    data = planted_images(10)
    chosen = planted_set()
    factors = explain_variation(pixels, data, chosen)
    trained = measure_invariance(_mean_colour, data, chosen)
    reference = measure_invariance(pixels, data, chosen)
    result = lines_up(factors, trained, reference, n_permutations=200)
    gaps = {row["transform"]: row["gap"] for row in result.per_transform}
    assert gaps["rotate"] > 0.2 and gaps["identity"] == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(InputError, match="three or more"):
        few = measure_invariance(pixels, data, _IDENTITY)
        lines_up(factors, few, few)
    both = compare({"a": pixels, "b": _mean_colour}, data, chosen)
    with pytest.raises(InputError, match="several models"):
        lines_up(factors, both, reference)
    assert math.isfinite(lines_up(factors, both.of_model("a"), both.of_model("b")).rho)


def test_directions_of_the_search():
    known = {"decrease_contrast", "increase_contrast", "scale_zoom_in", "scale_zoom_out", "rotate"}
    assert invariance_operation("contrast", -0.3, known) == "decrease_contrast"
    assert invariance_operation("contrast", 0.3, known) == "increase_contrast"
    assert invariance_operation("rescale", 0.55, known) == "scale_zoom_out"
    assert invariance_operation("rescale", 2.25, known) == "scale_zoom_in"
    assert invariance_operation("rotate", 30, known) == "rotate"
    assert invariance_operation("equalize", math.nan, known) is None


def test_similarity_checks():
    images, labels = planted_images(12)
    table = similarity_checks(pixels, (images, labels))
    assert table.passed and len(table) == 8
    near = table.similarity("image with itself", "rotated by 5 degrees")
    far = table.similarity("image with itself", "rotated by 90 degrees")
    assert near > far
    for row in table:
        assert row["lo"] <= row["similarity"] <= row["hi"]
    for condition in ("none", "rotated at random", "rotated alike"):
        within = table.similarity("within class", condition)
        assert within > table.similarity("across classes", condition)
    with pytest.warns(UserWarning, match="not more alike"):
        shuffled = similarity_checks(pixels, (images, np.arange(len(labels)) % 3))
    assert not shuffled.passed


def test_similarity_within_and_across_are_brute_force():
    from keras_git.analysis.similarity import class_pair_means, unit

    generator = np.random.default_rng(0)
    u = unit(generator.normal(size=(9, 3)) + 0.5)
    groups = [np.arange(4), np.arange(4, 9)]
    within, _, across, across_error = class_pair_means(u, groups)
    cosines = u @ u.T
    means = [cosines[np.ix_(g, g)][~np.eye(len(g), dtype=bool)].mean() for g in groups]
    assert within == pytest.approx(np.mean(means))
    assert across == pytest.approx(cosines[:4, 4:].mean())
    assert across_error > 0


def test_bad_input():
    data, chosen = planted_images(4), _flips()
    for match, arguments in {
        "metric is": {"metric": "l1"},
        "baseline is": {"baseline": "none"},
        "reduce is": {"reduce": "mean"},
        "ci is": {"ci": 1.0},
    }.items():
        with pytest.raises(InputError, match=match):
            measure_invariance(pixels, data, chosen, **arguments)
    with pytest.raises(InputError, match="score is"):
        measure_equivariance(pixels, data, chosen, score="best")
    with pytest.raises(InputError, match="three or more"):
        measure_invariance(pixels, (data[0][:2], data[1][:2]), chosen)
    with pytest.raises(InputError, match="statistic is"):
        lines_up(*_made_up(1, 0)[:3], statistic="best")
    with pytest.raises(InputError, match="magnitudes is"):
        lines_up(*_made_up(1, 0)[:3], magnitudes=(7, 3))
    with pytest.raises(InputError, match="preprocess has 'traind'"):
        models = {"trained": pixels, "other": pixels}
        compare(models, data, chosen, preprocess={"traind": None})


def test_the_paper_baseline_differs_only_by_its_permutation():
    data = planted_images(20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tables = [
            measure_invariance(pixels, data, planted_set(), baseline=b)
            for b in ("expected", "paper")
        ]
    np.testing.assert_allclose(tables[0]["ratio_of_means"], tables[1]["ratio_of_means"], atol=0.12)
