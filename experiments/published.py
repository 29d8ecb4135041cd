"""Published errors, what they were trained with, and how a measured one compares.

A value stands here only with the paper and the table it is from. `settings` are those settings of
`experiments.cifar_lt` that the published run had and that decide a comparison; what a paper leaves
open is not in them. Of logit adjustment the epochs are those of the authors' own program, which
trains six times as long as most papers of the field.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

# Field's usual setting since Cao et al. 2019.
_USUAL = {
    "architecture": "resnet",
    "depth": 32,
    "width": None,
    "whitening": False,
    "epochs": 200,
    "batch_size": 128,
    "augmentation": "crop_flip",
    "profile": "exponential",
    "largest_class": None,
    "smallest_class": None,
    "selection": "first",
    "validation_fraction": 0.0,
}
_ANY_SUBSET = {k: v for k, v in _USUAL.items() if k != "selection"}
# Means of one seed from the next lie this many standard deviations apart before it is said.
LIMIT = 2.0


@dataclass(frozen=True)
class Published:
    """One published value.

    Attributes:
        method: key of our method; None for a method that is here for the context only.
        label: what the paper calls it.
        dataset: `"cifar10"` or `"cifar100"`, long-tailed by the exponential profile.
        imbalance_ratio: size of the largest class over the smallest.
        error: top-1 error on the balanced test set, %.
        source: paper and table.
        network: in words.
        epochs: of the whole training.
        augmentation: in words.
        settings: of `experiments.cifar_lt`, as far as they decide the comparison.
        note: what a reader must know, or "".
    """

    method: str | None
    label: str
    dataset: str
    imbalance_ratio: float
    error: float
    source: str
    network: str = "ResNet-32"
    epochs: int = 200
    augmentation: str = "crop, flip"
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType(_USUAL))
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """For `table.json`; without the settings."""
        names = [f.name for f in dataclasses.fields(self) if f.name != "settings"]
        return {name: getattr(self, name) for name in names}


def _both(method: str | None, label: str, errors: tuple[float, float], **more: Any) -> list[Any]:
    return [
        Published(method, label, dataset, 100.0, error, **more)
        for dataset, error in zip(("cifar10", "cifar100"), errors, strict=True)
    ]


_CAO = "Cao et al., NeurIPS 2019 (LDAM-DRW), table 2"
_ZHOU = "Zhou et al., ICLR 2022 (GIT), table of CIFAR-LT"
_MENON = "Menon et al., ICLR 2021 (logit adjustment), table of CIFAR-LT"
_MENON_NOTE = (
    "epochs are those of the authors' program (with Nesterov momentum), whose README measures "
    "{} for the same row: a training six times as long as the others here"
)

PUBLISHED: tuple[Published, ...] = (
    *_both("erm", "cross-entropy (ERM)", (29.64, 61.68), source=_CAO),
    *_both("drs", "CE + DRS", (24.93, 59.36), source=_ZHOU),
    *_both("ldam_drw", "LDAM-DRW", (22.97, 57.96), source=_CAO),
    *(
        Published(
            "logit_adjustment",
            "logit-adjusted loss",
            dataset,
            100.0,
            error,
            _MENON,
            epochs=epochs,
            settings=MappingProxyType({**_ANY_SUBSET, "epochs": epochs}),
            note=_MENON_NOTE.format(measured),
        )
        for dataset, error, epochs, measured in (
            ("cifar10", 22.33, 1241, "22.11 %"),
            ("cifar100", 56.11, 1419, "55.94 %"),
        )
    ),
    *_both(
        "git",
        "CE + DRS + GIT",
        (21.24, 55.65),
        source=_ZHOU,
        settings=MappingProxyType(
            {**_USUAL, "domains": 2, "generator_steps": 140000, "generator_bank": 0}
        ),
    ),
    *_both(
        None,
        "MiSLAS",
        (17.5, 53.0),
        source="Zhong et al., CVPR 2021 (MiSLAS); the authors' repository",
        augmentation="mixup, crop, flip",
        note="a second stage of classifier training comes after these epochs",
    ),
    *_both(
        None,
        "ProCo",
        (14.1, 47.2),
        source="Du et al., TPAMI 2024 (ProCo), table of CIFAR-LT",
        augmentation="contrastive: AutoAugment, Cutout, SimAugment",
        note="two augmented views of each image besides the one for the classifier",
    ),
)


def find(method: str, dataset: str, imbalance_ratio: float) -> Published | None:
    """The published value of a method, or None."""
    for value in PUBLISHED:
        if (value.method, value.dataset, value.imbalance_ratio) == (
            method,
            dataset,
            imbalance_ratio,
        ):
            return value
    return None


def context(dataset: str, imbalance_ratio: float) -> list[Published]:
    """Published values of methods that have no cell here."""
    return [
        value
        for value in PUBLISHED
        if value.method is None
        and (value.dataset, value.imbalance_ratio) == (dataset, imbalance_ratio)
    ]


def setting_differences(value: Published, config: Any) -> list[str]:
    """What was trained otherwise here, in words such as `epochs 24 instead of 200`."""
    return [
        f"{name} {getattr(config, name)} instead of {published}"
        for name, published in value.settings.items()
        if getattr(config, name) != published
    ]


def unusual_settings(config: Any) -> list[str]:
    """What is not the usual setting of the field, in the same words."""
    return [
        f"{name} {getattr(config, name)} instead of {usual}"
        for name, usual in _USUAL.items()
        if getattr(config, name) != usual
    ]


def has_values(dataset: str) -> bool:
    """Whether anything published is known for a dataset."""
    return any(value.dataset == dataset for value in PUBLISHED)


def compare(
    errors: Sequence[float], value: Published | None, differences: Sequence[str]
) -> dict[str, Any]:
    """Measured errors against the published one.

    Args:
        errors: top-1 error of each seed, %.
        value: what was published.
        differences: of the settings, as from `setting_differences`.

    Returns:
        `difference`: mean of ours minus the published, points, or None; `limit`: two sample
        standard deviations over our seeds, points, or None; `verdict`: "no value" (published or
        measured), "other setting", "n = 1", "agrees" (within the limit) or "differs" - the one
        that is marked on the page.
    """
    if value is None or not errors:
        return {"difference": None, "limit": None, "verdict": "no value"}
    difference = statistics.fmean(errors) - value.error
    limit = LIMIT * statistics.stdev(errors) if len(errors) > 1 else None
    if differences:
        verdict = "other setting"
    elif limit is None:
        verdict = "n = 1"
    else:
        verdict = "differs" if abs(difference) > limit else "agrees"
    return {"difference": difference, "limit": limit, "verdict": verdict}
