"""The measurement of speeds: every part is measured, and ratios are those of its numbers."""

from __future__ import annotations

import json
import subprocess
import time
import types

import pytest

from experiments import benchmark
from keras_git.errors import InputError

SMALL = {"depth": 8, "batch_size": 4, "git_depth": 8, "bank_images": 20, "steps": 2, "repeats": 1}


def test_bad_requests_are_named() -> None:
    with pytest.raises(InputError, match="'gpu' is unknown; use pipeline"):
        benchmark.run(benchmark.Config(parts=("gpu",)))
    with pytest.raises(InputError, match="--git_depth=0: use 1 or more"):
        benchmark.run(benchmark.Config(git_depth=0))
    with pytest.raises(InputError, match="is for --setting=speed"):
        benchmark.run(benchmark.Config(setting="audit", all_backends=True))


def test_pipelines_are_measured(tmp_path) -> None:
    path = tmp_path / "speed.json"
    config = benchmark.Config(parts=("pipeline",), batch_size=1024, repeats=1, output=str(path))
    found = benchmark.run(config)
    assert min(found["pipeline"]["images_per_second"].values()) > 1000
    assert json.loads(path.read_text())["pipeline"] == found["pipeline"]


def test_runs_take_turns_and_ratios_are_of_the_same_turn() -> None:
    calls: list[str] = []
    turns = [9.0, 1.0, 2.0, 6.0]  # the first compiles

    def slept() -> None:
        calls.append("slept")
        time.sleep(0.02)

    def told() -> float:
        calls.append("told")
        return turns[len(calls) // 2 - 1]

    seconds = benchmark._turns({"slept": slept, "told": told}, 3)
    assert calls == ["slept", "told"] * 4
    assert seconds["told"] == [1.0, 2.0, 6.0]
    assert all(0.02 <= each < 1.0 for each in seconds["slept"])
    summary = benchmark._summary({"a": [1.0, 4.0, 3.0], "b": [2.0, 2.0, 2.0]}, 10, "b", "absent")
    assert summary["milliseconds"] == pytest.approx({"a": 300.0, "b": 200.0})
    assert summary["ratios_to"] == {"b": {"a": pytest.approx(1.5)}}


def test_the_best_backend_is_that_of_the_smallest_ratio() -> None:
    def of(**ratios: float) -> dict:
        names = {mode.replace("_", " "): ratio for mode, ratio in ratios.items()}
        times = {"PyTorch by hand": 10.0, **{mode: 20 * r for mode, r in names.items()}}
        return {"step": {"milliseconds": times, "ratios_to": {"PyTorch by hand": names}}}

    best = benchmark._best({"jax": of(fit=1.4, on_device=1.1), "torch": of(fit=1.2), "x": {}})
    assert best == {
        "backend": "jax",
        "mode": "on device",
        "milliseconds": pytest.approx(22.0),
        "ratio_to_PyTorch_by_hand": 1.1,
    }
    assert benchmark._best({"x": {}}) == {}


def test_all_backends_are_joined(tmp_path, monkeypatch) -> None:
    started = []

    def run(command, env):
        started.append((command, env["KERAS_BACKEND"]))
        (output,) = (flag for flag in command if flag.startswith("--output="))
        with open(output.removeprefix("--output="), "w") as file:
            json.dump({"backend": env["KERAS_BACKEND"]}, file)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(benchmark.subprocess, "run", run)
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: name != "jax" or None)
    path = tmp_path / "all.json"
    found = benchmark.run(
        benchmark.Config(parts=("step", "git"), steps=3, all_backends=True, output=str(path))
    )
    assert [backend for _, backend in started] == ["tensorflow", "torch"]
    assert started[0][0][1:5] == ["-m", "experiments.benchmark", "--parts=step,git", "--steps=3"]
    assert found["backends"] == {b: {"backend": b} for b in ("tensorflow", "torch")}
    assert json.loads(path.read_text()) == found


def test_the_first_step_of_fit_is_not_counted() -> None:
    events: list[int] = []

    def fit(data, steps_per_epoch, verbose, callbacks):
        (timer,) = callbacks
        for step in range(steps_per_epoch):
            time.sleep(0.3 if step == 0 else 0.02)
            events.append(step)
            timer.on_train_batch_end(step, {"loss": 1.0})
        timer.on_epoch_end(0, {"loss": 1.0})

    model = types.SimpleNamespace(fit=fit)
    seconds = benchmark._fit(model, benchmark._stream(benchmark._dataset(12), 4))()
    assert events == [0, 1, 2]
    assert 0.04 <= seconds < 0.3


@pytest.mark.slow
def test_expected_kl_is_measured_beside_predictions() -> None:
    found = benchmark.run(benchmark.Config(parts=("ekld",), **SMALL))["ekld"]
    assert found["ratios_to"]["predict"]["expected_kl"] == pytest.approx(
        found["milliseconds"]["expected_kl"] / found["milliseconds"]["predict"]
    )


@pytest.mark.slow
def test_steps_are_measured_as_ratios() -> None:
    parts = ("step", "device", "seeds", "torch", "munit", "git")
    options = {**SMALL, "generator_batch_size": 2, "device_depth": 8, "device_batch_size": 4}
    found = benchmark.run(benchmark.Config(parts=parts, **options))
    assert "device" not in found  # of the same size: measured in the same turns
    times = found["step"]["milliseconds"]
    assert {"fit", "on device", "3 seeds on device"} <= set(times)
    ratio = found["step"]["ratios_to"]["fit"]["on device"]
    assert ratio == pytest.approx(times["on device"] / times["fit"])
    assert set(found["munit"]["milliseconds"]) == {"one domain", "two domains"}
    git = found["git"]
    assert set(git["milliseconds"]) == {"plain", "generated in the step", "generator bank"}
    assert git["seconds_per_epoch_of_cifar10_lt"]["plain"] == pytest.approx(
        git["milliseconds"]["plain"] * 3102 / 1000
    )
    assert git["bank_milliseconds_per_generated_image"] > 0


@pytest.mark.slow
def test_the_loop_by_hand_measures_one_repeat_for_each_line() -> None:
    pytest.importorskip("torch")
    config = benchmark.Config(steps=2, policy="mixed_bfloat16")
    start = time.perf_counter()
    with benchmark._by_hand(config, 8, 2) as repeat:
        seconds = [repeat(), repeat()]
    assert 0 < sum(seconds) < time.perf_counter() - start
