"""Purposes that count words (runs of characters without white space)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from telos.core.errors import TelosError
from telos.purposes.scoring import plain


def words(completion: Any) -> int:
    """How many words a completion has."""
    return len(plain(completion).split())


def whole(text: str, what: str) -> int:
    """A whole number of at least 1.

    Raises:
        TelosError: anything else.
    """
    if not text.strip().isdecimal() or int(text) < 1:
        raise TelosError(f"{what} is wrong", expected="a whole number of at least 1", got=repr(text))
    return int(text)


@dataclass(frozen=True)
class Length:
    """Longer is better, or nearer to a target is better.

    Without a target: the number of words, at most `limit`; range 0 to `limit`.
    With one: -|words - target|, at least -`limit`; range -`limit` to 0, 0 at the target.
    """

    target: int | None = None
    limit: int | None = None
    cache: ClassVar[bool] = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """From `target=20,limit=40`, each of them optional."""
        options: dict[str, int] = {}
        for part in filter(None, text.split(",")):
            name, equals, value = part.partition("=")
            if name.strip() not in ("target", "limit") or not equals:
                raise TelosError(f"length has no option '{part}'", expected="length:target=20,limit=40")
            options[name.strip()] = whole(value, f"length's {name.strip()}")
        return cls(**options)

    @property
    def origin(self) -> str:
        """The name that `resolve` reads."""
        given = {"target": self.target, "limit": self.limit}
        options = ",".join(f"{name}={value}" for name, value in given.items() if value is not None)
        return f"length:{options}" if options else "length"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N scores."""
        counts = [words(completion) for completion in completions]
        cap = float("inf") if self.limit is None else self.limit
        if self.target is None:
            return [float(min(count, cap)) for count in counts]
        return [float(-min(abs(count - self.target), cap)) for count in counts]


@dataclass(frozen=True)
class MaxWords:
    """A length constraint: 1 for at most `limit` words, else limit - words, which is -1 or less."""

    limit: int
    cache: ClassVar[bool] = True

    @classmethod
    def parse(cls, text: str) -> Self:
        """From the number of words."""
        return cls(whole(text, "max_words"))

    @property
    def origin(self) -> str:
        """The name that `resolve` reads."""
        return f"max_words:{self.limit}"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N scores."""
        excess = [words(completion) - self.limit for completion in completions]
        return [1.0 if count <= 0 else -float(count) for count in excess]
