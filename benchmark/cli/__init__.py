"""The command line: each file of this folder is one verb; without a verb, ``run``."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence

from benchmark.cli._parser import ArgumentParser, normalised, verb_module, verbs
from benchmark.console import Console
from benchmark.errors import BenchmarkError, ConfigError, unknown

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: the words after the program's name; None takes those of this process.

    Returns:
        0 done; 1 some cell failed; 2 the request was wrong (one line says why); 130 stopped by Ctrl-C.
    """
    words = normalised(sys.argv[1:] if argv is None else argv)
    console = Console()
    try:
        return _dispatch(words, console)
    except BenchmarkError as error:
        if "--debug" in words:
            traceback.print_exc()
        for problem in error.problems if isinstance(error, ConfigError) else [str(error)]:
            console.error(problem)
        return 2
    except KeyboardInterrupt:
        console.warn("stopped. The same command goes on from here")
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stderr.close()
        return 0


def _dispatch(words: list[str], console: Console) -> int:
    if words[:1] in (["--help"], ["-h"]):
        console.line(_overview())
        return 0
    verb = "run"
    if words and not words[0].startswith("-") and "=" not in words[0]:
        verb, *words = words
    if verb not in verbs():
        raise ConfigError(unknown("command", verb, verbs()))
    module = verb_module(verb)
    parser = ArgumentParser(verb, module.__doc__ or "")
    module.add_arguments(parser)
    status: int = module.main(parser.read(words), console)
    return status


def _overview() -> str:
    lines = ["usage: run_benchmark.py [run] [flags] [key=value ...]   (run --help lists the flags)", ""]
    for verb in verbs():
        lines.append(f"  {verb:<12} {(verb_module(verb).__doc__ or '').splitlines()[0]}")
    return "\n".join(lines)
