"""An estimate for people: a table by stage, what to reserve, and what every figure rests on."""

from pipeline.plan import cost
from pipeline.plan.cost import checkpoint_bytes
from pipeline.plan.estimate import Estimate, Job, StageEstimate, fitting_micro_batches
from pipeline.plan.scaling import Point, legal_worlds, pays_until
from pipeline.plan.text import aligned, gib_text, size_text, time_text

RESERVE = 1.3
"""Published times over this estimate of them: 14 h on 8 and 7 h on 16 A100 for the released V2-S
(NVIDIA DeepLearningExamples) are 1.3 times the 10.9 and 5.5 h that come out here."""

_HEAD = ("stage", "px", "images/s a card", "micro-batches", "step", "exchange", "not hidden",
         "waits", "loader cores", "memory", "hours")  # fmt: skip
_SCALE_HEAD = ("cards", "work", "idle", "time", "card hours", "faster", "of linear", "if cut")


def estimate_text(job: Job, found: Estimate) -> str:
    """Return the estimate as text."""
    rows = [_HEAD, *(_row(stage) for stage in found.stages)]
    lines = [_cluster(found), "", *aligned(rows), "", *_summary(job, found), *_warnings(job, found)]
    return "\n".join([*lines, "", *_basis(job, found)]) + "\n"


def scale_text(job: Job, points: list[Point]) -> str:
    """Return the scaling table, the worlds that may run the plan, and where it stops paying."""
    alone = _alone_s(points)
    rows = [_SCALE_HEAD, *(_scale_row(point, alone) for point in points)]
    worlds = ", ".join(map(str, legal_worlds(job.plan, job.bn_group)))
    title = points[0].estimate.cluster.card.title
    return "\n".join([
        f"{title}, {points[-1].estimate.cluster.gpus_per_node} a node, "
        f"{points[0].estimate.cluster.network_gbit:g} Gbit/s a node",
        "",
        *aligned(rows),
        "",
        f"worlds that share the micro-batches of every stage: {worlds}; what is more stays idle",
        *_verdict(points, alone),
    ]) + "\n"  # fmt: skip


def _cluster(found: Estimate) -> str:
    cluster = found.cluster
    idle = cluster.capacity - found.ranks
    note = f"; {idle} stay idle (see --scale)" if idle else ""
    return (
        f"{cluster.nodes} x {cluster.gpus_per_node} {cluster.card.title}, "
        f"{cluster.network_gbit:g} Gbit/s a node: {found.ranks} ranks work{note}"
    )


def _row(stage: StageEstimate) -> list[str]:
    return [
        str(stage.planned.number),
        str(stage.planned.settings.px),
        f"{stage.pace.images_s:,.0f}",
        f"{stage.micro_batches} x {stage.micro_batch}",
        *(f"{1e3 * s:.3g} ms" for s in (stage.step_s, stage.exchange_s, stage.exposed_s)),
        f"{stage.waits:.0%}",
        f"{stage.cores:.1f}",
        gib_text(stage.memory.total),
        f"{stage.steps * stage.step_s / 3600:.3g}",
    ]


def _summary(job: Job, found: Estimate) -> list[str]:
    fastest = max(job.plan.global_batch / stage.step_s for stage in found.stages)
    flow = fastest * job.bytes_an_image
    nodes = -(-found.ranks // found.cluster.gpus_per_node)
    each = checkpoint_bytes(job.work_at(job.eval_px))
    peak = max(found.stages, key=lambda stage: stage.memory.total)
    memory = peak.memory
    parts = zip(memory._fields, memory, strict=True)
    return [
        f"time         {time_text(found.total_s)}, {found.gpu_hours:,.0f} GPU-hours; of it "
        f"{time_text(found.evaluation_s)} for {job.evaluations} evaluations. Reserve "
        f"{time_text(RESERVE * found.total_s)}",
        f"shards       {size_text(job.plan.num_samples * job.bytes_an_image)}, read at up to "
        f"{size_text(flow)}/s, {size_text(flow / nodes)}/s a node ({fastest:,.0f} images/s)",
        f"loading      {max(stage.cores for stage in found.stages):.1f} cores a card; the recipe "
        f"has {job.cores} (loader.workers)",
        f"checkpoints  {size_text(each)} each, {size_text(each * job.kept)} for the {job.kept} "
        "that may lie there",
        f"memory       {gib_text(memory.total)} of {found.cluster.card.memory_gib:g} in stage "
        f"{peak.planned.number}: "
        + ", ".join(f"{name} {gib_text(value)}" for name, value in parts if value),
    ]


def _warnings(job: Job, found: Estimate) -> list[str]:
    lines = []
    for stage in found.stages:
        number = stage.planned.number
        if stage.memory.total > found.cluster.card.memory_bytes:
            fits = fitting_micro_batches(job, found.cluster, stage.planned)
            remedy = f"set stages.{number}.micro_batches={fits}" if fits else "take a larger card"
            lines.append(f"! stage {number} needs {gib_text(stage.memory.total)} a card: {remedy}")
        if stage.waits > 0.05:
            lines.append(
                f"! stage {number} waits for data {stage.waits:.0%} of the time: set "
                f"loader.workers={stage.cores:.0f}, or resize the stored images (docs/data.md)"
            )
    return lines


def _basis(job: Job, found: Estimate) -> list[str]:
    rates = dict.fromkeys(f"{stage.pace.kind}: {stage.pace.basis}" for stage in found.stages)
    traffic = size_text(cost.traffic_bytes(job.work_at(job.eval_px), job.sharding))
    return [
        "Rests on (formulas: docs/planning.md):",
        *(f"- rate, {rate}" for rate in rates),
        f"- exchange: ring of {traffic} at {cost.LINK_SHARE:.0%} of the links' rates, "
        f"{cost.HIDDEN_SHARE:.0%} of the last backward pass hides it",
        f"- loading: 726 to 903 images/s a core (docs/measurements.md); "
        f"{size_text(job.bytes_an_image)} an image ({job.bytes_basis})",
        f"- memory: {cost.SAVED_A_ELEMENT} saved numbers for each output of a convolution, "
        f"measured on a CPU; {cost.RESERVED - 1:.0%} and 1 GiB more for the allocator",
        f"- reserve: NVIDIA's published runs of V2-S on A100 took {RESERVE} times such an estimate",
        "- not in it: restarts, waiting for the slowest rank, compilation",
    ]


def _alone_s(points: list[Point]) -> float:
    """The time of one card, taken from the first row as if up to there all were linear."""
    return points[0].estimate.total_s * points[0].estimate.ranks


def _scale_row(point: Point, alone_s: float) -> list[str]:
    found = point.estimate
    speed = alone_s / found.total_s
    return [
        str(point.capacity),
        str(found.ranks),
        str(point.idle),
        time_text(found.total_s),
        f"{found.gpu_hours:,.0f}",
        f"{speed:.3g}x",
        f"{speed / point.capacity:.0%}",
        f"{time_text(point.cut.total_s)} ({_cut_note(point.cut)})" if point.cut else "-",
    ]


def _cut_note(found: Estimate) -> str:
    sizes = dict.fromkeys(stage.micro_batch for stage in found.stages)
    return f"of {', '.join(map(str, sizes))}"


def _verdict(points: list[Point], alone_s: float) -> list[str]:
    times = [(point.capacity, point.estimate.total_s) for point in points]
    best = pays_until(times, alone_s)
    lines = [_ends(best, times, "as the recipe is")]
    if any(point.cut for point in points):
        cut = [(p.capacity, (p.cut or p.estimate).total_s) for p in points]
        lines += [
            _ends(pays_until(cut, alone_s), cut, "with smaller micro-batches"),
            "smaller micro-batches (set stages.micro_batches, and loader.lanes to a multiple of "
            "them) are another recipe: batch norm sees fewer images",
        ]
    return lines


def _ends(best: int, times: list[tuple[int, float]], how: str) -> str:
    after = [(count, seconds) for count, seconds in times if count > best]
    if not after:
        return f"{how} it pays up to {best} cards, the most asked for"
    count, seconds = after[0]
    return (
        f"{how} it pays up to {best} cards: {count} would be "
        f"{dict(times)[best] / seconds:.2f} times as fast"
    )
