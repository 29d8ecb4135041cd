"""Files that are complete or absent, never half-written."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
