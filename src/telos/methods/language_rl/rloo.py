r"""RLOO: REINFORCE with a leave-one-out baseline, for language models scored by any purpose.

Ahmadian et al. 2024, arXiv 2402.14740. For n completions y_1..y_n of a prompt, with the KL inside the reward:

    R_i = r(x, y_i) - beta [log pi(y_i|x) - log pi_ref(y_i|x)]
    A_i = R_i - mean_{j != i} R_j
    L   = -E A_i log pi(y_i|x)

R_i is a constant: the gradient of the KL term is the score-function one. Every batch is used for one update, so the
ratio to the sampler is 1, which is checked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import Rollouts, RolloutSource, first_ratio
from telos.lm.setup import OPTIMIZERS, policy_and_reference, step_optimizer
from telos.ops.policy_gradients import leave_one_out, reinforce

BASELINE = {
    "method": "RLOO",
    "title": "Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs",
    "reference": "arXiv 2402.14740",
    "year": 2024,
    "purpose": ["reward"],
    "product": "Generator",
    "data": "prompts + purpose",
    "summary": "REINFORCE on whole completions with the other samples' mean as baseline.",
    "equations": [
        r"R_i=r(x,y_i)-\beta\log\frac{\pi_{\mathrm{old}}(y_i\mid x)}{\pi_{\mathrm{ref}}(y_i\mid x)},\quad "
        r"y_1,\dots,y_n\sim\pi_{\mathrm{old}}(\cdot\mid x),\quad\pi_{\mathrm{old}}=\pi_\theta",
        r"A_i=R_i-\frac{1}{n-1}\sum_{j\ne i}R_j",
        r"\mathcal L=-\mathbb E\left[A_i\log\pi_\theta(y_i\mid x)\right]",
    ],
    "deviations": [],
}


@dataclass(frozen=True)
class RLOO(Method):
    """REINFORCE leave-one-out. Samples are drawn at temperature 1, from the policy that the loss is about.

    Given: model, purpose (a Scorer or a function of (prompts, completions)), reference (default: the model as it was).
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")

    beta: float = 0.05
    """KL coefficient, >= 0: larger stays closer to the reference. Paper: 0.03 to 0.1."""
    samples_per_prompt: int = 4
    """Completions of each prompt, n >= 2: more lower the variance. Paper: 2 or 4."""
    prompts_per_batch: int = 16
    """Prompts an update. Paper: batch of 512; 16 suits the bundled model."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 1e-6; 2e-4 suits the bundled model."""
    warmup_steps: int = 0
    """Linear warm-up. Paper: 3 % of the steps."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. Ours."""
    max_new_tokens: int = 64
    """Longest completion. Paper: 53 (TL;DR)."""

    def __post_init__(self) -> None:
        if self.beta < 0 or self.samples_per_prompt < 2:
            raise TelosError(
                "beta or samples_per_prompt is out of range",
                expected="beta >= 0, samples_per_prompt >= 2",
                got=f"beta={self.beta}, samples_per_prompt={self.samples_per_prompt}",
            )

    def prepare(self, spec: Spec) -> Spec:
        spec.need("purpose", "a reward model, or a function of (prompts, completions)")
        return policy_and_reference(spec)

    def learner(self, spec: Spec, rng: Rng) -> RLOOLearner:
        return RLOOLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> RolloutSource:
        return RolloutSource.of(
            spec,
            prompts_per_batch=self.prompts_per_batch,
            n=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
        )


class RLOOLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: RLOO, model: LanguageModel):
        self.method, self.model = method, model
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Rollouts, rng: Rng, micro: int = 1) -> Metrics:
        beta, n = self.method.beta, self.method.samples_per_prompt
        sums = Accumulator()
        kl = batch.log_ratios.sum(-1)
        advantages = leave_one_out((batch.rewards - beta * kl).view(-1, n)).flatten()
        parts = split(batch, micro)
        for part, advantage in zip(parts, advantages.tensor_split(len(parts)), strict=True):
            tokens = token_log_probs(self.model, part.sequences)
            first_ratio(tokens, part.sampler_log_probs, part.sequences.mask)
            sums.add(*reinforce(tokens.sum(-1), advantage))
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, self.method.warmup_steps, self.method.max_grad_norm)
        lengths = (batch.sequences.lengths - batch.sequences.boundaries).float()
        return {
            "reward": batch.rewards.mean(),
            "kl": kl.mean(),
            "loss": loss,
            "length": lengths.mean(),
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
