"""Whether telos's samples are those of transformers' generate: prints a number as JSON.

sampling_checks.py greedy          prompts of 32 for each model whose greedy completions differ
sampling_checks.py distribution    p-value that next tokens of both come from one distribution
"""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import torch
from scipy.stats import chi2_contingency
from torch import Tensor

from pairs import NEW_TOKENS
from sampling import MODELS, generated, prompts
from telos.core.numerics import preset, using
from telos.core.rng import Rng
from telos.lm.model import LanguageModel, load_model
from telos.lm.products import LanguagePolicy

COPIES, PLACES, LEAST = 2048, (0, 1, 3, 15), 10


def closed(tokens: Tensor, eos: int) -> np.ndarray:
    """(B, N) ids with -1 after the end token."""
    after = (tokens == eos).cumsum(1) - (tokens == eos).long() > 0
    return tokens.masked_fill(after, -1).numpy()


def by_telos(model: LanguageModel, rows: list[np.ndarray], new: int, **options: Any) -> np.ndarray:
    """The same of telos's completions, by compiled steps."""
    with using(preset("compiled")):
        done = LanguagePolicy(model).generate(rows, max_new_tokens=new, **options)
    tokens = np.full((len(rows), new), -1)
    for place, (ids, start, end) in enumerate(zip(done.tokens.tolist(), done.boundaries, done.lengths, strict=True)):
        tokens[place, : end - start] = ids[start:end]
    return tokens


def greedy() -> int:
    """How many prompts of both models are completed differently."""
    different = 0
    for source in MODELS.values():
        model = load_model(source())
        rows = prompts(model, 32)
        theirs = closed(generated(model, rows, do_sample=False), model.eos_id)
        ours = by_telos(model, rows, NEW_TOKENS, temperature=0.0)
        different += int((ours[:, : theirs.shape[1]] != theirs).any(1).sum())
    return different


def same(a: np.ndarray, b: np.ndarray) -> float:
    """p-value of the chi-square test that tokens a and b come from one distribution; rare ones are taken together."""
    names = np.unique(np.concatenate([a, b]))
    counts = np.stack([(x[:, None] == names).sum(0) for x in (a, b)])
    rare = counts.sum(0) < LEAST
    table = np.column_stack([counts[:, ~rare], counts[:, rare].sum(1)])
    return float(chi2_contingency(table[:, table.sum(0) > 0]).pvalue)  # type: ignore[attr-defined]


def distribution() -> float:
    """The smallest p-value of several places after two prompts of unequal lengths, times their number."""
    model = load_model(MODELS["tiny"]())
    torch.manual_seed(0)
    heads = sorted(prompts(model, 8), key=len)
    rows = [heads[0]] * COPIES + [heads[-1]] * COPIES
    new = max(PLACES) + 1
    theirs = closed(generated(model, rows, max_new_tokens=new), model.eos_id)
    ours = by_telos(model, rows, new, rng=Rng(0).torch())
    halves = [slice(0, COPIES), slice(COPIES, None)]
    values = [same(ours[half, place], theirs[half, place]) for half in halves for place in PLACES]
    return min(1.0, min(values) * len(values))


CHECKS = {"greedy": greedy, "distribution": distribution}

if __name__ == "__main__":
    print(json.dumps(CHECKS[sys.argv[1]]()))
