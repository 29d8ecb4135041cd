"""Policies of image operations: RandAugment and AutoAugment, for each image its own draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git.augmentation import draws
from keras_git.augmentation.image_policy import ImagePolicy
from keras_git.errors import InputError
from keras_git.transforms import policy_operations as operations
from keras_git.transforms.policy_batch import apply_operations

LARGEST_MAGNITUDE = 30
IDENTITY = "identity"
RAND_AUGMENT_OPERATIONS = (
    IDENTITY, "autocontrast", "equalize", "rotate", "solarize", "color", "posterize", "contrast",
    "brightness", "sharpness", "shearX", "shearY", "translateX", "translateY",
)  # fmt: skip
# With a direction that is drawn
SIGNED = (*operations.SIGNED, "rotate")

Part = tuple[str, float, int]
# Sub-policies of (operation, probability, magnitude 0..9).
POLICIES: dict[str, tuple[tuple[Part, Part], ...]] = {
    # AutoAugment, CVPR 2019, appendix: the policy found on reduced CIFAR-10
    "cifar10": (
        (("invert", 0.1, 7), ("contrast", 0.2, 6)),
        (("rotate", 0.7, 2), ("translateX", 0.3, 9)),
        (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
        (("shearY", 0.5, 8), ("translateY", 0.7, 9)),
        (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
        (("shearY", 0.2, 7), ("posterize", 0.3, 7)),
        (("color", 0.4, 3), ("brightness", 0.6, 7)),
        (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
        (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
        (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
        (("color", 0.7, 7), ("translateX", 0.5, 8)),
        (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
        (("translateY", 0.4, 3), ("sharpness", 0.2, 6)),
        (("brightness", 0.9, 6), ("color", 0.2, 8)),
        (("solarize", 0.5, 2), ("invert", 0.0, 3)),
        (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
        (("equalize", 0.2, 8), ("equalize", 0.6, 4)),
        (("color", 0.9, 9), ("equalize", 0.6, 6)),
        (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
        (("brightness", 0.1, 3), ("color", 0.7, 0)),
        (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
        (("translateY", 0.9, 9), ("translateY", 0.7, 9)),
        (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
        (("equalize", 0.8, 8), ("invert", 0.1, 3)),
        (("translateY", 0.7, 9), ("autocontrast", 0.9, 1)),
    ),
}


def rand_augment_value(operation: str, magnitude: float) -> float:
    """What a magnitude of `RandAugment` stands for, in the units of `policy_operations.VALUES`.

    Args:
        operation: one of `RAND_AUGMENT_OPERATIONS`.
        magnitude: 0..30.
    """
    if operation == IDENTITY:
        return 0.0
    strength = magnitude / LARGEST_MAGNITUDE
    least, most = operations.VALUES[operation][[0, -1]]
    value = float(least + strength * (most - least))
    return float(np.floor(value + 0.5)) if operation == "posterize" else value


def _number(name: str) -> int:
    return -1 if name == IDENTITY else operations.OPERATIONS.index(name)


class _OperationPolicy(ImagePolicy):
    """Draws operations in steps, one after the other, and does them.

    Parameters are `"operation"` int32 `(N, S)`, places in `policy_operations.OPERATIONS` or -1 for
    none, and `"value"` float32 `(N, S)`, with its sign.
    """

    _names: tuple[str, ...] = ()

    def _chosen(
        self, names: Sequence[str], values: Sequence[float], choice: Any, sign: Any
    ) -> dict[str, Any]:
        """What the rows `choice` of a list of operations are, given draws of the sign."""
        signed = np.array([name in SIGNED for name in names])
        numbers = np.array([_number(name) for name in names], np.int32)

        def of(table: Any) -> Any:
            return ops.take(ops.convert_to_tensor(table), choice)

        value = of(np.asarray(values, np.float32))
        turned = ops.logical_and(of(signed), sign < 0.5)
        return {"operation": of(numbers), "value": ops.where(turned, -value, value)}

    def transform(self, images: Any, parameters: dict[str, Any]) -> Any:
        return apply_operations(images, parameters["operation"], parameters["value"], self._names)


@keras.saving.register_keras_serializable(package="keras_git")
class RandAugment(_OperationPolicy):
    """RandAugment: operations drawn uniformly, all at one magnitude.

    Each image draws `num_operations` of 14 with replacement: identity, autocontrast, equalize,
    rotate, solarize, color, posterize, contrast, brightness, sharpness, shear x and y, translate x
    and y. What a magnitude M on the scale 0..30 stands for, s = M / 30 (the ranges are
    AutoAugment's, so that 0 changes nothing):

    - rotate: 30 s degrees; shear: 0.3 s, the tangent; translate: 150/331 s of the side;
    - color, contrast, brightness, sharpness: the factor 1 + 0.9 s or 1 - 0.9 s;
    - posterize: 8 - 4 s bits, the nearest whole number (of two, the larger);
    - solarize: levels from 256 (1 - s) on are inverted;
    - identity, autocontrast and equalize have none.

    Directions, also those of the factors, are drawn. What a geometric operation uncovers is grey,
    128. Results are those of 8-bit images; images that only drew identities are not rounded.

    Not `keras.layers.RandAugment`, which draws its operations once for the whole batch, and a
    factor below the given one; it also has no identity.

    Args:
        num_operations: of each image, 0 or more.
        magnitude: 0..30.
        seed, **kwargs: see `ImagePolicy`.

    Raises:
        InputError: a number of operations or a magnitude out of range; images as for `ImagePolicy`.

    Reference: Cubuk et al., *RandAugment: Practical automated data augmentation with a reduced
    search space*, CVPR Workshops 2020, section 3; ranges: Cubuk et al., *AutoAugment: Learning
    Augmentation Policies from Data*, CVPR 2019, table of operations.
    """

    _names = RAND_AUGMENT_OPERATIONS[1:]

    def __init__(
        self,
        num_operations: int = 2,
        magnitude: float = 9,
        seed: int | None = 0,
        **kwargs: Any,
    ) -> None:
        if num_operations < 0 or int(num_operations) != num_operations:
            raise InputError(f"num_operations is {num_operations}; use a whole number, 0 or more")
        if not 0 <= magnitude <= LARGEST_MAGNITUDE:
            raise InputError(f"magnitude is {magnitude}; use a number in 0..{LARGEST_MAGNITUDE}")
        super().__init__(seed=seed, **kwargs)
        self.num_operations, self.magnitude = int(num_operations), magnitude

    def draw(self, shape: Any, seed: Any) -> dict[str, Any]:
        names = RAND_AUGMENT_OPERATIONS
        values = [rand_augment_value(name, self.magnitude) for name in names]
        choice = draws.integers(seed, shape[0], len(names), self.num_operations)
        sign = draws.uniform(seed, shape[0], self.num_operations)
        return self._chosen(names, values, choice, sign)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "num_operations": self.num_operations,
            "magnitude": self.magnitude,
        }


@keras.saving.register_keras_serializable(package="keras_git")
class AutoAugment(_OperationPolicy):
    """AutoAugment: a sub-policy of two operations for each image, drawn from a learned list.

    Each of the two is done with its probability, at its magnitude of 0..9 (what these stand for is
    in `transforms.policy_operations.VALUES`: evenly from nothing to the largest). Directions are
    drawn, also whether a factor is above or below 1.

    Args:
        policy: `"cifar10"`, the 25 sub-policies of that data set.
        seed, **kwargs: see `ImagePolicy`.

    Raises:
        InputError: an unknown policy; images as for `ImagePolicy`.

    Reference: Cubuk et al., *AutoAugment: Learning Augmentation Policies from Data*, CVPR 2019,
    section 3 and the appendix.
    """

    def __init__(self, policy: str = "cifar10", seed: int | None = 0, **kwargs: Any) -> None:
        if policy not in POLICIES:
            raise InputError(f"policy is {policy!r}; use one of {', '.join(POLICIES)}")
        super().__init__(seed=seed, **kwargs)
        self.policy = policy
        # both parts of the first sub-policy, both of the second, and so on
        self._parts = [part for pair in POLICIES[policy] for part in pair]
        used = {name for name, probability, _ in self._parts if probability > 0}
        self._names = tuple(name for name in operations.OPERATIONS if name in used)

    def draw(self, shape: Any, seed: Any) -> dict[str, Any]:
        names, probabilities, magnitudes = zip(*self._parts, strict=True)
        values = [
            operations.operation_value(name, magnitude)
            for name, magnitude in zip(names, magnitudes, strict=True)
        ]
        subpolicy = draws.integers(seed, shape[0], len(names) // 2)
        applied, sign = draws.uniform(seed, shape[0], 2), draws.uniform(seed, shape[0], 2)
        choice = 2 * subpolicy[:, None] + ops.arange(2, dtype="int32")[None]
        drawn = self._chosen(names, values, choice, sign)
        probability = ops.take(ops.convert_to_tensor(np.asarray(probabilities, np.float32)), choice)
        return {**drawn, "operation": ops.where(applied < probability, drawn["operation"], -1)}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "policy": self.policy}
