"""The results table: which cells are trained where, what the page says, what is marked."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import keras_git as kg
from experiments import cifar_lt, published, results_folder, table
from experiments.cells import Cell, Group, Matrix, cells_of, share
from experiments.classifier_training import make_network
from experiments.command_line import parsed
from experiments.published import PUBLISHED, compare, find, setting_differences
from experiments.results_folder import FORMAT_VERSION, ResultsFolder
from experiments.settings import checked, decisive_settings, quick
from experiments.suites import SUITES, check_suites, parse_overrides
from experiments.summary import SCALARS
from experiments.table import Config, make_plan, run
from experiments.table_page import to_html, to_markdown
from experiments.table_summary import paired
from keras_git.errors import DivergenceError, InputError

ROOT = Path(__file__).parents[2]
COUNTS = [500, 90, 5]


def without_times(value: object) -> object:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in ("minutes", "seconds")}
    if isinstance(value, list):
        return [without_times(v) for v in value]
    return value


# ------------------------------------------------------------------------------- what there is


def test_suites_are_well_formed():
    check_suites()
    for name, suite in SUITES.items():
        assert name == suite.name and suite.description.endswith(".")
        assert len(set(suite.methods)) == len(suite.methods) and "erm" in suite.methods
        make_plan(Config(suite=name))


@pytest.mark.parametrize("name", ["cifar10_lt", "cifar100_lt"])
def test_the_cifar_suites_are_the_published_setting(name):
    suite = SUITES[name]
    config = suite.config()
    assert suite.imbalance_ratios == (100.0,)
    assert (config.depth, config.width, config.epochs) == (32, None, 200)
    assert (config.batch_size, config.augmentation) == (128, "crop_flip")
    assert config.validation_fraction == 0 and published.unusual_settings(config) == []
    for method in ("erm", "drs", "ldam_drw", "git"):
        value = find(method, suite.datasets[0], 100.0)
        assert setting_differences(value, config) == []
    reduced = SUITES[f"{name}_cpu"]
    assert set(reduced.methods) <= set(suite.methods)
    assert "epochs 16 instead of 200" in published.unusual_settings(reduced.config())


@pytest.mark.slow_on("jax")
@pytest.mark.parametrize(
    ("name", "parameters"), [("cifar10_lt", 464_154), ("cifar100_lt", 470_004)]
)
def test_the_network_of_the_cifar_suites_is_the_thin_one(name, parameters):
    classes = 10 if name == "cifar10_lt" else 100
    images = np.zeros((classes, 32, 32, 3), np.uint8)
    data = kg.data.ImageDataset(images, np.arange(classes), classes)
    network = make_network(
        SUITES[f"cifar{classes}_lt"].config(), data, (np.zeros(3), np.ones(3)), "linear", 0
    )
    assert sum(np.prod(v.shape) for v in network.trainable_variables) == parameters


def test_published_records_are_well_formed():
    keys = [(p.label, p.dataset, p.imbalance_ratio) for p in PUBLISHED]
    assert len(set(keys)) == len(keys)
    settings = {f.name for f in dataclasses.fields(cifar_lt.Config)}
    for value in PUBLISHED:
        assert value.dataset in ("cifar10", "cifar100") and 0 < value.error < 100
        assert re.search(r"(19|20)\d\d", value.source) and value.epochs >= 200
        assert set(value.settings) <= settings and value.settings["epochs"] in (200, value.epochs)
        if value.method is not None:
            kg.recipes.get(value.method)
            assert value.method in SUITES[f"{value.dataset}_lt"].methods
    # CIFAR-100 is the harder one of each pair.
    for label in {p.label for p in PUBLISHED}:
        errors = {p.dataset: p.error for p in PUBLISHED if p.label == label}
        assert errors["cifar10"] < errors["cifar100"]
    assert find("erm", "cifar10", 100.0).error == 29.64
    assert find("erm", "cifar10", 50.0) is None and find("erm", "glyphs", 100.0) is None


def test_the_budget_of_logit_adjustment_is_not_that_of_the_others():
    value = find("logit_adjustment", "cifar10", 100.0)
    differences = setting_differences(value, SUITES["cifar10_lt"].config())
    assert differences == ["epochs 200 instead of 1241"]


# ------------------------------------------------------------------------------- the marking


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ((29.0, 30.0, 31.0), "agrees"),  # std 1: limit 2, difference 0.36
        ((31.0, 32.0, 33.0), "differs"),  # difference 2.36
        ((26.0, 27.0, 28.0), "differs"),  # also below
        ((27.0, 30.5, 34.0), "agrees"),  # a wide spread
        ((40.0,), "n = 1"),
        ((), "no value"),
    ],
)
def test_only_what_lies_outside_two_standard_deviations_is_marked(errors, verdict):
    value = find("erm", "cifar10", 100.0)
    compared = compare(errors, value, [])
    assert compared["verdict"] == verdict
    if errors:
        assert compared["difference"] == pytest.approx(np.mean(errors) - 29.64)
        assert compare(errors, value, ["epochs 16 instead of 200"])["verdict"] == "other setting"
    if len(errors) > 1:
        assert compared["limit"] == pytest.approx(2 * np.std(errors, ddof=1))
    assert compare(errors, None, [])["verdict"] == "no value"


def test_paired_differences_are_of_common_seeds():
    found = paired({"0": 20.0, "1": 22.0, "2": 50.0}, {"1": 25.0, "0": 21.0, "7": 1.0})
    assert found == {"n": 2, "mean": -2.0, "standard_error": pytest.approx(1.0)}
    assert paired({"0": 1.0}, {"0": 3.0}) == {"n": 1, "mean": -2.0, "standard_error": None}
    assert paired({"0": 1.0}, {"1": 3.0}) is None


# ------------------------------------------------------------------------------- cells and shards


def test_shards_are_a_partition_and_keep_shared_epochs_together():
    groups = [Group("a", 10.0), Group("a", 100.0)]
    cells = cells_of(groups, ("erm", "drs", "git", "drw"), (0, 1, 2))
    assert len(set(cells)) == 24
    for number in (1, 2, 4, 6, 7, 12, 24, 30):
        shares = [share(cells, f"{i}/{number}") for i in range(1, number + 1)]
        together = sum(shares, [])
        assert sorted(together, key=cells.index) == cells
        if number <= 6:
            units = [{(c.group, c.seed) for c in one} for one in shares]
            assert sum(map(len, units)) == 6
            assert max(map(len, units)) - min(map(len, units)) <= 1
        else:
            assert all(len({(c.group, c.seed) for c in one}) <= 1 for one in shares)
            assert max(map(len, shares)) <= 4
    assert share(cells, None) == cells
    for bad in ("0/4", "5/4", "1", "1/0", "a/b", "1/-2"):
        with pytest.raises(InputError, match="--shard="):
            share(cells, bad)


def test_overrides_are_settings_of_a_cell():
    given = parse_overrides(("epochs=3", "whitening", "invariance_transforms=rotation:contrast"))
    assert given == {
        "epochs": 3,
        "whitening": True,
        "invariance_transforms": ("rotation", "contrast"),
    }
    assert SUITES["cifar10_lt"].config(("epochs=3",)).epochs == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"suite": "imagenet"}, "--suite=imagenet is unknown"),
        ({"methods": ("gitt",)}, "'gitt' is unknown"),
        ({"methods": ("erm", "erm")}, "each once"),
        ({"seeds": ()}, "--seeds"),
        ({"seeds": (1, 1)}, "--seeds"),
        ({"shard": "3"}, "--shard=3"),
        ({"shard": "1/2", "collect_only": True}, "leave --shard out"),
        ({"imbalance_ratios": (0.5,)}, "--imbalance_ratios=0.5"),
        ({"imbalance_ratios": (10.0, 10.0)}, "--imbalance_ratios=10.0,10.0"),
        ({"datasets": ("a.npz", "a.npz")}, "--datasets"),
        ({"override": ("epoch=3",)}, "--override=epoch=3"),
        ({"override": ("epochs=many",)}, "many"),
        ({"override": ("epochs=0",)}, "--epochs=0"),
        ({"override": ("dataset=cifar10",)}, "use --datasets"),
        ({"override": ("quick",)}, "use --suite=quick"),
        ({"override": ("export=onnx",)}, "no place for export"),
        ({"override": ("",)}, "name=value"),
        ({"override": ("generator=nowhere.keras",)}, "nowhere.keras"),
        ({"override": ("defer_epoch=999",)}, "never defer"),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, words):
    with pytest.raises(InputError, match=words) as raised:
        run(dataclasses.replace(Config(output_dir=str(tmp_path / "t")), **changes))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "t").exists()


@pytest.mark.slow
def test_bad_flags_end_the_program_with_one_line_and_code_2(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.table", "--shard=9/3", f"--output_dir={tmp_path}/t"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "--shard=9/3" in line


def test_commands_parse_back_into_the_settings_of_their_cell(tmp_path):
    file = tmp_path / "generators/cifar10_ratio50/models/generator.keras"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"any")
    for suite in ("quick", "cifar10_lt", "cifar100_lt_cpu"):
        config = Config(
            suite=suite,
            datasets=("cifar10",),
            imbalance_ratios=(50.0,),
            override=("whitening", "learning_rate=0.05"),
            data_dir="a folder",
            output_dir=str(tmp_path),
        )
        plan = make_plan(config)
        for cell in (plan.cells[0], plan.cells[2]):
            program, *flags = shlex.split(plan.matrix.command(cell))[2:]
            assert program == "experiments.cifar_lt"
            assert not any(flag.startswith("--data_dir") for flag in flags)
            made, _ = checked(parsed(cifar_lt.Config, flags)[0], quick)
            folder = plan.matrix.folder(cell)
            assert ResultsFolder("x", decisive_settings(made)).settings == folder.settings
            assert Path(made.output_dir) == folder.path
            assert (f"--generator={file}" in flags) == (cell.method == "git")
        flags = shlex.split(plan.matrix.row_command(plan.cells[0], (0, 2)))[3:]
        assert parsed(cifar_lt.Config, flags)[0].seeds == (0, 2)


# ------------------------------------------------------------------------------- without training


def write_cell(matrix: Matrix, cell: Cell, error: float, *, data: str = "hash") -> None:
    """A finished cell with this error in %."""
    accuracy = 1 - error / 100
    rng = np.random.default_rng([cell.seed, len(cell.method)])
    ekld = rng.random(3).tolist()
    measured = {
        **dict.fromkeys(SCALARS, accuracy),
        "per_class_accuracy": [min(1.0, accuracy + 0.1), accuracy, max(accuracy - 0.1, 0.0)],
        "medium_accuracy": None,
        "invariance": {"rotation": {"ekld": ekld, "consistency": [0.9] * 3}},
        "parameters": 464_154,
        "seconds": {"training": 60.0 + cell.seed, "test": 1.0, "invariance": 1.0},
    }
    with matrix.folder(cell) as folder:
        folder.write_config(
            class_counts=COUNTS,
            content_hash=data,
            test_content_hash="test",
            invariance_content_hash="test",
        )
        folder.write_results(
            {
                "format_version": FORMAT_VERSION,
                "dataset": cell.group.dataset,
                "class_counts": COUNTS,
                "class_names": ["a<b", "c|d", "e"],
                "generator": None,
                "methods": {cell.method: {"seeds": {str(cell.seed): measured}}},
            }
        )


def error_of(cell: Cell) -> float:
    return {"erm": 29.5, "drs": 20.0}.get(cell.method, 25.0) + cell.seed / 2


@pytest.fixture
def trained(monkeypatch) -> list[Cell]:
    """Training replaced by `write_cell`; lists the cells trained. The second `ldam` diverges."""
    calls: list[Cell] = []

    class Bench:
        def __init__(self, plan, group, cells, save_models):
            self.matrix = plan.matrix

        def run(self, cell):
            calls.append(cell)
            if cell.method == "ldam" and cell.seed == 1:
                with self.matrix.folder(cell) as folder:
                    folder.write_config(
                        content_hash="hash", test_content_hash="test",
                        invariance_content_hash="test",
                    )  # fmt: skip
                    folder.write_results(
                        {
                            "format_version": FORMAT_VERSION,
                            "methods": {},
                            "failed": "ldam, seed 1: the loss became NaN in epoch 3; lower it",
                        }
                    )
            else:
                write_cell(self.matrix, cell, error_of(cell))
            return True

    monkeypatch.setattr(table, "_Bench", Bench)
    monkeypatch.setattr(table, "_free_memory", lambda: None)  # slow, and there is nothing to free
    monkeypatch.setattr(results_folder, "git_revision", lambda: "abc")  # asks another program
    return calls


def cifar(folder: Path, **changes: object) -> Config:
    config = Config(suite="cifar10_lt", methods=("erm", "drs"), output_dir=str(folder))
    return dataclasses.replace(config, **changes)


def rows_of(content: dict) -> dict[str, dict]:
    return {row["method"]: row for row in content["tables"][0]["rows"]}


def test_shards_and_collecting_are_what_one_call_makes(trained, tmp_path, capsys):
    whole = run(cifar(tmp_path / "one"))
    assert len(trained) == 6 and "drs" in capsys.readouterr().out
    trained.clear()
    run(cifar(tmp_path / "one"))
    assert trained == []  # never again
    for i in (1, 2):
        assert run(cifar(tmp_path / f"m{i}", shard=f"{i}/2")) == {}
        assert not (tmp_path / f"m{i}/table.json").exists()
    assert len(trained) == 6
    # In a folder that has nothing but the cells of both.
    for i in (1, 2):
        shutil.copytree(tmp_path / f"m{i}/cells", tmp_path / "new/cells", dirs_exist_ok=True)
    collected = run(cifar(tmp_path / "new", collect_only=True))
    text = json.dumps(whole).replace(str(tmp_path / "one"), str(tmp_path / "new"))
    assert collected == json.loads(text)
    assert json.loads((tmp_path / "new/table.json").read_text()) == collected


def test_what_is_missing_is_listed_and_then_trained(trained, tmp_path):
    with pytest.raises(InputError, match="1 of 9 cells failed.*ldam, seed 1.*became NaN"):
        run(cifar(tmp_path, methods=("erm", "drs", "ldam")))
    content = json.loads((tmp_path / "table.json").read_text())
    rows = rows_of(content)
    assert [rows[m]["n"] for m in ("erm", "drs", "ldam")] == [3, 3, 2]
    assert rows["ldam"]["failed"] == [1] and "became NaN" in str(content["tables"][0]["failed"])
    page = (tmp_path / "table.html").read_text()
    assert "1 cell failed: cifar10, ratio 100, ldam, seed 1" in page
    assert "2, 1 failed" in page
    trained.clear()
    shutil.rmtree(tmp_path / "cells/cifar10_ratio100/drs/seed1")
    collected = run(cifar(tmp_path, collect_only=True))
    assert rows_of(collected)["drs"]["missing"] == [1] and trained == []
    assert rows_of(collected)["ldam"]["n"] == 2  # what is there is shown, named or not
    assert rows_of(run(cifar(tmp_path)))["drs"]["n"] == 3
    assert [str(c) for c in trained] == ["cifar10, ratio 100, drs, seed 1"]


def test_cells_of_other_settings_or_data_are_refused(trained, tmp_path):
    run(cifar(tmp_path / "a"))
    with pytest.raises(InputError, match="a is of a different configuration: epochs was 200"):
        run(cifar(tmp_path / "a", override=("epochs=190",)))
    with pytest.raises(InputError, match="suite was 'cifar10_lt'"):
        run(cifar(tmp_path / "a", suite="cifar100_lt"))
    run(cifar(tmp_path / "b", override=("l2=0.001",), seeds=(3,)))
    cell = Path("cells/cifar10_ratio100/erm/seed3")
    shutil.copytree(tmp_path / "b" / cell, tmp_path / "a" / cell)
    with pytest.raises(InputError, match="erm/seed3 is of a different configuration: l2 was"):
        run(cifar(tmp_path / "a"))
    shutil.rmtree(tmp_path / "a" / cell)
    plan = make_plan(cifar(tmp_path / "a", seeds=(4,)))
    write_cell(plan.matrix, plan.cells[0], 30.0, data="other images")
    with pytest.raises(InputError, match="of other data .content_hash differs"):
        run(cifar(tmp_path / "a"))


def test_the_page_says_what_differs_and_from_what(trained, tmp_path):
    content = run(cifar(tmp_path))
    rows = rows_of(content)
    # erm: 29.5, 30, 30.5 against 29.64; drs: 20, 20.5, 21 against 24.93.
    assert rows["erm"]["comparison"]["verdict"] == "agrees"
    assert rows["erm"]["mean"]["error"] == pytest.approx(30.0)
    assert rows["erm"]["std"]["error"] == pytest.approx(0.5)
    drs = rows["drs"]
    assert drs["comparison"]["verdict"] == "differs"
    assert drs["comparison"]["difference"] == pytest.approx(20.5 - 24.93)
    assert drs["to_erm"] == {
        "n": 3,
        "mean": pytest.approx(-9.5),
        "standard_error": pytest.approx(0, abs=1e-9),
    }
    assert rows["erm"]["to_erm"] is None and drs["mean"]["medium_accuracy"] is None
    expected = [
        json.loads((tmp_path / s["folder"] / "results.json").read_text())["methods"]["drs"][
            "seeds"
        ][k]["invariance"]["rotation"]["ekld"]
        for k, s in drs["seeds"].items()
    ]
    assert drs["mean"]["ekld.rotation"] == pytest.approx(np.mean(expected))
    assert drs["mean"]["tail_ekld.rotation"] == pytest.approx(np.mean(expected, axis=0)[2])
    assert content["unusual_settings"] == []
    html, markdown = to_html(content), to_markdown(content)
    assert html.count('<tr class="marked">') == 1
    assert re.search(r'<tr class="marked"><th scope="row">drs</th>', html)
    for text in (html, markdown):
        assert "20.50\u00a0\u00b1\u00a00.50" in text and "-4.43" in text
        assert "\u25c6 differs" in text and "1 of 2 rows differ" in text
        assert "MiSLAS" in text and "ProCo" in text and "Cao et al., NeurIPS 2019" in text
        assert "thin ResNet-32" in text and "464,154" in text
        assert drs["command"] in text or drs["command"].replace("'", "&#x27;") in text
        assert "REDUCED" not in text
    assert "a&lt;b" in html and "<script" not in html and "http" not in html.split("</style>")[1]
    assert to_html(content) == html


def test_a_changed_setting_is_said_on_top_and_decides_nothing(trained, tmp_path):
    changed = ("epochs=170", "second_decay_epoch=165")
    content = run(cifar(tmp_path, override=changed, note="images from <JPEG>"))
    for row in rows_of(content).values():
        assert row["comparison"]["verdict"] == "other setting"
        assert row["comparison"]["difference"] is not None
    html = to_html(content)
    assert "images from &lt;JPEG&gt;" in html
    assert "REDUCED or changed" in html and "epochs 170 instead of 200" in html
    assert "not the same setting" in html and 'class="marked"' not in html
    other = run(cifar(tmp_path / "ratio", imbalance_ratios=(50.0,), seeds=(0,)))
    assert rows_of(other)["erm"]["published"] is None and other["tables"][0]["context"] == []


def test_one_seed_decides_nothing(trained, tmp_path):
    content = run(cifar(tmp_path, seeds=(0,)))
    assert rows_of(content)["drs"]["comparison"]["verdict"] == "n = 1"
    assert rows_of(content)["drs"]["std"]["error"] is None
    assert "n = 1: undecided" in to_markdown(content)


def test_a_finished_cell_keeps_the_generator_it_was_made_with(trained, tmp_path):
    config = cifar(tmp_path / "a", methods=("git",), seeds=(0,))
    plan = make_plan(config)
    file = plan.matrix.generator_file(plan.groups[0])
    file.parent.mkdir(parents=True)
    file.write_bytes(b"one")
    run(config)
    file.write_bytes(b"another")
    content = run(dataclasses.replace(config, seeds=(0, 1)))
    assert [c.seed for c in trained] == [0, 1]
    assert len(content["tables"][0]["generators"]) == 2
    assert "2 different generators" in to_html(content)
    # The page needs no generator.
    shutil.rmtree(tmp_path / "a/generators")
    assert run(dataclasses.replace(config, collect_only=True))["tables"] is not None


# ------------------------------------------------------------------------------- with training

TINY = Config(
    suite="quick",
    methods=("erm", "drs"),
    seeds=(0,),
    override=(
        "architecture=four_conv",
        "width=4",
        "largest_class=16",
        "epochs=2",
        "defer_epoch=1",
        "first_decay_epoch=0",
        "second_decay_epoch=1",
        "batch_size=8",
        "evaluation_batch_size=32",
        "invariance_images=2",
        "invariance_samples=1",
    ),
)


@pytest.fixture
def tiny(tmp_path) -> Config:
    """Settings for images that need no drawing: 4 classes of grey levels."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 16)
    shades = (40 + 50 * labels)[:, None, None, None]
    images = np.clip(rng.normal(shades, 20, (len(labels), 16, 16, 1)), 0, 255).astype("uint8")
    np.savez(tmp_path / "shades.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    return dataclasses.replace(TINY, datasets=("shades.npz",), data_dir=str(tmp_path))


@pytest.mark.slow_on("jax", "tensorflow")
def test_the_table_in_small_as_one_run_and_interrupted(tiny, tmp_path, monkeypatch):
    whole = run(dataclasses.replace(tiny, output_dir=str(tmp_path / "one")))
    rows = rows_of(whole)
    assert rows["erm"]["n"] == rows["drs"]["n"] == 1
    assert rows["erm"]["parameters"] > 100 and rows["erm"]["mean"]["minutes"] > 0
    cell = tmp_path / "one/cells/shades_ratio10/drs/seed0"
    assert sorted(p.name for p in cell.iterdir()) == [
        ".lock", "config.json", "history_drs_seed0.csv", "per_class.csv", "results.json",
    ]  # fmt: skip
    assert not list((tmp_path / "one/checkpoints").rglob("*.npz"))

    def killed(*arguments, **options):
        raise KeyboardInterrupt

    other = dataclasses.replace(tiny, output_dir=str(tmp_path / "two"))
    with monkeypatch.context() as patch:
        patch.setattr(table, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            run(other)
    assert list((tmp_path / "two/checkpoints").rglob("*.npz"))
    again = run(dataclasses.replace(other, save_models=True))
    one, two = (
        [
            (m, s["values"] | {"minutes": 0}, s["per_class_accuracy"])
            for m, row in rows_of(content).items()
            for s in row["seeds"].values()
        ]
        for content in (whole, again)
    )
    assert one == two
    folder = tmp_path / "two/cells/shades_ratio10/drs/seed0"
    assert (folder / "models/classifier_drs_seed0.keras").exists()
    # The command of a cell, in its place, finds it finished.
    program, *flags = shlex.split(rows_of(again)["drs"]["seeds"]["0"]["command"])[2:]
    stored = json.loads((folder / "results.json").read_text())["methods"]["drs"]["seeds"]["0"]
    made, methods = checked(parsed(cifar_lt.Config, flags)[0], quick)
    with ResultsFolder(made.output_dir, decisive_settings(made)) as found:
        assert found.read_results()["methods"]["drs"]["seeds"]["0"] == stored


@pytest.mark.slow
def test_a_cell_by_its_command_gives_the_same_numbers(tiny, tmp_path):
    config = dataclasses.replace(
        tiny, methods=("erm", "git", "drs"), output_dir=str(tmp_path / "table")
    )
    rows = rows_of(run(config))
    for method in ("drs", "git"):
        flags = shlex.split(rows[method]["command"])[3:]
        alone, _ = parsed(cifar_lt.Config, flags)
        alone = dataclasses.replace(
            alone, data_dir=tiny.data_dir, output_dir=str(tmp_path / method)
        )
        results = cifar_lt.run(alone)
        cell = tmp_path / "table" / rows[method]["seeds"]["0"]["folder"]
        stored = json.loads((cell / "results.json").read_text())
        ours, theirs = (r["methods"][method]["seeds"]["0"] for r in (stored, results))
        assert without_times(ours) == without_times(theirs)


@pytest.mark.slow
def test_a_cell_that_diverges_takes_no_other_with_it(tiny, tmp_path):
    config = dataclasses.replace(
        tiny,
        override=(*tiny.override, "learning_rate=1e30"),
        methods=("erm",),
        output_dir=str(tmp_path / "t"),
    )
    with pytest.raises(InputError, match="1 of 1 cells failed.*became NaN"):
        run(config)
    assert issubclass(DivergenceError, InputError)
    content = json.loads((tmp_path / "t/table.json").read_text())
    assert rows_of(content)["erm"]["failed"] == [0]
