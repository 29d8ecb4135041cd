"""The study over versions: which are run where, what is collected, what the oracle sees."""

from __future__ import annotations

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_git as kg
from experiments import k49_lt
from experiments.classifier_training import ClassifierTrainer
from experiments.k49_lt import Config, checked, parse_versions, run, share
from experiments.results_folder import FORMAT_VERSION
from experiments.summary import SCALARS
from keras_git.errors import InputError
from tests.data.test_k49 import write

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("texts", "versions"),
    [
        (("0-29",), list(range(30))),
        (("3",), [3]),
        (("0-2", "7", "9-9"), [0, 1, 2, 7, 9]),
        ((" 4", "1 "), [4, 1]),
    ],
)
def test_versions_are_numbers_and_ranges(texts, versions):
    assert parse_versions(texts) == versions


@pytest.mark.parametrize("texts", [(), ("a",), ("3-1",), ("1-",), ("0-2", "2"), ("-1",), ("1000",)])
def test_bad_versions(texts):
    with pytest.raises(InputError, match="--versions="):
        parse_versions(texts)


def test_shards_are_a_partition():
    versions = list(range(30))
    shares = [share(versions, f"{i}/4") for i in range(1, 5)]
    assert sorted(sum(shares, [])) == versions
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert share(versions, None) == versions
    for bad in ("0/4", "5/4", "1", "1/0", "a/b", "1/-2"):
        with pytest.raises(InputError, match="--shard="):
            share(versions, bad)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"versions": ("x",)}, "--versions=x"),
        ({"shard": "3"}, "--shard=3"),
        ({"shard": "1/2", "collect_only": True}, "leave --shard out"),
        ({"validation_images": -1}, "--validation_images"),
        ({"methods": ("git+oracle",)}, "git learns the nuisance that oracle knows"),
        ({"defer_epoch": 50}, "never defer"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"data_dir": None}, "--data_dir"),
        ({"data_dir": "nowhere"}, "nowhere does not exist"),
        ({"transformed_class_rank": 49}, "transformed_class_rank is 49"),
        ({"invariance_split": "validation"}, "are transformed already; leave it at auto"),
    ],
)
def test_bad_settings_are_named(tmp_path, archives, changes, words):
    config = Config(data_dir=str(archives), output_dir=str(tmp_path / "run"))
    with pytest.raises(InputError, match=words):
        run(dataclasses.replace(config, **changes))
    assert not (tmp_path / "run/versions").exists()


def test_the_defaults_are_the_papers():
    config, methods, versions = checked(Config())
    assert versions == list(range(30))
    assert (config.depth, config.epochs, config.defer_epoch) == (20, 50, 30)
    assert (config.first_decay_epoch, config.second_decay_epoch) == (30, 40)
    assert config.invariance_transforms == ("background",)
    assert config.generation_epoch == 31 and config.augmentation == "none"
    assert [m.name for m in methods if m.oracle] == ["oracle"]


@pytest.fixture(scope="module")
def archives(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("k49")
    write(folder)
    return folder


@pytest.fixture
def trained(monkeypatch) -> list[tuple[int, ...]]:
    """Training and measurement replaced by numbers of the version; lists the seeds trained."""
    calls: list[tuple[int, ...]] = []

    def train_and_measure(config, methods, splits, folder, started, oracle):
        calls.append(config.seeds)
        folder.write_config(
            content_hash=splits.train.content_hash(),
            test_content_hash=splits.test.content_hash(),
            invariance_content_hash=splits.invariance.content_hash(),
        )
        (folder.checkpoints / "half.npz").touch()
        rng = np.random.default_rng(config.seeds[0])
        results = {
            "format_version": FORMAT_VERSION,
            "dataset": splits.train.name,
            "class_counts": splits.train.class_counts.tolist(),
            "generator": None,
            "seconds": {},
            "methods": {},
        }
        for method in methods[::-1]:
            accuracies = rng.random(49).tolist()
            results["methods"][method.name] = {
                "seeds": {
                    str(seed): {
                        **dict.fromkeys(SCALARS, float(np.mean(accuracies))),
                        "per_class_accuracy": accuracies,
                        "invariance": {
                            "background": {
                                "ekld": rng.random(49).tolist(),
                                "ekld_standard_error": [0.01] * 49,
                                "consistency": [0.9] * 49,
                            }
                        },
                    }
                    for seed in config.seeds
                }
            }
        return results

    monkeypatch.setattr(k49_lt, "train_and_measure", train_and_measure)
    monkeypatch.setattr(k49_lt, "_free_memory", lambda: None)  # slow, and there is nothing to free
    return calls


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    for name in ("ekld_against_class_size", "accuracy_per_class"):
        monkeypatch.setattr(kg.plots, name, lambda results, path: path)
    monkeypatch.setattr(k49_lt, "write_report", lambda results, path, **facts: path)


@pytest.fixture
def small(archives, tmp_path) -> Config:
    return Config(
        data_dir=str(archives),
        output_dir=str(tmp_path / "one"),
        methods=("erm", "drs"),
        versions=("0-3",),
        largest_class=8,
    )


def test_shards_of_two_machines_are_what_one_machine_makes(
    small, trained, tmp_path, capsys, request
):
    whole = run(small)
    assert trained == [(0,), (1,), (2,), (3,)]
    assert whole["num_versions"] == 4 and list(whole["methods"]) == ["erm", "drs"]
    assert whole["dataset"] == "images in the format of Kuzushiji-49"
    assert whole["class_counts"] == [8] + [5] * 48
    printed = capsys.readouterr().out
    assert "images in the format of Kuzushiji-49" in printed and "drs - erm" in printed
    with open(tmp_path / "one/summary.csv") as file:
        rows = {(row["method"], row["measure"]): row for row in csv.DictReader(file)}
    row, measured = rows["drs", "tail_accuracy"], whole["methods"]["drs"]
    assert float(row["mean"]) == measured["mean"]["tail_accuracy"] and row["versions"] == "4"
    limits = [float(row["low_95"]), float(row["high_95"])]
    assert limits == measured["confidence_interval_95"]["tail_accuracy"]
    with open(tmp_path / "one/paired_tests.csv") as file:
        (row,) = (r for r in csv.DictReader(file) if r["measure"] == "tail_accuracy")
    assert row["methods"] == "drs - erm" and row["versions"] == "4"
    assert float(row["t_test"]) == whole["paired_tests"]["drs - erm"]["tail_accuracy"]["t_test"]
    page = (tmp_path / "one/report.html").read_text("utf-8")
    assert "From version to version" in page and "means over 4 versions" in page
    for name in ("ekld_against_class_size", "accuracy_per_class"):
        assert (tmp_path / f"one/pictures/{name}.png").stat().st_size > 1000
    rows = (tmp_path / "one/per_class.csv").read_text().splitlines()
    assert rows[0].startswith("method,version,rank,class,training_images")
    assert len(rows) == 1 + 2 * 4 * 49

    request.getfixturevalue("no_pictures")
    machines = [dataclasses.replace(small, output_dir=str(tmp_path / f"m{i}")) for i in (1, 2)]
    for i, config in enumerate(machines, start=1):
        trained.clear()
        assert run(dataclasses.replace(config, shard=f"{i}/2")) == {}
        assert trained == [(i - 1,), (i + 1,)]
        assert not (tmp_path / f"m{i}/results.json").exists()
    trained.clear()
    for version in ("001", "003"):  # to the first machine
        shutil.copytree(tmp_path / f"m2/versions/{version}", tmp_path / f"m1/versions/{version}")
    assert run(machines[0]) == whole
    assert trained == []
    # Also into a folder that has nothing but versions, from a machine without the data.
    shutil.copytree(tmp_path / "m1/versions", tmp_path / "new/versions")
    elsewhere = dataclasses.replace(machines[0], output_dir=str(tmp_path / "new"), data_dir=None)
    assert run(elsewhere) == whole and trained == []


def test_finished_versions_are_not_run_again_and_unfinished_ones_are(
    small, trained, no_pictures, tmp_path
):
    run(dataclasses.replace(small, versions=("0", "2")))
    folder = tmp_path / "one/versions/002"
    assert not (folder / "checkpoints").exists()
    results = json.loads((folder / "results.json").read_text())
    assert results["finished"] is True and results["version"] == 2
    # As if it had been killed just before its end.
    del results["finished"]
    (folder / "results.json").write_text(json.dumps(results))
    trained.clear()
    collected = run(dataclasses.replace(small, collect_only=True))
    assert list(collected["versions"]) == ["0"] and trained == []
    collected = run(dataclasses.replace(small, versions=("0-2",)))
    assert trained == [(1,), (2,)] and list(collected["versions"]) == ["0", "1", "2"]
    # Whatever is there is collected, named or not.
    assert list(run(dataclasses.replace(small, versions=("0",)))["versions"]) == ["0", "1", "2"]


def test_versions_of_other_settings_or_data_are_refused(
    small, trained, no_pictures, tmp_path, archives
):
    run(dataclasses.replace(small, versions=("0",)))
    with pytest.raises(InputError, match="different configuration: nuisance"):
        run(dataclasses.replace(small, nuisance="rotation", invariance_transforms=("background",)))
    other = dataclasses.replace(small, output_dir=str(tmp_path / "two"), versions=("1",))
    run(dataclasses.replace(other, learning_rate=0.2))
    shutil.copytree(tmp_path / "two/versions/001", tmp_path / "one/versions/001")
    with pytest.raises(InputError, match="versions/001 is of a different configuration: learning"):
        run(small)
    shutil.rmtree(tmp_path / "one/versions/001")
    shutil.copytree(tmp_path / "one/versions/000", tmp_path / "one/versions/001")
    with pytest.raises(InputError, match="different configuration: version was 0, now 1"):
        run(small)
    shutil.rmtree(tmp_path / "one/versions/001")
    shutil.copytree(archives, tmp_path / "data")
    labels = np.roll(np.load(archives / "k49-test-labels.npz")["arr_0"], 1)
    np.savez(tmp_path / "data/k49-test-labels.npz", labels)
    with pytest.raises(InputError, match="different test images"):
        run(dataclasses.replace(small, data_dir=str(tmp_path / "data")))
    shutil.rmtree(tmp_path / "one/versions")
    np.savez(tmp_path / "data/k49-test-labels.npz", np.roll(labels, -1))
    run(dataclasses.replace(small, versions=("0",)))
    images = np.load(archives / "k49-train-imgs.npz")["arr_0"]
    images[:, 27, 27] ^= 1
    np.savez(tmp_path / "data/k49-train-imgs.npz", images)
    with pytest.raises(InputError, match="000 and 001 .* made from different training images"):
        run(dataclasses.replace(small, data_dir=str(tmp_path / "data"), versions=("0-1",)))
    (tmp_path / "one/versions/1").mkdir()
    with pytest.raises(InputError, match="is no version"):
        run(dataclasses.replace(small, collect_only=True))


def test_nothing_to_collect_and_a_strange_folder(small, tmp_path):
    with pytest.raises(InputError, match="no finished version"):
        run(dataclasses.replace(small, collect_only=True))
    (tmp_path / "one").mkdir()
    (tmp_path / "one/letters.txt").touch()
    with pytest.raises(InputError, match="not of this program"):
        run(small)


def test_the_flagfiles_run_the_methods_of_the_study():
    wanted = {"erm", "class_balanced_sampling", "drs", "ldam", "git", "oracle"}
    for name in ("k49_lt", "k49_lt_cpu", "k49_lt_gpu"):
        lines = (ROOT / f"experiments/flagfiles/{name}.cfg").read_text().splitlines()
        (methods,) = (line.split("=")[1] for line in lines if line.startswith("--methods="))
        assert wanted <= set(methods.split(",")), name


def test_seeds_of_versions_differ(small, trained, no_pictures):
    run(dataclasses.replace(small, versions=("3", "4"), seeds=(0, 2)))
    assert trained == [(3, 2003), (4, 2004)]


def test_the_oracle_trains_on_untransformed_images(small, archives):
    study = kg.data.K49LongTail(kg.data.load_k49(archives), "rotation", largest=8)
    version = study.version(0)
    config, _, _ = checked(dataclasses.replace(small, quick=True, batch_size=16))
    trainer = ClassifierTrainer(
        config,
        version.splits.train,
        None,
        None,
        None,
        oracle=(version.untransformed, study.transform),
    )
    oracle, erm = (trainer._stream(kg.recipes.get(key), 0) for key in ("oracle", "erm"))
    images, labels = oracle.batch(0, 0)
    indices, _ = oracle.plan(0, 0)
    np.testing.assert_array_equal(images, version.untransformed.images[indices])
    np.testing.assert_array_equal(labels, version.splits.train.labels[indices])
    assert (images != version.splits.train.images[indices]).any()
    assert oracle.transform == kg.transforms.Rotation() and erm.transform is None
    # New angles in every step and epoch, the same for the same seed.
    angles = [
        oracle.transform_parameters(*at, len(labels))["degrees"] for at in ((0, 0), (0, 1), (1, 0))
    ]
    assert len({tuple(a) for a in angles}) == 3
    np.testing.assert_array_equal(erm.batch(0, 0)[0], version.splits.train.images[indices])
    # What the network normalizes with is what it is trained on: the transformed images.
    np.testing.assert_array_equal(
        trainer._statistics[0], kg.data.channel_statistics(version.splits.train.images)[0]
    )


def test_an_oracle_needs_a_known_nuisance(small, archives):
    train = kg.data.load_k49(archives).train
    trainer = ClassifierTrainer(checked(small)[0], train, None, None, None)
    with pytest.raises(InputError, match="oracle.*k49_lt has both"):
        trainer.check(kg.recipes.get("oracle"))


QUICK = (
    "--flagfile=experiments/flagfiles/k49_lt_cpu.cfg",
    "--quick",
    "--versions=0-1",
    "--methods=erm,drs,git,oracle",
    "--batch_size=32",
    "--generator_width=4",
)


def program(folder: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.k49_lt", *QUICK, f"--output_dir={folder}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )


@pytest.mark.slow
def test_the_program_on_the_standin(data_folder, tmp_path):
    data = f"--data_dir={data_folder / 'k49_standin'}"
    for i in (1, 2):
        done = program(tmp_path / "run", data, f"--shard={i}/2")
        assert done.returncode == 0, done.stderr[-3000:]
    done = program(tmp_path / "run")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "font-drawn stand-in for Kuzushiji-49" in done.stdout
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert list(results["versions"]) == ["0", "1"]
    for method in ("erm", "drs", "git", "oracle"):
        assert len(results["methods"][method]["seeds"]) == 2
        assert (tmp_path / f"run/versions/001/models/classifier_{method}_seed1.keras").is_file()
    assert results["versions"]["0"]["generator"]["parameters"] > 0
    left = [p for p in (tmp_path / "run").rglob(".*") if p.name != ".lock"]
    assert left == [] and not list((tmp_path / "run").rglob("checkpoints"))


@pytest.mark.slow
def test_the_program_ends_with_one_line_and_code_2(tmp_path):
    done = program(tmp_path / "run", "--data_dir=nowhere")
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith("error: ")] == [
        "error: data directory nowhere does not exist; create it or name another"
    ]


@pytest.mark.slow
def test_a_killed_version_continues_to_the_same_results(data_folder, tmp_path):
    """`kill -9` in the middle, and the same command again."""
    flags = (f"--data_dir={data_folder / 'k49_standin'}", "--versions=5", "--methods=drs,oracle")

    def seeds(folder: Path) -> object:
        results = json.loads((folder / "results.json").read_text())["methods"]
        for method in results.values():
            for entry in method["seeds"].values():
                del entry["seconds"]
        return results

    assert program(tmp_path / "whole", *flags).returncode == 0
    command = [sys.executable, "-m", "experiments.k49_lt", *QUICK, *flags]
    process = subprocess.Popen(
        [*command, f"--output_dir={tmp_path / 'killed'}"],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = tmp_path / "killed/versions/005/checkpoints/classifier_oracle_seed5.npz"
    while not checkpoint.exists() and process.poll() is None:
        try:
            process.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
    process.kill()
    assert process.wait() == -signal.SIGKILL  # else nothing was tested
    done = program(tmp_path / "killed", *flags)
    assert done.returncode == 0, done.stderr[-3000:]
    assert seeds(tmp_path / "killed") == seeds(tmp_path / "whole")
