"""A verifier for questions with a number as their answer, such as GSM8K (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, ClassVar, Self

from telos.core.errors import TelosError
from telos.purposes.scoring import plain, shown

# A minus after a digit, a letter or a closing bracket is a difference, not a sign.
NUMBER = re.compile(r"(?<![\w)\].])-?\$?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?")


def last_number(text: str) -> Decimal | None:
    """The last number in `text`; thousands may be separated by commas, a dollar sign may stand before it."""
    found = NUMBER.findall(text)
    return Decimal(re.sub(r"[,$]", "", found[-1])) if found else None


def reference(value: Any) -> Decimal | None:
    """The number of a reference answer: after `####` where there is one, else the last one."""
    return last_number(str(value).rpartition("####")[2])


@dataclass(frozen=True)
class Answer:
    """1 if the last number of the completion equals the reference answer, else 0 (also without any number).

    Args:
        column: the data's column with the reference: a number, or a text whose last number counts (in GSM8K's form
            the one after `####`).
    """

    column: str = "answer"
    cache: ClassVar[bool] = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the column's name."""
        return cls(text.strip() or "answer")

    @property
    def origin(self) -> str:
        """The name that `resolve` reads."""
        return "answer" if self.column == "answer" else f"answer:{self.column}"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
        """N scores.

        Raises:
            TelosError: the column is missing, or a reference holds no number.
        """
        if self.column not in columns:
            raise TelosError(
                f"the purpose 'answer' needs the column '{self.column}'",
                expected=f"a column of that name beside the prompts (there are: {', '.join(columns) or 'none'})",
                fix="add the column to the data, or name another: answer:COLUMN",
            )
        wanted = [reference(value) for value in columns[self.column]]
        if None in wanted:
            row = wanted.index(None)
            raise TelosError(
                f"column '{self.column}' holds no number for prompt {shown(prompts[row])}",
                expected="a number, or a text that ends with one",
                got=shown(columns[self.column][row]),
            )
        return [float(last_number(plain(c)) == number) for c, number in zip(completions, wanted, strict=True)]
