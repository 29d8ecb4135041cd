"""Embeddings of images and of transformed images, by compiled functions on the device."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_git import backend
from keras_git.analysis.images import ImageSample
from keras_git.analysis.operations import Step
from keras_git.analysis.transform_sets import Candidate
from keras_git.auditing.classifier import (
    PREPROCESSING,
    Preprocessing,
    failure,
    input_shape,
    one_line,
)
from keras_git.errors import InputError
from keras_git.files import load_archive, save_archive

# The name of the layer whose output the last layer with weights takes: a classifier's features.
FEATURES = "features"
_MEMORY_ENTRIES = 16
_PIXEL_SIDE = 16


def pixel_embedding(sample: ImageSample) -> keras.Model:
    """The pixels themselves as an embedding: what varies in the data, asked of no network.

    A trained network hides the variation that it is invariant to, and an untrained one sees all
    images as alike. This is neither: images in blocks of pixels, 16 or a few more to the shorter
    side, less the mean image.

    Args:
        sample: the images, whose mean is taken.

    Returns:
        Keras model from images as in the sample to `(N, D)`; by the cosine of two images their
        contrast does not count.
    """
    inputs = keras.Input(sample.images.shape[1:])
    block = max(1, min(sample.image_size) // _PIXEL_SIDE)
    x = keras.layers.AveragePooling2D(block, data_format="channels_last")(
        keras.layers.Rescaling(1.0)(inputs)
    )
    blocks = keras.Model(inputs, keras.layers.Flatten()(x))
    total = np.zeros(blocks.output.shape[1], np.float64)
    for start in range(0, len(sample), 256):
        total += blocks.predict_on_batch(sample.images[start : start + 256]).sum(axis=0)
    mean = keras.layers.Normalization(mean=total / len(sample), variance=np.ones_like(total))
    return keras.Model(inputs, mean(blocks.output), name="pixels")


class EmbeddingCache:
    """Keeps embeddings of untransformed images, in memory and, if wanted, in a folder.

    They are found again by the weights of the model, layer, preprocessing and images, so that a
    changed model or other data never get those of before. Embeddings by functions whose weights
    are not known are not kept.

    Args:
        folder: where `.npz` files are written; None for memory alone.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._memory: OrderedDict[str, list[np.ndarray]] = OrderedDict()
        if self._folder is not None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cache {folder} cannot be made: {error.strerror}") from error

    def get(self, key: str) -> list[np.ndarray] | None:
        """What was kept under a key, None if nothing was."""
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        path = self._path(key)
        if path is None or not path.exists():
            return None
        try:
            arrays, _ = load_archive(path, "cache of embeddings", "delete it")
        except InputError:
            return None  # half a file of somebody else's: what it held is computed again
        found = [arrays[f"layer_{i}"] for i in range(len(arrays))]
        self._remember(key, found)
        return found

    def put(self, key: str, embeddings: list[np.ndarray]) -> None:
        """Keeps embeddings, one array per layer."""
        self._remember(key, embeddings)
        path = self._path(key)
        if path is not None:
            arrays = {f"layer_{i}": array for i, array in enumerate(embeddings)}
            save_archive(path, arrays, {"key": key})

    def _remember(self, key: str, embeddings: list[np.ndarray]) -> None:
        self._memory[key] = embeddings
        while len(self._memory) > _MEMORY_ENTRIES:
            self._memory.popitem(last=False)

    def _path(self, key: str) -> Path | None:
        return None if self._folder is None else self._folder / f"embeddings_{key[:32]}.npz"


def open_cache(cache: Any) -> EmbeddingCache:
    """A cache from one, from a folder, or a fresh one in memory from None."""
    return cache if isinstance(cache, EmbeddingCache) else EmbeddingCache(cache)


def _features_layer(model: keras.Model) -> Any:
    """The tensor that the last layer with weights takes."""
    for layer in reversed(model.layers):
        if layer.weights and not isinstance(layer, keras.Model):
            return layer.input
        if isinstance(layer, keras.Model):
            break
    raise InputError(
        f"model {model.name!r}: its features are not known; name a layer, one of "
        f"{[layer.name for layer in model.layers][-8:]}"
    )


def _tensor_of(model: keras.Model, layer: str | int) -> Any:
    if layer == FEATURES:
        return _features_layer(model)
    try:
        found = model.get_layer(**{"index" if isinstance(layer, int) else "name": layer})
    except ValueError:
        names = [one.name for one in model.layers]
        raise InputError(f"model {model.name!r} has no layer {layer!r}; it has {names}") from None
    return found.output


def _with_outputs(model: Any, layers: Sequence[Any]) -> Any:
    """What gives the tensors of all layers."""
    if not callable(model):
        raise InputError(f"model is {model!r}; give a Keras model, or a function of images")
    if list(layers) == [None]:
        return model
    if not isinstance(model, keras.Model):
        raise InputError("layer needs a Keras model; a function gives its embedding itself")
    try:
        tensors = [
            model.outputs[0] if layer is None else _tensor_of(model, layer) for layer in layers
        ]
        return keras.Model(model.inputs, tensors)
    except (AttributeError, ValueError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"model {model.name!r} has no graph of layers ({one_line(error)}): use layer=None and "
            "a model or function that gives the embedding"
        ) from error


def _flat(tensor: Any, number: int) -> Any:
    """(B, D) float32: means over places of feature maps (B, H, W, D) or tokens (B, T, D)."""
    rank = len(tensor.shape)
    if rank not in (2, 3, 4) or tensor.shape[0] not in (number, None):
        raise InputError(
            f"the model gives embeddings of shape {tuple(tensor.shape)} for {number} images; give "
            "(N, D), feature maps (N, H, W, D) or tokens (N, T, D)"
        )
    tensor = ops.cast(tensor, "float32")
    return tensor if rank == 2 else ops.mean(tensor, axis=tuple(range(1, rank - 1)))


class Embedder:
    """A network with the images whose embeddings are wanted.

    Transformations are compiled together with the network, one function per family of them;
    transformed images stay on the device. All batches have one size: the last is filled up.

    Args:
        model: a Keras model, or a function of images that gives `(B, D)`.
        sample: the images.
        layers: names or places of layers; None for the model's output, `"features"` for what its
            last layer with weights takes. Feature maps and tokens become their means.
        preprocess: None if the model takes images in the range of the data (0..255 or [0, 1]);
            else one of `keras_git.auditing.PREPROCESSING`, or a function of grey levels 0..255.
        batch_size: images per call.
        seed: of transformations that draw numbers.
        cache: of the untransformed embeddings.

    Raises:
        InputError: a model, layer or preprocessing that cannot be used.
    """

    def __init__(
        self,
        model: Any,
        sample: ImageSample,
        *,
        layers: Sequence[Any] = (None,),
        preprocess: Any = None,
        batch_size: int = 256,
        seed: int = 0,
        cache: EmbeddingCache | None = None,
    ) -> None:
        if batch_size < 1 or batch_size != int(batch_size):
            raise InputError(f"batch_size is {batch_size!r}; give a whole number above 0")
        if preprocess is not None and not callable(preprocess) and preprocess not in PREPROCESSING:
            raise InputError(
                f"preprocess is {preprocess!r}; use a function or one of {', '.join(PREPROCESSING)}"
            )
        self.sample, self.seed = sample, int(seed)
        self.layers = list(layers)
        if not self.layers:
            raise InputError("there is no layer to measure; give at least one, or None")
        self._batch = min(int(batch_size), len(sample))
        self._model, self._preprocess = model, preprocess
        self._network = _with_outputs(model, self.layers)
        self._check_size()
        self._variables = list(
            getattr(self._network, "weights", None)
            or getattr(self._network, "variables", None)
            or []
        )
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._plain: set[Any] = set()
        self._cache = cache or EmbeddingCache()
        self._clean: list[np.ndarray] | None = None
        self.seconds_compiling = 0.0
        self.passes = 0

    def _check_size(self) -> None:
        wanted = input_shape(self._model)
        have = tuple(self.sample.images.shape[1:])
        if wanted is None or callable(self._preprocess):
            return
        if any(want and want != got for want, got in zip(wanted, have, strict=True)):
            raise InputError(
                f"model {self._model.name!r} takes images {wanted}, the data are {have}: resize or "
                "convert them in a preprocess function"
            )

    @property
    def key(self) -> str | None:
        """What the embeddings depend on, hashed; None where it cannot be known."""
        if not isinstance(self._model, keras.layers.Layer) or callable(self._preprocess):
            return None
        try:
            config = self._model.get_config()
        except (NotImplementedError, TypeError):
            return None  # a subclassed model that does not say what it computes
        digest = hashlib.sha256(repr((self.layers, self._preprocess, config)).encode())
        for variable in self._model.weights:
            array = np.ascontiguousarray(ops.convert_to_numpy(variable))
            digest.update(repr((array.shape, array.dtype.str)).encode())
            digest.update(array.tobytes())
        digest.update(self.sample.content_hash().encode())
        digest.update(keras.config.backend().encode())
        return digest.hexdigest()

    def clean(self) -> list[np.ndarray]:
        """Embeddings of the images as they are, float32 `(N, D)` for each layer."""
        if self._clean is None:
            key = self.key
            found = None if key is None else self._cache.get(key)
            if found is None:
                found = self._run((), "the model")
                if key is not None:
                    self._cache.put(key, found)
            for array in found:
                if not np.isfinite(array).all():
                    raise InputError("the model gives embeddings that are NaN or infinite")
            self._clean = found
        return self._clean

    def transformed(self, candidate: Candidate) -> list[np.ndarray]:
        """Embeddings of transformed images, float32 `(N, D)` for each layer.

        An image that the transformation leaves as it is has exactly its clean embedding.

        Raises:
            InputError: the transformation fails, or gives another shape, or NaN.
        """
        if candidate.unchanged:
            return self.clean()
        found = self._run(candidate.steps, f"transformation {candidate.name!r}")
        for array in found:
            if not np.isfinite(array).all():
                raise InputError(
                    f"transformation {candidate.name!r} gives embeddings that are NaN or infinite"
                )
        return found

    def moved(self, step: Step) -> list[np.ndarray]:
        """As `transformed`, by one step whose numbers have one row per image."""
        return self._run((step,), str(step.key), each=True)

    # ------------------------------------------------------------------

    def _function(self, steps: Sequence[Step]) -> Callable[..., Any]:
        highest, preprocess, network = self.sample.highest, self._preprocess, self._network
        mode = None if preprocess is None else Preprocessing(preprocess)
        layer = isinstance(network, keras.layers.Layer)

        def embed(images: Any, *numbers: Any) -> Any:
            unit = ops.cast(images, "float32")
            if highest == 255.0:
                unit = unit / 255.0
            made = unit
            for step, own in zip(steps, numbers, strict=True):
                made = ops.cast(step.function(made, own), "float32")
                if tuple(made.shape[1:]) != tuple(unit.shape[1:]):
                    raise InputError(
                        f"a transformation made {tuple(made.shape)} of images of shape "
                        f"{tuple(unit.shape)}; the shape must stay"
                    )
            changed = ops.any(ops.not_equal(made, unit), axis=(1, 2, 3))
            if mode is not None:
                made = mode(made * 255.0)
            elif highest == 255.0:
                made = made * 255.0
            outputs = network(made, training=False) if layer else network(made)
            several = outputs if isinstance(outputs, (list, tuple)) else [outputs]
            return [_flat(tensor, images.shape[0]) for tensor in several], changed

        variables = {id(v): v for v in self._variables}
        for step in steps:
            variables |= {id(v): v for v in step.variables}
        return backend.compiled(embed, list(variables.values()))

    def _run(self, steps: Sequence[Step], what: str, each: bool = False) -> list[np.ndarray]:
        images, size = self.sample.images, self._batch
        number = len(images)
        drawn = []
        for place, step in enumerate(steps):
            if step.transform is None:
                drawn.append(step.numbers)
            else:
                generator = np.random.default_rng([self.seed, place])
                drawn.append(step.transform.sample(number, generator))
        rowwise = [each or step.transform is not None for step in steps]
        key = tuple(step.key for step in steps)
        plain = key in self._plain
        parts: list[list[np.ndarray]] = []
        changes = []
        pending: list[tuple[Any, int]] = []

        def fetch() -> None:
            (outputs, changed), count = pending.pop(0)
            parts.append([ops.convert_to_numpy(tensor)[:count] for tensor in outputs])
            changes.append(ops.convert_to_numpy(changed)[:count])

        for start in range(0, number, size):
            rows = np.arange(start, start + size)
            rows = np.minimum(rows, number - 1)
            numbers = [
                {name: value[rows] for name, value in values.items()} if by_row else dict(values)
                for values, by_row in zip(drawn, rowwise, strict=True)
            ]
            try:
                result = self._call(steps, key, plain, images[rows], numbers)
            except InputError:
                raise
            except Exception as error:
                if plain or not any("magnitude" in values for values in drawn):
                    raise failure(what, error, size) from error
                # Somebody's function may need a Python number: a compilation for each magnitude
                self._plain.add(key)
                plain = True
                try:
                    result = self._call(steps, key, plain, images[rows], numbers)
                except InputError:
                    raise
                except Exception as second:
                    raise failure(what, second, size) from second
            pending.append((result, min(size, number - start)))
            # One batch is under way while the next one is prepared
            if len(pending) > 1:
                fetch()
        while pending:
            fetch()
        self.passes += 1
        found = [np.concatenate(layer) for layer in zip(*parts, strict=True)]
        if steps:
            same = ~np.concatenate(changes)
            if same.any():
                found = [
                    np.where(same[:, None], clean, array)
                    for clean, array in zip(self.clean(), found, strict=True)
                ]
        return found

    def _call(
        self,
        steps: Sequence[Step],
        key: Any,
        plain: bool,
        images: np.ndarray,
        numbers: list[dict[str, np.ndarray]],
    ) -> Any:
        if plain:
            fixed = [
                {name: float(value) for name, value in own.items()}
                if step.transform is None
                else {}
                for step, own in zip(steps, numbers, strict=True)
            ]
            key = (key, tuple(tuple(sorted(own.items())) for own in fixed))
            steps = [_bound(step, own) for step, own in zip(steps, fixed, strict=True)]
        function = self._compiled.get(key)
        if function is not None:
            return function(images, *numbers)
        function = self._function(steps)
        started = time.monotonic()
        result = function(images, *numbers)
        ops.convert_to_numpy(result[1])
        self.seconds_compiling += time.monotonic() - started
        self._compiled[key] = function
        return result


def _bound(step: Step, numbers: dict[str, float]) -> Step:
    """The step with Python numbers."""
    if step.transform is not None:
        return step
    return Step(step.key, lambda images, _: step.function(images, numbers))
