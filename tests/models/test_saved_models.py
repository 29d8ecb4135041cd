"""A network saved on this backend opens with ``import keras`` alone on every other one."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_git.models import (
    discriminator,
    four_conv,
    generator_networks,
    resnet,
    wide_resnet,
)
from tests.backends import OPENED_ON
from tests.models.saved_models import outputs_of


def _small_generator(**options):
    return generator_networks(
        (16, 16, 1),
        width=4,
        mlp_width=8,
        num_downsamplings=1,
        num_residual_blocks=1,
        style_downsamplings=2,
        outer_kernel=5,
        upsampling_kernel=3,
        seed=3,
        **options,
    )


def _networks() -> dict[str, keras.Model]:
    reflect, replicate = _small_generator(), _small_generator(padding="replicate", prefix="other")
    return {
        "linear": resnet((16, 16, 3), 4, 8, width=4, mean=[0.5] * 3, std=[0.2] * 3, seed=1),
        "cosine": resnet((16, 16, 3), 4, 8, width=4, head="cosine", seed=1),
        "wide": wide_resnet((16, 16, 3), 4, 18, width=2, seed=1),
        "four_conv": four_conv((16, 16, 1), 4, width=4, seed=1),
        "generator": reflect.generator,
        "style_encoder": reflect.style_encoder,
        "replicate": replicate.generator,
        "discriminator": discriminator((16, 16, 3), width=4, num_layers=2, num_scales=2, seed=1),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    rng = np.random.default_rng(9)
    for name, network in _networks().items():
        for variable in network.variables:
            # running statistics that differ from their start, or their loading is not tested
            if "moving" in variable.path:
                variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        network.save(folder / f"{name}.keras")
        np.savez(folder / f"{name}.npz", *outputs_of(network))
    return folder


@pytest.mark.parametrize("backend", OPENED_ON)
def test_opens_with_keras_alone(saved, backend, tmp_path):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"the Keras backend {backend!r} is not installed")
    script = Path(__file__).with_name("saved_models.py")
    # run elsewhere and isolated, so that this project is not importable
    done = subprocess.run(
        [sys.executable, "-P", str(script), "open", str(saved)],
        cwd=tmp_path,
        env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line for line in done.stdout.splitlines() if line.startswith(backend)]
    assert len(lines) == len(list(saved.glob("*.keras"))) + 1  # the discriminator has two scales


def test_weights_of_one_seed_are_the_same_after_weights_file(saved, tmp_path):
    """The weights file alone restores a network of another seed."""
    first = resnet((16, 16, 3), 4, 8, width=4, head="cosine", seed=1)
    second = resnet((16, 16, 3), 4, 8, width=4, head="cosine", seed=2)
    first.save_weights(tmp_path / "first.weights.h5")
    assert np.abs(outputs_of(first)[0] - outputs_of(second)[0]).max() > 1e-3
    second.load_weights(tmp_path / "first.weights.h5")
    np.testing.assert_allclose(outputs_of(first)[0], outputs_of(second)[0], atol=1e-6)
