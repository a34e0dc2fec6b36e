"""Log-probs of completions without a full logits tensor: only completion positions, in chunks, in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from telos.core.numerics import current
from telos.lm.model import LanguageModel
from telos.lm.packed import states_before
from telos.lm.tokens import Sequences, TokenGroups

CHUNK_LOGITS = 1 << 22
"""Most logits held at once (16 MB in float32); larger ones are recomputed in the backward pass."""


def gather_log_probs(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(hidden))[target] for hidden (M, D) and targets (M,): (M,) float32."""
    logits = model.head(hidden)
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def add_gradients(
    model: LanguageModel,
    weight: Tensor,
    weight_gradient: Tensor | None,
    hidden: Tensor,
    hidden_gradient: Tensor,
    targets: Tensor,
    values: Tensor,
    gradient: Tensor,
) -> None:
    """From the gradient (M,) of a chunk's log-probs `values` (M,) to those of hidden (written) and weight (added).

    With p = softmax(z), d log p[target] / dz = onehot - p. Where the network neither scales nor caps its logits, and
    in float32, one tensor (M, V) is held.
    """
    output = nn.functional.linear(hidden, weight).requires_grad_()
    with torch.enable_grad():
        logits = model.scaled(output)
    z = logits.detach()
    own = z.gather(-1, targets[:, None])
    z.sub_(own - values[:, None]).exp_().mul_(-gradient[:, None])
    z.scatter_add_(-1, targets[:, None], gradient[:, None])
    (output_gradient,) = torch.autograd.grad(logits, output, z)
    torch.mm(output_gradient, weight, out=hidden_gradient)
    if weight_gradient is not None:
        weight_gradient.addmm_(output_gradient.T, hidden)


class HeadLogProbs(torch.autograd.Function):
    """`gather_log_probs` in chunks of rows, for a head that is one matrix; its backward pass keeps no logits.

    It recomputes each chunk's, and adds to one gradient of the matrix: autograd would hold a second one, which for a
    large vocabulary is as large as the body's activations.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, model: LanguageModel, size: int) -> Tensor:
        parts = zip(hidden.split(size), targets.split(size), strict=True)
        values = torch.cat([gather_log_probs(model, *part) for part in parts])
        ctx.save_for_backward(hidden, weight, targets, values)
        ctx.model, ctx.size = model, size
        return values

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, *rest = ctx.saved_tensors
        hidden_gradient = torch.empty_like(hidden)
        weight_gradient = torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        parts = (tensor.split(ctx.size) for tensor in (hidden, hidden_gradient, *rest, gradient))
        for part in zip(*parts, strict=True):
            add_gradients(ctx.model, weight, weight_gradient, *part)
        return hidden_gradient, weight_gradient, None, None, None


def chunked_log_probs(model: LanguageModel, hidden: Tensor, targets: Tensor, size: int) -> Tensor:
    """`gather_log_probs`, no more than `size` rows at once, in the backward pass too."""
    head = model.causal.get_output_embeddings() if isinstance(model, LanguageModel) else None  # else a mixture
    if type(head) is nn.Linear and head.bias is None:
        return HeadLogProbs.apply(hidden, head.weight, targets, model, size)  # type: ignore[return-value]
    parts = zip(hidden.split(size), targets.split(size), strict=True)
    return torch.cat([checkpoint(gather_log_probs, model, *part, use_reentrant=False) for part in parts])  # type: ignore[arg-type]


def padded_states(model: LanguageModel, sequences: Sequences) -> Tensor:
    """(M, D) last hidden states before each completion token, row by row, by the network."""
    rows, places = sequences.mask.nonzero(as_tuple=True)
    return model.hidden(sequences.tokens)[rows, places - 1]


def packed_states(model: LanguageModel, sequences: Sequences) -> Tensor:
    """The same without padding and with each prompt once, where that can be done."""
    states = states_before(model, sequences)
    return padded_states(model, sequences) if states is None else states


STATES = {"plain": padded_states, "packed": packed_states}


def token_log_probs(model: LanguageModel, sequences: Sequences) -> Tensor:
    """log pi(token_t | tokens before t) at completion tokens, 0 elsewhere: (B, T) float32, with gradient.

    Padding, its amount and its contents make no difference: the network is causal and padding is on the right.
    """
    tokens, mask = sequences.tokens, sequences.mask
    rows, places = mask.nonzero(as_tuple=True)
    states, targets = STATES[current().forward](model, sequences), tokens[rows, places]
    size = max(1, CHUNK_LOGITS // model.causal.config.vocab_size)
    if len(targets) <= size:
        values = gather_log_probs(model, states, targets)
    else:
        values = chunked_log_probs(model, states, targets, size)
    return torch.zeros(tokens.shape, dtype=values.dtype, device=values.device).index_put((rows, places), values)


def sequence_log_probs(model: LanguageModel, sequences: Sequences, average: bool = False) -> Tensor:
    """log pi(y | x), summed over completion tokens (end token included) or averaged: (B,), or (B, K) for groups."""
    flat = sequences.flat() if sequences.tokens.dim() == 3 else sequences
    values = token_log_probs(model, flat).sum(-1)
    if average:
        values = values / (flat.lengths - flat.boundaries)
    return values.view(sequences.lengths.shape)


@torch.no_grad()
def reference_log_probs(
    model: LanguageModel, groups: TokenGroups, batch_size: int = 64, average: bool = False
) -> Tensor:
    """(N, K) log-probs of every completion under a frozen model, computed once, items of like length together."""
    order = groups.lengths.argsort(kind="stable")
    result = torch.empty(len(groups), len(groups.completions[0]))
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        result[torch.from_numpy(index)] = sequence_log_probs(model, groups.sequences(index), average).cpu()
    return result
