"""Bit chain: 8 bits of a Markov chain, a target over them, and policies that see no bit but their own.

Base a: a fair first bit; each later one repeats the bit before with probability 0.6. There are 256 strings, so every
probability, divergence and gradient is exact. The policy is a product of 8 independent coins, which cannot match a
target with two modes: what it gives up shows which divergence it minimises.

    bimodal   a 1[#1 >= 7 or #1 <= 1]     entropy 2.84 nats
    unimodal  a 1[#1 >= 6]                entropy 3.51
    soft      a e^#1

Source: the first experiment of f-DPG's dossier (arXiv 2302.08215).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from telos.ops.f_divergences import DIVERGENCES, constraint, divergence, jensen_shannon, tilt

if TYPE_CHECKING:
    from jaxtyping import Float

BITS, REPEAT = 8, 0.6
_STRINGS = (torch.arange(2**BITS)[:, None] >> torch.arange(BITS - 1, -1, -1) & 1).double()


def strings() -> Float[Tensor, "256 8"]:
    """All bit strings, as 0 and 1 in float64, in the order of their numbers."""
    return _STRINGS.clone()


def base_log_probs() -> Float[Tensor, "256"]:
    """log a of every string."""
    bits = strings()
    repeats = (bits[:, 1:] == bits[:, :-1]).double()
    return -torch.log(torch.tensor(2.0)) + torch.where(repeats > 0, REPEAT, 1 - REPEAT).log().sum(-1)


def coin_log_probs(logits: Float[Tensor, "8"]) -> Float[Tensor, "256"]:
    """log pi of every string under independent coins, with gradient."""
    return logsigmoid(-logits).sum() + _STRINGS @ logits  # log sigmoid(l) = l + log sigmoid(-l)


def bimodal() -> Float[Tensor, "256"]:
    """Log factor of the target with two modes."""
    ones = strings().sum(-1)
    return constraint(((ones >= 7) | (ones <= 1)).double())


def unimodal() -> Float[Tensor, "256"]:
    """Log factor of the target with one mode and hard walls."""
    return constraint((strings().sum(-1) >= 6).double())


def soft() -> Float[Tensor, "256"]:
    """Log factor of the target that excludes nothing."""
    return tilt(strings().sum(-1), beta=1.0)


FACTORS: dict[str, Callable[[], Tensor]] = {"bimodal": bimodal, "unimodal": unimodal, "soft": soft}


def measures(log_policy: Float[Tensor, "256"], log_target: Float[Tensor, "256"]) -> dict[str, float]:
    """Exact: alignment (probability of what the target allows), entropy, TV, JS (at most log 2), KL to the base a.

    `kl` is KL(p || pi), `reverse_kl` KL(pi || p), the latter only where the target excludes nothing; nats.
    """
    policy = log_policy.exp()
    found = {
        "alignment": policy[log_target > -torch.inf].sum(),
        "entropy": -torch.xlogy(policy, policy).sum(),
        "tv": divergence(DIVERGENCES["tv"], log_policy, log_target),
        "js": jensen_shannon(log_policy, log_target),
        "kl": _kl(log_target, log_policy),
        "kl_base": _kl(log_policy, base_log_probs()),
    }
    if (log_target > -torch.inf).all():
        found["reverse_kl"] = _kl(log_policy, log_target)
    return {name: float(value) for name, value in found.items()}


def _kl(log_p: Tensor, log_q: Tensor) -> Tensor:
    return divergence(DIVERGENCES["reverse_kl"], log_p, log_q)
