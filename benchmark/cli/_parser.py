"""The argument parser of all verbs: one-line errors with the nearest flag, dashes or underscores, lists."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from benchmark.config.run_config import Settings
from benchmark.errors import ConfigError, suggest
from benchmark.settings import Given, check


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors and which sets ``key=value`` words apart.

    Args:
        verb: name of the command.
        description: text above the flags; its first line is what the overview shows.
    """

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"run_benchmark.py {verb}", description=description, allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def add_list(self, flag: str, help: str) -> None:
        """Add a flag that takes several words, by commas or blanks."""
        self.add_argument(flag, nargs="+", metavar="NAME", help=help)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as ConfigError."""
        raise ConfigError(message.replace("argument ", "", 1))

    def read(self, words: Sequence[str]) -> argparse.Namespace:
        """Parse the words (kept as ``words``); ``key=value`` words anywhere are kept as ``overrides``.

        Raises:
            ConfigError: unknown flags (with the nearest one) or words.
        """
        args, rest = self.parse_known_args(list(words))
        overrides = [word for word in rest if "=" in word and not word.startswith("-")]
        greedy = {action.dest for action in self._actions if action.nargs == "+"}
        for name, value in vars(args).items():
            if isinstance(value, list) and name in greedy:  # a list flag takes every word that follows it
                overrides += [word for word in value if "=" in word]
                setattr(args, name, [word for word in value if "=" not in word])
        wrong = [word for word in rest if word not in overrides]
        if wrong:  # words that follow an unknown flag are its values, not worth a line of their own
            flags = [word for word in wrong if word.startswith("-")]
            raise ConfigError([self._unknown(word) for word in flags or wrong])
        args.overrides, args.words = overrides, list(words)
        return args

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected word '{word}'. Settings are given as --flag value or key=value"
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        name = word.split("=", 1)[0]
        return f"unknown flag '{name}'.{suggest(name, flags)} `{self.prog} --help` lists all flags"


def normalised(words: Sequence[str]) -> list[str]:
    """Return the words with ``--batch_size`` spelt ``--batch-size``; values are left alone."""
    out = []
    for word in words:
        flag, equals, value = word.partition("=")
        out.append(flag.replace("_", "-") + equals + value if flag.startswith("--") else word)
    return out


def verbs() -> list[str]:
    """Return the names of all commands: the files of this folder."""
    files = Path(__file__).parent.glob("[!_]*.py")
    return sorted(path.stem.replace("_", "-") for path in files)


def verb_module(verb: str) -> ModuleType:
    """Import the file of a command; it has ``add_arguments(parser)`` and ``main(args, console) -> int``."""
    return importlib.import_module(f"benchmark.cli.{verb.replace('-', '_')}")


def add_smallest_difference(parser: ArgumentParser) -> None:
    """Add the flag ``--smallest-difference``."""
    parser.add_argument(
        "--smallest-difference",
        metavar="POINTS",
        help="points from which on a difference of two scores matters (default: 0.5)",
    )


def smallest_difference(args: argparse.Namespace) -> float:
    """Return what the flag says, as a fraction.

    Raises:
        ConfigError: it is no number of points that can be told from 0.
    """
    flag = [] if args.smallest_difference is None else [args.smallest_difference]
    given = [Given("smallest_difference", value, "--smallest-difference") for value in flag]
    values, problems = check(Settings, given, "flag")
    if problems:
        raise ConfigError(problems)
    return float(values.get("smallest_difference", Settings.smallest_difference)) / 100


def given(args: argparse.Namespace, *without: str) -> dict[str, Any]:
    """Return the flags of a namespace, less those named and the words themselves."""
    return {key: value for key, value in vars(args).items() if key not in ("overrides", "words", *without)}
