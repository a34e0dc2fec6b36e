"""Llama-like networks one token at a time, without a module's overhead: prompts once, static caches, few kernels.

It serves the float32 networks of `SERVED` with plain linear layers; for others, and where its logits are not the
network's own, `decoder` gives None and the network itself is to be asked. All under `torch.inference_mode`.

A rotation of a head turns pairs of its entries, which transformers holds half a head apart. Here they lie side by side
as one complex number, in queries and keys alike, so that their products stay as they are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telos.core.numerics import current, using
from telos.core.rng import Rng
from telos.lm.model import LanguageModel
from telos.lm.tokens import Ids

if TYPE_CHECKING:
    from jaxtyping import Complex64, Float, Int64

    from telos.lm.soup import GeometricMixture

SERVED = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
"""Classes of transformers: all have the same layout, some with biases, some with normalised queries and keys."""
ROTATIONS = {"default", "linear", "llama3", "yarn"}
"""Kinds of rotary embedding whose frequencies do not depend on the length."""
KNOWN = ("torch.nn.modules.", "transformers.models.", "transformers.activations")
"""Where the classes of a network's modules come from, if it has neither adapters nor quantised weights."""
TOLERANCE = 1e-3
"""Largest difference of logits that is rounding, relative to the largest logit."""
COPIED = 1 << 24
"""Most parameters of a network whose weights are laid out anew for every call."""
SHORT_HEAD = 16
"""Longest heads whose keys are quicker to read with time innermost."""
READ = 1024
"""Tokens of prompts that are read at once."""


class Growing(Protocol):
    """M sequences that grow by one token at a time."""

    def logits(self) -> Float[Tensor, "m v"]:
        """Of the next token."""
        ...

    def extend(self, tokens: Int64[Tensor, " m"]) -> None:
        """Appends a token to each."""
        ...

    def keep(self, rows: Int64[Tensor, " k"]) -> None:
        """Goes on with these alone."""
        ...


@torch.inference_mode()
def decoder(model: LanguageModel | GeometricMixture, prompts: Sequence[Ids], room: int) -> Growing | None:
    """Sequences that begin with `prompts` and may grow by `room` tokens; None where the network itself must be asked.

    The weights are read now: make a new one once they have changed.
    """
    models = [model] if isinstance(model, LanguageModel) else model.models
    longest = max(map(len, prompts)) + room
    if not all(served(part.causal, longest) and agrees(part) for part in models):
        return None
    parts = [Decoder(part.causal, prompts, room) for part in models]
    return parts[0] if isinstance(model, LanguageModel) else Mixed(parts, model.weights)


def served(causal: Any, longest: int) -> bool:
    """Whether a network is one that can be computed here, for sequences of up to `longest` tokens."""
    if type(causal).__name__ not in SERVED or not all(map(untouched, causal.modules())):
        return False
    config, rotary = causal.config, causal.base_model.rotary_emb
    window = getattr(config, "sliding_window", None)
    return (
        rotary.rope_type in ROTATIONS
        and 2 * len(rotary.inv_freq) == causal.base_model.layers[0].self_attn.head_dim
        and (window is None or longest <= window)
        and config.hidden_act == "silu"
        and all(p.dtype == torch.float32 and type(p) in (Tensor, nn.Parameter) for p in causal.parameters())
    )


def untouched(module: nn.Module) -> bool:
    """Whether a module does what its class says, and the class is one of torch's or of transformers' models."""
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    return type(module).__module__.startswith(KNOWN) and not changed


_agree: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


@torch.inference_mode()
def agrees(model: LanguageModel) -> bool:
    """Whether two short sequences of unequal length have the network's own logits, token by token; asked once."""
    if model.causal not in _agree:
        tokens = torch.from_numpy(Rng(0).at("decoder").numpy().integers(0, model.causal.config.vocab_size, (2, 8)))
        heads, grown = (5, 3), 3
        with using(dataclasses.replace(current(), precision="highest")):
            growing = Decoder(model.causal, [row[:n].numpy() for row, n in zip(tokens, heads, strict=True)], grown)
            tokens, found = tokens.to(model.device), [growing.logits()]
            rows, ends = torch.arange(2), torch.tensor(heads)
            for step in range(grown):
                growing.extend(tokens[rows, ends + step])
                found.append(growing.logits())
            whole = model.head(model.hidden(tokens))
        expected = torch.stack([whole[rows, ends - 1 + step] for step in range(grown + 1)])
        error = (torch.stack(found) - expected).abs().max()
        _agree[model.causal] = bool(error <= TOLERANCE * expected.abs().max())
    return _agree[model.causal]


class Layer(NamedTuple):
    """One block: (N, D) to queries, keys and values (N, (heads + 2 shared) S); (N, heads S) and (N, I) to (N, D)."""

    qkv: Product
    output: Product
    gate_up: Product
    down: Product
    q_norm: Callable[[Tensor], Tensor] | None
    k_norm: Callable[[Tensor], Tensor] | None


class Decoder:
    """M sequences with their cache, and the network's weights as they were when it was made.

    The sequences are in step: padding stands before the last token of a shorter prompt, and attention passes over it.

    Args:
        prompts: M arrays of ids, of any lengths >= 1; equal ones are read once. room: most tokens to come.
    """

    def __init__(self, causal: Any, prompts: Sequence[Ids], room: int):
        body, config = causal.base_model, causal.config
        attention = body.layers[0].self_attn
        self.heads, self.shared, self.size = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
        lay = Copied if sum(p.numel() for p in causal.parameters()) <= COPIED else Kept
        self.layers = [self._layer(block, lay) for block in body.layers]
        self.embedding = body.embed_tokens.weight
        self.head = lay([causal.get_output_embeddings()], body.norm.weight)
        self.least = self.embedding.new_tensor(config.hidden_size * body.norm.variance_epsilon).sqrt()
        ids = [tuple(prompt.tolist()) for prompt in prompts]
        last = torch.tensor([prompt[-1] for prompt in ids], device=self.embedding.device)
        self.positions = torch.tensor([len(prompt) - 1 for prompt in ids], device=last.device)
        self.used = max(map(len, ids)) - 1
        self.total = self.used + 1 + room
        self.turns = turns(body.rotary_emb, self.total, attention.scaling**0.5)
        self.bias = self._gaps()
        self.cache = [self._room(len(ids)) for _ in self.layers]
        self._read(ids)
        self.extend(last)

    def _layer(self, block: Any, lay: type[Product]) -> Layer:
        attention, mlp = block.self_attn, block.mlp
        projections, sizes = [attention.q_proj, attention.k_proj, attention.v_proj], (self.size, self.size, 0)
        return Layer(
            lay(projections, block.input_layernorm.weight, sizes),
            lay([attention.o_proj]),
            lay([mlp.gate_proj, mlp.up_proj], block.post_attention_layernorm.weight),
            lay([mlp.down_proj]),
            head_norm(attention, "q_norm"),
            head_norm(attention, "k_norm"),
        )

    def _gaps(self) -> Float[Tensor, "m_shared 1 total"] | None:
        """Minus infinity at padding; None where there is none."""
        place = torch.arange(self.total, device=self.positions.device)
        empty = (place >= self.positions[:, None]) & (place < self.used)
        bias = torch.zeros(empty.shape, device=empty.device).masked_fill(empty, -torch.inf)
        return bias.repeat_interleave(self.shared, 0)[:, None] if empty.any() else None

    def _room(self, count: int) -> tuple[Float[Tensor, "m shared s total"], Float[Tensor, "m shared total s"]]:
        """For the keys and values of a layer."""
        keys, values = self.embedding.new_zeros(2, count, self.shared, self.total, self.size)
        return keys.view(*keys.shape[:2], self.size, -1) if self.size <= SHORT_HEAD else keys.mT, values

    def _read(self, prompts: Sequence[tuple[int, ...]]) -> None:
        """Fills the cache with all but the last token of each."""
        distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
        owners = torch.tensor([distinct[prompt] for prompt in prompts], device=self.positions.device)
        heads, size = [prompt[:-1] for prompt in distinct], max(1, READ // max(1, self.used))
        for start in range(0, len(heads), size):
            rows = ((owners >= start) & (owners < start + size)).nonzero()[:, 0]
            self._read_part(heads[start : start + size], rows, owners[rows] - start)

    def _read_part(
        self, prompts: Sequence[tuple[int, ...]], rows: Int64[Tensor, " k"], owners: Int64[Tensor, " k"]
    ) -> None:
        """Fills the cache at `rows` with the prompts at `owners`. Only attention meets padding, on the right."""
        device, counts = rows.device, torch.tensor([len(prompt) for prompt in prompts])
        inside = torch.arange(int(counts.max())) < counts[:, None]
        shape, places = inside.shape, inside.flatten().nonzero()[:, 0].to(device)
        if not len(places):
            return
        turns = self.turns[places % shape[1]][:, None]
        x = self.embedding[torch.tensor([token for prompt in prompts for token in prompt], device=device)]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            own = torch.cat(self._heads(layer, x, turns), 1)
            padded = own.new_zeros(inside.numel(), *own.shape[1:]).index_copy_(0, places, own)
            q, k, v = padded.unflatten(0, shape).transpose(1, 2).split([self.heads, self.shared, self.shared], 1)
            keys[rows, :, :, : shape[1]] = k[owners].mT
            values[rows, :, : shape[1]] = v[owners]
            if layer is self.layers[-1]:
                return
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
            self._rest(layer, x, mixed.transpose(1, 2).flatten(2).flatten(0, 1)[places])

    def _heads(
        self, layer: Layer, x: Float[Tensor, "n d"], turns: Complex64[Tensor, "n 1 h"]
    ) -> tuple[Float[Tensor, "n heads s"], Float[Tensor, "n shared s"], Float[Tensor, "n shared s"]]:
        """Queries and keys, rotated, and values."""
        split = layer.qkv(self._unit(x)).view(x.shape[0], -1, self.size // 2, 2)
        pairs = torch.view_as_complex(split)
        q, k = pairs[:, : self.heads], pairs[:, self.heads : -self.shared]
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k = layer.q_norm(q), layer.k_norm(k)
        q, k = torch.view_as_real(q * turns), torch.view_as_real(k * turns)
        return q.flatten(2), k.flatten(2), split[:, -self.shared :].flatten(2)

    def _unit(self, x: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Each row divided by its length, for the gains of norms hold sqrt(d)."""
        return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).hypot(self.least)

    def _rest(self, layer: Layer, x: Float[Tensor, "n d"], mixed: Float[Tensor, "n heads_s"]) -> None:
        """What comes after attention, added to x in place."""
        layer.output.add(x, mixed)
        gate, up = layer.gate_up(self._unit(x)).chunk(2, -1)
        layer.down.add(x, F.silu(gate, inplace=True).mul_(up))

    def logits(self) -> Float[Tensor, "m v"]:
        return self.head(self._unit(self.hidden))

    def extend(self, tokens: Int64[Tensor, " m"]) -> None:
        count, now, then = tokens.shape[0], self.used, self.used + 1
        turns = self.turns[self.positions][:, None]
        bias = None if self.bias is None else self.bias[:, :, :then]
        x = self.embedding[tokens]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            q, k, v = self._heads(layer, x, turns)
            keys[..., now], values[:, :, now] = k, v
            q, past = q.view(count * self.shared, -1, self.size), keys.flatten(0, 1)[:, :, :then]
            scores = torch.bmm(q, past) if bias is None else torch.baddbmm(bias, q, past)
            mixed = torch.bmm(scores.softmax(-1), values.flatten(0, 1)[:, :then])
            self._rest(layer, x, mixed.view(count, -1))
        self.hidden, self.used = x, then
        self.positions += 1

    def keep(self, rows: Int64[Tensor, " k"]) -> None:
        before, self.cache = self.cache, [self._room(len(rows)) for _ in self.layers]
        for (old_keys, old_values), (keys, values) in zip(before, self.cache, strict=True):
            keys[..., : self.used] = old_keys[..., : self.used][rows]
            values[:, :, : self.used] = old_values[:, :, : self.used][rows]
        self.hidden, self.positions = self.hidden[rows], self.positions[rows]
        if self.bias is not None:
            self.bias = self.bias.unflatten(0, (-1, self.shared))[rows].flatten(0, 1)


class Mixed:
    """The normalised geometric mean of several, up to a constant a row: see `telos.lm.soup.GeometricMixture`."""

    def __init__(self, parts: Sequence[Decoder], weights: Sequence[float]):
        self.parts, self.weights = parts, weights

    def logits(self) -> Float[Tensor, "m v"]:
        pairs = zip(self.parts, self.weights, strict=True)
        return torch.stack([weight * part.logits().log_softmax(-1) for part, weight in pairs]).sum(0)

    def extend(self, tokens: Int64[Tensor, " m"]) -> None:
        for part in self.parts:
            part.extend(tokens)

    def keep(self, rows: Int64[Tensor, " k"]) -> None:
        for part in self.parts:
            part.keep(rows)


class Copied:
    """Linear layers of one input as one transposed matrix, their outputs side by side: quicker for few rows.

    Args:
        gain: (inputs,) of the norm before it, whose inputs come with length 1 in place of sqrt(inputs).
        sizes: of the heads of each layer, whose pairs come side by side; 0: outputs stay as they are.
    """

    def __init__(self, linears: Sequence[Any], gain: Tensor | None = None, sizes: Sequence[int] = (0, 0, 0)):
        pairs = list(zip(linears, sizes, strict=False))
        self.weight = torch.cat([side_by_side(part.weight.T, size) for part, size in pairs], -1)
        self.bias = None
        if linears[0].bias is not None:
            self.bias = torch.cat([side_by_side(part.bias, size) for part, size in pairs])
        if gain is not None:
            self.weight *= (gain * len(gain) ** 0.5)[:, None]

    def __call__(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        return torch.mm(x, self.weight) if self.bias is None else torch.addmm(self.bias, x, self.weight)

    def add(self, total: Float[Tensor, "n outputs"], x: Float[Tensor, "n inputs"]) -> None:
        """Adds its outputs to `total`, in place."""
        total.addmm_(x, self.weight)
        if self.bias is not None:
            total += self.bias


class Kept:
    """The same with the weights where they are."""

    def __init__(self, linears: Sequence[Any], gain: Tensor | None = None, sizes: Sequence[int] = (0, 0, 0)):
        self.linears, self.sizes = linears, sizes
        self.gain = None if gain is None else gain * len(gain) ** 0.5

    def __call__(self, x: Float[Tensor, "n inputs"]) -> Float[Tensor, "n outputs"]:
        x = x if self.gain is None else x * self.gain
        pairs = zip(self.linears, self.sizes, strict=False)
        return torch.cat([side_by_side(F.linear(x, part.weight, part.bias), size) for part, size in pairs], -1)

    def add(self, total: Float[Tensor, "n outputs"], x: Float[Tensor, "n inputs"]) -> None:
        """Adds its outputs to `total`, in place."""
        total += self(x)


Product = Copied | Kept


def side_by_side(values: Float[Tensor, "*rest n"], size: int) -> Float[Tensor, "*rest n"]:
    """Entries of heads of `size` in the order 0, h, 1, h + 1, ...; as they are for a size of 0."""
    return values.unflatten(-1, (-1, 2, size // 2)).mT.flatten(-3) if size else values


def head_norm(attention: Any, name: str) -> Callable[[Tensor], Tensor] | None:
    """The root-mean-square norm of heads, given as pairs; None where the network has none of this name."""
    module = getattr(attention, name, None)
    if module is None:
        return None
    gain = module.weight.view(2, -1).T.contiguous()
    return lambda pairs: torch.view_as_complex(
        F.rms_norm(torch.view_as_real(pairs), gain.shape, gain, module.variance_epsilon)
    )


def turns(rotary: Any, length: int, scale: float) -> Complex64[Tensor, "length h"]:
    """The rotation of each pair at each position; queries and keys are both multiplied by `scale`."""
    angles = torch.arange(length, device=rotary.inv_freq.device).float()[:, None] * rotary.inv_freq.float()
    return torch.polar(torch.full_like(angles, rotary.attention_scaling * scale), angles)
