"""The program that finds factors: end to end, resumed, and used wrongly."""

from __future__ import annotations

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

from experiments import factors as program
from experiments.factors import PIXELS, UNTRAINED, Config, run
from keras_git.analysis import FactorTable, InvarianceTable, TransformSet
from keras_git.errors import InputError
from tests.analysis.planted import SIDE, planted_images

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("factors")
    images, labels = planted_images(8)
    levels = np.round(255 * images).astype(np.uint8)
    np.savez(folder / "data.npz", images=levels, labels=labels)
    for seed, name in enumerate("ab"):
        keras.utils.set_random_seed(seed + 1)
        inputs = keras.Input((SIDE, SIDE, 3))
        x = keras.layers.Rescaling(1 / 255)(inputs)
        x = keras.layers.AveragePooling2D(4)(x)
        x = keras.layers.Flatten()(x)
        x = keras.layers.Dense(12, activation="relu")(x)
        outputs = keras.layers.Dense(3)(x)
        keras.Model(inputs, outputs).save(folder / f"{name}.keras")
    return folder


@pytest.fixture
def config(files, tmp_path):
    return Config(
        model=(str(files / "a.keras"), str(files / "b.keras")),
        data=str(files / "data.npz"),
        search=("a", PIXELS),
        quick=True,
        output_dir=str(tmp_path / "out"),
    )


def _few(config, sample):
    """Two families, so that little has to be compiled."""
    ladder = TransformSet.paper_invariance(sample.image_size).filter(
        ["rotate", "translateX", "scale_zoom_in", "solarize"], indices=(3, 5)
    )
    candidates = TransformSet.geometric(sample.image_size, shear=(), scale=(2.0,))
    return candidates.filter(["rotate", "translateX", "scale"]), ladder


@pytest.mark.slow_on("jax", "torch")
def test_end_to_end_interrupted_and_resumed(config, monkeypatch, capsys):
    monkeypatch.setattr(program, "_sets", _few)
    measure = program.invariance_of_models
    calls = []

    def interrupted(models, *arguments, **options):
        calls.append(next(iter(models)))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(models, *arguments, **options)

    monkeypatch.setattr(program, "invariance_of_models", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    out = Path(config.output_dir)
    assert not (out / "report.html").exists()
    monkeypatch.setattr(program, "explain_variation", None)  # the search is not repeated
    monkeypatch.setattr(program, "invariance_of_models", lambda m, *a, **o: measure(m, *a, **o))
    tables = run(config)
    assert calls == ["a", "b"]
    assert set(tables["factors"]) == {"a", PIXELS}
    assert tables["invariance"].models == ["a", "b", UNTRAINED]
    assert len(tables["invariance"].differences) == 3 * 8
    embeddings = "a", PIXELS
    assert set(tables["line_ups"]) == {f"{n}, factors by {e}" for n in "ab" for e in embeddings}
    written = {p.name for p in out.iterdir()} - {".lock"}
    assert written == {
        "config.json", "differences.csv", "invariance.csv", "invariance.json", "line_up.json",
        "models", "pictures", "report.html",
        *(f"{t}_{e}.csv" for t in ("factors", "operations", "similarity") for e in embeddings),
        *(f"{t}_{e}.json" for t in ("factors", "similarity") for e in embeddings),
    }  # fmt: skip
    assert len(list((out / "pictures").iterdir())) == 9
    with open(out / "factors_a.csv") as file:
        assert list(csv.DictReader(file).fieldnames) == list(FactorTable.COLUMNS)
    json.loads((out / "line_up.json").read_text())
    report = (out / "report.html").read_bytes()
    text = capsys.readouterr().out
    assert "transforms" in text and "rho =" in text

    # A third time everything is there, and the same
    monkeypatch.setattr(program, "invariance_of_models", None)
    run(config)
    assert (out / "report.html").read_bytes() == report
    # In one go it is what it was in two
    monkeypatch.undo()
    monkeypatch.setattr(program, "_sets", _few)
    whole = dataclasses.replace(config, output_dir=str(out.parent / "whole"))
    run(whole)
    again = InvarianceTable.from_json(out.parent / "whole" / "invariance.json")
    for column in ("invariance", "lo", "ratio_of_means"):
        np.testing.assert_allclose(again[column], tables["invariance"][column], atol=1e-6)
    np.testing.assert_allclose(
        again.differences["difference"], tables["invariance"].differences["difference"], atol=1e-6
    )
    with pytest.raises(InputError, match="different configuration"):
        run(dataclasses.replace(config, seed=5))


def test_the_untrained_copy_has_other_weights(files):
    model = keras.saving.load_model(files / "a.keras")
    fresh = program.untrained_copy(model, 0)
    images = np.full((2, SIDE, SIDE, 3), 99, np.float32)
    one, two = (ops.convert_to_numpy(m(images)) for m in (model, fresh))
    assert one.shape == two.shape and not np.allclose(one, two)
    again = program.untrained_copy(model, 0)
    for a, b in zip(fresh.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"model": ()}, "--model"),
        ({"data": ""}, "--data"),
        ({"output_dir": ""}, "--output_dir"),
        ({"images_per_class": 2}, "3 or more"),
        ({"batch_size": 0}, "--batch_size"),
        ({"search": ("c",)}, "--search=c: use one of a, b, untrained"),
        ({"names": ("a", "untrained")}, "name of the untrained"),
        ({"names": ("a", "pixels")}, "without a network"),
        ({"names": ("a.b", "a_b")}, "'a.b' and 'a_b' would write the same files"),
        ({"preprocess": ("half",)}, "--preprocess"),
        ({"layer": "poool"}, "no layer 'poool'"),
        ({"data": "nowhere.npz"}, "nowhere"),
        ({"import_module": ("nowhere_at_all",)}, "--import_module"),
    ],
)
def test_bad_settings(config, change, match):
    if "names" in change:
        change = {**change, "search": ()}
    with pytest.raises(InputError, match=match):
        run(dataclasses.replace(config, **change))


def _program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "experiments.factors", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_the_command(files, tmp_path):
    out = tmp_path / "out"
    done = _program(
        f"--model={files / 'a.keras'}", f"--data={files / 'data.npz'}", "--quick",
        f"--output_dir={out}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "report.html").exists()
    bad = _program("--model=nowhere.keras", "--data=cifar10", f"--output_dir={tmp_path / 'other'}")
    assert bad.returncode == 2 and "nowhere.keras" in bad.stderr
    timed = _program("--benchmark", "--quick", f"--output_dir={tmp_path / 'timed'}")
    assert timed.returncode == 0 and "48 candidates" in timed.stdout
    (path,) = (tmp_path / "timed").iterdir()
    assert json.loads(path.read_text())["candidates"] == 48
