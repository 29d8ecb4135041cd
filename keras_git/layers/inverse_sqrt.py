"""The inverse square root of covariance matrices by matrix products alone (Newton-Schulz)."""

from __future__ import annotations

from typing import Any

from keras import ops

from keras_git.errors import InputError

METHODS = ("inverse_newton", "denman_beavers", "newton")
NORMALIZERS = ("frobenius", "trace")
# As many of the default method's steps cannot diverge, whatever the matrix: rounding grows by less
# than 3 / 2 in each.
_SAFE_ITERATIONS = 5
# An iterate is taken only if its residual is no larger than before, but for rounding: the share of
# a small eigenvalue grows by less than float32 sees in the residual.
_ROUNDING = 1e-3


def inverse_sqrt(
    matrices: Any,
    iterations: int = 5,
    *,
    method: str = "inverse_newton",
    normalizer: str = "frobenius",
) -> Any:
    """Inverse square roots of symmetric positive definite matrices.

    All methods give the same in exact arithmetic: for an eigenvalue of which `y` is the share in
    the normalizer, `y_t` of 1 is reached after t iterations of ``y <- y ((3 - y) / 2) ** 2``, so
    small eigenvalues are damped: their gain is at most ``1.5 ** iterations`` over the root of the
    normalizer. Few iterations are a regularization, not an error.

    In floating point an iteration can diverge (high condition numbers, many iterations, the method
    "newton" from about 10 on). The distance of ``y`` from 1 never grows in exact arithmetic; where
    it does, the matrix stays at its last good iterate, which is finite and whitens less. Condition
    numbers beyond the precision (1e7 in float32) are for the ridge to prevent.

    Args:
        matrices: `(..., n, n)`, symmetric positive definite, float32 or float64; ridge included.
        iterations: Newton-Schulz steps, 1 or more.
        method: "inverse_newton" or "denman_beavers" (coupled), or "newton" (one product less to
            differentiate, less stable).
        normalizer: what scales the spectrum into (0, 1]: the "frobenius" norm or the "trace",
            which starts lower and so converges more slowly.

    Returns:
        `(..., n, n)`, approximately ``matrices ** -0.5``.

    Raises:
        InputError: unknown method or normalizer, or iterations below 1.

    Reference: Ye et al., "Exploiting Invariance in Training Deep Neural Networks", 2021; Higham,
    "Functions of Matrices", 2008, chapter 6.
    """
    if method not in METHODS:
        raise InputError(f"method is {method!r}; allowed: {', '.join(METHODS)}")
    if normalizer not in NORMALIZERS:
        raise InputError(f"normalizer is {normalizer!r}; allowed: {', '.join(NORMALIZERS)}")
    if iterations < 1:
        raise InputError(f"iterations is {iterations!r}; it must be 1 or more")
    # Products are written @ throughout: ops.matmul computes float64 in float32 on PyTorch.
    matrices = ops.convert_to_tensor(matrices)
    size = matrices.shape[-1]
    if normalizer == "trace":
        scale = ops.trace(matrices, axis1=-2, axis2=-1)[..., None, None]
    else:
        scale = ops.sqrt(ops.sum(ops.square(matrices), axis=(-2, -1), keepdims=True))
    identity = ops.eye(size, dtype=matrices.dtype)
    start = matrices / scale
    y, z = start, ops.broadcast_to(identity, ops.shape(matrices))
    safe = method == "inverse_newton" and iterations <= _SAFE_ITERATIONS
    error = None if safe else _residual(y, identity)
    for _ in range(iterations):
        if method == "newton":
            cube = z @ (z @ z @ start)
            new_z = 1.5 * z - 0.5 * cube
            # the share of the new iterate, needed by the check alone
            fixed = ops.stop_gradient(new_z)
            new_y = fixed @ fixed @ ops.stop_gradient(start)
        elif method == "denman_beavers":
            step = 1.5 * identity - 0.5 * (z @ y)
            new_y, new_z = y @ step, step @ z
        else:
            step = 1.5 * identity - 0.5 * y
            new_y, new_z = step @ step @ y, z @ step
        if error is None:
            y, z = new_y, new_z
            continue
        new_error = _residual(new_y, identity)
        # False for NaN as well; a rejected iterate is still finite, so are its gradients
        good = new_error <= (1.0 + _ROUNDING) * error
        y, z = ops.where(good, new_y, y), ops.where(good, new_z, z)
        error = ops.where(good, new_error, error)
    return z / ops.sqrt(scale)


def _residual(y: Any, identity: Any) -> Any:
    difference = ops.stop_gradient(y) - identity
    return ops.sqrt(ops.sum(ops.square(difference), axis=(-2, -1), keepdims=True))
