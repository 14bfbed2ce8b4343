"""Tables A.1 and A.2, the datasets: what the paper states, beside what stored results say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmark.config.experiments import Experiment, ResolvedRow, resolve
from benchmark.report.experiment_tables import suite_spec
from benchmark.report.model import Block
from benchmark.report.paper import PaperTables
from benchmark.report.tables.columns import difference_reason, paper_names
from benchmark.report.tables.render import title_of
from benchmark.report.tables.table import Cell, Column, Table

HEADS = {
    "n_classes": "classes", "n_class_names": "class names", "total_size": "images",
    "train_pct": "train [%]", "val_pct": "validation [%]", "test_pct": "test [%]",
}  # fmt: skip
"""What the paper states of a dataset: name in its table -> head."""
_CAPTION = (
    "Columns 'paper': as printed in Table {table} of the ACE-LoRA paper (arXiv 2603.17079), of its own datasets. "
    "Columns 'here': what results in the store say of the data that were used; '-': they do not say. Test images, n: "
    "those that scores were measured on."
)


@dataclass(frozen=True)
class DatasetRow:
    """One dataset of one task.

    Attributes:
        suite: whose dataset it is; empty for one that only the paper has.
        theirs: its name in the paper.
        stated, here: name of `HEADS` -> number, of the paper and of the store.
        comparable: whether a difference between them has a meaning.
        n: test images as the results have them.
    """

    title: str
    task: str
    suite: str = ""
    theirs: str = ""
    stated: Mapping[str, float] = field(default_factory=dict)
    here: Mapping[str, float] = field(default_factory=dict)
    comparable: bool = False
    classes: tuple[str, ...] = ()
    n: int | None = None
    notes: tuple[str, ...] = ()

    def difference(self, name: str) -> float | None:
        """Here minus paper, where that has a meaning."""
        known = self.comparable and name in self.stated and name in self.here
        return self.here[name] - self.stated[name] if known else None


def dataset_tables(
    experiments: Sequence[Experiment], blocks: Sequence[Block], chosen: Sequence[Block], paper: PaperTables
) -> list[Table]:
    """Return the experiments of kind ``datasets``, each for every suite that is not a part of another's table.

    Args:
        experiments: all that are known.
        blocks: all main blocks of the store.
        chosen: those of the suites that are asked for.
        paper: the paper's numbers.
    """
    tables = []
    anchors = {block.suite: block for block in reversed(chosen)}
    for experiment in (one for one in experiments if one.kind == "datasets"):
        parts = {name: _parts(experiment, block) for name, block in sorted(anchors.items())}
        for name, part in parts.items():
            if not any(set(part) < set(other) for other in parts.values()):
                rows = _rows(experiment, anchors[name], list(part.values()), blocks, paper)
                tables.append(_table(experiment, anchors[name], rows))
    return tables


def _table(experiment: Experiment, anchor: Block, rows: Sequence[DatasetRow]) -> Table:
    block = Block(anchor.suite, anchor.backbone, anchor.spec, (), experiment=experiment)
    wanted = {name for metrics in experiment.tasks.values() for name in metrics}
    names = [*(name for name in HEADS if name in wanted), *sorted(wanted - set(HEADS))]
    columns = [Column("method", "Dataset")]
    for name in names:
        group = {"group": HEADS.get(name, name), "title": HEADS.get(name, name), "metric": name}
        columns += [Column("paper", "paper", **group), Column("measured", "here", **group)]
        columns.append(Column("difference", "difference", **group))
    reason = difference_reason(block).rstrip(".")
    return Table(
        columns=[*columns, Column("measured", "test images, n"), Column("switch", "class names")],
        rows=[_cells(row, names) for row in rows],
        caption=_CAPTION.format(table=experiment.id)
        + (f" Differences are blank: {reason}." if reason else ""),
        block=block,
        heading=f"{title_of(experiment)}. {block.title}",
        notes=[f"{row.title}: {'; '.join(row.notes)}." for row in rows if row.notes],
        records=[_record(row, names) for row in rows],
    )


# --- rows ---------------------------------------------------------------------------------------------------


def _parts(experiment: Experiment, block: Block) -> dict[tuple[str, str], ResolvedRow]:
    """(suite, task) -> the row that asks for its datasets; rows that cannot be resolved here are left out."""
    parts: dict[tuple[str, str], ResolvedRow] = {}
    for row in resolve(experiment, block.spec, block.backbone):
        if not row.reason:
            parts.setdefault((row.suite_name, row.task), row)
    return parts


def _rows(
    experiment: Experiment,
    anchor: Block,
    parts: Sequence[ResolvedRow],
    blocks: Sequence[Block],
    paper: PaperTables,
) -> list[DatasetRow]:
    """Datasets of the suites' tasks, then those that only the paper has."""
    rows = [row for part in parts for row in _rows_of(experiment, part, anchor.suite, blocks, paper)]
    there = {(row.task, row.theirs) for row in rows}
    words = {part.task: part.paper_row for part in parts}
    return rows + [
        DatasetRow(f"{theirs} ({task})", task, stated=stated)
        for task in experiment.tasks
        for theirs, stated in _stated(paper, experiment.id, words.get(task, "")).items()
        if (task, theirs) not in there
    ]


def _rows_of(
    experiment: Experiment, part: ResolvedRow, home: str, blocks: Sequence[Block], paper: PaperTables
) -> Iterator[DatasetRow]:
    """The datasets of a suite's task, and its validation set."""
    own = [block for block in blocks if block.suite == part.suite_name]
    spec = suite_spec(part.suite_name, blocks)
    block = own[0] if own else Block(part.suite_name, part.backbone, spec, ())
    stated = _stated(paper, experiment.id, part.paper_row)
    where = "" if part.suite_name == home else f", {spec.get('title') or part.suite_name}"

    def row(
        title: str, entry: Mapping[str, Any], theirs: str, facts: Sequence[Any], **more: Any
    ) -> DatasetRow:
        return DatasetRow(
            title, part.task, part.suite_name, theirs, stated.get(theirs, {}), _here(entry, facts),
            not difference_reason(block), _classes(entry, facts), **more,
        )  # fmt: skip

    for name, entry in block.dataset_specs(part.task).items():
        facts = [info for one in own for info in one.facts(name, part.task)]
        title = f"{block.dataset_title(name, part.task)} ({part.task}{where})"
        notes = dict.fromkeys(note for one in own for note in one.data_notes(name, part.task))
        count = _count(own, name, part.task)
        yield row(title, entry, paper_names(block).get(name, ""), facts, n=count, notes=tuple(notes))
    validation = spec.get("validation") or {}
    if validation.get("task") == part.task:
        theirs = str((spec.get("paper") or {}).get("validation") or "")
        title = f"{validation.get('title') or validation.get('dataset')} (validation{where})"
        yield row(title, validation, theirs, [])


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
    if total := sum(images.values()):
        here |= {
            "total_size": total,
            **{f"{part}_pct": 100 * count / total for part, count in images.items()},
        }
    return here


def _classes(entry: Mapping[str, Any], facts: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Class names as they enter the prompts."""
    names = next((info["classes"] for info in facts if info.get("classes")), entry.get("classes") or ())
    prompts = entry.get("prompts") or {}
    return tuple(str(prompts.get(name, name)) for name in names)


def _count(blocks: Sequence[Block], dataset: str, task: str) -> int | None:
    """Samples of the first score that says it, of ranked rows first."""
    rows = sorted((row for block in blocks for row in block.rows), key=lambda row: not row.ranked)
    scores = (score for row in rows for key, score in row.scores.items() if key[:2] == (task, dataset))
    return next((score.n for score in scores if score.n is not None), None)


def _cells(row: DatasetRow, names: Sequence[str]) -> list[Cell]:
    cells = [Cell(row.title)]
    for name in names:
        change, absent = row.difference(name), "-" if row.suite else ""
        cells += [Cell(_text(row.stated.get(name))), Cell(_text(row.here.get(name), absent))]
        cells.append(Cell("" if change is None else f"{change:+.4g}"))
    return [*cells, Cell("-" if row.n is None else str(row.n)), Cell(", ".join(row.classes))]


def _text(value: float | None, absent: str = "") -> str:
    return absent if value is None else f"{value:.1f}".removesuffix(".0")


def _record(row: DatasetRow, names: Sequence[str]) -> dict[str, Any]:
    record: dict[str, Any] = {"suite": row.suite, "task": row.task, "dataset": row.title}
    for name in names:
        record |= {f"{name}_paper": row.stated.get(name), name: row.here.get(name)}
        record[f"{name}_difference"] = row.difference(name)
    return record | {"n": row.n, "classes": "; ".join(row.classes), "notes": "; ".join(row.notes)}
