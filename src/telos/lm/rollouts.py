"""Completions of the current policy, scored by a purpose: the source of online methods for language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import HealthError, TelosError
from telos.core.method import Source
from telos.core.products import Completions, Product
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Record
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.lm.tokens import Ids, Sequences

Purpose = Callable[[Sequence[str], Sequence[str]], Any]
"""(prompts, completions) -> N numbers, higher is better: a reward model, a verifier, the user's own function."""

RATIO_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Rollouts(Record):
    """One row a completion, the completions of a prompt side by side.

    Args:
        sequences: tokens (B, T), lengths and boundaries (B,).
        sampler_log_probs: (B, T) as the sampler recorded them, 0 off the completion.
        reference: (B,) summed log-probs under the frozen reference, no transform.
        rewards: (B,) the purpose's scores.
        groups: (B,) which prompt of the batch.
    """

    sequences: Sequences
    sampler_log_probs: Tensor
    reference: Tensor
    rewards: Tensor
    groups: Tensor


def scores(purpose: Purpose, completions: Completions, tokenizer: Any = None) -> Tensor:
    """(N,) float32 rewards of completions; a reward model with the same vocabulary reads the tokens themselves.

    Args:
        tokenizer: of the policy that sampled them.

    Raises:
        TelosError: the wrong number of scores, or one that is not finite, with its prompt.
    """
    if (
        isinstance(purpose, RewardScorer)
        and tokenizer is not None
        and (purpose.tokenizer is tokenizer or purpose.tokenizer.get_vocab() == tokenizer.get_vocab())
    ):
        return purpose.score_sampled(completions)
    values = torch.as_tensor(np.asarray(purpose(completions.prompts, completions.texts), dtype=np.float32))
    if values.shape != (len(completions.texts),):
        raise TelosError(
            "the purpose returned the wrong number of scores",
            expected=f"{len(completions.texts)}, one a completion",
            got=str(tuple(values.shape)),
        )
    if not values.isfinite().all():
        row = int((~values.isfinite()).nonzero()[0])
        raise TelosError(
            f"the purpose returned {values[row]} for prompt {completions.prompts[row]!r}",
            expected="a finite number",
            got=completions.texts[row][:80],
        )
    return values


def first_ratio(log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> None:
    """Stops training unless the policy gives the sampled tokens the probability that the sampler recorded.

    Raises:
        HealthError: the ratio of the first update differs from 1 by more than 1e-3 at some token.
    """
    error = ((log_probs.detach() - sampler_log_probs) * mask).abs().max().expm1()
    if not error <= RATIO_TOLERANCE:  # NaN is refused too
        raise HealthError(
            f"sampler and trainer disagree: the first ratio is off by {float(error):.2g}",
            expected=f"1 within {RATIO_TOLERANCE}",
            fix="check that nothing (dropout, precision, another transform) differs between sampling and training",
        )


class _PromptSet:
    """Prompts as a data set for `Epochs`."""

    def __init__(self, prompts: list[Ids]):
        self.prompts = prompts

    def __len__(self) -> int:
        return len(self.prompts)

    def batch(self, index: np.ndarray) -> list[Ids]:
        return [self.prompts[i] for i in index]


class RolloutSource(Source):
    """Takes the next prompts, samples `n` completions each with the behaviour at temperature 1, and scores them.

    Args:
        reference: the frozen model of the KL term.
        max_new_tokens: longest completion.
    """

    def __init__(
        self,
        prompts: list[Ids],
        purpose: Purpose,
        reference: LanguageModel,
        *,
        prompts_per_batch: int,
        n: int,
        order: Rng,
        max_new_tokens: int,
    ):
        self.prompts = Epochs(_PromptSet(prompts), prompts_per_batch, order)
        self.purpose, self.reference, self.n, self.max_new_tokens = purpose, reference, n, max_new_tokens

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Rollouts:
        policy = behaviour()
        assert isinstance(policy, LanguagePolicy)
        prompts = self.prompts.next(behaviour, rng)
        device = policy.model.device
        completions = policy.generate(prompts, n=self.n, rng=rng.torch(device), max_new_tokens=self.max_new_tokens)
        sequences = Sequences(completions.tokens, completions.lengths, completions.boundaries).to(device)
        with torch.no_grad():
            reference = sequence_log_probs(self.reference, sequences)
        return Rollouts(
            sequences,
            completions.log_probs.to(device),
            reference,
            scores(self.purpose, completions, policy.model.tokenizer).to(device),
            torch.arange(len(prompts), device=device).repeat_interleave(self.n),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return self.prompts.state()

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        self.prompts.load_state(tensors, numbers)
