r"""P3O: a policy gradient on pairs of completions that sees only differences of rewards.

Wu et al. 2023, arXiv 2310.00212. Two rewards that differ by an offset of the prompt say the same about completions
(Bradley-Terry models are known up to just that), so the update should not see the offset. For completions y_1, y_2 of
one prompt, drawn from pi_old, with trajectory ratios rho_i = pi(y_i|x) / pi_old(y_i|x):

    R_i     = r(x, y_i) - beta [log pi_old(y_i|x) - log pi_ref(y_i|x)],   Delta = R_1 - R_2
    grad J  = 1/2 E Delta rho_1 rho_2 grad [log pi(y_1|x) - log pi(y_2|x)]

    separate (V1)  L = -1/2 sum_i min(w_i rho_i, w_i clip(rho_i, 1 - eps, 1 + eps))
                   w_1 = Delta rho_2, w_2 = -Delta rho_1
    joint    (V2)  L = -1/2 min(w l, w clip(l, -eps, eps))
                   l = log rho_1 - log rho_2, w = Delta rho_1 rho_2
    none           L = -1/2 Delta (log rho_1 - log rho_2)

The weights w are constants. At rho = 1 all three have the gradient of RLOO with two samples; DPO's has the same
direction with beta sigmoid(.) in place of Delta. One step of training is one round: sample pairs, then a few epochs of
minibatches. There is no critic.

The two clipped losses could not be checked against section 4.2 of the paper (its text was not to be had; the authors'
blog, which says that the ratio and the update are both clipped, and two summaries agree with them). `clip_ratios` is
the blog's wording taken literally. More than two completions of a prompt (future work in the paper): all pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

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

if TYPE_CHECKING:
    from jaxtyping import Float

PAPER = {
    "method": "P3O",
    "title": "Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment",
    "arxiv": "2310.00212",
    "year": 2023,
    "url": "https://arxiv.org/abs/2310.00212",
    "purpose": ["preference", "reward"],
    "product": "Generator",
    "data": "prompts + purpose",
    "summary": "A clipped policy gradient on pairs of completions that uses only the difference of their rewards.",
    "claim": "Offsets of the reward that depend on the prompt alone leave P3O as it is and cost PPO part of its gain; "
    "without them P3O reaches as much reward at the same KL.",
    "paper_claim": {
        "where": "KL-reward frontiers on TL;DR and HH; table of the checkpoints of highest reward (HH, 6B)",
        "text": "Rewards that differ by an offset of the prompt are equivalent; P3O's update is the same for all of "
        "them and PPO's is not. P3O's frontier of reward against KL lies above PPO's and DPO's.",
        "value": "HH, 6B, reward at sequence KL: P3O -0.302 at 9.83, DPO -0.298 at 12.01, PPO -0.613 at 7.02, SFT "
        "-1.195 at 0; GPT-4 prefers P3O to PPO in 57.0 % and to SFT in 69.3 % of cases (all read second-hand)",
        "data": "Reddit TL;DR summaries and Anthropic Helpful-Harmless dialogues",
        "model": "1B and 6B models; Pythia on HH and GPT-J on TL;DR, fine-tuned by others (names unverified)",
        "mechanism": "The same seed is run with and without an offset that is drawn for each prompt and shared by its "
        "completions: just what a Bradley-Terry reward model leaves open. So any difference is the offset's doing. The "
        "frontiers of large models with learned rewards are not reproduced; here P3O need only be no worse.",
    },
    "equations": [
        r"R_i=r(x,y_i)-\beta\log\frac{\pi_{\mathrm{old}}(y_i\mid x)}{\pi_{\mathrm{ref}}(y_i\mid x)},\quad "
        r"y_1,y_2\sim\pi_{\mathrm{old}}(\cdot\mid x),\quad\Delta=R_1-R_2",
        r"\rho_i=\frac{\pi_\theta(y_i\mid x)}{\pi_{\mathrm{old}}(y_i\mid x)},\quad\nabla J=\frac{1}{2}\mathbb E\left["
        r"\Delta\,\rho_1\rho_2\,\nabla\log\frac{\pi_\theta(y_1\mid x)}{\pi_\theta(y_2\mid x)}\right]",
        r"\mathcal L_{\mathrm{separate}}=-\frac{1}{2}\mathbb E\left[\sum_{i=1}^{2}\min\left(w_i\rho_i,\ "
        r"w_i\operatorname{clip}(\rho_i,1-\epsilon,1+\epsilon)\right)\right],\quad "
        r"w_1=\operatorname{sg}(\Delta\rho_2),\ w_2=\operatorname{sg}(-\Delta\rho_1)",
        r"\mathcal L_{\mathrm{joint}}=-\frac{1}{2}\mathbb E\left[\min\left(w\ell,\ "
        r"w\operatorname{clip}(\ell,-\epsilon,\epsilon)\right)\right],\quad"
        r"\ell=\log\rho_1-\log\rho_2,\ w=\operatorname{sg}(\Delta\rho_1\rho_2)",
        r"\mathcal L_{\mathrm{none}}=-\frac{1}{2}\mathbb E\left[\Delta\,(\log\rho_1-\log\rho_2)\right]",
    ],
    "deviations": [
        "The clipped losses are from summaries of the paper, not from its text.",
        "More than two completions a prompt: the mean over all pairs.",
        "A round stops early once a trajectory's |log ratio| exceeds `stop_log_ratio`.",
    ],
    "traps": [
        "Trajectory ratios grow with length: few epochs, and watch `log_ratio`.",
        "Never divide rewards by a deviation taken across prompts: it brings the offset back. Scale differences only.",
        "The KL belongs into each completion's reward, not into its tokens.",
        "Dropout between sampling and training makes the first ratio differ from 1 (it is checked).",
    ],
    "terms": ["RLHF", "human feedback", "comparative", "critic-free", "REINFORCE", "on-policy", "trust region"],
    "at_scale": "telos fit p3o --data hh_prompts.jsonl --model EleutherAI/pythia-1b --purpose runs/reward_model "
    "--steps 2000 --prompts-per-batch 64 --learning-rate 1e-6 --max-new-tokens 128",
    "usage": [
        "telos fit p3o --data prompts.jsonl --model telos:tiny --purpose keywords:good1,good2 --steps 20 "
        "--prompts-per-batch 16 --learning-rate 3e-4 --max-new-tokens 16 --out runs/p3o",
        'prompts = telos.load("prompts.jsonl")',
        "method = telos.P3O(beta=0.1, prompts_per_batch=16, learning_rate=3e-4, max_new_tokens=16)",
        'policy = method.fit(prompts, model="telos:tiny", purpose="keywords:good1,good2", steps=10)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
}

LARGEST_LOG_RATIO = 20.0
"""Log ratios are kept within +-20 before they are exponentiated."""


@dataclass(frozen=True)
class P3O(Method):
    """P3O; `steps` counts rounds. Given: model, purpose, reference (default: the model as it was).

    Samples are drawn at temperature 1, from the policy that the loss is about.
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")

    clipping: Literal["joint", "separate", "none"] = "joint"
    """V2 (joint: better trade-off in the paper), V1 (separate: more reward), or the plain gradient. telos: joint."""
    beta: float = 0.1
    """KL coefficient, >= 0: larger stays closer to the reference. telos: 0.1; swept in the paper."""
    clip: float = 0.2
    """Epsilon, > 0: how far a ratio (joint: the log of two ratios' quotient) is credited. Paper: 0.2 (not verified)."""
    clip_ratios: bool = False
    """Also keep the weights' ratios within 1 +- clip, as the authors' blog words it. telos: off."""
    samples_per_prompt: int = 2
    """Completions of each prompt, >= 2; with more, all pairs. Paper: 2."""
    prompts_per_batch: int = 32
    """Prompts a round. telos: 32, for the bundled models."""
    epochs: int = 2
    """Passes over a round, >= 1. telos: 2, since ratios of whole completions grow quickly."""
    minibatch_prompts: int = 16
    """Prompts (with all their completions) in an optimisation step. telos: half a round."""
    stop_log_ratio: float = 1.0
    """A round ends early once a trajectory's |log ratio| exceeds this, > 0; inf for never. telos: 1."""
    scale: bool = False
    """Divide differences by their running root mean square: harmless to the invariance. telos: off."""
    learning_rate: float = 1e-5
    """AdamW step size. telos: 1e-5; 3e-4 suits the bundled models."""
    warmup_steps: int = 0
    """Linear warm-up, in optimisation steps. telos: none."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. telos: 1."""
    max_new_tokens: int = 64
    """Longest completion. telos: 64."""

    def __post_init__(self) -> None:
        if self.clipping not in LOSSES:
            raise TelosError(f"clipping '{self.clipping}' is unknown", expected=" or ".join(LOSSES))
        sizes = (self.prompts_per_batch, self.epochs, self.minibatch_prompts)
        if self.beta < 0 or min(self.clip, self.stop_log_ratio) <= 0 or self.samples_per_prompt < 2 or min(sizes) < 1:
            raise TelosError(
                "an option of P3O is out of range",
                expected="beta >= 0; clip, stop_log_ratio > 0; samples_per_prompt >= 2; counts >= 1",
                got=f"beta={self.beta}, clip={self.clip}, stop_log_ratio={self.stop_log_ratio}, "
                f"samples_per_prompt={self.samples_per_prompt}, counts={sizes}",
            )

    def prepare(self, spec: Spec) -> Spec:
        spec.need("purpose", "a reward model, or a function of (prompts, completions)")
        return policy_and_reference(spec)

    def learner(self, spec: Spec, rng: Rng) -> P3OLearner:
        return P3OLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> RolloutSource:
        return RolloutSource.of(
            spec,
            prompts_per_batch=self.prompts_per_batch,
            n=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
        )


def differences(
    rewards: Float[Tensor, "g k"], kl: Float[Tensor, "g k"], beta: float
) -> tuple[Float[Tensor, "g p"], Float[Tensor, "p"], Float[Tensor, "p"]]:
    """Delta of every pair i < j of a prompt's completions, and i and j.

    Rewards are subtracted before the KL enters, so that an offset of the prompt leaves no rounding behind.
    """
    first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], 1, device=rewards.device)
    delta = (rewards[:, first] - rewards[:, second]) - beta * (kl[:, first] - kl[:, second])
    return delta, first, second


def separate_clipping(
    log_rho_1: Float[Tensor, "b"], log_rho_2: Float[Tensor, "b"], delta: Float[Tensor, "b"], clip: float, bound: float
) -> tuple[Float[Tensor, ""], int]:
    """V1: each ratio is clipped by itself. The sum over pairs and their number.

    Args:
        delta: r_1 - r_2. bound: the weights' ratios are kept within 1 +- bound (inf: not at all).
    """
    rho_1, rho_2 = log_rho_1.exp(), log_rho_2.exp()
    total = torch.zeros_like(delta)
    for rho, other, difference in ((rho_1, rho_2, delta), (rho_2, rho_1, -delta)):
        weight = (difference * other.clamp(1 - bound, 1 + bound)).detach()
        total = total + torch.minimum(weight * rho, weight * rho.clamp(1 - clip, 1 + clip))
    return -0.5 * total.sum(), len(delta)


def joint_clipping(
    log_rho_1: Float[Tensor, "b"], log_rho_2: Float[Tensor, "b"], delta: Float[Tensor, "b"], clip: float, bound: float
) -> tuple[Float[Tensor, ""], int]:
    """V2: the log of the ratios' quotient is clipped. Arguments as `separate_clipping`."""
    quotient = log_rho_1 - log_rho_2
    rho_1, rho_2 = (log_rho.exp().clamp(1 - bound, 1 + bound) for log_rho in (log_rho_1, log_rho_2))
    weight = (delta * rho_1 * rho_2).detach()
    return -0.5 * torch.minimum(weight * quotient, weight * quotient.clamp(-clip, clip)).sum(), len(delta)


def pairwise_gradient(
    log_rho_1: Float[Tensor, "b"], log_rho_2: Float[Tensor, "b"], delta: Float[Tensor, "b"], clip: float, bound: float
) -> tuple[Float[Tensor, ""], int]:
    """Neither ratios nor clipping: the identity itself, for one step a round. Arguments as `separate_clipping`."""
    return -0.5 * (delta * (log_rho_1 - log_rho_2)).sum(), len(delta)


PairLoss = Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, int]]
LOSSES: dict[str, PairLoss] = {
    "joint": joint_clipping,
    "separate": separate_clipping,
    "none": pairwise_gradient,
}


class P3OLearner(Learner):
    """The policy, its optimiser, and the running mean square of differences."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: P3O, model: LanguageModel):
        self.method, self.model = method, model
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = self.pairs = 0
        self.mean_square = 0.0

    def update(self, batch: Rollouts, rng: Rng, micro: int = 1) -> Metrics:
        m = self.method
        shape = (-1, m.samples_per_prompt)
        kl = batch.log_ratios.sum(-1)
        delta, first, second = differences(batch.rewards.view(shape), kl.view(shape), m.beta)
        if m.scale:
            delta = delta / self.running_scale(delta)
        rows = torch.arange(len(batch), device=delta.device).view(shape)
        orders = [torch.randperm(len(rows), generator=rng.at("epoch", epoch).torch()) for epoch in range(m.epochs)]
        loss = norm = furthest = torch.zeros((), device=delta.device)
        steps = 0
        for index in (index for order in orders for index in order.to(delta.device).split(m.minibatch_prompts)):
            sums = Accumulator()
            for part in index.tensor_split(min(micro, len(index))):
                log_rho = self.log_ratios(batch[rows[part].flatten()], steps == 0).view(shape)
                furthest = torch.maximum(furthest, log_rho.detach().abs().max())
                pairs = (log_rho[:, first].flatten(), log_rho[:, second].flatten(), delta[part].flatten())
                sums.add(*LOSSES[m.clipping](*pairs, m.clip, m.clip if m.clip_ratios else torch.inf))
            if furthest > m.stop_log_ratio:
                self.optimizer.zero_grad(set_to_none=True)
                break
            loss = loss + sums.divide(self.parameters)
            norm = norm + step_optimizer(self, m.warmup_steps, m.max_grad_norm)
            steps += 1
        lengths = (batch.sequences.lengths - batch.sequences.boundaries).float()
        return {
            "reward": batch.rewards.mean(),
            "difference": delta.abs().mean(),
            "kl": kl.mean(),
            "loss": loss / steps,
            "log_ratio": furthest,
            "steps": float(steps),
            "length": lengths.mean(),
            "grad_norm": norm / steps,
        }

    def log_ratios(self, batch: Rollouts, first: bool) -> Tensor:
        """(B,) log rho of whole completions, with gradient; the round's first ones must be 0."""
        tokens = token_log_probs(self.model, batch.sequences)
        if first:
            first_ratio(tokens, batch.sampler_log_probs, batch.sequences.mask)
        log_rho = (tokens - batch.sampler_log_probs).sum(-1)
        return log_rho.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO)

    def running_scale(self, delta: Tensor) -> float:
        """Root of the mean square of all differences so far, these included."""
        self.mean_square = (self.pairs * self.mean_square + float(delta.square().sum())) / (self.pairs + delta.numel())
        self.pairs += delta.numel()
        return max(self.mean_square**0.5, 1e-8)

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
