"""What preference pairs hold: noise, cycles, a taste for length, and how much of the choice simple features tell.

Texts are compared without regard to white space. A *comparison* is an unordered pair of different texts of one prompt;
it may be judged several times. If each judgement errs with probability p, two judgements of a comparison differ with
probability 2 p (1 - p): that is how repeats tell the noise. A *triad* is three texts of one prompt that were all
compared with each other (by the majority of judgements): it is a cycle where each beats the next. Coin flips make a
quarter of triads cycles, an order without noise none.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from telos.core.rng import Rng
from telos.data.records import Preferences, Text
from telos.data.splits import prompt_key

BUCKETS = 2048
"""Of hashed words, for the simple features."""
FOLDS = 5
MOST_TRIADS = 200_000


@dataclass(frozen=True)
class Share:
    """`hits` of `count`; `low` and `high` its Wilson 95 % interval."""

    hits: float
    count: int

    @property
    def value(self) -> float:
        """The share, NaN of nothing."""
        return self.hits / self.count if self.count else math.nan

    @property
    def low(self) -> float:
        """Lower end."""
        return self._bounds()[0]

    @property
    def high(self) -> float:
        """Upper end."""
        return self._bounds()[1]

    def _bounds(self) -> tuple[float, float]:
        if not self.count:
            return 0.0, 1.0
        z, n, p = 1.959964, self.count, self.value
        middle = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, middle - half), min(1.0, middle + half)

    def __str__(self) -> str:
        return f"{self.value:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.count}"


@dataclass(frozen=True)
class PairMeasures:
    """What `measure_pairs` found.

    Args:
        pairs, prompts: how many; largest: the share of pairs of the prompt that has most.
        implicit: pairs without a prompt of their own.
        same: pairs whose texts are equal.
        judged: comparisons; repeated: those judged twice or more.
        disagreement: of two judgements of a repeated comparison, drawn at random: how often they differ.
        noise: the probability of a wrong label that would make as many differ; None without repeats.
        cycles: share of triads.
        longer: share of pairs whose chosen text has more characters, ties one half.
        words: held-out accuracy of a linear model of hashed words, prompts kept apart, ties one half. At least
            min(p, 1 - p) of labels is beyond it; a model of texts should do better.
        chosen_length, rejected_length: mean characters.
    """

    origin: str | None
    pairs: int
    prompts: int
    largest: float
    implicit: int
    same: int
    judged: int
    repeated: int
    disagreement: Share
    noise: float | None
    cycles: Share
    longer: Share
    words: Share
    chosen_length: float
    rejected_length: float

    def to_json(self) -> dict[str, Any]:
        """All fields, shares with their intervals."""
        values = asdict(self)
        for name in ("disagreement", "cycles", "longer", "words"):
            share: Share = getattr(self, name)
            values[name] = {"value": share.value, "low": share.low, "high": share.high, "count": share.count}
        return values


def measure_pairs(data: Preferences, seed: int = 0) -> PairMeasures:
    """Counts what preference pairs hold.

    Args:
        seed: of the folds.
    """
    rows = list(zip(data.prompts, data.chosen, data.rejected, strict=True))
    prompts = [prompt_key(*row) for row in rows]
    chosen, rejected = ([plain(text) for text in column] for column in (data.chosen, data.rejected))
    votes: dict[tuple[str, str, str], list[int]] = defaultdict(lambda: [0, 0])
    for prompt, winner, loser in zip(prompts, chosen, rejected, strict=True):
        if winner != loser:
            first, second = sorted((winner, loser))
            votes[prompt, first, second][int(winner == second)] += 1
    differ = disagreement(list(votes.values()))
    lengths = np.array([[len(a), len(b)] for a, b in zip(chosen, rejected, strict=True)], dtype=float)
    counts = Counter(prompts)
    return PairMeasures(
        origin=data.origin, pairs=len(data), prompts=len(counts), largest=max(counts.values()) / len(data),
        implicit=sum(prompt is None for prompt in data.prompts),
        same=sum(a == b for a, b in zip(chosen, rejected, strict=True)), judged=len(votes), repeated=differ.count,
        disagreement=differ, noise=noise(differ.value) if differ.count else None, cycles=cycles(votes),
        longer=Share(float(((np.sign(lengths[:, 0] - lengths[:, 1]) + 1) / 2).sum()), len(data)),
        words=learnable(prompts, chosen, rejected, Rng(seed).at("pairs")),
        chosen_length=float(lengths[:, 0].mean()), rejected_length=float(lengths[:, 1].mean()),
    )  # fmt: skip


def plain(text: Text) -> str:
    """A text, or the messages of a conversation, with single spaces."""
    return " ".join((text if isinstance(text, str) else json.dumps(text)).split())


def disagreement(votes: Sequence[Sequence[int]]) -> Share:
    """Of comparisons with 2 judgements or more: the mean probability that two of them (not the same one) differ."""
    found = [2 * a * b / ((a + b) * (a + b - 1)) for a, b in votes if a + b > 1]
    return Share(float(sum(found)), len(found))


def noise(differ: float) -> float:
    """p in [0, 1/2] with 2 p (1 - p) = differ; 1/2 for any larger disagreement."""
    return 0.5 * (1 - math.sqrt(max(0.0, 1 - 2 * differ)))


def cycles(votes: dict[tuple[str, str, str], list[int]]) -> Share:
    """Cyclic triads among all, up to MOST_TRIADS of them; comparisons that ended in a tie are left out."""
    beaten: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for (prompt, first, second), (a, b) in votes.items():
        if a != b:
            winner, loser = (first, second) if a > b else (second, first)
            beaten[prompt][winner].add(loser)
    cyclic = total = 0
    for wins in beaten.values():
        texts = sorted({*wins, *(text for losers in wins.values() for text in losers)})
        for x, y, z in combinations(texts, 3):
            edges = [(a, b) for a, b in ((x, y), (y, z), (x, z), (y, x), (z, y), (z, x)) if b in wins.get(a, ())]
            if len(edges) < 3:
                continue
            total += 1
            cyclic += len({a for a, _ in edges}) == 3
            if total == MOST_TRIADS:
                return Share(cyclic, total)
    return Share(cyclic, total)


def learnable(prompts: Sequence[str], chosen: Sequence[str], rejected: Sequence[str], rng: Rng) -> Share:
    """Held-out accuracy of ridge regression on the difference of hashed word counts, in FOLDS parts of the prompts."""
    names, group = np.unique(np.array(prompts), return_inverse=True)
    if len(names) < FOLDS:
        return Share(0, 0)
    fold = rng.numpy().permutation(len(names))[group] % FOLDS
    features = words(chosen) - words(rejected)
    features /= np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    hits = 0.0
    for number in range(FOLDS):
        train, test = features[fold != number], features[fold == number]
        if len(train) == 0 or len(test) == 0:
            continue
        # Each pair is also its mirror image with the other label, so there is no constant to fit.
        weights = np.linalg.solve(train.T @ train + np.eye(features.shape[1]), train.sum(0))
        hits += float(((np.sign((test @ weights).round(9)) + 1) / 2).sum())
    return Share(hits, len(chosen))


def words(texts: Sequence[str]) -> NDArray[np.float64]:
    """[texts, BUCKETS] square roots of word counts, words put into buckets by a hash that is the same everywhere."""
    found = np.zeros((len(texts), BUCKETS))
    for row, text in enumerate(texts):
        for word in text.casefold().split():
            found[row, zlib.crc32(word.encode()) % BUCKETS] += 1
    return np.sqrt(found)
