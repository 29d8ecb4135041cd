"""Scale, colours and degradations against numpy, SciPy, colorsys and Pillow."""

from __future__ import annotations

import colorsys
import io

import keras
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
import scipy.stats
from keras import ops
from PIL import Image

from keras_git import transforms
from keras_git.backend import compiled
from keras_git.errors import InputError
from keras_git.transforms import LADDERS, degradations, nuisances


@pytest.fixture(scope="module")
def smooth():
    """Two colour images with structure, 20 x 28 (no multiples of 8)."""
    y, x = np.mgrid[0:20, 0:28]
    waves = [127 + 120 * np.sin(x / (3 + c) + y / (5 - c) + c) for c in range(3)]
    image = np.stack(waves, axis=-1)
    return np.stack([image, image[::-1] * 0.7]).astype(np.uint8)


def applied(transform, images, **parameters):
    arrays = {name: np.asarray(value) for name, value in parameters.items()}
    function = compiled(transform.apply, transform.variables)
    return ops.convert_to_numpy(function(images.astype(np.float32), arrays))


def test_scale_is_exact_where_it_can_be(smooth):
    np.testing.assert_array_equal(nuisances.scale(smooth, 1.0), smooth)
    # an odd size enlarged threefold: each source point is a pixel's centre at every third pixel
    odd = smooth[:, :15, :15]
    larger = nuisances.scale(odd, 3.0)
    np.testing.assert_array_equal(larger[:, 1::3, 1::3], odd[:, 5:10, 5:10])
    smaller = nuisances.scale(odd, 1 / 3)
    np.testing.assert_array_equal(smaller[:, 5:10, 5:10], odd[:, 1::3, 1::3])
    assert not smaller[:, :5].any() and not smaller[:, :, 10:].any()
    on_backend = applied(transforms.Scale(), smooth, factor=np.array([1.3, 0.8], np.float32))
    expected = nuisances.scale(smooth, np.array([1.3, 0.8]))
    assert np.abs(on_backend - expected).max() <= 1
    drawn = transforms.Scale(2).sample(2000, np.random.default_rng(0))["factor"]
    assert 0.5 <= drawn.min() < 0.51 and 1.98 < drawn.max() <= 2
    assert abs(np.log(drawn).mean()) < 0.03


def test_saturation_and_hue(smooth):
    factor = np.array([0.0, 1.0], np.float32)
    moved = applied(transforms.Saturation(), smooth, factor=factor)
    luma = np.asarray(Image.fromarray(smooth[0]).convert("L"), float)
    assert np.abs(moved[0] - luma[..., None]).max() <= 1
    np.testing.assert_allclose(moved[1], smooth[1], atol=1e-3)
    degrees = np.array([75.0, -160.0], np.float32)
    moved = applied(transforms.Hue(), smooth, degrees=degrees)
    for index in np.ndindex(*smooth.shape[:3]):
        if index[1] % 7 or index[2] % 5:
            continue
        hue, saturation, value = colorsys.rgb_to_hsv(*(smooth[index] / 255.0))
        hue = (hue + degrees[index[0]] / 360) % 1
        expected = 255 * np.array(colorsys.hsv_to_rgb(hue, saturation, value))
        np.testing.assert_allclose(moved[index], expected, atol=0.01)
    grey = np.repeat(smooth[..., :1], 3, axis=-1)
    np.testing.assert_allclose(applied(transforms.Hue(), grey, degrees=degrees), grey)


def test_blur_is_scipys(smooth):
    sigma = np.array([0.7, 2.5], np.float32)
    moved = applied(transforms.Blur(), smooth, sigma=sigma)
    for image, out, width in zip(smooth.astype(float), moved, sigma, strict=True):
        expected = scipy.ndimage.gaussian_filter(
            image, (width, width, 0), mode="reflect", truncate=8
        )
        # the same normalization but for what the truncation leaves out
        np.testing.assert_allclose(out, expected, atol=0.05)
    np.testing.assert_allclose(
        applied(transforms.Blur(), smooth, sigma=np.zeros(2, np.float32)), smooth, atol=1e-3
    )


def hashed(values):
    """MurmurHash3's finalizer in Python's own integers."""
    values &= 0xFFFFFFFF
    values ^= values >> 16
    values = values * 0x85EBCA6B & 0xFFFFFFFF
    values ^= values >> 13
    values = values * 0xC2B2AE35 & 0xFFFFFFFF
    return values ^ values >> 16


def test_noise_is_normal_independent_and_the_same_everywhere():
    seeds = np.array([-5, 12345, 12346], np.int32)
    drawn = ops.convert_to_numpy(degradations.standard_normal(seeds, 20000))
    for place in (0, 1, 777):
        first = hashed(place + hashed(-5))
        uniform = [(bits >> 9) / 2**23 + 2**-24 for bits in (first, hashed(first ^ 0x5BD1E995))]
        expected = np.sqrt(-2 * np.log(uniform[0])) * np.cos(2 * np.pi * uniform[1])
        assert drawn[0, place] == pytest.approx(expected, abs=1e-4)
    for row in drawn:
        assert scipy.stats.kstest(row, "norm").pvalue > 1e-3
    correlations = np.corrcoef(np.concatenate([drawn, drawn[:, ::-1]]))
    assert np.abs(correlations - np.eye(6)).max() < 0.03
    assert np.abs(np.corrcoef(drawn[0, :-1], drawn[0, 1:])[0, 1]) < 0.03
    images = np.full((3, 9, 9, 3), 120, np.uint8)
    sigma = np.array([0, 5, 10], np.float32)
    moved = applied(transforms.Noise(), images, sigma=sigma, seed=seeds)
    np.testing.assert_allclose(
        moved, 120 + sigma[:, None, None, None] * drawn[:, :243].reshape(3, 9, 9, 3), atol=1e-3
    )


def test_erasing_covers_a_rectangle_of_the_drawn_area():
    transform, images = transforms.Erasing(0.5), np.full((200, 40, 40, 1), 300.0, np.float32)
    drawn = transform.sample(200, np.random.default_rng(0))
    area = drawn["height"] * drawn["width"]
    assert 0 <= area.min() and 0.45 < area.max() <= 0.5 and abs(area.mean() - 0.25) < 0.03
    assert (drawn["top"] + drawn["height"]).max() <= 1 + 1e-6
    assert (drawn["left"] + drawn["width"]).max() <= 1 + 1e-6
    covered = applied(transform, images, **drawn)[..., 0] != 300.0
    np.testing.assert_allclose(covered.mean((1, 2)), area, atol=0.06)
    for mask, level, out in zip(
        covered, drawn["level"], applied(transform, images, **drawn), strict=True
    ):
        rows, columns = mask.any(1), mask.any(0)
        assert np.array_equal(mask, rows[:, None] & columns[None])
        assert np.all(np.diff(np.flatnonzero(rows)) == 1)
        assert not mask.any() or np.all(out[mask] == level)
    whole = transforms.Erasing(1.0).sample(500, np.random.default_rng(1))
    assert max(whole["height"].max(), whole["width"].max()) <= 1
    nothing = transforms.Erasing(0).sample(4, np.random.default_rng(0))
    assert not applied(transforms.Erasing(0), images[:4], **nothing)[..., 0].min() < 300


def jpeg_by_scipy(image, quality, table):
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    steps = np.clip((np.array(table) * percent + 50) // 100, 1, 255)
    padded = np.pad(image, [(0, -n % 8) for n in image.shape], mode="edge")
    for top in range(0, padded.shape[0], 8):
        for left in range(0, padded.shape[1], 8):
            block = padded[top : top + 8, left : left + 8]
            frequencies = scipy.fft.dctn(block, norm="ortho")
            block[:] = scipy.fft.idctn(np.round(frequencies / steps) * steps, norm="ortho")
    return padded[: image.shape[0], : image.shape[1]]


@pytest.mark.parametrize("quality", [5, 50, 90])
def test_jpeg(smooth, quality):
    qualities = np.full(2, quality, np.int32)
    grey = smooth[..., :1]
    moved = applied(transforms.JPEG(), grey, quality=qualities)
    for image, out in zip(grey.astype(float), moved, strict=True):
        expected = jpeg_by_scipy(image[..., 0] - 128, quality, degradations._LUMINANCE_STEPS) + 128
        close = np.abs(out[..., 0] - np.clip(np.round(expected), 0, 255)) <= 1
        assert close.mean() > 0.95  # all but blocks in which a quotient is next to a half
    moved = applied(transforms.JPEG(), smooth, quality=qualities)
    for image, out in zip(smooth, moved, strict=True):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=quality, subsampling=0)
        pillow = np.asarray(Image.open(file), float)
        assert np.abs(out - pillow).mean() < 1.5
    assert np.abs(moved - smooth).mean() < {5: 30, 50: 8, 90: 3}[quality]


@pytest.mark.parametrize("name", LADDERS)
def test_ladders(name):
    ladder = LADDERS[name]
    rungs = ladder.rungs((32, 32, 3))
    assert len({rung.transform for rung in rungs}) == len(rungs)
    assert {rung.transform.name for rung in rungs} == {name}
    # one compilation serves the whole ladder, and no other ladder
    (key,) = {rung.transform.function_key for rung in rungs}
    assert key not in {
        rung.transform.function_key
        for other in LADDERS.values()
        if other.name != name
        for rung in other.rungs((32, 32, 3))
    }
    assert len({rung.label for rung in rungs}) == len(rungs)
    if ladder.strengths:
        assert len(rungs) == 3 and rungs[1].strength is not None
        again = ladder.rungs((32, 32, 3), [rungs[1].strength])
        assert again == rungs[1:2]
    else:
        assert rungs[0].strength is None and rungs[0].transform.deterministic
        with pytest.raises(InputError, match="no strengths"):
            ladder.rungs((32, 32, 3), [1])


def test_ladders_stretch_with_the_images():
    assert [r.strength for r in LADDERS["shift"].rungs((28, 40, 1))] == [2, 4, 7]
    assert [r.strength for r in LADDERS["blur"].rungs((224, 300, 3))] == [3.5, 7, 14]
    assert LADDERS["rotation"].rungs((8, 8, 1), [30])[0].label == "rotation, up to 30 degrees"
    assert len(LADDERS["shift"].rungs((4, 4, 1))) == 1


def test_functions(smooth):
    transform = transforms.FunctionTransform(lambda images: 255.0 - images, "negative")
    assert transform.deterministic and transform.name == "negative"
    np.testing.assert_array_equal(ops.convert_to_numpy(transform(smooth)), 255.0 - smooth)
    layer = keras.layers.Dense(3)
    layer.build((None, 20, 28, 3))
    assert len(transforms.FunctionTransform(layer, "dense").variables) == 2
    drawn = transforms.FunctionTransform(
        lambda images, parameters: images, "drawn", lambda number, rng: {"x": rng.random(number)}
    ).sample(3, np.random.default_rng(0))
    assert drawn["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transforms.Scale(0.5), "1 to 10"),
        (lambda: transforms.DilationErosion(5), "2 to 4"),
        (lambda: transforms.Saturation(2, 1), "low <= high"),
        (lambda: transforms.Hue(200), "0 to 180"),
        (lambda: transforms.Saturation()(np.zeros((1, 8, 8, 1))), "colour"),
        (lambda: transforms.Blur(-1), "0 to 100"),
        (lambda: transforms.Noise(256), "0 to 255"),
        (lambda: transforms.Erasing(2), "0 to 1"),
        (lambda: transforms.JPEG(0), "1 to 100"),
        (lambda: transforms.JPEG(40.5), "whole number"),
        (lambda: LADDERS["shift"].rungs((8, 8, 1), [1.5]), "whole numbers"),
        (lambda: LADDERS["contrast"].rungs((8, 8, 1), [150]), "0 to 100"),
        (lambda: transforms.FunctionTransform("x"), "can be called"),
        (lambda: transforms.FunctionTransform(abs, ""), "give a text"),
        (lambda: transforms.FunctionTransform(keras.layers.RandomFlip()), "random numbers"),
        (
            lambda: transforms.FunctionTransform(lambda x: x[:, :4], "cut")(np.zeros((1, 8, 8, 1))),
            "the shape must stay",
        ),
        (
            lambda: transforms.FunctionTransform(
                lambda x, p: x, "few", lambda number, rng: {"a": rng.random(1)}
            )(np.zeros((2, 8, 8, 1))),
            "must be 2",
        ),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
