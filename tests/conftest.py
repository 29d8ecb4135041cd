"""One process, one backend: limits, seeds, and what happens when the backend is not installed.

The plain command starts one worker per backend (see `addopts` in pyproject.toml); each worker gets
its backend through the environment variable KERAS_BACKEND before anything imports Keras. So this
file must not import Keras at the top: the process that distributes the tests reads it too.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

# Several workers share the machine: one compute thread each is faster than all of them fighting.
# On a GPU: no worker takes all of the memory, and float32 means float32.
for _name, _value in {
    "OMP_NUM_THREADS": "1",
    "TF_NUM_INTRAOP_THREADS": "1",
    "TF_NUM_INTEROP_THREADS": "1",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "NVIDIA_TF32_OVERRIDE": "0",
    "MPLBACKEND": "Agg",
}.items():
    os.environ.setdefault(_name, _value)

BACKEND = os.environ.get("KERAS_BACKEND", "tensorflow")
MISSING_BACKEND = (
    "" if importlib.util.find_spec(BACKEND) else f"the Keras backend {BACKEND!r} is not installed"
)

hypothesis.settings.register_profile(
    "keras_git", derandomize=True, deadline=None, max_examples=20, database=None
)
hypothesis.settings.load_profile("keras_git")


class MissingBackendItem(pytest.Item):
    """Stands for all tests of one file, where the file cannot be imported."""

    def runtest(self) -> None:
        pytest.skip(MISSING_BACKEND)

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, self.nodeid


class MissingBackendModule(pytest.Module):
    """A test file that is not imported because its backend is not there."""

    def collect(self) -> Iterator[pytest.Item]:
        yield MissingBackendItem.from_parent(self, name=f"[{BACKEND}]")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> object:
    if MISSING_BACKEND:
        return MissingBackendModule.from_parent(parent, path=module_path)
    return None


def pytest_configure(config: pytest.Config) -> None:
    # Small tests spend their time in XLA's optimizer, not in the code it makes: without it, a
    # ResNet-8 is built on JAX in 6 seconds instead of 37. Slow tests train, and need it.
    if config.getoption("markexpr") == "not slow":
        os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if any(BACKEND in marker.args for marker in item.iter_markers("slow_on")):
            item.add_marker(pytest.mark.slow)


def pytest_report_header(config: pytest.Config) -> str:
    if config.getoption("dist", "no") != "no":
        return "keras backends, one worker each: " + ", ".join(
            worker.rpartition("KERAS_BACKEND=")[2] for worker in config.getoption("tx")
        )
    return f"keras backend: {BACKEND}"


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """Every test starts from the same random state, whichever tests ran before it."""
    import keras

    keras.utils.set_random_seed(0)


@pytest.fixture
def data_folder() -> Path:
    """The folder with real data sets; tests that need one are skipped without it."""
    folder = os.environ.get("KERAS_GIT_DATA")
    if not folder:
        pytest.skip("needs real data: set KERAS_GIT_DATA to the folder that holds it")
    return Path(folder)


@pytest.fixture
def fixture_folder() -> Path:
    """The reference values of the original program (see `python -m tests.reference --help`)."""
    return Path(__file__).parent / "fixtures" / "git"
