"""Typed settings: frozen dataclasses whose fields are filled from YAML values, command-line text or stored files.

A dataclass declares what is allowed: `setting` gives a field its help text and bounds. Pydantic does the checking and
writes the JSON Schema; this module tells it which texts stand for values (``"1e-3"``, ``"a,b"``, ``"yes"``) and turns
its errors into one line each.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    Strict,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import Required, TypedDict

from benchmark.errors import quoted, suggest


@dataclass(frozen=True)
class Given:
    """One raw value: its key, the value as read, and where it stands (``file:key`` or the flag)."""

    key: str
    value: Any
    where: str


class Stored:
    """Base of dataclasses that declare a stored file: no text stands for a value, and other keys may be there."""

    as_written: ClassVar[bool] = True
    more_keys: ClassVar[bool] = True


def setting(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    above: float | None = None,
    high: float | None = None,
    below: float | None = None,
    hashed: bool | Literal["unless default"] = True,
) -> Any:
    """Declare a dataclass field.

    Args:
        default: value when nothing else is given; ``dataclasses.MISSING`` for a key that a data entry must have.
        help: what it means, for people.
        low: smallest allowed value.
        above: values must be greater than this.
        high: largest allowed value.
        below: values must be less than this.
        hashed: False when it cannot change a result (it then does not make two runs differ); "unless default" for a
            setting that came later, whose default is what was done before: older results stay valid.
    """
    bounds = {"ge": low, "gt": above, "le": high, "lt": below}
    given = {name: value for name, value in bounds.items() if value is not None}
    return dataclasses.field(default=default, metadata={"help": help, "bounds": given, "hashed": hashed})


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
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in given:
        one = {str(item.key): item.value}
        try:
            values |= _adapter(cls, partial=True).validate_python(one)
        except ValidationError as error:
            problems += _lines(error, one, cls, functools.partial(_place_of, item), kind)
    return values, problems


def read(
    hint: Any, value: Any, where: Callable[[str], str], kind: str = "key"
) -> tuple[Any | None, list[str]]:
    """Check a whole section, with all that stands below it.

    Args:
        hint: a dataclass, or a type such as ``dict[str, <dataclass>]``.
        value: as it was read from a file.
        where: how a message names a key, given its path ("rows.1.title"; "" is the section itself).
        kind: what to call a key in messages.

    Returns:
        The dataclass, or None when anything is wrong; and one line per problem.
    """
    try:
        return _adapter(hint).validate_python(value), []
    except ValidationError as error:
        return None, _lines(error, value, hint, where, kind)


def coerce(value: Any, hint: Any) -> Any:
    """Return ``value`` as the annotated type; text is parsed, other types are not converted silently.

    Raises:
        ValueError: the text says what was expected, for example "a whole number".
    """
    try:
        return _adapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(_expected(error.errors()[0])) from None


def called(text: str) -> Any:
    """Return an annotation that says how messages name a type, for ``Annotated[list[str], ...]``."""

    def wrapped(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError as error:
            if error.errors()[0]["loc"]:
                raise
            raise ValueError(text) from None

    return WrapValidator(wrapped)


def words(value: Any) -> list[Any]:
    """Return the items of a list: of a text with commas or blanks, of a list of such texts, or one value."""
    if isinstance(value, str):
        return value.replace(",", " ").split()
    if isinstance(value, list | tuple):
        return [word for item in value for word in words(item)]
    return [value]


def json_schema(hint: Any) -> dict[str, Any]:
    """Return the JSON Schema of what `read` takes; texts that stand for numbers are not in it."""
    return _adapter(hint).json_schema(schema_generator=_Untitled)


class _Untitled(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def contract_problem(plugin: Any, *, required: bool = False) -> str:
    """Return what keeps a plugin from being configured, in a few words; empty when nothing does.

    Args:
        plugin: a method, task or dataset.
        required: whether options may lack a default, as the keys that a data entry must have.
    """
    if not isinstance(getattr(plugin, "cost_hint", 1.0), int | float):
        return f"its cost_hint must be a number, not {quoted(plugin.cost_hint)}"
    cls = getattr(plugin, "Options", None)
    if cls is None:
        return ""
    if not isinstance(cls, type) or not dataclasses.is_dataclass(cls):
        return "its Options must be a dataclass"
    try:
        _adapter(cls, partial=True)
    except Exception as error:  # an annotation may say anything
        return f"the types of its Options cannot be read ({type(error).__name__}: {error})"
    for item in dataclasses.fields(cls):
        if not required and item.init and _is_required(item):
            return f"its option '{item.name}' has no default"
    return ""


# ------------------------------------------------------------------ dataclasses become pydantic types
@functools.cache
def _adapter(hint: Any, *, partial: bool = False) -> TypeAdapter[Any]:
    """Return pydantic's checker of a type; with ``partial``, of some keys of a dataclass."""
    return TypeAdapter(_record(hint, partial=True) if partial else _typed(hint, {}, strict=False))


@functools.cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


def _is_required(item: dataclasses.Field[Any]) -> bool:
    return item.default is item.default_factory is dataclasses.MISSING


def _record(cls: type, *, partial: bool = False) -> Any:
    """Return the keys of a dataclass as a TypedDict."""
    keys: dict[str, Any] = {}
    for item in dataclasses.fields(cls):
        if item.init:
            bounds, strict = item.metadata.get("bounds", {}), getattr(cls, "as_written", False)
            typed: Any = _typed(_hints(cls)[item.name], bounds, strict=strict)
            typed = Annotated[typed, Field(description=item.metadata.get("help"))]
            keys[item.name] = Required[typed] if _is_required(item) and not partial else typed
    make: Any = TypedDict
    made = make(cls.__name__, keys, total=False)
    made.__pydantic_config__ = ConfigDict(extra="ignore" if getattr(cls, "more_keys", False) else "forbid")
    return made


def _typed(hint: Any, bounds: Mapping[str, Any], *, strict: bool) -> Any:
    """Return the type that pydantic checks; unless ``strict``, texts may stand for values."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    within = functools.partial(_typed, bounds=bounds, strict=strict)
    if origin is Annotated:
        return functools.reduce(lambda kind, mark: Annotated[kind, mark], inner[1:], within(inner[0]))
    if dataclasses.is_dataclass(hint):
        return Annotated[_record(hint), AfterValidator(functools.partial(_made, hint))]  # type: ignore[arg-type]
    if origin in (typing.Union, types.UnionType):
        return _union([within(x) for x in inner if x is not type(None)], type(None) in inner, strict)
    if origin is Literal:
        return Annotated[Any, PlainValidator(functools.partial(_choice, inner), json_schema_input_type=hint)]
    if origin is tuple:
        return _tuple([x if x is Ellipsis else within(x) for x in inner])
    if origin in (list, collections.abc.Sequence):
        return list[within(inner[0])]  # type: ignore[misc]
    if origin in (dict, collections.abc.Mapping):
        return dict[inner[0] if typing.get_origin(inner[0]) is Annotated else Any, within(inner[1])]  # type: ignore[misc]
    if hint is dict or hint is list:
        return hint
    return _plain(hint, bounds, strict) if hint in (int, float, bool, str, Path) else Any


def _plain(hint: Any, bounds: Mapping[str, Any], strict: bool) -> Any:
    if hint in (int, float):
        number: Any = Annotated[
            hint, Strict(), Field(allow_inf_nan=False if hint is float else None, **bounds)
        ]
        number = Annotated[number, AfterValidator(_fits)] if hint is int else number
        return number if strict else Annotated[number, BeforeValidator(functools.partial(_number, hint))]
    if strict:
        return Annotated[hint, Strict()]
    reader: Callable[[Any], Any] = {bool: _bool, str: _str, Path: _path}[hint]
    return Annotated[hint, PlainValidator(reader, json_schema_input_type=hint)]


def _union(kinds: Sequence[Any], optional: bool, strict: bool) -> Any:
    joined = kinds[0]
    if len(kinds) > 1:
        joined = Annotated[typing.Union[tuple(kinds)], Field(union_mode="left_to_right")]  # noqa: UP007
        joined = Annotated[joined, WrapValidator(_one_problem)]
    if not optional:
        return joined
    return joined | None if strict else Annotated[joined | None, BeforeValidator(_none)]


def _tuple(kinds: Sequence[Any]) -> Any:
    """Return a tuple that is also read from words; what is wrong with it is one problem."""
    whole: Any = tuple[tuple(kinds)]  # type: ignore[misc]
    count = None if Ellipsis in kinds else len(kinds)
    kind: Any = typing.Union[tuple(x for x in kinds if x is not Ellipsis)]  # noqa: UP007
    written = typing.Union[list[kind], kind, str]  # noqa: UP007
    return Annotated[whole, WrapValidator(functools.partial(_split, count), json_schema_input_type=written)]


def _split(count: int | None, value: Any, handler: Callable[[Any], Any]) -> Any:
    items = words(value)
    if count is not None and len(items) != count:
        raise ValueError(f"{count} values")
    try:
        return handler(tuple(items))
    except ValidationError as error:
        raise ValueError(_expected(error.errors()[0])) from None


def _one_problem(value: Any, handler: Callable[[Any], Any]) -> Any:
    try:
        return handler(value)
    except ValidationError as error:
        raise ValueError(" or ".join(dict.fromkeys(map(_expected, error.errors())))) from None


def _made(cls: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    return cls(**values)


# ------------------------------------------------------------------ texts that stand for values
def _none(value: Any) -> Any:
    return None if isinstance(value, str) and value.lower() in ("none", "null") else value


def _choice(choices: tuple[Any, ...], value: Any) -> Any:
    for choice in choices:
        if value == choice or str(value) == str(choice):
            return choice
    hint = suggest(str(value), [str(choice) for choice in choices])
    raise ValueError(f"one of {', '.join(map(str, choices))}{' (' + hint.strip() + ')' if hint else ''}")


def _number(kind: type, value: Any) -> Any:
    # YAML 1.1 reads 1e-3 as text, so text is welcome here.
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        return value


def _fits(number: int) -> int:
    if not -(2**63) <= number < 2**63:  # what a tensor holds
        raise ValueError("a whole number below 2^63")
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


# ------------------------------------------------------------------ pydantic's errors become lines
_EXPECTED = {
    "dict_type": "keys and values",
    "list_type": "a list",
    "string_type": "a text",
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "greater_than_equal": "a value of at least {ge:g}",
    "greater_than": "a value greater than {gt:g}",
    "less_than_equal": "a value of at most {le}",
    "less_than": "a value below {lt:g}",
    "value_error": "{error}",
}
"""Type of an error -> what was expected instead."""


def _expected(error: Any) -> str:
    known = _EXPECTED.get(error["type"])
    return known.format(**error.get("ctx", {})) if known else str(error["msg"])


def _place_of(item: Given, path: str) -> str:
    return item.where + path.removeprefix(str(item.key))


def _lines(
    error: ValidationError, value: Any, hint: Any, where: Callable[[str], str], kind: str
) -> list[str]:
    """Return one line per error: the place, what was expected there, and what came."""
    lines = []
    for one in error.errors(include_url=False):
        keys = [key for key in one["loc"] if key != "[key]"]
        path, inside, got = [], [hint], value
        for key in keys:
            path.append(str(key + 1) if isinstance(got, list) else str(key))  # type: ignore[operator]
            inside.append(_below(inside[-1], key))
            got = _item(got, key)
        got = keys[-1] if one["loc"][-1:] == ("[key]",) else got
        place = where(".".join(path))
        if one["type"] in ("extra_forbidden", "invalid_key"):
            named = f"{path[-2]} key" if len(path) > 1 and not path[-2].isdecimal() else kind
            lines.append(f"{place}: {_unknown(named, path[-1], inside[-2])}")
        elif one["type"] == "missing":
            lines.append(f"{where('.'.join(path[:-1]))}: the key '{path[-1]}' is missing")
        else:
            lines.append(f"{place}: expected {_expected(one)}, got {quoted(got)}")
    return lines


def _item(value: Any, key: Any) -> Any:
    try:
        return value[key]
    except (LookupError, TypeError):  # a key of a mapping that is wrong itself
        return key


def _bare(hint: Any) -> Any:
    """Return the type that ``Annotated[X, ...]`` and ``X | None`` are about."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _bare(inner[0])
    kinds = [x for x in inner if x is not type(None)]
    return _bare(kinds[0]) if origin in (typing.Union, types.UnionType) and len(kinds) == 1 else hint


def _below(hint: Any, key: Any) -> Any:
    """Return the type of what stands below a key."""
    hint = _bare(hint)
    if dataclasses.is_dataclass(hint):
        return _hints(typing.cast("type", hint)).get(key, Any)
    inner = typing.get_args(hint)
    return inner[-1] if inner and typing.get_origin(hint) is not Literal else Any


def _keys_of(cls: type) -> list[str]:
    return (
        [item.name for item in dataclasses.fields(cls) if item.init] if dataclasses.is_dataclass(cls) else []
    )


def _unknown(kind: str, key: str, hint: Any) -> str:
    """Return the message on a key that a dataclass has not: the nearest one, maybe of a section of it, and all."""
    cls = _bare(hint)
    sections = {name: _bare(_hints(cls)[name]) for name in _keys_of(cls)}
    inside = [name for name, one in sections.items() if isinstance(one, type) and key in _keys_of(one)]
    shown = [item.name for item in dataclasses.fields(cls) if item.init and item.metadata.get("help") != ""]
    near = f" Did you mean '{inside[0]}.{key}'?" if inside else suggest(key, shown)
    return f"unknown {kind} '{key}'.{near} Known: {', '.join(sorted(shown)) or 'none'}"
