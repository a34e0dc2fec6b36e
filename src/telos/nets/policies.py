"""Policies over vector observations: deterministic, Gaussian, categorical. Normalisation is inside.

`forward` takes normalised observations ("states", what a learner works with); `act` takes raw ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.data.records import Box, Discrete, Transitions
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


def box(data: Any, method: str) -> Box:
    """The action space of a data set, if it is continuous and bounded.

    Raises:
        TelosError: not a data set in memory, discrete actions, an infinite bound, or a dimension without width.
    """
    if not isinstance(data, Transitions):
        raise TelosError(f"{method} learns from a data set", expected="Transitions", got=type(data).__name__)
    space = data.action_space
    if isinstance(space, Discrete):
        raise TelosError(
            f"{method} needs continuous actions",
            expected="action_space=Box(low, high)",
            got=f"{space.size} discrete actions",
            fix="use a method for discrete actions, such as BC",
        )
    for index, (low, high) in enumerate(zip(space.low, space.high)):
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise TelosError(
                f"{method} needs bounded actions",
                expected="finite low < high in every dimension",
                got=f"[{low}, {high}] in dimension {index}",
                fix="state the real bounds in action_space",
            )
    return space


def as_batch(obs: Any, normaliser: Normaliser) -> tuple[Float[Tensor, "B O"], bool]:
    """Observations of any kind as a float32 batch where the policy lives, and whether there was only one (O,).

    Raises:
        TelosError: another width than the policy was made for.
    """
    tensor = torch.as_tensor(obs, dtype=torch.float32, device=normaliser.mean.device)
    size = len(normaliser.mean)
    if tensor.dim() not in (1, 2) or tensor.shape[-1] != size:
        raise TelosError(
            "observations do not fit the policy",
            expected=f"shape (batch, {size}) or ({size},)",
            got=str(tuple(tensor.shape)),
            fix="use the environment or the data that the policy was trained for",
        )
    return (tensor[None], True) if tensor.dim() == 1 else (tensor, False)


def need_rng(rng: torch.Generator | None) -> torch.Generator:
    """The generator, or a TelosError where an action has to be drawn without one."""
    if rng is None:
        raise TelosError("drawing an action needs a generator", fix="pass rng=Rng(seed).torch() to act")
    return rng


def probe_observations(normaliser: Normaliser) -> Float[Tensor, "4 O"]:
    """Four fixed observations of the size of the training data."""
    size = len(normaliser.mean)
    grid = torch.cos(torch.arange(4 * size, dtype=torch.float32)).view(4, size).to(normaliser.mean.device)
    return normaliser.mean + normaliser.std * grid


class BoxScale(nn.Module):
    """Maps the unit cube [-1, 1]^A onto a Box and back. Constants, not saved: the bounds are in the configuration."""

    low: Tensor
    high: Tensor
    centre: Tensor
    half_width: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]):
        super().__init__()
        bounds = torch.tensor([list(low), list(high)])
        for name, value in {
            "low": bounds[0],
            "high": bounds[1],
            "centre": bounds.mean(0),
            "half_width": (bounds[1] - bounds[0]) / 2,
        }.items():
            self.register_buffer(name, value, persistent=False)

    def forward(self, unit: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        return self.centre + self.half_width * unit

    def unit(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """The inverse of `forward`."""
        return (actions - self.centre) / self.half_width

    def clamp(self, actions: Float[Tensor, "*B A"]) -> Float[Tensor, "*B A"]:
        """The nearest point of the Box."""
        return torch.clamp(actions, self.low, self.high)


class DeterministicPolicy(Policy):
    """pi(s) = centre + half * tanh(net(s)), so always inside the Box.

    Args:
        observation_size: O.
        low, high: (A,) bounds of the actions.
        hidden: widths of the hidden layers.
        noise: standard deviation of the Gaussian exploration noise, as a fraction of half the Box's width.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        observation_size: int,
        low: Sequence[float],
        high: Sequence[float],
        hidden: Sequence[int] = (256, 256),
        noise: float = 0.0,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.low, self.high, self.hidden, self.noise = tuple(low), tuple(high), tuple(hidden), noise
        self.normaliser = Normaliser.identity(observation_size)
        self.scale = BoxScale(low, high)
        self.net = MLP((observation_size, *hidden, len(self.low)), rng)

    def forward(self, states: Float[Tensor, "B O"]) -> Float[Tensor, "B A"]:
        """Actions for normalised observations, with gradients."""
        return self.scale(torch.tanh(self.net(states)))

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
        """Actions (B, A), or (A,) for one observation (O,); `explore` adds noise and clips to the Box."""
        batch, single = as_batch(obs, self.normaliser)
        actions = self(self.normaliser(batch))
        if explore and self.noise > 0:
            normal = torch.randn(actions.shape, generator=need_rng(rng), device=actions.device)
            actions = actions + self.noise * self.scale.half_width * normal
        actions = self.scale.clamp(actions)
        return Act(actions[0] if single else actions)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean),
            "low": list(self.low),
            "high": list(self.high),
            "hidden": list(self.hidden),
            "noise": self.noise,
        }

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        return {"observations": observations, "action": self.act(observations).action}


class GaussianPolicy(Policy):
    """A Gaussian whose mean is centre + half * tanh(net(s)); samples are clipped to the Box.

    The density is that of the Gaussian before clipping, as in IQL's code: no tanh correction is involved. At the
    bounds, where clipped samples gather, it is therefore not the density of what `act` returns.

    Args:
        observation_size: O.
        low, high: (A,) bounds of the actions.
        hidden: widths of the hidden layers.
        state_dependent_std: whether the network also predicts log-std; else it is one parameter an action dimension.
        log_std_min, log_std_max: clip of the log-std, in units of half the Box's width.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        observation_size: int,
        low: Sequence[float],
        high: Sequence[float],
        hidden: Sequence[int] = (256, 256),
        state_dependent_std: bool = False,
        log_std_min: float = -5.0,
        log_std_max: float = 2.0,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.low, self.high, self.hidden = tuple(low), tuple(high), tuple(hidden)
        self.log_std_min, self.log_std_max = log_std_min, log_std_max
        self.normaliser = Normaliser.identity(observation_size)
        self.scale = BoxScale(low, high)
        outputs = len(self.low) * (2 if state_dependent_std else 1)
        self.net = MLP((observation_size, *hidden, outputs), rng)
        self.log_std = None if state_dependent_std else nn.Parameter(torch.zeros(len(self.low)))

    def forward(self, states: Float[Tensor, "B O"]) -> tuple[Float[Tensor, "B A"], Float[Tensor, "*B A"]]:
        """Means in the unit cube (B, A), and log-stds (B, A) or (A,) in the same units."""
        outputs = self.net(states)
        mean, log_std = outputs.chunk(2, -1) if self.log_std is None else (outputs, self.log_std)
        return torch.tanh(mean), log_std.clamp(self.log_std_min, self.log_std_max)

    def log_likelihood(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Log-density of `actions` (raw, not unit) at normalised observations."""
        mean, log_std = self(states)
        z = (self.scale.unit(actions) - mean) * torch.exp(-log_std)
        constant = log_std + torch.log(self.scale.half_width) + 0.5 * math.log(2 * math.pi)
        return (-0.5 * z**2 - constant).sum(-1)

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
        """The means, or with `explore` samples with the Gaussian's log_prob at the (clipped) action returned."""
        batch, single = as_batch(obs, self.normaliser)
        states = self.normaliser(batch)
        actions, log_std = self(states)
        log_prob = None
        if explore:
            normal = torch.randn(actions.shape, generator=need_rng(rng), device=actions.device)
            actions = actions + torch.exp(log_std) * normal
        actions = self.scale.clamp(self.scale(actions))
        if explore:
            log_prob = self.log_likelihood(states, actions)
            log_prob = log_prob[0] if single else log_prob
        return Act(actions[0] if single else actions, log_prob=log_prob)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean),
            "low": list(self.low),
            "high": list(self.high),
            "hidden": list(self.hidden),
            "state_dependent_std": self.log_std is None,
            "log_std_min": self.log_std_min,
            "log_std_max": self.log_std_max,
        }

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        mean, log_std = self(self.normaliser(observations))
        return {"observations": observations, "mean": mean, "log_std": log_std}


class CategoricalPolicy(Policy):
    """softmax(net(s)) over discrete actions; the most probable one unless it explores.

    Args:
        observation_size: O.
        actions: how many there are.
        hidden: widths of the hidden layers.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        observation_size: int,
        actions: int,
        hidden: Sequence[int] = (256, 256),
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.actions, self.hidden = actions, tuple(hidden)
        self.normaliser = Normaliser.identity(observation_size)
        self.net = MLP((observation_size, *hidden, actions), rng)

    def forward(self, states: Float[Tensor, "B O"]) -> Float[Tensor, "B K"]:
        """Logits at normalised observations."""
        return self.net(states)

    def log_likelihood(self, states: Float[Tensor, "B O"], actions: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Log-probabilities of `actions` at normalised observations."""
        return torch.log_softmax(self(states), -1).gather(-1, actions[:, None]).squeeze(-1)

    def log_probs(self, states: Float[Tensor, "B O"], mask: Any = None) -> Float[Tensor, "B K"]:
        """Of all actions at normalised observations; -inf where `mask` is False."""
        logits = self(states)
        if mask is not None:
            logits = logits.masked_fill(~torch.as_tensor(mask, dtype=torch.bool, device=logits.device), -torch.inf)
        return torch.log_softmax(logits, -1)

    def log_prob(self, obs: Any, action: Any, *, goal: Any = None, mask: Any = None) -> Float[Tensor, "*B"]:
        """(B,) log-probabilities of given actions (B,) at raw observations (B, O); () for one of each."""
        batch, single = as_batch(obs, self.normaliser)
        actions = torch.as_tensor(action, dtype=torch.int64, device=batch.device).reshape(-1, 1)
        log_probs = self.log_probs(self.normaliser(batch), mask).gather(-1, actions).squeeze(-1)
        return log_probs[0] if single else log_probs

    def probabilities(self, obs: Any, mask: Any = None) -> Float[Tensor, "*B K"]:
        """(B, K) probabilities of all actions at raw observations; (K,) for one."""
        batch, single = as_batch(obs, self.normaliser)
        shares = self.log_probs(self.normaliser(batch), mask).exp()
        return shares[0] if single else shares

    @torch.no_grad()
    def act(
        self,
        obs: Any,
        *,
        goal: Any = None,
        state: Any = None,
        mask: Bool[Tensor, "*B K"] | None = None,
        rng: torch.Generator | None = None,
        explore: bool = False,
    ) -> Act:
        """Actions (B,) int64, or () for one observation; `mask` is True where an action is allowed."""
        batch, single = as_batch(obs, self.normaliser)
        log_probs = self.log_probs(self.normaliser(batch), mask)
        if not explore:
            actions = log_probs.argmax(-1)
            return Act(actions[0] if single else actions)
        actions = torch.multinomial(log_probs.exp(), 1, generator=need_rng(rng)).squeeze(-1)
        log_prob = log_probs.gather(-1, actions[:, None]).squeeze(-1)
        return Act(actions[0], log_prob=log_prob[0]) if single else Act(actions, log_prob=log_prob)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean),
            "actions": self.actions,
            "hidden": list(self.hidden),
        }

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        return {"observations": observations, "logits": self(self.normaliser(observations))}
