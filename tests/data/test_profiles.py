"""Class-size profiles against published counts, closed forms and impossible requests."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_git.data import class_sizes
from keras_git.errors import InputError


def test_published_cifar10_counts():
    sizes = class_sizes("exponential", 10, 5000, imbalance_ratio=100)
    assert sizes.dtype == np.int64
    assert sizes.tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert class_sizes("exponential", 10, 5000, imbalance_ratio=50).sum() == 13996
    assert class_sizes("exponential", 10, 5000, imbalance_ratio=10).sum() == 20431
    assert class_sizes("step", 10, 5000, imbalance_ratio=100).sum() == 25250


def test_published_cifar100_and_zipf_counts():
    sizes = class_sizes("exponential", 100, 500, imbalance_ratio=100)
    assert sizes.sum() == 10847
    assert sizes[:3].tolist() == [500, 477, 455]
    assert sizes[-4:].tolist() == [5, 5, 5, 5]
    zipf = class_sizes("zipf", 49, 4800, alpha=2.0)
    assert zipf[:10].tolist() == [4800, 1200, 533, 300, 192, 133, 97, 75, 59, 48]
    assert zipf.sum() == 7822 and set(zipf[28:].tolist()) == {5}
    assert class_sizes("zipf", 49, 4800, alpha=1.02).sum() == 20771


def test_smallest_is_an_alternative_to_the_ratio():
    sizes = class_sizes("exponential", 49, 250, smallest=3)
    assert sizes[0] == 250 and sizes[-1] == 3 and sizes.sum() == 2782
    zipf = class_sizes("zipf", 49, 4800, alpha=2.0, smallest=1)
    assert zipf[-1] == 1


@given(
    num_classes=st.integers(2, 60),
    largest=st.integers(50, 5000),
    smallest=st.integers(1, 50),
)
def test_exponential_is_monotone_and_ends_exactly(num_classes, largest, smallest):
    sizes = class_sizes("exponential", num_classes, largest, smallest=smallest)
    assert sizes[0] == largest and sizes[-1] == smallest
    assert (np.diff(sizes) <= 0).all()
    # Exact integers: n_c ** (C - 1) is largest ** (C - 1 - c) * smallest ** c, truncated; one more
    # or less allows for the last place of double precision.
    middle, last = num_classes // 2, num_classes - 1
    size = int(sizes[middle])
    power = largest ** (last - middle) * smallest**middle
    assert (size - 1) ** last < power < (size + 2) ** last


def test_step_with_an_odd_number_of_classes_keeps_them_all():
    assert class_sizes("step", 5, 40, imbalance_ratio=10).tolist() == [40, 40, 4, 4, 4]


def test_balanced_and_counts():
    assert class_sizes("balanced", 4, 7).tolist() == [7, 7, 7, 7]
    assert class_sizes("counts", 3, counts=[5, 1, 9]).tolist() == [5, 1, 9]


@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (("linear", 10, 100), {}, "exponential"),
        (("exponential", 1, 100), {"imbalance_ratio": 10}, "num_classes"),
        (("exponential", 10), {"imbalance_ratio": 10}, "largest"),
        (("exponential", 10, 100), {}, "imbalance_ratio"),
        (("exponential", 10, 100), {"imbalance_ratio": 0.5}, "1 or more"),
        (("exponential", 10, 100), {"imbalance_ratio": float("nan")}, "1 or more"),
        (("exponential", 10, 100), {"imbalance_ratio": 10, "smallest": 5}, "either"),
        (("exponential", 10, 100), {"smallest": 101}, "smallest"),
        (("exponential", 10, 100), {"imbalance_ratio": 1000}, "class 7, 8, 9 empty"),
        (("zipf", 10, 100), {}, "alpha"),
        (("zipf", 30, 20), {"alpha": 2.0, "smallest": 0}, "empty"),
        (("counts", 3), {}, "counts"),
        (("counts", 3), {"counts": [1, 2]}, "3 classes"),
        (("counts", 3), {"counts": [1.5, 2.0, 3.0]}, "integers"),
        (("counts", 3), {"counts": [4, 0, 2]}, "class 1 empty"),
    ],
)
def test_impossible_profiles(arguments, options, words):
    with pytest.raises(InputError, match=words) as error:
        class_sizes(*arguments, **options)
    assert "\n" not in str(error.value)
