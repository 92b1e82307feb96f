"""What is checked before torch is loaded, and what a run's folder records of its settings."""

from pathlib import Path

import pytest

from pipeline.jobs.prepare import FREE_TO_CHANGE, num_train, plan_text, prepare, record
from pipeline.recipe import Recipe, load_recipe, load_recorded
from pipeline.spec import Misuse
from tests.unit.data.faulty_server import serving

FREE = {
    "strategy": "strategy=deepspeed",
    "compute.collective_timeout_s": "compute.collective_timeout_s=7777",
    "loader.workers": "loader.workers=3",
    "loader.prefetch": "loader.prefetch=5",
    "loader.timeout_s": "loader.timeout_s=99",
    "loader.start_method": "loader.start_method=spawn",
    "loader.bad": "loader.bad.policy=budget",
    "data.shards": "data.shards.retries=9",
    "guard": "guard.max_bad_steps=3",
    "watch": "watch.step_s=300",
    "checkpoint": "checkpoint.keep=9",
    "evaluate": "evaluate.batch=7",
    "tracking": "tracking.experiment=other",
    "source": "source=elsewhere",
    "expects": "expects=more",
}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def recipe_with(repo: Path, low_digits: Path, tmp_path: Path):
    def make(*overrides: str) -> Recipe:
        words = [f"data={low_digits}", f"runs={tmp_path}/runs", *overrides]
        return load_recipe(repo / "configs" / "demo.yaml", words)

    return make


def test_preparing_writes_nothing_and_counts_what_the_shards_hold(
    recipe_with, tmp_path: Path
) -> None:
    prepared = prepare(recipe_with())
    assert prepared.manifest.num_classes == 6
    assert prepared.plan.total_steps == 20 * 72 // 64
    assert (prepared.place.rank, prepared.place.size) == (0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_split_that_is_not_there_is_named_with_those_that_are(recipe_with) -> None:
    with pytest.raises(Misuse, match=r"no split 'test'; it has: .*eval"):
        prepare(recipe_with("data.eval=test"))
    with pytest.raises(Misuse, match="no split 'training'"):
        prepare(recipe_with("data.train=training"))


def test_a_wrong_tracking_address_is_found_before_training_unless_it_is_not_used(
    recipe_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "ftp://somewhere")
    with pytest.raises(Misuse, match=r"MLFLOW_TRACKING_URI.*ftp://somewhere.*http://HOST:PORT"):
        prepare(recipe_with())
    prepare(recipe_with("tracking.enabled=false"))


def test_ranks_share_the_micro_batches_of_every_stage(
    recipe_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "4"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    assert prepare(recipe_with()).place.size == 4
    with pytest.raises(Misuse, match=r"'stages.3.micro_batches' is 2.*use 1, 2 ranks"):
        prepare(recipe_with("stages.3.micro_batches=2"))


def test_streamed_tars_count_as_many_images_as_the_recipe_says(recipe_with) -> None:
    recipe = recipe_with("data.stream=/tars/*.tar", "data.num_train=500")
    assert num_train(recipe, prepare(recipe_with()).manifest) == 500


def test_the_recorded_recipe_and_plan_are_those_of_the_run(recipe_with) -> None:
    recipe = recipe_with("source=here", "expects=98 %")
    prepared = prepare(recipe)
    record(prepared, accept_changes=False)
    assert load_recorded(recipe.folder) == recipe
    plan = (recipe.folder.path / "plan.txt").read_text()
    assert plan == plan_text(recipe, prepared.plan, prepared.manifest) + "\n"
    for fact in ("demo: tiny, 118,", "global batch 64, ddp, fp32", "source: here", "98 %"):
        assert fact in plan
    before = recipe.folder.recipe.read_bytes()
    record(prepared, accept_changes=False)
    assert recipe.folder.recipe.read_bytes() == before


def test_the_recorded_plan_of_a_url_counts_the_classes_of_its_shards(
    recipe_with, low_digits: Path, tmp_path: Path
) -> None:
    plans = []
    with serving(low_digits) as server:
        for name, path in (("here", str(low_digits)), ("there", server.url)):
            data = f"data={{path: '{path}', name: low, num_classes: 99}}"
            cache = f"data.shards.folder={tmp_path}/cache"
            recipe = recipe_with(data, cache, f"name={name}")
            record(prepare(recipe), accept_changes=False)
            plans.append((recipe.folder.path / "plan.txt").read_text().removeprefix(f"{name}: "))
    assert plans[0] == plans[1]
    assert "tiny, 118," in plans[1], "as many as six classes make"


@pytest.mark.parametrize("override", FREE.values(), ids=FREE.keys())
def test_what_does_not_define_the_training_may_change(recipe_with, override: str) -> None:
    record(prepare(recipe_with()), accept_changes=False)
    changed = recipe_with(override)
    record(prepare(changed), accept_changes=False)
    assert load_recorded(changed.folder) == changed


def test_every_free_setting_is_tried_above() -> None:
    assert set(FREE_TO_CHANGE) - set(FREE) == {"runs", "data.path"}


def test_other_settings_are_refused_all_at_once_and_the_record_stays(recipe_with) -> None:
    first = recipe_with()
    record(prepare(first), accept_changes=False)
    changed = recipe_with("seed=3", "lr.peak=0.5", "stages.1.px=24", "checkpoint.keep=9")
    with pytest.raises(Misuse) as caught:
        record(prepare(changed), accept_changes=False)
    message = str(caught.value)
    assert str(first.folder.recipe) in message
    for words in ("seed: 0 -> 3", "lr.peak: 0.02 -> 0.5", "stages.overrides", "--accept-changes"):
        assert words in message
    assert "checkpoint" not in message
    assert load_recorded(first.folder) == first
    record(prepare(changed), accept_changes=True)
    assert load_recorded(first.folder) == changed


def test_a_run_does_not_go_on_with_other_images(
    recipe_with, high_digits: Path, tmp_path: Path
) -> None:
    record(prepare(recipe_with()), accept_changes=False)
    other = recipe_with(f"data={high_digits}")
    with pytest.raises(Misuse, match=r"(?s)data\.digest: .*--accept-changes"):
        record(prepare(other), accept_changes=False)
    record(prepare(other), accept_changes=True)


def test_a_run_goes_on_where_its_shards_were_moved_to(
    recipe_with, low_digits: Path, tmp_path: Path
) -> None:
    record(prepare(recipe_with()), accept_changes=False)
    (tmp_path / "moved").symlink_to(low_digits)
    record(prepare(recipe_with(f"data={tmp_path}/moved")), accept_changes=False)


def test_collectives_less_patient_than_the_watchdog_are_refused(recipe_with) -> None:
    prepare(recipe_with("compute.collective_timeout_s=3601"))
    with pytest.raises(Misuse, match=r"collective_timeout_s is 600, watch.compile_s 3600: .* over"):
        prepare(recipe_with("compute.collective_timeout_s=600"))
    with pytest.raises(Misuse, match=r"7200, watch.step_s 9000: .* or watch.step_s lower"):
        prepare(recipe_with("watch.step_s=9000"))


def test_a_watchdog_less_patient_than_the_beats_of_so_many_ranks_is_refused(
    recipe_with, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "1000"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    with pytest.raises(Misuse, match=r"watch\.data_s is 40: 1000 ranks .*set watch\.data_s to 60"):
        prepare(recipe_with("watch.data_s=40"))
