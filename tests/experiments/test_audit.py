"""The program of the audit end to end, resumed, and used wrongly."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import types
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_git as kg
from experiments import audit as program
from experiments.audit import Config, run
from keras_git.auditing import AuditResult
from keras_git.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _report(monkeypatch):
    """Stands in for the report where it is not installed."""
    if importlib.util.find_spec("keras_git.report") is None:
        stand_in = types.ModuleType("keras_git.report")
        stand_in.write_html = lambda result, path: Path(path).write_text("<html></html>")
        monkeypatch.setitem(sys.modules, "keras_git.report", stand_in)
        monkeypatch.setattr(kg, "report", stand_in, raising=False)


def network(seed):
    initializer = keras.initializers.RandomNormal(stddev=0.5, seed=seed)
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Flatten(),
            keras.layers.Dense(4, kernel_initializer=initializer),
        ]
    )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("audited")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 8, 8)).astype(np.uint8)
    labels = rng.integers(0, 4, 60)
    np.savez(
        folder / "data.npz",
        x_train=images[:30],
        y_train=np.repeat([0, 1, 2, 3], [15, 9, 4, 2]),
        x_test=images[30:],
        y_test=labels[30:],
    )
    for name in ("a", "b"):
        network(ord(name)).save(folder / f"{name}.keras")
    return folder


@pytest.fixture
def config(files, tmp_path):
    return Config(
        model=(str(files / "a.keras"), str(files / "b.keras")),
        data=str(files / "data.npz"),
        transforms=("shift:1", "brightness:20:60"),
        num_samples=2,
        batch_size=16,
        examples=2,
        output_dir=str(tmp_path / "out"),
    )


def test_two_models_interrupted_and_resumed(config, monkeypatch, capsys):
    measured = []
    audit = kg.audit

    def interrupted(model, *arguments, **options):
        measured.append(options["names"])
        if len(measured) == 2:
            raise KeyboardInterrupt
        return audit(model, *arguments, **options)

    monkeypatch.setattr(kg, "audit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    folder = Path(config.output_dir)
    assert [m.name for m in AuditResult.from_json(folder / "audit.json").models] == ["a"]
    assert not (folder / "report.html").exists()

    result = run(config)
    assert measured == [["a"], ["b"], ["b"]]
    assert [m.name for m in result.models] == ["a", "b"]
    np.testing.assert_array_equal(result.class_counts, [15, 9, 4, 2])
    assert "eKLD" in capsys.readouterr().out
    for name in ("audit.json", "audit.csv", "report.html", "config.json"):
        assert (folder / name).stat().st_size > 0
    for name in ("ekld_against_class_size", "accuracy_per_class"):
        assert (folder / "pictures" / f"{name}.png").stat().st_size > 1000
    left = [p.name for p in folder.rglob("*") if p.name.startswith(".") and p.name != ".lock"]
    assert left == []
    stored = AuditResult.from_json(folder / "audit.json")
    np.testing.assert_equal(stored.to_table(), result.to_table())
    # the same as without an interruption, and nothing is measured again
    run(config)
    assert len(measured) == 3
    whole = audit(
        {"a": config.model[0], "b": config.model[1]},
        config.data,
        list(config.transforms),
        num_samples=2,
        batch_size=16,
    )
    for one, other in zip(result.to_table(), whole.to_table(), strict=True):
        assert one["ekld"] == pytest.approx(other["ekld"], rel=1e-5, nan_ok=True)
    with pytest.raises(InputError, match="different configuration: num_samples"):
        run(dataclasses.replace(config, num_samples=3))


def test_class_counts_from_a_run(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"class_counts": [9, 8, 7, 6]}))
    config = dataclasses.replace(
        config,
        model=config.model[:1],
        transforms=("identity",),
        class_counts=str(tmp_path / "config.json"),
        names=("mine",),
    )
    result = run(config)
    np.testing.assert_array_equal(result.class_counts, [9, 8, 7, 6])
    assert result.models[0].name == "mine"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ()}, "--model: name at least one"),
        ({"data": ""}, "--data"),
        ({"output_dir": ""}, "--output_dir"),
        ({"names": ("x",)}, "--names=x"),
        ({"model": ("a.keras", "a.keras")}, "tell them apart"),
        ({"model": ("absent.keras",)}, "no such file"),
        ({"data": "absent.npz"}, "is not a file"),
        ({"preprocess": ("0-1",)}, "--preprocess=0-1: use one of"),
        ({"preprocess": ("none",) * 3}, "one for each of the 2"),
        ({"outputs": ("odds",)}, "--outputs=odds"),
        ({"class_counts": "1,x"}, "--class_counts=1,x"),
        ({"class_counts": "1,2"}, "class_counts has shape"),
        ({"generator": "absent.keras"}, "--generator=absent.keras: no such file"),
        ({"import_module": ("no_such_module",)}, "--import_module=no_such_module"),
        ({"transforms": ("shear",)}, "'shear' is unknown"),
        ({"num_samples": 0}, "num_samples is 0"),
    ],
)
def test_bad_input(config, change, message):
    with pytest.raises(InputError, match=message) as raised:
        run(dataclasses.replace(config, **change))
    assert "\n" not in str(raised.value)


def test_refused_settings_do_not_claim_the_folder(config):
    config = dataclasses.replace(config, model=config.model[:1], transforms=("shear",))
    with pytest.raises(InputError, match="unknown"):
        run(config)
    run(dataclasses.replace(config, transforms=("identity",)))


@pytest.mark.slow
def test_bad_input_ends_in_one_line_and_code_2(tmp_path):
    command = [sys.executable, "-m", "experiments.audit", f"--output_dir={tmp_path / 'out'}"]
    process = subprocess.run(
        [*command, "--model=model.h5", "--data=x.npz"], capture_output=True, text=True, cwd=ROOT
    )
    assert process.returncode == 2
    (line,) = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert "give a .keras file" in line
    assert not (tmp_path / "out").exists()


def test_flags_have_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(Config))
    assert program.__doc__
