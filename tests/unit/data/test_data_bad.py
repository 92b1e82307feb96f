"""Bad samples: who stands in for them, how they are counted, when there are too many."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.data.bad import ATTEMPTS, BadSpec, Replaced, Tally, read_replacing, replacement
from pipeline.data.loading import LoaderSpec
from pipeline.data.reader import BrokenSample
from pipeline.spec import Failure, Misuse

BUDGET = BadSpec(policy="budget")
NUM_SAMPLES = 5000


class Samples:
    """Samples of which some are broken; remembers who was asked for."""

    def __init__(self, *broken: int) -> None:
        self.broken, self.asked = set(broken), list[int]()

    def use(self, sample_id: int) -> str:
        self.asked.append(sample_id)
        if sample_id in self.broken:
            raise BrokenSample(f"a.tar: sample 's{sample_id}': cut")
        return f"image {sample_id}"


def replace(samples: Samples, sample_id: int, spec: BadSpec = BUDGET, num: int = NUM_SAMPLES):
    return read_replacing(sample_id, samples.use, spec, seed=3, num_samples=num)


@settings(max_examples=200, deadline=None)
@given(st.data(), st.integers(2, 2**24), st.integers(0, 2**40), st.integers(0, ATTEMPTS - 1))
def test_a_replacement_is_another_sample_of_the_split(data, num_samples, seed, attempt):
    sample_id = data.draw(st.integers(0, num_samples - 1))
    other = replacement(seed, sample_id, attempt, num_samples)
    assert 0 <= other < num_samples and other != sample_id
    assert other == replacement(seed, sample_id, attempt, num_samples)


def test_replacements_are_frozen():
    """A run that is resumed, or repeated with other ranks, must choose the same ones."""
    chosen = [replacement(3, 100, attempt, 14_000_000) for attempt in range(6)]
    assert chosen == [158, 152, 718, 104, 5861, 41935]


def test_replacements_lie_near_first_and_anywhere_in_the_end():
    far = np.array(
        [
            [(replacement(0, i, attempt, 10**6) - i) % 10**6 for attempt in range(ATTEMPTS)]
            for i in range(0, 2000, 10)
        ]
    )
    assert far[:, 0].max() <= 64 and far[:, 1].max() <= 256
    assert len(np.unique(far[:, 0])) > 55
    quarters = np.bincount(far[:, -1] // 250_000, minlength=4)
    assert quarters.min() > 30, "of 200, about 50 in each quarter of the split"


def test_good_samples_are_read_once_and_nothing_is_replaced():
    samples = Samples(9)
    assert replace(samples, 8) == ("image 8", None)
    assert samples.asked == [8]


def test_strict_ends_with_the_first_bad_sample():
    samples = Samples(9)
    with pytest.raises(BrokenSample, match=r"^a.tar: sample 's9': cut$"):
        replace(samples, 9, BadSpec())
    assert samples.asked == [9]


def test_under_a_budget_the_first_good_replacement_is_used():
    wanted = [replacement(3, 9, attempt, NUM_SAMPLES) for attempt in range(3)]
    image, replaced = replace(Samples(9), 9)
    assert (image, replaced) == (
        f"image {wanted[0]}",
        Replaced(9, wanted[0], "a.tar: sample 's9': cut"),
    )
    samples = Samples(9, *wanted[:2])
    image, replaced = replace(samples, 9)
    assert samples.asked == [9, *wanted]
    assert (image, replaced) == (
        f"image {wanted[2]}",
        Replaced(9, wanted[2], "a.tar: sample 's9': cut"),
    )


def test_a_whole_shard_that_is_gone_is_left_after_a_few_attempts():
    gone = Samples(*range(1000, 2200))
    tries = []
    for sample_id in range(1000, 2200, 7):
        gone.asked.clear()
        image, _ = replace(gone, sample_id, num=10**6)
        assert image not in {f"image {i}" for i in gone.broken}
        tries.append(len(gone.asked) - 1)
    assert max(tries) <= 8


def test_data_that_is_gone_altogether_ends_the_attempt_under_a_budget_too():
    samples = Samples(*range(NUM_SAMPLES))
    with pytest.raises(BrokenSample, match=r"sample 's9': cut; the 16 samples tried .*cut$"):
        replace(samples, 9)
    assert len(samples.asked) == 1 + ATTEMPTS


def test_a_split_of_one_sample_has_no_replacement():
    with pytest.raises(BrokenSample, match=r"^a.tar: sample 's0': cut$"):
        replace(Samples(0), 0, num=1)
    assert replace(Samples(0), 0, num=2)[0] == "image 1"


def test_other_errors_are_not_taken_for_bad_samples():
    def wrong(sample_id: int) -> str:
        raise Misuse("field 'augment.px' is wrong")

    with pytest.raises(Misuse):
        read_replacing(1, wrong, BUDGET, 0, 100)


def replaced(*ids: int) -> list[Replaced]:
    return [Replaced(i, i + 1, f"sample 's{i}'") for i in ids]


def test_each_bad_sample_is_named_once():
    tally = Tally(BUDGET, 1000, 10)
    assert [item.sample_id for item in tally.note(replaced(4, 5, 4))] == [4, 5]
    assert [item.sample_id for item in tally.note(replaced(5, 6))] == [6]
    assert tally.note([]) == []


def test_undone_steps_are_forgotten() -> None:
    tally = Tally(BUDGET, 1000, 10)
    for bad in (1, 0, 2):
        tally.add(bad)
    tally.back_to(1, 1)
    assert (tally.bad, tally.used) == (1, 10)


def after(tally: Tally, steps: list[int]) -> int | None:
    """Return the step after which the budget is spent."""
    for number, bad in enumerate(steps, 1):
        tally.add(bad)
        try:
            tally.check()
        except Failure:
            return number
    return None


def test_the_budget_is_a_share_of_an_epoch_from_the_start_and_of_all_samples_later():
    spec = BadSpec(policy="budget", budget=0.01)
    assert after(Tally(spec, 1000, 100), [10]) is None, "1 % of an epoch, in a clump"
    assert after(Tally(spec, 1000, 100), [10, 1]) == 2
    assert after(Tally(spec, 1000, 100), [1] * 100) is None, "1 % for ten epochs"
    assert after(Tally(spec, 1000, 100), [2] * 100) == 6, "2 % are over 10 samples after 6 steps"
    assert after(Tally(spec, 1000, 100), [0] * 50 + [60]) == 51


def test_another_attempt_goes_on_counting_where_the_one_before_stopped():
    spec = BadSpec(policy="budget", budget=0.01)
    assert after(Tally(spec, 1000, 100, steps=9, bad=10), [1]) == 1
    tally = Tally(spec, 1000, 100, steps=20, bad=11)
    assert (tally.bad, tally.used) == (11, 2000)
    assert after(tally, [9]) is None


def test_very_small_splits_may_have_one_bad_sample():
    """Else a budget of 0.1 % would allow none at all in 103 samples."""
    assert after(Tally(BUDGET, 103, 32), [1]) is None
    assert after(Tally(BUDGET, 103, 32), [1, 1]) == 2


def test_a_spent_budget_names_the_first_bad_samples_and_the_field():
    tally = Tally(BUDGET, 1000, 64)
    tally.note(replaced(*range(3)))
    tally.note(replaced(*range(9)))
    tally.add(9)
    with pytest.raises(Failure) as error:
        tally.check()
    text = str(error.value)
    assert "9 of 64 samples" in text and "loader.bad.budget 0.001" in text
    assert (
        "first here: sample 's0' | sample 's1' | sample 's2' | sample 's3' | sample 's4';" in text
    )
    assert "'s5'" not in text


def test_a_rank_that_met_none_says_so_by_naming_none():
    tally = Tally(BUDGET, 1000, 64)
    tally.add(9)
    with pytest.raises(Failure, match=r"in the log of its rank\); repair"):
        tally.check()


@pytest.mark.parametrize("values", [{"budget": 0}, {"budget": 1}, {"policy": "skip"}, {"x": 1}])
def test_wrong_settings_are_refused(values):
    with pytest.raises(ValidationError):
        BadSpec(**values)


def test_training_is_strict_unless_told_otherwise():
    assert LoaderSpec().bad == BadSpec(policy="strict", budget=0.001)


def test_the_settings_load_no_torch():
    code = "import pipeline.data.bad, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
