"""Classifiers of every kind are opened, or refused in one line."""

from __future__ import annotations

import json
import zipfile

import keras
import numpy as np
import pytest
from keras import ops

from keras_git.auditing import Preprocessing, load_classifier, open_classifier
from keras_git.errors import InputError

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 4, 5, 3)).astype(np.uint8)


def network(units=3, activation=None, shape=(4, 5, 3)):
    layers = [keras.Input(shape), keras.layers.Rescaling(1 / 255), keras.layers.Flatten()]
    return keras.Sequential([*layers, keras.layers.Dense(units, activation)])


@pytest.mark.parametrize("mode", ["caffe", "tf", "torch"])
def test_modes_are_those_of_keras_applications(mode):
    expected = keras.applications.imagenet_utils.preprocess_input(
        IMAGES.astype("float32"), data_format="channels_last", mode=mode
    )
    actual = Preprocessing(mode)(ops.cast(IMAGES, "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(actual), expected, atol=1e-4)


def test_the_other_modes():
    images = ops.cast(IMAGES, "float32")
    for mode, expected in (
        ("none", IMAGES),
        ("0_1", IMAGES / 255),
        ("minus1_1", IMAGES / 127.5 - 1),
        (lambda batch: batch - 3, IMAGES - 3.0),
    ):
        np.testing.assert_allclose(
            ops.convert_to_numpy(Preprocessing(mode)(images)), expected, atol=1e-5
        )
    grey = Preprocessing("none", (8, 10), True)(images[..., :1])
    assert tuple(grey.shape) == (6, 8, 10, 3)
    assert Preprocessing("0_1", (2, 2)) == Preprocessing("0_1", (2, 2))


@pytest.mark.parametrize(
    ("model", "outputs"),
    [
        (network(), "logits"),
        (network(activation="softmax"), "probabilities"),
        (keras.Sequential([network(), keras.layers.Softmax()]), "probabilities"),
        (lambda x: ops.softmax(x[:, 0, 0] / 50), "probabilities"),
        (lambda x: x[:, 0, 0] - 100.0, "logits"),
    ],
    ids=["dense", "softmax", "softmax layer", "function", "function of logits"],
)
def test_logits_or_probabilities(model, outputs):
    opened = open_classifier(model, "x", IMAGES)
    assert opened.outputs == outputs and opened.num_classes == 3
    if outputs == "probabilities":
        assert open_classifier(model, "x", IMAGES, outputs="logits").outputs == "logits"


@pytest.mark.parametrize("activation", ["sigmoid", None])
def test_one_unit_is_two_classes(activation):
    model = network(1, activation)
    if activation is None:
        model.layers[-1].bias.assign([5.0])
    opened = open_classifier(model, "binary", IMAGES)
    assert opened.num_classes == 2
    two = ops.convert_to_numpy(opened.network(ops.cast(IMAGES, "float32")))
    one = ops.convert_to_numpy(model(IMAGES.astype("float32")))
    assert opened.outputs == ("probabilities" if activation else "logits")
    np.testing.assert_allclose(two[:, 1:], one, rtol=1e-6)
    np.testing.assert_allclose(two[:, :1], 1 - one if activation else 0 * one, atol=1e-6)
    assert len(opened.network.variables) == len(model.variables)


def test_resizing_and_grey_images():
    model = network(shape=(8, 8, 3))
    opened = open_classifier(model, "x", IMAGES, resize=True)
    assert opened.preprocessing.size == (8, 8)
    opened = open_classifier(model, "x", IMAGES[..., :1], resize=(8, 8))
    assert opened.preprocessing.colour
    assert open_classifier(network(), "x", IMAGES, resize=True).preprocessing.size is None
    free = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
    assert open_classifier(free, "x", IMAGES, resize=True).preprocessing.size is None


def two_outputs():
    model = network()
    return keras.Model(model.inputs, [model.outputs[0], model.layers[1].output])


def two_inputs():
    one, other = keras.Input((4, 5, 3)), keras.Input((4, 5, 3))
    return keras.Model([one, other], keras.layers.Flatten()(one + other))


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (two_outputs, {}, "has 2 outputs"),
        (two_inputs, {}, "has 2 inputs"),
        (lambda: keras.Sequential([keras.Input((60,)), keras.layers.Dense(2)]), {}, "takes images"),
        (lambda: network(activation="sigmoid"), {}, "no distribution over classes"),
        (network, {"outputs": "probabilities"}, "are no probabilities"),
        (lambda: lambda x: x, {}, r"outputs of shape \(6, 4, 5, 3\)"),
        (lambda: lambda x: x[:2, 0, 0], {}, r"for 6 images"),
        (lambda: lambda x: x[:, 0, 0] * float("nan"), {}, "NaN"),
        (lambda: lambda x: [x[:, 0, 0]], {}, "returns a list"),
        (lambda: lambda x: {"a": x, "b": x}, {}, "has 2 outputs"),
        (lambda: lambda x: x[:, 0, 0] + None, {}, "cannot be called"),
        (lambda: network(shape=(8, 8, 3)), {}, r"resize=True \(--resize\)"),
        (lambda: network(shape=(4, 5, 1)), {}, "takes images of 1 channels, the data have 3"),
        (network, {"preprocess": "imagenet"}, "none, 0_1"),
        (network, {"outputs": "odds"}, "auto, logits"),
        (lambda: None, {}, "a Keras model, a function or a path"),
    ],
)
def test_refused(model, options, message):
    with pytest.raises(InputError, match=message) as raised:
        open_classifier(model(), "x", IMAGES, **options)
    assert "\n" not in str(raised.value)


def test_files(tmp_path):
    model, path = network(), tmp_path / "model.keras"
    model.save(path)
    opened = load_classifier(path)
    np.testing.assert_allclose(
        opened.predict(IMAGES.astype("float32"), verbose=0),
        model.predict(IMAGES.astype("float32"), verbose=0),
        atol=1e-6,
    )
    (tmp_path / "text.keras").write_text("not a model")
    (tmp_path / "empty.keras").touch()
    for name in ("text", "empty"):
        with pytest.raises(InputError, match="cannot be opened") as raised:
            load_classifier(tmp_path / f"{name}.keras")
        assert "\n" not in str(raised.value)


def test_code_in_a_file_is_not_run(tmp_path):
    path = tmp_path / "lambda.keras"
    layer = keras.layers.Lambda(lambda x: x + 1, output_shape=(4, 5, 3))
    keras.Sequential([keras.Input((4, 5, 3)), layer]).save(path)
    with pytest.raises(InputError, match="never run"):
        load_classifier(path)


def test_a_layer_that_is_not_registered(tmp_path):
    """Refused with a sentence that says how to register it; then, registered, opened."""
    path, renamed = tmp_path / "model.keras", tmp_path / "renamed.keras"
    from tests.auditing.saved_models import Doubled

    keras.Sequential([keras.Input((4, 5, 3)), Doubled()]).save(path)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(renamed, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name == "config.json":
                content = content.replace(b"Doubled", b"Tripled").replace(
                    b"tests.auditing.saved_models", b"somebody.elses"
                )
                json.loads(content)
            new.writestr(name, content)
    with pytest.raises(InputError, match="@keras.saving.register_keras_serializable") as raised:
        load_classifier(renamed)
    assert "Tripled" in str(raised.value) and "\n" not in str(raised.value)
    assert isinstance(load_classifier(path).layers[0], Doubled)
