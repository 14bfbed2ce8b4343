"""Write a working method, its settings and its test from a template, ready to be changed.

In the checkout it writes methods/NAME.py, configs/methods/NAME.yaml and tests/methods/test_NAME.py, which need no
registration. Elsewhere, or with --to FOLDER, it writes them side by side and prints the commands that use them.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import keyword
import re
import string
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console
from benchmark.errors import ConfigError, PluginError
from benchmark.files import ROOT, user_path, write_whole
from benchmark.registry import METHODS

TEMPLATES = Path(__file__).parent.parent / "templates"
_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_needed(
        "name",
        "say how the method is called: new-method NAME, in snake_case, for example text_gain",
        "name of the method in snake_case, for example text_gain",
    )
    parser.add_argument(
        "--to", metavar="FOLDER", help="write the three files here (default: the checkout, if in it)"
    )


def main(args: argparse.Namespace, console: Console) -> int:
    """Write the three files, all or none, and say what to run next.

    Raises:
        ConfigError: the name cannot be used, or a file exists already.
    """
    name = _checked(args.name)
    here = Path.cwd().resolve()
    inside = args.to is None and here.is_relative_to(ROOT)
    files = _in_checkout(name) if inside else _side_by_side(name, user_path(args.to or here))
    _refuse_collisions(name, files)
    _write(files)
    for path in files:
        console.line(f"wrote {_from(here, path)}")
    console.line("Next:")
    for command in _commands(name, list(files), inside, here):
        console.line(f"  {command}")
    return 0


def _checked(name: str) -> str:
    """Return the name, or raise ConfigError when a method cannot have it."""
    if not _NAME.fullmatch(name) or len(name) > 30:
        raise ConfigError(f"'{name}' is no short name in snake_case (a-z, 0-9 and _), for example text_gain")
    if keyword.iskeyword(name) or keyword.iskeyword(name.capitalize()) or name == "all":
        raise ConfigError(f"'{name}' is a word of Python or of the command line. Choose another name")
    try:
        taken = METHODS.entry(name)
    except PluginError:
        return name
    same = "a method" if taken.name == name else f"another spelling of the method '{taken.name}'"
    raise ConfigError(f"'{name}' is {same} already ({taken.origin}). Choose another name")


def _in_checkout(name: str) -> dict[Path, str]:
    return {
        ROOT / "methods" / f"{name}.py": _filled("method", name),
        ROOT / "configs" / "methods" / f"{name}.yaml": _filled("config", name, head="", indent=""),
        ROOT / "tests" / "methods" / f"test_{name}.py": _filled(
            "test", name, pathlib="", registry="", load=""
        ),
    }


def _side_by_side(name: str, folder: Path) -> dict[Path, str]:
    named = {
        "pathlib": "from pathlib import Path\n\n",
        "registry": "from benchmark.registry import load_plugins\n",
        "load": f'\nload_plugins([str(Path(__file__).with_name("{name}.py"))])\n',
    }
    return {
        folder / f"{name}.py": _filled("method", name),
        folder / f"{name}.yaml": _filled("config", name, head=f"methods:\n  {name}:\n", indent="    "),
        folder / f"test_{name}.py": _filled("test", name, **named),
    }


def _filled(template: str, name: str, **more: str) -> str:
    words = name.split("_")
    values = {
        "name": name,
        "title": " ".join([words[0].capitalize(), *words[1:]]),
        "class_name": "".join(word.capitalize() for word in words),
        **more,
    }
    return string.Template((TEMPLATES / f"{template}.txt").read_text(encoding="utf-8")).substitute(values)


def _refuse_collisions(name: str, files: Mapping[Path, str]) -> None:
    """Raise ConfigError when a file is there, or the name hides something that is imported."""
    for path in files:
        if path.exists():
            raise ConfigError(f"'{_from(Path.cwd(), path)}' is there already. Choose another name")
    method = next(iter(files))
    if method.with_suffix("").exists():
        raise ConfigError(f"'{name}' is a folder beside the new file. Choose another name")
    if name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None:
        raise ConfigError(
            f"'{name}' is the name of an installed module, which the file would hide. Choose another"
        )
    tree = ast.parse(files[method])
    imported = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    if imported & {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
        raise ConfigError(f"'{name}' gives a class that the file imports as well. Choose another name")


def _write(files: Mapping[Path, str]) -> None:
    written: list[Path] = []
    try:
        for path, text in files.items():
            write_whole(path, lambda target, text=text: target.write_text(text, encoding="utf-8"))  # type: ignore[misc]
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink()
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"'{path}' cannot be written ({reason}); nothing was left behind") from None


def _commands(name: str, files: list[Path], inside: bool, here: Path) -> list[str]:
    method, config, test = (_from(here, path) for path in files)
    program = "python run_benchmark.py" if here == ROOT else "medpeft-bench"
    run = f"{program} --methods zero_shot,{name}"
    return [
        f"{program} check-method {name if inside else method}",
        f"python -m pytest -q {test}",
        run if inside else f"{run} --plugins {method} --config {config}",
    ]


def _from(here: Path, path: Path) -> str:
    """Return a path as it is typed in the current folder."""
    path = path.resolve()
    return str(path.relative_to(here.resolve())) if path.is_relative_to(here.resolve()) else str(path)
