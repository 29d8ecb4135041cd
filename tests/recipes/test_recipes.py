"""The recipe book and the language of its sums."""

from __future__ import annotations

import dataclasses

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.errors import InputError
from keras_git.recipes import NAMES, Deferred, Recipe, Schedule

COUNTS = np.array([50, 20, 5])
LABELS = np.repeat(np.arange(3), COUNTS)
SCHEDULE = Schedule(epochs=5, defer_epoch=2)
DRS = Deferred("instance_balanced", "class_balanced")


def stages(key: str, schedule: Schedule = SCHEDULE) -> list:
    recipe = kg.recipes.get(key)
    return [recipe.stage(epoch, schedule) for epoch in range(schedule.epochs)]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("erm", {"sampling": "instance_balanced"}),
        ("drs", {"sampling": DRS}),
        ("git", {"sampling": DRS, "generates": True}),
        ("git+erm", {"sampling": "instance_balanced", "generates": True}),
        ("factors", {"sampling": DRS, "factors": True}),
        ("drs+factors", {"sampling": DRS, "factors": True}),
        # these correct for the class sizes themselves: no sampling besides
        ("git+logit_adjustment", {"sampling": None, "generates": True}),
        ("git+balanced_softmax", {"sampling": None, "generates": True}),
        ("git+drw", {"sampling": None, "generates": True}),
        ("git+post_hoc_logit_adjustment", {"sampling": None, "generates": True}),
        ("git+vs+drs", {"sampling": DRS, "generates": True}),
        ("ldam+drs", {"sampling": DRS, "head_of_network": "cosine", "logit_scale": 30.0}),
        ("git+ldam", {"sampling": DRS, "head_of_network": "cosine", "generates": True}),
        ("cosine+ema+sam", {"sharpness_radius": 0.05, "averaged_part": 0.05}),
    ],
)
def test_a_recipe_is_a_sum_of_names(key: str, expected: dict) -> None:
    recipe = kg.recipes.get(key)
    assert recipe.name == key
    assert {name: getattr(recipe, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("gitt", "'gitt' is unknown"),
        ("drs+drs", "twice"),
        ("focal+ldam", "two losses"),
        ("drs+erm", "two samplings"),
        ("", "unknown"),
        ("git+factors", "take the place"),
        ("git+oracle", "use one"),
        ("mixup+cutmix", "two mixings: mixup and cutmix"),
        ("crt+lws", "two second stages"),
        ("drw+inverse_weighting", "two weightings"),
        ("git+cmo", "cmo and git both need the second stream"),
        ("isda+mixup", "one label per image"),
        ("drs+post_hoc_logit_adjustment", "corrects for the class sizes, and so does drs"),
        ("balanced_softmax+post_hoc_logit_adjustment", "and so does balanced_softmax"),
        ("crt+post_hoc_logit_adjustment", "and so does crt"),
        ("ldam+tau_normalization", "needs a linear head"),
        ("crt+ldam", "needs a linear head"),
    ],
)
def test_a_bad_sum_is_named(key: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        kg.recipes.get(key)


def test_the_order_of_a_sum_does_not_matter() -> None:
    one, other = kg.recipes.get("git+ldam+drw"), kg.recipes.get("drw+git+ldam")
    told = {"name": "", "summary": "", "reference": ""}
    assert dataclasses.replace(one, **told) == dataclasses.replace(other, **told)
    assert kg.recipes.get("ldam_drw").step_key() == kg.recipes.get("drw+ldam").step_key()


def test_the_schedule_of_git_is_the_papers() -> None:
    """Re-sampling from epoch 160 on, generation from 161 on, one-based like the spec's table."""
    found = [dict(stage) for stage in stages("git", Schedule(200, 160, 161))]
    assert [s["sampling"] for s in found] == ["instance_balanced"] * 160 + ["class_balanced"] * 40
    assert ["generates" in s for s in found] == [False] * 161 + [True] * 39


def test_factors_have_the_schedule_of_git() -> None:
    schedule = Schedule(8, 4, 5)
    git, factors = stages("git", schedule), stages("drs+factors", schedule)
    assert git[:5] == factors[:5]  # shared until something is replaced
    assert all(a != b for a, b in zip(git[5:], factors[5:], strict=True))


def test_recipes_share_their_epochs_until_they_differ() -> None:
    assert stages("erm")[:2] == stages("drs")[:2] and stages("erm")[2] != stages("drs")[2]
    assert stages("drs")[:3] == stages("git")[:3] and stages("drs")[3] != stages("git")[3]
    # what follows the training shares all of it
    for key in ("crt", "lws", "tau_normalization", "post_hoc_logit_adjustment", "ce"):
        assert (stages(key) == stages("erm")) == (key != "ce")
    # everything else that trains differs from the first epoch on
    after = {"crt", "lws", "tau_normalization", "post_hoc_logit_adjustment"}
    same = {"erm", "drs", "git", "factors", *after}
    for key in NAMES:
        assert (stages(key)[0] == stages("erm")[0]) == (key in same), key


def test_only_equal_steps_share_a_compiled_model() -> None:
    keys = {key: kg.recipes.get(key).step_key() for key in NAMES}
    samplings = [key for key in NAMES if "sampling" in key]
    assert len({keys[key] for key in ("erm", "drs", "git", "crt", *samplings)}) == 1
    others = ["erm", "ldam", "drw", "class_balanced_loss", "mixup", "remix", "sam", "ema", "isda"]
    others += ["randaugment", "cutout", "label_smoothing", "cosine", "oracle", "factors", "cmo"]
    assert len({keys[key] for key in others}) == len(others)


@pytest.mark.parametrize("key", NAMES)
def test_every_name_makes_a_sampler_a_loss_and_arguments(key: str) -> None:
    recipe = kg.recipes.get(key)
    assert recipe.make_sampler(LABELS, 0, SCHEDULE).indices(0).shape == LABELS.shape
    sources = recipe.make_source_sampler(LABELS, 0, SCHEDULE)
    assert (sources is not None) == (key == "cmo")
    loss = recipe.make_loss(COUNTS)
    logits = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype("float32")
    labels = np.arange(6) % 3
    hard, soft = float(loss(labels, logits)), float(loss(np.eye(3)[labels], logits))
    assert np.isfinite(hard) and soft == pytest.approx(hard, rel=1e-5)
    weights = recipe.make_class_weights(COUNTS, SCHEDULE)
    if key in ("drw", "ldam_drw"):
        np.testing.assert_array_equal(weights(1), np.ones(3))
        np.testing.assert_allclose(weights(2), kg.losses.class_balanced_weights(COUNTS))
    assert (weights is None) == (recipe.class_weights is None)
    assert recipe.step_arguments(COUNTS, SCHEDULE).keys() <= {
        "class_weights", "augmentation", "mixing", "feature_augmentation", "sharpness_radius"
    }  # fmt: skip
    assert recipe.summary and (not recipe.reference or recipe.reference[-1].isdigit())


def test_averages_reach_over_a_part_of_the_training() -> None:
    ema = kg.recipes.get("ema")
    assert ema.ema_momentum(20_000) == pytest.approx(0.999)
    assert ema.ema_momentum(1_000) == pytest.approx(0.98) and ema.ema_momentum(3) == 0.5
    assert kg.recipes.get("erm").ema_momentum(100) == 0.0


def test_a_cutout_has_the_mean_colour_and_follows_a_policy() -> None:
    recipe = kg.recipes.get("randaugment+cutout")
    policies = recipe.step_arguments(COUNTS, SCHEDULE, np.array([10.0, 20.0, 30.0]))["augmentation"]
    assert [type(policy).__name__ for policy in policies] == ["RandAugment", "Cutout"]
    assert policies[1].fill == (10.0, 20.0, 30.0)


@pytest.mark.slow_on("jax")
def test_cosine_starts_low_and_ends_at_nothing() -> None:
    schedule = kg.recipes.get("cosine").learning_rate(0.1, 10, 20, 5)
    rates = np.array([float(schedule(step)) for step in (0, 25, 50, 125, 199, 200)])
    np.testing.assert_allclose(rates[2], 0.1, rtol=1e-5)  # the warm-up is over
    np.testing.assert_allclose(rates[3], 0.05, rtol=1e-5)  # half of the rest
    assert 0 < rates[0] < rates[1] < rates[2] and rates[4] < 1e-4 and rates[5] < 1e-8


@pytest.mark.slow_on("jax")
def test_a_recipe_trains_a_network_with_fit() -> None:
    """As the README shows: the record gives model, loss and sampler."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (len(LABELS), 8, 8, 3)).astype("uint8")
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Flatten()(keras.layers.Rescaling(1 / 255)(inputs))
    network = keras.Model(inputs, keras.layers.Dense(3)(x))
    recipe = kg.recipes.get("mixup+drw+label_smoothing+tau_normalization")
    model = recipe.classifier(network, COUNTS, SCHEDULE)
    model.compile(
        kg.optimizers.SGD(0.01), recipe.make_loss(COUNTS), metrics=[kg.metrics.LabelAccuracy()]
    )
    dataset = kg.data.ImageDataset(images, LABELS, 3)
    stream = kg.data.Stream(
        dataset, recipe.make_sampler(LABELS, 0, SCHEDULE), 25, drop_remainder=True
    )
    before = np.array(keras.ops.convert_to_numpy(network.weights[0]))
    history = model.fit(
        kg.data.training_data(stream), steps_per_epoch=stream.steps_per_epoch, epochs=3, verbose=0
    )
    assert np.isfinite(history.history["loss"]).all() and 0 <= history.history["accuracy"][0] <= 1
    assert not np.array_equal(before, keras.ops.convert_to_numpy(network.weights[0]))
    recipe.post_hoc(network, COUNTS)
    norms = np.linalg.norm(keras.ops.convert_to_numpy(network.weights[0]), axis=0)
    np.testing.assert_allclose(norms, 1.0, rtol=1e-5)
    with pytest.raises(InputError, match="GITClassifier"):
        kg.recipes.get("git").classifier(network, COUNTS, SCHEDULE)


def own(class_counts, label_smoothing=0.0):
    return kg.losses.CrossEntropy(label_smoothing=label_smoothing)


def test_a_recipe_of_ones_own() -> None:
    """A record and a function are all that a new method needs."""
    mine = Recipe("mine", "own loss", loss=own)
    recipe = kg.recipes.combined("mine+drs", [mine, kg.recipes.get("drs")])
    assert recipe.defers and isinstance(recipe.make_loss(COUNTS), kg.losses.CrossEntropy)
    assert dict(recipe.stage(0, SCHEDULE))["loss"].endswith("own")
    # Two of these would be one in the eyes of what is compiled and shared.
    with pytest.raises(InputError, match="cannot be told apart"):
        Recipe("lambda", loss=lambda counts, label_smoothing: None).step_key()
