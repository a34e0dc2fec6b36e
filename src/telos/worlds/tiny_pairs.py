"""Pairs of TinySent completions, ordered by gold: what claims on scored pairs learn from."""

from __future__ import annotations

import itertools

from telos.core.rng import Rng
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.worlds import tiny_sent

NEW_TOKENS = 21
PER_PROMPT = 4


def ordered_pairs(
    model: LanguageModel, count: int, rng: Rng
) -> tuple[list[str], list[tuple[str, str]], list[tuple[float, float]]]:
    """All pairs with different gold among 4 samples of the model for each of `count` prompts, the higher first.

    Returns:
        For each pair its prompt, its two texts (which begin with a space), and their two gold rewards.
    """
    prompts = tiny_sent.prompts(count, rng.at("prompts").numpy())
    drawn = LanguagePolicy(model).generate(
        prompts, n=PER_PROMPT, rng=rng.at("samples").torch(), max_new_tokens=NEW_TOKENS
    )
    golds, texts = tiny_sent.gold(drawn.prompts, drawn.texts), [f" {text}" for text in drawn.texts]
    found = [
        (i, j) if golds[i] > golds[j] else (j, i)
        for start in range(0, len(texts), PER_PROMPT)
        for i, j in itertools.combinations(range(start, start + PER_PROMPT), 2)
        if golds[i] != golds[j]
    ]
    return (
        [prompts[i // PER_PROMPT] for i, _ in found],
        [(texts[i], texts[j]) for i, j in found],
        [(float(golds[i]), float(golds[j])) for i, j in found],
    )
