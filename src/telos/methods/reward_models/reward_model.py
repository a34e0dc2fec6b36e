r"""Reward model: the Bradley-Terry likelihood of preference pairs under a scalar score of whole texts.

    L = -E log sigma(r(x, y_w) - r(x, y_l)) + centre E [(r(x, y_w) + r(x, y_l))^2]

Bradley and Terry 1952; for texts Stiennon et al. 2020 (arXiv 2009.01325), Ouyang et al. 2022 (arXiv 2203.02155).
Scores are identified up to a shift for each prompt; `centre` > 0 (Eisenstein et al. 2023, arXiv 2312.09244) takes it
out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Preferences
from telos.lm.products import RewardScorer
from telos.lm.setup import OPTIMIZERS, prepare_groups, step_optimizer
from telos.lm.tokens import Ranked, TokenGroups
from telos.ops import preferences

if TYPE_CHECKING:
    from torch import Tensor

BASELINE = {
    "method": "Reward model",
    "title": "Learning to summarize from human feedback (Bradley-Terry reward model)",
    "reference": "arXiv 2009.01325",
    "year": 2020,
    "purpose": ["preference"],
    "product": "Scorer",
    "data": "preference pairs",
    "summary": "A scalar score of whole texts, fitted to pairs by logistic regression.",
    "equations": [
        r"P(y_w\succ y_l\mid x)=\sigma\left(r(x,y_w)-r(x,y_l)\right)",
        r"\mathcal L=-\mathbb E\left[\log\sigma\left(r(x,y_w)-r(x,y_l)\right)\right]"
        r"+c\,\mathbb E\left[\left(r(x,y_w)+r(x,y_l)\right)^2\right]",
    ],
    "deviations": ["The score starts at zero for every text instead of at random."],
}


@dataclass(frozen=True)
class RewardModel(Method):
    """A Bradley-Terry reward model on a language model's body. Given: model."""

    data: ClassVar[type] = Preferences
    takes: ClassVar[tuple[str, ...]] = ("model",)
    shares: ClassVar[bool] = True

    learning_rate: float = 1e-5
    """AdamW step size. arXiv 2009.01325: 1.5e-5; 1e-3 suits the bundled 0.1 M model."""
    centre: float = 0.0
    """Weight of the squared sum of scores, >= 0: pulls each pair's mean to zero. arXiv 2312.09244: 0.01."""
    warmup_steps: int = 0
    """Linear warm-up, then constant. Ours."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. Ours."""
    batch_size: int = 64
    """Pairs an update. arXiv 2009.01325: 64."""
    max_length: int | None = None
    """Tokens of prompt and completion; the prompt's beginning is cut first. None: the context."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """What happens to a pair whose completion alone is too long."""
    boundary: Literal["joint", "separate"] = "joint"
    """joint: a prompt that ends inside a token is an error; separate: prompt and completion are tokenised apart."""

    def prepare(self, spec: Spec) -> Spec:
        return prepare_groups(spec, self, reference=False)

    def learner(self, spec: Spec, rng: Rng) -> RewardLearner:
        texts = {"boundary": self.boundary, "max_length": self.max_length}
        return RewardLearner(self, RewardScorer.from_language_model(spec.given["model"], rng, **texts))

    def source(self, spec: Spec) -> Epochs:
        groups: TokenGroups = spec.data
        return Epochs(groups, self.batch_size, spec.rng.at("order"), groups.lengths)


def bradley_terry_loss(scores: Tensor, centre: float) -> tuple[Tensor, int]:
    """Summed negative log-likelihood of (chosen, rejected) scores (B, 2), and the count."""
    likelihood = preferences.sigmoid(scores[:, 0] - scores[:, 1], 1.0)
    return (likelihood + centre * scores.sum(-1).square()).sum(), len(scores)


class RewardLearner(Learner):
    """The scorer and its optimiser."""

    def __init__(self, method: RewardModel, scorer: RewardScorer):
        self.method, self.scorer = method, scorer
        self.parameters = list(scorer.parameters())
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Ranked, rng: Rng, micro: int = 1) -> Metrics:
        sums = Accumulator()
        correct = torch.zeros((), device=batch.reference.device)
        for part in split(batch, micro):
            scores = self.scorer.score_tokens(part.sequences)
            sums.add(*bradley_terry_loss(scores, self.method.centre))
            correct = correct + (scores[:, 0] > scores[:, 1]).sum() + 0.5 * (scores[:, 0] == scores[:, 1]).sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, self.method.warmup_steps, self.method.max_grad_norm)
        (correct,) = sums.totals(correct)
        return {"loss": loss, "accuracy": correct / len(batch), "grad_norm": norm}

    def product(self) -> RewardScorer:
        return self.scorer
