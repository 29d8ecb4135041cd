"""HTML and SVG by functions that escape everything that is not markup itself."""

from __future__ import annotations

import html
from collections.abc import Iterable

_VOID = {"meta", "img", "br", "col"}


class Markup(str):
    """Text that is markup already. Every other string is escaped when it is put into a tag."""


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element, closed.

    Args:
        name: of the element.
        *children: strings, which are escaped; markup, which is not; lists of both; None, which is
            left out.
        **attributes: a trailing underscore is dropped (`class_`), others become hyphens; floats are
            written with one decimal at most; None and False leave the attribute out.
    """
    opening = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            opening += f' {key}=""'
            continue
        text = short(value) if isinstance(value, float) else str(value)
        opening += f' {key}="{_escape(text)}"'
    if name in _VOID:
        return Markup(f"<{opening}>")
    return Markup(f"<{opening}>{join(children)}</{name}>")


def join(children: Iterable[object], separator: str = "") -> Markup:
    """Children one after another; see `tag`."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Markup):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(child))
        else:
            parts.append(_escape(str(child)))
    return Markup(separator.join(parts))


def short(value: float) -> str:
    """A coordinate, to a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")


def _escape(text: str) -> str:
    # Lone surrogates (file names that are not UTF-8) could not be written.
    return html.escape(text.encode("utf-8", "replace").decode("utf-8"), quote=True)
