"""The program for a folder of images: what it chooses, what it writes, how it is used wrongly."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

import keras_git as kg
from experiments import image_folder_lt, settings, stages
from experiments.image_folder_lt import Config, chosen_settings, prepared, run
from experiments.model_card import command, escaped
from keras_git.errors import InputError

ROOT = Path(__file__).parents[2]
NAMES = ("<b>bold", "it's", "two words", "猫")


def draw_folder(root: Path, counts: tuple[int, ...], size: tuple[int, int] = (20, 24)) -> Path:
    rng = np.random.default_rng(0)
    for label, (name, count) in enumerate(zip(NAMES, counts, strict=True)):
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.clip(rng.normal(40 + 55 * label, 20, (*size, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i:03d}.png")
    return root


def dataset(counts: tuple[int, ...], size: tuple[int, int] = (32, 32)) -> kg.data.ImageDataset:
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.broadcast_to(np.uint8(0), (len(labels), *size, 3))
    return kg.data.ImageDataset(images, labels, len(counts))


# ---------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("counts", [(5, 3, 1), (40, 40), (900, 90, 9), (20_000, 500, 10)])
@pytest.mark.parametrize("size", [(28, 28), (64, 64), (16, 48), (50, 50)])
@pytest.mark.parametrize("given", [{}, {"epochs": 2, "batch_size": 8}, {"quick": True}])
def test_what_is_chosen_can_be_run(tmp_path, counts, size, given):
    """All settings are there, pass the checks, and the networks can be built for the images."""
    config = prepared(Config(data_dir=str(tmp_path), **given))
    train = dataset(counts, size)
    complete, _ = settings.checked(chosen_settings(config, train), lambda shrunk: shrunk)
    optional = {"data_dir", "group_regex", "cache_dir", "generator", "keep_threshold", "width",
                "imbalance_ratio", "largest_class", "smallest_class", "zipf_exponent",
                "feature_normalization", "augment_from_factors"}  # fmt: skip
    unset = {name for name, value in dataclasses.asdict(complete).items() if value is None}
    assert unset <= optional
    assert 0 <= complete.defer_epoch < complete.generation_epoch + 1 <= complete.epochs
    assert size[0] % 2**complete.generator_downsamplings == 0
    kg.training.keep_probability(train.class_counts, complete.keep_threshold)
    smallest = min(size) // 2 ** max(complete.style_downsamplings, complete.discriminator_layers)
    assert smallest >= 2
    for name, value in given.items():
        assert getattr(complete, name) == value


def test_choices_grow_with_the_data():
    few, many = (chosen_settings(Config(), dataset(c)) for c in ((60, 20), (30_000, 1000)))
    assert (few.batch_size, many.batch_size) == (32, 128)
    assert few.epochs == 200 and many.epochs == 20
    assert few.generator_steps == 3000 and many.generator_steps == 15_500
    assert few.keep_threshold == 40 and many.keep_threshold == 3000
    assert few.generator_bank == many.generator_bank == 16
    assert chosen_settings(Config(), dataset((30, 30))).keep_threshold is None
    assert chosen_settings(Config(keep_threshold=0), dataset((60, 20))).keep_threshold is None
    assert chosen_settings(Config(), dataset((90_000, 80_000), (64, 64))).generator_bank == 0


@pytest.mark.parametrize(
    ("given", "profile"),
    [
        ({}, "as_is"),
        ({"imbalance_ratio": 10.0}, "exponential"),
        ({"smallest_class": 5, "largest_class": 50}, "exponential"),
        ({"class_counts": (3, 2)}, "counts"),
        ({"zipf_exponent": 1.5}, "zipf"),
        ({"profile": "balanced", "largest_class": 5}, "balanced"),
    ],
)
def test_settings_choose_the_profile(tmp_path, given, profile):
    assert prepared(Config(data_dir=str(tmp_path), **given)).profile == profile


def test_validation_images_of_the_folder_are_enough_for_the_ekld(tmp_path):
    """No part of the training images has to be set aside."""
    config = Config(
        data_dir=str(tmp_path), validation_fraction=0.0, invariance_split="validation", quick=True
    )
    draw_folder(tmp_path / "train", (6, 5, 4, 4))
    draw_folder(tmp_path / "test", (2, 2, 2, 2))
    with pytest.raises(InputError, match="needs --validation_fraction above 0, or a folder .*val"):
        prepared(config)
    draw_folder(tmp_path / "val", (3, 2, 1, 1))
    config = prepared(config)
    splits = image_folder_lt.load(config, tmp_path).splits
    config, _ = settings.checked(
        chosen_settings(config, splits.train), lambda shrunk: shrunk, own_validation=True
    )
    assert len(stages.invariance_images(config, splits)) == 7


@pytest.mark.parametrize(
    ("counts", "given", "expected"),
    [
        ((80, 100, 100), {"imbalance_ratio": 10.0}, [9, 93, 29]),
        ((1000, 10, 40), {"imbalance_ratio": 10.0}, [350, 10, 40]),
        ((80, 100, 90), {"profile": "balanced"}, [80, 80, 80]),
        ((80, 100, 90), {"profile": "counts", "class_counts": (3, 2, 1)}, [3, 2, 1]),
        ((50, 50, 50), {"imbalance_ratio": 10.0}, [50, 15, 5]),
        ((20, 20, 20), {"imbalance_ratio": 10.0, "quick": True}, [20, 9, 4]),
        ((3, 20, 30), {"profile": "balanced", "quick": True}, [3, 3, 3]),
        ((3, 20, 30), {}, None),
    ],
)
def test_class_sizes_fit_what_is_there(tmp_path, counts, given, expected):
    config = prepared(Config(data_dir=str(tmp_path), **given))
    sizes = stages.feasible_sizes(config, dataset(counts))
    assert (None if sizes is None else sizes.tolist()) == expected
    splits = kg.data.Splits(dataset(counts, (8, 8)), dataset(counts, (8, 8)))
    made = stages.long_tailed(config, splits, tmp_path, sizes).train.class_counts
    assert made.tolist() == (list(counts) if expected is None else expected)


def test_a_class_that_is_too_small_is_named(tmp_path):
    config = prepared(Config(data_dir=str(tmp_path), profile="balanced", largest_class=9))
    train = dataclasses.replace(dataset((5, 20)), class_names=("cat", "dog"))
    sizes = stages.feasible_sizes(config, train)
    with pytest.raises(InputError, match=r"\('cat'\) has 5 images, the profile asks for 9"):
        stages.long_tailed(config, kg.data.Splits(train, train), tmp_path, sizes)


def test_a_given_threshold_survives_a_quick_run(tmp_path):
    """`--quick` was applied twice, which made the chosen threshold too small."""
    config = prepared(Config(data_dir=str(tmp_path), quick=True))
    chosen = chosen_settings(config, dataset((60, 20)))
    assert settings.checked(chosen, lambda shrunk: shrunk)[0].keep_threshold == 40
    assert chosen_settings(config, dataset((24, 20))).keep_threshold is None


def test_the_audit_is_bounded():
    few, many = (dataset((1,) * c) for c in (10, 1000))
    config = Config(methods=("erm",))
    assert image_folder_lt._audit_images(config, few) == 40
    number = image_folder_lt._audit_images(config, many)
    assert number == 2
    hundred = image_folder_lt._audit_images(config, dataset((1,) * 100))
    assert 2 < hundred < 40


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"data_dir": None}, "--data_dir is missing"),
        ({"data_dir": "nowhere"}, "no such folder"),
        ({"image_size": (4,)}, "--image_size=4"),
        ({"image_size": (16, 16, 3)}, "--image_size=16,16,3"),
        ({"test_fraction": 1.0}, "--test_fraction=1.0"),
        ({"validation_fraction": -0.1}, "--validation_fraction"),
        ({"group_regex": "("}, "regular expression"),
        ({"strict": True}, "1 files cannot be read"),
        ({"imbalance_ratio": 0.5}, "imbalance"),
        ({"methods": ("gitt",)}, "unknown"),
        ({"image_size": (128,)}, "16 to 64"),
        ({"defer_epoch": 300}, "never defer"),
        ({"warmup_epochs": 500}, "--warmup_epochs=500: the warm-up would not end"),
        ({"largest_class": 9}, "--largest_class has no effect with --profile=as_is"),
        ({"profile": "zipf", "imbalance_ratio": 9.0}, "--imbalance_ratio has no effect"),
        ({"profile": "step", "class_counts": (1, 2, 3, 4)}, "--class_counts has no effect"),
    ],
)
def test_bad_input_is_named(tmp_path, changes, reason):
    data = draw_folder(tmp_path / "data", (6, 6, 6, 6))
    (data / NAMES[0] / "text.jpg").write_text("text")
    config = Config(data_dir=str(data), output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError, match=reason):
        run(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run/config.json").exists()  # the corrected command may use the folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"generator_batch_size": 0}, "--generator_batch_size=0: use 1 or more"),
        ({"depth": 21}, "--depth=21: use 8, 14"),
        ({"export": ("x",)}, "--export: 'x' is unknown"),
        ({"generator": "missing.keras"}, "--generator=missing.keras: no such file"),
        ({"largest_class": 0, "imbalance_ratio": 10.0}, "--largest_class=0: use 1 or more"),
        ({"validation_fraction": 1.5}, "--validation_fraction=1.5"),
        ({"seeds": (1, 1)}, "--seeds"),
    ],
)
def test_plain_mistakes_are_found_before_an_image_is_read(tmp_path, monkeypatch, changes, reason):
    monkeypatch.setattr(kg.data, "load_image_folder", lambda *a, **k: pytest.fail("images read"))
    config = Config(data_dir=str(tmp_path), output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError, match=reason):
        run(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run").exists()


def test_names_and_commands_stay_text():
    assert escaped("<b>a|b*c\n`x`") == r"&lt;b&gt;a\|b\*c \`x\`"
    config = Config(data_dir="my images", strict=True, seeds=(1, 2), generator_flip=False)
    words = command(config, "experiments.image_folder_lt")
    assert words.startswith("python -m experiments.image_folder_lt ")
    for word in ("'--data_dir=my images'", "--strict", "--seeds=1,2", "--nogenerator_flip"):
        assert word in words


# ------------------------------------------------------------------------------- the whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A quick run, interrupted at its end, and the arguments of its audit."""
    folder = tmp_path_factory.mktemp("folder")
    data = draw_folder(folder / "data", (40, 24, 12, 8))
    (data / NAMES[1] / "text.jpg").write_text("text")
    audits = []

    real = kg.audit

    def audit(models, images, *transforms, **options):
        if len(audits) == 1 and not interrupted:
            interrupted.append(True)
            raise KeyboardInterrupt
        audits.append((models, images, options))
        return real(models, images, *transforms, **options)

    interrupted: list[bool] = []
    config = Config(
        data_dir=str(data),
        output_dir=str(folder / "run"),
        methods=("erm", "git"),
        quick=True,
        image_size=(20, 24),
        augmentation="flip",
        invariance_transforms=("brightness",),
        generator_outer_kernel=3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kg, "audit", audit)
        with pytest.raises(KeyboardInterrupt):  # after the first of two audits
            run(config)
        results = run(config)
        patch.setattr(kg.data, "load_image_folder", lambda *a, **k: pytest.fail("read again"))
        again = run(config)
    return config, results, again, audits


@pytest.mark.slow
def test_a_run_writes_what_is_promised(finished):
    config, results, again, audits = finished
    # None was made twice, and none again in a finished run.
    assert [list(models) for models, _, _ in audits] == [["erm"], ["git"]]
    _, images, options = audits[0]
    folder = Path(config.output_dir)
    assert results["class_counts"] == [24, 17, 9, 5]
    assert {**again, "seconds": 0} == {**results, "seconds": 0}
    assert len(images) == 17
    assert options["class_counts"].tolist() == results["class_counts"]
    found = kg.auditing.AuditResult.from_json(folder / "audit.json")
    assert [model.name for model in found.models] == ["erm", "git"]
    assert found.class_names == NAMES and (folder / "audit.csv").exists()
    page = (folder / "audit.html").read_text("utf-8")
    assert "<b>bold" not in page and "&lt;b&gt;bold" in page
    text = (folder / "unreadable.csv").read_text("utf-8").splitlines()
    assert text[0] == "path,reason" and text[1].startswith("it's/text.jpg,not an image")
    assert json.loads((folder / "export/class_names.json").read_text()) == list(NAMES)
    card = (folder / "export/model_card.md").read_text("utf-8")
    assert "&lt;b&gt;bold" in card and "<b>" not in card and "猫" in card
    assert f"`{results['export']['method']}`" in card and "--quick" in card
    assert "the classes were cut for a test run, to 24 to 5 images." in card
    assert results["chosen_settings"]["batch_size"] == 32
    assert set(results["export"]["validation"]) == {"erm_seed0", "git_seed0"}
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_what_was_moved_away_is_written_again(finished, monkeypatch):
    """Also the versions are those of the run, and a wrong export is said at the end."""
    config, results, _, audits = finished
    folder = Path(config.output_dir)
    before = len(audits)
    stored = json.loads((folder / "config.json").read_text())
    stored["versions"]["keras"] = "0.0.1"
    (folder / "config.json").write_text(json.dumps(stored))
    (folder / "export").rename(folder.parent / "export")
    (folder / "audit.html").unlink()
    (folder / "export").mkdir()
    (folder / "export/.model.99.keras").touch()
    again = run(config)
    assert len(audits) == before and again["export"] == results["export"]
    assert "keras 0.0.1," in (folder / "export/model_card.md").read_text("utf-8")
    assert "0.0.1" in (folder / "report.html").read_text("utf-8")
    assert sorted(path.name for path in (folder / "export").iterdir()) == [
        "class_names.json", "model.keras", "model_card.md",
    ]  # fmt: skip
    assert (folder / "audit.html").stat().st_size > 1000
    network = image_folder_lt._network

    def other(*arguments):
        model = network(*arguments)
        model.set_weights([np.zeros_like(w) for w in model.get_weights()])
        return model

    monkeypatch.setattr(image_folder_lt, "_network", other)
    (folder / "export/model.keras").unlink()
    for _ in range(2):
        with pytest.raises(InputError, match="exported model has test accuracy.*do not use"):
            run(config)
    assert (folder / "report.html").exists() and not (folder / "checkpoints").exists()
    monkeypatch.undo()
    (folder / "export/model.keras").unlink()
    assert run(config)["export"] == results["export"]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs kill -9")
def test_a_killed_run_continues_to_the_same_results(finished, tmp_path):
    config, results, _, _ = finished
    flags = command(
        dataclasses.replace(config, output_dir=str(tmp_path / "run")), "experiments.image_folder_lt"
    )
    arguments = [sys.executable, *shlex.split(flags)[1:]]
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(arguments, cwd=ROOT, stdout=log, stderr=log)
        while process.poll() is None:
            if (tmp_path / "run/checkpoints/classifier_git_seed0.npz").exists():
                process.kill()
                break
            time.sleep(0.01)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()[-2000:]
        assert subprocess.run(arguments, cwd=ROOT, stdout=log, stderr=log).returncode == 0
    continued = json.loads((tmp_path / "run/results.json").read_text())

    def numbers(found):
        kept = {k: found[k] for k in ("methods", "comparisons", "chosen_settings", "export")}
        return json.loads(json.dumps(kept), object_hook=_without_seconds)

    assert numbers(continued) == numbers(results)
    assert (tmp_path / "run/audit.html").exists()


def _without_seconds(entry: dict) -> dict:
    return {key: value for key, value in entry.items() if key != "seconds"}


@pytest.mark.slow
def test_the_exported_model_gives_the_reported_accuracy(finished):
    config, results, _, _ = finished
    found = image_folder_lt.load(prepared(config), Path(config.output_dir).parent / "cache")
    model = keras.models.load_model(Path(config.output_dir) / "export/model.keras")
    files = found.files["test"]
    images = np.stack([kg.data.read_image(Path(config.data_dir) / file) for file in files])
    assert images.dtype == np.uint8
    probabilities = model.predict(images, verbose=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    accuracy = float(np.mean(probabilities.argmax(-1) == found.splits.test.labels))
    export = results["export"]
    reported = results["methods"][export["method"]]["seeds"]["0"]["test_accuracy"]
    assert accuracy == pytest.approx(reported, abs=0.01)
    assert export["original_files"]["same_prediction"] == 1.0


@pytest.mark.slow
def test_the_export_needs_neither_keras_git_nor_this_backend(finished):
    config, _, _, _ = finished
    folder = Path(config.output_dir) / "export"
    code = (
        "import sys, keras, numpy as np\n"
        f"model = keras.models.load_model({str(folder / 'model.keras')!r})\n"
        "x = np.random.default_rng(0).integers(0, 256, (2, 30, 41, 3), dtype='uint8')\n"
        "assert 'keras_git' not in sys.modules\n"
        "print(model.predict(x, verbose=0).tolist())\n"
    )
    x = np.random.default_rng(0).integers(0, 256, (2, 30, 41, 3), dtype="uint8")
    expected = keras.models.load_model(folder / "model.keras").predict(x, verbose=0)
    opened = []
    for backend in ("tensorflow", "jax", "torch"):
        if importlib.util.find_spec(backend) is None:
            continue
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            cwd=folder,
            env={**os.environ, "KERAS_BACKEND": backend, "PYTHONPATH": ""},
        )
        assert done.returncode == 0, done.stderr[-2000:]
        output = json.loads(done.stdout.strip().splitlines()[-1])
        np.testing.assert_allclose(output, expected, atol=2e-4, err_msg=backend)
        opened.append(backend)
    assert keras.config.backend() in opened


@pytest.mark.slow
@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="these end before a backend does anything"
)
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ([], "--data_dir is missing"),
        (["--data_dir=nowhere"], "no such folder"),
        (["--data_dir=.", "--image_size=big"], "--image_size=big"),
        (["--dataset=cifar10"], "dataset"),
    ],
)
def test_the_program_ends_with_one_line_and_code_2(tmp_path, flags, reason):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.image_folder_lt", *flags, f"--output_dir={tmp_path}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and reason in lines[0] and "Traceback" not in done.stderr
