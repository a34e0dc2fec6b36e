"""Action-value ensembles, and the slow copies that targets are computed from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from telos.nets.mlp import EnsembleMLP

if TYPE_CHECKING:
    from jaxtyping import Float

M = TypeVar("M", bound=nn.Module)


class EnsembleQ(nn.Module):
    """`members` action-values Q_i(s, a), computed together.

    Args:
        members: 2 for the twin critics of TD3.
        observation_size, action_size: widths O and A.
        hidden: widths of the hidden layers.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        members: int,
        observation_size: int,
        action_size: int,
        hidden: Sequence[int],
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.net = EnsembleMLP(members, (observation_size + action_size, *hidden, 1), rng)

    def forward(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, "members B"]:
        return self.net(torch.cat([states, actions], -1)).squeeze(-1)

    def first(self, states: Float[Tensor, "B O"], actions: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        """Q_1 alone."""
        return self.net.one(0, torch.cat([states, actions], -1)).squeeze(-1)


def frozen_copy(module: M) -> M:
    """A target network: equal weights of its own, without gradients."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def polyak_(target: nn.Module, source: nn.Module, tau: float) -> None:
    """target <- (1 - tau) target + tau source, in place."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), tau)
