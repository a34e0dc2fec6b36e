"""Bit strings: all 2^n responses of n bits, so that policies are tables of exact log-probs and gold is an exact mean.

A policy is a vector of log-probs over the strings, in the order of `strings`. Three shapes occur in the papers' worlds:
by the number s of ones, log pi = -slope |s - centre| - log Z; a chain that repeats the bit before with a given
probability; and a base policy tilted log-linearly by features, log pi = log base + phi theta - log Z.

Sources: the covered-region bandit of RPO (arXiv 2405.16436), score-conditioned strings of RA-DPO (arXiv 2410.08067),
the misspecified bandit of RSO (arXiv 2309.06657), the teacher of DNO (arXiv 2404.03715), each as our dossiers made it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor


def strings(bits: int) -> Float[Tensor, "m n"]:
    """All 2^bits strings of 0 and 1 in the order of the numbers that they write, float64."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=bits)), dtype=torch.float64)


def by_ones(texts: Float[Tensor, "m n"], centre: float, slope: float) -> Float[Tensor, "m"]:
    """log pi of pi proportional to exp(-slope |ones - centre|)."""
    return (-slope * (texts.sum(-1) - centre).abs()).log_softmax(-1)


def chain(texts: Float[Tensor, "m n"], stay: float) -> Float[Tensor, "m"]:
    """log pi of a fair first bit after which each repeats the one before with probability `stay` in (0, 1)."""
    repeats = (texts[:, 1:] == texts[:, :-1]).double()
    chances = repeats * stay + (1 - repeats) * (1 - stay)
    return chances.log().sum(-1) - torch.tensor(2.0, dtype=torch.float64).log()


def pairwise_features(texts: Float[Tensor, "m n"]) -> Float[Tensor, "m f"]:
    """The n bits and their n (n - 1) / 2 products of two."""
    first, second = torch.triu_indices(texts.shape[1], texts.shape[1], 1)
    return torch.cat([texts, texts[:, first] * texts[:, second]], -1)


def tilted(log_base: Float[Tensor, "m"], scores: Float[Tensor, "*b m"]) -> Float[Tensor, "*b m"]:
    """log of base exp(scores) / Z, exactly normalised."""
    return (log_base + scores).log_softmax(-1)


def hump(texts: Float[Tensor, "m n"], peak: float) -> Float[Tensor, "m"]:
    """Gold that rises with the number of ones up to `peak` and falls at the same rate beyond: s, then 2 peak - 2 - s.

    With 10 bits and a peak of 6: s up to 6, then 10 - s, so 7 ones are worth 3.
    """
    ones = texts.sum(-1)
    return torch.where(ones <= peak, ones, 2 * peak - 2 - ones)


def draw(log_policy: Float[Tensor, "m"], count: int, generator: torch.Generator) -> Int[Tensor, "c"]:
    """`count` independent strings of the policy, by number."""
    return torch.multinomial(log_policy.exp(), count, replacement=True, generator=generator)


def noisy_pairs(
    log_policy: Float[Tensor, "m"], gold: Float[Tensor, "m"], count: int, generator: torch.Generator
) -> Int[Tensor, "c 2"]:
    """Independent pairs of the policy, (chosen, rejected) by Bradley-Terry: P(a is chosen) = sigma(gold_a - gold_b)."""
    pairs = draw(log_policy, 2 * count, generator).view(count, 2)
    chance = (gold[pairs[:, 0]] - gold[pairs[:, 1]]).sigmoid()
    first = torch.rand(count, generator=generator, dtype=torch.float64) < chance
    return torch.where(first[:, None], pairs, pairs.flip(1))


def minimise(
    loss: Callable[[], Tensor],
    parameters: list[Tensor],
    steps: int,
    learning_rate: float,
    each: Callable[[int], None] | None = None,
) -> None:
    """Adam on the full loss for `steps` steps, in place; `each` is called with the number of steps taken, from 0 on."""
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for step in range(steps):
        if each is not None:
            each(step)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    if each is not None:
        each(steps)
