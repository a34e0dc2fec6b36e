"""Completions of the current policy, scored by a purpose: the source of online methods for language models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import HealthError
from telos.core.method import Source, Spec
from telos.core.products import Completions, Product
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Record
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.lm.tokens import Ids, Sequences, tokenise_prompts
from telos.purposes.scoring import score

Purpose = Callable[[Sequence[str], Sequence[str]], Any]
"""(prompts, completions) -> N numbers, higher is better: a reward model, a verifier, the user's own function."""

RATIO_TOLERANCE = 1e-3
REFERENCE_BATCH = 64


@dataclass(frozen=True)
class Rollouts(Record):
    """One row a completion, the completions of a prompt side by side; what is said of tokens is 0 off the completion.

    Args:
        sequences: tokens (B, T), lengths and boundaries (B,).
        sampler_log_probs: (B, T) as the sampler recorded them, under its transform.
        log_probs: (B, T) of the same policy without any transform: what a KL is measured with.
        reference_log_probs: (B, T) under the frozen reference, no transform.
        rewards: (B,) the purpose's scores of whole completions.
        token_rewards: (B, T) further rewards of single tokens; 0 unless a source or a hook gives them.
        policy_mask, value_mask: (B, T) bool: tokens that train the policy, and the critic; the whole completion unless
            a source mixes several writers.
        groups: (B,) which prompt of the batch.
    """

    sequences: Sequences
    sampler_log_probs: Tensor
    log_probs: Tensor
    reference_log_probs: Tensor
    rewards: Tensor
    token_rewards: Tensor
    policy_mask: Tensor
    value_mask: Tensor
    groups: Tensor

    @property
    def log_ratios(self) -> Tensor:
        """(B, T) log pi - log pi_ref at the sampled tokens, of the policy that sampled: summed, the KL's estimate."""
        return self.log_probs - self.reference_log_probs

    @property
    def last(self) -> Tensor:
        """(B, T) bool: the last token of each completion, where the reward of the whole stands."""
        place = torch.arange(self.sequences.tokens.shape[1], device=self.rewards.device)
        return place == self.sequences.lengths[:, None] - 1


def scores(
    purpose: Purpose,
    completions: Completions,
    tokenizer: Any = None,
    columns: Mapping[str, Sequence[Any]] | None = None,
) -> Tensor:
    """(N,) float32 rewards of completions; a reward model with the same vocabulary reads the tokens themselves.

    Args:
        tokenizer: of the policy that sampled them.
        columns: further columns of the prompts' data, one value a completion, for purposes that name them.

    Raises:
        TelosError: the wrong number of scores, or one that is not finite, with its prompt.
    """
    if (
        isinstance(purpose, RewardScorer)
        and tokenizer is not None
        and (purpose.tokenizer is tokenizer or purpose.tokenizer.get_vocab() == tokenizer.get_vocab())
    ):
        return purpose.score_sampled(completions)
    rows = zip(completions.tokens, completions.boundaries, completions.lengths, strict=True)
    ids = [tokens[start:end].tolist() for tokens, start, end in rows]
    values = score(purpose, completions.prompts, completions.texts, columns=columns, completion_ids=ids)
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


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
    """Numbers of prompts as a data set for `Epochs`."""

    def __init__(self, count: int):
        self.count = count

    def __len__(self) -> int:
        return self.count

    def batch(self, index: np.ndarray) -> np.ndarray:
        return index


class RolloutSource(Source):
    """Takes the next prompts, samples `n` completions each with the behaviour at temperature 1, and scores them.

    Args:
        prompts: token ids; columns: further columns of their data.
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
        columns: Mapping[str, Sequence[Any]] | None = None,
    ):
        self.prompts, self.columns = prompts, columns or {}
        self.order = Epochs(_PromptSet(len(prompts)), prompts_per_batch, order)
        self.purpose, self.reference, self.n, self.max_new_tokens = purpose, reference, n, max_new_tokens

    @classmethod
    def of(cls, spec: Spec, *, prompts_per_batch: int, n: int, max_new_tokens: int) -> RolloutSource:
        """The source of a method whose spec holds Prompts, and model, reference and purpose as given."""
        return cls(
            tokenise_prompts(spec.given["model"], spec.data, max_new_tokens),
            spec.given["purpose"],
            spec.given["reference"],
            prompts_per_batch=prompts_per_batch,
            n=n,
            order=spec.rng.at("order"),
            max_new_tokens=max_new_tokens,
            columns=spec.data.columns,
        )

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Rollouts:
        policy = behaviour()
        assert isinstance(policy, LanguagePolicy)
        chosen = self.order.next(behaviour, rng).tolist()
        device = policy.model.device
        completions = policy.generate(
            [self.prompts[i] for i in chosen], n=self.n, rng=rng.torch(device), max_new_tokens=self.max_new_tokens
        )
        rows = [i for i in chosen for _ in range(self.n)]
        columns = {name: [values[i] for i in rows] for name, values in self.columns.items()}
        rewards = scores(self.purpose, completions, policy.model.tokenizer, columns)
        return rollouts(completions, rewards, self.reference, self.n)

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return self.order.state()

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        self.order.load_state(tensors, numbers)


@torch.no_grad()
def rollouts(completions: Completions, rewards: Tensor, reference: LanguageModel, n: int) -> Rollouts:
    """Completions sampled at temperature 1, `n` a prompt, with their rewards, on the reference's device."""
    device = reference.device
    sequences = Sequences(completions.tokens, completions.lengths, completions.boundaries).to(device)
    batches = [sequences[i : i + REFERENCE_BATCH] for i in range(0, len(sequences.lengths), REFERENCE_BATCH)]
    sampled = completions.log_probs.to(device)
    return Rollouts(
        sequences=sequences,
        sampler_log_probs=sampled,
        log_probs=sampled,
        reference_log_probs=torch.cat([token_log_probs(reference, part) for part in batches]),
        rewards=rewards.to(device),
        token_rewards=torch.zeros_like(sampled),
        policy_mask=sequences.mask,
        value_mask=sequences.mask,
        groups=torch.arange(len(rewards), device=device) // n,
    )
