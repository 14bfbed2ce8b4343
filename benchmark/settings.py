"""Typed settings: frozen dataclasses whose fields are filled from YAML values or command-line text.

`setting` declares a field with its help text and bounds; `check` turns raw values into the declared types and
collects every problem with the place it came from.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from benchmark.errors import quoted, suggest


@dataclass(frozen=True)
class Given:
    """One raw value: its key, the value as read, and where it stands (``file:key`` or the flag)."""

    key: str
    value: Any
    where: str


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    hashed: bool | Literal["unless default"] = True,
) -> Any:
    """Declare a dataclass field.

    Args:
        default: value when nothing else is given.
        help: what it means, for people.
        low: smallest allowed value.
        above: values must be greater than this.
        high: largest allowed value.
        hashed: False when it cannot change a result (it then does not make two runs differ); "unless default" for a
            setting that came later, whose default is what was done before: older results stay valid.
    """
    return dataclasses.field(
        default=default, metadata={"help": help, "low": low, "above": above, "high": high, "hashed": hashed}
    )


def unsaid(options: Any) -> set[str]:
    """Return the options that are left out of settings and hashes: later ones that do what was done before them."""
    return {
        item.name
        for item in dataclasses.fields(options)
        if item.metadata.get("hashed") == "unless default" and getattr(options, item.name) == item.default
    }


def check(cls: type, given: Iterable[Given], kind: str) -> tuple[dict[str, Any], list[str]]:
    """Turn raw values into keyword arguments of a dataclass; the last value of a key wins.

    Args:
        cls: the dataclass.
        given: raw values in order of precedence.
        kind: what to call a key in messages, for example "recipe key".

    Returns:
        The typed values, and one line per problem (unknown key, wrong type, out of bounds).
    """
    hints = _hints(cls)
    fields = {item.name: item for item in dataclasses.fields(cls) if item.init}
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in given:
        if item.key not in fields:
            known = ", ".join(sorted(fields)) or "none"
            hint = suggest(item.key, fields)
            problems.append(f"{item.where}: unknown {kind} '{item.key}'.{hint} Known: {known}")
            continue
        try:
            value = coerce(item.value, hints[item.key])
            check_bounds(value, fields[item.key].metadata)
            values[item.key] = value
        except ValueError as error:
            problems.append(f"{item.where}: expected {error}, got {quoted(item.value)}")
    return values, problems


def contract_problem(plugin: Any) -> str:
    """Return what keeps a method or task from being configured, in a few words; empty when nothing does."""
    if not isinstance(getattr(plugin, "cost_hint", 1.0), int | float):
        return f"its cost_hint must be a number, not {quoted(plugin.cost_hint)}"
    cls = getattr(plugin, "Options", None)
    if cls is None:
        return ""
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        return "its Options must be a dataclass"
    try:
        _hints(cls)
    except Exception as error:  # an annotation may say anything
        return f"the types of its Options cannot be read ({type(error).__name__}: {error})"
    for item in dataclasses.fields(cls):
        if item.init and item.default is item.default_factory is dataclasses.MISSING:
            return f"its option '{item.name}' has no default"
    return ""


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def check_bounds(value: Any, metadata: Any) -> None:
    """Raise ValueError, saying what is expected, when a number is out of the declared bounds."""
    low, above, high = (metadata.get(key) for key in ("low", "above", "high"))
    for number in value if isinstance(value, tuple) else (value,):
        if isinstance(number, bool) or not isinstance(number, int | float):
            continue
        if low is not None and not number >= low:
            raise ValueError(f"a value of at least {low:g}")
        if above is not None and not number > above:
            raise ValueError(f"a value greater than {above:g}")
        if high is not None and not number <= high:
            raise ValueError(f"a value of at most {high}")


def coerce(value: Any, hint: Any) -> Any:
    """Return ``value`` as the annotated type; text is parsed, other types are not converted silently.

    Raises:
        ValueError: the text says what was expected, for example "a whole number".
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        return _coerce_union(value, typing.get_args(hint))
    if origin is Literal:
        return _coerce_choice(value, typing.get_args(hint))
    if origin is tuple:
        return _coerce_tuple(value, typing.get_args(hint))
    return _PLAIN[hint](value) if hint in _PLAIN else value


def words(value: Any) -> list[Any]:
    """Return the items of a list: of a text with commas or blanks, of a list of such texts, or one value."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, list | tuple):
        return [word for item in value for word in words(item)]
    return [value]


def _coerce_union(value: Any, hints: tuple[Any, ...]) -> Any:
    if type(None) in hints and (value is None or str(value).lower() in ("none", "null")):
        return None
    wanted = [hint for hint in hints if hint is not type(None)]
    expected: list[str] = []
    for hint in wanted:
        try:
            return coerce(value, hint)
        except ValueError as error:
            expected.append(str(error))
    raise ValueError(" or ".join(expected))


def _coerce_choice(value: Any, choices: tuple[Any, ...]) -> Any:
    for choice in choices:
        if value == choice or str(value) == str(choice):
            return choice
    hint = suggest(str(value), [str(choice) for choice in choices])
    raise ValueError(f"one of {', '.join(map(str, choices))}{' (' + hint.strip() + ')' if hint else ''}")


def _coerce_tuple(value: Any, hints: tuple[Any, ...]) -> tuple[Any, ...]:
    items = words(value)
    if len(hints) == 2 and hints[1] is Ellipsis:
        return tuple(coerce(item, hints[0]) for item in items)
    if len(items) != len(hints):
        raise ValueError(f"{len(hints)} values")
    return tuple(coerce(item, hint) for item, hint in zip(items, hints, strict=True))


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError("a whole number")
    try:
        number = int(value)
    except ValueError:
        raise ValueError("a whole number") from None
    if not -(2**63) <= number < 2**63:  # what a tensor holds
        raise ValueError("a whole number below 2^63")
    return number


def _float(value: Any) -> float:
    # YAML 1.1 reads 1e-3 as text, so text is welcome here.
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError("a number")
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError("a number") from None
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError("a finite number")
    return number


def _bool(value: Any) -> bool:
    words_of = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    if isinstance(value, bool):
        return value
    if str(value).lower() not in words_of:
        raise ValueError("true or false")
    return words_of[str(value).lower()]


def _str(value: Any) -> str:
    if value is None or isinstance(value, list | dict | tuple | set | bytes) or "\0" in str(value):
        raise ValueError("a text")
    return str(value)


def _path(value: Any) -> Path:
    try:
        return Path(_str(value)).expanduser()
    except RuntimeError:
        raise ValueError("a path without ~ (there is no such user here)") from None


_PLAIN: dict[Any, Callable[[Any], Any]] = {int: _int, float: _float, bool: _bool, str: _str, Path: _path}
