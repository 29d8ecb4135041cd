"""Factors of variation of the large classes in the place of the learned generator."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
from keras import ops

import keras_git as kg
from experiments.cifar_lt import Config, run
from experiments.stages import factor_set
from keras_git.errors import InputError

COUNTS = (60, 40, 30, 20, 10, 6)


def _table(folder, rows=None):
    """Rotation varies in the large classes 0 and 1, solarization in the small class 5 only."""
    rows = rows or [
        {"class_id": 0, "transform": "rotate with magnitude 9", "share": 0.7, "net_gain": 0.1},
        {"class_id": 1, "transform": "rotate with magnitude 9", "share": 0.6, "net_gain": 0.2},
        {"class_id": 0, "transform": "invert with magnitude 5", "share": 0.1, "net_gain": -0.1},
        {"class_id": 1, "transform": "invert with magnitude 5", "share": 0.1, "net_gain": -0.1},
        {"class_id": 5, "transform": "solarize with magnitude 4", "share": 0.9, "net_gain": 0.5},
    ]
    path = folder / "factors.json"
    path.write_text(json.dumps({"rows": rows}))
    return str(path)


def _dataset():
    labels = np.repeat(np.arange(6), COUNTS)
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
    return kg.data.from_arrays(images, labels, images[:12], labels[:12]).train


def test_only_the_factors_of_the_large_classes_are_taken(tmp_path):
    config = Config(methods=("drs+factors",), augment_from_factors=_table(tmp_path))
    found = factor_set(config, [kg.recipes.get("drs+factors")], _dataset())
    assert found == [("rotate with magnitude 9", 1.0)]
    assert factor_set(config, [kg.recipes.get("git")], _dataset()) == []


def test_nothing_to_take_is_one_line(tmp_path):
    nothing = [{"class_id": 0, "transform": "invert with magnitude 5", "share": 0.2, "gain": 0.1}]
    config = Config(methods=("factors",), augment_from_factors=_table(tmp_path, nothing))
    with pytest.raises(InputError, match="no transformation explains"):
        factor_set(config, [kg.recipes.get("factors")], _dataset())
    only_small = [{"class_id": 5, "transform": "rotate with magnitude 9", "share": 1, "gain": 1}]
    config = Config(methods=("factors",), augment_from_factors=_table(tmp_path, only_small))
    with pytest.raises(InputError, match="no row of the classes"):
        factor_set(config, [kg.recipes.get("factors")], _dataset())


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize("rejected", ["batch", "source"])
def test_the_same_images_are_replaced_as_with_a_learned_generator(rejected):
    """Same seed, same schedule: the places and labels of a batch do not depend on who changes."""
    shape = (16, 16, 3)
    image, style = keras.Input(shape), keras.Input((4,))
    learned = keras.Model([image, style], -image)
    made = kg.analysis.factor_generator([("invert with magnitude 5", 1.0)], shape)
    network = keras.Sequential([keras.Input(shape), keras.layers.Flatten(), keras.layers.Dense(6)])
    dataset = _dataset()
    rng = np.random.default_rng(0)
    chosen, sources = rng.integers(0, len(dataset.labels), (2, 48))
    x = {
        "images": ops.convert_to_tensor(dataset.images[chosen]),
        "source_images": ops.convert_to_tensor(dataset.images[sources]),
        "source_labels": ops.convert_to_tensor(dataset.labels[sources]),
    }
    batches = []
    for generator in (learned, made):
        model = kg.training.GITClassifier(
            network, generator, class_counts=COUNTS, keep_threshold=40, rejected=rejected, seed=1
        )
        labels = ops.convert_to_tensor(dataset.labels[chosen])
        images, labels, _ = model.augment(x, labels, None)
        batches.append((ops.convert_to_numpy(images), ops.convert_to_numpy(labels)))
    np.testing.assert_array_equal(batches[0][1], batches[1][1])
    np.testing.assert_allclose(batches[0][0], batches[1][0], atol=1e-3)
    changed = (batches[1][0] != dataset.images[chosen]).any(axis=(1, 2, 3))
    assert changed[24:].any() and not changed[:24].any()


@pytest.mark.slow
@pytest.mark.parametrize("bank", [0, 2])
def test_the_experiment_with_factors(tmp_path, bank):
    config = Config(
        methods=("erm", "drs+factors"),
        num_classes=20,
        quick=True,
        batch_size=32,
        drop_remainder=True,
        augmentation="none",
        keep_threshold=100,
        generator_bank=bank,
        invariance_transforms=("grey_level",),
        augment_from_factors=_table(
            tmp_path,
            [{"class_id": 0, "transform": "invert with magnitude 5", "share": 0.9, "gain": 0.1}],
        ),
        output_dir=str(tmp_path / "run"),
    )
    results = run(config)
    assert results["factors"] == [["invert with magnitude 5", 1.0]]
    assert results["generator"] is None
    entry = results["methods"]["drs+factors"]["seeds"]["0"]
    assert len(entry["invariance"]["grey_level"]["ekld"]) == 20
    # the network alone is saved, which opens with Keras alone
    keras.saving.load_model(tmp_path / "run/models/classifier_drs+factors_seed0.keras")
    again = run(dataclasses.replace(config))
    assert again["methods"]["drs+factors"]["seeds"]["0"] == entry
    (tmp_path / "factors.json").write_text('{"rows": []}')
    with pytest.raises(InputError):
        run(config)
