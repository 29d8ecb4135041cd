"""The folder of one run: locked, tied to its configuration, never half-written."""

from __future__ import annotations

import csv
import errno
import io
import json
import math
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras

from keras_git.errors import InputError
from keras_git.files import replacement, write_atomically
from keras_git.versions import versions

FORMAT_VERSION = 1


class FolderInUseError(InputError):
    """Another process holds the lock of the folder: whoever can wait, may."""


def _plain(value: Any) -> Any:
    """JSON has no NaN and no numpy: NaN becomes null, arrays become lists."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def to_json(value: Any) -> str:
    return json.dumps(_plain(value), indent=2, sort_keys=False) + "\n"


def git_revision() -> str | None:
    """Commit of the checkout this file is in, with `+changes` if it was edited; else None."""
    folder = Path(__file__).resolve().parent
    try:
        head = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + ("+changes" if status else "")


class ResultsFolder:
    """`output_dir` of one run; a context manager that holds its lock.

    Args:
        path: the folder; made if it is absent.
        settings: what decides the results. A folder with other settings is refused.

    Raises:
        InputError: the folder belongs to another configuration or another program, holds
            something else, is in use by another run, or cannot be written.
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.settings = json.loads(to_json(settings))
        self.models = self.path / "models"
        self.pictures = self.path / "pictures"
        self.checkpoints = self.path / "checkpoints"
        self._lock: Any = None

    def __enter__(self) -> ResultsFolder:
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"output_dir {self.path} is a file: name a folder")
        config = self.path / "config.json"
        if self.path.is_dir():
            self._check(config)  # a folder of something else gets no lock file either
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a")  # noqa: SIM115  held until __exit__
            _lock(self._lock)
        except BlockingIOError:
            self._lock.close()
            raise FolderInUseError(
                f"output_dir {self.path} is in use by another run: wait for it or name another"
            ) from None
        except OSError as error:
            raise InputError(
                f"output_dir {self.path} cannot be written ({error.strerror}): name another"
            ) from error
        try:
            self._check(config)
            for folder in (self.models, self.pictures, self.checkpoints):
                folder.mkdir(exist_ok=True)
            self._remove_left_over()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: Any) -> None:
        # The file stays: removing it would let two later runs lock two different files.
        self._lock.close()

    def check(self) -> None:
        """Raises `InputError` if the folder is not empty and not of these settings; no lock."""
        if self.path.is_dir():
            self._check(self.path / "config.json")

    def _check(self, config: Path) -> None:
        if not config.exists():
            strange = [p.name for p in self.path.iterdir() if not p.name.startswith(".")]
            # Killed before config.json was there, or versions of k49_lt or cells of a table from
            # other machines.
            known = {"models", "pictures", "checkpoints", "versions", "cells", "generators",
                     "unreadable.csv"}  # fmt: skip
            if set(strange) - known:
                raise InputError(
                    f"output_dir {self.path} is not empty (it holds {sorted(strange)[0]!r}) and "
                    "not of this program: name a new folder"
                )
            return
        try:
            stored = json.loads(config.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{config} cannot be read ({error}): name a new folder") from error
        settings = {**stored.get("settings", {})}
        settings["backend"] = stored.get("versions", {}).get("backend")
        wanted = {**self.settings, "backend": keras.config.backend()}
        for name in sorted(settings.keys() | wanted.keys()):
            if settings.get(name) != wanted.get(name):
                raise InputError(
                    f"output_dir {self.path} is of a different configuration: {name} was "
                    f"{settings.get(name)!r}, now {wanted.get(name)!r}; name a new folder"
                )

    def write_config(self, **facts: Any) -> None:
        """Writes `config.json` once; a continued run must have found the same data.

        Facts that an older version of this program did not write are not compared.
        """
        path = self.path / "config.json"
        facts = json.loads(to_json(facts))
        if path.exists():
            stored = json.loads(path.read_text())
            for name, value in facts.items():
                if name in stored and stored[name] != value:
                    raise InputError(
                        f"the data have changed since {path} was written ({name} differs): "
                        "restore them or name a new folder"
                    )
            return
        config = {
            "format_version": FORMAT_VERSION,
            "settings": self.settings,
            "versions": versions(),
            "git_revision": git_revision(),
            **facts,
        }
        write_atomically(path, to_json(config))

    def read_config(self) -> dict[str, Any]:
        """What `config.json` holds."""
        path = self.path / "config.json"
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read ({error}): name a new folder") from error

    def read_results(self) -> dict[str, Any]:
        """What `results.json` holds; empty at first."""
        path = self.path / "results.json"
        if not path.exists():
            return {}
        try:
            results = json.loads(path.read_text())
            version = results["format_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read ({error!r}): name a new folder") from error
        if version != FORMAT_VERSION:
            raise InputError(
                f"{path} has format {version}, not {FORMAT_VERSION}: name a new folder"
            )
        return results

    def write_results(self, results: Mapping[str, Any]) -> None:
        write_atomically(self.path / "results.json", to_json(results))

    def write_table(
        self, name: str, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]
    ) -> None:
        """Writes a CSV file; columns that a row lacks stay empty."""
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(self.path / name, text.getvalue())

    def save_model(self, model: keras.Model, name: str) -> Path:
        """Saves a network, uncompiled, as `models/<name>.keras`."""
        path = self.models / f"{name}.keras"
        with replacement(path) as temporary:
            model.save(temporary)
        return path

    def clean_up(self) -> None:
        """Removes what only an unfinished run needs."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self._remove_left_over()

    def _remove_left_over(self) -> None:
        """Half-written files of a killed run; this one has the lock, so nobody works on them."""
        leftovers = [
            *self.path.glob(".*.tmp*"),
            *self.checkpoints.glob(".*.tmp*"),
            *self.models.glob(".*"),
            *self.pictures.glob(".*"),
            *(self.path / "export").glob(".*"),
        ]
        for leftover in leftovers:
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)


def _lock(file: Any) -> None:
    """An exclusive lock that the system gives back when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            raise BlockingIOError(errno.EAGAIN, "locked") from error
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
