"""Files that are replaced as a whole."""

from __future__ import annotations

import os

import pytest

from keras_git.files import replacement, write_atomically


def test_text_and_bytes(tmp_path) -> None:
    write_atomically(tmp_path / "a.txt", "\u00e4\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa4\n"
    write_atomically(str(tmp_path / "a.txt"), b"new")
    assert (tmp_path / "a.txt").read_bytes() == b"new"


def test_a_writer_that_goes_by_the_ending(tmp_path) -> None:
    with replacement(tmp_path / "model.keras") as path:
        assert path.parent == tmp_path and path.suffix == ".keras" and path.name.startswith(".")
        path.write_bytes(b"x")
        assert not (tmp_path / "model.keras").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["model.keras"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch, name) -> None:
    path = tmp_path / "results.json"
    write_atomically(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, name, full)
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
