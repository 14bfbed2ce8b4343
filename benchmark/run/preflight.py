"""Checks whether a run can start and what it will cost: data, weights, hardware and steps, without opening any image.

A missing item is reported with the command that gets it. Times are measured or left out.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from benchmark.backbones import Backbone, check_backbone, load_backbone
from benchmark.config.experiments import named_backbones
from benchmark.config.fewshot import shares
from benchmark.config.run_config import RunConfig
from benchmark.console import NullReporter, duration
from benchmark.data.batch_size import too_few
from benchmark.data.batches import PairBatches
from benchmark.data.entries import data_entries, load_dataset, needed
from benchmark.data.features import FrozenFeatures
from benchmark.data.prepare import splits
from benchmark.data.prepare.raw import RawDataset
from benchmark.data.prepared import MANIFEST, folder_transforms, read_report
from benchmark.data.samples import PairData, pairs
from benchmark.errors import BenchmarkError, ConfigError, unknown
from benchmark.machine import (
    available_memory,
    find_devices,
    limit_threads,
    threads_each,
    usable_cores,
    use_device,
)
from benchmark.plan import make_plan
from benchmark.preprocess import Fitting, preprocess_of
from benchmark.registry import BACKBONES, DATASETS, is_deterministic
from benchmark.run.build import build_method
from benchmark.run.checks.overlap import overlaps
from benchmark.run.identity import check
from benchmark.run.preflight_few import Supports, costs, supports
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.trainer import Trainer
from benchmark.store.cells import Store

State = Literal["ok", "note", "missing"]
STEPS, _WARM_UP = 20, 3
"""Steps that are timed per method, and how many of them do not count."""
GB = 1e9
_FETCH, _BY_HAND = " Fetch it: ", "--pretrained FILE"


@dataclass(frozen=True)
class Item:
    """One line of the verdict.

    Attributes:
        group: "data", "weights", "hardware", "cost", or "models": those that rows of tables name beside the run's own.
        name: what it is about. state: "missing" stops the run, "note" does not.
        found: what is here. todo: how to get what is missing.
    """

    group: str
    name: str
    state: State
    found: str
    todo: str = ""


def validate(config: RunConfig, *, probe: int = 0, images: bool = False) -> list[Item]:
    """Look at everything a run needs.

    Args:
        config: of the run.
        probe: steps to time per method on a CPU, where it takes long; on a GPU it is done anyway. 0: none on a CPU.
        images: also compare the images of all datasets with each other, as a run does before it begins.

    Returns:
        The items; the run can start when none of them is "missing".
    """
    weights, model = _weights(config)
    fitting = None if model is None else model.fitting
    items = [*_data(config, fitting), *(_shared(config, fitting) if images else ()), weights]
    counted, lines = supports(config)
    items += [Item("data", *line) for line in lines]
    pairs = None if config.pools else _corpus_pairs(config)
    hardware, devices = _hardware(config, model)
    items += [*hardware, *_disk(config, model, pairs)]
    ready = all(item.state != "missing" for item in items)
    return [*items, *_cost(config, pairs, counted, devices, probe, ready)]


def models(config: RunConfig) -> Iterator[Item]:
    """Say which of the other models that the suite's tables have rows for are here, and where the rest is published."""
    stands_for_paper = bool(config.suite.get("paper"))  # others only have the models that the user names
    for name in named_backbones(config.suite):
        if not stands_for_paper and config.weights_of(name) is None:
            continue
        if name != config.backbone:
            yield model_item(name, config.weights_of(name))


def model_item(name: str, pretrained: str | None) -> Item:
    """Say whether a model's files are here; when they are not, its row is left blank and the run goes on."""
    plugin = BACKBONES.get(name)
    about: dict[str, str] = plugin.about(name) if hasattr(plugin, "about") else {}
    terms = f"licence: {about['licence']}" if about.get("licence") else ""
    try:
        found = check_backbone(name, pretrained=pretrained)
        lines = [] if found is None else found.lines()
        return Item("models", name, "ok", "; ".join(filter(None, [*lines, terms])))
    except BenchmarkError as error:
        reasons = str(error).split("; ")
        known = terms and not pretrained and not isinstance(error, ConfigError)
        reason = f"not here; {terms}" if known else str(error)
    ways = [about.get("link", ""), *(line.partition(_FETCH)[2] for line in reasons)]
    if any(_BY_HAND in line for line in reasons):
        ways.append(f"weights.{name.partition(':')[0]}=FILE")
    return Item("models", name, "note", reason, "; ".join(filter(None, ways)))


# ---------------------------------------------------------------------------- data
def _suites(config: RunConfig) -> list[Mapping[str, Any]]:
    """Return what cells read: with a few-shot protocol one suite per dataset that methods learn from."""
    if not config.pools:
        return [needed({**config.suite, "tasks": config.task_options}, config.methods)]
    found: dict[str, Mapping[str, Any]] = {}
    for share in (share for name in config.methods for share in shares(config, name)):
        dataset = share.suite["support"]["dataset"]
        if len(share.suite) > len(
            found.get(dataset, ())
        ):  # those of methods that learn have validation images too
            found[dataset] = share.suite
    return list(found.values())


def _data(config: RunConfig, fitting: Fitting | None) -> Iterator[Item]:
    seen = set()
    for entry in (entry for suite in _suites(config) for entry in data_entries(suite)):
        keys = ("dataset", "name", "published", "protocol", "part")
        name = " ".join(str(entry[key]) for key in keys if key in entry)
        one = (name, *(str(entry.get(key)) for key in ("file", "images", "source", "shards")))
        if one not in seen:
            seen.add(one)
            yield _data_item(name, entry, config, fitting)


def _shared(config: RunConfig, fitting: Fitting | None) -> Iterator[Item]:
    """Yield what datasets share by content; images of a test set that a model has seen stop the run."""
    found = [
        item
        for suite in _suites(config)
        for item in overlaps(suite, config.data_root, NullReporter(), fitting=fitting, limit=config.limit)
    ]
    for item in found:
        stops = item.stops and not config.allow_overlap
        todo = "take them out of one of the two, or go on with allow_overlap=true" if stops else ""
        yield Item("data", f"{item.use} and {item.other}", "missing" if stops else "note", str(item), todo)
    if fitting is None:
        found_later = "those that are fitted to the model are compared once its weights are here"
        yield Item("data", "images", "note", found_later)
    elif not found:
        yield Item("data", "images", "ok", "no two datasets share any")


def _data_item(name: str, entry: Mapping[str, Any], config: RunConfig, fitting: Fitting | None) -> Item:
    try:
        dataset = DATASETS.get(entry["dataset"])
        if isinstance(dataset, RawDataset):
            return _prepared(name, dataset.select(entry), entry, config.data_root, fitting)
        if getattr(dataset, "fits_images", False):  # but not before it is told how
            rows = len(load_dataset(entry, config.data_root, NullReporter()))
            return Item("data", name, "ok", f"{rows:,} rows; images are prepared on first use")
        if entry is config.suite.get("corpus"):  # shows whether it has the backbone's size; tests stay closed
            load_dataset(entry, config.data_root, NullReporter(), fitting)
        return Item("data", name, "ok", "nothing to prepare: its plugin makes it when it is first used")
    except BenchmarkError as error:
        return Item("data", name, "missing", str(error))


def _prepared(
    name: str, dataset: RawDataset, entry: Mapping[str, Any], data_root: Path, fitting: Fitting | None
) -> Item:
    folder, access = data_root / dataset.name, dataset.access
    have = folder_transforms(folder)
    transform = dataset.transform(have, entry.get("crop"), fitting)
    command = dataset.command_for(data_root, transform)
    if not have:
        source = f"{access.url} ({access.kind} access): {access.how}. Then: {command}"
        return Item("data", name, "missing", f"not prepared in {data_root}", source)
    if transform not in have:
        return Item("data", name, "missing", f"prepared as {', '.join(have)}, not as {transform}", command)
    report = read_report(folder)
    for file in (MANIFEST, *report["transforms"][transform].values()):
        path, expected = folder / file, report["files"].get(file, {}).get("bytes")
        if not path.is_file() or path.stat().st_size != expected:
            return Item(
                "data", name, "missing", f"{path} is missing or cut short", f"delete {folder}; {command}"
            )
    rows = _rows(report, entry)
    if rows is None:
        column = _split_column(entry)
        known = [value for value in report["columns"].get(column, {}) if value]
        return Item("data", name, "missing", unknown(f"value of {column}", str(entry.get("part")), known))
    notes = [*report["info"].get("notes", [])]
    split = _split(report)
    found = f"{rows:,} images, {transform}, splits: {split}" + "".join(f"; {note}" for note in notes)
    return Item("data", name, "note" if notes or split.startswith(splits.NOT_PUBLISHED) else "ok", found)


def _split_column(entry: Mapping[str, Any]) -> str:
    return f"split_{entry['protocol']}" if entry.get("protocol") else "split"


def _rows(report: Mapping[str, Any], entry: Mapping[str, Any]) -> int | None:
    """Return the images of a part, from the counts of the report; None when there is no such part."""
    counts = report["columns"].get(_split_column(entry))
    if entry.get("part") is not None:
        return None if counts is None else counts.get(entry["part"])
    return int(report["images"]) if counts is None else sum(n for value, n in counts.items() if value)


def _split(report: Mapping[str, Any]) -> str:
    states = [str(facts["status"]) for facts in report.get("splits", {}).values()]
    wrong = [state for state in states if state.startswith(splits.NOT_PUBLISHED)]
    return (wrong or [state for state in states if state != "published"] or states or ["none"])[0]


def _corpus_pairs(config: RunConfig) -> int | None:
    """Return the pairs to adapt on; None when the corpus is not there."""
    entry = config.suite.get("corpus")
    if not entry:
        return None
    try:
        dataset = DATASETS.get(entry["dataset"])
        if isinstance(dataset, RawDataset):
            count = _rows(read_report(config.data_root / dataset.select(entry).name), entry)
        else:
            count = len(load_dataset(entry, config.data_root, NullReporter()))
    except BenchmarkError:
        return None
    if count is not None:  # patients come whole, so it can be a few more
        count = math.ceil(count * float(entry.get("fraction", 1)))
    limits = [limit for limit in (count, entry.get("limit"), config.limit) if limit is not None]
    return None if count is None else min(limits)


# ---------------------------------------------------------------------------- weights and hardware
@dataclass(frozen=True)
class _Model:
    """The facts about a backbone that other checks need: how images are fitted, width of the shared space, weights."""

    fitting: Fitting
    embed_dim: int
    values: int


def _weights(config: RunConfig) -> tuple[Item, _Model | None]:
    name, pretrained = config.backbone, config.pretrained
    try:
        found = check_backbone(name, pretrained=pretrained)
        if found is not None:
            model = _Model(preprocess_of(found).fitting, int(found.config["embed_dim"]), found.values())
            return Item("weights", name, "ok", "; ".join(found.lines())), model
        backbone = load_backbone(name, pretrained=pretrained)
    except BenchmarkError as error:
        line, _, command = str(error).partition(_FETCH)
        return Item("weights", name, "missing", line.rstrip("."), command), None
    values = sum(weight.numel() for weight in backbone.model.parameters())
    return Item("weights", name, "ok", "nothing to fetch"), _Model(
        preprocess_of(backbone).fitting, backbone.embed_dim, values
    )


def _hardware(config: RunConfig, model: _Model | None) -> tuple[list[Item], list[str]]:
    try:
        devices = find_devices(config.device)
    except BenchmarkError as error:
        return [Item("hardware", "device", "missing", str(error))], []
    need = 0 if model is None else 4 * model.values
    words = f"; the weights alone take {need / GB:.3g} GB, training more" if need else ""
    if devices[0] == "cpu":
        free = available_memory() * 2**30
        here = f"no GPU, {usable_cores()} cores, {free / GB:.1f} GB of memory free"
    else:
        index = int(devices[0].partition(":")[2])
        free = float(torch.cuda.mem_get_info(index)[0])
        here = f"{len(devices)} GPU, {torch.cuda.get_device_name(index)}, {free / GB:.1f} GB of memory free"
    state: State = "ok" if free > need else "missing"
    todo = "" if state == "ok" else "take a smaller backbone or free memory"
    return [Item("hardware", "device", state, here + words, todo)], devices


def _disk(config: RunConfig, model: _Model | None, pairs: int | None) -> Iterator[Item]:
    need = 0 if model is None or pairs is None else 2 * 4 * pairs * model.embed_dim
    for name, folder in (("--data-root", config.data_root), ("--output-dir", config.output_dir)):
        existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(existing).free
        words = f"{free / GB:,.0f} GB free in {folder}"
        if name == "--data-root" and need:
            words += f"; cached features of the corpus take up to {need / GB:.2g} GB"
        enough = free > (need if name == "--data-root" else 0)
        yield Item("hardware", name, "ok" if enough else "missing", words, "" if enough else "free space")


# ---------------------------------------------------------------------------- cost
def _cost(
    config: RunConfig,
    pairs: int | None,
    counted: Mapping[str, Supports],
    devices: list[str],
    probe: int,
    ready: bool,
) -> Iterator[Item]:
    try:
        store = Store(config.output_dir)
        plan = make_plan(config, store)
        compared = check(plan, store, elsewhere=config.engine == "ray")
    except BenchmarkError as error:
        yield Item("cost", "plan", "missing", str(error))
        return
    done = len(plan.cells) - len(plan.open)
    words = "" if compared else "; a run compares them first with data that are not made yet"
    found = f"{len(plan.open)} runs to do, {done} finished ones are reused{words}"
    yield Item("cost", "plan", "ok" if compared else "note", found)
    if config.pools:
        yield from (Item("cost", *line) for line in costs(config, counted))
        yield Item("cost", "time", "note", "not measured: steps are timed on pairs alone")
        return
    steps = {name: _steps(config, name, pairs) for name in config.methods}
    few = {name: _too_few(config, name, pairs) for name in config.methods}
    times, reason = _times(config, steps, devices, probe, ready and not any(few.values()))
    total = 0.0
    for name in config.methods:
        runs = sum(cell.spec.method == name for cell in plan.open)
        if lacking := few[name]:
            yield Item("cost", name, "missing", f"the corpus has {lacking[0]}", lacking[1])
            continue
        timing = times.get(name)
        words = f"{runs} x {_steps_words(config, name, steps[name], pairs)}"
        if isinstance(timing, str):
            yield Item("cost", name, "note", f"{words}; probe failed: {timing}")
            continue
        if timing is not None and steps[name] is not None:
            seconds = timing.seconds * steps[name]
            total += runs * seconds
            memory = f", {timing.peak_bytes / GB:.1f} GB" if timing.peak_bytes else ""
            words += f"; {1000 * timing.seconds:,.0f} ms a step{memory}: {duration(seconds)} a run"
        yield Item("cost", name, "ok", words)
    if total:
        workers = config.jobs or (len(devices) if devices[0] != "cpu" else usable_cores())
        side = min(workers, max(1, len(plan.open)))
        found = f"about {duration(total / side)} of training steps, {side} side by side; validation and tests on top"
        yield Item("cost", "time", "ok", f"{found} (measured on {devices[0]})")
    else:
        yield Item("cost", "time", "note", f"not measured: {reason}")


def _too_few(config: RunConfig, name: str, pairs: int | None) -> tuple[str, str] | None:
    trains = not is_deterministic(name)
    return too_few(pairs, config.recipes[name].batch_size) if trains and pairs is not None else None


def _steps(config: RunConfig, name: str, pairs: int | None) -> int | None:
    """Return the optimiser steps of one run; None when the corpus has not been counted."""
    recipe = config.recipes[name]
    if is_deterministic(name):
        return 0
    if pairs is None:
        return recipe.max_steps
    planned = recipe.epochs * (pairs // recipe.batch_size)
    return planned if recipe.max_steps is None else min(planned, recipe.max_steps)


def _steps_words(config: RunConfig, name: str, steps: int | None, pairs: int | None) -> str:
    recipe = config.recipes[name]
    if steps == 0:
        return "no training"
    if pairs is None or steps is None:
        return f"{recipe.epochs} epochs of batch {recipe.batch_size}; the corpus is not counted yet"
    return f"{steps:,} steps ({pairs:,} pairs, batch {recipe.batch_size}, at most {recipe.epochs} epochs)"


def _times(
    config: RunConfig, steps: Mapping[str, int | None], devices: list[str], probe: int, ready: bool
) -> tuple[dict[str, Any], str]:
    """Return method -> its timing, or the line with which it failed; or why nothing was measured."""
    if not ready:
        return {}, "something is missing"
    if devices[0] == "cpu" and not probe:
        return {}, "no GPU here; --probe times steps on this CPU"
    if devices[0] == "cpu":
        limit_threads(threads_each(config.jobs or usable_cores()))
    times: dict[str, Any] = {}
    try:
        with prober(config, devices[0], probe or STEPS) as time:
            for name in (name for name, count in steps.items() if count != 0):
                try:
                    times[name] = time(name)
                except BenchmarkError as error:
                    times[name] = str(error)
    except BenchmarkError as error:
        return {}, str(error)
    return times, ""


def as_json(items: list[Item]) -> dict[str, Any]:
    """Return the verdict as JSON types."""
    ready = all(item.state != "missing" for item in items)
    return {"ready": ready, "items": [dataclasses.asdict(item) for item in items]}


@dataclass(frozen=True)
class Timing:
    """What a step of one method costs: its median seconds, and the most bytes that torch allocated on a GPU."""

    seconds: float
    peak_bytes: int | None


class _Nowhere(Checkpoint):
    """Keeps nothing."""

    def load(self, say: object = None) -> None:
        return None

    def save(self, state: dict[str, Any]) -> None:
        pass


@contextmanager
def prober(config: RunConfig, device: str, steps: int) -> Iterator[Callable[[str], Timing]]:
    """Load the backbone and yield a function that times a method.

    Args:
        config: of the run; its corpus must be prepared.
        device: one device.
        steps: timed steps, those of the warm-up included.
    """
    use_device(device)
    backbone = load_backbone(config.backbone, pretrained=config.pretrained)
    entry, quiet = config.suite["corpus"], NullReporter()
    corpus = pairs(str(entry["dataset"]), load_dataset(entry, config.data_root, quiet))
    with tempfile.TemporaryDirectory() as folder:
        shown = copy.deepcopy(backbone).to(device)
        frozen = FrozenFeatures(shown, Path(folder), precision="auto", batch_size=64, reporter=quiet)
        place = torch.device(device)
        yield lambda name: _timed(config, name, copy.deepcopy(backbone).to(place), corpus, frozen, steps)


def _timed(
    config: RunConfig, name: str, backbone: Backbone, corpus: PairData, frozen: FrozenFeatures, steps: int
) -> Timing:
    recipe, device = config.recipes[name], backbone.logit_scale.device
    sample = _sample(corpus, steps * recipe.batch_size, backbone.input_spec.size)
    method = build_method(name, backbone, config.options[name], recipe)
    batches = PairBatches(method, sample, frozen, batch_size=recipe.batch_size, seed=0, device=device)
    short = dataclasses.replace(
        recipe, max_steps=steps, epochs=math.ceil(steps / batches.steps), log_every=1, select="last"
    )
    outcome = Trainer(
        method, batches, short, validate=lambda _: {"none": 0.0}, metric="none",
        checkpoint=_Nowhere(Path("unused"), ""), device=device, reporter=NullReporter(),
    ).run()  # fmt: skip
    seconds = outcome.step_seconds[min(_WARM_UP, steps - 1) :]
    return Timing(float(np.median(seconds)), outcome.peak_memory if device.type == "cuda" else None)


def _sample(corpus: PairData, wanted: int, size: tuple[int, ...]) -> PairData:
    """Return the first pairs with noise for images: nothing is read, and time does not depend on what they show."""
    count = min(wanted, len(corpus.texts))
    channels = corpus.pixels.shape[len(size) + 1 :]
    noise = np.random.default_rng(0).integers(0, 256, (count, *size, *channels), dtype=np.uint8)
    return dataclasses.replace(
        corpus,
        pixels=noise,
        texts=corpus.texts[:count],
        labels=None if corpus.labels is None else corpus.labels[:count],
        ids=corpus.ids[:count],
        digest=f"noise-{count}",
    )
