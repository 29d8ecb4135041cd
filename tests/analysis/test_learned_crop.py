"""The learned crop: where it starts, what its loss does to it, and that it learns."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from scipy.linalg import expm

import keras_git as kg
from keras_git.analysis import LearnedCrop
from keras_git.analysis.learned_crop import COMPONENTS, GENERATORS, matrix_exponential
from keras_git.errors import InputError
from tests.reference.gradients import gradients_of


def _images(number=4, side=12, seed=0):
    return np.random.default_rng(seed).uniform(0, 1, (number, side, side, 3)).astype("float32")


def test_start_is_thirty_percent_and_a_side_of_0_28():
    found = LearnedCrop().expected_parameters()
    assert found["largest_shift_x"] == pytest.approx(0.2997, abs=1e-4)
    assert found["largest_shift_y"] == pytest.approx(0.2997, abs=1e-4)
    assert found["smallest_side"] == pytest.approx(0.2831, abs=1e-4)
    assert found["largest_side"] == 1.0
    layer = LearnedCrop(seed=0)
    uniform = np.random.default_rng(0).random((4000, 3)).astype("float32")
    drawn = ops.convert_to_numpy(layer.coefficients(ops.convert_to_tensor(uniform)))
    assert np.abs(drawn[:, 0]).max() == pytest.approx(0.599, abs=2e-3)
    side = np.exp(drawn[:, 2])
    assert side.min() == pytest.approx(0.2831, abs=2e-3) and side.max() <= 1
    assert side.mean() == pytest.approx(found["expected_side"], abs=0.02)
    assert (side**2).mean() == pytest.approx(found["expected_area"], abs=0.02)


@given(st.lists(st.floats(-2, 2), min_size=6, max_size=6))
def test_matrix_exponential_is_that_of_scipy(values):
    matrix = sum(
        c * np.array(GENERATORS[n], float) for c, n in zip(values, COMPONENTS, strict=True)
    )
    ours = ops.convert_to_numpy(matrix_exponential(ops.convert_to_tensor(matrix[None], "float32")))
    exact = expm(matrix)
    np.testing.assert_allclose(ours[0], exact, atol=2e-5 * max(1.0, np.abs(exact).max()))


@given(st.lists(st.floats(-2, 2), min_size=3, max_size=3))
def test_closed_form_of_shift_and_zoom(values):
    layer = LearnedCrop(sequential=False)
    names = ("tx", "ty", "scale")
    matrix = sum(c * np.array(GENERATORS[n], float) for c, n in zip(values, names, strict=True))
    ours = layer.matrices(ops.convert_to_tensor(np.array([values], np.float32)))
    np.testing.assert_allclose(ops.convert_to_numpy(ours)[0, 0], expm(matrix), rtol=1e-4, atol=1e-5)


@pytest.mark.slow_on("jax")
def test_no_width_is_no_change_and_a_whole_shift_a_slice():
    images = _images()
    still = LearnedCrop((-40.0, -40.0, -40.0), reg=0.0)
    made = ops.convert_to_numpy(still(images, training=True))
    np.testing.assert_allclose(made, images, atol=1e-5)
    step = 2.0 / 11  # one pixel of twelve, in places from -1 to 1
    layer = LearnedCrop()
    matrices = layer.matrices(ops.convert_to_tensor(np.array([[step, 0, 0]] * 4, np.float32)))
    moved = ops.convert_to_numpy(layer.transform(images, matrices))
    np.testing.assert_allclose(moved[:, :, :-1], images[:, :, 1:], atol=1e-4)
    np.testing.assert_allclose(moved[:, :, -1], 0.0, atol=1e-4)


def test_one_map_is_as_good_as_several_up_to_interpolation():
    ramp = np.linspace(0, 1, 40)
    smooth = np.stack([np.add.outer(ramp, 2 * ramp)] * 3, axis=-1)[None].astype("float32")
    layer = LearnedCrop()
    maps = layer.matrices(ops.convert_to_tensor(np.array([[0.1, -0.2, -0.4]], np.float32)))
    at_once = ops.convert_to_numpy(layer.transform(smooth, maps))
    stepwise = smooth
    for step in range(3):
        stepwise = layer.transform(stepwise, maps[:, step : step + 1])
    inner = slice(8, 32)
    np.testing.assert_allclose(
        at_once[:, inner, inner], ops.convert_to_numpy(stepwise)[:, inner, inner], atol=1e-3
    )


@pytest.mark.parametrize("raw", [(0.84, 0.84, 2.44), (-1.0, 0.5, 12.0)])
def test_the_slope_of_the_regulariser_has_its_closed_form(raw):
    layer = LearnedCrop(raw, learning_rate_factor=1.0)
    slope = gradients_of(lambda: layer.regulariser(0.1, 10.0), layer)
    raw = np.array(raw)
    width = np.log1p(np.exp(raw))
    mask = width <= 10
    expected = -0.1 * mask * width / np.linalg.norm(mask * width) / (1 + np.exp(-raw))
    np.testing.assert_allclose(slope, expected, atol=1e-6)
    slower = LearnedCrop(tuple(raw), learning_rate_factor=0.1)
    np.testing.assert_allclose(
        gradients_of(lambda: slower.regulariser(0.1, 10.0), slower), 0.1 * expected, atol=1e-7
    )
    wide = LearnedCrop((20.0, 20.0, 20.0))
    np.testing.assert_array_equal(gradients_of(lambda: wide.regulariser(), wide), 0.0)


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("number", [1, 2, 7])
def test_widths_of_a_class_are_found_by_label(number):
    layer = LearnedCrop((0.0, 0.0, 0.0), per_class=3)
    raw = np.array([[-40, -40, -40], [1, -40, -40], [-40, -40, 2]], np.float32)
    layer.raw_widths.assign(raw)
    labels = np.arange(number) % 3
    uniform = ops.ones((number, 3))
    found = ops.convert_to_numpy(layer.coefficients(uniform, labels))
    np.testing.assert_allclose(found[:, 0], np.where(labels == 1, np.log1p(np.e) / 2, 0), atol=1e-5)
    images = _images(number)
    made = ops.convert_to_numpy(layer(images, labels, training=True))
    np.testing.assert_allclose(made[labels == 0], images[labels == 0], atol=1e-5)
    assert len(layer.expected_parameters()["smallest_side"]) == 3
    with pytest.raises(InputError, match="needs labels"):
        layer(images, training=True)


def _trained(reg, informative, epochs=12):
    """Widths after training; the class shows at the left or at the right, or by its brightness."""
    rng = np.random.default_rng(0)
    labels = np.arange(96) % 2
    images = np.zeros((96, 12, 12, 1), np.float32)
    for image, label in zip(images, labels, strict=True):
        if informative:
            column = 2 if label else 8
            image[4:8, column : column + 2] = 1.0
        else:
            image[:] = label + 0.1 * rng.random()
    layer = LearnedCrop((0.0, -40.0, -40.0), reg=reg, learning_rate_factor=1.0, seed=0, fill="mean")
    model = keras.Sequential(
        [keras.Input((12, 12, 1)), layer, keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    keras.utils.set_random_seed(0)
    model.compile(
        keras.optimizers.SGD(0.3), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    model.fit(images, labels, batch_size=24, epochs=epochs, verbose=0)
    return float(ops.convert_to_numpy(layer.current_widths())[0])


@pytest.mark.slow_on("jax")
def test_it_learns_to_move_what_does_not_matter_and_leaves_what_does():
    start = float(np.log(2))
    free, bound = _trained(0.3, False), _trained(0.3, True)
    assert free > start + 0.2
    assert bound < free - 0.1
    assert _trained(0.0, False, epochs=2) == pytest.approx(start, abs=0.05)  # without its reward


def test_decay_leaves_widths_alone_where_told():
    layer = LearnedCrop(reg=0.0)
    model = keras.Sequential([keras.Input((8, 8, 3)), layer, keras.layers.Flatten()])
    optimizer = kg.optimizers.SGD(0.1, l2=1.0)
    optimizer.exclude_from_weight_decay(var_names=["raw_widths"])
    model.compile(optimizer, lambda y, x: 0.0 * ops.sum(x, axis=-1))
    model.fit(_images(4, 8), np.zeros(4), verbose=0)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer.raw_widths), (0.84, 0.84, 2.44), atol=1e-6
    )


def test_inference_does_nothing_and_files_keep_all(tmp_path):
    images = _images()
    layer = LearnedCrop((0.1, 0.2, 0.3), min_width=(0.5, 0.1, 0.1), fill="mean", seed=2)
    np.testing.assert_array_equal(ops.convert_to_numpy(layer(images)), images)
    widths = ops.convert_to_numpy(layer.current_widths())
    np.testing.assert_allclose(
        widths, np.maximum(np.log1p(np.exp([0.1, 0.2, 0.3])), layer.min_width)
    )
    model = keras.Sequential([keras.Input((12, 12, 3)), layer])
    layer.raw_widths.assign(np.array([1.0, 2.0, 3.0], np.float32))
    model.save(tmp_path / "crop.keras")
    restored = keras.saving.load_model(tmp_path / "crop.keras").layers[0]
    np.testing.assert_array_equal(ops.convert_to_numpy(restored.raw_widths), [1.0, 2.0, 3.0])
    assert restored.get_config() == layer.get_config()
    one, two = (
        ops.convert_to_numpy(LearnedCrop.from_config(layer.get_config())(images, training=True))
        for _ in range(2)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize(
    "options",
    [
        {"widths": (1.0,)}, {"widths": ()}, {"components": ("tx", "tx", "ty")},
        {"components": ("tx", "ty", "zoom")}, {"min_width": (1.0,)}, {"per_class": 0},
        {"fill": "blue"}, {"widths": (np.nan, 0.0, 0.0)},
    ],
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        LearnedCrop(**options)
    with pytest.raises(InputError):
        LearnedCrop().regulariser(kind="cubic")


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_places_and_widths(dtype):
    images = np.arange(200, dtype="float32").reshape(1, 1, 200, 1).repeat(4, axis=1) / 200
    layer = LearnedCrop(dtype=dtype, seed=0)
    assert layer(images, training=True).shape == images.shape
    matrix = ops.convert_to_tensor(np.diag([0.5, 1.0, 1.0]).astype("float32")[None, None])
    found = ops.convert_to_numpy(ops.cast(layer.transform(images, matrix), "float32"))
    expected = ops.convert_to_numpy(LearnedCrop().transform(images, matrix))
    np.testing.assert_allclose(found, expected, rtol=2**-8)
