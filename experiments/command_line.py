"""From a frozen dataclass to absl flags, and from any bad input to one line and exit code 2."""

from __future__ import annotations

import dataclasses
import errno
import shlex
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


def define_flags(config_class: type, into: flags.FlagValues = flags.FLAGS) -> None:
    """Defines one flag for each field of a dataclass made of `option` fields."""
    known = {"flag_values": into}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        kind, text = _kind(hints[field.name]), field.metadata["help"]
        if field.metadata["choices"]:
            flags.DEFINE_enum(field.name, field.default, field.metadata["choices"], text, **known)
        elif kind is bool:
            flags.DEFINE_bool(field.name, field.default, text, **known)
        elif kind is int:
            flags.DEFINE_integer(field.name, field.default, text, **known)
        elif kind is float:
            flags.DEFINE_float(field.name, field.default, text, **known)
        elif typing.get_origin(kind) is tuple:
            flags.DEFINE_list(field.name, [str(v) for v in field.default], text, **known)
        else:
            flags.DEFINE_string(field.name, field.default, text, **known)


def config_from_flags(config_class: type, values_of: flags.FlagValues = flags.FLAGS) -> Any:
    """The dataclass with the values of the flags. Raises `InputError` for a bad list entry."""
    hints = typing.get_type_hints(config_class)
    values = {}
    for field in dataclasses.fields(config_class):
        value, kind = values_of[field.name].value, _kind(hints[field.name])
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


def parsed(config_class: type, arguments: Sequence[str]) -> tuple[Any, list[str]]:
    """A dataclass made of `option` fields from flags such as `["--epochs=3", "--whitening"]`.

    Returns:
        The dataclass, and the names of the flags that were given.

    Raises:
        InputError: an unknown flag, a value that it cannot have, or something that is no flag.
    """
    known = flags.FlagValues()
    define_flags(config_class, known)
    try:
        rest = known(["", *arguments])
    except flags.Error as error:
        raise InputError(" ".join(str(error).split())) from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}: flags start with --")
    names = [field.name for field in dataclasses.fields(config_class)]
    return config_from_flags(config_class, known), [n for n in names if known[n].present]


def flags_of(config: Any, leave_out: Sequence[str] = ()) -> list[str]:
    """The flags that give this dataclass again: those of its fields that are not the default.

    Quoted for a shell. Fields in `leave_out` are not written.
    """
    written = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name in leave_out or value == field.default:
            continue
        if isinstance(value, bool):
            written.append(f"--{'' if value else 'no'}{field.name}")
            continue
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        written.append(shlex.quote(f"--{field.name}={text}"))
    return written


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
