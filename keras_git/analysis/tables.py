"""Results as tables of named columns, with the settings they come from."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np

from keras_git.errors import InputError
from keras_git.files import write_atomically

FORMAT_VERSION = 1
# Name of the row of all classes, whose class_id is -1
ALL_CLASSES = "all classes"
Row = dict[str, Any]
_Table = TypeVar("_Table", bound="ResultTable")


def plain(value: Any) -> Any:
    """Dictionaries, lists, numbers and texts; what is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


class ResultTable:
    """Rows of one kind; a subclass names the columns.

    Args:
        rows: dictionaries with a value for each of `COLUMNS`; missing numbers are NaN, texts None.
        settings: arguments of the measurement.
        seconds: that it took, compilation included.
        notes: further results, JSON-serializable.

    Attributes:
        COLUMNS: names of the columns, in order.
        TEXTS: those among them that are not numbers.
    """

    COLUMNS: ClassVar[tuple[str, ...]] = ()
    TEXTS: ClassVar[tuple[str, ...]] = ()
    KIND: ClassVar[str] = "table"

    def __init__(
        self,
        rows: Iterable[Row],
        settings: Mapping[str, Any] | None = None,
        *,
        seconds: float = 0.0,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.rows: list[Row] = [
            {name: _value(row.get(name), name in self.TEXTS) for name in self.COLUMNS}
            for row in rows
        ]
        self.settings = dict(settings or {})
        self.notes = dict(notes or {})
        self.seconds = float(seconds)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return self.COLUMNS

    def __getitem__(self, name: str) -> np.ndarray:
        """A column: float64, or objects for texts."""
        if name not in self.COLUMNS:
            raise KeyError(f"{name!r} is no column; the columns are {', '.join(self.COLUMNS)}")
        values = [row[name] for row in self.rows]
        return np.array(values, dtype=object if name in self.TEXTS else np.float64)

    def select(self: _Table, **wanted: Any) -> _Table:
        """The rows whose columns have these values (or one of these, for a list or tuple)."""

        def fits(row: Row) -> bool:
            return all(
                row[name] in value if isinstance(value, (list, tuple, set)) else row[name] == value
                for name, value in wanted.items()
            )

        for name in wanted:
            if name not in self.COLUMNS:
                raise InputError(f"{name!r} is no column; use one of {', '.join(self.COLUMNS)}")
        return self._like([row for row in self.rows if fits(row)])

    def _like(self: _Table, rows: Sequence[Row]) -> _Table:
        made = type(self)(rows, self.settings, seconds=self.seconds, notes=self.notes)
        return made

    @property
    def summary(self) -> str:
        """What was measured and how long it took, in a line."""
        images, number = self.settings.get("n_images"), self.settings.get("n_transforms")
        return f"{images} images x {number} transforms, {self.seconds:.1f} seconds"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} rows: {self.summary})"

    def __str__(self) -> str:
        return self.summary

    def to_dict(self) -> dict[str, Any]:
        """Everything, plain and JSON-serializable: kind, rows, settings, notes, seconds."""
        return {
            "format_version": FORMAT_VERSION,
            "kind": self.KIND,
            "rows": plain(self.rows),
            "settings": plain(self.settings),
            "notes": plain(self.notes),
            "seconds": self.seconds,
        }

    @classmethod
    def from_dict(cls: type[_Table], content: Mapping[str, Any]) -> _Table:
        """The inverse of `to_dict`.

        Raises:
            InputError: something else.
        """
        try:
            if content["format_version"] != FORMAT_VERSION or content["kind"] != cls.KIND:
                raise ValueError(f"it is a {content['kind']!r} of version {FORMAT_VERSION}")
            rows, settings, notes = content["rows"], content["settings"], content["notes"]
            return cls(rows, settings, seconds=content["seconds"], notes=notes)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"this is no {cls.KIND} ({error!r:.100})") from error

    def to_json(self, path: str | Path) -> Path:
        """Writes `to_dict` to a file that `from_json` reads."""
        path = Path(path)
        write_atomically(path, json.dumps(self.to_dict(), indent=1) + "\n")
        return path

    @classmethod
    def from_json(cls: type[_Table], path: str | Path) -> _Table:
        """Reads what `to_json` wrote.

        Raises:
            InputError: no such file, or another one.
        """
        try:
            content = json.loads(Path(path).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read: {error}") from error
        return cls.from_dict(content)

    def to_csv(self, path: str | Path) -> Path:
        """Writes the rows as a CSV file; cells without a value are empty.

        Returns:
            The path.
        """
        text = io.StringIO()
        writer = csv.DictWriter(text, self.COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in self.rows:
            writer.writerow({k: "" if v is None else v for k, v in plain(row).items()})
        path = Path(path)
        write_atomically(path, text.getvalue())
        return path

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            InputError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise InputError("to_pandas needs pandas: pip install pandas, or use to_dict") from None
        return pandas.DataFrame(self.rows, columns=list(self.COLUMNS))


def _value(value: Any, text: bool) -> Any:
    if text:
        return None if value is None else str(value)
    if value is None:
        return math.nan
    if isinstance(value, (int, np.integer)) and not isinstance(value, bool):
        return int(value)
    return float(value)
