"""Sentiment of English text by VADER's lexicon and rules (Hutto and Gilbert, ICWSM 2014)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from telos.core.errors import TelosError
from telos.data.extras import extra
from telos.purposes.scoring import plain


@functools.cache
def analyser() -> Any:
    """The package's analyser with its lexicon.

    Raises:
        TelosError: the package vaderSentiment is not installed.
    """
    with extra("purposes", "the purpose 'sentiment'"):
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    return SentimentIntensityAnalyzer()


@dataclass(frozen=True)
class Sentiment:
    """VADER's compound score of the completion: -1 most negative, 0 neutral or empty, 1 most positive."""

    cache: ClassVar[bool] = True
    origin: ClassVar[str] = "sentiment"

    @classmethod
    def parse(cls, text: str) -> Self:
        """It has no options."""
        if text:
            raise TelosError("sentiment has no options", got=text)
        analyser()
        return cls()

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> list[float]:
        """N scores."""
        scores = analyser().polarity_scores
        return [float(scores(plain(completion))["compound"]) for completion in completions]
