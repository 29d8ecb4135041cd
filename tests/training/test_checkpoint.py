"""Checkpoints: exact, complete or absent, and never of something else."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git.errors import InputError
from keras_git.training import load_checkpoint, save_checkpoint


def variables(size: int = 3) -> dict[str, list[keras.Variable]]:
    values = np.random.default_rng(size).normal(size=size).astype("float32")
    return {
        "network": [keras.Variable(values)],
        "seed": [keras.Variable(7, dtype="uint32", trainable=False)],
    }


def test_what_is_saved_comes_back_exactly(tmp_path) -> None:
    saved, loaded = variables(), variables()
    loaded["network"][0].assign(np.zeros(3))
    loaded["seed"][0].assign(0)
    progress = {"epoch": 4, "history": [{"loss": 0.1}]}
    save_checkpoint(tmp_path / "state.npz", saved, progress)
    assert load_checkpoint(tmp_path / "state.npz", loaded) == progress
    for group, members in saved.items():
        for a, b in zip(members, loaded[group], strict=True):
            np.testing.assert_array_equal(
                keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b)
            )
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]


def test_no_file_is_no_progress(tmp_path) -> None:
    assert load_checkpoint(tmp_path / "state.npz", variables()) is None


@pytest.mark.parametrize("part", [0, 40, 200])
def test_a_damaged_file_is_named(tmp_path, part: int) -> None:
    path = tmp_path / "state.npz"
    save_checkpoint(path, variables(), {})
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(path, variables())


# What it makes zipfile and numpy raise: the offset from where the text is found, and the new byte
@pytest.mark.parametrize(
    ("near", "offset", "byte"),
    [
        (b"PK\x01\x02", 8, 1),  # RuntimeError: encrypted
        (b"PK\x01\x02", 6, 91),  # NotImplementedError: zip version 9.1
        (b"PK\x01\x02", 10, 99),  # NotImplementedError: that compression method
        (b"PK\x01\x02", 10, 8),  # zlib.error: it is not deflated
        (b"PK\x01\x02", 10, 12),  # OSError: it is not bzip2
        (b"PK\x01\x02", 10, 14),  # lzma.LZMAError or struct.error
        (b"PK\x01\x02", 0, 0),  # BadZipFile: the directory
        (b"\x93NUMPY", 60, 255),  # BadZipFile: the check sum
    ],
)
def test_a_changed_byte_is_named(tmp_path, near: bytes, offset: int, byte: int) -> None:
    path = tmp_path / "state.npz"
    save_checkpoint(path, variables(), {})
    content = bytearray(path.read_bytes())
    content[content.index(near) + offset] = byte
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a checkpoint .*: delete it") as raised:
        load_checkpoint(path, variables())
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [np.arange(3), {"a": np.arange(3)}])
def test_other_files_of_numpy_are_named(tmp_path, content) -> None:
    path = tmp_path / "state.npz"
    with open(path, "wb") as file:
        np.savez(file, **content) if isinstance(content, dict) else np.save(file, content)
    with pytest.raises(InputError, match="not a checkpoint"):
        load_checkpoint(path, variables())


def test_other_networks_are_refused_and_nothing_is_assigned(tmp_path) -> None:
    path = tmp_path / "state.npz"
    save_checkpoint(path, variables(3), {})
    other = variables(4)
    before = keras.ops.convert_to_numpy(other["network"][0]).copy()
    with pytest.raises(InputError, match="other networks"):
        load_checkpoint(path, other)
    np.testing.assert_array_equal(before, keras.ops.convert_to_numpy(other["network"][0]))


def test_a_failed_write_leaves_the_old_file(tmp_path) -> None:
    path = tmp_path / "state.npz"
    save_checkpoint(path, variables(), {"epoch": 1})
    with pytest.raises(TypeError):
        save_checkpoint(path, variables(), {"epoch": object()})
    assert load_checkpoint(path, variables()) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["state.npz"]
