"""Oracles: which of two completions is preferred, with what probability. Any purpose is one through Bradley-Terry.

An oracle has `prefers(prompts, first, second) -> N probabilities` that the first is preferred, or is a function with
just these three parameters, as `file.py:function` may be. A general one need not follow from scores: it may be
intransitive. What it says of a pair and of the pair turned round is averaged, so that the
two always sum to 1.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from telos.core.errors import TelosError


@runtime_checkable
class Oracle(Protocol):
    """Something that compares completions of the same prompt."""

    def prefers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Any:
        """N numbers in [0, 1]: the chance that the first completion is preferred to the second."""
        ...


@dataclass(frozen=True)
class Compared:
    """The oracle that a function of (prompts, first, second) is."""

    function: Callable[[Sequence[str], Sequence[str], Sequence[str]], Any]

    def prefers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> Any:
        return self.function(prompts, first, second)


def as_oracle(judge: Any) -> Oracle | None:
    """The judge as an oracle, or None where it scores single completions."""
    if isinstance(judge, Oracle):
        return judge
    function = getattr(judge, "function", judge)  # of a user's file
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return Compared(function) if parameters == ["prompts", "first", "second"] else None


@dataclass(frozen=True)
class Sharpened:
    """An oracle whose answer is certain: 1 for what the other oracle prefers, 1/2 where it does not."""

    oracle: Oracle

    def prefers(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
        return (np.sign(asked(self.oracle, prompts, first, second) - 0.5) + 1) / 2


def asked(oracle: Oracle, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> np.ndarray:
    """(N,) the oracle's answers, made antisymmetric: (P(a, b) + 1 - P(b, a)) / 2.

    Raises:
        TelosError: the wrong number of answers, or one outside [0, 1], with its prompt.
    """
    there, back = (
        checked(oracle.prefers(prompts, a, b), prompts) for a, b in ((first, second), (second, first))
    )  # fmt: skip
    return (there + 1 - back) / 2


def checked(answers: Any, prompts: Sequence[str]) -> np.ndarray:
    """The answers as numbers, one a prompt, each a probability."""
    values = np.asarray(answers, dtype=np.float64)
    if values.shape != (len(prompts),):
        raise TelosError(
            "an oracle gave the wrong number of answers", expected=f"{len(prompts)}", got=f"{values.shape}"
        )
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)))
    if len(bad):
        raise TelosError(
            "an oracle's answer is no probability", expected="0 to 1",
            got=f"{values[bad[0]]} for the prompt {str(prompts[bad[0]])[:60]!r}",
        )  # fmt: skip
    return values
