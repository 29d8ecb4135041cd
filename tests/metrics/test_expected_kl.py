from __future__ import annotations

import gc
import weakref
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax

from keras_git import transforms
from keras_git.errors import InputError
from keras_git.metrics import ExpectedKL, draws, expected_kl, expected_kl_from_logits

NUM_CLASSES = 4


def classifier(seed: int = 0, softmax: bool = False) -> keras.Model:
    initializer = keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    network = [
        keras.Input((8, 8, 1)),
        keras.layers.Rescaling(1 / 255),
        keras.layers.Flatten(),
        keras.layers.Dense(NUM_CLASSES, kernel_initializer=initializer),
    ]
    if softmax:
        network.append(keras.layers.Softmax())
    return keras.Sequential(network)


@pytest.fixture(scope="module")
def model():
    return classifier()


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (11, 8, 8, 1)).astype(np.uint8)


LABELS = np.array([0, 0, 0, 0, 0, 1, 1, 1, 3, 3, 3])
FIELDS = ("ekld", "ekld_standard_error", "consistency", "consistency_standard_error")


def by_hand(model, images, labels, transform, num_samples, seed):
    """Image by image and draw by draw, in float64 and without the library's divergence."""
    divergence, consistent = [], []
    # of 64 images each, all of the first draws, then all of the second ones
    block = transform.sample(64 * num_samples, np.random.default_rng([seed, 0]))
    for position, image in enumerate(images):
        drawn = {name: values[position::64] for name, values in block.items()}
        repeated = np.repeat(image[None].astype(np.float32), num_samples, 0)
        moved = ops.convert_to_numpy(transform.apply(repeated, drawn))
        log_p = log_softmax(model.predict(image[None], verbose=0).astype(float), 1)
        log_q = log_softmax(model.predict(moved, verbose=0).astype(float), 1)
        divergence.append((np.exp(log_p) * (log_p - log_q)).sum(1))
        consistent.append(log_p.argmax(1) == log_q.argmax(1))
    divergence, consistent = np.array(divergence), np.array(consistent)
    for number in range(NUM_CLASSES):
        chosen = divergence[labels == number], consistent[labels == number]
        yield [
            value
            for measure in chosen
            for value in (
                measure.mean() if len(measure) else np.nan,
                measure.mean(1).std(ddof=1) / np.sqrt(len(measure)) if len(measure) > 1 else np.nan,
            )
        ]


@pytest.mark.parametrize(
    "transform",
    [
        transforms.Brightness(80),
        transforms.Compose([transforms.Shift(2), transforms.GreyLevel()]),
    ],
    ids=lambda transform: transform.name,
)
def test_equals_a_loop_by_hand(model, images, transform):
    # 11 images in batches of 4: the last one is padded
    result = expected_kl(model, images, LABELS, transform, 6, batch_size=4, seed=5)
    expected = np.array(list(by_hand(model, images, LABELS, transform, 6, 5))).T
    for name, values in zip(FIELDS, expected, strict=True):
        np.testing.assert_allclose(getattr(result, name), values, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(result.num_images, [5, 3, 0, 3])
    assert result.num_samples == 6
    assert result.mean_ekld == pytest.approx(np.nanmean(expected[0]), rel=1e-4)
    assert result.mean_consistency == pytest.approx(np.nanmean(expected[2]), rel=1e-6)
    as_lists = result.to_dict()
    assert as_lists["ekld"][2] is None
    assert as_lists["ekld"][0] == result.ekld[0]


def test_draws_belong_to_a_position_and_a_stream():
    transform = transforms.Compose([transforms.Shift(9), transforms.Noise(20)])
    everywhere = draws.sampled_parameters(transform, 7, np.arange(200), 3)
    chosen = np.array([190, 2, 63, 64, 2, 130])
    some = draws.sampled_parameters(transform, 7, chosen, 3)
    for name, values in everywhere.items():
        assert values.shape[:2] == (3, 200)
        np.testing.assert_array_equal(some[name], values[:, chosen])
    # no two of (stream, block of positions) share their numbers
    seeds = {
        draws.sampled_parameters(transform, 7, [64 * block], 1, stream)["1_seed"].item()
        for stream in range(3)
        for block in range(3)
    }
    assert len(seeds) == 9


def test_samples_of_another_length_are_refused():
    class Short(transforms.Transform):
        def sample(self, number, rng):
            return {"level": np.zeros(3)}

    with pytest.raises(InputError, match="the first dimension must be 64"):
        draws.sampled_parameters(Short(), 0, [0], 1)


def test_identity_is_perfectly_invariant(model, images):
    result = expected_kl(model, images, LABELS, transforms.Identity(), 3, batch_size=4)
    np.testing.assert_array_equal(result.ekld[[0, 1, 3]], 0)
    np.testing.assert_array_equal(result.consistency[[0, 1, 3]], 1)
    np.testing.assert_array_equal(result.ekld_standard_error[[0, 1, 3]], 0)


def test_depends_on_the_seed_and_not_on_the_batches(model, images):
    def measured(**options):
        return expected_kl(model, images, LABELS, transforms.Brightness(), 4, **options).ekld

    reference = measured(batch_size=11, seed=1)
    np.testing.assert_array_equal(measured(batch_size=11, seed=1), reference)
    np.testing.assert_allclose(measured(batch_size=3, seed=1), reference, rtol=1e-5)
    np.testing.assert_allclose(measured(batch_size=500, seed=1), reference, rtol=1e-5)
    assert np.nanmax(np.abs(measured(batch_size=11, seed=2) - reference)) > 1e-4


def test_original_and_transformed_are_the_same_image(images):
    """A model that only sees the mean of an image, and a transformation that keeps it."""
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(NUM_CLASSES, kernel_initializer="ones"),
            keras.layers.Rescaling([1.0, 0.5, -1.0, 0.0]),
        ]
    )
    result = expected_kl(model, images, LABELS, transforms.HorizontalFlip(1.0), 3, batch_size=4)
    np.testing.assert_allclose(result.ekld[[0, 1, 3]], 0, atol=1e-5)


def test_probabilities_and_preprocessing(images):
    from_logits = expected_kl(classifier(), images, LABELS, transforms.Contrast(), 4)
    as_probabilities = expected_kl(
        classifier(softmax=True), images, LABELS, transforms.Contrast(), 4, from_logits=False
    )
    np.testing.assert_allclose(as_probabilities.ekld, from_logits.ekld, rtol=1e-3)
    network = classifier()
    headless = keras.Sequential([keras.Input((8, 8, 1)), *network.layers[1:]])
    scaled = expected_kl(
        headless, images, LABELS, transforms.Contrast(), 4, preprocess=lambda x: x / 255
    )
    np.testing.assert_allclose(scaled.ekld, from_logits.ekld, rtol=1e-4)


def test_compiled_once_and_follows_the_weights(images):
    network, traced = classifier(seed=1), []

    def counting(batch):
        traced.append(1)
        return batch

    options = {"batch_size": 4, "preprocess": counting}
    first = expected_kl(network, images, LABELS, transforms.Brightness(), 5, **options)
    count = len(traced)
    # equal transformations share the function; new weights need no new trace
    network.set_weights([1.7 * weight for weight in network.get_weights()])
    second = expected_kl(network, images, LABELS, transforms.Brightness(), 5, **options)
    assert abs(second.ekld[0] - first.ekld[0]) > 1e-6
    if keras.config.backend() != "torch":
        assert len(traced) == count
        # the original once and the body of the loop, not once per draw or per batch (frameworks
        # may trace a loop more than once, but not in proportion to the draws)
        assert count <= 6
    fresh = classifier(seed=1)
    fresh.set_weights(network.get_weights())
    again = expected_kl(fresh, images, LABELS, transforms.Brightness(), 5, batch_size=4)
    np.testing.assert_allclose(again.ekld, second.ekld, rtol=1e-5)


def test_the_cache_does_not_keep_models(images):
    network = classifier(seed=2)
    expected_kl(network, images, LABELS, transforms.Brightness(), 1)
    reference = weakref.ref(network)
    del network
    gc.collect()
    assert reference() is None


def test_generator_as_transformation_and_its_weights(model, images):
    image, style = keras.Input((8, 8, 1)), keras.Input((3,))
    moved = keras.layers.Dense(64, use_bias=False)(style)
    generator = keras.Model(
        [image, style], ops.tanh(image + keras.layers.Reshape((8, 8, 1))(moved))
    )
    transform = transforms.GeneratorTransform(generator)
    result = expected_kl(model, images, LABELS, transform, 4, batch_size=4)
    expected = np.array(list(by_hand(model, images, LABELS, transform, 4, 0))).T
    np.testing.assert_allclose(result.ekld, expected[0], rtol=1e-3, atol=1e-5)
    generator.set_weights([0 * weight for weight in generator.get_weights()])
    silent = expected_kl(model, images, LABELS, transform, 4, batch_size=4)
    assert np.all(silent.ekld_standard_error[[0, 1, 3]] < result.ekld_standard_error[[0, 1, 3]])


def test_functions_and_memory_maps(tmp_path, images):
    def model(batch):
        return ops.mean(batch, axis=(1, 2)) * ops.convert_to_tensor([[0.1, -0.1]])

    np.save(tmp_path / "images.npy", images)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    labels = np.minimum(LABELS, 1)
    result = expected_kl(model, mapped, labels[:, None], transforms.Brightness(), 3, batch_size=4)
    again = expected_kl(model, images.astype(np.float64), labels, transforms.Brightness(), 3)
    assert result.ekld.shape == (2,)
    np.testing.assert_allclose(result.ekld, again.ekld, rtol=1e-4)


def test_from_logits_agrees_with_the_fixture(fixture_folder: Path):
    with np.load(fixture_folder / "invariance.npz") as arrays:
        result = expected_kl_from_logits(arrays["orig_logits"], arrays["tfmd_logits"])
        np.testing.assert_allclose(result.ekld, arrays["ekld"], atol=1e-5)
        np.testing.assert_array_equal(result.consistency.astype(np.float32), arrays["consistency"])


def test_metric_agrees_with_the_function():
    rng = np.random.default_rng(0)
    original = rng.normal(size=(3, 5, 4)).astype(np.float32)
    transformed = rng.normal(size=(3, 5, 6, 4)).astype(np.float32)
    expected = expected_kl_from_logits(original, transformed)
    labels = np.repeat(np.arange(3), 5)
    metric = ExpectedKL(num_classes=4)
    assert float(metric.result()) == 0
    order = rng.permutation(15)
    for part in np.array_split(order, 3):
        metric.update_state(
            labels[part], original.reshape(15, 4)[part], transformed.reshape(15, 6, 4)[part]
        )
    np.testing.assert_allclose(metric.per_class()[:3], expected.ekld, rtol=1e-5)
    np.testing.assert_allclose(metric.consistency_per_class()[:3], expected.consistency, rtol=1e-5)
    assert np.isnan(metric.per_class()[3])
    assert float(metric.result()) == pytest.approx(expected.mean_ekld, rel=1e-5)

    # one draw, given as (B, K), and weights that leave all but the first image out
    metric = ExpectedKL.from_config(metric.get_config())
    weights = np.array([1, 0, 0], np.float32)
    metric.update_state([1, 1, 1], original[0, :3], transformed[0, :3, 0], weights)
    single = expected_kl_from_logits(original[:1, :1], transformed[:1, :1, :1])
    assert metric.per_class()[1] == pytest.approx(single.ekld[0], rel=1e-5)
    metric.reset_state()
    assert np.all(np.isnan(metric.per_class()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": np.zeros((2, 8, 8))}, r"\(N, H, W, C\)"),
        ({"images": np.zeros((0, 8, 8, 1)), "labels": []}, "N > 0"),
        ({"labels": [0, 1, 2]}, "one label per image"),
        ({"labels": [0.0, 1.0]}, "integers"),
        ({"labels": [0, 4]}, r"0..3"),
        ({"labels": [-1, 1]}, "range from -1"),
        ({"labels": [0, 2], "num_classes": 2}, r"0..1"),
        ({"transform": "rotation"}, "instance of Transform"),
        ({"num_samples": 0}, "num_samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_input(model, change, message):
    arguments = {
        "images": np.zeros((2, 8, 8, 1), np.uint8),
        "labels": [0, 1],
        "transform": transforms.Identity(),
        "num_samples": 2,
        **change,
    }
    with pytest.raises(InputError, match=message):
        expected_kl(model, **arguments)


def test_bad_logits():
    with pytest.raises(InputError, match=r"\(C, B, S, K\)"):
        expected_kl_from_logits(np.zeros((2, 3, 4)), np.zeros((2, 3, 4)))
    with pytest.raises(InputError, match="num_classes"):
        ExpectedKL(0)
