"""Full fine-tuning: every tensor of both towers trains with the contrastive loss."""

from __future__ import annotations

from benchmark.registry import register_method
from methods.base import Method, MethodCard

# weight decay would shrink exactly the rows that get no gradient (unused words and positions)
_TABLES = (
    "embeddings",
    "token_embedding",
    "positional_embedding",
    "pos_embed",
    "cls_token",
    "class_embedding",
)


@register_method("full_ft")
class FullFineTuning(Method):
    """All of the backbone trains, with BERT's own dropout on."""

    card = MethodCard(
        title="Full FT",
        paper="the pretraining loss goes on (Goyal et al., CVPR 2023, FLYP)",
        arxiv="2212.00638",
        equation="logits = s <v(theta), t(theta)>",
        trains="every tensor of both towers and their projections",
        count="all of the backbone: 195,902,720 at BiomedCLIP's size, + 1 for the logit scale",
        deviations=(
            "the ACE-LoRA paper gives no recipe: learning rate 1e-5, decay on matrices only, gradient clipping 1.0",
        ),
    )
    adapts = frozenset({"image", "text"})
    identity_at_init = True
    mergeable = True
    cost_hint = 1.5

    def setup(self) -> None:
        """Unfreeze everything but the checkpoint's own scale, which the common logit scale stands for."""
        for name, parameter in self.backbone.model.named_parameters():
            parameter.requires_grad_(self.backbone.tower_of(name) != "scale")

    def train(self, mode: bool = True) -> FullFineTuning:
        """Put the towers into the mode as well; running statistics, which no adapter holds, stay as they are."""
        super().train(mode)
        self.backbone.model.train(mode)
        for module in self.backbone.model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.eval()
        return self

    def decays(self, name: str) -> bool:
        """Decay matrices only, no embedding tables."""
        parts = name.split(".")
        matrix = super().decays(name) and self.get_parameter(name).ndim >= 2
        return matrix and not any(table in parts for table in _TABLES)

    def expected_parameters(self) -> int:
        """Return the backbone's size without its scale."""
        named = self.backbone.model.named_parameters()
        return sum(value.numel() for name, value in named if self.backbone.tower_of(name) != "scale")
