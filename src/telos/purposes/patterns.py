"""Purposes that look for a regular expression (Python's syntax; `(?i)` ignores case, `(?s)` lets a dot match lines)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from telos.core.errors import TelosError
from telos.purposes.scoring import plain


@dataclass(frozen=True)
class Regex:
    """1 if the pattern is found anywhere in the completion, else 0."""

    pattern: str
    cache: ClassVar[bool] = True
    name: ClassVar[str] = "regex"

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise TelosError(
                f"{self.name}: not a regular expression",
                expected=f"{self.name}:PATTERN",
                got=f"{self.pattern}: {error}",
            ) from error
        if not self.pattern:
            raise TelosError(f"{self.name} has no pattern", expected=f"{self.name}:PATTERN")

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the pattern itself."""
        return cls(text)

    @property
    def origin(self) -> str:
        """The name that `resolve` reads."""
        return f"{self.name}:{self.pattern}"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N scores."""
        return [float(re.search(self.pattern, plain(completion)) is not None) for completion in completions]


@dataclass(frozen=True)
class Match(Regex):
    """1 if the pattern covers the completion from its first to its last character, else 0."""

    name: ClassVar[str] = "match"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N scores."""
        return [float(re.fullmatch(self.pattern, plain(completion)) is not None) for completion in completions]
