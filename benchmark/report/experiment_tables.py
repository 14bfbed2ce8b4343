"""Builds the rows of a table or figure of the paper from the store.

An experiment is resolved on each suite and backbone of the store by `benchmark.config.experiments.resolve`, as a
run does it; rows whose cells are not in the store, or cannot be run here, stay in as rows that say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from benchmark.config.experiments import Experiment, ResolvedRow, read_suite, resolve
from benchmark.files import COMMAND
from benchmark.report.agreement import comparable
from benchmark.report.collect import method_titles, other_backbone
from benchmark.report.model import NOT_RUN, Block, Row, Score, declared_metrics
from benchmark.report.paper import PaperTables

MAIN = "1"
"""Id of the table of all methods."""
Known = Mapping[tuple[str, str, str], Row]
"""Suite, backbone and cell -> row."""


def experiment_blocks(
    experiments: Sequence[Experiment],
    blocks: Sequence[Block],
    *,
    anchors: Sequence[Block] | None = None,
    complete: bool = False,
) -> list[Block]:
    """Return experiments as blocks, in their order; the table of all methods is left out.

    Args:
        experiments: which ones.
        blocks: all main blocks of the store.
        anchors: those of the blocks on whose suite and backbone experiments are made; all if left out.
        complete: only experiments whose cells are all in the store; otherwise each at least once, on the suite and
            backbone of which most rows were run.
    """
    known = {
        (block.suite, block.backbone, row.cell): row
        for block in blocks
        for row in (*block.rows, *block.variants)
    }
    chosen = blocks if anchors is None else anchors
    return [
        view
        for experiment in experiments
        if experiment.id != MAIN
        for view in _chosen([_view(experiment, block, blocks, known) for block in chosen], complete)
    ]


def with_papers_rows(experiments: Sequence[Experiment], block: Block, paper: PaperTables) -> Block:
    """Add the rows of the paper's main table that were not run, where the suite stands for it."""
    main = next((experiment for experiment in experiments if experiment.id == MAIN), None)
    if main is None or f"table_{MAIN}" not in (block.spec.get("paper") or {}):
        return block
    there = {row.cell for row in block.rows}
    resolved = [row for row in resolve(main, block.spec, block.backbone) if row.cell not in there]
    lacking = [replace(row, title=method_titles(row.method)[0]) for row in resolved]
    rows = [*block.rows, *(_row(row, block.backbone, {}) for row in lacking)]
    order = {title: rank for rank, title in enumerate(paper.methods(MAIN))}
    rows.sort(key=lambda row: order.get(row.paper_row, len(order)))
    return replace(block, rows=tuple(rows), command=_command(main, block, block.rows))


def is_complete(view: Block) -> bool:
    """Whether all rows on its backbone that can be run here have been, each shown task among them.

    Rows of other models, whose weights are downloads of their own, may be lacking.
    """
    own = [row for row in view.rows if row.missing in ("", NOT_RUN) and not row.difference and not row.place]
    measured = {key[0] for row in own for key in row.scores}
    tasks = set(view.experiment.tasks if view.experiment else ())
    return bool(own) and all(not row.missing for row in own) and tasks <= measured


def suite_spec(suite: str, blocks: Sequence[Block]) -> Mapping[str, Any]:
    """The suite as runs of the store have it, else as its file has it."""
    specs = (block.spec for block in blocks if block.suite == suite)
    return next(specs, None) or read_suite(suite) or {}


def _chosen(views: Sequence[Block], complete: bool) -> list[Block]:
    """Leave out repeats, and views of which less has been run than of others."""
    unique: dict[tuple[object, ...], Block] = {}
    for view in views:
        unique.setdefault((view.suite, view.backbone, *((row.cell, row.title) for row in view.rows)), view)
    whole = [view for view in unique.values() if is_complete(view)]
    if whole or complete or not unique:
        return whole
    # max takes the first of equals: the first suite and backbone of the store
    return [max(unique.values(), key=lambda view: sum(bool(row.scores) for row in view.rows))]


def _view(experiment: Experiment, anchor: Block, blocks: Sequence[Block], known: Known) -> Block:
    """Resolve an experiment on the suite and backbone of a block."""
    resolved = resolve(experiment, anchor.spec, anchor.backbone)
    own = [row for row in resolved if not row.reason]
    homely = [row for row in own if row.backbone == anchor.backbone] or own
    suite, backbone = next(
        ((row.suite_name, row.backbone) for row in homely), (anchor.suite, anchor.backbone)
    )
    rows = {row.title: _row(row, backbone, known) for row in resolved if not row.difference}
    # rows of several suites and backbones meet here
    kept = comparable([_shown(row, experiment) for row in rows.values()], anchor.baseline)
    rows = dict(zip(rows, kept, strict=True))
    ordered = [_difference(row, rows) if row.difference else rows[row.title] for row in resolved]
    home = next((block for block in blocks if (block.suite, block.backbone) == (suite, backbone)), None)
    return Block(
        suite=suite,
        backbone=backbone,
        spec=suite_spec(suite, blocks) if own else {},
        rows=tuple(ordered),
        ceiling=home.ceiling if home else None,
        experiment=experiment,
        beside=(*home.rows, *home.variants) if home else (),
        command=_command(experiment, anchor, anchor.rows),
        unlike=_unlike(experiment, anchor, resolved),
        baseline=anchor.baseline,
        smallest=anchor.smallest,
    )


def _unlike(experiment: Experiment, anchor: Block, resolved: Sequence[ResolvedRow]) -> str:
    """Why the paper's numbers do not apply: rows that stand on another backbone than the suite's own would."""
    reason = other_backbone(anchor.spec, anchor.backbone)
    usual = resolve(experiment, anchor.spec, str(anchor.spec["backbone"])) if reason else resolved
    same = [row.backbone for row in usual] == [row.backbone for row in resolved]
    return "" if same else reason


def _row(row: ResolvedRow, backbone: str, known: Known) -> Row:
    place = row.backbone if row.backbone != backbone else ""
    here = known.get((row.suite_name, row.backbone, row.cell)) if not row.reason else None
    if here is not None:
        return replace(here, title=row.title, paper_row=row.paper_row, place=place)
    missing = row.reason or NOT_RUN
    absent = Row(row.method, row.title, row.paper_row, ranked=False, variant=row.variant)
    return replace(absent, place=place, missing=missing)


def _shown(row: Row, experiment: Experiment) -> Row:
    """Keep the scores that the experiment shows, with those that stand below them for reference."""
    wanted = set()
    for task, names in experiment.tasks.items():
        declared = declared_metrics(task, row.runs)
        held = (other for name in names if name in declared for other in declared[name].references)
        wanted |= {(task, name) for name in (*names, *held)}
    scores = {key: score for key, score in row.scores.items() if (key[0], key[2]) in wanted}
    return replace(row, scores=scores)


def _difference(row: ResolvedRow, rows: Mapping[str, Row]) -> Row:
    """The row that shows one row minus another."""
    assert row.difference is not None
    first, second = (rows[title] for title in row.difference)
    scores = {
        key: Score(first.scores[key].value - second.scores[key].value, n=score.n)
        for key, score in first.scores.items()
        if key in second.scores
    }
    missing = next((side.missing for side in (first, second) if side.missing), "")
    return Row(
        "", row.title, row.paper_row, scores=scores, ranked=False, missing=missing, difference=row.difference
    )


def _command(experiment: Experiment, anchor: Block, rows: Sequence[Row]) -> str:
    """What runs the experiment's cells beside those that are there: same suite, backbone and seeds."""
    seeds = {run.seed for row in rows for run in row.runs if run.limit is None}
    words = [COMMAND, f"--config {experiment.source}", f"--suite {anchor.suite}"]
    if anchor.backbone != anchor.spec.get("backbone"):
        words.append(f"--backbone {anchor.backbone}")
    if seeds:
        words.append(f"--seeds {','.join(sorted(seeds, key=lambda seed: (len(seed), seed)))}")
    return " ".join(words)
