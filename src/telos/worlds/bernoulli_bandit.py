"""Bernoulli bandit: one pull an episode; arm 0 pays 1 with probability 1 - p, arm 1 with probability p.

The recorded policy pulls the worse arm 1 with probability 1 - p, so what is conditioned on a reward of 1 pulls either
arm equally often, and imitation earns 2 p (1 - p). After Yang et al. 2022, arXiv 2210.13435.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.rng import Rng
from telos.data.records import Discrete, Transitions

if TYPE_CHECKING:
    from jaxtyping import Float


def dataset(pulls: int, p: float, rng: Rng) -> Transitions:
    """`pulls` episodes of one step; the observation is a constant 0."""
    draws = torch.rand((2, pulls), generator=rng.at("bandit").torch())
    arms = (draws[0] < 1 - p).long()
    rewards = (draws[1] < torch.where(arms == 1, p, 1 - p)).float()
    nothing = torch.zeros(pulls, 1)
    return Transitions.validated(
        observations=nothing, actions=arms, rewards=rewards, next_observations=nothing,
        terminated=torch.ones(pulls, dtype=torch.bool), truncated=torch.zeros(pulls, dtype=torch.bool),
        action_space=Discrete(2),
    )  # fmt: skip


def expected_reward(probabilities: Float[Tensor, " 2"], p: float) -> float:
    """Of a policy's next pull."""
    return float(probabilities[0] * (1 - p) + probabilities[1] * p)


def imitation(p: float) -> float:
    """What the recorded policy earns: 2 p (1 - p)."""
    return 2 * p * (1 - p)


def conditioned(p: float, reward: int = 1) -> Float[Tensor, " 2"]:
    """P(arm | reward) in the data: a half each for a reward of 1, whatever p."""
    share = torch.tensor([p, 1 - p]) * torch.tensor([1 - p, p] if reward else [p, 1 - p])
    return share / share.sum()


def information(p: float) -> float:
    """I(reward; arm) of the data in nats: the least value of DoC's bracket."""

    def entropy(q: float) -> float:
        return -q * math.log(q) - (1 - q) * math.log(1 - q)

    return entropy(imitation(p)) - entropy(p)
