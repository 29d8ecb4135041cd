"""Speeds on this machine, and what the shortcuts save, as ratios of one run.

    python -m experiments.benchmark --all_backends --output=benchmark.json
    KERAS_BACKEND=jax python -m experiments.benchmark --parts=step,torch --steps=20

Images per second of the pipelines; a step of a ResNet for CIFAR through `fit`, in device mode, of
several seeds at once, and beside a loop written by hand in PyTorch; a step of the generator with
one domain and with the paper's two; GIT with images generated in the step and from a bank; eKLD.
Compilation is left out. What is compared takes turns, so that all see the same machine, and a
ratio is the median over the turns. No claim beyond this machine: other work on it changes even the
ratios, above all where threads outnumber free cores (`taskset -c 0 python -m ...` takes one core).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np

import keras_git as kg
from experiments import command_line
from experiments.classifier_training import dtype_policy
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

# Of the part that `speed` measures: the narrow generator of cifar10_lt_cpu.cfg, and the paper's.
_GENERATORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {
            "width": 16,
            "num_downsamplings": 1,
            "num_residual_blocks": 2,
            "mlp_width": 64,
            "outer_kernel": 5,
            "upsampling_kernel": 3,
            "style_downsamplings": 3,
        },
        {"width": 32, "num_layers": 3},
    ),
    "paper": ({}, {}),
}

_PARTS = ("pipeline", "step", "device", "seeds", "torch", "munit", "git", "ekld")
_BACKENDS = ("tensorflow", "jax", "torch")
_EPOCH_IMAGES, _EPOCHS, _SEEDS = 12_406, 200, 3  # of CIFAR-10-LT
_SHAPE, _MEAN, _STD = (32, 32, 3), [0.5] * 3, [0.25] * 3
_BY_HAND, _SEEDS_NAME = "PyTorch by hand", f"{_SEEDS} seeds on device"


@dataclass(frozen=True)
class Config:
    """Settings of a measurement; each is a flag of the same name."""

    setting: str = option(
        "speed",
        "speed: the parts of --parts. Step times of networks of other sizes: small (quickstart) or "
        "paper (CIFAR). audit: an audit beside bare predictions.",
        ("speed", *_SETTINGS, "audit"),
    )
    parts: tuple[str, ...] = option(_PARTS, "Of speed: what to measure.")
    depth: int = option(32, "Of speed, parts step and torch: depth of the ResNet.")
    batch_size: int = option(128, "Of speed: images per step of a classifier.")
    device_depth: int | None = option(
        None,
        "Of speed, parts device and seeds: depth of the ResNet; default: 8 on a CPU, which this "
        "mode is not made for, else --depth.",
    )
    device_batch_size: int | None = option(
        None, "The same of images per step; default: 16 on a CPU, else --batch_size."
    )
    git_depth: int = option(20, "Of speed, parts git and ekld: depth of the ResNet.")
    generator: str = option(
        "small",
        "Of speed, parts munit and git: small (cifar10_lt_cpu.cfg) or paper (CIFAR).",
        tuple(_GENERATORS),
    )
    generator_batch_size: int = option(8, "Of speed, part munit: images per step of each domain.")
    bank_images: int = option(128, "Of speed, part git: images that a bank is built of.")
    policy: str = option(
        "float32", "Of speed: dtype policy of classifiers.", ("float32", "mixed_bfloat16")
    )
    steps: int | None = option(
        None, "Steps per repeat, default 4, else 10; of audit, draws per image, default 10."
    )
    repeats: int = option(5, "Repeats; the median counts.")
    all_backends: bool = option(
        False, "Of speed: one process for each installed backend, one after the other."
    )
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
    """Measures and prints; returns what it writes to `output`: see `_speed` and `_all_backends`.

    Raises:
        InputError: a number below 1, an unknown part, or `all_backends` of another setting.
    """
    default = 4 if config.setting == "speed" else 10
    config = dataclasses.replace(config, steps=default if config.steps is None else config.steps)
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if type(value) is int and value < 1:
            raise InputError(f"--{field.name}={value}: use 1 or more")
    unknown = set(config.parts) - set(_PARTS)
    if unknown:
        raise InputError(f"--parts: {sorted(unknown)[0]!r} is unknown; use {', '.join(_PARTS)}")
    if config.all_backends:
        if config.setting != "speed":
            raise InputError("--all_backends is for --setting=speed: set KERAS_BACKEND instead")
        return _all_backends(config)
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


def _dataset(images: int) -> kg.data.ImageDataset:
    pixels = np.random.default_rng(0).integers(0, 256, (images, *_SHAPE), dtype=np.uint8)
    return kg.data.ImageDataset(pixels, np.arange(images) % 10, 10)


def _stream(
    dataset: kg.data.ImageDataset,
    batch_size: int,
    seed: int = 0,
    sampler: kg.data.Sampler | None = None,
    augmentation: kg.data.RandomCropFlip | None = kg.data.RandomCropFlip(),  # noqa: B008
) -> kg.data.Stream:
    sampler = sampler or kg.data.sampler("instance_balanced", dataset.labels, seed)
    return kg.data.Stream(
        dataset, sampler, batch_size, augmentation, seed=seed, drop_remainder=True
    )


def _classifier(config: Config, depth: int, seed: int = 0, generator: Any = False) -> Any:
    """A compiled `Classifier`, or with a generator (None: a bank) a `GITClassifier`."""
    with dtype_policy(config.policy):
        network = kg.models.resnet(_SHAPE, 10, depth, mean=_MEAN, std=_STD, seed=seed)
    if generator is False:
        model: Any = kg.training.Classifier(network)
    else:
        model = kg.training.GITClassifier(network, generator)
    model.compile(kg.optimizers.SGD(0.01, momentum=0.9, l2=2e-4), kg.losses.CrossEntropy())
    return model


class _FromSecondStep(keras.callbacks.Callback):
    """Seconds of an epoch from the end of its first step on."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 0:
            float(logs["loss"])  # the step is over when its loss is there
            self.start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        float(logs["loss"])
        self.seconds = time.perf_counter() - self.start


def _fit(
    model: Any, stream: kg.data.Stream, sources: kg.data.Stream | None = None
) -> Callable[[], float]:
    """Trains an epoch with `fit`; returns the seconds of all steps but the first.

    With the first step go some tenths of a second in which tf.data starts, once in a whole run.
    """
    data = kg.data.training_data(stream, sources=sources, epochs=1)

    def run() -> float:
        timer = _FromSecondStep()
        model.fit(data, steps_per_epoch=stream.steps_per_epoch, verbose=0, callbacks=[timer])
        return timer.seconds

    return run


def _turns(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run in each repeat; they take turns, and the first repeat only compiles.

    A run that returns seconds of its own is taken by its word.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            own = run()
            if repeat:
                passed = time.perf_counter() - start
                seconds[name].append(own if isinstance(own, float) else passed)
    return seconds


def _summary(seconds: dict[str, list[float]], units: float, *plain: str) -> dict[str, Any]:
    """Milliseconds per unit, and to the entries `plain` the medians of the ratios of a turn."""
    ratios = {
        base: {
            name: statistics.median(a / b for a, b in zip(each, seconds[base], strict=True))
            for name, each in seconds.items()
            if name != base
        }
        for base in plain
        if base in seconds
    }
    milliseconds = {name: 1e3 * statistics.median(each) / units for name, each in seconds.items()}
    return {"milliseconds": milliseconds, "ratios_to": ratios}


@contextlib.contextmanager
def _by_hand(config: Config, depth: int, batch: int) -> Iterator[Callable[[], float]]:
    """The loop in PyTorch, one repeat for each call; waits meanwhile.

    In a process of its own, because the threads of Keras's backend would be in the way.
    """
    numbers = [str(number) for number in (depth, batch, config.steps)]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.torch_baseline", *numbers, config.policy],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        to, back = process.stdin, process.stdout

        def repeat() -> float:
            to.write("repeat\n")
            to.flush()
            answer = back.readline()
            if not answer:
                raise RuntimeError("the loop in PyTorch has ended; its message is above")
            return float(answer)

        try:
            yield repeat
        finally:
            to.close()  # ends it


def _steps(config: Config, steps: int) -> dict[str, Any]:
    """Training steps of classifiers; those in device mode apart if they are of another size."""
    on_cpu = "cpu" in str(getattr(keras.ops.zeros(()), "device", "cpu")).lower()
    size = config.depth, config.batch_size
    device_size = (
        config.device_depth or (8 if on_cpu else config.depth),
        config.device_batch_size or (16 if on_cpu else config.batch_size),
    )
    parts = set(config.parts)
    on_device = parts & {"device", "seeds"}
    groups: dict[str, tuple[tuple[int, int], set[str]]] = {}
    if "step" in parts:
        groups["step"] = size, on_device if size == device_size else set()
    if on_device and not ("step" in parts and size == device_size):
        groups["device"] = device_size, on_device
    found: dict[str, Any] = {}
    for group, ((depth, batch), modes) in groups.items():
        dataset = _dataset(batch * steps)
        streams = [_stream(dataset, batch, seed) for seed in range(_SEEDS)]
        fitted = _classifier(config, depth)
        runs: dict[str, Callable[[], Any]] = {}
        with contextlib.ExitStack() as stack:
            if "torch" in parts and importlib.util.find_spec("torch") is not None:
                runs[_BY_HAND] = stack.enter_context(_by_hand(config, depth, batch))
            runs["fit"] = _fit(fitted, _stream(_dataset(batch * (steps + 1)), batch))
            if "device" in modes:
                here = _classifier(config, depth)
                runs["on device"] = lambda m=here, s=streams[0]: kg.training.fit_on_device(
                    m, s, epochs=1
                )
            if "seeds" in modes:
                models = [_classifier(config, depth, seed) for seed in range(_SEEDS)]
                runs[_SEEDS_NAME] = lambda m=models, s=streams: kg.training.fit_seeds_on_device(
                    m, s, epochs=1
                )
            summary = _summary(_turns(runs, config.repeats), steps, _BY_HAND, "fit")
        epochs = _EPOCHS * (_EPOCH_IMAGES // batch) / 60_000
        found[group] = {
            "depth": depth,
            "batch_size": batch,
            **summary,
            "minutes_of_200_epochs_of_cifar10_lt": {
                name: value * epochs for name, value in summary["milliseconds"].items()
            },
        }
    return found


def _munit(config: Config, steps: int) -> dict[str, Any]:
    """A step with one domain and with two, at the same number of images of each domain.

    The generator that is used afterwards learns from `generator_batch_size` generated images per
    step in both; the second generator of the paper's training is thrown away. So the times per
    generated image are those of a step, divided by that number.
    """
    generator, discriminator = _GENERATORS[config.generator]
    batch = config.generator_batch_size
    images = _dataset(max(batch * steps, 10)).images[: batch * steps]

    def training(domains: int) -> Callable[[], Any]:
        parts: list[Any] = []
        for suffix in ("_a", "_b")[:domains]:
            parts += [
                kg.models.generator_networks(
                    _SHAPE, seed=0, prefix=f"generator{suffix}", **generator
                ),
                kg.models.discriminator(
                    _SHAPE, seed=0, prefix=f"discriminator{suffix}", **discriminator
                ),
            ]
        model = kg.training.MUNIT(*parts)
        model.compile()
        data = images if domains == 1 else {"images": images, "source_images": images}
        return lambda: model.fit(data, batch_size=batch, verbose=0)

    seconds = _turns({"one domain": training(1), "two domains": training(2)}, config.repeats)
    return {"batch_size": batch, **_summary(seconds, steps * batch, "one domain")}


def _git(config: Config, steps: int) -> dict[str, Any]:
    """GIT beside a plain training: milliseconds per step, and what a bank costs once.

    Half of each batch is generated, and all generated images are kept.
    """
    networks = kg.models.generator_networks(_SHAPE, seed=0, **_GENERATORS[config.generator][0])
    dataset = _dataset(config.batch_size * (steps + 1))
    small = _dataset(config.bank_images)
    half, flip = max(config.batch_size // 2, 1), kg.data.RandomCropFlip(crop=False)

    build = functools.partial(kg.training.generator_bank, networks.generator)
    building = _turns({"bank": lambda: build(small, 1)}, config.repeats)["bank"]
    per_image = statistics.median(building) / len(small)
    bank = build(dataset, 1)
    order = kg.data.sampler("instance_balanced", dataset.labels, 1)
    stream = _stream(dataset, config.batch_size)
    kinds: dict[str, tuple[Any, kg.data.Stream | None]] = {
        "plain": (_classifier(config, config.git_depth), None),
        "generated in the step": (
            _classifier(config, config.git_depth, 0, networks.generator),
            _stream(dataset, half, 1, order, flip),
        ),
        "generator bank": (
            _classifier(config, config.git_depth, 0, None),
            _stream(bank.dataset, half, 1, bank.sampler(order, 1), flip),
        ),
    }
    runs = {name: _fit(model, stream, sources) for name, (model, sources) in kinds.items()}
    summary = _summary(_turns(runs, config.repeats), steps, "plain")
    epoch = -(-_EPOCH_IMAGES // config.batch_size)
    return {
        "depth": config.git_depth,
        "batch_size": config.batch_size,
        **summary,
        "steps_per_epoch_of_cifar10_lt": epoch,
        "seconds_per_epoch_of_cifar10_lt": {
            name: value * epoch / 1e3 for name, value in summary["milliseconds"].items()
        },
        "bank_milliseconds_per_generated_image": 1e3 * per_image,
        "bank_seconds_of_one_variant_of_cifar10_lt": per_image * _EPOCH_IMAGES,
    }


def _ekld(config: Config) -> dict[str, Any]:
    """Milliseconds per 1,000 evaluations: `expected_kl` beside `predict` of as many images.

    100 images, 10 draws of a rotation; predictions for the untransformed images are included.
    """
    images, draws = _dataset(100), 10
    with dtype_policy(config.policy):
        network = kg.models.resnet(_SHAPE, 10, config.git_depth, mean=_MEAN, std=_STD, seed=0)
    many = np.concatenate([images.images] * draws)
    rotation = kg.transforms.Rotation()
    runs: dict[str, Callable[[], Any]] = {
        "predict": lambda: network.predict(many, batch_size=100, verbose=0),
        "expected_kl": lambda: kg.metrics.expected_kl(
            network, images.images, images.labels, rotation, draws, batch_size=100
        ),
    }
    return {
        "depth": config.git_depth,
        **_summary(_turns(runs, config.repeats), len(many) / 1000, "predict"),
    }


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _speed(config: Config) -> dict[str, Any]:
    """What `--setting=speed` measures on this backend.

    Returns:
        `settings`, `versions`, `cores` that the process may use, and `load` of the machine (the
        average of a minute before and after; above `cores`, others were at work). Of the parts:
        `pipeline` {"images_per_second": {pipeline: number}}; `step` and `device`, `munit`, `git`
        and `ekld` with `milliseconds` {name: per step, per generated image (munit) or per 1,000
        evaluations (ekld)} and `ratios_to` {plain: {name: ratio}}.
    """
    # For two programs on one GPU, before either takes all of its memory
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    steps = config.steps or 1
    load = [os.getloadavg()[0]]
    result: dict[str, Any] = {
        "settings": dataclasses.asdict(config),
        "versions": versions(),
        "cores": _cores(),
        "load": load,
    }
    if "pipeline" in config.parts:
        dataset = _dataset(max(_EPOCH_IMAGES, config.batch_size))
        speed = _pipeline_speed(config, _stream(dataset, config.batch_size))
        result["pipeline"] = {"batch_size": config.batch_size, "images_per_second": speed}
    result |= _steps(config, steps)
    if "munit" in config.parts:
        result["munit"] = _munit(config, steps)
    if "git" in config.parts:
        result["git"] = _git(config, steps)
    if "ekld" in config.parts:
        result["ekld"] = _ekld(config)
    load.append(os.getloadavg()[0])
    print(
        f"speed, backend {keras.config.backend()}, {config.policy}, {result['cores']} core(s), "
        f"load {load[0]:.1f} to {load[1]:.1f}"
    )
    for part in ("pipeline", "step", "device", "munit", "git", "ekld"):
        _print(part, result.get(part, {}))
    _written(config, result)
    return result


def _print(name: str, value: Any, level: int = 0) -> None:
    if isinstance(value, dict):
        if value:
            print(f"{'  ' * level}{name}:")
        for key, inner in value.items():
            _print(key, inner, level + 1)
    else:
        print(f"{'  ' * level + name:<48}  {value:12.3f}")


def _all_backends(config: Config) -> dict[str, Any]:
    """`_speed` in a process for each installed backend.

    Returns:
        `backends` {backend: what `_speed` returns}, and `best`, the fastest step of one model at
        `depth` and `batch_size`: {"backend", "mode", "milliseconds", "ratio_to_PyTorch_by_hand"}.
    """
    result: dict[str, Any] = {"backends": {}, "best": {}}
    flags = shlex.split(" ".join(command_line.flags_of(config, ["all_backends", "output"])))
    for backend in _BACKENDS:
        if importlib.util.find_spec(backend) is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "speed.json"
            done = subprocess.run(
                [sys.executable, "-m", "experiments.benchmark", *flags, f"--output={path}"],
                env={**os.environ, "KERAS_BACKEND": backend},
            )
            if done.returncode:
                raise InputError(f"the measurement on {backend} failed; its message is above")
            result["backends"][backend] = json.loads(path.read_text())
        result["best"] = _best(result["backends"])
        _written(config, result)  # after each, so that none is lost
    _print("best", {k: v for k, v in result["best"].items() if not isinstance(v, str)})
    if result["best"]:
        print(f"  {result['best']['mode']} on {result['best']['backend']}")
    return result


def _best(backends: dict[str, Any]) -> dict[str, Any]:
    """The backend and mode with the smallest ratio to the loop by hand, or else milliseconds."""
    found = []
    for backend, of_backend in backends.items():
        step = of_backend.get("step", {"milliseconds": {}, "ratios_to": {}})
        ratios = step["ratios_to"].get(_BY_HAND, {})
        for mode, milliseconds in step["milliseconds"].items():
            if mode in ("fit", "on device"):
                ratio = ratios.get(mode)
                found.append((milliseconds if ratio is None else ratio, backend, mode, ratio))
    if not found:
        return {}
    _, backend, mode, ratio = min(found)
    return {
        "backend": backend,
        "mode": mode,
        "milliseconds": backends[backend]["step"]["milliseconds"][mode],
        "ratio_to_PyTorch_by_hand": ratio,
    }


def _written(config: Config, result: dict[str, Any]) -> None:
    if config.output:
        write_atomically(Path(config.output), to_json(json.loads(to_json(result))))


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
    _written(config, result)
    return result


if __name__ == "__main__":
    command_line.main(Config, run)
