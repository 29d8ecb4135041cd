"""An audit's pictures as files, drawn by the functions that draw those of an experiment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from keras_git.auditing import AuditResult, ModelAudit
from keras_git.report.aggregates import clean, ladders, mean_over


def pictures(result: AuditResult, folder: str | Path, file_format: str = "png") -> list[Path]:
    """Draws eKLD against class size, a panel per transformation, and accuracy per class.

    eKLD is the mean over the strengths of a transformation, and so is its standard error.

    Args:
        result: of an audit.
        folder: of the pictures; made if it is absent.
        file_format: `"png"`, `"pdf"` or `"svg"`.

    Returns:
        The files: `ekld_against_class_size` and `accuracy_per_class`.

    Raises:
        InputError: an unknown picture format, or nothing was measured.
    """
    from keras_git import plots  # Matplotlib's cost only where a picture is drawn

    drawable: dict[str, Any] = {
        "class_counts": np.maximum(result.class_counts, 1).tolist(),  # the axes are logarithmic
        "class_names": [_label(name) for name in result.class_names],
        "methods": {_label(m.name): {"seeds": {"0": _as_run(m)}} for m in result.models},
    }
    return [
        draw(drawable, Path(folder) / f"{draw.__name__}.{file_format}")
        for draw in (plots.ekld_against_class_size, plots.accuracy_per_class)
    ]


def _label(name: str) -> str:
    """A name that Matplotlib draws as it is, also with signs of its formula language."""
    return clean(name).replace("$", r"\$")


def _as_run(model: ModelAudit) -> dict[str, Any]:
    """The entry that a training run has in `results.json`."""
    return {
        "per_class_accuracy": model.per_class_accuracy.tolist(),
        "invariance": {
            name: {key: mean_over(ladder, key).tolist() for key in ("ekld", "ekld_standard_error")}
            for name, ladder in ladders(model).items()
        },
    }
