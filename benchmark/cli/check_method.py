"""Check that a method meets the requirements for methods: one line per check and tower family.

The method is a registered name (peft:dora too) or a Python file; key=value words set its options.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from benchmark.cli._parser import ArgumentParser, add_plugins, use_plugins
from benchmark.config.layers import key_and_value
from benchmark.console import Console
from benchmark.errors import ConfigError, PluginError
from benchmark.files import shown, user_path
from benchmark.registry import METHODS, load_plugins
from benchmark.settings import Given, check, contract_problem

COMMON = ("logit_scale", "loss", "label_match")

BEGINS = "building models ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.takes_settings = True
    parser.add_needed(
        "method",
        "say which method to check: a registered name or FILE.py",
        "registered name, or a Python file that registers methods",
    )
    parser.add_list("--only", "checks whose name holds one of these words (default: all)")
    add_plugins(parser, "methods")


def main(args: argparse.Namespace, console: Console) -> int:
    """Run the conformance suite on one method, or on all methods of a file.

    Returns:
        0 when every check holds, 1 otherwise.

    Raises:
        ConfigError: a word of ``--only`` is in no check, or an option is wrong.
        PluginError: the method or file does not exist or cannot be imported.
    """
    use_plugins(args, load=True)
    names = _methods_of(args.method) if args.method.endswith(".py") else [METHODS.resolve(args.method)]
    only = args.only or []
    failed = [name for name in names if not _check(name, _options(name, args.overrides), only, console)]
    if failed:
        console.error(f"not conforming: {', '.join(failed)}")
    return 1 if failed else 0


def _methods_of(file: str) -> list[str]:
    if problems := load_plugins([file]):
        raise PluginError("; ".join(problems))
    place = shown(user_path(file).resolve())
    names = [name for name in METHODS.names() if METHODS.entry(name).origin.rsplit(":", 1)[0] == place]
    if not names:
        raise PluginError(f"'{file}' registers no method: decorate the class with @register_method(\"name\")")
    return names


def _options(name: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Return the options of key=value words in the types that the method declares."""
    from methods.base import Method

    values: dict[str, Any] = {}
    for pair in pairs:
        key, value = key_and_value(pair)
        values[".".join(key)] = value
    common = {key: value for key, value in values.items() if key in COMMON}
    given = [Given(key, value, key) for key, value in values.items() if key not in common]
    plugin = METHODS.get(
        name
    )  # what cannot be imported, or is no method, is one clear line, not a failed check
    if not (isinstance(plugin, type) and issubclass(plugin, Method)):
        raise PluginError(
            f"method '{name}' ({METHODS.entry(name).origin}) is none: derive it from methods.base.Method"
        )
    if problem := contract_problem(plugin):
        raise PluginError(f"method '{name}' ({METHODS.entry(name).origin}): {problem}")
    if not pairs:
        return {}
    own, problems = check(plugin.Options, given, "option")
    if problems:
        raise ConfigError([f"method '{name}': {problem}" for problem in problems])
    plugin.Options(**own)  # a value that the method refuses is a wrong request, not a failed check
    return own | common


def _check(name: str, options: Mapping[str, Any], only: Sequence[str], console: Console) -> bool:
    import torch

    import methods
    from benchmark.conformance.checks import matching, run_checks

    torch.set_num_threads(1)  # on models this small, threads only wait for each other
    holds = True
    for result in run_checks(functools.partial(methods.build, name, **options), matching(only)):
        holds &= not result.reason
        word = f"FAILED: {result.reason}" if result.reason else "ok"
        console.line(f"{name:14} {result.check:44} {result.family:10} {word}")
    return holds
