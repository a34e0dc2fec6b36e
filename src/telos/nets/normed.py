"""MLPs with GELU and layer normalisation, as ensembles computed in one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from telos.nets.mlp import uniform_

if TYPE_CHECKING:
    from jaxtyping import Float


class NormedMLP(nn.Module):
    """`members` independent MLPs of the same shape: each hidden layer is linear, GELU, then LayerNorm.

    Args:
        members: how many.
        sizes: widths from input to output, at least two; two make it linear.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(self, members: int, sizes: Sequence[int], rng: torch.Generator | None = None):
        super().__init__()
        self.members = members
        self.weights = nn.ParameterList(torch.empty(members, i, o) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(members, 1, o) for o in sizes[1:])
        self.scales = nn.ParameterList(torch.ones(members, 1, o) for o in sizes[1:-1])
        self.offsets = nn.ParameterList(torch.zeros(members, 1, o) for o in sizes[1:-1])
        for weight, bias, inputs in zip(self.weights, self.biases, sizes):
            uniform_(weight, inputs, rng)
            uniform_(bias, inputs, rng)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "members batch outputs"]:
        """All members on the same inputs."""
        x = x.expand(self.members, *x.shape)
        for weight, bias, scale, offset in zip(self.weights, self.biases, self.scales, self.offsets):
            x = nn.functional.gelu(torch.baddbmm(bias, x, weight), approximate="tanh")
            x = scale * nn.functional.layer_norm(x, x.shape[-1:]) + offset
        return torch.baddbmm(self.biases[-1], x, self.weights[-1])
