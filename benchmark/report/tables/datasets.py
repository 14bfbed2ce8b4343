"""Tables A.1 and A.2, the datasets: what the paper states, beside what stored results say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from benchmark.config.experiments import Experiment, ResolvedRow, experiments, resolve
from benchmark.report.collect import Block
from benchmark.report.experiment_tables import suite_spec
from benchmark.report.paper import PaperTables
from benchmark.report.tables.columns import Cell, Column, Rendered, difference_reason, paper_names
from benchmark.report.tables.render import title_of

HEADS = {
    "n_classes": "classes", "n_class_names": "class names", "total_size": "images",
    "train_pct": "train [%]", "val_pct": "validation [%]", "test_pct": "test [%]",
}  # fmt: skip
"""What the paper states of a dataset: name in its table -> head."""
_WORDS = (
    "Columns 'paper': as printed in Table {table} of the ACE-LoRA paper (arXiv 2603.17079), of its own datasets. "
    "Columns 'here': what results in the store say of the data that were used; '-': they do not say. Test images, n: "
    "those that scores were measured on."
)


@dataclass(frozen=True)
class DatasetRow:
    """One dataset of one task.

    Attributes:
        suite: whose dataset it is; empty for one that only the paper has.
        stated, here: name of `HEADS` -> number, of the paper and of the store.
        comparable: whether a difference between them has a meaning.
        n: test images as the results have them.
    """

    title: str
    task: str
    suite: str = ""
    stated: Mapping[str, float] = field(default_factory=dict)
    here: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = False
    classes: tuple[str, ...] = ()
    n: int | None = None
    notes: tuple[str, ...] = ()

    def difference(self, name: str) -> float | None:
        """Here minus paper, where that has a meaning."""
        if not self.comparable or name not in self.stated or name not in self.here:
            return None
        return self.here[name] - self.stated[name]


@dataclass(frozen=True)
class DatasetTable:
    """The datasets of a suite and of those related to it.

    Attributes:
        block: a block of the suite; it has no rows.
        names: which of `HEADS` are columns.
    """

    block: Block
    names: tuple[str, ...]
    rows: tuple[DatasetRow, ...]


def dataset_tables(
    blocks: Sequence[Block], chosen: Sequence[Block], paper: PaperTables
) -> list[DatasetTable]:
    """Return the experiments of kind ``datasets``, each for every suite that is not a part of another's table.

    Args:
        blocks: all main blocks of the store.
        chosen: those of the suites that are asked for.
        paper: the paper's numbers.
    """
    tables = []
    for experiment in experiments():
        if experiment.kind != "datasets":
            continue
        anchors = {block.suite: block for block in reversed(chosen)}
        parts = {name: _parts(experiment, block) for name, block in sorted(anchors.items())}
        for name, part in parts.items():
            if not any(set(part) < set(other) for other in parts.values()):
                tables.append(_table(experiment, anchors[name], list(part.values()), blocks, paper))
    return tables


def render_datasets(table: DatasetTable) -> Rendered:
    """Turn a table of datasets into cells of text."""
    block, experiment = table.block, table.block.experiment
    assert experiment is not None
    groups = [(name, HEADS.get(name, name)) for name in table.names]
    columns = [Column("method", "Dataset")]
    for name, head in groups:
        for role, word in (("paper", "paper"), ("measured", "here"), ("difference", "difference")):
            columns.append(Column(role, word, group=head, title=head, metric=name))  # type: ignore[arg-type]
    columns += [Column("measured", "test images, n"), Column("switch", "class names")]
    reason = difference_reason(block).rstrip(".")
    caption = [_WORDS.format(table=experiment.id)]
    caption += [f"Differences are blank: {reason}."] if reason else []
    return Rendered(
        block=block,
        heading=f"{title_of(experiment)}. {block.spec.get('title') or block.suite}",
        columns=tuple(columns),
        rows=tuple(_cells(row, table.names) for row in table.rows),
        references=(),
        caption=" ".join(caption),
        notes=tuple(f"{row.title}: {'; '.join(row.notes)}." for row in table.rows if row.notes),
        table=block.table,
    )


def dataset_frame(tables: Sequence[DatasetTable]) -> pd.DataFrame:
    """The tables of one experiment as numbers: one row per dataset, columns as in results/README.md."""
    frame: pd.DataFrame = pd.DataFrame(_record(row, table.names) for table in tables for row in table.rows)
    return frame


# --- rows ---------------------------------------------------------------------------------------------------


def _parts(experiment: Experiment, block: Block) -> dict[tuple[str, str], ResolvedRow]:
    """(suite, task) -> the row that asks for its datasets; rows that cannot be resolved here are left out."""
    resolved = [row for row in resolve(experiment, block.spec, block.backbone) if not row.reason]
    parts: dict[tuple[str, str], ResolvedRow] = {}
    for row in resolved:
        parts.setdefault((row.suite_name, row.task), row)
    return parts


def _table(
    experiment: Experiment,
    anchor: Block,
    parts: Sequence[ResolvedRow],
    blocks: Sequence[Block],
    paper: PaperTables,
) -> DatasetTable:
    rows = [row for part in parts for row in _rows(experiment, part, anchor.suite, blocks, paper)]
    there = {(row.task, theirs) for row, theirs in rows}
    words = {part.task: part.paper_row for part in parts}
    lacking = [
        (DatasetRow(f"{theirs} ({task})", task, stated=stated), theirs)
        for task in experiment.tasks
        for theirs, stated in _stated(paper, experiment.id, words.get(task, "")).items()
        if (task, theirs) not in there
    ]
    block = Block(anchor.suite, anchor.backbone, anchor.spec, (), experiment=experiment)
    wanted = {name for metrics in experiment.tasks.values() for name in metrics}
    names = (*(name for name in HEADS if name in wanted), *sorted(wanted - set(HEADS)))
    return DatasetTable(block, names, tuple(row for row, _ in [*rows, *lacking]))


def _rows(
    experiment: Experiment, part: ResolvedRow, home: str, blocks: Sequence[Block], paper: PaperTables
) -> Iterator[tuple[DatasetRow, str]]:
    """The datasets of a suite's task and its validation set, each with its name in the paper."""
    own = [block for block in blocks if block.suite == part.suite_name]
    spec = suite_spec(part.suite_name, blocks)
    block = own[0] if own else Block(part.suite_name, part.backbone, spec, ())
    stated = _stated(paper, experiment.id, part.paper_row)
    where = "" if part.suite_name == home else f", {spec.get('title') or part.suite_name}"
    for name, entry in block.dataset_specs(part.task).items():
        theirs = paper_names(block).get(name, "")
        facts = [info for one in own for info in one.facts(name, part.task)]
        row = DatasetRow(
            title=f"{block.dataset_title(name, part.task)} ({part.task}{where})",
            task=part.task,
            suite=part.suite_name,
            stated=stated.get(theirs, {}),
            here=_here(entry, facts),
            comparable=not difference_reason(block),
            classes=_classes(entry, facts),
            n=_count(own, name, part.task),
            notes=tuple(dict.fromkeys(note for one in own for note in one.data_notes(name, part.task))),
        )
        yield row, theirs
    validation = spec.get("validation") or {}
    if validation.get("task") == part.task:
        theirs = str((spec.get("paper") or {}).get("validation") or "")
        title = f"{validation.get('title') or validation.get('dataset')} (validation{where})"
        here = _here(validation, [])
        yield (
            DatasetRow(
                title,
                part.task,
                part.suite_name,
                stated.get(theirs, {}),
                here,
                comparable=not difference_reason(block),
                classes=_classes(validation, []),
            ),
            theirs,
        )


def _stated(paper: PaperTables, table: str, paper_row: str) -> dict[str, dict[str, float]]:
    """The paper's dataset -> what it states, of one kind of task or of all."""
    found: dict[str, dict[str, float]] = {}
    for row in paper.table(table).to_dict("records"):
        if paper_row in ("", row["row_method"]):
            found.setdefault(str(row["dataset"]), {})[str(row["metric"])] = float(row["value"])
    return found


def _here(entry: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What the suite and the results say of a dataset: classes, and of a dense task the sizes of its parts."""
    classes = len(_classes(entry, facts))
    here: dict[str, float] = {"n_classes": classes, "n_class_names": classes} if classes else {}
    images: Mapping[str, int] = next(
        (info["images"] for info in facts if isinstance(info.get("images"), Mapping)), {}
    )
    total = sum(images.values())
    if total:
        here["total_size"] = total
        here |= {f"{part}_pct": 100 * count / total for part, count in images.items()}
    return here


def _classes(entry: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Class names as they enter the prompts."""
    names = next((info["classes"] for info in facts if info.get("classes")), entry.get("classes") or ())
    prompts = entry.get("prompts") or {}
    return tuple(str(prompts.get(name, name)) for name in names)


def _count(blocks: Sequence[Block], dataset: str, task: str) -> int | None:
    scores = (
        (not row.ranked, score.n)
        for block in blocks
        for row in block.rows
        for key, score in row.scores.items()
        if key[:2] == (task, dataset) and score.n is not None
    )
    return min(scores, key=lambda item: item[0], default=(True, None))[1]


# --- formats ------------------------------------------------------------------------------------------------


def _cells(row: DatasetRow, names: Sequence[str]) -> tuple[Cell, ...]:
    cells = [Cell(row.title)]
    for name in names:
        change = row.difference(name)
        cells += [
            Cell(_text(row.stated.get(name))),
            Cell(_text(row.here.get(name), "-" if row.suite else "")),
        ]
        cells.append(Cell("" if change is None else f"{change:+.4g}"))
    return (*cells, Cell("-" if row.n is None else str(row.n)), Cell(", ".join(row.classes)))


def _text(value: float | None, absent: str = "") -> str:
    return absent if value is None else f"{value:.1f}".removesuffix(".0")


def _record(row: DatasetRow, names: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"suite": row.suite, "task": row.task, "dataset": row.title}
    for name in names:
        record |= {f"{name}_paper": row.stated.get(name), name: row.here.get(name)}
        record[f"{name}_difference"] = row.difference(name)
    return record | {"n": row.n, "classes": "; ".join(row.classes), "notes": "; ".join(row.notes)}
