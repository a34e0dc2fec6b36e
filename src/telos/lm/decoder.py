"""Llama-like networks one token at a time, without a module's overhead: prompts once, static caches, few kernels.

It serves the float32 networks of `SERVED` with plain linear layers; for others, and where its logits are not the
network's own, `decoders` gives none and the network itself is to be asked. All under `torch.inference_mode`.

A token is added by torch's operators, or by one program for all of a network's layers (`telos.lm.growth`), which serves
any number of sequences of any length, and all networks of the same sizes.

A rotation of a head turns pairs of its entries, which transformers holds half a head apart. Here they lie side by side
as one complex number, in queries and keys alike, so that their products stay as they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from telos.core.numerics import current, using
from telos.core.programs import Program, Uncompiled, program
from telos.core.rng import Rng
from telos.lm import growth
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
GROUP = 1 << 26
"""Bytes of keys and values that a CPU passes through quickly: sequences that need more are grown in groups."""
EVEN = 8
"""Attention within prompts is quickest for multiples of this length."""
WAYS = {"plain": (), "fused": ("fused",), "compiled": ("compiled", "fused")}
"""Of adding a token, for each numerical path: the first that agrees with the network is taken."""
MOVING, ROOM = ({0: "rows"}, {0: "rows"}, {0: "used"}), {0: "rows", 2: "total"}
"""Sizes that vary, of what a program is called with."""
USUAL = {"rows": 64, "total": 129, "used": 64}
"""Sizes for which a program is made to be fast."""


class Growing(Protocol):
    """M sequences that grow by one token at a time."""

    def __len__(self) -> int:
        """M."""
        ...

    def logits(self) -> Float[Tensor, "m v"]:
        """Of the next token."""
        ...

    def extend(self, tokens: Int64[Tensor, " m"]) -> None:
        """Appends a token to each."""
        ...

    def keep(self, rows: Int64[Tensor, " k"]) -> None:
        """Goes on with these alone."""
        ...


def decoders(model: LanguageModel | GeometricMixture, prompts: Sequence[Ids], room: int) -> list[Callable[[], Growing]]:
    """Sequences that begin with `prompts` and may grow by `room` tokens: in groups, to be made and grown in turn.

    There are none where the network itself must be asked. Weights are read when a group is made.
    """
    models = [model] if isinstance(model, LanguageModel) else model.models
    ways, longest = WAYS[current().decoder], max(map(len, prompts)) + room
    if not ways or not all(served(part.causal, longest) for part in models):
        return []
    way = next((way for way in ways if all(agrees(part, way) for part in models)), None)
    if way is None:
        return []
    needed = longest * sum(map(bytes_a_token, models)) * len(prompts) if model.device.type == "cpu" else 1
    groups = np.array_split(np.arange(len(prompts)), min(len(prompts), math.ceil(needed / GROUP)))
    return [partial(begun, model, [prompts[row] for row in rows], room, way) for rows in groups]


@torch.inference_mode()
def begun(model: LanguageModel | GeometricMixture, prompts: Sequence[Ids], room: int, way: str) -> Growing:
    """One group."""
    if isinstance(model, LanguageModel):
        return Decoder(model.causal, prompts, room, way)
    return Mixed([Decoder(part.causal, prompts, room, way) for part in model.models], model.weights)


def bytes_a_token(model: LanguageModel) -> int:
    """Of the keys and values of all layers."""
    config, size = model.causal.config, model.causal.base_model.layers[0].self_attn.head_dim
    return 2 * 4 * config.num_hidden_layers * config.num_key_value_heads * size


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


_agree: WeakKeyDictionary[Any, dict[str, bool]] = WeakKeyDictionary()


@torch.inference_mode()
def agrees(model: LanguageModel, way: str) -> bool:
    """Whether two short sequences of unequal length have the network's own logits, token by token; asked once."""
    known = _agree.setdefault(model.causal, {})
    if way not in known:
        tokens = torch.from_numpy(Rng(0).at("decoder").numpy().integers(0, model.causal.config.vocab_size, (2, 8)))
        heads, grown = (5, 3), 3
        with using(dataclasses.replace(current(), precision="highest")):
            prompts = [row[:n].numpy() for row, n in zip(tokens, heads, strict=True)]
            try:
                growing = Decoder(model.causal, prompts, grown, way)
            except Uncompiled:
                return known.setdefault(way, False)
            tokens, found = tokens.to(model.device), [growing.logits()]
            rows, ends = torch.arange(2), torch.tensor(heads)
            for step in range(grown):
                growing.extend(tokens[rows, ends + step])
                found.append(growing.logits())
            whole = model.head(model.hidden(tokens))
        expected = torch.stack([whole[rows, ends - 1 + step] for step in range(grown + 1)])
        error = (torch.stack(found) - expected).abs().max()
        known[way] = bool(error <= TOLERANCE * expected.abs().max())
    return known[way]


class Layer(NamedTuple):
    """One block: (N, D) to queries, keys and values (N, (heads + 2 shared) S); (N, heads S) and (N, I) to (N, D)."""

    qkv: Product
    output: Product
    gate_up: Product
    down: Product
    norms: tuple[HeadNorm, HeadNorm] | None


class Decoder:
    """M sequences with their cache, and the network's weights as they were when it was made.

    The sequences are in step: padding stands before the last token of a shorter prompt, and attention passes over it.

    Args:
        prompts: M arrays of ids, of any lengths >= 1; equal ones are read once. room: most tokens to come.
        way: "fused" or "compiled".

    Raises:
        Uncompiled: nothing compiles here, or the network is too large to gain by it.
    """

    def __init__(self, causal: Any, prompts: Sequence[Ids], room: int, way: str = "fused"):
        body, config = causal.base_model, causal.config
        attention = body.layers[0].self_attn
        self.heads, self.shared, self.size = config.num_attention_heads, config.num_key_value_heads, attention.head_dim
        lay = Copied if sum(p.numel() for p in causal.parameters()) <= COPIED else Kept
        self.layers = [self._layer(block, lay) for block in body.layers]
        self.embedding = body.embed_tokens.weight
        self.head = lay([causal.get_output_embeddings()], body.norm.weight)
        least = config.hidden_size * body.norm.variance_epsilon
        self.least = self.embedding.new_tensor(least).sqrt()
        compiled = way == "compiled"
        ids = [tuple(prompt.tolist()) for prompt in prompts]
        last = torch.tensor([prompt[-1] for prompt in ids], device=self.embedding.device)
        self.positions = torch.tensor([len(prompt) - 1 for prompt in ids], device=last.device)
        self.used = max(map(len, ids)) - 1
        # A program takes the room for one that is never used up.
        self.total = self.used + 1 + room + compiled
        self.turns = turns(body.rotary_emb, self.total, attention.scaling**0.5)
        self.places = torch.arange(self.total, device=last.device)
        self.bias = self._gaps(compiled)
        self.transposed = self.size <= SHORT_HEAD
        self.cache = [self._room(len(ids)) for _ in self.layers]
        self.program = self._program(least) if compiled else None
        self.staying = [tensor for tensor, _ in self._staying()] if compiled else []
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
            (HeadNorm(attention.q_norm), HeadNorm(attention.k_norm)) if hasattr(attention, "q_norm") else None,
        )

    def _gaps(self, always: bool) -> Float[Tensor, "m_shared 1 total"] | None:
        """Minus infinity at padding; None where there is none, but not `always`."""
        empty = (self.places >= self.positions[:, None]) & (self.places < self.used)
        bias = torch.zeros(empty.shape, device=empty.device).masked_fill(empty, -torch.inf)
        return bias.repeat_interleave(self.shared, 0)[:, None] if always or empty.any() else None

    def _room(self, count: int) -> tuple[Float[Tensor, "m shared s total"], Float[Tensor, "m shared total s"]]:
        """For the keys and values of a layer."""
        keys, values = self.embedding.new_zeros(2, count, self.shared, self.total, self.size)
        return keys.view(*keys.shape[:2], self.size, -1) if self.transposed else keys.mT, values

    def _program(self, least: float) -> Program:
        """`growth.grown` for this network's sizes.

        Raises:
            Uncompiled: see the class.
        """
        first = self.layers[0]
        if not all(isinstance(part, Copied) for part in first[:4]) or self.places.device.type != "cpu":
            raise Uncompiled("a large network, or one that is not on a CPU")
        about = {
            "heads": self.heads, "shared": self.shared, "size": self.size, "layers": len(self.layers), "least": least,
            "biased": [isinstance(part, Copied) and part.bias is not None for part in first[:4]],
            "epsilon": None if first.norms is None else first.norms[0].epsilon, "transposed": self.transposed,
        }  # fmt: skip
        call = f"\n\ndef forward(self, *tensors):\n    return grown(*tensors, **{about})\n"
        given = [*zip(self._moving(self.embedding[:1]), MOVING, strict=True), *self._staying()]
        shapes = [[USUAL[sizes[i]] if i in sizes else n for i, n in enumerate(tensor.shape)] for tensor, sizes in given]
        usual = [torch.empty(shape, dtype=tensor.dtype, device="meta") for shape, (tensor, _) in zip(shapes, given)]
        return program(Path(growth.__file__).read_text() + call, usual, varying=[sizes for _, sizes in given])

    def _moving(self, x: Float[Tensor, "m d"]) -> list[Tensor]:
        """What the program is called with and differs from token to token."""
        return [x, torch.view_as_real(self.turns[self.positions]), self.places[: self.used + 1]]

    def _staying(self) -> list[tuple[Tensor, Mapping[int, str]]]:
        """The rest that it is called with, and which sizes of it vary."""
        assert self.bias is not None
        given: list[tuple[Tensor, Mapping[int, str]]] = [(self.bias.view(-1, self.shared, self.total), ROOM)]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            parts = [part for part in layer[:4] if isinstance(part, Copied)]
            fixed = [tensor for part in parts for tensor in (part.weight, part.bias) if tensor is not None]
            given += [(tensor, {}) for tensor in [*fixed, *(norm.gain for norm in layer.norms or ())]]
            given += [(keys, {0: "rows", 3: "total"}) if self.transposed else (keys.mT, ROOM), (values, ROOM)]
        return given

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
        width = min(-(-int(counts.max()) // EVEN) * EVEN, self.total)
        inside = torch.arange(width) < counts[:, None]
        shape, places = inside.shape, inside.flatten().nonzero()[:, 0].to(device)
        if not len(places):
            return
        turns = self.turns[places % shape[1]][:, None]
        x = self.embedding[torch.tensor([token for prompt in prompts for token in prompt], device=device)]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            own = torch.cat(self._heads(layer, x, turns), 1)
            padded = own.new_zeros(inside.numel(), *own.shape[1:]).index_copy_(0, places, own)
            q, k, v = padded.unflatten(0, shape).transpose(1, 2).split([self.heads, self.shared, self.shared], 1)
            keys[..., : shape[1]].index_copy_(0, rows, k.index_select(0, owners).mT)
            values[:, :, : shape[1]].index_copy_(0, rows, v.index_select(0, owners))
            if layer is self.layers[-1]:
                return
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0, enable_gqa=True)
            self._rest(layer, x, mixed.transpose(1, 2).flatten(2).flatten(0, 1).index_select(0, places))

    def _heads(
        self, layer: Layer, x: Float[Tensor, "n d"], turns: Complex64[Tensor, "n 1 h"]
    ) -> tuple[Float[Tensor, "n heads s"], Float[Tensor, "n shared s"], Float[Tensor, "n shared s"]]:
        """Queries and keys, rotated, and values."""
        split = layer.qkv(self._unit(x)).view(x.shape[0], -1, self.size // 2, 2)
        pairs = torch.view_as_complex(split)
        q, k = pairs[:, : self.heads], pairs[:, self.heads : -self.shared]
        if layer.norms is not None:
            q, k = layer.norms[0](q), layer.norms[1](k)
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

    def __len__(self) -> int:
        return len(self.positions)

    def logits(self) -> Float[Tensor, "m v"]:
        return self.head(self._unit(self.hidden))

    def extend(self, tokens: Int64[Tensor, " m"]) -> None:
        x = self.embedding[tokens]
        # Programs are for sizes from 2 on.
        if self.program is not None and len(x) > 1 and self.used > 0:
            (self.hidden,) = self.program(self._moving(x) + self.staying)
        else:
            self.hidden = self._extended(x)
        self.used += 1
        self.positions += 1

    def _extended(self, x: Float[Tensor, "m d"]) -> Float[Tensor, "m d"]:
        """x after all layers, in place."""
        count, now, then = x.shape[0], self.used, self.used + 1
        turns = self.turns[self.positions][:, None]
        bias = None if self.bias is None else self.bias[:, :, :then]
        for layer, (keys, values) in zip(self.layers, self.cache, strict=True):
            q, k, v = self._heads(layer, x, turns)
            keys[..., now], values[:, :, now] = k, v
            q, past = q.view(count * self.shared, -1, self.size), keys.flatten(0, 1)[:, :, :then]
            scores = torch.bmm(q, past) if bias is None else torch.baddbmm(bias, q, past)
            mixed = torch.bmm(scores.softmax(-1), values.flatten(0, 1)[:, :then])
            self._rest(layer, x, mixed.view(count, -1))
        return x

    def keep(self, rows: Int64[Tensor, " k"]) -> None:
        before, self.cache = self.cache, [self._room(len(rows)) for _ in self.layers]
        for (old_keys, old_values), (keys, values) in zip(before, self.cache, strict=True):
            keys[..., : self.used] = old_keys[..., : self.used].index_select(0, rows)
            values[:, :, : self.used] = old_values[:, :, : self.used].index_select(0, rows)
        self.hidden, self.positions = self.hidden[rows], self.positions[rows]
        if self.bias is not None:
            self.bias = self.bias.unflatten(0, (-1, self.shared))[rows].flatten(0, 1)
        if self.program is not None:
            self.staying = [tensor for tensor, _ in self._staying()]


class Mixed:
    """The normalised geometric mean of several, up to a constant a row: see `telos.lm.soup.GeometricMixture`."""

    def __init__(self, parts: Sequence[Decoder], weights: Sequence[float]):
        self.parts, self.weights = parts, weights

    def __len__(self) -> int:
        return len(self.parts[0])

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


class HeadNorm:
    """The root-mean-square norm of heads, given as pairs."""

    def __init__(self, module: Any):
        self.gain, self.epsilon = module.weight.view(2, -1).T.contiguous(), module.variance_epsilon

    def __call__(self, pairs: Complex64[Tensor, "n heads h"]) -> Complex64[Tensor, "n heads h"]:
        normed = F.rms_norm(torch.view_as_real(pairs), self.gain.shape, self.gain, self.epsilon)
        return torch.view_as_complex(normed)


def turns(rotary: Any, length: int, scale: float) -> Complex64[Tensor, "length h"]:
    """The rotation of each pair at each position; queries and keys are both multiplied by `scale`."""
    angles = torch.arange(length, device=rotary.inv_freq.device).float()[:, None] * rotary.inv_freq.float()
    return torch.polar(torch.full_like(angles, rotary.attention_scaling * scale), angles)
