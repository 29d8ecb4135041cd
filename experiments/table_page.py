"""`table.html`, `table.md` and `table.json` of a results table, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from experiments.published import LIMIT
from experiments.results_folder import to_json
from experiments.summary import text_table
from keras_git.files import write_atomically
from keras_git.report.aggregates import number_of
from keras_git.report.charts import NUM_COLOURS, Series, against_size, both_widths, key
from keras_git.report.html import page
from keras_git.report.markup import Markup, join, tag

_NONE = "\u2013"
_MARK = "\u25c6"
_GROUPS = {
    "many_accuracy": "many (> 100)",
    "medium_accuracy": "medium (20\u2013100)",
    "few_accuracy": "few (< 20)",
    "head_accuracy": "largest third",
    "middle_accuracy": "middle third",
    "tail_accuracy": "smallest third",
}
_VERDICTS = {
    "no value": _NONE,
    "other setting": "not the same setting",
    "n = 1": "n = 1: undecided",
    "agrees": "agrees",
    "differs": f"{_MARK} differs",
}


@dataclass(frozen=True)
class TextTable:
    """A table as text, for HTML and Markdown alike.

    Attributes:
        title: heading.
        caption: what the columns are.
        head: names of the columns.
        rows: cells, as many as `head`.
        marked: indices of the rows that stand out.
        notes: below the table; a cell that ends in `[1]` refers to the first.
    """

    title: str
    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marked: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def write_pages(table: Mapping[str, Any], folder: Path) -> None:
    """Writes the three files.

    Args:
        table: as `table_summary.collect` gives it.
        folder: of the table.
    """
    write_atomically(folder / "table.json", to_json(table))
    write_atomically(folder / "table.md", to_markdown(table))
    write_atomically(folder / "table.html", to_html(table))


def print_table(table: Mapping[str, Any], folder: Path) -> None:
    """Prints the errors, and where the pages are."""
    parts = [title(table), *notes(table)]
    for group in table["tables"]:
        shown = errors_table(group)
        parts += [group_title(group), text_table([list(r) for r in (shown.head, *shown.rows)])]
        parts += ["\n".join(f"[{i}] {note}" for i, note in enumerate(shown.notes, start=1))]
    parts = [part for part in parts if part]
    parts.append(f"the page: {folder / 'table.html'}")
    print("\n" + "\n\n".join(parts), flush=True)


# ------------------------------------------------------------------------------------ text


def _with_std(mean: float | None, std: float | None, digits: int, factor: float = 1.0) -> str:
    if mean is None:
        return _NONE
    text = f"{factor * mean:.{digits}f}"
    return text if std is None else f"{text}\u00a0\u00b1\u00a0{factor * std:.{digits}f}"


def _cell(row: Mapping[str, Any], name: str, digits: int, factor: float = 1.0) -> str:
    return _with_std(row["mean"].get(name), row["std"].get(name), digits, factor)


def _signed(value: float | None) -> str:
    return _NONE if value is None else f"{value:+z.2f}"


def title(table: Mapping[str, Any]) -> str:
    """Heading of the page."""
    return f"Results table {table['suite']}"


def group_title(group: Mapping[str, Any]) -> str:
    """Heading of one dataset and imbalance ratio."""
    return f"{group['dataset']}, imbalance ratio {group['imbalance_ratio']:g}"


def notes(table: Mapping[str, Any]) -> list[str]:
    """What a reader must know before the first number."""
    found = []
    unusual = table["unusual_settings"]
    if unusual:
        found.append(
            "REDUCED or changed: these are not the settings of the published values ("
            + "; ".join(unusual)
            + "). Differences to published values are shown and decide nothing."
        )
    elif not table["has_published_values"]:
        found.append("No published values are known for these data.")
    if table.get("note"):
        found.append(table["note"])
    if table["overrides"]:
        found.append("Changed from the suite: " + ", ".join(table["overrides"]) + ".")
    rows = [row for group in table["tables"] for row in group["rows"]]
    verdicts = [row["comparison"]["verdict"] for row in rows]
    if "differs" in verdicts:
        found.append(
            f"{verdicts.count('differs')} of {sum(v in ('differs', 'agrees') for v in verdicts)} "
            f"rows differ from the published value by more than {LIMIT:g} standard deviations of "
            f"our seeds; they are marked {_MARK}."
        )
    for group in table["tables"]:
        if group["failed"]:
            number = number_of(len(group["failed"]), "cell")
            found.append(f"{number} failed: {'; '.join(group['failed'])}.")
        if group["missing"]:
            number = number_of(len(group["missing"]), "cell")
            found.append(f"{number} missing: {'; '.join(group['missing'])}.")
        if len(group["generators"]) > 1:
            found.append(
                f"{group_title(group)}: cells used {len(group['generators'])} different generators."
            )
    return found


def _seeds(row: Mapping[str, Any]) -> str:
    text = str(row["n"])
    for what in ("failed", "missing"):
        if row[what]:
            text += f", {len(row[what])} {what}"
    return text


def errors_table(group: Mapping[str, Any]) -> TextTable:
    """Errors beside the published values, and seed by seed against erm."""
    rows, marked, remarks = [], set(), []
    for row in group["rows"]:
        value, compared = row["published"], row["comparison"]
        to_erm = row["to_erm"]
        against = reference = _NONE
        if to_erm:
            error = to_erm["standard_error"]
            against = _signed(to_erm["mean"])
            against += f"\u00a0\u00b1\u00a0{error:.2f}" if error is not None else ""
        if value:
            differences = [f"here {d}" for d in row["setting_differences"]]
            remarks.append(_remark(value, differences))
            reference = f"{value['error']:.2f} [{len(remarks)}]"
        if compared["verdict"] == "differs":
            marked.add(len(rows))
        rows.append(
            (
                row["method"],
                _seeds(row),
                _cell(row, "error", 2),
                against,
                reference,
                _signed(compared["difference"]),
                _VERDICTS[compared["verdict"]],
            )
        )
    for value in group["context"]:
        remarks.append(_remark(value))
        reference = f"{value['error']:.2f} [{len(remarks)}]"
        nothing = (_NONE, _NONE, _NONE)
        rows.append((value["label"], *nothing, reference, _NONE, "context only"))
    return TextTable(
        "Errors and published values",
        "Top-1 error on the test set, %, after the last epoch: mean \u00b1 sample standard "
        "deviation over n seeds. Against erm: mean difference \u00b1 standard error, seed by seed. "
        f"A row is marked {_MARK} when its mean lies more than {LIMIT:g} standard deviations of "
        "our seeds from the published value.",
        ("method", "n", "error", "against erm", "published", "difference", "verdict"),
        tuple(rows),
        frozenset(marked),
        tuple(remarks),
    )


def _remark(value: Mapping[str, Any], differences: Sequence[str] = ()) -> str:
    """Where a published value is from, how it was trained, and how that is not what was done."""
    how = f"{value['network']}, {value['epochs']} epochs, augmentation {value['augmentation']}"
    parts = [f"{value['label']}: {value['source']}; {how}", *differences]
    return "; ".join([*parts, value["note"]] if value["note"] else parts) + "."


def sizes_table(group: Mapping[str, Any]) -> TextTable:
    """Accuracies of large and small classes, and calibration."""
    used = [name for name in _GROUPS if any(r["mean"].get(name) is not None for r in group["rows"])]
    return TextTable(
        "Large and small classes",
        "Accuracy, %: mean over the classes, over those with so many training images, and over "
        "thirds of the classes by size. ECE: expected calibration error, 0 to 1.",
        ("method", "balanced", *(_GROUPS[name] for name in used), "ECE"),
        tuple(
            (
                row["method"],
                _cell(row, "balanced_accuracy", 1, 100.0),
                *(_cell(row, name, 1, 100.0) for name in used),
                _cell(row, "expected_calibration_error", 3),
            )
            for row in group["rows"]
        ),
    )


def invariance_table(group: Mapping[str, Any]) -> TextTable | None:
    """eKLD under each transformation."""
    names = [n for row in group["rows"] for n in row["mean"] if n.startswith("ekld.")]
    transforms = [name.removeprefix("ekld.") for name in dict.fromkeys(names)]
    if not transforms:
        return None
    head = [(t, which) for t in transforms for which in ("all", "tail")]
    return TextTable(
        "Invariance",
        "eKLD, nats (0 is invariant): mean over all classes, and over the smallest third (tail).",
        ("method", *(f"{t.replace('_', ' ')}, {which}" for t, which in head)),
        tuple(
            (
                row["method"],
                *(_cell(row, f"{'tail_' * (w == 'tail')}ekld.{t}", 3) for t, w in head),
            )
            for row in group["rows"]
        ),
    )


def training_table(group: Mapping[str, Any]) -> TextTable:
    """Network, budget and time of each row."""
    return TextTable(
        "How each row was trained",
        "Minutes of training per seed; epochs that methods have in common were trained once and "
        "count in each of them. Batch: images per step.",
        ("method", "network", "parameters", "epochs", "batch", "augmentation", "minutes"),
        tuple(
            (
                row["method"],
                row["network"],
                f"{row['parameters']:,}" if row["parameters"] else _NONE,
                str(row["epochs"]),
                str(row["batch_size"]),
                row["augmentation"],
                _cell(row, "minutes", 2),
            )
            for row in group["rows"]
        ),
    )


def _data_sentence(group: Mapping[str, Any]) -> str:
    counts = group["class_counts"]
    if not counts:
        return "No cell is finished."
    text = (
        f"{group['images']}: {sum(counts):,} training images in {len(counts)} classes, "
        f"{max(counts):,} to {min(counts):,} per class; SHA-256 of the training images "
        f"{group['content_hash'][:16]}, of the test images {group['test_content_hash'][:16]}."
    )
    quality = group["generator"]
    if quality:
        text += (
            f" Generator: {quality['steps']:,} steps, {quality['parameters']:,} parameters, styles "
            f"change an image by {100 * quality['style_distance']:.1f} % of the range"
        )
        if quality["recognized"] is not None:
            text += f", {100 * quality['recognized']:.1f} % of its images recognized"
        text += "."
    return text


def _tables(group: Mapping[str, Any]) -> list[TextTable]:
    found = (errors_table(group), sizes_table(group), invariance_table(group),
             training_table(group))  # fmt: skip
    return [one for one in found if one is not None]


_COMMANDS = (
    "One command for the seeds of a row, without this program; each cell by itself is in "
    "table.json. Add --data_dir=DIR where the data are not in the default folder."
)

# ------------------------------------------------------------------------------------ Markdown


def to_markdown(table: Mapping[str, Any]) -> str:
    """The content of `table.md`."""

    def escaped(text: str) -> str:
        return text.replace("|", "\\|").replace("\n", " ")

    parts = [f"# {title(table)}", table["description"], *(f"**{note}**" for note in notes(table))]
    for group in table["tables"]:
        parts += [f"## {group_title(group)}", _data_sentence(group)]
        for one in _tables(group):
            lines = [one.head, ["---"] * len(one.head), *one.rows]
            rows = ["| " + " | ".join(map(escaped, line)) + " |" for line in lines]
            parts += [f"### {one.title}", one.caption, "\n".join(rows)]
            parts += [f"[{i}] {note}" for i, note in enumerate(one.notes, start=1)]
        parts += ["### Commands", _COMMANDS]
        commands = [f"# {row['method']}\n{row['command']}" for row in group["rows"]]
        parts.append("```sh\n" + "\n".join(commands) + "\n```")
    versions = ", ".join(f"{n} {' and '.join(v)}" for n, v in table["versions"].items())
    parts += ["## Settings and versions", f"{versions}. Revision: {_revisions(table)}."]
    return "\n\n".join(parts) + "\n"


def _revisions(table: Mapping[str, Any]) -> str:
    return ", ".join(table["git_revisions"]) or "unknown"


# ------------------------------------------------------------------------------------ HTML


def to_html(table: Mapping[str, Any]) -> str:
    """The content of `table.html`: self-contained, no script, light and dark."""
    sections: list[tuple[str, str, object]] = [
        ("summary", "Summary", tag("div", [tag("p", n) for n in notes(table)], class_="short"))
    ]
    if not notes(table):
        sections = []
    for i, group in enumerate(table["tables"]):
        sections.append((f"table{i}", group_title(group), _group(group)))
    sections.append(("settings", "Settings and versions", _settings(table)))
    return page(title(table), table["description"], sections)


def _group(group: Mapping[str, Any]) -> Markup:
    tables = _tables(group)
    parts: list[object] = [tag("p", _data_sentence(group)), _html_table(tables[0]), _chart(group)]
    parts += [_html_table(one) for one in tables[1:]]
    parts += [tag("h3", "Commands"), tag("p", _COMMANDS)]
    commands = [f"# {row['method']}\n{row['command']}\n" for row in group["rows"]]
    parts.append(tag("pre", "".join(commands), tabindex="0"))
    return join(parts)


def _html_table(table: TextTable) -> Markup:
    rows = []
    for i, row in enumerate(table.rows):
        cells = [tag("th", row[0], scope="row"), *(tag("td", text) for text in row[1:])]
        rows.append(tag("tr", cells, class_="marked" if i in table.marked else None))
    head = [tag("th", name, scope="col") for name in table.head]
    made = tag("table", tag("thead", tag("tr", head)), tag("tbody", rows))
    return join(
        [
            tag("h3", table.title),
            tag("p", table.caption, class_="soft"),
            tag("div", made, class_="scroll", tabindex="0"),
            tag("ol", [tag("li", note) for note in table.notes], class_="soft")
            if table.notes
            else None,
        ]
    )


def _chart(group: Mapping[str, Any]) -> Markup | None:
    """Accuracy per class against class size."""
    rows = [row for row in group["rows"] if row["per_class_accuracy"]]
    if not rows:
        return None
    series = [
        Series(row["method"], i, np.array(row["per_class_accuracy"], dtype=np.float64))
        for i, row in enumerate(rows[:NUM_COLOURS])
    ]
    chart = both_widths(
        against_size,
        series=series,
        counts=np.asarray(group["class_counts"]),
        names=list(map(str, group["class_names"])),
        title="Accuracy against class size",
        description="Accuracy of each class, mean over seeds; the numbers are in table.json.",
        y_title="accuracy on the test set",
        percent=True,
    )
    caption = "Accuracy of each class, mean over seeds; lines join means of similar size."
    if len(rows) > NUM_COLOURS:
        caption += f" The first {NUM_COLOURS} methods; the others are in the tables."
    keys = [tag("li", key(one.index), one.name) for one in series]
    figure = tag("figure", chart, tag("figcaption", caption))
    return join([tag("h3", "Accuracy per class"), tag("ul", keys, class_="keys"), figure])


def _settings(table: Mapping[str, Any]) -> Markup:
    def plain(value: Any) -> str:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return ", ".join(map(str, value)) or _NONE
        return _NONE if value is None else str(value)

    def facts(name: str, content: Mapping[str, Any]) -> Markup:
        rows = [
            tag("tr", tag("th", k, scope="row"), tag("td", plain(v), class_="wrap"))
            for k, v in content.items()
        ]
        made = tag("table", tag("caption", name), tag("tbody", rows))
        return tag("div", made, class_="scroll tall", tabindex="0")

    versions = {**table["versions"], "revision": _revisions(table)}
    both = [facts("What all cells have in common", table["settings"]), facts("Versions", versions)]
    return tag("div", both, class_="side")
