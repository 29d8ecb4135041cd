"""Kullback-Leibler divergence and prediction consistency from logits, in float32."""

from __future__ import annotations

from typing import Any

from keras import ops

# The smallest normal float32: probabilities below it cannot be told from 0 anyway.
_SMALLEST_PROBABILITY = 1.1754944e-38


def log_probabilities(outputs: Any, from_logits: bool = True) -> Any:
    """Log-probabilities in float32.

    Args:
        outputs: `(..., K)` logits, or probabilities.
        from_logits: False if `outputs` are probabilities. Probabilities that have underflowed to 0
            count as the smallest normal float32, so divergences stay finite but are then lower
            bounds; give logits wherever they can be had.

    Returns:
        float32 `(..., K)`, normalized.
    """
    outputs = ops.cast(outputs, "float32")
    if not from_logits:
        outputs = ops.log(ops.maximum(outputs, _SMALLEST_PROBABILITY))
    return ops.log_softmax(outputs, axis=-1)


def kl_from_log_probabilities(log_p: Any, log_q: Any) -> Any:
    """`sum_k p_k (log p_k - log q_k)` over the last axis, in nats, 0 or more.

    Args:
        log_p: `(..., K)` log-probabilities.
        log_q: `(..., K)`, broadcast against `log_p`.

    Returns:
        float32 `(...)`; infinite where q is 0 and p is not.
    """
    probability = ops.exp(log_p)
    # 0 log 0 = 0 (compared with == so that NaN is passed on, not hidden)
    terms = ops.where(probability == 0, 0.0, probability * (log_p - log_q))
    return ops.maximum(ops.sum(terms, axis=-1), 0.0)


def kl_divergence(logits_p: Any, logits_q: Any) -> Any:
    """KL(p || q) of two softmax distributions.

    Args:
        logits_p: `(..., K)` logits of p, any float dtype.
        logits_q: `(..., K)` logits of q, broadcast against `logits_p`.

    Returns:
        float32 `(...)`, nats, 0 or more, computed from float32 log-softmax.
    """
    return kl_from_log_probabilities(
        log_probabilities(ops.convert_to_tensor(logits_p)),
        log_probabilities(ops.convert_to_tensor(logits_q)),
    )


def agreement(outputs_p: Any, outputs_q: Any) -> Any:
    """1 where two predictions have the same arg-max over the last axis, else 0 (float32)."""
    same = ops.argmax(outputs_p, axis=-1) == ops.argmax(outputs_q, axis=-1)
    return ops.cast(same, "float32")
