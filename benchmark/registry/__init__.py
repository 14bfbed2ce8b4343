"""Registries of methods, tasks, datasets and backbones: a plugin is found by its file being there.

Listing parses the sources for ``register_<kind>("name", ...)`` and imports nothing, so it needs no torch; a
module is imported when one of its names is asked for. Names and aliases in that call must be literals.
"""

from __future__ import annotations

import contextlib
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from benchmark.errors import BenchmarkError, PluginError, unknown
from benchmark.files import ROOT, shown
from benchmark.registry.sources import Entry, checked_name, locate, names_from, read_source, reason_of

T = TypeVar("T")


class Registry:
    """Names of one kind of plugin and the objects behind them.

    Args:
        kind: "method", "task", "dataset", "backbone" or "figure".
        folder: folder of its modules, relative to the checkout; its dotted form is the package.
        not_plugins: stems of infrastructure files; every other file is a plugin even if no registration can be read in
            it (it then has the name of its file). None: only files with a registration are plugins.
    """

    def __init__(self, kind: str, folder: str, *, not_plugins: Iterable[str] | None = None) -> None:
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

    def decorator(
        self,
        name: str,
        *,
        aliases: Sequence[str] = (),
        in_all: bool = True,
        groups: Sequence[str] = (),
        family: bool = False,
        summary: str = "",
        names_from: str = "",
    ) -> Callable[[T], T]:
        """Return a decorator that registers a class, a function or an object.

        Args:
            name: canonical name.
            aliases: other spellings, for example the paper's.
            in_all: whether ``all`` includes it.
            groups: words that stand for it and others, as ``all`` does.
            family: the name stands for a family; the object's ``variant(member)`` returns what ``name:member`` means.
            summary: one line for lists; default is the first line of the file.
            names_from: ``package/glob``: the stems of these files of an installed package are further names, which
                the object receives as they are.
        """
        stack = reversed(traceback.extract_stack(limit=3))
        caller = next(frame for frame in stack if frame.filename != __file__)
        origin = f"{shown(Path(caller.filename).resolve())}:{caller.lineno}"
        entry = Entry(name, origin, tuple(aliases), in_all, tuple(groups), family, summary, names_from)

        def register(target: T) -> T:
            self._register(entry, target)
            return target

        return register

    def _register(self, entry: Entry, target: Any) -> None:
        name = checked_name(entry.name, entry.origin)
        known = self._origins.get(name) or self._entries.get(name, entry).origin
        if known != entry.origin and not known.startswith("entry point"):
            raise self._twice(name, known, entry.origin)
        self._origins[name] = entry.origin
        self._objects[name] = target
        summary = (getattr(target, "__doc__", None) or "").strip().split("\n")[0]
        self._entries.setdefault(name, replace(entry, summary=entry.summary or summary, load=lambda: target))

    def add_file(self, path: Path, load: Callable[[], Any]) -> None:
        """Make the names that a source file registers known, without importing it.

        Raises:
            PluginError: a name that is taken or cannot be one.
        """
        source = read_source(path, f"register_{self.kind}")
        self.unread |= dict.fromkeys(source.unread)
        found, summary = source.found, source.summary
        if not found and self.not_plugins is not None and path.parent == self.folder:
            found = [Entry(path.stem, f"{shown(path)}:1")]  # reported when it is asked for, not lost
            if source.unread:
                self.broken[path.stem] = source.unread[0].partition(": ")[2]
                summary = f"broken: {self.broken[path.stem]}"
        for one in found:
            self._add(replace(one, summary=one.summary or summary, load=load))

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
        return {name: entry.name for entry in entries for name in names_from(entry.names_from)}

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
        for further in self._further():
            spellings.setdefault(_plain(further), further)
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
        """Return canonical names for ``all``, groups, globs and names, in the order given and without repeats.

        A glob stands for plain names, not for the members of a family or of a group.

        Raises:
            PluginError: a name is unknown or a glob matches nothing.
        """
        chosen: list[str] = []
        for item in wanted:
            if item == "all":
                chosen += self.names(extras=False)
            elif members := [name for name in self.names() if item in self._entries[name].groups]:
                chosen += members
            elif any(sign in item for sign in "*?["):
                entries = self._entries
                single = [x for x in self.names() if not (entries[x].family or entries[x].groups)]
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
                    self.add_file(path, partial(importlib.import_module, f"{self.package}.{path.stem}"))
            for point in importlib.metadata.entry_points(group=f"medpeft_bench.{self.kind}s"):
                origin = f"entry point {point.value}"
                self._add(Entry(point.name, origin, summary=point.value, load=point.load))
        return self._entries

    def _add(self, entry: Entry) -> None:
        known = self._entries.get(entry.name)
        if known is None or known.origin == entry.origin:
            self._entries[entry.name] = replace(entry, summary=entry.summary or entry.name)
        elif self._origins.get(entry.name) != entry.origin:
            raise self._twice(entry.name, known.origin, entry.origin)

    def _twice(self, name: str, first: str, second: str) -> PluginError:
        return PluginError(
            f"{self.kind} '{name}' is registered twice: {first} and {second}. Rename one of them"
        )

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


METHODS = Registry("method", "methods", not_plugins=("base", "losses", "supervision"))
TASKS = Registry("task", "tasks", not_plugins=("base", "dense", "score_rules"))
DATASETS = Registry("dataset", "benchmark/data/datasets")
BACKBONES = Registry("backbone", "benchmark/backbones")
FIGURES = Registry("figure", "benchmark/report/figures")
REGISTRIES = {f"{registry.kind}s": registry for registry in (METHODS, TASKS, DATASETS, BACKBONES, FIGURES)}

register_method = METHODS.decorator
register_task = TASKS.decorator
register_dataset = DATASETS.decorator
register_backbone = BACKBONES.decorator


def register_figure(name: str, *, of: str = "block") -> Callable[[T], T]:
    """Return a decorator that registers a function that yields drawings of the report.

    Args:
        name: canonical name.
        of: what the function takes: a "block" (suite and backbone), a "dataset" (what was stored for it) or a "curve"
            (an experiment that sweeps a setting).
    """
    register = FIGURES.decorator(name)

    def registered(draw: T) -> T:
        vars(draw)["of"] = of
        return register(draw)

    return registered


def is_deterministic(method: str) -> bool:
    """Return whether a method trains and draws nothing, so that one run stands for all seeds; imports the method."""
    return bool(getattr(METHODS.get(method), "deterministic", False))


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


def _plain(name: str) -> str:
    """Return a spelling without case, dashes, underscores and blanks: Text-Gain and text_gain agree."""
    return re.sub(r"[-_ ]", "", name).lower()
