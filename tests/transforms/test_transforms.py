from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_git import transforms
from keras_git.backend import compiled
from keras_git.errors import InputError
from keras_git.transforms import nuisances


@pytest.fixture
def images():
    levels = np.random.default_rng(0).integers(0, 256, (6, 12, 12, 3))
    return np.where(levels < 120, 0, levels).astype(np.uint8)


def tiny_generator(size: int = 12, channels: int = 3) -> keras.Model:
    image, style = keras.Input((size, size, channels)), keras.Input((2,))
    offset = keras.layers.Reshape((1, 1, channels))(keras.layers.Dense(channels)(style))
    return keras.Model([image, style], ops.tanh(image + offset))


@keras.saving.register_keras_serializable(package="tests")
def inverted(images, parameters):
    part = ops.reshape(parameters["part"], (-1, 1, 1, 1))
    return part * (255.0 - images) + (1.0 - part) * images


@keras.saving.register_keras_serializable(package="tests")
def sample_parts(number, rng):
    return {"part": rng.random(number)}


def everything() -> list[transforms.Transform]:
    return [
        *(transforms.get(name) for name in transforms.NAMES),
        transforms.Compose([transforms.Rotation(20), transforms.Brightness(10)]),
        transforms.FunctionTransform(inverted, "inverted", sample_parts),
        transforms.GeneratorTransform(tiny_generator()),
    ]


NUMBER = len(transforms.NAMES) + 3


@pytest.mark.parametrize("index", range(NUMBER))
def test_contract(images, index):
    transform = everything()[index]
    moved = transform(images, seed=3)
    assert tuple(moved.shape) == images.shape and ops.dtype(moved) == "float32"
    moved = ops.convert_to_numpy(moved)
    assert moved.min() >= 0 and moved.max() <= 255
    np.testing.assert_array_equal(ops.convert_to_numpy(transform(images, seed=3)), moved)
    if not isinstance(transform, transforms.Identity):
        assert np.any(ops.convert_to_numpy(transform(images, seed=4)) != moved)
        # the image is changed, and not each in the same way
        assert np.any(moved != images)

    parameters = transform.sample(6, np.random.default_rng(3))
    assert all(len(value) == 6 for value in parameters.values())
    assert all(value.dtype in (np.float32, np.int32) for value in parameters.values())
    function = compiled(
        lambda batch, drawn: transform.apply(ops.cast(batch, "float32"), drawn),
        transform.variables,
    )
    in_graph = ops.convert_to_numpy(function(images, parameters))
    np.testing.assert_allclose(in_graph, moved, atol=1.0 + 1e-3)
    assert (np.abs(in_graph - moved) > 1e-2).mean() < 0.01

    # each image is transformed by its own parameters alone
    one = {name: value[2:3] for name, value in parameters.items()}
    alone = ops.convert_to_numpy(transform.apply(ops.cast(images[2:3], "float32"), one))
    np.testing.assert_allclose(alone[0], moved[2], atol=1.0 + 1e-3)


@pytest.mark.parametrize("index", range(NUMBER - 1))
def test_serialization_and_equality(images, index):
    transform = everything()[index]
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(transform))
    assert again == transform and hash(again) == hash(transform)
    assert again.name == transform.name
    assert repr(again) == repr(transform)
    others = [other for position, other in enumerate(everything()) if position != index]
    assert transform not in others


def test_options_make_a_difference():
    assert transforms.get("rotation") == transforms.Rotation()
    assert transforms.get("rotation", max_degrees=10) != transforms.Rotation()
    given = transforms.Shift(1)
    assert transforms.get(given) is given


def test_transforms_are_the_formulas_of_the_nuisances(images):
    rng = np.random.default_rng(7)
    grey = nuisances.sample_grey_level(6, rng)
    expected = nuisances.grey_level(images, grey["background"], grey["foreground"])
    moved = ops.convert_to_numpy(transforms.GreyLevel()(images, seed=7))
    np.testing.assert_array_equal(moved, expected)
    sizes = nuisances.sample_dilation_erosion(6, np.random.default_rng(7))
    expected = nuisances.dilate_erode(images, sizes["dilate"], sizes["erode"])
    moved = ops.convert_to_numpy(transforms.DilationErosion()(images, seed=7))
    np.testing.assert_array_equal(moved, expected)
    values = nuisances.sample_background(6, np.random.default_rng(7), 5, 8)["values"]
    moved = ops.convert_to_numpy(transforms.BackgroundIntensity(5, 8)(images, seed=7))
    np.testing.assert_array_equal(moved, nuisances.set_background(images, values))


def test_flip_brightness_contrast_closed_forms(images):
    flipped = ops.convert_to_numpy(transforms.HorizontalFlip(1.0)(images))
    np.testing.assert_array_equal(flipped, images[:, :, ::-1])
    np.testing.assert_array_equal(
        ops.convert_to_numpy(transforms.HorizontalFlip(0.0)(images)), images
    )
    delta = np.array([-300, 0, 300, 1, 2, 3], np.float32)
    brighter = transforms.Brightness().apply(images, {"delta": delta})
    expected = np.clip(images + delta[:, None, None, None], 0, 255)
    np.testing.assert_allclose(ops.convert_to_numpy(brighter), expected)
    factor = np.array([0, 0.5, 1, 1.5, 2, 1], np.float32)
    contrasted = ops.convert_to_numpy(transforms.Contrast().apply(images, {"factor": factor}))
    np.testing.assert_allclose(contrasted[2], images[2], atol=1e-3)
    np.testing.assert_allclose(contrasted[0], images[0].mean(), atol=1e-3)
    assert np.all((contrasted >= 0) & (contrasted <= 255))


def test_compose_applies_in_order(images):
    both = transforms.Compose([transforms.HorizontalFlip(1.0), transforms.Shift(3)])
    parameters = both.sample(6, np.random.default_rng(0))
    own = {name[2:]: value for name, value in parameters.items() if name.startswith("1_")}
    expected = transforms.Shift(3).apply(ops.cast(images[:, :, ::-1], "float32"), own)
    moved = both.apply(ops.cast(images, "float32"), parameters)
    np.testing.assert_array_equal(ops.convert_to_numpy(moved), ops.convert_to_numpy(expected))


def test_generator_transform_scales_and_draws_normal_styles(images):
    generator = tiny_generator()
    transform = transforms.GeneratorTransform(generator)
    styles = transform.sample(5000, np.random.default_rng(0))["style"]
    assert styles.shape == (5000, 2)
    np.testing.assert_allclose(styles.mean(0), 0, atol=0.05)
    np.testing.assert_allclose(styles.std(0), 1, atol=0.05)
    style = styles[:6]
    moved = transform.apply(images, {"style": style})
    scaled = images.astype(np.float32) / 127.5 - 1
    expected = (ops.convert_to_numpy(generator([scaled, style])) + 1) * 127.5
    np.testing.assert_allclose(ops.convert_to_numpy(moved), expected, atol=1e-3)
    assert [v.path for v in transform.variables] == [v.path for v in generator.variables]
    restored = transforms.GeneratorTransform.from_config(transform.get_config())
    assert restored.style_dim == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transforms.get("shear"), "use one of"),
        (lambda: transforms.get("rotation", degrees=3), "degrees"),
        (lambda: transforms.Rotation(200), "0 to 180"),
        (lambda: transforms.HorizontalFlip(2), "0 to 1"),
        (lambda: transforms.Shift(1.5), "whole number"),
        (lambda: transforms.BackgroundIntensity(9, 3), "low <= high"),
        (lambda: transforms.Brightness(-1), "0 to 255"),
        (lambda: transforms.Contrast(2, 1), "low <= high"),
        (lambda: transforms.Compose([]), "at least one"),
        (lambda: transforms.Compose(["rotation"]), "instances of Transform"),
        (lambda: transforms.Identity()(np.zeros((3, 3))), r"\(N, H, W, C\)"),
        (
            lambda: transforms.GeneratorTransform(
                keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
            ),
            "style_dim",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
