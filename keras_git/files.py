"""Files that are complete or absent, never half-written, and archives of arrays without pickle."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.errors import InputError

# The name under which an archive holds its facts.
_FACTS = "progress_json"


@contextmanager
def replacement(path: str | Path) -> Iterator[Path]:
    """Writes a file that takes the place of `path` as a whole, when the block ends without error.

    A reader sees the old content or the new one, also after a loss of power. A process that is
    killed leaves a hidden file beside it, which `.*.tmp*` finds.

    Args:
        path: of the file; its folder must exist.

    Yields:
        The path to write to, in the same folder and with the same ending.

    Raises:
        OSError: the file cannot be written; what was there is kept.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "r+b") as file:  # Windows flushes only what is open for writing
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: str | Path, content: str | bytes) -> None:
    """Replaces the content of `path` as a whole; text is written as UTF-8. See `replacement`."""
    with replacement(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def save_archive(path: str | Path, arrays: Mapping[str, np.ndarray], facts: Any) -> None:
    """Writes named arrays and JSON-serializable `facts` to one `.npz` file, all or nothing.

    Raises:
        OSError: the file cannot be written; what was there is kept.
    """
    content: dict[str, Any] = {_FACTS: np.array(json.dumps(facts)), **arrays}
    with replacement(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **content)


def load_archive(path: str | Path, what: str, remedy: str) -> tuple[dict[str, np.ndarray], Any]:
    """Reads what `save_archive` wrote; no pickle is read.

    Args:
        path: of the file.
        what: it should be, such as "checkpoint"; for the message.
        remedy: what to do if it is not; for the message.

    Returns:
        The arrays by name, and the facts.

    Raises:
        InputError: the file is damaged, or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        return arrays, json.loads(str(arrays.pop(_FACTS)))
    # Seen for damaged archives: BadZipFile, ValueError, EOFError, KeyError, OSError, zlib.error,
    # RuntimeError ("encrypted"), NotImplementedError ("zip version 9.1") and, for an `.npy` file,
    # TypeError. The list would never be complete: a changed byte leads anywhere.
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path} is not a {what} ({reason}): {remedy}") from error
