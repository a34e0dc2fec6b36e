"""One token more for M sequences, as a pure function of tensors: what `telos.core.compiler` is given, as this source.

It computes what `telos.lm.decoder.Decoder` does by torch's operators, in a form that compiles well: real numbers, and
attention by sums, which the compiler joins into one pass over the cache. It imports nothing of telos.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F


def grown(
    x: Tensor, turns: Tensor, places: Tensor, bias: Tensor, *tensors: Tensor,
    heads: int, shared: int, size: int, layers: int, least: float, biased: Sequence[bool], epsilon: float | None,
    transposed: bool,
) -> Tensor:  # fmt: skip
    """The last token's (M, D) after all layers; its keys and values are written into the caches.

    Args:
        x: (M, D) the token's embedding. turns: (M, size / 2, 2) cosine and sine of each pair's turn.
        places: (t,) 0, 1, ..., the new token's. bias: (M, shared, T) of attention's scores.
        tensors: of each layer the weights, and where `biased` the biases, of queries, keys and values, of the output,
            of gate and up, and of down; the gains of queries and keys if there is an `epsilon`, which is that of their
            norms; keys (M, shared, T, size), or `transposed` ones, and values (M, shared, T, size). Entries of heads
            come in pairs, side by side.
        least: of the squares' sum in the norm of x, whose gains the weights hold.
    """
    given, count, now = iter(tensors), x.shape[0], places.shape[0]
    cosines, sines = turns[:, None].unbind(-1)
    for _ in range(layers):
        qkv, output, gate_up, down = [(next(given), next(given) if extra else None) for extra in biased]
        pairs = product(unit(x, least), qkv).view(count, -1, size // 2, 2)
        q, k, v = pairs.split([heads, shared, shared], 1)
        if epsilon is not None:
            q, k = normed(q, given, epsilon), normed(k, given, epsilon)
        keys, values = next(given), next(given)
        q, k = rotated(q, cosines, sines), rotated(k, cosines, sines)
        values.index_copy_(2, places[-1:], v.flatten(2)[:, :, None])
        scores = SCORES[transposed](q.view(count, shared, -1, size), k, keys, places) + bias[:, :, None, :now]
        weights = (scores - scores.amax(-1, keepdim=True)).exp()
        mixed = (weights[..., None] * values[:, :, None, :now]).sum(3) / weights.sum(-1, keepdim=True)
        x = x + product(mixed.view(count, -1), output)
        gate, up = product(unit(x, least), gate_up).chunk(2, -1)
        x = x + product(F.silu(gate) * up, down)
    return x


def product(x: Tensor, layer: tuple[Tensor, Tensor | None]) -> Tensor:
    """(M, outputs) of x (M, inputs), a weight (inputs, outputs) and perhaps a bias."""
    weight, bias = layer
    return x @ weight if bias is None else torch.addmm(bias, x, weight)


def unit(x: Tensor, least: float) -> Tensor:
    """Rows of x (M, D), of about length 1."""
    return x * (x.square().sum(-1, keepdim=True) + least).rsqrt()


def normed(pairs: Tensor, given: Iterator[Tensor], epsilon: float) -> Tensor:
    """Heads (M, n, size / 2, 2), of about root mean square 1, times the next gain."""
    return pairs * (pairs.square().mean((-2, -1), keepdim=True) + epsilon).rsqrt() * next(given)


def rotated(pairs: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Heads (M, n, size), each pair of (M, n, size / 2, 2) turned."""
    a, b = pairs.unbind(-1)
    return torch.stack((a * cosines - b * sines, a * sines + b * cosines), -1).flatten(2)


def by_place(q: Tensor, k: Tensor, keys: Tensor, places: Tensor) -> Tensor:
    """(M, shared, heads of one, t) products of q (M, shared, heads of one, size) with all keys, k among them now."""
    keys.index_copy_(2, places[-1:], k[:, :, None])
    return (q[:, :, :, None] * keys[:, :, None, : places.shape[0]]).sum(-1)


def by_entry(q: Tensor, k: Tensor, keys: Tensor, places: Tensor) -> Tensor:
    """The same with transposed keys."""
    keys.index_copy_(3, places[-1:], k[..., None])
    return (q[..., None] * keys[:, :, None, :, : places.shape[0]]).sum(3)


SCORES = {False: by_place, True: by_entry}
