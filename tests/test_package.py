"""What holds for the package as a whole: what importing it does, what it may import, its wheel."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
import tomllib
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import keras
import pytest

import keras_git

ROOT = Path(__file__).parents[1]
SOURCES = sorted((ROOT / "keras_git").rglob("*.py"))
FRAMEWORKS = {"tensorflow", "tensorflow_datasets", "jax", "jaxlib", "torch"}


def submodules() -> list[str]:
    """All importable modules but those of the other backends."""
    names = [
        entry.name
        for entry in pkgutil.walk_packages(keras_git.__path__, "keras_git.")
        if not entry.name.startswith("keras_git.backend.")
    ]
    return ["keras_git", *names]


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module or ""


def test_import_loads_no_other_framework():
    """Under JAX or PyTorch nothing loads TensorFlow, and nowhere more than Keras itself loads."""
    code = (
        "import importlib, sys, keras\nbefore = set(sys.modules)\n"
        f"for name in {submodules()!r}: importlib.import_module(name)\n"
        f"loaded = {FRAMEWORKS!r} & (set(sys.modules) - before)\n"
        "if keras.config.backend() != 'tensorflow':\n"
        "    loaded |= {'tensorflow', 'tensorflow_datasets'} & set(sys.modules)\n"
        "sys.exit(', '.join(sorted(loaded)) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert process.returncode == 0, process.stderr


def test_import_prints_nothing():
    code = "import keras, sys\nsys.stderr = sys.stdout\nprint('-')\nimport keras_git"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert process.stdout == "-\n"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_keeps_the_rules(path):
    """Frameworks only in their places, public Keras only, no assert, no pickle, no bad escapes."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tree = ast.parse(path.read_text("utf-8"), str(path))
    names = set(imported(tree))
    part = path.relative_to(ROOT / "keras_git").parts[0]
    if part not in ("backend", "data"):
        assert not {name.partition(".")[0] for name in names} & FRAMEWORKS
    assert not [name for name in names if name.startswith("keras.src")]
    assert not names & {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve"}
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"assert in line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "safe_mode"):
            assert isinstance(node.value, ast.Constant)
            assert node.value.value is (node.arg == "safe_mode")


@pytest.mark.parametrize("name", submodules())
def test_public_names_exist_and_are_explained(name):
    module = importlib.import_module(name)
    assert (module.__doc__ or "").strip(), "the module needs a docstring"
    for public in getattr(module, "__all__", ()):
        value = getattr(module, public)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert (inspect.getdoc(value) or "").strip(), f"{public} needs a docstring"


def test_registered_classes_are_registered_once_and_under_the_package():
    """Saved models find their classes by `keras_git>Name`, also after a class moves its file."""
    seen = {}
    for name in submodules():
        for value in vars(importlib.import_module(name)).values():
            if inspect.isclass(value) and value.__module__.startswith("keras_git."):
                registered = keras.saving.get_registered_name(value)
                if ">" in registered:
                    assert registered == f"keras_git>{value.__name__}"
                    assert seen.setdefault(registered, value) is value


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_pytorch_is_never_installed():
    required = project()["dependencies"] + sum(project()["optional-dependencies"].values(), [])
    assert not [requirement for requirement in required if "torch" in requirement.lower()]


def test_python_versions_agree():
    versions = [
        entry.rpartition(" ")[2] for entry in project()["classifiers"] if "Python :: 3." in entry
    ]
    assert project()["requires-python"] == ">=3.11,<3.14"
    assert versions == ["3.11", "3.12", "3.13"]
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text("utf-8")
    assert all(f'"{version}"' in workflow for version in versions)


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(tmp_path):
    if os.environ["KERAS_BACKEND"] != "tensorflow":
        pytest.skip("the wheel is the same for all backends")
    # A copy, with all that the wheel must not take: building leaves files behind that the next
    # build would take for sources.
    checkout = tmp_path / "checkout"
    ignored = shutil.ignore_patterns(".git", "build", "*.egg-info", "__pycache__", "fixtures")
    shutil.copytree(ROOT, checkout, ignore=ignored)
    (checkout / "data").mkdir(exist_ok=True)
    (checkout / "data" / "large.py").touch()
    command = ["wheel", "-q", "--no-deps", "-w", str(tmp_path / "wheel"), str(checkout)]
    subprocess.run([sys.executable, "-m", "pip", *command], check=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    assert wheel.name == f"keras_git-{project()['version']}-py3-none-any.whl"
    names = zipfile.ZipFile(wheel).namelist()
    content = {name for name in names if ".dist-info/" not in name}
    expected = {str(path.relative_to(ROOT)) for path in SOURCES} | {"keras_git/py.typed"}
    assert content == expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
