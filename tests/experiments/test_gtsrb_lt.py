"""GTSRB-LT: its class sizes, its data, and the program on a miniature."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

import keras_git as kg
from experiments.gtsrb_lt import Config, class_sizes, load_data, run
from keras_git.errors import InputError
from tests.data.test_gtsrb import official, plain

# Training images of the 43 classes of the official set: 30 for each track.
TRACKS = [7, 74, 75, 47, 66, 62, 14, 48, 47, 49, 67, 44, 70, 72, 26, 21, 14, 37, 40, 7, 12, 11, 13]
TRACKS += [17, 9, 50, 20, 8, 18, 9, 15, 26, 8, 23, 14, 40, 13, 7, 69, 10, 12, 8, 8]
SMALL = Config(
    quick=True,
    methods=("erm", "git"),
    batch_size=16,
    test_fraction=0.3,
    generator_downsamplings=1,
    generator_outer_kernel=3,
    generator_upsampling_kernel=3,
    style_downsamplings=2,
    discriminator_layers=2,
    generator_width=4,
    invariance_transforms=("brightness", "generator"),
)


def signs(available: np.ndarray) -> kg.data.ImageDataset:
    labels = np.repeat(np.arange(len(available)), available)
    images = np.broadcast_to(np.uint8(0), (len(labels), 8, 8, 3))
    return kg.data.ImageDataset(images, labels, len(available))


def test_class_sizes_follow_the_rank_of_what_there_is():
    available = 30 * np.array(TRACKS)
    assert available.sum() == 39_210  # one track of the official set lacks a frame
    sizes = class_sizes(Config(), signs(available))
    ranked = sizes[np.argsort(-available, kind="stable")]
    expected = [max(int(2250 * r**-1.8), 5) for r in range(1, 44)]
    assert ranked.tolist() == expected
    assert ranked[:5].tolist() == [2250, 646, 311, 185, 124] and ranked[-1] == 5
    assert int(sizes.argmax()) == 2  # the class with most images


def test_no_class_is_asked_for_more_than_it_has():
    assert class_sizes(Config(), signs(np.array([3, 90, 4]))).tolist() == [3, 90, 4]
    config = Config(profile="exponential", smallest_class=9)
    sizes = class_sizes(config, signs(np.array([30, 90, 40])))
    assert sizes.tolist() == [9, 90, 28]


def test_the_data_are_long_tailed_and_reproducible(tmp_path):
    plain(tmp_path)
    config = dataclasses.replace(Config(), data_dir=str(tmp_path), largest_class=20)
    one, two = (load_data(config, tmp_path) for _ in range(2))
    assert one.train.content_hash() == two.train.content_hash()
    assert one.train.class_counts.max() == 20
    other = load_data(dataclasses.replace(config, data_seed=1), tmp_path)
    assert other.train.content_hash() != one.train.content_hash()
    whole = load_data(dataclasses.replace(config, profile="as_is"), tmp_path)
    assert len(whole.train) > len(one.train)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "--data_dir"),
        ({"data_dir": "nowhere"}, "nowhere"),
        ({"methods": ("oracle",)}, "k49_lt has both"),
        ({"smallest_class": 40, "profile": "exponential"}, "smallest"),
        ({"largest_class": 0}, "--largest_class=0"),
        ({"validation_fraction": 0.01, "invariance_split": "validation"}, "no image was set aside"),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, words):
    plain(tmp_path)
    config = dataclasses.replace(SMALL, quick=False, output_dir=str(tmp_path / "run"))
    if "data_dir" not in changes and changes:
        config = dataclasses.replace(config, data_dir=str(tmp_path))
    with pytest.raises(InputError, match=words):
        run(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.slow
def test_a_small_run(tmp_path):
    official(tmp_path / "data")
    config = dataclasses.replace(
        SMALL, data_dir=str(tmp_path / "data"), output_dir=str(tmp_path / "run")
    )
    results = run(config)
    assert results["dataset"] == "GTSRB" and max(results["class_counts"]) == 24
    for method in ("erm", "git"):
        entry = results["methods"][method]["seeds"]["0"]
        assert 0 <= entry["selected"]["epoch"] < 3  # chosen on the validation tracks
    assert Path(config.output_dir, "pictures/ekld_against_class_size.png").is_file()
    assert run(config) == results
