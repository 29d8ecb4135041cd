"""The fixtures of the reference implementation, and the program that checks them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.reference.__main__ import main
from tests.reference.registry import Check, compare, families, family_of, run_file

FIXTURES = [
    path
    for folder in ("git", "whitening", "grounding")
    for path in sorted((Path(__file__).parent / "fixtures" / folder).glob("*.npz"))
]


# One file of each family of the whitened layers is among the fast tests: on JAX each takes seconds,
# and the steps of MUNIT half a minute.
FAST = {
    "box_filter",
    "deconvT_RECOMMENDED_not_official_k2s2b8",
    "deconvT_official_c8_k2_s2",
    "deconv_c16_k3_groups4",
    "deconv_two_updates",
    "delinear_f48_block16",
    "freeze_schedule",
    "isqrt_batch",
    "rfconv_c3_k3",
    "rfnorm_standalone_0",
}


def _case(path: Path) -> object:
    fast = path.parent.name != "whitening" or path.stem in FAST
    slow = pytest.mark.slow_on("jax", "tensorflow") if path.stem == "munit_steps" else ()
    return pytest.param(path, id=path.stem, marks=slow if fast else pytest.mark.slow)


@pytest.mark.parametrize("path", map(_case, FIXTURES))
def test_fixture(path):
    results = run_file(path)
    failed = [f"{r.key} {r.error} {r.tolerance} {r.note}" for r in results if r.status == "FAIL"]
    assert not failed
    assert any(result.status == "ok" for result in results)


def test_every_fixture_has_a_family():
    assert len(FIXTURES) >= 16 + 38 + 4
    assert all(family_of(path.name, families()) for path in FIXTURES)


def _write(folder: Path, name: str, **changes: np.ndarray) -> str:
    """A copy of the smallest fixture (nuisance-free, fast on every backend) with changes."""
    with np.load(Path(__file__).parent / "fixtures" / "git" / "schedules.npz") as archive:
        arrays = {key: archive[key] for key in archive.files} | changes
    path = folder / name
    np.savez(path, **arrays)
    return str(path)


def test_output_format_and_exit_code(tmp_path, capsys):
    path = _write(tmp_path, "schedules_copy.npz")
    assert main([path]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 30  # every key except config_json
    for line in lines:
        assert re.fullmatch(rf"{re.escape(path)} \S+ \S+ \S+ (ok|FAIL|skip)", line)


def test_a_wrong_value_fails(tmp_path, capsys):
    rates = np.zeros(50, np.float32)
    assert main([_write(tmp_path, "schedules_wrong.npz", **{"k49/lr": rates})]) == 1
    failed = [line for line in capsys.readouterr().out.splitlines() if line.endswith("FAIL")]
    assert len(failed) == 1 and " k49/lr 0.1 1e-07 FAIL" in failed[0]


def test_an_unknown_key_fails(tmp_path, capsys):
    path = _write(tmp_path, "schedules_more.npz", surprise=np.zeros(3))
    assert main([path]) == 1
    assert f"{path} surprise - - FAIL" in capsys.readouterr().out


def test_an_unknown_family_or_file_fails(tmp_path, capsys):
    assert main([_write(tmp_path, "mystery.npz")]) == 1
    assert main([str(tmp_path / "schedules_absent.npz")]) == 1
    broken = tmp_path / "schedules_broken.npz"
    broken.write_bytes(b"PK\x03\x04 not really")
    assert main([str(broken)]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_longest_prefix_wins():
    known = ["class", "class_counts", "losses"]
    assert family_of("class_counts_7.npz", known) == "class_counts"
    assert family_of("classes.npz", known) == "class"
    assert family_of("loss.npz", known) is None


@pytest.mark.parametrize(
    ("measure", "ours", "expected", "error"),
    [
        ("abs", [1.0, 2.5], [1.0, 2.0], 0.5),
        ("rel", [1.0, 2.5], [1.0, 2.0], 0.25),
        ("rel_each", [1.5, 2.0], [1.0, 2.0], 0.5),
        ("exact", [1, 2], [1, 4], 2.0),
        ("abs", [np.nan, np.inf], [np.nan, np.inf], 0.0),
        ("abs", [np.nan, 1.0], [0.0, 1.0], np.inf),
        ("rel", [0.0], [0.0], 0.0),
        ("rel", [0.1], [0.0], np.inf),
        ("abs", [1.0], [1.0, 2.0], np.inf),
    ],
)
def test_measures(measure, ours, expected, error):
    result = compare(Check("key", np.array(ours), measure, 0.1), np.array(expected))
    assert result.error == pytest.approx(error)
    assert result.status == ("ok" if error <= (0.0 if measure == "exact" else 0.1) else "FAIL")


def test_quantile_ignores_one_percent_of_large_tensors_only():
    expected = np.zeros(1000)
    ours = expected.copy()
    ours[:10] = 1.0
    assert compare(Check("key", ours, "quantile", 0.1, 0.5), expected).status == "ok"
    ours[:11] = 1.0
    assert compare(Check("key", ours, "quantile", 0.1, 0.5), expected).status == "FAIL"
    result = compare(Check("key", ours[:20], "quantile", 0.1, 0.5), expected[:20])
    assert (result.error, result.tolerance, result.status) == (1.0, 0.5, "FAIL")


@pytest.mark.slow
def test_command_line():
    command = [sys.executable, "-m", "tests.reference", *map(str, FIXTURES)]
    folder = Path(__file__).parent.parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
