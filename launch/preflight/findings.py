"""What a preflight found: what is good, what makes a run less safe, what stops it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from pipeline.run.folder import DONE, MISUSE


@dataclass
class Findings:
    """Lines for people, each with what to change: mistakes end with 2, warnings do not."""

    good: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)

    def show(self, say: Callable[[str], object] = print) -> int:
        """Say everything, mistakes last; returns the exit code."""
        for text in self.good:
            say(f"ok       {text}")
        for text in self.warnings:
            say(f"warning  {text}")
        for text in self.mistakes:
            say(f"mistake  {text}")
        return MISUSE if self.mistakes else DONE
