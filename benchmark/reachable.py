"""Every tensor that can be reached from an object, with the way to it: what would stay behind on another device."""

from __future__ import annotations

import functools
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def reachable_tensors(root: object, name: str = "method") -> Iterator[tuple[str, Tensor]]:
    """Yield (place, tensor) once for every tensor held by an object, its containers, closures and partials.

    Args:
        root: where to start.
        name: what the root is called in places, for example ``method.options.table``.
    """
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [(name, root)]
    while waiting:
        place, item = waiting.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield place, item
        elif not isinstance(item, str | bytes | int | float | type | types.ModuleType):
            waiting += _held(place, item)


def _held(place: str, item: Any) -> list[tuple[str, object]]:
    if isinstance(item, Mapping):
        return [(f"{place}[{key!r}]", value) for key, value in item.items()]
    if isinstance(item, list | tuple | set | frozenset):
        return [(f"{place}[{index}]", value) for index, value in enumerate(item)]
    if isinstance(item, functools.partial):
        return [(place, value) for value in (item.func, *item.args, *item.keywords.values())]
    if isinstance(item, types.MethodType):
        return [(place, item.__self__), (place, item.__func__)]
    if isinstance(item, types.FunctionType):
        cells = [
            cell for cell in item.__closure__ or () if cell != types.CellType()
        ]  # empty ones cannot be read
        return [
            (f"{place}()", value) for value in (*(cell.cell_contents for cell in cells), item.__defaults__)
        ]
    return [(f"{place}.{key}", value) for key, value in getattr(item, "__dict__", {}).items()]
