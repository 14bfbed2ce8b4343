"""What all verbs share: flags, words and lists, and one line with the nearest flag for each wrong one."""

from __future__ import annotations

import argparse
import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from benchmark.config.run_config import Settings
from benchmark.errors import ConfigError, PluginError, suggest
from benchmark.files import PROGRAM, default_data_root, user_path
from benchmark.registry import load_plugins, scan_plugins
from benchmark.settings import Given, check, coerce, words


@dataclass(frozen=True)
class _WrongNumber:
    """A value that a number flag does not take, and why."""

    problem: str


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose errors are ConfigErrors, all at once, and which sets ``key=value`` words apart.

    Args:
        verb: name of the command.
        description: text above the flags; its first line is what the overview shows.
    """

    def __init__(self, verb: str, description: str = "", **options: Any) -> None:
        usual: dict[str, Any] = {
            "prog": f"{PROGRAM} {verb}",
            "formatter_class": argparse.RawDescriptionHelpFormatter,
        }
        super().__init__(description=description, allow_abbrev=False, **usual | options)
        self.verb, self.takes_settings = verb, False
        self._lists: set[str] = set()
        self._needed: dict[str, str] = {}
        self.add_argument("--debug", action="store_true", help="show tracebacks")

    def add_list(self, flag: str, help: str) -> None:
        """Add a flag that takes several words, by commas or blanks."""
        self._lists.add(self.add_argument(flag, nargs="+", metavar="NAME", help=help).dest)

    def add_number(
        self, flag: str, kind: type, help: str, *, low: float, high: float = math.inf, **options: Any
    ) -> None:
        """Add a flag that takes a number from ``low`` to ``high``; other options are those of argparse."""

        def read(text: str) -> Any:
            try:
                number = coerce(text, kind)
                if number < low:
                    raise ValueError(f"a value of at least {low}")
                if number > high:
                    raise ValueError(f"a value of at most {high}")
            except ValueError as error:
                got = text if kind is int and text.lstrip("-").isdecimal() else f"'{text}'"
                return _WrongNumber(f"{flag}: expected {error}, got {got}")
            return number

        self.add_argument(flag, type=read, help=help, **options)

    def add_needed(self, name: str, say: str, help: str) -> None:
        """Add a word or flag that the command cannot do without; ``say`` is the message when it is missing."""
        optional: dict[str, Any] = {} if name.startswith("-") else {"nargs": "?"}
        self._needed[self.add_argument(name, help=help, **optional).dest] = say

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found as ConfigError."""
        raise ConfigError(message.replace("argument ", "", 1))

    def read(self, given: Sequence[str]) -> argparse.Namespace:
        """Parse words (kept as ``words``); ``key=value`` words anywhere are kept as ``overrides``, lists are split.

        Raises:
            ConfigError: unknown flags (with the nearest one) or words, wrong numbers, or what is needed is missing.
        """
        args, rest = self.parse_known_args(list(given))
        overrides = [word for word in rest if "=" in word and not word.startswith("-")]
        for action in self._actions:
            value = getattr(args, action.dest, None)
            if action.nargs == "+" and value is not None:  # a list flag takes every word that follows it
                overrides += [word for word in value if "=" in word]
                plain = [word for word in value if "=" not in word]
                setattr(args, action.dest, words(plain) if action.dest in self._lists else plain)
        wrong = [word for word in rest if word not in overrides]
        if wrong:  # words that follow an unknown flag are its values, not worth a line of their own
            flags = [word for word in wrong if word.startswith("-")]
            raise ConfigError([self._unknown(word) for word in flags or wrong])
        problems = [
            f"{self.verb} takes no '{word}', only flags" for word in overrides if not self.takes_settings
        ]
        problems += [say for name, say in self._needed.items() if not getattr(args, name)]
        problems += [value.problem for value in vars(args).values() if isinstance(value, _WrongNumber)]
        if problems:
            raise ConfigError(problems)
        args.overrides, args.words = overrides, list(given)
        return args

    def _unknown(self, word: str) -> str:
        if not word.startswith("-"):
            return f"unexpected word '{word}'. Settings are given as --flag value or key=value"
        flags = [flag for action in self._actions for flag in action.option_strings if flag.startswith("--")]
        name = word.split("=", 1)[0]
        return f"unknown flag '{name}'.{suggest(name, flags)} `{self.prog} --help` lists all flags"


def normalised(given: Sequence[str]) -> list[str]:
    """Return the words with ``--batch_size`` spelt ``--batch-size``; values are left alone."""
    out = []
    for word in given:
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


# --- flags that several verbs have ---------------------------------------------------------------------------


def add_plugins(parser: ArgumentParser, more: str) -> None:
    """Add the flag ``--plugins``; ``more`` says what the files bring."""
    parser.add_list("--plugins", f"Python files or modules with more {more}")


def use_plugins(args: argparse.Namespace, *, load: bool) -> None:
    """Make the plugins of ``--plugins`` known; import them with ``load``, otherwise on first use.

    Raises:
        PluginError: one does not exist or cannot be imported.
    """
    if problems := (load_plugins if load else scan_plugins)(args.plugins or []):
        raise PluginError("; ".join(problems))


def add_data_root(parser: ArgumentParser) -> None:
    """Add the flag ``--data-root``."""
    parser.add_argument(
        "--data-root", metavar="DIR", help="folder of prepared data sets (default: ~/.cache/medpeft-bench)"
    )


def data_root(args: argparse.Namespace) -> Path:
    """Return the folder that the flag ``--data-root`` names, or the default one."""
    return user_path(args.data_root) if args.data_root else default_data_root()


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
