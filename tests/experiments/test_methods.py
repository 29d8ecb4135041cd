"""The language of methods."""

from __future__ import annotations

import numpy as np
import pytest

import keras_git as kg
from experiments.methods import NAMES, Method, parse_method
from keras_git.errors import InputError

COUNTS = np.array([50, 20, 5])
LABELS = np.repeat(np.arange(3), COUNTS)


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("erm", Method("erm")),
        ("drs", Method("drs", sampling="drs")),
        ("git", Method("git", sampling="drs", generates=True)),
        ("git+erm", Method("git+erm", generates=True)),
        ("factors", Method("factors", sampling="drs", factors=True)),
        ("drs+factors", Method("drs+factors", sampling="drs", factors=True)),
        ("ldam+drs", Method("ldam+drs", loss="ldam", sampling="drs")),
        ("git+ldam", Method("git+ldam", loss="ldam", sampling="drs", generates=True)),
        ("ldam+drw", Method("ldam+drw", loss="ldam", weighting="drw")),
        ("class_balanced_loss", Method("class_balanced_loss", weighting="class_balanced_loss")),
    ],
)
def test_a_method_is_a_sum_of_names(key: str, expected: Method) -> None:
    assert parse_method(key) == expected


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("gitt", "'gitt' is unknown"),
        ("drs+drs", "twice"),
        ("focal+ldam", "two losses"),
        ("drs+erm", "two samplings"),
        ("", "unknown"),
        ("git+factors", "take the place"),
    ],
)
def test_a_bad_method_is_named(key: str, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        parse_method(key)


def test_the_schedule_of_git_is_the_papers() -> None:
    """Re-sampling from epoch 160 on, generation from 161 on, one-based like the spec's table."""
    git = parse_method("git")
    stages = [git.stage(epoch, 160, 161) for epoch in range(200)]
    assert [s[1] for s in stages] == ["erm"] * 160 + ["class_balanced_sampling"] * 40
    assert [s[3] for s in stages] == [False] * 161 + [True] * 39


def test_factors_have_the_schedule_of_git() -> None:
    git, factors = (parse_method(key) for key in ("git", "drs+factors"))
    for epoch in range(8):
        ours, theirs = factors.stage(epoch, 4, 5), git.stage(epoch, 4, 5)
        assert bool(ours[3]) == theirs[3] and ours[1] == theirs[1]
        assert (ours == theirs) == (epoch < 5)  # shared with git until something is replaced


def test_methods_share_their_epochs_until_they_differ() -> None:
    erm, drs, git = (parse_method(key) for key in ("erm", "drs", "git"))
    stages = {m.key: [m.stage(e, 2, 3) for e in range(5)] for m in (erm, drs, git)}
    assert stages["erm"][:2] == stages["drs"][:2] and stages["erm"][2] != stages["drs"][2]
    assert stages["drs"][:3] == stages["git"][:3] and stages["drs"][3] != stages["git"][3]


@pytest.mark.parametrize("key", [name for name in NAMES if name != "git"])
def test_every_name_makes_a_sampler_a_loss_and_weights(key: str) -> None:
    method = parse_method(key)
    sampler = method.sampler(LABELS, 0, 1)
    assert sampler.indices(0).shape == LABELS.shape
    loss = method.make_loss(COUNTS)
    logits = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype("float32")
    assert np.isfinite(float(loss(np.arange(6) % 3, logits)))
    weights = method.class_weights(COUNTS, 1)
    if key == "drw":
        np.testing.assert_array_equal(weights(0), np.ones(3))
        np.testing.assert_allclose(weights(1), kg.losses.class_balanced_weights(COUNTS))
    assert (weights is None) == (method.weighting is None)
