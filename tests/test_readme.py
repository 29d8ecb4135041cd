"""The program in the README runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import keras
import numpy as np
import pytest

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.slow_on("jax", "torch")
def test_the_readmes_program_runs(tmp_path, monkeypatch, capsys) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(program, "README.md", "exec"), names)  # noqa: S102
    assert np.isfinite(names["result"].ekld).all()
    assert 0 <= names["report"]["balanced_accuracy"] <= 1
    saved = keras.models.load_model(tmp_path / "classifier.keras")
    np.testing.assert_allclose(
        saved.predict(names["test"].images[:4], verbose=0), names["logits"][:4], atol=1e-4
    )
