"""Which transformations explain the variation between images of a class."""

from __future__ import annotations

import math
import time
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from keras_git.analysis import similarity
from keras_git.analysis.checks import CheckTable, check_of_clean
from keras_git.analysis.embeddings import Embedder, open_cache
from keras_git.analysis.images import sample_images
from keras_git.analysis.intervals import (
    benjamini_hochberg,
    check_level,
    jackknife_error,
    student_p,
    student_quantile,
    welch_freedom,
    wilson,
)
from keras_git.analysis.tables import ALL_CLASSES, ResultTable, Row
from keras_git.analysis.transform_sets import Candidate, TransformSet
from keras_git.errors import InputError

CONTROLS = ("between_class", None)
SCORES = ("gain", "share", "relative")
_NAN = math.nan
# Images of a class, and of the others, on which the best of an operation is looked for
_FAMILY_IMAGES, _FAMILY_OTHERS = 128, 256


@dataclass(frozen=True)
class ClassGain:
    """What one transformation does to the similarity of images of one class.

    Attributes:
        label: the class.
        n_images: n.
        n_pairs: ordered pairs (all pairs) or pairs that were drawn.
        gain: mean change of cosine similarity.
        gain_error: its standard error.
        share: share of pairs that become more alike (strictly).
        share_error: its standard error.
        ties: pairs whose similarity does not change at all.
        original: mean cosine similarity of the pairs before.
        relative_gain: gain / original.
        control_gain: gain of pairs whose first image is of another class.
        net_gain: gain - control_gain.
        net_error: its standard error.
        self_similarity: mean cosine similarity of an image and its transformed version.
        freedom: degrees of freedom of the intervals.
    """

    label: int
    n_images: int
    n_pairs: int
    gain: float
    gain_error: float
    share: float
    share_error: float
    ties: int
    original: float
    relative_gain: float
    control_gain: float
    net_gain: float
    net_error: float
    self_similarity: float
    freedom: float


@dataclass(frozen=True)
class Gains:
    """What one transformation does to every class.

    Attributes:
        classes: one entry per class that occurs, by label.
        net_influence: float `(N,)`, how much each image moves the sum over classes of net gains:
            its squares add up to the variance. An image is in the control of every other class, so
            the errors of the classes are not independent.
        counted_twice: of that variance, where each pair is taken once.
    """

    classes: list[ClassGain]
    net_influence: np.ndarray
    counted_twice: float


def class_gains(
    vectors: np.ndarray,
    moved: np.ndarray,
    labels: np.ndarray,
    *,
    pairs: str | int = "all",
    control: bool = True,
    seed: int = 0,
) -> Gains:
    """Gains of one transformation for every class.

    gain = mean over pairs i != j of a class of u_i . (v_j - u_j): the second image is transformed.
    The control takes the first image from the other classes: an operation that makes any image look
    alike has a gain there too, and only the difference is about the class.

    Args:
        vectors: u, unit vectors `(N, D)`.
        moved: v - u, `(N, D)`.
        labels: int `(N,)`.
        pairs: "all" ordered pairs, "disjoint" pairs, or a number of pairs that are drawn.
        control: whether to compute it (NaN otherwise, or with one class).
        seed: of drawn pairs.
    """
    found = []
    influence, counted_twice = np.zeros(len(labels)), 0.0
    whole = vectors.sum(axis=0)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        u, d = vectors[own], moved[own]
        n = len(own)
        gain_twice = share_twice = 0.0  # of the variances, what the jackknife counts twice
        if pairs == "all":
            gain, gain_left = similarity.pair_mean(u, d)
            share, share_left, ties = similarity.pair_share(u, d)
            original, _ = similarity.pair_mean(u, u)
            number = n * (n - 1)
        else:
            generator = np.random.default_rng([seed, int(label)])
            if pairs == "disjoint":
                i, j = similarity.disjoint_pairs(n, generator)
            else:
                i, j = similarity.random_pairs(n, int(pairs), generator)
            change = (u[i] * d[j]).sum(axis=1)
            gain, gain_left = similarity.chosen_pairs_mean(change, i, j, n)
            above = (change > 0).astype(float)
            share, share_left = similarity.chosen_pairs_mean(above, i, j, n)
            gain_twice, share_twice = (
                similarity.single_pairs_variance(values, i, j, n) for values in (change, above)
            )
            original, _ = similarity.chosen_pairs_mean((u[i] * u[j]).sum(axis=1), i, j, n)
            ties, number = int((change == 0).sum()), len(i)
        gain_error = _error_once(gain_left, gain_twice)
        share_error = _error_once(share_left, share_twice)
        control_gain = net_error = _NAN
        others = len(labels) - n
        if control and others and n:
            mean_moved = d.mean(axis=0)
            away = whole - u.sum(axis=0)
            control_gain = float(away @ mean_moved) / others
            # Without image k of the class, in both means; the other classes' images are
            # independent of these, and add their own variance
            control_left = (away @ d.sum(axis=0) - d @ away) / (others * max(n - 1, 1))
            net_left = gain_left - control_left
            variance = _error_once(net_left, gain_twice) ** 2
            outside = (vectors @ mean_moved)[labels != label]
            if others > 1:
                variance += float(outside.var(ddof=1)) / others
            net_error = math.sqrt(variance) if math.isfinite(variance) else _NAN
            if math.isfinite(net_error):
                influence[own] += math.sqrt((n - 1) / n) * (net_left.mean() - net_left)
                counted_twice += gain_twice
                if others > 1:
                    spread = math.sqrt(others * (others - 1))
                    influence[labels != label] -= (outside - outside.mean()) / spread
        found.append(
            ClassGain(
                label=int(label),
                n_images=n,
                n_pairs=number,
                gain=gain,
                gain_error=gain_error,
                share=share,
                share_error=share_error,
                ties=ties,
                original=original,
                relative_gain=gain / original if original else _NAN,
                control_gain=control_gain,
                net_gain=gain - control_gain,
                net_error=net_error,
                self_similarity=float(similarity.cosine_of_moved(u, d).mean()),
                freedom=min(n, number) - 1,
            )
        )
    return Gains(found, influence, counted_twice)


def _error_once(left_out: np.ndarray, twice: float) -> float:
    """Jackknife error of a mean over pairs, less the variance that is counted twice."""
    variance = float(_error(left_out)) ** 2
    return math.sqrt(max(variance - twice, twice)) if math.isfinite(variance) else _NAN


def _error(left_out: np.ndarray) -> Any:
    return jackknife_error(left_out) if np.isfinite(left_out).all() else _NAN


class BestOfFamily:
    """For each pair, the most that any candidate of an operation brings.

    A transformation that can be undone, such as a rotation, never raises the mean similarity of all
    pairs of a class: as many pairs move apart. The best of its angles for each pair does, if angle
    is what the pair differs by. Doing nothing counts as a candidate; the control takes the best for
    pairs of different classes, which is what choosing the best brings anyway.

    Args:
        vectors: unit vectors `(N, D)`.
        labels: int `(N,)`.
        seed: of the images that are used where there are more than enough.
    """

    def __init__(self, vectors: np.ndarray, labels: np.ndarray, seed: int) -> None:
        generator = np.random.default_rng([seed, 17])
        self._vectors = vectors
        self._groups: list[tuple[int, np.ndarray, np.ndarray]] = []
        for label in np.unique(labels):
            own = _at_most(np.flatnonzero(labels == label), _FAMILY_IMAGES, generator)
            others = _at_most(np.flatnonzero(labels != label), _FAMILY_OTHERS, generator)
            self._groups.append((int(label), own, others))
        self.start()

    def start(self) -> None:
        """Begins with another operation."""
        self._own = [np.zeros((len(own), len(own)), np.float32) for _, own, _ in self._groups]
        self._far = [np.zeros((len(far), len(own)), np.float32) for _, own, far in self._groups]

    def add(self, moved: np.ndarray) -> None:
        """Takes a candidate, v - u `(N, D)`."""
        for place, (_, own, others) in enumerate(self._groups):
            change = moved[own].T
            np.maximum(self._own[place], self._vectors[own] @ change, out=self._own[place])
            np.maximum(self._far[place], self._vectors[others] @ change, out=self._far[place])

    def gains(self, control: bool) -> list[ClassGain]:
        """What the operation brings to each class."""
        found = []
        for place, (label, own, others) in enumerate(self._groups):
            n, m = len(own), len(others)
            change = self._own[place].astype(np.float64)
            np.fill_diagonal(change, 0.0)
            above = (change > 0).astype(np.float64)
            gain, left = similarity.mean_and_left_out(
                float(change.sum()), change.sum(axis=1), change.sum(axis=0)
            )
            share, share_left = similarity.mean_and_left_out(
                float(above.sum()), above.sum(axis=1), above.sum(axis=0)
            )
            original, _ = similarity.pair_mean(self._vectors[own], self._vectors[own])
            control_gain = net_error = _NAN
            if control and m > 1 and n > 1:
                far = self._far[place].astype(np.float64)
                control_gain = float(far.mean())
                control_left = (far.sum() - far.sum(axis=0)) / (m * (n - 1))
                variance = float(_error(left - control_left)) ** 2
                variance += float(far.mean(axis=1).var(ddof=1)) / m
                net_error = math.sqrt(variance) if math.isfinite(variance) else _NAN
            found.append(
                ClassGain(
                    label=label,
                    n_images=n,
                    n_pairs=n * (n - 1),
                    gain=gain,
                    gain_error=float(_error(left)),
                    share=share,
                    share_error=float(_error(share_left)),
                    ties=n * (n - 1) - int(above.sum()),
                    original=original,
                    relative_gain=gain / original if original else _NAN,
                    control_gain=control_gain,
                    net_gain=gain - control_gain,
                    net_error=net_error,
                    self_similarity=_NAN,
                    freedom=n - 1,
                )
            )
        return found


def _at_most(places: np.ndarray, most: int, generator: np.random.Generator) -> np.ndarray:
    if len(places) <= most:
        return places
    return np.sort(generator.choice(places, most, replace=False))


def _over_classes(found: Gains) -> ClassGain:
    """Means over classes of equal weight, those with too few images for an error left out."""
    known = [one for one in found.classes if math.isfinite(one.gain_error)]
    gains = known or [one for one in found.classes if math.isfinite(one.gain)] or found.classes
    net_error = _NAN
    if known and math.isfinite(known[0].net_error):
        variance = float((found.net_influence**2).sum())
        net_error = math.sqrt(max(variance - found.counted_twice, found.counted_twice)) / len(known)

    def mean(name: str) -> float:
        return float(np.mean([getattr(one, name) for one in gains]))

    def error(name: str) -> float:
        return math.sqrt(sum(getattr(one, name) ** 2 for one in gains)) / len(gains)

    original = mean("original")
    return ClassGain(
        label=-1,
        n_images=sum(one.n_images for one in gains),
        n_pairs=sum(one.n_pairs for one in gains),
        gain=mean("gain"),
        gain_error=error("gain_error"),
        share=mean("share"),
        share_error=error("share_error"),
        ties=sum(one.ties for one in gains),
        original=original,
        relative_gain=mean("gain") / original if original else _NAN,
        control_gain=mean("control_gain"),
        net_gain=mean("net_gain"),
        net_error=net_error,
        self_similarity=mean("self_similarity"),
        freedom=welch_freedom(
            [one.gain_error**2 if math.isfinite(one.gain_error) else 0.0 for one in gains],
            [max(one.freedom, 1) for one in gains],
        ),
    )


class FactorTable(ResultTable):
    """Factors of variation: a row for each class and transformation.

    Columns: `class_id`, `class_name`, `transform`, `magnitude` (NaN for none), `n_images`,
    `n_pairs`; `gain`, the mean change of the cosine similarity of two images of the class when the
    second is transformed, `gain_lo`, `gain_hi`; `share` of pairs that become more alike (strictly),
    `share_lo`, `share_hi`; `relative_gain`, gain over the mean similarity; `control_gain`, that of
    pairs whose first image is of another class; `net_gain`, gain less control, `net_lo`, `net_hi`;
    `self_similarity` of an image and its transformed version (1: the embedding is invariant to the
    transformation, and cannot show it as a factor); `q_value` of net gain (of gain without a
    control) being 0, corrected for all rows together; `rank` by the score within the class (1 is
    best), and `rank_lo`, `rank_hi`, the ranks that the intervals of the class's rows allow.

    Attributes:
        checks: similarity within and across classes, as `similarity_checks` gives it, for the
            images as they are.
    """

    COLUMNS = (
        "class_id",
        "class_name",
        "transform",
        "magnitude",
        "n_images",
        "n_pairs",
        "gain",
        "gain_lo",
        "gain_hi",
        "share",
        "share_lo",
        "share_hi",
        "relative_gain",
        "control_gain",
        "net_gain",
        "net_lo",
        "net_hi",
        "self_similarity",
        "q_value",
        "rank",
        "rank_lo",
        "rank_hi",
    )
    TEXTS = ("class_name", "transform")
    KIND = "factor table"

    @property
    def checks(self) -> CheckTable | None:
        """Similarity within and across classes."""
        content = self.notes.get("checks")
        return None if content is None else CheckTable.from_dict(content)

    @property
    def warnings(self) -> list[str]:
        """What a reader has to know before the numbers."""
        return [str(text) for text in self.notes.get("warnings", [])]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, in order of appearance."""
        return list(dict.fromkeys(row["class_name"] for row in self.rows))

    @property
    def candidates(self) -> list[tuple[str, float]]:
        """(transform, magnitude) of each candidate, in order of appearance."""
        return list(
            {_candidate(row): (row["transform"], row["magnitude"]) for row in self}.values()
        )

    def operation(self, transform: str) -> str:
        """What a transformation does, whatever its magnitude; see `Candidate.operation`."""
        return str(self.notes.get("operations", {}).get(transform, transform))

    @property
    def dataset_rows(self) -> list[Row]:
        """One row per candidate, means over classes of equal weight, ranked; class_id is -1."""
        stored = self.notes.get("dataset_rows")
        if stored is None:
            return [row for row in self.rows if row["class_id"] == -1]
        return [{k: _restored(k, v) for k, v in row.items()} for row in stored]

    @property
    def families(self) -> FactorTable:
        """A row for each class and operation: the best of its magnitudes for every pair.

        `gain` is the mean over pairs of the largest change that any candidate of the operation, or
        doing nothing, brings; `control_gain` the same of pairs of different classes; `magnitude`
        and `self_similarity` are NaN. Candidate by candidate, a transformation that can be undone
        (a rotation, a shift) never gains over all pairs, whatever varies in the data: here it does.
        """
        rows = [
            {k: _restored(k, v) for k, v in row.items()}
            for row in self.notes.get("family_rows", [])
        ]
        settings = {**self.settings, "n_transforms": len({row["transform"] for row in rows})}
        return FactorTable(rows, settings, seconds=self.seconds)

    def score_of(self, row: Mapping[str, Any]) -> float:
        """By what a row is ranked."""
        return float(row[_score_columns(row, str(self.settings.get("score", "gain")))[0]])

    def top(self, k: int = 5, per: str = "class") -> list[Row]:
        """The best rows, those that leave all images as they are left out.

        Args:
            k: how many, of each class or altogether.
            per: "class", or "dataset" for the means over classes.

        Returns:
            Rows by class and rank.

        Raises:
            InputError: another `per`, or k below 1.
        """
        if per not in ("class", "dataset"):
            raise InputError(f"per is {per!r}; use 'class' or 'dataset'")
        if k < 1:
            raise InputError(f"k is {k!r}; give 1 or more")
        rows = self.rows if per == "class" else self.dataset_rows
        found: list[Row] = []
        for label in dict.fromkeys(row["class_id"] for row in rows):
            own = [row for row in rows if row["class_id"] == label and not _unchanged(row)]
            own = [row for row in own if math.isfinite(row["rank"])]
            found += sorted(own, key=lambda row: row["rank"])[:k]
        return found

    def matrix(self, column: str) -> np.ndarray:
        """A column as float64 `(class_names, candidates)`."""
        classes = {label: i for i, label in enumerate(dict.fromkeys(self["class_id"]))}
        places = {key: i for i, key in enumerate(dict.fromkeys(_candidate(r) for r in self))}
        values = np.full((len(classes), len(places)), np.nan)
        for row in self.rows:
            values[classes[row["class_id"]], places[_candidate(row)]] = row[column]
        return values

    def class_similarity(self, metric: str = "spearman", top: int = 25) -> np.ndarray:
        """How alike the factors of two classes are.

        Args:
            metric: "spearman", the rank correlation of the scores of all candidates; or "iou", the
                operations among the best candidates of both over those of either.
            top: best candidates, for "iou".

        Returns:
            float64 `(C, C)`, in the order of `class_names`.

        Raises:
            InputError: another metric, fewer than two classes, or fewer than three candidates.
        """
        classes = list(dict.fromkeys(row["class_id"] for row in self.rows))
        if len(classes) < 2:
            raise InputError("the table has one class: there is no other to compare it with")
        if metric == "iou":
            best = self.top(top)
            sets = [
                {self.operation(row["transform"]) for row in best if row["class_id"] == label}
                for label in classes
            ]
            return np.array([[len(a & b) / max(len(a | b), 1) for b in sets] for a in sets])
        if metric != "spearman":
            raise InputError(f"metric is {metric!r}; use 'spearman' or 'iou'")
        import scipy.stats

        name = _score_columns(self.rows[0], str(self.settings.get("score", "gain")))[0]
        values = self.matrix(name)
        if values.shape[1] < 3:
            raise InputError("rank correlations need three candidates or more")
        ranks = scipy.stats.rankdata(values, axis=1)
        centred = ranks - ranks.mean(axis=1, keepdims=True)
        lengths = np.sqrt((centred**2).sum(axis=1))
        with np.errstate(invalid="ignore", divide="ignore"):
            return centred @ centred.T / np.outer(lengths, lengths)

    def compare_to(
        self,
        taxonomy: Any,
        *,
        metric: str = "spearman",
        top: int = 25,
        n_permutations: int = 10000,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Whether related classes have like factors: rank correlation over pairs of classes.

        Args:
            taxonomy: similarity of the classes `(C, C)`, symmetric, in the order of `class_names`
                (see `wordnet_similarity`).
            metric: see `class_similarity`.
            top: see `class_similarity`.
            n_permutations: of the classes, for the p-value (Mantel's test).
            seed: of the permutations.

        Returns:
            `{"rho", "p", "n_pairs", "n_classes", "metric"}`; each pair of classes counts once, no
            class is compared with itself.

        Raises:
            InputError: a matrix of another shape, or fewer than four classes.

        Reference: Mantel, "The detection of disease clustering", Cancer Research 27, 1967.
        """
        from keras_git.analysis.taxonomy import mantel

        mine = self.class_similarity(metric, top)
        rho, p = mantel(mine, taxonomy, n_permutations=n_permutations, seed=seed)
        number = len(mine)
        pairs = number * (number - 1) // 2
        return {"rho": rho, "p": p, "n_pairs": pairs, "n_classes": number, "metric": metric}

    def plot(self, kind: str = "heatmap", path: str | Path | None = None, **options: Any) -> Any:
        """Draws the table.

        Args:
            kind: "heatmap" (class by transformation, a dot where q < 0.05), "bars" (the best of
                each class with intervals) or "ridge" (the scores of all classes by transformation).
            path: picture file; None to get the Matplotlib figure.
            **options: of the function in `keras_git.plots`.

        Raises:
            InputError: another kind, or an unknown picture format.
        """
        from keras_git import plots

        kinds: dict[str, Any] = {
            "heatmap": plots.factor_heat_map,
            "bars": plots.factor_bars,
            "ridge": plots.factor_ridge,
        }
        if kind not in kinds:
            raise InputError(f"kind is {kind!r}; use one of {', '.join(kinds)}")
        return kinds[kind](self, path, **options)


def _restored(column: str, value: Any) -> Any:
    return _NAN if value is None and column not in FactorTable.TEXTS else value


def _candidate(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["transform"], repr(row["magnitude"])


def _unchanged(row: Mapping[str, Any]) -> bool:
    return row["self_similarity"] == 1.0 and row["gain"] == 0.0


def _score_columns(row: Mapping[str, Any], score: str) -> tuple[str, str, str]:
    """Names of the score by which rows are ranked, and of the ends of its interval."""
    if score == "share":
        return "share", "share_lo", "share_hi"
    if score == "relative":
        return "relative_gain", "gain_lo", "gain_hi"
    if math.isfinite(row["net_gain"]):
        return "net_gain", "net_lo", "net_hi"
    return "gain", "gain_lo", "gain_hi"


def explain_variation(
    model: Any,
    data: Any,
    transforms: TransformSet,
    *,
    layer: str | int | None = None,
    per_class: bool = True,
    pairs: str | int = "all",
    images_per_class: int | None = 256,
    control: str | None = "between_class",
    score: str = "gain",
    ci: float = 0.95,
    batch_size: int = 256,
    seed: int = 0,
    cache: Any = None,
    preprocess: Any = None,
    class_names: Sequence[str] | None = None,
    split: str = "test",
    data_dir: str | None = None,
    progress: Any = None,
) -> FactorTable:
    """Finds which transformations explain the variation between images of the same class.

    For two images of a class, does transforming the second bring their embeddings closer? Each
    image is embedded once as it is and once per candidate. All numbers are means over all ordered
    pairs of a class (by closed forms), with jackknife errors over images and t intervals; the
    control asks the same of pairs of different classes. Memory does not depend on the number of
    candidates: embeddings of one at a time are held.

    An embedding that is invariant to a transformation cannot show it as a factor: look at
    `self_similarity`, and use a second, independent embedding.

    Args:
        model: a Keras model, or a function of images that gives embeddings `(B, D)`.
        data: labelled images, uint8 or float in [0, 1] or 0..255: see
            `keras_git.analysis.sample_images`.
        transforms: the candidates.
        layer: name or place of the layer that is the embedding; "features" for what the last layer
            with weights takes; None for the output of the model. Feature maps and tokens are
            averaged.
        per_class: a row for each class; else only the means over classes (class_id -1).
        pairs: "all", "disjoint" (no image in two pairs), or a number of pairs of each class.
        images_per_class: most images of a class, chosen by the seed; None for all.
        control: "between_class" or None.
        score: what ranks candidates: "gain" (net gain, where there is a control), "share" or
            "relative".
        ci: level of the intervals.
        batch_size: images per call.
        seed: of the choice of images and pairs, and of random transformations.
        cache: folder or `EmbeddingCache` for the embeddings of images as they are.
        preprocess: what the model takes in place of images in the range of the data: one of
            `keras_git.auditing.PREPROCESSING`, or a function of grey levels 0..255.
        class_names: where the data have none.
        split: of data that have several.
        data_dir: folder of tensorflow_datasets, or of a relative `.npz` path.
        progress: called with (candidates done, candidates).

    Returns:
        The table. `UserWarning` if images of a class are not more alike than others in this
        embedding: the factors then mean little.

    Raises:
        InputError: arguments, a model, data or a transformation that cannot be used.

    Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
    2021, section 4; the estimates over all pairs, the control and the errors are this package's.
    """
    started = time.monotonic()
    _check(transforms, pairs, control, score)
    level = check_level(ci)
    sample = sample_images(
        data,
        images_per_class=images_per_class,
        seed=seed,
        class_names=class_names,
        split=split,
        data_dir=data_dir,
    )
    check_set_size(transforms, sample.image_size)
    embedder = Embedder(
        model,
        sample,
        layers=[layer],
        preprocess=preprocess,
        batch_size=batch_size,
        seed=seed,
        cache=open_cache(cache),
    )
    vectors = similarity.unit(embedder.clean()[0])
    if not vectors.any():
        raise InputError("all embeddings are zero: nothing can be compared in this layer")
    checks = check_of_clean(vectors, sample.labels, level)
    rows: list[Row] = []
    dataset: list[Row] = []
    families: list[Row] = []
    best = BestOfFamily(vectors, sample.labels, seed)
    ties: dict[str, int] = {}
    with_control = control == "between_class" and len(sample.classes) > 1
    # Of operation and candidate: the best of an operation has to see each of its own
    seen: dict[Any, Gains] = {}
    repeats = _repeated(transforms)
    done = 0
    for operation, places in _by_operation(transforms).items():
        best.start()
        for place in places:
            candidate = transforms.candidates[place]
            identity = operation, candidate.identity()
            gains = seen.get(identity)
            if gains is None:
                moved = similarity.unit(embedder.transformed(candidate)[0]) - vectors
                best.add(moved)
                gains = class_gains(
                    vectors, moved, sample.labels, pairs=pairs, control=with_control, seed=seed
                )
                if identity in repeats:
                    seen[identity] = gains
            for one in gains.classes:
                name = sample.class_name(one.label)
                rows.append(_row(one, candidate, name, level, pairs) | {"place": place})
            whole = _row(_over_classes(gains), candidate, ALL_CLASSES, level, pairs)
            dataset.append(whole | {"place": place})
            ties[candidate.name] = sum(one.ties for one in gains.classes)
            done += 1
            if progress is not None:
                progress(done, len(transforms))
        family = Candidate(operation, None, 0, operation, ())
        families += [
            _row(one, family, sample.class_name(one.label), level, "all")
            for one in best.gains(with_control)
        ]
    dataset.sort(key=lambda row: row["place"])
    for group in (rows, dataset, families):
        _rank(group, score)
        for row, q in zip(group, benjamini_hochberg([r["p"] for r in group]), strict=True):
            row["q_value"] = q
    rows.sort(key=lambda row: (row["class_id"], row["place"]))
    families.sort(key=lambda row: row["class_id"])
    found = checks.warning
    if found:
        warnings.warn(found, UserWarning, stacklevel=2)
    return FactorTable(
        rows if per_class else dataset,
        {
            "n_images": len(sample),
            "n_transforms": len(transforms),
            "n_classes": len(sample.classes),
            "data": sample.name,
            "transforms": transforms.title,
            "layer": layer,
            "pairs": pairs,
            "images_per_class": images_per_class,
            "control": "between_class" if with_control else None,
            "score": score,
            "ci": level,
            "seed": seed,
            "per_class": per_class,
            "preprocess": preprocess
            if preprocess is None or isinstance(preprocess, str)
            else getattr(preprocess, "__name__", type(preprocess).__name__),
        },
        seconds=time.monotonic() - started,
        notes={
            "operations": {c.transform: c.operation for c in transforms},
            "indices": {c.name: c.index for c in transforms},
            "ties": ties,
            "dataset_rows": [{k: row.get(k) for k in FactorTable.COLUMNS} for row in dataset],
            "family_rows": [{k: row.get(k) for k in FactorTable.COLUMNS} for row in families],
            "checks": checks.to_dict(),
            "warnings": [found] if found else [],
            "seconds_compiling": embedder.seconds_compiling,
        },
    )


def _check(transforms: Any, pairs: Any, control: Any, score: str) -> None:
    if not isinstance(transforms, TransformSet):
        raise InputError(f"transforms are {transforms!r}; give a TransformSet")
    if pairs not in ("all", "disjoint") and not (isinstance(pairs, int) and pairs > 0):
        raise InputError(f"pairs is {pairs!r}; use 'all', 'disjoint' or a number of pairs")
    if control not in CONTROLS:
        raise InputError(f"control is {control!r}; use 'between_class' or None")
    if score not in SCORES:
        raise InputError(f"score is {score!r}; use one of {', '.join(SCORES)}")


def check_set_size(transforms: TransformSet, image_size: tuple[int, int]) -> None:
    """The set must have been made for images of this size.

    Raises:
        InputError: it was made for another one.
    """
    if transforms.image_size is not None and transforms.image_size != image_size:
        raise InputError(
            f"the transforms are for images of {transforms.image_size}, the data are {image_size}: "
            "make the set with this image_size"
        )


def _by_operation(transforms: TransformSet) -> dict[str, list[int]]:
    """Places of the candidates of each operation, in order of appearance."""
    found: dict[str, list[int]] = {}
    for place, candidate in enumerate(transforms):
        found.setdefault(candidate.operation, []).append(place)
    return found


def _repeated(transforms: TransformSet) -> set[Any]:
    """Candidates that are more than once in an operation: they are computed once."""
    counts = Counter((candidate.operation, candidate.identity()) for candidate in transforms)
    return {identity for identity, number in counts.items() if number > 1}


def _row(one: ClassGain, candidate: Any, class_name: str, level: float, pairs: Any) -> Row:
    half = student_quantile(level, one.freedom)
    low, high = one.share - half * one.share_error, one.share + half * one.share_error
    if one.share_error == 0 and one.ties < one.n_pairs or pairs == "disjoint" and one.label >= 0:
        # all pairs alike say nothing of the spread: as if from disjoint pairs
        trials = one.n_pairs if pairs == "disjoint" else max(one.n_images // 2, 1)
        low, high = wilson(one.share * trials, trials, level)
    controlled = math.isfinite(one.net_error)
    tested = (one.net_gain, one.net_error) if controlled else (one.gain, one.gain_error)
    return {
        "class_id": one.label,
        "class_name": class_name,
        "transform": candidate.transform,
        "magnitude": _NAN if candidate.magnitude is None else float(candidate.magnitude),
        "n_images": one.n_images,
        "n_pairs": one.n_pairs,
        "gain": one.gain,
        "gain_lo": one.gain - half * one.gain_error,
        "gain_hi": one.gain + half * one.gain_error,
        "share": one.share,
        "share_lo": max(0.0, low) if math.isfinite(low) else low,
        "share_hi": min(1.0, high) if math.isfinite(high) else high,
        "relative_gain": one.relative_gain,
        "control_gain": one.control_gain,
        "net_gain": one.net_gain,
        "net_lo": one.net_gain - half * one.net_error,
        "net_hi": one.net_gain + half * one.net_error,
        "self_similarity": one.self_similarity,
        "p": student_p(*tested, one.freedom),
        "name": candidate.name,
    }


def _rank(rows: list[Row], score: str) -> None:
    """Ranks within each class; ties by name, and the ranks that overlapping intervals allow."""
    for label in {row["class_id"] for row in rows}:
        own = [row for row in rows if row["class_id"] == label]
        value, lowest, highest = _score_columns(own[0], score)

        def order(row: Row, value: str = value) -> tuple[float, str]:
            return (-row[value] if math.isfinite(row[value]) else math.inf, row["name"])

        scale = _scale_of_relative(own) if score == "relative" else np.ones(len(own))
        low = np.array([row[lowest] for row in own]) * scale
        high = np.array([row[highest] for row in own]) * scale
        low, high = np.minimum(low, high), np.maximum(low, high)
        for place, row in enumerate(sorted(own, key=order)):
            row["rank"] = place + 1 if math.isfinite(row[value]) else _NAN
        for row, mine_low, mine_high in zip(own, low, high, strict=True):
            if not math.isfinite(row[value]):
                row["rank_lo"] = row["rank_hi"] = _NAN
                continue
            if not (math.isfinite(mine_low) and math.isfinite(mine_high)):
                row["rank_lo"], row["rank_hi"] = 1, len(own)
                continue
            better = int((low > mine_high).sum())
            worse = int((high < mine_low).sum())
            row["rank_lo"], row["rank_hi"] = 1 + better, len(own) - worse


def _scale_of_relative(rows: list[Row]) -> np.ndarray:
    """1 / mean original similarity, by which an interval of the gain becomes that of the ratio."""
    gains = np.array([row["gain"] for row in rows])
    relative = np.array([row["relative_gain"] for row in rows])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(gains != 0, relative / gains, 1.0)
