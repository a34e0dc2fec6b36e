"""What tests of the core share."""

from __future__ import annotations

import torch

from telos.data.records import Box, Transitions


def transitions() -> Transitions:
    """64 random ones, of episodes of 8."""
    draw = torch.Generator().manual_seed(0)
    return Transitions.validated(
        observations=torch.randn(64, 3, generator=draw),
        actions=torch.rand(64, 2, generator=draw) * 2 - 1,
        rewards=torch.randn(64, generator=draw),
        next_observations=torch.randn(64, 3, generator=draw),
        terminated=torch.arange(64) % 8 == 7,
        truncated=torch.zeros(64, dtype=torch.bool),
        action_space=Box((-1.0, -1.0), (1.0, 1.0)),
    )


class Killed(BaseException):
    """As a kill: no library handles it."""
