"""Fixtures of the harness tests: a small world of plugins without torch; registries are put back."""

from __future__ import annotations

import copy
import functools
import os
import sys
import textwrap
from pathlib import Path

import pytest

# One thread per test process, before torch is imported: two that share two cores only wait for each other.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
os.environ.update(ONE_THREAD)

from benchmark import registry  # noqa: E402
from tests.pair import pair  # noqa: E402

# Files with a costly fixture for all their tests: these stay in one process.
TOGETHER = (
    "tests/cli/test_reproduce.py",
    "tests/crash/test_kills.py",
    "tests/methods/test_biomedclip_counts.py",
    "tests/plugins/test_sample.py",
    "tests/conformance/test_probes.py",
    "tests/plain/test_targets.py",
    "tests/run/engines/test_ray.py",
)
PAIRED = ("tests/run/training/test_distributed.py", "tests/run/engines/test_torchrun.py")
"""These share two processes that are started once."""

PLUGIN = '''
"""Methods and a task for tests of the harness."""
from dataclasses import dataclass
from benchmark.registry import register_method, register_task


@dataclass(frozen=True)
class Knobs:
    depth: int = 2
    sizes: tuple[int, ...] = (1, 2)


@register_method("fake_one", aliases=("Fake-One+",), in_all=False)
class FakeOne:
    Options = Knobs
    cost_hint = 2.0


@register_method("fake_two", in_all=False)
class FakeTwo:
    """Draws nothing at random."""
    deterministic = True


@register_task("fake_task")
class FakeTask:
    Options = Knobs
'''

SUITE = """
name: fakes
backbone: tiny
templates: ["a picture of {}."]
corpus: {dataset: phantom, part: mimic, n: 32}
validation: {task: fake_task, dataset: phantom, part: nih, kind: multilabel, metric: auroc, classes: [Edema]}
tasks:
  fake_task:
    datasets:
      rsna: {dataset: phantom, part: rsna, kind: binary, classes: [Normal, Edema], positive: Edema}
recipe: {epochs: 3, batch_size: 16}
methods: {fake_one: {recipe: {lr: 5.0e-4}, options: {depth: 3}}}
"""

CELLS = '''
"""Stand-ins for benchmark.run.cell.run_cell; a file named by the cell decides what happens."""
import os
import time


def run_cell(spec, folder, reporter):
    reporter.start("adapt", 2)
    reporter.advance(1, "loss 1.0")
    trouble = os.environ.get("TROUBLE_" + spec.method, "") if spec.seed == 0 else ""
    if trouble == "exit":
        os._exit(7)
    if trouble == "raise":
        raise RuntimeError("boom in /home/someone/secret/file.py")
    if trouble == "interrupt":
        raise KeyboardInterrupt
    if trouble == "nothing":
        return
    folder.write_json("adapt.json", {"adapt_hash": spec.adapt_hash})
    (folder.path / "adapter.safetensors").write_bytes(b"")
    for task in spec.tasks:
        metrics = {"acc": {"value": 0.5, "ci_low": 0.4, "ci_high": 0.6, "n": 10}}
        result = {"task": task, "status": "success", "task_hash": spec.task_hash(task)}
        result["datasets"] = {"rsna": {"n": 10, "kind": "binary", "metrics": metrics}}
        folder.write_json(f"{task}.json", result)
    with open(folder.path / "ran.txt", "a") as file:
        file.write(f"{os.getpid()} {os.environ.get('OMP_NUM_THREADS')} {spec.device}\\n")
    reporter.log("rsna acc 50.0")
'''


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Hand out single tests, but the files in TOGETHER whole (marks for this are not seen with pytest 9.2)."""
    from xdist.scheduler import LoadGroupScheduling

    class Scheduling(LoadGroupScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            if file in PAIRED:
                return "pair"
            return file if file in TOGETHER else nodeid

    return Scheduling(config, log) if config.getoption("dist") == "loadgroup" else None


def pytest_collection_modifyitems(items):
    """Let processes that share the tests begin with the slow ones, so that they end together."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def _few_figures(request, _registries_put_back):
    """Draw the figures of a report, which take longer than most runs, only where they are looked at."""
    with pytest.MonkeyPatch.context() as patch:  # its own: a test may undo what it has patched
        if "tests/report/" not in request.node.nodeid and not request.node.get_closest_marker("figures"):
            patch.setitem(vars(registry.FIGURES), "names", lambda *_: ())
        yield


@pytest.fixture(scope="session")
def both(tmp_path_factory):
    """Two processes that work on one cell together."""
    with pair(tmp_path_factory.mktemp("pair")) as found:
        yield found


@pytest.fixture(autouse=True)
def _quick_fonts(monkeypatch):
    """Fonts in the form that is embedded quickest: the other one (Type 42, for publishers) takes half a PDF's time."""
    if style := sys.modules.get("benchmark.report.figures.style"):
        monkeypatch.setitem(style.STYLE, "pdf.fonttype", 3)


@pytest.fixture(autouse=True)
def _one_thread():
    """Commands that a test runs in this process set the number of threads; the next test begins with one again."""
    yield
    os.environ.update(ONE_THREAD)
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _registries_put_back():
    for item in registry.REGISTRIES.values():
        item.names()  # files are scanned once per process, not once per test
    kept = {name: copy.copy(vars(item)) for name, item in registry.REGISTRIES.items()}
    for item in registry.REGISTRIES.values():
        for name, value in vars(item).items():
            if isinstance(value, dict):
                setattr(item, name, dict(value))
    yield
    for name, item in registry.REGISTRIES.items():
        # a module of the project is imported, and so registers itself, only once per process
        own = {key: value for key, value in item._objects.items() if _is_ours(value)}
        vars(item).update(kept[name])
        item._objects |= own


def _is_ours(plugin: object) -> bool:
    return str(getattr(plugin, "__module__", "")).startswith(("methods.", "tasks.", "benchmark."))


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A folder with plugin.py, suite.yaml and the module fake_cells; the working folder of the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for module in ("fake_cells", "slow_cells", "plugin"):  # those of another test lie in another folder
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "plugin.py").write_text(PLUGIN)
    (tmp_path / "suite.yaml").write_text(SUITE)
    (tmp_path / "fake_cells.py").write_text(CELLS)
    return tmp_path


@pytest.fixture
def flags(world):
    """Flags that select the fakes."""
    return {
        "suite": str(world / "suite.yaml"),
        "plugins": [str(world / "plugin.py")],
        "methods": ["fake_*"],
        "output_dir": str(world / "out"),
        "device": "cpu",
    }


@pytest.fixture
def stand_in(monkeypatch):
    """A function that lets the run verb run its cells with another function; these are made of no data."""
    from benchmark.cli import run as run_verb

    def replace(run_cell):
        monkeypatch.setattr(run_verb, "run_plan", functools.partial(run_verb.run_plan, run_cell=run_cell))
        monkeypatch.setattr(run_verb, "_check_identity", lambda *_, **__: None)
        monkeypatch.setattr(run_verb, "_prepare", lambda *_: None)

    return replace


@pytest.fixture
def write(tmp_path):
    """A function that writes a text file and returns its path."""

    def write_file(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path

    return write_file
