"""The command line: each file of this folder is one verb; without a verb, ``run``."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import shtab

from benchmark.cli._parser import ArgumentParser, normalised, verb_module, verbs
from benchmark.console import Console
from benchmark.errors import BenchmarkError, ConfigError, file_fault, unknown
from benchmark.files import DELETED, PROGRAM, working_folder
from benchmark.store.provenance import program_version

COMPLETION = "--print-completion"
INTERRUPTED = 130
FAULT = 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None takes those of this process.

    Returns:
        0 done; 1 some cell failed; 2 the request was wrong (one line says why); 3 a fault of the program itself;
        130 stopped by Ctrl-C.
    """
    _open_streams()
    words = normalised(sys.argv[1:] if argv is None else argv)
    console = Console()
    status = _run(words, console)
    lost = console.ended()
    if lost is None or isinstance(lost, BrokenPipeError):  # the reader of our output (head, less) may go
        return status
    console.error(
        f"standard output: {lost.strerror or lost}. What is not shown is lost, what is stored is not"
    )
    return status or 2


def _open_streams() -> None:
    """Open standard streams that are closed: the next file that a library opens would take the place of one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _run(words: list[str], console: Console) -> int:
    try:
        Path.cwd()
        return _dispatch(words, console)
    except KeyboardInterrupt:
        console.warn("stopped. The same command goes on from here")
        return INTERRUPTED
    except Exception as error:
        if "--debug" in words:
            console.err.print(traceback.format_exc().rstrip(), markup=False)
        return _refused(error, console)


def _refused(error: Exception, console: Console) -> int:
    """Print why a command ended, one line per problem, and return its exit code."""
    if isinstance(error, BenchmarkError):
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
    elif isinstance(error, OSError) and working_folder() is None:
        problems = [DELETED]
    elif isinstance(error, OSError) and error.filename:  # a full disk, a path that cannot be one
        problems = [file_fault(error)]
    else:
        fault = "this is a fault of the program, or of a plugin. --debug shows where it arose"
        console.error(f"{type(error).__name__}: {error}: {fault}")
        return FAULT
    for problem in problems:
        console.error(problem)
    return error.exit_code if isinstance(error, BenchmarkError) else 2


def _dispatch(words: list[str], console: Console) -> int:
    if words[:1] in (["--help"], ["-h"]):
        console.line(_overview())
        return 0
    if words[:1] == ["--version"]:
        console.line(f"medpeft-bench {program_version() or 'of a checkout that is not installed'}")
        return 0
    if words[:1] == [COMPLETION]:
        console.line(_completion(words[1:]))
        return 0
    verb = "run"
    if words and not words[0].startswith("-") and "=" not in words[0]:
        verb, *words = words
    if verb not in verbs():
        raise ConfigError(unknown("command", verb, verbs()))
    module, parser = verb_module(verb), ArgumentParser(verb)
    _fill(parser, module)
    args = parser.read(words)
    if begins := getattr(module, "BEGINS", ""):
        for_programs = getattr(args, "json", False) or getattr(args, "format", None)
        (console.note if for_programs else console.line)(begins)
    status: int = module.main(args, console)
    return status


def _fill(parser: ArgumentParser, module: ModuleType) -> None:
    parser.description = module.__doc__
    module.add_arguments(parser)


def _completion(words: Sequence[str]) -> str:
    """Return the script with which a shell completes verbs and flags."""
    shell = words[0] if words else ""
    if shell not in shtab.SUPPORTED_SHELLS:
        known = unknown("shell", shell, shtab.SUPPORTED_SHELLS)
        raise ConfigError(f"{COMPLETION}: {known}")
    whole = argparse.ArgumentParser(prog="medpeft-bench", add_help=False)
    places = whole.add_subparsers(parser_class=ArgumentParser)
    for verb in verbs():
        module = verb_module(verb)
        _fill(places.add_parser(verb, verb=verb, help=_summary(module)), module)
    return shtab.complete(whole, shell=shell)


def _overview() -> str:
    lines = [
        f"usage: {PROGRAM} [run] [flags] [key=value ...]   (run --help lists the flags)",
        f"       {PROGRAM} --version",
        f"       {PROGRAM} {COMPLETION} bash|zsh|fish|tcsh   (a script that completes words)",
        "",
    ]
    for verb in verbs():
        lines.append(f"  {verb:<12} {_summary(verb_module(verb))}")
    return "\n".join(lines)


def _summary(module: ModuleType) -> str:
    return (module.__doc__ or "").splitlines()[0]
