"""Stages of an experiment by themselves: what is checked, held out and kept before training."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

import keras_git as kg
from experiments import generator_training, stages
from experiments.cifar_lt import Config
from experiments.results_folder import ResultsFolder
from keras_git.errors import InputError


def dataset(counts: tuple[int, ...], seed: int = 0) -> kg.data.ImageDataset:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 16, 16, 3), dtype=np.uint8)
    return kg.data.ImageDataset(images, labels, len(counts))


class Stop(Exception):
    """Nothing is trained in these tests."""


@pytest.fixture
def trainer(monkeypatch) -> list:
    """The settings with which classifiers would be trained."""
    configs = []

    class Trainer:
        def __init__(self, config, *arguments):
            configs.append(config)

        def check(self, method):
            pass

    monkeypatch.setattr(stages, "ClassifierTrainer", Trainer)
    return configs


def start(config: Config, splits: kg.data.Splits, folder: ResultsFolder) -> None:
    def stop(*arguments, **options):
        raise Stop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "_classifiers", stop)
        with pytest.raises(Stop):
            stages.train_and_measure(config, [kg.recipes.get("erm")], splits, folder, 0.0)


def test_validation_images_that_are_not_there_are_named(tmp_path, trainer):
    """eKLD was measured on the test images instead."""
    config = Config(invariance_split="validation", validation_fraction=0.1)
    train, other = dataset((5, 3)), dataset((2, 2), 1)
    with ResultsFolder(tmp_path / "run", {}) as folder:
        with pytest.raises(InputError, match="no image was set aside for validation"):
            stages.train_and_measure(config, [], kg.data.Splits(train, train), folder, 0.0)
    assert not (tmp_path / "run/config.json").exists()
    splits = kg.data.Splits(train, train, validation=other, invariance=dataset((1, 1)))
    assert stages.invariance_images(config, splits) is other
    auto, test = (dataclasses.replace(config, invariance_split=s) for s in ("auto", "test"))
    assert stages.invariance_images(auto, splits) is splits.invariance
    assert stages.invariance_images(test, splits) is splits.test


def test_other_validation_images_are_noticed(tmp_path, trainer):
    """A continued run must not mix what was selected on different images."""
    config, train = Config(), dataset((5, 3))
    splits = kg.data.Splits(train, train, validation=dataset((2, 2), 1))
    with ResultsFolder(tmp_path, {}) as folder:
        start(config, splits, folder)
        start(config, splits, folder)
        for changed, name in (
            ({"validation": dataset((2, 2), 2)}, "validation_content_hash"),
            ({"validation": None}, "validation_content_hash"),
            ({"invariance": dataset((2, 2), 2)}, "invariance_content_hash"),
        ):
            other = dataclasses.replace(splits, **changed)
            with pytest.raises(InputError, match=f"{name} differs"):
                stages.train_and_measure(config, [], other, folder, 0.0)


def test_a_quick_threshold_is_above_the_smallest_class(tmp_path, trainer):
    train = dataset((24, 20))
    with ResultsFolder(tmp_path, {}) as folder:
        for quick, expected in ((True, 21), (False, 12)):
            config = Config(quick=quick, keep_threshold=12)
            start(config, kg.data.Splits(train, train), folder)
            assert trainer[-1].keep_threshold == expected


@pytest.mark.parametrize(("counts", "judged"), [((50, 50), 20), ((20, 20), 10), ((3, 3), 1)])
def test_half_of_the_balanced_images_train_the_judge(tmp_path, monkeypatch, counts, judged):
    """With 20 images per class all were held out, and the judge had none to learn from."""
    seen = {}

    def recognizer(config, balanced, folder):
        seen["trained"] = balanced.class_counts.tolist()
        return lambda images: np.eye(2)[np.repeat([0, 1], len(images) // 2)]

    generator = type("Generator", (), {"count_params": lambda self: 1})()
    monkeypatch.setattr(stages, "load_generator", lambda *arguments: generator)
    monkeypatch.setattr(stages, "_recognizer", recognizer)
    monkeypatch.setattr(stages, "measure_styles", lambda g, images, seed: (0.1, images))
    monkeypatch.setattr(stages, "draw_styles", lambda *arguments: None)
    monkeypatch.setattr(ResultsFolder, "save_model", lambda *arguments: None)
    train = dataset(counts)
    splits = kg.data.Splits(train, train, recognition=train)
    results: dict = {"format_version": 1, "generator": None}
    with ResultsFolder(tmp_path, {}) as folder:
        config = Config(generator="given", recognition_epochs=1)
        stages.make_generator(config, splits, folder, results)
        assert seen["trained"] == [counts[0] - judged] * 2
        assert results["generator"]["recognized"] == 1.0
        one = dataset((1, 1))
        seen.clear()
        results["generator"] = None
        stages.make_generator(config, dataclasses.replace(splits, recognition=one), folder, results)
        assert not seen and results["generator"]["recognized"] is None


def test_a_picture_is_drawn_before_its_checkpoint(tmp_path, monkeypatch):
    """What is killed in between is done again; a picture would never come."""
    events = []

    class Munit:
        generator = None

        def fit(self, data, **options):
            events.append("fit")
            return type("History", (), {"history": {"generator_loss": [1.0]}})

    monkeypatch.setattr(generator_training, "make_munit", lambda *arguments: Munit())
    monkeypatch.setattr(generator_training, "draw_styles", lambda g, c, p, s: events.append(p.name))
    monkeypatch.setattr(kg.training, "training_variables", lambda model: {})
    monkeypatch.setattr(kg.training, "save_checkpoint", lambda *a: events.append("checkpoint"))
    monkeypatch.setattr(kg.data, "training_data", lambda *arguments, **options: None)
    config = Config(generator_steps=4, generator_checkpoint_steps=2, generator_picture_steps=4)
    train = dataset((5, 3))
    with ResultsFolder(tmp_path, {}) as folder:
        generator_training.train_generator(config, train, train.images[:2], folder)
    assert events == ["fit", "checkpoint", "fit", "generator_step_000004.png", "checkpoint"]
