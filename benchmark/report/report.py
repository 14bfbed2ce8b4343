"""Tables, figures and one HTML page from the result store; nothing here trains or evaluates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from benchmark.config.experiments import experiments
from benchmark.errors import ConfigError, StoreError, unknown
from benchmark.files import write_whole
from benchmark.report.collect import SMALLEST_DIFFERENCE, Block, collect_blocks
from benchmark.report.experiment_tables import MAIN, experiment_blocks, with_papers_rows
from benchmark.report.paper import PaperTables, load_paper
from benchmark.report.tables.columns import Rendered
from benchmark.report.tables.datasets import DatasetTable, dataset_frame, dataset_tables, render_datasets
from benchmark.report.tables.formats import latex, markdown, terminal
from benchmark.report.tables.numbers import efficiency_frame, table_frame
from benchmark.report.tables.render import render_block

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import RenderableType

FORMATS = ("md", "tex", "csv", "html")
ALL = "all"


@dataclass(frozen=True)
class Report:
    """What is reported of a store, read once.

    Attributes:
        blocks: the main blocks, with all runs of the store (of a suite).
        views: blocks whose tables are shown: main ones first, then experiments.
        datasets: tables of datasets.
        paper: the paper's numbers.
        folder: where files go.
    """

    blocks: tuple[Block, ...]
    views: tuple[Block, ...]
    datasets: tuple[DatasetTable, ...]
    paper: PaperTables
    folder: Path

    @cached_property
    def rendered(self) -> list[Rendered]:
        """All tables as text."""
        return [
            *(render_block(view, self.paper) for view in self.views),
            *map(render_datasets, self.datasets),
        ]

    def frames(self) -> dict[str, pd.DataFrame]:
        """Table id -> its numbers."""
        groups: dict[str, list[Block]] = {}
        for view in self.views:
            groups.setdefault(view.table, []).append(view)
        frames = {name: table_frame(views, self.paper) for name, views in groups.items()}
        tables: dict[str, list[DatasetTable]] = {}
        for table in self.datasets:
            tables.setdefault(table.block.table, []).append(table)
        return frames | {name: dataset_frame(found) for name, found in tables.items()}

    def write(self, formats: Sequence[str] = FORMATS) -> list[Path]:
        """Write tables, efficiency.csv, figures and index.html; return the files.

        Raises:
            ConfigError: a format is not known.
        """
        problems = [unknown("format", item, FORMATS) for item in formats if item not in FORMATS]
        if problems:
            raise ConfigError(problems)
        written = [_write(self.folder / name, text) for name, text in self._texts(formats).items()]
        if "html" not in formats:
            return written
        # Imported here: the final screen of a run needs no matplotlib.
        from benchmark.report.figures import write_figures
        from benchmark.report.html import page

        pictures = write_figures(self.blocks, self.folder)
        index = _write(self.folder / "index.html", page(self.blocks, self.rendered, pictures))
        return [*written, *(path for picture in pictures for path in picture.files), index]

    def console(self) -> RenderableType:
        """The tables with scores, for ``rich``: intervals, trainable parameters, step time, what differs."""
        return terminal([item for item in self.rendered if any(row.scores for row in item.block.rows)])

    def _texts(self, formats: Sequence[str]) -> dict[str, str]:
        """File name -> content of everything but the page and its figures."""
        texts: dict[str, str] = {}
        for name in dict.fromkeys(item.table for item in self.rendered):
            parts = [item for item in self.rendered if item.table == name]
            texts |= {f"{_stem(name)}.md": markdown(parts)} if "md" in formats else {}
            texts |= {f"{_stem(name)}.tex": latex(parts)} if "tex" in formats else {}
        if "csv" in formats:
            texts |= {
                f"{_stem(name)}.csv": frame.to_csv(index=False) for name, frame in self.frames().items()
            }
            texts["efficiency.csv"] = efficiency_frame(self.blocks).to_csv(index=False)
        return texts


def read_report(
    output_dir: Path,
    *,
    suite: str | None = None,
    tables: Sequence[str] | None = None,
    baseline: str | None = None,
    smallest: float = SMALLEST_DIFFERENCE,
) -> Report:
    """Read a store and choose the tables that are shown.

    Args:
        output_dir: folder of the store.
        suite: only this suite (its experiments may have rows of related ones); all of them if left out.
        tables: ids such as "5" or "A.3", or "all"; if left out, the table of all methods and every experiment whose
            cells are all in the store.
        baseline: method (or variant, ``<method>+<variant>``) that the others are tested against.
        smallest: difference of two scores that matters, as a fraction.

    Raises:
        ConfigError: a table or the baseline is not known.
        StoreError: the store has no runs (of this suite).
    """
    wanted = _table_ids(tables)
    paper = load_paper()
    everything = collect_blocks(output_dir, paper, baseline=baseline, smallest=smallest)
    own = [block for block in everything if suite in (None, block.suite)]
    if not own:
        named = f" of suite '{suite}'" if suite else ""
        raise StoreError(
            f"{output_dir}: no runs{named} to report. Run the benchmark with this --output-dir first"
        )
    _check_baseline(baseline, own)
    blocks = tuple(with_papers_rows(block, paper) for block in own)
    main = [block for block in blocks if block.rows and (wanted is None or MAIN in wanted)]
    views = experiment_blocks(everything, anchors=own, complete=wanted is None)
    datasets = [] if wanted is None else dataset_tables(everything, own, paper)
    return Report(
        blocks=blocks,
        views=(*main, *(view for view in views if wanted is None or view.table in wanted)),
        datasets=tuple(table for table in datasets if wanted and table.block.table in wanted),
        paper=paper,
        folder=output_dir / "report",
    )


def write_report(
    output_dir: Path,
    *,
    suite: str | None = None,
    tables: Sequence[str] | None = None,
    formats: Sequence[str] = FORMATS,
    baseline: str | None = None,
) -> list[Path]:
    """Write ``<output_dir>/report/`` and return the files; arguments and errors as of `read_report` and `write`."""
    return read_report(output_dir, suite=suite, tables=tables, baseline=baseline).write(formats)


def _table_ids(tables: Sequence[str] | None) -> frozenset[str] | None:
    """Ids of the tables that are wanted, spelt as in their files; None: those that are complete."""
    if tables is None:
        return None
    known = {_plain(one.id): one.id for one in experiments() if one.kind in ("table", "datasets")}
    known.setdefault(MAIN, MAIN)
    names = [name for name in tables if name.lower() != ALL]
    problems = [unknown("table", name, [ALL, *known]) for name in names if _plain(name) not in known]
    if problems:
        raise ConfigError(problems)
    return frozenset(known.values() if len(names) < len(tables) else (known[_plain(name)] for name in names))


def _plain(name: str) -> str:
    """Table id without its dot and in one spelling: "a.3" -> "A3"."""
    return name.replace(".", "").upper()


def _stem(table: str) -> str:
    return f"table_{table.replace('.', '')}"


def _check_baseline(baseline: str | None, blocks: Sequence[Block]) -> None:
    cells = {row.cell for block in blocks for row in (*block.rows, *block.variants)}
    if baseline is not None and baseline not in cells:
        raise ConfigError(f"--baseline: {unknown('method', baseline, cells)}")


def _write(path: Path, text: str) -> Path:
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
