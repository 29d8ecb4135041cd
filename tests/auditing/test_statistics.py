"""Streaming sums against whole arrays."""

from __future__ import annotations

import itertools

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats

from keras_git.auditing.statistics import ClassMoments, ConditionSums, spearman_trend


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
    assert trend.rho == trend.low == trend.high == -1
    assert trend.p_value == pytest.approx(2 / 120)  # of 120 orders, two are as extreme
    three = spearman_trend(np.arange(1, 4), np.arange(3.0))
    assert three.rho == 1 and np.isnan(three.low) and three.p_value == pytest.approx(1 / 3)


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
