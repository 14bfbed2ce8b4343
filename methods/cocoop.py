"""CoCoOp: context vectors shifted by a function of the image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmark.backbones.towers.precision import similarity
from benchmark.errors import ConfigError
from benchmark.registry import register_method
from benchmark.settings import setting
from benchmark.world import ALONE, World
from methods.base import MethodCard
from methods.layers.official import OfficialTensors
from methods.layers.prompts import ContextMethod, ContextOptions, InsertedPrompt

_SEQUENCES = 1024


@dataclass(frozen=True)
class CoCoOpOptions(ContextOptions):
    """Options in the authors' spelling, on top of the context's."""

    anchors: int = setting(
        1,
        "pairs per step whose exact row and column of the logits are computed; the exact B x B matrix would need B^2 "
        "passes through the text tower",
        low=1,
    )


@register_method("cocoop")
class CoCoOp(ContextMethod):
    """Logits of an image with a text are conditioned on that image, in training and per image at zero-shot time."""

    card = MethodCard(
        title="CoCoOp",
        paper="Zhou et al., CVPR 2022",
        arxiv="2203.05557",
        repository="KaiyangZhou/CoOp",
        equation="ctx_k(i) = ctx_k + W2 relu(W1 v_i + c1) + c2; S_ij = s <v_i, t(ctx(i), report_j)>",
        trains="ctx [n_ctx, text width] and the meta network (W1, c1, W2, c2)",
        count="n_ctx w + (E h + h) + (h w + w), h = E // 16, w = text width",
        deviations=(
            "contrastive form: exact rows and columns of sampled anchors, an unbiased estimate of the full loss "
            "(one anchor is the authors' step: one image, all candidate texts)",
        ),
    )
    Options = CoCoOpOptions
    splits = False
    cost_hint = 2.5

    def setup(self) -> None:
        """Create context and meta network."""
        super().setup()
        width, embed = self.backbone.text.width, self.backbone.embed_dim
        hidden = embed // 16
        if hidden < 1:
            raise ConfigError(
                f"cocoop: the embedding width {embed} is below 16: no room for the meta network"
            )
        self.meta_net = nn.Sequential(nn.Linear(embed, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def conditioned(self, image: Tensor, token_ids: Tensor) -> Tensor:
        """Return unit-norm text features ``[P, E]`` of P texts ``[P, L]``, each conditioned on its row of ``image``.

        Args:
            image: unit-norm image features ``[P, E]`` (the direction counts, not the length).
            token_ids: ``[P, L]``.
        """
        context = self.text["ctx"] + self.meta_net(image)[:, None, :]
        features = self.backbone.text.features(
            self.text_ids(token_ids), interventions=(InsertedPrompt(context),)
        )
        return self.from_text_features(features)

    def similarity(self, images: Tensor, token_ids: Tensor) -> Tensor:
        """Return logits ``[B_i, B_t]``; entry (i, j) depends on image i and text j alone."""
        return self.logit_scale() * self.cosines(self.encode_image(images), token_ids)

    def cosines(self, image: Tensor, token_ids: Tensor) -> Tensor:
        """Return ``[I, T]`` cosines of unit-norm images ``[I, E]`` with texts ``[T, L]``, a few images at a time."""
        rows = []
        for part in image.split(max(1, _SEQUENCES // len(token_ids))):
            repeated = part.repeat_interleave(len(token_ids), dim=0)
            text = self.conditioned(repeated, token_ids.repeat(len(part), 1))
            rows.append((repeated * text).sum(dim=-1).unflatten(0, (len(part), len(token_ids))))
        return torch.cat(rows)

    def loss(self, batch: Any) -> Tensor:
        """Return the mean over anchors of the cross-entropies of their row and column; exact in eval mode."""
        return self.loss_together(batch, ALONE)

    def loss_together(self, batch: Any, world: World) -> Tensor:
        """Return the same, each process taking its part of the pairs of an anchor through the text tower."""
        image = self.embed_images(batch)
        size = len(image)
        count = min(self.options.anchors, size) if self.training else size
        # as Python's numbers, since indexing a GPU's tensor by a tensor or a mask waits for it
        anchors = torch.randperm(size)[:count].sort().values.tolist()
        keep = self.objective.keep(batch.labels)
        losses = [self._anchor_loss(anchor, image, batch.token_ids, keep, world) for anchor in anchors]
        return torch.stack(losses).mean()

    def _anchor_loss(
        self, anchor: int, image: Tensor, token_ids: Tensor, keep: Tensor | None, world: World
    ) -> Tensor:
        size = len(image)
        # the row (this image, every text) and the rest of the column (every other image, this text) in one pass
        images = torch.cat([image[anchor].expand(size, -1), image[:anchor], image[anchor + 1 :]])
        texts = torch.cat([token_ids, token_ids[anchor].expand(size - 1, -1)])
        own = world.part(len(images))
        cosines = (images[own] * self.conditioned(images[own], texts[own])).sum(dim=-1)
        logits = self.logit_scale() * world.gather([cosines], len(images))[0]
        row, others = logits.split([size, size - 1])
        column = torch.cat([others[:anchor], row[anchor : anchor + 1], others[anchor:]])
        if keep is not None:
            row = row.masked_fill(~keep[anchor], -torch.inf)
            column = column.masked_fill(~keep[:, anchor], -torch.inf)
        return -(functional.log_softmax(row, 0)[anchor] + functional.log_softmax(column, 0)[anchor]) / 2

    def prepare_classes(self, token_ids: Tensor) -> Tensor:
        """Keep the prompts ``[C, T, L]``: their features depend on the image."""
        return token_ids

    def classify(self, batch: Any, classes: Tensor) -> Tensor:
        """Return cosines ``[B, C]``: for every image its own class features (normalise, mean, normalise)."""
        image = self.embed_images(batch)
        return similarity(image[:, None], self._classes_for(image, classes))[:, 0]

    def classify_patches(self, images: Tensor, classes: Tensor) -> Tensor:
        """Return cosines ``[B, N, C]``: the patches of an image with the class features of the whole image."""
        own = self._classes_for(self.encode_image(images), classes)
        return similarity(self.patch_features(images), own)

    def _classes_for(self, image: Tensor, classes: Tensor) -> Tensor:
        """Return class features ``[B, C, E]`` for each of unit-norm images ``[B, E]``, a few images at a time."""
        num_classes, templates, _ = classes.shape
        prompts, rows = classes.flatten(0, 1), []
        for part in image.split(max(1, _SEQUENCES // len(prompts))):
            text = self.conditioned(part.repeat_interleave(len(prompts), 0), prompts.repeat(len(part), 1))
            text = text.unflatten(0, (len(part), num_classes, templates)).mean(dim=2)
            rows.append(functional.normalize(text, dim=-1))
        return torch.cat(rows)

    def parameter_group(self, name: str) -> str:
        """The meta network reads the image and writes into the text prompt."""
        return "shared" if name.startswith("meta_net") else super().parameter_group(name)

    def expected_parameters(self) -> int:
        """Return n_ctx w + (E h + h) + (h w + w)."""
        width, embed = self.backbone.text.width, self.backbone.embed_dim
        hidden = embed // 16
        return super().expected_parameters() + embed * hidden + hidden + hidden * width + width


def load_official(method: CoCoOp, state: Mapping[str, Any]) -> None:
    """Load ``ctx`` and ``meta_net.linear1|linear2`` (possibly under ``prompt_learner.``).

    Raises:
        StoreError: if a tensor is missing or of another shape.
    """
    tensors = OfficialTensors(method, state, "prompt_learner.")
    tensors.copy("ctx", method.text["ctx"])
    tensors.copy_all("meta_net.linear1", method.meta_net[0])
    tensors.copy_all("meta_net.linear2", method.meta_net[2])
