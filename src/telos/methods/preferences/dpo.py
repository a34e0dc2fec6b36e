r"""DPO: fits a language model to preferences with one classification loss; no reward model, no sampling.

Rafailov et al. 2023, arXiv 2305.18290. The optimum of E[r] - beta KL(pi || pi_ref) satisfies
r = beta log(pi / pi_ref) + beta log Z(x); Z cancels in a difference, so with Bradley-Terry preferences

    h = [log pi(y_w|x) - log pi_ref(y_w|x)] - [log pi(y_l|x) - log pi_ref(y_l|x)]
    L = -E log sigma(beta h)

log pi(y|x) is the *sum* over the completion's tokens, end token included, prompt and padding excluded.

What differs from the paper and why:
- pi_ref's log-probs are computed once before training, by the same code and without dropout, instead of in every
  step: the numbers are the same and a step costs half.
- IPO sums log-probs by default, as the paper's own repository does; `average_log_probs` gives the per-token average
  that IPO's authors later recommended.
- The default learning rate is for AdamW and small models; `optimizer="rmsprop"`, 1e-6 are the paper's.
- Models for TL;DR (GPT-J-6B) and HH (Pythia-2.8B) and the claims' figures could not be checked against the paper's text
  here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Preferences, Rankings
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.setup import OPTIMIZERS, prepare_groups, step_optimizer
from telos.lm.tokens import Ranked, TokenGroups
from telos.ops import preferences

PAPER = {
    "method": "DPO",
    "title": "Direct Preference Optimization: Your Language Model is Secretly a Reward Model",
    "arxiv": "2305.18290",
    "year": 2023,
    "url": "https://arxiv.org/abs/2305.18290",
    "purpose": ["preference"],
    "product": "Generator",
    "data": "preference pairs",
    "summary": "Turns preference pairs into a policy with one logistic loss on log-ratios to a frozen reference.",
    "claim": "At equal KL to the reference, DPO earns more gold reward than RL on a learned reward model, than "
    "best-of-4 and than fine-tuning on the chosen texts.",
    "paper_claim": {
        "where": "Figure 2, left (IMDb sentiment)",
        "text": "At every KL to the reference DPO earns at least the reward of PPO with a learned reward model, and "
        "even that of PPO which is given the true reward.",
        "value": "a plot; no number is given for the frontier. On TL;DR a win rate of about 61 % against reference "
        "summaries, PPO's best about 57 % (unverified)",
        "data": "beginnings of IMDb reviews, scored by a sentiment classifier; also TL;DR summaries and Anthropic HH "
        "dialogues",
        "model": "GPT-2-large on IMDb; GPT-J-6B on TL;DR and Pythia-2.8B on HH (the last two unverified)",
        "mechanism": "Pairs come from the reference itself and a known reward labels them with noise, so both ways "
        "to use them (a loss on the policy, or a reward model and RL) can be scored by the truth at equal KL. RLOO "
        "stands for PPO. Human labels, models of billions and RL on the true reward are not tested.",
    },
    "equations": [
        r"\hat r(x,y)=\beta\log\frac{\pi_\theta(y\mid x)}{\pi_{\mathrm{ref}}(y\mid x)},\quad"
        r"\log\pi_\theta(y\mid x)=\sum_t\log\pi_\theta(y_t\mid x,y_{<t})",
        r"h=\log\frac{\pi_\theta(y_w\mid x)}{\pi_{\mathrm{ref}}(y_w\mid x)}"
        r"-\log\frac{\pi_\theta(y_l\mid x)}{\pi_{\mathrm{ref}}(y_l\mid x)}",
        r"\mathcal L=-\mathbb E\left[\log\sigma(\beta h)\right]",
        r"\mathcal L_{\mathrm{cDPO}}=-\mathbb E\left[(1-\epsilon)\log\sigma(\beta h)"
        r"+\epsilon\log\sigma(-\beta h)\right]",
        r"\mathcal L_{\mathrm{IPO}}=\mathbb E\left[\left(h-\frac{1}{2\beta}\right)^2\right]",
        r"\mathcal L_{\mathrm{PL}}=-\mathbb E\left[\sum_{k=1}^{K}\log\frac{\exp\hat r(x,y_k)}"
        r"{\sum_{j=k}^{K}\exp\hat r(x,y_j)}\right],\quad y_1\succ\dots\succ y_K",
    ],
    "deviations": [
        "Reference log-probs are computed once, not in every step.",
        "IPO sums log-probs unless average_log_probs is set.",
        "AdamW by default; RMSprop at 1e-6 is the paper's.",
    ],
    "traps": [
        "Averaging log-probs over tokens rescales beta by the length.",
        "The chosen text's log-prob often falls while the margin grows: watch the margin.",
        "Cutting the completion changes the preference: the prompt is cut first.",
    ],
    "terms": ["RLHF", "RLAIF", "alignment", "human feedback", "Bradley-Terry", "RL-free", "contrastive"],
    "usage": [
        "telos fit dpo --data pairs.jsonl --model telos:tiny --steps 40 --batch-size 16 --learning-rate 3e-4 "
        "--warmup-steps 0 --out runs/dpo",
        "telos eval runs/dpo --data pairs.jsonl",
        'pairs = telos.load("pairs.jsonl")',
        'policy = telos.DPO(beta=0.1, learning_rate=3e-4, warmup_steps=0).fit(pairs, model="telos:tiny", steps=20)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit dpo --data HuggingFaceH4/ultrafeedback_binarized?split=train_prefs --model "
    "alignment-handbook/zephyr-7b-sft-full --beta 0.05 --learning-rate 5e-7 --batch-size 64 --micro 16 --steps 1000",
}


@dataclass(frozen=True)
class DPO(Method):
    """Direct preference optimisation on pairs of texts.

    Given: model (path, name or object), reference (the same, default: the model as it was), lora (adapter rank).
    """

    data: ClassVar[type] = Preferences
    takes: ClassVar[tuple[str, ...]] = ("model", "reference", "lora")
    shares: ClassVar[bool] = True

    beta: float = 0.1
    """Strength of the pull to the reference, > 0: larger stays closer. Paper: 0.1 (HH), 0.5 (TL;DR)."""
    loss: Literal["sigmoid", "cdpo", "ipo"] = "sigmoid"
    """sigmoid (DPO), cdpo (noisy labels), ipo (squared, no saturation). Paper: sigmoid."""
    label_smoothing: float = 0.0
    """cdpo only: probability that a label is wrong, in [0, 0.5). Repository: 0."""
    reference_free: bool = False
    """Drop the reference from the margin (a uniform reference). Repository: False."""
    average_log_probs: bool = False
    """Mean instead of sum over tokens; beta must then grow with the length. TRL does so for ipo. Paper: False."""
    learning_rate: float = 1e-5
    """Step size. Paper: 1e-6 with RMSprop for models of billions; 3e-4 suits the bundled 0.1 M model."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """adamw (no weight decay) or rmsprop. Paper: rmsprop."""
    warmup_steps: int = 150
    """Linear warm-up, then constant. Paper: 150."""
    max_grad_norm: float = 10.0
    """Clip of the global gradient norm. Repository: 10."""
    batch_size: int = 64
    """Pairs an update. Paper: 64."""
    max_length: int | None = None
    """Tokens of prompt and completion; the prompt's beginning is cut first. None: the context. Repository: 512."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """What happens to a pair whose completion alone is too long. Repository: truncate."""
    boundary: Literal["joint", "separate"] = "joint"
    """joint: a prompt may not end inside a token; separate: prompt and completion are tokenised apart. telos: joint."""

    def __post_init__(self) -> None:
        check_beta(self.beta)
        if self.loss not in LOSSES:
            raise TelosError("no such loss", expected=" or ".join(LOSSES), got=str(self.loss))
        if not 0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.loss != "cdpo"):
            raise TelosError(
                "label_smoothing is out of range, or without effect",
                expected='0 <= label_smoothing < 0.5, and loss="cdpo" if it is not 0',
                got=f'label_smoothing={self.label_smoothing}, loss="{self.loss}"',
            )

    def prepare(self, spec: Spec) -> Spec:
        return prepare_groups(spec, self, average=self.average_log_probs, reference=not self.reference_free)

    def learner(self, spec: Spec, rng: Rng) -> DPOLearner:
        return DPOLearner(self, spec.given["model"], LOSSES[self.loss])

    def source(self, spec: Spec) -> Epochs:
        groups: TokenGroups = spec.data
        return Epochs(groups, self.batch_size, spec.rng.at("order"), groups.lengths)


@dataclass(frozen=True)
class DPORanking(Method):
    """DPO on rankings of K completions by the Plackett-Luce likelihood (appendix A.3); K = 2 equals DPO.

    Given: model, reference, lora, as for DPO.
    """

    data: ClassVar[type] = Rankings
    takes: ClassVar[tuple[str, ...]] = ("model", "reference", "lora")
    shares: ClassVar[bool] = True

    beta: float = 0.1
    """Strength of the pull to the reference, > 0. Paper: 0.1 for pairs."""
    learning_rate: float = 1e-5
    """Step size. telos: as DPO."""
    optimizer: Literal["adamw", "rmsprop"] = "adamw"
    """adamw or rmsprop. Paper: rmsprop."""
    warmup_steps: int = 150
    """Linear warm-up, then constant. Paper: 150."""
    max_grad_norm: float = 10.0
    """Clip of the global gradient norm. Repository: 10."""
    batch_size: int = 64
    """Rankings an update. Paper: 64 pairs."""
    max_length: int | None = None
    """Tokens of prompt and completion. None: the context. telos: as DPO."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """What happens to a group with a completion that is too long. telos: as DPO."""
    boundary: Literal["joint", "separate"] = "joint"
    """How prompt and completion are tokenised. telos: as DPO."""
    average_log_probs: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_beta(self.beta)

    def prepare(self, spec: Spec) -> Spec:
        return prepare_groups(spec, self)

    def learner(self, spec: Spec, rng: Rng) -> DPOLearner:
        return DPOLearner(self, spec.given["model"], ranking_loss)

    def source(self, spec: Spec) -> Epochs:
        groups: TokenGroups = spec.data
        return Epochs(groups, self.batch_size, spec.rng.at("order"), groups.lengths)


def check_beta(beta: float) -> None:
    """Raises TelosError unless beta > 0."""
    if not beta > 0:
        raise TelosError("beta is out of range", expected="beta > 0", got=str(beta))


def sigmoid_loss(ratios: Tensor, method: DPO) -> Tensor:
    """(B,) -log sigma(beta h) for log-ratios (B, 2)."""
    return preferences.sigmoid(preferences.margin(ratios), method.beta)


def cdpo_loss(ratios: Tensor, method: DPO) -> Tensor:
    """(B,) the same for labels that are wrong with probability label_smoothing."""
    return preferences.smoothed_sigmoid(preferences.margin(ratios), method.beta, method.label_smoothing)


def ipo_loss(ratios: Tensor, method: DPO) -> Tensor:
    """(B,) (h - 1 / (2 beta))^2."""
    return preferences.squared(preferences.margin(ratios), method.beta)


def ranking_loss(ratios: Tensor, method: DPORanking) -> Tensor:
    """(B,) Plackett-Luce negative log-likelihood of implicit rewards beta log(pi / pi_ref), ratios (B, K)."""
    return preferences.plackett_luce(method.beta * ratios)


LOSSES: dict[str, Callable[[Tensor, DPO], Tensor]] = {"sigmoid": sigmoid_loss, "cdpo": cdpo_loss, "ipo": ipo_loss}


class DPOLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: DPO | DPORanking, model: LanguageModel, loss: Callable[..., Tensor]):
        self.method, self.model, self.loss = method, model, loss
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS[method.optimizer](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Ranked, rng: Rng, micro: int = 1) -> Metrics:
        sums = Accumulator()
        correct = chosen = margin = torch.zeros((), device=self.model.device)
        for part in split(batch, micro):
            log_probs = sequence_log_probs(self.model, part.sequences, self.method.average_log_probs)
            ratios = preferences.anchored(log_probs, (1.0, part.reference))
            sums.add(self.loss(ratios, self.method).sum(), len(part))
            best, worst = ratios.detach()[:, 0], ratios.detach()[:, -1]
            correct = correct + (best > worst).sum() + 0.5 * (best == worst).sum()
            margin, chosen = margin + (best - worst).sum(), chosen + best.sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, self.method.warmup_steps, self.method.max_grad_norm)
        correct, margin, chosen = sums.totals(correct, margin, chosen)
        count = len(batch)
        return {
            "loss": loss,
            "accuracy": correct / count,
            "margin": self.method.beta * margin / count,
            "chosen_log_ratio": chosen / count,
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
