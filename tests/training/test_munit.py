"""MUNIT: the losses against a second computation, the alternation, resumption."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.errors import InputError
from tests.training.conftest import small_discriminator, small_networks

LOSSES = (
    "discriminator_loss",
    "generator_loss",
    "adversarial_loss",
    "image_loss",
    "style_loss",
    "content_loss",
)


def make(**options: object) -> kg.training.MUNIT:
    munit = kg.training.MUNIT(small_networks(), small_discriminator(), seed=3, **options)
    munit.compile(
        generator_optimizer=kg.optimizers.Adam(1e-3, l2=1e-4),
        discriminator_optimizer=kg.optimizers.Adam(1e-3, l2=1e-4),
    )
    return munit


def numpy_of(tensor: object) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor)


def values(model: keras.Model) -> list[np.ndarray]:
    return [numpy_of(v).copy() for v in model.variables]


@pytest.fixture(scope="module")
def trained(images: np.ndarray) -> tuple[kg.training.MUNIT, dict[str, list[float]]]:
    munit = make()
    history = munit.fit(images, batch_size=4, epochs=1, shuffle=False, verbose=0).history
    return munit, history


def test_a_step_reports_every_loss_and_counts_its_updates(trained) -> None:
    munit, history = trained
    assert set(history) == set(LOSSES)
    assert all(np.isfinite(v).all() for v in history.values())
    counted = [munit.optimizer, *munit.optimizer.optimizers]
    assert [int(numpy_of(o.iterations)) for o in counted] == [3, 3, 3]


def test_the_losses_are_those_of_the_paper(images: np.ndarray) -> None:
    """Against the same losses, computed in numpy from the networks' outputs."""
    munit = make(cycle_weight=2.0)
    style = np.random.default_rng(5).normal(size=(4, 2)).astype("float32")
    tensor = keras.ops.convert_to_tensor
    style, x = tensor(style), tensor(images[:4].astype("float32") / 127.5 - 1.0)
    n, d = munit.networks[0], munit.discriminators[0]
    content, own_style = n.content_encoder(x), n.style_encoder(x)
    fake = n.decoder([content, style])

    def distance(a: object, b: object) -> float:
        return float(np.mean(np.abs(numpy_of(a) - numpy_of(b))))

    scores = d(fake)
    (scores,) = scores if isinstance(scores, list | tuple) else (scores,)
    real = d(x)
    (real,) = real if isinstance(real, list | tuple) else (real,)
    expected = {
        "adversarial": float(np.mean((numpy_of(scores) - 1.0) ** 2)),
        "image": distance(n.decoder([content, own_style]), x),
        "style": distance(n.style_encoder(fake), style),
        "content": distance(n.content_encoder(fake), content),
        "cycle": distance(n.decoder([n.content_encoder(fake), own_style]), x),
    }
    (terms,) = munit.generator_terms([x], [style])
    assert {k: float(numpy_of(v)) for k, v in terms.items()} == pytest.approx(expected, rel=1e-4)
    (loss,) = munit.discriminator_terms([x], [style])
    wanted = np.mean(numpy_of(scores) ** 2) + np.mean((numpy_of(real) - 1.0) ** 2)
    assert float(numpy_of(loss)) == pytest.approx(float(wanted), rel=1e-4)


def test_evaluation_reports_the_weighted_sum_and_changes_nothing(images: np.ndarray) -> None:
    munit = make()
    before = values(munit.generator)
    logs = munit.evaluate(images, batch_size=4, verbose=0, return_dict=True)
    total = logs["adversarial_loss"] + 10 * logs["image_loss"]
    total += logs["style_loss"] + logs["content_loss"]
    assert logs["generator_loss"] == pytest.approx(total, rel=1e-5)
    assert all(map(np.array_equal, before, values(munit.generator)))


@pytest.mark.parametrize("still", ["generator", "discriminator"])
@pytest.mark.slow_on("jax")
def test_each_update_leaves_the_other_networks_alone(images: np.ndarray, still: str) -> None:
    munit = kg.training.MUNIT(small_networks(), small_discriminator(), seed=3)
    rates = {"generator": 1e-2, "discriminator": 1e-2, still: 1e-12}
    munit.compile(
        generator_optimizer=kg.optimizers.Adam(rates["generator"]),
        discriminator_optimizer=kg.optimizers.Adam(rates["discriminator"]),
    )
    networks = {
        "generator": munit.networks[0].decoder,
        "discriminator": munit.discriminators[0],
    }
    before = {name: values(network) for name, network in networks.items()}
    munit.fit(images, batch_size=6, epochs=1, verbose=0)
    for name, network in networks.items():
        moved = max(np.abs(a - b).max() for a, b in zip(before[name], values(network), strict=True))
        assert (moved < 1e-9) == (name == still)


def test_a_resumed_training_ends_like_an_uninterrupted_one(
    images: np.ndarray, tmp_path, trained
) -> None:
    munit, _ = trained
    variables = kg.training.training_variables(munit)
    kg.training.save_checkpoint(tmp_path / "state.npz", variables, {"step": 3})
    uninterrupted = munit.fit(images, batch_size=4, shuffle=False, verbose=0).history
    other = make()
    other_variables = kg.training.training_variables(other)
    progress = kg.training.load_checkpoint(tmp_path / "state.npz", other_variables)
    assert progress == {"step": 3}
    assert other.fit(images, batch_size=4, shuffle=False, verbose=0).history == uninterrupted
    assert all(map(np.array_equal, values(munit.generator), values(other.generator)))


@pytest.mark.slow_on("jax")
def test_two_domains_need_two_streams(images: np.ndarray) -> None:
    munit = kg.training.MUNIT(
        small_networks("generator_a"),
        small_discriminator("discriminator_a"),
        small_networks("generator_b", 1),
        small_discriminator("discriminator_b", 1),
    )
    munit.compile()
    assert munit.domains == 2
    x = {"images": images, "source_images": images[::-1].copy()}
    history = munit.fit(x, batch_size=6, verbose=0).history
    assert np.isfinite(history["generator_loss"]).all()
    with pytest.raises(InputError, match="source_images"):
        munit.fit(images, batch_size=6, verbose=0)


@pytest.mark.slow_on("jax")
def test_it_can_be_rebuilt_from_its_configuration(images: np.ndarray) -> None:
    munit = make(loss="hinge", image_weight=5.0)
    again = kg.training.MUNIT.from_config(munit.get_config())
    plain = {k: v for k, v in munit.get_config().items() if not isinstance(v, dict)}
    assert plain.items() <= again.get_config().items()
    again.generator.set_weights(munit.generator.get_weights())
    inputs = [images[:2] / 127.5 - 1.0, np.ones((2, 2), "float32")]
    np.testing.assert_allclose(numpy_of(again(inputs)), numpy_of(munit(inputs)), atol=1e-6)


def test_bad_arguments_are_named() -> None:
    with pytest.raises(InputError, match="lsgan"):
        kg.training.MUNIT(small_networks(), small_discriminator(), loss="wgan")
    with pytest.raises(InputError, match="both networks_b and discriminator_b"):
        kg.training.MUNIT(small_networks(), small_discriminator(), small_networks())
