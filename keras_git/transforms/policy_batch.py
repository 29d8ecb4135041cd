"""A policy operation of its own for each image of a batch, inside compiled functions.

Most operations cost far more than choosing them, so none is done to images that do not have it:
images are sorted by the function they need and go through it a few at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from keras import ops

from keras_git.transforms import policy_operations as policy

# Images that go through a function together: few enough that little is done to images of another
# function, many enough that starting it does not count.
_TOGETHER = 16
_SHARE = 8


def _changed(names: Sequence[str], images: Any, operation: Any, value: Any) -> Any:
    """Images through the function that the operations `names` share."""
    parameters: dict[str, Any] = {}
    for name in names:
        is_it = operation == policy.OPERATIONS.index(name)
        # whatever is not this operation gets a value that it can bear
        safe = ops.where(is_it, value, float(policy.VALUES[name][1]))
        for key, drawn in policy.operation_parameters(name, safe, ops).items():
            spread = ops.reshape(is_it, (-1,) + (1,) * (len(drawn.shape) - 1))
            parameters[key] = ops.where(spread, drawn, parameters.get(key, drawn))
    return policy.apply_family(policy.FAMILIES[names[0]], images, parameters)


def apply_operations(images: Any, operation: Any, value: Any, names: Sequence[str]) -> Any:
    """Operations of its own for each image, one after the other.

    Gradients do not pass.

    Args:
        images: float32 `(N, H, W, C)`, 0..255; N may be unknown.
        operation: int `(N, S)`, places in `policy_operations.OPERATIONS`; -1 does nothing, and
            leaves the image unrounded too.
        value: float `(N, S)`, what `policy_operations.operation_parameters` takes.
        names: of the operations that may occur; one that is not among them is not done.

    Returns:
        float32 tensor `(N, H, W, C)`.
    """
    members: dict[str, list[str]] = {}
    for name in names:
        members.setdefault(policy.FAMILIES[name], []).append(name)
    if not members or not operation.shape[1]:
        return images
    branches = [partial(_changed, own) for own in members.values()]
    families = len(branches)
    function_of = np.full(len(policy.OPERATIONS) + 1, families, np.int32)  # the last: none
    for number, own in enumerate(members.values()):
        function_of[[policy.OPERATIONS.index(name) for name in own]] = number

    number, steps = ops.shape(images)[0], int(operation.shape[1])
    together = max(_TOGETHER, number // _SHARE) if isinstance(number, int) else _TOGETHER
    operation = ops.transpose(ops.cast(operation, "int32"))
    value = ops.transpose(ops.cast(value, "float32"))
    place = ops.where(operation < 0, len(policy.OPERATIONS), operation)
    function = ops.take(ops.convert_to_tensor(function_of), place)
    order = ops.cast(ops.argsort(function, axis=1), "int32")

    # Each round takes up to `together` images of one function, functions in order, steps in order
    counts = ops.sum(ops.one_hot(function, families + 1, dtype="int32"), axis=1)[:, :families]
    rounds = (counts + (together - 1)) // together
    ends = ops.cumsum(ops.reshape(rounds, (-1,)))
    begins = ends - ops.reshape(rounds, (-1,))
    first = ops.reshape(ops.cumsum(counts, axis=1) - counts, (-1,))
    groups = ops.stack([begins, first, ops.reshape(counts, (-1,))])

    # The last round of a step may reach beyond the batch, to rows that are no images. In one
    # array, and so in float32, which has all of these numbers, since a round reads all three.
    beyond = ops.broadcast_to(number + ops.arange(together, dtype="int32")[None], (steps, together))
    none = ops.zeros((steps, together), "float32")
    queue = ops.stack(
        [
            ops.concatenate([ops.cast(rows, "float32"), ops.cast(more, "float32")], axis=1)
            for rows, more in (
                (order, beyond),
                (ops.take_along_axis(operation, order, axis=1), none),
                (ops.take_along_axis(value, order, axis=1), none),
            )
        ],
    )
    length = number + together
    queue = ops.reshape(queue, (3, -1))
    images = ops.pad(
        ops.stop_gradient(ops.cast(images, "float32")), ((0, together), (0, 0), (0, 0), (0, 0))
    )

    def unfinished(done: Any, images: Any) -> Any:
        del images
        return done < ends[-1]

    def go_on(done: Any, images: Any) -> tuple[Any, Any]:
        group = ops.sum(ops.cast(ends <= done, "int32"))
        begin, first, count = ops.unstack(ops.take(groups, group, axis=1), 3)
        before = (done - begin) * together
        # a gather: XLA on TensorFlow compiles a slice anew for each place that the data decide
        place = (group // families) * length + first + before
        own = ops.take(queue, place + ops.arange(together, dtype="int32"), axis=1)
        rows, operation = ops.unstack(ops.cast(own[:2], "int32"), 2)
        chosen = ops.arange(together, dtype="int32") < count - before
        part = ops.take(images, rows, axis=0)
        made = ops.switch(group % families, branches, part, operation, own[2])
        made = ops.where(ops.reshape(chosen, (-1, 1, 1, 1)), made, part)
        return done + 1, ops.scatter_update(images, rows[:, None], made)

    _, images = ops.while_loop(unfinished, go_on, (ops.zeros((), "int32"), images))
    return images[:number]
