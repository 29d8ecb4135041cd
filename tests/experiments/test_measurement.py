"""Choice of images, the two checks of a generator, and what they say, on planted networks."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import keras_git as kg
from experiments.generator_training import draw_styles, load_generator, measure_styles
from experiments.measurement import first_per_class, generator_quality, make_transforms
from keras_git.errors import InputError
from tests.training.conftest import constant_generator

SHAPE = (8, 8, 1)


@keras.saving.register_keras_serializable(package="keras_git_tests")
class StyleShift(keras.layers.Layer):
    """Adds a quarter of the first style dimension to the image."""

    def call(self, image: object, style: object) -> object:
        return image + keras.ops.reshape(style[:, :1], (-1, 1, 1, 1)) / 4.0


def shifting_generator(shape: tuple[int, ...] = SHAPE) -> keras.Model:
    image, style = keras.Input(shape), keras.Input((3,))
    return keras.Model([image, style], StyleShift()(image, style))


def test_the_first_images_of_each_class() -> None:
    labels = np.array([2, 0, 2, 1, 2, 0, 0])
    np.testing.assert_array_equal(first_per_class(labels, 2), [1, 5, 3, 0, 2])


def test_transforms_by_name_and_without_a_generator() -> None:
    names = ("rotation", "generator")
    assert list(make_transforms(names, None)) == ["rotation"]
    made = make_transforms(names, constant_generator())
    assert list(made) == list(names)
    assert made["rotation"] == kg.transforms.Rotation()


def test_the_distance_of_two_styles() -> None:
    """E|s - t| / 4 of two normal numbers, in half ranges: 2 / sqrt(pi) / 8 = 0.141."""
    images = np.zeros((2000, *SHAPE), "uint8")
    distance, generated = measure_styles(shifting_generator(), images, 0)
    assert distance == pytest.approx(2 / np.sqrt(np.pi) / 8, rel=0.05)
    assert generated.shape == images.shape
    assert measure_styles(shifting_generator(), images[:4], 0)[0] != distance
    assert measure_styles(constant_generator(), np.zeros((4, 16, 16, 1), "uint8"), 0)[0] == 0.0


def test_the_verdicts_on_a_generator() -> None:
    good = generator_quality(0.2, 0.95, 0.97, (0.05, 0.9))
    assert good["changes_with_style"] and good["keeps_content"]
    bad = generator_quality(0.01, 0.5, 0.97, (0.05, 0.9))
    assert not bad["changes_with_style"] and bad["keeps_content"] is False
    assert generator_quality(0.2, None, None, (0.05, 0.9))["keeps_content"] is None
    with pytest.raises(InputError, match="NaN"):
        generator_quality(float("nan"), 0.9, 0.9, (0.05, 0.9))


def test_a_generator_file_opens_and_draws(tmp_path) -> None:
    path = tmp_path / "generator.keras"
    shifting_generator().save(path)
    generator = load_generator(str(path), SHAPE)
    contents = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), "uint8")
    draw_styles(generator, contents, tmp_path / "grid.png", 0)
    assert (tmp_path / "grid.png").stat().st_size > 1000
    with pytest.raises(InputError, match="no such file"):
        load_generator(str(tmp_path / "nowhere.keras"), SHAPE)


def test_what_a_generator_must_be() -> None:
    kg.training.check_generator(shifting_generator(), SHAPE)
    with pytest.raises(InputError, match=r"\(16, 16, 1\)"):
        kg.training.check_generator(shifting_generator(), (16, 16, 1))
    with pytest.raises(InputError, match="must take"):
        kg.training.check_generator(keras.Sequential([keras.Input(SHAPE)]), SHAPE)
    image, style = keras.Input(SHAPE), keras.Input((3,))
    mixed = StyleShift()(image, style)
    for outputs in (keras.layers.Flatten()(mixed), [mixed, mixed]):
        with pytest.raises(InputError, match="must return one image"):
            kg.training.check_generator(keras.Model([image, style], outputs), SHAPE)
