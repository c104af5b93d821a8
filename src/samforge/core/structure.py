"""Frozen dataclasses to plain JSON values and back, strictly.

Reading accepts exactly what writing makes: no unknown keys, no missing ones, no converted types.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
T = TypeVar("T")

_NOT_FINITE = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}


class StructureError(ValueError):
    """A value has another structure than its dataclass; whoever reads a file names the file."""


def json_from_value(value: object) -> Json:
    """Turn dataclasses, mappings, tuples and paths into what ``json.dumps`` takes.

    JSON has no infinity and no NaN (an exact result has an infinite SQNR): they become the strings
    ``inf``, ``-inf`` and ``nan``, and ``value_from_json`` turns them back where a float belongs.

    Raises:
        StructureError: A value has no JSON form.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): json_from_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_from_value(item) for item in value]
    if dataclasses.is_dataclass(value):
        fields = dataclasses.fields(value)
        return {field.name: json_from_value(getattr(value, field.name)) for field in fields}
    raise StructureError(f"{type(value).__name__} has no JSON form: {value!r}.")


def value_from_json(kind: type[T], value: object, *, where: str = "", complete: bool = True) -> T:
    """Read a dataclass from plain JSON or TOML values.

    Args:
        kind: The dataclass.
        value: What the file held.
        where: Path of the value in its file, for messages: ``parts.vision``.
        complete: Whether every key has to be there. False lets fields keep their defaults.

    Raises:
        StructureError: A key is unknown or missing, or a value has another type.
    """
    read: T = _read(kind, value, where, complete)
    return read


def unknown_names(given: Iterable[str], allowed: Iterable[str]) -> str | None:
    """Say which names are not allowed, the nearest allowed ones and all of them; None if none."""
    known = sorted(allowed)
    unknown = sorted(set(given) - set(known))
    if not unknown:
        return None
    near = {name: difflib.get_close_matches(name, known, n=1) for name in unknown}
    hints = [
        f"{name!r} (did you mean {near[name][0]!r}?)" if near[name] else repr(name)
        for name in unknown
    ]
    return f"unknown: {', '.join(hints)}; allowed are {', '.join(known)}"


def _read(kind: Any, value: Any, where: str, complete: bool) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object:
        return value
    if origin in (types.UnionType, typing.Union):
        return _read_union(arguments, value, where, complete)
    if dataclasses.is_dataclass(kind):
        return _read_fields(kind, value, where, complete)
    if origin is tuple:
        return _read_tuple(arguments, value, where, complete)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        table = _expect(dict, value, where)
        return {
            key: _read(arguments[1], item, _join(where, key), complete)
            for key, item in table.items()
        }
    if kind is float:
        return _read_float(value, where)
    if kind is Path:
        return Path(_expect(str, value, where))
    return _expect(type(None) if kind is None else kind, value, where)


def _read_fields(kind: Any, value: Any, where: str, complete: bool) -> Any:
    table = _expect(dict, value, where)
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if problem := unknown_names(table, fields):
        raise StructureError(f"{_place(where)} has keys that are {problem}.")
    needed = [
        name
        for name, field in fields.items()
        if complete
        or (field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING)
    ]
    if missing := [name for name in needed if name not in table]:
        raise StructureError(f"{_place(where)} lacks {', '.join(missing)}.")
    return kind(
        **{
            name: _read(hints[name], item, _join(where, name), complete)
            for name, item in table.items()
        }
    )


def _read_union(arguments: tuple[Any, ...], value: Any, where: str, complete: bool) -> Any:
    problems = []
    for argument in arguments:
        try:
            return _read(argument, value, where, complete)
        except StructureError as error:
            problems.append(str(error))
    raise StructureError(problems[0])


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str, complete: bool) -> Any:
    if isinstance(value, tuple):
        value = list(value)
    items = _expect(list, value, where)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        arguments = (arguments[0],) * len(items)
    if len(arguments) != len(items):
        raise StructureError(f"{_place(where)} wants {len(arguments)} values, got {len(items)}.")
    return tuple(
        _read(argument, item, f"{where}[{index}]", complete)
        for index, (argument, item) in enumerate(zip(arguments, items, strict=True))
    )


def _read_float(value: Any, where: str) -> float:
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError as error:
            raise StructureError(
                f"{_place(where)} is out of range: a whole number of {value.bit_length()} bits."
            ) from error
    number: float = _expect(float, value, where)
    return number


def _expect(kind: type, value: Any, where: str) -> Any:
    # bool is an int to Python, and never one to a file.
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    raise StructureError(
        f"{_place(where)} wants {_NAMES.get(kind, kind.__name__)}, got {value!r:.80}."
    )


_NAMES: dict[type, str] = {
    bool: "true or false",
    dict: "a table of keys",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
    type(None): "nothing",
}


def _place(where: str) -> str:
    return where or "the top level"


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
