r"""CoPG: a policy gradient on fixed, scored responses, written as one regression of log-ratios on rewards.

Flet-Berliac et al. 2024, arXiv 2406.19185. With R_b(y) = R(y) - b ln(pi(y) / pi_ref(y)), for a pair (y, y') of any
origin, to be maximised and differentiated through R_{beta/2}:

    l(y, y') = (R_{beta/2}(y) - R_{beta/2}(y')) (ln pi(y)/pi_ref(y) - ln pi(y')/pi_ref(y'))
    grad l   = (R_beta(y) - R_beta(y')) (grad ln pi(y) - grad ln pi(y'))
    l        = [ (dR)^2 - (dR - beta h)^2 ] / (2 beta),    dR = R(y) - R(y'),  h = the second factor of l

so that (dR - beta h)^2 / (2 beta) is minimised here: the same gradient, bounded below. Its only minimiser is
pi_ref exp(R / beta) / Z, wherever the pairs come from. Two samples of pi itself give RLOO with k = 2; rewards of +1/4
and -1/4 give IPO with tau = beta. For k scored responses: the sum over all pairs divided by k - 1.

What differs from the paper and why:
- Warm-up and then a constant rate; pi_ref's log-probs are computed once before training.
- The off-policy gradient with a value baseline needs E_pi[R] at every step: exact for a few arms (the pure functions
  here), not known from a fixed set of texts, where `baseline` is one constant for the whole run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Record
from telos.data.scored import ScoredTexts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.setup import OPTIMIZERS, prepare_groups, step_optimizer
from telos.lm.tokens import Sequences, TokenGroups
from telos.ops import preferences

PAPER = {
    "method": "CoPG",
    "title": "Contrastive Policy Gradient: Aligning LLMs on sequence-level scores in a supervised-friendly fashion",
    "arxiv": "2406.19185",
    "year": 2024,
    "url": "https://arxiv.org/abs/2406.19185",
    "purpose": ["reward", "score"],
    "product": "Generator",
    "data": "scored response pairs",
    "summary": "Policy gradient for scored pairs from any source, written as one regression loss whose built-in "
    "baseline keeps it unbiased off-policy.",
    "claim": "On a three-armed bandit with off-policy pairs CoPG's regret goes to zero, while IPO and off-policy "
    "gradients with a value baseline keep a bias.",
    "paper_claim": {
        "where": "the bandit's figure; the figures on TL;DR",
        "text": "On a bandit whose pairs come from two poor policies CoPG's regret goes to zero. IPO converges to "
        "another policy, a policy gradient without a baseline ends below the initial policy, one with a value baseline "
        "improves but stays off the optimum. On summaries CoPG reaches a higher reward than IPO and DPO at their best "
        "settings.",
        "value": "figures; no numbers are given. Exact optima in our notes: regret 0 for CoPG, 0.0148 with the value "
        "baseline, 0.1525 for IPO, 0.638 without a baseline, 0.2919 for the initial policy",
        "data": "a bandit with three arms; TL;DR pairs scored by a reward model",
        "model": "a softmax over three arms; Llama-2-7B, fine-tuned on TL;DR",
        "mechanism": "The bandit is the paper's own, with its rewards, behaviours and optimiser, and regret is exact. "
        "Summaries, a learned reward model and a model of billions are not tested; the standard scale repeats the "
        "comparison on generated sentences with a known reward.",
    },
    "equations": [
        r"R_b(y)=R(y)-b\log\frac{\pi_\theta(y\mid x)}{\pi_{\mathrm{ref}}(y\mid x)}",
        r"h=\log\frac{\pi_\theta(y\mid x)}{\pi_{\mathrm{ref}}(y\mid x)}"
        r"-\log\frac{\pi_\theta(y'\mid x)}{\pi_{\mathrm{ref}}(y'\mid x)},\quad\Delta R=R(y)-R(y')",
        r"\ell=\left(R_{\beta/2}(y)-R_{\beta/2}(y')\right)h",
        r"\nabla\ell=\left(R_\beta(y)-R_\beta(y')\right)"
        r"\left(\nabla\log\pi_\theta(y\mid x)-\nabla\log\pi_\theta(y'\mid x)\right)",
        r"\mathcal L=\frac{1}{2\beta}\,\mathbb E\left[\left(\Delta R-\beta h\right)^2\right]",
        r"\mathcal L_k=\frac{1}{2\beta(k-1)}\,\mathbb E\left[\sum_{i<j}"
        r"\left(\Delta R_{ij}-\beta h_{ij}\right)^2\right]",
    ],
    "deviations": [
        "A constant rate after the warm-up.",
        "Reference log-probs are computed once, not in every step.",
        "The off-policy comparator's value baseline is a constant on texts; exact only where responses can be listed.",
    ],
    "traps": [
        "beta, not beta / 2, inside the differentiated objective moves the optimum to that of 2 beta.",
        "The squared form depends on the scale of the rewards: normalise them, or tune beta and the step size anew.",
        "Only differences within a prompt count: responses to different prompts are never paired.",
        "The validation loss does not show a collapse at small beta: generate and look.",
        "Best-against-worst pairs are not independent samples of two policies.",
    ],
    "terms": ["RLHF", "offline RL", "reward regression", "direct alignment", "REINFORCE", "control variate"],
    "usage": [
        "telos fit copg --data scored.jsonl --model telos:tiny --beta 0.3 --steps 40 --batch-size 16 "
        "--learning-rate 3e-4 --warmup-steps 0 --out runs/copg",
        'scored = telos.load("scored.jsonl", kind=telos.ScoredTexts)',
        "method = telos.CoPG(beta=0.3, learning_rate=3e-4, warmup_steps=0)",
        'policy = method.fit(scored, model="telos:tiny", steps=20)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit copg --data scored-tldr.jsonl --model meta-llama/Llama-2-7b-hf --beta 0.06 --learning-rate "
    "1e-6 --batch-size 128 --micro 32 --max-grad-norm 1.0 --steps 1450",
}


@dataclass(frozen=True)
class CoPG(Method):
    """Contrastive policy gradient on scored texts.

    Given: model (path, name or object), reference (the same, default: the model as it was), lora (adapter rank).
    """

    data: ClassVar[type] = ScoredTexts
    takes: ClassVar[tuple[str, ...]] = ("model", "reference", "lora")
    shares: ClassVar[bool] = True

    beta: float = 0.06
    """Strength of the pull to the reference, > 0, in the unit of the rewards. Paper: 0.06 (best of 0.01 to 1)."""
    form: Literal["copg", "copg_weighted", "pg"] = "copg"
    """copg: squared; copg_weighted: constant weights times log-probs, the same gradient; pg: the biased off-policy
    gradient that the paper compares with. Paper: copg."""
    rewards: Literal["given", "order"] = "given"
    """given: the scores; order: +1/4 for the higher and -1/4 for the lower of a pair, which is IPO. Paper: given."""
    baseline: float = 0.0
    """pg only: a constant that is subtracted from the rewards, such as the mean reward of the policy. Paper: 0, or
    the policy's own mean at every step."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 1e-6 for 7B models; telos: 3e-4 suits the bundled 0.1 M model."""
    warmup_steps: int = 150
    """Linear warm-up, then constant. telos: as DPO; the paper warms up a tenth of the run."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm; the squared form needs one. telos: 1."""
    batch_size: int = 128
    """Groups of responses an update. Paper: 128 pairs."""
    max_length: int | None = None
    """Tokens of prompt and completion; the prompt's beginning is cut first. None: the context. telos: as DPO."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """What happens to a group whose completion alone is too long. telos: refuse."""
    boundary: Literal["joint", "separate"] = "joint"
    """joint: a prompt may not end inside a token; separate: prompt and completion are tokenised apart. telos: joint."""

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.form not in LOSSES or self.rewards not in ("given", "order"):
            raise TelosError(
                "an option of CoPG is out of range",
                expected=f"beta > 0; form {' or '.join(LOSSES)}; rewards given or order",
                got=f"beta={self.beta}, form={self.form!r}, rewards={self.rewards!r}",
            )
        if self.form == "pg" and self.rewards == "order":
            raise TelosError("the policy gradient needs rewards, not an order", fix='leave rewards at "given"')
        if self.baseline and self.form != "pg":
            raise TelosError("baseline is without effect", expected='form="pg"', got=f'form="{self.form}"')

    def prepare(self, spec: Spec) -> Spec:
        data: ScoredTexts = spec.data
        if not data.single:
            raise TelosError(
                f"{data.origin or 'the data'}: each score has {data.attributes} numbers",
                expected="one reward for each completion", fix="weigh the attributes into one number",
            )  # fmt: skip
        ready = prepare_groups(spec.replace(data=data.groups()), self)
        groups: TokenGroups = ready.data
        rewards = torch.tensor([data.scores[row] for row in groups.rows], dtype=torch.float32)
        return ready.replace(data=ScoredGroups(groups, rewards))

    def learner(self, spec: Spec, rng: Rng) -> CoPGLearner:
        return CoPGLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> Epochs:
        data: ScoredGroups = spec.data
        return Epochs(data, self.batch_size, spec.rng.at("order"), data.groups.lengths)


def differences(values: Tensor) -> Tensor:
    """(B, P) value_i - value_j of all P = K (K - 1) / 2 pairs i < j of (B, K)."""
    first, second = torch.triu_indices(values.shape[-1], values.shape[-1], 1, device=values.device)
    return values[..., first] - values[..., second]


def ordered(rewards: Tensor) -> Tensor:
    """(B, P) differences of +1/4 and -1/4 by order: 1/2 where the first of a pair is higher, 0 for a tie."""
    return 0.5 * differences(rewards).sign()


def copg_loss(ratios: Tensor, difference: Tensor, beta: float) -> Tensor:
    """(B,) sum over pairs of (dR - beta h)^2 / (2 beta), divided by K - 1.

    Args:
        ratios: (B, K) log pi / pi_ref. difference: (B, P) of the rewards, as `differences` orders the pairs.
    """
    h = differences(ratios)
    losses = preferences.regression(h.flatten(), beta, difference.flatten()).view(h.shape)
    return losses.sum(-1) / (ratios.shape[-1] - 1)


def copg_weighted_loss(ratios: Tensor, difference: Tensor, beta: float) -> Tensor:
    """(B,) the same gradient by constant weights: -(R_beta(y) - R_beta(y')) (ln pi(y) - ln pi(y'))."""
    h = differences(ratios)
    return -((difference - beta * h.detach()) * h).sum(-1) / (ratios.shape[-1] - 1)


def copg_objective(ratios: Tensor, difference: Tensor, beta: float) -> Tensor:
    """(B,) l as the paper prints it, with beta / 2, to be maximised."""
    h = differences(ratios)
    return ((difference - beta / 2 * h) * h).sum(-1) / (ratios.shape[-1] - 1)


def off_policy_loss(ratios: Tensor, rewards: Tensor, beta: float, baseline: Tensor | float) -> Tensor:
    """(B,) -sum over responses of (R_beta(y) - baseline) ln pi(y), constant weights; biased unless on-policy."""
    return -((rewards - beta * ratios.detach() - baseline) * ratios).sum(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor, CoPG], Tensor]] = {
    "copg": lambda ratios, rewards, m: copg_loss(ratios, DIFFERENCES[m.rewards](rewards), m.beta),
    "copg_weighted": lambda ratios, rewards, m: copg_weighted_loss(ratios, DIFFERENCES[m.rewards](rewards), m.beta),
    "pg": lambda ratios, rewards, m: off_policy_loss(ratios, rewards, m.beta, m.baseline),
}
DIFFERENCES: dict[str, Callable[[Tensor], Tensor]] = {"given": differences, "order": ordered}


@dataclass(frozen=True)
class ScoredBatch(Record):
    """Groups of K completions: sequences (B, K, T), reference log-probs (B, K) and rewards (B, K)."""

    sequences: Sequences
    reference: Tensor
    rewards: Tensor


@dataclass(frozen=True)
class ScoredGroups:
    """Token groups with their rewards (N, K), as a data set for `Epochs`."""

    groups: TokenGroups
    rewards: Tensor = field(repr=False)

    def __len__(self) -> int:
        return len(self.groups)

    def batch(self, index: np.ndarray) -> ScoredBatch:
        """The training batch at `index`."""
        ranked = self.groups.batch(index)
        rewards = self.rewards[torch.as_tensor(index)].to(ranked.reference.device)
        return ScoredBatch(ranked.sequences, ranked.reference, rewards)


class CoPGLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: CoPG, model: LanguageModel):
        self.method, self.model = method, model
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: ScoredBatch, rng: Rng, micro: int = 1) -> Metrics:
        m, sums = self.method, Accumulator()
        agree = residual = ratio = torch.zeros((), device=self.model.device)
        for part in split(batch, micro):
            log_probs = sequence_log_probs(self.model, part.sequences)
            ratios = preferences.anchored(log_probs, (1.0, part.reference))
            sums.add(LOSSES[m.form](ratios, part.rewards, m).sum(), len(part))
            h, difference = differences(ratios.detach()), differences(part.rewards)
            agree = agree + (0.5 + 0.5 * (h * difference).sign()).mean(-1).sum()
            residual = residual + (difference - m.beta * h).abs().mean(-1).sum()
            ratio = ratio + ratios.detach().mean(-1).sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        agree, residual, ratio = sums.totals(agree, residual, ratio)
        count = len(batch)
        return {
            "loss": loss,
            "accuracy": agree / count,
            "residual": residual / count,
            "log_ratio": ratio / count,
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
