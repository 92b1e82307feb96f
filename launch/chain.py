"""A chain: jobs of the pipeline that wait for each other, read from one YAML file.

    name: v2_s
    slurm: {partition: gpu}                      for all jobs; each may say otherwise
    jobs:
      - {name: pretrain, run: train configs/v2_s_21k.yaml}
      - {name: finetune, run: train configs/v2_s_21k_ft1k.yaml}
      - name: transfer
        run: transfer models:/effnetv2-s-21k-ft1k@candidate configs/transfer.yaml
        after: [finetune]                        default: the job above; [] waits for none
        slurm: {time: "4:00:00"}

A training asks for what its launch script asks for; any other job is one process on one node.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import Field, field_validator, model_validator

from launch.requests import NAME, Request, check_name, request_of, script_for
from launch.target import JOBS, check_job
from pipeline.recipe import load_recipe
from pipeline.spec import Misuse, Spec, load


class LinkSpec(Spec):
    """One job of a chain."""

    name: str = Field(pattern=NAME)
    run: tuple[str, ...] = Field(min_length=1)
    after: tuple[str, ...] | None = None
    slurm: Request = Request()

    @field_validator("run", mode="before")
    @classmethod
    def _words(cls, run: object) -> object:
        return tuple(shlex.split(run)) if isinstance(run, str) else run

    @field_validator("run")
    @classmethod
    def _known_job(cls, run: tuple[str, ...]) -> tuple[str, ...]:
        if run[0] not in JOBS:
            raise ValueError(f"expected a pipeline job first: {', '.join(JOBS)}")
        return run

    @field_validator("after", mode="before")
    @classmethod
    def _one_or_more(cls, after: object) -> object:
        return (after,) if isinstance(after, str) else after


class ChainSpec(Spec):
    """Jobs in the order in which they are submitted."""

    name: str = Field(pattern=NAME)
    slurm: Request = Request()
    jobs: tuple[LinkSpec, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _names_fit(self) -> "ChainSpec":
        seen: list[str] = []
        for job in self.jobs:
            if job.name in seen:
                raise ValueError(f"two jobs are called '{job.name}'; give each its own name")
            for name in job.after or ():
                if name not in seen:
                    known = ", ".join(seen) or "none"
                    raise ValueError(
                        f"job '{job.name}' waits for '{name}', which is not above it ({known})"
                    )
            seen.append(job.name)
        return self

    def waits_for(self, index: int) -> tuple[str, ...]:
        """Return the names of the jobs that job `index` waits for."""
        after = self.jobs[index].after
        return after if after is not None else tuple(job.name for job in self.jobs[:index][-1:])

    def request(self, index: int) -> Request:
        """Return what job `index` asks SLURM for."""
        job = self.jobs[index]
        if job.run[0] == "train":
            script = script_for(Path(job.run[1])) if len(job.run) > 1 else None
            base = request_of(script) if script else Request()
            return job.slurm.over(self.slurm.over(base))
        gpus = 1 if self.slurm.gpus_per_node else None
        single = Request(nodes=1, ntasks_per_node=1, gpus_per_node=gpus)
        return job.slurm.over(single.over(self.slurm))


def read_chain(files: Sequence[Path]) -> ChainSpec:
    """Read a chain file, or make a chain of trainings from configs in their order.

    Raises:
        Misuse: a file is missing or wrong, or a training's config is.
    """
    if len(files) == 1 and _is_chain(files[0]):
        chain = ChainSpec.parse(load(files[0]), str(files[0]))
    else:
        names = [check_name(path.stem, f"the name of config {path}") for path in files]
        jobs = [{"name": n, "run": ("train", str(p))} for n, p in zip(names, files, strict=True)]
        chain = ChainSpec.parse({"name": names[0], "jobs": jobs}, "command line")
    for job in chain.jobs:
        _check(job)
    return chain


def _is_chain(path: Path) -> bool:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False  # whoever reads it as a config says what is wrong
    return isinstance(values, dict) and "jobs" in values


def _check(job: LinkSpec) -> None:
    """Refuse a training whose config is wrong before anything is queued."""
    check_job(job.run)
    if job.run[0] == "train":
        words = [word for word in job.run[1:] if not word.startswith("--")]
        if not words:
            raise Misuse(f"job '{job.name}': field 'run' is 'train' without a config; add it")
        load_recipe(Path(words[0]), words[1:])
