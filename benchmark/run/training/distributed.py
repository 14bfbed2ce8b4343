"""Several processes on one cell: collectives of torch.distributed, each after a meeting that exchanges failures.

Before tensors are exchanged, the processes meet: a maximum over a few integers, on the CPU. A failed process brings an
error to its next meeting, so the others learn of it wherever they wait, and none hangs in a collective. Meetings have
no time limit; what follows a meeting never waits long.
"""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from benchmark.console import Stopped
from benchmark.errors import BenchmarkError, CellError
from benchmark.world import World

T = TypeVar("T")
PATIENCE = datetime.timedelta(days=7)
"""How long a process waits for another one, which may be evaluating."""
_OUT_OF_MEMORY, _STOPPED, _FAILED = 1, 2, 3
_KNOWN = "_all_processes_know"
"""Attribute of such an error. It is kept nowhere, as it holds the frames that it passed, with all their tensors."""


class LostError(BenchmarkError):
    """Another process of the run has ended, so this one cannot continue."""


class ProcessGroup(World):
    """The processes that torchrun started: tensors on a GPU travel by NCCL, those on the CPU, and meetings, by gloo.

    Args:
        rank, size: this process and how many there are; None: as the environment says.
        init_method: where they find each other, as torch.distributed takes it.
    """

    def __init__(
        self, *, rank: int | None = None, size: int | None = None, init_method: str = "env://"
    ) -> None:
        gpus = torch.cuda.is_available() and dist.is_nccl_available()
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if gpus else "gloo",
            init_method=init_method,
            rank=int(os.environ["RANK"]) if rank is None else rank,
            world_size=int(os.environ["WORLD_SIZE"]) if size is None else size,
            timeout=PATIENCE,
        )
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def leave(self) -> None:
        """End the exchange."""
        dist.destroy_process_group()

    # ------------------------------------------------------------------ shares
    def part(self, count: int) -> slice:
        """Return this process's share of ``count`` rows."""
        return self._part(count, self.rank)

    def _part(self, count: int, rank: int) -> slice:
        return slice(rank * count // self.size, (rank + 1) * count // self.size)

    # ------------------------------------------------------------------ tensors
    def gather(self, rows: Sequence[Tensor], count: int | None = None) -> list[Tensor]:
        """Return the rows of all processes.

        Raises:
            CellError: the processes bring tensors of different shapes.
        """
        counts = [len(rows[0])] * self.size
        if count is not None:
            counts = [part.stop - part.start for part in (self._part(count, i) for i in range(self.size))]
        shapes = repr([(tuple(value.shape[1:]), value.dtype) for value in rows])
        if not self._meet(place=_checksum(f"{counts} {shapes}")):
            raise CellError(
                f"the processes' embeddings have different shapes (here {shapes}), so they cannot be joined: "
                "set recipe.negatives=local, or run one process"
            )
        gathered: list[Tensor | None] = [None] * len(rows)
        # values of a kind travel together
        kinds = [(value.dtype, value.requires_grad) for value in rows]
        for kind in dict.fromkeys(kinds):
            indices = [i for i, other in enumerate(kinds) if other == kind]
            flat = [rows[i].reshape(len(rows[i]), -1) for i in indices]
            joined: Tensor = _Gathered.apply(torch.cat(flat, dim=1), self.rank, counts)
            for i, value in zip(indices, joined.split([part.shape[1] for part in flat], dim=1), strict=True):
                gathered[i] = value.reshape(-1, *rows[i].shape[1:])
        return [value for value in gathered if value is not None]

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor."""
        self._meet()
        total = value.detach().clone()
        dist.all_reduce(total)
        return total / self.size

    def mean_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean; those of one type travel as one."""
        trained = list(parameters)
        have = bytes(parameter.grad is not None for parameter in trained)
        if not self._meet(place=zlib.crc32(have)):
            _fill(trained, have)
        gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
        for dtype in dict.fromkeys(gradient.dtype for gradient in gradients):
            own = [gradient for gradient in gradients if gradient.dtype == dtype]
            flat = torch.cat([gradient.reshape(-1) for gradient in own])
            dist.all_reduce(flat)
            flat /= self.size
            means = flat.split([gradient.numel() for gradient in own])
            torch._foreach_copy_(
                own, [mean.view_as(gradient) for mean, gradient in zip(means, own, strict=True)]
            )

    @torch.no_grad()
    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors the first process's values."""
        self._meet()
        for tensor in tensors:
            value = tensor.detach().contiguous()
            dist.broadcast(value, 0)
            tensor.copy_(value)

    # ------------------------------------------------------------------ plain objects, waiting
    def from_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives in the first process."""
        made: list[Any] = [make() if self.is_first else None]
        self._meet()
        dist.broadcast_object_list(made, src=0, device=torch.device("cpu"))
        value: T = made[0]
        return value

    def wait(self) -> None:
        """Return once all processes are here."""
        self._meet()

    # ------------------------------------------------------------------ random numbers
    @contextlib.contextmanager
    def own_draws(self, step: int) -> Iterator[None]:
        """Draw this process's random numbers; they follow from seed, step and rank, so a resumed run draws the same."""
        seeds = np.random.SeedSequence([torch.initial_seed() % 2**63, step, self.rank])
        gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(int(seeds.generate_state(1, np.uint64)[0]) % 2**63)
            yield

    # ------------------------------------------------------------------ failures
    def tell(self, error: BaseException) -> None:
        """Tell the others at the meeting that they wait at, or come to next."""
        if not any(hasattr(one, _KNOWN) for one in _chain(error)):
            self._meet(error)
            _known(error)

    def _meet(self, error: BaseException | None = None, place: int = 0) -> bool:
        """Meet the other processes, with an error or without.

        Args:
            error: what happened to this process.
            place: what has to be alike, as a number.

        Returns:
            Whether ``place`` is the same in all processes.

        Raises:
            BaseException: what happened to another process: the worst, of the first one that it happened to.
            LostError: a process is gone.
        """
        kind = 0 if error is None else _kind(error)
        message = kind * (self.size + 1) + self.size - self.rank if kind else 0
        flags = torch.tensor([message, place, -place])
        try:
            dist.all_reduce(flags, dist.ReduceOp.MAX)
            worst, highest, lowest = flags.tolist()
            if worst:
                self._hear(error, *divmod(worst, self.size + 1))
        except RuntimeError as lost:
            if isinstance(lost, torch.OutOfMemoryError):
                raise
            raise _known(
                LostError("another process of this run has ended; the same command goes on")
            ) from lost
        return bool(highest == -lowest)

    def _hear(self, own: BaseException | None, kind: int, place: int) -> None:
        told = [None if own is None else _line(own)]
        dist.broadcast_object_list(told, src=self.size - place, device=torch.device("cpu"))
        if own is None or _kind(own) != kind:
            raised = {_OUT_OF_MEMORY: torch.OutOfMemoryError, _STOPPED: Stopped, _FAILED: CellError}[kind]
            raise _known(raised(told[0]))


class _Gathered(torch.autograd.Function):
    """All processes' rows. Backward needs no exchange: every process computes the same loss from them."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, rank: int, counts: list[int]) -> Tensor:
        start = sum(counts[:rank])
        ctx.rows, ctx.size = slice(start, start + counts[rank]), len(counts)
        longest = max(counts)
        if len(rows) < longest:
            rows = torch.cat([rows, rows.new_zeros(longest - len(rows), *rows.shape[1:])])
        joined = rows.new_empty(longest * len(counts), *rows.shape[1:])
        dist.all_gather_into_tensor(joined, rows.contiguous())
        if len(set(counts)) == 1:
            return joined
        starts = itertools.count(0, longest)
        return torch.cat([joined[i : i + count] for i, count in zip(starts, counts, strict=False)])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None, None]:
        # times the number of processes, which the mean over them takes back
        return ctx.size * gradients[0][ctx.rows], None, None


def _fill(trained: Sequence[Tensor], have: bytes) -> None:
    """Give a gradient of zeros to what has one in another process only."""
    somewhere = torch.tensor(list(have), dtype=torch.uint8)
    dist.all_reduce(somewhere, dist.ReduceOp.MAX)
    for parameter, needed in zip(trained, somewhere.tolist(), strict=True):
        if needed and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def _kind(error: BaseException) -> int:
    if isinstance(error, torch.OutOfMemoryError):
        return _OUT_OF_MEMORY
    return _STOPPED if isinstance(error, KeyboardInterrupt) else _FAILED


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error, and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _known(error: BaseException) -> BaseException:
    """Return an error, marked as one that all processes know of."""
    setattr(error, _KNOWN, True)
    return error


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    plain = isinstance(error, BenchmarkError | KeyboardInterrupt | torch.OutOfMemoryError)
    return text if plain else f"{type(error).__name__}: {text}".rstrip(": ")


def _checksum(text: str) -> int:
    return zlib.crc32(text.encode())
