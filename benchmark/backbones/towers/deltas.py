"""Deltas: modules that add to the output of a tower's frozen linear maps (LoRA), at named sites of its blocks."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmark.backbones.towers.split import PARTS, SplitAttention, SplitLinear, size_of

SITES = ("q", "k", "v", "o", "up", "down")
"""The linear maps of a block that take deltas: attention's query, key, value and output, the MLP's two layers."""
FUSED = {"qkv": PARTS, "kv": ("k", "v")}
"""Maps that serve several sites: name -> their sites, in the order of the output columns."""


class Delta:
    """Handle of an attached delta; :meth:`remove` takes it off the tower again."""

    def __init__(self, remove: Callable[[], None]) -> None:
        self._remove = remove

    def remove(self) -> None:
        """Take the delta off its tower."""
        self._remove()


class DeltaSites(ABC):
    """The part of a tower that knows its linear maps and what is attached to them.

    Attributes:
        kind: "image" or "text". width: token width D. blocks: the library's transformer blocks.
    """

    kind: str
    width: int
    blocks: Sequence[nn.Module]

    def __init__(self) -> None:
        # (block, linear name) -> {site: [deltas]}. Deltas belong to the method that made them: kept out of the
        # library's modules, they leave the backbone's state_dict as it was.
        self._deltas: dict[tuple[int, str], dict[str, list[nn.Module]]] = {}
        self._columns: dict[tuple[int, str], tuple[int, int]] = {}  # of sites that have had a delta

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)

    # ------------------------------------------------------------------ what a subclass says about its library
    @abstractmethod
    def linears(self, index: int) -> Mapping[str, nn.Module]:
        """Return the linear maps of block ``index`` by site; a fused map stands under its name in :data:`FUSED`."""

    def split_qkv(self) -> None:  # noqa: B027  (nothing to do is the usual case)
        """Give q, k and v a Linear each where the library has one fused map; outputs stay the same.

        What is attached stays attached, and a second call does nothing. Towers without fused maps have nothing to do.

        Raises:
            ValueError: if this form of attention cannot be split.
        """

    # ------------------------------------------------------------------ what methods call
    def linear_of(self, index: int, site: str) -> tuple[nn.Module, str, int, int]:
        """Return module, its name, and the output columns [start, stop) that serve ``site`` in block ``index``."""
        maps = self.linears(index)
        name = next((name for name, parts in FUSED.items() if site in parts and name in maps), site)
        columns = size_of(maps[name])[1]
        if name == site:
            return maps[name], name, 0, columns
        share = columns // len(FUSED[name])
        start = share * FUSED[name].index(site)
        return maps[name], name, start, start + share

    def sites_of(self, chosen: Iterable[str]) -> tuple[str, ...]:
        """Return where the chosen sites are adapted: "kv" for k and v where one map makes both, else as they are."""
        sites = tuple(chosen)
        if not {"k", "v"} <= set(sites) or "kv" not in self.linears(0):
            return sites
        return tuple(dict.fromkeys("kv" if site in FUSED["kv"] else site for site in sites))

    def linear_at(self, index: int, site: str) -> nn.Module:
        """Return the Linear that serves ``site`` alone; a fused map as a whole until :meth:`split_qkv`."""
        module = self.linear_of(index, site)[0]
        split = site in PARTS and isinstance(module, SplitLinear | SplitAttention)
        return getattr(module, site) if split else module

    def attach(self, index: int, site: str, delta: nn.Module) -> Delta:
        """Add ``delta(x)`` to the output of the frozen linear map ``site`` of block ``index``.

        Args:
            index: 0-based block.
            site: one of :data:`SITES`, or what :meth:`sites_of` returns.
            delta: maps the linear's input ``[..., in]`` to an addend ``[..., out]`` of that site alone.

        Raises:
            ValueError: if the tower has no such block or site.
        """
        known = 0 <= index < self.depth and (site in SITES or (site == "kv" and site in self.linears(index)))
        if not known:
            raise ValueError(f"{self.kind} tower has no site '{site}' in block {index} (depth {self.depth})")
        _, name, start, stop = self.linear_of(index, site)
        self._columns[index, site] = start, stop
        parts = self._deltas.setdefault((index, name), {})
        if not parts:
            self._on_first_delta(index, site)
        parts.setdefault(site, []).append(delta)
        return Delta(lambda: self._detach(index, name, site, delta))

    def site_shape(self, index: int, site: str) -> tuple[int, int]:
        """Return (inputs, outputs) of a site."""
        module, _, start, stop = self.linear_of(index, site)
        return self.width if site in PARTS else size_of(module)[0], stop - start

    @contextlib.contextmanager
    def without_deltas(self, *, only_foldable: bool = False) -> Iterator[None]:
        """Leave deltas out for a while; ``only_foldable``: those that the frozen weights could take up (LoRA).

        A delta says so by an attribute ``foldable``.
        """
        kept = self._deltas
        self._deltas = {
            place: {
                site: [item for item in deltas if only_foldable and not getattr(item, "foldable", False)]
                for site, deltas in parts.items()
            }
            for place, parts in kept.items()
        }
        try:
            yield
        finally:
            self._deltas = kept

    # ------------------------------------------------------------------ internals
    def deltas_at(self, index: int, site: str) -> list[nn.Module]:
        """Return the deltas that act on ``site`` of block ``index``."""
        return self._deltas.get((index, self.linear_of(index, site)[1]), {}).get(site, [])

    def _on_first_delta(self, index: int, site: str) -> None:
        """Hook the linear map once; towers whose block does not call a Linear override :meth:`run_block` instead."""
        module, name, _, _ = self.linear_of(index, site)
        # a partial of a bound method, unlike a closure, follows its tower through copy.deepcopy
        module.register_forward_hook(partial(self._delta_hook, index, name))

    def _delta_hook(
        self, index: int, name: str, _module: nn.Module, args: tuple[Tensor, ...], output: Tensor
    ) -> Tensor:
        return self.add_deltas(index, name, args[0], output)

    def has_deltas(self, index: int, name: str) -> bool:
        """Return whether any delta acts on linear ``name`` of block ``index``."""
        return any(self._deltas.get((index, name), {}).values())

    def add_deltas(self, index: int, name: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Return ``output`` plus the deltas attached to linear ``name`` of block ``index``; it may be changed in place.

        Deltas of one kind that offers ``add_all`` add themselves in one go.
        """
        parts = self._deltas.get((index, name), {})
        placed = [(delta, *self._columns[index, site]) for site, deltas in parts.items() for delta in deltas]
        if len({type(delta) for delta, _, _ in placed}) == 1 and hasattr(placed[0][0], "add_all"):
            add_all: Any = placed[0][0].add_all
            return add_all(output, inputs, placed)
        for delta, start, stop in placed:
            output[..., start:stop] += delta(inputs).to(output.dtype)
        return output

    def _detach(self, index: int, name: str, site: str, delta: nn.Module) -> None:
        deltas = self._deltas.get((index, name), {}).get(site, [])
        self._deltas[index, name][site] = [item for item in deltas if item is not delta]
