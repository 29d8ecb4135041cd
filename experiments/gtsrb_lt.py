"""GIT on long-tailed traffic signs (GTSRB-LT), split by track.

    python -m experiments.gtsrb_lt --flagfile=experiments/flagfiles/gtsrb_lt.cfg --data_dir=DIR

The published subset is not available (its indices were not released), so the rule here is our own:
classes are ranked by their number of training images, the class at rank r keeps
`max(trunc(largest * r ** -1.8), smallest)` of them, drawn at random from its training tracks.

Reference: Zhou et al., *Do Deep Networks Transfer Invariances Across Classes?*, ICLR 2022.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import keras_git as kg
from experiments import command_line
from experiments.command_line import option
from experiments.settings import TrainingConfig, checked, quick_training
from experiments.stages import long_tailed, run_on, sizes_by_rank
from keras_git.errors import InputError


@dataclass(frozen=True)
class Config(TrainingConfig):
    """Settings of a run; each is a flag of the same name."""

    data_dir: str | None = option(None, "Folder of the training and test images.")
    image_size: int = option(32, "Height and width to which images are resized.")
    crop_to_sign: bool = option(False, "Cut out the annotated sign; the paper uses whole images.")
    profile: str = option(
        "zipf",
        "Class sizes by rank; as_is keeps all training images.",
        ("zipf", "exponential", "step", "as_is"),
    )
    zipf_exponent: float = option(1.8, "Exponent of the zipf profile.")
    largest_class: int | None = option(
        None, "Images of the largest class; default: all that the largest class has."
    )
    smallest_class: int = option(5, "Images of the smallest class (zipf: lower bound).")
    selection: str = option("random", "Which images of a class are kept.", ("first", "random"))
    validation_fraction: float = option(
        0.2, "Part of the tracks of each class for the selection of an epoch; 0: last epoch only."
    )
    test_fraction: float = option(
        0.2, "Part of the tracks of each class for the test, if there are no test images."
    )

    # Other defaults than those of CIFAR-LT
    augmentation: str = option(
        "none", "Augmentation; a flip turns some signs into others.", ("none", "flip", "crop_flip")
    )
    generator_flip: bool = option(False, "Flip images for the generator.")
    output_dir: str = option("results/gtsrb_lt", "Folder of the results; one per configuration.")


def quick(config: Config) -> Config:
    """A configuration that runs every stage of `config` in seconds."""
    return dataclasses.replace(
        quick_training(config),
        largest_class=min(config.largest_class or 24, 24),
        smallest_class=min(config.smallest_class, 4),
    )


def class_sizes(config: Config, train: kg.data.ImageDataset) -> np.ndarray | None:
    """Images to keep of each class: the profile by rank of the images that there are.

    Args:
        config: settings of the experiment.
        train: all training images.

    Returns:
        int64 (C,), at most what there is; None keeps all.
    """
    if config.profile == "as_is":
        return None
    largest = config.largest_class
    wanted = kg.data.class_sizes(
        config.profile,
        train.num_classes,
        int(train.class_counts.max()) if largest is None else largest,
        smallest=config.smallest_class,
        alpha=config.zipf_exponent,
    )
    return sizes_by_rank(wanted, train)


def load_data(config: Config, cache_dir: Path) -> kg.data.Splits:
    """The long-tailed training set, validation and test images."""
    if config.data_dir is None:
        raise InputError("--data_dir: name the folder of the GTSRB images")
    splits = kg.data.load_gtsrb(
        config.data_dir,
        validation_fraction=config.validation_fraction,
        test_fraction=config.test_fraction,
        crop_to_sign=config.crop_to_sign,
        image_size=config.image_size,
        seed=config.data_seed,
    )
    return long_tailed(config, splits, cache_dir, class_sizes(config, splits.train))


def run(config: Config) -> dict[str, Any]:
    """Runs the experiment, or what is left of it, and returns the content of `results.json`.

    Raises:
        InputError: bad settings, data, generator file or output folder.
    """
    return run_on(*checked(config, quick), load_data)


if __name__ == "__main__":
    command_line.main(Config, run)
