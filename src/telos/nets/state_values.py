"""Twin action-values over either kind of action, and state values with layer normalisation and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from telos.data.records import Box, Discrete
from telos.nets.critics import EnsembleQ
from telos.nets.mlp import MLP, EnsembleMLP
from telos.nets.policies import CategoricalPolicy, GaussianPolicy

if TYPE_CHECKING:
    from jaxtyping import Float


class TwinQ(nn.Module):
    """Q_1 and Q_2 over either kind of action.

    Args:
        observation_size: O.
        space: of the actions.
        hidden: widths of the hidden layers.
        rng: draws the initial weights.
    """

    def __init__(self, observation_size: int, space: Box | Discrete, hidden: Sequence[int], rng: torch.Generator):
        super().__init__()
        self.discrete = isinstance(space, Discrete)
        self.net = (
            EnsembleMLP(2, (observation_size, *hidden, space.size), rng)
            if self.discrete
            else EnsembleQ(2, observation_size, space.size, hidden, rng)
        )

    def forward(self, states: Float[Tensor, "B O"], actions: Tensor) -> Float[Tensor, "2 B"]:
        if not self.discrete:
            return self.net(states, actions)
        return self.net(states).gather(-1, actions.expand(2, -1)[..., None]).squeeze(-1)

    def several(self, states: Float[Tensor, "B O"], actions: Tensor) -> Float[Tensor, "2 B n"]:
        """Of n actions (B, n) or (B, n, A) at each state; equal actions have equal values, to the last bit."""
        if self.discrete:
            return self.net(states).gather(-1, actions.expand(2, -1, -1))
        count = actions.shape[1]
        return self.net(states.repeat_interleave(count, 0), actions.flatten(0, 1)).unflatten(1, (-1, count))

    def expected(
        self, policy: GaussianPolicy | CategoricalPolicy, states: Float[Tensor, "B O"], noise: Float[Tensor, "B A"]
    ) -> Float[Tensor, "2 B"]:
        """Q(s, pi): exact for discrete actions, else at an action drawn with standard normal noise."""
        if isinstance(policy, CategoricalPolicy):
            return (policy.log_probs(states).exp().detach() * self.net(states)).sum(-1)
        with torch.no_grad():
            mean, log_std = policy(states)
            actions = policy.scale.clamp(policy.scale(mean + log_std.exp() * noise))
        return self.net(states, actions)


class StateValue(nn.Module):
    """V(s): linear layers, each hidden one followed by layer normalisation (if wanted), ReLU and dropout."""

    def __init__(self, sizes: Sequence[int], layer_norm: bool, dropout: float, rng: torch.Generator):
        super().__init__()
        self.net, self.dropout = MLP(sizes, rng), dropout
        self.norms = nn.ModuleList(nn.LayerNorm(size) if layer_norm else nn.Identity() for size in sizes[1:-1])
        self.units = sum(sizes[1:-1]) if dropout > 0 else 0

    def forward(self, x: Float[Tensor, "B O"], draws: Float[Tensor, "B units"] | None = None) -> Float[Tensor, " B"]:
        """With uniform `draws`, one for each hidden unit, units are dropped."""
        *layers, last = self.net.layers
        used = 0
        for layer, norm in zip(layers, self.norms):
            x = torch.relu(norm(layer(x)))
            if draws is not None and self.units:
                kept = draws[:, used : used + x.shape[1]] >= self.dropout
                x, used = x * kept / (1 - self.dropout), used + x.shape[1]
        return last(x).squeeze(-1)
