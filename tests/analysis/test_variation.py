"""Factors of variation: planted ones are found, absent ones are not; closed forms, invariances."""

from __future__ import annotations

import dataclasses
import json
import math
import warnings

import numpy as np
import pytest
from keras import ops

from keras_git.analysis import (
    EmbeddingCache,
    FactorTable,
    TransformSet,
    explain_variation,
    mantel,
    select_augmentations,
    wordnet_similarity,
)
from keras_git.analysis.intervals import (
    benjamini_hochberg,
    jackknife_error,
    median_interval,
    student_quantile,
    wilson,
)
from keras_git.analysis.similarity import disjoint_pairs, pair_mean, pair_share, random_pairs, unit
from keras_git.analysis.variation import _over_classes, class_gains
from keras_git.errors import InputError
from tests.analysis.planted import (
    FAMILIES,
    REMOVABLE,
    SIDE,
    centred_pixels,
    network,
    pixels,
    planted_images,
    planted_set,
    removable_images,
    removable_set,
)


@pytest.fixture(scope="module")
def planted():
    """The search over planted data."""
    return explain_variation(pixels, planted_images(), planted_set())


def test_a_planted_factor_comes_first(planted):
    families = planted.families
    for label, family in enumerate(FAMILIES):
        best = families.top(1)[label]
        assert best["class_id"] == label
        assert best["transform"] == family
        assert best["net_lo"] > 0 and best["q_value"] < 0.05 and best["rank_lo"] == 1


def test_what_is_not_planted_gains_nothing(planted):
    best = [row["net_gain"] for row in planted.families.top(1)]
    for row in planted.families:
        if row["transform"] != FAMILIES[row["class_id"]]:
            assert row["net_gain"] < 0.25 * best[row["class_id"]]


def test_an_embedding_that_becomes_zero_is_not_similar_to_itself():
    vectors = unit(np.random.default_rng(0).normal(size=(4, 3)))
    gains = class_gains(vectors, -vectors, np.zeros(4, int)).classes[0]
    assert gains.self_similarity == 0.0
    gains = class_gains(vectors, 0 * vectors, np.zeros(4, int)).classes[0]
    assert gains.self_similarity == 1.0


def test_a_planted_factor_that_one_candidate_removes():
    """A class that varies by tint alone, one by noise alone: taking it away makes them alike."""
    table = explain_variation(centred_pixels, removable_images(), removable_set())
    for label, best in enumerate(table.top(1)):
        assert best["transform"] == REMOVABLE[label]
        assert best["net_lo"] > 0 and best["q_value"] < 0.05 and best["rank_lo"] == 1
    for row in table:
        if row["transform"] not in (REMOVABLE[row["class_id"]], "identity"):
            assert row["net_gain"] < 0.1 * table.top(1)[row["class_id"]]["net_gain"]


def test_what_can_be_undone_gains_nothing_on_average(planted):
    """Over all pairs a rotation moves as many apart as together, whatever varies in the data."""
    for row in planted:
        if row["transform"] == "rotate":
            assert row["gain"] < 0.01


def test_identity_gains_exactly_nothing(planted):
    rows = [row for row in planted if row["transform"] == "identity"]
    assert len(rows) == 3
    for row in rows:
        assert row["gain"] == row["net_gain"] == row["share"] == row["control_gain"] == 0.0
        assert row["share_lo"] == row["share_hi"] == 0.0
        assert row["self_similarity"] == 1.0 and row["q_value"] == 1.0
    assert planted.notes["ties"]["identity"] == 3 * 30 * 29
    every = planted.top(len(planted.candidates))
    assert every and not [row for row in every if row["transform"] == "identity"]
    assert not [r for r in planted.top(100, per="dataset") if r["transform"] == "identity"]


def test_the_table(planted, tmp_path):
    assert planted.columns[:4] == ("class_id", "class_name", "transform", "magnitude")
    assert len(planted) == 3 * len(planted_set())
    for row in planted:
        assert row["n_images"] == 30 and row["n_pairs"] == 30 * 29
        assert row["gain_lo"] <= row["gain"] <= row["gain_hi"]
        assert row["net_lo"] <= row["net_gain"] <= row["net_hi"]
        assert 0 <= row["share_lo"] <= row["share"] <= row["share_hi"] <= 1
        assert row["rank_lo"] <= row["rank"] <= row["rank_hi"]
    again = FactorTable.from_dict(json.loads(json.dumps(planted.to_dict())))
    np.testing.assert_array_equal(again["gain"], planted["gain"])
    assert again.top(2, per="dataset") and again.warnings == planted.warnings
    lines = planted.to_csv(tmp_path / "factors.csv").read_text().splitlines()
    assert lines[0].split(",") == list(FactorTable.COLUMNS)
    assert len(lines) == 1 + len(planted)
    assert "90 images x" in planted.summary and "seconds" in planted.summary
    assert len(planted.dataset_rows) == len(planted_set())
    ranks = sorted(row["rank"] for row in planted if row["class_id"] == 0)
    assert ranks == list(range(1, len(planted_set()) + 1))


def test_pandas_is_optional(planted):
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="pip install pandas"):
            planted.to_pandas()
    else:
        assert list(planted.to_pandas().columns) == list(FactorTable.COLUMNS)


def test_order_batches_and_scale_do_not_matter(planted):
    images, labels = planted_images()
    order = np.random.default_rng(3).permutation(len(labels))

    def rescaled(batch):  # a length of its own for each image
        return pixels(batch) * (1.0 + ops.mean(batch, axis=(1, 2, 3)))[:, None]

    other = explain_variation(
        rescaled, (images[order], labels[order]), planted_set(), batch_size=7, seed=5
    )
    for column in ("gain", "net_gain", "share", "net_lo", "self_similarity"):
        np.testing.assert_allclose(other[column], planted[column], atol=1e-5)


def test_an_invariant_embedding_shows_no_factor():
    """The control whose answer is nothing: brightness, for an embedding that does not see it."""

    def direction(images):
        flat = ops.reshape(images, (ops.shape(images)[0], -1))
        return flat / (ops.norm(flat, axis=1, keepdims=True) + 1e-6)

    dim = TransformSet.custom({"dim": lambda images: 0.5 * images, "dark": lambda i: 0.25 * i})
    table = explain_variation(direction, planted_images(), dim)
    assert np.abs(table["net_gain"]).max() < 1e-4
    assert table["self_similarity"].min() > 1 - 1e-4


def test_without_control_and_over_the_dataset():
    images, labels = planted_images(12)
    chosen = planted_set().filter(["rotate", "invert"])
    table = explain_variation(pixels, (images, labels), chosen, control=None, per_class=False)
    assert set(table["class_id"]) == {-1} and len(table) == len(chosen)
    assert np.isnan(table["net_gain"]).all() and np.isfinite(table["q_value"]).all()
    each = explain_variation(pixels, (images, labels), chosen, control=None)
    gains = each.matrix("gain")
    np.testing.assert_allclose(table["gain"], gains.mean(axis=0), atol=1e-12)


@pytest.mark.parametrize("pairs", ["disjoint", 60])
def test_fewer_pairs_estimate_the_same(planted, pairs):
    images, labels = planted_images()
    table = explain_variation(pixels, (images, labels), planted_set(), pairs=pairs, score="share")
    assert set(table["n_pairs"]) == ({15} if pairs == "disjoint" else {60})
    inside = (table["gain_lo"] <= planted["gain"]) & (planted["gain"] <= table["gain_hi"])
    assert inside.mean() > 0.85
    assert np.abs(table["gain"] - planted["gain"]).max() > 0
    widths = [t["gain_hi"] - t["gain_lo"] for t in (table, planted)]
    assert np.nanmean(widths[0]) > np.nanmean(widths[1])


def test_closed_forms_are_brute_force():
    generator = np.random.default_rng(1)
    u, v = (unit(generator.normal(size=(9, 4))) for _ in range(2))
    d = v - u
    off = ~np.eye(9, dtype=bool)
    values = u @ d.T
    mean, left_out = pair_mean(u, d)
    share, share_left, _ = pair_share(u, d)
    assert mean == pytest.approx(values[off].mean())
    assert share == pytest.approx((values[off] > 0).mean())
    for k in range(9):
        rest = np.delete(np.arange(9), k)
        inner = values[np.ix_(rest, rest)][~np.eye(8, dtype=bool)]
        assert left_out[k] == pytest.approx(inner.mean())
        assert share_left[k] == pytest.approx((inner > 0).mean())
    labels = np.array([0] * 9 + [1] * 6)
    others = unit(generator.normal(size=(6, 4)))
    both = np.concatenate([u, others])
    moved = np.concatenate([d, generator.normal(size=(6, 4))])
    first = class_gains(both, moved, labels).classes[0]
    assert first.control_gain == pytest.approx((others @ d.T).mean())
    assert first.net_gain == pytest.approx(mean - (others @ d.T).mean())
    assert first.original == pytest.approx((u @ u.T)[off].mean())


def test_the_jackknife_covers():
    """About 95 % of the intervals of simulated classes hold the truth."""
    generator = np.random.default_rng(0)
    middle, number, runs = np.array([1.0, 0.5, 0.0, 0.0]), 16, 300

    def draw(n):
        z = middle + generator.normal(0, 0.4, (n, 4))
        return unit(z), unit(z * np.array([0.8, 1.2, 1.0, 1.0])) - unit(z)

    u, d = draw(4000)
    truth, _ = pair_mean(u, d)
    held = 0
    for _ in range(runs):
        gain, left_out = pair_mean(*draw(number))
        half = student_quantile(0.95, number - 1) * jackknife_error(left_out)
        held += abs(gain - truth) <= half
    assert 0.90 <= held / runs <= 0.985


def test_errors_over_all_classes_know_that_classes_share_images():
    """An image is one of its class, and in the control of each other class."""
    generator = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 12)
    middles = generator.normal(size=(4, 5))
    found = []
    for _ in range(300):
        u = unit(middles[labels] + generator.normal(0, 0.5, (48, 5)))
        v = unit(u + 0.3 * np.eye(5)[0] + generator.normal(0, 0.1, u.shape))
        found.append(_over_classes(class_gains(u, v - u, labels)))
    truth = np.std([one.net_gain for one in found])
    estimates = [one.net_error for one in found]
    assert 0.9 * truth < np.sqrt(np.mean(np.square(estimates))) < 1.25 * truth


def test_random_pairs_are_different_pairs():
    i, j = random_pairs(5, 100, np.random.default_rng(0))
    assert len({*zip(i.tolist(), j.tolist(), strict=True)}) == 20
    assert (i != j).all() and max(i.max(), j.max()) == 4


def test_intervals():
    low, high = wilson(8, 10, 0.95)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10, 0.95)[0] == 0.0 and wilson(10, 10, 0.95)[1] == 1.0
    q = benjamini_hochberg([0.01, 0.04, math.nan, 0.03, 0.5])
    np.testing.assert_allclose(q, [0.04, 0.16 / 3, math.nan, 0.16 / 3, 0.5])
    # of 10 values, the second and the ninth: 1 - 2 P(X <= 1) = 0.979
    assert median_interval(np.arange(10.0), 0.95) == (1.0, 8.0)
    assert math.isnan(median_interval(np.arange(5.0), 0.95)[0])


def test_null_data_are_not_significant():
    """Images without structure: no transformation explains their variation."""
    generator = np.random.default_rng(0)
    images = generator.random((60, 8, 8, 3)).astype(np.float32)
    labels = np.arange(60) % 3
    transforms = TransformSet.geometric(8, scale=(), shear=()).filter(["rotate", "translateX"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # whether the gate warns is up to chance here
        table = explain_variation(pixels, (images, labels), transforms)
    assert (table["q_value"] < 0.05).sum() <= 1


def test_the_gate_warns():
    """Labels against the grain: images of a class are less alike than others."""
    images, labels = planted_images(12)
    turned = np.arange(len(labels)) % 3
    chosen = planted_set().filter("invert")
    with pytest.warns(UserWarning, match="not more alike"):
        table = explain_variation(pixels, (images, turned), chosen)
    assert len(table.warnings) == 1 and not table.checks.passed
    assert explain_variation(pixels, (images, labels), chosen).checks.passed


@pytest.mark.slow_on("jax")
def test_cache_and_layers(tmp_path):
    images, labels = planted_images(8)
    model = network()
    chosen = planted_set().filter(["invert", "rotate"])
    options = {"layer": "pool", "images_per_class": 6}
    first = explain_variation(model, (images, labels), chosen, cache=tmp_path, **options)
    files = list(tmp_path.glob("*.npz"))
    assert len(files) == 1
    again = explain_variation(model, (images, labels), chosen, cache=tmp_path, **options)
    np.testing.assert_array_equal(again["gain"], first["gain"])
    features = explain_variation(
        model, (images, labels), chosen, layer="features", images_per_class=6
    )
    np.testing.assert_allclose(features["gain"], first["gain"], atol=1e-6)
    model.get_layer("maps").kernel.assign(2.5 * model.get_layer("maps").kernel + 0.01)
    cache = EmbeddingCache(tmp_path)
    changed = explain_variation(model, (images, labels), chosen, cache=cache, **options)
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert np.abs(changed["gain"] - first["gain"]).max() > 1e-6


def test_grey_levels_are_the_same_as_parts(planted):
    images, labels = planted_images(8)
    levels = np.round(images * 255).astype(np.uint8)
    chosen = planted_set().filter(["invert", "rotate"])
    unscaled = explain_variation(lambda x: pixels(x / 255.0), (levels, labels), chosen)
    scaled = explain_variation(pixels, (levels, labels), chosen, preprocess="0_1")
    parts = explain_variation(pixels, ((levels / 255).astype(np.float32), labels), chosen)
    np.testing.assert_allclose(unscaled["gain"], scaled["gain"], atol=1e-6)
    np.testing.assert_allclose(parts["gain"], scaled["gain"], atol=1e-6)


def test_class_similarity_and_taxonomy(planted):
    for metric in ("spearman", "iou"):
        alike = planted.class_similarity(metric, top=3)
        assert alike.shape == (3, 3)
        np.testing.assert_allclose(np.diag(alike), 1.0)
        np.testing.assert_allclose(alike, alike.T)
    generator = np.random.default_rng(0)
    matrix = generator.random((9, 9))
    matrix = matrix + matrix.T
    rho, p = mantel(matrix, np.exp(matrix), n_permutations=400)
    assert rho == pytest.approx(1.0) and p < 0.01
    other = generator.random((9, 9))
    rho, p = mantel(matrix, other + other.T, n_permutations=400)
    assert abs(rho) < 0.5 and p > 0.05
    with pytest.raises(InputError, match="four or more"):
        planted.compare_to(np.eye(3))


def test_compare_to_a_taxonomy():
    """Classes of two families of factors, and a taxonomy that knows which is which."""
    generator = np.random.default_rng(0)
    profiles = generator.normal(size=(2, 12))
    rows = []
    for label in range(8):
        scores = profiles[label // 4] + 0.1 * generator.normal(size=12)
        for place, score in enumerate(scores):
            rows.append(
                {
                    "class_id": label,
                    "class_name": str(label),
                    "transform": f"t{place}",
                    "gain": score,
                    "net_gain": score,
                }
            )
    table = FactorTable(rows, {"score": "gain"})
    kind = np.arange(8) // 4
    found = table.compare_to((kind[:, None] == kind).astype(float), n_permutations=300)
    assert found["rho"] > 0.7 and found["p"] < 0.05 and found["n_pairs"] == 28
    order = generator.permutation(8)
    nothing = (kind[order][:, None] == np.roll(kind, 2)).astype(float)
    nothing = nothing + nothing.T
    assert table.compare_to(nothing, n_permutations=300)["p"] > 0.02


class _Sense:
    def __init__(self, place):
        self.place = place

    def wup_similarity(self, other):
        return 1.0 / (1 + abs(self.place - other.place))


class _Corpus:
    nouns = {"cat": 0, "dog": 1, "sports_car": 9}

    def synsets(self, name, pos):
        return [_Sense(self.nouns[name])] if name in self.nouns else []

    def synset_from_pos_and_offset(self, pos, offset):
        return _Sense(offset)


def test_wordnet():
    found = wordnet_similarity(["cat", "dog", "sports car", "n00000001"], corpus=_Corpus())
    np.testing.assert_allclose(found[0], [1, 0.5, 0.1, 0.5])
    np.testing.assert_allclose(found, found.T)
    with pytest.raises(InputError, match="no noun 'unicorn'"):
        wordnet_similarity(["unicorn"], corpus=_Corpus())
    with pytest.raises(InputError, match="wu_palmer"):
        wordnet_similarity(["cat"], measure="guess", corpus=_Corpus())
    try:
        import nltk  # noqa: F401
    except ImportError:
        with pytest.raises(InputError, match="pip install nltk"):
            wordnet_similarity(["cat"])


def test_bad_input():
    images, labels = planted_images(4)
    chosen = planted_set().filter("invert")
    good = (pixels, (images, labels), chosen)
    for match, arguments in {
        "score is": {"score": "best"},
        "control is": {"control": "yes"},
        "pairs is": {"pairs": 0},
        "ci is": {"ci": 95},
        "batch_size is": {"batch_size": 0},
        "layer needs a Keras model": {"layer": "pool"},
        "preprocess is": {"preprocess": "half"},
        "images_per_class is": {"images_per_class": 0},
    }.items():
        with pytest.raises(InputError, match=match):
            explain_variation(*good, **arguments)
    with pytest.raises(InputError, match="no layer 'pol'"):
        explain_variation(network(), (images, labels), chosen, layer="pol")
    with pytest.raises(InputError, match="are for images of"):
        explain_variation(pixels, (images[:, :8], labels), planted_set())
    with pytest.raises(InputError, match="give a TransformSet"):
        explain_variation(pixels, (images, labels), ["invert"])
    with pytest.raises(InputError, match="the shape must stay|cannot be compiled"):
        wrong = TransformSet.custom({"half": lambda x: x[:, ::2]})
        explain_variation(pixels, (images, labels), wrong)
    with pytest.raises(InputError, match="NaN"):
        explain_variation(lambda x: pixels(x) / 0.0, (images, labels), chosen)
    with pytest.raises(InputError, match="labels"):
        explain_variation(pixels, (images, labels[:-1]), chosen)
    assert SIDE == images.shape[1]


def _flat(images):
    return ops.reshape(images, (ops.shape(images)[0], -1))


def test_errors_of_fewer_pairs_are_those_of_their_means():
    # disjoint pairs are independent: the error of their mean is that of any mean
    generator = np.random.default_rng(3)
    vectors = unit(1 + generator.normal(size=(41, 6)))
    moved = unit(1 + generator.normal(size=(41, 6))) - vectors
    labels = np.zeros(41, int)
    one = class_gains(vectors, moved, labels, pairs="disjoint", seed=5).classes[0]
    i, j = disjoint_pairs(41, np.random.default_rng([5, 0]))
    change = (vectors[i] * moved[j]).sum(axis=1)
    assert one.gain == pytest.approx(change.mean())
    assert one.gain_error == pytest.approx(change.std(ddof=1) / 20**0.5, rel=0.08)
    assert one.freedom == 19
    # and all pairs, listed, have nearly the error of all pairs in closed form
    listed = class_gains(vectors, moved, labels, pairs=41 * 40).classes[0]
    whole = class_gains(vectors, moved, labels).classes[0]
    assert listed.gain_error == pytest.approx(whole.gain_error, rel=0.1)


def test_a_class_with_one_image_does_not_undo_the_others():
    generator = np.random.default_rng(0)
    images = generator.random((14, 8, 8, 1), np.float32)
    labels = np.repeat([0, 3], (6, 8))
    alone = np.concatenate([images, generator.random((1, 8, 8, 1), np.float32)])
    own = TransformSet.custom({"invert": lambda x: 1.0 - x, "darker": lambda x: 0.3 * x})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = explain_variation(_flat, (alone, [*labels, 7]), own)
        other = explain_variation(_flat, (images, labels), own)
    for row, without in zip(table.dataset_rows, other.dataset_rows, strict=True):
        assert math.isfinite(row["net_gain"]) and math.isfinite(row["q_value"])
        assert row["gain"] == pytest.approx(without["gain"], abs=1e-6)
    single = table.select(class_id=7)
    assert np.isnan(single["rank"]).all() and np.isnan(single["gain"]).all()
    assert {row["class_id"] for row in table.top(2)} == {0, 3}
    policy = select_augmentations(
        [{**row, "transform": f"invert with magnitude {i % 2}"} for i, row in enumerate(table)],
        per="dataset", min_share=-1, min_gain=-9,
    )  # fmt: skip
    assert len(policy.operations(0)) == 2


def test_the_best_of_an_operation_sees_all_of_its_own():
    def flatter(images):
        return images**0.3

    step = TransformSet.custom({"a": flatter}).candidates[0]
    twin = dataclasses.replace(step, transform="b", operation="b")
    generator = np.random.default_rng(0)
    images = generator.random((12, 4, 4, 1), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = explain_variation(_flat, (images, [0, 1] * 6), TransformSet([step, twin]))
    rows = table.families.select(class_id=0)
    assert rows["gain"][0] == rows["gain"][1] > 0
