"""Payments: requests with changing allowed routes, each of which succeeds or fails; in the spirit of arXiv 2412.00569.

A request x ~ N(0, I) of 8 features can be sent by 8 routes, each allowed with probability 0.75 (one always is). Route a
succeeds with probability sigmoid(0.7 w_a.x + 0.6 x'V_a x + b_a), where w ~ N(0, 1), V ~ N(0, 0.35^2) and
b ~ N(0.6, 0.5^2) are drawn once for a seed. A small network cannot represent the quadratic part: the reward model is
wrong on purpose away from what it has seen. The best policy succeeds at about 0.93, a uniform one at 0.58.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from telos.core.online import Online
from telos.core.rng import Rng
from telos.data.records import LoggedBandit

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

FEATURES, ROUTES = 8, 8


class RewardPolicy(Protocol):
    """What is measured of a policy: its predictions and its probabilities."""

    def rewards(self, obs: Tensor) -> Tensor:
        """(B, K) predicted rewards."""
        ...

    def probabilities(self, obs: Tensor, mask: Tensor) -> Tensor:
        """(B, K)."""
        ...


@dataclass(frozen=True)
class Requests:
    """A batch of requests, their allowed routes (at least one each), and what each route would do."""

    contexts: Float[Tensor, "N 8"]
    allowed: Bool[Tensor, "N 8"]
    success: Float[Tensor, "N 8"]
    outcomes: Float[Tensor, "N 8"]
    """0 or 1: what is observed if the route is taken; the same for every policy that meets the request."""

    def reward(self, actions: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The outcome of the routes taken."""
        return self.outcomes.gather(-1, actions[:, None])[:, 0]


@dataclass(frozen=True)
class Payments:
    """One world: the routes' constants."""

    weights: Float[Tensor, "8 8"]
    quadratic: Float[Tensor, "8 8 8"]
    bias: Float[Tensor, " 8"]

    @classmethod
    def draw(cls, rng: Rng) -> Payments:
        """The world of a seed."""
        stream = rng.at("payments").torch()
        weights = torch.randn(ROUTES, FEATURES, generator=stream)
        quadratic = 0.35 * torch.randn(ROUTES, FEATURES, FEATURES, generator=stream)
        return cls(weights, quadratic, 0.6 + 0.5 * torch.randn(ROUTES, generator=stream))

    def success(self, contexts: Float[Tensor, "N 8"]) -> Float[Tensor, "N 8"]:
        """The true probability of success of every route."""
        square = torch.einsum("nd,ade,ne->na", contexts, self.quadratic, contexts)
        return torch.sigmoid(0.7 * contexts @ self.weights.T + 0.6 * square + self.bias)

    def requests(self, n: int, rng: Rng) -> Requests:
        """`n` requests of the stream `rng`."""
        stream = rng.torch()
        contexts = torch.randn(n, FEATURES, generator=stream)
        allowed = torch.rand(n, ROUTES, generator=stream) < 0.75
        allowed[torch.arange(n), torch.randint(ROUTES, (n,), generator=stream)] = True
        success = self.success(contexts)
        return Requests(contexts, allowed, success, (torch.rand(n, ROUTES, generator=stream) < success).float())

    def log(self, n: int, rng: Rng) -> LoggedBandit:
        """`n` requests sent by a uniformly drawn route, as a log."""
        requests = self.requests(n, rng.at("requests"))
        shares = requests.allowed.float() / requests.allowed.sum(-1, keepdim=True)
        actions = torch.multinomial(shares, 1, generator=rng.at("routes").torch())[:, 0]
        return LoggedBandit.validated(
            contexts=requests.contexts,
            actions=actions,
            rewards=requests.reward(actions),
            allowed=requests.allowed,
            propensities=shares.gather(-1, actions[:, None])[:, 0],
        )


def serve(online: Online, requests: Requests) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Sends all requests by `online` and tells it every outcome: rewards, and the propensities of what was taken."""
    decision = online.act(requests.contexts, mask=requests.allowed)
    rewards = requests.reward(decision.action)
    online.learn(rewards, decision.id)
    assert decision.log_prob is not None
    return rewards, decision.log_prob.exp()


def diagnose(policy: RewardPolicy, fresh: Requests, log: LoggedBandit) -> dict[str, float]:
    """What a reward model is worth, on fresh requests by the simulator's truth and on the log that it was fitted to.

    Returns:
        value: the gold measure, the true success rate of always taking the allowed route that is predicted best;
        rmse: of predictions against true probabilities, over all allowed routes;
        auc, ece: on the log, `area_under_curve` and `calibration_error`.
    """
    predictions = policy.rewards(fresh.contexts)
    chosen = predictions.masked_fill(~fresh.allowed, -torch.inf).argmax(-1)
    logged = policy.rewards(log.contexts).gather(-1, log.actions[:, None])[:, 0]
    return {
        "value": float(fresh.success.gather(-1, chosen[:, None]).mean()),
        "rmse": float((predictions - fresh.success)[fresh.allowed].square().mean().sqrt()),
        "auc": area_under_curve(logged, log.rewards),
        "ece": calibration_error(logged, log.rewards),
    }


def entropy(policy: RewardPolicy, fresh: Requests) -> float:
    """Mean entropy of the policy's probabilities, nats."""
    return float(torch.special.entr(policy.probabilities(fresh.contexts, fresh.allowed)).sum(-1).mean())


def effective_share(propensities: Float[Tensor, " N"], allowed: Bool[Tensor, "N K"]) -> float:
    """Effective sample size of evaluating the uniform policy on a log, as a share of its rows: 0 to 1."""
    weights = 1 / (allowed.sum(-1) * propensities.double())
    return float(weights.sum().square() / weights.square().sum() / len(weights))


def area_under_curve(predictions: Float[Tensor, " N"], rewards: Float[Tensor, " N"]) -> float:
    """Probability that a success is predicted above a failure, ties counting one half; 0.5 if one kind is missing."""
    _, inverse, counts = predictions.unique(return_inverse=True, return_counts=True)
    ranks = (counts.cumsum(0) - (counts - 1) / 2)[inverse].double()
    wins = rewards > 0.5
    good, bad = int(wins.sum()), int((~wins).sum())
    if not good or not bad:
        return 0.5
    return float((ranks[wins].sum() - good * (good + 1) / 2) / (good * bad))


def calibration_error(predictions: Float[Tensor, " N"], rewards: Float[Tensor, " N"], bins: int = 10) -> float:
    """Expected calibration error: mean gap between prediction and success rate over `bins` equal parts of [0, 1]."""
    index = (predictions * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64).index_add_(0, index, (predictions - rewards).double())
    return float(gaps.abs().sum() / len(predictions))
