"""From a frozen dataclass to absl flags, and from any bad input to one line and exit code 2."""

from __future__ import annotations

import dataclasses
import errno
import sys
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging

from keras_git.errors import InputError

_REMEDIES = {
    errno.ENOSPC: "free some space; the same command continues the run",
    errno.EDQUOT: "free some space; the same command continues the run",
    errno.EACCES: "allow writing there, or choose another folder",
    errno.EROFS: "choose a folder that can be written",
}


def option(default: Any, help: str, choices: Sequence[str] | None = None) -> Any:
    """A dataclass field that becomes the flag of its name."""
    metadata = {"help": help, "choices": choices}
    return dataclasses.field(default=default, metadata=metadata)


def _kind(annotation: Any) -> Any:
    """`int | None` is the flag type int: a flag that is left out is None."""
    if isinstance(annotation, types.UnionType):
        (annotation,) = (a for a in typing.get_args(annotation) if a is not type(None))
    return annotation


def define_flags(config_class: type) -> None:
    """Defines one flag for each field of a dataclass made of `option` fields."""
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, text = _kind(hints[field.name]), field.metadata["help"]
        if field.metadata["choices"]:
            flags.DEFINE_enum(field.name, field.default, field.metadata["choices"], text)
        elif kind is bool:
            flags.DEFINE_bool(field.name, field.default, text)
        elif kind is int:
            flags.DEFINE_integer(field.name, field.default, text)
        elif kind is float:
            flags.DEFINE_float(field.name, field.default, text)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_list(field.name, [str(v) for v in field.default], text)
        else:
            flags.DEFINE_string(field.name, field.default, text)


def config_from_flags(config_class: type) -> Any:
    """The dataclass with the values of the flags. Raises `InputError` for a bad list entry."""
    hints = typing.get_type_hints(config_class)
    values = {}
    for field in dataclasses.fields(config_class):
        value, kind = flags.FLAGS[field.name].value, _kind(hints[field.name])
        if typing.get_origin(kind) is tuple:
            item = typing.get_args(kind)[0]
            try:
                value = tuple(item(v) for v in value)
            except ValueError:
                raise InputError(
                    f"--{field.name}={','.join(value)}: use numbers separated by commas"
                ) from None
        values[field.name] = value
    return config_class(**values)


def _parse(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(list(argv))
    except flags.Error as error:
        _stop(str(error))
    if len(rest) > 1:
        _stop(f"unexpected argument {rest[1]!r}: flags start with --")
    return rest


def _stop(message: str) -> typing.NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def main(config_class: type, run: Callable[[Any], Any]) -> None:
    """Runs `run(config)` as a program: bad input ends in one line and exit code 2."""

    def guarded(argv: Sequence[str]) -> None:
        del argv
        logging.use_absl_handler()
        logging.set_verbosity(logging.INFO)
        try:
            run(config_from_flags(config_class))
        except InputError as error:
            _stop(str(error))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            remedy = _REMEDIES.get(error.errno or 0, "the same command continues the run")
            _stop(f"{error.strerror or error}{where}: {remedy}")
        except KeyboardInterrupt:
            print("interrupted: the same command continues the run", file=sys.stderr)
            sys.exit(130)

    define_flags(config_class)
    app.run(guarded, flags_parser=_parse)
