"""What varies in the data and what networks are invariant to, as one self-contained HTML file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.analysis import CheckTable, FactorTable, InvarianceTable, LineUpResult
from keras_git.errors import InputError
from keras_git.files import write_atomically
from keras_git.report.aggregates import clean, number_of
from keras_git.report.html import page
from keras_git.report.markup import Markup, join, tag

_BEST = 5
_FOUND = 0.05
_LEVELS = 8
_MOST_COLUMNS = 40


def write_factors_html(
    path: str | Path,
    *,
    factors: Mapping[str, FactorTable],
    invariance: InvarianceTable | None = None,
    line_ups: Mapping[str, LineUpResult] | None = None,
    checks: Mapping[str, CheckTable] | None = None,
    title: str | None = None,
) -> Path:
    """Writes the report: the same bytes for the same tables, no script, nothing from elsewhere.

    Args:
        path: of the file; its folder is made if it is absent.
        factors: tables of `explain_variation`, by the name of the embedding.
        invariance: of `measure_invariance` or `compare`.
        line_ups: results of `lines_up`, by what they compare.
        checks: of `similarity_checks`, by the name of the embedding.
        title: heading.

    Returns:
        The path.

    Raises:
        InputError: no table of factors.
        OSError: the file cannot be written.
    """
    if not factors:
        raise InputError("there is no table of factors to report")
    first = next(iter(factors.values()))
    data = clean(str(first.settings.get("data", "")))
    heading = title or f"Factors of variation{' in ' + data if data else ''}"
    sections = [
        ("summary", "Summary", _summary(factors, line_ups or {}, checks or {})),
        ("factors", "Class by transformation", _heat_maps(factors)),
        ("best", "Best operations of each class", _best(factors)),
        ("invariance", "Invariance", _invariance(invariance)),
        ("differences", "Differences between networks", _differences(invariance)),
        ("line_up", "Does invariance line up with the factors?", _line_ups(line_ups or {})),
        ("checks", "Does similarity mean anything?", _checks(checks or {})),
        ("settings", "Settings", _settings(factors, invariance)),
    ]
    subtitle = (
        "Which transformations explain how images of a class differ, and which do networks ignore?"
    )
    content = page(heading, subtitle, sections)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def _scroll(content: object) -> Markup:
    return tag("div", content, class_="scroll", tabindex="0")


def _table(head: Sequence[object], rows: Sequence[Sequence[object]], caption: str = "") -> Markup:
    def cell(value: object) -> Markup:
        if isinstance(value, Markup) and value.startswith("<td"):
            return value
        return tag("td", value)

    return tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", [tag("th", name, scope="col") for name in head])),
        tag(
            "tbody",
            [
                tag("tr", tag("th", row[0], scope="row"), [cell(value) for value in row[1:]])
                for row in rows
            ],
        ),
    )


def _signed(value: float, digits: int = 3) -> str:
    return f"{value:+z.{digits}f}" if math.isfinite(value) else "\u2013"


def _plain(value: float, digits: int = 2) -> str:
    return f"{value:z.{digits}f}" if math.isfinite(value) else "\u2013"


def _candidate(transform: str, magnitude: float) -> str:
    name = clean(transform.replace(" with magnitude ", " "))
    if math.isfinite(magnitude) and " with magnitude" not in transform:
        return f"{name} {magnitude:g}"
    return name


def _summary(
    factors: Mapping[str, FactorTable],
    line_ups: Mapping[str, LineUpResult],
    checks: Mapping[str, CheckTable],
) -> Markup:
    parts: list[object] = []
    for name, checked in checks.items():
        if checked.warning:
            text = f"{clean(name)}: {checked.warning}."
            parts.append(tag("p", tag("strong", "Warning: "), text))
    for name, table in factors.items():
        for text in table.warnings:
            parts.append(tag("p", tag("strong", "Warning: "), f"{clean(name)}: {text}."))
        rows = [row for row in table.rows if math.isfinite(row["q_value"])]
        found = [row for row in rows if row["q_value"] < _FOUND and table.score_of(row) > 0]
        best = table.top(3, per="dataset")
        listed = ", ".join(_candidate(row["transform"], row["magnitude"]) for row in best)
        parts.append(
            tag(
                "p",
                tag("strong", clean(name)),
                f": {len(found)} of {number_of(len(rows), 'cell')} class by transformation gain "
                f"beyond chance (false discovery rate 5\u00a0%); best over all classes: {listed}.",
            )
        )
        families = table.families
        if len(families):
            counted: dict[str, int] = {}
            for row in families.top(1):
                if row["net_lo"] > 0 or not math.isfinite(row["net_lo"]) and row["gain_lo"] > 0:
                    counted[row["transform"]] = counted.get(row["transform"], 0) + 1
            order = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
            text = ", ".join(f"{clean(op)} ({number_of(n, 'class', 'classes')})" for op, n in order)
            if text:
                parts.append(tag("p", f"First, by the best magnitude for each pair: {text}."))
    for name, result in line_ups.items():
        parts.append(tag("p", tag("strong", clean(name)), f": {result.summary}."))
    return tag("div", parts, class_="short")


def _level(value: float, high: float) -> int:
    """0..8; 4 is none, more is a gain, less a loss."""
    if not math.isfinite(value) or high <= 0:
        return 0
    return int(np.clip(math.ceil(_LEVELS * max(value, 0.0) / high - 1e-9), 0, _LEVELS))


def _heat_maps(factors: Mapping[str, FactorTable]) -> Markup:
    parts: list[object] = [
        tag(
            "p",
            "Net gain: by how much transforming one of two images of the class raises their "
            "cosine similarity, less the same for images of different classes. A dot marks cells "
            "whose net gain differs from 0 (q < 0.05, all cells together). Darker is a larger "
            "gain; losses have no colour.",
        )
    ]
    for name, table in factors.items():
        net = np.isfinite(table["net_gain"]).any()
        values, q = table.matrix("net_gain" if net else "gain"), table.matrix("q_value")
        names = [_candidate(*candidate) for candidate in table.candidates]
        order = np.argsort(-np.nan_to_num(values).max(axis=0), kind="stable")[:_MOST_COLUMNS]
        high = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
        rows = []
        for label, own, own_q in zip(table.class_names, values, q, strict=True):
            cells = [
                tag(
                    "td",
                    _signed(own[i]) + ("\u2022" if own_q[i] < _FOUND else ""),
                    class_=f"h{_level(own[i], high)}",
                )
                for i in order
            ]
            rows.append(tag("tr", tag("th", clean(label), scope="row"), cells))
        head = [tag("th", tag("span", names[i]), class_="turned", scope="col") for i in order]
        parts.append(tag("h3", f"Embedding: {clean(name)}"))
        parts.append(
            _scroll(
                tag(
                    "table",
                    tag("thead", tag("tr", tag("th", "class", scope="col"), head)),
                    tag("tbody", rows),
                    class_="heat",
                )
            )
        )
        if len(names) > _MOST_COLUMNS:
            parts.append(tag("p", f"The {_MOST_COLUMNS} largest of {len(names)}.", class_="soft"))
    return join(parts)


def _best(factors: Mapping[str, FactorTable]) -> Markup:
    parts: list[object] = [
        tag(
            "p",
            "For each pair of images the best magnitude of an operation, or none, and the same for "
            "pairs of different classes as control. An operation that can be undone, such as a "
            "rotation, can only show here: at one magnitude it moves as many pairs apart as "
            "together.",
        )
    ]
    for name, table in factors.items():
        best = table.families.top(_BEST)
        rows = [
            [
                clean(row["class_name"]),
                tag("td", clean(row["transform"]), class_="text"),
                _signed(row["net_gain"]),
                f"{_signed(row['net_lo'])} to {_signed(row['net_hi'])}",
                _signed(row["gain"]),
                _signed(row["control_gain"]),
                f"{100 * row['share']:.0f}\u00a0%",
                "<0.001" if row["q_value"] < 0.001 else _plain(row["q_value"], 3),
            ]
            for row in best
        ]
        head = ["class", "operation", "net gain", "95 %", "gain", "control", "pairs", "q"]
        parts += [tag("h3", f"Embedding: {clean(name)}"), _scroll(_table(head, rows))]
    return join(parts)


def _invariance(table: InvarianceTable | None) -> Markup | None:
    if table is None or not len(table):
        return None
    parts: list[object] = [
        tag(
            "p",
            "1: the embedding does not change; 0: the transformed image is no closer than another "
            "image. Where little of the image is visible, invariance is low whatever the network "
            "does.",
        )
    ]
    rows = [row for row in table.rows if row["class_id"] == -1]
    lines = list(dict.fromkeys((row["model"], row["layer"]) for row in rows))
    for transform in dict.fromkeys(row["transform"] for row in rows):
        own = [row for row in rows if row["transform"] == transform]
        steps = list(dict.fromkeys((row["index"], repr(row["magnitude"])) for row in own))
        head: list[object] = ["network"]
        shown: list[object] = ["visible"]
        for index, magnitude in steps:
            row = next(r for r in own if (r["index"], repr(r["magnitude"])) == (index, magnitude))
            known = math.isfinite(row["magnitude"])
            head.append(f"{row['magnitude']:.3g}" if known else "\u2013")
            visible = row["visible_fraction"]
            shown.append(f"{100 * visible:.0f}\u00a0%" if math.isfinite(visible) else "\u2013")
        body: list[list[object]] = []
        for model, layer in lines:
            line: list[object] = [clean(f"{model}, {layer}" if _layers(rows) > 1 else model)]
            for index, magnitude in steps:
                row = next(
                    r
                    for r in own
                    if (r["model"], r["layer"], r["index"], repr(r["magnitude"]))
                    == (model, layer, index, magnitude)
                )
                value = row["invariance"]
                level = _level(value, 1.0)
                line.append(tag("td", _plain(value), class_=f"h{level}"))
            body.append(line)
        body.append(shown)
        parts += [tag("h3", clean(transform)), _scroll(_table(head, body))]
    return join(parts)


def _layers(rows: Sequence[Mapping[str, Any]]) -> int:
    return len({row["layer"] for row in rows})


def _differences(table: InvarianceTable | None) -> Markup | None:
    differences = None if table is None else table.differences
    if differences is None:
        return None
    pairs = list(dict.fromkeys((r["model"], r["other"]) for r in differences))
    names = list(dict.fromkeys(row["transform"] for row in differences))
    rows = []
    for model, other in pairs:
        line: list[object] = [f"{clean(model)} less {clean(other)}"]
        for name in names:
            own = [
                row
                for row in differences
                if (row["model"], row["other"], row["transform"]) == (model, other, name)
                and math.isfinite(row["difference"])
            ]
            mean = float(np.mean([row["difference"] for row in own])) if own else math.nan
            sure = sum(row["q_value"] < _FOUND for row in own)
            line.append(f"{_signed(mean, 2)} ({sure}/{len(own)})")
        rows.append(line)
    caption = (
        "Mean over magnitudes of the paired difference; in brackets, magnitudes at which it is not "
        "0 (q < 0.05)."
    )
    return _scroll(_table(["networks", *names], rows, caption))


def _line_ups(line_ups: Mapping[str, LineUpResult]) -> Markup | None:
    if not line_ups:
        return None
    parts: list[object] = []
    for name, result in line_ups.items():
        rows = [
            [
                clean(row["transform"]),
                _signed(row["factor"], 4),
                _signed(row["gap"]),
                f"{row['count']:.0f}",
            ]
            for row in sorted(result.rows, key=lambda row: -row["factor"])
        ]
        head = ["operation", "factor", "gain in invariance", "among the best 5"]
        parts += [
            tag("h3", clean(name)),
            tag("p", f"{result.summary}."),
            _scroll(_table(head, rows)),
        ]
    return join(parts)


def _checks(checks: Mapping[str, CheckTable]) -> Markup | None:
    if not checks:
        return None
    parts: list[object] = []
    for name, checked in checks.items():
        rows = [
            [
                f"{row['comparison']}, {row['condition']}",
                _plain(row["similarity"], 3),
                f"{_plain(row['lo'], 3)} to {_plain(row['hi'], 3)}",
            ]
            for row in checked.rows
        ]
        parts += [
            tag("h3", clean(name)),
            _scroll(_table(["images", "mean cosine", "95 %"], rows)),
        ]
    return join(parts)


def _settings(factors: Mapping[str, FactorTable], invariance: InvarianceTable | None) -> Markup:
    parts: list[object] = []
    tables: dict[str, Any] = {f"factors, {clean(n)}": t for n, t in factors.items()}
    if invariance is not None:
        tables["invariance"] = invariance
    for name, table in tables.items():
        rows = [[key, tag("td", clean(str(value)), class_="wrap")] for key, value in
                table.settings.items()]  # fmt: skip
        parts += [tag("h3", name), _scroll(_table(["setting", "value"], rows))]
    return join(parts)
