"""K49-LT: the paper's study of a known nuisance on long-tailed Kuzushiji-49, over many versions.

    python -m experiments.k49_lt --flagfile=experiments/flagfiles/k49_lt.cfg --data_dir=DIR

A version gives the class sizes to other classes and has its own nuisance draws, generator and
classifiers, in its own folder `versions/NNN`. The same command continues an interrupted run and
never runs a finished version again. `--shard=2/4` runs the second of four shares of the versions,
say on another machine; the call without it runs what is missing and collects all versions that are
there, also folders copied from elsewhere.

Reference: Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022,
section 3.
"""

from __future__ import annotations

import dataclasses
import gc
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
from absl import logging

import keras_git as kg
from experiments import command_line
from experiments.command_line import option
from experiments.measurement import first_per_class
from experiments.report import write_report
from experiments.results_folder import ResultsFolder
from experiments.settings import TRANSFORMS, TrainingConfig, decisive_settings, quick_training
from experiments.settings import checked as checked_training
from experiments.stages import train_and_measure
from experiments.summary import per_class_rows, summarize
from experiments.version_summary import (
    combine,
    paired_test_rows,
    rank_rows,
    summary_rows,
    table,
)
from keras_git.data import k49
from keras_git.errors import InputError
from keras_git.recipes import NAMES, Recipe

# Training seeds of different versions must differ: seed * _SEED_STEP + version.
_SEED_STEP = 1000
_RECOGNITION_PER_CLASS = 220
# What all versions of one study have in common, and what it means if they have not.
_SHARED_BY_VERSIONS = {
    "test_content_hash": "measured on different test images",
    "invariance_content_hash": "made from different training images",
}
# What says which versions are run here, and so decides no result of a version.
_NOT_DECISIVE = ("versions", "shard", "collect_only")


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of the study; each is a flag of the same name."""

    data_dir: str | None = option(None, "Folder of the four .npz files of Kuzushiji-49.")
    download: bool = option(
        False, "Fetch the official files into --data_dir; their MD5 is checked."
    )
    nuisance: str = option(
        "background", "The nuisance; grey_level is not one of the paper's.", k49.NUISANCES
    )
    versions: tuple[str, ...] = option(("0-29",), "Versions, numbers and ranges: 0-4,7,9.")
    shard: str | None = option(None, "i/n: only the i-th (1 to n) of n shares of the versions.")
    collect_only: bool = option(False, "Train nothing; collect the finished versions.")
    zipf_exponent: float = option(2.0, "Exponent of the class sizes; the paper: 2.0 and 1.02.")
    largest_class: int = option(4800, "Images of the largest class.")
    smallest_class: int = option(5, "Lower bound of the class sizes.")
    validation_fraction: float = option(
        0.2, "Part of the training images set aside: untransformed for eKLD, transformed for ..."
    )
    validation_images: int = option(
        0, "... the selection of an epoch, so many per class; 0: last epoch only."
    )
    transformed_class_rank: int | None = option(
        None, "Only the training images of the class at this rank of size, 0-48, are transformed."
    )
    base_images: int | None = option(
        None, "Base images of which all images of a class are made; default: all there are."
    )

    # Other defaults than those of CIFAR-LT
    methods: tuple[str, ...] = option(
        ("erm", "class_balanced_sampling", "drs", "ldam", "git", "oracle"),
        "Methods, each a name or a sum of names: " + ", ".join(NAMES) + ".",
    )
    seeds: tuple[int, ...] = option(
        (0,), f"Training seeds of every version (seed * {_SEED_STEP} + version is used)."
    )
    depth: int = option(20, "Depth of the ResNet: 8, 14, 20, 32, 44, 56, 110.")
    epochs: int = option(50, "Epochs.")
    defer_epoch: int = option(30, "Epoch from which drs re-samples and drw re-weights.")
    second_decay_epoch: int = option(40, "Epoch of the second decay of the learning rate.")
    augmentation: str = option("none", "Augmentation.", ("none", "flip", "crop_flip"))
    generator_steps: int = option(10000, "Training steps of the generator.")
    invariance_transforms: tuple[str, ...] = option(
        (),
        "Transformations of the eKLD; default: the nuisance. Known: " + ", ".join(TRANSFORMS) + ".",
    )
    invariance_samples: int = option(100, "Draws of a transformation per image.")
    output_dir: str = option("results/k49_lt", "Folder of the results; one per configuration.")


def quick(config: Config) -> Config:
    """A configuration that runs every stage of two versions in seconds."""
    return dataclasses.replace(
        quick_training(config),
        largest_class=24,
        smallest_class=4,
        validation_images=min(config.validation_images, 2),
    )


def parse_versions(texts: tuple[str, ...]) -> list[int]:
    """Reads `("0-4", "7")` as 0, 1, 2, 3, 4, 7.

    Raises:
        InputError: no version, a bad range, or a version twice.
    """
    versions: list[int] = []
    for text in texts:
        found = re.fullmatch(r"(\d+)(?:-(\d+))?", text.strip())
        last = int(found[2] or found[1]) if found else -1
        if not found or not int(found[1]) <= last < _SEED_STEP:
            raise InputError(
                f"--versions={','.join(texts)}: {text!r} is neither a number nor a range such as "
                f"0-29, 0 to {_SEED_STEP - 1}"
            )
        versions += range(int(found[1]), last + 1)
    if not versions or len(set(versions)) < len(versions):
        raise InputError(f"--versions={','.join(texts)}: name at least one, and each once")
    return versions


def share(versions: list[int], shard: str | None) -> list[int]:
    """Every n-th version, from the i-th on, for the shard `"i/n"`; all for None.

    Raises:
        InputError: not of the form i/n with i = 1..n.
    """
    if shard is None:
        return versions
    found = re.fullmatch(r"(\d+)/(\d+)", shard.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard={shard}: use i/n with i from 1 to n, such as 1/4")
    return versions[int(found[1]) - 1 :: int(found[2])]


def checked(config: Config) -> tuple[Config, list[Recipe], list[int]]:
    """Fills in defaults and checks what can be checked without data.

    Returns:
        The settings, the methods and the versions of this call.

    Raises:
        InputError: a value or a combination of values that cannot work.
    """
    versions = parse_versions(config.versions)
    if config.quick:
        versions = versions[:2]
    versions = share(versions, config.shard)
    if config.collect_only and config.shard:
        raise InputError("--collect_only collects all shards: leave --shard out")
    if not config.invariance_transforms:
        config = dataclasses.replace(config, invariance_transforms=(config.nuisance,))
    if config.validation_images < 0:
        raise InputError(f"--validation_images={config.validation_images}: use 0 or more")
    if config.invariance_split == "validation":
        raise InputError(
            "--invariance_split=validation: the validation images of K49-LT are transformed "
            "already; leave it at auto, which measures eKLD on them before that"
        )
    config, methods = checked_training(config, quick)
    return config, methods, versions


def run(config: Config) -> dict[str, Any]:
    """Runs the versions that are not finished; collects all that are there, unless it is a shard.

    Returns:
        The content of `results.json`; of a shard, an empty dictionary.

    Raises:
        InputError: bad settings, data, generator file or output folder.
    """
    config, methods, versions = checked(config)
    settings = decisive_settings(config)
    for name in _NOT_DECISIVE:
        del settings[name]
    root = Path(config.output_dir)
    ResultsFolder(root, settings).check()
    folders = {v: _version_folder(root, v, settings) for v in versions}
    missing = [] if config.collect_only else [v for v in versions if not _finished(folders[v])]
    if missing:
        study = _study(config)
        for version in missing:
            _run_version(config, methods, study, version, folders[version])
            _free_memory()
    if config.shard:
        logging.info(
            "shard %s: versions %s are finished in %s; the call without --shard collects them",
            config.shard,
            ", ".join(map(str, versions)) or "none",
            root / "versions",
        )
        return {}
    return _collect(root, settings)


def _free_memory() -> None:
    """Networks, compiled functions and images of one version do not serve the next."""
    keras.utils.clear_session()
    gc.collect()


def _version_folder(root: Path, version: int, settings: dict[str, Any]) -> ResultsFolder:
    return ResultsFolder(root / "versions" / f"{version:03d}", {**settings, "version": version})


def _finished(folder: ResultsFolder) -> bool:
    """Whether a version is done. Raises `InputError` if it was made with other settings."""
    folder.check()
    return bool(folder.read_results().get("finished"))


def _study(config: Config) -> kg.data.K49LongTail:
    """The source, and what makes versions of it."""
    if config.data_dir is None:
        raise InputError("--data_dir: name the folder of the .npz files of Kuzushiji-49")
    source = kg.data.load_k49(config.data_dir, download=config.download)
    logging.info("data: %s, %d + %d images", source.train.name, len(source.train), len(source.test))
    if config.quick:
        source = kg.data.Splits(
            source.train.take(first_per_class(source.train.labels, 60)),
            source.test.take(first_per_class(source.test.labels, 20)),
        )
    return kg.data.K49LongTail(
        source,
        config.nuisance,
        alpha=config.zipf_exponent,
        largest=config.largest_class,
        smallest=config.smallest_class,
        validation_fraction=config.validation_fraction,
        transformed_class_rank=config.transformed_class_rank,
        base_images=config.base_images,
        recognition_per_class=_RECOGNITION_PER_CLASS if config.recognition_epochs else 0,
        seed=config.data_seed,
    )


def _run_version(
    config: Config,
    methods: list[Recipe],
    study: kg.data.K49LongTail,
    version: int,
    folder: ResultsFolder,
) -> None:
    """Runs one version, or what is left of it."""
    started = time.monotonic()
    config = dataclasses.replace(
        config,
        seeds=tuple(seed * _SEED_STEP + version for seed in config.seeds),
        generator_seed=config.generator_seed * _SEED_STEP + version,
    )
    with folder:
        logging.info("version %d, in %s", version, folder.path)
        made = study.version(version)
        validation = made.splits.validation
        if validation is not None:
            chosen = first_per_class(validation.labels, config.validation_images)
            validation = validation.take(chosen) if config.validation_images else None
        results = train_and_measure(
            config,
            methods,
            dataclasses.replace(made.splits, validation=validation),
            folder,
            started,
            oracle=(made.untransformed, study.transform),
        )
        # In the order of the command, whatever order the run was interrupted in.
        results["methods"] = {method.name: results["methods"][method.name] for method in methods}
        summarize(results)
        results.update(
            version=version,
            nuisance=config.nuisance,
            transformed_class_rank=config.transformed_class_rank,
            class_order=made.class_order.tolist(),
        )
        folder.write_table("per_class.csv", *per_class_rows(results))
        folder.write_results(results)
        folder.clean_up()
        folder.write_results({**results, "finished": True})


def _collect(root: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Combines all finished versions in the folder, whichever machine they are from."""
    found: dict[int, dict[str, Any]] = {}
    made_of: dict[str, dict[str, int]] = {name: {} for name in _SHARED_BY_VERSIONS}
    software: dict[str, str] = {}
    for path in sorted((root / "versions").glob("[0-9]*")):
        if not re.fullmatch(r"\d{3}", path.name):
            raise InputError(f"{path} is no version: versions are folders such as 003; remove it")
        folder = _version_folder(root, int(path.name), settings)
        if not _finished(folder):
            logging.info("version %s is not finished: left out", path.name)
            continue
        found[int(path.name)] = folder.read_results()
        stored = folder.read_config()
        software = software or stored["versions"]
        for name, versions in made_of.items():
            if stored.get(name):  # older versions of this program wrote fewer
                versions.setdefault(stored[name], int(path.name))
    if not found:
        raise InputError(f"{root / 'versions'} has no finished version: run some")
    for name, versions in made_of.items():
        if len(versions) > 1:
            first, second, *_ = versions.values()
            raise InputError(
                f"versions {first:03d} and {second:03d} in {root / 'versions'} were "
                f"{_SHARED_BY_VERSIONS[name]}: the data of one were others; remove the wrong ones"
            )
    results = combine(found)
    with ResultsFolder(root, settings) as folder:
        hashes = {name: next(iter(versions)) for name, versions in made_of.items() if versions}
        folder.write_config(dataset=results["dataset"], **hashes)
        folder.write_results(results)
        columns, rows = per_class_rows(results)
        folder.write_table("per_class.csv", *rank_rows(columns, rows, results))
        folder.write_table("summary.csv", *summary_rows(results))
        folder.write_table("paired_tests.csv", *paired_test_rows(results))
        kg.plots.ekld_against_class_size(results, folder.pictures / "ekld_against_class_size.png")
        kg.plots.accuracy_per_class(results, folder.pictures / "accuracy_per_class.png")
        write_report(
            folder.read_results(), root / "report.html", settings=folder.settings, versions=software
        )
        folder.clean_up()
        folder.models.rmdir()  # the models are in the folders of the versions
        print(f"\n{table(results)}\n\nresults and pictures: {root}", flush=True)
        return folder.read_results()


if __name__ == "__main__":
    command_line.main(Config, run)
