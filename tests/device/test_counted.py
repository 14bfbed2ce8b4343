"""What a GPU's step is made of: the figures that docs/scaling.md names, counted without a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.device.counted import (
    COPIES,
    LAUNCH,
    MACHINES,
    PRODUCTS,
    Counts,
    branches_of_a_gpu,
    count_step,
    real_size,
)

METHODS = ("ace_lora", "clip_lora", "full_ft")


@pytest.fixture(scope="module")
def counted() -> Iterator[dict[str, Counts]]:
    with pytest.MonkeyPatch.context() as patch, branches_of_a_gpu(patch):
        backbone = real_size(patch)
        yield {name: count_step(name, backbone) for name in METHODS}


def test_a_step_of_ace_lora_is_lean(counted: dict[str, Counts]) -> None:
    """64 pairs, 256 tokens, bf16, eager; 3,357 kernels and 174 GB before LoRA became one function per fused map."""
    own = counted["ace_lora"]
    assert own.kernels <= 2600
    assert own.bytes <= 120e9


def test_lora_is_cheaper_than_full_fine_tuning(counted: dict[str, Counts]) -> None:
    lora, full = counted["clip_lora"], counted["full_ft"]
    # at most 0.9 of its time, whatever share of a GPU's time goes to memory and to products
    assert lora.flops <= 0.9 * full.flops
    assert lora.bytes <= 0.9 * full.bytes
    assert lora.seconds() <= 0.9 * full.seconds()


def test_the_model_of_the_machine_by_hand() -> None:
    """Products and copies that each take a millisecond, and launches that take longer."""
    operations, speed = MACHINES["A100"]
    copied = int(1e-3 * COPIES * speed)
    one = Counts(kernels=2, flops=int(1e-3 * PRODUCTS * operations), bytes=copied + 7, product_bytes=7)
    assert one.seconds("A100") == pytest.approx(2e-3)
    assert Counts(kernels=1000, flops=one.flops).seconds("A100") == pytest.approx(1000 * LAUNCH)
