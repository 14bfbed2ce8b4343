"""Replaces identifiers of images and patients by keyed hashes, for results that leave the site of the data.

The key is stored in the data root, never with the results: without it nobody can test which identifier gives which
hash. One data root has one key, so runs on the same images and patients can still be paired.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmark.errors import DataError
from benchmark.files import file_lock, temporary_beside

Arrays = Mapping[str, np.ndarray[Any, Any]]
KEY_FILE = "id_key"
ENDING = "_id"
"""Arrays of predictions whose names end so hold identifiers."""
_KEY_BYTES = 32
_SHOWN = 32  # hexadecimal digits of a hash: 128 bits, so that no two identifiers share one


class Pseudonyms:
    """Replaces identifiers by HMAC-SHA256 with a secret key.

    Args:
        key: of one data root, as :func:`id_key` returns it.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def of(self, name: str) -> str:
        """Return the hash of an identifier; an empty one (unknown) stays empty."""
        return hmac.new(self._key, name.encode(), hashlib.sha256).hexdigest()[:_SHOWN] if name else ""

    def hide(self, arrays: Arrays) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of a prediction with hashes for identifiers; all others as they are."""
        return {
            name: np.array([self.of(str(item)) for item in array.ravel()], dtype=np.str_).reshape(array.shape)
            if name.endswith(ENDING)
            else array
            for name, array in arrays.items()
        }


def id_key(data_root: Path) -> bytes:
    """Return the key of a data root; the first call makes it, readable for its owner alone.

    Raises:
        DataError: the file is damaged or cannot be written.
    """
    path = data_root / KEY_FILE
    try:
        with file_lock(path.with_name(f".{KEY_FILE}.lock"), wait=True):
            if not path.exists():
                _write(path, secrets.token_hex(_KEY_BYTES))
            key = bytes.fromhex(path.read_text(encoding="ascii"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}; choose another --data-root") from error
    except ValueError:
        key = b""
    if len(key) != _KEY_BYTES:
        raise DataError(
            f"{path}: damaged. Put back a copy, or delete it: identifiers then get other hashes than in earlier results"
        )
    return key


def _write(path: Path, text: str) -> None:
    with temporary_beside(path) as temporary:  # mode 0600
        temporary.write_text(text, encoding="ascii")
        os.replace(temporary, path)
