"""How a fixture file is matched to the code that recomputes it, and how results are compared.

A family module in this folder defines ``FAMILIES``, a dictionary from the prefix of the file name
to a function ``family(arrays, config)`` that yields one ``Check`` (or ``Skip``) for each expected
output. ``arrays`` is a read-only mapping that remembers which keys were read: a key of the file
that was neither read as an input nor checked nor skipped is unknown, and that is a failure. So a
family must not loop over ``arrays.items()`` or ``arrays.values()``; looping over the keys is fine.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import pathlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

MEASURES = ("abs", "rel", "rel_each", "quantile", "exact")


@dataclasses.dataclass(frozen=True)
class Check:
    """One expected output, recomputed.

    Attributes:
        key: Name of the array in the file; a check of an absent key is ignored.
        ours: The recomputed value, same shape as the array.
        measure: "abs" (largest absolute difference), "rel" (that divided by the largest absolute
            expected entry), "rel_each" (largest entry by entry relative difference), "quantile"
            (99 % quantile of the absolute difference) or "exact" (absolute, tolerance 0).
        tolerance: Largest accepted error.
        small_tolerance: Only for "quantile": tolerance of the *largest* difference, used instead
            of the quantile for tensors of fewer than 100 entries.
    """

    key: str
    ours: Any
    measure: str = "abs"
    tolerance: float = 0.0
    small_tolerance: float | None = None


@dataclasses.dataclass(frozen=True)
class Skip:
    """An array that is not to be compared (unstable or informational)."""

    key: str
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Result:
    """One printed line: error and tolerance are None where nothing was compared."""

    key: str
    error: float | None
    tolerance: float | None
    status: str
    note: str = ""


class Arrays(Mapping[str, np.ndarray]):
    """The arrays of a file; ``read`` holds the keys that were looked up."""

    def __init__(self, arrays: Mapping[str, np.ndarray]):
        self._arrays = dict(arrays)
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> np.ndarray:
        value = self._arrays[key]
        self.read.add(key)
        return value

    def __contains__(self, key: object) -> bool:
        return key in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def peek(self, key: str) -> np.ndarray:
        """The array without counting it as an input (to compare with, or for its shape)."""
        return self._arrays[key]

    def under(self, prefix: str) -> dict[str, np.ndarray]:
        """All arrays whose key starts with prefix, without the prefix, counted as inputs."""
        return {key[len(prefix) :]: self[key] for key in self if key.startswith(prefix)}


Family = Callable[[Arrays, dict], Iterable[Check | Skip]]


def families() -> dict[str, Family]:
    """All families of the modules in this folder, by file name prefix."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules([str(pathlib.Path(__file__).parent)]):
        if module.name not in ("__main__", "registry"):
            loaded = importlib.import_module(f"{__package__}.{module.name}")
            found.update(getattr(loaded, "FAMILIES", {}))
    return found


def family_of(name: str, known: Iterable[str]) -> str | None:
    """The longest known prefix of a file name, None if there is none."""
    return max((prefix for prefix in known if name.startswith(prefix)), key=len, default=None)


def compare(check: Check, expected: np.ndarray) -> Result:
    """Compares a recomputed value with the expected one; equal NaNs and infinities are equal."""
    if check.measure not in MEASURES:
        raise ValueError(f"measure {check.measure!r} is not one of {', '.join(MEASURES)}")
    ours = np.asarray(check.ours)
    tolerance = 0.0 if check.measure == "exact" else float(check.tolerance)
    if ours.shape != expected.shape:
        note = f"shape {ours.shape}, expected {expected.shape}"
        return Result(check.key, float("inf"), tolerance, "FAIL", note)
    ours, expected = ours.astype(np.float64), expected.astype(np.float64)
    same = (ours == expected) | (np.isnan(ours) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(ours - expected))
    difference = np.where(np.isnan(difference), np.inf, difference)
    if check.measure == "rel_each":
        with np.errstate(divide="ignore", invalid="ignore"):
            difference = np.where(difference > 0, difference / np.abs(expected), 0.0)
        difference = np.where(np.isnan(difference), np.inf, difference)
    if difference.size == 0:
        error = 0.0
    elif check.measure == "quantile" and difference.size >= 100:
        error = float(np.quantile(difference, 0.99))
    else:
        error = float(difference.max())
    if check.measure == "quantile" and difference.size < 100:
        tolerance = float(
            check.tolerance if check.small_tolerance is None else check.small_tolerance
        )
    if check.measure == "rel" and error > 0:
        finite = np.abs(expected[np.isfinite(expected)])
        largest = float(finite.max()) if finite.size else 0.0
        error = error / largest if largest > 0 else float("inf")
    return Result(check.key, error, tolerance, "ok" if error <= tolerance else "FAIL")


def run_file(path: str | pathlib.Path) -> list[Result]:
    """Recomputes every expected output of a fixture file.

    Args:
        path: An .npz file whose name starts with the prefix of a known family.

    Returns:
        One result per expected output, plus one failed result per key that is not understood.

    Raises:
        ValueError: if the file cannot be read or its family is unknown.
    """
    path = pathlib.Path(path)
    known = families()
    prefix = family_of(path.name, known)
    if prefix is None:
        raise ValueError(f"{path}: no family for this name; known: {', '.join(sorted(known))}")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = Arrays({key: archive[key] for key in archive.files})
    except Exception as error:  # zipfile, zlib, OSError, ValueError: all mean "not readable"
        raise ValueError(f"{path}: cannot be read as .npz without pickle: {error}") from error
    config = json.loads(str(arrays["config_json"])) if "config_json" in arrays else {}
    config["path"] = str(path)  # for families whose inputs are in another file beside it

    results: list[Result] = []
    done: set[str] = set()
    failure = ""
    try:
        for item in known[prefix](arrays, config):
            if item.key not in arrays or item.key in done:
                continue
            done.add(item.key)
            if isinstance(item, Skip):
                results.append(Result(item.key, None, None, "skip", item.reason))
            else:
                results.append(compare(item, arrays.peek(item.key)))
    except Exception as error:  # a file the family cannot handle is a failed file, not a crash
        failure = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    for key in arrays:
        if key not in done and key not in arrays.read:
            results.append(Result(key, None, None, "FAIL", failure or "unknown key"))
    if failure and not any(result.note == failure for result in results):
        results.append(Result("*", None, None, "FAIL", failure))
    if not done and not failure:
        results.append(Result("*", None, None, "FAIL", "nothing to compare in this file"))
    return results
