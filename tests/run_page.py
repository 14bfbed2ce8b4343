"""Run the code of a markdown page in the current folder: ``python run_page.py PAGE.md SUITE.yaml``.

Commands are forked from this process, so that libraries are imported once for all of them. A block after a comment
``<!-- file: NAME -->`` is written to that file instead of run. What other tests cover is cut short: runs take two
steps, of a method's test the checks are left out that check-method did before, and methods are not probed.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", flags=re.S)
PROGRAMS = (["python", "run_benchmark.py"], ["medpeft-bench"])


def command(words: list[str], short: list[str]) -> Callable[[], object]:
    """Return what a command line does, to be called in a process of its own."""
    if words[:3] == ["python", "-m", "pytest"]:
        import pytest

        short_test = [
            "-p",
            "no:cacheprovider",
            "-k",
            "not every_method",
            "-W",
            "ignore:Module already imported",
        ]
        return lambda: pytest.main([*words[3:], *short_test])
    program = next(program for program in PROGRAMS if words[: len(program)] == program)
    rest = words[len(program) :]
    from benchmark.cli import main

    if rest[0] == "--methods":
        rest = [*rest, *short]
    elif rest == ["list", "methods"]:
        rest = [*rest, "--names"]
    return lambda: main(rest)


def in_a_fork(call: Callable[[], object], what: str) -> None:
    """Call a function in a child; a status that is not 0 ends this process."""
    print(f"$ {what}", flush=True)
    child = os.fork()
    if child == 0:
        try:
            status = call()
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            status = 70
        sys.stdout.flush()
        os._exit(int(status or 0))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        sys.exit(f"'{what}' ended with {status}")


def run_bash(code: str, short: list[str]) -> None:
    """Run the lines of a block; the folder changes only within it."""
    start = Path.cwd()
    for line in code.splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["mkdir"]:
            Path(words[1]).mkdir()
        elif words[:1] == ["cd"]:
            os.chdir(words[1])
        elif words:
            in_a_fork(command(words, short), line)
    os.chdir(start)


def main(page: str, suite: str) -> None:
    """Run all blocks of a page in order."""
    import benchmark.cell  # noqa: F401
    import benchmark.report.figures  # noqa: F401
    from benchmark.backbones import load_backbone

    load_backbone("tiny")  # what libraries import late, they import now
    short = ["--suite", suite, "--max-steps", "2", "--jobs", "1", "--device", "cpu"]
    for block in BLOCK.finditer(Path(page).read_text(encoding="utf-8")):
        code = block["code"]
        if block["file"]:
            Path(block["file"]).write_text(code, encoding="utf-8")
        elif block["language"] == "bash":
            run_bash(code, short)
        elif block["language"] == "python":
            in_a_fork(lambda code=code: exec(code, {}), "python block")


if __name__ == "__main__":
    main(*sys.argv[1:])
