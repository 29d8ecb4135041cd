"""`kill -9` at any moment, and the same command again, ends in the same results."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLAGS = (
    "--flagfile=experiments/flagfiles/quickstart.cfg",
    "--quick",
    "--num_classes=20",
    "--validation_fraction=0.2",
)


def start(folder: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "experiments.cifar_lt", *FLAGS, f"--output_dir={folder}"]
    return subprocess.Popen(
        [*command, *flags], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def results(folder: Path) -> object:
    def strip(value: object) -> object:
        if isinstance(value, dict):
            return {k: strip(v) for k, v in value.items() if k != "seconds"}
        return value

    return strip(json.loads((folder / "results.json").read_text()))


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    """Until `path` exists or the run has ended (then the kill comes too late, which is fine)."""
    while not path.exists() and process.poll() is None:
        time.sleep(0.02)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> object:
    folder = tmp_path_factory.mktemp("uninterrupted") / "run"
    process = start(folder)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors.decode()[-2000:]
    return results(folder)


@pytest.mark.slow
def test_a_killed_run_ends_like_an_uninterrupted_one(tmp_path, uninterrupted) -> None:
    folder = tmp_path / "run"
    moments = (
        "config.json",
        "checkpoints/generator.npz",
        "models/generator.keras",
        "checkpoints/classifier_erm_seed0.npz",
        "models/classifier_drs_seed0.keras",
    )
    killed = []
    for moment in moments:
        process = start(folder)
        wait_for(folder / moment, process)
        time.sleep(0.3)
        process.kill()  # SIGKILL; nothing if it has ended
        process.communicate()
        killed.append(process.returncode == -signal.SIGKILL)
    assert any(killed)
    process = start(folder)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors.decode()[-2000:]
    assert results(folder) == uninterrupted
    assert not (folder / "checkpoints").exists()


@pytest.mark.slow
def test_another_seed_gives_other_results_and_a_second_run_is_refused(
    tmp_path, uninterrupted
) -> None:
    folder = tmp_path / "run"
    process = start(folder, "--seeds=5")
    wait_for(folder / "config.json", process)
    second = start(folder, "--seeds=5")
    _, errors = second.communicate(timeout=300)
    assert second.returncode == 2
    assert b"in use by another run" in errors
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors.decode()[-2000:]
    ours, theirs = results(folder), uninterrupted
    assert ours["methods"]["erm"]["seeds"]["5"] != theirs["methods"]["erm"]["seeds"]["0"]
