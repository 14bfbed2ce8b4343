"""Registries of methods, tasks, datasets and backbones: a plugin is found by its file being there.

Listing parses the sources for ``register_<kind>("name", ...)`` and imports nothing, so it needs no torch; a
module is imported when one of its names is asked for. Names and aliases in that call must be literals.
"""

from __future__ import annotations

import ast
import contextlib
import fnmatch
import functools
import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from benchmark.errors import BenchmarkError, PluginError, quoted, unknown
from benchmark.files import ROOT, shown, user_path

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """One plugin name, known from its source, its entry point or its decorator.

    Attributes:
        name: canonical name.
        aliases: other spellings, for example the paper's.
        in_all: whether ``all`` includes it.
        origin: ``file:line`` of the registration, or the entry point's value.
        summary: first line of the module docstring.
        family: whether the name stands for a family, whose members are called ``name:member``.
        names_from: ``package/glob``; the stems of these files of an installed package are further names of the object.
        load: imports the module or entry point; may return the object itself.
    """

    name: str
    aliases: tuple[str, ...]
    in_all: bool
    origin: str
    summary: str
    load: Callable[[], Any]
    family: bool = False
    names_from: str = ""


class Registry:
    """Names of one kind of plugin and the objects behind them."""

    def __init__(self, kind: str, folder: str, *, not_plugins: Iterable[str] | None = None) -> None:
        """Create the registry of ``kind``.

        Args:
            kind: "method", "task", "dataset" or "backbone".
            folder: folder of its modules, relative to the checkout; its dotted form is the package.
            not_plugins: stems of infrastructure files; every other file is a plugin even if it registers
                nothing that can be seen (it then carries its file name). None: only files with a
                registration are plugins.
        """
        self.kind = kind
        self.folder = ROOT / folder
        self.package = folder.replace("/", ".")
        self.not_plugins = None if not_plugins is None else frozenset(not_plugins)
        self.broken: dict[str, str] = {}
        self.unread: dict[str, None] = {}
        self._entries: dict[str, Entry] = {}
        self._objects: dict[str, Any] = {}
        self._origins: dict[str, str] = {}
        self._scanned = False

    def register(
        self, name: str, aliases: Sequence[str], in_all: bool, origin: str, target: Any, family: bool = False
    ) -> None:
        """Keep ``target`` under ``name``; raise PluginError when another place registered that name."""
        checked_name(name, origin)
        known = self._origins.get(name) or (self._entries[name].origin if name in self._entries else origin)
        if known != origin and not known.startswith("entry point"):
            raise PluginError(
                f"{self.kind} '{name}' is registered twice: {known} and {origin}. Rename one of them"
            )
        self._origins[name] = origin
        self._objects[name] = target
        if name not in self._entries:
            self._entries[name] = Entry(
                name, tuple(aliases), in_all, origin, _first_line(target), lambda: target, family
            )

    def add_file(self, path: Path, load: Callable[[], Any]) -> None:
        """Make the names that a source file registers known, without importing it.

        Raises:
            PluginError: a name that is taken or cannot be one.
        """
        source = read_source(path, f"register_{self.kind}")
        self.unread |= dict.fromkeys(source.unread)
        found, summary = source.found, source.summary
        if not found and self.not_plugins is not None and path.parent == self.folder:
            found = [Registration(path.stem, f"{shown(path)}:1")]  # reported when it is asked for, not lost
            if source.unread:
                self.broken[path.stem] = source.unread[0].partition(": ")[2]
                summary = f"broken: {self.broken[path.stem]}"
        for one in found:
            self._add(
                Entry(
                    one.name, one.aliases, one.in_all, one.origin, one.summary or summary, load, one.family,
                    one.names_from,
                )
            )  # fmt: skip

    def names(self, extras: bool = True) -> list[str]:
        """Return the known names, sorted; with ``extras=False`` only those that ``all`` stands for."""
        return sorted(name for name, entry in self._known().items() if extras or entry.in_all)

    def entry(self, name: str) -> Entry:
        """Return what is known about a name without importing it.

        Raises:
            PluginError: the name is unknown.
        """
        return self._known()[self._key(self.resolve(name))]

    def _key(self, resolved: str) -> str:
        """Return the entry that a canonical name stands for."""
        head = resolved.split(":", 1)[0]
        return self._further().get(head, head)

    def _further(self) -> dict[str, str]:
        """Return the names that entries take from files of installed packages, with the entry of each."""
        entries = self._known().values()
        return {name: entry.name for entry in entries for name in _names_from(entry.names_from)}

    def resolve(self, name: str) -> str:
        """Return the canonical name for any spelling; ``prefix:rest`` resolves by its prefix, rest is kept.

        Raises:
            PluginError: the name is unknown; the message names the nearest one.
        """
        head, colon, rest = str(name).partition(":")
        spellings = {_plain(entry): entry for entry in self._known()}
        for entry in self._known().values():
            for alias in entry.aliases:
                spellings.setdefault(_plain(alias), entry.name)
        for name_of_file in self._further():
            spellings.setdefault(_plain(name_of_file), name_of_file)
        if _plain(head) not in spellings:
            raise PluginError(self._unknown(str(name)))
        return spellings[_plain(head)] + colon + rest

    def canonical(self, name: str) -> str:
        """Return the canonical name, or the name itself when it is unknown."""
        return self.resolve(name) if name in self else name

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self.resolve(name))
        except PluginError:
            return False

    def expand(self, wanted: Iterable[str]) -> list[str]:
        """Return canonical names for ``all``, globs and names, in the order given and without repeats.

        A glob stands for plain names, not for the members of a family.

        Raises:
            PluginError: a name is unknown or a glob matches nothing.
        """
        chosen: list[str] = []
        for item in wanted:
            if item == "all":
                chosen += self.names(extras=False)
            elif any(sign in item for sign in "*?["):
                single = [name for name in self.names() if not self._entries[name].family]
                matches = fnmatch.filter(single, item)
                if not matches:
                    raise PluginError(self._no_match(item))
                chosen += matches
            else:
                chosen.append(self._single(item))
        return list(dict.fromkeys(chosen))

    def _single(self, name: str) -> str:
        resolved = self.resolve(name)
        head, colon, rest = resolved.partition(":")
        if colon and not self.entry(head).family:
            raise PluginError(f"{self.kind} '{head}' is no family: leave out ':{rest}'")
        return resolved

    def get(self, name: str) -> Any:
        """Return the registered object, importing its module when needed.

        Of an object that offers ``variant``, what stands behind the colon picks the variant: ``peft:dora`` gives
        ``variant("dora")``, and the bare name ``variant("")``.

        Raises:
            PluginError: unknown name or variant, or the module cannot be imported or registers something else.
        """
        resolved = self.resolve(name)
        key, rest = self._key(resolved), resolved.partition(":")[2]
        if key not in self._objects:
            self._import(self._entries[key])
        found = self._objects[key]
        return found.variant(rest) if hasattr(found, "variant") else found

    def _import(self, entry: Entry) -> None:
        try:
            loaded = entry.load()
        except (Exception, SystemExit) as error:  # a plugin may raise anything; the others must go on
            reason = reason_of(error)
            self.broken[entry.name] = reason
            message = f"{self.kind} '{entry.name}' ({entry.origin}) could not be imported: {reason}"
            raise PluginError(message) from error
        if entry.name in self._objects:
            return
        if loaded is None or isinstance(loaded, ModuleType):
            self.broken[entry.name] = f"registers no {self.kind} '{entry.name}'"
            raise PluginError(
                f"{entry.origin} registers no {self.kind} '{entry.name}': "
                f'decorate it with @register_{self.kind}("{entry.name}")'
            )
        self._objects[entry.name] = loaded

    def _known(self) -> dict[str, Entry]:
        if not self._scanned:
            self._scanned = True
            for path in sorted(self.folder.glob("*.py")):
                if not path.name.startswith("_") and path.stem not in (self.not_plugins or ()):
                    self.add_file(path, module_loader(f"{self.package}.{path.stem}"))
            for point in importlib.metadata.entry_points(group=f"medpeft_bench.{self.kind}s"):
                self._add(Entry(point.name, (), True, f"entry point {point.value}", point.value, point.load))
        return self._entries

    def _add(self, entry: Entry) -> None:
        known = self._entries.get(entry.name)
        if known is None or known.origin == entry.origin:
            self._entries[entry.name] = replace(entry, summary=entry.summary or entry.name)
        elif self._origins.get(entry.name) != entry.origin:
            places = f"{known.origin} and {entry.origin}"
            raise PluginError(f"{self.kind} '{entry.name}' is registered twice: {places}. Rename one of them")

    def _no_match(self, glob: str) -> str:
        head = glob.split(":", 1)[0]
        if ":" in glob and head in self._entries and self._entries[head].family:
            return (
                f"'{glob}': globs do not reach behind '{head}:'. Name each {self.kind}, separated by commas"
            )
        return f"no {self.kind} matches '{glob}'. Known: {', '.join(self.names())}"

    def _unknown(self, name: str) -> str:
        further = self._further()
        spellings = [*self.names(), *(alias for entry in self._entries.values() for alias in entry.aliases)]
        nearest = unknown(self.kind, name, [*spellings, *further]).partition(" Known:")[0]
        more = f", and {len(further)} names of {', '.join(sorted(set(further.values())))}" if further else ""
        more += f". Not read: {'; '.join(self.unread)}" if self.unread else ""
        return f"{nearest} Known: {', '.join(self.names()) or 'none'}{more}"


METHODS = Registry("method", "methods", not_plugins=("base", "losses"))


TASKS = Registry("task", "tasks", not_plugins=("base", "dense", "score_rules"))


DATASETS = Registry("dataset", "benchmark/data/datasets")


BACKBONES = Registry("backbone", "benchmark/backbones")


FIGURES = Registry("figure", "benchmark/report/figures")


REGISTRIES = {
    "methods": METHODS, "tasks": TASKS, "datasets": DATASETS, "backbones": BACKBONES, "figures": FIGURES
}  # fmt: skip


def is_deterministic(method: str) -> bool:
    """Return whether a method trains and draws nothing, so that one run stands for all seeds; imports the method."""
    return bool(getattr(METHODS.get(method), "deterministic", False))


def register_method(
    name: str, *, aliases: Sequence[str] = (), in_all: bool = True, family: bool = False
) -> Callable[[T], T]:
    """Return a decorator that registers a method class.

    Args:
        name: canonical name.
        aliases: other spellings, for example the paper's.
        in_all: whether ``all`` includes it.
        family: the name stands for a family; the object's ``variant(member)`` returns the class of ``name:member``.
    """
    return _decorator(METHODS, name, aliases, in_all, family)


def register_task(name: str, *, aliases: Sequence[str] = (), in_all: bool = True) -> Callable[[T], T]:
    """Return a decorator that registers a task class; ``in_all``: whether ``--tasks all`` includes it."""
    return _decorator(TASKS, name, aliases, in_all)


def register_dataset(name: str, *, aliases: Sequence[str] = ()) -> Callable[[T], T]:
    """Return a decorator that registers a dataset: a class with Options and load (benchmark/data/dataset.py)."""
    return _decorator(DATASETS, name, aliases, True)


def register_backbone(
    name: str, *, aliases: Sequence[str] = (), summary: str = "", names_from: str = ""
) -> Callable[[T], T]:
    """Return a decorator that registers what loads a backbone.

    Args:
        name: canonical name.
        aliases: other spellings.
        summary: one line for lists; default is the first line of the file.
        names_from: ``package/glob``: the stems of these files of an installed package are further names, which the
            object receives as they are.
    """
    del summary, names_from  # read off the source, so that listing imports nothing
    return _decorator(BACKBONES, name, aliases, True)


def register_figure(name: str, *, of: str = "block") -> Callable[[T], T]:
    """Return a decorator that registers a function that yields drawings of the report.

    Args:
        name: canonical name.
        of: what the function takes: a "block" (suite and backbone), a "dataset" (what was stored for it) or a "curve"
            (an experiment that sweeps a setting).
    """
    register = _decorator(FIGURES, name, (), True)

    def registered(draw: T) -> T:
        vars(draw)["of"] = of
        return register(draw)

    return registered


def scan_plugins(plugins: Iterable[str]) -> list[str]:
    """Make the names in plugin files or modules known without importing them; return what cannot be found."""
    problems: list[str] = []
    for plugin in plugins:
        try:
            path, load = locate(plugin)
            for registry in REGISTRIES.values():
                registry.add_file(path, load)
        except PluginError as error:
            problems.append(str(error))
    return problems


def load_plugins(plugins: Iterable[str]) -> list[str]:
    """Import plugin files or modules.

    Args:
        plugins: paths of Python files, or names of importable modules.

    Returns:
        One line for each plugin that raised on import; the others are loaded.

    Raises:
        PluginError: a file or module does not exist.
    """
    wanted = list(plugins)
    if missing := scan_plugins(wanted):
        raise PluginError("; ".join(missing))
    problems: list[str] = []
    for plugin in wanted:
        try:
            locate(plugin)[1]()
        except (Exception, SystemExit) as error:  # a plugin may raise anything; the others must go on
            problems.append(f"plugin '{Path(plugin).name}' could not be imported: {reason_of(error)}")
    return problems


def _decorator(
    registry: Registry, name: str, aliases: Sequence[str], in_all: bool, family: bool = False
) -> Callable[[T], T]:
    caller = sys._getframe(2)
    origin = f"{shown(Path(caller.f_code.co_filename).resolve())}:{caller.f_lineno}"

    def register(target: T) -> T:
        registry.register(name, aliases, in_all, origin, target, family)
        return target

    return register


@functools.cache
def _names_from(pattern: str) -> tuple[str, ...]:
    """Return the stems of the files ``package/glob`` of an installed package, without importing it."""
    return tuple(sorted(path.stem for path in files_of(pattern)))


def _plain(name: str) -> str:
    """Return a spelling without case, dashes, underscores and blanks: Text-Gain and text_gain agree."""
    return re.sub(r"[-_ ]", "", name).lower()


def _first_line(target: Any) -> str:
    return (getattr(target, "__doc__", None) or "").strip().split("\n")[0]


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
