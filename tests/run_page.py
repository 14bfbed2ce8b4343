"""Run the code of a markdown page in the current folder: ``python run_page.py PAGE.md SUITE.yaml``.

A block after a comment ``<!-- file: NAME -->`` is written to that file instead of run. What other tests cover is cut
short: runs take two steps and draw no figures, methods are not probed, and check-method makes one check where no checks
are named (all of them are in the method's own test).

Commands are forked from this process, so that libraries are imported once for all of them. A fork copies the locks of
other threads, but not the threads, and may wait for them forever: so libraries get one thread, and if there is another
thread all the same, commands start afresh. A command that takes too long writes its stacks and ends.
"""

from __future__ import annotations

import faulthandler
import os
import re
import runpy
import shlex
import subprocess
import sys
import threading
import traceback
from pathlib import Path

BLOCK = re.compile(r"(?:<!-- file: (?P<file>\S+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", flags=re.S)
PROGRAM = str(Path(__file__).with_name("run_benchmark.py"))
SHORT_TEST = ["-p", "no:cacheprovider", "-W", "ignore:Module already imported"]
LIMIT = 150.0
"""Seconds that a command may take."""


def arguments(words: list[str], short: list[str]) -> list[str]:
    """Return the arguments of Python that stand for a command line, cut short."""
    if words[:3] == ["python", "-m", "pytest"]:
        return [*words[1:], *SHORT_TEST]
    rest = words[words.index("run_benchmark.py" if words[0] == "python" else "medpeft-bench") + 1 :]
    if rest[0] == "--methods":
        rest = [*rest, *short]
    elif rest == ["list", "methods"]:
        rest = [*rest, "--names"]
    elif rest[0] == "check-method" and "--only" not in rest:
        rest = [*rest, "--only", "identity"]
    return [PROGRAM, *rest]


def run(what: str, argv: list[str], limit: float = LIMIT) -> None:
    """Do what ``python ARGV`` does; a status that is not 0 ends this process."""
    print(f"$ {what}", flush=True)
    if _is_alone():
        status = _forked(argv, limit)
    else:
        status = subprocess.run([sys.executable, *argv], timeout=limit, check=False).returncode
    if status:
        sys.exit(f"'{what}' ended with {status}")


def _is_alone() -> bool:
    """Return whether this process has one thread, those of libraries included."""
    tasks = Path("/proc/self/task")
    return (len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()) == 1


def _forked(argv: list[str], limit: float) -> int:
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 70
    try:
        faulthandler.dump_traceback_later(limit, exit=True)
        _python(argv)
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def _python(argv: list[str]) -> None:
    sys.argv = argv[argv[0] in ("-c", "-m") :]
    if argv[0] == "-c":
        exec(argv[1], {"__name__": "__main__"})
    elif argv[0] == "-m":
        runpy.run_module(argv[1], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(argv[0], run_name="__main__")


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
            run(line, arguments(words, short))
    os.chdir(start)


def main(page: str, suite: str) -> None:
    """Run all blocks of a page in order."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    os.environ.update(dict.fromkeys(names, "1") | {"TOKENIZERS_PARALLELISM": "false"})
    import benchmark.report.report  # noqa: F401
    import benchmark.run.cell  # noqa: F401
    from benchmark.backbones import load_backbone
    from benchmark.registry import FIGURES

    load_backbone("tiny")  # what libraries import late, they import now
    FIGURES.names = lambda *_: []  # type: ignore[method-assign]
    short = ["--suite", suite, "--max-steps", "2", "--jobs", "1", "--device", "cpu"]
    for block in BLOCK.finditer(Path(page).read_text(encoding="utf-8")):
        code = block["code"]
        if block["file"]:
            Path(block["file"]).write_text(code, encoding="utf-8")
        elif block["language"] == "bash":
            run_bash(code, short)
        elif block["language"] == "python":
            run("python block", ["-c", code])


if __name__ == "__main__":
    main(*sys.argv[1:])
