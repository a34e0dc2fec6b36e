"""A weighted sum of purposes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from telos.core.errors import TelosError
from telos.purposes.scoring import score


@dataclass(frozen=True)
class Weighted:
    """sum_k weight_k purpose_k(prompt, completion); a purpose that answers None for a row is left out there.

    Args:
        terms: (purpose, weight) pairs, one at least; weights are finite and may be negative.
    """

    terms: tuple[tuple[Any, float], ...]

    def __post_init__(self) -> None:
        if not self.terms:
            raise TelosError("a weighted purpose has no terms", expected="at least one purpose with its weight")
        for purpose, weight in self.terms:
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise TelosError(
                    f"the weight of the purpose {getattr(purpose, 'origin', purpose)} is not a finite number",
                    got=repr(weight),
                )

    @property
    def origin(self) -> str:
        """The text that `resolve` reads; AttributeError where a term was made in memory and has no name."""
        text = "".join(
            f" {'-' if weight < 0 else '+'} {repr(float(abs(weight))).removesuffix('.0')}*{purpose.origin}"
            for purpose, weight in self.terms
        )
        return text.removeprefix(" + ").strip()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> np.ndarray:
        """(N,) float32, as `score` gives them."""
        return score(self, prompts, completions, columns=columns)
