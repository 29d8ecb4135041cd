"""Inverse square roots against eigendecompositions, the scalar law, and where they diverge."""

from __future__ import annotations

import functools

import keras
import numpy as np
import pytest
from keras import ops

from keras_git.backend import compiled
from keras_git.errors import InputError
from keras_git.layers import inverse_sqrt
from tests.layers.truth import change_of_basis

FLOAT64 = keras.config.backend() != "jax"  # JAX has it only where the whole process asks for it


def _matrices(condition, size=6, number=2, dtype="float32"):
    rng = np.random.default_rng(3)
    bases = [change_of_basis(rng, size, condition**0.5) for _ in range(number)]
    return np.stack([base @ base.T for base in bases]).astype(dtype)


def _exact(matrices):
    values, vectors = np.linalg.eigh(matrices.astype("float64"))
    return (vectors / np.sqrt(values)[..., None, :]) @ np.swapaxes(vectors, -1, -2)


def _root(matrices, iterations, **options):
    function = functools.partial(inverse_sqrt, iterations=iterations, **options)
    if keras.config.backend() == "jax":  # operation by operation it takes a minute
        function = compiled(function, [])
    return ops.convert_to_numpy(function(ops.convert_to_tensor(matrices)))


@pytest.mark.parametrize(
    ("method", "normalizer", "iterations"),
    [
        ("inverse_newton", "frobenius", 12),
        ("inverse_newton", "trace", 14),
        ("denman_beavers", "frobenius", 12),
        ("newton", "frobenius", 8),
    ],
)
def test_converges_to_the_root(method, normalizer, iterations):
    condition = 3.0 if method == "newton" else 30.0
    matrices = _matrices(condition)
    root = _root(matrices, iterations, method=method, normalizer=normalizer)
    assert root.dtype == "float32"
    np.testing.assert_allclose(root, _exact(matrices), rtol=0, atol=2e-4)


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_share_of_an_eigenvalue_follows_the_scalar_law(iterations):
    """y <- y ((3 - y) / 2) ** 2, so the variance that is left is y, and not 1 for all."""
    eigenvalues = np.array([100.0, 30.0, 3.0, 0.1, 1e-3])
    share = eigenvalues / np.linalg.norm(eigenvalues)
    for _ in range(iterations):
        share = share * ((3 - share) / 2) ** 2
    root = _root(np.diag(eigenvalues).astype("float32"), iterations)
    left = np.diagonal(root @ np.diag(eigenvalues) @ root)
    np.testing.assert_allclose(left, share, rtol=1e-4)
    gain = np.diagonal(root) * np.sqrt(np.linalg.norm(eigenvalues))
    assert gain.max() <= 1.5**iterations


@pytest.mark.skipif(not FLOAT64, reason="this backend has no float64 here")
def test_float64():
    matrices = _matrices(1e4, dtype="float64")
    root = ops.convert_to_numpy(inverse_sqrt(ops.convert_to_tensor(matrices), 25))
    assert root.dtype == "float64"
    np.testing.assert_allclose(root, _exact(matrices), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("method", "condition"), [("newton", 1e6), ("inverse_newton", 1e6), ("denman_beavers", 1e6)]
)
def test_divergence_stops_at_the_last_good_iterate(method, condition):
    matrices = _matrices(condition, number=1)

    def residual(iterations):
        root = _root(matrices, iterations, method=method).astype("float64")
        assert np.isfinite(root).all()
        return np.linalg.norm(root @ matrices @ root - np.eye(6))

    residuals = [residual(iterations) for iterations in (4, 8, 20)]
    for before, after in zip(residuals, residuals[1:], strict=False):
        assert after <= 1.01 * before + 1e-3  # the root is of float32
    assert residuals[-1] < np.sqrt(6)


def test_errors():
    identity = np.eye(2, dtype="float32")
    with pytest.raises(InputError, match="method is 'eigh'; allowed: inverse_newton, denman"):
        inverse_sqrt(identity, method="eigh")
    with pytest.raises(InputError, match="normalizer is 'max'; allowed: frobenius, trace"):
        inverse_sqrt(identity, normalizer="max")
    with pytest.raises(InputError, match="iterations is 0; it must be 1 or more"):
        inverse_sqrt(identity, 0)
