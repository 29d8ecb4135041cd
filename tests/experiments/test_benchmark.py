"""The measurement of speeds: every part is measured, and ratios are those of its numbers."""

from __future__ import annotations

import json

import pytest

from experiments import benchmark
from keras_git.errors import InputError


def test_unknown_parts_are_named() -> None:
    with pytest.raises(InputError, match="'gpu' is unknown; use pipeline"):
        benchmark.run(benchmark.Config(setting="speed", parts=("gpu",)))


def test_pipelines_are_measured(tmp_path) -> None:
    path = tmp_path / "speed.json"
    config = benchmark.Config(
        setting="speed", parts=("pipeline",), batch_size=1024, repeats=1, output=str(path)
    )
    found = benchmark.run(config)
    assert min(found["images_per_second"].values()) > 1000
    assert json.loads(path.read_text())["images_per_second"] == found["images_per_second"]


@pytest.mark.slow
def test_steps_are_measured_as_ratios() -> None:
    parts = ("step", "device", "seeds", "torch")
    found = benchmark.run(
        benchmark.Config(setting="speed", parts=parts, depth=8, batch_size=4, steps=2, repeats=1)
    )
    times = found["milliseconds"]
    assert {"fit", "on device", "3 seeds on device"} <= set(times)
    ratio = found["ratios_to_fit"]["on device"]
    assert ratio == pytest.approx(times["on device"] / times["fit"])
