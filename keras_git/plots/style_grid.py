"""What a generator does to images: one row per style, one column per image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keras_git.errors import InputError
from keras_git.plots.figures import TEXT_COLOUR, save

GAP = 2  # pixels of white between images
INPUT_GAP = 6  # and below the row of inputs, which is no output of the generator


def style_grid(
    contents: Any,
    generated: Any,
    path: str | Path,
    *,
    content_labels: Sequence[str] | None = None,
    style_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> Path:
    """Draw the inputs in the first row and, below, the same inputs under one style per row.

    A useful generator changes down a column what does not matter for the class (light, background,
    pose) and keeps what does; rows then look alike in just that, across classes.

    Args:
        contents: Input images, (contents, height, width, channels), 0..255, any real dtype, 1 or
            3 channels.
        generated: Generated images, (styles, contents, height, width, channels), 0..255; row `s`
            was made with style `s` for all inputs. Values outside 0..255 are clipped for display.
        path: Picture file; its ending names the format (`.png`, `.pdf`, `.svg`).
        content_labels: Names above the columns, for example the classes.
        style_labels: Names beside the rows; "style 1", "style 2", ... if not given.
        title: A line above the grid, for example the generator's training step.

    Returns:
        The path written.

    Raises:
        InputError: Shapes that do not belong together, other than 1 or 3 channels, a wrong number
            of labels, or an unknown picture format.
    """
    from matplotlib.figure import Figure

    contents, generated = np.asarray(contents), np.asarray(generated)
    if contents.ndim != 4 or contents.shape[-1] not in (1, 3) or 0 in contents.shape:
        raise InputError(
            f"contents has shape {contents.shape}; allowed are images of shape "
            "(contents, height, width, channels) with 1 or 3 channels, at least one"
        )
    if generated.ndim != 5 or generated.shape[1:] != contents.shape or not len(generated):
        raise InputError(
            f"generated has shape {generated.shape}; it must be (styles, *contents.shape), here "
            f"(styles, {', '.join(map(str, contents.shape))}), with at least one style"
        )
    styles, columns, height, width, _ = generated.shape
    style_labels = style_labels or [f"style {number}" for number in range(1, styles + 1)]
    for labels, count, what in (
        (style_labels, styles, "style_labels"),
        (content_labels, columns, "content_labels"),
    ):
        if labels is not None and len(labels) != count:
            raise InputError(f"{what} has {len(labels)} entries, but {count} are needed")

    rows = [_row(contents), *(_row(images) for images in generated)]
    tops = [0, *(height + INPUT_GAP + row * (height + GAP) for row in range(styles))]
    mosaic = np.full((tops[-1] + height, *rows[0].shape[1:]), 255, dtype=np.uint8)
    for row, row_top in zip(rows, tops, strict=True):
        mosaic[row_top : row_top + height] = row

    # About 0.55 inch per image: single pixels of a 28x28 image stay visible.
    scale = 0.55 / max(height, width)
    figure = Figure(figsize=(mosaic.shape[1] * scale + 1.0, mosaic.shape[0] * scale + 0.6))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.imshow(mosaic, interpolation="nearest")
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, colors=TEXT_COLOUR, labelsize=8)
    centres = [row_top + (height - 1) / 2 for row_top in tops]
    axes.set_yticks(centres, ["input", *style_labels])
    axes.get_yticklabels()[0].set_fontweight("bold")
    if content_labels is None:
        axes.set_xticks([])
    else:
        lines = [line for label in content_labels for line in str(label).splitlines()]
        slanted = max(map(len, lines), default=0) > 8  # wider than an image
        axes.xaxis.tick_top()
        axes.set_xticks(
            [column * (width + GAP) + (width - 1) / 2 for column in range(columns)],
            [str(label) for label in content_labels],
            rotation=45 if slanted else 0,
            ha="left" if slanted else "center",
        )
    if title:
        axes.set_title(title, fontsize=11, color=TEXT_COLOUR, loc="left", pad=8)
    return save(figure, path)


def _row(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Images side by side as displayable RGB, (height, row width, 3) uint8."""
    images = np.clip(np.rint(np.nan_to_num(images)), 0, 255).astype(np.uint8)
    images = np.broadcast_to(images, (*images.shape[:-1], 3))
    padded = np.pad(images, ((0, 0), (0, 0), (0, GAP), (0, 0)), constant_values=255)
    return np.concatenate(list(padded), axis=1)[:, :-GAP]
