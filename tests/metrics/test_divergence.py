from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import ops
from scipy.special import log_softmax, rel_entr, softmax

from keras_git.metrics.divergence import (
    agreement,
    kl_divergence,
    kl_from_log_probabilities,
    log_probabilities,
)

logits = arrays(np.float32, (2, 5), elements=st.floats(-30, 30, width=32))


def array(tensor) -> np.ndarray:
    return ops.convert_to_numpy(tensor)


@given(logits, logits)
def test_agrees_with_scipy_and_is_not_negative(p, q):
    expected = rel_entr(softmax(p.astype(float), -1), softmax(q.astype(float), -1)).sum(-1)
    divergence = array(kl_divergence(p, q))
    np.testing.assert_allclose(divergence, expected, rtol=2e-5, atol=2e-5)
    assert np.all(divergence >= 0)
    np.testing.assert_array_equal(array(kl_divergence(p, p)), 0)


@given(logits, logits, st.floats(-8, 8, width=32))
def test_a_constant_added_to_all_logits_changes_nothing(p, q, constant):
    moved = array(kl_divergence(p + np.float32(constant), q))
    np.testing.assert_allclose(moved, array(kl_divergence(p, q)), rtol=1e-4, atol=1e-4)


def test_certain_predictions_are_exact_and_not_clipped():
    p = np.array([[200.0, 0.0, 0.0]], np.float32)
    q = np.array([[0.0, 200.0, 0.0]], np.float32)
    # p is one-hot to float32, log q of its class is -200 (a clipped log would give about -16)
    np.testing.assert_allclose(array(kl_divergence(p, q)), [200.0], rtol=1e-6)


def test_zero_probabilities_and_nan():
    log_p = np.array([[0.0, -np.inf], [np.log(0.5), np.log(0.5)], [np.nan, 0.0]], np.float32)
    log_q = np.array([[np.log(0.25), np.log(0.75)], [0.0, -np.inf], [0.0, 0.0]], np.float32)
    divergence = array(
        kl_from_log_probabilities(ops.convert_to_tensor(log_p), ops.convert_to_tensor(log_q))
    )
    assert divergence[0] == pytest.approx(np.log(4)) and divergence[1] == np.inf
    assert np.isnan(divergence[2])


def test_low_precision_logits_are_computed_in_float32():
    p = ops.cast(np.array([[1.0, 2.0, 3.0]]), "bfloat16")
    assert ops.dtype(kl_divergence(p, p)) == "float32"


def test_log_probabilities_of_probabilities():
    values = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    expected = log_softmax(values, -1)
    np.testing.assert_allclose(array(log_probabilities(values)), expected, rtol=1e-5)
    given_probabilities = array(log_probabilities(softmax(values, -1), from_logits=False))
    np.testing.assert_allclose(given_probabilities, expected, rtol=1e-5)
    underflowed = array(log_probabilities(np.array([[1.0, 0.0]], np.float32), from_logits=False))
    assert np.all(np.isfinite(underflowed)) and underflowed[0, 1] < -80


def test_agreement():
    p = np.array([[1, 2], [3, 1], [0, 5]], np.float32)
    q = np.array([[0, 9], [1, 2], [4, 5]], np.float32)
    np.testing.assert_array_equal(array(agreement(p, q)), [1, 0, 1])
