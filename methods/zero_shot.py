"""Zero-shot: the frozen backbone without adaptation, the baseline of every table."""

from __future__ import annotations

from benchmark.registry import register_method
from methods.base import Method, MethodCard


@register_method("zero_shot")
class ZeroShot(Method):
    """Nothing trains."""

    card = MethodCard(
        title="Zero-shot",
        paper_row="BiomedCLIP",
        paper="Zhang et al., NEJM AI 2025 (BiomedCLIP)",
        arxiv="2303.00915",
        equation="logits = s <v, t>",
        trains="nothing",
        count="0",
    )
    identity_at_init = True
    deterministic = True
    cost_hint = 0.1

    def expected_parameters(self) -> int:
        """Return 0."""
        return 0
