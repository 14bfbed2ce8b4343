"""Two processes that work on one cell together, for tests: started once, they run any function in both."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmark.world import World

PATIENCE = 280.0
"""Seconds until a pair that does not answer counts as hanging."""


class Pair:
    """Both ends of the connections to the two processes."""

    def __init__(self, connections: list[Connection]) -> None:
        self.connections = connections

    def __call__(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what a function of a module gives in both, called with the processes and ``args``.

        What it raises is told to the other process, and stands for its result.
        """
        for connection in self.connections:
            connection.send((function, args))
        for connection in self.connections:
            assert connection.poll(PATIENCE), "the processes wait for each other"
        return [connection.recv() for connection in self.connections]


@contextmanager
def pair(folder: Path) -> Iterator[Pair]:
    """Start two processes that find each other by a file in ``folder``."""
    # both are forks of a process that has imported what they need, once, and has done nothing else
    context = get_context("forkserver")
    context.set_forkserver_preload(
        [
            "tests.run.training.test_distributed",
            "tests.run.engines.test_torchrun",
            "benchmark.run.training.distributed",
            "open_clip",
            "peft",
        ]
    )
    ours, theirs = zip(*(context.Pipe() for _ in range(2)), strict=True)
    processes = [
        context.Process(target=_serve, args=(rank, folder / "meeting", theirs[rank]), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    try:
        yield Pair(list(ours))
    finally:
        for connection in ours:
            connection.send(None)
        for process in processes:
            process.join(10.0)
            process.kill()


def _serve(rank: int, file: Path, connection: Connection) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    import torch

    from benchmark.run.training.distributed import ProcessGroup

    torch.set_num_threads(1)
    world = ProcessGroup(rank=rank, size=2, init_method=f"file://{file}")
    while (request := connection.recv()) is not None:
        connection.send(_answer(world, *request))
    world.leave()


def _answer(world: World, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    try:
        made = function(world, *args)
        world.wait()
    except BaseException as error:
        try:
            world.tell(error)
        except BaseException as other:
            error = other
        if os.environ.get("SHOW_PAIR"):
            traceback.print_exception(error)
        return error
    return made
