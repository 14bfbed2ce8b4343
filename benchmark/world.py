"""The processes that work on one cell together, and what they exchange.

``torchrun --nproc_per_node=N`` starts N processes, one per GPU (``benchmark/run/training/distributed.py``). A
process on its own exchanges nothing: :class:`World` does nothing at each of its places, so that no other code asks
how many there are. This module needs no torch, since commands that only plan read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


class World:
    """The processes of a cell. This class stands for a process on its own; its subclass for several.

    All processes call the same methods in the same order. One that fails calls :meth:`tell` instead; the others
    learn it in the call in which they wait, as an error with the same text, and all go on from there.

    Attributes:
        rank: number of this process. size: number of processes.
    """

    rank = 0
    size = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """Return this process's share of ``count`` rows; the shares follow one another."""
        return slice(0, count)

    def mine(self, items: Sequence[T]) -> list[T]:
        """Return the items that this process takes, dealt out one by one."""
        return list(items[self.rank :: self.size])

    def gather(self, rows: Sequence[Tensor], count: int | None = None) -> list[Tensor]:
        """Return the rows of all processes, in the order of their numbers.

        The gradient of what every process computes alike from all rows, averaged over processes, is the gradient of
        one process that has all rows.

        Args:
            rows: tensors with this process's rows in front.
            count: rows of all processes together, shared out by :meth:`part`; None: all have as many as this one.
        """
        return list(rows)

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over processes, without gradient."""
        return value

    def mean_gradients(self, parameters: Iterable[Tensor]) -> None:
        """Replace gradients by their mean over processes; where only some processes have one, it counts as zero."""

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Give tensors, in place, the values that they have in the first process."""

    def from_first(self, make: Callable[[], T]) -> T:
        """Return what ``make`` gives in the first process; it is called there alone."""
        return make()

    def wait(self) -> None:
        """Return once all processes are here."""

    def own_draws(self, step: int) -> AbstractContextManager[None]:
        """Draw random numbers of this process's own in the block, a function of seed, step and rank.

        Outside of such blocks all processes draw the same numbers, those of a process on its own.
        """
        return nullcontext()

    def tell(self, error: BaseException) -> None:
        """Tell the other processes that this one failed; nothing for an error that they told it.

        Raises:
            BaseException: another process met with something worse at the same time.
        """


ALONE = World()
"""A process on its own."""
