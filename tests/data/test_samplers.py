"""Samplers: what an epoch holds, as a pure function of (seed, epoch)."""

from __future__ import annotations

import numpy as np
import pytest

from keras_git.data import (
    ClassBalanced,
    Deferred,
    EffectiveNumber,
    InstanceBalanced,
    InverseFrequency,
    Progressive,
    Sampler,
    SquareRoot,
    sampler,
)
from keras_git.errors import InputError

COUNTS = np.array([400, 60, 9, 1])
LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), COUNTS))
NAMES = (
    "instance_balanced",
    "class_balanced",
    "square_root",
    "effective_number",
    "inverse_frequency",
)


@pytest.mark.parametrize("name", NAMES)
def test_orders_are_functions_of_seed_and_epoch(name):
    one, same, other = (sampler(name, LABELS, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(one.indices(7), same.indices(7))
    one.indices(0)  # earlier calls leave no trace
    np.testing.assert_array_equal(one.indices(7), same.indices(7))
    assert one.indices(7).dtype == np.int64 and len(one.indices(7)) == len(one) == len(LABELS)
    assert (one.indices(7) != one.indices(8)).any()
    assert (one.indices(7) != other.indices(7)).any()
    assert (one.indices(7) != sampler(name, LABELS, (3, 1)).indices(7)).any()


def test_instance_balanced_visits_every_image_once():
    for epoch in range(3):
        indices = InstanceBalanced(LABELS, 1).indices(epoch)
        np.testing.assert_array_equal(np.sort(indices), np.arange(len(LABELS)))


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        (ClassBalanced(LABELS, 2), np.full(4, 0.25)),
        (SquareRoot(LABELS, 2), np.sqrt(COUNTS) / np.sqrt(COUNTS).sum()),
        (EffectiveNumber(LABELS, 2, beta=0.0), COUNTS / COUNTS.sum()),
        (EffectiveNumber(LABELS, 2, beta=0.99), None),
        (InverseFrequency(LABELS, 2), (1 / COUNTS) / (1 / COUNTS).sum()),
        (InverseFrequency(LABELS, 2, power=0.5), COUNTS**-0.5 / (COUNTS**-0.5).sum()),
    ],
)
def test_drawn_frequencies_match_the_probabilities(drawn, expected):
    probabilities = drawn.class_probabilities(0)
    if expected is None:  # written out from the definition, image by image
        weights = np.array([0.01 / (1 - 0.99 ** COUNTS[c]) for c in LABELS])
        expected = np.bincount(LABELS, weights) / weights.sum()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)
    epochs = 60
    counts = sum(np.bincount(LABELS[drawn.indices(e)], minlength=4) for e in range(epochs))
    draws = epochs * len(LABELS)
    deviation = np.sqrt(draws * expected * (1 - expected))
    assert (np.abs(counts - draws * expected) < 4.5 * deviation).all()


def test_images_of_one_class_are_drawn_alike():
    drawn = ClassBalanced(LABELS, 5)
    hits = sum(np.bincount(drawn.indices(e), minlength=len(LABELS)) for e in range(100))
    small = hits[LABELS == 2]
    expected = 100 * len(LABELS) / 4 / 9
    assert (np.abs(small - expected) < 5 * np.sqrt(expected)).all()


def test_effective_number_probabilities_of_long_tailed_cifar10():
    counts = [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    probabilities = EffectiveNumber(np.repeat(np.arange(10), counts)).class_probabilities(0)
    assert probabilities[0] == pytest.approx(0.119, abs=5e-4)
    assert probabilities[-1] == pytest.approx(0.094, abs=5e-4)


def test_inverse_frequency_between_the_data_and_their_reverse():
    def probabilities(power):
        return InverseFrequency(LABELS, power=power).class_probabilities(3)

    np.testing.assert_allclose(probabilities(0.0), 0.25)
    np.testing.assert_allclose(probabilities(-1.0), COUNTS / COUNTS.sum())
    np.testing.assert_allclose(probabilities(1000.0), [0, 0, 0, 1], atol=1e-12)
    np.testing.assert_array_equal(
        sampler("inverse_frequency", LABELS, 4, power=0.5).indices(2),
        InverseFrequency(LABELS, 4, power=0.5).indices(2),
    )


def test_progressive_goes_from_the_data_to_balance():
    drawn = sampler("progressive", LABELS, 1, epochs=5)
    data, balanced = COUNTS / COUNTS.sum(), np.full(4, 0.25)
    for epoch, share in ((0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)):
        expected = (1 - share) * data + share * balanced
        np.testing.assert_allclose(drawn.class_probabilities(epoch), expected, rtol=1e-12)
    same = Progressive(LABELS, 1, 5)
    np.testing.assert_array_equal(drawn.indices(2), same.indices(2))
    # balanced classes are drawn as ClassBalanced draws them
    np.testing.assert_array_equal(drawn.indices(4), ClassBalanced(LABELS, 1).indices(4))
    np.testing.assert_allclose(Progressive(LABELS, 1, 1).class_probabilities(0), data)
    shares = [np.bincount(LABELS[drawn.indices(e)], minlength=4)[0] / len(LABELS) for e in range(5)]
    expected = np.linspace(data[0], 0.25, 5)
    assert (np.abs(shares - expected) < 4.5 * np.sqrt(0.25 / len(LABELS))).all()


def test_deferred_switches_at_its_epoch():
    first, second = InstanceBalanced(LABELS, 1), ClassBalanced(LABELS, 1)
    deferred = Deferred(first, second, 5)
    np.testing.assert_array_equal(deferred.indices(4), first.indices(4))
    np.testing.assert_array_equal(deferred.indices(5), second.indices(5))
    np.testing.assert_allclose(deferred.class_probabilities(4), COUNTS / COUNTS.sum())
    np.testing.assert_allclose(deferred.class_probabilities(5), 0.25)
    named = sampler("deferred", LABELS, 1, epoch=5)
    np.testing.assert_array_equal(named.indices(9), deferred.indices(9))
    other = sampler("deferred", LABELS, 1, epoch=0, second="square_root")
    np.testing.assert_array_equal(other.indices(9), SquareRoot(LABELS, 1).indices(9))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: sampler("balanced", LABELS), "class_balanced"),
        (lambda: sampler("class_balanced", LABELS, beta=0.5), "beta"),
        (lambda: sampler("deferred", LABELS), "epoch"),
        (lambda: sampler("progressive", LABELS), "needs the option epochs"),
        (lambda: Progressive(LABELS, 0, 0), "epochs is 0"),
        (lambda: InverseFrequency(LABELS, power=float("nan")), "power is nan"),
        (lambda: sampler("inverse_frequency", LABELS, beta=1), "beta"),
        (lambda: EffectiveNumber(LABELS, beta=1.0), "beta"),
        (lambda: InstanceBalanced(np.array([0, 2])), "class 1"),
        (lambda: InstanceBalanced(np.array([0.0, 1.0])), "integers"),
        (lambda: InstanceBalanced(np.array([-1, 0])), "negative"),
        (lambda: Deferred(ClassBalanced(LABELS), ClassBalanced(LABELS[:-1]), 1), "same labels"),
        (lambda: sampler("deferred", LABELS, epoch=-1), "0 or more"),
        (lambda: InstanceBalanced(LABELS, -1).indices(0), "seed"),
    ],
)
def test_bad_samplers(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_a_sampler_of_ones_own():
    """The base class counts and checks; a subclass says what an epoch visits."""

    class Reversed(Sampler):
        def indices(self, epoch):
            return np.arange(len(self))[::-1]

    sampler = Reversed(np.array([1, 0, 1]), seed=3)
    assert len(sampler) == 3 and sampler.class_counts.tolist() == [1, 2]
    assert sampler.indices(0).tolist() == [2, 1, 0]
    with pytest.raises(NotImplementedError, match="class_probabilities"):
        sampler.class_probabilities(0)
    for labels, words in (
        ([0.5], "integers"),
        ([], "non-empty"),
        ([-1, 0], "negative"),
        ([0, 2], "class 1"),
    ):
        with pytest.raises(InputError, match=words):
            Reversed(np.array(labels))
