"""What all pictures share: colours, plain axes, and files that are whole or absent.

Matplotlib is imported inside the functions, and only its object interface is used: no window, no
pyplot, no state that outlives a call.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from keras_git.errors import InputError
from keras_git.files import replacement

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any common colour vision can tell apart (Okabe & Ito,
# "Color Universal Design", 2008), without its yellow, too pale for thin lines on white. Markers
# repeat the distinction for print in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
TEXT_COLOUR = "#333333"
GRID_COLOUR = "#E2E2E2"


def method_style(index: int) -> tuple[str, str]:
    """Colour and marker of the method at `index` (its place in the results), the same everywhere.

    The cycles differ in length (7 colours, 9 markers), so that 63 methods look different.
    """
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


def plain(axes: Axes) -> None:
    """Take away what is not data: the upper and right frame, dark grid lines, tick marks."""
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#AAAAAA")
    axes.grid(True, color=GRID_COLOUR, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=TEXT_COLOUR, labelsize=9, length=0)


def drawable(text: str, substitute: str) -> str:
    """A name that Matplotlib draws as it is; `substitute` if its font lacks one of the letters."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    known = get_font(findfont(FontProperties())).get_charmap()
    text = " ".join(text.split())
    if any(ord(letter) not in known for letter in text):
        return substitute
    return text.replace("$", r"\$")


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure, its format named by the file's ending; a reader never sees half of it.

    Raises:
        InputError: The ending is not a picture format that Matplotlib can write.
        OSError: The folder cannot be written.
    """
    path = Path(path)
    file_format = path.suffix[1:].lower()
    allowed = sorted(figure.canvas.get_supported_filetypes())
    if file_format not in allowed:
        raise InputError(
            f"cannot write a picture to {path}: the file name must end in one of "
            f"{', '.join('.' + name for name in allowed)}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacement(path) as file:
        figure.savefig(file, format=file_format, dpi=150, bbox_inches="tight", facecolor="white")
    return path
