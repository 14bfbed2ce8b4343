"""What the machine can do to a run: each fault is one clear line, and takes nothing with it that was finished.

Faults of input and of single parts have their tests beside these: tests/bad_input, tests/run/training/test_trainer.py,
tests/run/test_execute.py, tests/test_stop.py, tests/test_plan.py, tests/data/test_prepared.py,
tests/data/test_features.py.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from benchmark import files as store_module
from benchmark.cli import main
from benchmark.cli import run as run_verb
from benchmark.console import NullReporter
from benchmark.files import LEFTOVERS, ROOT, remove_dead, temporary_beside, write_whole
from benchmark.run import execute
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.store.cells import CellFolder, Store
from tests.test_stop import train

CELL = "runs/fakes/tiny/fake_one/seed-0"
CURED = "and run the same command again"
FAULT = {}
"""Cell -> what happens in it; read by :func:`faulty`, which runs in the process of the test."""


def faulty(spec, folder, reporter):
    """Run a stand-in cell, in which something may happen."""
    import fake_cells

    FAULT.get(f"{spec.method}/{spec.seed}", lambda folder: None)(folder)
    fake_cells.run_cell(spec, folder, reporter)


@pytest.fixture
def run(flags, world, stand_in, monkeypatch, capsys):
    """A function that runs three stand-in cells with the command: (exit code, error lines, store)."""
    stand_in(faulty)
    monkeypatch.setattr(run_verb, "_report", lambda *_: None)
    monkeypatch.setattr(sys.modules[__name__], "FAULT", {})

    def command(output_dir=world / "out", **faults):
        FAULT.update({name.replace("__", "/"): fault for name, fault in faults.items()})
        words = ["--suite", flags["suite"], "--plugins", *flags["plugins"], "--methods", "fake_*"]
        words += ["--seeds", "0", "1", "--output-dir", str(output_dir), "--device", "cpu", "--jobs", "1"]
        code = main(words)
        FAULT.clear()
        return code, capsys.readouterr().err.splitlines(), Store(world / "out")

    return command


def raising(error):
    def fault(*_):
        raise error

    return fault


def states(store):
    return {
        str(cell.path.relative_to(store.output_dir)): cell.read_json("status.json")["status"]
        for cell in store.cells()
    }


def check_others_and_go_on(run, code, store):
    """One cell failed, the others are done; the same command runs that one alone."""
    assert code == 1
    assert sorted(states(store).values()) == ["failed", "success", "success"]
    lines = {path: path.read_text() for path in store.output_dir.rglob("ran.txt")}
    code, said, _ = run()
    assert (code, said) == (0, [])
    assert set(states(store).values()) == {"success"}
    assert len(lines) == 2
    assert all(path.read_text() == text for path, text in lines.items())


# ---------------------------------------------------------------------- disk
@pytest.mark.parametrize(
    ("number", "cure"),
    [
        (errno.ENOSPC, "No space left on device. Free space"),
        (errno.EDQUOT, "Disk quota exceeded. Free space, or have the quota raised"),
        (errno.EROFS, "Read-only file system. Make it writable, or choose another folder"),
        (errno.EACCES, "Permission denied. Make it writable, or choose another folder"),
        (errno.EIO, "Input/output error. Look after the disk, or choose another folder"),
    ],
    ids=errno.errorcode.get,
)
def test_a_write_that_fails_fails_its_cell_with_path_and_cure(run, monkeypatch, number, cure):
    real = os.replace

    def replace(source, target):
        if Path(target).name == "adapt.json" and CELL in str(target):
            raise OSError(number, os.strerror(number), str(source))
        real(source, target)

    monkeypatch.setattr(store_module.os, "replace", replace)
    code, said, store = run()
    assert said == [f"error: {CELL}: '{store.output_dir / CELL}/adapt.json': {cure} {CURED}"]
    error = store.cell(CELL).read_json("status.json")["error"]
    assert error == f"'adapt.json': {cure} {CURED}"
    assert not list(store.output_dir.rglob("*.tmp"))
    monkeypatch.setattr(store_module.os, "replace", real)
    check_others_and_go_on(run, code, store)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield place
    while place.is_mount():  # also what a test has put above it
        subprocess.run(["umount", "--lazy", str(place)], check=True)


BIG = np.random.default_rng(0).random(2**18)  # two megabytes


@pytest.mark.parametrize(
    "write",
    [
        lambda path: torch.save({"a": torch.from_numpy(BIG)}, path),
        lambda path: save_file({"a": torch.from_numpy(BIG)}, path),
        lambda path: np.save(path.open("wb"), BIG),
        lambda path: path.write_bytes(BIG.tobytes()),
    ],
    ids=["torch", "safetensors", "numpy", "bytes"],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_a_full_disk_is_told_as_such_whatever_library_writes(small_disk, write):
    target = small_disk / "file"
    target.write_text("old")
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{target}'")):
        write_whole(target, write)
    assert target.read_text() == "old"
    assert [path.name for path in small_disk.iterdir()] == ["file"]


def cover(*words):
    subprocess.run(["mount", *words], check=True)


@pytest.mark.parametrize("options", ["full", "read-only"])
def test_a_run_on_a_disk_that_goes_bad_ends_and_goes_on(run, world, small_disk, options):
    (world / "out").symlink_to(small_disk)

    def bad(folder):
        if options != "full":
            cover("--bind", str(small_disk), str(small_disk))
            cover("-o", "remount,bind,ro", str(small_disk))
            return
        with (small_disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))

    code, said, store = run(fake_one__1=bad)
    said.sort()
    assert code == 1
    why = "No space left on device. Free space" if options == "full" else "Read-only file system. Make it"
    assert len(said) == 3
    assert all(why in line and CURED in line for line in said)
    assert said[0].startswith(f"error: '{world}/out/")  # results.csv, or its lock
    assert said[1].startswith(f"error: {CELL[:-1]}1: '{world}/out/{CELL[:-1]}1/adapt.json'")
    assert said[2].startswith("error: runs/fakes/tiny/fake_two/seed-0: ")  # tried, as the disk may serve it
    if options != "full":
        subprocess.run(["umount", str(small_disk)], check=True)
    (small_disk / "filler").unlink(missing_ok=True)
    done = (store.output_dir / CELL / "ran.txt").read_text()
    assert run()[:2] == (0, [])
    assert set(states(store).values()) == {"success"}
    assert (store.output_dir / CELL / "ran.txt").read_text() == done


# ---------------------------------------------------------------------- other processes, folders and streams
def test_a_run_with_other_settings_goes_beside_one_that_is_running(run, flags, world, capsys):
    codes = []

    def another(folder):
        FAULT.clear()
        words = [
            "--suite",
            flags["suite"],
            "--plugins",
            *flags["plugins"],
            "--methods",
            "fake_one",
            "--device",
            "cpu",
        ]
        codes.append(main([*words, "--jobs", "1", "--output-dir", str(world / "out"), "recipe.lr=0.007"]))

    code, said, store = run(fake_one__0=another)
    assert codes == [0]
    assert code == 0
    assert len(states(store)) == 4
    assert set(states(store).values()) == {"success"}


def test_a_cell_that_another_process_makes_something_else_of_is_no_success(run, world, monkeypatch):
    monkeypatch.setattr(execute, "BEGIN_PATIENCE", 0.0)
    run()
    store = Store(world / "out")
    for name in ("status.json", "fake_task.json"):
        store.cell(CELL).remove(name)
    config = store.cell(CELL).read_config()
    with store.cell(CELL).lock() as held:
        assert held
        assert run()[0] == 0  # it makes the same
        store.cell(CELL).write_config(config | {"tasks": {}})
        code, said, _ = run()
    assert code == 1
    assert said == [
        f"error: {CELL}: another process runs it with other tasks. Wait for its end, or choose another --output-dir"
    ]


def test_a_working_folder_that_is_deleted_is_one_line(run, world, monkeypatch, tmp_path):
    place = tmp_path / "gone"
    place.mkdir()
    words = f"cd {place} && rmdir {place} && {sys.executable} {ROOT}/run_benchmark.py list suites"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == DELETED
    place.mkdir()
    monkeypatch.chdir(place)
    code, said, store = run(fake_one__0=lambda folder: place.rmdir())
    assert (code, said) == (0, [])  # the output folder is elsewhere
    place.mkdir()
    monkeypatch.chdir(place)
    assert run("out", fake_one__0=lambda folder: shutil.rmtree(place))[:2] == (1, [DELETED])


DELETED = "error: the working folder has been deleted. Change to another one and run the command again"


@pytest.mark.parametrize(
    ("where", "code", "says"),
    [
        (
            ">/dev/full",
            2,
            ["error: standard output: No space left on device. What is not shown is lost, what is stored"],
        ),
        (">&-", 0, []),
        ("| true", 0, []),
    ],
)
def test_output_that_cannot_be_written_is_one_line_or_none(where, code, says):
    words = f"set -o pipefail; {sys.executable} {ROOT}/run_benchmark.py list suites {where}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    lines = done.stderr.splitlines()
    assert len(lines) == len(says)
    assert all(line.startswith(text) for line, text in zip(lines, says, strict=True))


def test_a_run_whose_output_cannot_be_written_goes_on(run, monkeypatch):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        code, said, store = run()
        monkeypatch.undo()
    assert code == 2
    assert len(said) == 1
    assert said[0].startswith("error: standard output: No space left on device")
    assert set(states(store).values()) == {"success"}


# ---------------------------------------------------------------------- memory
@pytest.mark.parametrize(
    "take",
    [
        lambda folder: np.zeros(2**50),
        lambda folder: torch.empty(2**50),
        raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")),
    ],
    ids=["numpy", "torch", "cuda"],
)
def test_a_cell_without_memory_says_what_to_do(run, take):
    code, said, store = run(fake_one__0=take)
    (line,) = said
    assert line.startswith(f"error: {CELL}: out of memory: lower --jobs or --batch-size, or use a smaller")
    check_others_and_go_on(run, code, store)


# ---------------------------------------------------------------------- what dead processes leave
DIES = """
import os, signal, sys
from pathlib import Path
from benchmark.files import temporary_beside
with temporary_beside(Path(sys.argv[1])) as file, temporary_beside(Path(sys.argv[2]), folder=True) as folder:
    (folder / "half").write_text("x")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_has_left_is_deleted_and_what_a_live_one_writes_is_not(tmp_path):
    words = [sys.executable, "-c", DIES, str(tmp_path / "a"), str(tmp_path / "b")]
    subprocess.run(words, cwd=ROOT, check=False)
    (tmp_path / ".other.tmp").write_text("not ours")
    assert len(list(tmp_path.glob(LEFTOVERS))) == 2
    with temporary_beside(tmp_path / "c") as file, temporary_beside(tmp_path / "d", folder=True) as folder:
        remove_dead(tmp_path, LEFTOVERS)
        assert set(tmp_path.iterdir()) == {file, folder, tmp_path / ".other.tmp"}
    assert [path.name for path in tmp_path.iterdir()] == [".other.tmp"]


def test_a_half_written_folder_of_a_cell_does_not_stand_in_its_way(tmp_path):
    cell = CellFolder(tmp_path)
    (tmp_path / ".peft.abcdefgh.tmp").mkdir()
    (tmp_path / ".peft.abcdefgh.tmp" / "half").write_text("x")
    cell.remove_leftovers()
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------------- checkpoints
DAMAGED, OTHER = "damaged checkpoint", "other settings, data or another version"


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:300]), DAMAGED),
        (lambda path: path.write_bytes(b""), DAMAGED),
        (lambda path: torch.save({"key": "1|k", "trained": {}}, path), OTHER),
        (lambda path: torch.save({"key": "2|of another method"}, path), OTHER),
        (lambda path: torch.save([1, 2], path), OTHER),
    ],
    ids=["cut", "empty", "version", "method", "list"],
)
def test_a_checkpoint_that_is_no_use_is_said_and_training_starts_anew(tmp_path, spoil, says):
    path, said = tmp_path / "state.pt", []
    Checkpoint(path, "k").save({"step": torch.zeros(100)})
    assert Checkpoint(path, "k").load(said.append) is not None
    assert said == []
    spoil(path)
    assert Checkpoint(path, "k").load(said.append) is None
    (line,) = said
    assert says in line
    assert line.startswith("state.pt: ")
    assert line.endswith("not used: training starts anew")


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "state.pt"
    Checkpoint(path, "k").save({"step": 1})
    monkeypatch.setattr(torch, "save", raising(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match=re.escape(f"No space left on device: '{path}'")):
        Checkpoint(path, "k").save({"step": 2})
    assert Checkpoint(path, "k").load()["step"] == 1
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]


# ---------------------------------------------------------------------- clocks
def test_a_clock_that_jumps_changes_nothing(run, tmp_path, monkeypatch):
    whole, expected = train("taskres", tmp_path / "whole", NullReporter())
    generator = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: generator.uniform(0, 4e9))
    monkeypatch.setattr(time, "time_ns", lambda: generator.randrange(4 * 10**18))
    state, rows = train("taskres", tmp_path / "jumps", NullReporter())
    assert rows == expected
    assert all(torch.equal(state[key], value) for key, value in whole.items())
    code, said, store = run()
    assert (code, said) == (0, [])
    assert run()[0] == 0
    assert set(states(store).values()) == {"success"}


def test_durations_come_from_clocks_that_nobody_sets():
    files = [path for top in ("benchmark", "methods", "tasks") for path in (ROOT / top).rglob("*.py")]
    using = {
        str(path.relative_to(ROOT)) for path in files if re.search(r"time\.time(_ns)?\(", path.read_text())
    }
    # There the age of a file decides whether it is read once more, which is never wrong.
    assert using <= {"benchmark/files.py"}
