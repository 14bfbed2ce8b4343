"""Sentences about classes, from a JSON file of the user's: {class: [sentence, ...]}."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmark.errors import DataError, quoted, suggest
from benchmark.files import file_sha256, user_path


@dataclass(frozen=True)
class Descriptions:
    """What a file says of some classes.

    Attributes:
        sentences: P of each of C classes, in their order; as many of each as the class with the fewest has.
        sha256: of the file.
    """

    sentences: tuple[tuple[str, ...], ...]
    sha256: str

    def facts(self) -> dict[str, Any]:
        """Return what results say of them."""
        return {"descriptions": {"sha256": self.sha256, "sentences": len(self.sentences[0])}}


def read_descriptions(file: str, classes: Sequence[str]) -> Descriptions:
    """Read the sentences of classes.

    Args:
        file: relative paths begin at the working folder.
        classes: as they stand in prompts; the file may hold more.

    Raises:
        DataError: no such file, not of this form, or without a class.
    """
    path = user_path(file)
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: descriptions cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise DataError(f"{path}: descriptions: not JSON in UTF-8 ({error})") from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path}: descriptions: expected {{class: [sentence, ...]}}, got {type(content).__name__}"
        )
    for name in classes:
        if name not in content:
            raise DataError(f"{path}: descriptions: nothing about '{name}'.{suggest(name, list(content))}")
        found = content[name]
        if (
            not isinstance(found, list)
            or not found
            or not all(isinstance(one, str) and one.strip() for one in found)
        ):
            raise DataError(
                f"{path}: descriptions: '{name}': expected a list of sentences, got {quoted(found)}"
            )
    least = min(len(content[name]) for name in classes)
    return Descriptions(tuple(tuple(content[name][:least]) for name in classes), file_sha256(path))
