"""Progressive stages: image size, augmentation and dropout that grow while a model trains.

Three published rules disagree, so a config names the one it means (M stages, i = 0 .. M-1):
`paper` and `arxiv_v1` interpolate everything with i/(M-1) (Algorithm 1 of the paper); `released` is
google/automl's code: sizes int(first + (last - first) * (i + 1)/M), so that the first size is never
trained, magnitudes with i/(M-1), and dropout not ramped at all. `fixed` changes nothing.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from pipeline.spec import Spec

Px = Annotated[int, Field(ge=8, le=2048)]
Magnitude = Annotated[float, Field(ge=0, le=100)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
CutmixLabels = Literal["own", "mean"]
"""Cut images get the share of their own box, or all of them the mean share, as officially."""
PROGRESSIVE = ("released", "paper", "arxiv_v1")


class Stage(Spec):
    """What holds from one stage boundary to the next. Magnitudes of 0 switch a thing off."""

    px: Px
    randaugment: Magnitude = 0.0
    mixup: Magnitude = 0.0
    cutmix: Magnitude = 0.0
    dropout: Rate = 0.0
    micro_batches: Count
    cutmix_labels: CutmixLabels = "own"


class StageOverride(Spec):
    """Values that replace those of one stage; None keeps what the rule gives."""

    px: Px | None = None
    randaugment: Magnitude | None = None
    mixup: Magnitude | None = None
    cutmix: Magnitude | None = None
    dropout: Rate | None = None
    micro_batches: Count | None = None
    cutmix_labels: CutmixLabels | None = None


def _pair(value: Any) -> Any:
    if isinstance(value, int | float):
        return (value, value)
    if isinstance(value, list | tuple) and len(value) == 2:
        return tuple(value)
    raise ValueError(
        "expected one number or [first, last]; single stages are set by number, "
        "for example stages.1.px=224"
    )


_T = TypeVar("_T")
Pair = Annotated[tuple[_T, _T], BeforeValidator(_pair)]


class StagesSpec(Spec):
    """The stages of a training: a rule, or a plain list of stages (`kind` is then `explicit`).

    Ranges are [first, last] or one number. A digit key overrides one stage, counted from 0, in
    either form: `"1": {px: 224}` in a file, `stages.1.px=224` on the command line.
    """

    kind: Literal["fixed", "released", "paper", "arxiv_v1", "explicit"]
    count: Count = 1
    px: Pair[Px] | None = None
    randaugment: Pair[Magnitude] = (0.0, 0.0)
    mixup: Pair[Magnitude] = (0.0, 0.0)
    cutmix: Pair[Magnitude] = (0.0, 0.0)
    dropout: Pair[Rate] = (0.0, 0.0)
    micro_batches: Count | tuple[Count, ...] = 1
    cutmix_labels: CutmixLabels = "own"
    explicit: tuple[Stage, ...] = ()
    overrides: dict[int, StageOverride] = {}

    @model_validator(mode="before")
    @classmethod
    def _normalise(cls, values: Any) -> Any:
        if isinstance(values, list | tuple):
            return {"kind": "explicit", "explicit": values, "count": len(values)}
        if not isinstance(values, Mapping):
            return values
        plain = {key: value for key, value in values.items() if not str(key).isdigit()}
        merged = {int(key): value for key, value in (plain.get("overrides") or {}).items()}
        for key, value in values.items():
            if str(key).isdigit():
                if not isinstance(value, Mapping):
                    raise ValueError(f"stage '{key}' needs a field, for example stages.{key}.px=96")
                merged[int(key)] = {**merged.get(int(key), {}), **value}
        return {**plain, "overrides": merged}

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.kind == "explicit":
            self._check_explicit()
        else:
            self._check_rule()
        if isinstance(self.micro_batches, tuple) and len(self.micro_batches) != self.count:
            raise ValueError(
                f"micro_batches lists {len(self.micro_batches)} values for {self.count} stages "
                "(count); write one number, or one for each stage"
            )
        unknown = sorted(index for index in self.overrides if index >= self.count)
        if unknown:
            raise ValueError(f"there is no stage {unknown[0]}: they are 0 to {self.count - 1}")
        self.resolve()
        return self

    def _check_explicit(self) -> None:
        if not self.explicit:
            raise ValueError("the list of stages is empty; give at least one stage with its px")
        if self.count != len(self.explicit):
            raise ValueError(
                f"count is {self.count}, but {len(self.explicit)} stages are listed; remove count"
            )

    def _check_rule(self) -> None:
        if self.px is None:
            raise ValueError("px is missing; give one number or [first, last]")
        if self.explicit:
            raise ValueError(f"a list of stages has no effect with kind '{self.kind}'; remove one")
        if self.kind in PROGRESSIVE and self.count == 1:
            raise ValueError(
                f"kind '{self.kind}' needs count of 2 or more; use kind 'fixed' for one stage"
            )
        still = {"fixed": ("px", "randaugment", "mixup", "cutmix", "dropout")}
        for name in (*still.get(self.kind, ()), *(["dropout"] if self.kind == "released" else [])):
            first, last = getattr(self, name)
            if first != last:
                raise ValueError(
                    f"{name} is [{first}, {last}], but kind '{self.kind}' never ramps {name}; "
                    f"give one number, for example stages.{name}={last}"
                )

    def resolve(self) -> tuple[Stage, ...]:
        """Return the stages with all numbers filled in."""
        stages = self.explicit or tuple(self._interpolated(i) for i in range(self.count))
        return tuple(
            _overridden(stage, self.overrides[i]) if i in self.overrides else stage
            for i, stage in enumerate(stages)
        )

    def _interpolated(self, i: int) -> Stage:
        assert self.px is not None
        ramp = i / (self.count - 1) if self.count > 1 else 1.0
        m = self.micro_batches
        return Stage(
            px=self._size_px(i),
            randaugment=_between(self.randaugment, ramp),
            mixup=_between(self.mixup, ramp),
            cutmix=_between(self.cutmix, ramp),
            dropout=_between(self.dropout, ramp),
            micro_batches=m[i] if isinstance(m, tuple) else m,
            cutmix_labels=self.cutmix_labels,
        )

    def _size_px(self, i: int) -> int:
        """Exact in integers: the released code truncates, the paper's printed sizes are rounded."""
        assert self.px is not None
        first, last = self.px
        if first == last:
            return last
        if self.kind == "released":
            return first + (last - first) * (i + 1) // self.count
        steps = self.count - 1
        return first + (2 * (last - first) * i + steps) // (2 * steps)


def _between(pair: tuple[float, float], ramp: float) -> float:
    first, last = pair
    return last if ramp == 1.0 else first + (last - first) * ramp


def _overridden(stage: Stage, override: StageOverride) -> Stage:
    values = {**stage.model_dump(), **override.model_dump(exclude_none=True)}
    return Stage.model_validate(values)
