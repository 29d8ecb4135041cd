"""Random-resized-crop in its parts: geometry, laws of sizes, what stays, saving and training."""

from __future__ import annotations

import math

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops
from scipy import stats

from keras_git.analysis import crop_decomposition
from keras_git.analysis.crops import PAPER_MODES, SIZE_LAWS, crop_sizes, size_fractions
from keras_git.errors import InputError


def _images(number=4, height=16, width=16, channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 255, (number, height, width, channels)).astype("float32")


def _transformed(layer, images, box=None, shift=None, flip=None, canvas=None):
    number, height, width = images.shape[:3]
    parameters = {
        "box": np.array(box or [[0, 0, height, width]] * number, np.float32),
        "shift": np.array(shift or [[0, 0]] * number, np.float32),
        "flip": np.array(flip or [0] * number, np.float32),
    }
    return ops.convert_to_numpy(layer.transform(images, parameters, canvas))


def _drawn(layer, number, height, width):
    return {k: ops.convert_to_numpy(v) for k, v in layer.draw(number, height, width).items()}


@given(x=st.integers(-20, 20), y=st.integers(-20, 20))
def test_a_translation_is_a_shift_of_the_array(x, y):
    images = _images(1)
    layer = crop_decomposition(16, "translation")
    moved = _transformed(layer, images, shift=[[x, y]])
    padded = np.pad(images, ((0, 0), (20, 20), (20, 20), (0, 0)))
    np.testing.assert_allclose(moved[0], padded[0, 20 - y : 36 - y, 20 - x : 36 - x], atol=1e-4)


def test_a_crop_of_the_output_size_is_a_slice_and_a_flip_mirrors_it():
    images = _images(2, 20, 24)
    layer = crop_decomposition(8, "both")
    box = [[3, 5, 8, 8], [12, 16, 8, 8]]
    moved = _transformed(layer, images, box, flip=[0, 1])
    np.testing.assert_allclose(moved[0], images[0, 3:11, 5:13], atol=1e-4)
    np.testing.assert_allclose(moved[1], images[1, 12:, 16:][:, ::-1], atol=1e-4)


def test_a_crop_is_cut_and_then_resized():
    images = _images(1, 20, 24)
    layer = crop_decomposition((12, 10), "both")
    moved = _transformed(layer, images, [[2, 7, 6, 15]])
    cut = images[:, 2:8, 7:22]
    expected = ops.convert_to_numpy(ops.image.resize(cut, (12, 10), "bilinear", antialias=False))
    np.testing.assert_allclose(moved, expected, atol=1e-3)


@pytest.mark.slow_on("jax")
def test_translation_then_crop_may_show_fill_and_random_resized_crop_never():
    images = np.full((64, 16, 16, 1), 200.0, np.float32)
    coupled = ops.convert_to_numpy(crop_decomposition(16, "C", seed=1)(images, training=True))
    np.testing.assert_allclose(coupled, 200.0, atol=1e-3)
    decoupled = crop_decomposition(16, "TS", seed=1, translate=0.6, fill=7.0)
    seen = ops.convert_to_numpy(decoupled(images, training=True))
    assert seen.min() >= 7.0 - 1e-3 and (np.abs(seen - 7.0) < 1e-3).mean() > 0.05
    for fill in ("mean", "edge", "reflect"):
        layer = crop_decomposition(16, "TS", seed=1, translate=0.6, fill=fill)
        np.testing.assert_allclose(
            ops.convert_to_numpy(layer(images, training=True)), 200.0, atol=1e-3
        )


@pytest.mark.slow_on("jax")
def test_reflection_mirrors_without_repeating_the_border():
    images = _images(1, 6, 6)
    layer = crop_decomposition(6, "translation", fill="reflect")
    moved = _transformed(layer, images, shift=[[2, 0]])
    np.testing.assert_allclose(moved[0, :, 0], images[0, :, 2], atol=1e-4)
    np.testing.assert_allclose(moved[0, :, 1], images[0, :, 1], atol=1e-4)


@pytest.mark.parametrize("law", SIZE_LAWS)
def test_sizes_follow_their_law(law):
    uniform = np.random.default_rng(0).random(4000)
    low, high = 0.08, 1.0
    fractions = size_fractions(uniform, law, (low, high), 2.0)
    assert fractions.min() >= low - 1e-9 and fractions.max() <= high + 1e-9
    cumulative = {
        "area": lambda s: (s - low) / (high - low),
        "linear_zoom": lambda s: 1 - (s**-0.5 - 1) / (low**-0.5 - 1),
        "beta": lambda s: 1 - (1 - (s - low) / (high - low)) ** 2,
        "log_side": lambda s: 1 - np.log(s) / math.log(low),
        # what is clipped is at the end
        "exponential": lambda s: np.where(s <= low, 1.0, np.exp(-2 * (1 / s - 1))),
    }[law]
    inside = fractions > low + 1e-9
    assert stats.kstest(fractions[inside], cumulative).pvalue > 1e-3
    on_device = ops.convert_to_numpy(
        size_fractions(ops.convert_to_tensor(uniform.astype("float32")), law, (low, high), 2.0, ops)
    )
    np.testing.assert_allclose(on_device, fractions, rtol=1e-3)


def _slow_crop(fractions, aspects, height, width):
    """Attempt after attempt, one image."""
    for s, r in zip(fractions, np.exp(aspects), strict=True):
        w, h = round(math.sqrt(s * height * width * r)), round(math.sqrt(s * height * width / r))
        if 0 < w <= width and 0 < h <= height:
            return h, w, True
    if width / height < 0.75:
        return round(width / 0.75), width, False
    if width / height > 4 / 3:
        return height, round(height * 4 / 3), False
    return height, width, False


@given(seed=st.integers(0, 2**16), height=st.integers(4, 80), width=st.integers(4, 80))
def test_sizes_are_those_of_trying_one_after_the_other(seed, height, width):
    rng = np.random.default_rng(seed)
    fractions = rng.uniform(0.08, 1, (6, 10))
    aspects = rng.uniform(math.log(3 / 4), math.log(4 / 3), (6, 10))
    h, w, _, found = crop_sizes(fractions, aspects, height, width)
    expected = [_slow_crop(*row, height, width) for row in zip(fractions, aspects, strict=True)]
    assert list(zip(h, w, found, strict=True)) == expected


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("mode", PAPER_MODES)
@pytest.mark.parametrize("shape", [(32, 32), (40, 56)])
def test_draws_of_every_mode(mode, shape):
    """Crops lie in their canvas, centred ones in its middle; translations go to their limit."""
    size = 32
    layer = crop_decomposition(size, mode, seed=0)
    options = PAPER_MODES[mode]
    images = _images(64, *shape)
    made = ops.convert_to_numpy(layer(images, training=True))
    assert made.shape == (64, size, size, 3) and np.isfinite(made).all()
    drawn = _drawn(layer, 200, *shape)
    _, _, _, rows, columns = layer._canvas_of(*shape, layer._training_canvas())
    i, j, h, w = drawn["box"].T
    assert (i >= 0).all() and (j >= 0).all() and (h > 0).all() and (w > 0).all()
    assert (i + h <= rows).all() and (j + w <= columns).all()
    coupled = options["mode"] == "both" and options.get("couple", True)
    if not coupled and options["mode"] != "fixed_crop":
        np.testing.assert_array_equal(i, np.floor((rows - h) / 2))
        np.testing.assert_array_equal(j, np.floor((columns - w) / 2))
    elif coupled:
        # the centre of a crop moves by at most (1 - w / W) / 2 of the width
        offset = np.abs(j + w / 2 - columns / 2) / columns
        assert (offset <= (1 - w / columns) / 2 + 1e-6).all() and offset.std() > 0.05
    translates = options["mode"] == "translation" or options.get("couple") is False
    assert (np.abs(drawn["shift"]).max() > 0) == translates
    if translates:
        limit = np.round(0.3 * np.array([columns, rows]))
        assert (np.abs(drawn["shift"]) <= limit).all()
        assert np.abs(drawn["shift"]).max(axis=0) == pytest.approx(limit, abs=1.5)
    assert (drawn["flip"].mean() > 0) == options.get("flip", False)
    if options.get("ratio") == (1.0, 1.0):
        assert (np.abs(h - w) <= 1).all()


@pytest.mark.slow_on("jax")
def test_inference_is_the_same_for_every_mode_and_nothing_for_images_of_the_size():
    small, large = _images(2, 16, 16), _images(2, 40, 52)
    expected = None
    for mode in PAPER_MODES:
        layer = crop_decomposition(16, mode)
        np.testing.assert_array_equal(ops.convert_to_numpy(layer(small)), small)
        seen = ops.convert_to_numpy(layer(large))
        expected = seen if expected is None else expected
        np.testing.assert_allclose(seen, expected, atol=1e-3)
    # the centre of the image resized to a shorter side of 16 * 256 / 224 = 18
    square = large[:, :, :40]
    resized = ops.convert_to_numpy(ops.image.resize(square, (18, 18), "bilinear", antialias=False))
    seen = ops.convert_to_numpy(crop_decomposition(16, "T")(square))
    np.testing.assert_allclose(seen, resized[:, 1:17, 1:17], atol=1e-2)


@pytest.mark.slow_on("jax")
def test_none_does_nothing_in_training_either():
    images = _images()
    layer = crop_decomposition(16, "None")
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer(images, training=True)), images, atol=1e-4
    )


@pytest.mark.slow_on("jax")
def test_seeds_decide():
    images = _images()
    one, two, other = (
        ops.convert_to_numpy(crop_decomposition(16, "HC", seed=seed)(images, training=True))
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, two)
    assert np.abs(one - other).max() > 1


def test_it_is_saved_and_trains_in_fit(tmp_path):
    layer = crop_decomposition(8, "Cbeta", size_parameter=2.0, seed=1, fill="mean")
    model = keras.Sequential(
        [keras.Input((12, 10, 3)), layer, keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    images = _images(6, 12, 10) / 255
    model.fit(images, np.zeros((6, 2)), batch_size=3, verbose=0)
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        restored.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6
    )
    assert restored.layers[0].get_config() == layer.get_config()


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "zoom"}, {"size_law": "normal"}, {"scale": (0.0, 1.0)}, {"scale": (0.5, 0.1)},
        {"ratio": (1.0,)}, {"translate": 2.0}, {"fill": "blue"}, {"canvas": "wall"},
        {"image_size": 0}, {"shorter_side": 0}, {"size_parameter": 0.0}, {"crop_size": (1, 2, 3)},
    ],
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        crop_decomposition(**{"image_size": 16, **options})


def test_crops_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="does not fit"):
        crop_decomposition(16, "R", crop_size=40)(_images(), training=True)
    with pytest.raises(InputError, match="raise shorter_side"):
        crop_decomposition(16, "T2", shorter_side=8)(_images(), training=True)


@pytest.mark.slow_on("jax")
def test_half_precision_does_not_move_the_image():
    ramp = np.arange(200, dtype="float32").reshape(1, 1, 200, 1).repeat(4, axis=1) / 200
    parameters = {
        "box": np.array([[0, 0, 4, 100.0]]),
        "shift": np.zeros((1, 2)),
        "flip": np.zeros(1),
    }
    exact, half = (
        crop_decomposition((4, 200), dtype=dtype).transform(ramp, parameters)
        for dtype in ("float32", "mixed_bfloat16")
    )
    assert keras.backend.standardize_dtype(half.dtype) == "bfloat16"
    half = ops.convert_to_numpy(ops.cast(half, "float32"))
    np.testing.assert_allclose(half, ops.convert_to_numpy(exact), rtol=2**-8)
