"""Which responses to a prompt become pairs, and which of the two is preferred: builders of pairs from judgements.

n responses stand side by side for each of g prompts. A builder gives pairs [p, 3] of whole numbers: prompt, preferred
response, other response (each within the prompt's n). Ties give no pair. What is random is drawn from a generator that
the caller gives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from telos.core.errors import TelosError

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def bradley_terry(scores: Float[Tensor, "g n"]) -> Float[Tensor, "g n n"]:
    """P(i is preferred to j) = sigma(score_i - score_j)."""
    return (scores[:, :, None] - scores[:, None, :]).sigmoid()


def sharp(scores: Float[Tensor, "g n"]) -> Float[Tensor, "g n n"]:
    """1 where i scores higher than j, 0 where lower, 1/2 for a tie."""
    return ((scores[:, :, None] - scores[:, None, :]).sign() + 1) / 2


def labelled(prefers: Float[Tensor, "g n n"], generator: torch.Generator) -> Float[Tensor, "g n n"]:
    """One draw of each judgement: a matrix of 0 and 1 (1/2 on the diagonal), i beats j if and only if j loses to i."""
    drawn = torch.bernoulli(prefers, generator=generator).triu(1)
    upper = torch.ones_like(prefers).triu(1)
    return drawn + (upper - drawn).mT + 0.5 * torch.eye(prefers.shape[1], device=prefers.device)


def judged(
    prefers: Float[Tensor, "g n n"], first: Int[Tensor, "g m"], second: Int[Tensor, "g m"]
) -> Int[Tensor, "p 3"]:
    """Pairs of the given responses, the one with more than half a chance first; those at just half are left out."""
    prompts = torch.arange(len(prefers), device=prefers.device)[:, None].expand_as(first)
    chance = prefers[prompts, first, second]
    winner, loser = torch.where(chance > 0.5, first, second), torch.where(chance > 0.5, second, first)
    return torch.stack([prompts, winner, loser], -1)[chance != 0.5]


def independent(prefers: Float[Tensor, "g n n"]) -> Int[Tensor, "p 3"]:
    """Responses 0 and 1, 2 and 3, ...: independent pairs where the responses are; a last odd one is left out."""
    g, n = prefers.shape[:2]
    order = torch.arange(n - n % 2, device=prefers.device).expand(g, -1)
    return judged(prefers, order[:, 0::2], order[:, 1::2])


def every(prefers: Float[Tensor, "g n n"]) -> Int[Tensor, "p 3"]:
    """All n (n - 1) / 2 pairs of each prompt."""
    g, n = prefers.shape[:2]
    first, second = torch.triu_indices(n, n, 1, device=prefers.device)
    return judged(prefers, first.expand(g, -1), second.expand(g, -1))


def best_worst(scores: Float[Tensor, "g n"]) -> Int[Tensor, "p 3"]:
    """The highest against the lowest score of each prompt; of equal ones the first."""
    return judged(sharp(scores), scores.argmax(-1, keepdim=True), scores.argmin(-1, keepdim=True))


def tournament(prefers: Float[Tensor, "g n n"]) -> Int[Tensor, "p 3"]:
    """Winners play on until one is left: n - 1 pairs of each prompt. In each round neighbours meet, an odd last one
    waits; of a tie, which gives no pair, the first goes on (Zhao et al. 2023, arXiv 2305.10425)."""
    g, n = prefers.shape[:2]
    rows = torch.arange(g, device=prefers.device)[:, None]
    left = torch.arange(n, device=prefers.device).expand(g, -1)
    found = []
    while left.shape[1] > 1:
        even = left.shape[1] - left.shape[1] % 2
        first, second = left[:, 0:even:2], left[:, 1:even:2]
        found.append(judged(prefers, first, second))
        winners = torch.where(prefers[rows, first, second] >= 0.5, first, second)
        left = torch.cat([winners, left[:, even:]], 1)
    return torch.cat(found) if found else torch.zeros((0, 3), dtype=torch.int64, device=prefers.device)


def playoff(prefers: Float[Tensor, "g n n"]) -> Int[Tensor, "p 3"]:
    """One pair of each prompt: the winner of winners against the loser of losers, kept where the winner beats it.

    Neighbours meet; winners then play among winners and losers among losers; of a tie the first counts as the winner.
    n must be a power of two: 8 responses take 4 + 2 x 3 + 1 = 11 comparisons (Zhang et al. 2024, arXiv 2407.00617).
    """
    g, n = prefers.shape[:2]
    if n < 2 or n & (n - 1):
        raise TelosError("a play-off needs a power of two responses", expected="2, 4, 8, ...", got=f"{n}")
    rows = torch.arange(g, device=prefers.device)[:, None]

    def meet(players: Tensor) -> tuple[Tensor, Tensor]:
        first, second = players[:, 0::2], players[:, 1::2]
        wins = prefers[rows, first, second] >= 0.5
        return torch.where(wins, first, second), torch.where(wins, second, first)

    best, worst = meet(torch.arange(n, device=prefers.device).expand(g, -1))
    while best.shape[1] > 1:
        best, worst = meet(best)[0], meet(worst)[1]
    pairs = judged(prefers, best, worst)
    return pairs[pairs[:, 1] == best[pairs[:, 0], 0]]


def beyond(scores: Float[Tensor, "g n"], margin: Float[Tensor, "g n n"], least: float) -> Int[Tensor, "p 3"]:
    """All pairs whose preferred response scores at least `least` and leads by at least margin[i, j] > 0."""
    lead = scores[:, :, None] - scores[:, None, :]
    return ((lead >= margin) & (scores[:, :, None] >= least)).nonzero()


def rejection_sample(
    scores: Float[Tensor, "n"], beta: float, count: int, generator: torch.Generator
) -> Int[Tensor, "m"]:
    """Statistical rejection sampling without replacement: which of n candidates are kept, in the order of acceptance.

    A pass goes through those left in their order and accepts each with probability exp((score - highest left) / beta),
    the highest being that of the pass's beginning, until `count` are there (Liu et al. 2023, arXiv 2309.06657). As n
    grows the accepted ones follow the candidates' distribution tilted by exp(score / beta).

    Args:
        scores: of distinct candidates in random order; an order by score would bias the result.
        beta: > 0, in the unit of the scores: large accepts all, small keeps the highest.
        count: how many to keep, at most n.
    """
    left, kept = list(range(len(scores))), []
    count = min(count, len(left))
    while len(kept) < count:
        highest = scores[left].max()
        chances = ((scores[left] - highest) / beta).exp()
        draws = torch.rand(len(left), generator=generator, device=scores.device, dtype=scores.dtype)
        accepted = [i for i, keep in zip(left, (draws < chances).tolist(), strict=True) if keep][: count - len(kept)]
        kept += accepted
        taken = set(accepted)
        left = [i for i in left if i not in taken]
    return torch.tensor(kept, dtype=torch.int64, device=scores.device)
