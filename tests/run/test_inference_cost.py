"""What using an adapted model costs, on the embedded backbone."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import methods
from benchmark.backbones import load_backbone
from benchmark.run.cost import frozen_flops, inference_costs, parameter_counts

PROMPTS = ("a chest X-ray image of edema.", "a chest X-ray image of pneumonia.", "pleural effusion")


def costs(name: str, **options: object) -> dict[str, float | None]:
    backbone = load_backbone("tiny")
    frozen = frozen_flops(backbone, PROMPTS)
    return inference_costs(methods.build(name, backbone, **options), PROMPTS, frozen)


def test_the_frozen_model_costs_what_its_matrix_products_say():
    backbone = load_backbone("tiny")
    image = backbone.image
    tokens, width, blocks = 64 + 1, image.width, image.depth
    qkv, rest = 3 * width * width, width * width + 2 * tokens * width + 2 * 4 * width * width
    # rest: attention, its output and the MLP; of the last block for the global token alone
    by_hand = 2 * (
        64 * 8 * 8 * 3 * width + (blocks - 1) * tokens * (qkv + rest) + tokens * qkv + rest
        + width * image.embed_dim + image.embed_dim * len(PROMPTS)
    )  # fmt: skip
    assert frozen_flops(backbone, PROMPTS).image == by_hand


@pytest.mark.parametrize("name", ["zero_shot", "taskres", "coop"])
def test_methods_that_leave_images_alone_cost_nothing_per_image(name):
    found = costs(name)
    assert found["inference_overhead"] == 1.0
    assert found["inference_overhead_merged"] is None


def test_lora_costs_its_thin_products_until_it_is_merged():
    found = costs("clip_lora", r=4)
    backbone = load_backbone("tiny")
    frozen = frozen_flops(backbone, PROMPTS).image
    image = backbone.image
    thin = 2 * (64 + 1) * image.depth * 3 * 4 * (image.width + image.width)
    assert found["inference_overhead"] == pytest.approx(1 + thin / frozen)
    assert found["inference_overhead_merged"] == 1.0


def test_of_ace_lora_only_the_hypergraph_stays():
    whole, graph = costs("ace_lora"), costs("ace_lora", use_lora=False)
    assert whole["inference_overhead_merged"] == graph["inference_overhead"]
    assert whole["inference_overhead"] > whole["inference_overhead_merged"] > 1.0


def test_cocoop_encodes_the_prompts_for_every_image():
    found = costs("cocoop")
    text = found["inference_flops_per_text"]
    assert found["inference_flops_per_image"] > len(PROMPTS) * text


def test_a_branch_that_weights_cannot_hold_stays():
    class Squared(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            return inputs.square()

    tower = load_backbone("tiny").image
    images = torch.randn(1, 3, *tower.image_size)
    plain = tower.features(images)
    tower.attach(0, "q", Squared())
    adapted = tower.features(images)
    with tower.without_deltas(only_foldable=True):
        assert torch.equal(tower.features(images), adapted)
    with tower.without_deltas():
        assert torch.equal(tower.features(images), plain)
    assert torch.equal(tower.features(images), adapted)


def test_all_parameters_belong_to_a_tower():
    backbone = load_backbone("tiny")
    image = sum(value.numel() for value in backbone.model.visual.parameters())
    counts = parameter_counts(methods.build("clip_lora", backbone))
    scale = 1
    assert counts["total_image"] == image + counts["trainable_image"]
    assert counts["total_image"] + counts["total_text"] + counts["total_shared"] == counts["total"] - scale


def test_a_delta_may_return_a_view_of_its_parameter():
    class Bias(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.value = nn.Parameter(torch.zeros(width))

        def forward(self, inputs: Tensor) -> Tensor:
            return self.value.expand(*inputs.shape[:-1], -1)

    backbone = load_backbone("tiny")
    frozen = frozen_flops(backbone, PROMPTS)
    method = methods.build("clip_adapter", backbone)
    method.bias = Bias(backbone.image.width)
    backbone.image.attach(0, "down", method.bias)
    assert inference_costs(method, PROMPTS, frozen)["inference_overhead"] > 1.0
    assert method.bias.value.requires_grad
