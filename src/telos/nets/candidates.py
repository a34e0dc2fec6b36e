"""A policy over continuous actions that chooses among candidates which a model of the recorded behaviour proposes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from telos.core.products import Act, Policy
from telos.nets.critics import EnsembleQ
from telos.nets.mlp import MLP
from telos.nets.normaliser import Normaliser
from telos.nets.policies import BoxScale, as_batch, need_rng, probe_observations

if TYPE_CHECKING:
    from jaxtyping import Float

BOUND = 0.5
"""Codes that propose actions are normal, clipped to this: they stay where the decoder has seen many."""


class ActionEncoder(nn.Module):
    """Mean and log-std of the codes of recorded actions: what a variational auto-encoder has besides its decoder."""

    def __init__(self, inputs: int, codes: int, hidden: Sequence[int], rng: torch.Generator | None = None):
        super().__init__()
        self.net = MLP((inputs, *hidden, 2 * codes), rng)

    def forward(
        self, states: Float[Tensor, "B O"], unit_actions: Float[Tensor, "B A"]
    ) -> tuple[Float[Tensor, "B Z"], Float[Tensor, "B Z"]]:
        mean, log_std = self.net(torch.cat([states, unit_actions], -1)).chunk(2, -1)
        return mean, log_std.clamp(-4, 15)


class CandidatePolicy(Policy):
    """Of `candidates` actions that the decoder proposes and a perturbation improves, the one of greatest Q_1.

    The codes of the candidates are drawn once, so that it is deterministic; it draws others where it explores.

    Args:
        observation_size: O.
        low, high: (A,) bounds of the actions.
        hidden: widths of the hidden layers of perturbation and critics.
        decoder_hidden: those of the decoder.
        codes: numbers in a code, Z.
        candidates: how many actions are compared.
        reach: the largest perturbation, in half widths of the action range.
        rng: draws the initial weights and codes; without it they are zeros, to be loaded.
    """

    codes: Tensor

    def __init__(
        self,
        observation_size: int,
        low: Sequence[float],
        high: Sequence[float],
        hidden: Sequence[int] = (256, 256),
        decoder_hidden: Sequence[int] = (750, 750),
        codes: int = 2,
        candidates: int = 100,
        reach: float = 0.05,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.low, self.high, self.hidden = tuple(low), tuple(high), tuple(hidden)
        self.decoder_hidden, self.reach = tuple(decoder_hidden), reach
        size = len(self.low)
        self.normaliser = Normaliser.identity(observation_size)
        self.scale = BoxScale(low, high)
        self.decoder = MLP((observation_size + codes, *decoder_hidden, size), rng)
        self.perturbation = MLP((observation_size + size, *hidden, size), rng)
        self.critic = EnsembleQ(2, observation_size, size, hidden, rng)
        drawn = torch.zeros(candidates, codes) if rng is None else torch.randn((candidates, codes), generator=rng)
        self.register_buffer("codes", drawn.clamp(-BOUND, BOUND))

    def decode(self, states: Float[Tensor, "*B O"], codes: Float[Tensor, "*B Z"]) -> Float[Tensor, "*B A"]:
        """Actions in the unit cube, as the behaviour takes them."""
        return torch.tanh(self.decoder(torch.cat([states, codes], -1)))

    def perturb(
        self, states: Float[Tensor, "*B O"], unit_actions: Float[Tensor, "*B A"], perturbation: MLP | None = None
    ) -> Float[Tensor, "*B A"]:
        """Raw actions at most `reach` away; `perturbation` replaces the policy's own."""
        net = perturbation or self.perturbation
        change = self.reach * torch.tanh(net(torch.cat([states, unit_actions], -1)))
        return self.scale((unit_actions + change).clamp(-1, 1))

    def candidates(self, states: Float[Tensor, "B O"], codes: Float[Tensor, "B n Z"]) -> Float[Tensor, "B n A"]:
        """An action for each code."""
        repeated = states[:, None].expand(*codes.shape[:2], -1)
        return self.perturb(repeated, self.decode(repeated, codes))

    def values(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B n A"]) -> Float[Tensor, "2 B n"]:
        """Q_1 and Q_2 of several actions a row."""
        rows, n = actions.shape[:2]
        return self.critic(states.repeat_interleave(n, 0), actions.flatten(0, 1)).unflatten(1, (rows, n))

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
        """Actions (B, A), or (A,) for one observation."""
        batch, single = as_batch(obs, self.normaliser)
        states = self.normaliser(batch)
        codes = self.codes.expand(len(batch), -1, -1)
        if explore:
            codes = torch.randn(codes.shape, generator=need_rng(rng), device=batch.device).clamp(-BOUND, BOUND)
        actions = self.candidates(states, codes)
        best = self.values(states, actions)[0].argmax(-1)
        chosen = self.scale.clamp(actions[torch.arange(len(batch), device=batch.device), best])
        return Act(chosen[0] if single else chosen)

    def config(self) -> dict[str, Any]:
        return {
            "observation_size": len(self.normaliser.mean),
            "low": list(self.low),
            "high": list(self.high),
            "hidden": list(self.hidden),
            "decoder_hidden": list(self.decoder_hidden),
            "codes": self.codes.shape[1],
            "candidates": len(self.codes),
            "reach": self.reach,
        }

    def probe(self) -> dict[str, Tensor]:
        observations = probe_observations(self.normaliser)
        states = self.normaliser(observations)
        actions = self.candidates(states, self.codes.expand(len(states), -1, -1))
        return {"observations": observations, "actions": actions, "values": self.values(states, actions)}
