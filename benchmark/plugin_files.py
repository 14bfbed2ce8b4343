"""Plugin files: what their source registers, read without importing anything, and how each is imported."""

from __future__ import annotations

import ast
import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmark.errors import BenchmarkError, PluginError, quoted
from benchmark.paths import shown, user_path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_WORDS = ("all", "none")
"""Words of the command line, which no plugin can be called."""


@dataclass(frozen=True)
class Registration:
    """One ``register_<kind>("name", ...)`` call as it is written; origin is its ``file:line``."""

    name: str
    origin: str
    aliases: tuple[str, ...] = ()
    in_all: bool = True
    family: bool = False
    summary: str = ""
    names_from: str = ""


@dataclass(frozen=True)
class Source:
    """A parsed plugin file.

    Attributes:
        summary: first line of its docstring.
        found: what it registers.
        unread: why calls, or the whole file, could not be read.
    """

    summary: str = ""
    found: list[Registration] = field(default_factory=list)
    unread: list[str] = field(default_factory=list)


def read_source(path: Path, function: str) -> Source:
    """Read the calls of ``function`` off a file.

    Raises:
        PluginError: a call has a name that cannot be one, or a keyword of a wrong type.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    except (SyntaxError, ValueError, OSError, RecursionError, MemoryError) as error:
        return Source(unread=[f"{shown(path)}: {reason_of(error)}"])
    source = Source((ast.get_docstring(tree) or "").split("\n")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and node.args and _called(node) == function:
            _read_call(node, f"{shown(path)}:{node.lineno}", source)
    return source


def _read_call(node: ast.Call, origin: str, source: Source) -> None:
    try:
        name = ast.literal_eval(node.args[0])
        options = {str(word.arg): ast.literal_eval(word.value) for word in node.keywords}
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        source.unread.append(f"{origin}: its name and keywords must be written out")
        return
    source.found.append(Registration(checked_name(name, origin), origin, **_checked(options, origin)))


def _checked(options: Mapping[str, Any], origin: str) -> dict[str, Any]:
    aliases = options.get("aliases", ())
    if not isinstance(aliases, list | tuple) or not all(isinstance(alias, str) for alias in aliases):
        raise PluginError(f"{origin}: aliases: expected a tuple of texts, got {quoted(aliases)}")
    names_from = options.get("names_from", "")
    if names_from and not re.fullmatch(r"[^/]+/.+", str(names_from)):
        raise PluginError(f"{origin}: names_from: expected package/glob, got {quoted(names_from)}")
    return {
        "aliases": tuple(aliases),
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
            what = "is no Python file (.py)" if path.is_file() else "does not exist"
            raise PluginError(
                f"--plugins: file '{plugin}' {what}. Give the path of a Python file or a module"
            )
        return path, lambda: _import_file(path)
    try:
        spec = importlib.util.find_spec(plugin)
    except Exception:  # of a.b, the package a is imported, which may raise anything
        spec = None
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        raise PluginError(
            f"--plugins: no module '{plugin}' is installed. Give the path of a Python file or a module"
        )
    return Path(spec.origin).resolve(), module_loader(plugin)


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


def module_loader(module: str) -> Callable[[], Any]:
    """Return a function that imports a module by its name."""
    return lambda: importlib.import_module(module)


def files_of(pattern: str) -> Iterator[Path]:
    """Yield the files ``package/glob`` of an installed package, without importing it."""
    package, _, glob = pattern.partition("/")
    spec = importlib.util.find_spec(package) if package else None
    for folder in spec.submodule_search_locations or () if spec else ():
        yield from Path(folder).glob(glob)


def told_once(lines: Sequence[str]) -> list[str]:
    """Return lines about broken plugins, without those of a file whose reason a method or task of it gives too."""
    last = {line.partition("could not be imported: ")[2] or line: line for line in lines}
    return [line for line in dict.fromkeys(lines) if line in last.values()]


@contextlib.contextmanager
def calling(what: str) -> Iterator[None]:
    """Run the code of a plugin: whatever it raises becomes one line that names it.

    Raises:
        PluginError: the plugin raised something that is no message for the user.
    """
    try:
        yield
    except (BenchmarkError, OSError):
        raise
    except Exception as error:
        raise PluginError(f"{what} failed: {reason_of(error)}. --debug shows where") from error


def reason_of(error: BaseException) -> str:
    """Return why a plugin could not be imported, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, BenchmarkError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
