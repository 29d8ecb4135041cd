"""The audit against plain, slow computations and against models whose invariance is known."""

from __future__ import annotations

import csv
import dataclasses
import json
import tracemalloc

import keras
import numpy as np
import pytest
from keras import ops
from scipy.special import log_softmax

import keras_git as kg
from keras_git.auditing import AuditResult, LabelledImages, open_classifier, open_data
from keras_git.auditing.classifier import failure
from keras_git.auditing.conditions import planned_conditions
from keras_git.errors import InputError
from keras_git.metrics import draws

NUM_CLASSES, SIZE = 5, 7
LABELS = np.array([0] * 6 + [1] * 5 + [2] * 4 + [4] * 2)
COUNTS = [300, 90, 30, 10, 4]


def exact_classifier(softmax: bool = False) -> keras.Model:
    """Logits up to +-60 that float32 holds exactly for whole grey levels."""
    rng = np.random.default_rng(3)
    kernel = rng.integers(-10, 11, (SIZE * SIZE, NUM_CLASSES)).astype(np.float32) / 256
    layers = [keras.Input((SIZE, SIZE, 1)), keras.layers.Flatten()]
    activation = "softmax" if softmax else None
    layers.append(keras.layers.Dense(NUM_CLASSES, activation, use_bias=False))
    model = keras.Sequential(layers, name="exact")
    model.set_weights([kernel * (0.05 if softmax else 1)])
    return model


@pytest.fixture(scope="module")
def model():
    return exact_classifier()


@pytest.fixture(scope="module")
def images():
    images = np.random.default_rng(0).integers(0, 256, (len(LABELS), SIZE, SIZE, 1))
    return np.where(images < 100, 0, images).astype(np.uint8)


def shifted(image, down, right):
    """By whole pixels, zeros coming in."""
    moved = np.zeros_like(image)
    for row, column in np.ndindex(SIZE, SIZE):
        if 0 <= row - down < SIZE and 0 <= column - right < SIZE:
            moved[row, column] = image[row - down, column - right]
    return moved


def by_hand(model, images, max_pixels, num_samples, seed):
    """Divergence, consistency and correctness, (images, draws), in float64."""
    kernel = model.get_weights()[0].astype(float)

    def log_p(image):
        return log_softmax(image.reshape(-1).astype(float) @ kernel)

    values = np.zeros((3, len(images), num_samples))
    # of 64 images each, all of the first draws, then all of the second ones
    rng = np.random.default_rng([seed, 0])
    drawn = rng.integers(-max_pixels, max_pixels, (num_samples * 64, 2), endpoint=True)
    for position, (image, label) in enumerate(zip(images, LABELS, strict=True)):
        original = log_p(image)
        for draw, (down, right) in enumerate(drawn[position::64]):
            moved = log_p(shifted(image, down, right))
            values[:, position, draw] = (
                (np.exp(original) * (original - moved)).sum(),
                original.argmax() == moved.argmax(),
                moved.argmax() == label,
            )
    return values


@pytest.fixture(scope="module")
def result(model, images):
    return kg.audit(
        model,
        (images, LABELS),
        ["shift:1:3", "horizontal_flip", "identity"],
        class_counts=COUNTS,
        num_samples=6,
        batch_size=7,
        seed=5,
    )


def test_equals_a_plain_computation(model, images, result):
    logits = images.reshape(len(images), -1).astype(float) @ model.get_weights()[0]
    assert 50 < np.abs(logits).max() < 80
    (audited,) = result.models
    assert [m.condition.label for m in audited.measurements] == [
        "shift, up to 1 pixels",
        "shift, up to 3 pixels",
        "horizontal flip",
        "identity",
    ]
    for measurement, pixels in zip(audited.measurements, (1, 3), strict=False):
        values = by_hand(model, images, pixels, 6, 5)
        for label in range(NUM_CLASSES):
            own = values[:, label == LABELS]
            count = own.shape[1]
            if not count:
                assert np.isnan(measurement.ekld[label])
                assert np.isnan(measurement.accuracy_standard_error[label])
                continue
            within = own[0].var(axis=1, ddof=1).mean()
            errors = own.mean(axis=2).std(axis=1, ddof=1) / np.sqrt(count)
            for name, mean, error in zip(
                ("ekld", "consistency", "accuracy"), own.mean(axis=(1, 2)), errors, strict=True
            ):
                for field, expected in ((name, mean), (f"{name}_standard_error", error)):
                    actual = getattr(measurement, field)[label]
                    assert actual == pytest.approx(expected, rel=1e-5, abs=1e-5), field
            sampling = measurement.ekld_sampling_error[label]
            assert sampling == pytest.approx(np.sqrt(within / count / 6), rel=1e-4, abs=1e-5)
            between = np.sqrt(max(errors[0] ** 2 - within / count / 6, 0))
            image_error = measurement.ekld_image_error[label]
            assert image_error == pytest.approx(between, rel=1e-4, abs=1e-4)
        np.testing.assert_array_equal(measurement.num_samples, [6, 6, 6, 0, 6])
    flip, identity = audited.measurements[2:]
    np.testing.assert_array_equal(flip.num_samples, [1, 1, 1, 0, 1])  # draws would be the same
    np.testing.assert_array_equal(flip.ekld_sampling_error[[0, 1, 2, 4]], 0)
    np.testing.assert_array_equal(identity.ekld[[0, 1, 2, 4]], 0)
    correct = logits.argmax(1) == LABELS
    assert audited.accuracy == pytest.approx(correct.mean())
    per_class = [correct[label == LABELS].mean() for label in (0, 1, 2, 4)]
    np.testing.assert_allclose(audited.per_class_accuracy[[0, 1, 2, 4]], per_class)
    assert audited.balanced_accuracy == pytest.approx(np.mean(per_class))
    expected = kg.metrics.expected_calibration_error(LABELS, logits.astype(np.float32))
    assert audited.expected_calibration_error == pytest.approx(expected, abs=1e-6)
    measured = len(LABELS) * (1 + 6 + 6 + 1 + 1)
    # and the search for examples: 4 conditions, 5 draws and the originals at the most
    assert measured < audited.evaluations <= measured + (1 + 3 * 5) * len(LABELS)
    assert audited.evaluations_saved == 0 and audited.outputs == "logits"
    assert audited.parameters == SIZE * SIZE * NUM_CLASSES
    np.testing.assert_array_equal(result.num_images, np.bincount(LABELS))


def test_is_expected_kl(model, images, result):
    expected = kg.metrics.expected_kl(
        model, images, LABELS, kg.transforms.Shift(3), 6, batch_size=4, seed=5
    )
    measurement = result.models[0].measurements[1]
    np.testing.assert_allclose(measurement.ekld, expected.ekld, rtol=1e-6)
    np.testing.assert_allclose(
        measurement.ekld_standard_error, expected.ekld_standard_error, rtol=1e-6
    )
    np.testing.assert_allclose(measurement.consistency, expected.consistency)


def test_groups_and_trend(result):
    measurement = result.models[0].measurements[0]
    groups = measurement.groups  # many > 100, few < 20; class 3 has no images
    assert groups["many"]["ekld"] == pytest.approx(measurement.ekld[0])
    assert groups["medium"]["accuracy"] == pytest.approx(measurement.accuracy[[1, 2]].mean())
    error = measurement.ekld_standard_error
    assert groups["many"]["ekld_standard_error"] == pytest.approx(error[0])
    both = np.hypot(error[1], error[2]) / 2
    assert groups["medium"]["ekld_standard_error"] == pytest.approx(both)
    accuracy = result.models[0].per_class_accuracy[0]
    assert result.models[0].group_accuracy_standard_error["many"] == pytest.approx(
        np.sqrt(accuracy * (1 - accuracy) / 5)
    )
    assert groups["few"]["consistency"] == pytest.approx(measurement.consistency[4])
    assert measurement.trend.num_classes == 4
    assert set(result.models[0].group_accuracy) == {"many", "medium", "few"}


def test_examples_show_changed_predictions(model, images, result):
    audited = result.models[0]
    assert 0 < len(audited.examples) <= 8
    for example in audited.examples:
        assert example.prediction != example.transformed_prediction
        assert any(
            np.array_equal(example.image, image) for image in images[example.label == LABELS]
        )
        for image, prediction, confidence in (
            (example.image, example.prediction, example.confidence),
            (
                example.transformed,
                example.transformed_prediction,
                example.transformed_confidence,
            ),
        ):
            logits = ops.convert_to_numpy(model(image[None].astype(np.float32)))[0].astype(float)
            assert logits.argmax() == prediction
            assert np.exp(log_softmax(logits).max()) == pytest.approx(confidence, abs=1e-4)


def test_round_trip(result, tmp_path):
    path = result.to_json(tmp_path / "audit.json")
    again = AuditResult.from_json(path)
    json.loads(path.read_text(), parse_constant=pytest.fail)  # NaN is not JSON
    np.testing.assert_equal(again.to_table(), result.to_table())
    for field in ("class_names", "data", "skipped", "settings", "versions", "seconds"):
        assert getattr(again, field) == getattr(result, field)
    first, second = again.models[0], result.models[0]
    assert first.measurements[0].groups == second.measurements[0].groups
    for one, other in (
        (first.measurements[0].trend, second.measurements[0].trend),
        (first.accuracy_trend, second.accuracy_trend),
    ):
        np.testing.assert_equal(dataclasses.astuple(one), dataclasses.astuple(other))
    np.testing.assert_array_equal(again.class_counts, result.class_counts)
    for one, other in zip(first.examples, second.examples, strict=True):
        np.testing.assert_array_equal(one.transformed, other.transformed)
        np.testing.assert_array_equal(one.image, other.image)
        assert one.condition == other.condition and one.confidence == other.confidence
    with open(result.to_csv(tmp_path / "audit.csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * NUM_CLASSES
    assert rows[3]["ekld"] == "" and rows[3]["class_count"] == "10"
    assert float(rows[0]["ekld"]) == result.models[0].measurements[0].ekld[0]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    (tmp_path / "no.json").write_text('{"format_version": 1, "models": 3}')
    for name, message in (("no.json", "not the JSON file"), ("absent.json", "cannot be read")):
        with pytest.raises(InputError, match=message):
            AuditResult.from_json(tmp_path / name)


def centre_classifier(batch):
    """Sees the middle pixel alone, which a rotation leaves in its place."""
    centre = batch[:, SIZE // 2, SIZE // 2] / 64.0
    return ops.concatenate([centre * k for k in range(NUM_CLASSES)], axis=-1)


def test_a_rotation_invariant_classifier(images):
    transforms = ["rotation:45:180", "scale:1.5", "shift:2"]
    result = kg.audit(centre_classifier, (images, LABELS), transforms, num_samples=3)
    seen = [0, 1, 2, 4]
    for measurement in result.models[0].measurements:
        if measurement.condition.transform == "shift":
            assert np.all(measurement.ekld[seen] > 0.01)
            assert measurement.consistency[seen].mean() < 1
        else:
            np.testing.assert_array_equal(measurement.ekld[seen], 0)
            np.testing.assert_array_equal(measurement.consistency[seen], 1)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_planted_dependence_on_class_size(sign):
    """The corner says the class, the middle pixel disturbs it, some classes more than others."""
    counts = np.array([1000, 400, 150, 60, 25, 9])
    disturbed = np.argsort(np.argsort(sign * counts)) + 1.0

    def planted(batch):
        label = ops.cast(ops.round(batch[:, 0, 0, 0] / 10.0), "int32")
        strength = ops.take(ops.convert_to_tensor(disturbed.astype(np.float32)), label)
        moved = strength * batch[:, 2, 2, 0] / 255.0
        own, following = (ops.one_hot(label + k, 7, dtype="float32") for k in (0, 1))
        return 4.0 * own + ops.expand_dims(moved, 1) * following

    nuisance = kg.transforms.FunctionTransform(
        lambda images, parameters: (
            images
            + ops.reshape(parameters["level"], (-1, 1, 1, 1))
            * ops.reshape(ops.one_hot(12, 25, dtype="float32"), (1, 5, 5, 1))
        ),
        "middle",
        lambda number, rng: {"level": rng.uniform(0, 255, number)},
    )
    labels = np.repeat(np.arange(6), 8)
    images = np.zeros((48, 5, 5, 1), np.uint8)
    images[:, 0, 0, 0] = 10 * labels
    result = kg.audit(
        planted, (images, labels), [nuisance], class_counts=[*counts, 1], num_samples=20
    )
    trend = result.models[0].measurements[0].trend
    assert trend.rho == pytest.approx(sign, abs=1e-6) and trend.p_value < 0.01
    assert trend.num_classes == 6


def test_probabilities_and_logits(images):
    soft = exact_classifier(softmax=True)
    raw = keras.Sequential([*exact_classifier().layers])
    raw.set_weights(soft.get_weights())
    options = {"transforms": ["shift:2"], "num_samples": 4, "num_examples": 0}
    result = kg.audit({"soft": soft, "raw": raw}, (images, LABELS), **options)
    one, other = result.models
    assert (one.outputs, other.outputs) == ("probabilities", "logits")
    assert (one.name, other.name) == ("soft", "raw")
    for first, second in zip(one.measurements, other.measurements, strict=True):
        np.testing.assert_allclose(first.ekld, second.ekld, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(first.consistency, second.consistency)


def test_models_side_by_side_share_their_draws(model, images, result):
    both = kg.audit(
        [model, model],
        (images, LABELS),
        ["shift:1"],
        class_counts=COUNTS,
        num_samples=6,
        batch_size=17,
        seed=5,
        num_examples=0,
    )
    assert [m.name for m in both.models] == ["exact", "exact (2)"]
    for audited in both.models:
        np.testing.assert_allclose(
            audited.measurements[0].ekld, result.models[0].measurements[0].ekld, rtol=1e-5
        )


def test_strengths_share_one_compilation(images):
    traced = []

    def counting(batch):
        traced.append(1)
        return batch

    network, counts = exact_classifier(), []
    for strengths in ("rotation:10", "rotation:20:30:40", "rotation:50"):
        options = {"num_samples": 2, "num_examples": 0, "batch_size": 8}
        kg.audit(network, (images, LABELS), [strengths], preprocess=counting, **options)
        counts.append(len(traced))
    if keras.config.backend() != "torch":
        # later audits only look at the outputs once more
        assert counts[2] - counts[1] == counts[1] - counts[0] == 1


def test_precision_draws_for_the_classes_that_need_it(model, images, monkeypatch):
    options = {"transforms": ["shift:1", "horizontal_flip"], "batch_size": 7, "num_samples": 3}
    plain = kg.audit(model, (images, LABELS), num_examples=0, **options).models[0]
    errors = plain.measurements[0].ekld_sampling_error
    target = float(np.nanmedian(errors)) * 0.8
    steps, passes = [], []
    blocks = LabelledImages.blocks
    monkeypatch.setattr(LabelledImages, "blocks", lambda *a: passes.append(1) or blocks(*a))
    audited = kg.audit(
        model,
        (images, LABELS),
        precision=target,
        max_samples=40,
        num_examples=0,
        progress=lambda done, planned, text: steps.append((done, planned)),
        **options,
    ).models[0]
    shift, flip = audited.measurements
    seen = [0, 1, 2, 4]
    enough = shift.ekld_sampling_error <= target
    assert np.all(enough[seen] | (shift.num_samples[seen] == 40))
    assert shift.num_samples[seen].max() > shift.num_samples[seen].min() >= 2
    np.testing.assert_array_equal(flip.num_samples, [1, 1, 1, 0, 1])
    # counted by hand: the trial, then rounds that double the draws, each with the originals again
    counts = np.bincount(LABELS)
    spent, rounds, done = len(LABELS) * (1 + 3 + 1), [2, 4, 8, 16, 32, 40], 0
    for level in rounds:
        spent += ((1 + level - done) * counts[shift.num_samples >= level]).sum()
        done = level
    assert audited.evaluations == spent
    most = shift.num_samples.max()
    assert audited.evaluations_saved == len(LABELS) * (1 + most + 1) - spent
    assert len(passes) == 1 + sum(level <= most for level in rounds)
    assert steps[-1][0] == audited.evaluations == steps[-1][1]
    assert all(done <= planned for done, planned in steps)
    truth = by_hand(model, images, 1, 400, 9)[0]
    for label in seen:
        own = truth[label == LABELS]
        error = np.hypot(shift.ekld_sampling_error[label], own.std() / (own.size) ** 0.5)
        assert abs(shift.ekld[label] - own.mean()) < 4 * error


def test_rounding_is_no_finding():
    """A classifier that does not see flips, but for the order in which float32 is summed."""
    rng = np.random.default_rng(0)
    half = rng.normal(0, 1e-3, (25, 20)).astype(np.float32)
    kernel = ops.convert_to_tensor(np.concatenate([half, half]))

    def symmetric(batch):
        both = ops.concatenate([batch, ops.flip(batch, axis=2)], axis=1)
        return ops.matmul(ops.reshape(both, (-1, 50)), kernel)

    images = rng.integers(0, 256, (60, 5, 5, 1)).astype(np.uint8)
    data = (images, np.repeat(np.arange(20), 3))
    options = {"class_counts": np.arange(20, 0, -1), "batch_size": 60}
    result = kg.audit(symmetric, data, ["horizontal_flip"], **options).models[0]
    ekld = result.measurements[0].ekld
    assert np.any(ekld != 0) and np.all(np.abs(ekld) < result.ekld_resolution)
    assert np.isnan(result.measurements[0].trend.rho)
    assert result.evaluations == 120 and not result.examples  # nothing to search for


def test_half_precision_resolves_less(images):
    policy = keras.DTypePolicy("mixed_bfloat16")
    layers = [keras.layers.Flatten(), keras.layers.Dense(NUM_CLASSES, dtype=policy)]
    layers += [keras.layers.Activation("softmax", dtype="float32")]
    network = keras.Sequential([keras.Input((SIZE, SIZE, 1)), *layers])
    opened = open_classifier(network, "half", images)
    assert opened.ekld_resolution == 1e-3
    assert open_classifier(exact_classifier(), "single", images).ekld_resolution == 1e-6


def numpy_flip(batch):
    return np.asarray(batch)[:, :, ::-1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transforms": [numpy_flip]}, "transformation 'numpy flip' with model 'exact' cannot be"),
        (
            {"preprocess": numpy_flip},
            "model 'exact' .or its preprocess function. cannot be compiled",
        ),
    ],
)
def test_code_that_cannot_be_traced(model, images, change, message):
    arguments = {"transforms": ["identity"], "batch_size": 7, "num_examples": 0, **change}
    if keras.config.backend() == "torch":  # where nothing is traced
        kg.audit(model, (images, LABELS), **arguments)
        return
    with pytest.raises(InputError, match=message) as raised:
        kg.audit(model, (images, LABELS), **arguments)
    assert "keras.ops" in str(raised.value) and "\n" not in str(raised.value)


def test_memory_that_does_not_suffice_names_the_remedy():
    for error in (MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile ...")):
        text = str(failure("model 'a'", error, 250))
        assert text.startswith("model 'a': 250 images at a time") and "--batch_size" in text


def test_more_functions_than_the_cache_holds_are_compiled_once(model, images, monkeypatch):
    made = []
    compiled = draws.compiled
    monkeypatch.setattr(draws, "compiled", lambda *a: made.append(1) or compiled(*a))
    monkeypatch.setattr(draws, "_FUNCTIONS_PER_MODEL", 1)
    shifts = {
        f"plus {level}": kg.transforms.FunctionTransform(lambda batch, level=level: batch + level)
        for level in (1, 2)
    }
    options = {"batch_size": 6, "num_examples": 0}
    kg.audit(lambda batch: model(batch), (images, LABELS), shifts, **options)  # 3 batches
    assert len(made) == 3


def test_what_the_caller_gave_stays_as_it_is(model, images):
    source, counts = open_data((images, LABELS)), np.array(COUNTS)
    options = {"batch_size": 7, "num_examples": 0, "class_counts": counts}
    result = kg.audit(model, source, ["identity"], images_per_class=2, **options)
    assert source.images_per_class is None and source.num_classes is None
    assert result.num_images.tolist() == [2, 2, 2, 0, 2]
    counts[0] = 7
    assert result.class_counts[0] == 300
    for array in (result.class_counts, result.models[0].measurements[0].ekld):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_memory_does_not_grow_with_the_images(model):
    def peak(batches):
        def pieces(size):
            for _ in range(batches):
                yield np.zeros((size, SIZE, SIZE, 1), np.uint8), np.zeros(size, np.int64)

        options = {"batch_size": 500, "num_examples": 0}
        tracemalloc.start()
        kg.audit(model, LabelledImages(pieces, "stream"), ["identity"], **options)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return highest

    peak(2)  # compiles
    few, many = peak(4), peak(40)
    assert many - few < 36 * 500 * SIZE**2 / 4


def test_more_than_a_thousand_classes():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 4, 4, 1)).astype(np.uint8)
    labels = rng.integers(0, 1200, 60)
    network = keras.Sequential(
        [keras.Input((4, 4, 1)), keras.layers.Flatten(), keras.layers.Dense(1200)]
    )
    result = kg.audit(network, (images, labels), ["horizontal_flip"], num_examples=1)
    (measurement,) = result.models[0].measurements
    seen = np.bincount(labels, minlength=1200) > 0
    assert np.isfinite(measurement.ekld[seen]).all() and np.isnan(measurement.ekld[~seen]).all()
    assert len(result.to_table()) == 1200


def test_ladders_that_suit_the_images(images):
    planned, skipped = planned_conditions(None, images)
    assert set(skipped) == {"saturation", "hue"}
    assert {p.condition.transform for p in planned} == set(kg.transforms.LADDERS) - set(skipped)
    _, skipped = planned_conditions(None, np.maximum(images, 9))
    assert set(skipped) == {"saturation", "hue", "background", "dilation_erosion"}
    planned, skipped = planned_conditions(["background", "hue"], np.maximum(images, 9))
    assert len(planned) == 3 and set(skipped) == {"hue"}
    _, skipped = planned_conditions(None, np.repeat(images, 3, axis=-1))
    assert not skipped


def test_transformations_of_ones_own(images):
    bright = np.maximum(images, 9)
    image, style = keras.Input((SIZE, SIZE, 1)), keras.Input((3,))
    generator = keras.Model([image, style], image, name="trained")
    ladder = kg.transforms.Ladder(
        "dim", (10, 20), "grey levels", "{} grey levels darker", kg.transforms.Brightness
    )
    # the usual ones beside it do not become others
    planned, skipped = planned_conditions(
        ["defaults", lambda x: 255 - x, generator, ladder], bright
    )
    assert set(skipped) == {"saturation", "hue", "background", "dilation_erosion"}
    *usual, function, trained, weak, strong = planned
    assert {p.condition.transform for p in usual} == set(kg.transforms.LADDERS) - set(skipped)
    assert function.condition.transform == "function" and function.transform.deterministic
    assert trained.condition.transform == "trained" and trained.transform.style_dim == 3
    assert weak.condition.label == "10 grey levels darker" and strong.condition.strength == 20
    planned, _ = planned_conditions({"mine": ladder, "other": keras.layers.Rescaling(0.5)}, images)
    assert [p.condition.transform for p in planned] == ["mine", "mine", "other"]


class Cropped(kg.transforms.Identity):
    def apply(self, images, parameters):
        return images[:, 1:]


@pytest.mark.slow
def test_all_ladders(images):
    colour = np.repeat(images, 3, axis=-1)
    network = keras.Sequential(
        [keras.Input(colour.shape[1:]), keras.layers.Flatten(), keras.layers.Dense(NUM_CLASSES)]
    )
    result = kg.audit(network, (colour, LABELS), num_samples=4, batch_size=10)
    assert not result.skipped
    for measurement in result.models[0].measurements:
        expected = kg.metrics.expected_kl(
            network,
            colour,
            LABELS,
            next(
                p.transform
                for p in planned_conditions(None, colour)[0]
                if p.condition == measurement.condition
            ),
            int(measurement.num_samples.max()),
        )
        np.testing.assert_allclose(measurement.ekld, expected.ekld, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transforms": ["shear"]}, "'shear' is unknown; use one of rotation"),
        ({"transforms": ["rotation:x"]}, "write the strengths as numbers"),
        ({"transforms": ["rotation:200"]}, "0 to 180"),
        ({"transforms": ["hue"]}, "no transformation to measure .hue: the images have no colour"),
        ({"transforms": []}, "none was given"),
        ({"transforms": ["identity", "identity"]}, "given twice"),
        ({"transforms": [3]}, "instance of Transform"),
        ({"transforms": [Cropped()]}, "the shape must stay"),
        ({"transforms": ["shift:inf"]}, "'shift': give finite numbers"),
        ({"transforms": ["jpeg:nan"]}, "'jpeg': give finite numbers"),
        (
            {"transforms": [kg.transforms.Ladder("odd", (1,), "", "{}", lambda strength: 3)]},
            "instance of Transform",
        ),
        ({"resize": 0}, "resize is 0"),
        ({"resize": (8, 8, 8)}, "height, width"),
        ({"num_samples": "x"}, "num_samples is 'x'"),
        ({"precision": "0.02"}, "precision is '0.02'"),
        (
            {"transforms": [kg.transforms.FunctionTransform(lambda x: x + None, "broken")]},
            "'broken' fails",
        ),
        (
            {"transforms": {"nan": kg.transforms.FunctionTransform(lambda x: x * float("nan"))}},
            "NaN",
        ),
        ({"class_counts": [1, 2, 3]}, "class_counts has shape .3,. for 5 classes"),
        ({"class_counts": [1, 2, 3, 4, -5]}, "0 or more"),
        ({"class_names": ["a"]}, "1 class names for 5 classes"),
        ({"num_samples": 0}, "num_samples"),
        ({"images_per_class": 0}, "images_per_class"),
        ({"seed": -1}, "seed"),
        ({"precision": 0}, "above 0"),
        ({"precision": 0.1, "num_samples": 1}, "2 or more"),
        ({"precision": 0.1, "max_samples": 4}, "at least num_samples"),
        ({"names": ["a", "b"]}, "give one each"),
        ({"preprocess": ["none", "0_1"]}, "2 entries for 1 models"),
        ({"preprocess": "0-1"}, "use a function or one of none"),
        ({"outputs": "softmax"}, "auto, logits"),
        ({"split": "dev"}, "split"),
        ({"model": []}, "at least one"),
        ({"model": 3}, "a Keras model, a function or a path"),
        ({"model": "model.h5"}, "a .keras file"),
        ({"model": "absent.keras"}, "no such file"),
        ({"data": None}, "NoneType"),
    ],
)
def test_bad_input(model, images, change, message):
    arguments = {"model": model, "data": (images, LABELS), "transforms": ["shift"], **change}
    with pytest.raises(InputError, match=message) as raised:
        kg.audit(**arguments)
    assert "\n" not in str(raised.value)
