"""GIT on a long-tailed dataset: generator, classifiers, eKLD and accuracy per class.

    python -m experiments.cifar_lt --flagfile=experiments/flagfiles/quickstart.cfg

The same command continues an interrupted run. It runs every dataset, whatever the name says.

Reference: Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022.
"""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras
import numpy as np
from absl import logging

import keras_git as kg
from experiments import command_line
from experiments.classifier_training import HISTORY_COLUMNS, ClassifierTrainer
from experiments.command_line import option
from experiments.generator_training import (
    draw_styles,
    load_generator,
    make_munit,
    measure_styles,
    train_generator,
)
from experiments.measurement import Measurement, first_per_class, generator_quality, make_transforms
from experiments.methods import NAMES, Method, parse_method
from experiments.progress import reports
from experiments.results_folder import FORMAT_VERSION, ResultsFolder
from experiments.summary import per_class_rows, print_summary, summarize
from keras_git.errors import InputError

_JUDGED_PER_CLASS = 20
_RECOGNITION_BATCH = 64
TRANSFORMS = (*kg.transforms.NAMES, "generator")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of training and measurement, whatever the data; epochs count from 0."""

    data_seed: int = option(0, "Seed of the data: subset, glyphs, draws of the eKLD.")
    validation_fraction: float = option(
        0.0, "Part of the training images for the selection of an epoch; 0: last epoch only."
    )
    pipeline: str = option("auto", "How batches are made.", ("auto", "tf_data", "numpy"))

    # Methods and classifier
    methods: tuple[str, ...] = option(
        ("erm", "drs", "git"), "Methods, each a name or a sum of names: " + ", ".join(NAMES) + "."
    )
    seeds: tuple[int, ...] = option((0,), "Seeds of initialization and batches.")
    architecture: str = option("resnet", "Classifier.", ("resnet", "four_conv"))
    width: int | None = option(
        None, "Channels of the ResNet's first stage (default 16) or of FourConv (default 64)."
    )
    depth: int = option(32, "Depth of the ResNet: 8, 14, 20, 32, 44, 56, 110.")
    epochs: int = option(200, "Epochs.")
    defer_epoch: int = option(160, "Epoch from which drs re-samples and drw re-weights.")
    first_decay_epoch: int | None = option(None, "Epoch of the first decay; default: defer_epoch.")
    second_decay_epoch: int = option(180, "Epoch of the second decay of the learning rate.")
    first_decay_factor: float = option(1e-2, "Factor of the learning rate after the first decay.")
    second_decay_factor: float = option(1e-4, "Factor of the learning rate after the second.")
    warmup_epochs: int = option(5, "Epochs of linear warm-up.")
    batch_size: int = option(128, "Images per step.")
    drop_remainder: bool = option(False, "Leave out the last, smaller batch of an epoch.")
    learning_rate: float = option(0.1, "Base learning rate.")
    momentum: float = option(0.9, "Momentum of SGD.")
    l2: float = option(2e-4, "Coupled L2 decay of all parameters.")
    gradient_accumulation: int = option(1, "Batches whose gradients are averaged for one update.")
    augmentation: str = option("crop_flip", "Augmentation.", ("none", "flip", "crop_flip"))
    evaluation_batch_size: int = option(250, "Images per step of evaluation.")

    # GIT
    generator: str | None = option(None, "Generator file to use instead of training one.")
    generated_fraction: float = option(0.5, "Part of a batch that is generated.")
    generation_delay: int = option(1, "Epochs from defer_epoch to the first generated image.")
    keep_threshold: int | None = option(
        None, "Class size from which on no generated image is kept; default: keep all."
    )
    generator_bank: int = option(0, "Variants per image generated beforehand; 0: fresh each step.")

    # Generator
    generator_steps: int = option(140000, "Training steps of the generator.")
    generator_checkpoint_steps: int = option(500, "Steps between checkpoints.")
    generator_picture_steps: int = option(
        1000, "Steps between pictures; a multiple of the steps between checkpoints."
    )
    generator_batch_size: int = option(1, "Images per step of the generator.")
    generator_learning_rate: float = option(1e-4, "Learning rate of generator and discriminator.")
    generator_schedule: str = option(
        "step",
        "Halved every 100,000 steps, or constant to half and then linear to 0.",
        ("step", "constant_then_linear", "constant"),
    )
    generator_l2: float = option(1e-4, "Coupled L2 decay.")
    generator_class_balanced: bool = option(True, "Class-balanced draws for the generator.")
    generator_flip: bool = option(True, "Flip images for the generator.")
    generator_seed: int = option(0, "Seed of the generator.")
    domains: int = option(1, "1: one generator; 2: two, as in the paper.")
    adversarial_loss: str = option("lsgan", "Adversarial loss.", kg.losses.ADVERSARIAL_LOSSES)
    generator_width: int = option(64, "Channels of the first layer.")
    generator_downsamplings: int = option(2, "Downsamplings of the content.")
    generator_residual_blocks: int = option(4, "Residual blocks of encoder and decoder.")
    generator_outer_kernel: int = option(7, "Kernel of the first and the last layer.")
    generator_upsampling_kernel: int = option(5, "Kernel of the layers after an upsampling.")
    generator_mlp_width: int = option(256, "Width of the style network.")
    generator_padding: str = option("reflect", "Padding.", ("reflect", "replicate", "zero"))
    style_dim: int = option(8, "Dimensions of the style.")
    style_downsamplings: int = option(4, "Downsamplings of the style encoder.")
    discriminator_width: int = option(64, "Channels of the discriminator's first layer.")
    discriminator_layers: int = option(4, "Layers of the discriminator.")
    discriminator_scales: int = option(1, "Scales of the discriminator.")

    # Measurement
    invariance_split: str = option(
        "auto",
        "Images on which eKLD is measured; auto: the untransformed ones if the dataset has any.",
        ("auto", "test", "validation"),
    )
    invariance_transforms: tuple[str, ...] = option(
        ("rotation", "brightness", "contrast", "generator"),
        "Transformations of the eKLD: " + ", ".join(TRANSFORMS) + ".",
    )
    invariance_images: int = option(40, "Images per class on which eKLD is measured.")
    invariance_samples: int = option(10, "Draws of a transformation per image.")
    recognition_epochs: int = option(
        0, "Epochs of a classifier on balanced data that judges generated images; 0: none."
    )
    style_distance_threshold: float = option(
        0.05, "Distance of two styles of one content (0..1) above which the style has an effect."
    )
    recognition_threshold: float = option(
        0.9, "Part of generated images that must be recognized by the balanced classifier."
    )

    # Output
    output_dir: str = option("results/cifar_lt", "Folder of the results; one per configuration.")
    export: tuple[str, ...] = option((), "Further formats: tf_saved_model, onnx.")
    quick: bool = option(False, "Smoke test: every stage, tiny sizes, meaningless results.")

    @property
    def generation_epoch(self) -> int:
        """First epoch with generated images."""
        return min(self.defer_epoch + self.generation_delay, self.epochs)


@dataclass(frozen=True)
class LongTailConfig(TrainingConfig):
    """The same, and the sizes of the classes."""

    profile: str = option(
        "exponential",
        "Class sizes; as_is keeps all training images.",
        ("exponential", "step", "zipf", "balanced", "counts", "as_is"),
    )
    class_counts: tuple[int, ...] = option((), "Images of each class, for --profile=counts.")
    imbalance_ratio: float | None = option(None, "Size of the largest class over the smallest.")
    largest_class: int | None = option(None, "Images of the largest class; default: the mean.")
    smallest_class: int | None = option(None, "Images of the smallest class, or the ratio.")
    zipf_exponent: float | None = option(None, "Exponent of the zipf profile.")
    selection: str = option("first", "Which images of a class are kept.", ("first", "random"))


@dataclass(frozen=True)
class Config(LongTailConfig):
    """Settings of a run; each is a flag of the same name."""

    dataset: str = option(
        "glyphs", "glyphs (built in), an .npz file, or a dataset of tensorflow_datasets."
    )
    data_dir: str | None = option(None, "Folder of tensorflow_datasets, or of the .npz file.")
    download: bool = option(True, "Whether tensorflow_datasets may download.")
    num_classes: int = option(49, "Classes of glyphs.")
    nuisance: str = option(
        "grey_level",
        "Nuisance of glyphs.",
        ("none", "grey_level", "background", "dilation_erosion", "rotation"),
    )


AnyConfig = TypeVar("AnyConfig", bound=TrainingConfig)


def quick(config: Config) -> Config:
    """A configuration that runs every stage of `config` in seconds."""
    return dataclasses.replace(
        quick_training(config),
        largest_class=24,
        smallest_class=4 if config.profile != "as_is" else config.smallest_class,
        imbalance_ratio=None,
        class_counts=(),
        profile="exponential" if config.profile == "counts" else config.profile,
    )


def quick_training(config: AnyConfig) -> AnyConfig:
    """The same stages of training and measurement in seconds; the data stay as they are."""
    return dataclasses.replace(
        config,
        depth=8,
        epochs=3,
        defer_epoch=1,
        first_decay_epoch=1,
        second_decay_epoch=2,
        generation_delay=1,
        keep_threshold=config.keep_threshold and 12,
        generator_steps=20,
        generator_checkpoint_steps=10,
        generator_picture_steps=10,
        generator_downsamplings=1,
        generator_bank=min(config.generator_bank, 2),
        generator_batch_size=4,
        generator_width=min(config.generator_width, 8),
        generator_residual_blocks=1,
        generator_mlp_width=16,
        discriminator_width=min(config.discriminator_width, 8),
        invariance_images=4,
        invariance_samples=2,
        recognition_epochs=min(config.recognition_epochs, 1),
        seeds=config.seeds[:1],
    )


def checked(
    config: AnyConfig, shrink: Callable[[AnyConfig], AnyConfig] = quick
) -> tuple[AnyConfig, list[Method]]:
    """Fills in defaults and checks what can be checked without data.

    Args:
        config: the settings as given.
        shrink: makes the settings of `--quick`.

    Raises:
        InputError: a value or a combination of values that cannot work.
    """
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"--seeds={config.seeds}: use different numbers, 0 or more")
    if config.quick:
        config = shrink(config)
    if config.first_decay_epoch is None:
        config = dataclasses.replace(config, first_decay_epoch=config.defer_epoch)
    for name in ("epochs", "batch_size", "depth", "generator_steps", "invariance_samples",
                 "invariance_images", "generator_checkpoint_steps", "generator_batch_size",
                 "generator_picture_steps",
                 "evaluation_batch_size", "gradient_accumulation"):  # fmt: skip
        if getattr(config, name) < 1:
            raise InputError(f"--{name}={getattr(config, name)}: use 1 or more")
    for name in ("defer_epoch", "generation_delay", "generator_bank", "recognition_epochs",
                 "data_seed", "generator_seed", "warmup_epochs"):  # fmt: skip
        if getattr(config, name) < 0:
            raise InputError(f"--{name}={getattr(config, name)}: use 0 or more")
    if not 0.0 <= config.validation_fraction < 1.0:
        raise InputError(f"--validation_fraction={config.validation_fraction}: use 0 to below 1")
    if not 0.0 < config.generated_fraction <= 1.0:
        raise InputError(f"--generated_fraction={config.generated_fraction}: use above 0 to 1")
    if config.generator_picture_steps % config.generator_checkpoint_steps:
        raise InputError(
            f"--generator_picture_steps={config.generator_picture_steps}: use a multiple of "
            f"--generator_checkpoint_steps, {config.generator_checkpoint_steps}"
        )
    if config.domains not in (1, 2):
        raise InputError(f"--domains={config.domains}: use 1 or 2")
    methods = [parse_method(key) for key in config.methods]
    for method in methods:
        defers = method.sampling == "drs" or method.weighting == "drw"
        if defers and config.defer_epoch >= config.epochs:
            raise InputError(
                f"--defer_epoch={config.defer_epoch}: {method.key} would never defer in "
                f"{config.epochs} epochs; use less"
            )
        if method.generates and config.generation_epoch >= config.epochs:
            raise InputError(
                f"--generation_delay={config.generation_delay}: {method.key} would never generate "
                f"in {config.epochs} epochs; use less"
            )
    if config.first_decay_epoch >= config.second_decay_epoch:
        raise InputError(
            f"--second_decay_epoch={config.second_decay_epoch}: use more than the first decay "
            f"epoch, {config.first_decay_epoch}"
        )
    if config.invariance_split == "validation" and not config.validation_fraction:
        raise InputError("--invariance_split=validation needs --validation_fraction above 0")
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise InputError("--methods: name at least one method, and each once")
    for name in config.invariance_transforms:
        if name not in TRANSFORMS:
            raise InputError(
                f"--invariance_transforms: {name!r} is unknown; use {', '.join(TRANSFORMS)}"
            )
    for name in config.export:
        if name not in kg.export.FORMATS:
            raise InputError(f"--export: {name!r} is unknown; use {', '.join(kg.export.FORMATS)}")
    if config.generator and not Path(config.generator).is_file():
        raise InputError(f"--generator={config.generator}: no such file")
    kg.data.choose_pipeline(config.pipeline)
    return config, methods


def _class_sizes(config: LongTailConfig, num_classes: int, largest: int) -> np.ndarray:
    return kg.data.class_sizes(
        config.profile,
        num_classes,
        config.largest_class or largest,
        imbalance_ratio=config.imbalance_ratio,
        smallest=config.smallest_class,
        alpha=config.zipf_exponent,
        counts=config.class_counts or None,
    )


def long_tailed(config: LongTailConfig, splits: kg.data.Splits, cache_dir: Path) -> kg.data.Splits:
    """The splits with the class sizes of the settings, and few test images with `--quick`."""
    full = splits.train
    if config.profile != "as_is":
        sizes = _class_sizes(config, full.num_classes, len(full) // full.num_classes)
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


def load_data(config: Config, cache_dir: Path) -> kg.data.Splits:
    """The long-tailed training set, the test set and what else the dataset offers."""
    if config.dataset == "glyphs":
        if config.profile == "as_is":
            raise InputError("--profile=as_is: glyphs are drawn to order; choose a profile")
        sizes = _class_sizes(config, config.num_classes, 250)
        with reports("drawing images") as progress:
            splits = kg.data.glyphs(
                config.num_classes,
                sizes=sizes,
                test_per_class=20 if config.quick else 100,
                recognition_per_class=40 if config.quick else 220,
                nuisance=config.nuisance,
                seed=config.data_seed,
                progress=progress,
            )
    else:
        with reports("reading images") as progress:
            splits = kg.data.load(
                config.dataset,
                data_dir=config.data_dir,
                cache_dir=cache_dir,
                download=config.download,
                seed=config.data_seed,
                progress=progress,
            )
        splits = long_tailed(config, splits, cache_dir)
    if config.validation_fraction:
        train = splits.train
        kept, held_out = kg.data.stratified_split(
            train.labels, config.validation_fraction, config.data_seed
        )
        splits = dataclasses.replace(
            splits, train=train.take(kept), validation=train.take(held_out)
        )
    return splits


def decisive_settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings that decide results: where things are does not, a generator's bytes do."""
    settings = dataclasses.asdict(config)
    for name in ("output_dir", "data_dir", "download", "cache_dir"):
        settings.pop(name, None)
    if config.generator:
        settings["generator"] = hashlib.sha256(Path(config.generator).read_bytes()).hexdigest()
    return settings


def run(config: Config) -> dict[str, Any]:
    """Runs the experiment, or what is left of it, and returns the content of `results.json`.

    Raises:
        InputError: bad settings, data, generator file or output folder.
    """
    return run_on(*checked(config), load_data)


def run_on(
    config: AnyConfig,
    methods: Sequence[Method],
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
    methods: Sequence[Method],
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
    train = splits.train
    # Everything that bad settings would stop is made once before the folder is tied to them.
    trainer = ClassifierTrainer(config, train, splits.validation, None, folder, oracle)
    for method in methods:
        trainer.check(method)
    needs_generator = any(m.generates for m in methods)
    if needs_generator and config.generator:
        load_generator(config.generator, train.image_shape)
    elif needs_generator:
        make_munit(config, train.image_shape)
    folder.write_config(
        class_counts=train.class_counts,
        content_hash=train.content_hash(),
        test_content_hash=splits.test.content_hash(),
        class_names=train.class_names,
        image_shape=train.image_shape,
    )
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
        "format_version": FORMAT_VERSION,
        "dataset": train.name,
        "class_counts": train.class_counts,
        "class_names": train.class_names,
        "seconds": {"data": time.monotonic() - started},
        "generator": None,
        "methods": {},
    }
    generator = None
    if needs_generator or config.generator:
        generator = _generator(config, splits, folder, results)
    elif "generator" in config.invariance_transforms:
        logging.info("no method uses a generator: eKLD under the generator is left out")
    _classifiers(config, methods, splits, generator, folder, results, oracle)
    return results


def _generator(
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
    balanced = splits.recognition
    if config.recognition_epochs and balanced is not None:
        held_out = first_per_class(balanced.labels, _JUDGED_PER_CLASS)
        judged = balanced.take(held_out)
        balanced = balanced.take(np.setdiff1d(np.arange(len(balanced)), held_out))
    distance, generated = measure_styles(generator, judged.images, config.generator_seed)
    recognized = recognized_real = None
    if config.recognition_epochs and balanced is not None:
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
    settings = dataclasses.replace(
        config,
        batch_size=_RECOGNITION_BATCH,
        augmentation="none",
        epochs=epochs,
        defer_epoch=epochs,
        first_decay_epoch=max(epochs * 3 // 5, 1),
        second_decay_epoch=max(epochs * 17 // 20, 2),
        warmup_epochs=min(config.warmup_epochs, 1),
        generator_bank=0,
    )
    trainer = ClassifierTrainer(settings, dataset, None, None, folder)
    method = dataclasses.replace(parse_method("erm"), key="recognition")
    return trainer.train(method, config.generator_seed, []).logits


def _classifiers(
    config: TrainingConfig,
    methods: Sequence[Method],
    splits: kg.data.Splits,
    generator: keras.Model | None,
    folder: ResultsFolder,
    results: dict[str, Any],
    oracle: tuple[kg.data.ImageDataset, kg.transforms.Transform] | None,
) -> None:
    trainer = ClassifierTrainer(config, splits.train, splits.validation, generator, folder, oracle)
    invariance = splits.test
    if config.invariance_split == "validation" and splits.validation is not None:
        invariance = splits.validation
    elif config.invariance_split == "auto" and splits.invariance is not None:
        invariance = splits.invariance
    measurement = Measurement(
        config,
        splits.test,
        invariance,
        splits.train.class_counts,
        make_transforms(config.invariance_transforms, generator),
    )
    for seed in config.seeds:
        for method in methods:
            entry = results["methods"].setdefault(method.key, {"seeds": {}})
            if str(seed) in entry["seeds"]:
                continue
            trained = trainer.train(method, seed, methods)
            name = f"{method.key}_seed{seed}"
            folder.write_table(f"history_{name}.csv", HISTORY_COLUMNS, trained.history)
            measured = measurement.all(trained, method.logit_scale)
            folder.save_model(trained.network, f"classifier_{name}")
            if trained.selected is not None:
                with trained.selected_weights():
                    folder.save_model(trained.network, f"classifier_{name}_selected")
            if config.export:
                target = folder.models / f"classifier_{name}"
                made = kg.export.export_classifier(trained.network, target, config.export)
                for name_of_format, outcome in made.items():
                    logging.info("export %s: %s", name_of_format, outcome)
                measured["export"] = {
                    f: p.name if isinstance(p, Path) else p for f, p in made.items()
                }
            entry["seeds"][str(seed)] = measured
            folder.write_results(results)


def finish(config: TrainingConfig, folder: ResultsFolder, results: dict[str, Any]) -> None:
    """Summary, tables and pictures; then the checkpoints go."""
    # Methods in the order of the command, whatever order the run was interrupted in.
    results["methods"] = {key: results["methods"][key] for key in config.methods}
    summarize(results)
    folder.write_results(results)
    columns, rows = per_class_rows(results)
    folder.write_table("per_class.csv", columns, rows)
    if next(iter(results["methods"][config.methods[0]]["seeds"].values()))["invariance"]:
        kg.plots.ekld_against_class_size(results, folder.pictures / "ekld_against_class_size.png")
    kg.plots.accuracy_per_class(results, folder.pictures / "accuracy_per_class.png")
    folder.clean_up()
    print_summary(folder.read_results(), str(folder.path))


if __name__ == "__main__":
    command_line.main(Config, run)
