"""Sets of transformations, and the affine maps they are made of."""

from __future__ import annotations

import numpy as np
import pytest
from keras import ops

from keras_git.analysis import TransformSet, explain_variation
from keras_git.errors import InputError
from keras_git.transforms import Brightness, Rotation
from keras_git.transforms.affine import affine_matrix, composed, visible_fraction, warp
from keras_git.transforms.policy_operations import policy_parts
from tests.analysis.planted import SIDE, pixels, planted_images


def _image(side=12, channels=3, number=2):
    return np.random.default_rng(0).random((number, side, side, channels)).astype(np.float32)


def _warped(images, **map_):
    return ops.convert_to_numpy(warp(images, affine_matrix(**map_).astype(np.float32)))


def test_whole_shifts_are_array_shifts():
    images = _image()
    moved = _warped(images, translate_x=3, translate_y=-2)
    np.testing.assert_allclose(moved[:, :-2, 3:], images[:, 2:, :-3], atol=1e-6)
    assert not moved[:, -2:].any() and not moved[:, :, :3].any()


def test_quarter_turn_is_exact():
    images = _image()
    np.testing.assert_allclose(_warped(images, rotate=90), np.rot90(images, -1, (1, 2)), atol=1e-6)


def test_scale_and_back_restores_the_centre():
    y, x = np.mgrid[:24, :24] / 24.0
    images = np.stack([x, y, x * y], axis=-1)[None].astype(np.float32)
    there = _warped(images, scale=0.5)
    back = ops.convert_to_numpy(warp(there, affine_matrix(scale=2.0).astype(np.float32)))
    np.testing.assert_allclose(back[:, 4:-4, 4:-4], images[:, 4:-4, 4:-4], atol=0.01)


def test_composition_is_two_resamplings_but_for_interpolation():
    y, x = np.mgrid[:32, :32] / 32.0
    images = np.sin(3 * np.stack([x, y, x + y], axis=-1))[None].astype(np.float32)
    first, second = affine_matrix(rotate=20), affine_matrix(shear_x=10, scale=1.2)
    once = ops.convert_to_numpy(warp(images, composed(first, second).astype(np.float32)))
    step = warp(images, first.astype(np.float32))
    twice = ops.convert_to_numpy(warp(step, second.astype(np.float32)))
    np.testing.assert_allclose(once[:, 8:-8, 8:-8], twice[:, 8:-8, 8:-8], atol=0.01)


def test_a_map_for_each_image():
    images = _image(number=3)
    maps = np.stack([affine_matrix(rotate=a) for a in (0, 30, -70)]).astype(np.float32)
    together = ops.convert_to_numpy(warp(images, ops.convert_to_tensor(maps)))
    for place, angle in enumerate((0, 30, -70)):
        alone = _warped(images[place : place + 1], rotate=angle)
        np.testing.assert_allclose(together[place : place + 1], alone, atol=1e-5)


def test_visible_fraction():
    assert visible_fraction(affine_matrix(), 10, 10) == 1.0
    assert visible_fraction(affine_matrix(translate_x=5), 10, 10) == pytest.approx(0.5)
    assert visible_fraction(affine_matrix(translate_y=20), 10, 10) == 0.0
    white = np.ones((1, 12, 12, 1), np.float32)
    for map_ in ({"rotate": 33}, {"scale": 0.4}, {"shear_x": 50, "translate_y": 2.5}):
        shown = float(_warped(white, **map_).mean())
        assert visible_fraction(affine_matrix(**map_), 12, 12) == pytest.approx(shown, abs=1e-5)


def test_paper_invariance():
    chosen = TransformSet.paper_invariance(32)
    assert len(chosen) == len(chosen.names) == len(chosen.magnitudes) == 130
    assert len(chosen.transforms) == 13
    shifts = [c.magnitude for c in chosen if c.transform == "translateX"]
    assert shifts[-1] == pytest.approx(32.0) and shifts[1] == pytest.approx(32 / 9)
    visible = dict(zip(chosen.names, chosen.visible_fraction(), strict=True))
    assert visible["translateX 32"] == 0.0 and visible["rotate 0"] == 1.0
    assert visible["scale_zoom_out 0.28"] == pytest.approx(0.28**2, abs=0.02)
    assert len(chosen.filter(indices=range(3, 8))) == 65
    assert len(chosen.filter(min_visible=0.5)) < 130
    assert sum(c.unchanged for c in chosen) == 7 + 4
    with pytest.raises(InputError, match="not in the set"):
        chosen.filter("twist")


def test_paper_search():
    chosen = TransformSet.paper_search()
    assert len(chosen) == 48 and len(TransformSet.paper_search(dedupe=False)) == 63
    assert len(set(chosen.names)) == 48
    assert sum(c.unchanged for c in chosen) == 1
    both = chosen.both_signs()
    signed = [c for c in chosen if c.operation.startswith(("shear", "translate", "rotate"))]
    assert len(both) > 48 + len(signed) - 1
    assert {f"rotate with magnitude 9, sign {sign}" for sign in "+-"} <= set(both.names)
    assert "rotate with magnitude 9" not in both.names and "invert with magnitude 3" in both.names
    assert all(policy_parts(name) for name in both.names)  # a policy can be made of each
    assert len(both.both_signs()) == len(both)
    visible = chosen.visible_fraction(32)
    assert np.isfinite(visible).all() and visible.min() < 0.1
    # one compiled function per family of operations
    assert len({c.key for c in chosen}) <= 11


def test_both_signs_of_affine():
    chosen = TransformSet.geometric(SIDE, rotate=(15, 30), translate=(), scale=(2.0,), shear=())
    both = chosen.both_signs()
    assert both.names == ["rotate 15", "rotate -15", "rotate 30", "rotate -30", "scale 2"]


def test_compose():
    chosen = TransformSet.geometric(SIDE, rotate=(30,), translate=(0.25,), scale=(), shear=())
    both = chosen.compose("rotate 30", "translateX 4")
    assert len(both) == len(chosen) + 1
    made = both.candidates[-1]
    assert len(made.steps) == 1  # one resampling
    expected = composed(affine_matrix(rotate=30), affine_matrix(translate_x=4))
    np.testing.assert_allclose(made.steps[0].numbers["matrix"], expected, atol=1e-6)
    photo = TransformSet.custom({"invert": lambda images: 1 - images})
    product = chosen.compose(photo)
    assert product.names == [f"{name} + invert" for name in chosen.names]
    assert all(len(c.steps) == 2 for c in product)


@pytest.mark.slow_on("jax")
def test_custom():
    def scaled(images, factor):
        return images * factor

    chosen = TransformSet.custom(
        {"dim": (scaled, [0.5, 0.25]), "turn": Rotation(30), "light": Brightness(20)}
    )
    assert chosen.names == ["dim 0.5", "dim 0.25", "turn", "light"]
    assert np.isnan(chosen.visible_fraction(8)).all()
    table = explain_variation(pixels, planted_images(6), chosen)
    again = explain_variation(pixels, planted_images(6), chosen, batch_size=5)
    np.testing.assert_allclose(table["gain"], again["gain"], atol=1e-6)
    assert len(table) == 12 and (np.abs(table["gain"]) > 0).all()


def test_a_magnitude_may_have_to_be_a_number():
    def cropped(images, pixels_off):
        edge = int(pixels_off)
        return ops.pad(
            images[:, edge:-edge, edge:-edge], ((0, 0), (edge, edge), (edge, edge), (0, 0))
        )

    chosen = TransformSet.custom({"frame": (cropped, [1, 3])})
    table = explain_variation(pixels, planted_images(6), chosen)
    small, large = table.matrix("self_similarity").T
    assert (small > large).all()


def test_bad_sets():
    with pytest.raises(InputError, match="image_size"):
        TransformSet.paper_invariance(0)
    with pytest.raises(InputError, match="at least one"):
        TransformSet.custom({})
    with pytest.raises(InputError, match="give a function"):
        TransformSet.custom({"a": 3})
    with pytest.raises(InputError, match="mapping"):
        TransformSet.custom([abs])
    with pytest.raises(InputError, match="no magnitude"):
        TransformSet.custom({"a": (abs, [])})
    with pytest.raises(InputError, match="give image_size"):
        TransformSet.paper_search().visible_fraction()
