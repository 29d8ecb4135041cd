from __future__ import annotations

import json

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from keras_git import losses, metrics
from keras_git.errors import InputError

COUNTS = [500, 100, 20, 19, 3]


@pytest.fixture
def predictions():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    labels[labels == 2] = 1  # class 2 is absent from the test set
    logits = rng.normal(size=(300, 5)).astype(np.float32)
    logits[np.arange(300), labels] += 1.5
    return labels, logits


def per_class_by_hand(labels, logits):
    correct = logits.argmax(1) == labels
    return np.array(
        [correct[labels == c].mean() if np.any(labels == c) else np.nan for c in range(5)]
    )


def ece_by_hand(labels, logits, num_bins=15):
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    error = 0.0
    for index in range(num_bins):
        low, high = index / num_bins, (index + 1) / num_bins
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return error


def test_confusion_matrix(predictions):
    labels, logits = predictions
    expected = np.zeros((5, 5))
    for label, prediction in zip(labels, logits.argmax(1), strict=True):
        expected[label, prediction] += 1
    matrix = ops.convert_to_numpy(metrics.confusion_matrix(labels, logits, 5))
    np.testing.assert_array_equal(matrix, expected)
    metric = metrics.ConfusionMatrix(5)
    for part in np.array_split(np.arange(300), 3):
        metric.update_state(labels[part][:, None], logits[part])
    np.testing.assert_array_equal(metric.matrix(), expected)
    assert float(metric.result()) == pytest.approx(np.trace(expected) / 300)
    weighted = metrics.confusion_matrix([0, 1], np.eye(2), 2, [0.5, 2.0])
    np.testing.assert_array_equal(ops.convert_to_numpy(weighted), np.diag([0.5, 2.0]))


def test_accuracies_per_class_and_group(predictions):
    labels, logits = predictions
    expected = per_class_by_hand(labels, logits)
    matrix = metrics.confusion_matrix(labels, logits, 5)
    accuracies = ops.convert_to_numpy(metrics.class_accuracies(matrix))
    np.testing.assert_allclose(accuracies, expected, rtol=1e-6)
    assert float(metrics.balanced_accuracy(matrix)) == pytest.approx(np.nanmean(expected), rel=1e-6)

    found = {
        metric.name: metric
        for metric in (
            metrics.BalancedAccuracy(5),
            metrics.PerClassAccuracy(5),
            metrics.PerClassAccuracy(5, class_id=3),
            *(metrics.GroupAccuracy(COUNTS, group) for group in ("many", "medium", "few", "tail")),
        )
    }
    for metric in found.values():
        assert float(metric.result()) == 0
        metric.update_state(labels, logits)
    results = {name: float(metric.result()) for name, metric in found.items()}
    assert results == pytest.approx(
        {
            "balanced_accuracy": np.nanmean(expected),
            "per_class_accuracy": np.nanmean(expected),
            "accuracy_class_3": expected[3],
            "many_accuracy": expected[0],
            "medium_accuracy": expected[1],
            "few_accuracy": expected[[3, 4]].mean(),
            "tail_accuracy": expected[4],
        },
        rel=1e-6,
    )
    np.testing.assert_allclose(found["per_class_accuracy"].per_class(), expected, rtol=1e-6)


def test_groups():
    thresholds = metrics.groups(COUNTS)
    assert {name: list(classes) for name, classes in thresholds.items()} == {
        "many": [0],
        "medium": [1, 2],
        "few": [3, 4],
    }
    thirds = metrics.groups([5, 40, 10, 40, 7, 1, 2], "thirds")
    assert {name: list(classes) for name, classes in thirds.items()} == {
        "head": [1, 2, 3],
        "middle": [0, 4],
        "tail": [5, 6],
    }


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=40))
def test_groups_are_a_partition_in_the_order_of_size(counts):
    for scheme in ("thresholds", "thirds"):
        parts = list(metrics.groups(counts, scheme).values())
        assert sorted(np.concatenate(parts)) == list(range(len(counts)))
        sizes = [[counts[c] for c in part] for part in parts]
        for larger, smaller in zip(sizes, sizes[1:], strict=False):
            if larger and smaller:
                assert min(larger) >= max(smaller)


def test_expected_calibration_error(predictions):
    labels, logits = predictions
    expected = ece_by_hand(labels, logits)
    assert metrics.expected_calibration_error(labels, logits) == pytest.approx(expected, rel=1e-4)
    probabilities = ops.softmax(logits)
    metric = metrics.ExpectedCalibrationError(from_logits=False)
    for part in np.array_split(np.arange(300), 3):
        metric.update_state(labels[part], ops.convert_to_numpy(probabilities)[part])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-4)
    certain = np.array([[0.0, 1.0], [0.0, 1.0]])
    assert metrics.expected_calibration_error([1, 1], certain, from_logits=False) == 0
    assert metrics.expected_calibration_error([0, 0], certain, from_logits=False) == 1


def test_report(predictions):
    labels, logits = predictions
    report = metrics.classification_report(labels, logits, COUNTS)
    expected = per_class_by_hand(labels, logits)
    assert report["per_class_accuracy"][2] is None
    np.testing.assert_allclose(
        [a for a in report["per_class_accuracy"] if a is not None], expected[~np.isnan(expected)]
    )
    assert report["test_accuracy"] == pytest.approx((logits.argmax(1) == labels).mean())
    assert report["balanced_accuracy"] == pytest.approx(np.nanmean(expected))
    assert report["head_accuracy"] == pytest.approx(np.nanmean(expected[:2]))
    assert report["middle_accuracy"] == pytest.approx(expected[3])
    assert report["few_accuracy"] == pytest.approx(expected[3:].mean())
    assert report["expected_calibration_error"] == pytest.approx(
        ece_by_hand(labels, logits), rel=1e-4
    )
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert metrics.classification_report([0, 1], np.eye(2), [50, 60])["few_accuracy"] is None


def test_in_compile(predictions):
    labels, logits = predictions
    model = keras.Sequential(
        [keras.Input((5,)), keras.layers.Dense(5, kernel_initializer="identity")]
    )
    wanted = [
        metrics.BalancedAccuracy(5),
        metrics.GroupAccuracy(COUNTS, "few"),
        metrics.PerClassAccuracy(5, class_id=0),
        metrics.ConfusionMatrix(5),
        metrics.ExpectedCalibrationError(),
    ]
    model.compile(
        keras.optimizers.SGD(0.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=wanted,
    )
    history = model.fit(
        logits,
        labels,
        batch_size=100,
        verbose=0,
        validation_data=(logits, labels),
        validation_batch_size=100,
    ).history
    report = metrics.classification_report(labels, logits, COUNTS)
    for prefix in ("", "val_"):
        for name, expected in {
            "balanced_accuracy": report["balanced_accuracy"],
            "few_accuracy": report["few_accuracy"],
            "accuracy_class_0": report["per_class_accuracy"][0],
            "confusion_matrix": report["test_accuracy"],
            "expected_calibration_error": report["expected_calibration_error"],
        }.items():
            assert history[prefix + name][0] == pytest.approx(expected, rel=1e-4), name
    assert wanted[3].matrix().sum() == 300


@pytest.mark.parametrize(
    "metric",
    [
        metrics.BalancedAccuracy(5),
        metrics.ConfusionMatrix(5),
        metrics.ExpectedCalibrationError(7, from_logits=False),
        metrics.ExpectedKL(5),
        metrics.GroupAccuracy(COUNTS, "middle", many=50, few=4),
        metrics.PerClassAccuracy(5, 2),
    ],
    ids=lambda metric: metric.name,
)
def test_serialization(metric):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert type(again) is type(metric) and again.get_config() == metric.get_config()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.ConfusionMatrix(0), "num_classes"),
        (lambda: metrics.PerClassAccuracy(3, 3), "class_id"),
        (lambda: metrics.GroupAccuracy([3, 4], "most"), "use one of"),
        (lambda: metrics.ExpectedCalibrationError(0), "num_bins"),
        (lambda: metrics.groups([3, 4], "halves"), "use one of"),
        (lambda: metrics.groups([3, 4], many=1, few=2), "few <= many"),
        (lambda: metrics.groups([3, 0]), r"class_counts\[1\]"),
        (lambda: metrics.classification_report([0], np.zeros((1, 3)), [1, 2]), "do not fit"),
        (lambda: metrics.classification_report([2], np.zeros((1, 2)), [1, 2]), r"0..1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_the_mean_of_accuracies_leaves_out_what_was_not_seen():
    accuracies = np.array([0.5, np.nan, 1.0, 0.0], "float32")
    assert float(metrics.mean_accuracy(accuracies)) == 0.5
    assert float(metrics.mean_accuracy(accuracies, np.array([1, 1, 1, 0]))) == 0.75
    assert np.isnan(float(metrics.mean_accuracy(accuracies, np.array([0, 1, 0, 0]))))


def test_label_accuracy_of_integer_and_soft_labels(predictions):
    labels, logits = predictions
    expected = (logits.argmax(1) == labels).mean()
    soft = 0.6 * np.eye(5)[labels] + 0.4 * np.eye(5)[(labels + 1) % 5]
    for targets in (labels, labels[:, None], soft):
        metric = metrics.LabelAccuracy()
        for part in np.array_split(np.arange(300), 3):
            metric.update_state(targets[part], logits[part])
        assert float(metric.result()) == pytest.approx(expected, rel=1e-6)
    weighted = metrics.LabelAccuracy("mixed_accuracy")
    weighted.update_state([1, 0], np.eye(2), sample_weight=[1.0, 3.0])
    assert float(weighted.result()) == 0.0
    weighted.update_state([0, 1], np.eye(2), sample_weight=[1.0, 3.0])
    assert float(weighted.result()) == pytest.approx(0.5)
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(weighted))
    assert type(again) is metrics.LabelAccuracy and again.name == "mixed_accuracy"
    with pytest.raises(InputError, match="probabilities"):
        weighted.update_state(np.zeros((2, 3)), np.eye(2))


def test_label_accuracy_in_compiled_steps(predictions):
    labels, logits = predictions
    model = keras.Sequential([keras.Input((5,)), keras.layers.Activation("linear")])
    expected = (logits.argmax(1) == labels).mean()
    for targets in (labels, np.eye(5, dtype="float32")[labels]):
        model.compile(loss=losses.CrossEntropy(), metrics=[metrics.LabelAccuracy()])
        logs = model.evaluate(logits, targets, batch_size=300, verbose=0, return_dict=True)
        assert logs["accuracy"] == pytest.approx(expected, rel=1e-6)
    for shape in ((2,), (2, 1), (2, 5)):
        symbols = (keras.KerasTensor(shape, "int32"), keras.KerasTensor((2, 5)))
        assert metrics.classification._correct(*symbols).shape == (2,)
