"""Step times on this machine and backend, and what the shortcuts save, as ratios of one run.

    KERAS_BACKEND=jax python -m experiments.benchmark
    KERAS_BACKEND=jax python -m experiments.benchmark --setting=speed --output=benchmark.json

The second: images per second of the pipelines, and a step of a ResNet for CIFAR through `fit`, in
device mode, of several seeds at once, and beside a loop written by hand in PyTorch.
Medians over repeats of several steps each, compilation left out; no claim beyond this machine.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import json
import statistics
import subprocess
import sys
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

_PARTS = ("pipeline", "step", "device", "seeds", "torch")
_EPOCH_IMAGES, _EPOCHS, _SEEDS = 12_406, 200, 3  # of CIFAR-10-LT


@dataclass(frozen=True)
class Config:
    """Settings of a measurement; each is a flag of the same name."""

    setting: str = option(
        "small",
        "Networks: small (quickstart) or paper (CIFAR); audit: an audit beside bare predictions; "
        "speed: pipelines and training steps.",
        (*_SETTINGS, "audit", "speed"),
    )
    parts: tuple[str, ...] = option(
        ("pipeline", "step", "device", "torch"), "Of speed: " + ", ".join(_PARTS) + "."
    )
    depth: int = option(32, "Of speed: depth of the ResNet.")
    batch_size: int = option(128, "Of speed: images per step.")
    policy: str = option(
        "float32", "Of speed: dtype policy of Keras.", ("float32", "mixed_bfloat16")
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
    if config.setting == "speed":
        return _speed(config)
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


def _pipeline_speed(config: Config, stream: kg.data.Stream) -> dict[str, float]:
    """Images per second of each pipeline; an epoch of the first repeat is not counted."""
    images = stream.images_per_epoch
    found = {}
    for name in ("tf_data", "numpy"):
        if name == "tf_data" and importlib.util.find_spec("tensorflow") is None:
            continue
        data = kg.data.training_data(stream, epochs=config.repeats + 2, pipeline=name)
        steps = stream.steps_per_epoch
        batches = iter(data) if name == "tf_data" else (data[i] for i in itertools.count())
        seconds = []
        for _ in range(config.repeats + 1):
            start = time.perf_counter()
            for _ in range(steps):
                next(batches)
            seconds.append(time.perf_counter() - start)
        found[name] = images / statistics.median(seconds[1:])
    return found


def _speed(config: Config) -> dict[str, Any]:
    """Pipelines in images per second, steps in milliseconds, taken in turns.

    Raises:
        InputError: an unknown part.
    """
    unknown = set(config.parts) - set(_PARTS)
    if unknown:
        raise InputError(f"--parts: {sorted(unknown)[0]!r} is unknown; use {', '.join(_PARTS)}")
    rng = np.random.default_rng(0)

    def streams(number: int, images: int) -> list[kg.data.Stream]:
        pixels = rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8)
        dataset = kg.data.ImageDataset(pixels, np.arange(images) % 10, 10)
        return [
            kg.data.Stream(
                dataset,
                kg.data.sampler("instance_balanced", dataset.labels, seed),
                config.batch_size,
                kg.data.RandomCropFlip(),
                seed=seed,
                drop_remainder=True,
            )
            for seed in range(number)
        ]

    def classifier(seed: int) -> Any:
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(config.policy)
        try:
            network = kg.models.resnet(
                (32, 32, 3), 10, config.depth, mean=[0.5] * 3, std=[0.25] * 3, seed=seed
            )
        finally:
            keras.config.set_dtype_policy(before)
        model = kg.training.Classifier(network)
        model.compile(kg.optimizers.SGD(0.01, momentum=0.9, l2=2e-4), kg.losses.CrossEntropy())
        return model

    result: dict[str, Any] = {"settings": dataclasses.asdict(config), "versions": versions()}
    if "pipeline" in config.parts:
        (whole,) = streams(1, max(_EPOCH_IMAGES, config.batch_size))
        result["images_per_second"] = _pipeline_speed(config, whole)
    seeds = streams(_SEEDS, config.batch_size * config.steps)
    runs: dict[str, Callable[[], Any]] = {}
    if "step" in config.parts:
        fitted = classifier(0)
        runs["fit"] = lambda: fitted.fit(
            kg.data.training_data(seeds[0], epochs=1), steps_per_epoch=config.steps, verbose=0
        )
    if "device" in config.parts:
        here = classifier(0)
        runs["on device"] = lambda: kg.training.fit_on_device(here, seeds[0], epochs=1)
    if "seeds" in config.parts:
        models = [classifier(seed) for seed in range(_SEEDS)]
        runs[f"{_SEEDS} seeds on device"] = lambda: kg.training.fit_seeds_on_device(
            models, seeds, epochs=1
        )
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(config.repeats + 1):  # in turns, so that all see the same machine
        for name, training in runs.items():
            start = time.perf_counter()
            training()
            if repeat:  # the first compiles
                seconds[name].append(time.perf_counter() - start)
    if "torch" in config.parts and importlib.util.find_spec("torch") is not None:
        numbers = (config.depth, config.batch_size, config.steps, config.repeats)
        # In a process of its own: the threads of Keras's backend would be in the way.
        done = subprocess.run(
            [sys.executable, "-m", "experiments.torch_baseline", *map(str, numbers)],
            capture_output=True,
            text=True,
            check=True,
        )
        seconds["PyTorch by hand"] = json.loads(done.stdout.splitlines()[-1])
    milliseconds = {
        name: 1e3 * statistics.median(each) / config.steps for name, each in seconds.items()
    }
    result["milliseconds"] = milliseconds
    for plain in ("PyTorch by hand", "fit"):
        if plain in milliseconds:
            result[f"ratios_to_{plain.replace(' ', '_')}"] = {
                name: value / milliseconds[plain] for name, value in milliseconds.items()
            }
    steps = _EPOCHS * (_EPOCH_IMAGES // config.batch_size)
    result["minutes_of_200_epochs_of_cifar10_lt"] = {
        name: value * steps / 60_000 for name, value in milliseconds.items()
    }
    print(f"speed, backend {keras.config.backend()}, {config.policy}")
    for name in result:
        if name not in ("settings", "versions"):
            print(f"{name}:")
            for key, value in result[name].items():
                print(f"{key:>40}  {value:12.2f}")
    if config.output:
        write_atomically(Path(config.output), to_json(json.loads(to_json(result))))
    return result


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
