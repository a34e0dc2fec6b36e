"""Returns of recorded steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.data.records import Transitions
from telos.data.windows import episode_bounds

if TYPE_CHECKING:
    from jaxtyping import Float


def returns_to_go(data: Transitions, discount: float = 1.0) -> Float[Tensor, " N"]:
    """Discounted rewards from each row to its episode's end."""
    last = episode_bounds(data)[1].tolist()
    found, following = data.rewards.tolist(), 0.0
    for row in reversed(range(len(found))):
        following = found[row] + (discount * following if row < last[row] else 0.0)
        found[row] = following
    return torch.tensor(found, device=data.rewards.device)
