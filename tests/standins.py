"""Stand-ins for cells that take their time, and what tests of engines ask of them."""

from __future__ import annotations

import contextlib
import threading
import time

SLOW_CELLS = '''
"""Four steps, each written down and then kept in a checkpoint; trouble.json says what else happens."""
import json
import os
import sys
import time
from pathlib import Path


def note(folder, name, line=""):
    with open(folder.path / name, "a") as file:
        file.write(line + "\\n")


def run_cell(spec, folder, reporter):
    ray = sys.modules.get("ray")
    place = ray.get_runtime_context().get_node_id() if ray and ray.is_initialized() else os.getpid()
    note(folder, "begun.txt", f"{place} {spec.device} {os.environ.get('CUDA_VISIBLE_DEVICES')}")
    trouble = json.loads(Path("trouble.json").read_text())
    doomed = trouble.get("doomed")  # a node that dies in mid-cell: the others wait until it is in one
    if spec.folder == trouble.get("exit"):
        os._exit(7)
    kept = folder.path / "checkpoint.json"
    step = json.loads(kept.read_text()) if kept.exists() else 0
    reporter.start("adapt", 4)
    while step < 4:
        time.sleep(trouble.get("seconds", 0))
        step += 1
        note(folder, "steps.txt", str(step))
        if doomed == place:
            note(folder, "doomed.txt")
            time.sleep(120)
        until = time.monotonic() + 60
        while doomed and not list(Path(folder.path).parent.parent.glob("*/*/doomed.txt")):
            assert time.monotonic() < until, "the doomed node got no cell"
            time.sleep(0.05)
        kept.write_text(str(step))
        reporter.advance(1, "loss 1.0")
    kept.unlink()
    folder.write_json("adapt.json", {"adapt_hash": spec.adapt_hash})
    (folder.path / "adapter.safetensors").write_bytes(b"")
    for task in spec.tasks:
        metrics = {"acc": {"value": spec.seed / 8, "n": 10}}
        result = {"task": task, "status": "success", "task_hash": spec.task_hash(task)}
        result["datasets"] = {"rsna": {"n": 10, "kind": "binary", "metrics": metrics}}
        folder.write_json(f"{task}.json", result)
    note(folder, "done.txt")
    reporter.log(f"seed {spec.seed} is well")
'''


@contextlib.contextmanager
def once(condition, action):
    """Do something as soon as a condition holds, while the block runs."""

    def watch():
        until = time.monotonic() + 60
        while time.monotonic() < until and not ended.is_set():
            if condition():
                action()
                return
            time.sleep(0.02)

    ended = threading.Event()
    thread = threading.Thread(target=watch)
    thread.start()
    yield
    ended.set()
    thread.join()


def lines(store, name):
    """Return the lines that each cell has in one of its notes."""
    return {
        str(path.parent.relative_to(store.output_dir)): path.read_text().splitlines()
        for path in store.output_dir.glob(f"runs/*/*/*/*/{name}")
    }


def total(store, name):
    """Return how many lines all cells together have in one of their notes."""
    return sum(map(len, lines(store, name).values()))
