"""What rank 0 says of a training: lines for people, points for the tracker.

Nothing here waits for a network: points go to the spool, a sender process takes them from there.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from pipeline.checkpoint.state import Window
from pipeline.data.bad import Replaced
from pipeline.engine.guard import Trouble
from pipeline.engine.loop import StepReport
from pipeline.engine.signals import StopWish
from pipeline.jobs.prepare import Prepared
from pipeline.parallel.world import World
from pipeline.run.folder import Outcome, Status, this_attempt
from pipeline.run.pace import PaceTable, Slowest, told, write_pace
from pipeline.tracking.facts import describe, machine
from pipeline.tracking.sender import Sender, start_sender
from pipeline.tracking.spool import Spool
from pipeline.tracking.system import SystemSampler

LINE_S = 2.0
DRAIN_S = 60.0
SHORT_DRAIN_S = 2.0
"""A job that was asked to stop has little time; the next attempt sends the rest."""


class Progress:
    """Prints and spools on rank 0; the others only name the bad samples that they meet."""

    def __init__(self, prepared: Prepared, world: World, wish: StopWish) -> None:
        self._prepared = prepared
        self._world = world
        self._wish = wish
        self._stack = ExitStack()
        self._printed_s = 0.0
        self._stage = -1
        self._worst: Slowest | None = None
        self.memory: Callable[[], object] | None = None
        """Tells what the loader takes; asked once, when its workers are at work."""
        self.spool: Spool | None = None
        self.sender: Sender | None = None
        if world.is_first:
            self._open()

    def _open(self) -> None:
        recipe, plan = self._prepared.recipe, self._prepared.plan
        self.spool = Spool(recipe.folder.spool)
        self._stack.callback(self.spool.close)
        self.spool.params(recipe.values())
        self.spool.tags(
            {
                "attempt": str(this_attempt()),
                "world": str(self._world.size),
                "data.digest": self._prepared.manifest.digest(),
                "recipe.digest": recipe.digest(),
                "plan.steps": str(plan.total_steps),
                "plan.stages": str(len(plan.stages)),
                **describe(),
                **machine(),
            }
        )
        sampler = SystemSampler(self.spool, recipe.tracking.system_every_s)
        self._stack.callback(sampler.close)
        if recipe.tracking.enabled:
            self.sender = start_sender(recipe.folder, recipe.tracking)

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        if self._world.is_first:
            print(text, flush=True)

    def resume(self, step: int) -> None:
        """Tell that the training goes on from `step`; later points will come again."""
        self.say(f"resuming after step {step} (attempt {this_attempt()}, {self._world.size} ranks)")
        if self.spool is not None:
            self.spool.rewind(step)

    def step(self, report: StepReport) -> None:
        """Take the facts of a finished step."""
        if self.spool is None:
            return
        plan = report.plan
        batch = self._prepared.recipe.batch.global_size
        images_per_s = batch / report.step_s
        wait = report.data_wait_s / report.step_s
        values = {
            "train/loss": report.loss,
            "train/lr": plan.lr,
            "train/epoch": plan.epoch,
            "stage/index": float(plan.stage),
            "stage/px": float(plan.px),
            "stage/randaugment": plan.randaugment,
            "stage/mixup": plan.mixup,
            "stage/cutmix": plan.cutmix,
            "stage/dropout": plan.dropout,
            "speed/images_per_s": images_per_s,
            "speed/data_wait": wait,
            "data/bad_samples": float(report.bad_samples),
            "guard/bad_steps": float(report.bad_steps),
        }
        last = report.step == self._prepared.plan.total_steps
        if last or report.step % self._prepared.recipe.tracking.every_steps == 0:
            self.spool.metrics(report.step, values)
        if report.left_out:
            self.say(
                f"step {report.step:>6}  left out: the loss is {report.loss} "
                f"({report.bad_steps} such steps in this run)"
            )
        now = time.monotonic()
        if last or plan.stage != self._stage or now - self._printed_s >= LINE_S:
            is_first = self._stage < 0
            self._printed_s, self._stage = now, plan.stage
            bad = f"  bad samples {report.bad_samples}" if report.bad_samples else ""
            self.say(
                f"step {report.step:>6}/{self._prepared.plan.total_steps}  stage {plan.stage + 1}  "
                f"{plan.px:>3} px  loss {report.loss:7.4f}  lr {plan.lr:.5f}  "
                f"{images_per_s:7.0f} img/s  data wait {wait:4.0%}{bad}"
            )
            if is_first and self.memory is not None:
                self.say(str(self.memory()))

    def went_back(self, trouble: Trouble, window: Window) -> None:
        """Tell that the training was sent back, and which data it leaves out."""
        self.say(
            f"steps {trouble.first} to {trouble.last}: {trouble.what}; going back to step "
            f"{window.step} and leaving out batches {window.first} to {window.end - 1} of the data"
        )
        if self.spool is not None:
            self.spool.rewind(window.step)
            tag = {f"guard.window.{window.first}": f"{window.end} after step {window.step}"}
            self.spool.tags(tag)

    def bad_samples(self, replaced: Sequence[Replaced]) -> None:
        """Name samples that could not be used, on the rank that met them."""
        for item in replaced:
            print(
                f"rank {self._world.rank}: sample {item.by} stands in for a bad one: {item.reason}",
                flush=True,
            )

    def pace(self, table: PaceTable, found: Slowest | None) -> None:
        """Take the ranks' times; name one that the others wait for, once."""
        if line := told(self._worst, table):
            self.say(line)
        self._worst = table.worst
        try:
            write_pace(self._prepared.recipe.folder, this_attempt(), table)
        except OSError as error:
            self.say(f"the table of the ranks' times cannot be written: {error}")
        if self.spool is not None:
            values = {f"pace/{name}": value for name, value in table.spread().items()}
            if found is not None:
                values |= {"pace/worst_rank": float(found.rank), "pace/worst_ratio": found.ratio}
            self.spool.metrics(table.step, values)

    def evaluated(self, step: int, values: dict[str, float]) -> None:
        """Take the scores of the averaged weights after `step` steps."""
        if self.spool is not None:
            self.spool.metrics(step, {f"eval/{name}": value for name, value in values.items()})
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"step {step:>6}  evaluation of the averaged weights: {shown}")

    def saved(self, step: int) -> Outcome:
        """Tell that the training was saved and wants to be run again."""
        reason = self._wish.reason or "another rank was asked to stop"
        self.say(f"saved at step {step} ({reason}); run the same command again to go on")
        self._finish("SCHEDULED", SHORT_DRAIN_S)
        return Outcome(Status.SAVED, step, reason)

    def finish_tracking(self, status: str) -> int:
        """Close the tracked run; returns how many events could not be sent in time."""
        return self._finish(status, DRAIN_S)

    def sync(self) -> None:
        """Make all points durable; called before a checkpoint is committed."""
        if self.spool is not None:
            self.spool.sync()

    def leave(self, kind: type[BaseException] | None, *details: object) -> None:
        """Note a failure, stop sampling, close the spool; the sender ends by itself."""
        if kind is not None and self.spool is not None:
            self.spool.finish("FAILED")
        self._stack.close()

    def _finish(self, status: str, patience_s: float) -> int:
        if self.spool is None:
            return 0
        self.spool.finish(status)
        return self.sender.drain(patience_s) if self.sender is not None else 0
