"""BatchNorm statistics of a group of micro-batches are the same whatever ranks work on it."""

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed

Results = dict[str, torch.Tensor]
Ranks = list[Results]
WORKER = "tests.distributed.bn_group_worker"
MICRO_BATCHES = 4
GENTLE = ("length={steps: 8}", "lr={kind: constant, peak: 0.002}", "batch.global_size=64",
          "stages={kind: fixed, px: 16, micro_batches: 4, mixup: 0.1, dropout: 0.1}",
          "preprocess.eval_px=16", "loader.workers=0", "checkpoint={every_steps: 4}",
          "evaluate={every_steps: 8}")  # fmt: skip


@pytest.fixture(scope="module")
def steps(starters, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, int], Ranks]:
    """What each rank wrote, by world and group."""
    found: dict[tuple[int, int], Ranks] = {}
    for world, groups in ((1, (2, 4)), (2, (1, 2, 4)), (4, (2, 4))):
        folder = tmp_path_factory.mktemp(f"world-{world}")
        words = [WORKER, str(MICRO_BATCHES), str(folder), *map(str, groups)]
        starters.start(words, world, folder / "log").finish(120)
        for group in groups:
            files = [folder / f"group-{group}-rank-{rank}.safetensors" for rank in range(world)]
            found[world, group] = [load_file(file) for file in files]
    return found


def merged(ranks: Ranks) -> Results:
    """Put the ranks' logits together; everything else must be alike on all of them."""
    whole: Results = {}
    for results in ranks:
        for name, tensor in results.items():
            if not name.startswith("sums/"):
                assert name not in whole or torch.equal(whole[name], tensor), name
                whole[name] = tensor
    return whole


@pytest.mark.parametrize("group", [2, 4])
@pytest.mark.parametrize("world", [2, 4])
def test_worlds_agree_in_outputs_gradients_and_statistics(
    steps: dict[tuple[int, int], Ranks], world: int, group: int
) -> None:
    """One rank joins a group's micro-batches; several talk to each other."""
    alone, several = merged(steps[1, group]), merged(steps[world, group])
    assert several.keys() == alone.keys()
    for name, tensor in alone.items():
        torch.testing.assert_close(several[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_a_group_shows_in_the_result(steps: dict[tuple[int, int], Ranks]) -> None:
    """Guards the test above: each micro-batch for itself, and larger groups, give other logits."""
    logits = [merged(steps[2, group])["logits/0"] for group in (1, 2, 4)]
    assert (logits[0] - logits[1]).abs().max() > 1e-3
    assert (logits[1] - logits[2]).abs().max() > 1e-3


def test_all_ranks_of_a_group_hold_the_same_bits(steps: dict[tuple[int, int], Ranks]) -> None:
    ranks = steps[4, 2]
    sums = [name for name in ranks[0] if name.startswith("sums/")]
    assert sums
    for name in sums:
        assert torch.equal(ranks[0][name], ranks[1][name])
        assert torch.equal(ranks[2][name], ranks[3][name])
        assert not torch.equal(ranks[0][name], ranks[2][name])


@pytest.mark.slow
def test_a_training_with_groups_is_the_same_on_any_world(launcher, read_losses) -> None:
    curves = {}
    for world in (1, 2):
        folder = launcher.run(f"world-{world}", world, *GENTLE, "model.bn_group=2")
        curves[world] = read_losses(folder)
    assert max(abs(curves[1][at] - curves[2][at]) for at in curves[1]) < 1e-4
    plain = read_losses(launcher.run("plain", 1, *GENTLE))
    assert max(abs(curves[1][at] - plain[at]) for at in plain) > 1e-3


@pytest.mark.slow
def test_groups_that_ranks_or_stages_cannot_make_are_refused_before_step_1(launcher) -> None:
    ranks = launcher.start("odd", 2, *GENTLE, "stages.micro_batches=6", "model.bn_group=3",
                           "batch.global_size=48", "loader.lanes=60")  # fmt: skip
    assert ranks.wait() == [2, 2]
    assert "field 'model.bn_group' is 3: 2 ranks cannot share" in ranks.text()
    ranks = launcher.start("uneven", 1, *GENTLE, "model.bn_group=3")
    assert ranks.wait() == [2]
    assert "model.bn_group is 3, stages have 4 micro-batches" in ranks.text()
