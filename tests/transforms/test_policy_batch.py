"""An operation of its own for each image: against Pillow, image by image."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops
from PIL import Image, ImageEnhance, ImageOps

from keras_git.transforms import policy_operations as policy
from keras_git.transforms.policy_batch import apply_operations

SIDE, NUMBER = 12, 44
ENHANCEMENTS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "sharpness": ImageEnhance.Sharpness,
    "brightness": ImageEnhance.Brightness,
}


def _images(seed=0):
    rng = np.random.default_rng(seed)
    levels = rng.integers(10, 240, 12)
    return levels[rng.integers(0, 12, (NUMBER, SIDE, SIDE, 3))].astype(np.uint8)


def pillow(image, operation, value):
    """The operation on one uint8 image by Pillow."""
    given = Image.fromarray(image)
    if operation in ENHANCEMENTS:
        return np.asarray(ENHANCEMENTS[operation](given).enhance(1 + value))
    if operation in ("shearX", "shearY", "translateX", "translateY"):
        matrix = {
            "shearX": (1, value, 0, 0, 1, 0),
            "shearY": (1, 0, 0, value, 1, 0),
            "translateX": (1, 0, value * SIDE, 0, 1, 0),
            "translateY": (1, 0, 0, 0, 1, value * SIDE),
        }[operation]
        how = Image.Resampling.BICUBIC if "shear" in operation else Image.Resampling.NEAREST
        return np.asarray(
            given.transform(given.size, Image.Transform.AFFINE, matrix, how, fillcolor=(128,) * 3)
        )
    if operation == "rotate":
        return np.asarray(given.rotate(value, fillcolor=(128,) * 3))
    if operation == "posterize":
        return np.asarray(ImageOps.posterize(given, int(value)))
    if operation == "solarize":
        return np.asarray(ImageOps.solarize(given, value))
    return np.asarray(getattr(ImageOps, operation)(given))


@pytest.mark.slow_on("jax")
def test_each_image_gets_its_own_operations_in_order():
    """More of one function than go together, none of others, two steps, and images left alone."""
    singles = [name for name in policy.OPERATIONS if name != "rescale"]
    plan = [[(name, policy.VALUES[name][5] * (-1) ** i)] for i, name in enumerate(singles)]
    for row in plan:
        if row[0][0] in ("posterize", "solarize"):
            row[0] = (row[0][0], abs(row[0][1]))
    plan += [[("posterize", 4.0), ("invert", 0.0)], [("invert", 0.0), ("posterize", 4.0)]] * 10
    plan += [[("translateX", 0.25), ("equalize", 0.0)]] * 3
    plan += [[] for _ in range(NUMBER - len(plan))]
    order = np.random.default_rng(1).permutation(NUMBER)
    plan = [plan[i] for i in order]
    operation, value = np.full((NUMBER, 2), -1, np.int32), np.zeros((NUMBER, 2), np.float32)
    for n, row in enumerate(plan):
        for step, (name, of) in enumerate(row):
            # one operation alone is in the first step or in the second
            step = n % 2 if len(row) == 1 else step
            operation[n, step], value[n, step] = policy.OPERATIONS.index(name), of
    images = _images()
    given = images.astype(np.float32), operation, value
    changed = apply_operations(*map(ops.convert_to_tensor, given), singles)
    changed = ops.convert_to_numpy(changed)
    for n, row in enumerate(plan):
        expected = images[n]
        for name, of in row:
            expected = pillow(expected, name, of)
        loose = any(name in ("autocontrast", *ENHANCEMENTS) for name, _ in row)
        np.testing.assert_allclose(changed[n], expected, atol=float(loose), err_msg=str(row))


@pytest.mark.slow_on("jax")
def test_nothing_to_do_leaves_images_unrounded():
    images = _images().astype(np.float32) + 0.25
    nothing = np.full((NUMBER, 2), -1, np.int32)
    names = ("invert",)
    changed = apply_operations(images, nothing, np.zeros((NUMBER, 2), np.float32), names)
    np.testing.assert_array_equal(ops.convert_to_numpy(changed), images)
    empty = apply_operations(images, nothing[:, :0], np.zeros((NUMBER, 0), np.float32), names)
    np.testing.assert_array_equal(ops.convert_to_numpy(empty), images)
