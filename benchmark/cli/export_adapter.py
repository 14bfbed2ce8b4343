"""Copy the adapter of a cell to a folder of its own, in the layout of Hugging Face peft."""

from __future__ import annotations

import argparse

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console
from benchmark.files import user_path

CELL = "runs/<suite>/<backbone>/<method>/seed-<n>"

BEGINS = "reading the adapter ..."


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_needed("cell", f"say which cell: {CELL}", f"folder of a cell: {CELL}")
    parser.add_needed("--to", "--to: say where the folder goes", "folder to write; it must be new or empty")


def main(args: argparse.Namespace, console: Console) -> int:
    """Export one adapter.

    Raises:
        StoreError: there is nothing to export, or the target cannot be written.
    """
    from benchmark.run.adapters import export_adapter  # loads torch

    target = user_path(args.to)
    export_adapter(user_path(args.cell), target)
    console.line(
        f"{target}: load it with PeftModel.from_pretrained after backbone.split_qkv() (docs/adapters.md)"
    )
    return 0
