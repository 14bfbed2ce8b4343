"""Batches: reading ahead, text lengths, shares of several processes; all from the same rows."""

from __future__ import annotations

import dataclasses
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

from benchmark.data.batches import PairBatches, PixelLoader, PixelRows
from benchmark.data.prepare.images import read_image
from benchmark.data.prepared import Rows, take
from benchmark.data.samples import Batch, PairData
from benchmark.errors import CellError, ConfigError
from benchmark.preprocess import Fitting
from methods.base import Method
from tests.small import CPU, corpus, frozen, method

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*multi-threaded.*:DeprecationWarning"
)  # Python 3.12 and fork


@pytest.fixture
def on_disk(tmp_path: Path) -> np.ndarray:
    """Thirty images in a file, memory mapped, without the first two."""
    path = tmp_path / "pixels.npy"
    np.save(path, np.random.default_rng(0).integers(0, 256, (32, 64, 64), dtype=np.uint8))
    return np.load(path, mmap_mode="r")[2:]


def words(count: int = 96) -> PairData:
    """Pairs whose texts have 1 to 40 words, mixed."""
    lengths = np.random.default_rng(1).permutation(count) % 40
    return dataclasses.replace(corpus(count), texts=["lung " * (1 + int(length)) for length in lengths])


def made(wrapped: Method, data: PairData, **how: object) -> PairBatches:
    values = {"batch_size": 8, "seed": 3, "device": CPU} | how
    return PairBatches(wrapped, data, frozen(wrapped.backbone), **values)


def lengths(batch: Batch) -> list[int]:
    return (batch.token_ids != 0).sum(1).tolist()


def same(one: Batch, other: Batch) -> bool:
    pairs = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(a is b or torch.equal(a, b) for a, b in pairs)


# ---------------------------------------------------------------------------------------------- reading ahead
def test_processes_that_read_ahead_change_no_bit(on_disk: np.ndarray) -> None:
    data = dataclasses.replace(corpus(24), pixels=Rows(on_disk, np.arange(24)[::-1].copy()))
    wrapped = method("clip_lora")
    alone, ahead = made(wrapped, data), made(wrapped, data, num_workers=2, start_method="fork")
    state = torch.get_rng_state()
    next(ahead.epoch(1))  # an epoch that is left early
    for number in (1, 2):
        pairs = list(zip(alone.epoch(number), ahead.epoch(number), strict=True))
        assert len(pairs) == 3
        assert all(same(one, other) for one, other in pairs)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_process_started_anew_opens_the_file_by_its_name(on_disk: np.ndarray) -> None:
    rows = [np.array([0, 3, 27]), np.array([5])]
    loader = PixelLoader(on_disk, workers=1, device=CPU, start_method="spawn")
    for chosen, pixels in zip(rows, loader.batches(rows), strict=True):
        assert np.array_equal(pixels.numpy(), on_disk[chosen])


def test_arrays_on_disk_travel_as_names(on_disk: np.ndarray) -> None:
    parts = [on_disk, on_disk[4:9][1:], take(on_disk, np.array([7, 3, 9])), on_disk[::2], np.array(on_disk)]
    sent = [pickle.dumps(PixelRows(part)) for part in parts]
    assert [len(content) < 1000 for content in sent] == [True, True, True, False, False]
    for part, content in zip(parts, sent, strict=True):
        assert np.array_equal(pickle.loads(content).pixels[:], part[:])


def test_methods_with_constant_images_start_no_process() -> None:
    assert made(method("taskres"), corpus(16), num_workers=2)._loader is None
    assert made(method("coop"), corpus(16), num_workers=2)._loader is None


def test_a_process_that_dies_is_one_clear_line(on_disk: np.ndarray) -> None:
    loader = PixelLoader(on_disk, workers=1, device=CPU, start_method="fork")
    rows = [np.arange(3)] * 20
    batches = loader.batches(rows)
    next(batches)
    os.kill(loader._loader._iterator._workers[0].pid, signal.SIGKILL)
    with pytest.raises(CellError, match=r"loads images failed or died \(.+\): lower --num-workers") as error:
        list(batches)
    assert "\n" not in str(error.value)


def test_an_interrupt_is_left_to_the_run(on_disk: np.ndarray) -> None:
    loader = PixelLoader(on_disk, workers=1, device=CPU, start_method="fork")
    batches = loader.batches([np.arange(3)] * 20)
    next(batches)
    os.kill(loader._loader._iterator._workers[0].pid, signal.SIGINT)
    assert len(list(batches)) == 19


def test_a_process_that_cannot_read_is_one_clear_line(on_disk: np.ndarray) -> None:
    loader = PixelLoader(on_disk, workers=1, device=CPU, start_method="fork")
    with pytest.raises(CellError, match=r"failed or died \(IndexError: index 99 is out of bounds") as error:
        list(loader.batches([np.array([99])]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("colour", [False, True])
def test_cached_pixels_are_those_read_online_bit_for_bit(tmp_path: Path, colour: bool) -> None:
    from open_clip.transform import PreprocessCfg, image_transform_v2

    wrapped = method("clip_lora")
    spec, generator = wrapped.backbone.input_spec, np.random.default_rng(0)
    online = image_transform_v2(PreprocessCfg(size=64, mean=spec.mean, std=spec.std), is_train=False)
    expected, fitted = [], []
    for number, shape in enumerate([(90, 70), (64, 200), (301, 299)]):
        path = tmp_path / f"{number}.png"
        drawn = generator.integers(0, 256, (*shape, 3) if colour else shape, dtype=np.uint8)
        PIL.Image.fromarray(drawn).save(path)
        with PIL.Image.open(path) as image:
            expected.append(online(image))
        fitted.append(Fitting((64, 64), "shortest_crop").pixels(read_image(path).pixels))
    np.save(tmp_path / "pixels.npy", np.stack(fitted))
    data = dataclasses.replace(corpus(3), pixels=np.load(tmp_path / "pixels.npy", mmap_mode="r"))
    assert torch.equal(made(wrapped, data, batch_size=3).batch(np.arange(3)).images, torch.stack(expected))


# ---------------------------------------------------------------------------------------------- text lengths
def test_rows_of_similar_length_come_together() -> None:
    data, wrapped = words(), method("clip_lora")
    plain, bucketed = made(wrapped, data), made(wrapped, data, length_bucket=12)
    drawn, chosen = (bucketed._lengths[batches._order(1)] for batches in (plain, bucketed))
    assert drawn.sum() == chosen.sum()
    assert chosen.max(axis=1).sum() < 0.7 * drawn.max(axis=1).sum()
    # one window here: each range of lengths belongs to one batch, and batches do not come in the order of their lengths
    ranges = sorted(zip(chosen.min(axis=1), chosen.max(axis=1), strict=True))
    assert all(high <= low for (_, high), (low, _) in zip(ranges, ranges[1:], strict=False))
    assert list(chosen.max(axis=1)) != sorted(chosen.max(axis=1))
    assert sorted(max(lengths(batch)) for batch in bucketed.epoch(1)) == sorted(chosen.max(axis=1))


def test_sorted_epochs_hold_every_row_once_and_stay_in_their_windows() -> None:
    data, wrapped = words(), method("clip_lora")
    plain, bucketed = made(wrapped, data), made(wrapped, data, length_bucket=4)
    drawn, chosen = plain._order(2), bucketed._order(2)
    assert sorted(chosen.flatten()) == list(range(96))
    windows = [set(drawn[start : start + 4].flatten()) for start in (0, 4, 8)]
    assert all(sum(set(batch) <= window for window in windows) == 1 for batch in chosen)


def test_texts_of_similar_length_are_padded_to_a_multiple_of_16() -> None:
    data, wrapped = words(), method("clip_lora")
    for batch in made(wrapped, data, length_bucket=4).epoch(1):
        width, longest = batch.token_ids.shape[1], max(lengths(batch))
        assert width % 16 == 0
        assert 0 <= width - longest < 16
    # never beyond the context, whatever that is
    short = made(wrapped, data, length_bucket=4)
    short._token_ids = short._token_ids[:, :42]
    assert {batch.token_ids.shape[1] for batch in short.epoch(1)} <= {16, 32, 42}


def test_padding_changes_no_score_where_texts_are_padded_to_the_longest() -> None:
    wrapped = method("clip_lora").eval()
    batch = made(wrapped, words(), length_bucket=4).batch(np.arange(8))
    narrow = dataclasses.replace(batch, token_ids=wrapped.backbone.trim(batch.token_ids))
    assert narrow.token_ids.shape != batch.token_ids.shape
    torch.testing.assert_close(wrapped.loss(batch), wrapped.loss(narrow), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "options"), [("ace_lora", {}), ("taskres", {})])
def test_lengths_count_only_where_texts_are_padded_to_the_longest(name: str, options: dict) -> None:
    wrapped = method(name, **options)
    plain, bucketed = made(wrapped, words()), made(wrapped, words(), length_bucket=4)
    assert all(same(one, other) for one, other in zip(plain.epoch(1), bucketed.epoch(1), strict=True))


# ---------------------------------------------------------------------------------------------- several processes
@pytest.mark.parametrize("bucket", [0, 3])
def test_shares_of_all_processes_make_up_the_batch(bucket: int) -> None:
    data, wrapped = words(), method("clip_lora")
    whole = made(wrapped, data, length_bucket=bucket)
    shares = [made(wrapped, data, length_bucket=bucket, rank=rank, size=4) for rank in range(4)]
    assert [part.steps for part in shares] == [12] * 4
    for batch, *parts in zip(whole.epoch(1), *(part.epoch(1) for part in shares), strict=True):
        assert [part.size for part in parts] == [2] * 4
        assert torch.equal(torch.cat([part.images for part in parts]), batch.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
        for start, part in zip(range(0, 8, 2), parts, strict=True):
            width = part.token_ids.shape[1]
            assert torch.equal(part.token_ids, batch.token_ids[start : start + 2, :width])


def test_rows_that_are_asked_for_are_not_shared() -> None:
    assert made(method("clip_lora"), corpus(16), rank=1, size=2).batch(np.arange(6)).size == 6


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match="--batch-size 8 .* must be a multiple of 3"):
        made(method("clip_lora"), corpus(16), size=3)
