"""The program of the audit end to end, resumed, and used wrongly."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_git as kg
from experiments import audit as program
from experiments.audit import Config, run
from keras_git.auditing import AuditResult, checkpoint
from keras_git.auditing.measure import ModelRun
from keras_git.errors import InputError

ROOT = Path(__file__).parents[2]


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


@pytest.mark.slow_on("jax")
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
    # what is finished is not read again; only the report is made anew
    (folder / "report.html").unlink()
    monkeypatch.setattr(program, "open_data", pytest.fail)
    assert run(config).to_table()[0] == result.to_table()[0]
    assert (folder / "report.html").exists()


@pytest.mark.slow_on("jax")
def test_interrupted_inside_a_model(config, monkeypatch):
    config = dataclasses.replace(config, num_samples=3, precision=0.02, max_samples=12)
    whole = run(dataclasses.replace(config, output_dir=config.output_dir + "_whole"))
    launched, first = [], []
    launch, show = ModelRun._launch, program.Progress.show
    monkeypatch.setattr(ModelRun, "_launch", lambda *a: launched.append(1) or launch(*a))
    monkeypatch.setattr(checkpoint, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoint, "_WRITES_BETWEEN", 0)

    def interrupted(bar, done, total, note=""):
        show(bar, done, total, note)
        first.append((bar.label, done))
        if len(first) == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(program.Progress, "show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    folder = Path(config.output_dir)
    assert len(list((folder / "checkpoints").glob("audit_*.npz"))) == 1
    assert first[-1][0] == "audit of a" and not (folder / "audit.json").exists()
    # Nothing is finished: other settings may use the folder, and begin anew
    other = dataclasses.replace(config, num_samples=2, precision=None, model=config.model[:1])
    fresh = run(dataclasses.replace(other, output_dir=config.output_dir + "_other"))
    before = len(launched)
    first[:] = first[:1] * 4
    with pytest.raises(KeyboardInterrupt):
        run(other)
    assert first[-1][1] == 0 and len(launched) == before
    first[:] = first[:1] * 9
    result = run(config)
    assert first[9][1] > 0  # goes on
    np.testing.assert_equal(result.to_table(), whole.to_table())
    for one, unbroken in zip(result.models, whole.models, strict=True):
        assert one.evaluations == unbroken.evaluations
    assert not (folder / "checkpoints").exists()
    assert fresh.models[0].evaluations < result.models[0].evaluations


def test_a_folder_with_a_generator_and_a_precision(files, tmp_path):
    """All at once: a given split, two images of each class, a name that looks like a formula."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for split, number in (("train", 3), ("val", 4)):
        for label in ("a", "<b>", "$c$ $", "猫"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for index in range(number):
                pixels = rng.integers(20, 256, (8, 8)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{index}.png")
    image, style = keras.Input((8, 8, 1)), keras.Input((2,))
    moved = keras.layers.Dense(64, use_bias=False)(style)
    moved = keras.layers.Reshape((8, 8, 1))(moved)
    moved = keras.layers.Activation("tanh")(keras.layers.Add()([image, moved]))
    keras.Model([image, style], moved).save(tmp_path / "generator.keras")
    config = Config(
        model=(str(files / "a.keras"),),
        names=("$\\frac$ of $",),
        data=str(tmp_path / "data"),
        split="validation",
        transforms=("brightness:30",),
        generator=str(tmp_path / "generator.keras"),
        images_per_class=2,
        num_samples=3,
        precision=0.05,
        max_samples=6,
        batch_size=8,
        examples=1,
        output_dir=str(tmp_path / "out"),
    )
    result = run(config)
    assert result.num_images.tolist() == [2] * 4 and result.class_counts.tolist() == [3] * 4
    (model,) = result.models
    assert [m.condition.transform for m in model.measurements] == ["brightness", "generator"]
    for measurement in model.measurements:
        assert ((measurement.num_samples >= 2) & (measurement.num_samples <= 6)).all()
    assert result.settings["split"] == "validation" and result.settings["image_size"] == [8, 8]
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "as a trial showed it to need" in page and "<b>" not in page
    assert (tmp_path / "out" / "pictures" / "accuracy_per_class.png").stat().st_size > 1000


def test_a_generator_does_not_change_which_other_transformations_run(config, monkeypatch):
    monkeypatch.setattr(program, "load_generator", lambda path, shape: None)
    monkeypatch.setattr(kg.transforms, "GeneratorTransform", lambda generator: "generator")
    source = program.open_data(config.data)
    with_generator = dataclasses.replace(config, transforms=(), generator="g.keras")
    assert program._transforms(with_generator, source) == ["defaults", "generator"]


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
        ({"import_module": ("tests.experiments.broken",)}, "broken: division by zero"),
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
