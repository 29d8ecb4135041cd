"""The classifier apart from the representation: its last layer trained again, scaled or shifted.

All of it works in place on functional networks whose last layer, a `keras.layers.Dense`, makes the
logits, and leaves networks of stock Keras layers. Freezing changes what an optimizer sees: compile
again, or make a new trainer, after it.

Reference: Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition",
ICLR 2020, section 4; Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.losses.weights import checked_counts
from keras_git.models._blocks import layer_seed

_SCALE_EQUATION = "bc,c->bc"


def linear_head(network: keras.Model) -> keras.layers.Dense:
    """The layer that makes the logits: features `(N, D)` times kernel `(D, C)`, plus bias.

    Args:
        network: functional classifier (not a trainer around it).

    Returns:
        Its last layer.

    Raises:
        InputError: not a functional network with one output, or the output is not made by a
            `keras.layers.Dense` without activation, as with the cosine head.
    """
    head = _last_layer(network)
    if not isinstance(head, keras.layers.Dense) or head.activation is not keras.activations.linear:
        raise InputError(
            f"{network.name!r} has no linear head: give a network whose output is that of a "
            'keras.layers.Dense without activation, such as resnet(..., head="linear")'
        )
    return head


def begin_classifier_retraining(network: keras.Model, seed: int) -> None:
    """Classifier re-training (cRT): freezes all but the head, which starts afresh.

    Frozen batch normalization uses its running statistics, also in training. The head gets initial
    weights of the distribution that it was made with. Then train with balanced classes
    (`keras_git.data.ClassBalanced`), and call `end_retraining`.

    Args:
        network: functional classifier with a linear head; changed in place.
        seed: of the new weights, 0 or more.

    Raises:
        InputError: no linear head (see `linear_head`), a negative seed.

    Reference: Kang et al., ICLR 2020, section 4.1 (cRT).
    """
    head = linear_head(network)
    if seed < 0:
        raise InputError(f"seed is {seed}; give 0 or more")
    end_retraining(network)
    for layer in network.layers:
        _set_trainable(layer, layer is head)
    _initialize(head.kernel, head.kernel_initializer, layer_seed(seed, head.name))
    if head.use_bias:
        _initialize(head.bias, head.bias_initializer, layer_seed(seed, f"{head.name}_bias"))


def end_retraining(network: keras.Model) -> None:
    """Makes every layer trainable again, also those that were frozen before.

    Args:
        network: after `begin_classifier_retraining` or `weight_scaling_network`; changed in place.
    """
    _set_trainable(network, True)


def weight_scaling_network(network: keras.Model) -> keras.Model:
    """Learnable weight scaling (LWS): one trainable factor per class on the logits, all else fixed.

    `network` is frozen in place and its layers are shared: the logits are `s_c (w_c x + b_c)`, with
    s_c = 1 at first. After the training, also with balanced classes, `fold_weight_scaling` and
    `end_retraining`.

    Args:
        network: functional classifier with a linear head.

    Returns:
        Functional model with the same input and logits `(N, C)`; of stock Keras layers.

    Raises:
        InputError: no linear head (see `linear_head`).

    Reference: Kang et al., ICLR 2020, section 4.1 (LWS).
    """
    head = linear_head(network)
    _set_trainable(network, False)
    scale = keras.layers.EinsumDense(
        _SCALE_EQUATION,
        output_shape=(head.units,),
        kernel_initializer="ones",
        name=f"{head.name}_scale",
    )
    return keras.Model(network.inputs, scale(network.output), name=f"{network.name}_scaled")


def fold_weight_scaling(scaled: keras.Model, network: keras.Model) -> None:
    """Multiplies kernel and bias of the head of `network` with the learned scales.

    The scales of `scaled` become 1, so that its logits, too, stay what they are.

    Args:
        scaled: from `weight_scaling_network(network)`, trained.
        network: whose head is changed in place.

    Raises:
        InputError: `scaled` was made from another network.
    """
    head = linear_head(network)
    scale = _last_layer(scaled)
    if (
        not isinstance(scale, keras.layers.EinsumDense)
        or scale.equation != _SCALE_EQUATION
        or scale.input is not network.output
    ):
        raise InputError(
            f"{scaled.name!r} does not scale the logits of {network.name!r}: give the result of "
            "weight_scaling_network(network) and that network"
        )
    scales = ops.convert_to_numpy(scale.kernel)
    head.kernel.assign(ops.convert_to_numpy(head.kernel) * scales)
    if head.use_bias:
        head.bias.assign(ops.convert_to_numpy(head.bias) * scales)
    scale.kernel.assign(np.ones_like(scales))


def tau_normalize(network: keras.Model, tau: float = 1.0) -> None:
    """Divides the weights of each class by a power of their norm: `w_c / ||w_c||^tau`.

    The biases become 0, as in the paper, unless tau is 0, with which nothing changes.

    Args:
        network: functional classifier with a linear head; changed in place.
        tau: 0 or more; 1 makes all norms 1.

    Raises:
        InputError: no linear head (see `linear_head`), a negative `tau`.

    Reference: Kang et al., ICLR 2020, equation 4.
    """
    head = linear_head(network)
    _check_tau(tau)
    if tau == 0:
        return
    kernel = ops.convert_to_numpy(head.kernel).astype(np.float64)
    norms = np.linalg.norm(kernel, axis=0)
    # weights that are all 0 have no direction, and stay
    head.kernel.assign((kernel / np.where(norms > 0, norms, 1.0) ** tau).astype(np.float32))
    if head.use_bias:
        head.bias.assign(np.zeros(head.units, np.float32))


def adjust_logits(
    network: keras.Model, class_counts: Sequence[int] | np.ndarray, tau: float = 1.0
) -> None:
    """Post-hoc logit adjustment: subtracts `tau log(prior)` from the biases.

    The saved network then holds the adjustment. A second call adds to the first.

    Args:
        network: functional classifier with a linear head with biases, trained with the plain
            cross-entropy; changed in place.
        class_counts: training images per class, `(C,)`, each 1 or more.
        tau: strength, 0 or more; 0 changes nothing.

    Raises:
        InputError: no linear head (see `linear_head`) or one without biases, counts of another
            length or with an empty class, a negative `tau`.

    Reference: Menon et al., ICLR 2021, equation 9.
    """
    head = linear_head(network)
    _check_tau(tau)
    counts = checked_counts(class_counts)
    if not head.use_bias:
        raise InputError(f"the head of {network.name!r} has no biases that could be adjusted")
    if len(counts) != head.units:
        raise InputError(
            f"class_counts has {len(counts)} entries but {network.name!r} has {head.units} classes"
        )
    if tau == 0:
        return
    bias = ops.convert_to_numpy(head.bias).astype(np.float64)
    head.bias.assign((bias - tau * np.log(counts / counts.sum())).astype(np.float32))


def _last_layer(network: keras.Model) -> keras.layers.Layer | None:
    """The layer whose only output is that of the network; None if an operation makes it.

    Raises:
        InputError: not a functional network with one output.
    """
    outputs = list(getattr(network, "outputs", None) or [])
    if len(outputs) != 1:
        raise InputError(
            f"cannot take the head of {getattr(network, 'name', network)!r}: give the functional "
            "classifier network, images to logits, not the trainer around it"
        )
    for layer in network.layers:
        try:
            made = layer.output
        except AttributeError:  # called never or several times
            continue
        if made is outputs[0]:
            return layer
    return None


def _set_trainable(layer: keras.layers.Layer, value: bool) -> None:
    # On TensorFlow, setting the value that a model has already does not reach its layers, which may
    # have others.
    layer.trainable = not value
    layer.trainable = value


def _initialize(variable: Any, initializer: Any, seed: int | None) -> None:
    config = initializer.get_config()
    if "seed" in config:
        initializer = type(initializer).from_config({**config, "seed": seed})
    variable.assign(initializer(variable.shape, dtype=variable.dtype))


def _check_tau(tau: float) -> None:
    if not (np.isfinite(tau) and tau >= 0):
        raise InputError(f"tau is {tau}; give 0 or more")
