"""Glyphs: deterministic, in independent streams, with the nuisance that was asked for."""

from __future__ import annotations

import time

import numpy as np
import pytest

from keras_git.data import class_sizes, glyphs
from keras_git.errors import InputError
from keras_git.transforms import nuisances

SMALL = {"num_classes": 20, "largest": 12, "smallest": 2}
FEW = {"test_per_class": 6, "recognition_per_class": 3}


def small(**options):
    return glyphs(**{**SMALL, **FEW, **options})


def of_class(dataset, label: int) -> np.ndarray:
    return dataset.images[dataset.labels == label]


def test_shapes_sizes_and_splits():
    splits = small()
    assert splits.train.image_shape == (28, 28, 1)
    expected = class_sizes("exponential", 20, 12, smallest=2)
    np.testing.assert_array_equal(splits.train.class_counts, expected)
    assert set(splits.test.class_counts) == {6} and set(splits.recognition.class_counts) == {3}
    assert set(splits.invariance.class_counts) == {6}
    assert splits.validation is None
    assert small(recognition_per_class=0).recognition is None
    many = glyphs(20, 2, 1, test_per_class=41, recognition_per_class=0)
    assert set(many.invariance.class_counts) == {40}


def test_progress_is_told():
    told = []
    glyphs(
        20,
        largest=4,
        smallest=1,
        test_per_class=2,
        recognition_per_class=3,
        progress=lambda *report: told.append(report),
    )
    totals = {total for _, total in told}
    assert len(totals) == 1 and told[-1] == (totals.pop(),) * 2
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_seed_decides():
    one, same, other = small(seed=3), small(seed=3), small(seed=4)
    for split in ("train", "test", "invariance", "recognition"):
        assert getattr(one, split).content_hash() == getattr(same, split).content_hash()
        assert (getattr(one, split).images != getattr(other, split).images).any()


def test_a_seed_means_the_same_characters_everywhere():
    """Mean grey level per class, stored; room for another rounding of single grey levels."""
    images = small(nuisance="none", seed=0).invariance.images
    expected = [21.03, 43.01, 22.79, 42.12, 42.12, 36.27, 50.27, 38.59, 51.76, 32.92]
    means = images.reshape(20, -1).mean(axis=1)
    np.testing.assert_allclose(means[:10], expected, atol=0.02)


def test_sizes_do_not_change_other_images():
    one = small(seed=1)
    sizes = np.full(20, 3)
    sizes[5] = 30
    other = small(seed=1, sizes=sizes, test_per_class=4)
    for label in range(20):
        a, b = of_class(one.train, label), of_class(other.train, label)
        n = min(len(a), len(b))
        np.testing.assert_array_equal(a[:n], b[:n])
        np.testing.assert_array_equal(of_class(one.test, label)[:4], of_class(other.test, label))
    assert len(of_class(other.train, 5)) == 30


def test_splits_and_classes_are_different_images():
    splits = small(nuisance="none", sizes=[6] * 20, recognition_per_class=6)
    pictures = np.concatenate([splits.train.images, splits.test.images, splits.recognition.images])
    assert len(np.unique(pictures.reshape(len(pictures), -1), axis=0)) == len(pictures)


def test_untransformed_images_are_strokes_on_black():
    images = small().invariance.images
    assert images.min() == 0 and images.max() == 255
    assert (images == 0).mean() > 0.6  # mostly background
    assert ((images > 0) & (images < 255)).mean() > 0.02  # anti-aliased edges
    assert (images.reshape(len(images), -1) >= 200).any(axis=1).all()  # no empty picture


def test_grey_level_nuisance_is_a_line_in_the_original():
    splits = small()
    assert small(nuisance="none").test.content_hash() != splits.test.content_hash()
    backgrounds, foregrounds = [], []
    for original, changed in zip(splits.invariance.images, splits.test.images, strict=True):
        background = changed[original == 0].astype(int)
        foreground = changed[original == 255].astype(int)
        assert len(set(background)) == 1
        backgrounds.append(background[0])
        if foreground.size:
            foregrounds.append(foreground[0])
            assert foreground[0] - background[0] >= 30
            expected = nuisances.grey_level(original[None], background[0], foreground[0])[0]
            np.testing.assert_array_equal(changed, expected)
    assert max(backgrounds) <= 224 and len(set(backgrounds)) > 50
    assert max(foregrounds) <= 255 and np.mean(foregrounds) > np.mean(backgrounds) + 30


def test_the_other_nuisances_are_the_known_functions():
    plain = small(nuisance="none").test.images
    background = small(nuisance="background").test.images
    values = np.array([c[p == 0][0] for p, c in zip(plain, background, strict=True)])
    assert values.max() <= 99 and len(set(values)) > 40
    np.testing.assert_array_equal(background, nuisances.set_background(plain, values))

    morphed = small(nuisance="dilation_erosion").test.images
    candidates = [nuisances.dilate(plain, k) for k in (1, 2, 3, 4)] + [nuisances.erode(plain, 2)]
    fits = np.array([(c == morphed).all(axis=(1, 2, 3)) for c in candidates])
    assert fits.any(axis=0).all()
    shares = fits.mean(axis=1)
    assert (shares > 0.08).all()  # each of the five occurs: probabilities .2 each

    rotated = small(nuisance="rotation").test.images
    # Turning keeps the ink of what stays inside the picture.
    ratio = rotated.sum(axis=(1, 2, 3)) / plain.sum(axis=(1, 2, 3))
    assert 0.8 < np.median(ratio) < 1.1


@pytest.mark.parametrize("num_classes", [20, 49, 100])
def test_characters_differ_from_each_other(num_classes):
    """Nearest class mean recognizes most images: classes are distinct, but not trivially so."""
    splits = glyphs(num_classes, 2, 1, test_per_class=20, recognition_per_class=20, nuisance="none")
    train = splits.recognition.images.reshape(num_classes, 20, -1).astype(np.float64)
    test = splits.test.images.reshape(num_classes * 20, -1).astype(np.float64)
    means = train.mean(axis=1)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    guesses = (test @ means.T).argmax(axis=1)
    accuracy = (guesses == splits.test.labels).mean()
    assert 0.4 < accuracy < 0.95
    per_class = (guesses == splits.test.labels).reshape(num_classes, 20).mean(axis=1)
    assert (per_class > 1 / num_classes).mean() > 0.9


def test_the_default_dataset_is_drawn_quickly():
    start = time.process_time()
    splits = glyphs()
    assert len(splits.train) == 2782 and len(splits.test) == len(splits.recognition) == 4900
    assert time.process_time() - start < 30


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_classes": 19}, "at least 20"),
        ({"nuisance": "blur"}, "grey_level"),
        ({"sizes": [1, 2]}, "20 classes"),
        ({"sizes": [0] * 20}, "empty"),
        ({"smallest": 13}, "smallest"),
        ({"test_per_class": 0}, "test_per_class"),
        ({"seed": -1}, "seed"),
    ],
)
def test_impossible_glyphs(options, words):
    with pytest.raises(InputError, match=words):
        small(**options)
