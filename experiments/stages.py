"""The stages of an experiment, whatever its data: generator, classifiers, measurement, summary."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

import keras_git as kg
from experiments.classifier_training import HISTORY_COLUMNS, ClassifierTrainer
from experiments.generator_training import (
    draw_styles,
    load_generator,
    make_munit,
    measure_styles,
    train_generator,
)
from experiments.measurement import Measurement, first_per_class, generator_quality, make_transforms
from experiments.report import write_report
from experiments.results_folder import FORMAT_VERSION, ResultsFolder
from experiments.settings import AnyConfig, LongTailConfig, TrainingConfig, decisive_settings
from experiments.summary import per_class_rows, print_summary, summarize
from keras_git.errors import InputError
from keras_git.recipes import Recipe

_JUDGED_PER_CLASS = 20
_IMBALANCE_RATIO = 100.0  # the field's usual one, where nothing else is said
_RECOGNITION_BATCH = 64


def class_sizes(config: LongTailConfig, num_classes: int, largest: int) -> np.ndarray:
    """Images of each class; `largest` is the size of the largest one if nothing sets it."""
    imbalance_ratio = config.imbalance_ratio
    falls = config.profile in ("exponential", "step")
    if falls and imbalance_ratio is None and config.smallest_class is None:
        imbalance_ratio = _IMBALANCE_RATIO
    return kg.data.class_sizes(
        config.profile,
        num_classes,
        largest if config.largest_class is None else config.largest_class,
        imbalance_ratio=imbalance_ratio,
        smallest=config.smallest_class,
        alpha=config.zipf_exponent,
        counts=config.class_counts or None,
    )


def sizes_by_rank(wanted: np.ndarray, train: kg.data.ImageDataset) -> np.ndarray:
    """Class sizes, given to the classes by rank of the images they have; none gets more.

    Args:
        wanted: int64 (C,), largest first.
        train: all training images.

    Returns:
        int64 (C,), in the order of the classes.
    """
    available = train.class_counts
    sizes = np.empty_like(wanted)
    sizes[np.argsort(-available, kind="stable")] = wanted
    short = np.flatnonzero(sizes > available)
    if short.size:
        logging.warning(
            "%d classes have fewer training images than the profile asks for, all are kept: %s",
            short.size,
            ", ".join(train.class_names[label] for label in short[:10]),
        )
    return np.minimum(sizes, available)


def feasible_sizes(config: LongTailConfig, train: kg.data.ImageDataset) -> np.ndarray | None:
    """Images to keep of each class, int64 (C,); None keeps all.

    Classes of one size have those of the profile in their order, as the published subsets do.
    """
    if config.profile == "as_is":
        return None
    counts = train.class_counts
    mean, least = len(train) // train.num_classes, int(counts.min())
    sizes = class_sizes(config, len(counts), least if config.profile == "balanced" else mean)
    if config.profile == "balanced":
        return np.minimum(sizes, least) if config.quick else sizes
    if config.profile == "counts" or (least == counts.max() and not config.quick):
        return sizes
    return sizes_by_rank(sizes, train)


def long_tailed(
    config: Any, splits: kg.data.Splits, cache_dir: Path, sizes: np.ndarray | None
) -> kg.data.Splits:
    """The splits with these class sizes, None for all images, and few images with `--quick`."""
    full = splits.train
    if sizes is not None:
        # Images that were too many for memory stay in a file.
        path = cache_dir / "train.npy" if isinstance(full.images, np.memmap) else None
        train = kg.data.long_tail(
            full, sizes, selection=config.selection, seed=config.data_seed, path=path
        )
        splits = dataclasses.replace(splits, train=train)
    elif config.quick:
        splits = dataclasses.replace(splits, train=full.take(first_per_class(full.labels, 24)))
    counts = full.class_counts
    if config.recognition_epochs and counts.min() == counts.max():
        splits = dataclasses.replace(splits, recognition=full)
    if config.quick:
        few = first_per_class(splits.test.labels, 20)
        splits = dataclasses.replace(splits, test=splits.test.take(few))
    return splits


def invariance_images(config: TrainingConfig, splits: kg.data.Splits) -> kg.data.ImageDataset:
    """The images that are transformed for the eKLD.

    Raises:
        InputError: validation images are asked for, and there are none.
    """
    if config.invariance_split == "validation":
        if splits.validation is None:
            raise InputError(
                "--invariance_split=validation: no image was set aside for validation (classes of "
                "one or two images give none); raise --validation_fraction or use auto or test"
            )
        return splits.validation
    if config.invariance_split == "auto" and splits.invariance is not None:
        return splits.invariance
    return splits.test


def run_on(
    config: AnyConfig,
    methods: Sequence[Recipe],
    load: Callable[[AnyConfig, Path], kg.data.Splits],
) -> dict[str, Any]:
    """Runs the stages on the data that `load(config, cache_dir)` gives; `config` is checked."""
    with ResultsFolder(config.output_dir, decisive_settings(config)) as folder:
        started = time.monotonic()
        splits = load(config, folder.checkpoints)
        results = train_and_measure(config, methods, splits, folder, started)
        finish(config, folder, results)
        return folder.read_results()


def train_and_measure(
    config: TrainingConfig,
    methods: Sequence[Recipe],
    splits: kg.data.Splits,
    folder: ResultsFolder,
    started: float,
    oracle: tuple[kg.data.ImageDataset, kg.transforms.Transform] | None = None,
) -> dict[str, Any]:
    """Generator and classifiers, or what is left of them; returns what `results.json` holds.

    Args:
        config: checked settings.
        methods: the methods of `config`.
        splits: the data.
        folder: open folder of the run.
        started: `time.monotonic()` before the data were loaded.
        oracle: see `ClassifierTrainer`.
    """
    if config.distribution == "none":
        return _train_and_measure(config, methods, splits, folder, started, oracle)
    # TensorFlow reports each of the hundreds of reductions that it puts into a step.
    getLogger("tensorflow").setLevel("WARNING")
    with kg.distribution.data_parallel() as devices:
        logging.info("each batch is divided among %d devices", devices)
        return _train_and_measure(config, methods, splits, folder, started, oracle)


def _train_and_measure(
    config: TrainingConfig,
    methods: Sequence[Recipe],
    splits: kg.data.Splits,
    folder: ResultsFolder,
    started: float,
    oracle: tuple[kg.data.ImageDataset, kg.transforms.Transform] | None,
) -> dict[str, Any]:
    train = splits.train
    if config.quick and config.keep_threshold is not None:
        # The sizes of --quick are known only now.
        least = int(train.class_counts.min()) + 1
        config = dataclasses.replace(config, keep_threshold=max(config.keep_threshold, least))
    # Everything that bad settings would stop is made once before the folder is tied to them.
    invariance = invariance_images(config, splits)
    factors = factor_set(config, methods, train)
    trainer = ClassifierTrainer(config, train, splits.validation, None, folder, oracle)
    for method in methods:
        trainer.check(method)
    needs_generator = any(m.generates for m in methods)
    if needs_generator and config.generator:
        load_generator(config.generator, train.image_shape)
    elif needs_generator:
        make_munit(config, train.image_shape)
    folder.write_config(**data_facts(splits, invariance))
    logging.info(
        "%s: %d training images in %d classes (%d to %d), %d test images; backend %s",
        train.name,
        len(train),
        train.num_classes,
        train.class_counts.max(),
        train.class_counts.min(),
        len(splits.test),
        keras.config.backend(),
    )
    results = folder.read_results() or {
        **empty_results(train, time.monotonic() - started),
        **({"factors": factors} if factors else {}),
    }
    generator = None
    if needs_generator or config.generator:
        generator = make_generator(config, splits, folder, results)
    elif "generator" in config.invariance_transforms:
        logging.info("no method uses a generator: eKLD under the generator is left out")
    made = kg.analysis.factor_generator(factors, train.image_shape) if factors else None
    _classifiers(config, methods, splits, invariance, generator, folder, results, oracle, made)
    return results


def data_facts(splits: kg.data.Splits, invariance: kg.data.ImageDataset) -> dict[str, Any]:
    """What `config.json` says about the data: a continued run must find the same."""
    train = splits.train
    return {
        "class_counts": train.class_counts,
        "content_hash": train.content_hash(),
        "test_content_hash": splits.test.content_hash(),
        "validation_content_hash": splits.validation and splits.validation.content_hash(),
        "invariance_content_hash": invariance.content_hash(),
        "class_names": train.class_names,
        "image_shape": train.image_shape,
    }


def empty_results(train: kg.data.ImageDataset, seconds: float) -> dict[str, Any]:
    """`results.json` before the first training; `seconds` is what loading the data took."""
    return {
        "format_version": FORMAT_VERSION,
        "dataset": train.name,
        "class_counts": train.class_counts,
        "class_names": train.class_names,
        "seconds": {"data": seconds},
        "generator": None,
        "methods": {},
    }


def factor_set(
    config: TrainingConfig, methods: Sequence[Recipe], train: kg.data.ImageDataset
) -> list[tuple[str, float]]:
    """The factors of the largest third of the classes: names of transformations and weights.

    Means over those classes of what the table of factors says; what makes most pairs of a class
    more alike, and not as much those of different classes.

    Raises:
        InputError: a table without the large classes, or without a factor of theirs.
    """
    if not any(method.factors for method in methods):
        return []
    large = kg.metrics.groups(train.class_counts, "thirds")["head"]
    try:
        policy = kg.analysis.select_augmentations(
            config.augment_from_factors,
            k=config.factors_per_set,
            per="dataset",
            classes=np.asarray(large).tolist(),
            num_classes=train.num_classes,
            shuffled_control=False,
        )
    except InputError as error:
        raise InputError(f"--augment_from_factors: {error}") from error
    if not policy.operations(0):
        raise InputError(
            f"--augment_from_factors={config.augment_from_factors}: no transformation explains the "
            "variation inside the large classes (share above 0.4, no negative gain)"
        )
    return policy.operations(0)


def make_generator(
    config: TrainingConfig, splits: kg.data.Splits, folder: ResultsFolder, results: dict[str, Any]
) -> keras.Model:
    """The generator: given, trained before, or trained now; and its two checks."""
    train = splits.train
    saved = folder.models / "generator.keras"
    if saved.exists() and results["generator"]:
        return load_generator(str(saved), train.image_shape)
    contents = train.images[first_per_class(train.labels, 1)]
    if config.generator:
        generator = load_generator(config.generator, train.image_shape)
        training: dict[str, Any] = {"history": [], "seconds": 0.0}
    else:
        generator, training = train_generator(config, train, contents, folder)
    if training["history"]:
        folder.write_table(
            "history_generator.csv", list(training["history"][0]), training["history"]
        )
    start = time.monotonic()
    # Not the test images: those are for the classifiers, at the end.
    judged = train.take(first_per_class(train.labels, _JUDGED_PER_CLASS))
    balanced = splits.recognition if config.recognition_epochs else None
    if balanced is not None and balanced.class_counts.min() < 2:
        logging.warning("too few balanced images to judge generated ones: not judged")
        balanced = None
    if balanced is not None:
        # At most half: the others train the judge.
        number = min(_JUDGED_PER_CLASS, int(balanced.class_counts.min()) // 2)
        held_out = first_per_class(balanced.labels, number)
        judged = balanced.take(held_out)
        balanced = balanced.take(np.setdiff1d(np.arange(len(balanced)), held_out))
    distance, generated = measure_styles(generator, judged.images, config.generator_seed)
    recognized = recognized_real = None
    if balanced is not None:
        logits = _recognizer(config, balanced, folder)
        recognized, recognized_real = (
            float(np.mean(logits(images).argmax(-1) == judged.labels))
            for images in (generated, judged.images)
        )
    draw_styles(generator, contents, folder.pictures / "generator.png", config.generator_seed)
    folder.save_model(generator, "generator")
    results["generator"] = {
        **generator_quality(
            distance,
            recognized,
            recognized_real,
            (config.style_distance_threshold, config.recognition_threshold),
        ),
        "parameters": int(generator.count_params()),
        "steps": 0 if config.generator else config.generator_steps,
        "losses": training["history"][-1] if training["history"] else None,
        "seconds": {"training": training["seconds"], "checks": time.monotonic() - start},
    }
    folder.write_results(results)
    return generator


def _recognizer(
    config: TrainingConfig, dataset: kg.data.ImageDataset, folder: ResultsFolder
) -> Any:
    """Outputs of a classifier trained on balanced data, which judges generated images."""
    epochs = config.recognition_epochs
    if all(16 <= size <= 31 for size in dataset.image_shape[:2]):
        # Another network than the classifiers', and a fast one where it fits.
        config = dataclasses.replace(config, architecture="four_conv", width=32)
    devices = config.devices
    settings = dataclasses.replace(
        config,
        batch_size=min(_RECOGNITION_BATCH, len(dataset)) // devices * devices,
        drop_remainder=config.drop_remainder or devices > 1,
        augmentation="none",
        epochs=epochs,
        defer_epoch=epochs,
        first_decay_epoch=max(epochs * 3 // 5, 1),
        second_decay_epoch=max(epochs * 17 // 20, 2),
        warmup_epochs=min(config.warmup_epochs, 1),
        generator_bank=0,
    )
    trainer = ClassifierTrainer(settings, dataset, None, None, folder)
    method = dataclasses.replace(kg.recipes.get("erm"), name="recognition")
    return trainer.train(method, config.generator_seed, []).logits


def _classifiers(
    config: TrainingConfig,
    methods: Sequence[Recipe],
    splits: kg.data.Splits,
    invariance: kg.data.ImageDataset,
    generator: keras.Model | None,
    folder: ResultsFolder,
    results: dict[str, Any],
    oracle: tuple[kg.data.ImageDataset, kg.transforms.Transform] | None,
    factors: keras.Model | None = None,
) -> None:
    trainer = ClassifierTrainer(
        config, splits.train, splits.validation, generator, folder, oracle, factors
    )
    measurement = Measurement(
        config,
        splits.test,
        invariance,
        splits.train.class_counts,
        make_transforms(config.invariance_transforms, generator),
    )
    results["images_per_class"] = measurement.images_per_class
    for seed in config.seeds:
        for method in methods:
            entry = results["methods"].setdefault(method.name, {"seeds": {}})
            if str(seed) in entry["seeds"]:
                continue
            trained = trainer.train(method, seed, methods)
            entry["seeds"][str(seed)] = measure(
                config, method, seed, trained, measurement, folder, save=True
            )
            folder.write_results(results)


def measure(
    config: TrainingConfig,
    method: Recipe,
    seed: int,
    trained: Any,
    measurement: Measurement,
    folder: ResultsFolder,
    *,
    save: bool,
) -> dict[str, Any]:
    """Measures a trained classifier, and writes its history and, if asked, its files.

    Returns:
        The entry of this method and seed in `results.json`.
    """
    name = f"{method.name}_seed{seed}"
    folder.write_table(f"history_{name}.csv", HISTORY_COLUMNS, trained.history)
    measured = measurement.all(trained, method.logit_scale)
    if not save:
        return measured
    _save_classifier(config, trained.network, name, folder)
    if trained.selected is not None:
        with trained.selected_weights():
            _save_classifier(config, trained.network, f"{name}_selected", folder)
    if config.export:
        target = folder.models / f"classifier_{name}"
        plain = kg.layers.fold(trained.network) if config.whitening else trained.network
        made = kg.export.export_classifier(plain, target, config.export)
        for name_of_format, outcome in made.items():
            logging.info("export %s: %s", name_of_format, outcome)
        measured["export"] = {f: p.name if isinstance(p, Path) else p for f, p in made.items()}
    return measured


def _save_classifier(
    config: TrainingConfig, network: keras.Model, name: str, folder: ResultsFolder
) -> None:
    """Saves a network of plain layers and, of a whitened one, also what was trained."""
    if config.whitening:
        folder.save_model(network, f"classifier_{name}_whitened")
        network = kg.layers.fold(network)
    folder.save_model(network, f"classifier_{name}")


def finish(config: TrainingConfig, folder: ResultsFolder, results: dict[str, Any]) -> None:
    """Summary, tables, pictures and report; then the checkpoints go."""
    # Methods in the order of the command, whatever order the run was interrupted in.
    results["methods"] = {key: results["methods"][key] for key in config.methods}
    summarize(results)
    folder.write_results(results)
    columns, rows = per_class_rows(results)
    folder.write_table("per_class.csv", columns, rows)
    if next(iter(results["methods"][config.methods[0]]["seeds"].values()))["invariance"]:
        kg.plots.ekld_against_class_size(results, folder.pictures / "ekld_against_class_size.png")
    kg.plots.accuracy_per_class(results, folder.pictures / "accuracy_per_class.png")
    write_report(
        folder.read_results(),
        folder.path / "report.html",
        settings=folder.settings,
        versions=folder.read_config()["versions"],
    )
    folder.clean_up()
    print_summary(folder.read_results(), str(folder.path))
