"""Results of several audits side by side."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from keras_git.auditing import AuditResult, join_results
from keras_git.errors import InputError
from tests.report import planted


def one(name: str, seconds: float) -> AuditResult:
    whole = planted.large(6, num_models=1, transformations=2)
    return dataclasses.replace(
        whole,
        models=(dataclasses.replace(whole.models[0], name=name),),
        settings={"seed": 0, "preprocess": {name: "none"}},
        seconds=seconds,
    )


def test_models_stand_side_by_side():
    first, second, third = one("a", 1.0), one("b", 2.0), one("c", 4.0)
    result = join_results([first, second, third])
    assert [model.name for model in result.models] == ["a", "b", "c"]
    assert result.models[1] is second.models[0] and result.seconds == 7.0
    assert result.settings == {"seed": 0, "preprocess": {"a": "none", "b": "none", "c": "none"}}
    assert [model.name for model in first.models] == ["a"]  # stays as it was
    assert len(result.to_table()) == 3 * len(first.to_table())
    assert join_results([first]).models == first.models


def test_what_cannot_be_joined():
    first, second = one("a", 1.0), one("b", 1.0)
    other_names = dataclasses.replace(second, class_names=tuple("uvwxyz"))
    other_images = dataclasses.replace(second, num_images=second.num_images + 1)
    other_sizes = dataclasses.replace(second, class_counts=np.ones(6, np.int64))
    for results, message in (
        ([], "no audit to join"),
        ([first, other_names], "different data"),
        ([first, other_images], "different data"),
        ([first, other_sizes], "different data"),
        ([first, one("a", 1.0)], "one name"),
    ):
        with pytest.raises(InputError, match=message):
            join_results(results)
