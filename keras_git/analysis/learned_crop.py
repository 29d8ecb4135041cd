"""A crop whose distribution is learned with the network: how far to move, turn and zoom.

Reference: Benton, Finzi, Izmailov, Wilson, *Learning Invariances in Neural Networks from Training
Data* (Augerino), NeurIPS 2020; Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural
Images*, NeurIPS 2021 (one-sided scale, the cut-off of the regularizer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms import sampling

COMPONENTS = ("tx", "ty", "rotation", "scale", "stretch", "shear")
REGULARISERS = ("per_component", "all_or_nothing", "none", "squared")

# Acting on places (x, y, 1), x to the right and y down, both in [-1, 1].
GENERATORS = {
    "tx": ((0, 0, 1), (0, 0, 0), (0, 0, 0)),
    "ty": ((0, 0, 0), (0, 0, 1), (0, 0, 0)),
    "rotation": ((0, -1, 0), (1, 0, 0), (0, 0, 0)),
    "scale": ((1, 0, 0), (0, 1, 0), (0, 0, 0)),
    "stretch": ((1, 0, 0), (0, -1, 0), (0, 0, 0)),
    "shear": ((0, 1, 0), (1, 0, 0), (0, 0, 0)),
}
_SQUARINGS, _TERMS = 6, 8
_DEFAULT_COMPONENTS = {3: ("tx", "ty", "scale"), 6: COMPONENTS}


def matrix_exponential(matrices: Any) -> Any:
    """exp of small matrices `(..., n, n)`, by its series after scaling, squared back.

    In float32 good to about 1e-5 of the largest entry for norms up to 5.
    """
    scaled = matrices / 2.0**_SQUARINGS
    identity = ops.broadcast_to(
        ops.eye(int(matrices.shape[-1]), dtype=matrices.dtype), ops.shape(matrices)
    )
    # Horner's rule for 1 + x (1 + x/2 (1 + x/3 (...)))
    total = identity
    for term in range(_TERMS, 0, -1):
        total = identity + ops.matmul(scaled, total) / float(term)
    for _ in range(_SQUARINGS):
        total = ops.matmul(total, total)
    return total


def _zoom_and_shift(scale: Any, x: Any, y: Any) -> Any:
    """exp of scale (E11 + E22) + x E13 + y E23, in closed form: `(N, 3, 3)`."""
    small = ops.abs(scale) < 1e-3
    safe = ops.where(small, ops.ones_like(scale), scale)
    # (e^s - 1) / s
    mean = ops.where(small, 1.0 + scale / 2.0 + scale**2 / 6.0, ops.expm1(safe) / safe)
    zero, one, zoom = ops.zeros_like(scale), ops.ones_like(scale), ops.exp(scale)
    rows = [zoom, zero, x * mean, zero, zoom, y * mean, zero, zero, one]
    return ops.reshape(ops.stack(rows, axis=-1), (-1, 3, 3))


@keras.saving.register_keras_serializable(package="keras_git")
class LearnedCrop(keras.layers.Layer):
    """Moves and zooms images at random, within widths that are trained.

    Each component k has a coefficient c_k, uniform in [-w_k / 2, w_k / 2] with the width
    w_k = softplus(raw_k); with `one_sided_scale` that of the scale is uniform in [-w / 2, 0], so
    that the window only gets smaller: the image is zoomed in. The map from places of the output to
    places of the image, both in [-1, 1], is the product of exp(c_k G_k) in the order of the
    components (`sequential`), or exp of their sum. The loss gets `regulariser()` added, which
    rewards wide distributions.

    Input: images `(N, H, W, C)` of any range; with `per_class` also labels `(N,)`:
    `layer(images, labels)`. Output: the same shape. In inference images come out as they are.

    Args:
        widths: raw widths to start from, one per component. The default starts at shifts of up to
            30 % of the side and windows down to 0.28 of the side, log-uniform: the extent of
            random-resized-crop.
        components: names out of `COMPONENTS`; default of three widths: tx, ty, scale; of six: all.
        one_sided_scale: zoom in only.
        per_class: number of classes, each with widths of its own; None: one set for all.
        min_width: smallest widths, one per component.
        sequential: one map after the other, and not their generators added.
        fill: what shows outside of the image, in the range of the images, or `"mean"`.
        reg: weight of the regulariser; 0: none.
        cutoff: width from which on a component is not rewarded any more.
        learning_rate_factor: of the widths, relative to the other weights (by their gradient).
        seed: of the draws; None: any.

    Raises:
        InputError: unknown components, or numbers that do not match.

    Reference: Benton et al., NeurIPS 2020, equations 5 and 6; Bouchacourt et al., NeurIPS 2021.
    """

    def __init__(
        self,
        widths: Sequence[float] = (0.84, 0.84, 2.44),
        *,
        components: Sequence[str] | None = None,
        one_sided_scale: bool = True,
        per_class: int | None = None,
        min_width: Sequence[float] | None = None,
        sequential: bool = True,
        fill: float | str = 0.0,
        reg: float = 0.1,
        cutoff: float = 10.0,
        learning_rate_factor: float = 0.1,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.widths = tuple(float(width) for width in widths)
        if components is None:
            components = _DEFAULT_COMPONENTS.get(len(self.widths), ())
        self.components = tuple(components)
        unknown = [name for name in self.components if name not in COMPONENTS]
        if unknown or len(set(self.components)) < len(self.components):
            raise InputError(
                f"components are {self.components}; name each once, out of {', '.join(COMPONENTS)}"
            )
        if len(self.components) != len(self.widths) or not self.widths:
            raise InputError(
                f"{len(self.widths)} widths for the components {self.components}: give one each"
            )
        if not np.isfinite(self.widths).all():
            raise InputError(f"widths are {self.widths}; give finite numbers")
        self.min_width = None if min_width is None else tuple(float(width) for width in min_width)
        if self.min_width is not None and len(self.min_width) != len(self.widths):
            raise InputError(f"min_width has {len(self.min_width)} numbers, not {len(self.widths)}")
        if per_class is not None and per_class < 1:
            raise InputError(f"per_class is {per_class}; give the number of classes, or None")
        if isinstance(fill, str) and fill != "mean":
            raise InputError(f"fill is {fill!r}; use a number or 'mean'")
        self.per_class = per_class
        self.one_sided_scale, self.sequential = bool(one_sided_scale), bool(sequential)
        self.fill, self.reg, self.cutoff = fill, float(reg), float(cutoff)
        self.learning_rate_factor, self.seed = float(learning_rate_factor), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        start = np.array(self.widths, np.float32)
        if per_class is not None:
            start = np.repeat(start[None], per_class, axis=0)
        self.raw_widths = self.add_weight(
            shape=start.shape,
            initializer="zeros",
            dtype="float32",
            name="raw_widths",
            autocast=False,
        )
        self.raw_widths.assign(start)
        self.built = True

    def current_widths(self) -> Any:
        """w = max(softplus(raw), min_width): tensor `(K,)`, or `(per_class, K)`."""
        raw = ops.convert_to_tensor(self.raw_widths)
        if self.learning_rate_factor != 1.0:
            factor = self.learning_rate_factor
            raw = factor * raw + (1.0 - factor) * ops.stop_gradient(raw)
        return self._widths_of(raw)

    def _widths_of(self, raw: Any) -> Any:
        widths = ops.softplus(raw)
        if self.min_width is not None:
            widths = ops.maximum(
                widths, ops.convert_to_tensor(np.array(self.min_width, np.float32))
            )
        return widths

    def coefficients(self, uniform: Any, labels: Any = None) -> Any:
        """Coefficients of the components for draws from U(0, 1).

        Args:
            uniform: `(N, K)`.
            labels: `(N,)` integers, with `per_class`.

        Returns:
            `(N, K)`.
        """
        widths = self.current_widths()
        if self.per_class is not None:
            if labels is None:
                raise InputError("a LearnedCrop with per_class needs labels: layer(images, labels)")
            labels = ops.cast(ops.reshape(labels, (-1,)), "int32")
            widths = ops.take(widths, labels, axis=0)
        one_sided = np.array(
            [name == "scale" and self.one_sided_scale for name in self.components], np.float32
        )
        # two-sided: (u - 1/2) w; one-sided: (u - 1) w / 2
        offset, factor = 0.5 + 0.5 * one_sided, 1.0 - 0.5 * one_sided
        return (uniform - ops.convert_to_tensor(offset)) * widths * ops.convert_to_tensor(factor)

    def matrices(self, coefficients: Any) -> Any:
        """Maps of places from output to image, in the order in which they are applied.

        Args:
            coefficients: `(N, K)`.

        Returns:
            `(N, K, 3, 3)` of a sequential crop, else `(N, 1, 3, 3)`.
        """
        columns = {name: coefficients[:, k] for k, name in enumerate(self.components)}
        zero = ops.zeros_like(coefficients[:, 0])
        if self.sequential:
            parts = [self._exponential({name: c}, zero) for name, c in columns.items()]
            return ops.stack(parts, axis=1)
        return self._exponential(columns, zero)[:, None]

    def _exponential(self, columns: dict[str, Any], zero: Any) -> Any:
        if set(columns) <= {"tx", "ty", "scale"}:
            return _zoom_and_shift(*(columns.get(name, zero) for name in ("scale", "tx", "ty")))
        total: Any = 0.0
        for name, column in columns.items():
            total = total + column[:, None, None] * ops.convert_to_tensor(
                np.array(GENERATORS[name], np.float32)
            )
        return matrix_exponential(total)

    def transform(self, images: Any, matrices: Any) -> Any:
        """Images through maps of places; several maps are one, and interpolated once.

        Args:
            images: `(N, H, W, C)`.
            matrices: `(N, steps, 3, 3)`; -1 and 1 are the centres of the outermost pixels.

        Returns:
            `(N, H, W, C)`.
        """
        # places need more digits than half precision has
        images = ops.cast(images, "float32")
        height, width = int(images.shape[1]), int(images.shape[2])
        matrix = matrices[:, 0]
        for step in range(1, int(matrices.shape[1])):
            matrix = ops.matmul(matrix, matrices[:, step])
        y, x = np.meshgrid(_grid(height), _grid(width), indexing="ij")
        x, y = (ops.convert_to_tensor(part.reshape(1, -1).astype(np.float32)) for part in (x, y))
        m = [[matrix[:, i, j][:, None] for j in range(3)] for i in range(2)]
        source_x = (m[0][0] * x + m[0][1] * y + m[0][2] + 1.0) * (0.5 * (width - 1))
        source_y = (m[1][0] * x + m[1][1] * y + m[1][2] + 1.0) * (0.5 * (height - 1))
        fill: Any = ops.mean(images, axis=(1, 2)) if self.fill == "mean" else self.fill
        seen = sampling.bilinear(images, source_x, source_y, fill=fill)
        return ops.cast(ops.reshape(seen, ops.shape(images)), self.compute_dtype)

    def augment(self, images: Any, labels: Any = None) -> Any:
        """One random version of each image, whether in training or not."""
        number = ops.shape(images)[0]
        uniform = keras.random.uniform((number, len(self.components)), seed=self.seed_generator)
        return self.transform(images, self.matrices(self.coefficients(uniform, labels)))

    def call(self, images: Any, labels: Any = None, training: bool = False) -> Any:
        if not training:
            return ops.cast(images, self.compute_dtype)
        if self.reg:
            self.add_loss(self.regulariser(self.reg, self.cutoff))
        return self.augment(images, labels)

    def regulariser(self, reg: float = 0.1, cutoff: Any = 10.0, kind: str = "per_component") -> Any:
        """What is added to the loss so that widths grow unless the data speak against it.

        -reg || mask w ||_2, over all components and classes, where the mask is 0 for widths above
        `cutoff`. Its gradient with respect to a raw width is -reg mask w / ||mask w|| sigmoid(raw)
        (times `learning_rate_factor`).

        Args:
            reg: weight.
            cutoff: a number, or one per component.
            kind: `"per_component"`: as above; `"all_or_nothing"`: 0 as soon as any width reaches
                its cut-off; `"none"`: no cut-off; `"squared"`: all or nothing with the square of
                the norm.

        Returns:
            Scalar tensor.

        Raises:
            InputError: an unknown kind.

        Reference: Benton et al., NeurIPS 2020, equation 6.
        """
        return width_regulariser(self.current_widths(), reg, cutoff, kind)

    def expected_parameters(self) -> dict[str, Any]:
        """What the widths mean for an image, as lists per class with `per_class`.

        Returns:
            `"widths"`: by component. `"largest_shift_x"`, `"largest_shift_y"`: parts of the side,
            before zooming. `"smallest_side"`, `"largest_side"`: of the window, parts of the side.
            `"expected_side"`, `"expected_area"`: means of the window's side and area. Only for the
            components that the layer has.
        """
        widths = ops.convert_to_numpy(self.current_widths()).astype(np.float64)
        named = {name: widths[..., k] for k, name in enumerate(self.components)}
        found: dict[str, Any] = {"widths": {n: w.tolist() for n, w in named.items()}}
        for name, axis in (("tx", "x"), ("ty", "y")):
            if name in named:  # places span 2, so that half a width is a quarter of it in sides
                found[f"largest_shift_{axis}"] = (named[name] / 4.0).tolist()
        if "scale" in named:
            low = -named["scale"] / 2.0
            high = np.zeros_like(low) if self.one_sided_scale else -low
            span = np.maximum(high - low, 1e-12)
            found["smallest_side"] = np.exp(low).tolist()
            found["largest_side"] = np.exp(high).tolist()
            found["expected_side"] = ((np.exp(high) - np.exp(low)) / span).tolist()
            found["expected_area"] = ((np.exp(2 * high) - np.exp(2 * low)) / (2 * span)).tolist()
        return found

    def compute_output_shape(self, images_shape: Any, labels_shape: Any = None) -> Any:
        del labels_shape
        return images_shape

    def get_config(self) -> dict[str, Any]:
        names = ("widths", "components", "one_sided_scale", "per_class", "min_width", "sequential",
                 "fill", "reg", "cutoff", "learning_rate_factor", "seed")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return {**super().get_config(), **values}


def _grid(side: int) -> np.ndarray:
    return np.linspace(-1.0, 1.0, side) if side > 1 else np.zeros(1)


def width_regulariser(
    widths: Any, reg: float = 0.1, cutoff: Any = 10.0, kind: str = "per_component"
) -> Any:
    """The regulariser of `LearnedCrop.regulariser`, of any widths.

    Args:
        widths: tensor `(K,)` or `(C, K)`.
        reg, cutoff, kind: see there.
    """
    if kind not in REGULARISERS:
        raise InputError(f"kind is {kind!r}; use one of {', '.join(REGULARISERS)}")
    cutoff = ops.convert_to_tensor(np.asarray(cutoff, np.float32))
    if kind == "per_component":
        widths = widths * ops.cast(widths <= cutoff, widths.dtype)
    squares = ops.sum(widths**2)
    # the root has no slope at 0
    positive = squares > 0
    norm = ops.where(positive, ops.sqrt(ops.where(positive, squares, 1.0)), 0.0)
    if kind in ("all_or_nothing", "squared"):
        within = ops.cast(ops.all(widths < cutoff), widths.dtype)
        return -reg * within * (squares if kind == "squared" else norm)
    return -reg * norm


def averaged_log_probabilities(logits: Any) -> Any:
    """Mean over copies of the logarithms of class probabilities.

    The logarithm of their geometric mean, which is not normalized.

    Args:
        logits: `(copies, N, num_classes)`.

    Returns:
        `(N, num_classes)`.

    Reference: Benton et al., NeurIPS 2020, section 3 (several copies at test time).
    """
    return ops.mean(ops.log_softmax(logits, axis=-1), axis=0)
