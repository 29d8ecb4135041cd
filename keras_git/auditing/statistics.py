"""Sums over a stream of images, from which all measures of an audit follow.

Everything is kept per class: memory depends on the number of classes alone, not on how many images
or draws there were.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from keras import ops

from keras_git import metrics
from keras_git.auditing.result import Condition, Measurement, Trend
from keras_git.backend import compiled

_EXACT_CLASSES = 8
_CALIBRATION_BINS = 15
# eKLD in nats below which a model counts as not moved at all: what rounding alone makes of an
# exactly invariant one, computed in float32 or in half precision.
EKLD_RESOLUTION = {"float32": 1e-6, "half": 1e-3}
# The plan of a precision: weight of the other classes in the variance of one, in degrees of
# freedom; the chance that the bound of a variance is too low; and, for a class whose draws all
# agreed, the upper limit (95 %) of how many in n would not, at one nat squared each.
_PRIOR_DEGREES = 5
_BOUND_ERROR = 0.1
_RULE_OF_THREE = 3.0
_NORMAL_QUANTILE = 1.959963984540054  # of 0.975


class ClassMoments:
    """Mean and variance per class of one value per image, updated batch by batch.

    Args:
        num_classes: C.

    Attributes:
        count: images so far, float64 (C,).
        mean: float64 (C,), 0 before the first image.
        squares: sum of the squared deviations from the mean, float64 (C,).
    """

    def __init__(self, num_classes: int) -> None:
        self.count = np.zeros(num_classes)
        self.mean = np.zeros(num_classes)
        self.squares = np.zeros(num_classes)

    def add(self, labels: np.ndarray, values: np.ndarray) -> None:
        """Adds a batch: labels `(B,)` in 0..C-1, values `(B,)`."""
        num_classes = len(self.count)
        count = np.bincount(labels, minlength=num_classes)
        mean = np.bincount(labels, values, num_classes) / np.maximum(count, 1)
        squares = np.bincount(labels, (values - mean[labels]) ** 2, num_classes)
        # Chan's rule for joining two samples, which unlike sums of squares does not cancel
        total = np.maximum(self.count + count, 1)
        difference = mean - self.mean
        self.squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count += count

    def state(self) -> dict[str, np.ndarray]:
        """The arrays themselves by name: filling them with those of others continues these."""
        return {"count": self.count, "moment_mean": self.mean, "moment_squares": self.squares}

    @property
    def variance(self) -> np.ndarray:
        """Unbiased, float64 (C,); NaN for classes with fewer than two images."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(self.count > 1, self.squares / (self.count - 1), np.nan)


def joined_draws(
    first: np.ndarray, first_samples: int, second: np.ndarray, second_samples: int
) -> np.ndarray:
    """Sums over two sets of draws of the same images.

    Args:
        first: `(4, B)`, see `keras_git.metrics.draws.draws_function`.
        first_samples: draws per image in it.
        second: `(4, B)` of further draws.
        second_samples: draws per image in it.

    Returns:
        The sums over all draws, float64 `(4, B)`.
    """
    first, second = first.astype(np.float64), second.astype(np.float64)
    total = first + second
    difference = second[0] / second_samples - first[0] / first_samples
    total[1] += difference**2 * first_samples * second_samples / (first_samples + second_samples)
    return total


class ConditionSums:
    """What is known of one model under one condition.

    Draws come in rounds; in a round, every image of the classes that take part gets the same
    number of draws. The standard error of a class's mean is clustered by image: with one round it
    is the standard deviation of the per-image means over the root of the number of images. After
    more rounds the per-image means over all draws would have to be remembered image by image, so
    their variance is put together from two unbiased parts, the variance between images (from the
    per-image means of each round) and that between the draws of an image, which falls with the
    number of draws.

    Args:
        num_classes: C.
        deterministic: whether the condition draws nothing, so that sampling leaves no error.
    """

    _MEASURES = ("ekld", "consistency", "accuracy")

    def __init__(self, num_classes: int, deterministic: bool = False) -> None:
        self.num_classes, self.deterministic = num_classes, deterministic
        self.num_images = np.zeros(num_classes, np.int64)
        self.num_samples = np.zeros(num_classes, np.int64)
        self._rounds = np.zeros(num_classes, np.int64)
        self._within = {name: np.zeros(num_classes) for name in self._MEASURES}
        # weighted by the draws of a round
        self._mean = {name: np.zeros(num_classes) for name in self._MEASURES}
        self._variance = {name: np.zeros(num_classes) for name in self._MEASURES}
        self._moments: dict[str, ClassMoments] = {}
        self._draws = np.zeros((), np.int64)
        self.start_round()

    def start_round(self) -> None:
        """Begins to collect the next draws of the images."""
        self._moments = {name: ClassMoments(self.num_classes) for name in self._MEASURES}

    def add(self, labels: np.ndarray, sums: np.ndarray, num_samples: int) -> None:
        """Adds a batch of a round.

        Args:
            labels: integers `(B,)`.
            sums: `(4, B)`, see `keras_git.metrics.draws.draws_function`.
            num_samples: draws per image, the same throughout a round.
        """
        self._draws[...] = num_samples
        divergence, squares, consistent, correct = sums.astype(np.float64)
        values = {"ekld": divergence, "consistency": consistent, "accuracy": correct}
        within = {
            "ekld": squares,
            # a sum of 0 and 1: its squared deviations follow from it
            "consistency": consistent * (1 - consistent / num_samples),
            "accuracy": correct * (1 - correct / num_samples),
        }
        for name in self._MEASURES:
            self._moments[name].add(labels, values[name] / num_samples)
            self._within[name] += np.bincount(labels, within[name], self.num_classes)

    def finish_round(self) -> None:
        """Joins the round to those before."""
        count = self._moments["ekld"].count.astype(np.int64)
        measured = count > 0
        self.num_images = np.maximum(self.num_images, count)
        before = self.num_samples.copy()
        self.num_samples = before + self._draws * measured
        self._rounds += measured
        share = np.where(measured, self._draws / np.maximum(self.num_samples, 1), 0.0)
        for name, moments in self._moments.items():
            self._mean[name] += share * (moments.mean - self._mean[name])
            variance = np.where(measured, moments.variance, 0.0)
            self._variance[name] += share * (variance - self._variance[name])

    def state(self) -> dict[str, np.ndarray]:
        """The arrays themselves by name: filling them with those of others continues these."""
        arrays = {
            "num_images": self.num_images,
            "num_samples": self.num_samples,
            "rounds": self._rounds,
            "draws": self._draws,
        }
        for name in self._MEASURES:
            own = {
                "within": self._within[name],
                "mean": self._mean[name],
                "variance": self._variance[name],
                **self._moments[name].state(),
            }
            arrays |= {f"{name}/{key}": array for key, array in own.items()}
        return arrays

    def within_variance(self, name: str = "ekld") -> np.ndarray:
        """Variance between the draws of an image, mean over a class's images, float64 (C,).

        NaN without images, or where one draw per image cannot tell.
        """
        if self.deterministic:
            return np.where(self.num_images > 0, 0.0, np.nan)
        degrees = self.num_images * (self.num_samples - self._rounds)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(degrees > 0, self._within[name] / degrees, np.nan)

    def sampling_error(self, name: str = "ekld") -> np.ndarray:
        """The part of the standard error that more draws would shrink, float64 (C,)."""
        with np.errstate(invalid="ignore", divide="ignore"):
            draws = self.num_images * self.num_samples
            return np.sqrt(self.within_variance(name) / draws)

    def mean(self, name: str) -> np.ndarray:
        """Mean per class of `"ekld"`, `"consistency"` or `"accuracy"`; NaN without images."""
        return np.where(self.num_images > 0, self._mean[name], np.nan)

    def standard_error(self, name: str) -> np.ndarray:
        """Of `mean`, clustered by image; NaN for classes with fewer than two images."""
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = self._variance[name]
            several = self._rounds > 1
            within = np.where(several, self.within_variance(name), 0.0) / self.num_samples
            # Each round's variance holds the sampling of that round; of all draws together, less
            joined = np.maximum(variance - within * (self._rounds - 1), within)
            variance = np.where(several, joined, variance)
            error = np.sqrt(variance / self.num_images)
        return np.where(self.num_images > 1, error, np.nan)

    def measurement(
        self,
        condition: Condition,
        class_counts: np.ndarray,
        resolution: float = EKLD_RESOLUTION["float32"],
    ) -> Measurement:
        """The record of the condition; eKLD below `resolution` is tied in the trend."""
        means = {name: self.mean(name) for name in self._MEASURES}
        members = class_groups(class_counts)
        return Measurement(
            condition=condition,
            ekld=means["ekld"],
            ekld_standard_error=self.standard_error("ekld"),
            ekld_sampling_error=self.sampling_error(),
            consistency=means["consistency"],
            consistency_standard_error=self.standard_error("consistency"),
            accuracy=means["accuracy"],
            accuracy_standard_error=self.standard_error("accuracy"),
            num_samples=self.num_samples.copy(),
            groups={
                group: self._group(means, classes)
                for group, classes in members.items()
                if np.isfinite(means["ekld"][classes]).any()
            },
            trend=spearman_trend(class_counts, means["ekld"], resolution),
        )

    def _group(self, means: Mapping[str, np.ndarray], classes: np.ndarray) -> dict[str, float]:
        found = {name: mean_of_seen(values[classes]) for name, values in means.items()}
        for name, values in means.items():
            seen = classes[np.isfinite(values[classes])]
            errors = self.standard_error(name)[seen]
            found[f"{name}_standard_error"] = pooled_error(errors, self.num_images[seen])
        return found


def pooled_error(errors: np.ndarray, num_images: np.ndarray) -> float:
    """Standard error of the mean over classes, the classes taken as they are.

    Args:
        errors: of each class, `(C,)`; NaN (a class of one image) gets the deviation that images
            show in the other classes.
        num_images: of each class `(C,)`, infinite where unknown.

    Returns:
        The error; NaN if that of no class is known.
    """
    known = np.isfinite(errors)
    if not known.any():
        return float("nan")
    errors = errors.copy()
    if not known.all():
        counts = np.where(np.isfinite(num_images), num_images, 1.0)
        deviation = np.mean(errors[known] ** 2 * counts[known])
        errors[~known] = np.sqrt(deviation / counts[~known])
    return float(np.sqrt(np.sum(errors**2)) / len(errors))


def draws_needed(trial: ConditionSums, precision: float) -> np.ndarray:
    """How many draws per image bring the sampling error of a class's eKLD under a precision.

    A trial tells the variance between draws, whose upper bound counts: shrunk towards the mean
    over the classes, as few draws say little of a variance, then raised to its 90 % limit. Where
    all draws of a class agreed, further ones still need not: its variance is never taken as lower
    than the rule of three allows.

    The draws of the trial must not enter the estimate: a class whose trial happens to miss the
    rare large divergences looks certain and low at once.

    Args:
        trial: with at least two draws per image.
        precision: nats.

    Returns:
        Draws per image, float64 (C,), 2 or more; 0 for classes without images.

    Reference: Stein, "A two-sample test for a linear hypothesis whose power is independent of the
    variance", Annals of Mathematical Statistics 16, 1945.
    """
    import scipy.stats

    seen = trial.num_images > 0
    images = np.maximum(trial.num_images, 1)
    draws = np.maximum(trial.num_samples, 2)
    degrees = images * (draws - 1)
    variance = np.where(seen, np.nan_to_num(trial.within_variance()), 0.0)
    mean = (variance * degrees)[seen].sum() / max(degrees[seen].sum(), 1)
    joint = degrees + _PRIOR_DEGREES
    shrunk = (variance * degrees + mean * _PRIOR_DEGREES) / joint
    bound = shrunk * joint / scipy.stats.chi2.ppf(_BOUND_ERROR, joint)
    bound = np.maximum(bound, _RULE_OF_THREE / (images * draws))
    return np.where(seen, np.maximum(np.ceil(bound / (images * precision**2)), 2), 0)


def wants_more(
    sums: ConditionSums, needed: np.ndarray, precision: float, max_samples: int
) -> np.ndarray:
    """Which classes get a further round of draws, bool (C,); those without images do not.

    Those with fewer draws than were planned, and those whose error came out above the precision
    all the same (which pulls their mean down, by a small part of the precision).

    Args:
        sums: the draws so far, without those of the trial.
        needed: what `draws_needed` says.
        precision: nats.
        max_samples: most draws per image.
    """
    # No variance among n draws is trusted here either
    least = np.sqrt(_RULE_OF_THREE) / np.maximum(sums.num_images * sums.num_samples, 1)
    error = np.where(sums.num_images > 0, np.maximum(sums.sampling_error(), least), 0.0)
    above = error > precision
    return (sums.num_samples < needed.clip(max=max_samples)) | (
        above & (sums.num_samples < max_samples)
    )


def mean_of_seen(values: np.ndarray) -> float:
    """Mean of the values that are not NaN; NaN if there is none."""
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")


def class_groups(class_counts: np.ndarray) -> dict[str, np.ndarray]:
    """Many, medium and few; a class without training images counts as few."""
    return metrics.groups(np.maximum(class_counts, 1))


def group_means(values: np.ndarray, class_counts: np.ndarray) -> Mapping[str, float]:
    """Mean over the classes of each group; groups without values are left out."""
    return {
        group: mean_of_seen(values[classes])
        for group, classes in class_groups(class_counts).items()
        if not np.isnan(values[classes]).all()
    }


def spearman_trend(class_counts: np.ndarray, values: np.ndarray, resolution: float = 0.0) -> Trend:
    """Spearman's rank correlation of a value per class with the size of the class.

    The p-value is two-sided: exact, from all orders, up to eight classes; for more from Student's
    distribution with n - 2 degrees of freedom, which is too small for few classes. The confidence
    interval is Fisher's z with the variance (1 + rho^2 / 2) / (n - 3), an approximation that is
    not made where it does not hold: for up to eight classes, and where the order is exact (its
    width would be 0).

    Args:
        class_counts: `(C,)`.
        values: `(C,)`; NaN where a class has none, which leaves it out.
        resolution: values below it are ties: they differ by rounding alone.

    Returns:
        The trend; all NaN for fewer than three classes, or where sizes or values are all the same.
        The ends of the interval are NaN where it is not defined.

    Reference: Bonett and Wright, "Sample size requirements for estimating Pearson, Kendall and
    Spearman correlations", Psychometrika 65, 2000.
    """
    seen = np.isfinite(values)
    number = int(seen.sum())
    sizes, values = np.asarray(class_counts, float)[seen], np.asarray(values, float)[seen]
    values = np.where(np.abs(values) < resolution, 0.0, values)
    nan = float("nan")
    if number < 3 or np.ptp(sizes) == 0 or np.ptp(values) == 0:
        return Trend(nan, nan, nan, nan, number)
    import scipy.stats

    rho, p_value = scipy.stats.spearmanr(sizes, values)
    if number <= _EXACT_CLASSES:
        # Equal up to rounding counts as as extreme, hence the tolerance of permutation_test
        p_value = scipy.stats.permutation_test(
            (scipy.stats.rankdata(values),),
            functools.partial(_correlations, scipy.stats.rankdata(sizes)),
            permutation_type="pairings",
            n_resamples=math.factorial(number),
            vectorized=True,
        ).pvalue
    rho = float(rho)
    if 1 - abs(rho) < 1e-12:  # but for rounding
        rho = math.copysign(1.0, rho)
    low = high = nan
    if number > _EXACT_CLASSES and abs(rho) < 1:
        width = _NORMAL_QUANTILE * math.sqrt((1 + rho**2 / 2) / (number - 3))
        low, high = (math.tanh(math.atanh(rho) + side * width) for side in (-1, 1))
    return Trend(rho, float(p_value), low, high, number)


@functools.cache
def _calibration_function() -> Callable[..., Any]:
    """Calibration sums of a batch, compiled once for all audits."""

    def sums(labels: Any, outputs: Any, weights: Any) -> Any:
        return metrics.classification.calibration_bins(
            labels, outputs, _CALIBRATION_BINS, sample_weight=weights
        )

    return compiled(sums, [])


def _correlations(ranks: np.ndarray, others: np.ndarray, axis: int = -1) -> np.ndarray:
    """Pearson's correlation of one vector with each of many."""
    centred = ranks - ranks.mean()
    deviations = others - others.mean(axis=axis, keepdims=True)
    norms = np.sqrt((centred**2).sum() * (deviations**2).sum(axis=axis))
    return (centred * deviations).sum(axis=axis) / norms


class AccuracySums:
    """Accuracy and calibration on untransformed images, updated batch by batch.

    Args:
        num_classes: C.
    """

    def __init__(self, num_classes: int) -> None:
        self.num_images = np.zeros(num_classes, np.int64)
        self._correct = np.zeros(num_classes)
        self._bins = np.zeros((3, _CALIBRATION_BINS))

    def add(self, labels: np.ndarray, log_probabilities: Any) -> None:
        """Adds a batch: labels `(B,)`, log-probabilities `(B or more, C)`; the rest pads.

        Batches of one padded size share one compilation.
        """
        num_classes, number = len(self.num_images), len(labels)
        host = ops.convert_to_numpy(log_probabilities)
        correct = host[:number].argmax(axis=-1) == labels
        self.num_images += np.bincount(labels, minlength=num_classes)
        self._correct += np.bincount(labels, correct, num_classes)
        padded, weights = np.zeros(len(host), np.int32), np.zeros(len(host), np.float32)
        padded[:number], weights[:number] = labels, 1.0
        bins = _calibration_function()(padded, log_probabilities, weights)
        self._bins = self._bins + ops.convert_to_numpy(bins).astype(np.float64)

    def state(self) -> dict[str, np.ndarray]:
        """The arrays themselves by name: filling them with those of others continues these."""
        return {"num_images": self.num_images, "correct": self._correct, "bins": self._bins}

    @property
    def per_class(self) -> np.ndarray:
        """Accuracy per class, float64 (C,), NaN without images."""
        with np.errstate(invalid="ignore"):
            return self._correct / self.num_images

    @property
    def accuracy(self) -> float:
        """Over all images, 0..1."""
        return float(self._correct.sum() / self.num_images.sum())

    def group_errors(self, class_counts: np.ndarray) -> dict[str, float]:
        """Standard error of the mean accuracy of each group of classes, binomial per class."""
        accuracy = self.per_class
        with np.errstate(invalid="ignore", divide="ignore"):
            variance = accuracy * (1 - accuracy) / (self.num_images - 1)
        errors = np.where(self.num_images > 1, np.sqrt(variance), np.nan)
        found = {}
        for group, classes in class_groups(class_counts).items():
            seen = classes[self.num_images[classes] > 0]
            if len(seen):
                found[group] = pooled_error(errors[seen], self.num_images[seen])
        return found

    @property
    def calibration_error(self) -> float:
        """Expected calibration error over 15 bins, 0..1."""
        number, confidence, correct = self._bins
        return float(np.abs(correct - confidence).sum() / number.sum())
