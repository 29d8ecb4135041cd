"""An export opened again, without Keras, gives the network's logits."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.export import export_classifier, with_preprocessing
from keras_git.models import four_conv, resnet

SHAPE = (16, 16, 3)
CONVERTERS = {"tensorflow": "tf2onnx", "jax": "jax2onnx", "torch": "onnx"}

# What the converters cannot do, found out by the export itself: jax2onnx writes max pooling over
# four dimensions, more than ONNX Runtime takes; the exporter of PyTorch does not know `diag`.
LIMITS = {
    ("jax", "four_conv"): "Unsupported pooling size",
    ("torch", "resnet_cosine"): "aten::diag",
}


def networks():
    own_scaling = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.25, 0.3), "seed": 0}
    return {
        "resnet_linear": lambda: resnet(SHAPE, 5, depth=8, width=4, **own_scaling),
        "resnet_cosine": lambda: resnet(SHAPE, 5, depth=8, width=4, head="cosine", **own_scaling),
        "four_conv": lambda: four_conv(SHAPE, 5, width=4, **own_scaling),
    }


@pytest.fixture(params=list(networks()))
def network(request):
    """A network with running statistics that are not the initial ones, as after training."""
    model = networks()[request.param]()
    model.kind = request.param
    rng = np.random.default_rng(0)
    for variable in model.non_trainable_variables:
        if "moving" in variable.name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype("float32"))
    return model


def images(count):
    return np.random.default_rng(1).uniform(0, 255, (count, *SHAPE)).astype("float32")


def logits(model, batch):
    return keras.ops.convert_to_numpy(model(batch, training=False))


def test_saved_model_opens_again(network, tmp_path):
    outcome = export_classifier(network, tmp_path / "classifier", ["tf_saved_model"])
    if keras.config.backend() == "torch":
        assert "torch backend cannot write tf_saved_model" in outcome["tf_saved_model"]
        assert "KERAS_BACKEND=tensorflow" in outcome["tf_saved_model"]
        assert list(tmp_path.iterdir()) == []
        return
    import tensorflow as tf

    assert outcome == {"tf_saved_model": tmp_path / "classifier_saved_model"}
    restored = tf.saved_model.load(str(outcome["tf_saved_model"]))
    for count in (1, 4):  # the size of the batch is free
        actual = restored.serve(images(count)).numpy()
        np.testing.assert_allclose(actual, logits(network, images(count)), atol=1e-5)


def test_onnx_opens_again(network, tmp_path):
    converter = CONVERTERS[keras.config.backend()]
    for package in (converter, "onnxruntime"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs the package {package}")
    import onnxruntime

    before = logits(network, images(4))
    outcome = export_classifier(network, tmp_path / "classifier", ["onnx"])
    limit = LIMITS.get((keras.config.backend(), network.kind))
    if limit and isinstance(outcome["onnx"], str):
        assert limit in outcome["onnx"]
        assert list(tmp_path.iterdir()) == []
        return
    assert outcome == {"onnx": tmp_path / "classifier.onnx"}
    session = onnxruntime.InferenceSession(str(outcome["onnx"]))
    (entry,) = session.get_inputs()
    for count in (1, 4):
        (actual,) = session.run(None, {entry.name: images(count)})
        np.testing.assert_allclose(actual, logits(network, images(count)), atol=1e-4)
    np.testing.assert_array_equal(logits(network, images(4)), before)  # left as it was


def tiny():
    inputs = keras.Input((2,))
    return keras.Model(inputs, keras.layers.Dense(3)(inputs), name="tiny")


def test_missing_converter_is_a_reason_not_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    outcome = export_classifier(tiny(), tmp_path / "tiny", ["onnx"])
    assert list(outcome) == ["onnx"]
    converter = CONVERTERS[keras.config.backend()]
    assert f"needs {converter} and onnxruntime, but {converter} and" in outcome["onnx"]
    assert "pip install" in outcome["onnx"]


def pretend_export(monkeypatch, behaviour):
    """Replace the converters, so that what surrounds them is tested on every backend."""
    monkeypatch.setattr("keras_git.export._obstacle", lambda model, export_format: "")
    monkeypatch.setattr(
        keras.Model, "export", lambda self, path, format, verbose: behaviour(path, format)
    )
    monkeypatch.setattr("keras_git.export._check_onnx", lambda path, images, model: None)


def test_graph_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    original = keras.Model.export
    monkeypatch.setattr("keras_git.export._obstacle", lambda model, export_format: "")

    def export_with_other_weights(self, *args, **kwargs):
        weights = self.get_weights()
        self.set_weights([weight + 1 for weight in weights])
        original(self, *args, **kwargs)
        self.set_weights(weights)

    monkeypatch.setattr(keras.Model, "export", export_with_other_weights)
    if importlib.util.find_spec(CONVERTERS[keras.config.backend()]) is None:
        pytest.skip("needs a converter")
    outcome = export_classifier(tiny(), tmp_path / "tiny", ["onnx"])
    assert "logits differ from the network's by up to" in outcome["onnx"]
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_previous_export(tmp_path, monkeypatch):
    (tmp_path / "tiny.onnx").write_text("previous")

    def fail(path, export_format):
        Path(path).write_text("half")
        raise RuntimeError("operator Foo\nhas no counterpart")

    pretend_export(monkeypatch, fail)
    outcome = export_classifier(tiny(), tmp_path / "tiny", ["onnx"])
    assert outcome["onnx"].endswith("RuntimeError: operator Foo")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [
        ("tiny.onnx", "previous")
    ]


def test_success_replaces_the_previous_export(tmp_path, monkeypatch):
    def write(path, export_format):
        target = Path(path)
        if export_format == "tf_saved_model":
            target.mkdir()
            target = target / "saved_model.pb"
        target.write_text("new")

    pretend_export(monkeypatch, write)
    for _ in range(2):
        outcome = export_classifier(tiny(), tmp_path / "deep" / "er" / "tiny")
        folder, file = outcome["tf_saved_model"], outcome["onnx"]
        assert list(outcome) == ["tf_saved_model", "onnx"]
        assert [entry.read_text() for entry in (folder / "saved_model.pb", file)] == ["new"] * 2
        assert {entry.name for entry in file.parent.iterdir()} == {"tiny_saved_model", "tiny.onnx"}


def test_full_disk_is_an_error(tmp_path, monkeypatch):
    def fail(path, export_format):
        raise OSError(28, "No space left on device")

    pretend_export(monkeypatch, fail)
    with pytest.raises(OSError, match="No space"):
        export_classifier(tiny(), tmp_path / "tiny", ["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_named(tmp_path):
    with pytest.raises(InputError, match="'tflite'; allowed are onnx, tf_saved_model"):
        export_classifier(tiny(), tmp_path / "tiny", ["onnx", "tflite"])
    pair = [keras.Input((1,)), keras.Input((1,))]
    two = keras.Model(pair, keras.layers.Add()(pair))
    for wrong in (keras.Sequential(), two, "model.keras"):
        with pytest.raises(InputError, match="functional classifier network"):
            export_classifier(wrong, tmp_path / "tiny")


def small_network(shape, classes=4):
    inputs = keras.Input(shape)
    x = keras.layers.Rescaling(1 / 255)(inputs)
    outputs = keras.layers.Dense(classes)(keras.layers.Flatten()(x))
    return keras.Model(inputs, outputs)


@pytest.mark.parametrize("channels", [3, 1])
def test_preprocessing_inside(channels, tmp_path):
    """uint8 of any size in, probabilities out; at the size of the network nothing is changed."""
    from PIL import Image
    from scipy.special import softmax

    network = small_network((8, 12, channels))
    with_preprocessing(network, logit_scale=3.0).save(tmp_path / "model.keras")
    model = keras.models.load_model(tmp_path / "model.keras")
    assert model.input_shape == (None, None, None, 3) and model.inputs[0].dtype == "uint8"
    batch = np.random.default_rng(0).integers(0, 256, (3, 8, 12, 3), dtype=np.uint8)

    def expected(images):
        pixels = images.astype("float64")
        if channels == 1:
            pixels = pixels @ np.array([[0.299], [0.587], [0.114]])
        return softmax(3.0 * logits(network, pixels.astype("float32")).astype("float64"), axis=-1)

    np.testing.assert_allclose(logits(model, batch), expected(batch), atol=2e-5)
    # Larger images: as Pillow resizes them, but for its rounding to 8 bits.
    large = np.kron(batch[:1], np.ones((1, 3, 5, 1), np.uint8))
    small = Image.fromarray(large[0]).resize((12, 8), Image.Resampling.BILINEAR)
    np.testing.assert_allclose(logits(model, large), expected(np.asarray(small)[None]), atol=0.02)


def test_preprocessing_needs_a_classifier_of_one_size():
    two = keras.Input((8, 8, 3)), keras.Input((8, 8, 3))
    for model, reason in (
        (keras.Model(two, keras.layers.Add()(two)), "inputs"),
        (keras.Sequential([keras.Input((5,)), keras.layers.Dense(2)]), "inputs"),
        (small_network((8, 8, 4)), "channels"),
        (
            keras.Sequential([keras.Input((None, 8, 3)), keras.layers.GlobalMaxPooling2D()]),
            "one size",
        ),
    ):
        with pytest.raises(InputError, match=reason):
            with_preprocessing(model)
