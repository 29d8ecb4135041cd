"""Streaming sums against whole arrays."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from keras_git.auditing.statistics import (
    ClassMoments,
    ConditionSums,
    draws_needed,
    joined_draws,
    pooled_error,
    spearman_trend,
    wants_more,
)


def rows(divergence, consistent, correct):
    """What the compiled function returns for arrays (images, draws)."""
    squares = ((divergence - divergence.mean(1, keepdims=True)) ** 2).sum(1)
    return np.stack([divergence.sum(1), squares, consistent.sum(1), correct.sum(1)])


@hypothesis.given(st.integers(0, 2**31), st.integers(1, 30))
def test_moments_do_not_depend_on_the_batches(seed, batch):
    rng = np.random.default_rng(seed)
    labels, values = rng.integers(0, 3, 40), 1e6 + rng.standard_normal(40)
    moments = ClassMoments(4)
    for start in range(0, 40, batch):
        moments.add(labels[start : start + batch], values[start : start + batch])
    for label in range(3):
        own = values[labels == label]
        assert moments.mean[label] == pytest.approx(own.mean(), rel=1e-12)
        if len(own) > 1:
            assert moments.variance[label] == pytest.approx(own.var(ddof=1), rel=1e-6)
    assert np.isnan(moments.variance[3])


def test_rounds_give_unbiased_errors():
    """Images differ by 1, draws by 2 (standard deviations); rounds of 4 and 6 draws."""
    rng = np.random.default_rng(0)
    images, repeats = 40, 400
    labels = np.zeros(images, np.int64)
    errors, sampling, means = [], [], []
    for _ in range(repeats):
        sums = ConditionSums(1)
        offsets = rng.standard_normal((images, 1))
        for index, draws in enumerate((4, 6)):
            if index:
                sums.start_round()
            values = offsets + 2 * rng.standard_normal((images, draws))
            flags = np.ones((images, draws))
            sums.add(labels, rows(values, flags, flags), draws)
            sums.finish_round()
        errors.append(sums.standard_error("ekld")[0] ** 2)
        sampling.append(sums.sampling_error()[0] ** 2)
        means.append(sums.mean("ekld")[0])
    assert np.mean(sampling) == pytest.approx(4 / (images * 10), rel=0.02)
    assert np.mean(errors) == pytest.approx((1 + 4 / 10) / images, rel=0.03)
    assert np.var(means) == pytest.approx((1 + 4 / 10) / images, rel=0.2)
    assert sums.num_samples[0] == 10 and sums.standard_error("accuracy")[0] == 0


def test_only_some_classes_go_on():
    rng = np.random.default_rng(1)
    sums, labels = ConditionSums(3), np.repeat([0, 1], 5)
    first = rng.random((10, 3))
    sums.add(labels, rows(first, first > 0.5, first > 0.2), 3)
    sums.finish_round()
    sums.start_round()
    second = rng.random((5, 2))
    sums.add(labels[5:], rows(second, second > 0.5, second > 0.2), 2)
    sums.finish_round()
    np.testing.assert_array_equal(sums.num_samples, [3, 5, 0])
    assert sums.mean("ekld")[0] == pytest.approx(first[:5].mean())
    together = np.concatenate([first[5:], second], axis=1)
    assert sums.mean("ekld")[1] == pytest.approx(together.mean())
    assert sums.mean("consistency")[1] == pytest.approx((together > 0.5).mean())
    within = (first[5:].var(1, ddof=1).sum() * 2 + second.var(1, ddof=1).sum()) / (5 * 3)
    assert sums.sampling_error()[1] == pytest.approx(np.sqrt(within / 25))
    assert np.isnan(sums.mean("ekld")[2])


def test_one_draw_leaves_the_sampling_error_open():
    sums = ConditionSums(1)
    ones = np.ones((3, 1))
    sums.add(np.zeros(3, np.int64), rows(ones, ones, ones), 1)
    sums.finish_round()
    assert np.isnan(sums.sampling_error()[0]) and sums.standard_error("ekld")[0] == 0


def test_trend():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 500, 30)
    values = -np.log(sizes) + rng.standard_normal(30)
    values[3] = np.nan
    trend = spearman_trend(sizes, values)
    seen = np.isfinite(values)
    expected = scipy.stats.spearmanr(sizes[seen], values[seen])
    assert trend.rho == pytest.approx(expected.statistic)
    assert trend.p_value == pytest.approx(expected.pvalue)
    assert trend.num_classes == 29 and -1 < trend.low < trend.rho < trend.high < 0


def test_the_interval_covers_what_it_promises():
    rng = np.random.default_rng(0)
    covered = 0
    # Spearman's rho of normal pairs: 6 / pi * arcsin(r / 2)
    truth = 6 / np.pi * np.arcsin(0.5 / 2)
    for _ in range(400):
        x = rng.standard_normal(40)
        y = 0.5 * x + np.sqrt(0.75) * rng.standard_normal(40)
        trend = spearman_trend(x, y)
        covered += trend.low <= truth <= trend.high
    assert 0.92 < covered / 400 < 0.98


@pytest.mark.parametrize(
    ("sizes", "values"),
    [([1, 2], [1, 2]), ([5, 5, 5], [1, 2, 3]), ([1, 2, 3], [4, 4, 4]), ([1, 2, 3], [1, 2, np.nan])],
)
def test_no_trend(sizes, values):
    trend = spearman_trend(np.array(sizes), np.array(values, float))
    assert np.isnan([trend.rho, trend.p_value, trend.low, trend.high]).all()


def test_perfect_trends():
    trend = spearman_trend(np.arange(1, 6), -np.arange(5.0))
    assert trend.rho == -1
    assert trend.p_value == pytest.approx(2 / 120)  # of 120 orders, two are as extreme
    three = spearman_trend(np.arange(1, 4), np.arange(3.0))
    assert three.rho == 1 and three.p_value == pytest.approx(1 / 3)
    for exact in (trend, three, spearman_trend(np.arange(1, 30), np.arange(29.0))):
        assert np.isnan([exact.low, exact.high]).all()  # not an interval of width 0
    # few classes have an exact p-value, which an approximate interval would contradict
    few = spearman_trend(np.arange(1, 8), np.array([1.0, 3, 2, 4, 5, 7, 6]))
    assert few.p_value < 0.05 and np.isnan([few.low, few.high]).all()


def test_differences_within_the_resolution_are_ties():
    """What rounding makes of an exactly invariant classifier is no trend, however regular."""
    sizes = np.arange(20, 0, -1)
    noise = np.linspace(3e-9, 2e-8, 20)
    assert spearman_trend(sizes, noise).p_value < 0.001
    assert np.isnan(spearman_trend(sizes, noise, 1e-6).rho)
    one = spearman_trend(sizes, np.where(np.arange(20) == 19, 0.5, noise), 1e-6)
    other = spearman_trend(sizes, np.where(np.arange(20) == 19, 0.5, 0.0))
    assert one == other and one.p_value > 0.05


def test_draws_of_the_same_images_are_joined():
    rng = np.random.default_rng(2)
    values = 3 + rng.random((5, 9))
    flags = values > 3.5
    parts = (rows(part, part > 3.5, part > 3.2) for part in (values[:, :4], values[:, 4:]))
    first, second = parts
    np.testing.assert_allclose(
        joined_draws(first, 4, second, 5), rows(values, flags, values > 3.2), rtol=1e-12
    )


def test_errors_of_a_group():
    assert pooled_error(np.array([0.3, 0.4]), np.array([9, 9])) == pytest.approx(0.25)
    # a class of one image: the deviation of the others, 0.3 * 3
    single = pooled_error(np.array([0.3, np.nan]), np.array([9, 1]))
    assert single == pytest.approx(np.hypot(0.3, 0.9) / 2)
    assert np.isnan(pooled_error(np.array([np.nan]), np.array([1])))


def sampled(images, precision, max_samples, rng, draw, trial_draws=10):
    """One class under a precision, as the audit does it: `draw(shape)` gives divergences."""
    labels = np.zeros(images, np.int64)

    def add(sums, number):
        values = draw((images, number))
        sums.start_round()
        sums.add(labels, rows(values, values == 0, values == 0), number)
        sums.finish_round()

    trial, sums = ConditionSums(1), ConditionSums(1)
    add(trial, trial_draws)
    needed = draws_needed(trial, precision)
    level = 0
    while level == 0 or wants_more(sums, needed, precision, max_samples).any():
        target = min(max(2 * level, 2), max_samples)
        add(sums, target - level)
        level = target
    return sums


@pytest.mark.parametrize("images", [1, 4])
def test_a_precision_is_not_fooled_by_rare_divergences(images):
    """5 nats with probability 0.05: ten draws of one image agree in 60 % of the cases."""
    rng = np.random.default_rng(0)

    def draw(shape):
        return 5.0 * (rng.random(shape) < 0.05)

    found = [sampled(images, 0.05, 400, rng, draw) for _ in range(400)]
    means = np.array([sums.mean("ekld")[0] for sums in found])
    errors = np.array([sums.sampling_error()[0] for sums in found])
    samples = np.array([sums.num_samples[0] for sums in found])
    # the plan is unbiased; that a class goes on while its error is too large costs a little
    assert means.mean() == pytest.approx(0.25, abs=0.05 / 3)
    assert (errors == 0).mean() < 0.01
    assert ((errors <= 0.05) | (samples == 400)).all()
    assert (np.abs(means - 0.25) <= 2 * errors).mean() > 0.88


def test_a_precision_costs_little_where_draws_hardly_differ():
    rng = np.random.default_rng(0)
    few = sampled(100, 0.02, 100, rng, lambda shape: 0.1 * rng.random(shape))
    assert few.num_samples[0] == 2
    many = sampled(4, 0.02, 100, rng, lambda shape: 0.3 * rng.standard_normal(shape))
    # 0.09 / (4 * 0.02^2) = 56 draws; an upper bound, in powers of two
    assert 64 <= many.num_samples[0] <= 100


@pytest.mark.parametrize("number", [4, 6])
def test_few_classes_have_exact_p_values(number):
    rng = np.random.default_rng(number)
    sizes, values = rng.integers(1, 6, number), rng.integers(0, 5, number).astype(float)
    trend = spearman_trend(sizes, values)
    orders = np.array(
        [scipy.stats.spearmanr(sizes, order).statistic for order in itertools.permutations(values)]
    )
    # twice that of the smaller side
    sides = [np.mean(side * orders >= side * trend.rho - 1e-9) for side in (-1, 1)]
    assert trend.p_value == pytest.approx(min(2 * min(sides), 1))
