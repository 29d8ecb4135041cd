"""`fold`: same outputs as the model in inference, made of plain Keras layers alone."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import ops

from keras_git import layers
from keras_git.errors import InputError
from keras_git.layers import fold
from keras_git.models import resnet
from tests.layers.test_whitened import CONVOLUTIONS, DENSE, SHAPE, TRANSPOSED

BACKEND = keras.config.backend()


def _randomized(model, seed=0):
    """Statistics, biases and affine parameters that are not those of a fresh model."""
    rng = np.random.default_rng(seed)
    for variable in model.weights:
        value = ops.convert_to_numpy(variable)
        if variable.name == "moving_whitening":
            noise = rng.normal(0, 0.2, value.shape)
            variable.assign(value + noise + np.swapaxes(noise, -1, -2))
        elif variable.name == "moving_variance":
            variable.assign(rng.uniform(0.5, 2, value.shape))
        elif variable.name in ("moving_mean", "bias", "gamma", "beta"):
            variable.assign(value + rng.normal(0, 0.5, value.shape))
    return model


def _parts(model):
    """All layers, those of nested models instead of the models."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from _parts(layer)
        else:
            yield layer


def _check(model, inputs, tolerance=2e-5):
    """Folds, compares outputs, and that the original is as before."""
    weights = model.get_weights()
    folded = fold(model)
    assert folded is not model
    for layer in _parts(folded):
        assert not type(layer).__module__.startswith("keras_git"), layer.name
    expected, ours = model.predict_on_batch(inputs), folded.predict_on_batch(inputs)
    keras.tree.assert_same_structure(expected, ours)
    flat = zip(keras.tree.flatten(expected), keras.tree.flatten(ours), strict=True)
    for number, (a, b) in enumerate(flat):
        a, b = (np.asarray(v).astype("float64") for v in (a, b))
        assert np.abs(a).max() > 0
        np.testing.assert_allclose(b, a, atol=tolerance * max(1, np.abs(a).max()), err_msg=number)
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    return folded


def _images(shape, number=3):
    return np.random.default_rng(1).normal(0.5, 1.0, (number, *shape)).astype("float32")


def _convolutions(format):
    shape = SHAPE if format == "channels_last" else (4, 7, 10)
    variants, transposed = dict(CONVOLUTIONS), dict(TRANSPOSED)
    if format == "channels_first" and BACKEND != "torch":
        # TensorFlow's CPU has no grouped or dilated ones, and JAX compiles them for long
        for kinds in (variants, transposed):
            for name in [n for n, v in kinds.items() if {"groups", "dilation_rate"} & set(v)]:
                del kinds[name]
    axis = -1 if format == "channels_last" else 1
    inputs, outputs = keras.Input(shape), {}

    def add(name, layer, normalized):
        x = layer(inputs)
        outputs[name] = keras.layers.BatchNormalization(axis)(x) if normalized else x

    for name, options in variants.items():
        options = {**options, "data_format": format}
        linear = "activation" not in options
        add(f"w_{name}", layers.WhitenedConv2D(**options, block_size=2), linear)
        if name in ("same_strided", "dilated", "grouped", "no_bias"):
            add(f"p_{name}", keras.layers.Conv2D(**options), True)
    for name, options in transposed.items():
        options = {**options, "data_format": format}
        linear = "activation" not in options
        add(f"wt_{name}", layers.WhitenedConv2DTranspose(**options, block_size=2), linear)
        if name == "no_bias":
            add(f"pt_{name}", keras.layers.Conv2DTranspose(**options), True)
    depthwise = keras.layers.DepthwiseConv2D(
        3, depth_multiplier=2, use_bias=False, data_format=format
    )
    if format == "channels_last" or BACKEND == "torch":
        add("depthwise", depthwise, True)
    for norm in layers.FEATURE_NORMALIZATIONS:
        conv = layers.WhitenedConv2D(
            3, 3, strides=2, padding="same", feature_normalization=norm, data_format=format
        )
        add(f"norm_{norm}", conv, True)
    return _randomized(keras.Model(inputs, outputs)), shape


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("format", ["channels_last", "channels_first"])
def test_convolutions_with_batch_normalization(format):
    model, shape = _convolutions(format)
    folded = _check(model, _images(shape))
    kinds = [type(layer) for layer in _parts(folded)]
    assert keras.layers.BatchNormalization not in kinds


@pytest.mark.slow_on("jax")
def test_original_rules_and_dense_layers():
    inputs = keras.Input((9, 8, 4))
    outputs = []
    options = {"rules": "original", "block_size": 2}
    for padding, strides in (("same", 1), ("same", 2), ("valid", 2)):
        for norm in (None, "sample", "receptive_field"):
            conv = layers.WhitenedConv2D(
                4, 3, strides, padding, feature_normalization=norm, activation="relu", **options
            )
            outputs.append(conv(inputs))
    outputs.append(layers.WhitenedConv2DTranspose(4, 3, padding="same", **options)(inputs))
    for more in DENSE.values():
        x = layers.WhitenedDense(**more, block_size=2)(inputs)
        outputs.append(x if "activation" in more else keras.layers.BatchNormalization()(x))
        outputs.append(layers.WhitenedDense(**more, **options, feature_normalization="l1")(inputs))
    plain = keras.layers.Dense(5, use_bias=False)(keras.layers.Flatten()(inputs))
    outputs.append(keras.layers.BatchNormalization(scale=False, center=False)(plain))
    folded = _check(_randomized(keras.Model(inputs, outputs)), _images((9, 8, 4)))
    assert not [v for v in _parts(folded) if isinstance(v, keras.layers.BatchNormalization)]


def test_what_cannot_be_merged_stays():
    """A normalization with another source, on another axis, behind an activation or a branch."""

    class Doubled(keras.layers.Conv2D):
        def call(self, x):
            return 2 * super().call(x) + 1

    inputs = keras.Input((6, 6, 4))
    normalization = keras.layers.BatchNormalization
    relu = normalization()(keras.layers.Conv2D(4, 3, activation="relu")(inputs))
    branch = keras.layers.Conv2D(4, 3)(inputs)
    shared = keras.layers.Dense(4)
    twice = normalization()(shared(inputs)) + shared(2 * inputs)
    norm = normalization()
    one, two = norm(keras.layers.Dense(4)(inputs)), norm(keras.layers.Dense(4)(inputs))
    model = keras.Model(
        inputs,
        [
            relu,
            branch,
            normalization()(branch),
            twice,
            one,
            two,
            normalization(1)(layers.WhitenedConv2D(3, 1)(inputs)),
            normalization()(Doubled(3, 1)(inputs)),
            normalization()(keras.layers.SeparableConv2D(3, 3)(inputs)),
        ],
    )
    folded = _check(_randomized(model), _images((6, 6, 4)))
    kept = [v for v in _parts(folded) if isinstance(v, keras.layers.BatchNormalization)]
    assert len(kept) == 7


@pytest.mark.slow_on("jax")
def test_networks_of_many_kinds_of_parts():
    """Shared layers, nested models, operations, dropout, several inputs and outputs."""
    encoder_input = keras.Input((8, 8, 3))
    x = layers.WhitenedConv2D(4, 3, block_size=2, name="conv")(encoder_input)
    x = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(x))
    encoder = keras.Model(encoder_input, ops.relu(x) + 0.1, name="encoder")
    head = keras.Sequential(
        [
            keras.layers.GlobalAveragePooling2D(),
            layers.SampleNormalization(),
            layers.WhitenedDense(5, name="logits"),
        ],
        name="head",
    )
    adapted = keras.layers.Normalization()
    adapted.adapt(_images((8, 8, 3)) * 3)
    first, second = keras.Input((8, 8, 3), name="first"), keras.Input((8, 8, 3), name="second")
    shared = layers.WhitenedConv2D(3, 1, activation="relu", name="shared")
    a = encoder(shared(adapted(first)))
    b = encoder(shared(inputs=second), training=False)
    joined = ops.relu(ops.concatenate([a[:, ::2], b[:, 1::2]], axis=-1))
    joined = ops.pad(joined, ((0, 0), (0, 0), (1, 1), (0, 0)))
    joined = layers.WhitenedConv2D(4, 1)(joined)
    outputs = {"difference": head(a) - head(b), "map": layers.L1Normalization()(joined)}
    model = _randomized(keras.Model({"first": first, "second": second}, outputs))
    images = {"first": _images((8, 8, 3)), "second": _images((8, 8, 3)) ** 2}
    folded = _check(model, images)
    assert len(folded.get_layer("encoder").layers) == len(encoder.layers) - 1
    assert [type(v) for v in folded.layers].count(keras.layers.Conv2D) == 2
    # trained further, the copy does not touch the original
    other = fold(folded)
    for ours, expected in zip(other.get_weights(), folded.get_weights(), strict=True):
        np.testing.assert_allclose(ours, expected)


def test_structures_of_single_inputs_and_outputs():
    inputs = keras.Input((4,), name="features")
    x = layers.WhitenedDense(2)(inputs)
    model = keras.Model({"features": inputs}, {"logits": x})
    assert list(_check(model, {"features": _images((4,))}).output) == ["logits"]
    _check(keras.Model([inputs], [x]), [_images((4,))])
    _check(keras.Sequential([keras.Input((4,)), layers.WhitenedDense(2)]), _images((4,)))


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_precision(policy):
    """The layers of a folded model have the policy of those that they stand for."""
    if policy == "float64" and BACKEND == "jax":
        pytest.skip("no float64 in this process")
    inputs = keras.Input((7, 7, 3), dtype="float64" if policy == "float64" else "float32")
    x = inputs
    for norm in ("receptive_field", "sample"):
        options = {"feature_normalization": norm, "dtype": policy}
        x = layers.WhitenedConv2D(4, 3, padding="same", activation="relu", **options)(x)
    x = layers.WhitenedConv2DTranspose(2, 2, dtype=policy)(x)
    x = layers.SampleNormalization(dtype=policy)(x)
    model = _randomized(keras.Model(inputs, layers.WhitenedDense(2, dtype=policy)(x)))
    expected = "float64" if policy == "float64" else "bfloat16"
    images = _images((7, 7, 3)).astype(inputs.dtype)
    # Keras' own Normalization holds float32, and its Dense computes in it on PyTorch.
    folded = _check(model, images, tolerance=0.05 if expected == "bfloat16" else 1e-6)
    assert folded.output.dtype == model.output.dtype == expected
    if policy == "float64" and BACKEND == "tensorflow":
        # on PyTorch, Keras gives the product with a Python number as float32
        assert {tensor.dtype for layer in folded.operations for tensor in _outputs(layer)} == {
            "float64"
        }


def _outputs(operation):
    return keras.tree.flatten(operation.output)


@pytest.mark.slow_on("jax")
def test_a_folded_network_has_the_layers_of_the_plain_one():
    """Whitened or batch normalized: after `fold` convolutions, activations, a head, no more."""
    options = {"width": 4, "mean": 0.5, "std": 0.2, "seed": 1}
    shape = (16, 16, 3)
    whitened = _randomized(resnet(shape, 3, 8, whitening={"block_size": 4}, **options))
    plain = _randomized(resnet(shape, 3, 8, **options))
    images = np.random.default_rng(0).uniform(0, 255, (2, *shape)).astype("float32")
    folded = [_check(model, images, 1e-4) for model in (whitened, plain)]
    first, second = (
        [(type(v), v.name, [w.shape for w in v.weights]) for v in f.layers if v.weights]
        for f in folded
    )
    assert first == second
    kinds = [[type(v).__name__ for v in f.layers] for f in folded]
    assert kinds[0] == kinds[1]
    assert "BatchNormalization" not in kinds[0]


def test_refused_models():
    class Subclassed(keras.Model):
        def __init__(self):
            super().__init__(name="mine")
            self.dense = layers.WhitenedDense(2)

        def call(self, x):
            return self.dense(x)

    model = Subclassed()
    for built in (False, True):
        if built:
            model(np.zeros((1, 3), "float32"))
        with pytest.raises(InputError, match="model 'mine' is subclassed or not built"):
            fold(model)
    with pytest.raises(InputError, match="is subclassed or not built"):
        fold(keras.Sequential([layers.WhitenedDense(2)]))
    with pytest.raises(InputError, match="fold takes a Keras model, not WhitenedDense"):
        fold(layers.WhitenedDense(2))
    inside = keras.layers.TimeDistributed(layers.WhitenedDense(2, name="inner"), name="outer")
    model = keras.Sequential([keras.Input((4, 3)), inside])
    with pytest.raises(InputError, match="layer 'outer' holds 'inner', a WhitenedDense"):
        fold(model)
    inputs = keras.Input((3,))
    with pytest.raises(InputError, match="model 'mine' is subclassed"):
        fold(keras.Model(inputs, Subclassed()(inputs)))
