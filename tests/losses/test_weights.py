from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_git.errors import InputError
from keras_git.losses import (
    class_balanced_weights,
    deferred_reweighting,
    inverse_frequency_weights,
    ldam_margins,
)

counts_lists = st.lists(st.integers(1, 100_000), min_size=1, max_size=30)


@given(counts_lists, st.floats(0, 0.99999))
def test_class_balanced_weights_sum_to_the_number_of_classes_and_fall_with_size(counts, beta):
    weights = class_balanced_weights(counts, beta)
    assert weights.sum() == pytest.approx(len(counts))
    ordered = weights[np.argsort(counts)]
    assert np.all(np.diff(ordered) <= 1e-9 * len(counts))


def test_class_balanced_weights_closed_form_and_limits():
    counts = np.array([1, 2, 3])
    raw = 0.5 / np.array([0.5, 0.75, 0.875])
    np.testing.assert_allclose(class_balanced_weights(counts, 0.5), raw * 3 / raw.sum())
    np.testing.assert_array_equal(class_balanced_weights(counts, 0), 1.0)
    inverse = (1 / counts) * 3 / (1 / counts).sum()
    np.testing.assert_allclose(class_balanced_weights(counts, 1 - 1e-12), inverse, rtol=1e-4)


@given(counts_lists, st.floats(-2, 200))
def test_inverse_frequency_weights_sum_to_the_number_of_classes(counts, power):
    weights = inverse_frequency_weights(counts, power)
    assert weights.sum() == pytest.approx(len(counts)) and weights.dtype == np.float64
    rarest = int(np.argmin(counts)) if power > 0 else int(np.argmax(counts))
    assert weights[rarest] == weights.max()


def test_inverse_frequency_weights_closed_form_and_limits():
    counts = np.array([100, 10, 4])
    for power in (1.0, 0.5, -1.0):
        raw = counts**-power
        expected = raw * 3 / raw.sum()
        np.testing.assert_allclose(inverse_frequency_weights(counts, power), expected)
    np.testing.assert_array_equal(inverse_frequency_weights(counts, 0), 1.0)
    # the limit of the effective numbers
    np.testing.assert_allclose(
        inverse_frequency_weights(counts), class_balanced_weights(counts, 1 - 1e-12), rtol=1e-3
    )


@given(counts_lists, st.floats(0.01, 2))
def test_margins_are_proportional_to_the_fourth_root(counts, largest):
    margins = ldam_margins(counts, largest)
    assert margins.max() == pytest.approx(largest)
    products = margins * np.asarray(counts, float) ** 0.25
    np.testing.assert_allclose(products, products[0])


def test_deferred_reweighting_switches_once():
    schedule = deferred_reweighting([100, 10], epoch=3)
    np.testing.assert_array_equal(schedule(2), [1, 1])
    np.testing.assert_array_equal(schedule(3), class_balanced_weights([100, 10]))
    np.testing.assert_array_equal(schedule(99), schedule(3))
    schedule(3)[:] = 0  # a caller's array, not the schedule's
    assert schedule(3).sum() == pytest.approx(2)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: class_balanced_weights([5, 0]), r"class_counts\[1\] is 0"),
        (lambda: class_balanced_weights([]), "shape"),
        (lambda: class_balanced_weights([5, float("nan")]), r"class_counts\[1\]"),
        (lambda: class_balanced_weights([5], 1.0), "beta is 1.0"),
        (lambda: inverse_frequency_weights([5, 0]), r"class_counts\[1\] is 0"),
        (lambda: inverse_frequency_weights([5], float("inf")), "power is inf"),
        (lambda: ldam_margins([5], 0.0), "max_margin"),
        (lambda: deferred_reweighting([5], -1), "epoch"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
