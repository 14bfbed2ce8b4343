"""Prompt templates."""

from __future__ import annotations

from collections.abc import Sequence


def fill(templates: Sequence[str], name: str) -> list[str]:
    """Return every template with its ``{}`` replaced by a class text.

    Raises:
        ValueError: if a template has not exactly one ``{}``.
    """
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"template '{template}' must hold exactly one {{}}")
    return [template.replace("{}", name) for template in templates]
