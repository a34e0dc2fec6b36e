"""Hidden states of completions by a Llama-like network that reads each prompt once and no padding.

Completions of one prompt share its keys and values, and only attention meets padding; what the last layer does to
prompts is left out. With gradients. For other networks, and where hidden states are not the network's own, the network
itself has to be asked, as it has on a GPU, where padding costs less.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.nn import functional as F

from telos.core.rng import Rng
from telos.lm.decoder import served
from telos.lm.model import LanguageModel
from telos.lm.tokens import Sequences

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int64

TOLERANCE = 1e-4
"""Largest difference of hidden states that is rounding, relative to the largest of them."""
MOST_PAIRS = 1 << 25
"""Most pairs of a query and a key that a mask is made for; it is held in float32."""


class Texts(NamedTuple):
    """Tokens without padding, and where they stand in a padded grid.

    Args:
        tokens: (N,) ids; positions: (N,) in their sequences; inside: (B, T) which places of the grid they fill.
    """

    tokens: Int64[Tensor, " N"]
    positions: Int64[Tensor, " N"]
    inside: Bool[Tensor, "B T"]

    @classmethod
    def cut(cls, tokens: Int64[Tensor, "B L"], starts: Int64[Tensor, " B"], ends: Int64[Tensor, " B"]) -> Texts:
        """The tokens from `starts` to before `ends` of each row."""
        counts = ends - starts
        places = torch.arange(int(counts.max()))
        inside = places < counts[:, None]
        positions = (starts[:, None] + places)[inside]
        return cls(tokens[inside.nonzero()[:, 0], positions], positions, inside)

    def grid(self, values: Float[Tensor, "N H S"]) -> Float[Tensor, "B H T S"]:
        """Zeros stand at padding."""
        padded = values.new_zeros(self.inside.numel(), *values.shape[1:])
        padded = padded.index_copy(0, self.inside.flatten().nonzero()[:, 0], values)
        return padded.unflatten(0, self.inside.shape).transpose(1, 2)

    def rows(self, grid: Float[Tensor, "B H T S"]) -> Float[Tensor, "N HS"]:
        """The inverse of `grid`, heads side by side."""
        return grid.transpose(1, 2)[self.inside].flatten(1)


def states_before(model: Any, sequences: Sequences) -> Float[Tensor, "M D"] | None:
    """Last hidden states before each completion token, row by row; None where the network itself must be asked."""
    if not isinstance(model, LanguageModel) or model.device.type != "cpu" or not plainly(model.causal):
        return None
    batch = Packed(sequences)
    fits = batch.pairs <= MOST_PAIRS and served(model.causal, sequences.tokens.shape[1])
    return batch.states(model.causal) if fits and agrees(model) else None


def plainly(causal: Any) -> bool:
    """Whether training does nothing that is not computed here."""
    dropped = causal.training and getattr(causal.config, "attention_dropout", 0.0) > 0
    return not dropped and not any(getattr(module, "gradient_checkpointing", False) for module in causal.modules())


_agree: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@torch.no_grad()
def agrees(model: LanguageModel) -> bool:
    """Whether completions of shared and of other prompts have the network's own hidden states; asked once."""
    if model.causal not in _agree:
        tokens = torch.from_numpy(Rng(0).at("packed").numpy().integers(0, model.causal.config.vocab_size, (4, 9)))
        tokens[1, :4] = tokens[0, :4]
        some = Sequences(tokens, torch.tensor([9, 6, 8, 3]), torch.tensor([4, 4, 2, 2]))
        rows, places = some.mask.nonzero(as_tuple=True)
        expected = model.hidden(tokens)[rows, places - 1]
        error = (Packed(some).states(model.causal) - expected).abs().max()
        _agree[model.causal] = bool(error <= TOLERANCE * expected.abs().max())
    return _agree[model.causal]


class Packed:
    """A batch as distinct prompts, and completions without their last tokens, after which nothing is asked."""

    def __init__(self, sequences: Sequences):
        tokens, ends, starts = sequences.tokens, sequences.lengths, sequences.boundaries
        distinct: dict[bytes, int] = {}
        keys = [row[:start].tobytes() for row, start in zip(tokens.numpy(), starts.tolist(), strict=True)]
        owners = [distinct.setdefault(key, len(distinct)) for key in keys]
        first = torch.tensor([owners.index(number) for number in range(len(distinct))])
        self.owners, counts = torch.tensor(owners), ends - starts
        self.prompts = Texts.cut(tokens[first], torch.zeros_like(starts[first]), starts[first])
        self.completions = Texts.cut(tokens, starts, (ends - 1).maximum(starts))
        width, length = self.prompts.inside.shape[1], self.completions.inside.shape[1]
        self.pairs = len(tokens) * length * (width + length)
        self.before = self.prompts.inside[self.owners]
        # In the last layer: the last states of prompts, then all of completions.
        self.last = starts[first].cumsum(0) - 1
        heads = counts.cumsum(0) - counts
        self.order = torch.arange(int(counts.sum())) - torch.arange(len(tokens)).repeat_interleave(counts) - 1
        self.order += len(self.last)
        self.order[heads[counts > 0]] = self.owners[counts > 0]

    def mask(self) -> Float[Tensor, "B 1 C PC"]:
        """Minus infinity where a token of a completion may not look: padding of the prompt, and later tokens."""
        length = self.completions.inside.shape[1]
        own = torch.ones(length, length, dtype=torch.bool).tril()
        seen = torch.cat([self.before[:, None].expand(-1, length, -1), own.expand(len(self.before), -1, -1)], -1)
        return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]

    def states(self, causal: Any) -> Float[Tensor, "M D"]:
        """See `states_before`."""
        body, both = causal.base_model, (self.prompts, self.completions)
        x = body.embed_tokens(torch.cat([part.tokens for part in both]))
        cos, sin = body.rotary_emb(x, torch.cat([part.positions for part in both])[None])
        turns, mask = (cos[0, :, None], sin[0, :, None]), self.mask()
        count = len(self.prompts.tokens)
        kept = torch.cat([self.last, torch.arange(count, len(x))])
        for block in body.layers:
            mixed = self._attention(block.self_attn, norm(block.input_layernorm, x), turns, mask, count)
            if block is body.layers[-1]:
                x, mixed = x[kept], mixed[kept]
            x = x + block.self_attn.o_proj(mixed)
            x = x + block.mlp(norm(block.post_attention_layernorm, x))
        return norm(body.norm, x)[self.order]

    def _attention(
        self, attention: Any, x: Float[Tensor, "N D"], turns: tuple[Tensor, Tensor], mask: Tensor, count: int
    ) -> Float[Tensor, "N HS"]:
        """Of prompts among themselves, and of completions to their prompts and themselves."""
        linears = attention.q_proj, attention.k_proj, attention.v_proj
        q, k, v = (linear(x).unflatten(-1, (-1, attention.head_dim)) for linear in linears)
        if hasattr(attention, "q_norm"):
            q, k = norm(attention.q_norm, q), norm(attention.k_norm, k)
        grids = [
            (self.prompts.grid(a), self.completions.grid(b))
            for a, b in (value.split([count, len(x) - count]) for value in (turned(q, *turns), turned(k, *turns), v))
        ]
        (own_q, q), (own_k, k), (own_v, v) = grids
        options = {"scale": attention.scaling, "enable_gqa": q.shape[1] != k.shape[1]}
        first = F.scaled_dot_product_attention(own_q, own_k, own_v, is_causal=True, **options)
        keys, values = (torch.cat([own[self.owners], rest], 2) for own, rest in ((own_k, k), (own_v, v)))
        then = F.scaled_dot_product_attention(q, keys, values, attn_mask=mask, **options)
        return torch.cat([self.prompts.rows(first), self.completions.rows(then)])


def norm(module: Any, x: Float[Tensor, "*rest D"]) -> Float[Tensor, "*rest D"]:
    """A module's root-mean-square norm, in one operator."""
    return F.rms_norm(x, module.weight.shape, module.weight, module.variance_epsilon)


def turned(x: Float[Tensor, "N H S"], cos: Tensor, sin: Tensor) -> Float[Tensor, "N H S"]:
    """Rotated by position; pairs are half a head apart."""
    left, right = x.chunk(2, -1)
    return x * cos + torch.cat([-right, left], -1) * sin
