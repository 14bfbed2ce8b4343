"""Two processes train as one: the same gradients for every method, the same run, and one end for both."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import methods
from benchmark import machine
from benchmark.config.run_config import Recipe
from benchmark.conformance.small_models import moved, small_batch, with_classes
from benchmark.console import NullReporter, QueueReporter, Stopped
from benchmark.data.batches import PairBatches
from benchmark.data.samples import Batch
from benchmark.errors import CellError
from benchmark.registry import METHODS
from benchmark.run.training.checkpoint import Checkpoint
from benchmark.run.training.gradients import backward
from benchmark.run.training.trainer import Trainer
from benchmark.world import ALONE, World
from methods.base import Method
from tests.pair import Pair
from tests.small import CPU, RECIPE, corpus, frozen, method

NAMES = METHODS.names(extras=False)
TUNERS = ("peft:adalora", "peft:ia3")  # one whose loss has a term of the weights alone
FAMILY = "timm+bert"
OFF = torch.amp.GradScaler("cpu", enabled=False)


# ---------------------------------------------------------------------------------------------- gradients
@dataclasses.dataclass(frozen=True)
class Case:
    """A step: of which method, on which pairs, how."""

    name: str
    micro: int | None = None
    negatives: str = "global"
    labels: bool = True
    train: bool = False
    pairs: int = 8
    classes: bool = False


def share(built: Method, batch: Batch, rank: int, size: int) -> Batch:
    """Return the rows of one process, its texts as short as they allow."""
    rows = slice(rank * batch.size // size, (rank + 1) * batch.size // size)
    own = batch.changed(lambda value: value[rows])
    if built.text_padding == "longest" and own.token_ids is not None:
        own.token_ids = built.backbone.trim(own.token_ids)
    return own


def prepared(case: Case) -> tuple[Method, Batch]:
    built, _ = moved(functools.partial(methods.build, case.name), FAMILY)
    batch = small_batch(built.backbone, case.pairs)
    batch.labels = batch.labels if case.labels else None
    batch = with_classes(built, batch) if case.classes else batch
    built.train(case.train)  # dropout draws in each process on its own: off
    torch.manual_seed(7)
    return built, batch


def step(world: World, case: Case) -> tuple[float, dict[str, Tensor], dict[str, Tensor]]:
    """Return loss, gradients and the trained values after one step of the optimiser."""
    built, batch = prepared(case)
    if case.negatives == "local":
        batch = share(built, batch, world.rank, world.size)
        loss = world.mean(backward(built, batch, case.micro, OFF))
    else:
        own = share(built, batch, world.rank, world.size) if built.splits else batch
        loss = backward(built, own, case.micro, OFF, world)
    trained = built.trainable_parameters()
    world.mean_gradients(trained.values())
    gradients = {name: value.grad.clone() for name, value in trained.items() if value.grad is not None}
    torch.optim.AdamW(trained.values(), lr=1e-3).step()
    return float(loss), gradients, built.trainable_state()


def differing(ours: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> list[str]:
    """Return the names of tensors that differ by more than ``tolerance``, relative to the largest gradient."""
    assert ours.keys() == expected.keys()
    size = max(float(value.abs().max()) for value in expected.values())
    return [
        name
        for name, value in expected.items()
        if float((ours[name] - value).abs().max()) > tolerance * max(1.0, size)
    ]


def assert_as_one(found: list[Any], case: Case) -> None:
    for result in found:
        if isinstance(result, BaseException):
            raise result
    expected = step(ALONE, case)
    for loss, gradients, after in found:
        assert loss == pytest.approx(expected[0], abs=1e-5)
        assert not differing(gradients, expected[1], 1e-5)
        # Adam divides by the gradient's size: where that is nearly nothing, its sign is rounding
        clear = {name: value.abs() > 1e-5 for name, value in expected[1].items()}
        for name, keep in clear.items():
            assert float(((after[name] - expected[2][name]) * keep).abs().max()) < 1e-5, name
    for name, value in found[0][2].items():
        assert torch.equal(value, found[1][2][name]), name  # weights never drift apart


@pytest.mark.parametrize("name", [*(name for name in NAMES if name != "zero_shot"), *TUNERS])
def test_two_processes_make_the_step_of_one(both: Pair, name: str) -> None:
    case = Case(name)
    assert_as_one(both(step, case), case)


@pytest.mark.parametrize(
    "case",
    [
        Case("clip_lora", labels=False),
        Case("clip_lora", micro=3),  # parts of 3 and 1
        Case("mmrl", micro=1),  # frozen features among what is gathered
        Case("cocoop", train=True),  # one anchor, drawn alike: 15 texts for two processes
        Case("cocoop", labels=False, pairs=2),
        Case("clip_lora", micro=3, classes=True),
        Case("mmrl", classes=True),
        Case("cocoop", classes=True),
    ],
    ids=str,
)
def test_so_do_steps_of_other_kinds(both: Pair, case: Case) -> None:
    assert_as_one(both(step, case), case)


def test_labels_of_the_other_process_take_part_in_the_mask() -> None:
    batch = prepared(Case("clip_lora"))[1]
    halves = batch.labels[:4], batch.labels[4:]
    assert any(
        torch.equal(a, b) for a in halves[0] for b in halves[1]
    )  # else the steps above would not show it


def test_local_negatives_are_the_mean_of_both_halves(both: Pair) -> None:
    case = Case("clip_lora", negatives="local", micro=2)
    found = both(step, case)
    losses, halves = [], []
    for rank in range(2):
        built, batch = prepared(case)
        losses.append(float(backward(built, share(built, batch, rank, 2), None, OFF)))
        halves.append({name: value.grad for name, value in built.trainable_parameters().items()})
    mean = {name: (value + halves[1][name]) / 2 for name, value in halves[0].items()}
    for loss, gradients, _ in found:
        assert loss == pytest.approx(sum(losses) / 2, abs=1e-5)
        assert not differing(gradients, mean, 1e-5)
    whole = step(ALONE, Case("clip_lora"))
    assert differing(whole[1], mean, 1e-3)  # fewer negatives are another loss


# ---------------------------------------------------------------------------------------------- what travels
def uneven(world: World) -> tuple[list[Tensor], Tensor]:
    rows = torch.arange(5.0)[world.part(5)].requires_grad_()
    joined = world.gather([rows, torch.full((len(rows), 2, 1), world.rank)], 5)
    (joined[0] ** 2).sum().backward()
    return [value.detach() for value in joined], rows.grad


def test_rows_are_gathered_in_order_and_gradients_add_up(both: Pair) -> None:
    found = both(uneven)
    for (rows, ranks), _ in found:
        assert rows.tolist() == [0, 1, 2, 3, 4]
        assert ranks.shape == (5, 2, 1)
        assert ranks[:, 0, 0].tolist() == [0, 0, 1, 1, 1]
    # d/dx of x^2 is 2x; twice that, of which the mean over two processes is taken
    assert [gradient.tolist() for _, gradient in found] == [[0, 4], [8, 12, 16]]


def missing_gradient(world: World) -> list[Any]:
    values = [torch.zeros(2), torch.zeros(3), torch.zeros((), dtype=torch.float64)]
    values[2].grad = torch.tensor(float(world.rank), dtype=torch.float64)
    if world.rank:
        values[0].grad = torch.tensor([2.0, 4.0])
    world.mean_gradients(values)
    return [None if value.grad is None else value.grad.tolist() for value in values]


def test_a_gradient_of_one_process_alone_counts_as_zero_in_the_other(both: Pair) -> None:
    assert both(missing_gradient) == [[[1.0, 2.0], None, 0.5]] * 2


def objects(world: World) -> tuple[Any, ...]:
    value = torch.full((2,), float(world.rank))
    world.copy_from_first([value])
    made = world.from_first(lambda: {"by": world.rank})
    return made, value.tolist(), world.mine("abcde"), float(world.mean(torch.tensor(float(world.rank))))


def test_what_the_first_process_makes_all_have(both: Pair) -> None:
    assert both(objects) == [
        ({"by": 0}, [0.0, 0.0], ["a", "c", "e"], 0.5),
        ({"by": 0}, [0.0, 0.0], ["b", "d"], 0.5),
    ]


def draws(world: World) -> list[list[float]]:
    torch.manual_seed(3)
    own = []
    for number in (1, 1, 2):
        with world.own_draws(number):
            own.append(torch.rand(3).tolist())
    return [*own, torch.rand(3).tolist()]


def test_draws_differ_between_processes_and_steps_but_not_between_runs(both: Pair) -> None:
    first, second = both(draws)
    assert first[0] == first[1]
    assert first[0] != first[2]
    assert first[0] != second[0]
    assert first[3] == second[3] == draws(ALONE)[0]  # outside, all draw as one process does


# ---------------------------------------------------------------------------------------------- failures
def fails(world: World, error: BaseException, rank: int) -> None:
    if world.rank == rank:
        raise error
    world.gather([torch.zeros(2)])


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize(
    ("error", "told"),
    [
        (CellError("no luck"), CellError("no luck")),
        (RuntimeError("boom\nhere"), CellError("RuntimeError: boom here")),
        (torch.OutOfMemoryError("full"), torch.OutOfMemoryError("full")),
        (Stopped("kept"), Stopped("kept")),
    ],
)
def test_a_failure_of_one_ends_both_with_one_line(
    both: Pair, error: BaseException, told: BaseException, rank: int
) -> None:
    found = both(fails, error, rank)
    assert str(found[rank]) == str(error)
    assert type(found[1 - rank]) is type(told)
    assert str(found[1 - rank]) == str(told)
    assert both(objects)[1][2] == ["b", "d"]  # and both go on


def both_fail(world: World) -> None:
    raise CellError("late") if world.rank else torch.OutOfMemoryError("full")


def test_the_worse_of_two_failures_counts(both: Pair) -> None:
    assert [(type(error), str(error)) for error in both(both_fail)] == [(CellError, "late")] * 2


def shapes(world: World) -> None:
    world.gather([torch.zeros(2, 3 + world.rank)])


def test_embeddings_of_other_shapes_are_no_riddle(both: Pair) -> None:
    for error in both(shapes):
        assert isinstance(error, CellError)
        assert "different shapes" in str(error)


# ---------------------------------------------------------------------------------------------- whole runs
class StoppedError(Exception):
    """Stands for whatever ends a process."""


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What happens to a run: the epoch whose validation fails, the step after which it is asked to stop, or the number
    of pairs at a time for which the second process lacks memory.
    """

    validation: int | None = None
    stop: int | None = None
    full: int | None = None
    full_in_validation: bool = False


def train(
    world: World,
    folder: Path,
    name: str,
    recipe: Recipe,
    options: dict[str, Any],
    trouble: Trouble = Trouble(),
) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """Adapt a method on a small corpus; validation scores the weights, and is the first process's business."""
    built = method(name, **options)
    joint = not built.splits and recipe.negatives == "global"
    batches = PairBatches(
        built, corpus(16), frozen(built.backbone), batch_size=recipe.batch_size, seed=0, device=CPU,
        rank=0 if joint else world.rank, size=1 if joint else world.size,
    )  # fmt: skip
    validated: list[int] = []
    steps: list[int] = []

    def validate(current: Method) -> dict[str, float]:
        assert world.is_first
        validated.append(1)
        if trouble.full_in_validation and len(validated) > 1:
            raise torch.OutOfMemoryError("full")
        if len(validated) - 1 == trouble.validation:
            raise StoppedError
        return {"auroc": sum(float(value.sum()) for value in current.trainable_state().values())}

    def stopping() -> bool:
        return world.is_first and len(steps) == trouble.stop

    original = built.embed

    def embed(batch: Batch) -> Any:
        if trouble.full is not None and world.rank == 1 and batch.size >= trouble.full:
            raise torch.OutOfMemoryError("full")
        steps.append(1)
        return original(batch)

    built.embed = embed  # type: ignore[method-assign]
    outcome = Trainer(
        built, batches, recipe, validate=validate, metric="auroc", device=CPU, world=world,
        reporter=QueueReporter(lambda message: None, stopping), checkpoint=Checkpoint(folder / "state.pt", "k"),
    ).run()  # fmt: skip
    rows = [{key: value for key, value in row.items() if key != "seconds"} for row in outcome.history]
    return rows, built.trainable_state()


# a large epsilon, as Adam's step is else the sign of a gradient however small
SHORT = dataclasses.replace(RECIPE, epochs=2, batch_size=8, eps=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "full"),
    [
        ("clip_lora", {"lora_dropout": 0.0}, None),
        ("clip_lora", {"lora_dropout": 0.0}, 4),
        ("cocoop", {}, None),
    ],
)
def test_a_run_of_two_is_the_run_of_one(
    both: Pair, tmp_path: Path, name: str, options: dict[str, Any], full: int | None
) -> None:
    found = both(train, tmp_path / "two", name, SHORT, options, Trouble(full=full))
    rows, state = train(ALONE, tmp_path / "one", name, SHORT, options)
    for result in found:
        assert not isinstance(result, BaseException), result
        for ours, expected in zip(result[0], rows, strict=True):
            assert ours == pytest.approx(expected, abs=1e-4)
        assert not differing(result[1], state, 1e-5)
    assert found[0][0] == found[1][0]


@pytest.mark.parametrize(
    ("trouble", "first", "second"),
    [(Trouble(validation=2), StoppedError, CellError), (Trouble(stop=3), Stopped, Stopped)],
    ids=["failed", "stopped"],
)
def test_an_interrupted_run_of_two_ends_bit_identically(
    both: Pair, tmp_path: Path, trouble: Trouble, first: type[BaseException], second: type[BaseException]
) -> None:
    arguments = ("clip_lora", SHORT, {"lora_dropout": 0.5})
    whole = both(train, tmp_path / "whole", *arguments)
    stopped = both(train, tmp_path / "parts", *arguments, trouble)
    assert [type(error) for error in stopped] == [first, second]
    resumed = both(train, tmp_path / "parts", *arguments)
    for ours, expected in zip(resumed, whole, strict=True):
        assert ours[0] == expected[0]
        assert all(torch.equal(ours[1][name], value) for name, value in expected[1].items())
    assert train(ALONE, tmp_path / "one", *arguments)[0] != whole[0][0]  # each process draws masks of its own


def test_local_negatives_train_on_halves(both: Pair, tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHORT, negatives="local", epochs=1)
    options = {"lora_dropout": 0.0}
    first, second = both(train, tmp_path / "two", "clip_lora", recipe, options)
    assert first[0] == second[0]
    assert (
        first[0][1]["train_loss"]
        < train(ALONE, tmp_path / "one", "clip_lora", recipe, options)[0][1]["train_loss"]
    )


def retried(world: World) -> list[int]:
    """Return how many tensors of a failed attempt are alive when the step is made again, for each attempt."""
    built, attempts, left = method("clip_lora"), [], []
    original = built.embed

    def embed(batch: Batch) -> Any:
        attempts.append(sum(one() is not None for one in left))
        made = original(batch)
        left.extend(map(weakref.ref, made.values()))
        if world.rank == 1 and batch.size > 2:
            raise torch.OutOfMemoryError("full")
        return made

    built.embed = embed  # type: ignore[method-assign]
    batches = PairBatches(
        built, corpus(8), frozen(built.backbone), batch_size=8, seed=0, device=CPU, rank=world.rank, size=2
    )
    own = Trainer(
        built.train(), batches, dataclasses.replace(SHORT, epochs=1), validate=lambda _: {}, metric="none",
        device=CPU, world=world, reporter=NullReporter(), checkpoint=Checkpoint(Path("none"), "k"),
    )  # fmt: skip
    gc.disable()  # nothing may be left to chance
    try:
        own._backward(next(batches.epoch(1)))
    finally:
        gc.enable()
    return attempts[:2]


def test_what_a_failed_attempt_held_is_free_when_the_step_is_made_again(both: Pair) -> None:
    """In the process that lacked memory and in the one that only heard of it."""
    assert both(retried) == [[0, 0]] * 2


def fails_once(world: World, folder: Path, place: str) -> None:
    """Lack memory in the second process's optimiser, or in the first one's validation."""
    full = torch.OutOfMemoryError("full")

    def step(*_: Any, **__: Any) -> None:
        raise full

    if place == "step" and world.rank == 1:
        torch.optim.AdamW.step, kept = step, torch.optim.AdamW.step  # type: ignore[method-assign]
    try:
        train(world, folder, "clip_lora", SHORT, {}, Trouble(full_in_validation=place == "validation"))
    finally:
        if place == "step" and world.rank == 1:
            torch.optim.AdamW.step = kept  # type: ignore[method-assign]


@pytest.mark.parametrize("place", ["step", "validation"])
def test_memory_that_lacks_elsewhere_ends_both(both: Pair, tmp_path: Path, place: str) -> None:
    """The others must not take it for a lack in their own step, and make that again alone."""
    kinds = {"step": CellError, "validation": torch.OutOfMemoryError}
    found = both(fails_once, tmp_path, place)
    assert [type(error) for error in found] == [kinds[place]] * 2
    assert both(objects)[1][2] == ["b", "d"]  # both go on


def test_memory_for_no_single_pair_ends_both(both: Pair, tmp_path: Path) -> None:
    found = both(train, tmp_path, "clip_lora", SHORT, {}, Trouble(full=1))
    assert {str(error).split(":")[0] for error in found} == {"out of memory with 1 pairs at a time"}


def test_a_loss_that_is_not_finite_in_one_process_ends_both(both: Pair, tmp_path: Path) -> None:
    found = both(not_finite, tmp_path)
    assert str(found[0]) == str(found[1])
    assert "the loss became nan before step 1" in str(found[0])


def not_finite(world: World, folder: Path) -> None:
    original = Method.loss_of
    if world.rank == 1:
        Method.loss_of = lambda *args: original(*args) * float("nan")  # type: ignore[method-assign]
    try:
        train(world, folder, "taskres", dataclasses.replace(SHORT, negatives="local"), {})
    finally:
        Method.loss_of = original  # type: ignore[method-assign]


# ---------------------------------------------------------------------------------------------- a process on its own
def test_a_process_on_its_own_exchanges_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "1")
    assert not machine.launched()  # one process of torchrun is a run like any other
    assert machine.processes() == 1
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert machine.launched()
    assert machine.processes() == 4
    rows = torch.ones(2, requires_grad=True)
    assert ALONE.gather([rows])[0] is rows
    assert ALONE.part(5) == slice(0, 5)
    assert ALONE.mine("abc") == ["a", "b", "c"]
