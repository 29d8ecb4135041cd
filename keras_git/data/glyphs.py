"""Glyphs: a small long-tailed dataset of invented characters that ships as code.

Every class is a character of a few brush strokes; every image draws it anew with other control
points, slant, size, position and pen. On top comes a nuisance with known parameters, so that the
invariance a classifier should learn is known exactly. Nothing is downloaded, numpy alone draws.

Half of the characters are variants of another one that differ from it in a single stroke, and the
two may be of very different class size: that is what makes small classes hard.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from keras_git.data import randomness
from keras_git.data.dataset import ImageDataset, Splits
from keras_git.data.profiles import class_sizes
from keras_git.errors import InputError
from keras_git.transforms import nuisances

SIZE = 28
SMALLEST_NUM_CLASSES = 20
NUISANCES = ("none", "grey_level", "background", "dilation_erosion", "rotation")
INVARIANCE_PER_CLASS = 40

# How much one image of a class differs from another.
_POINT_JITTER = 1.15  # pixels, standard deviation of every control point
_DRIFT_JITTER = 1.0  # pixels, standard deviation of the position of a whole stroke
_ROTATION_JITTER = 0.13  # radians
_SCALE_JITTER = 0.10  # of the logarithm of the size, each axis
_SHEAR_JITTER = 0.14
_SHIFT_JITTER = 1.3  # pixels
_PEN_RADIUS = 1.15  # pixels, mean half width of the pen
_PEN_JITTER = 0.22  # of the logarithm of the half width

_MAX_STROKES = 5
_SEGMENTS = 6
_NORMALS = _MAX_STROKES * 8 + 7
_TRAIN, _TEST, _RECOGNITION = 0, 1, 2
_BATCH = 64


def glyphs(
    num_classes: int = 49,
    largest: int = 250,
    smallest: int = 3,
    *,
    sizes: Sequence[int] | np.ndarray | None = None,
    test_per_class: int = 100,
    recognition_per_class: int = 100,
    nuisance: str = "grey_level",
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Splits:
    """Draw the dataset.

    Class 0 is the largest. The images of a class and split depend on the seed and on nothing else:
    other sizes keep the images that both have.

    Args:
        num_classes: number of characters, at least 20.
        largest: training images of the largest class.
        smallest: training images of the smallest class; sizes in between fall exponentially.
        sizes: training images of every class, instead of `largest` and `smallest`.
        test_per_class: test images of every class.
        recognition_per_class: images of every class in the balanced training set for a classifier
            that judges generated images; 0 leaves it out.
        nuisance: `"grey_level"` (new background and stroke level, the polarity kept),
            `"background"` (pixels of value 0 become 0..99), `"dilation_erosion"`, `"rotation"`
            (any angle) or `"none"`. Every training, test and recognition image gets one draw.
        seed: non-negative; decides the characters and all images.
        progress: called with the number of images drawn so far and that of all.

    Returns:
        Splits with uint8 images (N, 28, 28, 1), black background. `invariance` holds the first
        40 test images of every class before their nuisance.

    Raises:
        InputError: for too few classes, an unknown nuisance or impossible sizes.
    """
    if num_classes < SMALLEST_NUM_CLASSES:
        raise InputError(
            f"num_classes is {num_classes}; glyphs needs at least {SMALLEST_NUM_CLASSES}"
        )
    if nuisance not in NUISANCES:
        raise InputError(f"unknown nuisance {nuisance!r}; use one of {', '.join(NUISANCES)}")
    if test_per_class < 1 or recognition_per_class < 0:
        raise InputError(
            f"test_per_class is {test_per_class}, recognition_per_class {recognition_per_class}; "
            "they must be at least 1 and 0"
        )
    if sizes is None:
        train_sizes = class_sizes("exponential", num_classes, largest, smallest=smallest)
    else:
        train_sizes = class_sizes("counts", num_classes, counts=np.asarray(sizes).tolist())
    characters = _characters(num_classes, seed)
    names = tuple(f"glyph_{c:02d}" for c in range(num_classes))
    untransformed = min(test_per_class, INVARIANCE_PER_CLASS)
    per_class = test_per_class + recognition_per_class + untransformed
    done, total = 0, int(train_sizes.sum()) + num_classes * per_class

    def split(kind: int, counts: np.ndarray, transformed: bool = True) -> ImageDataset:
        nonlocal done
        images = []
        for c, n in enumerate(counts.tolist()):
            what = nuisance if transformed else "none"
            images.append(_images(characters[c], n, seed, kind, c, what))
            done += n
            if progress is not None:
                progress(done, total)
        labels = np.repeat(np.arange(num_classes, dtype=np.int64), counts)
        return ImageDataset(np.concatenate(images), labels, num_classes, names, "glyphs")

    tests = np.full(num_classes, test_per_class)
    recognition = None
    if recognition_per_class:
        recognition = split(_RECOGNITION, np.full(num_classes, recognition_per_class))
    return Splits(
        train=split(_TRAIN, train_sizes),
        test=split(_TEST, tests),
        invariance=split(_TEST, np.full(num_classes, untransformed), transformed=False),
        recognition=recognition,
    )


def _images(
    character: np.ndarray, count: int, seed: int, kind: int, label: int, nuisance: str
) -> np.ndarray:
    """The first `count` images of a class in a split, with their nuisance."""
    # One call per array, so that a longer series begins with the shorter one.
    normals = randomness.generator(seed, randomness.GLYPH_SHAPES, kind, label).standard_normal(
        (count, _NORMALS), dtype=np.float32
    )
    uniforms = randomness.generator(seed, randomness.GLYPH_NUISANCES, kind, label).random(
        (count, 2)
    )
    images = np.empty((count, SIZE, SIZE, 1), dtype=np.uint8)
    for start in range(0, count, _BATCH):
        piece = slice(start, start + _BATCH)
        images[piece, :, :, 0] = _draw(character, np.clip(normals[piece], -2.5, 2.5))
    return _apply_nuisance(images, nuisance, uniforms)


def _apply_nuisance(images: np.ndarray, nuisance: str, uniforms: np.ndarray) -> np.ndarray:
    """Apply a nuisance whose parameters are read off two uniform numbers per image."""
    first, second = uniforms[:, 0], uniforms[:, 1]
    if nuisance == "grey_level":
        background = np.floor(first * 225)
        foreground = background + 30 + np.floor(second * (226 - background))
        return nuisances.grey_level(images, background, foreground)
    if nuisance == "background":
        return nuisances.set_background(images, np.floor(first * 100))
    if nuisance == "dilation_erosion":
        dilating = first < 0.6
        dilations = np.where(dilating, 2 + np.floor(second * 3), 1)
        erosions = np.where(dilating, 1, 1 + np.floor(second * 2))
        return nuisances.dilate_erode(images, dilations, erosions)
    if nuisance == "rotation":
        return nuisances.rotate(images, first * 360.0 - 180.0)
    return images


# Characters: control points (strokes, 3, 2) of quadratic Bezier curves, in pixels from the centre,
# x to the right and y down.


def _characters(num_classes: int, seed: int) -> list[np.ndarray]:
    """Prototypes of all classes, originals and their one-stroke variants in mixed order."""
    rng = randomness.generator(seed, randomness.GLYPH_PROTOTYPES, num_classes)
    found: list[np.ndarray] = []
    pictures: list[np.ndarray] = []
    neutral = np.zeros((1, _NORMALS), dtype=np.float32)
    apart = _ORIGINAL_DISTANCE
    while len(found) < num_classes:
        variant = len(found) >= (num_classes + 1) // 2
        if variant:
            original = len(found) - (num_classes + 1) // 2
            character = _variant(found[original], rng)
            minimum = _VARIANT_DISTANCE
        else:
            character = _original(rng)
            minimum = apart
        picture = _blurred(_draw(character, neutral)[0])
        distance = min((_distance(picture, other) for other in pictures), default=np.inf)
        if distance < minimum:
            apart *= 0.999  # many classes: come to an end with somewhat closer characters
            continue
        found.append(character)
        pictures.append(picture)
    return [found[i] for i in rng.permutation(num_classes)]


_ORIGINAL_DISTANCE = 0.75
_VARIANT_DISTANCE = 0.35


def _blurred(picture: np.ndarray) -> np.ndarray:
    """Average over 5 x 5 pixels, so that characters are compared by where their strokes are."""
    padded = np.pad(picture.astype(np.float64), 2)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return windows.mean(axis=(2, 3))


def _distance(one: np.ndarray, other: np.ndarray) -> float:
    """Difference of two pictures relative to their mean size, 0 for equal ones."""
    scale = np.sqrt(np.sum(one**2) * np.sum(other**2))
    return float(np.sqrt(np.sum((one - other) ** 2) / scale))


def _stroke(rng: np.random.Generator) -> np.ndarray:
    """One stroke: mostly horizontal, vertical or falling left or right, some of them bent."""
    kind = rng.choice(4, p=[0.34, 0.3, 0.2, 0.16])
    length = rng.uniform(9.0, 19.0) if kind < 2 else rng.uniform(8.0, 16.0)
    angle = (0.0, 90.0, 125.0, 50.0)[kind] + rng.normal(0.0, 7.0)
    direction = np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
    room = np.maximum(10.0 - np.abs(direction) * length / 2, 0.5)
    centre = rng.uniform(-room, room)
    start, end = centre - direction * length / 2, centre + direction * length / 2
    normal = np.array([-direction[1], direction[0]])
    bend = rng.normal(0.0, 1.0) if rng.random() < 0.6 else rng.choice([-1, 1]) * rng.uniform(5, 11)
    middle = centre + normal * bend + direction * rng.uniform(-0.2, 0.2) * length
    return np.clip(np.stack([start, middle, end]), -11.5, 11.5)


def _original(rng: np.random.Generator) -> np.ndarray:
    count = rng.choice([2, 3, 4], p=[0.2, 0.45, 0.35])
    return np.stack([_stroke(rng) for _ in range(count)])


def _variant(original: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same character with one stroke added, left out or replaced."""
    change = rng.integers(3)
    strokes = list(original)
    if (change == 0 and len(strokes) < _MAX_STROKES) or len(strokes) < 3:
        return np.stack([*strokes, _stroke(rng)])
    chosen = int(rng.integers(len(strokes)))
    if change == 1:
        del strokes[chosen]
    else:
        strokes[chosen] = _stroke(rng)
    return np.stack(strokes)


def _draw(character: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Draw images of one character.

    Args:
        character: control points (strokes, 3, 2), pixels from the centre.
        normals: float32 (n, _NORMALS), standard normal numbers that say how each image differs;
            zeros draw the character itself.

    Returns:
        uint8 (n, 28, 28), 0 background to 255 stroke, anti-aliased.
    """
    count, strokes = len(normals), len(character)
    own, common = normals[:, : _MAX_STROKES * 8], normals[:, _MAX_STROKES * 8 :]
    own = own.reshape(count, _MAX_STROKES, 8)[:, :strokes]
    points: np.ndarray = character[None].astype(np.float32)
    points = points + _POINT_JITTER * own[..., :6].reshape(count, strokes, 3, 2)
    points = points + _DRIFT_JITTER * own[..., None, 6:]

    turn = _ROTATION_JITTER * common[:, 0]
    width, height = np.exp(_SCALE_JITTER * common[:, 1]), np.exp(_SCALE_JITTER * common[:, 2])
    shear = _SHEAR_JITTER * common[:, 3]
    cosine, sine = np.cos(turn), np.sin(turn)
    x = points[..., 0] * width[:, None, None]
    y = points[..., 1] * height[:, None, None]
    x = x + shear[:, None, None] * y
    turned = np.stack(
        [
            cosine[:, None, None] * x - sine[:, None, None] * y,
            sine[:, None, None] * x + cosine[:, None, None] * y,
        ],
        axis=-1,
    )
    points = turned + _SHIFT_JITTER * common[:, None, None, 4:6]
    radius = _PEN_RADIUS * np.exp(_PEN_JITTER * common[:, 6])

    # Every curve as a chain of straight segments.
    t = np.linspace(0.0, 1.0, _SEGMENTS + 1, dtype=np.float32)
    weights = np.stack([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    chain = np.einsum("tk,nskd->nstd", weights, points, optimize=True)
    start = chain[:, :, :-1].reshape(count, -1, 2)
    along = (chain[:, :, 1:] - chain[:, :, :-1]).reshape(count, -1, 2)

    # Squared distance of every pixel to every segment; both products are matrix products.
    axis = np.arange(SIZE, dtype=np.float32) - (SIZE - 1) / 2
    grid_y, grid_x = np.meshgrid(axis, axis, indexing="ij")
    ones = np.ones(SIZE * SIZE, dtype=np.float32)
    pixels = np.stack([grid_x.ravel(), grid_y.ravel(), ones])
    projection = (
        np.concatenate([along, -np.sum(start * along, axis=-1, keepdims=True)], axis=-1) @ pixels
    )
    offset = (
        np.concatenate([-2.0 * start, np.sum(start**2, axis=-1, keepdims=True)], axis=-1) @ pixels
    )
    offset += pixels[0] ** 2 + pixels[1] ** 2
    length = np.maximum(np.sum(along**2, axis=-1), 1e-6)[..., None]
    place = np.clip(projection / length, 0.0, 1.0)
    squared = np.min(offset + place * (place * length - 2.0 * projection), axis=1)
    distance = np.sqrt(np.maximum(squared, 0.0))
    ink = np.clip(radius[:, None] + 0.5 - distance, 0.0, 1.0)
    return np.rint(255.0 * ink).astype(np.uint8).reshape(count, SIZE, SIZE)
