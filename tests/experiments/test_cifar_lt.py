"""The experiment end to end in small, and every way to use it wrongly."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_git as kg
from experiments import augmentation_parts, factors, gtsrb_lt, k49_lt, table, whitening
from experiments.cifar_lt import Config, run
from experiments.settings import checked, quick
from keras_git.errors import InputError

ROOT = Path(__file__).parents[2]
SMALL = Config(
    methods=("erm", "git"),
    num_classes=20,
    nuisance="grey_level",
    quick=True,
    batch_size=32,
    drop_remainder=True,
    augmentation="none",
    keep_threshold=100,
    generator_downsamplings=1,
    generator_outer_kernel=3,
    generator_upsampling_kernel=3,
    style_downsamplings=2,
    discriminator_layers=2,
    invariance_transforms=("grey_level", "generator"),
    recognition_epochs=1,
)


def without_seconds(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_seconds(v) for k, v in value.items() if k != "seconds"}
    return value


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Config, dict]:
    folder = tmp_path_factory.mktemp("experiment") / "run"
    config = dataclasses.replace(SMALL, output_dir=str(folder))
    return config, run(config)


def test_the_results_hold_what_is_promised(finished: tuple[Config, dict]) -> None:
    config, results = finished
    folder = Path(config.output_dir)
    assert results["format_version"] == 1
    assert results["class_counts"][0] == 24 and results["class_counts"][-1] == 4
    for method in config.methods:
        seed = results["methods"][method]["seeds"]["0"]
        assert len(seed["per_class_accuracy"]) == 20
        mean = np.mean(seed["per_class_accuracy"])
        assert seed["balanced_accuracy"] == pytest.approx(mean)
        for transform in config.invariance_transforms:
            measured = seed["invariance"][transform]
            for name in ("ekld", "ekld_standard_error", "consistency"):
                assert len(measured[name]) == 20
            assert min(measured["ekld"]) >= 0 and max(measured["consistency"]) <= 1
        assert seed["parameters"] == 75_652  # ResNet-8, 1 channel, 20 classes
        assert set(seed["seconds"]) == {"training", "test", "invariance"}
        assert results["methods"][method]["mean"]["balanced_accuracy"] is not None
    generator = results["generator"]
    assert generator["style_distance"] > 0 and 0 <= generator["recognized"] <= 1
    with open(folder / "per_class.csv") as file:
        assert len(list(csv.DictReader(file))) == 2 * 20
    for name in ("ekld_against_class_size", "accuracy_per_class", "generator"):
        assert (folder / "pictures" / f"{name}.png").stat().st_size > 1000
    assert "From training to training" in (folder / "report.html").read_text("utf-8")
    assert sum(results["images_per_class"]) == 20 * 4  # --quick
    config_file = json.loads((folder / "config.json").read_text())
    assert config_file["class_counts"] == results["class_counts"]
    assert config_file["versions"]["backend"] == keras.config.backend()


def test_nothing_temporary_is_left(finished: tuple[Config, dict]) -> None:
    folder = Path(finished[0].output_dir)
    assert not (folder / "checkpoints").exists()
    left = [p.name for p in folder.rglob("*") if p.name.startswith(".") and p.name != ".lock"]
    assert left == []


def test_the_saved_classifier_gives_the_reported_accuracy(finished: tuple[Config, dict]) -> None:
    config, results = finished
    network = keras.models.load_model(Path(config.output_dir) / "models/classifier_git_seed0.keras")
    test = kg.data.glyphs(
        20,
        sizes=results["class_counts"],
        test_per_class=20,
        recognition_per_class=20,
        nuisance="grey_level",
    ).test
    logits = network.predict(test.images.astype("float32"), batch_size=100, verbose=0)
    accuracy = float(np.mean(logits.argmax(-1) == test.labels))
    reported = results["methods"]["git"]["seeds"]["0"]["test_accuracy"]
    assert accuracy == pytest.approx(reported, abs=0.01)


def test_a_finished_run_is_not_trained_again(finished: tuple[Config, dict], capsys) -> None:
    config, results = finished
    model = Path(config.output_dir) / "models/classifier_git_seed0.keras"
    before = model.stat().st_mtime_ns
    assert without_seconds(run(config)) == without_seconds(results)
    assert model.stat().st_mtime_ns == before
    assert "git - erm" in capsys.readouterr().out


def test_another_configuration_does_not_touch_it(finished: tuple[Config, dict]) -> None:
    config, _ = finished
    results = Path(config.output_dir, "results.json").read_bytes()
    with pytest.raises(InputError, match="different configuration: learning_rate"):
        run(dataclasses.replace(config, learning_rate=0.05))
    assert Path(config.output_dir, "results.json").read_bytes() == results


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"methods": ("gitt",)}, "unknown"),
        ({"methods": ("erm", "erm")}, "each once"),
        ({"seeds": (1, 1)}, "different numbers"),
        ({"epochs": 0, "quick": False}, "--epochs=0"),
        ({"validation_fraction": 1.0}, "validation_fraction"),
        ({"generated_fraction": 0.0}, "generated_fraction"),
        ({"domains": 3}, "--domains=3"),
        ({"invariance_transforms": ("sharpen",)}, "'sharpen' is unknown"),
        ({"invariance_split": "validation"}, "validation_fraction above 0"),
        ({"export": ("gif",)}, "'gif' is unknown"),
        ({"generator": "nowhere.keras"}, "no such file"),
        ({"augment_from_factors": "nowhere.json"}, "no such file"),
        ({"augment_from_factors": __file__}, "no method uses it"),
        ({"methods": ("drs+factors",)}, "needs --augment_from_factors"),
        (
            {"methods": ("factors",), "augment_from_factors": __file__, "quick": True},
            "no table of factors",
        ),
        ({"second_decay_epoch": 1, "defer_epoch": 5, "quick": False}, "second_decay_epoch"),
        ({"profile": "as_is"}, "drawn to order"),
        ({"num_classes": 7}, "20"),
        ({"keep_threshold": 2, "quick": False, "largest_class": 24, "smallest_class": 4}, "thresh"),
        ({"defer_epoch": 300, "quick": False}, "never defer"),
        ({"generation_delay": 40, "quick": False}, "never generate"),
        ({"generator_picture_steps": 15, "quick": False}, "a multiple of"),
        ({"profile": "counts", "quick": False, "class_counts": (3, 2)}, "20"),
        ({"dataset": "nowhere.npz"}, "nowhere.npz"),
        ({"dataset": "cifar10", "data_dir": "nowhere"}, "nowhere"),
        ({"depth": 9, "quick": False, "largest_class": 24, "smallest_class": 4}, "9"),
        ({"architecture": "wide_resnet", "depth": 20, "quick": False}, "18, 34 or 50"),
        ({"architecture": "four_conv", "whitening": True}, "no whitened form"),
        ({"whitening": True, "feature_normalization": "batch"}, "use sample, l1"),
        ({"feature_normalization": "sample"}, "give both"),
    ],
)
def test_bad_settings_are_named(tmp_path, changes: dict, reason: str) -> None:
    config = dataclasses.replace(SMALL, output_dir=str(tmp_path / "run"), **changes)
    with pytest.raises(InputError, match=reason):
        run(config)
    assert not (tmp_path / "run/config.json").exists()  # the corrected command may use the folder


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"y_train": np.arange(40) % 4 - 1}, "labels run from -1"),
        ({"y_train": np.arange(40) % 3 + 7}, "class 0"),
        ({"y_train": np.arange(40) % 4 + 0.5}, "integers"),
        ({"y_train": np.arange(39) % 4}, "40 images"),
        ({"x_train": np.zeros((40, 32, 32, 3), "float32")}, "float32"),
        ({"x_train": np.zeros((40, 32), "uint8")}, r"\(40, 32\)"),
        ({"x_train": np.zeros((40, 32, 32, 2), "uint8")}, "1 or 3 channels"),
        ({"x_test": np.zeros((40, 16, 16, 3), "uint8")}, "they must agree"),
        ({"x_train": np.array([None] * 40)}, "plain arrays"),
    ],
)
@pytest.mark.parametrize("profile", ["exponential", "as_is"])
def test_bad_data_are_named(tmp_path, changes: dict, reason: str, profile: str) -> None:
    images, labels = np.zeros((40, 32, 32, 3), "uint8"), np.arange(40) % 4
    good = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels}
    np.savez(tmp_path / "data.npz", **{**good, **changes})
    config = dataclasses.replace(
        SMALL,
        dataset=str(tmp_path / "data.npz"),
        methods=("erm",),
        profile=profile,
        output_dir=str(tmp_path / "run"),
    )
    with pytest.raises(InputError, match=reason) as raised:
        run(config)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "run/config.json").exists()


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read everything")
def test_a_folder_without_permission_is_named(tmp_path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o000)
    for changes in ({"output_dir": str(closed / "run")}, {"dataset": "mnist", "data_dir": closed}):
        with pytest.raises((InputError, PermissionError)):
            run(dataclasses.replace(SMALL, **{"output_dir": str(tmp_path / "run"), **changes}))


def test_a_file_that_is_no_generator_is_named(tmp_path) -> None:
    path = tmp_path / "generator.keras"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="not a Keras model file"):
        run(dataclasses.replace(SMALL, generator=str(path), output_dir=str(tmp_path / "run")))
    image, style = keras.Input((32, 32, 3)), keras.Input((8,))
    keras.Model([image, style], image + keras.ops.mean(style)).save(path)
    with pytest.raises(InputError, match=r"\(32, 32, 3\)"):
        run(dataclasses.replace(SMALL, generator=str(path), output_dir=str(tmp_path / "run2")))


@pytest.mark.slow_on("jax")
def test_a_validation_part_selects_an_epoch(tmp_path) -> None:
    results = run(
        dataclasses.replace(
            SMALL,
            methods=("drs",),
            validation_fraction=0.25,
            invariance_transforms=("grey_level",),
            output_dir=str(tmp_path / "run"),
        )
    )
    assert results["class_counts"][0] == 18 and min(results["class_counts"]) >= 1
    selected = results["methods"]["drs"]["seeds"]["0"]["selected"]
    with open(tmp_path / "run/history_drs_seed0.csv") as file:
        rows = list(csv.DictReader(file))
    column = [float(row["validation_balanced_accuracy"]) for row in rows]
    assert selected["epoch"] == int(np.argmax(column))
    assert 0 <= selected["balanced_accuracy"] <= 1
    test = kg.data.glyphs(
        20,
        largest=24,
        smallest=4,
        test_per_class=20,
        recognition_per_class=0,
    ).test
    saved = keras.models.load_model(tmp_path / "run/models/classifier_drs_seed0_selected.keras")
    right = saved.predict(test.images, verbose=0).argmax(-1) == test.labels
    assert right.mean() == pytest.approx(selected["test_accuracy"], abs=0.003)


@pytest.mark.slow_on("jax", "torch")
def test_a_method_alone_gives_what_it_gives_beside_others(
    finished: tuple[Config, dict], tmp_path
) -> None:
    """Shared epochs and a generator file change no number."""
    config, results = finished
    generator = Path(config.output_dir) / "models/generator.keras"
    alone = run(
        dataclasses.replace(
            config, methods=("git",), generator=str(generator), output_dir=str(tmp_path / "run")
        )
    )
    ours, theirs = (r["methods"]["git"]["seeds"]["0"] for r in (alone, results))
    assert without_seconds(ours) == without_seconds(theirs)


@pytest.mark.slow
def test_the_other_methods_and_options_run(finished: tuple[Config, dict], tmp_path) -> None:
    config, _ = finished
    methods = ("ldam+drs", "git+ldam", "focal+drw", "git+square_root_sampling")
    results = run(
        dataclasses.replace(
            config,
            methods=methods,
            generator=str(Path(config.output_dir) / "models/generator.keras"),
            generator_bank=2,
            validation_fraction=0.25,
            augmentation="crop_flip",
            gradient_accumulation=2,
            pipeline="numpy",
            drop_remainder=False,
            profile="step",
            smallest_class=8,
            invariance_split="validation",
            output_dir=str(tmp_path / "run"),
        )
    )
    for method in methods:
        entry = results["methods"][method]["seeds"]["0"]
        assert 0 <= entry["selected"]["epoch"] < 3
        assert results["methods"][method]["mean"]["selected_balanced_accuracy"] is not None
        assert (tmp_path / "run/models" / f"classifier_{method}_seed0.keras").exists()
    assert "git+ldam - ldam+drs" in results["comparisons"]


@pytest.mark.slow
def test_whitened_classifiers_are_saved_plain_and_as_trained(tmp_path) -> None:
    config = dataclasses.replace(
        SMALL,
        methods=("erm", "git"),
        whitening=True,
        feature_normalization="sample",
        recognition_epochs=0,
        output_dir=str(tmp_path),
    )
    results = run(config)
    models = tmp_path / "models"
    plain = keras.saving.load_model(models / "classifier_git_seed0.keras")
    trained = keras.saving.load_model(models / "classifier_git_seed0_whitened.keras")
    assert {type(layer).__module__.partition(".")[0] for layer in plain.layers} == {"keras"}
    images = np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1)).astype("float32")
    np.testing.assert_allclose(
        plain.predict(images, verbose=0), trained.predict(images, verbose=0), atol=1e-3
    )
    assert np.isfinite(results["methods"]["git"]["seeds"]["0"]["balanced_accuracy"])


@pytest.mark.slow
def test_an_npz_file_as_it_is_and_two_domains(tmp_path) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), (40, 20, 10, 6))
    shades = (40 + 50 * labels)[:, None, None, None]
    images = np.clip(rng.normal(shades, 20, (len(labels), 32, 32, 3)), 0, 255).astype("uint8")
    np.savez(tmp_path / "data.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    config = dataclasses.replace(
        SMALL,
        dataset="data.npz",
        data_dir=str(tmp_path),
        profile="as_is",
        domains=2,
        keep_threshold=None,
        augmentation="crop_flip",
        recognition_epochs=0,
        invariance_transforms=("rotation", "generator"),
        batch_size=16,
        output_dir=str(tmp_path / "run"),
    )
    results = run(config)
    assert results["class_counts"] == [24, 20, 10, 6]
    assert results["generator"]["recognized"] is None


def test_a_loss_that_is_nan_ends_the_run(tmp_path) -> None:
    config = dataclasses.replace(
        SMALL, methods=("erm",), learning_rate=1e30, output_dir=str(tmp_path / "run")
    )
    with pytest.raises(InputError, match="became NaN"):
        run(config)


def test_every_flagfile_can_be_read() -> None:
    for path in sorted((ROOT / "experiments/flagfiles").glob("*.cfg")):
        lines = path.read_text().splitlines()
        assert all(line.startswith("#") for line in lines[:3]), path
        names = {line[2:].split("=")[0].removeprefix("no") for line in lines if line[:2] == "--"}
        programs = {"k49": k49_lt, "gtsrb": gtsrb_lt, "whitening": whitening, "factors": factors,
                    "augmentation": augmentation_parts, "table": table}  # fmt: skip
        program = path.stem.split("_")[0]
        config = programs[program].Config if program in programs else Config
        known = {field.name for field in dataclasses.fields(config)}
        known |= {name.removeprefix("no") for name in known} | {"flagfile"}
        assert names <= known, path


def test_quick_is_small_and_valid() -> None:
    config, methods = checked(dataclasses.replace(Config(), quick=True), quick)
    assert quick(config) == config
    assert config.epochs == 3 and config.generator_steps == 20 and len(methods) == 3


def program(*flags: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.cifar_lt", *flags],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


def ends_with_one_line_and_code_2(flags: list[str], reason: str, folder: Path) -> None:
    done = program(*flags, f"--output_dir={folder}")
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and reason in lines[0]
    assert "Traceback" not in done.stderr
    assert not (folder / "results.json").exists()


@pytest.mark.slow
@pytest.mark.skipif(
    keras.config.backend() != "tensorflow", reason="these end before a backend does anything"
)
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--epoch=3"], "epoch"),
        (["--epochs=many"], "many"),
        (["--profile=pareto"], "pareto"),
        (["--flagfile=nowhere.cfg"], "nowhere.cfg"),
        (["--seeds=a,b"], "--seeds=a,b"),
        (["surplus"], "surplus"),
        (["--methods=nothing"], "nothing"),
    ],
)
def test_bad_flags_end_the_program_with_one_line_and_code_2(
    tmp_path, flags: list[str], reason: str
) -> None:
    ends_with_one_line_and_code_2(flags, reason, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--dataset=cifar10", "--data_dir=nowhere"], "nowhere"),
        (["--dataset=no_such_dataset"], "no_such_dataset"),
        ([f"--dataset={__file__}.npz"], ".npz"),
        ([f"--generator={__file__}"], "not a Keras model file"),
    ],
)
def test_bad_data_end_the_program_with_one_line_and_code_2(
    tmp_path, flags: list[str], reason: str
) -> None:
    ends_with_one_line_and_code_2(flags, reason, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of the system")
def test_a_full_disk_ends_with_one_line_and_code_2(tmp_path) -> None:
    import resource

    def no_room() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "experiments.cifar_lt",
            "--flagfile=experiments/flagfiles/quickstart.cfg",
            "--quick",
            "--methods=erm",
            f"--output_dir={tmp_path / 'run'}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        preexec_fn=no_room,
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr
