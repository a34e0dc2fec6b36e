"""Sampling with a static cache. What is stored is what was done: the sampler's own log-probs and its transform."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import HealthError, TelosError
from telos.core.products import Completions
from telos.lm.decoder import Growing, decoders
from telos.lm.model import LanguageModel
from telos.lm.tokens import Ids

if TYPE_CHECKING:
    from telos.lm.soup import GeometricMixture

SHRINK = 0.75
"""Sequences that have ended leave the batch once no more than this share of it goes on."""


def transformed(logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Tensor:
    """Log-probs (B, V) of the distribution that is sampled from.

    Args:
        logits: (B, V) float32.
        temperature: > 0 divides the logits; 0 puts all mass on the first largest.
        top_k: keep the k largest (0: all). top_p: keep the smallest set of at least this mass (1: all).
    """
    if temperature == 0:
        best = torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
        return best.log()
    logits = logits if temperature == 1 else logits / temperature
    if top_k > 0:
        least = logits.topk(min(top_k, logits.shape[-1]), dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ordered, order = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
        drop = (ordered.cumsum(-1) - ordered) >= top_p
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits.log_softmax(-1)


def check_sampling(
    *, n: int, max_new_tokens: int, batch_size: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> None:
    """Raises TelosError for an option out of range."""
    if min(n, max_new_tokens, batch_size) < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise TelosError(
            "a sampling option is out of range",
            expected="n, max_new_tokens, batch_size >= 1, temperature >= 0, top_k >= 0, 0 < top_p <= 1",
            got=f"{n=}, {max_new_tokens=}, {batch_size=}, {temperature=}, {top_k=}, {top_p=}",
        )


@torch.no_grad()
def sample_tokens(
    model: LanguageModel | GeometricMixture,
    prompts: Sequence[Ids],
    rng: torch.Generator,
    *,
    max_new_tokens: int,
    **transform: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """One completion for each prompt: tokens (B, N), log-probs (B, N) under the transform, and counts (B,).

    A completion ends with the end token, which counts, or after N = max_new_tokens; what stands after it says nothing.
    The numerical paths draw from the same distribution, but not the same numbers.
    """
    found = [
        fused_tokens(begin(), model.eos_id, rng, max_new_tokens=max_new_tokens, **transform)
        for begin in decoders(model, prompts, max_new_tokens)
    ]
    if not found:
        return plain_tokens(model, prompts, rng, max_new_tokens=max_new_tokens, **transform)
    new, log_probs, counts = zip(*found, strict=True)
    return torch.cat(new), torch.cat(log_probs), torch.cat(counts)


def plain_tokens(
    model: LanguageModel | GeometricMixture,
    prompts: Sequence[Ids],
    rng: torch.Generator,
    *,
    max_new_tokens: int,
    **transform: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample_tokens` by the network as transformers computes it."""
    device = model.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    width = int(lengths.max())
    tokens = torch.zeros(len(prompts), width, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :] = torch.from_numpy(np.asarray(prompt, np.int64))
    tokens = tokens.to(device)
    total = width + max_new_tokens
    even = bool((lengths == width).all())
    mask = torch.arange(total, device=device) >= (width - lengths)[:, None]
    cache = model.cache(total)
    positions = (mask[:, :width].cumsum(-1) - 1).clamp(min=0)
    extra: dict[str, Any] = {} if even else {"attention_mask": mask[:, :width].long()}
    hidden = model.hidden(tokens, past_key_values=cache, use_cache=True, position_ids=positions, **extra)[:, -1]
    new = torch.zeros(len(prompts), max_new_tokens, dtype=torch.int64, device=device)
    log_probs = torch.zeros(len(prompts), max_new_tokens, device=device)
    counts = torch.zeros(len(prompts), dtype=torch.int64, device=device)
    alive = torch.ones(len(prompts), dtype=torch.bool, device=device)
    for step in range(max_new_tokens):
        distribution = transformed(model.head(hidden), **transform)
        drawn = torch.multinomial(distribution.exp(), 1, generator=rng)
        new[:, step] = drawn[:, 0]
        log_probs[:, step] = distribution.gather(-1, drawn)[:, 0] * alive
        counts += alive
        alive = alive & (drawn[:, 0] != model.eos_id)
        if step + 1 == max_new_tokens or not alive.any():
            break
        extra = {} if even else {"attention_mask": mask[:, : width + step + 1].long()}
        hidden = model.hidden(
            drawn, past_key_values=cache, use_cache=True, position_ids=(lengths + step)[:, None], **extra
        )[:, -1]
    return new, log_probs, counts


def fused_tokens(
    growing: Growing, eos_id: int, rng: torch.Generator, *, max_new_tokens: int, **transform: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """`sample_tokens` by a decoder, which sequences that have ended leave: that changes nothing for the others.

    Raises:
        HealthError: a probability that is not finite.
    """
    greedy, count = transform.get("temperature", 1.0) == 0, len(growing)
    new = torch.zeros(count, max_new_tokens, dtype=torch.int64, device=rng.device)
    log_probs = torch.zeros(count, max_new_tokens, device=rng.device)
    counts = torch.zeros(count, dtype=torch.int64, device=rng.device)
    with torch.inference_mode():
        rows = torch.arange(count, device=rng.device)
        alive = torch.ones(count, dtype=torch.bool, device=rng.device)
        for step in range(max_new_tokens):
            distribution = transformed(growing.logits(), **transform)
            uniform = None if greedy else torch.rand(count, generator=rng, device=rng.device)[rows]
            tokens = distribution.argmax(-1) if uniform is None else drawn(distribution, uniform)
            new[rows, step] = tokens
            log_probs[rows, step] = distribution.gather(-1, tokens[:, None])[:, 0].where(alive, 0.0)
            counts[rows] += alive
            alive = alive & (tokens != eos_id)
            left = int(alive.sum())
            if step + 1 == max_new_tokens or not left:
                break
            if left <= SHRINK * len(rows):
                going = alive.nonzero()[:, 0]
                growing.keep(going)
                rows, tokens, alive = rows[going], tokens[going], alive[going]
            growing.extend(tokens)
    if not log_probs.isfinite().all():
        raise HealthError("the model gives probabilities that are not finite", fix="lower the learning rate")
    return new, log_probs, counts


def drawn(log_probs: Tensor, uniform: Tensor) -> Tensor:
    """(M,) indices, of each row's cumulative distribution the first above `uniform` (M,) in [0, 1): one number a row.

    `torch.multinomial` draws one for each column.
    """
    cumulative = log_probs.exp().cumsum_(-1)
    threshold = uniform[:, None] * cumulative[:, -1:]
    # Rounding may put the threshold of the largest numbers on the sum itself.
    return torch.searchsorted(cumulative, threshold, right=True)[:, 0].clamp_(max=log_probs.shape[1] - 1)


def texts(tokenizer: Any, rows: Sequence[Ids]) -> list[str]:
    """As `batch_decode`, which looks at each id of a list."""
    return [tokenizer.decode(row, skip_special_tokens=True) for row in rows]


def sample(
    model: LanguageModel | GeometricMixture,
    prompts: Sequence[Ids],
    *,
    n: int = 1,
    rng: torch.Generator,
    max_new_tokens: int = 64,
    batch_size: int = 256,
    **transform: Any,
) -> Completions:
    """`n` completions for each prompt (ids), prompts of like length together.

    Args:
        model: or a mixture of several, whose next-token distributions are mixed at every token; each has its cache.
        transform: temperature, top_k, top_p (see `transformed`).

    Raises:
        TelosError: no prompts, a prompt that does not fit, an option out of range.
    """
    check_sampling(n=n, max_new_tokens=max_new_tokens, batch_size=batch_size, **transform)
    if not prompts or min(map(len, prompts)) < 1 or max(map(len, prompts)) + max_new_tokens > model.context:
        raise TelosError(
            "there are no prompts, or one that is empty or too long",
            expected=f"prompts of 1 to {model.context - max_new_tokens} tokens (context less max_new_tokens)",
            got=f"{len(prompts)} prompts, the longest of {max(map(len, prompts), default=0)} tokens",
            fix="shorten the prompts, or lower max_new_tokens",
        )
    rows = [prompt for prompt in prompts for _ in range(n)]
    order = np.argsort([len(p) for p in rows], kind="stable")
    lengths = torch.tensor([len(p) for p in rows])
    tokens = torch.zeros(len(rows), int(lengths.max()) + max_new_tokens, dtype=torch.int64)
    log_probs = torch.zeros(tokens.shape)
    totals = lengths.clone()
    finished = torch.zeros(len(rows), dtype=torch.bool)
    for start in range(0, len(rows), batch_size):
        index = order[start : start + batch_size]
        new, values, counts = sample_tokens(
            model, [rows[i] for i in index], rng, max_new_tokens=max_new_tokens, **transform
        )
        heads = lengths[index]
        ends = heads + counts.cpu()
        for row in index.tolist():
            tokens[row, : len(rows[row])] = torch.from_numpy(rows[row])
        place = torch.arange(tokens.shape[1])
        inside = (place >= heads[:, None]) & (place < ends[:, None])
        kept = torch.arange(max_new_tokens) < counts.cpu()[:, None]
        target = torch.from_numpy(index)
        tokens[target] = tokens[target].masked_scatter(inside, new.cpu()[kept])
        log_probs[target] = log_probs[target].masked_scatter(inside, values.cpu()[kept])
        totals[target] = ends
        finished[target] = new.cpu().gather(1, counts.cpu()[:, None] - 1)[:, 0] == model.eos_id
    width = int(totals.max())
    tokens, log_probs = tokens[:, :width], log_probs[:, :width]
    ends = (totals - finished.long()).tolist()
    shown = texts(model.tokenizer, prompts)
    return Completions(
        texts(model.tokenizer, [row[start:end] for row, start, end in zip(tokens.numpy(), lengths.tolist(), ends)]),
        [text for text in shown for _ in range(n)],
        tokens,
        totals,
        lengths,
        log_probs,
        finished,
        dict(transform),
    )
