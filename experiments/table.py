"""The results table: methods x datasets x imbalance ratios x seeds, beside published values.

    python -m experiments.table --suite=cifar10_lt --seeds=0,1,2 --output_dir=OUT --data_dir=DIR

Each cell - one dataset, imbalance ratio, method and seed - is one run of `experiments.cifar_lt` in
a folder of its own, `OUT/cells/<dataset>_ratio<r>/<method>/seed<k>`, and the page gives the command
that makes it alone. The same command continues an interrupted table and never trains a finished
cell again. `--shard=2/4` trains the second of four shares, say on another machine; the call without
it trains what is missing and writes `table.html`, `table.md` and `table.json` of all cells that are
there (`--collect_only`: and trains none), also of folders copied from elsewhere. Several shards may
work in one folder at the same time.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import keras
from absl import logging

import keras_git as kg
from experiments import cifar_lt, command_line
from experiments.cells import Cell, Group, Matrix, cells_of, share
from experiments.classifier_training import ClassifierTrainer
from experiments.command_line import option
from experiments.generator_training import load_generator
from experiments.measurement import Measurement, make_transforms
from experiments.results_folder import FolderInUseError, ResultsFolder, to_json
from experiments.settings import checked, decisive_settings, quick
from experiments.stages import (
    data_facts,
    empty_results,
    invariance_images,
    make_generator,
    measure,
)
from experiments.suites import SUITES
from experiments.summary import per_class_rows, summarize
from experiments.table_page import print_table, write_pages
from experiments.table_summary import collect
from keras_git.errors import DivergenceError, InputError

_POLL_SECONDS = 5.0


@dataclass(frozen=True)
class Config:
    """Settings of a table; each is a flag of the same name."""

    suite: str = option("quick", "Which table; see experiments/suites.py.", tuple(SUITES))
    seeds: tuple[int, ...] = option((0, 1, 2), "Seeds of initialization and batches.")
    methods: tuple[str, ...] = option(
        (), "Methods to train in the place of the suite's; what is there already is shown too."
    )
    imbalance_ratios: tuple[float, ...] = option(
        (), "Sizes of the largest class over the smallest; default: those of the suite, 100."
    )
    datasets: tuple[str, ...] = option(
        (), "Datasets in the place of the suite's; cifar10.npz is held against values for cifar10."
    )
    override: tuple[str, ...] = option(
        (),
        "Settings of experiments.cifar_lt to change for all cells: epochs=24,depth=8; items of a "
        "list with a colon between them. The page says what differs from published runs.",
    )
    note: str = option("", "What a reader must know of these data or this machine, on top.")
    data_dir: str | None = option(None, "Folder of tensorflow_datasets, or of .npz files.")
    download: bool = option(True, "Whether tensorflow_datasets may download.")
    shard: str | None = option(None, "i/n: only the i-th (1 to n) of n shares of the cells.")
    collect_only: bool = option(False, "Train nothing; write the page of the cells there are.")
    save_models: bool = option(False, "Keep the classifier of every cell as a .keras file.")
    output_dir: str = option("results/table", "Folder of the table; one per suite and settings.")


@dataclass(frozen=True)
class Plan:
    """What a call has to do.

    Attributes:
        matrix: settings, folders and commands.
        groups: datasets and imbalance ratios.
        methods: all methods of the suite and of the call, whose common epochs are kept.
        cells: what the whole table shall hold.
        mine: what this call trains.
    """

    matrix: Matrix
    groups: tuple[Group, ...]
    methods: tuple[str, ...]
    cells: tuple[Cell, ...]
    mine: tuple[Cell, ...]


def make_plan(config: Config) -> Plan:
    """Checks what can be checked without data.

    Raises:
        InputError: a value or a combination of values that cannot work.
    """
    if config.suite not in SUITES:
        raise InputError(f"--suite={config.suite} is unknown; use {', '.join(SUITES)}")
    if config.collect_only and config.shard:
        raise InputError("--collect_only collects all shards: leave --shard out")
    suite = SUITES[config.suite]
    wanted = config.methods or suite.methods
    methods = tuple(dict.fromkeys((*suite.methods, *wanted)))
    ratios = config.imbalance_ratios or suite.imbalance_ratios
    for name, values in (("imbalance_ratios", ratios), ("datasets", config.datasets)):
        if len(set(values)) < len(values):
            raise InputError(f"--{name}={','.join(map(str, values))}: name each once")
    if min(ratios) < 1:
        raise InputError(f"--imbalance_ratios={','.join(map(str, ratios))}: use 1 or more")
    base = dataclasses.replace(
        suite.config(config.override), data_dir=config.data_dir, download=config.download
    )
    checked(dataclasses.replace(base, methods=wanted, seeds=config.seeds), quick)
    groups = tuple(Group(d, r) for d in config.datasets or suite.datasets for r in ratios)
    cells = cells_of(groups, wanted, config.seeds)
    return Plan(
        Matrix(config.output_dir, suite.name, base),
        groups,
        methods,
        tuple(cells),
        () if config.collect_only else tuple(share(cells, config.shard)),
    )


def run(config: Config) -> dict[str, Any]:
    """Trains the cells that are not there; writes the page of all, unless it is a shard.

    Returns:
        The content of `table.json`; of a shard, an empty dictionary.

    Raises:
        InputError: bad settings, data or output folder; and at the end, with everything else done,
            if a cell failed.
    """
    plan = make_plan(config)
    root = ResultsFolder(plan.matrix.root, plan.matrix.settings())
    root.check()
    states = {cell: plan.matrix.state(cell)[0] for cell in plan.cells}
    _tie(root)
    for group in plan.groups:
        cells = [c for c in plan.mine if c.group == group and states[c] == "missing"]
        if cells:
            _run_group(plan, group, cells, config.save_models)
            _free_memory()
    if config.shard:
        failed = [c for c in plan.mine if plan.matrix.state(c)[0] == "failed"]
        logging.info(
            "shard %s: %d of %d cells are finished in %s; the call without --shard collects them",
            config.shard,
            len(plan.mine) - len(failed),
            len(plan.mine),
            plan.matrix.root / "cells",
        )
        _report_failed(plan, failed)
        return {}
    made = collect(plan.matrix, SUITES[config.suite], plan.groups, plan.cells, config.override)
    made["note"] = config.note
    table = json.loads(to_json(made))
    write_pages(table, plan.matrix.root)
    print_table(table, plan.matrix.root)
    _report_failed(plan, [c for c in plan.cells if plan.matrix.state(c)[0] == "failed"])
    return table


def _free_memory() -> None:
    """Networks, compiled functions and images of one group do not serve the next."""
    keras.utils.clear_session()
    gc.collect()


def _report_failed(plan: Plan, failed: Sequence[Cell]) -> None:
    """The last word of a call that has a cell without a result."""
    if failed:
        first = plan.matrix.state(failed[0])[1]["failed"]
        names = "; ".join(map(str, failed))
        number = f"{len(failed)} of {len(plan.cells)} cells failed"
        raise InputError(
            f"{number} ({names}): {first.partition(';')[0]}; all "
            "others are kept. Remove the folder of a failed cell to try it again"
        )


def _tie(root: ResultsFolder) -> None:
    """Ties the folder of the table to its settings, so that shared epochs are of these."""
    if (root.path / "config.json").exists():
        return
    with _waiting(root, "the folder of the table"):
        root.write_config()
        _remove_empty(root)


def _remove_empty(folder: ResultsFolder) -> None:
    for path in (folder.models, folder.pictures):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()


@contextmanager
def _waiting(folder: ResultsFolder, what: str) -> Iterator[ResultsFolder]:
    """Holds the lock of a folder, as soon as no other process does."""
    said = False
    while True:
        try:
            folder.__enter__()
            break
        except FolderInUseError:
            if not said:
                logging.info("%s is in use by another run: waiting for it", what)
            said = True
            time.sleep(_POLL_SECONDS)
    try:
        yield folder
    finally:
        folder.__exit__()


@dataclass(frozen=True)
class _Checkpoints:
    """Stands for the folder of a run where `ClassifierTrainer` wants one: it keeps nothing else
    there than checkpoints, which cells share."""

    checkpoints: Path


def _run_group(plan: Plan, group: Group, cells: Sequence[Cell], save_models: bool) -> None:
    """Trains and measures cells of one dataset and imbalance ratio."""
    config = plan.matrix.base
    parallel: Any = nullcontext()
    if config.distribution != "none":
        getLogger("tensorflow").setLevel("WARNING")  # as in `stages.train_and_measure`
        parallel = kg.distribution.data_parallel()
    with parallel:
        bench = _Bench(plan, group, cells, save_models)
        left = list(cells)
        while left:
            busy = [cell for cell in left if not bench.run(cell)]
            if busy and len(busy) == len(left):
                logging.info("%d cells are in use by other runs: waiting for them", len(busy))
                time.sleep(_POLL_SECONDS)
            left = busy


class _Bench:
    """Data, generator, compiled networks and measurement, used by one cell after the other."""

    def __init__(self, plan: Plan, group: Group, cells: Sequence[Cell], save_models: bool) -> None:
        matrix = plan.matrix
        self._plan, self._matrix, self._save_models = plan, matrix, save_models
        self._methods = [kg.recipes.get(key) for key in plan.methods]
        self._checkpoints = matrix.root / "checkpoints" / group.name
        self._checkpoints.mkdir(parents=True, exist_ok=True)
        self._group = group
        started = time.monotonic()
        keys = list(dict.fromkeys(cell.method for cell in cells))
        self._config, trained = checked(matrix.group_config(group, keys), quick)
        self._splits = cifar_lt.load_data(self._config, self._checkpoints)
        self._invariance = invariance_images(self._config, self._splits)
        self._seconds = time.monotonic() - started
        self._facts = data_facts(self._splits, self._invariance)
        logging.info(
            "%s: %d training images in %d classes, %d test images; %d cells to train; backend %s",
            group.name,
            len(self._splits.train),
            self._splits.train.num_classes,
            len(self._splits.test),
            len(cells),
            keras.config.backend(),
        )
        # Everything that bad settings would stop is made once before the long work begins.
        check = self._trainer(None)
        for method in trained:
            check.check(method)
        self._generator: keras.Model | None = None
        self._quality: dict[str, Any] | None = None
        if any(matrix.uses_generator(cell) for cell in cells):
            self._generator, self._quality = self._make_generator()
        # With and without the generator, as the commands of the cells would make them.
        self._desks: dict[bool, tuple[ClassifierTrainer, Measurement]] = {}

    def _trainer(self, generator: keras.Model | None) -> ClassifierTrainer:
        splits = self._splits
        folder: Any = _Checkpoints(self._checkpoints)
        return ClassifierTrainer(self._config, splits.train, splits.validation, generator, folder)

    def _desk(self, generates: bool) -> tuple[ClassifierTrainer, Measurement]:
        if generates not in self._desks:
            generator = self._generator if generates else None
            measurement = Measurement(
                self._config,
                self._splits.test,
                self._invariance,
                self._splits.train.class_counts,
                make_transforms(self._config.invariance_transforms, generator),
            )
            self._desks[generates] = self._trainer(generator), measurement
        return self._desks[generates]

    def _make_generator(self) -> tuple[keras.Model, dict[str, Any] | None]:
        """The generator of the group: given, finished before, by another run, or now."""
        shape = self._splits.train.image_shape
        file = self._matrix.generator_file(self._group)
        if self._matrix.base.generator:
            return load_generator(str(file), shape), None
        settings = decisive_settings(self._config)
        for name in ("methods", "seeds", "second_stage_epochs"):  # nothing to a generator
            settings.pop(name, None)
        folder = ResultsFolder(self._config.output_dir, settings)
        with _waiting(folder, f"the generator of {self._group.name}"):
            folder.write_config(**self._facts)
            results = folder.read_results() or empty_results(self._splits.train, self._seconds)
            if not (file.exists() and results["generator"]):
                make_generator(self._config, self._splits, folder, results)
            folder.clean_up()
        # As a cell by itself has it: from the file.
        return load_generator(str(file), shape), folder.read_results()["generator"]

    def run(self, cell: Cell) -> bool:
        """Trains and measures a cell, unless it is done; False if another process is at it."""
        config, (method,) = checked(self._matrix.config(cell), quick)
        folder = self._matrix.folder(cell)
        try:
            folder.__enter__()
        except FolderInUseError:
            return False
        try:
            if self._matrix.state(cell)[0] == "missing":
                self._train(cell, config, method, folder)
        finally:
            folder.__exit__()
        return True

    def _train(self, cell: Cell, config: cifar_lt.Config, method: Any, folder: Any) -> None:
        folder.write_config(**self._facts)
        trainer, measurement = self._desk(self._matrix.uses_generator(cell))
        results = {
            **empty_results(self._splits.train, self._seconds),
            "images_per_class": measurement.images_per_class,
        }
        if self._matrix.uses_generator(cell):
            results["generator"] = self._quality
        try:
            trained = trainer.train(method, cell.seed, self._methods)
            measured = measure(
                config, method, cell.seed, trained, measurement, folder, save=self._save_models
            )
        except DivergenceError as error:
            logging.error("%s failed: %s", cell, error)
            results["failed"] = str(error)
        else:
            results["methods"] = {cell.method: {"seeds": {str(cell.seed): measured}}}
            summarize(results)
            folder.write_table("per_class.csv", *per_class_rows(results))
        folder.write_results(results)
        folder.clean_up()
        _remove_empty(folder)
        self._forget(cell)

    def _forget(self, cell: Cell) -> None:
        """Removes the checkpoints of a seed when no cell of it is left."""
        of_seed = [c for c in self._plan.cells if (c.group, c.seed) == (cell.group, cell.seed)]
        if all(self._matrix.state(c)[0] != "missing" for c in of_seed):
            for ending in (".npz", "_second_stage.npz"):
                for path in self._checkpoints.glob(f"*_seed{cell.seed}{ending}"):
                    path.unlink(missing_ok=True)


if __name__ == "__main__":
    command_line.main(Config, run)
