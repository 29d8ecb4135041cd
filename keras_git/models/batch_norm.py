"""The unbiased running variance of batch normalization.

Keras updates the running variance with the biased batch variance (divided by n); the networks of
the paper use the unbiased one (divided by n - 1) for the running statistics, and the biased one to
normalize. A batch normalization layer of our own could do that, but then a saved network would no
longer open with ``import keras`` alone. So the factor n / (n - 1) is applied around the call that
trains: the layers stay Keras' own, and what is saved is plain. For the same reason the statistics
of all replicas together are switched on for the length of that call.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from keras_git import backend


def batch_norm_layers(network: keras.Model) -> list[keras.layers.BatchNormalization]:
    """All trainable batch normalization layers of a functional model, nested models included."""
    found: list[keras.layers.BatchNormalization] = []
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            # a frozen layer normalizes with its running statistics and does not update them
            if layer.trainable:
                found.append(layer)
        elif hasattr(layer, "layers"):
            found.extend(batch_norm_layers(layer))
    return found


@contextmanager
def _statistics_of_all_replicas(
    layers: list[keras.layers.BatchNormalization], replicas: int
) -> Iterator[None]:
    """Switches `synchronized` on where each replica sees a part of the batch.

    A file with that switch would not open on another backend. Replicas are traced in turns, so
    the second one finds the layers of the first switched on, and leaves them to it.
    """
    switched = [layer for layer in layers if replicas > 1 and not layer.synchronized]
    for layer in switched:
        layer.synchronized = True
    try:
        yield
    finally:
        for layer in switched:
            layer.synchronized = False


def call_in_training(network: keras.Model, images: Any) -> Any:
    """Calls a network in training mode and makes its running variances unbiased.

    Equal to ``network(images, training=True)``, except that each running variance is updated with
    the batch variance times n / (n - 1), n = batch size x height x width of the normalized map, and
    that replicas of a strategy, which must have as many images each, have the statistics in common.
    May be used anywhere in a training step, compiled or not, stateful or in a StatelessScope.

    Args:
        network: Functional model whose batch normalization layers are each used once.
        images: Batch (N, ...), as the network takes it.

    Returns:
        The output of the network.
    """
    normalizations = batch_norm_layers(network)
    # products, not the variables: torch variables are updated in place
    kept = [
        layer.momentum * ops.convert_to_tensor(layer.moving_variance) for layer in normalizations
    ]
    replicas = backend.separate_replicas()
    with _statistics_of_all_replicas(normalizations, replicas):
        outputs = network(images, training=True)
    batch_size = replicas * ops.cast(ops.shape(images)[0], "float32")
    for layer, old in zip(normalizations, kept, strict=True):
        count = batch_size * math.prod(layer.input.shape[1:-1])
        updated = ops.convert_to_tensor(layer.moving_variance)
        # updated = old + (1 - momentum) * biased, so the biased share grows by 1 / (n - 1)
        share = ops.stop_gradient(updated - ops.cast(old, updated.dtype))
        factor = ops.cast(1.0 / ops.maximum(count - 1.0, 1.0), updated.dtype)
        layer.moving_variance.assign(updated + share * factor)
    return outputs
