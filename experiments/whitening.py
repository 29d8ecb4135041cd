"""Whitened layers against batch normalization: learning rates, batch sizes, seconds, invariance.

    python -m experiments.whitening --flagfile=experiments/flagfiles/whitening_cpu.cfg
    python -m experiments.whitening --benchmark --output_dir=OUT

Trains every network at every learning rate and batch size, on the balanced and on the long-tailed
data, and records loss, accuracy and seconds of each epoch and the eKLD of each class at the end. A
finished training is never run again; the same command continues. `--benchmark` measures step times
instead, as ratios of one run.

Reference: Ye et al., *Exploiting Invariance in Training Deep Neural Networks*, 2021.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

import keras_git as kg
from experiments import command_line
from experiments.classifier_training import AUGMENTATIONS, Logits
from experiments.command_line import option
from experiments.measurement import first_per_class, make_transforms
from experiments.progress import Progress, ShowProgress
from experiments.results_folder import FORMAT_VERSION, ResultsFolder, to_json
from experiments.settings import TRANSFORMS
from experiments.summary import text_table
from keras_git.errors import InputError
from keras_git.files import write_atomically
from keras_git.layers import FEATURE_NORMALIZATIONS
from keras_git.versions import versions

BATCH_NORM, WHITENED = "batch_norm", "whitened"
NETWORKS = (BATCH_NORM, WHITENED, *(f"{WHITENED}+{name}" for name in FEATURE_NORMALIZATIONS))
_RUN_COLUMNS = (
    "imbalance_ratio", "network", "batch_size", "learning_rate", "seed", "diverged", "loss",
    "accuracy", "epochs_to_target", "seconds_to_target", "seconds_per_epoch",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Settings of the comparison; each is a flag of the same name."""

    dataset: str = option("cifar10", "glyphs, an .npz file or a dataset of tensorflow_datasets.")
    data_dir: str | None = option(None, "Folder of tensorflow_datasets, or of the .npz file.")
    imbalance_ratios: tuple[float, ...] = option(
        (1.0, 100.0), "Size of the largest class over the smallest; 1: balanced."
    )
    largest_class: int | None = option(None, "Images of the largest class; default: all.")
    test_images: int | None = option(None, "Test images per class; default: all.")
    data_seed: int = option(0, "Seed of the draws of the eKLD.")
    pipeline: str = option("auto", "How batches are made.", ("auto", "tf_data", "numpy"))

    networks: tuple[str, ...] = option(
        (BATCH_NORM, WHITENED), "What is compared: " + ", ".join(NETWORKS) + "."
    )
    architecture: str = option("wide_resnet", "Networks.", ("resnet", "wide_resnet"))
    depth: int = option(18, "Depth: of wide_resnet 18, 34, 50; of resnet 8, 14, 20, 32, ...")
    width: int | None = option(None, "Channels of the first stage; default: 64, of resnet 16.")
    block_size: int | None = option(None, "Of the whitened layers; default: theirs.")
    iterations: int | None = option(None, "Newton-Schulz steps; default: the layers'.")
    sampling_stride: int | None = option(None, "Positions sampled; default: the layers'.")
    update_interval: int | None = option(None, "Steps between updates; default: the layers'.")
    differentiate_statistics: bool = option(True, "Gradients through the statistics.")

    learning_rates: tuple[float, ...] = option((0.01, 0.03, 0.1, 0.3, 1.0), "Learning rates.")
    batch_sizes: tuple[int, ...] = option((128,), "Images per step.")
    seeds: tuple[int, ...] = option((0,), "Seeds of initialization and batches.")
    epochs: int = option(20, "Epochs.")
    schedule: str = option("cosine", "Learning rate over the epochs.", ("cosine", "constant"))
    momentum: float = option(0.9, "Momentum of SGD.")
    l2: float = option(1e-3, "Coupled L2 decay of kernels and biases.")
    augmentation: str = option("crop_flip", "Augmentation.", tuple(AUGMENTATIONS))

    target_accuracy: float = option(0.5, "Test accuracy (0..1) to which time is measured.")
    evaluation_batch_size: int = option(250, "Images per step of evaluation.")
    invariance_transforms: tuple[str, ...] = option(
        ("rotation", "brightness", "contrast"), "Transformations of the eKLD."
    )
    invariance_images: int = option(40, "Images per class on which eKLD is measured.")
    invariance_samples: int = option(10, "Draws of a transformation per image.")

    benchmark: bool = option(False, "Step times only, of all networks, as ratios to the first.")
    benchmark_repeats: int = option(5, "Steps of each network; the median counts.")
    output_dir: str = option("results/whitening", "Folder of the results; one per configuration.")
    quick: bool = option(False, "Smoke test: every stage, tiny sizes, meaningless results.")


def checked(config: Config) -> Config:
    """Checks what can be checked without data.

    Raises:
        InputError: a value that cannot work.
    """
    for name in ("epochs", "evaluation_batch_size", "invariance_images", "invariance_samples",
                 "largest_class", "test_images", "benchmark_repeats"):  # fmt: skip
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}={value}: use 1 or more")
    for name, least in (("learning_rates", 0.0), ("batch_sizes", 1), ("imbalance_ratios", 1.0)):
        values = getattr(config, name)
        if not values or len(set(values)) < len(values) or min(values) < least:
            raise InputError(f"--{name}={values}: give different numbers of {least:g} or more")
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"--seeds={config.seeds}: use different numbers, 0 or more")
    for name in config.networks:
        if name not in NETWORKS:
            raise InputError(f"--networks: {name!r} is unknown; use {', '.join(NETWORKS)}")
    if not config.networks or len(set(config.networks)) < len(config.networks):
        raise InputError("--networks: name at least one, and each once")
    for name in config.invariance_transforms:
        if name not in TRANSFORMS or name == "generator":
            known = ", ".join(n for n in TRANSFORMS if n != "generator")
            raise InputError(f"--invariance_transforms: {name!r} is unknown; use {known}")
    if not 0 < config.target_accuracy <= 1:
        raise InputError(f"--target_accuracy={config.target_accuracy}: use above 0 to 1")
    kg.data.choose_pipeline(config.pipeline)
    if config.quick:
        config = dataclasses.replace(
            config,
            largest_class=min(config.largest_class or 24, 24),
            imbalance_ratios=tuple(min(ratio, 6.0) for ratio in config.imbalance_ratios),
            test_images=min(config.test_images or 10, 10),
            learning_rates=config.learning_rates[:2],
            batch_sizes=tuple(min(size, 32) for size in config.batch_sizes[:1]),
            seeds=config.seeds[:1],
            architecture="resnet",
            depth=8,
            width=8,
            epochs=2,
            invariance_images=4,
            invariance_samples=2,
            benchmark_repeats=1,
        )
        if len(set(config.imbalance_ratios)) < len(config.imbalance_ratios):
            config = dataclasses.replace(config, imbalance_ratios=config.imbalance_ratios[:1])
    return config


def make_network(
    config: Config,
    name: str,
    image_shape: tuple[int, ...],
    num_classes: int,
    statistics_of_data: tuple[Any, Any],
    seed: int,
) -> keras.Model:
    """One of `NETWORKS`, with the settings' architecture."""
    whitening, _, normalization = name.partition("+")
    names = ("block_size", "iterations", "sampling_stride", "update_interval")
    options = {n: getattr(config, n) for n in names if getattr(config, n) is not None}
    options["differentiate_statistics"] = config.differentiate_statistics
    mean, std = statistics_of_data
    arguments: dict[str, Any] = {"mean": mean, "std": std, "seed": seed}
    if config.width is not None:
        arguments["width"] = config.width
    make = kg.models.resnet if config.architecture == "resnet" else kg.models.wide_resnet
    return make(
        image_shape,
        num_classes,
        config.depth,
        whitening=options if whitening == WHITENED else False,
        feature_normalization=normalization or None,
        **arguments,
    )


def run(config: Config) -> dict[str, Any]:
    """Trains what is missing, writes tables and pictures, and returns `results.json`.

    Raises:
        InputError: bad settings, data or output folder.
    """
    config = checked(config)
    if config.benchmark:
        return benchmark(config)
    settings = dataclasses.asdict(config)
    for name in ("output_dir", "data_dir", "benchmark", "benchmark_repeats"):
        del settings[name]
    with ResultsFolder(config.output_dir, settings) as folder:
        full = kg.data.load(config.dataset, data_dir=config.data_dir, cache_dir=folder.checkpoints)
        test = full.test
        if config.test_images is not None:
            test = test.take(first_per_class(test.labels, config.test_images))
        results = folder.read_results() or {
            "format_version": FORMAT_VERSION,
            "dataset": full.train.name,
            "class_names": full.train.class_names,
            "class_counts": {},
            "runs": {},
        }
        for ratio in config.imbalance_ratios:
            train = subset(config, full.train, ratio)
            results["class_counts"][f"{ratio:g}"] = train.class_counts
            _train_all(config, ratio, train, test, folder, results)
        _finish(config, folder, results)
        return folder.read_results()


def subset(config: Config, train: kg.data.ImageDataset, ratio: float) -> kg.data.ImageDataset:
    largest = config.largest_class or int(train.class_counts.min())
    sizes = kg.data.class_sizes(
        "exponential" if ratio > 1 else "balanced",
        train.num_classes,
        largest,
        imbalance_ratio=ratio if ratio > 1 else None,
    )
    return kg.data.long_tail(train, sizes)


def _key(ratio: float, network: str, batch_size: int, learning_rate: float, seed: int) -> str:
    return f"ratio {ratio:g}, {network}, batch {batch_size}, rate {learning_rate:g}, seed {seed}"


def _train_all(
    config: Config,
    ratio: float,
    train: kg.data.ImageDataset,
    test: kg.data.ImageDataset,
    folder: ResultsFolder,
    results: dict[str, Any],
) -> None:
    for name, batch_size in itertools.product(config.networks, config.batch_sizes):
        plan = {
            _key(ratio, name, batch_size, rate, seed): (rate, seed)
            for seed in config.seeds
            for rate in config.learning_rates
        }
        missing = {key: value for key, value in plan.items() if key not in results["runs"]}
        if not missing:
            continue
        training = Training(config, name, batch_size, train, test)
        if not results["runs"]:
            # Only now: settings that cannot work must not tie the folder to themselves.
            folder.write_config(
                content_hash={f"{ratio:g}": train.content_hash()},
                test_content_hash=test.content_hash(),
            )
        for key, (rate, seed) in missing.items():
            found = training.run(rate, seed, key)
            results["runs"][key] = {
                "imbalance_ratio": ratio,
                "network": name,
                "batch_size": batch_size,
                "learning_rate": rate,
                "seed": seed,
                **found,
            }
            folder.write_results(results)
        del training
        keras.utils.clear_session()


class Training:
    """One network at one batch size, compiled once for all learning rates and seeds."""

    def __init__(
        self,
        config: Config,
        name: str,
        batch_size: int,
        train: kg.data.ImageDataset,
        test: kg.data.ImageDataset,
    ) -> None:
        self._config, self._name, self._train, self._test = config, name, train, test
        self._statistics = kg.data.channel_statistics(train.images)
        # The last, smaller batch would be another compilation and have other statistics.
        self._batch_size = min(batch_size, len(train))
        self._model = kg.training.Classifier(self._network(0))
        self._model.compile(self._optimizer(), kg.losses.CrossEntropy())
        self._model.optimizer.build(self._model.trainable_variables)
        self._logits = Logits(self._model.network, config.evaluation_batch_size)
        self._transforms = make_transforms(config.invariance_transforms, None)
        self._compiled = False

    def _optimizer(self) -> Any:
        return kg.optimizers.SGD(1.0, momentum=self._config.momentum, l2=self._config.l2)

    def _network(self, seed: int) -> keras.Model:
        train = self._train
        return make_network(
            self._config, self._name, train.image_shape, train.num_classes, self._statistics, seed
        )

    def _stream(self, seed: int) -> kg.data.Stream:
        return kg.data.Stream(
            self._train,
            kg.data.InstanceBalanced(self._train.labels, seed=seed),
            self._batch_size,
            augmentation=AUGMENTATIONS[self._config.augmentation],
            seed=seed,
            drop_remainder=True,
        )

    def _reset(self, seed: int) -> None:
        fresh = self._network(seed)
        pairs = zip(self._model.network.variables, fresh.variables, strict=True)
        for variable, value in pairs:
            variable.assign(keras.ops.convert_to_numpy(value))
        for variable in self._model.optimizer.variables:
            if variable is not self._model.optimizer._learning_rate:
                variable.assign(np.zeros(variable.shape, variable.dtype))

    def _fit(self, seed: int, epochs: int, steps: int, callbacks: list[Any]) -> None:
        data = kg.data.training_data(self._stream(seed), pipeline=self._config.pipeline)
        self._model.fit(
            data,
            steps_per_epoch=steps,
            epochs=epochs,
            verbose=0,
            shuffle=False,
            callbacks=callbacks,
        )

    def run(self, learning_rate: float, seed: int, label: str) -> dict[str, Any]:
        """Trains and measures; `label` is for people."""
        config, steps = self._config, self._stream(seed).steps_per_epoch
        if not self._compiled:
            self._fit(seed, 1, 1, [])  # compilation is no part of the seconds
            self._compiled = True
        self._reset(seed)
        history = _History(self._accuracy)
        schedule = keras.callbacks.LearningRateScheduler(
            lambda epoch: learning_rate * _factor(config, epoch)
        )
        with Progress(label, config.epochs * steps) as progress:
            callbacks = [schedule, ShowProgress(progress), history]
            self._fit(seed, config.epochs, steps, callbacks)
        rows = history.rows
        reached = [r for r in rows if (r["accuracy"] or 0.0) >= config.target_accuracy]
        epochs = reached[0]["epoch"] + 1 if reached else None
        entry: dict[str, Any] = {
            "history": rows,
            "steps_per_epoch": steps,
            "diverged": history.diverged,
            "parameters": int(sum(np.prod(v.shape) for v in self._model.trainable_variables)),
            "epochs_to_target": epochs,
            "seconds_to_target": epochs and sum(r["seconds"] for r in rows[:epochs]),
        }
        if history.diverged:
            logging.info("%s: the loss is not finite any more", label)
            return entry
        return {**entry, **self._measured()}

    def _accuracy(self) -> float | None:
        logits = self._logits(self._test.images)
        if not np.isfinite(logits).all():
            return None
        return float(np.mean(logits.argmax(-1) == self._test.labels))

    def _measured(self) -> dict[str, Any]:
        """Accuracies, and eKLD and consistency per class."""
        config, test = self._config, self._test
        logits = self._logits(test.images)
        if not np.isfinite(logits).all():
            return {"diverged": True}
        chosen = first_per_class(test.labels, config.invariance_images)
        invariance = {
            name: kg.metrics.expected_kl(
                self._model.network,
                test.images[chosen],
                test.labels[chosen],
                transform,
                config.invariance_samples,
                num_classes=test.num_classes,
                batch_size=config.evaluation_batch_size,
                seed=config.data_seed,
            ).to_dict()
            for name, transform in self._transforms.items()
        }
        counts = self._train.class_counts
        report = kg.metrics.classification_report(test.labels, logits, counts)
        return {**report, "invariance": invariance}


def _factor(config: Config, epoch: int) -> float:
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * epoch / config.epochs))


class _History(keras.callbacks.Callback):
    """Loss, seconds and test accuracy of each epoch; stops where the loss is not finite."""

    def __init__(self, accuracy: Callable[[], float | None]) -> None:
        super().__init__()
        self._accuracy = accuracy
        self.rows: list[dict[str, Any]] = []
        self.diverged = False

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        loss = float((logs or {})["loss"])
        # reading the weights waits for the last step
        self.model.optimizer  # noqa: B018  `self.model` brings JAX's state back
        keras.ops.convert_to_numpy(self.model.network.weights[0])
        seconds = time.perf_counter() - self._start
        self.diverged = not math.isfinite(loss)
        self.rows.append(
            {
                "epoch": epoch,
                "loss": loss,
                "seconds": seconds,
                "accuracy": None if self.diverged else self._accuracy(),
            }
        )
        if self.diverged:
            self.model.stop_training = True


def _finish(config: Config, folder: ResultsFolder, results: dict[str, Any]) -> None:
    folder.write_results(results)
    results = folder.read_results()
    runs = results["runs"].values()
    rows = [
        {
            **run,
            "loss": run["history"][-1]["loss"],
            "accuracy": run.get("balanced_accuracy"),
            "seconds_per_epoch": statistics.median(r["seconds"] for r in run["history"]),
        }
        for run in runs
    ]
    folder.write_table(
        "runs.csv", _RUN_COLUMNS, [{n: row[n] for n in _RUN_COLUMNS} for row in rows]
    )
    kg.plots.loss_curves(results, folder.pictures / "loss_curves.png")
    kg.plots.accuracy_by_learning_rate(results, folder.pictures / "accuracy.png")
    for ratio in config.imbalance_ratios:
        compared = best_runs(results, ratio)
        if ratio > 1 and config.invariance_transforms and compared["methods"]:
            name = f"ekld_against_class_size_{ratio:g}.png"
            kg.plots.ekld_against_class_size(compared, folder.pictures / name)
    folder.clean_up()
    print(table(results), flush=True)
    print(f"\nresults and pictures: {folder.path}", flush=True)


def best_runs(results: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """The runs with the lowest training loss of each network, as methods of an experiment.

    The learning rate and batch size are those of the lowest mean final loss over the seeds; the
    test images take no part in the choice.
    """
    groups: dict[str, dict[tuple[int, float], list[Any]]] = {}
    for run_ in results["runs"].values():
        if run_["imbalance_ratio"] == ratio and not run_["diverged"]:
            setting = run_["batch_size"], run_["learning_rate"]
            groups.setdefault(run_["network"], {}).setdefault(setting, []).append(run_)
    methods = {}
    for name, settings in groups.items():
        number = max(len(found) for found in settings.values())
        whole = {s: found for s, found in settings.items() if len(found) == number}
        setting = min(
            whole, key=lambda s: statistics.fmean(r["history"][-1]["loss"] for r in whole[s])
        )
        methods[name] = {
            "batch_size": setting[0],
            "learning_rate": setting[1],
            "seeds": {str(r["seed"]): r for r in whole[setting]},
        }
    return {
        "dataset": results["dataset"],
        "class_names": results["class_names"],
        "class_counts": results["class_counts"][f"{ratio:g}"],
        "methods": methods,
    }


def table(results: Mapping[str, Any]) -> str:
    """What a run prints: accuracy by learning rate, time to the target, eKLD by thirds."""
    runs = list(results["runs"].values())
    rates = sorted({run_["learning_rate"] for run_ in runs})
    parts = []
    for ratio in sorted({run_["imbalance_ratio"] for run_ in runs}):
        for what, cell in (
            ("balanced accuracy, %", _accuracy_cell),
            ("final training loss", _loss_cell),
            ("epochs (seconds) to the target", _target_cell),
        ):
            rows = [[f"ratio {ratio:g}: {what}", "batch", *(f"rate {rate:g}" for rate in rates)]]
            for name, size in sorted({(r["network"], r["batch_size"]) for r in runs}):
                found = [
                    [r for r in runs if r["imbalance_ratio"] == ratio and r["network"] == name
                     and r["batch_size"] == size and r["learning_rate"] == rate]
                    for rate in rates
                ]  # fmt: skip
                if any(found):
                    rows.append([name, str(size), *(cell(group) for group in found)])
            parts.append(text_table(rows))
        best = best_runs(results, ratio)
        groups = kg.metrics.groups(np.asarray(best["class_counts"]), "thirds")
        rows = [["eKLD, nats (lowest training loss)", "transform", *groups]]
        for name, entry in best["methods"].items():
            seeds = list(entry["seeds"].values())
            for transform in seeds[0].get("invariance", {}):
                values = np.mean([s["invariance"][transform]["ekld"] for s in seeds], axis=0)
                label = f"{name}, batch {entry['batch_size']}, rate {entry['learning_rate']:g}"
                cells = [f"{values[classes].mean():.3f}" for classes in groups.values()]
                rows.append([label, transform, *cells])
        parts.append(text_table(rows))
    return "\n\n".join(parts)


def _accuracy_cell(group: list[Any]) -> str:
    values = [100 * r["balanced_accuracy"] for r in group if not r["diverged"]]
    if not values:
        return "diverged" if group else "-"
    spread = f" +-{statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def _loss_cell(group: list[Any]) -> str:
    values = [r["history"][-1]["loss"] for r in group if not r["diverged"]]
    return f"{statistics.fmean(values):.3f}" if values else "-"


def _target_cell(group: list[Any]) -> str:
    reached = [r for r in group if r["epochs_to_target"]]
    if not group or len(reached) < len(group):
        return "-"
    epochs = statistics.fmean(r["epochs_to_target"] for r in reached)
    seconds = statistics.fmean(r["seconds_to_target"] for r in reached)
    return f"{epochs:.3g} ({seconds:.0f})"


def benchmark(config: Config) -> dict[str, Any]:
    """Times of a training step, and of inference after `fold`, of all networks in turn.

    Returns:
        Milliseconds and ratios to the first network; also written to `benchmark.json`.
    """
    shape, batch = (32, 32, 3), config.batch_sizes[0]
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (batch, *shape)).astype("float32")
    labels = rng.integers(0, 10, batch)
    steps: dict[str, Callable[[], Any]] = {}
    for name in config.networks:
        network = make_network(config, name, shape, 10, ([0.5] * 3, [0.25] * 3), 0)
        model = kg.training.Classifier(network)
        model.compile(
            kg.optimizers.SGD(0.01, momentum=config.momentum, l2=config.l2),
            kg.losses.CrossEntropy(),
        )
        steps[f"{name}, training step"] = lambda m=model: m.train_on_batch(images, labels)
    for name in config.networks:
        network = make_network(config, name, shape, 10, ([0.5] * 3, [0.25] * 3), 0)
        folded = Logits(kg.layers.fold(network), batch)
        steps[f"{name}, folded inference"] = lambda f=folded: f(images)
    # An update of the statistics every few steps: a repeat is as many steps as make a round.
    each = max(config.update_interval or 1, kg.layers.WhitenedConv2D(1, 1).update_interval)
    for step in steps.values():
        for _ in range(2):
            step()
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(config.benchmark_repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            for _ in range(each):
                step()
            times[name].append(1e3 * (time.perf_counter() - start) / each)
    milliseconds = {name: statistics.median(values) for name, values in times.items()}
    ratios = {}
    for name, value in milliseconds.items():
        first = f"{config.networks[0]}, {name.partition(', ')[2]}"
        ratios[name] = value / milliseconds[first]
    print(
        f"{config.architecture} {config.depth}, batch {batch}, backend "
        f"{keras.config.backend()}: milliseconds (ratio to {config.networks[0]})"
    )
    for name, value in milliseconds.items():
        print(f"{name:>40}  {value:9.1f}  ({ratios[name]:.2f})", flush=True)
    found = {
        "settings": dataclasses.asdict(config),
        "versions": versions(),
        "milliseconds": milliseconds,
        "ratios": ratios,
        "all_milliseconds": times,
    }
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "benchmark.json", to_json(json.loads(to_json(found))))
    return found


if __name__ == "__main__":
    command_line.main(Config, run)
