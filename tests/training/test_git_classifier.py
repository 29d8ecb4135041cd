"""Classifier training: what is mixed into a batch, when, and that nothing else changes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import keras_git as kg
from keras_git.errors import InputError
from tests.training.conftest import SIZE, constant_generator, small_network, small_networks

COUNTS = np.array([100, 50, 20, 5])


def numpy_of(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def compiled(model: kg.training.Classifier, **options: object) -> kg.training.Classifier:
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(kg.optimizers.SGD(0.05, l2=2e-4), loss, metrics=["accuracy"], **options)
    return model


def with_sources(images: np.ndarray, labels: np.ndarray) -> tuple[dict[str, np.ndarray], object]:
    x = {"images": images, "source_images": images[::-1].copy(), "source_labels": labels[::-1]}
    return x, labels


def test_keep_probability_falls_from_one_to_zero() -> None:
    kept = kg.training.keep_probability(COUNTS, 55)
    np.testing.assert_allclose(kept, [0.0, 0.1, 0.7, 1.0])
    np.testing.assert_array_equal(kg.training.keep_probability(COUNTS, None), np.ones(4))
    with pytest.raises(InputError, match="smallest class"):
        kg.training.keep_probability(COUNTS, 5)


@given(
    batch=st.integers(1, 9),
    fraction=st.floats(0, 1),
    kept=st.lists(st.booleans(), min_size=9, max_size=9),
)
def test_mix_replaces_the_last_places_and_only_those_kept(
    batch: int, fraction: float, kept: list[bool]
) -> None:
    images = np.arange(batch, dtype="float32")[:, None]
    generated, source_labels = 100 + images, 10 + np.arange(batch)
    keep = np.array(kept[:batch])
    x, y = kg.training.mix(
        keras.ops.convert_to_tensor(images),
        keras.ops.arange(batch),
        keras.ops.convert_to_tensor(generated),
        keras.ops.convert_to_tensor(source_labels),
        fraction,
        keras.ops.convert_to_tensor(keep),
    )
    replaced = keep & (np.arange(batch) >= batch - int(fraction * batch))
    np.testing.assert_array_equal(numpy_of(x), np.where(replaced[:, None], generated, images))
    np.testing.assert_array_equal(numpy_of(y), np.where(replaced, source_labels, np.arange(batch)))


@pytest.mark.parametrize("generation_batch", [2, 5, 16])
def test_only_kept_images_are_generated_and_come_back_in_place(
    images: np.ndarray, generation_batch: int
) -> None:
    generator = small_networks().generator
    model = kg.training.GITClassifier(small_network(), generator, generation_batch=generation_batch)
    keep = np.array([False, True, False, True, True, False, False, True, False, False, True, True])
    style = np.random.default_rng(2).normal(size=(12, 2)).astype("float32")
    x = images.astype("float32")
    generated = model._generate(
        keras.ops.convert_to_tensor(x),
        keras.ops.convert_to_tensor(style),
        keras.ops.convert_to_tensor(keep),
    )
    expected = (numpy_of(generator([x / 127.5 - 1.0, style])) + 1.0) * 127.5
    np.testing.assert_allclose(numpy_of(generated)[keep], expected[keep], atol=1e-2)


@pytest.mark.parametrize("rejected", ["batch", "source"])
def test_a_batch_gets_generated_images_of_small_classes(
    images: np.ndarray, labels: np.ndarray, rejected: str
) -> None:
    """The generator paints everything black, so generated images can be counted."""
    model = kg.training.GITClassifier(
        small_network(),
        constant_generator(-1.0),
        class_counts=COUNTS,
        keep_threshold=6,  # only class 3, which is always kept
        rejected=rejected,
        seed=1,
    )
    bright = np.maximum(images, 1)
    x, y = with_sources(bright, labels)
    x = {name: keras.ops.convert_to_tensor(value) for name, value in x.items()}
    mixed, mixed_labels, weight = model.augment(x, keras.ops.convert_to_tensor(y), None)
    black = numpy_of(mixed).reshape(12, -1).max(-1) == 0
    expected = (np.arange(12) >= 6) & (labels[::-1] == 3)
    np.testing.assert_array_equal(black, expected)
    np.testing.assert_array_equal(numpy_of(mixed_labels)[expected], 3)
    replaced = expected if rejected == "batch" else np.arange(12) >= 6
    np.testing.assert_array_equal(
        numpy_of(mixed)[~expected],
        np.where(replaced[:, None, None, None], bright[::-1], bright)[~expected],
    )
    np.testing.assert_array_equal(numpy_of(mixed_labels), np.where(replaced, labels[::-1], labels))
    assert weight is None


def test_keep_probability_is_the_rate_at_which_images_are_kept() -> None:
    model = kg.training.GITClassifier(
        small_network(), None, class_counts=COUNTS, keep_threshold=55, generated_fraction=1.0
    )
    n = 400
    x = {
        "images": np.ones((n, SIZE, SIZE, 1), "uint8"),
        "source_images": np.zeros((n, SIZE, SIZE, 1), "uint8"),
        "source_labels": np.full(n, 2),
    }
    x = {name: keras.ops.convert_to_tensor(value) for name, value in x.items()}
    mixed, _, _ = model.augment(x, keras.ops.zeros((n,), "int32"), None)
    rate = 1.0 - numpy_of(mixed)[:, 0, 0, 0].mean()
    assert abs(rate - 0.7) < 4 * np.sqrt(0.7 * 0.3 / n)


def test_fit_leaves_the_generator_as_it_was_and_trains_the_network(
    images: np.ndarray, labels: np.ndarray
) -> None:
    generator = small_networks().generator
    before = [w.copy() for w in generator.get_weights()]
    network = small_network()
    start = [w.copy() for w in network.get_weights()]
    model = compiled(kg.training.GITClassifier(network, generator, seed=2))
    x, y = with_sources(images, labels)
    # 12 images in batches of 5: the last, smaller batch is mixed as well
    history = model.fit(x, y, batch_size=5, epochs=2, verbose=0).history
    assert np.isfinite(history["loss"]).all()
    assert all(map(np.array_equal, before, generator.get_weights()))
    assert not np.allclose(start[0], network.get_weights()[0])


def test_before_its_start_epoch_it_trains_plainly(images: np.ndarray, labels: np.ndarray) -> None:
    plain = compiled(kg.training.Classifier(small_network()))
    waiting = compiled(
        kg.training.GITClassifier(
            small_network(), constant_generator(), rejected="source", start_epoch=2
        )
    )
    x, y = with_sources(images, labels)
    options = {"batch_size": 6, "shuffle": False, "verbose": 0}
    expected = plain.fit(images, y, epochs=2, **options).history["loss"]
    losses = waiting.fit(x, y, epochs=3, **options).history["loss"]
    np.testing.assert_allclose(losses[:2], expected, rtol=1e-5)
    third = plain.fit(images, y, epochs=3, initial_epoch=2, **options).history["loss"]
    assert abs(losses[2] - third[0]) > 1e-3


def test_plain_training_is_stock_keras_but_for_the_unbiased_variance(
    images: np.ndarray, labels: np.ndarray
) -> None:
    ours = compiled(kg.training.Classifier(small_network()))
    stock = small_network()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    stock.compile(kg.optimizers.SGD(0.05, l2=2e-4), loss)
    options = {"batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
    a = ours.fit(images, labels, **options).history["loss"]
    b = stock.fit(images, labels, **options).history["loss"]
    np.testing.assert_allclose(a, b, rtol=1e-5)
    count = 6 * (SIZE - 2) ** 2  # values that each batch variance is taken over
    start = 0.9**4  # what is left of the initial variance of 1 after 4 steps
    variance, biased = (
        numpy_of(n.get_layer("classifier_norm").moving_variance) for n in (ours.network, stock)
    )
    np.testing.assert_allclose(variance - start, (biased - start) * count / (count - 1), rtol=1e-4)


def test_class_weights_give_the_weighted_mean(images: np.ndarray, labels: np.ndarray) -> None:
    weights = np.array([0.1, 0.4, 1.0, 2.5], "float32")
    weighted = compiled(kg.training.Classifier(small_network(), class_weights=weights))
    inside = kg.training.Classifier(small_network())
    inside.compile(kg.optimizers.SGD(0.05, l2=2e-4), kg.losses.CrossEntropy(weights))
    options = {"batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
    a = weighted.fit(images, labels, **options).history["loss"]
    b = inside.fit(images, labels, **options).history["loss"]
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_deferred_reweighting_starts_at_its_epoch(images: np.ndarray, labels: np.ndarray) -> None:
    schedule = kg.losses.deferred_reweighting(COUNTS, 1, beta=0.99)
    model = compiled(kg.training.Classifier(small_network(), class_weights=schedule))
    plain = compiled(kg.training.Classifier(small_network()))
    options = {"batch_size": 6, "epochs": 2, "shuffle": False, "verbose": 0}
    a = model.fit(images, labels, **options).history["loss"]
    b = plain.fit(images, labels, **options).history["loss"]
    assert a[0] == pytest.approx(b[0], rel=1e-5)
    assert abs(a[1] - b[1]) > 1e-4
    np.testing.assert_allclose(numpy_of(model.class_weights), schedule(1), rtol=1e-6)
    with pytest.raises(InputError, match="model.network"):
        model.get_config()


def test_it_can_be_rebuilt_from_its_configuration() -> None:
    model = kg.training.GITClassifier(
        small_network(),
        constant_generator(),
        class_counts=COUNTS,
        keep_threshold=30,
        class_weights=(1.0, 1.0, 2.0, 2.0),
        start_epoch=3,
    )
    again = kg.training.GITClassifier.from_config(model.get_config())
    plain = {k: v for k, v in model.get_config().items() if not isinstance(v, dict)}
    assert plain.items() <= again.get_config().items()
    x = np.ones((2, SIZE, SIZE, 1), "float32")
    again.network.set_weights(model.network.get_weights())
    np.testing.assert_allclose(numpy_of(again(x)), numpy_of(model(x)), atol=1e-6)


def test_bad_arguments_are_named(images: np.ndarray, labels: np.ndarray) -> None:
    network = small_network()
    with pytest.raises(InputError, match="generated_fraction is 1.5"):
        kg.training.GITClassifier(network, None, generated_fraction=1.5)
    with pytest.raises(InputError, match="use batch or source"):
        kg.training.GITClassifier(network, None, rejected="nothing")
    with pytest.raises(InputError, match="needs class_counts"):
        kg.training.GITClassifier(network, None, keep_threshold=30)
    with pytest.raises(InputError, match="class weights have shape"):
        kg.training.Classifier(network, class_weights=[1.0, 2.0])
    with pytest.raises(InputError, match=r"\(8, 8, 1\)"):
        image, style = keras.Input((8, 8, 1)), keras.Input((2,))
        wrong = keras.Model([image, style], image + keras.ops.mean(style))
        kg.training.GITClassifier(network, wrong)
    with pytest.raises(InputError, match="must take"):
        kg.training.GITClassifier(network, small_network())
    model = compiled(kg.training.GITClassifier(network, None))
    x, y = with_sources(images, labels)
    x = {**x, "source_images": images[:2], "source_labels": labels[:2]}
    data = keras.ops.convert_to_tensor
    with pytest.raises(InputError, match="2 source images for a batch of 12"):
        model.augment({k: data(v) for k, v in x.items()}, data(y), None)


def test_a_transform_changes_the_training_images_and_nothing_else(
    images: np.ndarray, labels: np.ndarray
) -> None:
    """As training on images that were transformed with the same parameters before."""
    transform = kg.transforms.BackgroundIntensity()
    drawn = transform.sample(len(images), np.random.default_rng(3))
    images = np.where(images < 128, 0, images)  # some pixels that a background replaces
    before = kg.transforms.nuisances.set_background(images, drawn["values"])
    assert (before != images).any()
    losses = []
    for with_transform in (True, False):
        keras.utils.set_random_seed(0)
        model = compiled(
            kg.training.Classifier(small_network(), transform=transform if with_transform else None)
        )
        x = {"images": images, "parameters": drawn} if with_transform else before
        history = model.fit(x, labels, batch_size=6, epochs=2, shuffle=False, verbose=0)
        losses.append(history.history["loss"])
        # Evaluation sees images as they are.
        evaluated = model.predict(images, verbose=0)
        np.testing.assert_allclose(evaluated, model.network.predict(images, verbose=0), rtol=1e-5)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


def test_a_classifier_with_a_transform_asks_for_parameters_and_can_be_saved(
    images: np.ndarray, labels: np.ndarray
) -> None:
    model = kg.training.Classifier(small_network(), transform=kg.transforms.Rotation(90.0))
    copy = kg.training.Classifier.from_config(model.get_config())
    assert copy.transform == kg.transforms.Rotation(90.0)
    with pytest.raises(InputError, match="Stream.transform="):
        model.augment(images, labels, None)
    with pytest.raises(InputError, match="weights of its own"):
        kg.training.Classifier(
            small_network(), transform=kg.transforms.GeneratorTransform(small_networks().generator)
        )
    with pytest.raises(InputError, match="takes no transform"):
        kg.training.GITClassifier(small_network(), None, transform=kg.transforms.Rotation())
