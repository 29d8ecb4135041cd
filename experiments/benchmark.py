"""Step times on this machine and backend, and what the shortcuts save, as ratios of one run.

    KERAS_BACKEND=jax python -m experiments.benchmark

Medians over repeats of several steps each, compilation left out; no claim beyond this machine.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_git as kg
from experiments import command_line
from experiments.command_line import option
from experiments.results_folder import to_json, versions
from keras_git.errors import InputError
from keras_git.files import write_atomically

_SETTINGS = {
    # the quickstart
    "small": {
        "shape": (28, 28, 1),
        "depth": 8,
        "batch": 64,
        "generator_batch": 16,
        "generator": {
            "width": 12,
            "num_downsamplings": 1,
            "num_residual_blocks": 2,
            "mlp_width": 64,
            "outer_kernel": 5,
            "upsampling_kernel": 3,
            "style_downsamplings": 3,
        },
        "discriminator": {"width": 16, "num_layers": 3},
    },
    # the paper's networks for CIFAR
    "paper": {
        "shape": (32, 32, 3),
        "depth": 32,
        "batch": 128,
        "generator_batch": 1,
        "generator": {},
        "discriminator": {},
    },
}


@dataclass(frozen=True)
class Config:
    """Settings of a measurement; each is a flag of the same name."""

    setting: str = option(
        "small",
        "Networks: small (quickstart) or paper (CIFAR); audit: an audit beside bare predictions.",
        (*_SETTINGS, "audit"),
    )
    steps: int = option(10, "Steps per repeat; of an audit, draws per image.")
    repeats: int = option(5, "Repeats; the median counts.")
    output: str | None = option(None, "JSON file for the times; default: print only.")


def _median(run: Callable[[], None], config: Config) -> float:
    """Milliseconds per step; the first call compiles and is not counted."""
    run()
    seconds = []
    for _ in range(config.repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return 1e3 * statistics.median(seconds) / config.steps


def run(config: Config) -> dict[str, Any]:
    """Measures and prints; returns milliseconds per step and ratios.

    Raises:
        InputError: a number of steps or repeats below 1.
    """
    if config.steps < 1 or config.repeats < 1:
        raise InputError("--steps and --repeats: use 1 or more")
    if config.setting == "audit":
        return _finished(config, _audit(config), "predict")
    setting = _SETTINGS[config.setting]
    shape, batch = setting["shape"], setting["batch"]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch * config.steps, *shape)).astype("uint8")
    labels = rng.integers(0, 10, len(images))
    counts = np.array([1000, 600, 300, 200, 120, 80, 40, 20, 10, 5])
    networks = kg.models.generator_networks(shape, seed=0, **setting["generator"])
    mean = [0.5] * shape[-1]

    def munit(domains: int) -> Callable[[], None]:
        parts: list[Any] = []
        for suffix in ("_a", "_b")[:domains]:
            parts.append(
                kg.models.generator_networks(
                    shape, seed=0, prefix=f"generator{suffix}", **setting["generator"]
                )
            )
            parts.append(
                kg.models.discriminator(
                    shape, seed=0, prefix=f"discriminator{suffix}", **setting["discriminator"]
                )
            )
        model = kg.training.MUNIT(*parts)
        model.compile()
        x = images[: setting["generator_batch"] * config.steps]
        data = {"images": x, "source_images": x} if domains == 2 else x
        return lambda: model.fit(data, batch_size=setting["generator_batch"], verbose=0)

    def classifier(generator: Any, keep_threshold: int | None, sources: bool) -> Any:
        network = kg.models.resnet(shape, 10, setting["depth"], mean=mean, std=mean, seed=0)
        model = kg.training.GITClassifier(
            network, generator, class_counts=counts, keep_threshold=keep_threshold
        )
        model.compile(kg.optimizers.SGD(0.01, l2=2e-4), kg.losses.CrossEntropy())
        x = {"images": images, "source_images": images, "source_labels": labels}
        data = x if sources else images
        return lambda: model.fit(data, labels, batch_size=batch, verbose=0)

    def ekld() -> Callable[[], None]:
        network = kg.models.resnet(shape, 10, setting["depth"], mean=mean, std=mean, seed=0)
        few, transform = images[:250], kg.transforms.Rotation()
        return lambda: kg.metrics.expected_kl(
            network, few, labels[:250], transform, config.steps, batch_size=250
        )

    milliseconds = {
        "classifier step": _median(classifier(None, None, False), config),
        "git step, all generated images kept": _median(
            classifier(networks.generator, None, True), config
        ),
        "git step, kept by class size": _median(classifier(networks.generator, 60, True), config),
        "git step, generator bank": _median(classifier(None, 60, True), config),
        "generator step, one domain": _median(munit(1), config),
        "generator step, two domains": _median(munit(2), config),
        "expected_kl, 250 images and one draw": _median(ekld(), config),
    }
    return _finished(config, milliseconds, "classifier step", "generator step, one domain")


def _audit(config: Config) -> dict[str, float]:
    """Milliseconds per 1,000 images through a ResNet-32 for CIFAR, bare and audited.

    The bare time is that of `model.predict` on as many images in the same batches. Each
    transformation of the ladders is timed at its middle strength, its draws, the predictions for
    untransformed images and the sums included; "audit" is all of them at all strengths.
    """
    images_per_call, draws = 250, config.steps
    rng = np.random.default_rng(0)
    # strokes on black, so that no transformation is left out
    images = rng.integers(0, 256, (images_per_call, 32, 32, 3))
    images = np.where(images < 100, 0, images).astype("uint8")
    labels = rng.integers(0, 10, images_per_call)
    network = kg.models.resnet((32, 32, 3), 10, 32, mean=[0.5] * 3, std=[0.25] * 3, seed=0)
    many = np.concatenate([images] * draws).astype("float32")

    def per_thousand(run: Callable[[], Any]) -> float:
        evaluations = run()  # compiles
        seconds = []
        for _ in range(config.repeats):
            start = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - start)
        return 1e6 * statistics.median(seconds) / evaluations

    def predict() -> int:
        return len(network.predict(many, batch_size=images_per_call, verbose=0))

    def audit(transforms: Any) -> Callable[[], int]:
        def run() -> int:
            result = kg.audit(
                network,
                (images, labels),
                transforms,
                num_samples=draws,
                batch_size=images_per_call,
                num_examples=0,
            )
            return result.models[0].evaluations

        return run

    milliseconds = {"predict": per_thousand(predict)}
    for name, ladder in kg.transforms.LADDERS.items():
        rungs = ladder.rungs((32, 32, 3))
        transform = rungs[len(rungs) // 2].transform
        milliseconds[name] = per_thousand(audit({name: transform}))
    milliseconds["audit"] = per_thousand(audit(list(kg.transforms.LADDERS)))
    return milliseconds


def _finished(
    config: Config, milliseconds: dict[str, float], plain: str, generator: str | None = None
) -> dict[str, Any]:
    """Prints and writes times, and their ratios to the entry `plain` (or `generator`)."""
    ratios = {
        name: value / milliseconds[generator if generator and name[:9] == "generator" else plain]
        for name, value in milliseconds.items()
    }
    print(f"{config.setting}, backend {keras.config.backend()}, milliseconds (ratio)")
    for name, value in milliseconds.items():
        print(f"{name:>40}  {value:9.1f}  ({ratios[name]:.2f})")
    result = {
        "settings": dataclasses.asdict(config),
        "versions": versions(),
        "milliseconds": milliseconds,
        "ratios": ratios,
    }
    if config.output:
        write_atomically(Path(config.output), to_json(json.loads(to_json(result))))
    return result


if __name__ == "__main__":
    command_line.main(Config, run)
