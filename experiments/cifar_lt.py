"""GIT on a long-tailed dataset: generator, classifiers, eKLD and accuracy per class.

    python -m experiments.cifar_lt --flagfile=experiments/flagfiles/quickstart.cfg

The same command continues an interrupted run. It runs every dataset, whatever the name says.

Reference: Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_git as kg
from experiments import command_line
from experiments.command_line import option
from experiments.progress import reports
from experiments.settings import LongTailConfig, checked, quick
from experiments.stages import class_sizes, feasible_sizes, long_tailed, run_on
from keras_git.errors import InputError


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


def load_data(config: Config, cache_dir: Path) -> kg.data.Splits:
    """The long-tailed training set, the test set and what else the dataset offers."""
    if config.dataset == "glyphs":
        if config.profile == "as_is":
            raise InputError("--profile=as_is: glyphs are drawn to order; choose a profile")
        sizes = class_sizes(config, config.num_classes, 250)
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
        splits = long_tailed(config, splits, cache_dir, feasible_sizes(config, splits.train))
    if config.validation_fraction:
        train = splits.train
        kept, held_out = kg.data.stratified_split(
            train.labels, config.validation_fraction, config.data_seed
        )
        splits = dataclasses.replace(
            splits, train=train.take(kept), validation=train.take(held_out)
        )
    return splits


def run(config: Config) -> dict[str, Any]:
    """Runs the experiment, or what is left of it, and returns the content of `results.json`.

    Raises:
        InputError: bad settings, data, generator file or output folder.
    """
    return run_on(*checked(config, quick), load_data)


if __name__ == "__main__":
    command_line.main(Config, run)
