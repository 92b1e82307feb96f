"""Who lost the run commits nothing, and leaves what the next writer writes alone."""

import threading
from pathlib import Path

import pytest

from pipeline.checkpoint.state import equal
from pipeline.checkpoint.store import Store, read
from pipeline.run import faults
from pipeline.run.lease import LeaseHeld
from tests.unit.checkpoint.test_checkpoint_store import make_state


def test_a_process_that_lost_the_run_cannot_commit(tmp_path: Path) -> None:
    calls = iter([None, LeaseHeld("taken over")])

    def fence() -> None:
        error = next(calls)
        if error is not None:
            raise error

    store = Store(tmp_path, keep=2, fence=fence)
    with pytest.raises(LeaseHeld):
        store.commit(make_state(1), {})
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_comes_back_from_the_dead_leaves_its_heirs_checkpoint_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It freezes in its write of step 2, and wakes in the middle of its heir's write of step 2."""
    holder, errors = [1], list[Exception]()
    frozen, thaw = threading.Event(), threading.Event()

    def store_of(token: int) -> Store:
        def fence() -> None:
            if holder != [token]:
                raise LeaseHeld("taken over")

        return Store(tmp_path, 2, fence, writer=token)

    def commit() -> None:
        try:
            store_of(1).commit(make_state(2), {})
        except Exception as error:
            errors.append(error)

    zombie = threading.Thread(target=commit)

    def wrote(file: Path, step: int) -> None:
        if file.name != "weights.safetensors":
            return
        if threading.current_thread() is zombie:
            frozen.set()
            thaw.wait(30)
        else:
            thaw.set()
            zombie.join(30)

    monkeypatch.setattr(faults, "wrote", wrote)
    zombie.start()
    assert frozen.wait(30)
    holder[0] = 2
    state = make_state(2, best_step=1)
    assert equal(read(store_of(2).commit(state, {})), state)
    assert [type(error) for error in errors] == [LeaseHeld]
    assert {path.name for path in tmp_path.iterdir()} == {"step-000000002", "LATEST"}
