"""The cells of a results table: which there are, where each lies, which command makes it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras_git as kg
from experiments import cifar_lt
from experiments.command_line import flags_of
from experiments.results_folder import ResultsFolder
from experiments.settings import checked, decisive_settings, quick
from keras_git.errors import InputError


@dataclass(frozen=True)
class Group:
    """What cells share data and a generator by.

    Attributes:
        dataset: as in `experiments.cifar_lt --dataset`.
        imbalance_ratio: size of the largest class over the smallest.
    """

    dataset: str
    imbalance_ratio: float

    @property
    def data(self) -> str:
        """The dataset without folder and ending: what published values are found by."""
        if not self.dataset.endswith(".npz"):
            return self.dataset
        name = Path(self.dataset).stem
        known = re.match(r"cifar100?(?=_)", name)  # such as cifar10_lt_rho100_jpeg
        return known[0] if known else name

    @property
    def name(self) -> str:
        """Of its folders."""
        return f"{self.data}_ratio{self.imbalance_ratio:g}"


@dataclass(frozen=True)
class Cell:
    """One training: exactly one run of `experiments.cifar_lt` with one method and one seed."""

    group: Group
    method: str
    seed: int

    @property
    def folder(self) -> Path:
        """Inside the folder of the table."""
        return Path("cells") / self.group.name / self.method / f"seed{self.seed}"

    def __str__(self) -> str:
        group = self.group
        return f"{group.data}, ratio {group.imbalance_ratio:g}, {self.method}, seed {self.seed}"


def cells_of(groups: Sequence[Group], methods: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """All cells; those of one group and seed, which can share epochs, one after the other."""
    return [Cell(group, method, seed) for group in groups for seed in seeds for method in methods]


def share(cells: Sequence[Cell], shard: str | None) -> list[Cell]:
    """The cells of the shard `"i/n"`; all for None.

    Cells of one group and seed share epochs and stay together; only where there are more shards
    than of these are they divided, neighbours together.

    Raises:
        InputError: not of the form i/n with i = 1..n.
    """
    if shard is None:
        return list(cells)
    found = re.fullmatch(r"(\d+)/(\d+)", shard.strip())
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise InputError(f"--shard={shard}: use i/n with i from 1 to n, such as 1/4")
    index, number = int(found[1]) - 1, int(found[2])
    units: dict[tuple[Group, int], list[Cell]] = {}
    for cell in cells:
        units.setdefault((cell.group, cell.seed), []).append(cell)
    if number <= len(units):
        return [cell for unit in list(units.values())[index::number] for cell in unit]
    unit = list(units.values())[index % len(units)]
    parts = len(range(index % len(units), number, len(units)))
    part = index // len(units)
    return unit[len(unit) * part // parts : len(unit) * (part + 1) // parts]


class Matrix:
    """Settings, folders and commands of cells.

    Args:
        root: folder of the table.
        suite: name of its suite.
        base: the settings that all cells have in common.
    """

    def __init__(self, root: str | Path, suite: str, base: cifar_lt.Config) -> None:
        self.root, self.suite, self.base = Path(root), suite, base

    def settings(self) -> dict[str, Any]:
        """What all cells have in common, and so what a folder of a table is tied to."""
        config, _ = checked(dataclasses.replace(self.base, generator=None), quick)
        settings = decisive_settings(config)
        for name in ("dataset", "imbalance_ratio", "methods", "seeds", "generator"):
            del settings[name]
        return {"suite": self.suite, **settings}

    def uses_generator(self, cell: Cell) -> bool:
        """Whether the generator has a part in the results of a cell."""
        transforms = self.base.invariance_transforms
        return kg.recipes.get(cell.method).generates or "generator" in transforms

    def generator_file(self, group: Group) -> Path:
        """The generator of a group: that of `--override=generator=FILE`, or the own one."""
        if self.base.generator:
            return Path(self.base.generator)
        return self.root / "generators" / group.name / "models/generator.keras"

    def group_config(self, group: Group, methods: Sequence[str]) -> cifar_lt.Config:
        """The settings of a group, whose generator has the `output_dir`."""
        return dataclasses.replace(
            self.base,
            dataset=group.dataset,
            imbalance_ratio=group.imbalance_ratio,
            methods=tuple(methods),
            output_dir=str(self.root / "generators" / group.name),
        )

    def config(self, cell: Cell) -> cifar_lt.Config:
        """The settings of a cell, before they are checked."""
        generator = str(self.generator_file(cell.group)) if self.uses_generator(cell) else None
        return self._config(cell, generator)

    def _config(self, cell: Cell, generator: str | None) -> cifar_lt.Config:
        return dataclasses.replace(
            self.base,
            dataset=cell.group.dataset,
            imbalance_ratio=cell.group.imbalance_ratio,
            methods=(cell.method,),
            seeds=(cell.seed,),
            generator=generator,
            output_dir=str(self.root / cell.folder),
        )

    def folder(self, cell: Cell) -> ResultsFolder:
        """The folder of a cell, tied to its settings.

        Where the generator is not there (cells from another machine, or none trained yet), a cell
        that has begun is taken to belong to the one that it was begun with.
        """
        config, _ = checked(self._config(cell, None), quick)
        settings = decisive_settings(config)
        if self.uses_generator(cell):
            settings["generator"] = self._generator_hash(cell)
        return ResultsFolder(self.root / cell.folder, settings)

    def _generator_hash(self, cell: Cell) -> str | None:
        stored = self.root / cell.folder / "config.json"
        file = self.generator_file(cell.group)
        if stored.is_file() and (not file.is_file() or self._trained(cell)):
            try:
                return json.loads(stored.read_text())["settings"]["generator"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(f"{stored} cannot be read ({error}): remove its folder") from error
        return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None

    def _trained(self, cell: Cell) -> bool:
        folder = ResultsFolder(self.root / cell.folder, {})
        return bool(entry(folder.read_results(), cell))

    def state(self, cell: Cell) -> tuple[str, dict[str, Any]]:
        """`"finished"`, `"failed"` or `"missing"`, and what `results.json` of the cell holds.

        Raises:
            InputError: the folder of the cell is of other settings.
        """
        folder = self.folder(cell)
        folder.check()
        results = folder.read_results()
        if entry(results, cell):
            return "finished", results
        return ("failed" if results.get("failed") else "missing"), results

    def command(self, cell: Cell) -> str:
        """The command that makes this cell by itself; in the place where it lies."""
        return self._command(self.config(cell))

    def row_command(self, cell: Cell, seeds: Sequence[int]) -> str:
        """One command for all seeds of a method, into a folder of its own."""
        config = dataclasses.replace(
            self.config(cell),
            seeds=tuple(seeds),
            output_dir=f"results/{cell.group.name}_{cell.method}",
        )
        return self._command(config)

    @staticmethod
    def _command(config: cifar_lt.Config) -> str:
        # Where the data lie decides no result, and is nobody's business.
        flags = flags_of(config, leave_out=("data_dir", "download"))
        return " ".join(["python -m experiments.cifar_lt", *flags])

    def found(self, groups: Sequence[Group]) -> list[Cell]:
        """The cells of these groups that have a folder, also of other methods and seeds."""
        cells = []
        for group in groups:
            for path in sorted((self.root / "cells" / group.name).glob("*/seed*")):
                number = path.name.removeprefix("seed")
                if path.is_dir() and number.isdecimal():
                    kg.recipes.get(path.parent.name)
                    cells.append(Cell(group, path.parent.name, int(number)))
        return cells


def entry(results: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """What `results.json` of a cell says about its training; empty if it is not finished."""
    methods = results.get("methods", {})
    return methods.get(cell.method, {}).get("seeds", {}).get(str(cell.seed), {})
