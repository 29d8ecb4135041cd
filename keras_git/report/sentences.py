"""The findings of an audit in plain language, each with its uncertainty.

Rules: a model is called invariant, or not, only where the whole 95 % confidence interval says so; a
trend is claimed only for p < 0.05; of two models one is called better only where the 95 %
confidence interval of their difference (Student's) says so, "perhaps" where that of 68 % does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np

from keras_git.auditing import AuditResult, Measurement, ModelAudit, Trend
from keras_git.report.aggregates import (
    Mean,
    class_ekld,
    class_ekld_error,
    clean,
    conditions,
    count,
    ladders,
    listed,
    mean_over,
    nats,
    number_of,
    over_classes,
    p_value,
    percent,
    percent_within,
    seen,
    transforms,
    words,
)

# A model that keeps its prediction for this part of the transformed images counts as invariant.
INVARIANT = 0.95
SIGNIFICANT = 0.05
_WORST = 3
# Fewer classes than these are too few for a comparison of two models, also in a third of them.
_ENOUGH_TO_COMPARE = 5
# Two-sided confidence of one standard error of a normal distribution, and that of a claim.
_WEAK, _SURE = 0.6827, 1 - SIGNIFICANT
_ONLY = {
    "always": "invariant to {}",
    "partly": "invariant to {} while it is weak",
    "not": "not invariant to {}",
    "undecided": "undecided whether it is invariant to {}",
}
_STRENGTHS = ((0.8, "very strong"), (0.5, "strong"), (0.3, "moderate"), (0.0, "weak"))


@dataclass(frozen=True)
class Finding:
    """Sentences that belong together.

    Attributes:
        title: heading.
        sentences: plain text, in order.
    """

    title: str
    sentences: tuple[str, ...]


def sentences(result: AuditResult) -> list[str]:
    """The findings as a flat list of plain-text sentences, most important first.

    Args:
        result: of an audit.

    Returns:
        Sentences; names of classes are in quotation marks and stand as they are (not escaped).
    """
    return [sentence for finding in findings(result) for sentence in finding.sentences]


def findings(result: AuditResult) -> list[Finding]:
    """The findings in groups with headings; empty groups are left out."""
    groups = [
        ("In short", _in_short(result)),
        ("To what it is invariant", _invariance(result)),
        ("On which classes", _classes(result)),
        ("How it goes with class size", _class_size(result)),
        ("Which model is better", _comparison(result)),
        ("Accuracy and calibration", _accuracy(result)),
        ("What to keep in mind", _limits(result)),
    ]
    return [Finding(title, tuple(lines)) for title, lines in groups if lines]


# ------------------------------------------------------------------------------------ in short


def _in_short(result: AuditResult) -> list[str]:
    number, used = len(result.models), seen(result)
    names = listed([clean(m.name) for m in result.models])
    models = f"One model, {names}, was" if number == 1 else f"{number} models, {names}, were"
    images = np.asarray(result.num_images)
    known = used.any() and images[used].min() > 0
    on = f"on {number_of(int(images[used].sum()), 'image')} " if known else ""
    ways = transforms(result)
    text = f"{models} tested {on}in {number_of(int(used.sum()), 'class', 'classes')}"
    text += f" of {clean(result.data)}" if result.data else ""
    steps = len(conditions(result))
    if len(ways) == 1:
        text += f", under one transformation, {words(ways[0])}"
        text += f", at {steps} strengths" if steps > 1 else ""
    elif ways:
        text += f", under {len(ways)} transformations"
        text += f" at {steps} strengths in all" if steps > len(ways) else ""
    lines = [text + "."]
    counts = np.asarray(result.class_counts)
    if counts.min() == counts.max():
        lines.append(f"All classes have the same size: {number_of(int(counts[0]), 'image')}.")
    else:
        lines.append(
            f"Class sizes range from {count(counts.min())} to {number_of(counts.max(), 'image')}."
        )
    for model in result.models:
        verdicts = _verdicts(result, model)
        parts = []
        if math.isfinite(model.balanced_accuracy):
            parts.append(f"{percent(model.balanced_accuracy)} accuracy (mean over the classes)")
        if len(verdicts) == 1:
            parts.append(_ONLY[verdicts[0].kind].format(words(verdicts[0].transform)))
        elif verdicts:
            parts.append(_tally(verdicts))
        groups = _trend_groups(model)
        if groups.number:
            part = []
            for direction, found in (("less", groups.less), ("more", groups.more)):
                under = f" under {len(found)}" if groups.number > 1 else ""
                if found:
                    part.append(f"{direction} invariant on small classes{under}")
            parts.append(" and ".join(part) if part else "no clear trend with class size")
        if parts:
            lines.append(f"{clean(model.name)}: " + "; ".join(parts) + ".")
    return lines


def _tally(verdicts: list[_Verdict]) -> str:
    numbers = {
        kind: sum(v.kind == kind for v in verdicts)
        for kind in ("always", "partly", "not", "undecided")
    }
    text = f"invariant to {numbers['always']} of {len(verdicts)} transformations"
    if numbers["partly"]:
        more = " more" if numbers["always"] else ""
        text += f", to {numbers['partly']}{more} while they are weak"
    if numbers["not"]:
        text += f", not to {numbers['not']}"
    if numbers["undecided"]:
        text += f", undecided for {numbers['undecided']}"
    return text


# ------------------------------------------------------------------------------------ invariance


@dataclass(frozen=True)
class _Verdict:
    """On one transformation: "always", "partly", "not" or "undecided", with what shows it."""

    transform: str
    kind: str
    kept: tuple[Mean, ...]  # over the ladder
    steps: tuple[str, ...]  # strengths in words; empty for the only one
    still: int = 0  # last strength of the invariant beginning
    broken: int = 0  # first strength at which it is not invariant

    def at(self, step: int) -> str:
        """`30 degrees: 71.0 % ± 2.1`."""
        text = percent_within(self.kept[step])
        return f"{self.steps[step]}: {text}" if self.steps[step] else text

    def __str__(self) -> str:
        """The transformation, and in brackets what is kept where it matters."""
        last = len(self.steps) - 1
        if self.kind == "always" or not last:
            shown = [last]
        elif self.kind == "partly":
            shown = [self.still] + ([self.broken] if self.broken <= last else [])
        elif self.kind == "not":
            shown = sorted({self.broken, last})
        else:
            shown = [last]
        return f"{words(self.transform)} ({', '.join(self.at(step) for step in shown)})"


def _verdicts(result: AuditResult, model: ModelAudit) -> list[_Verdict]:
    found = []
    for name, ladder in ladders(model).items():
        kept = [_kept(result, m) for m in ladder]
        if not any(math.isfinite(k.value) for k in kept):
            continue
        steps = tuple(_step(m, len(ladder)) for m in ladder)
        holds = [k.value - k.half_width >= INVARIANT for k in kept]
        fails = [k.value + k.half_width < INVARIANT for k in kept]
        beginning = holds.index(False) if False in holds else len(holds)
        first_failure = fails.index(True) if True in fails else len(fails)
        if all(holds):
            kind = "always"
        elif beginning:
            kind = "partly"
        else:
            kind = "not" if any(fails) else "undecided"
        found.append(_Verdict(name, kind, tuple(kept), steps, beginning - 1, first_failure))
    return found


def _kept(result: AuditResult, measurement: Measurement) -> Mean:
    return over_classes(
        measurement.consistency,
        measurement.consistency_standard_error,
        np.asarray(result.num_images),
        seen(result),
    )


def _step(measurement: Measurement, steps: int) -> str:
    condition = measurement.condition
    if condition.strength is None:
        return clean(condition.label) if steps > 1 else ""
    if condition.unit:
        return f"{condition.strength:g} {clean(condition.unit)}"
    return f"strength {condition.strength:g}"


def _invariance(result: AuditResult) -> list[str]:
    if not any(model.measurements for model in result.models):
        return []
    lines = [
        f"Invariant to a transformation means here: at least {percent(INVARIANT, 0)} of the "
        "transformed images keep the prediction of the original (mean over the classes, with the "
        f"whole 95 % confidence interval above {percent(INVARIANT, 0)}); not invariant: the whole "
        "interval is below. In brackets: predictions kept, \u00b1 half of the interval."
    ]
    for model in result.models:
        name, verdicts = clean(model.name), _verdicts(result, model)
        weakest_first = sorted(verdicts, key=lambda v: v.kept[-1].value)
        by_kind = {
            kind: [str(v) for v in weakest_first if v.kind == kind]
            for kind in ("always", "partly", "not", "undecided")
        }
        if by_kind["always"]:
            every = ", at every strength tested" * _has_ladder(verdicts, "always")
            lines.append(f"{name} is invariant to {_items(by_kind['always'][::-1])}{every}.")
        elif len(verdicts) > 1:
            lines.append(f"{name} is invariant to none of {len(verdicts)} transformations.")
        if by_kind["partly"]:
            lines.append(
                f"{name} is invariant to these while they are weak: {_items(by_kind['partly'])}."
            )
        if by_kind["not"]:
            lines.append(f"{name} is not invariant to {_items(by_kind['not'])}.")
        if by_kind["undecided"]:
            lines.append(
                f"For {name} it cannot be decided, as the interval contains "
                f"{percent(INVARIANT, 0)} or there are too few images: "
                f"{_items(by_kind['undecided'])}."
            )
        if _no_better_than_chance(result, model):
            lines.append(
                f"{name} is hardly more accurate than guessing, so its invariance says little: a "
                "model that ignores the image never changes its prediction."
            )
    return lines


def _has_ladder(verdicts: list[_Verdict], kind: str) -> bool:
    return any(len(v.steps) > 1 for v in verdicts if v.kind == kind)


def _items(parts: list[str]) -> str:
    return listed(parts, separator="; ")


def _no_better_than_chance(result: AuditResult, model: ModelAudit) -> bool:
    classes = len(result.class_names)
    return classes > 1 and model.balanced_accuracy <= 1.2 / classes


# ------------------------------------------------------------------------------------ classes


def _classes(result: AuditResult) -> list[str]:
    lines = []
    for model in result.models:
        if not model.measurements:
            continue
        ekld, error = class_ekld(model), class_ekld_error(model)
        used = np.flatnonzero(np.isfinite(ekld) & seen(result))
        if len(used) < 2:
            continue
        name = clean(model.name)
        if not np.any(ekld[used] > model.ekld_resolution):
            lines.append(f"{name} has an eKLD of 0 on every class: nothing moves its predictions.")
            continue
        order = used[np.argsort(-ekld[used], kind="stable")]
        worst = order[: min(_WORST, max(1, len(used) // 2))]
        kept = mean_over(list(model.measurements), "consistency")
        parts = []
        for label in worst:
            part = f"\u201c{clean(result.class_names[label])}\u201d ({nats(ekld[label])}"
            if math.isfinite(error[label]):
                part += f" \u00b1 {nats(error[label])}"
            parts.append(part + f", {percent(kept[label])} kept)")
        clear = _stand_out(ekld, error, used, worst)
        verdict = (
            "all clearly above the rest"
            if clear == len(worst) > 1
            else "clearly above the rest"
            if clear == len(worst)
            else "no class stands out clearly: the differences are within their uncertainty"
            if not clear
            else f"only the first {clear} of them clearly above the rest"
            if clear > 1
            else "only the first of them clearly above the rest"
        )
        lines.append(
            f"{name} is moved most on {listed(parts)}; the median class has "
            f"{nats(float(np.median(ekld[used])))}; {verdict}."
        )
    if lines:
        lines.insert(
            0,
            "eKLD (expected Kullback-Leibler divergence, in nats) is how far the predicted "
            "probabilities move when an image is transformed, 0 meaning not at all; per class it "
            "is given as mean over all transformations and strengths, \u00b1 its standard error.",
        )
    return lines


def _stand_out(ekld: np.ndarray, error: np.ndarray, used: np.ndarray, worst: np.ndarray) -> int:
    """How many of the first of `worst` exceed the mean of all other classes beyond doubt.

    The largest of many classes is large by chance: Bonferroni's correction over the classes.
    """
    quantile = NormalDist().inv_cdf(1 - SIGNIFICANT / (2 * len(used)))
    for place, label in enumerate(worst):
        others = used[~np.isin(used, worst[: place + 1])]
        rest = float(ekld[others].mean())
        rest_error = float(np.sqrt(np.sum(np.nan_to_num(error[others]) ** 2))) / len(others)
        # The comparison also fails where the error is not known (NaN).
        if not ekld[label] - rest > quantile * np.hypot(error[label], rest_error):
            return place
    return len(worst)


# ------------------------------------------------------------------------------------ class size


def _class_size(result: AuditResult) -> list[str]:
    used = seen(result)
    counts = np.asarray(result.class_counts)[used]
    if len(counts) < 3:
        return ["A trend with class size needs at least three classes."]
    if counts.min() == counts.max():
        return ["As all classes have the same size, there is no trend with class size to find."]
    lines: list[str] = []
    tested = claimed = 0
    for model in result.models:
        groups = _trend_groups(model)
        tested += groups.tested
        claimed += groups.claimed
        name = clean(model.name)
        for direction, found in (("less", groups.less), ("more", groups.more)):
            if found:
                lines.append(
                    f"{name}: the smaller the class, the {direction} invariant, under "
                    f"{_trends(found)}."
                )
        if groups.mixed:
            lines.append(
                f"{name}: a trend at some strengths only, which is no firm finding, under "
                f"{_items(groups.mixed)}."
            )
        if groups.none:
            lines.append(
                f"{name}: no clear trend of invariance with class size under {listed(groups.none)}."
            )
        lines += _accuracy_trend(name, model.accuracy_trend)
    if not lines:
        return []
    lines.insert(
        0,
        "A trend is measured by Spearman's rank correlation: 1 or -1 if the order by class size "
        "is exactly the order by eKLD or accuracy (or its reverse), 0 if they have nothing to do "
        "with each other; it is claimed only where chance alone would give one as strong in fewer "
        "than 1 of 20 cases (p < 0.05).",
    )
    if claimed and tested >= 5:
        lines.append(
            f"{claimed} of {tested} tests for a trend of invariance came out positive; about "
            f"{max(1, round(SIGNIFICANT * tested))} would if class size never mattered."
        )
    return lines


@dataclass(frozen=True)
class _Trends:
    """The claimed trends of one transformation, all of one sign."""

    transform: str
    hits: list[Trend]
    strengths: int

    @property
    def strongest(self) -> float:
        return max((t.rho for t in self.hits), key=abs)


@dataclass(frozen=True)
class _TrendGroups:
    """Transformations of one model by what is found; small classes are less or more invariant."""

    less: list[_Trends]
    more: list[_Trends]
    mixed: list[str]
    none: list[str]
    tested: int
    claimed: int

    @property
    def number(self) -> int:
        return len(self.less) + len(self.more) + len(self.mixed) + len(self.none)


def _trend_groups(model: ModelAudit) -> _TrendGroups:
    less, more, mixed, none = [], [], [], []
    tested = claimed = 0
    for transform, ladder in ladders(model).items():
        trends = [m.trend for m in ladder if _testable(m.trend)]
        if not trends:
            continue
        tested += len(trends)
        falling = [t for t in trends if _claimed(t) and t.rho < 0]
        rising = [t for t in trends if _claimed(t) and t.rho > 0]
        claimed += len(falling) + len(rising)
        # At least half of the strengths, so that no single one is picked out.
        if 2 * len(falling) >= len(trends) and not rising:
            less.append(_Trends(transform, falling, len(trends)))
        elif 2 * len(rising) >= len(trends) and not falling:
            more.append(_Trends(transform, rising, len(trends)))
        elif falling or rising:
            mixed.append(_mixed(transform, falling, rising, len(trends)))
        else:
            smallest = min(p_value(t) for t in trends)
            none.append(f"{words(transform)} (p = {_two_digits(smallest)})")
    return _TrendGroups(less, more, mixed, none, tested, claimed)


def _trends(found: list[_Trends]) -> str:
    """Names with their correlation, the strongest first, and what holds for all of them."""
    found = sorted(found, key=lambda t: -abs(t.strongest))
    parts = []
    for place, one in enumerate(found):
        numbers = f"{'rank correlation ' if not place else ''}{one.strongest:.2f}"
        if len(one.hits) < one.strengths:
            numbers += f", at {len(one.hits)} of {one.strengths} strengths"
        parts.append(f"{words(one.transform)} ({numbers})")
    strong, weak = (_strength(f.strongest) for f in (found[0], found[-1]))
    degree = strong if strong == weak else f"{weak} to {strong}"
    largest = max(p_value(t) for one in found for t in one.hits)
    several = sum(len(one.hits) for one in found) > 1
    return f"{listed(parts)}: {degree}, and to be expected {_chance(largest, several)}"


def _testable(trend: Trend) -> bool:
    return trend.num_classes >= 3 and math.isfinite(trend.rho) and math.isfinite(trend.p_value)


def _claimed(trend: Trend) -> bool:
    return _testable(trend) and p_value(trend) < SIGNIFICANT


def _mixed(transform: str, falling: list[Trend], rising: list[Trend], strengths: int) -> str:
    parts = []
    if falling:
        parts.append(f"small classes less invariant at {len(falling)} of {strengths}")
    if rising:
        parts.append(f"more invariant at {len(rising)} of {strengths}")
    return f"{words(transform)} ({', '.join(parts)})"


def _accuracy_trend(name: str, trend: Trend) -> list[str]:
    if not _testable(trend):
        return []
    if not _claimed(trend):
        return [
            f"{name}: no clear trend of accuracy with class size "
            f"(p = {_two_digits(p_value(trend))})."
        ]
    direction = "less" if trend.rho > 0 else "more"
    return [
        f"{name}: the smaller the class, the {direction} accurate (rank correlation "
        f"{trend.rho:.2f}, {_strength(trend.rho)}; to be expected {_chance(p_value(trend))})."
    ]


def _strength(rho: float) -> str:
    return next(word for bound, word in _STRENGTHS if abs(rho) >= bound)


def _chance(p: float, at_most: bool = False) -> str:
    """A p-value in words, and only what it says: how often no trend would look like this one."""
    if p < 0.001:
        return "by chance alone in fewer than 1 of 1,000 cases"
    about = "at most 1" if at_most else "about 1"
    # Rounded down: never rarer than it is.
    return f"by chance alone in {about} of {count(math.floor(1 / p))} cases"


def _two_digits(p: float) -> str:
    # 0.052 as 0.05 would look significant.
    return f"{p:.2f}" if p >= 0.055 else f"{p:.3f}"


# ------------------------------------------------------------------------------------ comparison


def _comparison(result: AuditResult) -> list[str]:
    models = result.models
    if len(models) < 2:
        return []
    # All pairs of three models are three; of more, each with the first.
    pairs = (
        list(combinations(models, 2)) if len(models) <= 3 else [(models[0], m) for m in models[1:]]
    )
    lines = []
    for first, second in pairs:
        shared = {m.condition for m in first.measurements} & {
            m.condition for m in second.measurements
        }
        parts = []
        if shared:
            ekld = [
                mean_over([m for m in model.measurements if m.condition in shared], "ekld")
                for model in (first, second)
            ]
            parts += _compared(result, ekld[0], ekld[1], "ekld")
        parts += _compared(result, first.per_class_accuracy, second.per_class_accuracy, "accuracy")
        if parts:
            lines.append(f"{clean(second.name)} against {clean(first.name)}: {'; '.join(parts)}.")
    if not lines:
        return []
    lines.insert(
        0,
        "Models are compared class by class (mean difference over the classes \u00b1 its standard "
        "error; Student's distribution for their number): less than 68 % confidence is no clear "
        "difference, less than 95 % is weak evidence. Another training of the same models may "
        "differ by more than that.",
    )
    return lines


def _compared(
    result: AuditResult, first: np.ndarray, second: np.ndarray, measure: str
) -> list[str]:
    """What the second model does better or worse: over all classes and on the smallest third."""
    used = np.flatnonzero(seen(result) & np.isfinite(first) & np.isfinite(second))
    if len(used) < _ENOUGH_TO_COMPARE:
        noun = "invariance" if measure == "ekld" else "accuracy"
        return [f"{number_of(len(used), 'class', 'classes')} are too few to compare {noun}"]
    parts = [_difference((second - first)[used], measure, "")]
    counts = np.asarray(result.class_counts)[used]
    if len(used) >= 3 * _ENOUGH_TO_COMPARE and counts.min() < counts.max():
        # Ties in class order, as `metrics.groups` has it.
        smallest = used[np.array_split(np.argsort(-counts, kind="stable"), 3)[2]]
        parts.append(
            _difference((second - first)[smallest], measure, " on the smallest third of classes")
        )
    return parts


def _difference(values: np.ndarray, measure: str, where: str) -> str:
    mean = float(values.mean())
    error = float(values.std(ddof=1)) / math.sqrt(len(values))
    noun = "invariance" if measure == "ekld" else "accuracy"
    if not np.any(values):
        return f"the same {noun}{where}"
    if measure == "ekld":
        numbers = f"eKLD {mean:+.3f} \u00b1 {error:.3f} nats"
        better = "more invariant" if mean < 0 else "less invariant"
    else:
        numbers = f"{100 * mean:+.1f} \u00b1 {100 * error:.1f} points"
        better = "more accurate" if mean > 0 else "less accurate"
    weak, sure = (_student(level, len(values)) * error for level in (_WEAK, _SURE))
    if abs(mean) <= weak:
        return f"no clear difference in {noun}{where} ({numbers})"
    if abs(mean) <= sure:
        return f"perhaps {better}{where} (weak evidence: {numbers})"
    return f"{better}{where} ({numbers})"


def _student(confidence: float, number: int) -> float:
    """Half the width of an interval for the mean of `number` values, in standard errors."""
    import scipy.stats

    return float(scipy.stats.t.ppf((1 + confidence) / 2, number - 1))


# ------------------------------------------------------------------------------------ accuracy


def _accuracy(result: AuditResult) -> list[str]:
    lines = []
    for model in result.models:
        name = clean(model.name)
        parts = []
        if math.isfinite(model.accuracy):
            part = f"{name} is right on {percent(model.accuracy)} of the untransformed images"
            if percent(model.balanced_accuracy) not in (percent(model.accuracy), "\u2013"):
                part += f" ({percent(model.balanced_accuracy)} as mean over the classes)"
            parts.append(part)
        error = model.expected_calibration_error
        if math.isfinite(error):
            subject = "its confidence is" if parts else f"the confidence of {name} is"
            parts.append(
                f"{subject} {100 * error:.1f} points away from its accuracy on average (expected "
                "calibration error; 0 would be perfect)"
            )
        if parts:
            lines.append("; ".join(parts) + ".")
    return lines


# ------------------------------------------------------------------------------------ limits


def _limits(result: AuditResult) -> list[str]:
    lines = []
    if result.settings.get("class_counts") == "audited images":
        lines.append(
            "Class sizes are those of the audited images, as the sizes in training were not "
            "given: trends with class size mean little unless the two go together."
        )
    if result.skipped:
        # A reason is a sentence of its own: colons and full stops at its end would collide.
        parts = [f"{words(n)} ({clean(str(r)).rstrip('.')})" for n, r in result.skipped.items()]
        lines.append(f"Left out: {listed(parts)}.")
    if result.settings.get("image_size_chosen"):
        height, width = result.settings["image_size"]
        lines.append(
            f"The images were resized to {height} x {width} pixels, which was chosen from the "
            "sizes of the files, as the model takes any size; another size may give other results."
        )
    images, used = np.asarray(result.num_images), seen(result)
    if not used.all():
        names = [f"\u201c{clean(result.class_names[i])}\u201d" for i in np.flatnonzero(~used)]
        verb = "has" if len(names) == 1 else "have"
        lines.append(
            f"{listed(names, 6)} {verb} no images here and "
            f"{'is' if len(names) == 1 else 'are'} left out of every number."
        )
    single = int(np.sum(images == 1))
    if single:
        lines.append(
            f"{number_of(single, 'class has', 'classes have')} one image only and so no standard "
            "error."
        )
    lines += _precision(result)
    return lines


def _precision(result: AuditResult) -> list[str]:
    precision = result.settings.get("precision")
    spent = sum(model.evaluations for model in result.models)
    saved = sum(model.evaluations_saved for model in result.models)
    if not isinstance(precision, (int, float)) or isinstance(precision, bool) or not spent:
        return []
    total = spent + saved
    text = (
        f"Each class got as many draws as a trial showed it to need for a sampling error of its "
        f"eKLD of {precision:g} nats: {count(spent)} evaluations, trials included, instead of "
        f"{count(total)} with as many draws for all classes as the one that needed most, "
    )
    if saved >= 0:
        text += f"{percent(saved / total, 0)} saved."
    else:
        text += "so that the trials cost more than they saved."
    lines = [text]
    open_cases = measured = 0
    for model in result.models:
        for measurement in model.measurements:
            left = measurement.ekld_sampling_error[seen(result)]
            measured += int(np.isfinite(left).sum())
            open_cases += int(np.sum(left > precision))
    if open_cases:
        most = result.settings.get("max_samples")
        limit = f" after {count(most)} draws per image" if isinstance(most, int) else ""
        lines.append(
            f"In {count(open_cases)} of {count(measured)} cases (class, transformation, strength) "
            f"it was still above that{limit}."
        )
    lines.append(
        "The error between images, which more draws cannot shrink, stands beside it in the table "
        "of all numbers."
    )
    return lines
