"""Head, summary, tables and figures of the page, in the form that the template needs."""

from __future__ import annotations

import base64
import struct
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmark.report.collect import Block, Row
from benchmark.report.doubts import row_marks
from benchmark.report.html.cells import anchor, commit, section
from benchmark.report.runs import Run
from benchmark.report.tables.columns import NOTE_MARK, Cell, Column, Rendered, column_groups

if TYPE_CHECKING:
    from benchmark.report.figures import Picture

_PACKAGES = ("torch", "open_clip_torch", "transformers", "timm", "peft")
_WIDE, _WIDEST = 11, 20
Links = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class RowView:
    """A row of an HTML table: its cells, each with its column and what to sort it by, links to its runs, marks."""

    cells: Sequence[tuple[Column, Cell, float | None]]
    links: Links = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class PartView:
    """One HTML table; ``references`` are rows at its foot that are never sorted."""

    columns: Sequence[Column]
    rows: Sequence[RowView]
    references: Sequence[RowView] = ()
    caption: str = ""

    @property
    def groups(self) -> list[tuple[str, int]]:
        """Heads above the heads, with the number of their columns."""
        return column_groups(self.columns)

    @property
    def has_groups(self) -> bool:
        """Whether any column has a head above its own."""
        return any(title for title, _ in self.groups)

    @property
    def width(self) -> str:
        """How small the type must be for the table to fit on paper."""
        count = len(self.columns)
        return "widest" if count > _WIDEST else "wide" if count > _WIDE else ""


@dataclass(frozen=True)
class TableView:
    """One rendered table with its costs, notes and doubts."""

    anchor: str
    title: str
    is_main: bool
    scores: PartView
    costs: PartView
    notes: tuple[str, ...]
    doubts: tuple[str, ...]
    words: tuple[str, ...]


@dataclass(frozen=True)
class Image:
    """A figure inside the page, with its size in pixels; ``place`` is the block, ``short`` the title without it."""

    anchor: str
    place: str
    title: str
    short: str
    caption: str
    alt: str
    source: str
    width: int
    height: int


def table_view(item: Rendered, name: str, anchors: Collection[str]) -> TableView:
    """Return a table; rows link to those of their runs that have a part in the page."""
    # tables of datasets have no methods
    rows: Sequence[Row | None] = item.block.rows or [None] * len(item.rows)
    return TableView(
        anchor=name,
        title=item.heading,
        is_main=item.block.experiment is None,
        scores=PartView(
            item.columns,
            [
                _row(item.columns, cells, row, _links(row, anchors))
                for row, cells in zip(rows, item.rows, strict=True)
            ],
            [_row(item.columns, cells) for cells in item.references],
            item.caption,
        ),
        costs=PartView(
            item.costs.columns,
            [_row(item.costs.columns, cells, row) for row, cells in zip(rows, item.costs.rows, strict=False)],
            caption=item.costs.caption,
        ),
        notes=tuple(f"{NOTE_MARK} {note}" for note in item.notes),
        doubts=tuple(f"{NOTE_MARK} {doubt}" for doubt in item.doubts),
        words=item.words,
    )


def image(picture: Picture) -> Image:
    """Return a picture as part of the page."""
    place = picture.place
    data = picture.png.read_bytes()
    width, height = struct.unpack(">II", data[16:24])  # the first chunk of a PNG
    return Image(
        anchor=picture.png.stem,
        place=place,
        title=picture.title,
        short=picture.title.removesuffix(f": {place}"),
        caption=picture.caption,
        alt=f"{picture.title}. {picture.caption}",
        source=f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}",
        width=width,
        height=height,
    )


def subject(blocks: Sequence[Block]) -> str:
    """What the page is about: the suites with their backbones."""
    backbones: dict[str, list[str]] = {}
    for block in blocks:
        backbones.setdefault(str(block.spec.get("title") or block.suite), []).append(block.backbone)
    return "; ".join(f"{title}, backbone {_listed(names)}" for title, names in backbones.items())


def facts(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """What was run, when, with what and on what: all that the runs' provenance tells, no names of hosts."""
    records = [run.provenance for run in runs]
    dates = sorted(
        str(record["created"]).replace("T", " ")[:16] for record in records if record.get("created")
    )
    found = {
        "Suites": [run.suite for run in runs],
        "Backbones": [run.backbone for run in runs],
        "Methods": [run.cell for run in runs],
        "Seeds": sorted({run.seed for run in runs}, key=lambda seed: (len(seed), seed)),
        "Tasks": [name for run in runs for name in run.tasks],
        "Program": [_program(run) for run in runs],
        "Software": [_software(record) for record in records],
        "Machine": [_machine(section(record, "hardware")) for record in records],
        "Device": [str(run.config.get("device") or "") for run in runs],
    }
    lines = {name: "; ".join(filter(None, dict.fromkeys(values))) for name, values in found.items()}
    lines["Time"] = " to ".join(dict.fromkeys(dates[:1] + dates[-1:])) + " UTC" if dates else ""
    return [(name, text) for name, text in lines.items() if text]


def summary(runs: Sequence[Run]) -> str:
    """How many runs there are and how they ended."""
    status = Counter(run.status for run in runs)
    return f"{len(runs)} runs: " + ", ".join(f"{count} {name}" for name, count in status.items()) + "."


def _row(
    columns: Sequence[Column], cells: Sequence[Cell], row: Row | None = None, links: Links = ()
) -> RowView:
    keys = [_sort_key(column, cell, row) for column, cell in zip(columns, cells, strict=True)]
    marks = row_marks(row) if row is not None and not row.missing else []
    return RowView(list(zip(columns, cells, keys, strict=True)), links, tuple(marks))


def _sort_key(column: Column, cell: Cell, row: Row | None) -> float | None:
    """The number behind a cell, as exact as it is known; None for text."""
    if column.role in ("method", "switch"):
        return None
    if row is not None and column.role == "measured" and column.key in row.scores:
        return row.scores[column.key].value
    if row is not None and column.role == "cost":
        return row.efficiency.get(column.metric)
    try:
        return float(cell.text)
    except ValueError:
        return None


def _links(row: Row | None, anchors: Collection[str]) -> Links:
    if row is None:
        return ()
    runs = sorted((*row.runs, *row.left_out), key=lambda run: (len(run.seed), run.seed))
    return tuple((run.seed, anchor(run)) for run in runs if anchor(run) in anchors)


def _program(run: Run) -> str:
    program = section(run.provenance, "program")
    named = " ".join(str(program[key]) for key in ("name", "version") if program.get(key))
    return ", commit ".join(part for part in (named, commit(run)) if part)


def _software(record: Mapping[str, Any]) -> str:
    packages = section(record, "packages")
    python = [f"Python {record['python']}"] if record.get("python") else []
    return ", ".join(python + [f"{name} {packages[name]}" for name in _PACKAGES if packages.get(name)])


def _machine(hardware: Mapping[str, Any]) -> str:
    gpus = [str(name) for name in hardware.get("gpus") or ()]
    units = {"cpu": "{}", "cores": "{} cores", "memory_gib": "{} GiB"}
    parts = [form.format(hardware[key]) for key, form in units.items() if hardware.get(key)]
    counts = [f"{count} x {name}" for name, count in Counter(gpus).items()]
    return ", ".join([*parts, *(counts or ["no GPU"])]) if parts or gpus else ""


def _listed(names: Iterable[str]) -> str:
    return ", ".join(dict.fromkeys(names))
