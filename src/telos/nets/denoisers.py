"""Networks F(actions, states, goal, noise level) of diffusion policies: a causal transformer and an MLP."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.nets.mlp import MLP

if TYPE_CHECKING:
    from jaxtyping import Bool, Float


@dataclass(frozen=True)
class Sizes:
    """Widths of a state, a goal state and an action; steps of a window, states of a goal.

    Args:
        same: whether a goal has the columns of a state, so that one embedding serves both.
    """

    state: int
    goal: int
    action: int
    window: int
    goal_length: int
    same: bool


class Denoiser(nn.Module):
    """F for the newest `slots` actions of a window.

    `slots` is how many actions it takes and gives; `dropouts` the uniform numbers a row that its dropout wants.
    """

    slots: int
    dropouts: int = 0

    def forward(
        self,
        actions: Float[Tensor, "B slots A"],
        states: Float[Tensor, "B k S"],
        goals: Float[Tensor, "B G g"],
        noise: Float[Tensor, " B"],
        mask: Bool[Tensor, "B k"],
        draws: Float[Tensor, "B dropouts"] | None = None,
    ) -> Float[Tensor, "B slots A"]:
        """F at scaled noisy actions.

        Args:
            noise: a number for the noise level, of order 1.
            mask: False for steps before the episode's start.
            draws: uniform in [0, 1), for dropout; None for no dropout.
        """
        raise NotImplementedError


class MLPDenoiser(Denoiser):
    """The newest action from all states of the window, the goal and the noise level; past actions are not read.

    Args:
        hidden: widths of the hidden layers.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    slots = 1

    def __init__(self, sizes: Sizes, hidden: Sequence[int] = (128, 128, 128), rng: torch.Generator | None = None):
        super().__init__()
        inputs = sizes.window * sizes.state + sizes.goal_length * sizes.goal + sizes.action + 1
        self.net = MLP((inputs, *hidden, sizes.action), rng)

    def forward(
        self, actions: Tensor, states: Tensor, goals: Tensor, noise: Tensor, mask: Tensor, draws: Tensor | None = None
    ) -> Tensor:
        rows = [states.flatten(1), goals.flatten(1), actions.flatten(1), noise[:, None]]
        return self.net(torch.cat(rows, -1))[:, None]


class TransformerDenoiser(Denoiser):
    """A causal transformer over [noise level, goal, s_1, a_1, ..., s_k, a_k], read at the actions.

    States and goals share their embedding where they have the same columns; an action has the position embedding of
    its state, the noise level has none. Positions count from the episode's start where the window reaches over it.

    Args:
        layers, width, heads: of the transformer; `width` is a multiple of `heads`.
        attention_dropout, residual_dropout: on attention weights, and on what each block adds.
        rng: draws the initial weights; without it they are zeros, to be loaded.
    """

    def __init__(
        self,
        sizes: Sizes,
        layers: int = 4,
        width: int = 240,
        heads: int = 12,
        attention_dropout: float = 0.0,
        residual_dropout: float = 0.0,
        rng: torch.Generator | None = None,
    ):
        super().__init__()
        if width % heads:
            raise TelosError("options width and heads do not fit", expected="a multiple", got=f"{width} and {heads}")
        self.slots, self.goal_length = sizes.window, sizes.goal_length
        self.embed_state = nn.utils.skip_init(nn.Linear, sizes.state, width)
        self.embed_goal = None if sizes.same else nn.utils.skip_init(nn.Linear, sizes.goal, width)
        self.embed_action = nn.utils.skip_init(nn.Linear, sizes.action, width)
        self.embed_noise = nn.utils.skip_init(nn.Linear, 1, width)
        self.positions = nn.Parameter(torch.zeros(sizes.goal_length + sizes.window, width))
        rates = (attention_dropout, residual_dropout)
        self.blocks = nn.ModuleList(Block(width, heads, *rates) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.utils.skip_init(nn.Linear, width, sizes.action)
        tokens = 1 + sizes.goal_length + 2 * sizes.window
        if any(rates):
            self.dropouts = layers * (heads * tokens**2 + 2 * tokens * width)
        self.causal: Tensor
        self.register_buffer("causal", torch.ones(tokens, tokens, dtype=torch.bool).tril(), persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
                if rng is None:
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.normal_(module.weight, std=0.02, generator=rng)

    def forward(
        self, actions: Tensor, states: Tensor, goals: Tensor, noise: Tensor, mask: Tensor, draws: Tensor | None = None
    ) -> Tensor:
        rows, steps = mask.shape
        places = (self.goal_length - 1 + mask.cumsum(-1)).clamp(min=self.goal_length)
        position = self.positions[places]
        pairs = torch.stack([self.embed_state(states) + position, self.embed_action(actions) + position], 2)
        goal = (self.embed_goal or self.embed_state)(goals) + self.positions[: self.goal_length]
        x = torch.cat([self.embed_noise(noise[:, None, None]), goal, pairs.flatten(1, 2)], 1)
        always = mask.new_ones(rows, 1 + self.goal_length)
        seen = torch.cat([always, mask.repeat_interleave(2, 1)], 1)
        dropout = Dropout(draws)
        for block in self.blocks:
            x = block(x, (self.causal & seen[:, None])[:, None], dropout)
        x = x[:, 1 + self.goal_length :].view(rows, steps, 2, -1)[:, :, 1]
        return self.head(self.norm(x))


class Block(nn.Module):
    """Causal self-attention, then a two-layer network; a layer norm before each."""

    def __init__(self, width: int, heads: int, attention_dropout: float, residual_dropout: float):
        super().__init__()
        self.heads, self.rates = heads, (attention_dropout, residual_dropout)
        self.first_norm, self.second_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.queries_keys_values = nn.utils.skip_init(nn.Linear, width, 3 * width)
        self.mix = nn.utils.skip_init(nn.Linear, width, width)
        self.widen = nn.utils.skip_init(nn.Linear, width, 4 * width)
        self.narrow = nn.utils.skip_init(nn.Linear, 4 * width, width)

    def forward(
        self, x: Float[Tensor, "B T W"], seen: Bool[Tensor, "B 1 T T"], dropout: Dropout
    ) -> Float[Tensor, "B T W"]:
        attention, residual = self.rates
        heads = self.queries_keys_values(self.first_norm(x)).unflatten(-1, (3, self.heads, -1))
        queries, keys, values = heads.permute(2, 0, 3, 1, 4)
        scores = queries @ keys.transpose(-1, -2) / math.sqrt(queries.shape[-1])
        weights = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
        mixed = (dropout(weights, attention) @ values).transpose(1, 2).flatten(2)
        x = x + dropout(self.mix(mixed), residual)
        return x + dropout(self.narrow(F.gelu(self.widen(self.second_norm(x)))), residual)


class Dropout:
    """Inverted dropout from given numbers, taken in turn: so a batch in parts drops what the whole one does.

    Args:
        draws: (B, numbers) uniform in [0, 1); None for no dropout.
    """

    def __init__(self, draws: Tensor | None):
        self.draws, self.used = draws, 0

    def __call__(self, x: Float[Tensor, "B *S"], rate: float) -> Float[Tensor, "B *S"]:
        if self.draws is None:
            return x
        size = x[0].numel()
        kept = self.draws[:, self.used : self.used + size].view_as(x) >= rate
        self.used += size
        return x * kept / (1 - rate)


NETWORKS: dict[str, Callable[..., Denoiser]] = {"mlp": MLPDenoiser, "transformer": TransformerDenoiser}


def make_denoiser(sizes: Sizes, network: Mapping[str, Any], rng: torch.Generator | None = None) -> Denoiser:
    """The network that a configuration describes: {"kind": "mlp" or "transformer", its options}."""
    options = dict(network)
    return NETWORKS[options.pop("kind")](sizes, **options, rng=rng)
