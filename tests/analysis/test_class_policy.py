"""Augmentation by class: what is selected, what is applied to whom, and the shuffled control."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_git as kg
from keras_git.analysis import (
    ClassPolicy,
    factor_generator,
    read_factors,
    select_augmentations,
)
from keras_git.errors import InputError
from keras_git.transforms import policy_transform
from keras_git.transforms.policy_operations import drawn_parts

INVERT, ROTATE = "invert with magnitude 5", "rotate with magnitude 9, sign +"
IDENTITY = "color with magnitude 0"


def _row(label, name, share, net_gain, **more):
    return {"class_id": label, "transform": name, "share": share, "net_gain": net_gain, **more}


FACTORS = [
    _row(0, INVERT, 0.9, 0.2),
    _row(0, ROTATE, 0.6, 0.1),
    _row(0, "equalize with magnitude 1", 0.95, -0.1),  # alike with everything: no factor
    _row(0, IDENTITY, 0.0, 0.0),
    _row(1, INVERT, 0.3, 0.2),
    _row(1, ROTATE, 0.7, 0.3),
    _row(1, IDENTITY, 0.0, 0.0),
    _row(2, INVERT, 0.2, -0.1),
    _row(2, IDENTITY, 0.0, 0.0),
]


def _images(number=8, side=12, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (number, side, side, 3)).astype("float32")


def _call(layer, *arguments, training=True):
    return ops.convert_to_numpy(layer(*arguments, training=training))


def test_selection_of_known_factors():
    policy = select_augmentations(FACTORS, k=2, num_classes=4)
    # the best two of class 0 by share are equalize, which fails the gain, and invert
    assert policy.operations(0) == [(INVERT, 1.0)]
    assert policy.operations(1) == [(ROTATE, 1.0)]
    assert policy.operations(2) == [] and policy.operations(3) == []
    assert select_augmentations(FACTORS).operations(0) == [(INVERT, 0.5), (ROTATE, 0.5)]
    assert [n for n, _ in select_augmentations(FACTORS, score="gain").operations(0)] == [
        INVERT,
        ROTATE,
    ]


def test_probabilities():
    fixed = select_augmentations(FACTORS, probability="fixed")
    assert [p for _, p in fixed.operations(0)] == [0.1, 0.1]
    soft = select_augmentations(FACTORS, probability="softmax")
    weights = np.exp([0.9 * 0.2, 0.6 * 0.1])
    expected = weights / weights.sum()
    np.testing.assert_allclose([p for _, p in soft.operations(0)], expected)
    assert soft.operations(1) == [(ROTATE, 0.5)]


def test_one_list_for_all_classes_and_of_some_classes_alone():
    policy = select_augmentations(FACTORS, per="dataset", classes=[0, 1], num_classes=5)
    # means over the two classes: rotate .65, invert .6, equalize has a negative gain
    assert policy.num_classes == 5
    assert all(policy.operations(c) == [(ROTATE, 0.5), (INVERT, 0.5)] for c in range(5))
    only = select_augmentations(FACTORS, classes=[1], num_classes=3)
    assert only.operations(0) == [] and only.operations(1) == [(ROTATE, 1.0)]


def test_a_table_without_control_or_over_all_classes():
    """Without a control the net gain is NaN; a search over all classes has the class -1."""
    rows = [_row(-1, INVERT, 0.9, np.nan, gain=0.2), _row(-1, ROTATE, 0.8, np.nan, gain=-0.1)]
    policy = select_augmentations(rows, num_classes=3)
    assert all(policy.operations(c) == [(INVERT, 1.0)] for c in range(3))


@pytest.mark.slow_on("jax")
def test_an_operation_alone_is_drawn_from_all_of_its_magnitudes():
    """As `FactorTable.families` names them; and of rotation both directions."""
    assert drawn_parts("rotate") == (("rotate", 0, 9, 0),)
    assert drawn_parts("rescale") == (("rescale", 0, 9, 1),)
    assert drawn_parts("rotate with magnitude 4") == (("rotate", 0, 4, 1),)
    assert drawn_parts("rescale with magnitude 8") == (("rescale", 6, 8, 1),)
    assert drawn_parts("shearX with magnitude 4, sign -") == (("shearX", 0, 4, -1),)
    policy = select_augmentations([_row(0, "rotate", 0.9, 0.1), _row(1, IDENTITY, 0.0, 0.0)])
    images = np.zeros((64, 15, 15, 1), np.float32)
    images[:, 7, 2:7] = 255  # a hand of a clock that points to the left
    turned = _call(policy, images, np.zeros(64, int))
    left = turned[:, :, 2:7, 0]  # of the rows around it, that no corner reaches
    above, below = left[:, 4:7].sum(axis=(1, 2)), left[:, 8:11].sum(axis=(1, 2))
    assert (above > 2 * below).sum() > 10 and (below > 2 * above).sum() > 10


def test_relative_gains_may_be_unknown():
    rows = [{**row, "relative_gain": np.nan} for row in FACTORS]
    policy = select_augmentations(rows, probability="softmax")
    expected = select_augmentations(FACTORS, probability="softmax")
    assert policy.operations(0) == expected.operations(0)


def test_degrees_are_no_magnitudes_of_a_policy():
    with pytest.raises(InputError, match="'rotate' in degrees"):
        select_augmentations([_row(0, "rotate", 0.9, 0.1, magnitude=15.0)])


def test_nothing_is_selected_where_nothing_varies():
    policy = select_augmentations([_row(0, IDENTITY, 0.0, 0.0), _row(0, INVERT, 0.1, -0.2)])
    assert policy.operations(0) == []
    images = _images()
    np.testing.assert_array_equal(_call(policy, images, np.zeros(8, int)), images)


@pytest.mark.slow_on("jax")
def test_each_class_gets_its_own_operations_and_the_control_another_classes():
    policy = select_augmentations(FACTORS, k=2, num_classes=4)
    images, labels = _images(), np.array([0, 1, 2, 3, 0, 1, 2, 3])
    moved = _call(policy, images, labels)
    np.testing.assert_array_equal(moved[labels == 0], 255.0 - images[labels == 0])
    np.testing.assert_array_equal(moved[labels >= 2], images[labels >= 2])
    for _ in range(4):
        turned = _call(policy, images, labels)[labels == 1]
        if not np.array_equal(turned, images[labels == 1]):
            break
    else:
        pytest.fail("rotate by up to 30 degrees never showed")
    lists = [policy.operations(c) for c in range(4)]
    control = policy.control
    dealt = [control.operations(c) for c in range(4)]
    assert sorted(map(str, dealt)) == sorted(map(str, lists))
    assert dealt[0] != lists[0] and dealt[1] != lists[1]
    np.testing.assert_array_equal(_call(policy, images, training=False), images)
    for seed in range(5):
        target = policy.shuffled(seed)
        assert target.operations(0) != lists[0] and target.operations(1) != lists[1]


@pytest.mark.slow_on("jax")
def test_operations_come_one_after_the_other_and_with_their_frequency():
    names = [INVERT, "solarize with magnitude 9", ROTATE]
    always = ClassPolicy([[(INVERT, 1.0), ("posterize with magnitude 9", 1.0)]], seed=0)
    images = _images()
    moved = _call(always, images, np.zeros(8, int))
    steps = [2.0**b for b in range(5)]
    assert all(
        any(np.array_equal(m, np.floor((255 - i) / s) * s) for s in steps)
        for m, i in zip(moved, images, strict=True)
    )
    policy = ClassPolicy([[(name, 1 / 3) for name in names[:1]]], seed=0)
    many = np.repeat(images[:1], 600, axis=0)
    changed = (_call(policy, many, np.zeros(600, int)) != many).any(axis=(1, 2, 3))
    assert abs(changed.mean() - 1 / 3) < 4 * np.sqrt(2 / 9 / 600)


def test_one_of_the_list():
    policy = ClassPolicy([[(INVERT, 0.1), ("autocontrast with magnitude 1", 0.3)]], draw="one")
    image = np.clip(_images(1), 60, 180)
    many = np.repeat(image, 400, axis=0)
    moved = _call(policy, many, np.zeros(400, int))
    inverted = (moved == 255.0 - many).all(axis=(1, 2, 3))
    stretched = ops.convert_to_numpy(policy_transform("autocontrast with magnitude 1")(image))
    assert ((moved == stretched).all(axis=(1, 2, 3)) | inverted).all()
    assert abs(inverted.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_images_in_0_to_1():
    images = _images() / 255.0
    policy = ClassPolicy([[(INVERT, 1.0)]], value_range=(0, 1))
    moved = _call(policy, images, np.zeros(8, int))
    np.testing.assert_allclose(moved, 1.0 - images, atol=1e-5)


def test_it_is_saved_and_trains_in_fit(tmp_path):
    policy = select_augmentations(FACTORS, k=2, num_classes=3, seed=3)
    images = keras.Input((8, 8, 3))
    labels = keras.Input((), dtype="int32")
    x = keras.layers.Flatten()(policy(images, labels) / 255.0)
    model = keras.Model([images, labels], keras.layers.Dense(3)(x))
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    data, targets = _images(12, 8), np.arange(12) % 3
    history = model.fit([data, targets], targets, batch_size=6, epochs=1, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        restored.predict([data, targets], verbose=0), model.predict([data, targets], verbose=0)
    )
    again = ClassPolicy.from_config(policy.get_config())
    fresh = ClassPolicy.from_config(policy.get_config())
    np.testing.assert_array_equal(_call(again, data, targets), _call(fresh, data, targets))


def test_tables_are_read_from_files(tmp_path):
    path = tmp_path / "factors.json"
    path.write_text(json.dumps({"rows": FACTORS, "settings": {}}))
    assert read_factors(path) == read_factors(FACTORS)
    table = tmp_path / "factors.csv"
    table.write_text(
        "class_id,transform,share,net_gain\n"
        + "\n".join(f'{r["class_id"]},"{r["transform"]}",{r["share"]},{r["net_gain"]}'
                    for r in FACTORS)
    )  # fmt: skip
    assert read_factors(table) == read_factors(FACTORS)


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([], "holds no rows"),
        ([{"transform": INVERT}], "without 'transform' and 'share'"),
        ([{"transform": INVERT, "share": 0.9}], "without 'gain'"),
        ([_row(0, INVERT, "much", 0.1)], "no numbers"),
        ([_row(0, "swirl", 0.9, 0.1)], "'swirl' is no operation"),
        ("no_such_file.json", "no such file"),
    ],
)
def test_bad_tables_are_refused(factors, message):
    with pytest.raises(InputError, match=message):
        select_augmentations(factors)


@pytest.mark.parametrize(
    "options",
    [{"k": 0}, {"probability": "often"}, {"score": "beauty"}, {"per": "image"},
     {"classes": [9]}, {"num_classes": 1}, {"draw": "two"}],
)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(InputError):
        select_augmentations(FACTORS, **options)
    with pytest.raises(InputError, match="needs labels"):
        select_augmentations(FACTORS)(_images(), training=True)


def test_factors_stand_in_for_a_generator(tmp_path):
    generator = factor_generator([(INVERT, 1.0), ("rescale with magnitude 9", 0.0)], (12, 12, 3))
    kg.training.check_generator(generator, (12, 12, 3))
    images = _images()
    styles = np.random.default_rng(0).standard_normal((8, 5)).astype("float32")
    made = kg.training.generate_images(generator, images, styles, batch_size=4)
    np.testing.assert_allclose(made, 255.0 - images, atol=1e-3)
    generator.save(tmp_path / "factors.keras")
    restored = keras.saving.load_model(tmp_path / "factors.keras")
    again = kg.training.generate_images(restored, images, styles, batch_size=4)
    np.testing.assert_array_equal(again, made)


def test_styles_choose_operations_by_their_weights():
    generator = factor_generator([(INVERT, 0.2), ("posterize with magnitude 5", 0.6)], (4, 4, 3))
    image = np.full((1, 4, 4, 3), 100.0, np.float32)
    styles = np.random.default_rng(1).standard_normal((600, 5)).astype("float32")
    made = kg.training.generate_images(generator, np.repeat(image, 600, 0), styles, batch_size=200)
    inverted = np.isclose(made[:, 0, 0, 0], 155.0, atol=1e-3)
    assert abs(inverted.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 600)


@pytest.mark.parametrize("draw", ["independent", "one"])
def test_labels_without_a_list_are_left_alone(draw):
    layer = ClassPolicy([[(INVERT, 1.0)]], draw=draw)
    images = _images(4)
    found = _call(layer, images, np.array([0, 1, 9, -1]))
    np.testing.assert_array_equal(found[0], 255 - images[0])
    np.testing.assert_array_equal(found[1:], images[1:])
    with pytest.raises(InputError, match="labels have shape"):
        layer(images, np.eye(4, dtype="int32"), training=True)
