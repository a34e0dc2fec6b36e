"""Networks that read a window of steps into one vector: an MLP, a deep set, a recurrent net, a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from telos.nets.denoisers import Block, Dropout
from telos.nets.mlp import MLP, uniform_

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

ENCODERS = ("mlp", "deepset", "rnn", "transformer")


class WindowEncoder(nn.Module):
    """(B, H, D) steps, of which the first ones are real, to (B, outputs).

    Args:
        kind: "mlp" on all steps side by side; "deepset": the mean over steps of an MLP; "rnn": a gated recurrent unit
            from the last step back to the first; "transformer": two blocks with one head, read at the first step.
            A linear layer or an MLP gives the outputs.
        steps, inputs: H and D.
        hidden: widths of the hidden layers; the first one is the width of the recurrent net and of the transformer.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        kind: str,
        steps: int,
        inputs: int,
        hidden: Sequence[int],
        outputs: int,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        self.kind, width = kind, hidden[0]
        if kind == "mlp":
            self.net = MLP((steps * inputs, *hidden, outputs), rng)
        elif kind == "deepset":
            self.each = MLP((inputs, *hidden), rng)
            self.net = MLP((hidden[-1], *hidden, outputs), rng)
        elif kind == "rnn":
            self.recurrent = nn.GRU(inputs, width, batch_first=True, device="meta").to_empty(device="cpu")
            for parameter in self.recurrent.parameters():
                uniform_(parameter, width, rng)
            self.net = MLP((width, outputs), rng)
        else:
            self.embed, self.net = MLP((inputs, width), rng), MLP((width, outputs), rng)
            self.positions = nn.Parameter(torch.empty(steps, width))
            uniform_(self.positions, width, rng)
            self.blocks = nn.ModuleList(Block(width, 1, 0.0, 0.0) for _ in range(2))
            for module in self.blocks.modules():
                if isinstance(module, nn.Linear):
                    uniform_(module.weight, module.in_features, rng)
                    nn.init.zeros_(module.bias)

    def forward(self, steps: Float[Tensor, "B H D"], mask: Bool[Tensor, "B H"]) -> Float[Tensor, "B outputs"]:
        """Steps where `mask` is False are not read."""
        real = mask[..., None]
        steps = steps * real
        if self.kind == "mlp":
            return self.net(steps.flatten(1))
        if self.kind == "deepset":
            return self.net((self.each(steps) * real).sum(1) / real.sum(1))
        if self.kind == "rnn":
            return self.net(self.recurrent(steps.flip(1))[0][:, -1])
        x, dropout = self.embed(steps) + self.positions, Dropout(None)
        for block in self.blocks:
            x = block(x, mask[:, None, None, :], dropout)
        return self.net(x[:, 0])
