"""What the rows of a table cost: the part below the scores, from efficiency.json."""

from __future__ import annotations

from collections.abc import Callable

from benchmark.report.collect import Block, Row
from benchmark.report.tables import Cell, Column, Part, parameters_text, three_digits

Form = Callable[[float | None], str]


def _scaled(size: float) -> Form:
    def form(value: float | None) -> str:
        return "-" if value is None else three_digits(value / size)

    return form


COSTS: dict[str, tuple[str, str, Form]] = {
    "trainable_parameters": ("Trainable parameters", "all", parameters_text),
    "by_tower_image": ("Trainable parameters", "image", parameters_text),
    "by_tower_text": ("Trainable parameters", "text", parameters_text),
    "by_tower_shared": ("Trainable parameters", "both", parameters_text),
    "total_parameters": ("Parameters in total", "all", parameters_text),
    "total_parameters_by_tower_image": ("Parameters in total", "image", parameters_text),
    "total_parameters_by_tower_text": ("Parameters in total", "text", parameters_text),
    "total_parameters_by_tower_shared": ("Parameters in total", "both", parameters_text),
    "adapter_bytes": ("On disk", "adapter [kB]", _scaled(1e3)),
    "forward_flops_per_pair": ("GFLOPs per pair", "forward", _scaled(1e9)),
    "step_flops_per_pair": ("GFLOPs per pair", "training step", _scaled(1e9)),
    "step_time_p50_s": ("Training", "step [ms]", _scaled(1e-3)),
    "images_per_s": ("Training", "images/s", _scaled(1)),
    "peak_memory_bytes": ("Training", "peak memory [MB]", _scaled(1e6)),
    "inference_flops_per_image": ("Inference, GFLOPs", "per image", _scaled(1e9)),
    "inference_flops_per_text": ("Inference, GFLOPs", "per text", _scaled(1e9)),
    "inference_overhead": ("Inference FLOPs, frozen = 1", "as trained", _scaled(1)),
    "inference_overhead_merged": ("Inference FLOPs, frozen = 1", "merged", _scaled(1)),
}
"""Number of efficiency.json (nested keys joined by "_") -> group of columns, head with unit, how it is written."""
_WORDS = (
    "Costs, means over seeds. Parameters: trainable ones with the logit scale, which is in no tower; 'both' act on "
    "both towers. Training step: median time until the next one, waits for data included; peak memory of the steps: "
    "largest allocation on a GPU, largest size of the process on a CPU. Inference FLOPs, frozen = 1: of an image and a "
    "text, relative to those of the frozen backbone; merged: with the adapter written into its weights. '-': not "
    "measured, or no merged form."
)


def cost_part(block: Block) -> Part:
    """The costs of the rows of a block that were run; no columns when none was."""
    if not any(row.efficiency for row in block.rows):
        return Part()
    columns = [
        Column("cost", head, group=group, metric=key, title=group) for key, (group, head, _) in COSTS.items()
    ]
    return Part(
        columns=(Column("method", "Method"), *columns),
        rows=tuple((Cell(row.title), *map(Cell, cost_texts(row))) for row in block.rows),
        caption=" ".join([_WORDS, *_conventions(block)]),
    )


def cost_texts(row: Row) -> list[str]:
    """The costs of a row as text, in the order of `COSTS`."""
    return [form(row.efficiency.get(key)) for key, (_, _, form) in COSTS.items()]


def _conventions(block: Block) -> list[str]:
    found = [run.efficiency.get("flops_convention") for row in block.rows for run in row.runs]
    return [f"FLOPs: {text}." for text in dict.fromkeys(str(item) for item in found if item)]
