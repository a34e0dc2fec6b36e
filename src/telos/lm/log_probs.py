"""Log-probs of completions without a full logits tensor: only completion positions, in chunks, in float32."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from telos.lm.model import LanguageModel
from telos.lm.tokens import Sequences, TokenGroups

CHUNK_LOGITS = 1 << 22
"""Most logits held at once (16 MB in float32); larger ones are recomputed in the backward pass."""


def gather_log_probs(model: LanguageModel, hidden: Tensor, targets: Tensor) -> Tensor:
    """log softmax(head(hidden))[target] for hidden (M, D) and targets (M,): (M,) float32."""
    logits = model.head(hidden)
    return logits.gather(-1, targets[:, None])[:, 0] - logits.logsumexp(-1)


def token_log_probs(model: LanguageModel, sequences: Sequences) -> Tensor:
    """log pi(token_t | tokens before t) at completion tokens, 0 elsewhere: (B, T) float32, with gradient.

    Padding, its amount and its contents make no difference: the network is causal and padding is on the right.
    """
    tokens, mask = sequences.tokens, sequences.mask
    hidden = model.hidden(tokens)
    rows, places = mask.nonzero(as_tuple=True)
    states, targets = hidden[rows, places - 1], tokens[rows, places]
    size = max(1, CHUNK_LOGITS // model.causal.config.vocab_size)
    if len(targets) <= size:
        values = gather_log_probs(model, states, targets)
    else:
        values = torch.cat(
            [
                checkpoint(gather_log_probs, model, states[i : i + size], targets[i : i + size], use_reentrant=False)  # type: ignore[arg-type]
                if torch.is_grad_enabled()
                else gather_log_probs(model, states[i : i + size], targets[i : i + size])
                for i in range(0, len(targets), size)
            ]
        )
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
