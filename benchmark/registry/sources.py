"""Reads what a plugin file registers from its source, and finds and imports plugin files and modules."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.errors import BenchmarkError, PluginError, quoted, unknown
from benchmark.files import ROOT, shown, user_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_KEYWORDS = {"aliases", "in_all", "family", "summary", "names_from", "of", "groups"}
"""Keywords of the decorators that register plugins."""
_NOT_PLUGINS = [
    *(
        ROOT / part
        for part in ("benchmark", "methods/base.py", "methods/__init__.py", "methods/layers", "tasks/base.py")
    ),
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
]
"""Where code lies that a plugin calls, or that calls it."""
_WORDS = ("all", "none")
"""Words of the command line, which no plugin can be called."""


@dataclass(frozen=True)
class Entry:
    """One plugin name, known from its source, its entry point or its decorator.

    Attributes:
        name: canonical name.
        origin: ``file:line`` of the registration, or the entry point's value.
        aliases: other spellings, for example the paper's.
        in_all: whether ``all`` includes it. groups: other words that stand for it, among others.
        family: whether the name stands for a family, whose members are called ``name:member``.
        summary: first line of the module docstring.
        names_from: ``package/glob``; the stems of these files of an installed package are further names of the object.
        load: imports the module or entry point; may return the object itself.
    """

    name: str
    origin: str
    aliases: tuple[str, ...] = ()
    in_all: bool = True
    groups: tuple[str, ...] = ()
    family: bool = False
    summary: str = ""
    names_from: str = ""
    load: Callable[[], Any] = lambda: None


@dataclass(frozen=True)
class PluginSource:
    """A parsed plugin file.

    Attributes:
        summary: first line of its docstring.
        found: what it registers.
        unread: why calls, or the whole file, could not be read.
    """

    summary: str = ""
    found: list[Entry] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_source(path: Path, function: str) -> PluginSource:
    """Read the calls of ``function`` off a file.

    Raises:
        PluginError: a call has a name that cannot be one, or a keyword of a wrong type.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as error:
        return PluginSource(unread=[f"{shown(path)}: {reason_of(error)}"])
    source = PluginSource((ast.get_docstring(tree) or "").split("\n")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _called(node) == function:
            _read_call(node, f"{shown(path)}:{node.lineno}", source)
    return source


def _read_call(node: ast.Call, origin: str, source: PluginSource) -> None:
    try:
        name = ast.literal_eval(node.args[0])
        options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        source.unread.append(f"{origin}: its name and keywords must be written out")
        return
    source.found.append(Entry(checked_name(name, origin), origin, **_checked(options, origin)))


def _checked(options: Mapping[str, Any], origin: str) -> dict[str, Any]:
    for key in options.keys() - _KEYWORDS:
        raise PluginError(f"{origin}: {unknown('keyword', key, _KEYWORDS)}")
    texts = {key: options.get(key, ()) for key in ("aliases", "groups")}
    for key, given in texts.items():
        if not isinstance(given, list | tuple) or not all(isinstance(text, str) for text in given):
            raise PluginError(f"{origin}: {key}: expected a tuple of texts, got {quoted(given)}")
    names_from = options.get("names_from", "")
    if names_from and not re.fullmatch(r"[^/]+/.+", str(names_from)):
        raise PluginError(f"{origin}: names_from: expected package/glob, got {quoted(names_from)}")
    return {
        **{key: tuple(given) for key, given in texts.items()},
        "in_all": bool(options.get("in_all", True)),
        "family": bool(options.get("family", False)),
        "summary": str(options.get("summary", "")),
        "names_from": str(names_from),
    }


def checked_name(name: Any, origin: str) -> str:
    """Return the name of a plugin.

    Raises:
        PluginError: it cannot be typed on the command line, or means something else there.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in _WORDS:
        raise PluginError(
            f"{origin}: {quoted(name)} cannot be the name of a plugin: expected letters, digits, _, - and ., and not "
            + " or ".join(_WORDS)
        )
    return name


def locate(plugin: str) -> tuple[Path, Callable[[], Any]]:
    """Return the source file of a plugin and a function that imports it.

    Raises:
        PluginError: there is no such file or module.
    """
    if plugin.endswith(".py") or "/" in plugin:
        path = user_path(plugin).resolve()
        if path.suffix != ".py" or not path.is_file():
            what = "is not a Python file (.py)" if path.is_file() else "does not exist"
            raise PluginError(
                f"--plugins: file '{plugin}' {what}. Give the path of a Python file or a module"
            )
        return path, partial(_import_file, path)
    try:
        spec = importlib.util.find_spec(plugin)
    except Exception:  # of a.b, the package a is imported, which may raise anything
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise PluginError(
            f"--plugins: no module '{plugin}' is installed. Give the path of a Python file or a module"
        )
    return Path(spec.origin).resolve(), partial(importlib.import_module, plugin)


def _import_file(path: Path) -> ModuleType:
    name = "medpeft_plugin_" + re.sub(r"\W", "_", str(path))
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PluginError(f"plugin file '{path}' is not a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def reason_of(error: BaseException) -> str:
    """Return why a plugin could not be imported, in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, BenchmarkError):
        return text
    return f"{type(error).__name__}: {text}".rstrip(": ") + place_of(error)


def place_of(error: BaseException) -> str:
    """Return where in a plugin's file an exception arose, `` (gain.py, line 12)``; empty where it was elsewhere."""
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({Path(error.filename).name}, line {error.lineno})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.is_relative_to(folder) for folder in _NOT_PLUGINS):
            return f" ({shown(path)}, line {frame.lineno})"
    return ""


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


@functools.cache
def names_from(pattern: str) -> tuple[str, ...]:
    """Return the stems of the files ``package/glob`` of an installed package, without importing it."""
    package, _, glob = pattern.partition("/")
    spec = importlib.util.find_spec(package) if package else None
    folders = (spec.submodule_search_locations or ()) if spec else ()
    return tuple(sorted(path.stem for folder in folders for path in Path(folder).glob(glob)))
