"""Implicit semantic augmentation against sampled features, numpy covariances and derivatives."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.special import logsumexp, softmax

import keras_git as kg
from keras_git.errors import InputError
from keras_git.training.isda import FeatureStatistics, augmented_logits
from tests.training.conftest import small_network

CLASSES, FEATURES = 3, 2


def numpy_of(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def covariances(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.stack([np.cov(features[labels == c].T, bias=True) for c in range(CLASSES)])


@pytest.mark.slow_on("jax")
def test_statistics_of_batches_are_those_of_all_images_at_once() -> None:
    rng = np.random.default_rng(0)
    # the class means are far from 0 and from those of a batch; class 1 is missing in a batch
    labels = np.array([[0, 0, 1, 2, 1, 2], [2, 2, 0, 0, 0, 2], [1, 0, 2, 1, 1, 1]])
    features = rng.normal(size=(3, 6, FEATURES)) + 5.0 * labels[..., None]
    statistics = FeatureStatistics(CLASSES + 1, FEATURES)  # and one that never comes
    for x, y in zip(features.astype("float32"), labels, strict=True):
        statistics.update(keras.ops.convert_to_tensor(x), keras.ops.convert_to_tensor(y))
    features, labels = features.reshape(-1, FEATURES), labels.ravel()
    count, mean, covariance = map(numpy_of, statistics.weights)
    np.testing.assert_array_equal(count, [6, 6, 6, 0])
    means = [features[labels == c].mean(0) for c in range(CLASSES)]
    np.testing.assert_allclose(mean[:-1], means, rtol=1e-5)
    np.testing.assert_allclose(covariance[:-1], covariances(features, labels), atol=1e-5)
    assert not mean[-1].any() and not covariance[-1].any()


@pytest.mark.slow_on("jax")
def test_the_loss_bounds_that_of_sampled_features() -> None:
    """The exponentials have these means; the loss is above, as far as its expansion says.

    To first order in lambda, the gap is lambda / 2 m^T Sigma m, m the mean of w_j - w_y under the
    predicted probabilities.
    """
    rng = np.random.default_rng(1)
    kernel, bias = rng.normal(size=(FEATURES, CLASSES)), rng.normal(size=CLASSES)
    roots = rng.normal(size=(CLASSES, FEATURES, FEATURES))
    covariance = roots @ roots.transpose(0, 2, 1)
    labels, centres = np.arange(CLASSES), rng.normal(size=(CLASSES, FEATURES))
    draws = rng.normal(size=(50_000, FEATURES))
    draws = np.concatenate([draws, -draws])
    for strength in (0.4, 0.01):
        found = augmented_logits(
            (centres @ kernel + bias).astype("float32"),
            labels,
            kernel.astype("float32"),
            covariance.astype("float32"),
            strength,
        )
        margins = numpy_of(found) - np.diag(numpy_of(found))[:, None]  # z_j - z_y
        samples = centres[:, None] + np.sqrt(strength) * draws @ roots.transpose(0, 2, 1)
        logits = samples @ kernel + bias
        sampled = logits - logits[labels, :, labels][..., None]
        means, errors = np.exp(sampled).mean(1), np.exp(sampled).std(1) / np.sqrt(len(draws))
        assert (np.abs(np.exp(margins) - means) <= 5 * errors + 1e-5).all()
        bound, expected = logsumexp(margins, axis=-1), logsumexp(sampled, axis=-1).mean(-1)
        assert (bound > expected).all()
    predicted = softmax(centres @ kernel + bias, axis=-1)
    apart = predicted @ kernel.T - kernel.T  # row y
    gap = strength / 2 * np.einsum("yd,yde,ye->y", apart, covariance, apart)
    np.testing.assert_allclose(bound - expected, gap, rtol=0.01, atol=1e-5)


def test_steps_are_those_of_the_derivative_of_the_loss() -> None:
    """Two epochs of one step: the first without strength, and so plain, the second with half."""
    rng = np.random.default_rng(2)
    x = rng.normal(size=(9, 1, FEATURES, 1)).astype("float32")
    labels = np.arange(9) % CLASSES
    inputs = keras.Input((1, FEATURES, 1))
    head = keras.layers.Dense(CLASSES, kernel_initializer="glorot_normal")
    network = keras.Model(inputs, head(keras.layers.Flatten()(inputs)))
    isda = kg.training.ISDA(strength=3.0, epochs=2)
    model = kg.training.Classifier(network, feature_augmentation=isda)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kg.optimizers.SGD(0.5, momentum=0.0), loss, metrics=["accuracy"])

    features = x.reshape(9, FEATURES).astype("float64")
    covariance = covariances(features, labels)

    def truth(flat: np.ndarray, strength: float) -> float:
        w, b = flat[:-CLASSES].reshape(FEATURES, CLASSES), flat[-CLASSES:]
        losses = []
        for a, y in zip(features, labels, strict=True):
            apart = w - w[:, [y]]
            z = a @ w + b + strength / 2 * np.diag(apart.T @ covariance[y] @ apart)
            losses.append(logsumexp(z) - z[y])
        return float(np.mean(losses))

    flat = np.concatenate([w.ravel() for w in network.get_weights()]).astype("float64")
    logits = features @ flat[:-CLASSES].reshape(FEATURES, CLASSES) + flat[-CLASSES:]
    plain_accuracy = np.mean(logits.argmax(-1) == labels)
    history = model.fit(x, labels, batch_size=9, epochs=2, verbose=0).history
    for epoch, strength in enumerate((0.0, 1.5)):
        assert history["loss"][epoch] == pytest.approx(truth(flat, strength), rel=1e-4)
        flat -= 0.5 * approx_fprime(flat, truth, 1e-7, strength)
    assert history["accuracy"][0] == pytest.approx(plain_accuracy)
    weights = np.concatenate([w.ravel() for w in network.get_weights()])
    np.testing.assert_allclose(weights, flat, atol=1e-5)
    variables = kg.training.training_variables(model)
    np.testing.assert_array_equal(numpy_of(variables["feature_statistics"][0]), [6, 6, 6])
    # evaluation is plain
    evaluated = numpy_of(model(x))
    np.testing.assert_allclose(evaluated, numpy_of(network(x)), rtol=1e-5)


@pytest.mark.slow_on("jax")
def test_without_strength_it_trains_plainly(images: np.ndarray, labels: np.ndarray) -> None:
    """Batch normalization, class weights and all, but for the statistics."""
    trained = []
    for isda in (None, kg.training.ISDA(0.0)):
        model = kg.training.Classifier(
            small_network(), class_weights=[0.5, 1.0, 1.5, 2.0], feature_augmentation=isda
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(kg.optimizers.SGD(0.05), loss)
        model.fit(images, labels, batch_size=6, epochs=1, shuffle=False, verbose=0)
        trained.append(model.network.get_weights())
    for plain, found in zip(*trained, strict=True):
        np.testing.assert_allclose(found, plain, rtol=1e-5, atol=1e-6)


def test_what_does_not_fit_is_named() -> None:
    inputs = keras.Input((2, 2, 1))
    bounded = keras.ops.tanh(keras.layers.Dense(3)(keras.layers.Flatten()(inputs)))
    cosine = keras.Model(inputs, bounded)
    with pytest.raises(InputError, match="linear head"):
        kg.training.Classifier(cosine, feature_augmentation=kg.training.ISDA())
    with pytest.raises(InputError, match="one label per image"):
        kg.training.Classifier(
            small_network(), feature_augmentation=kg.training.ISDA(), mixing=object()
        )
    with pytest.raises(InputError, match="strength is -1"):
        kg.training.ISDA(-1.0)
    with pytest.raises(InputError, match="epochs is 0"):
        kg.training.ISDA(0.5, 0)
    model = kg.training.Classifier(small_network(), feature_augmentation=kg.training.ISDA())
    predicted = {"logits": np.zeros((2, 4)), "features": np.zeros((2, 3))}
    with pytest.raises(InputError, match="integer labels"):
        model.compute_loss(None, np.ones((2, 4), "float32") / 4, predicted)
