"""Trains on two virtual devices and on one, and prints what differs, as JSON.

    KERAS_BACKEND=jax python -m tests.two_devices

A program of its own, since the number of devices cannot change once a backend runs.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
DEVICES = 2


def use_two_devices() -> None:
    """Makes two devices of the CPU; before Keras is imported."""
    if BACKEND == "jax":
        os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES}"
    else:
        import tensorflow as tf

        cpu = tf.config.list_physical_devices("CPU")[0]
        device = tf.config.LogicalDeviceConfiguration()
        tf.config.set_logical_device_configuration(cpu, [device] * DEVICES)


use_two_devices()

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers, ops  # noqa: E402

import keras_git as kg  # noqa: E402
from tests.training.conftest import SIZE, small_discriminator, small_networks  # noqa: E402

CLASSES = 4
STEPS = 4
BATCH = 8


def dataset() -> kg.data.ImageDataset:
    rng = np.random.default_rng(0)
    # levels and contrasts that differ, so that halves of a batch have other statistics
    images = rng.normal(size=(36, SIZE, SIZE, 1)) * rng.uniform(5, 50, (36, 1, 1, 1))
    images = np.clip(images + rng.uniform(30, 220, (36, 1, 1, 1)), 0, 255).astype("uint8")
    labels = np.repeat(np.arange(CLASSES), [16, 10, 6, 4])
    return kg.data.from_arrays(images, labels, images, labels).train


def stream(data: kg.data.ImageDataset, seed: int = 0, batch: int = BATCH) -> kg.data.Stream:
    sampler = kg.data.InstanceBalanced(data.labels, seed)
    return kg.data.Stream(data, sampler, batch, seed=seed, drop_remainder=True)


def with_weights(network: keras.Model) -> keras.Model:
    """The same weights whenever it is built; statistics as they are."""
    rng = np.random.default_rng(1)
    for variable in network.trainable_variables:
        values = rng.normal(size=variable.shape) / np.sqrt(np.prod(variable.shape[:-1]))
        variable.assign(values.astype("float32"))
    return network


def normalized() -> keras.Model:
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 64, offset=-2)(inputs)
    for width in (4, 6):
        x = layers.Conv2D(width, 3, strides=2, use_bias=False)(x)
        x = ops.relu(layers.BatchNormalization(momentum=0.9, epsilon=1e-5)(x))
    x = layers.GlobalAveragePooling2D()(x)
    return with_weights(keras.Model(inputs, layers.Dense(CLASSES)(x)))


def whitened() -> keras.Model:
    inputs = keras.Input((SIZE, SIZE, 1))
    x = layers.Rescaling(1 / 64, offset=-2)(inputs)
    for width, interval in ((4, 1), (6, 3)):
        x = kg.layers.WhitenedConv2D(width, 3, strides=2, update_interval=interval)(x)
        x = ops.relu(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = kg.layers.WhitenedDense(CLASSES)(x)
    return with_weights(keras.Model(inputs, x))


def fitted(model: Any, data: Any) -> dict[str, Any]:
    """Losses (and other logs) of the steps, and all that the training changed."""
    history = model.fit(data, steps_per_epoch=1, epochs=STEPS, verbose=0, shuffle=False).history
    state = kg.training.training_variables(model)
    return {
        "logs": {name: [float(v) for v in values] for name, values in history.items()},
        "state": {k: [ops.convert_to_numpy(v) for v in group] for k, group in state.items()},
    }


def sgd(rate: float = 0.05) -> Any:
    return kg.optimizers.SGD(rate, momentum=0.9, l2=1e-3)


def classifier(network: Callable[[], keras.Model]) -> dict[str, Any]:
    model = kg.training.Classifier(network())
    model.compile(sgd(), kg.losses.CrossEntropy(), metrics=["accuracy"])
    return fitted(model, kg.data.training_data(stream(dataset())))


def flat() -> dict[str, Any]:
    """What needs the whole batch, but for mixing; and averages of the weights."""
    model = kg.training.Classifier(
        normalized(),
        augmentation=layers.RandomErasing(0.5, seed=1),
        feature_augmentation=kg.training.ISDA(0.5, STEPS),
        sharpness_radius=0.1,
    )
    optimizer = kg.optimizers.SGD(0.05, l2=1e-3, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, kg.losses.CrossEntropy())
    found = fitted(model, kg.data.training_data(stream(dataset())))
    with kg.training.use_averaged_weights(model):
        kg.training.refresh_batch_normalization(model.network, dataset().images, batch_size=BATCH)
        found["state"]["averaged"] = [ops.convert_to_numpy(v) for v in model.network.weights]
    return found


def generating() -> dict[str, Any]:
    data, weights = dataset(), np.array([1.0, 2.0, 3.0, 4.0])
    generator = small_networks().generator
    model = kg.training.GITClassifier(
        normalized(),
        generator,
        class_counts=data.class_counts,
        keep_threshold=20,
        generation_batch=2,
        start_epoch=1,
        class_weights=weights,
    )
    # both kinds of weighted means, each over the whole batch
    model.compile(sgd(), kg.losses.CrossEntropy(class_weights=weights), metrics=["accuracy"])
    sources = stream(data, seed=1, batch=BATCH // 2)
    return fitted(model, kg.data.training_data(stream(data), sources=sources))


def munit() -> dict[str, Any]:
    model = kg.training.MUNIT(small_networks(), small_discriminator())
    # not Adam: it divides gradients that are 0 but for rounding by their size
    model.compile(generator_optimizer=sgd(1e-3), discriminator_optimizer=sgd(1e-3))
    return fitted(model, kg.data.training_data(stream(dataset())))


TRAININGS: dict[str, Callable[[], dict[str, Any]]] = {
    "batch normalization": lambda: classifier(normalized),
    "whitened": lambda: classifier(whitened),
    "generated images": generating,
    "MUNIT": munit,
}
if BACKEND == "jax":  # TensorFlow refuses
    TRAININGS["sharpness"] = flat


def largest_difference(one: list[np.ndarray], two: list[np.ndarray]) -> float:
    """Of values above 1, relative to them."""
    return max(
        float(np.max(np.abs(a - 1.0 * b) / np.maximum(np.abs(a), 1.0), initial=0.0))
        for a, b in zip(one, two, strict=True)
    )


def compare(train: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    results = []
    for scope in (nullcontext(), kg.distribution.data_parallel()):
        keras.utils.set_random_seed(0)
        with scope:
            results.append(train())
    one, two = results
    return {
        "logs": {name: [one["logs"][name], two["logs"][name]] for name in one["logs"]},
        "state": {k: largest_difference(one["state"][k], two["state"][k]) for k in one["state"]},
    }


def facts() -> dict[str, Any]:
    """What else has to hold of a model that was trained on two devices."""
    found: dict[str, Any] = {}
    data = dataset()
    transform = kg.transforms.Brightness()
    folder = tempfile.mkdtemp()
    path = Path(folder) / "network.keras"
    with kg.distribution.data_parallel() as number:
        found["devices"] = number
        network = normalized()
        model = kg.training.Classifier(network)
        model.compile(sgd(), kg.losses.CrossEntropy())
        model.fit(data.images[:16], data.labels[:16], batch_size=BATCH, verbose=0)
        found["iterations"] = int(ops.convert_to_numpy(model.optimizer.iterations))
        switches = [getattr(layer, "synchronized", False) for layer in network.layers]
        found["synchronized"] = any(switches)
        network.save(path)
        variables = kg.training.training_variables(model)
        kg.training.save_checkpoint(Path(folder) / "state.npz", variables, {"step": 2})
        before = [ops.convert_to_numpy(v) for v in network.variables]
        for variable in network.variables:
            variable.assign(np.zeros(variable.shape, "float32"))
        progress = kg.training.load_checkpoint(Path(folder) / "state.npz", variables)
        found["progress"] = progress
        found["checkpoint"] = largest_difference(
            before, [ops.convert_to_numpy(v) for v in network.variables]
        )
        inside = kg.metrics.expected_kl(network, data.images, data.labels, transform, 2)
        # training goes on from what was loaded, on all devices
        model.fit(kg.data.training_data(stream(data)), steps_per_epoch=2, verbose=0, shuffle=False)
        found["iterations after loading"] = int(ops.convert_to_numpy(model.optimizer.iterations))
        try:
            arrays = kg.data.training_data(stream(data), pipeline="numpy")
            model.fit(arrays, steps_per_epoch=1, verbose=0)
        except kg.InputError as error:
            found["PyDataset"] = str(error)
        try:
            flat()
        except kg.InputError as error:
            found["part of a batch"] = str(error)
        try:
            odd = stream(data, batch=5)
            model.fit(kg.data.training_data(odd), steps_per_epoch=1, verbose=0, shuffle=False)
        except Exception as error:  # each backend has its own
            found["odd batch"] = str(error)
    opened = keras.models.load_model(path)
    found["saved"] = [
        layer.get_config()["synchronized"] for layer in opened.layers if hasattr(layer, "momentum")
    ]
    outside = kg.metrics.expected_kl(opened, data.images, data.labels, transform, 2)
    shutil.rmtree(folder)
    found["ekld"] = [inside.mean_ekld, outside.mean_ekld]
    return found


if __name__ == "__main__":
    report: dict[str, Any] = {}
    for name, train in TRAININGS.items():
        start = time.process_time()
        report[name] = {**compare(train), "seconds": time.process_time() - start}
    print(json.dumps({"trainings": report, "facts": facts()}))
