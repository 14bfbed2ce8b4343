"""Hold a method to what every method must keep: one line per check and tower family."""

from __future__ import annotations

import argparse

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console
from benchmark.errors import ConfigError, PluginError
from benchmark.paths import shown
from benchmark.registry import METHODS, load_plugins


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("method", nargs="?", help="registered name, or a Python file that registers methods")


def main(args: argparse.Namespace, console: Console) -> int:
    """Run the conformance suite on one method, or on all methods of a file.

    Returns:
        0 when every check holds, 1 otherwise.

    Raises:
        ConfigError: no method is named.
        PluginError: the method or file does not exist or cannot be imported.
    """
    if not args.method:
        raise ConfigError("say which method to check: a registered name or FILE.py")
    names = _methods_of(args.method) if args.method.endswith(".py") else [METHODS.resolve(args.method)]
    failed = [name for name in names if not _check(name, console)]
    if failed:
        console.error(f"not conforming: {', '.join(failed)}")
    return 1 if failed else 0


def _methods_of(file: str) -> list[str]:
    if problems := load_plugins([file]):
        raise PluginError("; ".join(problems))
    from pathlib import Path

    place = shown(Path(file).expanduser().resolve())
    names = [name for name in METHODS.names() if METHODS.entry(name).origin.rsplit(":", 1)[0] == place]
    if not names:
        raise PluginError(f"'{file}' registers no method: decorate the class with @register_method(\"name\")")
    return names


def _check(name: str, console: Console) -> bool:
    import methods
    from benchmark.conformance import verdicts

    METHODS.get(name)  # a module that cannot be imported is one clear line, not a failed check
    holds = True
    for verdict in verdicts(lambda backbone: methods.build(name, backbone)):
        holds &= not verdict.reason
        word = f"FAILED: {verdict.reason}" if verdict.reason else "ok"
        console.line(f"{name:14} {verdict.check:44} {verdict.family:10} {word}")
    return holds
