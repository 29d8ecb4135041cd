"""Trains the nuisance generator of an experiment, with checkpoints and pictures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import logging

import keras_git as kg
from experiments.progress import Progress, ShowProgress
from experiments.results_folder import ResultsFolder
from keras_git.errors import InputError

# Independent streams of random numbers made from one seed.
IMAGES, SOURCES, STYLES, SECOND_STAGE = 11, 12, 13, 14
_GRID_CONTENTS, _GRID_STYLES = 12, 6


def load_generator(path: str, image_shape: tuple[int, ...]) -> keras.Model:
    """Opens a generator file for images of this shape; `path` is that of `--generator`.

    Raises:
        InputError: no such file, not a Keras file, or not a generator for these images.
    """
    if not Path(path).is_file():
        raise InputError(f"--generator={path}: no such file")
    try:
        generator = keras.models.load_model(path, compile=False)
    except Exception as error:  # Keras raises many kinds for a file that is not its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"--generator={path} is not a Keras model file ({reason[:120]}): use the "
            "models/generator.keras of an earlier run"
        ) from error
    try:
        kg.training.check_generator(generator, image_shape)
    except InputError as error:
        raise InputError(f"--generator={path}: {error}") from error
    return generator


def _networks(config: Any, image_shape: tuple[int, ...], seed: int, suffix: str = "") -> Any:
    networks = kg.models.generator_networks(
        image_shape,
        width=config.generator_width,
        style_dim=config.style_dim,
        mlp_width=config.generator_mlp_width,
        num_downsamplings=config.generator_downsamplings,
        num_residual_blocks=config.generator_residual_blocks,
        style_downsamplings=config.style_downsamplings,
        outer_kernel=config.generator_outer_kernel,
        upsampling_kernel=config.generator_upsampling_kernel,
        padding=config.generator_padding,
        seed=seed,
        prefix=f"generator{suffix}",
    )
    discriminator = kg.models.discriminator(
        image_shape,
        width=config.discriminator_width,
        num_layers=config.discriminator_layers,
        num_scales=config.discriminator_scales,
        padding=config.generator_padding,
        seed=seed,
        prefix=f"discriminator{suffix}",
    )
    return networks, discriminator


def _optimizer(config: Any) -> Any:
    rate = config.generator_learning_rate
    if config.generator_schedule == "constant_then_linear":
        rate = kg.optimizers.ConstantThenLinear(rate, config.generator_steps)
    elif config.generator_schedule == "step":
        rate = kg.optimizers.StepDecay(rate, step_size=100_000, factor=0.5)
    return kg.optimizers.Adam(rate, beta_1=0.5, beta_2=0.999, epsilon=1e-8, l2=config.generator_l2)


def make_munit(config: Any, image_shape: tuple[int, ...]) -> kg.training.MUNIT:
    """The trainer of the generator, compiled and with its optimizer built."""
    seed = config.generator_seed
    pairs = [_networks(config, image_shape, seed)]
    if config.domains == 2:
        pairs = [
            _networks(config, image_shape, seed, "_a"),
            _networks(config, image_shape, seed + 1, "_b"),
        ]
    arguments = [part for pair in pairs for part in pair]
    munit = kg.training.MUNIT(*arguments, loss=config.adversarial_loss, seed=seed)
    munit.compile(
        generator_optimizer=_optimizer(config), discriminator_optimizer=_optimizer(config)
    )
    munit.optimizer.build(munit.trainable_variables)
    return munit


def _stream(config: Any, dataset: kg.data.ImageDataset, stream: int) -> kg.data.Stream:
    seed = (config.generator_seed, stream)
    make = kg.data.ClassBalanced if config.generator_class_balanced else kg.data.InstanceBalanced
    flip = kg.data.RandomCropFlip(crop=False) if config.generator_flip else None
    return kg.data.Stream(
        dataset,
        make(dataset.labels, seed),
        config.generator_batch_size,
        augmentation=flip,
        seed=seed,
        drop_remainder=True,
    )


def train_generator(
    config: Any, dataset: kg.data.ImageDataset, contents: np.ndarray, folder: ResultsFolder
) -> tuple[keras.Model, dict[str, Any]]:
    """Trains on the long-tailed training images, from the last checkpoint if there is one.

    Args:
        config: settings of the experiment.
        dataset: training images.
        contents: images (n, H, W, C), uint8, for the pictures.
        folder: where checkpoints and pictures go.

    Returns:
        The generator and `{"history": [...], "seconds": ...}`.
    """
    munit = make_munit(config, dataset.image_shape)
    variables = kg.training.training_variables(munit)
    path = folder.checkpoints / "generator.npz"
    progress = kg.training.load_checkpoint(path, variables)
    progress = progress or {"step": 0, "history": [], "seconds": 0.0}
    if progress["step"]:
        logging.info("generator: continues at step %d", progress["step"])
    stream = _stream(config, dataset, IMAGES)
    sources = _stream(config, dataset, SOURCES) if config.domains == 2 else None
    total, every = config.generator_steps, config.generator_checkpoint_steps
    with Progress("generator", total, progress["step"]) as shown:
        while progress["step"] < total:
            start = time.monotonic()
            steps = min(every, total - progress["step"])
            data = kg.data.training_data(
                stream, sources=sources, initial_step=progress["step"], pipeline=config.pipeline
            )
            history = munit.fit(
                data,
                steps_per_epoch=steps,
                verbose=0,
                shuffle=False,  # the data are shuffled already
                callbacks=[ShowProgress(shown)],
            ).history
            logs = {name: float(values[-1]) for name, values in sorted(history.items())}
            if not np.isfinite(logs["generator_loss"]):
                raise InputError(
                    f"the generator's loss became NaN before step {progress['step'] + steps}: "
                    "lower --generator_learning_rate and name a new output_dir"
                )
            progress["step"] += steps
            progress["history"].append({"step": progress["step"], **logs})
            progress["seconds"] += time.monotonic() - start
            if progress["step"] % config.generator_picture_steps == 0:
                draw_styles(
                    munit.generator,
                    contents,
                    folder.pictures / f"generator_step_{progress['step']:06d}.png",
                    config.generator_seed,
                )
            # Last: what is killed before it is done again.
            kg.training.save_checkpoint(path, variables, progress)
    return munit.generator, {"history": progress["history"], "seconds": progress["seconds"]}


def draw_styles(generator: keras.Model, contents: np.ndarray, path: Path, seed: int) -> None:
    """Saves the grid content x style: inputs in the first row, one random style per further row."""
    contents = contents[:_GRID_CONTENTS]
    style_dim = int(generator.inputs[1].shape[-1])
    styles = np.random.default_rng([seed, STYLES]).standard_normal((_GRID_STYLES, style_dim))
    generated = kg.training.generate_images(
        generator,
        np.concatenate([contents] * _GRID_STYLES),
        np.repeat(styles, len(contents), axis=0),
    )
    kg.plots.style_grid(contents, generated.reshape(_GRID_STYLES, *contents.shape), path)


def measure_styles(
    generator: keras.Model, images: np.ndarray, seed: int
) -> tuple[float, np.ndarray]:
    """How much the style changes an image.

    Returns:
        The mean absolute difference of two images of one content and two random styles, as a
        fraction of the range 0..255, and the first of the two images of each content.
    """
    style_dim = int(generator.inputs[1].shape[-1])
    styles = np.random.default_rng([seed, STYLES, 1]).standard_normal((2, len(images), style_dim))
    first, second = (kg.training.generate_images(generator, images, s) for s in styles)
    return float(np.mean(np.abs(first - second)) / 255.0), first
