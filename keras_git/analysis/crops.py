"""Random-resized-crop taken apart: translation and scale alone, coupled and decoupled.

Everything between the image and the output - resizing, translation, crop, flip - is one map of
places, so that each image is interpolated once, by the same bilinear rule in every mode.
Interpolating twice, or smoothing in some modes only, would be a difference between what is
compared.

Reference: Bouchacourt, Ibrahim, Morcos, *Grounding Inductive Biases in Natural Images*, NeurIPS
2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.errors import InputError
from keras_git.transforms import sampling

MODES = ("none", "translation", "scale", "both", "fixed_crop")
SIZE_LAWS = ("area", "linear_zoom", "exponential", "beta", "log_side")
FILLS = ("mean", "edge", "reflect")
ATTEMPTS = 10

# What is resized and cropped before a random step: nothing, resized, or resized and cropped.
_CANVASES = ("image", "resized", "cropped")
_PAPER_ZOOM = (0.28**2, 1.0)

PAPER_MODES: dict[str, dict[str, Any]] = {
    "None": {"mode": "none"},
    "H": {"mode": "none", "flip": True},
    "HC": {"mode": "both", "flip": True},
    "C": {"mode": "both"},
    "CC": {"mode": "scale"},
    "R": {"mode": "fixed_crop"},
    "T": {"mode": "translation", "canvas": "resized"},
    "T2": {"mode": "translation", "canvas": "cropped"},
    "TS": {"mode": "both", "couple": False},
    "TSnoAR": {"mode": "both", "couple": False, "ratio": (1.0, 1.0)},
    "CCTSnoAR": {"mode": "both", "couple": False, "ratio": (1.0, 1.0), "canvas": "cropped"},
    "TSnoARSQRTInv": {
        "mode": "both", "couple": False, "ratio": (1.0, 1.0), "canvas": "cropped",
        "size_law": "linear_zoom", "scale": _PAPER_ZOOM,
    },
    "noCCTSnoARSQRTInv": {
        "mode": "both", "couple": False, "ratio": (1.0, 1.0),
        "size_law": "linear_zoom", "scale": _PAPER_ZOOM,
    },
    "Cexp": {"mode": "both", "size_law": "exponential"},
    "Cbeta": {"mode": "both", "size_law": "beta"},
}  # fmt: skip


def size_fractions(
    uniform: Any,
    law: str = "area",
    scale: tuple[float, float] = (0.08, 1.0),
    parameter: float = 1.0,
    xp: Any = np,
) -> Any:
    """Parts of the image's area that crops take, from uniform draws.

    With scale = (a, b): `"area"`: U(a, b); `"linear_zoom"`: 1 / z^2 with z ~ U(1 / sqrt(b),
    1 / sqrt(a)); `"exponential"`: 1 / clip(1 + e, 1 / b, 1 / a), e exponential of rate
    `parameter`; `"beta"`: a + (b - a) Beta(1, `parameter`); `"log_side"`: the logarithm of the side
    uniform, which is the law of `LearnedCrop`.

    Args:
        uniform: draws from U(0, 1), of any shape.
        law: one of `SIZE_LAWS`.
        scale: smallest and largest part.
        parameter: of the laws that have one.
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        Parts in `scale`, of the shape of `uniform`.
    """
    low, high = scale
    if law == "area":
        return low + (high - low) * uniform
    if law == "linear_zoom":
        zoom = high**-0.5 + (low**-0.5 - high**-0.5) * uniform
        return fraction_of(zoom, law, scale, xp)
    # 1 - U: the uniform draw may be 0 and never 1
    if law == "exponential":
        return fraction_of(-xp.log(1.0 - uniform) / parameter, law, scale, xp)
    if law == "beta":
        return fraction_of(1.0 - (1.0 - uniform) ** (1.0 / parameter), law, scale, xp)
    return xp.exp(math.log(low) + (math.log(high) - math.log(low)) * uniform)


def fraction_of(draw: Any, law: str, scale: tuple[float, float] = (0.08, 1.0), xp: Any = np) -> Any:
    """The part of the area for a draw of the law's own variable; see `size_fractions`.

    Args:
        draw: a zoom (`"linear_zoom"`), an exponential draw, a beta draw; else the part itself.
        law, scale, xp: see `size_fractions`.
    """
    low, high = scale
    if law == "linear_zoom":
        return 1.0 / draw**2
    if law == "exponential":
        return 1.0 / xp.clip(1.0 + draw, 1.0 / high, 1.0 / low)
    if law == "beta":
        return low + (high - low) * draw
    return draw


def crop_sizes(
    fractions: Any,
    log_aspects: Any,
    height: Any,
    width: Any,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    xp: Any = np,
) -> tuple[Any, Any, Any, Any]:
    """Heights and widths of random-resized-crop: the first attempt that fits into the image.

    An attempt with area fraction s and aspect ratio r has w = round(sqrt(s H W r)) and
    h = round(sqrt(s H W / r)), halves to even, and fits if 0 < w <= W and 0 < h <= H. If none
    does: the largest crop with an aspect ratio inside `ratio`, about the centre. Images that are
    not square lose large crops this way.

    Args:
        fractions: area fractions, `(N, attempts)`.
        log_aspects: logarithms of aspect ratios, `(N, attempts)`.
        height, width: of the images, whole numbers or `(N,)`.
        ratio: smallest and largest aspect ratio (width over height).
        xp: array namespace, `numpy` or `keras.ops`.

    Returns:
        `(heights, widths, attempts, found)`, each `(N,)`: whole numbers as floats; attempts, which
        count from 1; whether an attempt fits.
    """
    one = xp.ones_like(fractions[:, :1])
    height, width = (xp.reshape(side * one[:, 0], (-1, 1)) for side in (height, width))
    area, aspects = fractions * height * width, xp.exp(log_aspects)
    widths, heights = xp.round(xp.sqrt(area * aspects)), xp.round(xp.sqrt(area / aspects))
    fits = (widths > 0) & (widths <= width) & (heights > 0) & (heights <= height)
    attempts = fractions.shape[1]
    order = xp.arange(attempts)[None]
    order = xp.where(fits, order, xp.full_like(order, attempts))
    first = xp.min(order, axis=1, keepdims=True)
    found = first < attempts
    chosen = xp.minimum(first, attempts - 1)
    own = width / height
    fallback_w = xp.where(own > ratio[1], xp.round(height * ratio[1]), width)
    fallback_h = xp.where(own < ratio[0], xp.round(width / ratio[0]), height)
    h = xp.where(found, xp.take_along_axis(heights, chosen, axis=1), fallback_h)
    w = xp.where(found, xp.take_along_axis(widths, chosen, axis=1), fallback_w)
    return h[:, 0], w[:, 0], chosen[:, 0] + 1, found[:, 0]


def crop_theta(box: Any, height: Any, width: Any) -> np.ndarray:
    """A crop as affine map of normalized places, corners not aligned.

    Args:
        box: `(N, 4)`, row and column of the upper left corner, height, width.
        height, width: of the images, whole numbers or `(N,)`.

    Returns:
        float64 `(N, 2, 3)`: [[w/W, 0, (2j + w)/W - 1], [0, h/H, (2i + h)/H - 1]].
    """
    i, j, h, w = np.moveaxis(np.asarray(box, dtype=np.float64), -1, 0)
    theta = np.zeros((len(i), 2, 3))
    theta[:, 0, 0], theta[:, 0, 2] = w / width, (2 * j + w) / width - 1
    theta[:, 1, 1], theta[:, 1, 2] = h / height, (2 * i + h) / height - 1
    return theta


def _pair(value: Any, name: str) -> tuple[int, int]:
    sides = (value, value) if isinstance(value, (int, np.integer)) else tuple(value)
    if len(sides) != 2 or any(int(side) != side or side < 1 for side in sides):
        raise InputError(f"{name} is {value!r}; give a number of pixels, or (height, width)")
    return int(sides[0]), int(sides[1])


def _range(value: Sequence[float], name: str, least: float, most: float) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in value)
    except (TypeError, ValueError):
        raise InputError(f"{name} is {value!r}; give two numbers") from None
    if not least < low <= high <= most:
        raise InputError(f"{name} is {low:g}, {high:g}; give {least:g} < low <= high <= {most:g}")
    return low, high


@keras.saving.register_keras_serializable(package="keras_git")
class CropDecomposition(keras.layers.Layer):
    """Random-resized-crop, or one of its parts; see `crop_decomposition`, which makes it.

    In training each image has its own draws. In inference all modes do what a test image gets:
    resized so that the shorter side is `shorter_side`, and the centre cut out.

    Input: images `(N, H, W, C)`, uint8 or float, of any range. Output: `(N, *image_size, C)`, in
    the dtype of the layer, the same range.
    """

    def __init__(
        self,
        image_size: int | Sequence[int],
        *,
        mode: str = "both",
        couple: bool = True,
        scale: Sequence[float] = (0.08, 1.0),
        ratio: Sequence[float] = (3 / 4, 4 / 3),
        size_law: str = "area",
        size_parameter: float = 1.0,
        translate: float = 0.3,
        canvas: str | None = None,
        crop_size: int | Sequence[int] | None = None,
        shorter_side: int | None = None,
        fill: float | str = 0.0,
        flip: bool = False,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for value, allowed, name in ((mode, MODES, "mode"), (size_law, SIZE_LAWS, "size_law")):
            if value not in allowed:
                raise InputError(f"{name} is {value!r}; use one of {', '.join(allowed)}")
        if canvas is None:
            canvas = {"translation": "cropped", "fixed_crop": "resized"}.get(mode, "image")
        if canvas not in _CANVASES:
            raise InputError(f"canvas is {canvas!r}; use one of {', '.join(_CANVASES)}")
        if isinstance(fill, str) and fill not in FILLS:
            raise InputError(f"fill is {fill!r}; use a number or one of {', '.join(FILLS)}")
        if not 0 <= translate <= 1:
            raise InputError(f"translate is {translate}; give a part of the side, 0 to 1")
        if size_parameter <= 0:
            raise InputError(f"size_parameter is {size_parameter}; give a number above 0")
        self.image_size = _pair(image_size, "image_size")
        self.scale = _range(scale, "scale", 0.0, 1.0)
        self.ratio = _range(ratio, "ratio", 0.0, math.inf)
        self.crop_size = None if crop_size is None else _pair(crop_size, "crop_size")
        self.shorter_side = None if shorter_side is None else int(shorter_side)
        if self.shorter_side is not None and self.shorter_side < 1:
            raise InputError(f"shorter_side is {shorter_side}; give a number of pixels")
        self.mode, self.couple, self.size_law = mode, bool(couple), size_law
        self.size_parameter, self.translate = float(size_parameter), float(translate)
        self.canvas, self.fill, self.flip, self.seed = canvas, fill, bool(flip), seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    def _resize_factor(self, height: int, width: int) -> float:
        shorter = self.shorter_side
        if shorter is None:
            least = min(self.image_size)
            # Small images come in the size in which they are used; photographs do not.
            shorter = least if min(height, width) <= least else round(least * 256 / 224)
        return shorter / min(height, width)

    def _canvas_of(self, height: int, width: int, canvas: str) -> tuple[float, ...]:
        """Resize factor, and (top, left, height, width) of the canvas in resized pixels."""
        if canvas == "image":
            return 1.0, 0.0, 0.0, float(height), float(width)
        factor = self._resize_factor(height, width)
        rows, columns = float(round(height * factor)), float(round(width * factor))
        if canvas == "resized":
            return factor, 0.0, 0.0, rows, columns
        h, w = (float(side) for side in self.image_size)
        if rows < h or columns < w:
            raise InputError(
                f"images of {height} x {width} resized to a shorter side of "
                f"{min(rows, columns):g} do not hold {h:g} x {w:g}; raise shorter_side"
            )
        top, left = float(round((rows - h) / 2)), float(round((columns - w) / 2))
        return factor, top, left, h, w

    def draw(self, number: Any, height: int, width: int) -> dict[str, Any]:
        """Draws translations and crops, in pixels of the canvas, and flips.

        Args:
            number: how many images.
            height, width: of the images.

        Returns:
            `"box"` (number, 4): row, column, height, width; `"shift"` (number, 2): columns, rows;
            `"flip"` (number,): 0 or 1. All float32.
        """
        _, _, _, rows, columns = self._canvas_of(height, width, self._training_canvas())

        def uniform(*shape: Any) -> Any:
            return keras.random.uniform((number, *shape), seed=self.seed_generator)

        zeros, found = ops.zeros((number,), "float32"), None
        shift = ops.zeros((number, 2), "float32")
        if self.mode == "translation" or (self.mode == "both" and not self.couple):
            side = ops.convert_to_tensor(np.array([columns, rows], np.float32))
            shift = ops.round((2.0 * uniform(2) - 1.0) * (self.translate * side))
        if self.mode in ("none", "translation"):
            h, w = (zeros + float(side) for side in self._crop_of("none", rows, columns))
        elif self.mode == "fixed_crop":
            h, w = (zeros + float(side) for side in self._crop_of("fixed_crop", rows, columns))
        else:
            log_ratio = [math.log(end) for end in self.ratio]
            fractions = size_fractions(
                uniform(ATTEMPTS), self.size_law, self.scale, self.size_parameter, ops
            )
            aspects = log_ratio[0] + (log_ratio[1] - log_ratio[0]) * uniform(ATTEMPTS)
            h, w, _, found = crop_sizes(fractions, aspects, rows, columns, self.ratio, ops)
        i, j = ops.floor((rows - h) / 2.0), ops.floor((columns - w) / 2.0)
        if self.mode == "fixed_crop" or (self.mode == "both" and self.couple):
            place = uniform(2)
            top = ops.minimum(ops.floor(place[:, 0] * (rows - h + 1.0)), rows - h)
            left = ops.minimum(ops.floor(place[:, 1] * (columns - w + 1.0)), columns - w)
            i = top if found is None else ops.where(found, top, i)
            j = left if found is None else ops.where(found, left, j)
        flip = zeros
        if self.flip:
            flip = ops.cast(uniform() < 0.5, "float32")
        return {"box": ops.stack([i, j, h, w], axis=-1), "shift": shift, "flip": flip}

    def _training_canvas(self) -> str:
        return "cropped" if self.mode == "none" else self.canvas

    def _crop_of(self, mode: str, rows: float, columns: float) -> tuple[float, float]:
        size = self.image_size
        if mode == "fixed_crop" and self.crop_size is not None:
            size = self.crop_size
        if size[0] > rows or size[1] > columns:
            raise InputError(
                f"a crop of {size[0]} x {size[1]} does not fit into {rows:g} x {columns:g}: raise "
                "shorter_side, or choose canvas='resized'"
            )
        return float(size[0]), float(size[1])

    def transform(self, images: Any, parameters: dict[str, Any], canvas: str | None = None) -> Any:
        """Applies drawn parameters.

        Args:
            images: `(N, H, W, C)`.
            parameters: what `draw` gives.
            canvas: default: that of the mode in training.

        Returns:
            `(N, *image_size, C)`.
        """
        # places need more digits than half precision has
        images = ops.cast(images, "float32")
        height, width, channels = (int(side) for side in images.shape[1:])
        factor, top, left, rows, columns = self._canvas_of(
            height, width, canvas or self._training_canvas()
        )
        out_h, out_w = self.image_size
        box = ops.cast(parameters["box"], "float32")
        i, j, h, w = (box[:, k : k + 1] for k in range(4))
        shift = ops.cast(parameters["shift"], "float32")
        flip = ops.reshape(ops.cast(parameters["flip"], "float32"), (-1, 1))
        x = _places(out_w)
        x = x + flip * (out_w - 1.0 - 2.0 * x)
        # inside the crop, whose outermost pixels are repeated at its rim, as resizing does
        x = ops.clip((x + 0.5) * (w / out_w) - 0.5, 0.0, ops.maximum(w - 1.0, 0.0)) + j
        y = (_places(out_h) + 0.5) * (h / out_h) - 0.5
        y = ops.clip(y, 0.0, ops.maximum(h - 1.0, 0.0)) + i
        x, y = x - shift[:, :1] + left, y - shift[:, 1:] + top
        if factor != 1.0:
            x, y = (x + 0.5) / factor - 0.5, (y + 0.5) / factor - 0.5
        number = ops.shape(images)[0]
        x = ops.reshape(ops.broadcast_to(x[:, None, :], (number, out_h, out_w)), (number, -1))
        y = ops.reshape(ops.broadcast_to(y[:, :, None], (number, out_h, out_w)), (number, -1))
        fill: Any = self.fill
        outside = fill if fill in ("edge", "reflect") else "constant"
        if fill == "mean":
            fill = ops.mean(images, axis=(1, 2))
        window = None
        if factor != 1.0 or top or left or (rows, columns) != (height, width):
            window = (
                (top + 0.5) / factor - 0.5,
                (left + 0.5) / factor - 0.5,
                (rows - 1.0) / factor + 1.0,
                (columns - 1.0) / factor + 1.0,
            )
        seen = sampling.bilinear(
            images,
            x,
            y,
            fill=0.0 if outside != "constant" else fill,
            outside=outside,
            window=window,
        )
        seen = ops.reshape(seen, (number, out_h, out_w, channels))
        return ops.cast(seen, self.compute_dtype)

    def call(self, images: Any, training: bool = False) -> Any:
        if len(images.shape) != 4:
            raise InputError(f"images have shape {tuple(images.shape)}; give (N, H, W, C)")
        height, width = int(images.shape[1]), int(images.shape[2])
        number = ops.shape(images)[0]
        if training:
            return self.transform(images, self.draw(number, height, width))
        if (height, width) == self.image_size and self._resize_factor(height, width) == 1.0:
            return ops.cast(images, self.compute_dtype)
        _, _, _, rows, columns = self._canvas_of(height, width, "cropped")
        whole = ops.convert_to_tensor(np.array([[0, 0, rows, columns]], np.float32))
        zeros = ops.zeros((number,), "float32")
        parameters = {
            "box": ops.broadcast_to(whole, (number, 4)),
            "shift": ops.zeros((number, 2), "float32"),
            "flip": zeros,
        }
        return self.transform(images, parameters, "cropped")

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        return (input_shape[0], *self.image_size, input_shape[-1])

    def get_config(self) -> dict[str, Any]:
        names = ("image_size", "mode", "couple", "scale", "ratio", "size_law", "size_parameter",
                 "translate", "canvas", "crop_size", "shorter_side", "fill", "flip",
                 "seed")  # fmt: skip
        values = {name: getattr(self, name) for name in names}
        values = {n: list(v) if isinstance(v, tuple) else v for n, v in values.items()}
        return {**super().get_config(), **values}


def _places(side: int) -> Any:
    return ops.convert_to_tensor(np.arange(side, dtype=np.float32)[None])


def crop_decomposition(
    image_size: int | Sequence[int], mode: str = "both", **options: Any
) -> CropDecomposition:
    """A Keras layer that crops at random as random-resized-crop does, or as one part of it.

    Args:
        image_size: side of the output in pixels, or (height, width).
        mode: `"none"`: the centre, as for test images; `"translation"`: moved by up to `translate`
            of the sides, whole pixels, then the centre; `"scale"`: random-resized-crop's sizes,
            always about the centre; `"both"`: random-resized-crop, or with `couple=False` a
            translation and a centred crop that do not depend on each other; `"fixed_crop"`: a crop
            of one size at a random place. Or one of `PAPER_MODES`, the names of the paper's
            program: `"C"`, `"CC"`, `"T"`, `"T2"`, `"TS"`, `"TSnoAR"`, ...
        couple: of `"both"`. Coupled, the centre of a crop moves by at most (1 - w / W) / 2 of the
            width, so that only small crops move far, and nothing leaves the image.
        scale: smallest and largest part of the area, 0 < a <= b <= 1.
        ratio: smallest and largest aspect ratio; (1, 1) for squares.
        size_law: how sizes are distributed, see `size_fractions`.
        size_parameter: of the laws `"exponential"` (rate) and `"beta"`.
        translate: largest translation, part of the side.
        canvas: what is translated or cropped: `"image"`: the image as it comes; `"resized"`: that
            resized to `shorter_side`; `"cropped"`: also cut to `image_size`. The default is that of
            the paper's plainest arm: cropped for translation, resized for fixed crops, else the
            image.
        crop_size: of `"fixed_crop"`, pixels of the resized image; default: `image_size`.
        shorter_side: pixels to which the shorter side is resized; default: 8/7 of `image_size` (256
            for 224), or `image_size` for images that are no larger.
        fill: what shows outside of the image: a number in the images' range (0: black), `"mean"`
            (the image's mean colour), `"edge"` or `"reflect"`.
        flip: mirror half of the images left-right.
        seed: of the draws; None: any.
        **options: also arguments of `keras.layers.Layer`.

    Returns:
        The layer. It draws in training only; use it as first layer of a model, or before `fit`.
        Nothing is smoothed before it is reduced in size (no antialiasing), in any mode.

    Raises:
        InputError: an unknown mode, law or fill, or a number out of range.

    Reference: Bouchacourt et al., NeurIPS 2021, the experiments on translation and scale; Szegedy
    et al., *Going Deeper with Convolutions*, CVPR 2015 (random-resized-crop).
    """
    if mode in PAPER_MODES:
        options = {**PAPER_MODES[mode], **options}
        mode = options.pop("mode")
    elif mode not in MODES:
        known = ", ".join((*MODES, *PAPER_MODES))
        raise InputError(f"mode is {mode!r}; use one of {known}")
    return CropDecomposition(image_size, mode=mode, **options)
