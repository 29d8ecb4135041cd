"""The suites of `experiments.table`: which methods are run on which data with which settings.

To add a method to a suite, add its key to `methods`; to add a suite, add a record to `SUITES`.
Methods whose first epochs are the same stand side by side, so that shards keep them together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import keras_git as kg
from experiments import cifar_lt
from experiments.command_line import parsed
from keras_git.errors import InputError

# What has a flag of its own in a table, and what has no place there.
_OTHER_FLAGS = {
    "dataset": "--datasets",
    "imbalance_ratio": "--imbalance_ratios",
    "methods": "--methods",
    "seeds": "--seeds",
    "data_dir": "--data_dir",
    "download": "--download",
    "output_dir": "--output_dir",
    "quick": "--suite=quick",
}
_REFUSED = ("export", "augment_from_factors", "factors_per_set", "class_counts")


@dataclass(frozen=True)
class Suite:
    """A matrix of cells: datasets x imbalance ratios x methods (x the seeds of the call).

    Attributes:
        name: value of `--suite`.
        description: one sentence for the page.
        datasets: as in `experiments.cifar_lt --dataset`.
        imbalance_ratios: size of the largest class over the smallest.
        methods: keys, each a name or a sum of names.
        settings: the settings of `experiments.cifar_lt` that are not its defaults.
    """

    name: str
    description: str
    datasets: tuple[str, ...]
    imbalance_ratios: tuple[float, ...]
    methods: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "settings", MappingProxyType(dict(self.settings)))

    def config(self, overrides: Sequence[str] = ()) -> cifar_lt.Config:
        """The settings that all cells have in common; see `parse_overrides`."""
        changes = {**self.settings, **parse_overrides(overrides)}
        return dataclasses.replace(cifar_lt.Config(), **changes)


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Reads `("epochs=24", "whitening", "invariance_transforms=brightness:contrast")`.

    Returns:
        The settings of `experiments.cifar_lt` that were given.

    Raises:
        InputError: no setting of `experiments.cifar_lt`, a bad value, or a setting with a flag of
            its own.
    """
    tuples = {f.name for f in dataclasses.fields(cifar_lt.Config) if isinstance(f.default, tuple)}
    given: dict[str, Any] = {}
    for text in overrides:
        name, equals, value = text.strip().partition("=")
        if not name:
            raise InputError(f"--override={','.join(overrides)}: use name=value,name=value")
        if name in tuples:
            value = value.replace(":", ",")
        try:
            config, present = parsed(cifar_lt.Config, [f"--{name}{equals}{value}"])
        except InputError as error:
            raise InputError(f"--override={text}: {error}") from error
        for setting in present:
            if setting in _OTHER_FLAGS:
                raise InputError(f"--override={text}: use {_OTHER_FLAGS[setting]}")
            if setting in _REFUSED:
                raise InputError(f"--override={text}: a table has no place for {setting}")
            given[setting] = getattr(config, setting)
    return given


# What follows plain training, or leaves it at the deferral, costs little more than it alone.
_METHODS = (
    "erm",
    "post_hoc_logit_adjustment",
    "tau_normalization",
    "crt",
    "lws",
    "drs",
    "git",
    "drw",
    "class_balanced_sampling",
    "square_root_sampling",
    "progressive_sampling",
    "inverse_weighting",
    "class_balanced_loss",
    "focal",
    "ldam",
    "ldam_drw",
    "balanced_softmax",
    "logit_adjustment",
    "git+logit_adjustment",
    "vs",
    "label_smoothing+logit_adjustment",
    "isda+drw",
    "mixup+drw",
    "cutmix+drw",
    "remix+drw",
    "cmo",
    "sam+logit_adjustment",
    "ema+logit_adjustment",
    "git+ema+logit_adjustment",
    "cosine+logit_adjustment",
    "randaugment",
    "autoaugment",
    "randaugment+drs",
    "git+randaugment",
    "randaugment+logit_adjustment",
    "git+randaugment+logit_adjustment",
    "ema+randaugment+logit_adjustment",
    "git+ema+randaugment+logit_adjustment",
)
# Of these, what a CPU can train in an hour or two.
_CPU_METHODS = (
    "erm",
    "post_hoc_logit_adjustment",
    "tau_normalization",
    "crt",
    "drs",
    "git",
    "logit_adjustment",
    "git+logit_adjustment",
    "ldam_drw",
    "drw",
    "randaugment+logit_adjustment",
    "git+randaugment+logit_adjustment",
    "ema+logit_adjustment",
    "git+ema+logit_adjustment",
    "mixup+drw",
    "cmo",
)
# The generator is not among the transformations: cells of other methods need not wait for it.
_PUBLISHED = {
    "domains": 2,
    "invariance_transforms": ("rotation", "brightness", "contrast"),
}
# As cifar10_lt_cpu.cfg, and a smaller network for fewer epochs.
_CPU = {
    "depth": 8,
    "epochs": 16,
    "defer_epoch": 11,
    "second_decay_epoch": 14,
    "warmup_epochs": 1,
    "second_stage_epochs": 3,
    "generator_bank": 16,
    "generator_steps": 6000,
    "generator_picture_steps": 2000,
    "generator_batch_size": 8,
    "generator_learning_rate": 5e-4,
    "generator_schedule": "constant_then_linear",
    "generator_width": 16,
    "generator_downsamplings": 1,
    "generator_residual_blocks": 2,
    "generator_outer_kernel": 5,
    "generator_upsampling_kernel": 3,
    "generator_mlp_width": 64,
    "style_downsamplings": 3,
    "discriminator_width": 32,
    "discriminator_layers": 3,
    "invariance_transforms": ("brightness", "contrast"),
}
_QUICK = {
    "num_classes": 20,
    "largest_class": 60,
    "depth": 8,
    "batch_size": 32,
    "drop_remainder": True,
    "augmentation": "none",
    "epochs": 12,
    "defer_epoch": 8,
    "second_decay_epoch": 10,
    "first_decay_factor": 0.1,
    "second_decay_factor": 0.01,
    "warmup_epochs": 1,
    "generation_delay": 0,
    "generator_bank": 4,
    "generator_steps": 100,
    "generator_checkpoint_steps": 50,
    "generator_picture_steps": 100,
    "generator_batch_size": 8,
    "generator_learning_rate": 1e-3,
    "generator_flip": False,
    "generator_width": 8,
    "generator_downsamplings": 1,
    "generator_residual_blocks": 1,
    "generator_outer_kernel": 3,
    "generator_upsampling_kernel": 3,
    "generator_mlp_width": 16,
    "style_downsamplings": 2,
    "discriminator_width": 8,
    "discriminator_layers": 2,
    "invariance_transforms": ("grey_level",),
    "invariance_images": 8,
    "invariance_samples": 4,
}

SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            "quick",
            "Built-in images and tiny trainings: shows the program, the numbers mean nothing.",
            ("glyphs",),
            (10.0,),
            ("erm", "drs", "git", "balanced_softmax"),
            _QUICK,
        ),
        Suite(
            "cifar10_lt",
            "CIFAR-10-LT in the field's usual setting: thin ResNet-32, 200 epochs.",
            ("cifar10",),
            (100.0,),
            _METHODS,
            _PUBLISHED,
        ),
        Suite(
            "cifar100_lt",
            "CIFAR-100-LT in the field's usual setting: thin ResNet-32, 200 epochs.",
            ("cifar100",),
            (100.0,),
            _METHODS,
            _PUBLISHED,
        ),
        Suite(
            "cifar10_lt_cpu",
            "CIFAR-10-LT, reduced to what 2 CPU cores can do: ResNet-8, 16 epochs.",
            ("cifar10",),
            (100.0,),
            _CPU_METHODS,
            {**_CPU, "keep_threshold": 500},
        ),
        Suite(
            "cifar100_lt_cpu",
            "CIFAR-100-LT, reduced to what 2 CPU cores can do: ResNet-8, 16 epochs.",
            ("cifar100",),
            (100.0,),
            _CPU_METHODS,
            {**_CPU, "keep_threshold": 100},
        ),
    )
}


def check_suites() -> None:
    """Raises `InputError` for a suite with a method or a setting that does not exist."""
    names = {f.name for f in dataclasses.fields(cifar_lt.Config)}
    for suite in SUITES.values():
        for key in suite.methods:
            kg.recipes.get(key)
        if unknown := sorted(set(suite.settings) - names):
            raise InputError(f"suite {suite.name}: {unknown[0]} is no setting")
