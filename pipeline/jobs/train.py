"""`pipeline train`: one attempt at a training, as one rank of it.

The same command starts a run, resumes it after any interruption, and does nothing more once the
run is done. How the attempt ended is written into the run's folder for the supervisor.
"""

import faulthandler
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pipeline.data.reader import BrokenSample
from pipeline.engine.signals import StopWish, stop_wish
from pipeline.engine.watchdog import Watchdog
from pipeline.jobs.disk import naming_disk
from pipeline.jobs.prepare import Prepared, make_data_ready, plan_text, prepare, record
from pipeline.parallel.place import Place, place_from
from pipeline.recipe import Recipe, load_recipe
from pipeline.run import faults
from pipeline.run.beats import Section
from pipeline.run.folder import Outcome, RunFolder, Status, this_attempt
from pipeline.run.lease import Lease, LeaseHeld
from pipeline.spec import Failure, Misuse

SUPERVISED = "PIPELINE_ATTEMPT"
"""The supervisor's variable: it has claimed the attempt's number, whose files are this one's."""


def train(config: Path, overrides: Sequence[str], accept_changes: bool) -> int:
    """Train `config` as one rank; returns the exit code of the attempt.

    Raises:
        Misuse: the config, the data set, the world or the run's folder do not fit together.
    """
    if not faulthandler.is_enabled():  # workers have it too, from before their first line
        faulthandler.enable(2)
    recipe = load_recipe(config, overrides)
    place = place_from(os.environ)
    is_first = place.rank == 0
    with stop_wish() as wish:
        try:
            with naming_disk(recipe.folder.path), ExitStack() as stack:
                watch = None
                if SUPERVISED in os.environ:  # else a refusal would leave files of an attempt
                    watch = stack.enter_context(_watchdog(recipe, place))
                faults.begin(recipe.folder)
                prepared = prepare(recipe)
                if is_first:
                    print(plan_text(recipe, prepared.plan, prepared.manifest), flush=True)
                outcome = _attempt(prepared, accept_changes, wish, watch)
        except Misuse as error:
            if SUPERVISED in os.environ:
                if is_first:
                    _note(recipe.folder, Outcome(Status.MISUSE, 0, str(error)))
                else:  # it may be the only one that refuses: the supervisor shall know why
                    recipe.folder.write_rank_error(this_attempt(), str(error))
            raise
        except Exception as error:  # any failure must reach the outcome file, then the log
            if not isinstance(error, Failure):  # whose message says all that there is to say
                traceback.print_exc()
            reason = reason_of(error)
            step = recipe.folder.latest_step()
            outcome = Outcome(Status.FAILED, max(step, 0), reason)
            said = error if isinstance(error, Failure) else reason
            print(f"error: {said}", file=sys.stderr)
            if not is_first:
                recipe.folder.write_rank_error(this_attempt(), reason)
        if is_first:  # while signals are flags: the first rank to leave has srun end the others
            _note(recipe.folder, outcome)
    return outcome.exit_code


def _watchdog(recipe: Recipe, place: Place) -> Watchdog:
    return Watchdog(recipe.folder, this_attempt(), place.rank, place.size, recipe.watch)


def _attempt(
    prepared: Prepared, accept_changes: bool, wish: StopWish, watch: Watchdog | None
) -> Outcome:
    """Hold the lease on rank 0, then train; without a watchdog yet, one watches from there on."""
    with ExitStack() as stack:
        lease = None
        if prepared.place.rank == 0:
            lease = _lease(prepared.recipe.folder)
            stack.callback(lease.release)
            record(prepared, accept_changes)
        if watch is None:
            watch = stack.enter_context(_watchdog(prepared.recipe, prepared.place))
        return _watched(prepared, lease, wish, watch)


def _lease(folder: RunFolder) -> Lease:
    try:
        return Lease(folder.lease)
    except LeaseHeld as error:
        raise Misuse(str(error)) from None


def reason_of(error: Exception) -> str:
    """Return what ended an attempt, with its class where the message alone would not tell it.

    The supervisor knows a sample that can never be read by the class (`launch.decide`), and words
    without a class for those of a `Failure`, which is no node's fault (`launch.blame`).
    """
    plain = isinstance(error, Failure) and not isinstance(error, BrokenSample)
    return str(error) if plain else f"{type(error).__name__}: {error}"


def _watched(prepared: Prepared, lease: Lease | None, wish: StopWish, watch: Watchdog) -> Outcome:
    """Bring the data and train, under the eyes of the watchdog."""

    def say(text: str) -> None:
        """Pass on how far the data are; they may take their time as long as they come."""
        print(text, flush=True)
        watch.enter(Section.SETUP, 0)

    make_data_ready(prepared, say)
    from pipeline.jobs.training import run_training

    return run_training(prepared, lease, wish, watch)


def _note(folder: RunFolder, outcome: Outcome) -> None:
    try:
        folder.write_outcome(this_attempt(), outcome)
    except OSError as error:
        print(f"error: {folder.path}: cannot be written: {error}", file=sys.stderr)
