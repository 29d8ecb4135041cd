"""Mixing of images and labels: against loops, limits, and the mass of the labels."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from scipy import stats

from keras_git.augmentation import CutMix, Cutout, MixUp, RandAugment, Remix, TailPasting, draws
from keras_git.errors import InputError
from keras_git.training import Classifier

NUMBER, SIDES, CLASSES = 64, (6, 8), 4
COUNTS = (900, 301, 300, 20)


def _batch(seed=0):
    """Images that tell which row they come from: (row + 1) in all pixels; with one-hot targets."""
    labels = np.random.default_rng(seed).integers(0, CLASSES, NUMBER)
    images = np.broadcast_to(np.arange(1.0, NUMBER + 1)[:, None, None, None], (NUMBER, *SIDES, 3))
    return np.float32(images), np.eye(CLASSES, dtype=np.float32)[labels]


def _mixed(mixing, batch=None, seed=0, sources=None):
    images, targets = batch or _batch()
    mixed = mixing.mix(images, targets, keras.random.SeedGenerator(seed), sources)
    return tuple(ops.convert_to_numpy(part) for part in mixed)


def _combined(mixing, batch, others, **parameters):
    given = keras.tree.map_structure(ops.convert_to_tensor, (batch, others, parameters))
    return [ops.convert_to_numpy(part) for part in mixing.combine(*given)]


@pytest.mark.parametrize("alpha", [0.01, 0.2, 1.0, 3.0])
def test_weights_have_the_beta_distribution(alpha):
    drawn = draws.beta(keras.random.SeedGenerator(0), 8192, alpha)
    drawn = ops.convert_to_numpy(drawn).astype(np.float64)
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert drawn.mean() == pytest.approx(0.5, abs=5 * 0.5 / np.sqrt(8192))
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)
    if alpha > 0.1:  # below, most of it rounds to 0 and 1
        assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_mixup_averages_images_and_targets_alike():
    (images, targets), weight = _batch(), np.linspace(0, 1, NUMBER, dtype=np.float32)
    order = np.random.default_rng(1).permutation(NUMBER)
    mixed, soft = _combined(MixUp(), (images, targets), (images[order], targets[order]),
                            weight=weight)  # fmt: skip
    for i in range(NUMBER):
        w, j = float(weight[i]), order[i]
        np.testing.assert_allclose(mixed[i], w * images[i] + (1 - w) * images[j], rtol=1e-5)
        np.testing.assert_allclose(soft[i], w * targets[i] + (1 - w) * targets[j], atol=1e-6)


def test_mixup_of_a_whole_batch():
    """Targets that name the row: the target says what the image must be."""
    images, _ = _batch()
    rows = np.eye(NUMBER, dtype=np.float32)
    mixed, soft = _mixed(MixUp(), (images, rows))
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-6)
    expected = np.tensordot(soft, images, 1)
    np.testing.assert_allclose(mixed, expected, rtol=1e-5)
    # each row gives a part to exactly one other
    partners = [set(np.flatnonzero(soft[:, i])) - {i} for i in range(NUMBER)]
    assert all(len(of) <= 1 for of in partners) and sum(map(len, partners)) > NUMBER - 10
    _, hardly = _mixed(MixUp(1e-3), (images, rows))
    assert np.mean(hardly.max(axis=1) > 0.999) > 0.9  # nearly nothing is mixed


def test_remix_by_its_three_cases():
    """All pairs of classes and weights on both sides of tau and 1 - tau, by loops."""
    tau, kappa = 0.3, 3.0
    mixing = Remix(COUNTS, kappa=kappa, tau=tau)
    pairs = [(i, j) for i in range(CLASSES) for j in range(CLASSES)]
    own, other = (np.repeat([pair[k] for pair in pairs], 4) for k in range(2))
    weight = np.tile(np.float32([0.1, 0.45, 0.6, 0.9]), len(pairs))
    images, _ = _batch()
    one_hot = np.eye(CLASSES, dtype=np.float32)
    mixed, soft = _combined(
        mixing, (images, one_hot[own]), (images[::-1].copy(), one_hot[other]), weight=weight
    )
    seen = set()
    for n, (i, j, w) in enumerate(zip(own, other, weight, strict=True)):
        label = w
        if COUNTS[i] / COUNTS[j] >= kappa and w < tau:
            label = 0.0
        elif COUNTS[i] / COUNTS[j] <= 1 / kappa and 1 - w < tau:
            label = 1.0
        seen.add(float(label) if label in (0.0, 1.0) else None)
        expected = label * one_hot[i] + (1 - label) * one_hot[j]
        np.testing.assert_allclose(soft[n], expected, atol=1e-6, err_msg=f"{i}, {j}, {w}")
        pixel = w * images[n, 0, 0, 0] + (1 - w) * images[-1 - n, 0, 0, 0]
        np.testing.assert_allclose(mixed[n], pixel, rtol=1e-5)  # images are mixed as by mixup
    assert seen == {0.0, 1.0, None}


def test_without_tau_remix_is_mixup():
    ours, soft = _mixed(Remix(COUNTS, alpha=0.7, tau=0.0))
    theirs, expected = _mixed(MixUp(0.7))
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(soft, expected, atol=1e-7)


def test_pasted_rectangles_by_loops():
    (images, targets), rng = _batch(), np.random.default_rng(2)
    rows, columns = (np.sort(rng.integers(0, side + 1, (NUMBER, 2)), 1) for side in SIDES)
    box = np.concatenate([rows, columns], 1).astype(np.int32)
    others, other_targets = images + 100, targets[::-1].copy()
    mixed, soft = _combined(CutMix(), (images, targets), (others, other_targets), box=box)
    for n, (top, bottom, left, right) in enumerate(box):
        expected = images[n].copy()
        expected[top:bottom, left:right] = others[n, top:bottom, left:right]
        np.testing.assert_array_equal(mixed[n], expected)
        share = (bottom - top) * (right - left) / np.prod(SIDES)
        mass = (1 - share) * targets[n] + share * other_targets[n]
        np.testing.assert_allclose(soft[n], mass, atol=1e-6)


def test_cutmix_weights_labels_by_the_pixels_that_are_there():
    images, _ = _batch()
    rows = np.eye(NUMBER, dtype=np.float32)
    mixed, soft = _mixed(CutMix(probability=0.5), (images, rows))
    for n in range(NUMBER):
        pixels = np.bincount(mixed[n, ..., 0].astype(int).ravel(), minlength=NUMBER + 1)[1:]
        np.testing.assert_allclose(soft[n], pixels / np.prod(SIDES), atol=1e-6)
    share = np.mean(np.any(mixed != images, axis=(1, 2, 3)))
    assert 0.2 < share < 0.7  # of half of them; small rectangles have no pixel
    kept, same = _mixed(CutMix(probability=0.0), (images, rows))
    np.testing.assert_array_equal(kept, images)
    np.testing.assert_array_equal(same, rows)


def test_cutmix_draws_sides_from_the_beta_distribution_and_centres_uniformly():
    """With alpha large, rectangles have the side sqrt(1/2); the border cuts those near it."""
    shape = (8192, 32, 32, 3)
    drawn = CutMix(alpha=1e5, probability=0.25).draw(shape, keras.random.SeedGenerator(0))
    top, bottom, left, right = ops.convert_to_numpy(drawn["box"]).T
    pasted = bottom > top
    assert abs(pasted.mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 8192)
    heights, widths = (bottom - top)[pasted], (right - left)[pasted]
    side = int(32 * np.sqrt(0.5))
    # centres 0..31, a square of 22 from 11 above its centre on
    lengths = [min(c - side // 2 + side, 32) - max(c - side // 2, 0) for c in range(32)]
    for found in (heights, widths):
        assert np.mean(found <= side) > 0.999 and found.max() <= side + 2
        error = np.std(lengths) / np.sqrt(len(found))
        assert abs(found.mean() - np.mean(lengths)) < 5 * error
    assert abs(np.corrcoef(heights, widths)[0, 1]) < 0.12


def test_tail_images_are_pasted_on_the_batch_row_by_row():
    images, targets = _batch()
    sources = images + 1000, np.roll(targets, 1, axis=1)
    more = tuple(np.concatenate([part, part * 0 + 7]) for part in sources)
    mixing = TailPasting(1.0)
    assert mixing.needs_sources and not CutMix.needs_sources
    mixed, soft = _mixed(mixing, sources=more)
    pasted = mixed[..., 0] > 500
    np.testing.assert_array_equal(mixed[pasted], sources[0][pasted])
    np.testing.assert_array_equal(mixed[~pasted], images[~pasted])
    share = pasted.mean(axis=(1, 2))[:, None]
    np.testing.assert_allclose(soft, (1 - share) * targets + share * sources[1], atol=1e-6)
    assert 0.1 < share.mean() < 0.6
    kept, same = _mixed(TailPasting(0.0), sources=more)
    np.testing.assert_array_equal(kept, images)
    np.testing.assert_array_equal(same, targets)


@settings(max_examples=8)
@given(
    seed=st.integers(0, 2**16),
    alpha=st.floats(0.05, 5),
    kind=st.sampled_from([MixUp, CutMix, Remix, TailPasting]),
)
def test_soft_targets_stay_distributions_and_draws_repeat(seed, alpha, kind):
    targets = np.random.default_rng(seed).dirichlet(np.ones(CLASSES), NUMBER).astype(np.float32)
    images, _ = _batch()
    mixing = Remix(COUNTS, alpha=alpha) if kind is Remix else kind(alpha=alpha)
    batch = images, targets
    mixed, soft = _mixed(mixing, batch, seed, sources=batch)
    assert soft.min() >= 0 and mixed.min() >= 1 and mixed.max() <= NUMBER
    np.testing.assert_allclose(soft.sum(axis=1), 1, atol=1e-5)
    again = _mixed(mixing, batch, seed, sources=batch)
    np.testing.assert_array_equal(again[0], mixed)
    np.testing.assert_array_equal(again[1], soft)


@pytest.mark.parametrize(
    "mixing", [MixUp(0.4), CutMix(0.5, 0.25), Remix(COUNTS, 0.5, 2.0, 0.1), TailPasting(0.25, 0.5)]
)
def test_they_are_saved(mixing):
    restored = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(mixing))
    assert type(restored) is type(mixing) and restored.get_config() == mixing.get_config()
    assert restored.alpha in (0.4, 0.5)


def test_bad_arguments_are_refused():
    for make in (
        lambda: MixUp(0.0),
        lambda: CutMix(float("inf")),
        lambda: CutMix(probability=1.5),
        lambda: TailPasting(-0.1),
        lambda: Remix(()),
        lambda: Remix((1, -1)),
        lambda: Remix(COUNTS, kappa=1.0),
        lambda: Remix(COUNTS, tau=2.0),
        lambda: _mixed(TailPasting()),
        lambda: _mixed(TailPasting(), sources=tuple(part[:5] for part in _batch())),
        lambda: _mixed(Remix((1, 2))),
        lambda: _mixed(MixUp(), (_batch()[0], np.zeros(NUMBER, np.int32))),
    ):
        with pytest.raises(InputError):
            make()


class AugmentedClassifier(Classifier):
    """Trains on batches that went through everything."""

    policies = RandAugment(1), Cutout(3)
    mixings = MixUp(0.4), CutMix(), Remix(COUNTS), TailPasting()

    def augment(self, x, y, sample_weight):
        sources, targets = (x, y), y
        for policy in self.policies:
            x = policy.augment(x, self.seed_generator)
        for mixing in self.mixings:
            x, targets = mixing.mix(x, targets, self.seed_generator, sources)
        return x, targets, sample_weight


@pytest.mark.slow_on("jax", "tensorflow")
def test_all_of_it_within_the_compiled_step_of_fit():
    """With a last batch of another size, which is an unknown one on TensorFlow."""
    images = np.random.default_rng(0).integers(0, 256, (22, *SIDES, 3)).astype(np.uint8)
    labels = np.eye(CLASSES, dtype=np.float32)[np.arange(22) % CLASSES]

    def trained():
        keras.utils.set_random_seed(1)
        layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(CLASSES)]
        network = keras.Sequential([keras.Input((*SIDES, 3)), *layers])
        model = AugmentedClassifier(network, seed=2)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-4), loss)
        start = ops.convert_to_numpy(model.seed_generator.state).copy()
        history = model.fit(images, labels, batch_size=16, epochs=2, shuffle=False, verbose=0)
        assert np.any(ops.convert_to_numpy(model.seed_generator.state) != start)
        return history.history["loss"]

    losses = trained()
    assert np.all(np.isfinite(losses))
    np.testing.assert_allclose(trained(), losses, rtol=1e-5)
