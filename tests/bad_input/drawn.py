"""What the property tests share: drawn values, and calls that may be refused."""

from __future__ import annotations

import functools
import string
import tempfile
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

quick = functools.partial(
    settings,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def attempt(call: Callable[[], Any], *kinds: type[Exception]) -> tuple[Any, str]:
    """Return what a call gives and an empty text, or None and the message with which it is refused."""
    try:
        return call(), ""
    except kinds as error:
        return None, str(error) or "refused without a word"


names = st.text(string.ascii_letters + " _-.:/{}'\"#", min_size=1, max_size=12)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=12),
    st.dates(),
    st.binary(max_size=4),
)
nested = st.recursive(
    scalars,
    lambda below: (
        st.lists(below, max_size=3) | st.dictionaries(names | st.integers() | st.none(), below, max_size=3)
    ),
    max_leaves=6,
)


def folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory()
