r"""Online DPO: DPO on pairs that the current policy writes and a purpose judges.

Guo et al. 2024, arXiv 2402.04792. Each round samples two completions of every prompt from pi, calls the one with the
higher score y_w, and takes DPO's step on the fresh pairs:

    L = -E log sigma( beta [log pi(y_w|x)/pi_ref(y_w|x) - log pi(y_l|x)/pi_ref(y_l|x)] )

Pairs with equal scores say nothing and have weight 0. One step of training is one round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Spec
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import Rollouts, RolloutSource, first_ratio
from telos.lm.setup import OPTIMIZERS, policy_and_reference, step_optimizer
from telos.ops import preferences

BASELINE = {
    "method": "Online DPO",
    "title": "Direct Language Model Alignment from Online AI Feedback",
    "reference": "arXiv 2402.04792",
    "year": 2024,
    "purpose": ["preference", "reward"],
    "product": "Generator",
    "data": "prompts + purpose",
    "summary": "DPO on fresh pairs of the current policy, labelled by a purpose.",
    "equations": [
        r"y_1,y_2\sim\pi_{\mathrm{old}}(\cdot\mid x),\quad r(x,y_w)>r(x,y_l),\quad\{y_w,y_l\}=\{y_1,y_2\}",
        r"h=\log\frac{\pi_\theta(y_w\mid x)}{\pi_{\mathrm{ref}}(y_w\mid x)}"
        r"-\log\frac{\pi_\theta(y_l\mid x)}{\pi_{\mathrm{ref}}(y_l\mid x)}",
        r"\mathcal L=-\mathbb E\left[\mathbb 1[r(x,y_1)\ne r(x,y_2)]\,\log\sigma(\beta h)\right]",
    ],
    "deviations": ["The purpose gives scores, the label is their order (or a Bradley-Terry draw)."],
}


@dataclass(frozen=True)
class OnlineDPO(Method):
    """Online DPO; `steps` counts rounds. Given: model, purpose, reference (default: the model as it was)."""

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")

    beta: float = 0.1
    """Strength of the pull to the reference, > 0. Paper: 0.1."""
    label: Literal["order", "bradley_terry"] = "order"
    """The higher score wins, or wins with probability sigmoid of the difference."""
    prompts_per_batch: int = 32
    """Prompts a round. Paper: 128."""
    epochs: int = 1
    """Passes over a round, >= 1. Paper: 1."""
    minibatch_prompts: int = 16
    """Pairs in an optimisation step."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 5e-7; 3e-4 suits the bundled models."""
    warmup_steps: int = 0
    """Linear warm-up, in optimisation steps. Paper: 150."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. Ours."""
    max_new_tokens: int = 64
    """Longest completion. Paper: 64 (TL;DR)."""

    def __post_init__(self) -> None:
        sizes = (self.prompts_per_batch, self.epochs, self.minibatch_prompts)
        if not self.beta > 0 or self.label not in LABELS or min(sizes) < 1:
            raise TelosError(
                "an option of online DPO is out of range",
                expected=f"beta > 0, label {' or '.join(LABELS)}, counts >= 1",
                got=f"beta={self.beta}, label={self.label!r}, counts={sizes}",
            )

    def prepare(self, spec: Spec) -> Spec:
        spec.need("purpose", "a reward model, or a function of (prompts, completions)")
        return policy_and_reference(spec)

    def learner(self, spec: Spec, rng: Rng) -> OnlineDPOLearner:
        return OnlineDPOLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> RolloutSource:
        return RolloutSource.of(spec, prompts_per_batch=self.prompts_per_batch, n=2, max_new_tokens=self.max_new_tokens)


def by_order(rewards: Tensor, rng: Rng) -> Tensor:
    """(g,) +1 where the first of two scores (g, 2) is higher, -1 where the second is, 0 for a tie."""
    return (rewards[:, 0] - rewards[:, 1]).sign()


def by_bradley_terry(rewards: Tensor, rng: Rng) -> Tensor:
    """(g,) +1 with probability sigmoid(first - second), else -1."""
    chance = (rewards[:, 0] - rewards[:, 1]).sigmoid()
    return torch.bernoulli(chance, generator=rng.at("labels").torch(rewards.device)) * 2 - 1


LABELS: dict[str, Callable[[Tensor, Rng], Tensor]] = {"order": by_order, "bradley_terry": by_bradley_terry}


class OnlineDPOLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: OnlineDPO, model: LanguageModel):
        self.method, self.model = method, model
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Rollouts, rng: Rng, micro: int = 1) -> Metrics:
        m = self.method
        labels = LABELS[m.label](batch.rewards.view(-1, 2), rng)
        reference = batch.reference_log_probs.sum(-1)
        rows = torch.arange(len(batch), device=labels.device).view(-1, 2)
        orders = [torch.randperm(len(rows), generator=rng.at("epoch", epoch).torch()) for epoch in range(m.epochs)]
        loss = norm = torch.zeros((), device=labels.device)
        steps = 0
        for index in (index for order in orders for index in order.to(labels.device).split(m.minibatch_prompts)):
            sums = Accumulator()
            for part in index.tensor_split(min(micro, len(index))):
                chosen = batch[rows[part].flatten()]
                tokens = token_log_probs(self.model, chosen.sequences)
                if steps == 0:
                    first_ratio(tokens, chosen.sampler_log_probs, chosen.sequences.mask)
                ratios = preferences.anchored(tokens.sum(-1).view(-1, 2), (1.0, reference[rows[part]]))
                label = labels[part]
                losses = preferences.sigmoid(label * preferences.margin(ratios), m.beta)
                sums.add((losses * label.abs()).sum(), len(part))
            loss = loss + sums.divide(self.parameters)
            norm = norm + step_optimizer(self, m.warmup_steps, m.max_grad_norm)
            steps += 1
        lengths = (batch.sequences.lengths - batch.sequences.boundaries).float()
        return {
            "reward": batch.rewards.mean(),
            "ties": (labels == 0).float().mean(),
            "kl": batch.log_ratios.sum(-1).mean(),
            "loss": loss / steps,
            "length": lengths.mean(),
            "grad_norm": norm / steps,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
