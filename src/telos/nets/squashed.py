"""A Gaussian pushed through tanh: the stochastic policy of SAC and CQL, whose density is that of what it returns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from telos.core.products import Act, Policy
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.policies import BoxScale, as_batch, need_rng, probe_observations

if TYPE_CHECKING:
    from jaxtyping import Float

EDGE = 1 - 1e-6
"""Where the inverse of tanh stops: recorded actions at a bound count as lying just inside."""


class SquashedGaussianPolicy(Policy):
    """a = centre + half * tanh(u) with u Gaussian; tanh(mean) unless it explores.

    Args:
        observation_size: O.
        low, high: (A,) bounds of the actions.
        hidden: widths of the hidden layers.
        log_std_min, log_std_max: clip of u's log-std.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        observation_size: int,
        low: Sequence[float],
        high: Sequence[float],
        hidden: Sequence[int] = (256, 256),
        log_std_min: float = -20.0,
        log_std_max: float = 2.0,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.low, self.high, self.hidden = tuple(low), tuple(high), tuple(hidden)
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.normaliser = Normaliser.identity(observation_size)
        self.scale = BoxScale(low, high)
        self.net = MLP((observation_size, *hidden, 2 * len(self.low)), rng)

    def forward(self, states: Float[Tensor, "B O"]) -> tuple[Float[Tensor, "B A"], Float[Tensor, "B A"]]:
        """Mean and log-std of u at normalised observations."""
        mean, log_std = self.net(states).chunk(2, -1)
        return mean, log_std.clamp(self.log_std_min, self.log_std_max)

    def draw(
        self, states: Float[Tensor, "B O"], noise: Float[Tensor, "n B A"]
    ) -> tuple[Float[Tensor, "n B A"], Float[Tensor, "n B"]]:
        """Actions from standard normal noise, with gradients, and their log-densities in the unit cube [-1, 1]^A."""
        mean, log_std = self(states)
        u = mean + log_std.exp() * noise
        return self.scale(torch.tanh(u)), self.unit_log_density(u, noise, log_std)

    def unit_log_density(
        self, u: Float[Tensor, "*B A"], z: Float[Tensor, "*B A"], log_std: Float[Tensor, "*B A"]
    ) -> Float[Tensor, "*B"]:
        """Log-density of tanh(u) where u is z standard deviations from its mean."""
        normal = -0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)
        # log(1 - tanh(u)^2), without its underflow.
        slope = 2 * (math.log(2) - u - torch.nn.functional.softplus(-2 * u))
        return (normal - slope).sum(-1)

    def log_likelihood(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Log-density of raw `actions` at normalised observations."""
        mean, log_std = self(states)
        u = torch.atanh(self.scale.unit(actions).clamp(-EDGE, EDGE))
        unit = self.unit_log_density(u, (u - mean) * torch.exp(-log_std), log_std)
        return unit - torch.log(self.scale.half_width).sum()

    def log_prob(self, obs: Any, action: Any, *, goal: Any = None, mask: Any = None) -> Float[Tensor, "*B"]:
        """(B,) log-density of given actions (B, A) at raw observations (B, O); () for one of each."""
        batch, single = as_batch(obs, self.normaliser)
        actions = torch.as_tensor(action, dtype=torch.float32, device=batch.device).reshape(len(batch), -1)
        log_probs = self.log_likelihood(self.normaliser(batch), actions)
        return log_probs[0] if single else log_probs

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: Any = None,
        mask: Any = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions (B, A), or (A,) for one observation; with `explore` drawn, with their log-density."""
        batch, single = as_batch(obs, self.normaliser)
        states = self.normaliser(batch)
        if not explore:
            actions = self.scale.clamp(self.scale(torch.tanh(self(states)[0])))
            return Act(actions[0] if single else actions)
        noise = torch.randn((1, len(batch), len(self.low)), generator=need_rng(rng), device=batch.device)
        drawn, unit = self.draw(states, noise)
        actions, log_prob = self.scale.clamp(drawn[0]), unit[0] - torch.log(self.scale.half_width).sum()
        return Act(actions[0], log_prob=log_prob[0]) if single else Act(actions, log_prob=log_prob)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean),
            "low": list(self.low),
            "high": list(self.high),
            "hidden": list(self.hidden),
            "log_std_min": self.log_std_min,
            "log_std_max": self.log_std_max,
        }

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        mean, log_std = self(self.normaliser(observations))
        return {"observations": observations, "mean": mean, "log_std": log_std}
