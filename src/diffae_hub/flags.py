"""Options declared once, as a dataclass, become a command's flags.

A field `num_images: int | None = option(None, "number of images")` is the flag `--num-images`. `Literal` types become
choices, tuples take several values, booleans have a `--no-` form, and whole numbers may be written as 64e6. The same
dataclass is the argument of the Python function, and a run keeps it as JSON.
"""

import argparse
import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

Options = TypeVar("Options")


def option(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    minimum: float | None = None,
    positional: bool = False,
    append: bool = False,
) -> Any:
    """Declares a dataclass field with its flag. The default `dataclasses.MISSING` makes it required.

    `help` is one line, to which the default is added. `group` is the title under which `--help` lists the flag.
    [`check_values`] checks `minimum`. A `positional` argument has no flag. With `append`, the flag of a tuple takes
    one value and is repeated for more.
    """
    metadata = {"help": help, "group": group, "minimum": minimum, "positional": positional, "append": append}
    return dataclasses.field(default=default, metadata=metadata)


def check_values(options: Any) -> None:
    """Raises ValueError, which names the field, if a value is below its minimum or not one of its choices."""
    hints = typing.get_type_hints(type(options))
    for field in dataclasses.fields(options):
        value, minimum = getattr(options, field.name), field.metadata["minimum"]
        if minimum is not None and value is not None and value < minimum:
            raise ValueError(f"{field.name} must be at least {minimum}, got {value}")
        kind, _ = _kind_of(hints[field.name])
        values = value if isinstance(value, (tuple, list)) else () if value is None else (value,)
        if typing.get_origin(kind) is Literal and not {*values} <= {*typing.get_args(kind)}:
            raise ValueError(f"{field.name} must be of {typing.get_args(kind)}, got {value!r}")


def _kind_of(hint: Any) -> tuple[Any, bool]:
    """Returns the type of a field's value, or of each value of a tuple, and whether it is a tuple. None is ignored."""
    if type(None) in typing.get_args(hint):
        hint = next(part for part in typing.get_args(hint) if part is not type(None))
    is_tuple = typing.get_origin(hint) is tuple
    return typing.get_args(hint)[0] if is_tuple else hint, is_tuple


def whole_number(text: str) -> int:
    """Parses an integer that may be written as 64e6 or 64_000_000."""
    try:
        number = int(text)  # exact for large numbers
    except ValueError:
        if not float(text).is_integer():  # infinity and NaN are not, either
            raise
        number = int(float(text))
    if abs(number) >= 2**63:
        raise ValueError
    return number


def path(text: str) -> Path:
    """Parses a path, with `~` for the home folder. Refuses an empty text, as from a variable that is not set."""
    if not text:
        raise ValueError
    return Path(text).expanduser()


whole_number.__name__ = "int"  # the name of the type in argparse's messages


def add_flags(parser: argparse.ArgumentParser, options: type) -> None:
    """Adds a flag for each field of a dataclass, in its `group`."""
    hints, groups = typing.get_type_hints(options), {None: parser}
    for field in dataclasses.fields(options):
        extra, default = field.metadata, field.default
        required, group = default is dataclasses.MISSING, extra["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        settings: dict[str, Any] = {"help": extra["help"]}
        if not required:
            settings["default"] = default
            if default not in (None, ()) and default is not False:  # 0 == False, but is shown
                shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
                settings["help"] += f" (default: {shown})".replace("%", "%%")
        kind, is_tuple = _kind_of(hints[field.name])
        if is_tuple:
            repeated = {"action": "append", "default": []}
            settings |= repeated if extra["append"] else {"nargs": "+" if required else "*"}
        if typing.get_origin(kind) is Literal:
            settings["choices"] = typing.get_args(kind)
        elif kind is bool:
            settings["action"] = argparse.BooleanOptionalAction
        else:
            settings["type"] = {int: whole_number, Path: path}.get(kind, kind)
        if extra["positional"]:
            groups[group].add_argument(field.name, metavar=field.name.upper(), **settings)
        else:
            flag = "--" + field.name.replace("_", "-")
            groups[group].add_argument(flag, dest=field.name, required=required, **settings)


def from_values(options: type[Options], values: Mapping[str, Any]) -> Options:
    """Builds a dataclass from its part of `values`, parsed flags or a JSON file; lists become tuples."""
    own = {field.name: values[field.name] for field in dataclasses.fields(options)}
    return options(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


def with_hyphens(argv: list[str]) -> list[str]:
    """Updates flags as they were before 0.2: `--num_images` to `--num-images`, and `--output_dir` to `--output`."""
    words = []
    for word in argv:
        flag, sign, value = word.partition("=")
        if flag.startswith("--"):
            flag = flag.replace("_", "-")
        words.append(("--output" if flag == "--output-dir" else flag) + sign + value)
    return words
