"""An audit that is interrupted and continued is the audit that was not."""

from __future__ import annotations

import dataclasses
import types

import keras
import numpy as np
import pytest

import keras_git as kg
from keras_git.auditing import LabelledImages, checkpoint
from keras_git.auditing.measure import ModelRun
from keras_git.errors import InputError

NUM_CLASSES, SIZE = 4, 6


def network(seed):
    initializer = keras.initializers.RandomNormal(stddev=0.02, seed=seed)
    layers = [keras.Input((SIZE, SIZE, 1)), keras.layers.Flatten()]
    layers.append(keras.layers.Dense(NUM_CLASSES, kernel_initializer=initializer))
    return keras.Sequential(layers, name=f"model_{seed}")


@pytest.fixture(scope="module")
def model():
    return network(1)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(NUM_CLASSES), [14, 9, 5, 3])
    rng.shuffle(labels)
    return rng.integers(1, 256, (len(labels), SIZE, SIZE, 1)).astype(np.uint8), labels


OPTIONS = {
    "transforms": ["shift:1:2", "brightness:40", "horizontal_flip"],
    "batch_size": 5,
    "num_samples": 3,
    "num_examples": 0,
    "precision": 0.05,
    "max_samples": 14,
}


class Interrupted(Exception):
    pass


def interrupting(at):
    """A progress callback that ends the audit at its call number `at`, counted from 0."""
    calls = []

    def progress(done, planned, text):
        calls.append((done, planned, text))
        if len(calls) == at + 1:
            raise Interrupted

    progress.calls = calls
    return progress


@pytest.fixture
def counted(monkeypatch):
    """Counts the calls of models and of transformations, and lets every batch be kept."""
    calls = []
    for name in ("_predicted", "_launch"):
        method = getattr(ModelRun, name)
        monkeypatch.setattr(ModelRun, name, lambda *a, method=method: calls.append(1) or method(*a))
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITES_BETWEEN", 0)
    return calls


def assert_same(one, other):
    """All but the time, bit by bit."""
    np.testing.assert_equal(one.to_table(), other.to_table())
    np.testing.assert_array_equal(one.num_images, other.num_images)
    assert one.settings == other.settings
    for first, second in zip(one.models, other.models, strict=True):
        for field in dataclasses.fields(first):
            if field.name not in ("measurements", "examples", "accuracy_trend"):
                found = getattr(first, field.name), getattr(second, field.name)
                np.testing.assert_equal(*found, err_msg=field.name)
        for a, b in zip(first.measurements, second.measurements, strict=True):
            assert a.groups == b.groups
        assert len(first.examples) == len(second.examples)
        for a, b in zip(first.examples, second.examples, strict=True):
            np.testing.assert_equal(dataclasses.asdict(a), dataclasses.asdict(b))


def as_stream(images, labels):
    """Pieces that are no batches."""

    def pieces(size):
        for start in range(0, len(labels), 4):
            yield images[start : start + 4], labels[start : start + 4]

    return LabelledImages(pieces, "stream")


@pytest.mark.parametrize(
    "kind", ["arrays", pytest.param("stream", marks=pytest.mark.slow_on("jax"))]
)
def test_continued_is_uninterrupted(model, data, counted, tmp_path, kind):
    path = tmp_path / "audit.npz"
    given = (lambda: data) if kind == "arrays" else (lambda: as_stream(*data))
    never = interrupting(10**6)
    whole = kg.audit(model, given(), **OPTIONS, progress=never)
    number = len(counted)
    texts = [text for _, _, text in never.calls]
    assert texts.count("all transformations") == 7 and texts.count("precision") > 8
    # before anything, in the first pass, at its end, inside rounds, at the very end
    for at in (0, 4, 7, 9, len(texts) // 2 + 4, len(texts) - 1):
        counted.clear()
        path.unlink(missing_ok=True)
        with pytest.raises(Interrupted):
            kg.audit(model, given(), **OPTIONS, progress=interrupting(at), checkpoint=path)
        progress = interrupting(10**6)
        continued = kg.audit(model, given(), **OPTIONS, progress=progress, checkpoint=path)
        assert_same(continued, whole)
        assert progress.calls[-1] == never.calls[-1]
        # Batches that are put together at the end of a pass are not kept one by one
        repeated = never.calls[at][0] - progress.calls[0][0]
        assert len(counted) == number if repeated == 0 else 0 < repeated < 50
    assert [p.name for p in tmp_path.iterdir()] == ["audit.npz"]


@pytest.mark.slow_on("jax")
def test_interrupted_again_and_again(model, data, counted, tmp_path):
    """Each time a little further, by any number of processes."""
    path, attempts, options = tmp_path / "audit.npz", 0, {**OPTIONS, "num_examples": 2}
    whole = kg.audit(model, data, **options)
    assert whole.models[0].examples
    number = len(counted)
    counted.clear()
    while True:
        attempts += 1
        try:
            found = kg.audit(model, data, **options, progress=interrupting(2), checkpoint=path)
        except Interrupted:
            continue
        break
    assert_same(found, whole)
    assert attempts > 5 and len(counted) < number + 8 * attempts
    counted.clear()
    assert_same(kg.audit(model, data, **options, checkpoint=path), whole)
    examples = len(counted)
    assert 0 < examples < number / 4  # the pictures are all that is made anew


@pytest.mark.slow_on("jax")
def test_another_batch_size_goes_on(model, data, counted, tmp_path):
    path = tmp_path / "audit.npz"
    whole = kg.audit(model, data, **OPTIONS)
    waiting = False
    while not waiting:  # until inside a round, where images wait for a batch
        with pytest.raises(Interrupted):
            kg.audit(model, data, **OPTIONS, progress=interrupting(1), checkpoint=path)
        with np.load(path) as archive:
            waiting = any("waiting" in name for name in archive.files)
    found = kg.audit(model, data, **{**OPTIONS, "batch_size": 2}, checkpoint=path)
    for one, other in zip(found.to_table(), whole.to_table(), strict=True):
        assert one["ekld"] == pytest.approx(other["ekld"], rel=1e-4, abs=1e-7)
        assert one["num_samples"] == other["num_samples"]


def test_several_models_in_one_file(model, data, counted, tmp_path):
    path = tmp_path / "audit.npz"
    models = {"a": model, "b": network(2)}
    options = {**OPTIONS, "precision": None}
    whole = kg.audit(models, data, **options)
    number = len(counted)
    counted.clear()
    with pytest.raises(Interrupted):
        kg.audit(models, data, **options, progress=interrupting(8 + 3), checkpoint=path)
    before = len(counted)
    assert before > number / 2  # in the second model
    assert_same(kg.audit(models, data, **options, checkpoint=path), whole)
    assert len(counted) == number


def darker(batch):
    return batch * 0.5


def brighter(batch):
    return 255.0 - (255.0 - batch) * 0.5


def changed_image(images):
    images = images.copy()
    images[3, 0, 0] ^= 1
    return images


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 4}, "num_samples was 3, now 4"),
        ({"precision": None}, "precision was 0.05, now None"),
        ({"seed": 7}, "seed was 0, now 7"),
        ({"images_per_class": 3}, "images_per_class was None, now 3"),
        ({"transforms": ["shift:1"]}, "of other transformations"),
        ({"model": 2}, "of other models"),
        ({"preprocess": "0_1"}, "of other models"),
        ({"preprocess": darker}, "of other models"),
        ({"pixels": True}, "of other data"),
        ({"labels": True}, "of other data"),
    ],
)
def test_another_audit_is_refused(model, data, counted, tmp_path, change, message):
    path = tmp_path / "audit.npz"
    with pytest.raises(Interrupted):
        kg.audit(model, data, **OPTIONS, progress=interrupting(2), checkpoint=path)
    content = path.read_bytes()
    change, (images, labels) = dict(change), data
    if change.pop("pixels", False):
        images = changed_image(images)
    if change.pop("labels", False):
        labels = np.roll(labels, 1)
    one = network(change.pop("model", 1))
    with pytest.raises(InputError, match=message) as raised:
        kg.audit(one, (images, labels), **{**OPTIONS, **change}, checkpoint=path)
    assert "\n" not in str(raised.value) and "delete it" in str(raised.value)
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            {"transforms": {"own": darker}},
            {"transforms": {"own": brighter}},
            "transformation 'own' was another function",
        ),
        ({"preprocess": darker}, {"preprocess": brighter}, "model 'model_1' was another function"),
    ],
)
def test_another_function_is_refused(model, data, counted, tmp_path, before, after, message):
    path, options = tmp_path / "audit.npz", {**OPTIONS, "precision": None}
    with pytest.raises(Interrupted):
        progress = interrupting(2)
        kg.audit(model, data, **{**options, **before}, progress=progress, checkpoint=path)
    with pytest.raises(InputError, match=message):
        kg.audit(model, data, **{**options, **after}, checkpoint=path)


def test_a_generator_with_other_weights_is_refused(model, data, counted, tmp_path):
    image, style = keras.Input((SIZE, SIZE, 1)), keras.Input((3,))
    scale = keras.layers.Dense(1, use_bias=False)
    moved = image * keras.layers.Reshape((1, 1, 1))(scale(style))
    generator = keras.Model([image, style], moved, name="trained")
    path = tmp_path / "audit.npz"
    options = {**OPTIONS, "precision": None, "transforms": [generator]}
    with pytest.raises(Interrupted):
        kg.audit(model, data, **options, progress=interrupting(2), checkpoint=path)
    scale.set_weights([scale.get_weights()[0] * 1.0001])
    with pytest.raises(InputError, match="of other transformations"):
        kg.audit(model, data, **options, checkpoint=path)


def test_a_stream_in_another_order_is_noticed(model, counted, tmp_path):
    """Behind the images that are compared at once."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 256, (1200, SIZE, SIZE, 1)).astype(np.uint8)
    labels = np.arange(1200) % NUM_CLASSES
    path = tmp_path / "audit.npz"
    options = {"transforms": ["horizontal_flip"], "batch_size": 200, "num_examples": 0}
    with pytest.raises(Interrupted):
        given = as_stream(images, labels)
        kg.audit(model, given, **options, progress=interrupting(4), checkpoint=path)
    order = np.arange(1200)
    order[300:] = order[300:][::-1]
    given = as_stream(images[order], labels[order])
    with pytest.raises(InputError, match="another order"):
        kg.audit(model, given, **options, checkpoint=path)


@pytest.mark.parametrize("content", [b"", b"no archive", None])
def test_a_file_that_is_no_checkpoint_is_kept(model, data, tmp_path, content):
    path = tmp_path / "audit.npz"
    if content is None:
        np.savez(path, images=data[0], labels=data[1])  # a slip: the data for the checkpoint
    else:
        path.write_bytes(content)
    before = path.read_bytes()
    with pytest.raises(InputError, match="not a checkpoint of an audit .*name another file"):
        kg.audit(model, data, **OPTIONS, checkpoint=path)
    assert path.read_bytes() == before


def test_a_checkpoint_whose_arrays_do_not_fit(model, data, counted, tmp_path):
    path = tmp_path / "audit.npz"
    with pytest.raises(Interrupted):
        kg.audit(model, data, **OPTIONS, progress=interrupting(2), checkpoint=path)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    del arrays["model/0/needed"]
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="not a checkpoint of an audit .*needed"):
        kg.audit(model, data, **OPTIONS, checkpoint=path)


def test_a_folder_that_is_absent(model, data, tmp_path):
    for path in (tmp_path, tmp_path / "no" / "audit.npz"):
        with pytest.raises(InputError, match="in a folder that exists"):
            kg.audit(model, data, **OPTIONS, checkpoint=path)


def bare(path, clock):
    """A checkpoint of nothing, to see when it is written."""
    identity = types.SimpleNamespace(facts={}, made=[], difference=lambda *_: None)
    source = types.SimpleNamespace(
        order=lambda: np.zeros((0, 3), np.uint64), expect_order=lambda order: None
    )
    return checkpoint.Checkpoint(path, identity, source, [], clock)


def test_written_now_and_then(tmp_path, monkeypatch):
    now, written = [0.0], []

    def save(*_):
        now[0] += 4.0  # what it takes
        written.append(now[0])

    monkeypatch.setattr(checkpoint, "save_archive", save)
    kept = bare(tmp_path / "audit.npz", lambda: now[0])
    for now[0], at_once, times in (
        (1.0, False, 0),
        (29.0, False, 0),
        (31.0, False, 1),
        (80.0, False, 1),  # a write of 4 s: not before 80 s after its end
        (90.0, True, 2),
        (120.0, False, 2),
        (180.0, False, 3),
    ):
        kept.keep(at_once)
        assert len(written) == times


def test_the_time_of_all_processes_counts(tmp_path):
    now = [100.0]
    bare(tmp_path / "audit.npz", lambda: now[0]).keep(True)
    first = bare(tmp_path / "audit.npz", lambda: now[0])
    now[0] = 107.0
    first.keep(True)
    assert bare(tmp_path / "audit.npz", lambda: now[0]).seconds_before == 7.0


def test_a_disk_that_fills_up_later_does_not_end_the_audit(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    kept = bare(tmp_path / "audit.npz", lambda: 0.0)
    kept.keep(True)
    monkeypatch.setattr(checkpoint, "save_archive", full)
    kept.keep(True)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        bare(tmp_path / "other.npz", lambda: 0.0).keep(True)
