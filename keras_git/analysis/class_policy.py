"""Augmentation of each class by the transformations that explain its variation.

A table of factors (`explain_variation`) becomes, per class, a list of operations with
probabilities; a Keras layer applies them by label. The control of such an experiment is the same
layer with the lists dealt out to other classes: operations that are specific to a class mark the
images with their label, at training and not at test.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021 (augmentation per class).
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms import policy_operations as policy
from keras_git.transforms.policy_batch import apply_operations

PROBABILITIES = ("uniform", "fixed", "softmax")
SCORES = ("share", "net_gain", "gain")
DRAWS = ("independent", "one")
_FIXED = 0.1
_NUMERIC = ("share", "gain", "net_gain", "relative_gain")

Rows = list[list[tuple[str, float]]]


def read_factors(factors: Any) -> list[dict[str, Any]]:
    """Rows of a table of factors.

    Args:
        factors: a `FactorTable` or anything with `to_dict()`, what that gives, a list of
            dictionaries, or the path of a `.csv` or `.json` file with one.

    Returns:
        Dictionaries with at least `transform` (a name that `transforms.policy_transform` reads, or
        that of an operation alone, as in `FactorTable.families`),
        `share` and `gain` or `net_gain`, floats (NaN where empty); `class_id` an integer or None.

    Raises:
        InputError: not readable, or a column is missing.
    """
    where = "the table of factors"
    if isinstance(factors, (str, Path)):
        where = str(factors)
        factors = _read(Path(factors))
    if hasattr(factors, "to_dict") and not isinstance(factors, Mapping):
        factors = factors.to_dict()
    if isinstance(factors, Mapping):
        factors = factors.get("rows", factors.get("factors"))
    if not isinstance(factors, Iterable) or isinstance(factors, str):
        raise InputError(f"{where} holds no rows; give what explain_variation found")
    rows = []
    for given in factors:
        if not isinstance(given, Mapping) or not {"transform", "share"} <= set(given):
            raise InputError(f"{where} has a row without 'transform' and 'share': {given!r:.100}")
        if not {"gain", "net_gain"} & set(given):
            raise InputError(f"{where} has a row without 'gain' or 'net_gain': {given!r:.100}")
        row = dict(given)
        try:
            row.update({n: _number(row[n]) for n in _NUMERIC if n in row})
            label = row.get("class_id")
            row["class_id"] = None if label in (None, "", "all") else int(float(label))
            if row["class_id"] == -1:  # `explain_variation(per_class=False)`
                row["class_id"] = None
        except (TypeError, ValueError):
            raise InputError(f"{where} has a row that is no numbers: {given!r:.100}") from None
        row["transform"] = str(row["transform"])
        if row["transform"] in policy.OPERATIONS and math.isfinite(_number(row.get("magnitude"))):
            raise InputError(
                f"{where} has {row['transform']!r} in degrees, pixels or factors: use a table of "
                "TransformSet.paper_search, whose operations a policy has"
            )
        rows.append(row)
    if not rows:
        raise InputError(f"{where} holds no rows; give what explain_variation found")
    return rows


def _number(value: Any) -> float:
    return math.nan if value is None or value == "" else float(value)


def _read(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix.lower() == ".csv":
            return list(csv.DictReader(text.splitlines()))
        return json.loads(text)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path} is no table of factors in JSON or CSV ({error})") from error


def _gain(row: Mapping[str, Any]) -> float:
    """The gain that counts: less what the transformation brings between classes, if known."""
    net = row.get("net_gain", math.nan)
    return row.get("gain", math.nan) if math.isnan(net) else net


def _relative_gain(row: Mapping[str, Any]) -> float:
    found = float(row.get("relative_gain", math.nan))
    return found if math.isfinite(found) else _gain(row)


def _pooled(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over classes of the numbers of each transformation."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["transform"], []).append(row)
    pooled = []
    for name, group in found.items():
        # a class with one image has no numbers: it says nothing
        known = [row for row in group if not math.isnan(row["share"])] or group
        mean = {n: float(np.mean([row[n] for row in known])) for n in _NUMERIC if n in known[0]}
        pooled.append({"transform": name, "class_id": None, **mean})
    return pooled


def _chances(rows: Sequence[Mapping[str, Any]], probability: str) -> list[float]:
    if probability == "uniform":
        return [1.0 / len(rows)] * len(rows)
    if probability == "fixed":
        return [_FIXED] * len(rows)
    if len(rows) == 1:
        return [0.5]
    weights = np.array([_relative_gain(row) * row["share"] for row in rows])
    weights = np.exp(weights - weights.max())
    return [float(weight) for weight in weights / weights.sum()]


def _kept(
    rows: Sequence[dict[str, Any]],
    k: int,
    min_share: float,
    min_gain: float,
    score: str,
    probability: str,
) -> list[tuple[str, float]]:
    """The best rows that pass, best first; ties by name."""

    def value(row: Mapping[str, Any]) -> float:
        found = row[score] if score == "share" else _gain(row)
        return -math.inf if math.isnan(found) else found

    best = sorted(rows, key=lambda row: (-value(row), row["transform"]))[:k]
    kept = [row for row in best if row["share"] > min_share and _gain(row) >= min_gain]
    chances = _chances(kept, probability) if kept else []
    return [(row["transform"], chance) for row, chance in zip(kept, chances, strict=True)]


def select_augmentations(
    factors: Any,
    k: int = 25,
    min_share: float = 0.4,
    min_gain: float = 0.0,
    probability: str = "uniform",
    shuffled_control: bool = True,
    *,
    score: str = "share",
    num_classes: int | None = None,
    classes: Sequence[int] | None = None,
    per: str = "class",
    value_range: tuple[float, float] = (0.0, 255.0),
    draw: str = "independent",
    seed: int = 0,
) -> ClassPolicy:
    """Makes the factors of variation of each class its augmentation.

    Of each class the `k` transformations of the highest score, and of these those with a share
    above `min_share` and a gain (net of that between classes, if the table has it) of at least
    `min_gain`. Transformations that do nothing have the share 0 and are never chosen.

    Args:
        factors: see `read_factors`.
        k: transformations per class, at most.
        min_share: share of pairs that must get more alike, above it.
        min_gain: least gain.
        probability: with which each is applied: `"uniform"`: 1 over their number; `"fixed"`: 0.1;
            `"softmax"`: of relative gain times share (0.5 if there is one only).
        shuffled_control: also make the control, `policy.control`.
        score: what ranks: `"share"`, or `"net_gain"` or `"gain"` (whichever the table has).
        num_classes: of the data; default: those of the table.
        classes: only these classes of the table are used; default: all.
        per: `"class"`: a list for each class of the table, none for others. `"dataset"`: one list
            for all classes, by the means over the classes used.
        value_range: of the images that the layer will get.
        draw: see `ClassPolicy`.
        seed: of the layer and of the control's order.

    Returns:
        The layer, with `control` (None without `shuffled_control`).

    Raises:
        InputError: a table that cannot be used, a transformation that is no policy operation, or
            arguments out of range.
    """
    for value, allowed, name in (
        (probability, PROBABILITIES, "probability"), (score, SCORES, "score"),
        (per, ("class", "dataset"), "per"),
    ):  # fmt: skip
        if value not in allowed:
            raise InputError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
    if k < 1:
        raise InputError(f"k is {k}; use 1 or more")
    rows = read_factors(factors)
    if classes is not None:
        wanted = {int(label) for label in classes}
        rows = [row for row in rows if row["class_id"] is None or row["class_id"] in wanted]
        if not rows:
            raise InputError(f"the table of factors has no row of the classes {sorted(wanted)}")
    labels = sorted({row["class_id"] for row in rows if row["class_id"] is not None})
    number = num_classes or (labels[-1] + 1 if labels else 1)
    if labels and (labels[0] < 0 or labels[-1] >= number):
        raise InputError(f"the table of factors has the class {labels[-1]}; there are {number}")
    settings = (k, min_share, min_gain, score, probability)
    if per == "dataset" or not labels:
        own = [row for row in rows if row["class_id"] is not None]
        lists = [_kept(_pooled(own or rows), *settings)] * number
    else:
        lists = [_kept([r for r in rows if r["class_id"] == c], *settings) for c in range(number)]
    made = ClassPolicy(lists, value_range=value_range, draw=draw, seed=seed)
    if shuffled_control:
        # not a sublayer, which would be saved and called with this one
        object.__setattr__(made, "control", made.shuffled(seed))
    return made


class _Plan:
    """Lists of operations as arrays, and the functions that draw from them and apply."""

    def __init__(self, lists: Sequence[Sequence[tuple[str, float]]]) -> None:
        longest = max(1, *(len(rows) for rows in lists))
        shape = len(lists), longest, 2
        # operation -1: none; sign 0: drawn
        self.operation = np.full(shape, -1, np.int32)
        self.low, self.high = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        self.sign = np.ones(shape, np.float32)
        self.probability = np.zeros(shape[:2], np.float32)
        for c, rows in enumerate(lists):
            for r, (name, probability) in enumerate(rows):
                self.probability[c, r] = probability
                for p, (operation, low, high, sign) in enumerate(policy.drawn_parts(name)):
                    self.operation[c, r, p] = policy.OPERATIONS.index(operation)
                    self.low[c, r, p], self.high[c, r, p], self.sign[c, r, p] = low, high, sign
        used = sorted({int(o) for o in np.unique(self.operation) if o >= 0})
        self.used = [policy.OPERATIONS[o] for o in used]
        self.values = np.stack([policy.VALUES[name] for name in policy.OPERATIONS])

    def parts(self, labels: Any, row: Any, magnitude: Any, sign: Any) -> tuple[Any, Any]:
        """Operations and values of chosen rows.

        Args:
            labels, row: int `(N,)`.
            magnitude, sign: `(N, 2)` draws from U(0, 1).

        Returns:
            int32 operations and float32 signed values, `(N, 2)`.
        """
        place = labels * self.operation.shape[1] + row

        def of(table: np.ndarray) -> Any:
            return ops.take(ops.convert_to_tensor(table.reshape(-1, 2)), place, axis=0)

        operation, low, high = of(self.operation), of(self.low), of(self.high)
        span = ops.cast(high - low + 1, "float32")
        index = low + ops.cast(ops.minimum(ops.floor(magnitude * span), span - 1.0), "int32")
        given = of(self.sign)
        drawn = ops.where(sign < 0.5, -1.0, 1.0)
        flat = ops.convert_to_tensor(self.values.astype(np.float32).reshape(-1))
        number = ops.maximum(operation, 0) * policy.MAGNITUDES + index
        value = ops.take(flat, number, axis=0)
        return operation, value * ops.where(given == 0, drawn, given)

    def apply(self, images: Any, operation: Any, value: Any) -> Any:
        """What `parts` chose, see `apply_operations`."""
        return apply_operations(images, operation, value, self.used)


def _checked(lists: Any) -> Rows:
    try:
        rows = [[(str(name), float(chance)) for name, chance in entry] for entry in lists]
    except (TypeError, ValueError):
        raise InputError(
            "give one list per class, of pairs of a name and a probability such as "
            "('rotate with magnitude 9', 0.1)"
        ) from None
    if not rows:
        raise InputError("give one list of operations per class; there is no class")
    for entry in rows:
        for name, chance in entry:
            policy.drawn_parts(name)
            if not 0.0 <= chance <= 1.0:
                raise InputError(f"{name!r} has the probability {chance:g}; use 0 to 1")
    return rows


@keras.saving.register_keras_serializable(package="keras_git")
class ClassPolicy(keras.layers.Layer):
    """Random operations on images, from a list of each class; the layer takes images and labels.

    `layer(images, labels, training=True)`: images `(N, H, W, C)`, uint8 or float in `value_range`,
    and integer labels `(N,)`; the same shape comes out, float. Images of a label without a list
    stay as they are. In inference nothing is done, and labels may be left out. The magnitude of an
    operation is drawn from 0 up to that of its name, and its sign at random unless the name has
    one.

    Args:
        lists: for each class pairs (name, probability); names as `transforms.policy_transform`
            reads them, or of an operation alone for any magnitude and direction. An empty list
            leaves the class as it is.
        value_range: of the images; operations work on 256 levels of it.
        draw: `"independent"`: each operation is applied with its probability, in the order of the
            list; `"one"`: exactly one of the list, by their probabilities divided by their sum.
        seed: of the draws; None: any.

    Raises:
        InputError: an unknown name, a probability outside 0..1, or labels that are missing.

    Attributes:
        control: the layer of `shuffled`, where `select_augmentations` made it; not saved.

    Reference: Bouchacourt et al., NeurIPS 2021.
    """

    control: ClassPolicy | None = None

    def __init__(
        self,
        lists: Any,
        *,
        value_range: Sequence[float] = (0.0, 255.0),
        draw: str = "independent",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.lists = tuple(tuple(entry) for entry in _checked(lists))
        if draw not in DRAWS:
            raise InputError(f"draw is {draw!r}; use one of {', '.join(DRAWS)}")
        self.value_range = tuple(float(end) for end in value_range)
        if len(self.value_range) != 2 or self.value_range[0] >= self.value_range[1]:
            raise InputError(f"value_range is {value_range!r}; give (low, high) with low < high")
        self.draw, self.seed = draw, seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        # the list after the last is that of all other labels, and empty
        self._plan = _Plan([*self.lists, ()])
        self.built = True

    @property
    def num_classes(self) -> int:
        """Classes that there are lists for."""
        return len(self.lists)

    def operations(self, label: int) -> list[tuple[str, float]]:
        """Names and probabilities of a class."""
        return list(self.lists[label])

    def shuffled(self, seed: int = 0) -> ClassPolicy:
        """The control: the same lists, dealt out so that no class keeps its own.

        With one class, or one list for all classes, it does the same as this layer.
        """
        number = self.num_classes
        order = np.random.default_rng(seed).permutation(number)
        # along a random circle, so that none stays where it is
        target = np.empty(number, np.int64)
        target[order] = np.roll(order, 1)
        config = self.get_config()
        config["lists"] = [self.lists[label] for label in target]
        config["name"] = f"{self.name}_control"
        return ClassPolicy(**config)

    def call(self, images: Any, labels: Any = None, training: bool = False) -> Any:
        if not training:
            return ops.cast(images, self.compute_dtype)
        if labels is None:
            raise InputError("a ClassPolicy needs labels in training: layer(images, labels)")
        if not self._plan.used:
            return ops.cast(images, self.compute_dtype)
        low, high = self.value_range
        own = ops.cast(images, "float32")
        if (low, high) != (0.0, 255.0):
            own = (own - low) * (255.0 / (high - low))
        if len(labels.shape) > 1 and labels.shape[-1] != 1:
            raise InputError(f"labels have shape {tuple(labels.shape)}; give integers (N,)")
        labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
        beyond = ops.logical_or(labels < 0, labels >= self.num_classes)
        labels = ops.where(beyond, self.num_classes, labels)
        own = self._one(own, labels) if self.draw == "one" else self._independent(own, labels)
        if (low, high) != (0.0, 255.0):
            own = own * ((high - low) / 255.0) + low
        return ops.cast(own, self.compute_dtype)

    def _uniform(self, *shape: Any) -> Any:
        return keras.random.uniform(shape, seed=self.seed_generator)

    def _one(self, images: Any, labels: Any) -> Any:
        number = ops.shape(images)[0]
        probability = self._plan.probability
        total = probability.sum(axis=1, keepdims=True)
        ends = np.cumsum(probability / np.where(total > 0, total, 1.0), axis=1)
        row = chosen_row(ends.astype(np.float32), labels, self._uniform(number))
        operation, value = self._plan.parts(
            labels, row, self._uniform(number, 2), self._uniform(number, 2)
        )
        return self._plan.apply(images, operation, value)

    def _independent(self, images: Any, labels: Any) -> Any:
        """Applies the first chosen operation of each image, then the second, and so on.

        Images have few of their list, so that those of the first steps are many and go together.
        """
        number, longest = ops.shape(images)[0], self._plan.operation.shape[1]
        probability = ops.take(ops.convert_to_tensor(self._plan.probability), labels, axis=0)
        applied = self._uniform(number, longest) < probability
        rows = ops.broadcast_to(ops.arange(longest, dtype="int32")[None], (number, longest))
        flat_labels = ops.reshape(ops.repeat(labels[:, None], longest, axis=1), (-1,))
        operation, value = self._plan.parts(
            flat_labels,
            ops.reshape(rows, (-1,)),
            self._uniform(number * longest, 2),
            self._uniform(number * longest, 2),
        )
        steps = 2 * longest
        operation = ops.reshape(operation, (number, steps))
        value = ops.reshape(value, (number, steps))
        used = ops.logical_and(ops.repeat(applied, 2, axis=1), operation >= 0)
        place = ops.broadcast_to(ops.arange(steps, dtype="int32")[None], (number, steps))
        order = ops.argsort(ops.where(used, place, place + steps), axis=1)
        operation = ops.take_along_axis(ops.where(used, operation, -1), order, axis=1)
        value = ops.take_along_axis(value, order, axis=1)
        return self._plan.apply(images, operation, value)

    def compute_output_shape(self, images_shape: Any, labels_shape: Any = None) -> Any:
        del labels_shape
        return images_shape

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "lists": [[list(pair) for pair in entry] for entry in self.lists],
            "value_range": list(self.value_range),
            "draw": self.draw,
            "seed": self.seed,
        }


def chosen_row(ends: np.ndarray, labels: Any, uniform: Any) -> Any:
    """Rows by their cumulative probabilities `(C, R)`, for labels and draws `(N,)`."""
    own = ops.take(ops.convert_to_tensor(ends), labels, axis=0)
    row = ops.sum(ops.cast(uniform[:, None] >= own, "int32"), axis=1)
    return ops.minimum(row, ends.shape[1] - 1)


@keras.saving.register_keras_serializable(package="keras_git")
class StyledPolicy(keras.layers.Layer):
    """One operation of a list, which one and how strongly being decided by a style.

    `layer([images, styles])`: images `(N, H, W, C)` in [-1, 1], styles `(N, 5)` drawn from N(0, I).

    Args:
        operations: pairs (name, weight).
    """

    style_dim = 5

    def __init__(self, operations: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        (rows,) = _checked([operations])
        if not rows or sum(weight for _, weight in rows) <= 0:
            raise InputError("the generator of factors has no operation to choose from")
        self.operations = tuple(rows)
        self._plan = _Plan([rows])
        self.built = True

    def call(self, inputs: Any) -> Any:
        images, styles = inputs
        # the distribution function of N(0, 1) makes uniform draws of a style
        uniform = 0.5 * (1.0 + ops.erf(ops.cast(styles, "float32") / math.sqrt(2.0)))
        weights = self._plan.probability
        ends = np.cumsum(weights / weights.sum(), axis=1).astype(np.float32)
        labels = ops.zeros_like(ops.cast(uniform[:, 0], "int32"))
        row = chosen_row(ends, labels, uniform[:, 0])
        operation, value = self._plan.parts(labels, row, uniform[:, 1:3], uniform[:, 3:5])
        own = (ops.cast(images, "float32") + 1.0) * 127.5
        return self._plan.apply(own, operation, value) / 127.5 - 1.0

    def compute_output_shape(self, input_shape: Any) -> Any:
        return input_shape[0]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "operations": [list(pair) for pair in self.operations]}


def factor_generator(
    operations: Sequence[tuple[str, float]], image_shape: Sequence[int]
) -> keras.Model:
    """Factors of variation in the place of a learned generator.

    A style from N(0, I) chooses one of the operations, its magnitudes and its signs. So it takes
    the place of a generator trained by `MUNIT` in `GITClassifier`, `generator_bank` and
    `GeneratorTransform`: the images that are replaced, and how often, are the same.

    Args:
        operations: pairs (name, weight), as `ClassPolicy.operations` gives them.
        image_shape: (height, width, channels).

    Returns:
        Keras model with the inputs [image in [-1, 1], style (N, 5)], and an image in [-1, 1] as
        output. Without weights. Its file opens where `keras_git` is imported.

    Raises:
        InputError: no operation, or an unknown one.
    """
    image = keras.Input(tuple(int(side) for side in image_shape), name="image")
    style = keras.Input((StyledPolicy.style_dim,), name="style")
    layer = StyledPolicy(operations, name="policy")
    return keras.Model([image, style], layer([image, style]), name="factor_generator")
