"""What varies in labelled images, and what do networks ignore? Search, invariance, line-up.

    python -m experiments.factors --data=NAME|DIR|FILE.npz --model=a.keras,b.keras --output_dir=OUT

Writes tables (`.csv`, `.json`), pictures and `report.html`. The same command continues an
interrupted run, after the last network that was finished. `--benchmark` times the search.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import time
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

import keras_git as kg
from experiments import command_line
from experiments.audit import _model_names, _per_model
from experiments.command_line import option
from experiments.progress import reports
from experiments.results_folder import ResultsFolder, to_json
from keras_git import plots, report
from keras_git.analysis import (
    CheckTable,
    FactorTable,
    InvarianceTable,
    LineUpResult,
    TransformSet,
    explain_variation,
    lines_up,
    pixel_embedding,
    sample_images,
    similarity_checks,
)
from keras_git.analysis.cells import Cell, paired_differences
from keras_git.analysis.images import ImageSample
from keras_git.analysis.invariance import invariance_of_models
from keras_git.auditing import load_classifier, open_data
from keras_git.auditing.classifier import PREPROCESSING, input_shape, one_line
from keras_git.auditing.data import SPLITS
from keras_git.errors import InputError
from keras_git.files import load_archive, save_archive, write_atomically

UNTRAINED, PIXELS = "untrained", "pixels"
_QUICK_IMAGES = 12
_PERMUTATIONS = 10_000


@dataclass(frozen=True)
class Config:
    """Settings of a run; each is a flag of the same name."""

    model: tuple[str, ...] = option((), "Files of Keras networks (.keras), separated by commas.")
    names: tuple[str, ...] = option((), "Names of the networks; default: those of the files.")
    import_module: tuple[str, ...] = option(
        (), "Python modules to import first, for networks with registered layers of their own."
    )
    preprocess: tuple[str, ...] = option(
        ("none",),
        f"What a network wants in place of grey levels 0..255: {', '.join(PREPROCESSING)}; one for "
        "all networks, or one each.",
    )
    layer: str = option(
        "features", "Layer that is the embedding; features: what the last layer takes; or output."
    )
    untrained: bool = option(True, "Also an untrained network of the first one's architecture.")
    data: str = option(
        "", "Folder with one sub-folder per class, .npz file, or dataset of tensorflow_datasets."
    )
    data_dir: str | None = option(None, "Folder of tensorflow_datasets, or of the .npz file.")
    split: str = option("test", "Which split, if the data have several.", SPLITS)
    images_per_class: int = option(128, "Most images of each class.")
    both_signs: bool = option(True, "Search both directions of operations that have two.")
    search: tuple[str, ...] = option(
        (),
        "Embeddings that are searched: names of networks, untrained, pixels; default: all networks "
        "that are trained, and pixels.",
    )
    batch_size: int = option(256, "Images per call.")
    seed: int = option(0, "Seed of the choice of images, and of the untrained network.")
    quick: bool = option(False, "A few images and magnitudes, to see whether all works.")
    benchmark: bool = option(
        False, "Time the search of 48 candidates with a ResNet-20 on 10 classes of 128 images."
    )
    output_dir: str = option("", "Folder of the results.")


def checked(config: Config) -> Config:
    """Checks what can be checked without data.

    Raises:
        InputError: a value that cannot work.
    """
    if config.benchmark:
        return config
    for flag, value, what in (
        ("model", config.model, "at least one .keras file"),
        ("data", config.data, "a folder, an .npz file or a dataset"),
        ("output_dir", config.output_dir, "a folder for the results"),
    ):
        if not value:
            raise InputError(f"--{flag}: name {what}")
    for flag in ("images_per_class", "batch_size"):
        if getattr(config, flag) < 1:
            raise InputError(f"--{flag}={getattr(config, flag)}: give 1 or more")
    if config.images_per_class < 3:
        raise InputError("--images_per_class: intervals need 3 or more")
    if config.seed < 0:
        raise InputError(f"--seed={config.seed}: give 0 or more")
    for module in config.import_module:
        try:
            importlib.import_module(module)
        except (Exception, SystemExit) as error:  # whatever the module does when it is run
            raise InputError(f"--import_module={module}: {one_line(error)}") from error
    return config


def untrained_copy(model: keras.Model, seed: int) -> keras.Model:
    """The same architecture with fresh weights.

    Raises:
        InputError: a network that cannot be made anew.
    """
    try:
        keras.utils.set_random_seed(seed)
        fresh = keras.models.clone_model(model)
    except Exception as error:
        raise InputError(
            f"model {model.name!r} cannot be made anew ({one_line(error)}): use --nountrained"
        ) from error
    if all(
        np.array_equal(a, b) for a, b in zip(model.get_weights(), fresh.get_weights(), strict=True)
    ):
        raise InputError("--untrained: the copy has the weights of the network; use --nountrained")
    return fresh


def run(config: Config) -> dict[str, Any]:
    """Runs, or finishes, and returns the tables by name.

    Raises:
        InputError: bad settings, models, data or output folder.
    """
    config = checked(config)
    if config.benchmark:
        return {"benchmark": benchmark(config)}
    names = _model_names(config)  # type: ignore[arg-type]
    modes = _per_model("preprocess", config.preprocess, PREPROCESSING, len(names))
    preprocess: dict[str, str | None] = {
        name: None if mode == "none" else mode for name, mode in zip(names, modes, strict=True)
    }
    models = {name: load_classifier(path) for name, path in zip(names, config.model, strict=True)}
    searched = list(config.search) or [*names, PIXELS]
    known = [*names, UNTRAINED, PIXELS] if config.untrained else [*names, PIXELS]
    if PIXELS in names:
        raise InputError(f"--names: {PIXELS!r} is the name of the embedding without a network")
    for name in searched:
        if name not in known:
            raise InputError(f"--search={name}: use one of {', '.join(known)}")
    if config.untrained:
        if UNTRAINED in models:
            raise InputError(f"--names: {UNTRAINED!r} is the name of the untrained network")
        models[UNTRAINED] = untrained_copy(models[names[0]], config.seed)
        preprocess[UNTRAINED] = preprocess[names[0]]
    _check_file_names([*models, *searched])
    settings = dataclasses.asdict(config)
    for name in ("output_dir", "data_dir", "import_module", "names", "batch_size", "benchmark"):
        del settings[name]  # where things are decides no result
    settings["model"] = {
        name: hashlib.sha256(Path(path).read_bytes()).hexdigest()
        for name, path in zip(names, config.model, strict=True)
    }
    with ResultsFolder(config.output_dir, settings) as folder:
        sample = _sample(config, models[names[0]], folder)
        folder.write_config(data=sample.name, content_hash=sample.content_hash())
        layer = None if config.layer == "output" else config.layer
        common = {
            "layer": layer,
            "batch_size": config.batch_size,
            "seed": config.seed,
        }
        candidates, ladder = _sets(config, sample)
        factors: dict[str, FactorTable] = {}
        checks: dict[str, CheckTable] = {}
        cache = kg.analysis.EmbeddingCache(folder.checkpoints)
        for name in searched:
            stem = _stem(name)
            if name == PIXELS:
                model, options = pixel_embedding(sample), {**common, "layer": None}
            else:
                model, options = models[name], {**common, "preprocess": preprocess[name]}
            options["cache"] = cache
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # the report says it
                factors[name] = _stage(
                    folder,
                    f"factors_{stem}",
                    FactorTable,
                    _searcher(model, sample, candidates, options, name),
                )
                checks[name] = _stage(
                    folder,
                    f"similarity_{stem}",
                    CheckTable,
                    lambda model=model, options=options: similarity_checks(
                        model, sample, **options
                    ),
                )
        invariance = _invariance(folder, models, sample, ladder, preprocess, common, cache)
        line_ups: dict[str, LineUpResult] = {}
        if config.untrained:
            permutations = 500 if config.quick else _PERMUTATIONS
            reference = invariance.of_model(UNTRAINED)
            for name in names:
                for embedding in searched:
                    line_ups[f"{name}, factors by {embedding}"] = lines_up(
                        factors[embedding],
                        invariance.of_model(name),
                        reference,
                        n_permutations=permutations,
                        seed=config.seed,
                    )
        tables = {
            "factors": factors,
            "checks": checks,
            "invariance": invariance,
            "line_ups": line_ups,
        }
        _finish(folder, **tables)
    return tables


def _check_file_names(names: Iterable[str]) -> None:
    """Files of two networks must not have one name."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(_stem(name), name)
        if other != name:
            raise InputError(
                f"--names: {other!r} and {name!r} would write the same files; use letters, digits, "
                "- and _"
            )


def _stem(name: str) -> str:
    """A name as part of a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "_" for c in name)


def _sample(config: Config, model: Any, folder: ResultsFolder) -> ImageSample:
    source = open_data(
        config.data,
        split=config.split,
        data_dir=config.data_dir,
        cache_dir=folder.checkpoints,
        wanted=input_shape(model),
    )
    number = min(config.images_per_class, _QUICK_IMAGES if config.quick else 10**9)
    sample = sample_images(source, images_per_class=number, seed=config.seed)
    if len(sample.classes) < 2:
        raise InputError(f"--data={config.data}: it has one class; the control needs two or more")
    return sample


def _sets(config: Config, sample: ImageSample) -> tuple[TransformSet, TransformSet]:
    """The candidates of the search, and the transformations of the invariance measure."""
    candidates = TransformSet.paper_search()
    if sample.images.shape[-1] != 3:
        candidates = candidates.filter(lambda c: c.operation != "color")
    if config.both_signs:
        candidates = candidates.both_signs()
    ladder = TransformSet.paper_invariance(sample.image_size)
    if config.quick:
        places = {c.operation: c for c in reversed(candidates.candidates)}
        candidates = candidates.filter(lambda c: places[c.operation] is c)
        ladder = ladder.filter(indices=(3, 5))
    return candidates, ladder


def _searcher(
    model: Any, sample: ImageSample, candidates: TransformSet, options: Any, name: str
) -> Any:
    def search() -> FactorTable:
        with reports(f"search, {name}") as progress:
            return explain_variation(model, sample, candidates, progress=progress, **options)

    return search


def _stage(folder: ResultsFolder, name: str, kind: Any, compute: Any) -> Any:
    """What an earlier run wrote, or what is computed now."""
    path = folder.path / f"{name}.json"
    if path.exists():
        return kind.from_json(path)
    found = compute()
    found.to_json(path)
    return found


def _invariance(
    folder: ResultsFolder,
    models: dict[str, Any],
    sample: ImageSample,
    ladder: TransformSet,
    preprocess: dict[str, str | None],
    common: dict[str, Any],
    cache: Any,
) -> InvarianceTable:
    """Network by network, then all together with their differences."""
    whole = folder.path / "invariance.json"
    if whole.exists():
        return InvarianceTable.from_json(whole)
    tables: list[InvarianceTable] = []
    cells: dict[tuple[str, int, int], Cell] = {}
    for name, model in models.items():
        path = folder.checkpoints / f"invariance_{_stem(name)}.npz"
        if path.exists():
            arrays, facts = load_archive(path, "checkpoint of this program", "delete it")
            table = InvarianceTable.from_dict(facts["table"])
            for place in range(len(ladder)):
                values = [arrays[key][place] for key in ("each", "left_out", "whole")]
                cells[name, 0, place] = Cell(values[0], float(values[2]), values[1], {})
        else:
            with reports(f"invariance, {name}") as progress:
                table = invariance_of_models(
                    {name: model},
                    sample,
                    ladder,
                    preprocess=preprocess[name],
                    cache=cache,
                    progress=progress,
                    **common,
                )
            own = [table.cells[name, 0, place] for place in range(len(ladder))]
            arrays = {
                "each": np.stack([np.asarray(cell.each) for cell in own]),
                "left_out": np.stack([cell.left_out for cell in own]),
                "whole": np.array([cell.whole for cell in own]),
            }
            save_archive(path, arrays, {"table": table.to_dict()})
            cells |= table.cells
        tables.append(table)
    joined = InvarianceTable(
        [row for table in tables for row in table.rows],
        tables[0].settings,
        seconds=sum(table.seconds for table in tables),
        notes=tables[0].notes,
    )
    if len(models) > 1:
        differences = paired_differences(
            cells, list(models), [common["layer"]], ladder, by_median=True, level=0.95
        )
        joined.notes["differences"] = differences.to_dict()
    joined.to_json(whole)
    return joined


def _finish(
    folder: ResultsFolder,
    *,
    factors: dict[str, FactorTable],
    checks: dict[str, CheckTable],
    invariance: InvarianceTable,
    line_ups: dict[str, LineUpResult],
) -> None:
    """Tables, pictures and report, all made from the stored results."""
    for name, table in factors.items():
        stem = _stem(name)
        table.to_csv(folder.path / f"factors_{stem}.csv")
        table.families.to_csv(folder.path / f"operations_{stem}.csv")
        plots.factor_heat_map(table, folder.pictures / f"factors_{stem}.png")
        plots.factor_bars(table.families, folder.pictures / f"operations_{stem}.png")
        checks[name].to_csv(folder.path / f"similarity_{stem}.csv")
    invariance.to_csv(folder.path / "invariance.csv")
    if invariance.differences is not None:
        invariance.differences.to_csv(folder.path / "differences.csv")
    invariance.plot(folder.pictures / "invariance.png")
    content = {name: result.to_dict() for name, result in line_ups.items()}
    write_atomically(folder.path / "line_up.json", to_json(content))
    for name, result in line_ups.items():
        result.plot(folder.pictures / f"line_up_{_stem(name)}.png")
    report.write_factors_html(
        folder.path / "report.html",
        factors=factors,
        invariance=invariance,
        line_ups=line_ups,
        checks=checks,
    )
    folder.clean_up()
    for name, table in factors.items():
        print(f"{name}: {table.summary}")
        for text in table.warnings:
            print(f"  warning: {text}")
        for row in table.families.top(1):
            print(
                f"  {row['class_name']:<20} {row['transform']:<14} net gain {row['net_gain']:+.4f} "
                f"({row['net_lo']:+.4f} to {row['net_hi']:+.4f})"
            )
    print(f"invariance: {invariance.summary}")
    for name, result in line_ups.items():
        print(f"{name}: {result.summary}")
    print(f"report: {folder.path / 'report.html'}")


def benchmark(config: Config) -> dict[str, Any]:
    """Seconds of the search of 48 candidates on 10 classes of 128 images with a ResNet-20."""
    classes, each = 10, 4 if config.quick else 128
    if config.data:
        data: Any = open_data(config.data, split=config.split, data_dir=config.data_dir)
    else:  # the time does not depend on what the pictures show
        generator = np.random.default_rng(config.seed)
        number = classes * each
        images = generator.integers(0, 256, (number, 32, 32, 3), np.uint8)
        data = (images, np.arange(number) % classes)
    sample = sample_images(data, images_per_class=each, seed=config.seed)
    model = kg.models.resnet(
        sample.images.shape[1:], classes, depth=20, mean=0.5, std=0.25, seed=config.seed
    )
    candidates = TransformSet.paper_search()
    started = time.monotonic()
    with warnings.catch_warnings(), reports("search") as progress:
        warnings.simplefilter("ignore", UserWarning)
        table = explain_variation(
            model,
            sample,
            candidates,
            layer="features",
            batch_size=config.batch_size,
            seed=config.seed,
            progress=progress,
        )
    seconds = time.monotonic() - started
    compiling = float(table.notes["seconds_compiling"])
    found = {
        "images": len(sample),
        "candidates": len(candidates),
        "seconds": seconds,
        "seconds_compiling": compiling,
        "seconds_without_compiling": seconds - compiling,
        "passes": len(candidates),
        "backend": keras.config.backend(),
    }
    print(
        f"{len(sample)} images x {len(candidates)} candidates: {seconds - compiling:.1f} s and "
        f"{compiling:.1f} s of compiling, on {keras.config.backend()}"
    )
    if config.output_dir:
        Path(config.output_dir).mkdir(parents=True, exist_ok=True)
        path = Path(config.output_dir) / f"benchmark_{keras.config.backend()}.json"
        write_atomically(path, to_json(found))
        logging.info("written to %s", path)
    return found


if __name__ == "__main__":
    command_line.main(Config, run)
