"""Copy the adapter of a cell to a folder of its own, in the layout of Hugging Face peft."""

from __future__ import annotations

import argparse

from benchmark.cli._parser import ArgumentParser
from benchmark.console import Console
from benchmark.errors import ConfigError
from benchmark.files import user_path


def add_arguments(parser: ArgumentParser) -> None:
    """Add the flags."""
    parser.add_argument("cell", nargs="?", help="folder of a cell: runs/<suite>/<backbone>/<method>/seed-<n>")
    parser.add_argument("--to", help="folder to write; it must be new or empty")


def main(args: argparse.Namespace, console: Console) -> int:
    """Export one adapter.

    Raises:
        ConfigError: no cell or no target is named.
        StoreError: there is nothing to export, or the target cannot be written.
    """
    problems = [f"export-adapter takes no '{word}', only flags" for word in args.overrides]
    problems += [] if args.cell else ["say which cell: runs/<suite>/<backbone>/<method>/seed-<n>"]
    problems += [] if args.to else ["--to: say where the folder goes"]
    if problems:
        raise ConfigError(problems)
    from benchmark.run.adapters import export_adapter

    target = user_path(args.to)
    export_adapter(user_path(args.cell), target)
    console.line(
        f"{target}: load it with PeftModel.from_pretrained after backbone.split_qkv() (docs/adapters.md)"
    )
    return 0
