"""The backend's own pieces: a compiled function, and models that must define their part."""

from __future__ import annotations

import keras
import numpy as np
import pytest

from keras_git import backend


def test_a_compiled_function_reads_the_variables_as_they_are_now() -> None:
    weight = keras.Variable(np.array([1.0, 2.0], "float32"))
    calls = []

    def scaled(x: object, y: object) -> tuple[object, object]:
        calls.append(1)
        return x * weight, keras.ops.sum(y)

    run = backend.compiled(scaled, [weight])
    x, y = np.array([3.0, 4.0], "float32"), np.ones(3, "float32")
    first = [keras.ops.convert_to_numpy(v) for v in run(x, y)]
    weight.assign([10.0, 20.0])
    second = [keras.ops.convert_to_numpy(v) for v in run(x, 2 * y)]
    np.testing.assert_allclose(first[0], [3.0, 8.0])
    np.testing.assert_allclose(second[0], [30.0, 80.0])
    assert (float(first[1]), float(second[1])) == (3.0, 6.0)
    if keras.config.backend() != "torch":
        assert len(calls) == 1  # traced once, whatever the values


@pytest.mark.parametrize(("name", "part"), [("StepModel", "step"), ("AugmentedModel", "augment")])
def test_a_model_without_its_part_says_which(name: str, part: str) -> None:
    model = getattr(backend, name)()
    with pytest.raises(NotImplementedError, match=part):
        model.step(None, True) if part == "step" else model.augment(None, None, None)
