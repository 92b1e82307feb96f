"""The loop: what happens at which step, whatever a step does."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.checkpoint.state import TrainState
from pipeline.checkpoint.store import Store, read
from pipeline.checkpoint.writer import Writer
from pipeline.data.bad import BadSpec, Replaced, Tally
from pipeline.engine.guard import Course, Overflows
from pipeline.engine.loop import Loop, StepReport, capture, train
from pipeline.engine.signals import StopWish
from pipeline.engine.step import Agree
from pipeline.engine.watchdog import Unwatched
from pipeline.parallel.strategy import Tensors
from pipeline.parallel.world import World
from pipeline.run.beats import Section
from pipeline.spec import Failure

TOTAL = 20
WORLD = World(0, 1, torch.device("cpu"))


class FakeStepper:
    """Counts steps in a weight; a real stepper needs a model and data."""

    is_compiled = False

    def __init__(self) -> None:
        self.world = WORLD
        self.weight = torch.zeros(1)
        self.strategy = SimpleNamespace(
            snapshot=lambda: Tensors({"w": self.weight}, {"slot/w": self.weight}, {})
        )
        self.model = SimpleNamespace(state_dict=lambda: {"w": self.weight, "bn": self.weight})
        self.ema = SimpleNamespace(module=SimpleNamespace(state_dict=lambda: {"w": self.weight}))
        self.overflows = Overflows()

    def run(self, batches: list[Any], plan: Any, agree: Agree) -> torch.Tensor:
        share = torch.tensor(float(plan))
        if agree(share)():
            self.weight += 1
        return share


def make_loop(tmp_path: Path, stepper: FakeStepper, wish: StopWish, stop_at: int = -1, **kw: Any):
    told: list[StepReport] = []
    evaluated: list[int] = []

    def batches(first: int) -> Iterator[list[Any]]:
        for step in range(first, TOTAL):
            if step + 1 == stop_at:
                wish.reason = "SIGUSR2"
            yield [SimpleNamespace(replaced=kw.get("bad", {}).get(step + 1, ()))]

    def evaluate(step: int) -> float:
        evaluated.append(step)
        return {8: 0.9}.get(step, 0.5)

    store = Store(tmp_path / "checkpoints", keep=3, fence=lambda: None)
    store.prepare()
    loop = Loop(
        plan=SimpleNamespace(total_steps=TOTAL, at=lambda step: step),  # type: ignore[arg-type]
        stepper=stepper,  # type: ignore[arg-type]
        batches=batches,
        data_wait_s=lambda: 0.25,
        report=told.append,
        evaluate=evaluate,
        writer=Writer(store, print),
        tally=kw.get("tally", Tally(BadSpec(), 1000, 10)),
        name_bad=kw.get("named", []).extend,
        facts={"recipe": "r"},
        save_every=kw.get("save_every", 5),
        evaluate_every=kw.get("evaluate_every", 8),
        watch=kw.get("watch", Unwatched()),
    )
    return loop, told, evaluated, store


def bad(*ids: int) -> tuple[Replaced, ...]:
    return tuple(Replaced(n, n + 1, f"a.tar: sample 's{n}': cut") for n in ids)


def start(step: int = 0) -> TrainState:
    return TrainState(step, {}, {}, {}, {})


def test_every_step_is_reported_once_with_its_own_loss(tmp_path: Path) -> None:
    loop, told, _, _ = make_loop(tmp_path, FakeStepper(), StopWish())
    _, complete = train(loop, start(), StopWish())
    assert complete
    assert [report.step for report in told] == list(range(1, TOTAL + 1))
    assert [report.loss for report in told] == [float(step) for step in range(TOTAL)]
    assert {report.data_wait_s for report in told} == {0.25}


def test_saves_and_evaluations_come_at_their_intervals_and_at_the_end(tmp_path: Path) -> None:
    loop, _, evaluated, store = make_loop(tmp_path, FakeStepper(), StopWish())
    state, _ = train(loop, start(), StopWish())
    assert evaluated == [8, 16, 20]
    assert sorted(p.name for p in store.folder.glob("step-*")) == [
        f"step-{step:09d}" for step in (10, 15, 20)
    ]
    assert state.step == TOTAL
    assert (state.best_metric, state.best_step) == (0.9, 8)


def test_a_checkpoint_holds_the_weights_of_its_step(tmp_path: Path) -> None:
    loop, _, _, store = make_loop(tmp_path, FakeStepper(), StopWish())
    train(loop, start(), StopWish())
    assert read(store.folder / "step-000000015").weights["w"].item() == 15
    assert read(store.folder / "step-000000015").buffers.keys() == {"bn"}


def test_a_stop_wish_is_agreed_in_its_step_saved_and_committed(tmp_path: Path) -> None:
    wish = StopWish()
    loop, told, _, store = make_loop(tmp_path, FakeStepper(), wish, stop_at=7)
    state, complete = train(loop, start(), wish)
    assert not complete
    assert state.step == 7
    assert (store.folder / "LATEST").read_text().strip() == "step-000000007"
    assert told[-1].step == 7


def test_a_wish_at_the_very_end_finishes_the_training(tmp_path: Path) -> None:
    wish = StopWish()
    loop, told, _, _ = make_loop(tmp_path, FakeStepper(), wish, stop_at=TOTAL)
    state, complete = train(loop, start(), wish)
    assert complete
    assert state.step == told[-1].step == TOTAL


def test_resuming_starts_with_the_next_step_and_keeps_the_best(tmp_path: Path) -> None:
    loop, told, _, _ = make_loop(tmp_path, FakeStepper(), StopWish())
    before = start(12)
    before.best_metric, before.best_step = 0.95, 8
    state, _ = train(loop, before, StopWish())
    assert told[0].step == 13
    assert (state.best_metric, state.best_step) == (0.95, 8)


def test_a_last_checkpoint_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, _, _, store = make_loop(tmp_path, FakeStepper(), StopWish(), save_every=20)

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipeline.checkpoint.store.write_json", full)
    with pytest.raises(OSError, match="could not be written"):
        train(loop, start(), StopWish())
    assert list(store.folder.glob("step-*")) == []


def test_a_captured_state_splits_weights_from_buffers() -> None:
    course = Course(4, (0.1, 2), (3,), ())
    state = capture(FakeStepper(), course)  # type: ignore[arg-type]
    assert (state.step, state.best_metric, state.best_step) == (4, 0.1, 2)
    assert state.bad_steps == (3,)
    assert state.weights.keys() == {"w"}
    assert state.buffers.keys() == {"bn"}


def test_bad_samples_are_counted_in_every_report_and_named_once(tmp_path: Path) -> None:
    named: list[Replaced] = []
    tally = Tally(BadSpec(budget=0.1), 1000, 10)
    loop, told, _, _ = make_loop(
        tmp_path,
        FakeStepper(),
        StopWish(),
        tally=tally,
        named=named,
        bad={3: bad(7), 5: bad(7, 8, 8), 20: bad(9)},
    )
    _, complete = train(loop, start(), StopWish())
    assert complete
    counts = [report.bad_samples for report in told]
    assert counts == [0] * 2 + [1] * 2 + [4] * 15 + [5]
    assert [item.sample_id for item in named] == [7, 8, 9]
    assert tally.used == 10 * TOTAL


def test_a_saved_state_knows_how_many_samples_were_bad(tmp_path: Path) -> None:
    loop, _, _, store = make_loop(
        tmp_path,
        FakeStepper(),
        StopWish(),
        tally=Tally(BadSpec(budget=0.1), 1000, 10),
        bad={3: bad(7), 7: bad(7, 8)},
    )
    state, complete = train(loop, start(), StopWish())
    assert complete and state.bad_samples == 3
    assert read(store.folder / f"step-{TOTAL:09d}").bad_samples == 3


def test_a_spent_budget_ends_the_attempt_after_its_step_is_reported(tmp_path: Path) -> None:
    loop, told, _, store = make_loop(
        tmp_path,
        FakeStepper(),
        StopWish(),
        tally=Tally(BadSpec(policy="budget", budget=0.01), 100, 10),
        bad={4: bad(1), 7: bad(2)},
    )
    with pytest.raises(Failure, match=r"2 of 70 samples .*first here: a.tar: sample 's1': cut"):
        train(loop, start(), StopWish())
    assert (told[-1].step, told[-1].bad_samples) == (7, 2)
    assert loop.writer is not None and loop.writer.wait()
    assert read(store.folder / "step-000000005").step == 5, "what was saved before stays"


class Diary:
    """A watch that remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, str]] = []

    def enter(self, section: Section, step: int, deadline_of: Section | None = None) -> None:
        self.told.append((section.value, step, deadline_of.value if deadline_of else ""))


def test_every_part_of_a_step_is_in_a_section(tmp_path: Path) -> None:
    diary = Diary()
    loop, *_ = make_loop(tmp_path, FakeStepper(), StopWish(), watch=diary, evaluate_every=4)
    train(loop, start(17), StopWish())
    assert diary.told == [
        ("data", 18, ""), ("step", 18, ""), ("data", 19, ""), ("step", 19, ""),
        ("data", 20, ""), ("step", 20, ""), ("evaluate", 20, ""), ("checkpoint", 20, ""),
        ("checkpoint", 20, ""),
    ]  # fmt: skip


def test_where_shapes_are_compiled_a_stages_first_step_may_take_longer(tmp_path: Path) -> None:
    diary, stepper = Diary(), FakeStepper()
    stepper.is_compiled = True
    loop, *_ = make_loop(tmp_path, stepper, StopWish(), watch=diary)
    stages = SimpleNamespace(
        total_steps=TOTAL, at=lambda step: Staged(step, stage=0 if step < 18 else 1)
    )
    train(replace(loop, plan=stages), start(16), StopWish())
    steps = [(step, limit) for section, step, limit in diary.told if section == "step"]
    assert steps == [(17, "compile"), (18, ""), (19, "compile"), (20, "")]


class Staged(int):
    """A step's plan that is its number, with a stage."""

    stage: int

    def __new__(cls, step: int, stage: int) -> "Staged":
        plan = super().__new__(cls, step)
        plan.stage = stage
        return plan
