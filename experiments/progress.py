"""Progress of long work, with the time left: a bar on a terminal, lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import keras
from absl import logging
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bars

_SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """Counts `total` steps of the work called `label`; a context manager."""

    def __init__(self, label: str, total: int, done: int = 0) -> None:
        self.label, self.total, self.done = label, total, done
        self._first: int | None = done or None
        self._start = time.monotonic()
        self._last_line = self._start
        self._bars: Bars | None = None
        if sys.stderr.isatty():
            from rich.console import Console

            self._bars = Bars(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
            )
            self._task = self._bars.add_task(label, total=total, completed=done, note="")

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bars is not None:
            self._bars.stop()
        elif kind is None:
            logging.info("%s: done, %.1f s", self.label, time.monotonic() - self._start)

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Reports that `steps` more are done."""
        self.done += steps
        if self._bars is not None:
            fields: dict[str, Any] = {"note": note} if note else {}
            self._bars.update(self._task, advance=steps, **fields)
            return
        now = time.monotonic()
        if now - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = (self.done - (self._first or 0)) / (now - self._start)
            left = (self.total - self.done) / rate if rate else float("nan")
            text = f"{self.label}: {self.done}/{self.total}, {left:.0f} s left {note}"
            logging.info("%s", text.rstrip())

    def show(self, done: int, total: int, note: str = "") -> None:
        """Reports that `done` of `total` steps are done; the total may have grown.

        What the first report says was done before: it does not count for the time that is left.
        """
        self.total = total
        if self._first is None:
            self._first = done
        if self._bars is not None:
            self._bars.update(self._task, total=total)
        self.advance(done - self.done, note)


@contextmanager
def reports(label: str) -> Iterator[Callable[[int, int], None]]:
    """The `progress(done, total)` that functions of the library call; shows what they report."""
    shown: Progress | None = None

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if shown is None:
            shown = Progress(label, total).__enter__()
        shown.advance(done - shown.done)

    try:
        yield progress
    finally:
        if shown is not None:
            shown.__exit__(*sys.exc_info())


class ShowProgress(keras.callbacks.Callback):
    """Advances a `Progress` with each batch of `fit`."""

    def __init__(self, progress: Progress) -> None:
        super().__init__()
        self._progress = progress
        self._last_batch = -1

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        # several steps may be one call, of which only the last batch is told
        self._progress.advance(batch - self._last_batch)
        self._last_batch = batch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        loss = (logs or {}).get("loss", (logs or {}).get("generator_loss"))
        if loss is not None:
            self._progress.advance(0, f"loss {float(loss):.3f}")
