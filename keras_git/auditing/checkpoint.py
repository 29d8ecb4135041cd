"""An interrupted audit goes on: its sums in one file, tied to all that decides them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from keras import ops

from keras_git.auditing.classifier import Classifier, Preprocessing
from keras_git.auditing.conditions import Planned
from keras_git.auditing.data import LabelledImages
from keras_git.auditing.measure import ModelRun, Settings
from keras_git.errors import InputError
from keras_git.files import load_archive, save_archive
from keras_git.versions import versions

_FORMAT_VERSION = 1
_REMEDY = "name another file, or delete it to measure from the start"
# Least time between two writes, and the least of it in terms of what a write takes.
SECONDS_BETWEEN = 30.0
_WRITES_BETWEEN = 20
# Functions are compared by what they make of some images; calls differ by rounding, on a GPU more.
_MODEL_TOLERANCE, _TRANSFORM_TOLERANCE = 1e-2, 1e-3
_VALUES_COMPARED = 4096


def _hash(arrays: Iterable[Any]) -> str:
    """SHA-256 (hex) of shapes, types and values."""
    digest = hashlib.sha256()
    for array in arrays:
        host = np.ascontiguousarray(ops.convert_to_numpy(array))
        digest.update(repr((host.shape, host.dtype.str)).encode())
        digest.update(host.tobytes())
    return digest.hexdigest()


class Identity:
    """What decides the sums of an audit, so that those of another one are never continued.

    Numbers, weights, draws, labels and some of the images are compared exactly; functions, of
    which nothing else is known, by what they make of some images. The batch size is left out: it
    decides no result but for rounding, and may have to be lowered to go on.

    Args:
        classifiers: the models, in their order.
        plans: what is measured.
        source: the data.
        images: a sample of them, `(N, H, W, C)`.
        settings: of the audit.
    """

    def __init__(
        self,
        classifiers: Sequence[Classifier],
        plans: Sequence[Planned],
        source: LabelledImages,
        images: np.ndarray,
        settings: Settings,
    ) -> None:
        facts: dict[str, Any] = {f"version of {name}": v for name, v in versions().items()}
        for name in ("num_samples", "precision", "max_samples", "seed"):
            facts[name] = getattr(settings, name)
        facts["images_per_class"] = source.images_per_class
        facts["data"] = _hash([images, *([] if source.labels is None else [source.labels])])
        facts["transformations"] = [_facts_of(plan) for plan in plans]
        facts["models"] = [
            [_hash(c.weights), c.outputs, *_facts_of_preprocessing(c.preprocessing)]
            for c in classifiers
        ]
        self.facts = json.loads(json.dumps(facts))
        # What they are called, what they made, and how far two calls may be apart
        self._made = [(f"model {c.name!r}", c.probe, _MODEL_TOLERANCE) for c in classifiers]
        for plan in plans:
            if plan.tried is not None:
                flat = plan.tried.reshape(-1)
                values = flat[:: max(1, len(flat) // _VALUES_COMPARED)]
                name = f"transformation {plan.condition.label!r}"
                self._made.append((name, values, _TRANSFORM_TOLERANCE))

    @property
    def made(self) -> list[np.ndarray]:
        """What models and functions made of some images."""
        return [values for _, values, _ in self._made]

    def difference(self, facts: Mapping[str, Any], made: Sequence[np.ndarray]) -> str | None:
        """The first thing that is not the same, for people; None if all is."""
        for name in dict.fromkeys([*self.facts, *facts]):
            was, now = facts.get(name), self.facts.get(name)
            if was != now and name in ("data", "transformations", "models"):
                return f"of other {name}"
            if was != now:
                return f"{name} was {was}, now {now}"
        if len(made) != len(self._made):
            return "of other functions"
        for (name, values, tolerance), before in zip(self._made, made, strict=True):
            allowed = tolerance * np.abs(values).max(initial=0.0)
            if before.shape != values.shape or not (np.abs(before - values) <= allowed).all():
                return f"{name} was another function"
        return None


def _facts_of_preprocessing(preprocessing: Preprocessing) -> list[Any]:
    mode = preprocessing.mode if isinstance(preprocessing.mode, str) else "function"
    return [mode, preprocessing.size, preprocessing.colour]


def _facts_of(plan: Planned) -> list[Any]:
    condition, transform = plan.condition, plan.transform
    drawn = transform.sample(2, np.random.default_rng(0))
    variables = [
        v for v in transform.variables if "seed_generator" not in str(getattr(v, "path", ""))
    ]
    return [
        condition.transform,
        condition.strength,
        condition.label,
        transform.deterministic,
        _hash(drawn[name] for name in sorted(drawn)),
        _hash(variables),
    ]


class Checkpoint:
    """The file of an audit that is under way.

    Args:
        path: of the file (`.npz`), in a folder that exists.
        identity: of the audit.
        source: the data.
        runs: one per model; they go on from what the file holds.
        clock: seconds, for tests.

    Attributes:
        seconds_before: what the audit took before it was interrupted.

    Raises:
        InputError: the folder is absent; the file is damaged, something else, or of another audit.
            Neither is overwritten: it may hold hours of work, or be no checkpoint at all.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Identity,
        source: LabelledImages,
        runs: Sequence[ModelRun],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._identity, self._source, self._runs = Path(path), identity, source, runs
        self._clock, self._started = clock, clock()
        self._next = self._started + SECONDS_BETWEEN
        self.seconds_before = 0.0
        self._written = False
        if self._path.is_dir() or not self._path.parent.is_dir():
            raise InputError(f"checkpoint {path}: give a file in a folder that exists")
        if self._path.exists():
            self._load()

    def _load(self) -> None:
        what = "checkpoint of an audit"
        arrays, facts = load_archive(self._path, what, _REMEDY)
        try:
            if facts["audit_format"] != _FORMAT_VERSION:
                raise ValueError(f"format {facts['audit_format']}")
            order = arrays["order"]
            made = [arrays[f"made/{i}"] for i in range(facts["made"])]
            difference = self._identity.difference(facts["identity"], made)
            if difference is None:
                for index, run in enumerate(self._runs):
                    run.restore(_under(f"model/{index}/", arrays))
                self.seconds_before = float(facts["seconds"])
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{self._path} is not a {what} ({error}): {_REMEDY}") from error
        if difference is not None:
            raise InputError(
                f"checkpoint {self._path} is of another audit ({difference}): {_REMEDY}"
            )
        self._source.expect_order(order)
        logging.info("the audit goes on from %s", self._path)

    def keep(self, now: bool) -> None:
        """Writes the file if `now` or if the last time is long enough ago.

        Raises:
            InputError: the first write fails. A later one is a warning: a full disk must not cost
                the audit that it was meant to save.
        """
        started = self._clock()
        if not now and started < self._next:
            return
        arrays = {f"made/{i}": values for i, values in enumerate(self._identity.made)}
        for index, run in enumerate(self._runs):
            arrays |= {f"model/{index}/{name}": array for name, array in run.state().items()}
        arrays["order"] = self._source.order()
        facts = {
            "audit_format": _FORMAT_VERSION,
            "identity": self._identity.facts,
            "made": len(self._identity.made),
            "seconds": self.seconds_before + started - self._started,
        }
        try:
            save_archive(self._path, arrays, facts)
        except OSError as error:
            text = f"checkpoint {self._path} cannot be written: {error.strerror or error}"
            if not self._written:
                raise InputError(text) from error
            logging.warning("%s; the audit goes on, and would continue from an older one", text)
        self._written = True
        ended = self._clock()
        self._next = ended + max(SECONDS_BETWEEN, _WRITES_BETWEEN * (ended - started))


def _under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n[len(prefix) :]: array for n, array in arrays.items() if n.startswith(prefix)}
