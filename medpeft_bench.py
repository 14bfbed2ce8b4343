"""medpeft-bench in Python: run a comparison, read what it answers, use an adapted model, add methods and tasks.

    import medpeft_bench as mb

    results = mb.run(methods=["zero_shot", "clip_lora"], tasks="zeroshot", seeds=(0, 1, 2))
    results.best()                    # the best method of each column, and what is tied with it
    results.frame                     # one row per number
    model = mb.load_adapted(results.cells[0])
    model.predict(["film.png"], ["edema", "no finding"])

Names of this module stay; the rest of the program may move.
"""

from __future__ import annotations

import dataclasses
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from benchmark.backbones import load_backbone
from benchmark.cli.run import carried_out, planned, with_weights
from benchmark.config.layers import RECIPE_FLAGS
from benchmark.config.request import load_request
from benchmark.config.run_config import Recipe, RunConfig, Settings
from benchmark.console import Board, Console, PlainBoard
from benchmark.data.dataset import LoadRequest
from benchmark.data.prepare.images import read_image
from benchmark.data.prepared import Prepared
from benchmark.errors import BenchmarkError, ConfigError, StoreError
from benchmark.files import user_path
from benchmark.machine import use_device
from benchmark.metrics.classification import Metric
from benchmark.preprocess import preprocess_of
from benchmark.registry import (
    METHODS,
    register_backbone,
    register_dataset,
    register_method,
    register_task,
)
from benchmark.run import adapters
from benchmark.run.build import build_method
from benchmark.settings import setting
from benchmark.store.cells import CellFolder, Store
from methods.base import Method, MethodCard
from tasks.base import DatasetResult, Task, TaskContext, fill

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Adapted", "BenchmarkError", "DatasetResult", "LoadRequest", "Method", "MethodCard", "Metric", "Prepared",
    "Results", "Task", "TaskContext", "load_adapted", "load_backbone", "register_backbone", "register_dataset",
    "register_method", "register_task", "run", "setting",
]  # fmt: skip

Image: TypeAlias = "str | Path | np.ndarray | PIL.Image.Image"
"""A file (PNG, JPEG, DICOM, ...), uint8 pixels ``[H, W]`` or ``[H, W, 3]``, or a Pillow image."""
_TEMPLATES = ("{}",)


# --- a run --------------------------------------------------------------------------------------------------


def run(
    methods: str | Sequence[str] = "all",
    tasks: str | Sequence[str] = "all",
    suite: str | Path | None = None,
    seeds: Sequence[int] = (0,),
    **settings: Any,
) -> Results:
    """Run what is not stored yet, as the command line does, and return the results.

    Args:
        methods: names or globs.
        tasks: names, or "none" to adapt only.
        suite: name in configs/suites or a YAML file; None: the embedded one.
        seeds: one run of a method each.
        **settings: any flag (``output_dir="out"``, ``epochs=8``, ``smoke=True``) or key
            (``**{"methods.clip_lora.r": 8}``). ``jobs`` is 1: cells run in this process. With more, a script needs
            ``if __name__ == "__main__":``.

    Raises:
        BenchmarkError: the request is wrong, or data or weights are missing; the message says what to do.
        KeyboardInterrupt: it was stopped; the same call goes on from there.
    """
    asked = {"methods": methods, "tasks": tasks, "suite": suite, "seeds": list(seeds), "jobs": 1, **settings}
    flags, words = _flags_and_words({key: value for key, value in asked.items() if value is not None})
    console = _console()
    request = load_request(flags, words)
    configs = with_weights(request, console)
    broken = list(dict.fromkeys(line for config in configs for line in config.broken))
    if broken:
        raise ConfigError(broken)
    store = Store(configs[0].output_dir)
    plan = planned(configs, store, console)
    summary = carried_out(plan, store, configs[0], console)
    if summary.interrupted:
        raise KeyboardInterrupt
    store.rebuild_results_csv()
    cells = tuple(store.output_dir / cell.spec.folder for cell in plan.cells)
    return Results(configs[0], cells, dict(summary.failed))


def _flags_and_words(asked: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Tell flags from keys of a configuration, as the command line does."""
    selections = {"methods", "tasks", "suite", *RECIPE_FLAGS}
    known = selections | {item.name for item in dataclasses.fields(Settings)}

    def raw(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return list(map(str, value))
        return value if isinstance(value, bool) else str(value)

    flags = {key: raw(value) for key, value in asked.items() if key in known}
    words = [f"{key}={json.dumps(value, default=str)}" for key, value in asked.items() if key not in known]
    return flags, words


@dataclass(frozen=True)
class Results:
    """What a run has stored.

    Attributes:
        config: of the run.
        cells: folders of its cells, one per method and seed.
        failed: folder -> why, of those that failed.
    """

    config: RunConfig
    cells: tuple[Path, ...]
    failed: Mapping[str, str]

    @cached_property
    def frame(self) -> pd.DataFrame:
        """One row per number: suite, backbone, method, seed, task, dataset, metric, value, ci_low, ci_high, n, ..."""
        import pandas as pd

        everything = pd.read_csv(
            self.config.output_dir / "results.csv", dtype={"config_hash": str, "identity": str}
        )
        known = {_key(folder) for folder in self.cells}
        keys = zip(*(everything[name] for name in ("suite", "backbone", "method", "seed")), strict=True)
        mine = [
            (str(suite), str(backbone), str(method), int(seed)) in known
            for suite, backbone, method, seed in keys
        ]
        return everything[mine].reset_index(drop=True)

    def table(self, name: str = "1") -> pd.DataFrame:
        """Return a table by its id ("1", "5", "A.3"), with the columns that results/README.md explains.

        Raises:
            ConfigError: there is no such table.
        """
        frames = self._report([name]).frames()
        return next(iter(frames.values()))

    def best(self) -> pd.DataFrame:
        """Return one row per column of the main table: the best method, its mean, and what is tied with it.

        A column that fewer than two methods have, and limited runs, which are not compared, have no row.
        """
        import pandas as pd

        from benchmark.report.significance.decision import decide

        rows = [
            {
                "task": best.key[0], "dataset": best.key[1], "metric": best.key[2], "method": best.row.cell,
                "value": best.row.scores[best.key].value, "tied": ", ".join(row.cell for row in best.tied),
            }
            for block in self._report().blocks
            for best in decide(block).best
        ]  # fmt: skip
        return pd.DataFrame(rows, columns=["task", "dataset", "metric", "method", "value", "tied"])

    def report(self) -> Path:
        """Write tables, figures and the page, and return the path of the page."""
        return self._report().write()[-1]

    def _report(self, tables: Sequence[str] | None = None) -> Any:
        from benchmark.report.report import read_report

        config = self.config
        return read_report(
            config.output_dir, suite=config.suite_name, tables=tables, baseline=config.baseline,
            smallest=config.smallest_difference / 100,
        )  # fmt: skip


def _key(folder: Path) -> tuple[str, str, str, int]:
    config = CellFolder(folder).find_config()
    method = "+".join(filter(None, [str(config.get("method", "")), str(config.get("variant") or "")]))
    return str(config.get("suite_name")), str(config.get("backbone")), method, int(config.get("seed", -1))


# --- progress -----------------------------------------------------------------------------------------------


class _Notebook(Console):
    """Output in a notebook, whose progress is one line that changes."""

    def __init__(self, display: Any) -> None:
        super().__init__()
        self._display = display

    def new_board(self, total: int) -> Board:
        """Return a board that shows how far each cell is in one place."""
        return _NotebookBoard(self, total, self._display)


class _NotebookBoard(PlainBoard):
    def __init__(self, console: Console, total: int, display: Any) -> None:
        super().__init__(console, total)
        self._handle = display("", display_id=True)

    def show(self, slot: int, cell: Any) -> None:
        """Show bars of what runs now."""
        bars = [
            f"<progress value='{one.steps}' max='{max(one.total, 1)}'></progress> "
            f"{html.escape(f'{one.label}: {one.stage} {one.steps}/{one.total} {one.note}')}"
            for one in self.slots.values()
            if one.stage
        ]
        head = f"{self.finished} of {self.total} cells"
        self._handle.update(_Html("<br>".join([head, *bars])))

    def close(self) -> None:
        """Leave the last count."""
        self._handle.update(_Html(f"{self.finished} of {self.total} cells"))


@dataclass(frozen=True)
class _Html:
    text: str

    def _repr_html_(self) -> str:
        return self.text


def _console() -> Console:
    """Return the output of a notebook, where there is one, else that of a terminal or file."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        return Console()
    shell = get_ipython()
    return _Notebook(display) if type(shell).__name__ == "ZMQInteractiveShell" else Console()


# --- an adapted model ---------------------------------------------------------------------------------------


def load_adapted(folder: str | Path, *, pretrained: str | None = None, device: str = "cpu") -> Adapted:
    """Load an adapted model from a cell of a run, or from a folder that ``export-adapter`` wrote.

    Args:
        folder: ``runs/<suite>/<backbone>/<method>/seed-<n>``, or an exported folder.
        pretrained: weights of the backbone; needed where they are a file, whose folder results do not name.
        device: "cpu", "cuda" or "cuda:<i>".

    Raises:
        StoreError: there is no adapter in the folder, or it does not fit.
        BenchmarkError: weights of the backbone are missing.
    """
    path = user_path(folder)
    cell, exported = CellFolder(path), path / adapters.ABOUT
    is_cell = cell.exists("config.yaml") and cell.exists("adapter.safetensors")
    if not is_cell and not exported.is_file():
        raise StoreError(f"'{path}' is neither a finished cell (runs/...) nor a folder of export-adapter")
    checkpoint = None if is_cell else adapters.read_checkpoint(path)
    told: Mapping[str, Any] = (
        cell.read_config() if is_cell else (checkpoint.about if checkpoint else None) or {}
    )
    use_device(device)
    backbone = load_backbone(
        str(told["backbone"]), pretrained=pretrained or told.get("pretrained"), device=device
    )
    recipe = told.get("recipe") or {}
    name = METHODS.resolve(str(told["method"]))
    options = dict(told.get("options") or {})
    if checkpoint is not None:
        options = adapters.options_of(checkpoint, name, METHODS.get(name), backbone) | options
    known = {item.name for item in dataclasses.fields(Recipe)}
    kept = {key: recipe[key] for key in recipe if key in known and not isinstance(recipe[key], list)}
    method = build_method(name, backbone, options, Recipe(**kept))
    if checkpoint is None:
        method.load_trainable_state(cell.read_tensors("adapter.safetensors"))
    else:
        adapters.load_checkpoint(method, checkpoint)
    templates = (told.get("suite") or told).get("templates") or _TEMPLATES
    return Adapted(method.eval(), tuple(templates))


@dataclass(frozen=True)
class Adapted:
    """An adapted model.

    Attributes:
        method: the method on its backbone, in eval mode.
        templates: prompts of the suite that it was adapted on, each with one ``{}`` for the class.
    """

    method: Method
    templates: tuple[str, ...] = _TEMPLATES

    @torch.no_grad()
    def predict(
        self,
        images: Image | Iterable[Image],
        classes: Sequence[str] | Mapping[str, str],
        *,
        templates: Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> pd.DataFrame:
        """Return the probability of each class for each image, as zero-shot evaluation makes it: softmax over classes.

        Args:
            images: one or several.
            classes: names, or name -> its text in the prompts.
            templates: prompts; None: those of the suite. Their features are averaged by the method's own rule.
            batch_size: images per forward pass.

        Returns:
            One row per image (files by their names, others by their number), one column per class; rows sum to 1.

        Raises:
            BenchmarkError: an image cannot be read.
        """
        import pandas as pd

        from benchmark.data.samples import Batch
        from tasks.base import prompt_ids

        texts = {str(key): str(classes[key]) for key in classes} if isinstance(classes, Mapping) else {}
        texts = texts or {str(name): str(name) for name in classes}
        prompts = [fill(tuple(templates or self.templates), text) for text in texts.values()]
        prepared = self.method.prepare_classes(prompt_ids(self.method, prompts).to(self._device))
        names: list[str | int] = []
        found = []
        for chunk in _chunks(_several(images), batch_size):
            names += [
                str(one) if isinstance(one, str | Path) else len(names) + at for at, one in enumerate(chunk)
            ]
            scores = self.method.classify(Batch(images=self._input(chunk)), prepared)
            found.append((self.method.logit_scale() * scores).float().softmax(dim=1).cpu().numpy())
        values = np.concatenate(found) if found else np.empty((0, len(texts)))
        return pd.DataFrame(values, index=pd.Index(names, name="image"), columns=list(texts))

    @torch.no_grad()
    def encode_images(self, images: Image | Iterable[Image], *, batch_size: int = 64) -> np.ndarray:
        """Return unit features of images, ``[N, E]``."""
        chunks = _chunks(_several(images), batch_size)
        found = [self.method.encode_image(self._input(chunk)).float().cpu().numpy() for chunk in chunks]
        return np.concatenate(found) if found else np.empty((0, self.method.backbone.embed_dim))

    @torch.no_grad()
    def encode_texts(self, texts: str | Sequence[str], *, batch_size: int = 64) -> np.ndarray:
        """Return unit features of texts, ``[N, E]``."""
        words = [texts] if isinstance(texts, str) else list(texts)
        ids = [
            self.method.backbone.tokenize(chunk).long().to(self._device)
            for chunk in _chunks(words, batch_size)
        ]
        found = [self.method.encode_text(one).float().cpu().numpy() for one in ids]
        return np.concatenate(found) if found else np.empty((0, self.method.backbone.embed_dim))

    @property
    def _device(self) -> torch.device:
        return self.method.backbone.logit_scale.device

    def _input(self, images: Sequence[Image]) -> Tensor:
        """Return images as the backbone takes them, ``[B, C, H, W]``."""
        fitting = preprocess_of(self.method.backbone).fitting.on("shortest_crop")
        fitted = [fitting.pixels(_pixels(image)) for image in images]
        if any(one.ndim == 3 for one in fitted):
            fitted = [one if one.ndim == 3 else np.repeat(one[..., None], 3, axis=2) for one in fitted]
        return self.method.backbone.input_spec.to_input(np.stack(fitted), self._device)


def _several(images: Image | Iterable[Image]) -> list[Image]:
    single = isinstance(images, str | Path | PIL.Image.Image) or (
        isinstance(images, np.ndarray) and images.ndim == 2
    )
    return [images] if single else list(images)  # type: ignore[list-item, arg-type]


def _pixels(image: Image) -> np.ndarray:
    if isinstance(image, str | Path):
        return read_image(user_path(image)).pixels
    if isinstance(image, PIL.Image.Image):
        return np.asarray(image if image.mode == "L" else image.convert("RGB"))
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ConfigError(
            f"images: expected uint8 pixels [H, W] or [H, W, 3], got {image.dtype} {list(image.shape)}"
        )
    return image


def _chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
