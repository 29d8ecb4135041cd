"""Averages of the weights over training, and the batch statistics that belong to them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.errors import InputError
from keras_git.layers import Whitened
from keras_git.models import call_in_training
from keras_git.models.batch_norm import batch_norm_layers

# network -> its compiled function, made once; an entry goes with its network
_batch_statistics: weakref.WeakKeyDictionary[Any, Callable[..., Any]] = weakref.WeakKeyDictionary()


@contextmanager
def use_averaged_weights(model: Any) -> Iterator[None]:
    """Puts the averages that the optimizer keeps into the network for the length of the context.

    Averages come with every Keras optimizer: `SGD(..., use_ema=True, ema_momentum=0.999)`. They
    are averages of the trained weights; running statistics of batch normalization belong to
    other weights, so call `refresh_batch_normalization` within. At the end of the context the
    network is as it was, statistics included. To keep the averages, save the network within.

    Args:
        model: a compiled `keras_git.training.Classifier`, or any Keras model, after a step.

    Raises:
        InputError: the optimizer keeps no averages, or has taken no step.

    Reference: Polyak and Juditsky, *Acceleration of Stochastic Approximation by Averaging*, SIAM
    Journal on Control and Optimization, 1992.
    """
    optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
    if not getattr(optimizer, "use_ema", False):
        raise InputError("the optimizer keeps no averages of the weights: give it use_ema=True")
    if not optimizer.built or int(ops.convert_to_numpy(optimizer.iterations)) == 0:
        raise InputError("the optimizer has taken no step, so there are no averages: train first")
    variables = getattr(model, "network", model).variables
    before = [ops.convert_to_numpy(variable).copy() for variable in variables]
    try:
        # of the class: within `fit`, Classifier puts another in front of it
        type(optimizer).finalize_variable_values(optimizer, model.trainable_variables)
        yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def refresh_batch_normalization(
    network: keras.Model, images: Any, *, batch_size: int = 128
) -> None:
    """Sets the running statistics of batch normalization to their averages over training images.

    The statistics of a batch are those of a step of training: mean, and variance divided by
    n - 1. Images that do not fill a last batch are left out. Layers that are not trainable keep
    their statistics.

    Args:
        network: Functional model; its weights stay as they are.
        images: training images (N, H, W, C) as the network takes them, uint8 or float, such as
            0..255; with classes mixed as in training, since the images of a batch are normalized
            by each other.
        batch_size: images at a time, as in training; at most N are used.

    Raises:
        InputError: no images, a batch size below 1, or whitened layers, whose statistics have
            matrices that averages do not give.

    Reference: Izmailov et al., *Averaging Weights Leads to Wider Optima and Better
    Generalization*, UAI 2018, section 3.2 and algorithm 1.
    """
    if batch_size < 1 or len(images) == 0:
        raise InputError(f"{len(images)} images in batches of {batch_size}: both must be 1 or more")
    if _has_whitened_layers(network):
        raise InputError(
            "the statistics of whitened layers cannot be averaged: use batch normalization"
        )
    layers = batch_norm_layers(network)
    if not layers:
        return
    if network not in _batch_statistics:
        _batch_statistics[network] = _make_batch_statistics(network)
    run = _batch_statistics[network]
    batch_size = min(batch_size, len(images))
    number = len(images) // batch_size
    momenta = [layer.momentum for layer in layers]
    variables = [v for layer in layers for v in (layer.moving_mean, layer.moving_variance)]
    totals: list[Any] = [np.zeros(v.shape, "float32") for v in variables]
    try:
        for layer in layers:
            layer.momentum = 0.0  # the running statistics become those of the batch
        for i in range(number):
            totals = run(np.asarray(images[i * batch_size : (i + 1) * batch_size]), *totals)
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    for variable, total in zip(variables, totals, strict=True):
        variable.assign(ops.cast(total, "float32") / number)


def _has_whitened_layers(network: keras.Model) -> bool:
    return any(
        _has_whitened_layers(layer) if hasattr(layer, "layers") else isinstance(layer, Whitened)
        for layer in network.layers
    )


def _make_batch_statistics(network: keras.Model) -> Callable[..., Any]:
    reference: Any = weakref.ref(network)  # the cache must not keep the network alive

    def added(images: Any, *totals: Any) -> list[Any]:
        model = reference()
        # In a scope of its own nothing is assigned, which no compiled function may do.
        state = [(variable, ops.convert_to_tensor(variable)) for variable in model.variables]
        with keras.StatelessScope(state_mapping=state) as scope:
            call_in_training(model, ops.cast(images, "float32"))
        found = [
            scope.get_current_value(variable)
            for layer in batch_norm_layers(model)
            for variable in (layer.moving_mean, layer.moving_variance)
        ]
        return [
            total + ops.cast(value, "float32") for total, value in zip(totals, found, strict=True)
        ]

    return backend.compiled(added, network.variables)
