"""The results folder: locked, tied to its configuration, never half-written."""

from __future__ import annotations

import json
import os

import pytest

from experiments.results_folder import ResultsFolder, to_json
from keras_git.errors import InputError

SETTINGS = {"epochs": 3, "methods": ("erm", "drs")}


def test_a_folder_can_be_continued_with_its_own_configuration(tmp_path) -> None:
    with ResultsFolder(tmp_path / "run", SETTINGS) as folder:
        folder.write_config(class_counts=[3, 2])
        folder.write_results({"format_version": 1, "a": 1.5})
    with ResultsFolder(tmp_path / "run", SETTINGS) as folder:
        folder.write_config(class_counts=[3, 2])
        assert folder.read_results() == {"format_version": 1, "a": 1.5}
    config = json.loads((tmp_path / "run/config.json").read_text())
    assert config["settings"] == {"epochs": 3, "methods": ["erm", "drs"]}
    assert {"versions", "git_revision", "class_counts"} <= config.keys()


def test_another_configuration_is_refused(tmp_path) -> None:
    with ResultsFolder(tmp_path, SETTINGS) as folder:
        folder.write_config()
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match="epochs was 3, now 4"):
        ResultsFolder(tmp_path, {**SETTINGS, "epochs": 4}).__enter__()
    assert (tmp_path / "config.json").read_bytes() == before


def test_other_data_are_refused(tmp_path) -> None:
    with ResultsFolder(tmp_path, SETTINGS) as folder:
        folder.write_config(content_hash="a")
        with pytest.raises(InputError, match="content_hash differs"):
            folder.write_config(content_hash="b")


def test_a_folder_in_use_is_refused(tmp_path) -> None:
    with ResultsFolder(tmp_path, SETTINGS):
        with pytest.raises(InputError, match="in use by another run"):
            ResultsFolder(tmp_path, SETTINGS).__enter__()
    with ResultsFolder(tmp_path, SETTINGS):
        pass


def test_a_strange_folder_is_refused_and_untouched(tmp_path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(InputError, match="not empty"):
        ResultsFolder(tmp_path, SETTINGS).__enter__()
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        ResultsFolder(tmp_path / "thesis.tex", SETTINGS).__enter__()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write all")
def test_a_folder_without_permission_is_refused(tmp_path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot be written"):
        ResultsFolder(tmp_path / "run", SETTINGS).__enter__()


def test_a_damaged_configuration_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"settings": {"epo')
    with pytest.raises(InputError, match="cannot be read"):
        ResultsFolder(tmp_path, SETTINGS).__enter__()


def test_damaged_results_are_refused(tmp_path) -> None:
    with ResultsFolder(tmp_path, SETTINGS) as folder:
        folder.write_config()
        (tmp_path / "results.json").write_text('{"methods": {')
        with pytest.raises(InputError, match="cannot be read"):
            folder.read_results()
        (tmp_path / "results.json").write_text('{"format_version": 99}')
        with pytest.raises(InputError, match="format 99"):
            folder.read_results()


def test_what_a_killed_run_left_is_removed(tmp_path) -> None:
    with ResultsFolder(tmp_path, SETTINGS) as folder:
        (folder.checkpoints / "generator.npz").write_bytes(b"x")
        (folder.models / ".classifier.keras.9.tmp.keras").write_bytes(b"x")
        (folder.models / ".classifier.onnx.abc").mkdir()
        (folder.pictures / ".grid.png.9.tmp.png").write_bytes(b"x")
        (folder.models / "classifier.keras").write_bytes(b"x")
        folder.clean_up()
    assert not folder.checkpoints.exists()
    assert [p.name for p in folder.models.iterdir()] == ["classifier.keras"]
    assert list(folder.pictures.iterdir()) == []


def test_the_next_run_removes_it_too(tmp_path) -> None:
    """A run that is killed again and again must not fill the disk."""
    with ResultsFolder(tmp_path, SETTINGS) as folder:
        folder.write_config()
        (tmp_path / "export").mkdir()
        for path in (
            tmp_path / "export/.model.keras.9.tmp.keras",
            tmp_path / "export/.model_card.md.9.tmp.md",
            tmp_path / ".results.json.9.tmp.json",
            folder.checkpoints / ".generator.npz.9.tmp.npz",
        ):
            path.write_bytes(b"x")
        (tmp_path / "export/model.keras").write_bytes(b"x")
        (folder.checkpoints / "generator.npz").write_bytes(b"x")
    with ResultsFolder(tmp_path, SETTINGS):
        left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
        assert left == {".lock", "config.json", "model.keras", "generator.npz"}


def test_a_fact_that_was_not_written_is_not_compared(tmp_path) -> None:
    """Runs of an older version of the program go on."""
    with ResultsFolder(tmp_path, SETTINGS) as folder:
        folder.write_config(content_hash="a")
        folder.write_config(content_hash="a", validation_content_hash="b")
        with pytest.raises(InputError, match="content_hash differs"):
            folder.write_config(content_hash="c", validation_content_hash="b")


def test_json_has_no_nan() -> None:
    assert json.loads(to_json({"a": [float("nan"), 1.0]})) == {"a": [None, 1.0]}
