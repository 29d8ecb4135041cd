"""Several devices train as one does; two virtual devices of the CPU stand for them."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import keras_git as kg
from experiments.cifar_lt import Config
from experiments.settings import checked, decisive_settings, quick
from keras_git import backend

ROOT = Path(__file__).parents[1]
TORCH = keras.config.backend() == "torch"
CONFIG = Config(distribution="data_parallel", batch_size=32, generator_batch_size=8)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    if TORCH:
        pytest.skip("Keras does not divide batches on PyTorch")
    done = subprocess.run(
        [sys.executable, "-m", "tests.two_devices"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    "training", ["batch normalization", "whitened", "generated images", "MUNIT", "sharpness"]
)
def test_a_training_is_that_of_one_device(report: dict[str, Any], training: str) -> None:
    """Every step's loss and metrics; then weights, statistics, optimizer and seeds."""
    if training == "sharpness" and keras.config.backend() == "tensorflow":
        pytest.skip("refused, see below")
    found = report["trainings"][training]
    for name, (one, two) in found["logs"].items():
        assert len(one) == 4 and np.isfinite(one).all()
        np.testing.assert_allclose(two, one, rtol=1e-5, atol=1e-5, err_msg=name)
    # the inverse root of a covariance matrix enlarges rounding (1.3e-5 seen after four steps)
    limits = dict.fromkeys(found["state"], 5e-5 if training == "whitened" else 1e-5)
    if training == "MUNIT":
        # The sign of |x - y| turns with the last bit where both are equal: starting weights changed
        # by 1e-7 of themselves give momenta 2.5e-3 apart on one device, too. They reach 3.
        limits["optimizer"] = 2e-2
    assert {group: value for group, value in found["state"].items() if value >= limits[group]} == {}


@pytest.mark.slow
def test_what_is_saved_is_plain_and_goes_on(report: dict[str, Any]) -> None:
    facts = report["facts"]
    assert facts["devices"] == 2
    assert facts["iterations"] == 2 and facts["iterations after loading"] == 4
    assert facts["synchronized"] is False and facts["saved"] == [False, False]
    assert facts["progress"] == {"step": 2} and facts["checkpoint"] == 0
    assert facts["ekld"][0] == pytest.approx(facts["ekld"][1], abs=1e-6)


@pytest.mark.slow
def test_a_batch_that_cannot_be_divided_is_refused(report: dict[str, Any]) -> None:
    assert "evenly" in report["facts"]["odd batch"]


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="JAX sees the whole batch")
def test_what_needs_the_whole_batch_is_refused(report: dict[str, Any]) -> None:
    assert "train on one" in report["facts"]["part of a batch"]


@pytest.mark.slow
@pytest.mark.skipif(keras.config.backend() != "tensorflow", reason="divided by JAX itself")
def test_data_that_keras_would_divide_wrongly_are_refused(report: dict[str, Any]) -> None:
    assert "not a _NumpyBatches: use pipeline='tf_data'" in report["facts"]["PyDataset"]


@pytest.mark.skipif(TORCH, reason="refuses")
def test_one_device_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kg.distribution, "num_devices", lambda: 1)
    with kg.distribution.data_parallel() as number:
        assert number == 1 and backend.num_replicas() == 1
    checked(dataclasses.replace(CONFIG, batch_size=33), quick)


@pytest.mark.skipif(not TORCH, reason="the refusal of PyTorch")
def test_pytorch_refuses() -> None:
    with pytest.raises(kg.InputError, match="not possible on PyTorch"):
        with kg.distribution.data_parallel():
            pass
    with pytest.raises(kg.InputError, match="not possible on PyTorch"):
        checked(CONFIG, quick)


@pytest.mark.skipif(TORCH, reason="refuses")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 31}, "--batch_size: 31 images"),
        ({"generated_fraction": 0.35}, "--generated_fraction, .*: 11 images"),
        ({"generator_batch_size": 1}, "--generator_batch_size: 1 images"),
    ],
)
def test_what_two_devices_cannot_divide_is_refused(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kg.distribution, "num_devices", lambda: 2)
    with pytest.raises(kg.InputError, match=message):
        checked(dataclasses.replace(CONFIG, **change), quick)


def test_a_folder_made_before_there_was_a_choice_goes_on() -> None:
    assert "distribution" not in decisive_settings(Config())
    assert decisive_settings(CONFIG)["distribution"] == "data_parallel"


@pytest.mark.slow
@pytest.mark.skipif(TORCH, reason="refuses")
def test_an_experiment_on_two_devices(tmp_path: Path) -> None:
    program = (
        "import tests.two_devices, runpy, sys\n"
        "sys.argv = ['cifar_lt', *sys.argv[1:]]\n"
        "runpy.run_module('experiments.cifar_lt', run_name='__main__')"
    )
    flags = [
        "--flagfile=experiments/flagfiles/quickstart.cfg",
        "--quick",
        "--num_classes=20",
        "--methods=erm,git",
        "--distribution=data_parallel",
        f"--output_dir={tmp_path / 'run'}",
    ]
    done = subprocess.run(
        [sys.executable, "-c", program, *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    for method in results["methods"].values():
        assert np.isfinite(method["mean"]["balanced_accuracy"])
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert "data_parallel" in json.dumps(settings)
