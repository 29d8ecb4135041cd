"""What the report says of audits whose answers are planted, word for word where it matters."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from keras_git.auditing import Trend
from keras_git.report import findings, sentences
from keras_git.report.aggregates import Mean, clean, listed, nats, over_classes, percent_within
from tests.report import planted


def rising(classes: int, top: float = 1.0) -> np.ndarray:
    """eKLD that rises as classes get smaller."""
    return np.linspace(0.05, top, classes)


def section(result, title: str) -> tuple[str, ...]:
    return next((f.sentences for f in findings(result) if f.title == title), ())


@pytest.fixture
def rotation_only():
    """Invariant to rotation, not to brightness or flips, and worse on small classes."""
    counts, images = planted.sizes(10), np.full(10, 100)
    ekld = {
        "rotation": np.zeros(10),
        "brightness": rising(10),
        "horizontal_flip": rising(10, 0.6),
    }
    model = planted.model("net", ekld, counts, images, accuracy=np.linspace(0.95, 0.4, 10))
    return planted.result([model], counts, images, data="pets")


def test_invariant_to_rotation_only(rotation_only):
    assert section(rotation_only, "In short") == (
        "One model, net, was tested on 1,000 images in 10 classes of pets, under 3 transformations "
        "at 8 strengths in all.",
        "Class sizes range from 5 to 5,000 images.",
        "net: 67.5 % accuracy (mean over the classes); invariant to 1 of 3 transformations, not to "
        "2; less invariant on small classes under 2.",
    )
    definition, *claims = section(rotation_only, "To what it is invariant")
    assert "at least 95 %" in definition and "confidence interval" in definition
    assert claims == [
        "net is invariant to rotation (60 degrees: 100.0 % ± 0.3), at every strength tested.",
        "net is not invariant to brightness (strength 0.1: 84.4 % ± 2.2, strength 0.4: 61.9 % ± "
        "2.8); horizontal flip (73.4 % ± 2.6).",
    ]


def test_small_classes_are_worse(rotation_only):
    explanation, trend, accuracy = section(rotation_only, "How it goes with class size")
    assert "rank correlation" in explanation and "p < 0.05" in explanation
    assert trend == (
        "net: the smaller the class, the less invariant, under brightness (rank correlation -1.00) "
        "and horizontal flip (-1.00): very strong, and to be expected by chance alone in fewer "
        "than 1 of 1,000 cases."
    )
    assert accuracy == (
        "net: the smaller the class, the less accurate (rank correlation 1.00, very strong; to be "
        "expected by chance alone in fewer than 1 of 1,000 cases)."
    )


def test_the_worst_classes_are_named(rotation_only):
    explanation, worst = section(rotation_only, "On which classes")
    assert "how far the predicted probabilities move" in explanation
    assert worst.startswith("net is moved most on “class 9” (0.33 ±")
    assert worst.endswith("all clearly above the rest.")


def test_no_trend_is_claimed_without_one():
    counts, images = planted.sizes(12), np.full(12, 100)
    ekld = 0.3 + 0.05 * np.tile([1.0, -1.0], 6)
    model = planted.model("net", {"horizontal_flip": ekld}, counts, images)
    (_, claim) = section(planted.result([model], counts, images), "How it goes with class size")
    assert claim.startswith("net: no clear trend of invariance with class size under")
    assert "p = 0." in claim
    assert (
        "no clear trend with class size"
        in section(planted.result([model], counts, images), "In short")[-1]
    )


def test_large_classes_can_be_the_worse_ones():
    counts, images = planted.sizes(12), np.full(12, 100)
    model = planted.model("net", {"horizontal_flip": rising(12)[::-1]}, counts, images)
    text = " ".join(sentences(planted.result([model], counts, images)))
    assert "the smaller the class, the more invariant, under horizontal flip" in text


@pytest.mark.parametrize("classes", [3, 4])
def test_an_exact_order_of_few_classes_is_no_trend(classes):
    """Student's approximation gives p = 0 for it; chance gives it once in n! / 2 cases."""
    counts, images = planted.sizes(classes), np.full(classes, 100)
    model = planted.model("net", {"horizontal_flip": rising(classes)}, counts, images)
    text = " ".join(section(planted.result([model], counts, images), "How it goes with class size"))
    assert "no clear trend" in text and "the smaller" not in text


def test_a_trend_at_few_strengths_is_no_finding(rotation_only):
    (model,) = rotation_only.models
    weak = Trend(-0.3, 0.4, -0.8, 0.4, 10)
    measurements = [
        dataclasses.replace(m, trend=weak) if (m.condition.strength or 0) > 0.1 else m
        for m in model.measurements
        if m.condition.transform == "brightness"
    ]
    result = dataclasses.replace(
        rotation_only, models=(dataclasses.replace(model, measurements=tuple(measurements)),)
    )
    text = " ".join(section(result, "How it goes with class size"))
    assert "a trend at some strengths only, which is no firm finding, under brightness" in text
    assert "the less invariant" not in text


def test_equal_and_too_few_classes_have_no_trend():
    for counts, words in ((np.full(6, 50), "same size"), (np.array([9, 5]), "three classes")):
        images = np.full(len(counts), 50)
        model = planted.model("net", {"horizontal_flip": rising(len(counts))}, counts, images)
        (only,) = section(planted.result([model], counts, images), "How it goes with class size")
        assert words in only


def test_a_ladder_that_breaks_on_the_way():
    counts, images = planted.sizes(8), np.full(8, 400)
    model = planted.model("net", {"rotation": np.full(8, 0.08)}, counts, images)
    # Kept: exp(-eKLD), with eKLD 0.02, 0.04, 0.06 and 0.08 over the ladder.
    text = section(planted.result([model], counts, images), "To what it is invariant")
    assert text[-1] == (
        "net is invariant to these while they are weak: "
        "rotation (15 degrees: 96.1 % ± 0.7, 30 degrees: 94.2 % ± 0.8)."
    )


def test_what_the_interval_leaves_open_is_not_decided():
    counts, images = planted.sizes(4), np.full(4, 5)
    model = planted.model("net", {"horizontal_flip": np.full(4, 0.06)}, counts, images)
    text = section(planted.result([model], counts, images), "To what it is invariant")[-1]
    assert (
        text.startswith("For net it cannot be decided") and "horizontal flip (94.2 % ± 15)" in text
    )


def test_few_images_without_a_change_do_not_show_invariance():
    counts, images = planted.sizes(4), np.full(4, 5)
    model = planted.model("net", {"horizontal_flip": np.zeros(4)}, counts, images)
    assert "undecided" in section(planted.result([model], counts, images), "In short")[-1]


def test_guessing_is_no_merit():
    counts, images = planted.sizes(10), np.full(10, 100)
    model = planted.model(
        "net", {"rotation": np.zeros(10)}, counts, images, accuracy=np.full(10, 0.1)
    )
    text = " ".join(sentences(planted.result([model], counts, images)))
    assert "net is hardly more accurate than guessing" in text
    assert "net has an eKLD of 0 on every class" in text


def test_rounding_moves_nothing():
    counts, images = planted.sizes(10), np.full(10, 100)
    model = planted.model("net", {"horizontal_flip": 1e-7 * rising(10)}, counts, images)
    lines = section(planted.result([model], counts, images), "On which classes")
    assert lines[1].startswith("net has an eKLD of 0 on every class")


def test_a_size_that_was_chosen_is_said():
    counts, images = planted.sizes(4), np.full(4, 9)
    model = planted.model("net", {"rotation": rising(4)}, counts, images)
    settings = {"image_size": [48, 64], "image_size_chosen": True}
    result = planted.result([model], counts, images, settings=settings)
    assert "resized to 48 x 64 pixels" in " ".join(section(result, "What to keep in mind"))


def two_models(shift: float, noise: float = 0.02, classes: int = 20):
    """The second is more invariant by `shift` nats, give or take `noise` per class."""
    counts, images = planted.sizes(classes), np.full(classes, 100)
    rng = np.random.default_rng(0)
    base = 0.5 + rng.normal(0, 0.05, classes)
    other = base - shift + noise * np.resize([1.0, -1.0], classes)
    models = [
        planted.model(name, {"horizontal_flip": ekld}, counts, images)
        for name, ekld in (("old", base), ("new", other))
    ]
    return planted.result(models, counts, images)


def test_two_models_are_compared_class_by_class():
    explanation, claim = section(two_models(0.2), "Which model is better")
    assert "standard error" in explanation
    assert claim == (
        "new against old: more invariant (eKLD -0.200 ± 0.005 nats); more invariant on the "
        "smallest third of classes (eKLD -0.200 ± 0.009 nats); the same accuracy; the same "
        "accuracy on the smallest third of classes."
    )


def test_few_classes_are_compared_with_care():
    """Of five classes, 2.5 standard errors are not yet 95 %; of four nothing is said."""
    few = section(two_models(0.0275, classes=5), "Which model is better")[1]
    assert "perhaps more invariant (weak evidence: eKLD -0.0" in few and "third" not in few
    four = section(two_models(0.5, classes=4), "Which model is better")[1]
    assert four.startswith("new against old: 4 classes are too few to compare invariance")


@pytest.mark.parametrize(
    "shift, words",
    [
        (0.002, "no clear difference in invariance (eKLD -0.002"),
        (0.007, "perhaps more invariant (weak evidence: eKLD -0.007"),
        (-0.2, "less invariant (eKLD +0.200"),
    ],
)
def test_only_differences_beyond_their_error_are_claimed(shift, words):
    claim = section(two_models(shift), "Which model is better")[1]
    assert claim.startswith(f"new against old: {words}")


def test_of_many_models_each_is_held_against_the_first():
    result = two_models(0.1)
    models = [dataclasses.replace(result.models[i % 2], name=f"m{i}") for i in range(5)]
    lines = section(dataclasses.replace(result, models=tuple(models)), "Which model is better")
    assert [line.partition(":")[0] for line in lines[1:]] == [
        f"m{i} against m0" for i in range(1, 5)
    ]


def test_what_was_left_out_and_saved_is_said():
    counts, images = planted.sizes(4), np.array([100, 0, 1, 50])
    model = planted.model(
        "net", {"horizontal_flip": rising(4)}, counts, images, evaluations=3000,
        evaluations_saved=7000,
    )  # fmt: skip
    measurement = model.measurements[0]
    measurement = dataclasses.replace(
        measurement, ekld_sampling_error=np.array([0.01, np.nan, 0.03, 0.02])
    )
    model = dataclasses.replace(model, measurements=(measurement,))
    result = planted.result(
        [model],
        counts,
        images,
        skipped={"hue": "the images have one channel."},
        settings={"precision": 0.02, "max_samples": 100, "class_counts": "audited images"},
    )
    assert section(result, "What to keep in mind") == (
        "Class sizes are those of the audited images, as the sizes in training were not given: "
        "trends with class size mean little unless the two go together.",
        "Left out: hue (the images have one channel).",
        "“class 1” has no images here and is left out of every number.",
        "1 class has one image only and so no standard error.",
        "Each class got as many draws as a trial showed it to need for a sampling error of its "
        "eKLD of 0.02 nats: 3,000 evaluations, trials included, instead of 10,000 with as many "
        "draws for all classes as the one that needed most, 70 % saved.",
        "In 1 of 3 cases (class, transformation, strength) it was still above that after 100 draws "
        "per image.",
        "The error between images, which more draws cannot shrink, stands beside it in the table "
        "of all numbers.",
    )
    costly = dataclasses.replace(model, evaluations=4000, evaluations_saved=-1000)
    text = " ".join(section(dataclasses.replace(result, models=(costly,)), "What to keep in mind"))
    assert "4,000 evaluations, trials included, instead of 3,000" in text
    assert "the trials cost more than they saved" in text
    assert "151 images in 3 classes" in sentences(result)[0]


def test_an_audit_without_measurements_or_images_has_sentences():
    counts = np.array([3, 3])
    model = planted.model("net", {}, counts, np.array([5, 5]))
    assert sentences(planted.result([model], counts, np.array([5, 5])))
    empty = planted.model("net", {"rotation": np.full(2, np.nan)}, counts, np.array([5, 5]))
    assert sentences(planted.result([empty], counts, np.array([0, 0])))


def test_the_error_of_a_mean_over_classes():
    images = np.array([100, 100, 400])
    mean = over_classes(
        np.array([0.9, 0.8, 0.7]), np.array([0.03, 0.04, 0.0]), images, np.ones(3, bool)
    )
    assert mean.value == pytest.approx(0.8)
    assert mean.standard_error == pytest.approx(0.05 / 3)
    assert mean.num_images == pytest.approx(9 / (0.01 + 0.01 + 0.0025))
    # A class of one image gets the deviation of the others: 0.3 and 0.4, pooled 0.35355.
    single = over_classes(
        np.array([0.9, 0.8, 0.7]), np.array([0.03, 0.04, np.nan]), np.array([100, 100, 1]),
        np.ones(3, bool),
    )  # fmt: skip
    assert single.standard_error == pytest.approx(math.sqrt(0.0025 + 0.125) / 3)
    assert Mean(1.0, 0.0, 100).half_width == pytest.approx(0.03)
    assert Mean(1.0, math.nan, 100).half_width == math.inf


def test_numbers_and_names_in_words():
    assert [nats(v) for v in (0.0, 0.0001, 0.0123, 0.5, math.nan)] == [
        "0", "below 0.001", "0.012", "0.50", "–",
    ]  # fmt: skip
    assert percent_within(Mean(0.5, 0.01, 1000)) == "50.0 % ± 2.0"
    assert listed(["a", "b", "c"]) == "a, b and c"
    assert listed(["a", "b", "c", "d"], most=3) == "a, b and 2 more"
    assert clean("a\nb\x00\u202ec\udcff") == "a b\ufffd\ufffdc\ufffd"
    assert len(clean("x" * 500)) == 60
    assert clean("日本 “x” <b>") == "日本 “x” <b>"
