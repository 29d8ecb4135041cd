"""Running statistics: what they converge to, when they change, what they survive."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_git.layers import WhitenedConv2D, WhitenedDense
from tests.layers.truth import change_of_basis, correlated, whitening_matrix
from tests.reference.gradients import Passes

FEATURES = 4


def _layer(**options):
    layer = WhitenedDense(2, **{"update_interval": 1, **options})
    layer.build((None, FEATURES))
    return layer


def _state(layer):
    """What whitens in inference, mean (S, F) and matrices (S, F, F), and the counters."""
    counters = layer.statistics.steps, layer.statistics.updates
    return tuple(ops.convert_to_numpy(value) for value in (*layer.running(), *counters))


def _updates(layer, steps, size=16):
    """Which of the training steps changed the running whitening matrix."""
    rng = np.random.default_rng(0)
    passes, changed = Passes(layer, np.zeros((size, FEATURES), "float32")), []
    for _ in range(steps):
        before = ops.convert_to_numpy(layer.statistics.moving_whitening)
        passes.train(correlated(rng, (size, FEATURES)))
        after = ops.convert_to_numpy(layer.statistics.moving_whitening)
        changed.append(bool((after != before).any()))
    return changed


def test_running_statistics_converge_to_the_true_ones():
    rng = np.random.default_rng(1)
    mix, shift = change_of_basis(rng, FEATURES, 5.0), np.array([3.0, -1.0, 0.0, 10.0])
    layer = _layer(iterations=14, momentum=0.95)
    passes = Passes(layer, np.zeros((4096, FEATURES), "float32"))
    for _ in range(60):
        passes.train((rng.normal(size=(4096, FEATURES)) @ mix + shift).astype("float32"))
    mean, matrix, _, _ = _state(layer)
    np.testing.assert_allclose(mean[0], shift, atol=0.03)
    values, vectors = np.linalg.eigh(mix.T @ mix)
    true = (vectors / np.sqrt(values)) @ vectors.T
    np.testing.assert_allclose(matrix[0], true, atol=0.03 * np.abs(true).max())


def test_first_updates_are_plain_averages_and_later_ones_follow_the_momentum():
    """Nothing of the start (mean 0, identity) remains after the first update."""
    rng = np.random.default_rng(2)
    layer = _layer(iterations=14, momentum=0.6)
    passes = Passes(layer, np.zeros((32, FEATURES), "float32"))
    mean, variance, matrix = 0.0, 0.0, 0.0
    for step, weight in enumerate((1.0, 1 / 2, 0.4, 0.4)):  # 1 / 3 is below 1 - momentum
        x = correlated(rng, (32, FEATURES), 3.0) + 5
        passes.train(x)
        batch_mean, batch_matrix = whitening_matrix(x.astype("float64"), 1e-5)
        batch_variance = x.astype("float64").var(axis=0).mean()
        mean = weight * batch_mean + (1 - weight) * mean
        variance = weight * batch_variance + (1 - weight) * variance
        # averaged in units of the deviation
        matrix = weight * batch_matrix * batch_variance**0.5 + (1 - weight) * matrix
        ours = _state(layer)
        np.testing.assert_allclose(ours[0][0], mean, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(ours[1][0], matrix / variance**0.5, rtol=0, atol=2e-3)
        assert (ours[2], ours[3]) == (step + 1, step + 1)


def test_original_rules_keep_a_part_of_the_start():
    layer = _layer(rules="original", momentum=0.9)
    x = correlated(np.random.default_rng(3), (32, FEATURES))
    Passes(layer, x).train(x)
    np.testing.assert_allclose(_state(layer)[0][0], 0.1 * x.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_update_interval():
    layer = _layer(update_interval=3)
    assert _updates(layer, 7) == [True, False, False, True, False, False, True]
    assert _state(layer)[2:] == (7, 3)


def test_schedule_of_the_original():
    layer = _layer(freeze_iterations=1)
    # counted from 1, a step is an update if the remainder by 10 is at most 1
    assert _updates(layer, 12) == [step % 10 <= 1 for step in range(1, 13)]


@pytest.mark.parametrize("how", ["frozen", "set_frozen", "constructor", "untrainable"])
def test_frozen_layers_use_their_running_statistics(how):
    options = {"frozen": {"frozen": True}, "constructor": {"trainable": False}}.get(how, {})
    layer = _layer(**options)
    if how == "untrainable":
        layer.trainable = False
    if how == "set_frozen":
        layer.frozen = True
    x = correlated(np.random.default_rng(4), (16, FEATURES))
    passes = Passes(layer, x)
    before = _state(layer)
    np.testing.assert_allclose(passes.train(x), passes.infer(x), rtol=1e-6)
    for old, new in zip(before, _state(layer), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "options", [{}, {"update_interval": 2}, {"differentiate_statistics": False}]
)
def test_training_through_fit_counts_steps(options):
    """Interval 2: steps without an update use running values that the same step writes to."""
    network = keras.Sequential(
        [keras.Input((FEATURES,)), WhitenedDense(2, **{"update_interval": 1, **options})]
    )
    network.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
    x = correlated(np.random.default_rng(5), (32, FEATURES))
    history = network.fit(x, x[:, :2], batch_size=8, epochs=4, verbose=0)
    assert history.history["loss"][-1] < history.history["loss"][0]
    assert np.isfinite(network.evaluate(x, x[:, :2], verbose=0))
    steps, updates = _state(network.layers[-1])[2:]
    assert (steps, updates) == (16, 8 if "update_interval" in options else 16)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_bad_batch_leaves_the_running_statistics(bad):
    """Its outputs show it, the next batches are as if it had not been."""
    layer = _layer()
    x = correlated(np.random.default_rng(6), (16, FEATURES))
    passes = Passes(layer, x)
    passes.train(x)
    before = _state(layer)
    broken = x.copy()
    broken[3, 1] = bad
    outputs = passes.train(broken)
    after = _state(layer)
    if np.isfinite(bad):  # the square overflows: the mean is learned, nothing is scaled by it
        assert np.isfinite(after[1]).all()
        return
    assert not np.isfinite(outputs).any()
    for old, new in zip((*before[:2], before[3]), (*after[:2], after[3]), strict=True):
        np.testing.assert_array_equal(old, new)
    assert after[2] == before[2] + 1
    assert np.isfinite(passes.train(x)).all()


def test_statistics_stay_in_float32_under_mixed_precision():
    x = correlated(np.random.default_rng(7), (8, 6, 6, 4), 3.0)
    outputs = {}
    for policy in ("float32", "mixed_bfloat16"):
        layer = WhitenedConv2D(
            3,
            3,
            padding="same",
            dtype=policy,
            kernel_initializer=keras.initializers.HeNormal(seed=1),
        )
        layer.build(x.shape)
        passes = Passes(layer, x)
        assert passes.network is layer
        outputs[policy] = (passes.train(x), passes.infer(x))
        kinds = {w.name: keras.backend.standardize_dtype(w.dtype) for w in layer.statistics.weights}
        assert kinds["moving_mean"] == kinds["moving_whitening"] == "float32"
    for full, mixed in zip(outputs["float32"], outputs["mixed_bfloat16"], strict=True):
        assert mixed.dtype.name == "bfloat16" or mixed.dtype == "float32"
        error = np.abs(mixed.astype("float32") - full).max()
        assert 0 < error < 0.05 * np.abs(full).max()
