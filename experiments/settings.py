"""What the experiments have in common to set: training, measurement, sizes of the classes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import keras

import keras_git as kg
from experiments.command_line import option
from keras_git.errors import InputError
from keras_git.recipes import NAMES, Recipe

TRANSFORMS = (*kg.transforms.NAMES, "generator")


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of training and measurement, whatever the data; epochs count from 0."""

    data_seed: int = option(0, "Seed of the data: subset, glyphs, draws of the eKLD.")
    validation_fraction: float = option(
        0.0, "Part of the training images for the selection of an epoch; 0: last epoch only."
    )
    pipeline: str = option("auto", "How batches are made.", ("auto", "tf_data", "numpy"))
    data_on_device: bool = option(
        False,
        "Keep the images on the device and run many steps in one compiled call (not with oracle).",
    )
    precision: str = option(
        "float32", "Precision of the classifier.", ("float32", "mixed_bfloat16")
    )
    distribution: str = option(
        "none",
        "data_parallel divides each batch among all devices of this machine (not on PyTorch).",
        ("none", "data_parallel"),
    )

    # Methods and classifier
    methods: tuple[str, ...] = option(
        ("erm", "drs", "git"), "Methods, each a name or a sum of names: " + ", ".join(NAMES) + "."
    )
    seeds: tuple[int, ...] = option((0,), "Seeds of initialization and batches.")
    architecture: str = option("resnet", "Classifier.", ("resnet", "wide_resnet", "four_conv"))
    width: int | None = option(
        None, "Channels of the ResNet's first stage (default 16; wide: 64) or of FourConv (64)."
    )
    depth: int = option(32, "Depth of the ResNet: 8, 14, 20, 32, 44, 56, 110; wide: 18, 34, 50.")
    whitening: bool = option(
        False, "Whitened convolutions in the place of batch normalization (not for four_conv)."
    )
    feature_normalization: str | None = option(
        None, "Of the whitened convolutions: " + ", ".join(kg.layers.FEATURE_NORMALIZATIONS) + "."
    )
    epochs: int = option(200, "Epochs.")
    defer_epoch: int = option(160, "Epoch from which drs re-samples and drw re-weights.")
    first_decay_epoch: int | None = option(None, "Epoch of the first decay; default: defer_epoch.")
    second_decay_epoch: int = option(180, "Epoch of the second decay of the learning rate.")
    first_decay_factor: float = option(1e-2, "Factor of the learning rate after the first decay.")
    second_decay_factor: float = option(1e-4, "Factor of the learning rate after the second.")
    warmup_epochs: int = option(5, "Epochs of linear warm-up.")
    second_stage_epochs: int = option(
        10, "Further epochs of the head alone, of the methods with crt or lws."
    )
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
    rejected: str = option(
        "batch",
        "What stands for a generated image that is not kept: another image of the batch, as in "
        "the paper's program, or the source image itself, which leaves the classes balanced.",
        kg.training.REJECTED,
    )
    source_augmentation: str = option(
        "auto",
        "Augmentation of the images to generate from, or of those of the bank; auto: flip, or "
        "none with --augmentation=none.",
        ("auto", "none", "flip", "crop_flip"),
    )
    generator_bank: int = option(0, "Variants per image generated beforehand; 0: fresh each step.")

    augment_from_factors: str | None = option(
        None, "Table of factors (experiments.factors, .json or .csv) for the methods with factors."
    )
    factors_per_set: int = option(25, "Factors of the large classes that are used, at most.")

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
    def schedule(self) -> kg.recipes.Schedule:
        """When things happen in a training."""
        return kg.recipes.Schedule(self.epochs, self.defer_epoch, self.generation_epoch)

    @property
    def source_batch_size(self) -> int:
        """Images per step to generate from."""
        return max(int(self.generated_fraction * self.batch_size), 1)

    @property
    def devices(self) -> int:
        """Devices among which a batch is divided.

        Raises:
            InputError: several devices on PyTorch.
        """
        return kg.distribution.num_devices() if self.distribution == "data_parallel" else 1

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
    imbalance_ratio: float | None = option(
        None, "Size of the largest class over the smallest; default: 100, or by --smallest_class."
    )
    largest_class: int | None = option(None, "Images of the largest class; default: the mean.")
    smallest_class: int | None = option(None, "Images of the smallest class, or the ratio.")
    zipf_exponent: float | None = option(None, "Exponent of the zipf profile.")
    selection: str = option("first", "Which images of a class are kept.", ("first", "random"))


AnyConfig = TypeVar("AnyConfig", bound=TrainingConfig)
AnyLongTailConfig = TypeVar("AnyLongTailConfig", bound=LongTailConfig)


def quick_training(config: AnyConfig) -> AnyConfig:
    """The same stages of training and measurement in seconds; the data stay as they are."""
    wide = config.architecture == "wide_resnet"
    return dataclasses.replace(
        config,
        depth=18 if wide else 8,
        width=8 if wide else config.width,
        epochs=3,
        defer_epoch=1,
        first_decay_epoch=1,
        second_decay_epoch=2,
        second_stage_epochs=1,
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


def quick(config: AnyLongTailConfig) -> AnyLongTailConfig:
    """A configuration that runs every stage of `config` in seconds."""
    return dataclasses.replace(
        quick_training(config),
        largest_class=24,
        smallest_class=4 if config.profile != "as_is" else config.smallest_class,
        imbalance_ratio=None,
        class_counts=(),
        profile="exponential" if config.profile == "counts" else config.profile,
    )


def check_values(config: TrainingConfig) -> None:
    """Checks each setting by itself; None stands for one that is chosen from the data later.

    Raises:
        InputError: a value that cannot work.
    """
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"--seeds={config.seeds}: use different numbers, 0 or more")
    positive = ("epochs", "batch_size", "depth", "generator_steps", "invariance_samples",
                "invariance_images", "generator_checkpoint_steps", "generator_batch_size",
                "generator_picture_steps", "evaluation_batch_size", "gradient_accumulation",
                "largest_class", "factors_per_set", "second_stage_epochs")  # fmt: skip
    not_negative = ("defer_epoch", "generation_delay", "generator_bank", "recognition_epochs",
                    "data_seed", "generator_seed", "warmup_epochs")  # fmt: skip
    for least, names in ((1, positive), (0, not_negative)):
        for name in names:
            value = getattr(config, name, None)
            if value is not None and value < least:
                raise InputError(f"--{name}={value}: use {least} or more")
    if config.architecture == "resnet" and (config.depth < 8 or (config.depth - 2) % 6):
        raise InputError(f"--depth={config.depth}: use 8, 14, 20, 32, 44, 56 or 110")
    if config.architecture == "wide_resnet" and config.depth not in (18, 34, 50):
        raise InputError(f"--depth={config.depth}: the wide ResNets have 18, 34 or 50")
    if config.whitening and config.architecture == "four_conv":
        raise InputError("--whitening: four_conv has no whitened form; use a ResNet")
    known = kg.layers.FEATURE_NORMALIZATIONS
    if config.feature_normalization is not None:
        if config.feature_normalization not in known:
            raise InputError(
                f"--feature_normalization={config.feature_normalization}: use {', '.join(known)}"
            )
        if not config.whitening:
            raise InputError("--feature_normalization belongs to --whitening: give both")
    if not 0.0 <= config.validation_fraction < 1.0:
        raise InputError(f"--validation_fraction={config.validation_fraction}: use 0 to below 1")
    if not 0.0 < config.generated_fraction <= 1.0:
        raise InputError(f"--generated_fraction={config.generated_fraction}: use above 0 to 1")
    if config.domains not in (1, 2):
        raise InputError(f"--domains={config.domains}: use 1 or 2")
    if not config.methods or len(set(config.methods)) < len(config.methods):
        raise InputError("--methods: name at least one method, and each once")
    for key in config.methods:
        kg.recipes.get(key)
    for name in config.invariance_transforms:
        if name not in TRANSFORMS:
            raise InputError(
                f"--invariance_transforms: {name!r} is unknown; use {', '.join(TRANSFORMS)}"
            )
    for name in config.export:
        if name not in kg.export.FORMATS:
            raise InputError(f"--export: {name!r} is unknown; use {', '.join(kg.export.FORMATS)}")
    for name in ("generator", "augment_from_factors"):
        file = getattr(config, name)
        if file and not Path(file).is_file():
            raise InputError(f"--{name}={file}: no such file")
    needs_factors = any(kg.recipes.get(key).factors for key in config.methods)
    if needs_factors and not config.augment_from_factors:
        raise InputError(
            "a method with factors needs --augment_from_factors, the table that "
            "experiments.factors wrote"
        )
    if config.augment_from_factors and not needs_factors:
        raise InputError(
            "--augment_from_factors: no method uses it; add one such as drs+factors to --methods"
        )


def checked(
    config: AnyConfig, shrink: Callable[[AnyConfig], AnyConfig], *, own_validation: bool = False
) -> tuple[AnyConfig, list[Recipe]]:
    """Fills in defaults and checks what can be checked without data.

    Args:
        config: the settings as given.
        shrink: makes the settings of `--quick`.
        own_validation: whether the data may bring validation images of their own.

    Raises:
        InputError: a value or a combination of values that cannot work.
    """
    check_values(config)
    if config.quick:
        config = shrink(config)
    elif config.warmup_epochs > config.epochs:
        raise InputError(
            f"--warmup_epochs={config.warmup_epochs}: the warm-up would not end in "
            f"{config.epochs} epochs; use less"
        )
    if config.first_decay_epoch is None:
        config = dataclasses.replace(config, first_decay_epoch=config.defer_epoch)
    if config.generator_picture_steps % config.generator_checkpoint_steps:
        raise InputError(
            f"--generator_picture_steps={config.generator_picture_steps}: use a multiple of "
            f"--generator_checkpoint_steps, {config.generator_checkpoint_steps}"
        )
    methods = [kg.recipes.get(key) for key in config.methods]
    for method in methods:
        if method.defers and config.defer_epoch >= config.epochs:
            raise InputError(
                f"--defer_epoch={config.defer_epoch}: {method.name} would never defer in "
                f"{config.epochs} epochs; use less"
            )
        if method.replaces and config.generation_epoch >= config.epochs:
            raise InputError(
                f"--generation_delay={config.generation_delay}: {method.name} would never generate "
                f"in {config.epochs} epochs; use less"
            )
    if config.first_decay_epoch >= config.second_decay_epoch:
        raise InputError(
            f"--second_decay_epoch={config.second_decay_epoch}: use more than the first decay "
            f"epoch, {config.first_decay_epoch}"
        )
    needs_fraction = config.invariance_split == "validation" and not own_validation
    if needs_fraction and not config.validation_fraction:
        raise InputError("--invariance_split=validation needs --validation_fraction above 0")
    kg.data.choose_pipeline(config.pipeline)
    _check_data_on_device(config, methods)
    _check_distribution(config, methods)
    return config, methods


def _check_data_on_device(config: TrainingConfig, methods: list[Recipe]) -> None:
    """Raises InputError for what cannot be done with the images on the device."""
    if not config.data_on_device:
        return
    if config.distribution != "none":
        raise InputError("--data_on_device: the images lie on one device; use --distribution=none")
    for method in methods:
        if method.oracle:
            raise InputError(
                f"--data_on_device: {method.name} draws a nuisance for each batch on the host; "
                "leave out one of the two"
            )


def _check_distribution(config: TrainingConfig, methods: list[Recipe]) -> None:
    """Raises InputError for what several devices cannot do or divide."""
    devices = config.devices
    if devices == 1:
        return
    batches = {"--batch_size": config.batch_size}
    if any(method.replaces for method in methods):
        batches["--generated_fraction, the generated part of a batch"] = config.source_batch_size
        if any(method.generates for method in methods) and not config.generator:
            batches["--generator_batch_size"] = config.generator_batch_size
    for name, size in batches.items():
        if size % devices:
            raise InputError(
                f"{name}: {size} images cannot be divided evenly among {devices} devices; use a "
                f"multiple of {devices}, or --distribution=none"
            )
    if keras.config.backend() == "tensorflow":
        if config.gradient_accumulation > 1:
            raise InputError(
                "--gradient_accumulation: Keras cannot accumulate gradients of several devices on "
                "TensorFlow; use 1, or KERAS_BACKEND=jax"
            )
        if config.pipeline == "numpy":
            raise InputError(
                "--pipeline=numpy: several devices on TensorFlow need tf_data, or auto"
            )


def decisive_settings(config: TrainingConfig) -> dict[str, Any]:
    """The settings that decide results: where things are does not, a generator's bytes do."""
    settings = dataclasses.asdict(config)
    for name in ("output_dir", "data_dir", "download", "cache_dir"):
        settings.pop(name, None)
    if not config.whitening:  # as in folders from before there was any
        del settings["whitening"], settings["feature_normalization"]
    # as in folders from before there was a choice
    if not any(kg.recipes.get(key).second_stage for key in config.methods):
        del settings["second_stage_epochs"]
    if not config.data_on_device:
        del settings["data_on_device"]
    if config.precision == "float32":
        del settings["precision"]
    if config.distribution == "none":  # as in folders made before there was a choice
        settings.pop("distribution")
    if config.augment_from_factors:
        table = Path(config.augment_from_factors).read_bytes()
        settings["augment_from_factors"] = hashlib.sha256(table).hexdigest()
    else:  # as in folders from before there was any
        del settings["augment_from_factors"], settings["factors_per_set"]
    if config.generator:
        settings["generator"] = hashlib.sha256(Path(config.generator).read_bytes()).hexdigest()
    return settings
