r"""SFT: supervised fine-tuning, the maximum likelihood of completions given their prompts.

    L = -E log pi(y|x) / |y|   (mean over the completion tokens of the batch, end token included)

On preference pairs it imitates the chosen texts: the "Preferred-FT" baseline of DPO's paper (arXiv 2305.18290).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Demonstrations, Preferences
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.setup import OPTIMIZERS, prepare_groups, step_optimizer
from telos.lm.tokens import Ranked, TokenGroups

BASELINE = {
    "method": "SFT",
    "title": "Supervised fine-tuning (Preferred-FT on preference pairs)",
    "reference": "arXiv 2305.18290, section 6",
    "year": 2023,
    "purpose": ["demonstration"],
    "product": "Generator",
    "data": "prompt-completion pairs, or preference pairs (the chosen texts)",
    "summary": "Maximum likelihood of completions; on preference pairs, of the chosen ones.",
    "equations": [
        r"\log\pi_\theta(y\mid x)=\sum_t\log\pi_\theta(y_t\mid x,y_{<t})",
        r"\mathcal L=-\frac{\mathbb E\left[\log\pi_\theta(y\mid x)\right]}{\mathbb E\left[|y|\right]}",
    ],
    "deviations": [],
}


@dataclass(frozen=True)
class SFT(Method):
    """Supervised fine-tuning of a language model. Given: model, lora (adapter rank)."""

    data: ClassVar[type] = Demonstrations
    takes: ClassVar[tuple[str, ...]] = ("model", "lora")
    shares: ClassVar[bool] = True
    accepts: ClassVar[tuple[type, ...]] = (Preferences,)

    learning_rate: float = 1e-5
    """AdamW step size. Usual: 1e-5 to 2e-5; 1e-3 suits the bundled 0.1 M model."""
    warmup_steps: int = 0
    """Linear warm-up, then constant. Ours."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. Ours."""
    batch_size: int = 64
    """Texts an update. DPO's paper: 64."""
    max_length: int | None = None
    """Tokens of prompt and completion; the prompt's beginning is cut first. None: the context."""
    overlong: Literal["refuse", "truncate"] = "truncate"
    """What happens to a completion that alone is too long."""
    boundary: Literal["joint", "separate"] = "joint"
    """joint: a prompt that ends inside a token is an error; separate: prompt and completion are tokenised apart."""

    def prepare(self, spec: Spec) -> Spec:
        spec = prepare_groups(spec, self, reference=False)
        groups: TokenGroups = spec.data
        # Of a pair the chosen text; its partner was needed to find an implicit prompt.
        return spec.replace(data=replace(groups, completions=[texts[:1] for texts in groups.completions]))

    def learner(self, spec: Spec, rng: Rng) -> SFTLearner:
        return SFTLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> Epochs:
        groups: TokenGroups = spec.data
        return Epochs(groups, self.batch_size, spec.rng.at("order"), groups.lengths)


class SFTLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: SFT, model: LanguageModel):
        self.method, self.model = method, model
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Ranked, rng: Rng, micro: int = 1) -> Metrics:
        sums = Accumulator()
        for part in split(batch, micro):
            sequences = part.sequences.flat()
            sums.add(-token_log_probs(self.model, sequences).sum(), sequences.mask.sum())
        loss = sums.divide(self.parameters)
        return {"loss": loss, "grad_norm": step_optimizer(self, self.method.warmup_steps, self.method.max_grad_norm)}

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
