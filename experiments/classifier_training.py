"""Trains the classifiers of an experiment; epochs that methods have in common are trained once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging
from keras import ops

import keras_git as kg
from experiments.generator_training import SECOND_STAGE, SOURCES
from experiments.progress import Progress, ShowProgress, reports
from experiments.results_folder import ResultsFolder
from keras_git import backend
from keras_git.errors import DivergenceError, InputError
from keras_git.recipes import Recipe

# Batches from which the statistics of averaged weights are taken, at most.
_STATISTICS_BATCHES = 200

AUGMENTATIONS = {
    "none": None,
    "flip": kg.data.RandomCropFlip(crop=False),
    "crop_flip": kg.data.RandomCropFlip(),
}
HISTORY_COLUMNS = (
    "epoch",
    "learning_rate",
    "loss",
    "accuracy",
    "validation_accuracy",
    "validation_balanced_accuracy",
)


def make_network(
    config: Any,
    dataset: kg.data.ImageDataset,
    statistics: tuple[Any, Any],
    head: str,
    seed: int | None,
) -> keras.Model:
    """The classifier network of an experiment, which owns its normalization.

    Args:
        config: settings of the experiment.
        dataset: training images.
        statistics: their `keras_git.data.channel_statistics`.
        head: `"linear"` or `"cosine"`.
        seed: of the initial weights.
    """
    mean, std = statistics
    arguments = {"mean": mean, "std": std, "seed": seed}
    with dtype_policy(config.precision):
        return _make_network(config, dataset, head, arguments)


@contextmanager
def dtype_policy(name: str) -> Iterator[None]:
    """Networks made inside have this policy of Keras."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def _make_network(
    config: Any, dataset: kg.data.ImageDataset, head: str, arguments: dict[str, Any]
) -> keras.Model:
    if config.width is not None:
        arguments["width"] = config.width
    if config.architecture == "four_conv":
        if head == "cosine":
            raise InputError("four_conv has no cosine head: use resnet for methods with ldam")
        return kg.models.four_conv(dataset.image_shape, dataset.num_classes, **arguments)
    arguments["whitening"] = config.whitening
    arguments["feature_normalization"] = config.feature_normalization
    make = kg.models.resnet
    if config.architecture == "wide_resnet":
        make = kg.models.wide_resnet
    return make(dataset.image_shape, dataset.num_classes, config.depth, head=head, **arguments)


def make_schedule(config: Any, steps_per_epoch: int, recipe: Recipe | None = None) -> Any:
    """Warm-up, then two drops, by epoch, or what the recipe says.

    Keras counts every batch as an iteration.
    """
    if recipe is not None and recipe.learning_rate is not None:
        return recipe.learning_rate(
            config.learning_rate, steps_per_epoch, config.epochs, config.warmup_epochs
        )
    return kg.optimizers.WarmUpStep(
        config.learning_rate,
        steps_per_epoch,
        warmup_epochs=config.warmup_epochs,
        milestones=(config.first_decay_epoch, config.second_decay_epoch),
        factors=(config.first_decay_factor, config.second_decay_factor),
    )


def make_optimizer(config: Any, steps_per_epoch: int, recipe: Recipe | None = None) -> Any:
    """SGD with the decay coupled into the gradient."""
    momentum = None
    if recipe is not None and recipe.averaged_part is not None:
        momentum = recipe.ema_momentum(steps_per_epoch * config.epochs)
    return _sgd(config, make_schedule(config, steps_per_epoch, recipe), momentum)


def _sgd(config: Any, learning_rate: Any, ema_momentum: float | None = None) -> Any:
    accumulation = config.gradient_accumulation
    average = {} if ema_momentum is None else {"use_ema": True, "ema_momentum": ema_momentum}
    return kg.optimizers.SGD(
        learning_rate,
        momentum=config.momentum,
        l2=config.l2,
        gradient_accumulation_steps=accumulation if accumulation > 1 else None,
        **average,
    )


class Logits:
    """Outputs of a network on arrays, in one compiled function of one batch shape."""

    def __init__(self, network: keras.Model, batch_size: int) -> None:
        self._batch_size = batch_size
        self._run = backend.compiled(
            lambda x: ops.cast(network(x, training=False), "float32"), network.variables
        )

    def __call__(self, images: np.ndarray) -> np.ndarray:
        outputs = []
        for start in range(0, len(images), self._batch_size):
            batch = np.asarray(images[start : start + self._batch_size])
            missing = self._batch_size - len(batch)
            padded = np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)])
            result = ops.convert_to_numpy(self._run(padded.astype("float32")))
            outputs.append(result[: len(batch)])
        return np.concatenate(outputs)


class Trained:
    """Result of one training.

    Attributes:
        network: holds the weights of the last epoch, until the next training begins.
        selected: weights of the epoch that was best on the validation images, or None.
        selected_epoch: that epoch, 0-based, or None.
        history: one row per epoch, keys `HISTORY_COLUMNS`.
        seconds: training time; epochs shared with another method are counted here too.
        logits: `Logits` of the network.
    """

    def __init__(self, network: Any, logits: Logits, progress: dict[str, Any], best: Any) -> None:
        self.network, self.logits = network, logits
        self.history = progress["history"]
        self.seconds = progress["seconds"]
        self.selected_epoch = progress.get("best_epoch")
        self.selected = best

    @contextmanager
    def selected_weights(self) -> Iterator[None]:
        """The network has the weights of the selected epoch as long as this lasts."""
        last = _values(self.network.variables)
        _assign(self.network, self.selected)
        try:
            yield
        finally:
            _assign(self.network, last)


def _values(variables: Sequence[Any]) -> list[np.ndarray]:
    """Copies: on JAX the next step gives the variables' own arrays away."""
    return [ops.convert_to_numpy(variable) for variable in variables]


def _assign(network: keras.Model, weights: Sequence[Any]) -> None:
    for variable, value in zip(network.variables, weights, strict=True):
        variable.assign(value)


class _EndOfEpoch(keras.callbacks.Callback):
    """Keeps the history and the state of each finished epoch."""

    def __init__(self, trainer: ClassifierTrainer, job: _Job) -> None:
        super().__init__()
        self._trainer, self._job = trainer, job

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._start = time.monotonic()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.optimizer  # noqa: B018  `self.model` brings JAX's state back into the variables
        self._trainer.finish_epoch(self._job, epoch, logs or {}, time.monotonic() - self._start)


class _Job:
    """One training: method, seed, and what is known of it so far.

    Attributes:
        learning_rate: function of the 0-based epoch, for the history.
        path: of its checkpoint.
        first_epoch: number of its first epoch in the history.
    """

    def __init__(
        self,
        method: Recipe,
        seed: int,
        model: Any,
        best: list[Any],
        learning_rate: Any,
        path: Path,
        first_epoch: int = 0,
    ) -> None:
        self.method, self.seed, self.model, self.best = method, seed, model, best
        self.learning_rate, self.path, self.first_epoch = learning_rate, path, first_epoch
        self.progress: dict[str, Any] = {"epoch": 0, "history": [], "seconds": 0.0}
        self.shared: dict[int, Path] = {}

    @property
    def variables(self) -> dict[str, Any]:
        variables = kg.training.training_variables(self.model)
        return {**variables, "best": self.best} if self.best else variables


class ClassifierTrainer:
    """Trains methods one after the other with the same compiled steps.

    Networks of one kind are built and compiled once; a training sets their weights back. Methods
    that do the same until some epoch (erm, drs and git until the deferral) share the state at it.

    Args:
        config: settings of the experiment.
        dataset: long-tailed training images.
        validation: images for the selection of an epoch, or None.
        generator: for the methods with `git`; None if there is none.
        folder: where checkpoints go.
        oracle: for the methods with `oracle`, the images of `dataset` before their nuisance, in
            the same order, and the nuisance; None if they are not known.
        factors: for the methods with `factors`, what takes the generator's place.
    """

    def __init__(
        self,
        config: Any,
        dataset: kg.data.ImageDataset,
        validation: kg.data.ImageDataset | None,
        generator: keras.Model | None,
        folder: ResultsFolder,
        oracle: tuple[kg.data.ImageDataset, kg.transforms.Transform] | None = None,
        factors: keras.Model | None = None,
    ) -> None:
        self.config, self.dataset, self.validation = config, dataset, validation
        self.folder, self.oracle = folder, oracle
        self._generators = {False: generator, True: factors}
        self._statistics = kg.data.channel_statistics(dataset.images)
        self._models: dict[Any, Any] = {}
        self._banks: dict[bool, kg.training.GeneratorBank] = {}

    def train(self, method: Recipe, seed: int, methods: Sequence[Recipe]) -> Trained:
        """Trains `method`; `methods` are all of the run, whose common epochs are to be kept."""
        config = self.config
        model, logits, best = self._model(method)
        path = self.folder.checkpoints / f"classifier_{method.name}_seed{seed}.npz"
        job = _Job(method, seed, model, best, make_schedule(config, 1, method), path)
        self._reset(job)
        self._resume(job, methods)
        stream = self._stream(method, seed)
        steps = stream.steps_per_epoch
        with Progress(
            f"{method.name}, seed {seed}", config.epochs * steps, job.progress["epoch"] * steps
        ) as shown:
            first = config.epochs
            if method.replaces or method.source_sampling is not None:
                first = config.generation_epoch if method.replaces else 0
            for stop, second_stream in ((first, False), (config.epochs, True)):
                if job.progress["epoch"] < stop:
                    self._fit(
                        job, stream, stop, shown, self._sources(job) if second_stream else None
                    )
        self._finish(job)
        return Trained(model.network, logits, job.progress, self._selected(job))

    def _fit(
        self,
        job: _Job,
        stream: kg.data.Stream,
        stop: int,
        shown: Progress,
        sources: kg.data.Stream | None = None,
    ) -> None:
        start = job.progress["epoch"]
        callbacks = [_EndOfEpoch(self, job), ShowProgress(shown)]
        if self.config.data_on_device:
            kg.training.fit_on_device(
                job.model,
                stream,
                sources=sources,
                initial_epoch=start,
                epochs=stop,
                callbacks=callbacks,
            )
            return
        data = kg.data.training_data(
            stream, sources=sources, initial_epoch=start, pipeline=self.config.pipeline
        )
        job.model.fit(
            data,
            steps_per_epoch=stream.steps_per_epoch,
            initial_epoch=start,
            epochs=stop,
            verbose=0,
            shuffle=False,
            callbacks=callbacks,
        )

    def _finish(self, job: _Job) -> None:
        """What a recipe does to the network after the last epoch."""
        method, network = job.method, job.model.network
        if method.averaged_part is not None:
            with kg.training.use_averaged_weights(job.model):
                kg.training.refresh_batch_normalization(
                    network, self._last_batches(job), batch_size=self.config.batch_size
                )
                averaged = _values(network.variables)
            _assign(network, averaged)
        if method.second_stage is not None:
            self._second_stage(job)
        if method.post_hoc is not None:
            method.post_hoc(network, self.dataset.class_counts)

    def _last_batches(self, job: _Job) -> np.ndarray:
        """Images of the last epoch, as they were drawn and augmented."""
        stream = self._stream(job.method, job.seed)
        steps = range(min(stream.steps_per_epoch, _STATISTICS_BATCHES))
        epoch = self.config.epochs - 1
        return np.concatenate([stream.batch(epoch, step)[0] for step in steps])

    def _second_stage(self, job: _Job) -> None:
        config, method = self.config, job.method
        stage = method.second_stage
        # A network of its own: what is frozen in it must not be so in the next training.
        network = self._network(method, job.seed)
        _assign(network, _values(job.model.network.variables))
        trained = stage.begin(network, job.seed)
        model = kg.training.Classifier(trained, seed=job.seed)
        seed = (job.seed, SECOND_STAGE)
        stream = kg.data.Stream(
            self.dataset,
            kg.data.sampler(stage.sampling, self.dataset.labels, seed),
            config.batch_size,
            augmentation=AUGMENTATIONS[config.augmentation],
            seed=seed,
            drop_remainder=config.drop_remainder,
        )
        epochs, steps = config.second_stage_epochs, stream.steps_per_epoch

        def learning_rate(steps: int) -> Any:
            return keras.optimizers.schedules.CosineDecay(config.learning_rate, epochs * steps)

        model.compile(
            _sgd(config, learning_rate(steps)),
            kg.losses.CrossEntropy(),
            metrics=[kg.metrics.LabelAccuracy(name="accuracy")],
        )
        path = job.path.with_name(f"{job.path.stem}_second_stage.npz")
        second = _Job(method, job.seed, model, [], learning_rate(1), path, config.epochs)
        second.progress = kg.training.load_checkpoint(path, second.variables) or second.progress
        done = second.progress["epoch"]
        with Progress(
            f"{method.name}, seed {job.seed}, second stage", epochs * steps, done * steps
        ) as shown:
            if done < epochs:
                self._fit(second, stream, epochs, shown)
        stage.end(trained, network)
        _assign(job.model.network, _values(network.variables))
        for name in ("history", "seconds"):
            job.progress[name] += second.progress[name]

    def _selected(self, job: _Job) -> list[Any] | None:
        """Weights of the epoch that was best on the validation images, after a post-hoc step.

        None for what is trained on, or averaged, after the last epoch.
        """
        method, network = job.method, job.model.network
        if not job.best or method.second_stage is not None or method.averaged_part is not None:
            return None
        selected = _values(job.best)
        if method.post_hoc is not None:
            last = _values(network.variables)
            _assign(network, selected)
            method.post_hoc(network, self.dataset.class_counts)
            selected = _values(network.variables)
            _assign(network, last)
        return selected

    def _stream(self, method: Recipe, seed: int) -> kg.data.Stream:
        config = self.config
        dataset, transform = self.dataset, None
        if method.oracle and self.oracle is not None:
            dataset, transform = self.oracle
        return kg.data.Stream(
            dataset,
            method.make_sampler(self.dataset.labels, seed, config.schedule),
            config.batch_size,
            augmentation=AUGMENTATIONS[config.augmentation],
            seed=seed,
            drop_remainder=config.drop_remainder,
            transform=transform,
        )

    def _sources(self, job: _Job) -> kg.data.Stream:
        config, seed = self.config, (job.seed, SOURCES)
        dataset = self.dataset
        if job.method.source_sampling is not None:
            return self._second_stream(job.method, job.seed)
        sampler = job.method.make_sampler(dataset.labels, seed, config.schedule)
        if config.generator_bank:
            bank = self._bank_of_images(job.method)
            keep = self._keep_probability() if config.rejected == "source" else None
            dataset, sampler = bank.dataset, bank.sampler(sampler, seed, keep)
        augmentation = config.source_augmentation
        if augmentation == "auto":
            augmentation = "none" if config.augmentation == "none" else "flip"
        return kg.data.Stream(
            dataset,
            sampler,
            config.source_batch_size,
            augmentation=AUGMENTATIONS[augmentation],
            seed=seed,
            drop_remainder=True,
        )

    def _second_stream(self, method: Recipe, seed: int) -> kg.data.Stream:
        """The images that a mixing pastes from."""
        config, dataset, of_sources = self.config, self.dataset, (seed, SOURCES)
        return kg.data.Stream(
            dataset,
            method.make_source_sampler(dataset.labels, of_sources, config.schedule),
            config.batch_size,
            augmentation=AUGMENTATIONS[config.augmentation],
            seed=of_sources,
            drop_remainder=True,
        )

    def _keep_probability(self) -> np.ndarray:
        counts, threshold = self.dataset.class_counts, self.config.keep_threshold
        return kg.training.keep_probability(counts, threshold)

    def _bank_of_images(self, method: Recipe) -> kg.training.GeneratorBank:
        factors = bool(method.factors)
        if factors not in self._banks:
            name = "factors_bank" if method.factors else "generator_bank"
            skip = self._keep_probability() == 0
            with reports(name.replace("_", " ")) as progress:
                self._banks[factors] = kg.training.generator_bank(
                    self._generators[factors],
                    self.dataset,
                    self.config.generator_bank,
                    skip_classes=skip,
                    seed=self.config.generator_seed,
                    path=self.folder.checkpoints / f"{name}.npy",
                    progress=progress,
                )
        return self._banks[factors]

    def _model(self, method: Recipe) -> tuple[Any, Logits, list[Any]]:
        """Model, logits and room for the selected weights; one for all methods that can share."""
        key = method.step_key()  # the plain steps of erm, drs and git are the same
        generator = self._generators[bool(method.factors)]
        if key not in self._models:
            config = self.config
            arguments = self._step_arguments(method)
            network = self._network(method, 0)
            if method.oracle and self.oracle is not None:
                model = kg.training.Classifier(network, transform=self.oracle[1], **arguments)
            elif generator is None or method.source_sampling is not None:
                model = kg.training.Classifier(network, **arguments)
            else:
                # The draws from a bank decide themselves what stands for an image not kept.
                decided = config.generator_bank and config.rejected == "source"
                model = kg.training.GITClassifier(
                    network,
                    None if config.generator_bank else generator,
                    class_counts=self.dataset.class_counts,
                    generated_fraction=config.generated_fraction,
                    keep_threshold=None if decided else config.keep_threshold,
                    rejected=config.rejected,
                    **arguments,
                )
            stream = self._stream(method, 0)
            model.compile(
                make_optimizer(config, stream.steps_per_epoch, method),
                method.make_loss(self.dataset.class_counts),
                metrics=[kg.metrics.LabelAccuracy(name="accuracy")],
            )
            model.optimizer.build(model.trainable_variables)
            best: list[Any] = []
            if self.validation is not None:
                best = list(self._network(method, 0).variables)
            logits = Logits(network, config.evaluation_batch_size)
            self._models[key] = model, logits, best
        return self._models[key]

    def _step_arguments(self, method: Recipe) -> dict[str, Any]:
        mean = 255.0 * np.atleast_1d(self._statistics[0])
        return method.step_arguments(self.dataset.class_counts, self.config.schedule, mean)

    def _network(self, method: Recipe, seed: int) -> keras.Model:
        return make_network(
            self.config, self.dataset, self._statistics, method.head_of_network, seed
        )

    def check(self, method: Recipe) -> None:
        """Makes all that a method needs but its training, so that bad settings show at once."""
        if method.oracle and self.oracle is None:
            raise InputError(
                f"method {method.name!r} needs images before their nuisance, and the nuisance, "
                "which this dataset does not offer; experiments.k49_lt has both"
            )
        stream = self._stream(method, 0)
        rest = 0 if self.config.drop_remainder else stream.images_per_epoch % stream.batch_size
        if rest % self.config.devices:
            raise InputError(
                f"--batch_size={stream.batch_size}: the last batch of an epoch has {rest} images, "
                f"which {self.config.devices} devices cannot divide evenly; add --drop_remainder"
            )
        network = self._network(method, 0)
        if method.averaged_part is not None and self.config.whitening:
            raise InputError(
                f"method {method.name!r}: the statistics of whitened layers cannot be averaged; "
                "leave out ema or --whitening"
            )
        if method.needs_linear_head:
            kg.training.linear_head(network)
        if method.source_sampling is not None:
            self._second_stream(method, 0)
        make_optimizer(self.config, stream.steps_per_epoch, method)
        method.make_loss(self.dataset.class_counts)
        self._step_arguments(method)
        if method.replaces:
            self._keep_probability()

    def _reset(self, job: _Job) -> None:
        """Sets a model back to the start of a training with this seed."""
        model = job.model
        fresh = self._network(job.method, job.seed)
        _assign(model.network, _values(fresh.variables))
        statistics = job.variables.get("feature_statistics", [])
        for variable in (*model.optimizer.variables, *statistics):
            variable.assign(np.zeros(variable.shape, variable.dtype))
        seeds = keras.random.SeedGenerator(job.seed)
        model.seed_generator.state.assign(seeds.state)

    def _resume(self, job: _Job, methods: Sequence[Recipe]) -> None:
        """Loads the own checkpoint, or else the longest run of epochs shared with another method.

        Decides also at which epochs this training has to leave its state for later methods.
        """
        config = self.config
        stages = self._stages(job.method)
        common: set[int] = set()
        for other in methods:
            if other.name != job.method.name:
                theirs = self._stages(other)
                same = [a == b for a, b in zip(stages, theirs, strict=True)]
                common.add(same.index(False) if False in same else config.epochs)
        job.shared = {epoch: self._shared_path(job, stages[:epoch]) for epoch in common if epoch}
        progress = kg.training.load_checkpoint(job.path, job.variables)
        if progress is None:
            for epoch in sorted(job.shared, reverse=True):
                progress = kg.training.load_checkpoint(job.shared[epoch], job.variables)
                if progress is not None:
                    logging.info(
                        "%s, seed %d: shares its first %d epochs with another method",
                        job.method.name,
                        job.seed,
                        epoch,
                    )
                    break
        else:
            logging.info(
                "%s, seed %d: continues at epoch %d", job.method.name, job.seed, progress["epoch"]
            )
        if progress is not None:
            job.progress = progress

    def _stages(self, method: Recipe) -> list[Any]:
        config = self.config
        return [method.stage(epoch, config.schedule) for epoch in range(config.epochs)]

    def _shared_path(self, job: _Job, stages: list[Any]) -> Path:
        digest = hashlib.sha256(repr(stages).encode()).hexdigest()[:12]
        return self.folder.checkpoints / f"shared_{digest}_seed{job.seed}.npz"

    def finish_epoch(self, job: _Job, epoch: int, logs: dict[str, Any], seconds: float) -> None:
        """Records an epoch and saves the state after it."""
        row = {
            "epoch": job.first_epoch + epoch,
            "learning_rate": float(ops.convert_to_numpy(job.learning_rate(epoch))),
            "loss": float(logs["loss"]),
            "accuracy": float(logs["accuracy"]),
        }
        if not np.isfinite(row["loss"]):
            raise DivergenceError(
                f"{job.method.name}, seed {job.seed}: the loss became NaN in epoch {epoch}; lower "
                "--learning_rate and name a new output_dir (what was finished is kept)"
            )
        progress = job.progress
        if job.best:
            self._select(job, epoch, row)
        progress["history"].append(row)
        progress["epoch"] = epoch + 1
        progress["seconds"] += seconds
        kg.training.save_checkpoint(job.path, job.variables, progress)
        if epoch + 1 in job.shared and not job.shared[epoch + 1].exists():
            kg.training.save_checkpoint(job.shared[epoch + 1], job.variables, progress)

    def _select(self, job: _Job, epoch: int, row: dict[str, Any]) -> None:
        """Keeps the weights if no earlier epoch has a higher balanced validation accuracy."""
        _, logits, best = self._model(job.method)
        labels = self.validation.labels
        predicted = logits(self.validation.images).argmax(-1)
        right = predicted == labels
        per_class = [right[labels == c].mean() for c in np.unique(labels)]
        row["validation_accuracy"] = float(right.mean())
        row["validation_balanced_accuracy"] = float(np.mean(per_class))
        if row["validation_balanced_accuracy"] > job.progress.get("best", -1.0):
            job.progress["best"] = row["validation_balanced_accuracy"]
            job.progress["best_epoch"] = epoch
            for kept, variable in zip(best, job.model.network.variables, strict=True):
                # A copy: on JAX the next step gives the variable's own array away.
                kept.assign(ops.convert_to_numpy(variable))
