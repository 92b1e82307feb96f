"""Rehearsals leave no trace; stages are compiled as they begin and never in their midst."""

import copy
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from pipeline.data.batches import MicroBatch
from pipeline.data.preprocess import PreprocessSpec
from pipeline.engine.inputs import Inputs
from pipeline.engine.kernels import compile_model, graphs_compiled, set_kernels
from pipeline.engine.step import Stepper
from pipeline.engine.warmup import (
    is_out_of_memory,
    is_sharded,
    rehearse,
    rehearse_stages,
    rehearsed,
)
from pipeline.engine.watchdog import Unwatched
from pipeline.models.efficientnet import build
from pipeline.models.table import ModelSpec
from pipeline.optim.ema import Ema
from pipeline.optim.groups import param_groups
from pipeline.optim.loss import loss_fn
from pipeline.optim.rmsprop import FIRST_SLOTS, RMSpropTF
from pipeline.optim.settings import LossSpec
from pipeline.parallel.build import build_strategy
from pipeline.parallel.settings import ComputeSpec, DdpSpec, Precision
from pipeline.parallel.world import World
from pipeline.plan.durations import LengthSpec
from pipeline.plan.lr import LrSpec
from pipeline.plan.plan import EmaSpec, Plan, make_plan
from pipeline.plan.stages import StagesSpec
from pipeline.run.beats import Section
from pipeline.spec import Misuse

K, GLOBAL = 5, 16
SIZES = (16, 24, 32)

Make = Callable[..., Stepper]


@pytest.fixture
def make(world: World) -> Make:
    """Make a stepper of a tiny model with the real strategy."""

    def made(precision: Precision = "fp32", compiled: bool = False, device: str = "cpu") -> Stepper:
        here = World(0, 1, torch.device(device), owns_group=False)
        model = build(ModelSpec(name="tiny"), K, np.random.default_rng(0)).to(device)
        ema = Ema(model)
        optimizer = RMSpropTF(param_groups(model.named_parameters(), 1e-5), lr=0.0)
        compute = ComputeSpec(precision=precision)
        if compiled:
            compile_model(model, len(SIZES), backend="eager")
        strategy = build_strategy(DdpSpec(), here, model, optimizer, compute, FIRST_SLOTS)
        inputs = Inputs(PreprocessSpec(), K, 0.1, 0, here.device, channels_last=True)
        return Stepper(here, model, strategy, ema, inputs, loss_fn(LossSpec()))

    return made


def plan(global_batch: int = GLOBAL) -> Plan:
    """Three stages of two steps each."""
    listed = [
        {"px": px, "micro_batches": 2, "mixup": 0.1 * i, "cutmix": 0.1 * i, "dropout": 0.1}
        for i, px in enumerate(SIZES)
    ]
    return make_plan(
        LengthSpec.parse({"steps": 6}, "test"),
        StagesSpec.model_validate(listed),
        LrSpec.parse({"kind": "cosine", "peak": 0.1}, "test"),
        EmaSpec(),
        global_batch,
        64 * global_batch,
    )


def batches(step: int, px: int, device: str = "cpu") -> list[MicroBatch]:
    size = GLOBAL // 2
    rng = np.random.default_rng(step)
    labels = torch.arange(size).view(-1, 1) % K
    return [
        MicroBatch(
            step, j,
            torch.from_numpy(rng.integers(0, 256, (size, px, px, 3), dtype=np.uint8)).to(device),
            labels.to(device), torch.arange(size),
        )
        for j in range(2)
    ]  # fmt: skip


def steps(laid_out: Plan, first: int = 0) -> Iterator[list[MicroBatch]]:
    for step in range(first, laid_out.total_steps):
        yield batches(step, laid_out.at(step).px)


def everything(stepper: Stepper) -> dict[str, torch.Tensor]:
    """Return all that a rehearsal might touch."""
    tensors = {f"model/{k}": v for k, v in stepper.model.state_dict().items()}
    tensors |= {f"all/{k}": v for k, v in stepper.model.named_buffers()}
    tensors |= {f"ema/{k}": v for k, v in stepper.ema.module.state_dict().items()}
    tensors |= {
        f"grad/{k}": p.grad for k, p in stepper.model.named_parameters() if p.grad is not None
    }
    tensors |= {f"slots/{k}": v for k, v in stepper.strategy.snapshot().slots.items()}
    tensors["torch's random state"] = torch.get_rng_state()
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_rehearsal_leaves_no_trace(make: Make, precision: Precision) -> None:
    stepper, laid_out = make(precision), plan()
    stepper.warm_up(16, 8)
    stepper.run(batches(0, 16), laid_out.at(0))
    before, drawn = everything(stepper), copy.deepcopy(np.random.get_state())
    rehearse(stepper, laid_out.at(4), 8)
    assert same(before, everything(stepper))
    assert str(np.random.get_state()) == str(drawn)


def test_training_goes_on_with_the_same_bits(make: Make) -> None:
    """The strategy, too, is as if nothing had been: buckets, accumulation, what comes next."""
    ends = []
    for rehearsing in (True, False):
        stepper, laid_out = make(), plan()
        stepper.warm_up(16, 8)
        for step, micro_batches in enumerate(steps(laid_out)):
            if rehearsing:
                rehearse(stepper, laid_out.at(5 - step), 8)
            stepper.run(micro_batches, laid_out.at(step))
        ends.append(everything(stepper))
    assert same(*ends)


def test_each_stage_is_compiled_once_as_it_begins(make: Make) -> None:
    """One graph for each stage, made by the rehearsal: none while the stage runs.

    The compiler's own limit, past which it would go on uncompiled, is raised to fit all stages.
    """
    torch.compiler.reset()
    with torch._dynamo.config.patch(recompile_limit=1):
        stepper, laid_out = make(compiled=True), plan()
        rehearse(stepper, laid_out.at(0), 8)
        compiled_before, inside, made_at = graphs_compiled(), [], []
        two_stages = itertools.islice(
            rehearsed(steps(laid_out), stepper, laid_out, 0, Unwatched()), 4
        )
        for step, micro_batches in enumerate(two_stages):
            made_at.append(graphs_compiled() - compiled_before)
            with torch._dynamo.config.patch(error_on_recompile=True):
                stepper.run(micro_batches, laid_out.at(step))
            inside.append(graphs_compiled() - compiled_before - made_at[-1])
    assert inside == [0] * 4
    assert made_at == [0, 0, 1, 1]


def test_without_a_rehearsal_the_first_step_of_a_stage_compiles(make: Make) -> None:
    """The count that the test above rests on does see a graph that is made in a step."""
    torch.compiler.reset()
    stepper, laid_out = make(compiled=True), plan()
    rehearse(stepper, laid_out.at(0), 8)
    before = graphs_compiled()
    stepper.run(batches(2, 24), laid_out.at(2))
    assert graphs_compiled() == before + 1


def test_a_resume_in_mid_stage_rehearses_only_what_is_to_come(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper, laid_out = make(), plan()
    seen: list[int] = []
    draw = stepper.model.draw_noise
    monkeypatch.setattr(stepper.model, "draw_noise", lambda n, *a: seen.append(n) or draw(n, *a))
    told: list[tuple[Section, int]] = []
    watch = Unwatched()
    monkeypatch.setattr(watch, "enter", lambda section, step: told.append((section, step)))
    left = list(rehearsed(steps(laid_out, 3), stepper, laid_out, 3, watch))
    assert [part[0].step for part in left] == [3, 4, 5]
    assert told == [(Section.COMPILE, 5), (Section.DATA, 5)], "a deadline of its own"
    assert len(seen) == 1
    rehearse_stages(stepper, laid_out, 3)
    assert len(seen) == 1 + 2
    rehearse_stages(stepper, laid_out, 0)
    assert len(seen) == 1 + 2 + 3


def test_steps_that_end_early_end(make: Make) -> None:
    assert len(list(rehearsed(iter([[], []]), make(), plan(), 0, Unwatched()))) == 2


def test_stages_that_fit_leave_no_trace_either(make: Make) -> None:
    stepper, laid_out = make(compiled=True), plan()
    stepper.warm_up(16, 8)
    before, graphs = everything(stepper), graphs_compiled()
    rehearse_stages(stepper, laid_out, 0)
    assert same(before, everything(stepper))
    assert graphs_compiled() == graphs


def test_a_stage_that_does_not_fit_is_refused_before_step_1(make: Make) -> None:
    """More bytes than a processor can address, so that no host has them."""
    with pytest.raises(Misuse) as refusal:
        rehearse_stages(make(), plan(global_batch=1 << 40), 0)
    for part in (
        "stages.0.micro_batches",
        "is 2",
        "16 px",
        "stages.0.micro_batches=4",
        "--measure",
    ):
        assert part in str(refusal.value)


def test_other_errors_are_not_taken_for_a_lack_of_memory(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepper = make()
    monkeypatch.setattr(stepper.model, "draw_noise", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        rehearse_stages(stepper, plan(), 0)


def test_what_a_lack_of_memory_looks_like() -> None:
    with pytest.raises((RuntimeError, MemoryError)) as host:
        torch.empty(1 << 56, dtype=torch.uint8)
    assert is_out_of_memory(host.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_whole_weights_are_not_taken_for_sharded_ones(make: Make) -> None:
    assert not is_sharded(make())


def test_kernels_are_set_as_told() -> None:
    before = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    for value in (True, False):
        set_kernels(cudnn_benchmark=value, tf32=value)
        assert torch.backends.cudnn.benchmark is value
        assert torch.backends.cudnn.allow_tf32 is value
        assert torch.backends.cuda.matmul.allow_tf32 is value
    set_kernels(*before)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_gpu(make: Make, precision: Precision) -> None:
    stepper, laid_out = make(precision, device="cuda:0"), plan()
    stepper.warm_up(32, 8)
    ready = batches(4, 32, "cuda:0")
    stepper.run(ready, laid_out.at(4))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(3):
            stepper.run(ready, laid_out.at(4))
    finally:
        torch.cuda.set_sync_debug_mode("default")
