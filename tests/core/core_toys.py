"""What tests of the core share."""

from __future__ import annotations

import torch

from telos.data.records import Box, Transitions


def transitions(rows: int = 64, episode: int = 8, draw: torch.Generator | None = None) -> Transitions:
    """Random ones, of episodes of equal length."""
    draw = torch.Generator().manual_seed(0) if draw is None else draw
    return Transitions.validated(
        observations=torch.randn(rows, 3, generator=draw),
        actions=torch.rand(rows, 2, generator=draw) * 2 - 1,
        rewards=torch.randn(rows, generator=draw),
        next_observations=torch.randn(rows, 3, generator=draw),
        terminated=torch.arange(rows) % episode == episode - 1,
        truncated=torch.zeros(rows, dtype=torch.bool),
        action_space=Box((-1.0, -1.0), (1.0, 1.0)),
    )


class Killed(BaseException):
    """As a kill: no library handles it."""
