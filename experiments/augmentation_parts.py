"""What in standard augmentation does the work, and for which classes?

    F=experiments/flagfiles/augmentation_parts_cpu.cfg
    python -m experiments.augmentation_parts --flagfile=$F --data_dir=DIR

Trains the same network without crops, with translation alone, with scale alone, with both coupled
(random-resized-crop) and decoupled, and with a learned crop, on balanced and on long-tailed data,
and records accuracy and eKLD per class: is the gain the same for small classes? A finished training
is never run again; the same command continues.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from scipy import stats

import keras_git as kg
from experiments import command_line, whitening
from experiments.command_line import option
from experiments.measurement import first_per_class
from experiments.results_folder import FORMAT_VERSION, ResultsFolder
from experiments.settings import TRANSFORMS
from experiments.summary import text_table
from keras_git.analysis import LearnedCrop, crop_decomposition
from keras_git.errors import InputError
from keras_git.files import write_atomically

PARTS: dict[str, dict[str, Any]] = {
    "none": {"mode": "none"},
    "translation": {"mode": "translation"},
    "scale": {"mode": "scale"},
    "coupled": {"mode": "both", "couple": True},
    "decoupled": {"mode": "both", "couple": False},
    "fixed_crop": {"mode": "fixed_crop"},
}
LEARNED = "learned"
ARMS = (*PARTS, LEARNED)
BASELINE = "none"
_RUN_COLUMNS = (
    "imbalance_ratio", "augmentation_part", "seed", "diverged", "loss", "balanced_accuracy",
    "head", "middle", "tail", "seconds_per_epoch",
)  # fmt: skip
_CLASS_COLUMNS = (
    "imbalance_ratio", "augmentation_part", "class", "name", "training_images", "accuracy", "gain",
    "gain_standard_error",
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

    parts: tuple[str, ...] = option(
        ("none", "translation", "scale", "coupled", "decoupled", LEARNED),
        "What is compared: " + ", ".join(ARMS) + "; none must be among them.",
    )
    scale: tuple[float, ...] = option((0.08, 1.0), "Smallest and largest part of the area.")
    ratio: tuple[float, ...] = option((0.75, 4 / 3), "Smallest and largest aspect ratio.")
    size_law: str = option("area", "Law of the sizes of crops.", tuple(kg.analysis.crops.SIZE_LAWS))
    size_parameter: float = option(1.0, "Of the laws exponential (rate) and beta.")
    translate: float = option(0.3, "Largest translation, part of the side.")
    crop_size: int | None = option(None, "Pixels of fixed_crop; default: 3/4 of the side.")
    fill: str = option("0", "Outside of the image: a grey level, mean, edge or reflect.")
    flip: bool = option(True, "Mirror half of the images, with every part.")
    learned_reg: float = option(0.1, "Weight of the learned crop's regulariser.")
    learned_rate_factor: float = option(0.1, "Learning rate of its widths, relative.")

    architecture: str = option("resnet", "Networks.", ("resnet", "wide_resnet"))
    depth: int = option(20, "Depth: of resnet 8, 14, 20, 32, ...; of wide_resnet 18, 34, 50.")
    width: int | None = option(None, "Channels of the first stage; default: 16, wide: 64.")
    learning_rate: float = option(0.1, "Learning rate at the start.")
    batch_size: int = option(64, "Images per step.")
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds of initialization, batches and crops.")
    epochs: int = option(100, "Epochs.")
    schedule: str = option("cosine", "Learning rate over the epochs.", ("cosine", "constant"))
    momentum: float = option(0.9, "Momentum of SGD.")
    l2: float = option(5e-4, "Coupled L2 decay of kernels and biases, not of learned widths.")

    evaluation_batch_size: int = option(250, "Images per step of evaluation.")
    invariance_transforms: tuple[str, ...] = option(
        ("shift", "scale", "rotation", "brightness"), "Transformations of the eKLD."
    )
    invariance_images: int = option(40, "Images per class on which eKLD is measured.")
    invariance_samples: int = option(10, "Draws of a transformation per image.")
    output_dir: str = option(
        "results/augmentation_parts", "Folder of the results; one per configuration."
    )
    quick: bool = option(False, "Smoke test: every stage, tiny sizes, meaningless results.")

    @property
    def augmentation(self) -> str:
        """What the data pipeline does for all parts; read by `experiments.whitening.Training`."""
        return "flip" if self.flip else "none"

    @property
    def target_accuracy(self) -> float:
        """No time to a target is measured here."""
        return 1.0


def checked(config: Config) -> Config:
    """Checks what can be checked without data.

    Raises:
        InputError: a value that cannot work.
    """
    for name in ("epochs", "batch_size", "evaluation_batch_size", "invariance_images",
                 "invariance_samples", "largest_class", "test_images", "crop_size"):  # fmt: skip
        value = getattr(config, name)
        if value is not None and value < 1:
            raise InputError(f"--{name}={value}: use 1 or more")
    ratios = config.imbalance_ratios
    if not ratios or len(set(ratios)) < len(ratios) or min(ratios) < 1:
        raise InputError(f"--imbalance_ratios={ratios}: give different numbers of 1 or more")
    if not config.seeds or min(config.seeds) < 0 or len(set(config.seeds)) < len(config.seeds):
        raise InputError(f"--seeds={config.seeds}: use different numbers, 0 or more")
    for name in config.parts:
        if name not in ARMS:
            raise InputError(f"--parts: {name!r} is unknown; use {', '.join(ARMS)}")
    if len(set(config.parts)) < len(config.parts) or BASELINE not in config.parts:
        raise InputError("--parts: name each once, and none, which gains are measured against")
    for name in config.invariance_transforms:
        if name not in TRANSFORMS or name == "generator":
            known = ", ".join(n for n in TRANSFORMS if n != "generator")
            raise InputError(f"--invariance_transforms: {name!r} is unknown; use {known}")
    if config.learning_rate <= 0 or config.learned_rate_factor < 0:
        raise InputError("--learning_rate and --learned_rate_factor: use above 0, and 0 or more")
    for part in ("coupled", *config.parts):
        _layer(config, part, (32, 32), 0)  # refuses what layers refuse
    kg.data.choose_pipeline(config.pipeline)
    if config.quick:
        config = dataclasses.replace(
            config,
            largest_class=min(config.largest_class or 24, 24),
            imbalance_ratios=tuple(dict.fromkeys(min(ratio, 6.0) for ratio in ratios)),
            test_images=min(config.test_images or 10, 10),
            batch_size=min(config.batch_size, 32),
            seeds=config.seeds[:1],
            architecture="resnet",
            depth=8,
            width=8,
            epochs=2,
            invariance_images=4,
            invariance_samples=2,
        )
    return config


def _layer(config: Config, part: str, image_size: tuple[int, int], seed: int) -> Any:
    """The augmentation of one arm."""
    fill: float | str = config.fill
    if fill not in kg.analysis.crops.FILLS:
        try:
            fill = float(fill)
        except ValueError:
            raise InputError(
                f"--fill={config.fill}: use a grey level, or one of "
                f"{', '.join(kg.analysis.crops.FILLS)}"
            ) from None
    if part == LEARNED:
        if fill in ("edge", "reflect"):
            raise InputError(f"--fill={fill}: the learned crop has a grey level or mean")
        # where the other parts have their largest shift and smallest crop
        widths = [4.0 * config.translate] * 2 + [-math.log(config.scale[0])]
        return LearnedCrop(
            [math.log(math.expm1(max(width, 1e-3))) for width in widths],
            fill=fill,
            reg=config.learned_reg,
            learning_rate_factor=config.learned_rate_factor,
            seed=seed,
        )
    options: dict[str, Any] = {**PARTS[part]}
    if part == "fixed_crop":
        options["crop_size"] = config.crop_size or min(image_size) * 3 // 4
    try:
        return crop_decomposition(
            image_size,
            scale=config.scale,
            ratio=config.ratio,
            size_law=config.size_law,
            size_parameter=config.size_parameter,
            translate=config.translate,
            shorter_side=min(image_size),
            fill=fill,
            seed=seed,
            **options,
        )
    except InputError as error:
        raise InputError(f"--{error}") from error


class _Training(whitening.Training):
    """One arm, compiled once for all seeds."""

    def _optimizer(self) -> Any:
        optimizer = super()._optimizer()
        # the reward of wide distributions is their only prior
        optimizer.exclude_from_weight_decay(var_names=["raw_widths"])
        return optimizer

    def _network(self, seed: int) -> keras.Model:
        config, train = self._config, self._train
        mean, std = self._statistics
        arguments: dict[str, Any] = {"mean": mean, "std": std, "seed": seed}
        if config.width is not None:
            arguments["width"] = config.width
        make = kg.models.resnet if config.architecture == "resnet" else kg.models.wide_resnet
        network = make(train.image_shape, train.num_classes, config.depth, **arguments)
        images = keras.Input(train.image_shape)
        self.layer = _layer(config, self._name, train.image_shape[:2], seed)
        return keras.Model(images, network(self.layer(images)))

    def run(self, learning_rate: float, seed: int, label: str) -> dict[str, Any]:
        entry = super().run(learning_rate, seed, label)
        learned = [x for x in self._model.network.layers if isinstance(x, LearnedCrop)]
        if learned:
            entry["learned"] = learned[0].expected_parameters()
        return entry


def run(config: Config) -> dict[str, Any]:
    """Trains what is missing, writes tables and pictures, and returns `results.json`.

    Raises:
        InputError: bad settings, data or output folder.
    """
    config = checked(config)
    settings = dataclasses.asdict(config)
    for name in ("output_dir", "data_dir"):
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
            train = whitening.subset(config, full.train, ratio)
            results["class_counts"][f"{ratio:g}"] = train.class_counts
            _train_all(config, ratio, train, test, folder, results)
        _finish(config, folder, results)
        return folder.read_results()


def _train_all(
    config: Config,
    ratio: float,
    train: kg.data.ImageDataset,
    test: kg.data.ImageDataset,
    folder: ResultsFolder,
    results: dict[str, Any],
) -> None:
    for part in config.parts:
        plan = {f"ratio {ratio:g}, {part}, seed {seed}": seed for seed in config.seeds}
        missing = {key: seed for key, seed in plan.items() if key not in results["runs"]}
        if not missing:
            continue
        training = _Training(config, part, config.batch_size, train, test)
        if not results["runs"]:
            # Only now: settings that cannot work must not tie the folder to themselves.
            folder.write_config(
                content_hash={f"{ratio:g}": train.content_hash()},
                test_content_hash=test.content_hash(),
            )
        for key, seed in missing.items():
            results["runs"][key] = {
                "imbalance_ratio": ratio,
                "augmentation_part": part,
                "seed": seed,
                **training.run(config.learning_rate, seed, key),
            }
            folder.write_results(results)
        del training
        keras.utils.clear_session()


def _of(results: Mapping[str, Any], ratio: float, part: str) -> list[Any]:
    """Finished runs of an arm, by seed."""
    found = [
        run_ for run_ in results["runs"].values()
        if run_["imbalance_ratio"] == ratio and run_["augmentation_part"] == part
        and not run_["diverged"]
    ]  # fmt: skip
    return sorted(found, key=lambda run_: run_["seed"])


def gains(results: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """What each part brings over none, per class, seed by seed.

    Args:
        results: content of `results.json`.
        ratio: imbalance ratio.

    Returns:
        For each part but none: `gain` (C,), differences of accuracy (0..1), means over the seeds
        that both have; `standard_error` (C,) over seeds, None with one; `rank_correlation` and
        `p_value` of Spearman's test of gain against class size, None on balanced data.
    """
    counts = results["class_counts"][f"{ratio:g}"]
    baseline = {run_["seed"]: run_ for run_ in _of(results, ratio, BASELINE)}
    found = {}
    for part in dict.fromkeys(run_["augmentation_part"] for run_ in results["runs"].values()):
        pairs = [(r, baseline[r["seed"]]) for r in _of(results, ratio, part)
                 if r["seed"] in baseline]  # fmt: skip
        if part == BASELINE or not pairs:
            continue
        difference = np.array(
            [np.subtract(ours["per_class_accuracy"], base["per_class_accuracy"])
             for ours, base in pairs]
        )  # fmt: skip
        gain = difference.mean(axis=0)
        error = None
        if len(difference) > 1:
            error = (difference.std(axis=0, ddof=1) / len(difference) ** 0.5).tolist()
        trend: tuple[float | None, float | None] = None, None
        if len(set(counts)) > 1 and len(set(gain)) > 1:
            test = stats.spearmanr(counts, gain)
            trend = float(test.statistic), float(test.pvalue)
        found[part] = {
            "gain": gain.tolist(),
            "standard_error": error,
            "seeds": len(pairs),
            "rank_correlation": trend[0],
            "p_value": trend[1],
        }
    return found


def _finish(config: Config, folder: ResultsFolder, results: dict[str, Any]) -> None:
    folder.write_results(results)
    results = folder.read_results()
    results["gains"] = {f"{ratio:g}": gains(results, ratio) for ratio in config.imbalance_ratios}
    folder.write_results(results)
    rows = []
    for run_ in results["runs"].values():
        counts = np.asarray(results["class_counts"][f"{run_['imbalance_ratio']:g}"])
        thirds = _thirds(counts, run_.get("per_class_accuracy"))
        seconds = statistics.median(r["seconds"] for r in run_["history"])
        rows.append(
            {**run_, **thirds, "loss": run_["history"][-1]["loss"], "seconds_per_epoch": seconds}
        )
    folder.write_table(
        "runs.csv", _RUN_COLUMNS, [{n: r.get(n) for n in _RUN_COLUMNS} for r in rows]
    )
    folder.write_table("per_class.csv", _CLASS_COLUMNS, per_class_rows(config, results))
    write_atomically(folder.path / "table.md", markdown(config, results))
    for ratio in config.imbalance_ratios:
        if results["gains"][f"{ratio:g}"]:
            kg.plots.gain_against_class_size(
                results, f"{ratio:g}", folder.pictures / f"gain_against_class_size_{ratio:g}.png"
            )
        compared = as_methods(config, results, ratio)
        if ratio > 1 and config.invariance_transforms and compared["methods"]:
            name = f"ekld_against_class_size_{ratio:g}.png"
            kg.plots.ekld_against_class_size(compared, folder.pictures / name)
    folder.clean_up()
    print("\n\n".join(text_table(block) for block in blocks(config, results)), flush=True)
    print(f"\nresults and pictures: {folder.path}", flush=True)


def as_methods(config: Config, results: Mapping[str, Any], ratio: float) -> dict[str, Any]:
    """The arms of one ratio as methods of an experiment, which pictures and tables know."""
    methods = {
        part: {"seeds": {str(r["seed"]): r for r in _of(results, ratio, part)}}
        for part in config.parts
    }
    return {
        "dataset": results["dataset"],
        "class_names": results["class_names"],
        "class_counts": results["class_counts"][f"{ratio:g}"],
        "methods": {part: entry for part, entry in methods.items() if entry["seeds"]},
    }


def _thirds(counts: np.ndarray, accuracy: Any) -> dict[str, float]:
    if accuracy is None:
        return {}
    groups = kg.metrics.groups(counts, "thirds")
    return {name: float(np.mean(np.asarray(accuracy)[c])) for name, c in groups.items()}


def per_class_rows(config: Config, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Rows of `per_class.csv`."""
    rows = []
    for ratio in config.imbalance_ratios:
        key = f"{ratio:g}"
        for part in config.parts:
            runs = _of(results, ratio, part)
            if not runs:
                continue
            accuracy = np.mean([r["per_class_accuracy"] for r in runs], axis=0)
            own = results["gains"][key].get(part)
            for c, size in enumerate(results["class_counts"][key]):
                rows.append(
                    {
                        "imbalance_ratio": ratio,
                        "augmentation_part": part,
                        "class": c,
                        "name": results["class_names"][c],
                        "training_images": size,
                        "accuracy": float(accuracy[c]),
                        "gain": own and own["gain"][c],
                        "gain_standard_error": own
                        and (own["standard_error"] or [None] * (c + 1))[c],
                    }
                )
    return rows


def _cell(values: list[float], factor: float = 1.0, digits: int = 1) -> str:
    if not values:
        return "-"
    spread = ""
    if len(values) > 1:
        spread = f" +-{factor * statistics.stdev(values):.{digits}f}"
    return f"{factor * statistics.fmean(values):.{digits}f}{spread}"


def blocks(config: Config, results: Mapping[str, Any]) -> list[list[list[str]]]:
    """Tables of texts: accuracy and gain by thirds, eKLD by thirds, for each ratio."""
    tables = []
    for ratio in config.imbalance_ratios:
        key = f"{ratio:g}"
        counts = np.asarray(results["class_counts"][key])
        groups = kg.metrics.groups(counts, "thirds")
        names = list(groups)
        accuracy = [[f"ratio {key}: accuracy, %", "balanced", *names, "gain of " + names[0],
                     "gain of " + names[-1], "gain with size (p)"]]  # fmt: skip
        ekld = [[f"ratio {key}: eKLD, nats", "transform", *names]]
        for part in config.parts:
            runs = _of(results, ratio, part)
            thirds = [_thirds(counts, r["per_class_accuracy"]) for r in runs]
            row = [part, _cell([r["balanced_accuracy"] for r in runs], 100)]
            row += [_cell([t[name] for t in thirds], 100) for name in names]
            own = results["gains"][key].get(part)
            if own:
                gain = 100 * np.asarray(own["gain"])
                row += [f"{gain[groups[n]].mean():+.1f}" for n in (names[0], names[-1])]
                trend = own["rank_correlation"]
                row.append("-" if trend is None else f"{trend:+.2f} ({own['p_value']:.2g})")
            else:
                row += ["-"] * 3
            accuracy.append(row)
            for transform in config.invariance_transforms:
                values = [np.asarray(r["invariance"][transform]["ekld"], float) for r in runs]
                means = [[float(v[c].mean()) for v in values] for c in groups.values()]
                ekld.append([part, transform, *(_cell(m, digits=3) for m in means)])
        tables += [accuracy, ekld]
    return tables


def markdown(config: Config, results: Mapping[str, Any]) -> str:
    """The tables that are printed, in Markdown."""
    parts = []
    for rows in blocks(config, results):
        lines = ["| " + " | ".join(row) + " |" for row in rows]
        lines.insert(1, "|" + "---|" * len(rows[0]))
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    command_line.main(Config, run)
