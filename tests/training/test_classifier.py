"""What happens to the batch in the step of a classifier: augmentation, mixing, soft labels."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.errors import InputError
from tests.training.conftest import small_network


def numpy_of(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


@keras.saving.register_keras_serializable(package="keras_git_tests")
class Brighter:
    """Adds to each image a number from the first to twice the first."""

    def __init__(self, least: float = 10.0) -> None:
        self.least = least

    def augment(self, images: Any, seed: Any) -> Any:
        shape = (keras.ops.shape(images)[0], 1, 1, 1)
        return images + keras.random.uniform(shape, self.least, 2 * self.least, seed=seed)

    def get_config(self) -> dict[str, Any]:
        return {"least": self.least}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Brighter:
        return cls(**config)


class Levelled(keras.layers.Layer):
    """A layer that can do both: as a policy it draws from the model."""

    def augment(self, images: Any, seed: Any) -> Any:
        shape = (keras.ops.shape(images)[0], 1, 1, 1)
        return 0.0 * images + keras.random.uniform(shape, 1.0, 2.0, seed=seed)

    def call(self, images: Any, training: bool = False) -> Any:
        return 0.0 * images


class Doubled(keras.layers.Layer):
    def call(self, images: Any, training: bool = False) -> Any:
        return 2.0 * images if training else images


@keras.saving.register_keras_serializable(package="keras_git_tests")
class Mirrored:
    """A quarter of an image, and of its label, and three of that at the other end of the batch."""

    needs_sources = False

    def mix(self, images: Any, targets: Any, seed: Any, sources: Any = None) -> Any:
        assert sources is None and isinstance(seed, keras.random.SeedGenerator)
        return tuple(0.25 * v + 0.75 * keras.ops.flip(v, axis=0) for v in (images, targets))

    def get_config(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Mirrored:
        return cls(**config)


class Pasted:
    """The half of each source image and of its label."""

    needs_sources = True

    def mix(self, images: Any, targets: Any, seed: Any, sources: Any = None) -> Any:
        return tuple(0.5 * a + 0.5 * b for a, b in zip((images, targets), sources, strict=True))


def test_policies_are_applied_in_their_order_to_the_whole_batch(
    images: np.ndarray, labels: np.ndarray
) -> None:
    model = kg.training.Classifier(small_network(), augmentation=[Brighter(), Doubled()])
    added = []
    for _ in range(2):
        x, y, weight = model.augment(images, labels, None)
        added.append(numpy_of(x) / 2.0 - images)
        assert y is labels and weight is None
    level = added[0][:, :1, :1]
    np.testing.assert_allclose(added[0], np.broadcast_to(level, images.shape), atol=1e-4)
    assert (level >= 10).all() and (level <= 20).all() and level.std() > 0.5
    assert not np.allclose(added[0], added[1])  # new draws in each step


def test_a_layer_that_augments_draws_from_the_model(images: np.ndarray) -> None:
    model = kg.training.Classifier(small_network(), augmentation=Levelled(), seed=3)
    x, _, _ = model.augment(images, np.zeros(12), None)
    seed = keras.random.SeedGenerator(3)
    expected = keras.random.uniform((12, 1, 1, 1), 1.0, 2.0, seed=seed)
    np.testing.assert_allclose(numpy_of(x)[:, :1, :1], numpy_of(expected), rtol=1e-6)


def test_generated_images_are_augmented(images: np.ndarray, labels: np.ndarray) -> None:
    model = kg.training.GITClassifier(
        small_network(), None, augmentation=Doubled(), mixing=Mirrored()
    )
    generated = 0.5 * images
    x = {"images": images, "source_images": generated, "source_labels": labels}
    x = {name: keras.ops.convert_to_tensor(value) for name, value in x.items()}
    mixed, targets, _ = model.augment(x, keras.ops.convert_to_tensor(labels), None)
    expected = 2.0 * np.concatenate([images[:6], generated[6:]])
    expected = 0.25 * expected + 0.75 * expected[::-1]
    np.testing.assert_allclose(numpy_of(mixed), expected, atol=1e-3)
    one_hot = np.eye(4)[labels]
    np.testing.assert_allclose(numpy_of(targets), 0.25 * one_hot + 0.75 * one_hot[::-1])


def test_sources_are_augmented_and_handed_to_the_mixing(
    images: np.ndarray, labels: np.ndarray
) -> None:
    weights = np.array([1.0, 2.0, 3.0, 4.0])
    model = kg.training.Classifier(
        small_network(), class_weights=weights, augmentation=Doubled(), mixing=Pasted()
    )
    x = {"images": images, "source_images": images[::-1].copy(), "source_labels": labels[::-1]}
    mixed, targets, weight = model.augment(x, labels, None)
    np.testing.assert_allclose(numpy_of(mixed), 1.0 * images + images[::-1])
    expected = (np.eye(4)[labels] + np.eye(4)[labels[::-1]]) / 2
    np.testing.assert_allclose(numpy_of(targets), expected)
    by_hand = expected @ weights
    np.testing.assert_allclose(numpy_of(weight), by_hand / by_hand.mean(), rtol=1e-6)
    with pytest.raises(InputError, match="sources="):
        model.augment(images, labels, None)
    with pytest.raises(InputError, match="use class_weights"):
        model.augment(x, labels, np.ones(12))


@pytest.mark.slow_on("jax")
def test_a_mixed_training_repeats_itself_and_leaves_evaluation_alone(
    images: np.ndarray, labels: np.ndarray
) -> None:
    losses = []
    for _ in range(2):
        erasing = keras.layers.RandomErasing(1.0, seed=5)
        model = kg.training.Classifier(
            small_network(), augmentation=(Brighter(), erasing), mixing=Mirrored(), seed=4
        )
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(kg.optimizers.SGD(0.05), loss, metrics=["accuracy"])
        variables = kg.training.training_variables(model)
        # the random state of the policies is in what a checkpoint holds, and moves
        states = [*variables["seed"], *variables["augmentation"]]
        before = [numpy_of(v).copy() for v in states]
        history = model.fit(images, labels, batch_size=6, epochs=2, shuffle=False, verbose=0)
        # the labels of evaluation become one-hot, as the loss and the metric need them
        found = model.evaluate(images, labels, verbose=0, return_dict=True)
        predicted = model.predict(images, verbose=0)
        assert found["accuracy"] == pytest.approx(np.mean(predicted.argmax(-1) == labels))
        assert len(before) == 2
        for old, variable in zip(before, states, strict=True):
            assert (numpy_of(variable) != old).any()
        losses.append(history.history["loss"])
        np.testing.assert_allclose(predicted, model.network.predict(images, verbose=0), rtol=1e-5)
        keras.utils.set_random_seed(9)  # draws of the step do not hang on the global seed
    assert np.isfinite(losses).all()
    np.testing.assert_array_equal(losses[0], losses[1])


def test_what_does_not_fit_is_named(images: np.ndarray, labels: np.ndarray) -> None:
    network = small_network()
    with pytest.raises(InputError, match="no Keras layer"):
        kg.training.Classifier(network, augmentation=[object()])
    with pytest.raises(InputError, match="second stream"):
        kg.training.GITClassifier(network, None, mixing=Pasted())
    model = kg.training.Classifier(network, mixing=Mirrored())
    soft = keras.losses.CategoricalCrossentropy(from_logits=True)
    for loss, metrics, name in (
        ("sparse_categorical_crossentropy", [], "sparse_categorical_crossentropy"),
        (keras.losses.SparseCategoricalCrossentropy(), [], "SparseCategoricalCrossentropy"),
        (soft, [keras.metrics.SparseCategoricalAccuracy(name="accuracy")], "SparseCategorical"),
    ):
        model.compile("sgd", loss, metrics=metrics)
        with pytest.raises(InputError, match=f"{name}.*LabelAccuracy"):
            model.fit(images, labels, verbose=0)


def test_it_can_be_rebuilt_from_its_configuration() -> None:
    model = kg.training.Classifier(
        small_network(),
        augmentation=[Brighter(3.0), keras.layers.RandomErasing(0.25, seed=1)],
        mixing=Mirrored(),
        sharpness_radius=0.05,
    )
    again = kg.training.Classifier.from_config(model.get_config())
    assert isinstance(again.mixing, Mirrored) and again.sharpness_radius == 0.05
    for policy, copy in zip(model.augmentation, again.augmentation, strict=True):
        assert type(copy) is type(policy) and copy.get_config() == policy.get_config()
    isda = kg.training.ISDA(0.3, 7)
    model = kg.training.GITClassifier(small_network(), None, feature_augmentation=isda)
    again = kg.training.GITClassifier.from_config(model.get_config())
    assert again.feature_augmentation.get_config() == {"strength": 0.3, "epochs": 7}
    with pytest.raises(InputError, match="Pasted.*model.network"):
        kg.training.Classifier(small_network(), mixing=Pasted()).get_config()
