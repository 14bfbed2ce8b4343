"""Tables, figures and one HTML page from the result store; nothing here trains or evaluates."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from benchmark.config.experiments import Experiment, experiments
from benchmark.console import NullReporter, Reporter
from benchmark.errors import ConfigError, StoreError, unknown
from benchmark.files import COMMAND, csv_cell, write_whole
from benchmark.report.collect import collect_blocks
from benchmark.report.experiment_tables import MAIN, experiment_blocks, with_papers_rows
from benchmark.report.few_rows import only_few
from benchmark.report.figures import write_figures
from benchmark.report.html import page
from benchmark.report.model import SMALLEST_DIFFERENCE, Block
from benchmark.report.paper import PaperTables, load_paper
from benchmark.report.significance.decision import decide
from benchmark.report.tables.datasets import dataset_tables
from benchmark.report.tables.fewshot import fewshot_tables
from benchmark.report.tables.formats import latex, markdown
from benchmark.report.tables.render import efficiency_frame, render_block
from benchmark.report.tables.screen import Screen
from benchmark.report.tables.table import Table

FORMATS = ("md", "tex", "csv", "html")
ALL = "all"


@dataclass(frozen=True)
class Report:
    """What is reported of a store, read once.

    Attributes:
        blocks: the main blocks, with all runs of the store (of a suite).
        views: blocks whose tables are shown: main ones first, then experiments.
        curves: blocks of experiments that are figures.
        datasets: tables of few-shot runs, and of datasets.
        paper: the paper's numbers.
        folder: where files go.
    """

    blocks: Sequence[Block]
    views: Sequence[Block]
    curves: Sequence[Block]
    datasets: Sequence[Table]
    paper: PaperTables
    folder: Path

    @cached_property
    def rendered(self) -> list[Table]:
        """All tables."""
        return [*(render_block(view, self.paper) for view in self.views), *self.datasets]

    def frames(self) -> dict[str, pd.DataFrame]:
        """Table id -> its numbers; columns as in results/README.md."""
        frames = {}
        for name, tables in self._by_id().items():
            frame = pd.DataFrame([dict(record) for table in tables for record in table.records])
            counts = [column for column in frame.columns if column.endswith("_n")]
            frames[name] = frame.astype(dict.fromkeys(counts, "Int64"))
        return frames

    def write(self, formats: Sequence[str] = FORMATS, reporter: Reporter | None = None) -> list[Path]:
        """Write tables, efficiency.csv, figures and index.html; return the files.

        Args:
            formats: some of `FORMATS`; figures belong to html.
            reporter: told how far it is.

        Raises:
            ConfigError: a format is not known.
        """
        if problems := [unknown("format", item, FORMATS) for item in formats if item not in FORMATS]:
            raise ConfigError(problems)
        texts, reporter = dict[str, str](), reporter or NullReporter()
        reporter.start("tables", len(self.rendered))
        for name, tables in self._by_id().items():
            reporter.advance(len(tables))
            texts |= {f"{_stem(name)}.md": markdown(tables)} if "md" in formats else {}
            texts |= {f"{_stem(name)}.tex": latex(tables)} if "tex" in formats else {}
        if "csv" in formats:
            frames = {_stem(name): frame for name, frame in self.frames().items()}
            frames["efficiency"] = efficiency_frame(self.blocks)
            texts |= {
                f"{name}.csv": frame.map(csv_cell).to_csv(index=False) for name, frame in frames.items()
            }
        written = [_write(self.folder / name, text) for name, text in texts.items()]
        if "html" not in formats:
            return written
        pictures = write_figures(self.blocks, self.curves, self.folder, reporter)
        index = _write(self.folder / "index.html", page(self.blocks, self.rendered, pictures))
        return [*written, *(path for picture in pictures for path in picture.files), index]

    def console(self, command: str = "") -> Screen:
        """The last screen, for ``rich``: scores, verdicts, doubts, the page, and the ``command`` to type next."""
        index = self.folder / "index.html"
        return Screen(self.rendered, str(index) if index.is_file() else "", command or self.next_command())

    def ran_once(self) -> bool:
        """Whether a method that varies over seeds was run with one alone, in the tables of all methods."""
        found = (decide(block) for block in self.blocks)
        return any(one.tests.ran_once(one.keys) for one in found)

    def next_command(self) -> str:
        """A comparison of the first method with the next one or the baseline; empty with fewer than two."""
        for decision in (table.decision for table in self.rendered if table.decision is not None):
            if decision.standings:
                rows = [decision.standings[0].row, decision.base or decision.standings[1].row]
                names = " ".join(shlex.quote(row.cell) for row in rows)
                return f"{COMMAND} compare {names} --output-dir {shlex.quote(str(self.folder.parent))}"
        return ""

    def _by_id(self) -> dict[str, list[Table]]:
        groups: dict[str, list[Table]] = {}
        for table in self.rendered:
            groups.setdefault(table.table, []).append(table)
        return groups


def read_report(
    output_dir: Path,
    *,
    suite: str | None = None,
    tables: Sequence[str] | None = None,
    baseline: str | None = None,
    smallest: float = SMALLEST_DIFFERENCE,
    more: Sequence[Experiment] = (),
) -> Report:
    """Read a store and choose the tables that are shown.

    Args:
        output_dir: folder of the store.
        suite: only this suite (its experiments may have rows of related ones); all of them if left out.
        tables: ids such as "5" or "A.3", or "all"; if left out, the table of all methods and every experiment whose
            cells are all in the store.
        baseline: method (or variant, ``<method>+<variant>``) that the others are tested against.
        smallest: difference of two scores that matters, as a fraction.
        more: experiments beside those of ``configs/experiments/``; one of the same name takes the place of the other.

    Raises:
        ConfigError: a table or the baseline is not known.
        StoreError: the store has no runs (of this suite).
    """
    known = list({one.name: one for one in (*experiments(), *more)}.values())
    wanted, paper = _table_ids(tables, known), load_paper()
    everything = collect_blocks(output_dir, paper, baseline=baseline, smallest=smallest)
    own = [block for block in everything if suite in (None, block.suite)]
    if not own:
        named = f" of suite '{suite}'" if suite else ""
        raise StoreError(
            f"{output_dir}: no runs{named} to report. Run the benchmark with this --output-dir first"
        )
    cells = {row.cell for block in own for row in (*block.rows, *block.variants)}
    if baseline is not None and baseline not in cells:
        raise ConfigError(f"--baseline: {unknown('method', baseline, cells)}")
    paired = [block for block in own if not only_few(block)]
    blocks = [with_papers_rows(known, block, paper) if block in paired else block for block in own]
    shown = [one for one in known if one.kind == "table" and (wanted is None or one.id in wanted)]
    sizes = [one for one in known if wanted is not None and one.id in wanted]
    main = [block for block in blocks if block.rows and (wanted is None or MAIN in wanted)]
    return Report(
        blocks=blocks,
        views=[*main, *experiment_blocks(shown, everything, anchors=paired, complete=wanted is None)],
        curves=experiment_blocks([one for one in known if one.kind == "curve"], blocks),
        datasets=[*fewshot_tables(own), *dataset_tables(sizes, everything, own, paper)],
        paper=paper,
        folder=output_dir / "report",
    )


def _table_ids(tables: Sequence[str] | None, experiments: Sequence[Experiment]) -> frozenset[str] | None:
    """Ids of the tables that are wanted, spelt as in their files; None: those that are complete."""
    if tables is None:
        return None
    known = {_plain(one.id): one.id for one in experiments if one.kind in ("table", "datasets")} | {
        MAIN: MAIN
    }
    names = [name for name in tables if name.lower() != ALL]
    if problems := [unknown("table", name, [ALL, *known]) for name in names if _plain(name) not in known]:
        raise ConfigError(problems)
    return frozenset(known.values() if len(names) < len(tables) else (known[_plain(name)] for name in names))


def _plain(name: str) -> str:
    """Table id without its dot and in one spelling: "a.3" -> "A3"."""
    return name.replace(".", "").upper()


def _stem(table: str) -> str:
    return f"table_{table.replace('.', '')}"


def _write(path: Path, text: str) -> Path:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
