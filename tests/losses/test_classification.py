from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax

from keras_git import losses
from keras_git.errors import InputError
from tests.reference.measures import loss_and_gradient

COUNTS = [50, 20, 5, 2]
WEIGHTS = [0.1, 0.5, 1.0, 2.4]


@pytest.fixture
def batch():
    rng = np.random.default_rng(0)
    labels = np.array([0, 0, 1, 2, 3, 3, 0])
    return labels, rng.normal(0, 2, (7, 4)).astype(np.float32)


def number(tensor) -> float:
    return float(ops.convert_to_numpy(tensor))


def expected_cross_entropy(labels, logits):
    return -log_softmax(np.asarray(logits, np.float64), axis=1)[np.arange(len(labels)), labels]


ALL = {
    "cross_entropy": lambda: losses.CrossEntropy(WEIGHTS),
    "focal": lambda: losses.Focal(2.0, WEIGHTS),
    "ldam": lambda: losses.LDAM(COUNTS, 0.4, 20.0, WEIGHTS),
    "balanced_softmax": lambda: losses.BalancedSoftmax(COUNTS),
    "logit_adjustment": lambda: losses.LogitAdjustment(COUNTS, tau=1.5),
    "vs": lambda: losses.VS(COUNTS, gamma=0.3, tau=1.1),
}


def label_losses_by_hand(name, logits):
    """Loss of every label of every example in float64, as `ALL` has them, without weights."""
    logits = np.asarray(logits, np.float64)
    prior = np.log(np.array(COUNTS) / sum(COUNTS))
    margins = losses.ldam_margins(COUNTS, 0.4)
    found = np.empty(logits.shape)
    for label in range(logits.shape[1]):
        moved = {
            "ldam": 20 * (logits - margins * (np.arange(4) == label)),
            "balanced_softmax": logits + prior,
            "logit_adjustment": logits + 1.5 * prior,
            "vs": (np.array(COUNTS) / max(COUNTS)) ** 0.3 * logits + 1.1 * prior,
        }.get(name, logits)
        found[:, label] = -log_softmax(moved, axis=1)[:, label]
    return found


def batch_loss_by_hand(name, targets, logits):
    each = label_losses_by_hand(name, logits)
    if name == "focal":
        each = each * WEIGHTS
        return (targets * (1 - np.exp(-each)) ** 2 * each).sum() / len(targets)
    weights = np.array(WEIGHTS) if name in ("cross_entropy", "ldam") else np.ones(4)
    return (targets * weights * each).sum() / (targets * weights).sum()


def test_weighted_cross_entropy_is_the_weighted_mean(batch):
    labels, logits = batch
    each = expected_cross_entropy(labels, logits)
    assert number(losses.CrossEntropy()(labels, logits)) == pytest.approx(each.mean(), rel=1e-6)
    weights = np.array(WEIGHTS)[labels]
    expected = (weights * each).sum() / weights.sum()
    weighted = losses.CrossEntropy(WEIGHTS)
    assert number(weighted(labels, logits)) == pytest.approx(expected, rel=1e-6)
    # an overall factor of the weights does not matter
    scaled = losses.CrossEntropy(7 * np.array(WEIGHTS))
    assert number(scaled(labels, logits)) == pytest.approx(expected, rel=1e-6)


def test_sample_weights_multiply(batch):
    labels, logits = batch
    each = expected_cross_entropy(labels, logits)
    sample_weight = np.linspace(0, 2, len(labels)).astype(np.float32)
    weights = np.array(WEIGHTS)[labels]
    expected = (sample_weight * weights * each).sum() / weights.sum()
    value = losses.CrossEntropy(WEIGHTS)(labels, logits, sample_weight=sample_weight)
    assert number(value) == pytest.approx(expected, rel=1e-6)


def test_class_weights_as_sample_weights_give_the_same_mean(batch):
    labels, logits = batch
    as_samples = losses.CrossEntropy(reduction="mean_with_sample_weight")
    value = as_samples(labels, logits, sample_weight=np.array(WEIGHTS, np.float32)[labels])
    expected = losses.CrossEntropy(WEIGHTS)(labels, logits)
    assert number(value) == pytest.approx(number(expected), rel=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal(batch, gamma):
    labels, logits = batch
    each = np.array(WEIGHTS)[labels] * expected_cross_entropy(labels, logits)
    expected = ((1 - np.exp(-each)) ** gamma * each).mean()
    assert number(losses.Focal(gamma, WEIGHTS)(labels, logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_gradient_is_finite_for_certain_predictions(gamma):
    logits = np.array([[1000.0, 0, 0], [0, 0, 1000.0], [3.0, 0, 0]], np.float32)
    value, gradient = loss_and_gradient(losses.Focal(gamma), np.array([0, 0, 0]), logits)
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert np.all(gradient[0] == 0) and gradient[1, 0] < 0


def test_ldam_is_cross_entropy_of_scaled_cosines_less_the_margin(batch):
    labels, logits = batch
    cosines = np.tanh(logits)
    margins = losses.ldam_margins(COUNTS, 0.4)
    moved = cosines.astype(np.float64)
    moved[np.arange(len(labels)), labels] -= margins[labels]
    each = expected_cross_entropy(labels, 20 * moved)
    weights = np.array(WEIGHTS)[labels]
    value = number(ALL["ldam"]()(labels, cosines))
    assert value == pytest.approx((weights * each).sum() / weights.sum(), rel=1e-5)


def test_losses_with_the_prior_in_the_softmax(batch):
    labels, logits = batch
    expected = expected_cross_entropy(labels, logits + np.log(COUNTS)).mean()
    assert number(losses.BalancedSoftmax(COUNTS)(labels, logits)) == pytest.approx(
        expected, rel=1e-5
    )
    adjusted = [
        number(losses.LogitAdjustment(COUNTS, tau=tau)(labels, logits)) for tau in (0.0, 1.0)
    ]
    plain = expected_cross_entropy(labels, logits).mean()
    np.testing.assert_allclose(adjusted, [plain, expected], rtol=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_gradient_agrees_with_finite_differences(batch, name):
    labels, logits = batch
    loss = ALL[name]()
    logits = np.tanh(logits) / 4
    _, gradient = loss_and_gradient(loss, labels, logits)
    direction = np.random.default_rng(1).normal(size=logits.shape).astype(np.float32)
    step = 1e-2 * direction
    difference = number(loss(labels, logits + step)) - number(loss(labels, logits - step))
    assert difference / 2 == pytest.approx(float((gradient * step).sum()), rel=2e-2, abs=1e-5)


@pytest.mark.parametrize("name", ALL)
def test_labels_of_shape_b1_low_precision_logits_and_configuration(batch, name):
    labels, logits = batch
    loss = ALL[name]()
    value = number(loss(labels, logits))
    assert number(loss(labels[:, None], logits)) == pytest.approx(value, rel=1e-6)
    low = ops.cast(logits, "bfloat16")
    assert ops.dtype(loss(labels, low)) == "float32"
    assert number(loss(labels, low)) == pytest.approx(
        number(loss(labels, ops.cast(low, "float32"))), rel=1e-6
    )
    config = keras.saving.serialize_keras_object(loss)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(loss) and number(again(labels, logits)) == value


@pytest.mark.parametrize("name", ALL)
def test_compile_fit_evaluate(batch, name):
    labels, logits = batch
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4)])
    loss = ALL[name]()
    model.compile("sgd", loss=loss)
    expected = number(loss(labels, model(logits)))
    assert model.evaluate(logits, labels, batch_size=7, verbose=0) == pytest.approx(
        expected, rel=1e-5
    )
    history = model.fit(logits, labels, batch_size=7, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]


@pytest.mark.parametrize("name", ALL)
def test_soft_and_smoothed_labels(batch, name):
    labels, logits = batch
    logits = np.tanh(logits)
    # mixed like images, of two labels; of all labels; and hard ones
    rng = np.random.default_rng(1)
    soft = np.concatenate(
        [
            0.3 * np.eye(4)[[0, 3, 1]] + 0.7 * np.eye(4)[[2, 1, 1]],
            rng.dirichlet(np.ones(4), 2),
            np.eye(4)[[3, 0]],
        ]
    )
    loss, smoothed = (
        ALL[name](),
        type(ALL[name]()).from_config({**ALL[name]().get_config(), "label_smoothing": 0.2}),
    )
    one_hot = np.eye(4)[labels]
    assert number(loss(one_hot, logits)) == pytest.approx(number(loss(labels, logits)), rel=1e-6)
    expected = batch_loss_by_hand(name, soft, logits)
    assert number(loss(soft, logits)) == pytest.approx(expected, rel=1e-5)
    for given, targets in ((labels, one_hot), (soft, soft)):
        expected = batch_loss_by_hand(name, 0.8 * targets + 0.05, logits)
        assert number(smoothed(given, logits)) == pytest.approx(expected, rel=1e-5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(smoothed))
    assert again.label_smoothing == 0.2
    # its gradient, in the direction of other logits
    direction = 1e-2 * rng.normal(size=logits.shape).astype(np.float32)
    _, gradient = loss_and_gradient(loss, soft, logits)
    difference = batch_loss_by_hand(name, soft, logits + direction) - batch_loss_by_hand(
        name, soft, logits - direction
    )
    assert difference / 2 == pytest.approx(float((gradient * direction).sum()), rel=2e-2, abs=1e-5)


def test_loss_of_a_soft_label_is_the_sum_of_the_losses_of_hard_ones(batch):
    _, logits = batch
    soft = np.random.default_rng(2).dirichlet(np.ones(4), 7)
    for make in (
        lambda: losses.LDAM(COUNTS, reduction="none"),
        lambda: losses.Focal(2.0, reduction="none"),
    ):
        each = [ops.convert_to_numpy(make()(np.full(7, y), np.tanh(logits))) for y in range(4)]
        expected = (soft * np.stack(each, axis=1)).sum(axis=1)
        value = ops.convert_to_numpy(make()(soft, np.tanh(logits)))
        np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_label_smoothing_is_that_of_keras(batch):
    labels, logits = batch
    stock = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    soft = np.random.default_rng(2).dirichlet(np.ones(4), 7).astype(np.float32)
    for given, targets in ((labels, np.eye(4, dtype="float32")[labels]), (soft, soft)):
        value = number(losses.CrossEntropy(label_smoothing=0.1)(given, logits))
        assert value == pytest.approx(number(stock(targets, logits)), rel=1e-5)


def test_ldam_of_certain_predictions():
    """Where the label takes all of the softmax but its margin decides: digits must not cancel."""
    cosines = np.array(
        [
            [1, -1, -1, -1],
            [1, 1, -1, 0.5],
            [-1, -1, -1, 1],
            [0.2] * 4,
            [1, 0.9, -1, -1],
            [0.3, 1, 1, 1],
            [1000, 0, 0, -1000],
        ],
        np.float32,
    )
    labels = np.array([0, 1, 2, 3, 0, 0, 1])
    expected = label_losses_by_hand("ldam", cosines)
    loss = losses.LDAM(COUNTS, 0.4, 20.0)
    found = ops.convert_to_numpy(loss.label_losses(ops.convert_to_tensor(cosines)))
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-13)
    value, gradient = loss_and_gradient(loss, labels, cosines)
    each = np.arange(7), labels
    assert value == pytest.approx(expected[each].mean(), rel=1e-5)
    assert np.isfinite(gradient).all() and (gradient[each] < 0).all()


def test_limits(batch):
    labels, logits = batch
    logits = np.tanh(logits)

    def of(loss, scale=1):
        return pytest.approx(number(loss(labels, (scale * logits).astype(np.float32))), rel=1e-5)

    plain = of(losses.CrossEntropy())
    adjusted = of(losses.LogitAdjustment(COUNTS, tau=1.0))
    uniform = [7] * 4
    for loss, expected in (
        (losses.VS(COUNTS, gamma=0, tau=1), adjusted),
        (losses.BalancedSoftmax(COUNTS), adjusted),
        (losses.VS(COUNTS, gamma=0, tau=0), plain),
        (losses.VS(uniform), plain),
        (losses.BalancedSoftmax(uniform), plain),
        (losses.LogitAdjustment(uniform, tau=2.0), plain),
        (losses.LogitAdjustment(COUNTS, tau=0), plain),
        (losses.Focal(0), plain),
        (losses.LDAM(COUNTS, max_margin=1e-8, scale=9.0), of(losses.CrossEntropy(), 9)),
        (losses.CrossEntropy(np.full(4, 3.0)), plain),
    ):
        assert number(loss(labels, logits)) == expected, loss.name


def test_with_class_weights(batch):
    labels, logits = batch
    changed = losses.LDAM(COUNTS, 0.4, 20.0).with_class_weights(WEIGHTS)
    assert number(changed(labels, logits)) == number(ALL["ldam"]()(labels, logits))
    assert losses.CrossEntropy(WEIGHTS).with_class_weights(None).class_weights is None
    assert losses.Focal(label_smoothing=0.1).with_class_weights(WEIGHTS).label_smoothing == 0.1
    with pytest.raises(InputError, match="takes no class weights"):
        losses.BalancedSoftmax(COUNTS).with_class_weights(WEIGHTS)


@pytest.mark.parametrize("name", losses.NAMES)
def test_get_makes_every_name(batch, name):
    options = {} if name in ("cross_entropy", "focal") else {"class_counts": COUNTS}
    assert np.isfinite(number(losses.get(name, **options)(*batch)))


def test_get_class_balanced(batch):
    expected = losses.CrossEntropy(losses.class_balanced_weights(COUNTS, 0.9))(*batch)
    assert number(losses.get("class_balanced", COUNTS, beta=0.9)(*batch)) == number(expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: losses.CrossEntropy([1.0, -1.0]), "class_weights"),
        (lambda: losses.CrossEntropy([0.0, 0.0]), "not all 0"),
        (lambda: losses.CrossEntropy([[1.0]]), "shape"),
        (lambda: losses.CrossEntropy([1.0, 2.0])([0], np.zeros((1, 3))), "2 entries"),
        (lambda: losses.CrossEntropy()([0], np.zeros((1, 2, 3))), r"\(batch, classes\)"),
        (lambda: losses.BalancedSoftmax([3, 1])([0], np.zeros((1, 3))), "class_counts has 2"),
        (lambda: losses.Focal(-1.0), "gamma"),
        (lambda: losses.LDAM([3, 0]), r"class_counts\[1\]"),
        (lambda: losses.LDAM([3, 1], scale=0), "scale"),
        (lambda: losses.LogitAdjustment([3, 1], tau=-1), "tau"),
        (lambda: losses.VS([3, 1], gamma=-0.1), "gamma is -0.1"),
        (lambda: losses.VS([3, 1], tau=float("nan")), "tau is nan"),
        (lambda: losses.VS([3, 1])([0], np.zeros((1, 3))), "class_counts has 2"),
        (lambda: losses.CrossEntropy(label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: losses.CrossEntropy()(np.zeros((2, 4)), np.zeros((2, 3))), "probabilities"),
        (lambda: losses.CrossEntropy()(np.zeros((2, 3, 1)), np.zeros((2, 3))), "integers"),
        (lambda: losses.get("vs"), "needs class_counts"),
        (lambda: losses.get("hinge"), "use one of"),
        (lambda: losses.get("ldam"), "needs class_counts"),
        (lambda: losses.get("focal", alpha=1), "alpha"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
