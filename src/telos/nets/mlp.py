"""Multi-layer perceptrons, alone and as ensembles computed in one batched product."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from telos.ops.linear import ensemble_linear, linear

if TYPE_CHECKING:
    from jaxtyping import Float


def uniform_(parameter: Tensor, inputs: int, rng: torch.Generator | None) -> None:
    """PyTorch's default for linear layers, U(-1/sqrt(inputs), 1/sqrt(inputs)), from `rng`; zeros without one."""
    if rng is None:
        nn.init.zeros_(parameter)
    else:
        nn.init.uniform_(parameter, -(inputs**-0.5), inputs**-0.5, generator=rng)


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        sizes: widths from input to output, at least two.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(self, sizes: Sequence[int], rng: torch.Generator | None = None):
        super().__init__()
        self.layers = nn.ModuleList(nn.utils.skip_init(nn.Linear, i, o) for i, o in pairwise(sizes))
        for layer, inputs in zip(self.layers, sizes):
            for parameter in layer.parameters():
                uniform_(parameter, inputs, rng)

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        *hidden, last = self.layers
        for layer in hidden:
            x = linear(x, layer.weight, layer.bias, relu=True)  # type: ignore[arg-type]
        return linear(x, last.weight, last.bias)  # type: ignore[arg-type]


class EnsembleMLP(nn.Module):
    """`members` independent MLPs of the same shape; each layer is one batched matrix product.

    Args:
        members: how many.
        sizes: widths from input to output, at least two.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(self, members: int, sizes: Sequence[int], rng: torch.Generator | None = None):
        super().__init__()
        self.members = members
        self.weights = nn.ParameterList(torch.empty(members, i, o) for i, o in pairwise(sizes))
        self.biases = nn.ParameterList(torch.empty(members, 1, o) for o in sizes[1:])
        for weight, bias, inputs in zip(self.weights, self.biases, sizes):
            uniform_(weight, inputs, rng)
            uniform_(bias, inputs, rng)

    def forward(self, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "members batch outputs"]:
        """All members on the same inputs."""
        x = x.expand(self.members, *x.shape)
        last = len(self.weights) - 1
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = ensemble_linear(x, weight, bias, relu=depth < last)
        return x

    def one(self, member: int, x: Float[Tensor, "batch inputs"]) -> Float[Tensor, "batch outputs"]:
        """The member with that index alone, at its own cost."""
        last = len(self.weights) - 1
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = linear(x, weight[member].t(), bias[member, 0], relu=depth < last)
        return x
