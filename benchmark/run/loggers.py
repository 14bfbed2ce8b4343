"""Experiment trackers: each finished cell is sent to TensorBoard, MLflow or Weights & Biases, with curves and scores.

A tracker is one small class, :class:`Tracker`. It gets what the cell has stored, in the process that runs the plan, so
that no tracker slows a training or sees data. Trackers write below ``<output-dir>/logs/``; MLflow and Weights & Biases
go elsewhere where their own environment variables say so.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from benchmark.errors import ConfigError, unknown
from benchmark.plan import CellSpec
from benchmark.store.cells import CellFolder, Store, leaves

FOLDER = "logs"


@dataclass(frozen=True)
class Logged:
    """A finished cell, as trackers get it.

    Attributes:
        name: ``<suite>/<backbone>/<method>/seed-<n>``.
        settings: flat, JSON types.
        rows: history; each has a ``step``, and numbers.
        scores: ``<task>/<dataset>/<metric>`` -> value.
    """

    name: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    scores: Mapping[str, float]

    def curves(self) -> Iterator[tuple[int, str, float]]:
        """Yield step, key and value of all numbers of the history."""
        for row in self.rows:
            for key, value in row.items():
                if key != "step" and value is not None:
                    yield int(row.get("step") or 0), f"adapt/{key}", float(value)

    @property
    def last(self) -> int:
        """The last step."""
        return max((int(row.get("step") or 0) for row in self.rows), default=0)


class Tracker(Protocol):
    """What keeps cells."""

    def log(self, cell: Logged) -> None:
        """Keep a cell."""


class TensorBoard:
    """Event files, one folder per cell: ``tensorboard --logdir <output-dir>/logs/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer, self._folder = SummaryWriter, folder

    def log(self, cell: Logged) -> None:
        """See :class:`Tracker`."""
        writer = self._writer(str(self._folder / cell.name))
        try:
            writer.add_text(
                "settings", "\n".join(f"    {key}: {value}" for key, value in cell.settings.items())
            )
            for step, key, value in cell.curves():
                writer.add_scalar(key, value, step)
            for key, value in cell.scores.items():
                writer.add_scalar(key, value, cell.last)
        finally:
            writer.close()


class MLflow:
    """Runs of the experiment ``medpeft-bench``, in ``<output-dir>/logs/mlflow`` unless MLFLOW_TRACKING_URI is set."""

    def __init__(self, folder: Path) -> None:
        import mlflow

        self._mlflow = mlflow
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            folder.mkdir(parents=True, exist_ok=True)
            mlflow.set_tracking_uri(folder.absolute().as_uri())

    def log(self, cell: Logged) -> None:
        """See :class:`Tracker`."""
        self._mlflow.set_experiment("medpeft-bench")
        with self._mlflow.start_run(run_name=cell.name):
            self._mlflow.log_params({key: str(value)[:500] for key, value in cell.settings.items()})
            for step, key, value in cell.curves():
                self._mlflow.log_metric(key, value, step=step)
            self._mlflow.log_metrics(dict(cell.scores), step=cell.last)


class Wandb:
    """Runs of the project ``medpeft-bench``; offline in ``<output-dir>/logs/wandb``, unless WANDB_MODE is set."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self._wandb, self._folder = wandb, folder
        folder.mkdir(parents=True, exist_ok=True)

    def log(self, cell: Logged) -> None:
        """See :class:`Tracker`."""
        run = self._wandb.init(
            project="medpeft-bench", name=cell.name, config=dict(cell.settings), dir=str(self._folder),
            mode=os.environ.get("WANDB_MODE", "offline"), reinit="finish_previous",
        )  # fmt: skip
        try:
            steps: dict[int, dict[str, float]] = {}
            for step, key, value in cell.curves():
                steps.setdefault(step, {})[key] = value
            for step, values in steps.items():
                run.log(values, step=step)
            run.summary.update(dict(cell.scores))
        finally:
            run.finish()


TRACKERS: Mapping[str, Callable[[Path], Tracker]] = {
    "tensorboard": TensorBoard,
    "mlflow": MLflow,
    "wandb": Wandb,
}


def trackers(names: Sequence[str], output_dir: Path) -> list[Tracker]:
    """Return trackers by their names.

    Raises:
        ConfigError: one is not known, or its library is not installed.
    """
    if problems := [f"--log: {unknown('tracker', name, TRACKERS)}" for name in names if name not in TRACKERS]:
        raise ConfigError(problems)
    made = []
    for name in names:
        try:
            made.append(TRACKERS[name](output_dir / FOLDER / name))
        except ModuleNotFoundError as error:
            cure = f'pip install "medpeft-bench[{name}]"'
            raise ConfigError(f"--log {name}: {error.name} is not installed. {cure} brings it") from None
    return made


def log_cell(spec: CellSpec, store: Store, to: Sequence[Tracker]) -> None:
    """Send a finished cell to trackers."""
    folder = store.cell(spec.folder)
    settings = dict(leaves({key: value for key, value in folder.find_config().items() if key != "suite"}))
    cell = Logged(spec.folder.partition("/")[2], settings, folder.read_history(), _scores(folder))
    for tracker in to:
        tracker.log(cell)


def _scores(folder: CellFolder) -> dict[str, float]:
    return {
        f"{task}/{dataset}/{metric}": float(score["value"])
        for task in folder.results()
        for dataset, found in (folder.find_json(f"{task}.json").get("datasets") or {}).items()
        for metric, score in (found.get("metrics") or {}).items()
        if score.get("value") is not None
    }
