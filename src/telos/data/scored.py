"""Texts with scores: K completions of each prompt, each with a number or with one number for each of A attributes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from telos.core.errors import TelosError
from telos.data.records import Rankings, Text, fingerprint_texts

Score = float | Sequence[float]
"""One number, or the numbers of several attributes."""


@dataclass(frozen=True)
class ScoredTexts:
    """Prompts with K completions each and what a judge or a reward model gave each of them; no order is implied.

    Args:
        prompts: N texts or conversations (None: implicit, the common beginning of the completions).
        completions: N tuples of the same length K >= 2.
        scores: N tuples of K finite numbers, higher is better, or of K tuples of A >= 1 numbers.

    Raises:
        TelosError: groups of different sizes, scores that do not match the completions or are not finite.
    """

    prompts: Sequence[Text | None]
    completions: Sequence[Sequence[Text]]
    scores: Sequence[Sequence[Score]]
    origin: str | None = None

    def __post_init__(self) -> None:
        where = self.origin or "scored texts"
        if not len(self.prompts) == len(self.completions) == len(self.scores):
            raise TelosError(
                f"{where}: columns of different lengths", expected="as many prompts as groups and scores",
                got=f"{len(self.prompts)}, {len(self.completions)} and {len(self.scores)}",
            )  # fmt: skip
        widths = {len(group) for group in self.completions}
        if len(widths) > 1 or min(widths, default=2) < 2:
            raise TelosError(
                f"{where}: groups of {sorted(widths)} completions", expected="the same K >= 2 for all",
                fix="cut or drop the groups that differ",
            )  # fmt: skip
        attributes = self.attributes
        for row, (group, scores) in enumerate(zip(self.completions, self.scores, strict=True), 1):
            if len(scores) != len(group):
                raise TelosError(
                    f"{where}, record {row}: {len(scores)} scores for {len(group)} completions",
                    expected="one score for each completion", fix="mend or remove the record",
                )  # fmt: skip
            for score in scores:
                values = numbers(score)
                if values is None or len(values) != attributes or isinstance(score, int | float) != self.single:
                    raise TelosError(
                        f"{where}, record {row}: no score", got=repr(score)[:80],
                        expected="a finite number" if self.single else f"{attributes} finite numbers",
                        fix="mend or remove the record",
                    )  # fmt: skip

    def __len__(self) -> int:
        return len(self.completions)

    def __getitem__(self, index: Sequence[int] | slice) -> ScoredTexts:
        take = range(len(self))[index] if isinstance(index, slice) else index
        return ScoredTexts(
            [self.prompts[i] for i in take], [self.completions[i] for i in take], [self.scores[i] for i in take],
            self.origin,
        )  # fmt: skip

    @property
    def single(self) -> bool:
        """Each score is one number, not a list of attributes."""
        return not self.scores or isinstance(self.scores[0][0], int | float)

    @property
    def attributes(self) -> int:
        """A: numbers in a score."""
        return 1 if self.single else len(self.scores[0][0])  # type: ignore[arg-type]

    def groups(self) -> Rankings:
        """The texts without their scores, in the order in which they stand."""
        return Rankings(self.prompts, self.completions, self.origin)

    def fingerprint(self) -> str:
        """Of texts and scores."""
        columns = self.prompts, [list(group) for group in self.completions], [str(list(s)) for s in self.scores]
        return fingerprint_texts(*columns)  # type: ignore[arg-type]


def numbers(score: object) -> tuple[float, ...] | None:
    """A score as a tuple of finite numbers; None where it is none."""
    values = [score] if isinstance(score, int | float) else list(score) if isinstance(score, list | tuple) else []
    good = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
    return tuple(float(v) for v in values) if values and good else None
