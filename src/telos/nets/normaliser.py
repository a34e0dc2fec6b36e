"""Standardisation of observations, a part of the product."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from jaxtyping import Float


class Normaliser(nn.Module):
    """(x - mean) / std with constants that are saved along with the weights.

    Args:
        mean, std: (O,) buffers; `std` is used as it is, see `fitted`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Float[Tensor, " O"], std: Float[Tensor, " O"]):
        super().__init__()
        self.register_buffer("mean", mean.clone())
        self.register_buffer("std", std.clone())

    @classmethod
    def identity(cls, size: int) -> Normaliser:
        """Leaves observations of width `size` as they are, until other constants are loaded."""
        return cls(torch.zeros(size), torch.ones(size))

    @classmethod
    def fitted(cls, observations: Float[Tensor, "N O"], floor: float = 1e-3) -> Normaliser:
        """Mean and standard deviation (over N, not N-1) of data; `floor` is added to the latter, as TD3+BC does."""
        return cls(observations.mean(0), observations.std(0, correction=0) + floor)

    def forward(self, x: Float[Tensor, "*batch O"]) -> Float[Tensor, "*batch O"]:
        return (x - self.mean) / self.std
