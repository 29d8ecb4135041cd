"""Your own imbalanced images: a folder in, a classifier, its audit and its model card out.

    python -m experiments.image_folder_lt --data_dir=DIR --output_dir=OUT

DIR holds one sub-folder per class, or `train`, `val` and `test` with these. Trains plainly (erm),
with deferred re-sampling (drs) and with generated images (git); exports the one that is best on the
validation images. The same command continues an interrupted run.

Reference: Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

import keras_git as kg
from experiments import command_line, settings, stages
from experiments.classifier_training import Logits
from experiments.command_line import option
from experiments.model_card import model_card
from experiments.progress import reports
from experiments.results_folder import ResultsFolder, to_json
from experiments.settings import LongTailConfig
from experiments.summary import print_summary
from keras_git.auditing import AuditResult, join_results
from keras_git.data.image_folder import split_folders
from keras_git.errors import InputError
from keras_git.files import replacement, write_atomically
from keras_git.recipes import Recipe
from keras_git.transforms import LADDERS

_TRAINING_STEPS = 4000
_BANK_BYTES = 2 << 30
_QUICK_PER_CLASS = 60
_QUICK_AUDIT = ("brightness",)
# Images through one model in its audit; on 2 CPU cores about a quarter of an hour.
_AUDIT_EVALUATIONS = 1_000_000
_AUDIT_LEAST_IMAGES = 2
_AUDIT_FILES = ("audit.json", "audit.csv", "audit.html")
_EXPORT_FILES = ("export/model.keras", "export/class_names.json")
# What a finished run has written, from the reading of the images to the model card.
_WRITTEN = (
    *_AUDIT_FILES,
    *_EXPORT_FILES,
    "export/model_card.md",
    "per_class.csv",
    "report.html",
    "unreadable.csv",
)
_ORIGINALS = 32
_CHOSEN = " Default: chosen from the data."


@dataclass(frozen=True)
class Config(LongTailConfig):
    """Settings of a run; each is a flag of the same name. None: chosen from the data."""

    # Data
    data_dir: str | None = option(None, "Folder of images, one sub-folder per class.")
    image_size: tuple[int, ...] = option(
        (), "Side, or height,width, of the images for the networks." + _CHOSEN
    )
    colour: str = option("rgb", "Colour or grey.", tuple(kg.data.image_files.CHANNELS))
    test_fraction: float = option(0.2, "Part of each class for the test, without a test folder.")
    validation_fraction: float = option(
        0.1, "Part of each class for the choice of the best model, without a val folder."
    )
    group_regex: str | None = option(
        None, "What in a path names the group of a file (its first group, or the whole match)."
    )
    strict: bool = option(False, "Whether a file that cannot be read ends the run.")
    cache_dir: str | None = option(
        None, "Folder that keeps decoded images for other runs; default: not kept after the run."
    )
    profile: str | None = option(
        None,
        "Class sizes, by rank of the images that a class has; as_is keeps all. Default: counts "
        "with --class_counts, zipf with --zipf_exponent, exponential with --imbalance_ratio or "
        "--smallest_class, else as_is.",
        ("exponential", "step", "zipf", "balanced", "counts", "as_is"),
    )

    # Classifier
    depth: int = option(20, "Depth of the ResNet: 8, 14, 20, 32, 44, 56, 110.")
    epochs: int | None = option(None, "Epochs." + _CHOSEN)
    batch_size: int | None = option(None, "Images per step." + _CHOSEN)
    learning_rate: float | None = option(
        None, "Base learning rate; default: 0.1 for 128 images per step, in proportion."
    )
    warmup_epochs: int | None = option(None, "Epochs of linear warm-up; default: a tenth, up to 5.")
    defer_epoch: int | None = option(
        None, "Epoch from which drs re-samples and drw re-weights; default: after 6 tenths."
    )
    second_decay_epoch: int | None = option(
        None, "Epoch of the second decay of the learning rate; default: after 9 tenths."
    )
    generation_delay: int | None = option(
        None, "Epochs from defer_epoch to the first generated image; default: 1, or 0 if few."
    )
    keep_threshold: int | None = option(
        None,
        "Class size from which on no generated image is kept; 0: keep all. Default: a tenth of the "
        "largest class, at least twice the smallest.",
    )
    generator_bank: int | None = option(
        None,
        "Variants per image generated beforehand; 0: fresh each step. Default: 16 or what fits "
        "into 2 GB.",
    )

    # Generator
    generator_steps: int | None = option(None, "Training steps of the generator." + _CHOSEN)
    generator_batch_size: int = option(8, "Images per step of the generator.")
    generator_learning_rate: float = option(5e-4, "Learning rate of generator and discriminator.")
    generator_schedule: str = option(
        "constant_then_linear",
        "Halved every 100,000 steps, or constant to half and then linear to 0.",
        ("step", "constant_then_linear", "constant"),
    )
    generator_width: int = option(16, "Channels of the first layer.")
    generator_downsamplings: int | None = option(None, "Downsamplings of the content." + _CHOSEN)
    generator_residual_blocks: int = option(2, "Residual blocks of encoder and decoder.")
    generator_outer_kernel: int = option(5, "Kernel of the first and the last layer.")
    generator_upsampling_kernel: int = option(3, "Kernel of the layers after an upsampling.")
    generator_mlp_width: int = option(64, "Width of the style network.")
    style_downsamplings: int | None = option(None, "Downsamplings of the style encoder." + _CHOSEN)
    discriminator_width: int = option(32, "Channels of the discriminator's first layer.")
    discriminator_layers: int | None = option(None, "Layers of the discriminator." + _CHOSEN)

    # Output
    output_dir: str = option(
        "results/image_folder_lt", "Folder of the results; one per configuration."
    )


def quick(config: Config) -> Config:
    """A configuration that runs every stage of `config` in seconds."""
    bank = 2 if config.generator_bank is None else config.generator_bank
    return settings.quick(dataclasses.replace(config, generator_bank=bank))


def prepared(config: Config) -> Config:
    """Checks what can be checked without the images, and shrinks with `--quick`.

    Raises:
        InputError: a value that cannot work.
    """
    settings.check_values(config)
    if not config.data_dir:
        raise InputError("--data_dir is missing: name a folder with one sub-folder per class")
    if not Path(config.data_dir).expanduser().is_dir():
        raise InputError(f"--data_dir={config.data_dir}: no such folder")
    if len(config.image_size) > 2 or any(side < 8 for side in config.image_size):
        raise InputError(
            f"--image_size={','.join(map(str, config.image_size))}: use one side or height,width, "
            "8 or more"
        )
    generates = any(kg.recipes.get(key).generates for key in config.methods)
    if generates and any(not 16 <= side <= 64 for side in config.image_size):
        raise InputError(
            f"--image_size={','.join(map(str, config.image_size))}: the generator takes 16 to 64 "
            "pixels; leave out the methods with git for other sizes"
        )
    if not 0 <= config.test_fraction < 1:
        raise InputError(f"--test_fraction={config.test_fraction}: use 0 to below 1")
    if config.invariance_split == "validation" and not config.validation_fraction:
        parts = split_folders(config.data_dir)
        if parts is None or "validation" not in parts:
            raise InputError(
                "--invariance_split=validation needs --validation_fraction above 0, or a folder "
                f"{Path(config.data_dir) / 'val'}"
            )
    config = _with_profile(config)
    return quick(config) if config.quick else config


def _with_profile(config: Config) -> Config:
    """The profile that the other settings ask for, unless it is named; none of them is ignored."""
    if config.profile is None:
        if config.class_counts:
            profile = "counts"
        elif config.zipf_exponent is not None:
            profile = "zipf"
        elif config.imbalance_ratio is not None or config.smallest_class is not None:
            profile = "exponential"
        else:
            profile = "as_is"
        config = dataclasses.replace(config, profile=profile)
    used = {
        "exponential": ("imbalance_ratio", "largest_class", "smallest_class"),
        "step": ("imbalance_ratio", "largest_class", "smallest_class"),
        "zipf": ("zipf_exponent", "largest_class", "smallest_class"),
        "balanced": ("largest_class",),
        "counts": ("class_counts",),
        "as_is": (),
    }[config.profile or "as_is"]
    for name in ("class_counts", "imbalance_ratio", "largest_class", "smallest_class",
                 "zipf_exponent"):  # fmt: skip
        if getattr(config, name) not in (None, ()) and name not in used:
            raise InputError(
                f"--{name} has no effect with --profile={config.profile}: leave it out, or name "
                "the --profile it is for"
            )
    return config


def chosen_settings(config: Config, train: kg.data.ImageDataset) -> Config:
    """The settings with every None replaced by what suits these training images.

    The classifier gets about as many steps as the reduced CIFAR-10 run (4,000), but 20 to 200
    epochs; the generator sees each image about four times, in 3,000 to 20,000 steps.
    """
    count, counts = len(train), train.class_counts
    height, width, channels = train.image_shape
    small, large = min(height, width), max(height, width)

    def fill(config: Config, **values: Any) -> Config:
        free = {name: v for name, v in values.items() if getattr(config, name) is None}
        return dataclasses.replace(config, **free)

    batch = 128 if count >= 10_000 else 64 if count >= 2000 else 32
    config = fill(config, batch_size=batch)
    per_epoch = math.ceil(count / max(config.batch_size, 1))
    config = fill(config, epochs=int(np.clip(math.ceil(_TRAINING_STEPS / per_epoch), 20, 200)))
    config = fill(config, defer_epoch=config.epochs * 6 // 10)
    threshold = max(math.ceil(counts.max() / 10), 2 * int(counts.min()))
    imbalanced = counts.max() >= 2 * counts.min() and threshold > counts.min()
    config = fill(
        config,
        learning_rate=0.1 * config.batch_size / 128,
        warmup_epochs=min(config.epochs // 10, 5),
        second_decay_epoch=max(config.epochs * 9 // 10, config.defer_epoch + 1),
        generation_delay=1 if config.epochs >= 10 else 0,
        keep_threshold=threshold if imbalanced else 0,
        generator_steps=int(np.clip(4 * count // config.generator_batch_size, 3000, 20_000)),
        generator_downsamplings=2 if large > 32 and not (height % 4 or width % 4) else 1,
        style_downsamplings=4 if small > 32 else 3,
        discriminator_layers=4 if small > 32 else 3,
    )
    varied = counts[counts < config.keep_threshold].sum() if config.keep_threshold else count
    fitting = _BANK_BYTES // (max(int(varied), 1) * height * width * channels)
    bank = int(min(fitting, 16))
    config = fill(config, generator_bank=bank if bank >= 4 else 0)
    return dataclasses.replace(config, keep_threshold=config.keep_threshold or None)


def load(config: Config, cache_dir: Path) -> kg.data.ImageFolder:
    """Reads the folder, with the progress on the terminal."""
    size = config.image_size
    with reports("reading images") as progress:
        return kg.data.load_image_folder(
            config.data_dir or "",
            image_size=None if not size else (size[0], size[-1]),
            colour=config.colour,
            test_share=config.test_fraction,
            validation_share=config.validation_fraction,
            group_regex=config.group_regex,
            strict=config.strict,
            seed=config.data_seed,
            cache_dir=cache_dir,
            max_per_class=_QUICK_PER_CLASS if config.quick else None,
            progress=progress,
        )


def run(config: Config) -> dict[str, Any]:
    """Runs the experiment, or what is left of it, and returns the content of `results.json`.

    Raises:
        InputError: bad settings, images or output folder.
    """
    given, config = config, prepared(config)
    with ResultsFolder(config.output_dir, settings.decisive_settings(config)) as folder:
        results = folder.read_results()
        if not results.get("finished") or not _are_there(folder, _WRITTEN):
            _run(given, config, folder)
            results = folder.read_results()
        else:
            print_summary(results, str(folder.path))
            folder.clean_up()
        _check_export(results, folder)
        print(f"the best model, to be used without this program: {folder.path / 'export'}")
        return results


def _are_there(folder: ResultsFolder, names: Sequence[str]) -> bool:
    return all((folder.path / name).is_file() for name in names)


def _run(given: Config, config: Config, folder: ResultsFolder) -> None:
    """Does what is left to do, by the files that are there."""
    started = time.monotonic()
    cache_dir = Path(config.cache_dir).expanduser() if config.cache_dir else folder.checkpoints
    images = load(config, cache_dir)
    _write_unreadable(images.unreadable, folder)
    sizes = stages.feasible_sizes(config, images.splits.train)
    splits = stages.long_tailed(config, images.splits, folder.checkpoints, sizes)
    config = chosen_settings(config, splits.train)
    # They are shrunk already: a second time would change what was chosen.
    config, methods = settings.checked(config, lambda shrunk: shrunk, own_validation=True)
    results = stages.train_and_measure(config, methods, splits, folder, started)
    results["chosen_settings"] = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if getattr(given, name) is None and value is not None
    }
    known = "test_images" in results.get("export", {})  # not in those of older versions
    if not known or not _are_there(folder, _EXPORT_FILES):
        results["export"] = _export(config, methods, images, splits, folder)
        folder.write_results(results)
    _audit(config, methods, splits, folder, results["export"]["seed"])
    stages.finish(config, folder, results)
    results = folder.read_results()
    versions = folder.read_config()["versions"]
    card = model_card(given, config, results, images, splits, versions)
    (folder.path / "export").mkdir(exist_ok=True)
    write_atomically(folder.path / "export" / "model_card.md", card)
    folder.write_results({**results, "finished": True})


def _check_export(results: Mapping[str, Any], folder: ResultsFolder) -> None:
    """Raises `InputError` if the file that was exported is not the classifier that was tested."""
    export = results["export"]
    reported = results["methods"][export["method"]]["seeds"][str(export["seed"])]["test_accuracy"]
    # Other batches, other rounding: a tie may fall the other way.
    allowed = max(1.5 / export["test_images"], 0.002)
    if abs(export["test_accuracy"] - reported) > allowed:
        raise InputError(
            f"the exported model has test accuracy {export['test_accuracy']:.4f}, the classifier "
            f"in training had {reported:.4f}: do not use {folder.path / 'export'}, remove it and "
            "run again; the other results are complete"
        )


def _write_unreadable(unreadable: Sequence[tuple[str, str]], folder: ResultsFolder) -> None:
    """`unreadable.csv`; bytes in a name that are not UTF-8 are written as escapes."""
    rows = [
        {"path": os.fsencode(path).decode("utf-8", "backslashreplace"), "reason": reason}
        for path, reason in unreadable
    ]
    folder.write_table("unreadable.csv", ("path", "reason"), rows)


def _network(folder: ResultsFolder, method: Recipe, seed: int) -> keras.Model:
    path = folder.models / f"classifier_{method.name}_seed{seed}.keras"
    return keras.models.load_model(path, compile=False)


def _audit(
    config: Config,
    methods: Sequence[Recipe],
    splits: kg.data.Splits,
    folder: ResultsFolder,
    seed: int,
) -> None:
    """Audit of the classifiers of one seed, that of the exported one, on the test images.

    Each method's audit is kept as soon as it is done, so that an interruption costs one at most.
    """
    if _are_there(folder, _AUDIT_FILES):
        return
    number = _audit_images(config, splits.test)
    if number < config.invariance_images:
        logging.warning(
            "audit: %d images per class in place of %d, to stay near %d evaluations per method",
            number,
            config.invariance_images,
            _AUDIT_EVALUATIONS,
        )
    found = []
    for method in methods:
        path = folder.checkpoints / f"audit_{method.name}_seed{seed}.json"
        if not path.exists():
            network = _network(folder, method, seed)
            if method.logit_scale != 1.0:
                network = keras.Model(network.inputs, network.outputs[0] * method.logit_scale)
            with reports(f"audit of {method.name}") as progress:
                kg.audit(
                    {method.name: network},
                    splits.test,
                    _QUICK_AUDIT if config.quick else None,
                    class_counts=splits.train.class_counts,
                    outputs="logits",
                    num_samples=config.invariance_samples,
                    batch_size=config.evaluation_batch_size,
                    seed=config.data_seed,
                    images_per_class=number,
                    progress=lambda done, planned, what, show=progress: show(done, planned),
                ).to_json(path)
        found.append(AuditResult.from_json(path))
    result = join_results(found)
    for name, write in zip(
        _AUDIT_FILES, (result.to_json, result.to_csv, result.to_html), strict=True
    ):
        write(folder.path / name)


def _audit_images(config: Config, test: kg.data.ImageDataset) -> int:
    """Images per class for the audit: fewer where classes are many."""
    rungs = sum(len(ladder.rungs(test.image_shape)) for ladder in LADDERS.values())
    per_image = test.num_classes * rungs * config.invariance_samples
    most = max(_AUDIT_EVALUATIONS // per_image, _AUDIT_LEAST_IMAGES)
    return min(config.invariance_images, most)


def _export(
    config: Config,
    methods: Sequence[Recipe],
    images: kg.data.ImageFolder,
    splits: kg.data.Splits,
    folder: ResultsFolder,
) -> dict[str, Any]:
    """Writes the model that is best on the validation images, and measures what it wrote."""
    scores = _validation_scores(config, methods, splits.validation, folder)
    if scores:
        method, seed = max(scores, key=lambda pair: scores[pair])
    else:
        method, seed = methods[-1], config.seeds[0]
        logging.info("no validation images: the last method, %s, is exported", method.name)
    network = _network(folder, method, seed)
    model = kg.export.with_preprocessing(network, logit_scale=method.logit_scale)
    target = folder.path / "export"
    target.mkdir(exist_ok=True)
    with replacement(target / "model.keras") as temporary:
        model.save(temporary)
    write_atomically(target / "class_names.json", to_json(list(splits.train.class_names)))
    opened = keras.models.load_model(target / "model.keras", compile=False)
    probabilities = _probabilities(opened, splits.test.images, config.evaluation_batch_size)
    accuracy = float(np.mean(probabilities.argmax(-1) == splits.test.labels))
    return {
        "method": method.name,
        "seed": seed,
        "validation": {
            f"{m.name}_seed{s}": {"balanced_accuracy": score[0], "log_likelihood": score[1]}
            for (m, s), score in scores.items()
        },
        "test_accuracy": accuracy,
        "test_images": len(splits.test),
        "original_files": _original_files(config, opened, images),
    }


def _validation_scores(
    config: Config,
    methods: Sequence[Recipe],
    validation: kg.data.ImageDataset | None,
    folder: ResultsFolder,
) -> dict[tuple[Recipe, int], tuple[float, float]]:
    """Balanced accuracy and, for ties, balanced log-likelihood of each classifier."""
    scores: dict[tuple[Recipe, int], tuple[float, float]] = {}
    if validation is None:
        return scores
    labels = validation.labels
    for method in methods:
        for seed in config.seeds:
            logits = Logits(_network(folder, method, seed), config.evaluation_batch_size)
            outputs = logits(validation.images).astype("float64") * method.logit_scale
            shifted = outputs - outputs.max(axis=-1, keepdims=True)
            log_p = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
            right, likelihood = outputs.argmax(-1) == labels, log_p[np.arange(len(labels)), labels]
            classes = [labels == label for label in np.unique(labels)]
            scores[method, seed] = tuple(
                float(np.mean([values[members].mean() for members in classes]))
                for values in (right, likelihood)
            )
    return scores


def _probabilities(model: keras.Model, images: np.ndarray, batch_size: int) -> np.ndarray:
    """Outputs of an exported model, which takes colour images, for images of the training size."""
    parts = []
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        batch = np.broadcast_to(batch, (*batch.shape[:3], 3))
        parts.append(keras.ops.convert_to_numpy(model.predict_on_batch(batch)))
    return np.concatenate(parts)


def _original_files(
    config: Config, model: keras.Model, images: kg.data.ImageFolder
) -> dict[str, Any]:
    """How the model does on test files in their own sizes, which it resizes itself.

    Pillow rounds to 8 bits when it resizes, and shrinks large JPEG files while it decodes them.
    """
    test, files = images.splits.test, images.files["test"]
    chosen = np.unique(np.linspace(0, len(test) - 1, min(_ORIGINALS, len(test))).astype(int))
    resized = _probabilities(model, test.images[chosen], len(chosen))
    original = []
    for index in chosen:
        image = kg.data.read_image(Path(config.data_dir or "").expanduser() / files[index])
        output = model(image[None], training=False)
        original.append(keras.ops.convert_to_numpy(output)[0])
    difference = np.abs(np.stack(original) - resized)
    same = np.stack(original).argmax(-1) == resized.argmax(-1)
    return {
        "files": len(chosen),
        "same_prediction": float(same.mean()),
        "largest_difference_of_a_probability": float(difference.max()),
    }


if __name__ == "__main__":
    command_line.main(Config, run)
