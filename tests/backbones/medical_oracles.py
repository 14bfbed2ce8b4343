"""The medical models as their authors lay them out, from torchvision, timm, transformers and torch alone.

Each class has the published tensor names and the published order of operations, and nothing of the code under test:
``image`` and ``text`` return features that are not normalised. Small by default, full size with ``FULL`` (on "meta").
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import transformers
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor, nn
from torch.nn import functional

from tests.backbones.medical_parts import (
    FULL,
    TINY,
    WORDS,
    ClipPool,
    Layout,
    ResNet,
    Sizes,
    attention_pool,
    bigger,
    read,
    temporal_pooler,
    tree,
)


class ConVirt(Layout):
    def __init__(self, sizes: Sizes = TINY, words: int = 0) -> None:
        super().__init__()
        self.visual = tree(model=ResNet(sizes))
        self.linguistic = tree(encoder=self.bert(sizes, words=words))
        joint = sizes.joint
        self.vis_proj = nn.Sequential(
            nn.Linear(self.visual.model.width, joint), nn.ReLU(), nn.Linear(joint, joint)
        )
        self.lin_proj = nn.Sequential(nn.Linear(sizes.width, joint), nn.ReLU(), nn.Linear(joint, joint))

    def image(self, images: Tensor) -> Tensor:
        return self.vis_proj(self.visual.model(images)[-1].mean(dim=(2, 3)))

    def text(self, ids: Tensor) -> Tensor:
        return self.lin_proj(read(self.linguistic.encoder, ids).pooler_output)

    def published(self) -> dict[str, Any]:
        return {"model": self.state_dict(), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}}


class Gloria(Layout):
    def __init__(self, sizes: Sizes = TINY) -> None:
        super().__init__()
        model = ResNet(sizes)
        image = tree(
            model=model,
            global_embedder=nn.Linear(model.width, sizes.width),
            local_embedder=nn.Conv2d(4 * sizes.planes[2], sizes.width, 1, bias=False),
        )
        self.gloria = tree(img_encoder=image, text_encoder=tree(model=self.bert(sizes)))

    def image(self, images: Tensor) -> Tensor:
        encoder = self.gloria.img_encoder
        return encoder.global_embedder(encoder.model(bigger(images))[-1].mean(dim=(2, 3)))

    def regions(self, images: Tensor) -> Tensor:
        encoder = self.gloria.img_encoder
        return encoder.local_embedder(encoder.model(bigger(images))[2])

    def words(self, ids: Tensor) -> list[Tensor]:
        """Return the word vectors of each text: pieces summed, up to and with the end token."""
        hidden = read(self.gloria.text_encoder.model, ids, output_hidden_states=True).hidden_states
        pieces = torch.stack(hidden[-4:]).sum(dim=0)
        texts = []
        for row, own in zip(ids.tolist(), pieces, strict=True):
            vectors: list[Tensor] = []
            for piece, vector in zip(row, own, strict=True):
                if vectors and WORDS[piece].startswith("##"):
                    vectors[-1] = vectors[-1] + vector
                else:
                    vectors.append(vector)
                if WORDS[piece] == "[SEP]":
                    break
            texts.append(torch.stack(vectors))
        return texts

    def text(self, ids: Tensor) -> Tensor:
        return torch.stack(
            [functional.pad(own, (0, 0, 0, 97 - len(own))).mean(dim=0) for own in self.words(ids)]
        )

    def published(self) -> dict[str, Any]:
        state = self.state_dict()
        state["gloria.text_encoder.model.embeddings.position_ids"] = torch.arange(112)[None]
        return {"epoch": 3, "state_dict": state, "optimizer_states": [{"state": {}}]}


class MgcaHead(nn.Module):
    def __init__(self, inputs: int, sizes: Sizes, joint: int, kind: Any = nn.Linear) -> None:
        super().__init__()
        more = {} if kind is nn.Linear else {"kernel_size": 1}
        self.head = nn.Sequential(
            kind(inputs, sizes.hidden, **more), nn.BatchNorm1d(sizes.hidden), nn.ReLU(),
            kind(sizes.hidden, joint, **more), nn.BatchNorm1d(joint, affine=False),
        )  # fmt: skip


class Mgca(Layout):
    def __init__(self, sizes: Sizes = TINY, joint: int = 24, *, vit: bool = False, side: int = 224) -> None:
        super().__init__()
        self.vit = vit
        if vit:
            model: Any = timm.models.vision_transformer.VisionTransformer(
                img_size=side,
                embed_dim=sizes.vit,
                depth=sizes.vit_layers,
                num_heads=sizes.vit // 64,
                num_classes=0,
            )
            inputs = middle = sizes.vit
        else:
            model = ResNet(sizes)
            inputs, middle = model.width, 4 * sizes.planes[2]
        self.img_encoder_q = tree(
            model=model,
            global_embed=MgcaHead(inputs, sizes, joint),
            local_embed=MgcaHead(middle, sizes, joint, nn.Conv1d),
        )
        bert = self.bert(sizes, layers=sizes.layers // 2, pooler=False)
        cross = tree(crossattention=tree(output=nn.Linear(4, 4)))
        bert.encoder.layer[0].add_module("crossattention", cross.crossattention)
        self.text_encoder_q = tree(
            model=bert,
            global_embed=MgcaHead(sizes.width, sizes, joint),
            local_embed=MgcaHead(sizes.width, sizes, joint, nn.Conv1d),
        )
        self.prototype_layer = nn.Linear(joint, 500, bias=False)
        self.patch_local_atten_layer = self.word_local_atten_layer = nn.MultiheadAttention(joint, 1)

    def image(self, images: Tensor) -> Tensor:
        encoder = self.img_encoder_q
        if self.vit:
            return encoder.global_embed.head(encoder.model.forward_features(images)[:, 0])
        return encoder.global_embed.head(encoder.model(bigger(images))[-1].mean(dim=(2, 3)))

    def text(self, ids: Tensor) -> Tensor:
        encoder = self.text_encoder_q
        return encoder.global_embed.head(read(encoder.model, ids).last_hidden_state[:, 0])


class BioVil(Layout):
    def __init__(self, sizes: Sizes = TINY, joint: int = 24, *, temporal: bool = False) -> None:
        super().__init__()
        trunk = ResNet(sizes, classes=1000)
        self.encoder = tree(encoder=trunk)
        self.temporal, inputs = temporal, trunk.width
        if temporal:
            half = 256 if sizes is FULL else 20
            self.encoder["backbone_to_vit"] = nn.Conv2d(inputs, half, 1, bias=False)
            self.encoder["vit_pooler"] = temporal_pooler(half)
            self.encoder.missing_previous_emb = nn.Parameter(torch.zeros(1, half, 1, 1))
            inputs = 2 * half
        model = nn.Sequential(
            nn.Conv2d(inputs, joint, 1, bias=False),
            nn.BatchNorm2d(joint),
            nn.ReLU(),
            nn.Conv2d(joint, joint, 1),
        )
        self.projector = tree(model=model)
        self.bert_part = nn.Module()
        self.bert_part.bert = self.bert(sizes, pooler=False)
        self.bert_part.cls = tree(predictions=tree(transform=nn.Linear(sizes.width, 7)))
        self.bert_part.cls_projection_head = tree(
            dense_to_hidden=nn.Linear(sizes.width, joint),
            LayerNorm=nn.LayerNorm(joint, eps=1e-12),
            dense_to_output=nn.Linear(joint, joint),
        )

    def patches(self, images: Tensor) -> Tensor:
        features = self.encoder.encoder(images)[-1]
        if self.temporal:
            features = self.encoder.backbone_to_vit(features)
            missing = self.encoder.missing_previous_emb.expand(len(features), -1, *features.shape[2:])
            features = torch.cat([features, missing], dim=1)
        return self.projector.model(features)

    def image(self, images: Tensor) -> Tensor:
        return self.patches(images).mean(dim=(2, 3))

    def text(self, ids: Tensor) -> Tensor:
        parts: Any = self.bert_part
        head = parts.cls_projection_head
        start = read(parts.bert, ids).last_hidden_state[:, 0]
        return head.dense_to_output(head.LayerNorm(functional.gelu(head.dense_to_hidden(start))))

    def published_parts(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the image file and the text file."""
        state = self.state_dict()
        image = {name: value for name, value in state.items() if not name.startswith("bert_part.")}
        return image, self.bert_part.state_dict()


class Prior(Layout):
    full_stop = WORDS.index(".")

    def __init__(self, sizes: Sizes = TINY, channels: int = 1, positions: int = 50) -> None:
        super().__init__()
        trunk, joint = ResNet(sizes, channels), sizes.joint
        self.image_encoder = tree(encoder=trunk, atten_pool=ClipPool(trunk.width, 8, positions))
        self.text_encoder = tree(encoder=self.bert(sizes))
        self.global_image_projection = nn.Linear(trunk.width, joint)
        self.local_image_projection = nn.Linear(trunk.width, joint)
        self.global_text_projection = nn.Linear(sizes.width, joint)
        self.local_text_projection = nn.Linear(sizes.width, joint)
        self.predictor = nn.Sequential(nn.Linear(joint, joint))
        self.sentence_bank = tree(embed=nn.Embedding(512, joint))
        self.global_text_attention = ClipPool(joint, 8)
        parts = [f"{part}{side}" for side in (1, 2) for part in ("query", "key", "value")]
        self.local_cross_attention = tree(**{name: nn.Linear(joint, joint) for name in parts})
        self.sentence_decoder, self.image_decoder = nn.Linear(3, 3), nn.Linear(3, 3)
        self.prototype_queries = nn.Parameter(torch.zeros(1, 16, joint))
        self.logit_scale = nn.Parameter(torch.tensor(2.3))
        self.local_logit_scale = nn.Parameter(torch.tensor(2.3))

    def image(self, images: Tensor) -> Tensor:
        features = self.image_encoder.encoder(images)[-1].flatten(2).transpose(1, 2)
        return self.global_image_projection(self.image_encoder.atten_pool(features))

    def prototypes(self, ids: Tensor) -> list[Tensor]:
        """Return the prototypes of each text's sentences."""
        hidden = self.local_text_projection(read(self.text_encoder.encoder, ids).last_hidden_state)
        bank, texts = self.sentence_bank.embed.weight, []
        for row, own in zip(ids.tolist(), hidden, strict=True):
            length = sum(piece != 0 for piece in row)
            ends = [at for at in range(length - 2) if row[at] == self.full_stop]
            starts = [1, *(at + 1 for at in ends)]
            means = [own[a:b].mean(dim=0) for a, b in zip(starts, [*starts[1:], length], strict=True)]
            texts.append(functional.softmax(torch.stack(means) @ bank.T / 0.9, dim=1) @ bank)
        return texts

    def text(self, ids: Tensor) -> Tensor:
        return torch.cat([self.global_text_attention(own[None]) for own in self.prototypes(ids)])

    def published(self) -> dict[str, Any]:
        return dict(self.state_dict())


class Kad(Layout):
    def __init__(self, sizes: Sizes = TINY) -> None:
        super().__init__()
        trunk = ResNet(sizes, classes=1000)
        self.image_encoder = tree(
            resnet=trunk,
            res_features=nn.Sequential(*list(trunk.children())[:-2]),
            res_l1=nn.Linear(trunk.width, trunk.width),
            res_l2=nn.Linear(trunk.width, sizes.width),
        )
        mlp = nn.Sequential(
            nn.Linear(sizes.width, sizes.width), nn.GELU(), nn.Linear(sizes.width, sizes.width)
        )
        self.text_encoder = tree(bert_model=self.bert(sizes), mlp_embed=mlp)
        self.text_encoder.logit_scale = nn.Parameter(torch.tensor(2.659))
        width, hidden = sizes.width, 1024 if sizes is FULL else 32
        layers = [
            tree(
                self_attn=nn.MultiheadAttention(width, 4), multihead_attn=nn.MultiheadAttention(width, 4),
                linear1=nn.Linear(width, hidden), linear2=nn.Linear(hidden, width),
                norm1=nn.LayerNorm(width), norm2=nn.LayerNorm(width), norm3=nn.LayerNorm(width),
            )
            for _ in range(4 if sizes is FULL else 2)
        ]  # fmt: skip
        norm = nn.LayerNorm(width)
        self.model = tree(
            decoder_norm=norm,
            decoder=tree(layers=nn.ModuleList(layers), norm=norm),
            mlp_head=nn.Sequential(nn.Linear(width, 2)),
        )
        self.model.logit_scale = nn.Parameter(torch.tensor(2.659))

    def cells(self, images: Tensor) -> Tensor:
        encoder = self.image_encoder
        features = encoder.res_features(images).flatten(2).transpose(1, 2)
        return encoder.res_l2(functional.relu(encoder.res_l1(features)))

    def image(self, images: Tensor) -> Tensor:
        return self.cells(images).mean(dim=1)

    def text(self, ids: Tensor) -> Tensor:
        return self.text_encoder.mlp_embed(read(self.text_encoder.bert_model, ids).pooler_output)

    def present(self, images: Tensor, queries: Tensor) -> Tensor:
        """Return the query network's logits, layer by layer, sequence first as published."""
        norm, cells = self.model.decoder_norm, self.cells(images)
        memory = norm(cells.transpose(0, 1))
        target = norm(queries[:, None].expand(-1, len(images), -1))
        for layer in self.model.decoder.layers:
            inner = layer.norm1(target)
            target = target + layer.self_attn(inner, inner, inner)[0]
            target = target + layer.multihead_attn(layer.norm2(target), memory, memory)[0]
            inner = layer.linear2(functional.relu(layer.linear1(layer.norm3(target))))
            target = target + inner
        return self.model.mlp_head(norm(target).transpose(0, 1))

    def published(self) -> dict[str, Any]:
        parts = {
            name: getattr(self, name).state_dict() for name in ("image_encoder", "text_encoder", "model")
        }
        return {**parts, "optimizer": {"state": {0: {"step": torch.tensor(3)}}}, "epoch": 7}


class PmcClip(Layout):
    def __init__(self, sizes: Sizes = TINY, heads: int = 8, side: int = 224) -> None:
        super().__init__()
        self.heads, joint = heads, 24 if sizes is not FULL else 768
        self.visual = ModifiedResNet(list(sizes.blocks), joint, 1, side, sizes.pmc)
        self.text_encoder = self.bert(sizes)
        self.text_projection = nn.Parameter(torch.zeros(sizes.width, joint))
        self.logit_scale = nn.Parameter(torch.tensor(4.1))
        self.fusion_module, self.ln_final = nn.Linear(3, 3), nn.LayerNorm(3)
        for name in ("mlm_projection", "img_special_token", "positional_embedding"):
            self.register_parameter(name, nn.Parameter(torch.zeros(3)))

    def image(self, images: Tensor) -> Tensor:
        trunk: Any = self.visual
        features = trunk.layer4(trunk.layer3(trunk.layer2(trunk.layer1(trunk.stem(images)))))
        tokens, pool = features.flatten(2).transpose(1, 2), trunk.attnpool
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1) + pool.positional_embedding
        return attention_pool(tokens, pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj, self.heads)

    def text(self, ids: Tensor, *, pooler: bool = False, masked: bool = False) -> Tensor:
        output = read(self.text_encoder, ids) if masked else self.text_encoder(input_ids=ids)
        return (output.pooler_output if pooler else output.last_hidden_state[:, 0]) @ self.text_projection

    def published(self) -> dict[str, Any]:
        return {
            "epoch": 1,
            "state_dict": {f"module.{name}": value for name, value in self.state_dict().items()},
        }


class Plip(Layout):
    def __init__(self, sizes: Sizes = TINY, activation: str = "quick_gelu") -> None:
        super().__init__()
        width, full = sizes.vit, sizes is FULL
        text = 512 if full else 64
        config = transformers.CLIPConfig(
            text_config={
                "vocab_size": 49408, "hidden_size": text, "intermediate_size": 4 * text,
                "num_hidden_layers": sizes.vit_layers, "num_attention_heads": text // 64, "hidden_act": activation,
                "max_position_embeddings": 77, "eos_token_id": 2,
            },
            vision_config={
                "hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": sizes.vit_layers,
                "num_attention_heads": width // 64, "image_size": 224, "patch_size": 32, "hidden_act": activation,
            },
            projection_dim=512 if full else 24,
        )  # fmt: skip
        self.clip = transformers.CLIPModel(config)

    def image(self, images: Tensor) -> Tensor:
        return self.clip.get_image_features(pixel_values=images).pooler_output

    def text(self, ids: Tensor) -> Tensor:
        return self.clip.get_text_features(input_ids=ids).pooler_output

    def published(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(self.clip.state_dict())
        return state | {
            f"{kind}_model.embeddings.position_ids": torch.arange(50)[None] for kind in ("vision", "text")
        }
