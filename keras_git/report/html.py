"""The report: one HTML file that needs no network, no script and no knowledge of the papers."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.auditing import AuditResult, Example, Measurement, ModelAudit
from keras_git.errors import InputError
from keras_git.files import write_atomically
from keras_git.report.aggregates import (
    WIDTH_95,
    class_ekld,
    class_ekld_error,
    clean,
    conditions,
    count,
    ladders,
    mean_over,
    number_of,
    over_classes,
    p_value,
    percent,
    seen,
    transforms,
    words,
)
from keras_git.report.charts import Series, against_size, both_widths, key, ladder
from keras_git.report.markup import Markup, join, tag
from keras_git.report.sentences import Finding, findings
from keras_git.report.style import STYLE

# Up to this many classes every class has its row in the heat map.
MANY_CLASSES = 60
_WORST_ROWS = 20
_WORST_CLASSES = 5
_SIZE_GROUPS = 10
# Upper bounds of the levels of the heat map, nats. Fixed, so that reports can be compared.
_LEVELS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
# What keeps the file small: rows and cells of the complete numbers, bytes of pictures, their side.
_LONG_TABLE_ROWS = 3000
_TABLE_CELLS = 60_000
_PICTURE_BYTES = 1_500_000
_PICTURE_SIDE = 112
_MOST_EXAMPLES = 36

_MEASURES = ("ekld", "consistency", "accuracy")
_GROUPS = {
    "many": "many (more than 100 images)",
    "medium": "medium (20 to 100)",
    "few": "few (fewer than 20)",
    "head": "largest third",
    "middle": "middle third",
    "tail": "smallest third",
}


def write_html(
    result: AuditResult,
    path: str | Path,
    *,
    title: str | None = None,
    notes: Sequence[Finding] = (),
) -> Path:
    """Writes the report of an audit: one self-contained file, the same bytes for the same result.

    No scripts, nothing from elsewhere (a content security policy forbids it), light and dark, for
    wide pages, phones and print. Names are escaped. At most about 5 MB, whatever the number of
    classes: what does not fit is averaged over strengths, and the report says so.

    Args:
        result: of an audit.
        path: of the file; its folder is made if it is absent.
        title: heading; by default made of the names of models and data.
        notes: further findings for the summary, after those of `findings`.

    Returns:
        The path.

    Raises:
        InputError: a result without models or without classes.
        OSError: the file cannot be written.
    """
    path = Path(path)
    content = to_html(result, title=title, notes=notes)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, content)
    return path


def to_html(result: AuditResult, *, title: str | None = None, notes: Sequence[Finding] = ()) -> str:
    """The content of the file that `write_html` writes."""
    if not result.models or not len(result.class_names):
        raise InputError("the audit has no model or no class: nothing to report")
    names = ", ".join(clean(m.name) for m in result.models)
    if title is None:
        title = f"Invariance audit of {names}" + (f" on {clean(result.data)}" * bool(result.data))
    summary = _summary([*findings(result), *notes], [clean(m.name) for m in result.models])
    steps = len(conditions(result)) > len(transforms(result))
    sections = [
        ("summary", "Summary", summary),
        ("size", "eKLD against class size", _against_size(result)),
        ("heat", "Class by transformation", _heat_maps(result)),
        ("strength", "Strength by strength" if steps else "Transformations", _ladders(result)),
        ("worst", "Worst classes", _worst(result)),
        ("accuracy", "Accuracy and calibration", _accuracy(result)),
        ("groups", "Large and small classes", _groups(result)),
        ("numbers", "All numbers", _numbers(result)),
        ("settings", "Settings and versions", _settings(result)),
    ]
    subtitle = (
        "To what is the classifier invariant, on which classes is it not, and how does that go "
        "with class size?"
    )
    return page(title, subtitle, sections)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, object]]) -> str:
    """A whole page.

    Args:
        title: heading.
        subtitle: below it.
        sections: anchor, heading and content; those without content are left out.
    """
    present = [(anchor, heading, content) for anchor, heading, content in sections if content]
    digest = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Markup(STYLE)),
    )
    body = tag(
        "main",
        tag("h1", title),
        tag(
            "p",
            subtitle,
            class_="subtitle",
        ),
        tag("nav", [tag("a", h, href=f"#{a}") for a, h, _ in present], aria_label="Sections"),
        [
            tag("section", tag("h2", heading), content, id=anchor)
            for anchor, heading, content in present
        ],
    )
    page = tag("html", head, "\n", tag("body", body), lang="en")
    return f"<!DOCTYPE html>\n{page}\n"


# ------------------------------------------------------------------------------------ pieces


def _name(name: str) -> Markup:
    """A name of the user's: cut by the style sheet where there is no room, whole on hovering."""
    name = clean(name)
    return tag("span", name, class_="name", title=name if len(name) > 12 else None)


def _prose(text: str) -> str:
    return text.replace(" %", "\u00a0%").replace(" \u00b1 ", "\u00a0\u00b1\u00a0")


def _scroll(content: object, *, tall: bool = False) -> Markup:
    # Focusable, so that it can be scrolled with the keyboard.
    return tag("div", content, class_="scroll tall" if tall else "scroll", tabindex="0")


def _figure(content: object, caption: object) -> Markup:
    return tag("figure", content, _caption(caption))


def _caption(content: object) -> Markup | None:
    return tag("figcaption", content) if content else None


def _keys(result: AuditResult) -> Markup | None:
    if len(result.models) < 2:
        return None
    return tag(
        "ul",
        [tag("li", key(i), clean(m.name)) for i, m in enumerate(result.models)],
        class_="keys",
    )


def _row(head: object, cells: Iterable[object]) -> Markup:
    return tag(
        "tr", tag("th", head, scope="row"), [c if _is_cell(c) else tag("td", c) for c in cells]
    )


def _is_cell(value: object) -> bool:
    return isinstance(value, Markup) and value.startswith(("<td", "<th"))


def _table(
    head: Sequence[object], rows: Sequence[Markup], *, caption: str | None = None, class_: str = ""
) -> Markup:
    return tag(
        "table",
        tag("caption", caption) if caption else None,
        tag("thead", tag("tr", [h if _is_cell(h) else tag("th", h, scope="col") for h in head])),
        tag("tbody", rows),
        class_=class_ or None,
    )


def _nats(value: float) -> str:
    """An eKLD in a table."""
    if not math.isfinite(value):
        return "\u2013"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.3f}"


def _with_error(value: float, error: float) -> str:
    text = _nats(value)
    return f"{text}\u00a0\u00b1\u00a0{_nats(error)}" if math.isfinite(error) else text


def _percent_with_error(value: float, error: float) -> str:
    if not math.isfinite(value):
        return "\u2013"
    text = f"{100 * value:.1f}"
    return f"{text}\u00a0\u00b1\u00a0{100 * error:.1f}" if math.isfinite(error) else text


# ------------------------------------------------------------------------------------ summary


def _summary(groups: Sequence[Finding], names: Sequence[str]) -> Markup:
    def prose(sentence: str) -> object:
        """The model that a sentence begins with stands out."""
        for name in sorted(names, key=len, reverse=True):
            if sentence.startswith((f"{name}:", f"{name} ")):
                return [tag("strong", name), _prose(sentence[len(name) :])]
        return _prose(sentence)

    first, rest = groups[0], groups[1:]
    parts = [
        tag(
            "div",
            tag("h3", group.title),
            tag("ul", [tag("li", prose(s)) for s in group.sentences], class_="findings"),
        )
        for group in rest
    ]
    return join(
        [
            tag("div", [tag("p", prose(s)) for s in first.sentences], class_="short"),
            tag("div", parts, class_="columns"),
        ]
    )


# ------------------------------------------------------------------------------------ class size


def _series(
    result: AuditResult, values: Iterable[tuple[np.ndarray, np.ndarray | None] | None]
) -> list[Series]:
    """One series per model that has values, over the classes that have images."""
    used = seen(result)
    found = []
    for index, (model, of_model) in enumerate(zip(result.models, values, strict=True)):
        if of_model is not None and np.isfinite(of_model[0][used]).any():
            value, error = of_model
            error = None if error is None else error[used]
            found.append(Series(clean(model.name), index, value[used], error))
    return found


def _used_names(result: AuditResult) -> tuple[np.ndarray, list[str]]:
    used = seen(result)
    return np.asarray(result.class_counts)[used], [
        clean(n) for n, u in zip(result.class_names, used, strict=True) if u
    ]


def _against_size(result: AuditResult) -> Markup | None:
    series = _series(
        result,
        ((class_ekld(m), class_ekld_error(m)) if m.measurements else None for m in result.models),
    )
    counts, names = _used_names(result)
    if not series or not len(counts):
        return None
    varied = counts.min() < counts.max()
    axis = "class size" if varied else "class"
    ways = transforms(result)
    parts: list[object] = [
        tag(
            "p",
            "eKLD is how far the predicted probabilities move when an image is transformed: 0 is "
            "invariant, higher is less so. Each point is a class. ",
            "If the line falls from left to right, small classes are less invariant than large "
            "ones."
            if varied
            else "All classes have the same size; they stand in order.",
        ),
        _keys(result),
        _figure(
            both_widths(
                against_size,
                series=series,
                counts=counts,
                names=names,
                title=f"eKLD against {axis}",
                description=(
                    "Mean over all transformations and strengths, per class, for "
                    f"{number_of(len(series), 'model')} and "
                    f"{number_of(len(counts), 'class', 'classes')}. The numbers are in the tables."
                ),
                y_title="eKLD, nats (lower is more invariant)",
            ),
            (
                f"eKLD per class under {words(ways[0])}."
                if len(ways) == 1
                else f"eKLD per class, mean over all {len(ways)} transformations and strengths."
            )
            + (" The line joins means of classes of similar size." if varied else "")
            + (" Bars are one standard error." if len(counts) * len(series) <= 30 else ""),
        ),
    ]
    if len(ways) > 1:
        panels = []
        for way in ways:
            ladder_of = [ladders(m).get(way) for m in result.models]
            lines = [
                Series(clean(m.name), i, mean_over(steps, "ekld")[seen(result)])
                for i, (m, steps) in enumerate(zip(result.models, ladder_of, strict=True))
                if steps
            ]
            caption = [
                tag("div", _trend_caption(result, m, s))
                for m, s in zip(result.models, ladder_of, strict=True)
                if s and varied
            ]
            chart = against_size(
                lines,
                counts,
                names,
                size=(330, 210),
                title=f"{words(way)}: eKLD against {axis}",
                description="Mean over the strengths, per class.",
                y_title="eKLD, nats",
                tooltips=False,
            )
            panels.append(tag("figure", tag("strong", words(way)), chart, _caption(caption)))
        explanation = (
            "Below each: Spearman's rank correlation with class size [95 % confidence interval] "
            "and its p-value, for the strength where it is clearest. No interval stands where none "
            "is defined: for up to eight classes, or where the two orders are the same."
        )
        parts += [
            tag("h3", "Each transformation"),
            tag("p", _prose(explanation)) if varied else None,
            tag("div", panels, class_="grid"),
        ]
    return join(parts)


def _trend_caption(result: AuditResult, model: ModelAudit, steps: Sequence[Measurement]) -> str:
    """Rank correlation at the strength where it is clearest, as a line of a caption."""
    known = [m.trend for m in steps if math.isfinite(m.trend.rho)]
    if not known:
        return ""
    best = min(known, key=lambda t: (t.p_value, -abs(t.rho)))
    who = f"{clean(model.name)}: " if len(result.models) > 1 else ""
    p = p_value(best)
    level = "p\u00a0<\u00a00.001" if p < 0.001 else f"p\u00a0=\u00a0{p:.3f}"
    interval = ""
    if math.isfinite(best.low) and math.isfinite(best.high):
        interval = f" [{best.low:+.2f},\u00a0{best.high:+.2f}]"
    return f"{who}{best.rho:+.2f}{interval}, {level}"


# ------------------------------------------------------------------------------------ heat map


def _heat_maps(result: AuditResult) -> Markup | None:
    ways = transforms(result)
    if not ways:
        return None
    used = np.flatnonzero(seen(result))
    counts = np.asarray(result.class_counts)
    by_size = np.argsort(-counts, kind="stable")
    values = {
        m.name: {way: mean_over(steps, "ekld") for way, steps in ladders(m).items()}
        for m in result.models
    }
    few = len(result.class_names) <= MANY_CLASSES
    intro = [
        tag(
            "p",
            "Each number is an eKLD in nats, mean over the strengths of a transformation; darker "
            "(in dark mode: brighter) is less invariant. Rows are "
            + ("classes, largest first." if few else "groups of classes of similar size."),
        ),
        _scale(),
    ]

    def maps(rows: Sequence[tuple[object, np.ndarray]], caption: str | None) -> Markup:
        return tag(
            "div",
            [
                _heat_map(m, ways, values[m.name], rows, caption, result)
                for m in result.models
                if m.measurements
            ],
            class_="side",
        )

    if few:
        rows = [(_class_head(result, label), np.array([label])) for label in by_size.tolist()]
        return join([*intro, maps(rows, None)])
    groups = np.array_split(by_size[np.isin(by_size, used)], _SIZE_GROUPS)
    grouped: list[tuple[object, np.ndarray]] = []
    for classes in groups:
        if len(classes):
            sizes = counts[classes]
            span = count(sizes.max())
            if sizes.min() < sizes.max():
                span = f"{count(sizes.min())}\u2013{span}"
            text = [span, tag("span", f" ({len(classes)} classes)", class_="count")]
            grouped.append((text, classes))
    worst = _worst_first([m for m in result.models if m.measurements])
    worst = worst[np.isin(worst, used)][:_WORST_ROWS]
    rows = [(_class_head(result, label), np.array([label])) for label in worst.tolist()]
    return join(
        [
            *intro,
            maps(grouped, "means over classes of similar size (images per class)"),
            tag("h3", f"The {len(worst)} classes with the largest eKLD"),
            maps(rows, "class and its size"),
            tag("p", "More classes are in the table under \u201cAll numbers\u201d.",
                class_="soft"),
        ]
    )  # fmt: skip


def _worst_first(models: Sequence[ModelAudit]) -> np.ndarray:
    """Classes by their eKLD, the largest of the models', those without images last."""
    largest = np.max([np.nan_to_num(class_ekld(m), nan=-1.0) for m in models], axis=0)
    return np.argsort(-largest, kind="stable")


def _class_head(result: AuditResult, label: int) -> Markup:
    size = count(int(result.class_counts[label]))
    return join([_name(result.class_names[label]), tag("span", f" {size}", class_="count")])


def _level(value: float) -> int:
    return int(np.searchsorted(_LEVELS, value, side="right"))


def _scale() -> Markup:
    bounds = ["0", *(f"{level:g}" for level in _LEVELS)]
    return tag(
        "div",
        tag("span", "eKLD, nats, from", class_="soft"),
        [tag("span", bound, class_=f"h{i}") for i, bound in enumerate(bounds)],
        class_="scale",
    )


def _heat_map(
    model: ModelAudit,
    ways: Sequence[str],
    values: Mapping[str, np.ndarray],
    rows: Sequence[tuple[object, np.ndarray]],
    caption: str | None,
    result: AuditResult,
) -> Markup:
    head = [
        tag("th", "", class_="text"),
        *(tag("th", tag("span", words(way)), class_="turned", scope="col") for way in ways),
    ]
    images = np.asarray(result.num_images)
    lines = []
    for title, classes in rows:
        if not images[classes].any():
            cells: list[object] = [tag("td", "no images", colspan=len(ways), class_="none")]
        else:
            cells = []
            for way in ways:
                chosen = values[way][classes] if way in values else np.array([np.nan])
                chosen = chosen[np.isfinite(chosen)]
                if not len(chosen):
                    cells.append(tag("td", "\u2013", class_="none"))
                    continue
                value = float(chosen.mean())
                text = f"{value:.2f}" if value < 9.995 else f"{value:.0f}"
                cells.append(tag("td", text, class_=f"h{_level(value)}"))
        lines.append(_row(title, cells))
    several = len(result.models) > 1
    return tag(
        "div",
        tag("h3", clean(model.name)) if several else None,
        _scroll(_table(head, lines, caption=caption, class_="heat")),
    )


# ------------------------------------------------------------------------------------ ladders


def _ladders(result: AuditResult) -> Markup | None:
    ways = transforms(result)
    if not ways:
        return None
    parts: list[object] = []
    for way in ways:
        per_model = [(i, m, ladders(m).get(way, [])) for i, m in enumerate(result.models)]
        longest = max((steps for _, _, steps in per_model), key=len)
        if len(longest) < 2:
            continue
        panels = []
        unit = longest[0].condition.unit
        for measure, y_title in (
            ("ekld", "eKLD, nats"),
            ("consistency", "predictions kept"),
            ("accuracy", "accuracy (mean over classes)"),
        ):
            lines = []
            for index, model, steps in per_model:
                means = [_over(result, m, measure) for m in steps]
                values = [mean.value for mean in means]
                if len(steps) != len(longest) or not np.isfinite(values).any():
                    continue
                start = {"ekld": 0.0, "consistency": 1.0, "accuracy": model.balanced_accuracy}
                errors = [WIDTH_95 * mean.standard_error for mean in means]
                lines.append(
                    Series(
                        clean(model.name),
                        index,
                        np.array([start[measure], *values]),
                        np.array([0.0, *errors]),
                    )
                )
            if lines:
                panels.append(
                    tag(
                        "figure",
                        ladder(
                            lines,
                            ["none", *(_step(m) for m in longest)],
                            title=f"{words(way)}: {y_title} against strength",
                            description=f"{words(way)} at {len(longest)} strengths.",
                            y_title=y_title,
                            x_title=f"strength, {clean(unit)}" if unit else "strength",
                            percent=measure != "ekld",
                        ),
                    )
                )
        parts += [tag("h3", words(way)), tag("div", panels, class_="thirds")]
    if parts:
        text = (
            "Means over the classes, from the untransformed images (\u201cnone\u201d) to the "
            "strongest transformation; bands are 95 % confidence intervals. The "
            "steps are evenly spaced, whatever their strength."
        )
        parts = [tag("p", _prose(text)), _keys(result), *parts]
    table = _condition_table(result)
    if parts:
        table = tag("details", tag("summary", "The numbers behind these curves"), table)
    return join([*parts, table])


def _step(measurement: Measurement) -> str:
    strength = measurement.condition.strength
    if strength is None:
        return clean(measurement.condition.label)[:12]
    return f"{strength:g}"


def _over(result: AuditResult, measurement: Measurement, measure: str) -> Any:
    return over_classes(
        getattr(measurement, measure),
        getattr(measurement, f"{measure}_standard_error"),
        np.asarray(result.num_images),
        seen(result),
    )


def _condition_table(result: AuditResult) -> Markup:
    several = len(result.models) > 1
    head: list[object] = [tag("th", "transformation", class_="text", scope="col")]
    if several:
        head.append(tag("th", "model", class_="text", scope="col"))
    with_accuracy = _has_accuracy(result)
    head += ["eKLD, nats", "predictions kept, %"] + ["accuracy, %"] * with_accuracy
    rows = []
    for condition in conditions(result):
        for model in result.models:
            for m in model.measurements:
                if m.condition != condition:
                    continue
                cells: list[object] = [tag("td", _name(model.name), class_="text")] * several
                ekld = _over(result, m, "ekld")
                cells.append(_with_error(ekld.value, ekld.standard_error))
                for measure in ["consistency"] + ["accuracy"] * with_accuracy:
                    mean = _over(result, m, measure)
                    cells.append(_percent_with_error(mean.value, mean.standard_error))
                rows.append(_row(clean(condition.label) or words(condition.transform), cells))
    return _scroll(_table(head, rows, caption="Means over the classes \u00b1 one standard error"))


def _has_sampling_error(result: AuditResult) -> bool:
    return any(
        np.isfinite(m.ekld_sampling_error).any()
        for model in result.models
        for m in model.measurements
    )


def _has_accuracy(result: AuditResult) -> bool:
    return any(np.isfinite(m.accuracy).any() for model in result.models for m in model.measurements)


# ------------------------------------------------------------------------------------ worst


def _worst(result: AuditResult) -> Markup | None:
    parts: list[object] = []
    budget = _PICTURE_BYTES // len(result.models)
    several = len(result.models) > 1
    for model in result.models:
        if not model.measurements:
            continue
        inner: list[object] = [tag("h3", clean(model.name)) if several else None]
        inner.append(_scroll(_worst_table(result, model)))
        cards, left = _cards(result, model, budget)
        if cards:
            inner.append(tag("div", cards, class_="cards"))
        if left:
            inner.append(
                tag("p", f"{number_of(left, 'further example is', 'further examples are')} left "
                    "out to keep this file small.", class_="soft")
            )  # fmt: skip
        parts.append(join(inner))
    if not parts:
        return None
    text = "Classes with the largest eKLD, mean over all transformations and strengths."
    if any(m.examples for m in result.models):
        text += (
            " Below: images whose prediction a transformation changes, with the predicted class "
            "and its probability before and after."
        )
    return join([tag("p", text), *parts])


def _worst_table(result: AuditResult, model: ModelAudit) -> Markup:
    ekld, error = class_ekld(model), class_ekld_error(model)
    kept = mean_over(list(model.measurements), "consistency")
    used = np.flatnonzero(seen(result) & np.isfinite(ekld))
    worst = used[np.argsort(-ekld[used], kind="stable")][:_WORST_CLASSES]
    by_way = {way: mean_over(steps, "ekld") for way, steps in ladders(model).items()}
    rows = []
    for label in worst.tolist():
        hardest = max(by_way, key=lambda way: float(np.nan_to_num(by_way[way][label], nan=-1.0)))
        rows.append(
            _row(
                _name(result.class_names[label]),
                [
                    count(result.class_counts[label]),
                    _with_error(ekld[label], error[label]),
                    percent(kept[label]),
                    percent(float(model.per_class_accuracy[label])),
                    tag("td", words(hardest), class_="text"),
                ],
            )
        )
    head: list[object] = [
        tag("th", "class", class_="text", scope="col"),
        "class size",
        "eKLD, nats",
        "predictions kept",
        "accuracy",
        tag("th", "moved most by", class_="text", scope="col"),
    ]
    return _table(head, rows)


def _cards(result: AuditResult, model: ModelAudit, budget: int) -> tuple[list[Markup], int]:
    """Picture examples, as many as fit into `budget` bytes, and how many did not."""
    cards: list[Markup] = []
    for example in model.examples[:_MOST_EXAMPLES]:
        card = _card(result, example)
        budget -= len(card)
        if budget < 0:
            break
        cards.append(card)
    return cards, len(model.examples) - len(cards)


def _card(result: AuditResult, example: Example) -> Markup:
    truth = clean(result.class_names[example.label])
    label = clean(example.condition.label) or words(example.condition.transform)

    def side(image: np.ndarray, alt: str, prediction: int, confidence: float) -> Markup:
        right = "right" if prediction == example.label else "wrong"
        return tag(
            "div",
            tag("img", src=_png(image), alt=alt),
            tag("bdi", clean(result.class_names[prediction])),
            tag("br"),
            tag("span", f"{100 * confidence:.0f}\u00a0%, {right}", class_="soft"),
        )

    return tag(
        "div",
        tag(
            "div",
            side(example.image, f"image of {truth}", example.prediction, example.confidence),
            tag("span", "\u2192", class_="arrow"),
            side(
                example.transformed,
                f"the same image after {label}",
                example.transformed_prediction,
                example.transformed_confidence,
            ),
            class_="pair",
        ),
        tag("p", tag("strong", truth), ", ", label),
        class_="card",
    )


def _png(image: np.ndarray) -> str:
    """A small picture as data URI; larger ones are scaled down."""
    from PIL import Image

    image = np.clip(np.rint(np.nan_to_num(np.asarray(image))), 0, 255).astype(np.uint8)
    if image.ndim == 3 and image.shape[-1] == 1:
        image = image[..., 0]
    picture = Image.fromarray(image)
    if max(picture.size) > _PICTURE_SIDE:
        picture.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ------------------------------------------------------------------------------------ accuracy


def _accuracy(result: AuditResult) -> Markup | None:
    head: list[object] = [
        tag("th", "model", class_="text", scope="col"),
        "accuracy",
        "mean over classes",
        "calibration error",
        "weights",
    ]
    evaluated = any(m.evaluations for m in result.models)
    head += ["evaluations", "saved"] * evaluated
    rows = []
    for model in result.models:
        cells: list[object] = [
            percent(model.accuracy),
            percent(model.balanced_accuracy),
            percent(model.expected_calibration_error),
            count(model.parameters),
        ]
        if evaluated:
            cells += [count(model.evaluations), count(model.evaluations_saved)]
        rows.append(_row(_name(model.name), cells))
    parts: list[object] = [_scroll(_table(head, rows))]
    series = _series(result, ((m.per_class_accuracy, None) for m in result.models))
    counts, names = _used_names(result)
    if series:
        varied = counts.min() < counts.max()
        axis = "class size" if varied else "class"
        chart = both_widths(
            against_size,
            series=series,
            counts=counts,
            names=names,
            title=f"Accuracy against {axis}",
            description="Accuracy per class on the untransformed images.",
            y_title="accuracy on untransformed images",
            percent=True,
        )
        parts += [_keys(result), _figure(chart, "Accuracy per class on untransformed images.")]
    return join(
        [
            tag(
                "p",
                "The calibration error is how far the confidence of the predictions is from the "
                "fraction that is right, on average (expected calibration error).",
            ),
            *parts,
        ]
    )


def _groups(result: AuditResult) -> Markup | None:
    def found(name: str) -> bool:
        return any(
            name in model.group_accuracy or any(name in m.groups for m in model.measurements)
            for model in result.models
        )

    names = [name for name in _GROUPS if found(name)]
    if not names:
        return None
    several = len(result.models) > 1
    with_accuracy = any(
        "accuracy" in group
        for model in result.models
        for m in model.measurements
        for group in m.groups.values()
    )
    audited = result.settings.get("class_counts") == "audited images"
    sizes = f"{'audited' if audited else 'training'} images per class"
    head: list[object] = [tag("th", sizes, class_="text", scope="col")]
    if several:
        head.append(tag("th", "model", class_="text", scope="col"))
    head += ["accuracy, %", "eKLD, nats", "predictions kept, %"]
    head += ["accuracy, transformed, %"] * with_accuracy
    rows = []
    for name in names:
        for model in result.models:
            cells: list[object] = [tag("td", _name(model.name), class_="text")] * several
            cells.append(
                _percent_with_error(
                    _value(model.group_accuracy.get(name)),
                    _value(model.group_accuracy_standard_error.get(name)),
                )
            )
            means = {
                measure: _mean_of(m.groups.get(name, {}).get(measure) for m in model.measurements)
                for measure in (f"{n}{e}" for n in _MEASURES for e in ("", "_standard_error"))
            }
            cells.append(_with_error(means["ekld"], means["ekld_standard_error"]))
            for measure in _MEASURES[1 : 2 + with_accuracy]:
                cells.append(
                    _percent_with_error(means[measure], means[f"{measure}_standard_error"])
                )
            rows.append(_row(_GROUPS[name], cells))
    return join(
        [
            tag(
                "p",
                "Means over the classes of a group; eKLD, predictions kept and accuracy on "
                "transformed images also over all transformations and strengths. \u00b1 is one "
                "standard error, the classes taken as they are.",
            ),
            _scroll(_table(head, rows)),
        ]
    )


def _value(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean_of(values: Iterable[float | None]) -> float:
    finite = [float(v) for v in values if v is not None and math.isfinite(v)]
    return sum(finite) / len(finite) if finite else math.nan


# ------------------------------------------------------------------------------------ numbers


def _numbers(result: AuditResult) -> Markup | None:
    models = [m for m in result.models if m.measurements]
    if not models:
        return None
    classes = len(result.class_names)
    rows = classes * sum(len(m.measurements) for m in models)
    if rows <= _LONG_TABLE_ROWS:
        content, what = _long_table(result), "Every class, transformation and strength"
    else:
        content, what = _matrices(result, models, rows)
    return tag("details", tag("summary", what), content)


def _long_table(result: AuditResult) -> Markup:
    several = len(result.models) > 1
    with_accuracy = _has_accuracy(result)
    head: list[object] = [
        tag("th", "class", class_="text", scope="col"),
        "class size",
        "images",
        tag("th", "transformation", class_="text", scope="col"),
    ]
    if several:
        head.append(tag("th", "model", class_="text", scope="col"))
    sampled = _has_sampling_error(result)
    head += ["eKLD, nats"] + ["sampling error", "error between images"] * sampled
    head += ["kept, %"] + ["accuracy, %"] * with_accuracy + ["draws"]
    rows = []
    for label, name in enumerate(result.class_names):
        images = int(result.num_images[label])
        size = count(result.class_counts[label])
        if images == 0:
            cells = [size, "0", tag("td", "no images", colspan=len(head) - 3, class_="none")]
            rows.append(_row(_name(name), cells))
            continue
        for condition in conditions(result):
            for model in result.models:
                for m in model.measurements:
                    if m.condition != condition:
                        continue
                    cells = [
                        size,
                        count(images) if images > 0 else "\u2013",
                        tag("td", clean(condition.label) or words(condition.transform),
                            class_="text"),
                    ]  # fmt: skip
                    cells += [tag("td", _name(model.name), class_="text")] * several
                    cells.append(_with_error(m.ekld[label], m.ekld_standard_error[label]))
                    if sampled:
                        cells += [_nats(m.ekld_sampling_error[label])]
                        cells += [_nats(m.ekld_image_error[label])]
                    cells.append(
                        _percent_with_error(
                            m.consistency[label], m.consistency_standard_error[label]
                        )
                    )
                    if with_accuracy:
                        cells.append(
                            _percent_with_error(m.accuracy[label], m.accuracy_standard_error[label])
                        )
                    draws = int(m.num_samples[label])
                    cells.append(count(draws) if draws > 0 else "\u2013")
                    rows.append(_row(_name(name), cells))
    caption = "\u00b1 is one standard error."
    if sampled:
        caption += (
            " That of the eKLD has two parts, in the columns after it: of sampling, which more "
            "draws would shrink, and between images, which only more images would."
        )
    return _scroll(_table(head, rows, caption=caption), tall=True)


def _matrices(result: AuditResult, models: Sequence[ModelAudit], rows: int) -> tuple[Markup, str]:
    """eKLD of classes by conditions; averaged over strengths, or cut, where that is too large."""
    classes = np.arange(len(result.class_names))
    per_condition = rows <= _TABLE_CELLS
    columns = sum(len(m.measurements if per_condition else ladders(m)) for m in models)
    what = "eKLD of every class, for each transformation"
    what += " and strength" if per_condition else ", mean over the strengths"
    if columns * len(classes) > _TABLE_CELLS:
        most = max(_TABLE_CELLS // columns, 1)
        classes = _worst_first(models)[:most]
        what = what.replace("every class", f"the {count(most)} worst classes")
    sampled = _has_sampling_error(result)
    parts: list[object] = [
        tag(
            "p",
            "eKLD in nats. "
            + (
                "The last two columns are parts of its standard error, means over the columns "
                "before: of sampling, which more draws would shrink, and between images. "
                if sampled
                else ""
            )
            + "All standard errors, consistency and accuracy of every class are in the CSV and "
            "JSON files of the audit.",
            class_="soft",
        )
    ]
    images = np.asarray(result.num_images)
    for model in models:
        if per_condition:
            heads = [clean(m.condition.label) for m in model.measurements]
            values = [m.ekld for m in model.measurements]
        else:
            heads = [words(way) for way in ladders(model)]
            values = [mean_over(steps, "ekld") for steps in ladders(model).values()]
        head: list[object] = [tag("th", "class", class_="text", scope="col"), "size"]
        if sampled:
            heads += ["sampling error", "error between images"]
            steps = list(model.measurements)
            values += [mean_over(steps, "ekld_sampling_error")]
            values += [mean_over(steps, "ekld_image_error")]
        head += [tag("th", h, class_="wrap", scope="col") for h in heads]
        lines = []
        for label in classes.tolist():
            cells: list[object] = [count(result.class_counts[label])]
            if images[label] == 0:
                cells.append(tag("td", "no images", colspan=len(heads), class_="none"))
            else:
                cells += [_nats(float(v[label])) for v in values]
            lines.append(_row(clean(result.class_names[label]), cells))
        parts += [
            tag("h3", clean(model.name)) if len(models) > 1 else None,
            _scroll(_table(head, lines), tall=True),
        ]
    return join(parts), what


# ------------------------------------------------------------------------------------ settings


def _settings(result: AuditResult) -> Markup:
    def plain(value: Any) -> str:
        if isinstance(value, str):
            return clean(value) if len(value) <= 60 else value
        try:
            return json.dumps(value, ensure_ascii=False, default=str)
        except (TypeError, ValueError):
            return str(value)

    def table(title: str, content: Mapping[str, Any]) -> Markup:
        rows = [_row(str(k), [tag("td", plain(v), class_="wrap")]) for k, v in content.items()]
        return tag("div", tag("h3", title), _scroll(tag("table", tag("tbody", rows))))

    facts: dict[str, Any] = {"data": result.data} if result.data else {}
    facts["classes"] = len(result.class_names)
    if result.seconds:
        facts["seconds"] = round(result.seconds, 1)
    for model in result.models:
        if model.outputs:
            facts[f"outputs of {clean(model.name)}"] = model.outputs
    parts: list[object] = [table("Audit", facts)]
    if result.settings:
        parts.append(table("Settings", result.settings))
    if result.versions:
        parts.append(table("Versions", result.versions))
    if result.skipped:
        parts.append(table("Left out", result.skipped))
    return tag("div", parts, class_="side")
