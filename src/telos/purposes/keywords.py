"""Purposes that ask for words: how many of them occur, in any simple inflection."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from telos.core.errors import TelosError
from telos.purposes.scoring import plain


def inflections(word: str) -> set[str]:
    """A base form with its regular English plurals, genitives, third persons, past forms and -ing forms.

    Some are no words ("catted"), which does no harm; irregular forms ("ran", "mice") are not among them.
    """
    forms = {word, word + "s", word + "'s", word + "s'"}
    consonant = r"[^\Waeiou\d_]"
    if re.search(r"(s|x|z|ch|sh|o)$", word):
        forms |= {word + "es", word + "'"}
    if re.search(rf"{consonant}y$", word):
        forms |= {word[:-1] + "ies", word[:-1] + "ied", word + "ing"}
    elif word.endswith("ie"):
        forms |= {word + "d", word[:-2] + "ying"}
    elif word.endswith("e"):
        forms |= {word + "d", word[:-1] + "ing", word + "ing"}
    else:
        forms |= {word + "ed", word + "ing"}
    if re.search(rf"{consonant}[aeiou][^\Waeiouwxy\d_]$", word):
        forms |= {word + word[-1] + "ed", word + word[-1] + "ing"}
    if re.search(r"(f|fe)$", word):
        forms.add(re.sub(r"(f|fe)$", "ves", word))
    return forms


def occurs(keyword: str) -> re.Pattern[str]:
    """Finds a keyword as whole words, case ignored; of several words the last one is inflected."""
    *before, last = keyword.lower().split()
    endings = "|".join(re.escape(form) for form in sorted(inflections(last), key=len, reverse=True))
    beginning = "".join(re.escape(word) + r"\s+" for word in before)
    return re.compile(rf"(?<!\w){beginning}(?:{endings})(?!\w)", re.IGNORECASE)


@dataclass(frozen=True)
class Keywords:
    """The share of the required words that occur in the completion; 0 to 1.

    Args:
        words: base forms ("cat", "run", "ice cream").
    """

    words: tuple[str, ...]
    cache: ClassVar[bool] = True
    name: ClassVar[str] = "keywords"

    def __post_init__(self) -> None:
        if not self.words or not all(word.strip() for word in self.words):
            raise TelosError(f"{self.name} has an empty word", expected=f"{self.name}:cat,dog", got=str(self.words))

    @classmethod
    def parse(cls, text: str) -> Self:
        """From words with commas between them."""
        return cls(tuple(word.strip() for word in text.split(",")))

    @property
    def origin(self) -> str:
        """The name that `resolve` reads."""
        return f"{self.name}:{','.join(self.words)}"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N scores."""
        patterns = [occurs(word) for word in self.words]
        return [sum(bool(p.search(plain(c))) for p in patterns) / len(patterns) for c in completions]


@dataclass(frozen=True)
class AllKeywords(Keywords):
    """1 if all required words occur, else 0."""

    name: ClassVar[str] = "all_keywords"

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N scores."""
        return [float(share == 1) for share in super().__call__(prompts, completions)]
