r"""f-DPG: fits a language model to an explicit target distribution by policy gradient on any f-divergence.

Go et al. 2023, arXiv 2302.08215. The target is a base model a times factors that a purpose gives, P(x|c) = a(x|c) F(x),
p = P / Z_c for each prompt c. With t = pi(x|c) / p(x|c) = Z_c pi(x|c) / P(x|c) and u = -log t the gradient is

    grad D_f(pi || p) = E_{x ~ pi} f'(t) grad log pi(x|c)

REINFORCE with the reward -f'(t), a constant: e^u for the forward KL (distributional policy gradient), u - 1 for the
reverse KL (RL with a KL penalty), sign(u) / 2 for total variation, softplus(u) - log 2 for Jensen-Shannon; the others
are in telos.ops.f_divergences. A step samples from pi, or from an earlier policy q, and

    Z_c <- mean over all samples of c so far of P(x|c) / q(x|c)
    L   =  -E_{x ~ q} (pi / q) [-f'(t) - B] log pi_theta(x|c),   pi / q and the bracket constants

with B the mean of the latest rewards. Factors: e^(r / beta), a constraint b in {0, 1}, e^(lambda . phi) with lambda
such that E_p phi has given values, and products of them, one for each term of the purpose.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Completions, Product
from telos.core.rng import Rng
from telos.data.records import Prompts, Record
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import RolloutSource, first_ratio, rollouts, scores
from telos.lm.setup import OPTIMIZERS, policy_and_reference, step_optimizer
from telos.lm.tokens import Sequences, tokenise_prompts
from telos.ops import f_divergences
from telos.ops.f_divergences import DIVERGENCES, FDivergence
from telos.ops.policy_gradients import leave_one_out

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

PAPER = {
    "method": "f-DPG",
    "title": "Aligning Language Models with Preferences through f-divergence Minimization",
    "arxiv": "2302.08215",
    "year": 2023,
    "url": "https://arxiv.org/abs/2302.08215",
    "purpose": ["score", "specification"],
    "product": "Generator",
    "data": "prompts + unnormalised target",
    "summary": "Fits a policy to an explicit target distribution with score-function gradients of a chosen "
    "f-divergence, say Jensen-Shannon.",
    "claim": "On a bimodal 8-bit target Jensen-Shannon training is better aligned than forward KL and more diverse "
    "than reverse KL.",
    "paper_claim": {
        "where": "figures of alignment and diversity for sentiment, lexical and distributional constraints",
        "text": "No divergence is best everywhere. Reverse KL aligns most and keeps the least variety, forward KL the "
        "other way round, Jensen-Shannon and total variation lie between; the former often beats forward KL by far, "
        "even in forward KL during training, and the differences stay as models grow.",
        "value": "no single figure; scalar task with beta 0.1 (unverified)",
        "data": "sentiment, single words, 50 % female biographies, faithful summaries (CNN/DailyMail), Python code",
        "model": "GPT-2 117M to 1.5B, T5-small, GPT-Neo-125M (from a review record)",
        "mechanism": "Independent coins cannot match a target with two modes, as a model of limited capacity cannot "
        "match its target, so each divergence shows what it gives up; with 256 strings every figure is exact. It says "
        "nothing about sampling noise, which the run on a language model adds, nor about large models.",
    },
    "equations": [
        r"p(x\mid c)=\frac{P(x\mid c)}{Z_c},\quad P(x\mid c)=a(x\mid c)\,e^{r(x)/\beta}\,b(x)\,e^{\lambda^\top\phi(x)},"
        r"\quad t=\frac{Z_c\,\pi_\theta(x\mid c)}{P(x\mid c)}",
        r"D_f(\pi_\theta\|p)=\mathbb E_{x\sim p}\left[f\left(t\right)\right]+f'(\infty)\,\pi_\theta(p=0),\quad "
        r"\nabla_\theta D_f=\mathbb E_{x\sim\pi_\theta}\left[f'(t)\,\nabla_\theta\log\pi_\theta(x\mid c)\right]",
        r"-f'(t)=\frac{1}{t}\ (\mathrm{KL}),\quad -\log t-1\ (\mathrm{RKL}),\quad "
        r"\frac{1}{2}\operatorname{sgn}(1-t)\ (\mathrm{TV}),\quad -\log\frac{2t}{t+1}\ (\mathrm{JS})",
        r"\mathcal L=-\mathbb E_{x\sim q}\left[\operatorname{sg}\left(\frac{\pi_\theta(x\mid c)}{q(x\mid c)}"
        r"\left(-f'(t)-B\right)\right)\log\pi_\theta(x\mid c)\right],\quad "
        r"Z_c=\mathbb E_{x\sim q}\left[\frac{P(x\mid c)}{q(x\mid c)}\right]",
    ],
    "deviations": [
        "Lambda is found by L-BFGS on the convex dual, to the repository's tolerance, not by small gradient steps.",
        "Whether the policy replaces the proposal is decided on all batches since the last decision.",
        "Gradients are clipped by their norm.",
    ],
    "traps": [
        "Every divergence is of the policy from the target with t = policy / target: `kl` is the forward one, KL(p || "
        "pi).",
        "Reverse KL and reverse_chi2 reward what a constraint excludes with minus infinity: set `floor`, or soften the "
        "constraint to values above 0.",
        "Where hits are rare `kl` rewards almost every sample with 0; `js` and `tv` still push misses down.",
        "The mean that estimates Z is unbiased but has heavy tails while the policy is far from the target.",
        "The loss is no measure of anything: it is not the divergence.",
    ],
    "terms": ["GDC", "generation with distributional control", "energy-based model", "EBM", "mode collapse", "RLHF",
              "REINFORCE", "disco"],
    "at_scale": "telos fit f_dpg --data prompts.jsonl --model gpt2 --purpose all_keywords:amusing --factors constraint "
    "--steps 1024 --prompts-per-batch 1 --samples-per-prompt 1024 --learning-rate 1.41e-5 --max-new-tokens 40 "
    "--micro 16",
    "usage": [
        "telos fit f_dpg --data prompts.jsonl --model telos:tiny --purpose all_keywords:good1 --factors constraint "
        "--steps 10 --learning-rate 3e-4 --warmup-steps 0 --max-new-tokens 16 --out runs/f_dpg",
        'prompts = telos.load("prompts.jsonl")',
        'method = telos.FDPG(divergence="js", factors=("moment",), moments=(0.5,), moment_samples=512, '
        "learning_rate=3e-4, max_new_tokens=16)",
        'policy = method.fit(prompts, model="telos:tiny", purpose="all_keywords:good1", steps=10)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
}  # fmt: skip

FACTORS = ("tilt", "constraint", "moment")
NO_MASS = -1e30
"""Log of a sum to which nothing was added: finite, since what a learner keeps must be."""
MOMENT_CONTEXTS = 16
"""Most prompts on which lambda is fitted."""


@dataclass(frozen=True)
class FDPG(Method):
    """f-DPG. Given: model, purpose (one term, or a weighted sum of several), reference (the base model a; default:
    the model as it was). Samples are drawn at temperature 1.
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")

    divergence: Literal["js", "kl", "reverse_kl", "tv", "chi2", "reverse_chi2", "alpha"] = "js"
    """What is minimised: js keeps a balance, kl keeps variety, reverse_kl aligns most. Paper: js recommended."""
    factors: tuple[Literal["tilt", "constraint", "moment"], ...] = ("tilt",)
    """What each term of the purpose is: tilt e^(r/beta), constraint (0 or 1), moment e^(lambda phi). telos: tilt."""
    beta: float = 0.1
    """Temperature of tilts, > 0: smaller weighs the score more against the base model. Paper: 0.1 (unverified)."""
    moments: tuple[float, ...] = ()
    """The mean that each moment's term is to have, in their order. Paper: 0.5 (biographies)."""
    moment_samples: int = 1024
    """Samples of the base model on which lambda is fitted, >= 1. telos: 1024."""
    alpha: float = 0.5
    """Of divergence alpha, between 0 (kl) and 1 (reverse_kl). telos: 0.5."""
    conditional: bool = True
    """A normaliser Z for each prompt, or one for all (then prompts are reweighted, too). Paper: for each."""
    partition_window: int = 0
    """Latest batches of a prompt that its Z is the mean of; 0 for all. Repository: all."""
    largest_log_z: float | None = None
    """Upper bound of log Z, if any. Repository: none (`max_z`)."""
    baseline: Literal["window", "leave_one_out", "none"] = "window"
    """Mean of the latest rewards, of a prompt's other samples, or none: lowers the variance. Repository: window."""
    baseline_window: int = 1024
    """Rewards that the window holds, >= 1. Repository: 1024."""
    floor: float | None = None
    """Least reward; needed by reverse_kl and reverse_chi2 under a constraint (-50 will do). Paper: none."""
    ceiling: float | None = None
    """Greatest reward: tames kl and chi2. Paper: none; alpha-DPG's repository has 10."""
    off_policy: bool = False
    """Sample from a proposal that the policy replaces now and then. Repository: an option."""
    proposal_every: int = 16
    """Steps between decisions to replace it (if the policy's KL to the target is lower), >= 1. Repository: 16."""
    samples_per_prompt: int = 8
    """Completions of each prompt. Repository: 1024; 8 suits the bundled models."""
    prompts_per_batch: int = 12
    """Prompts a step. telos: 12, for the bundled models."""
    learning_rate: float = 1.41e-5
    """Adam step size. Repository: 1.41e-5; 3e-4 suits the bundled models."""
    warmup_steps: int = 12
    """Linear warm-up, then constant. Repository: 12."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. telos: 1."""
    max_new_tokens: int = 64
    """Longest completion. telos: 64."""

    def __post_init__(self) -> None:
        if self.divergence not in (*DIVERGENCES, "alpha") or set(self.factors) - set(FACTORS) or not self.factors:
            raise TelosError(
                "an option of f-DPG has an unknown value",
                expected=f"divergence {' or '.join((*DIVERGENCES, 'alpha'))}; factors of {', '.join(FACTORS)}",
                got=f"divergence={self.divergence!r}, factors={self.factors}",
            )
        if len(self.moments) != self.factors.count("moment"):
            raise TelosError(
                "each moment needs the mean that it is to have",
                expected=f"{self.factors.count('moment')} numbers",
                got=f"moments={self.moments}",
                fix="pass moments=(0.5,) for factors=('moment',)",
            )
        least = (self.samples_per_prompt, self.prompts_per_batch, self.baseline_window, self.proposal_every)
        few = self.baseline == "leave_one_out" and self.samples_per_prompt < 2
        outside = not self.beta > 0 or not 0 < self.alpha < 1 or self.partition_window < 0 or few
        if outside or min(*least, self.moment_samples) < 1 or self.baseline not in ("window", "leave_one_out", "none"):
            raise TelosError(
                "an option of f-DPG is out of range",
                expected="beta > 0, 0 < alpha < 1, partition_window >= 0, counts >= 1; baseline window, leave_one_out "
                "(with 2 samples_per_prompt or more) or none",
                got=f"beta={self.beta}, alpha={self.alpha}, partition_window={self.partition_window}, "
                f"baseline={self.baseline!r}, samples_per_prompt={self.samples_per_prompt}, counts={least}",
            )

    def row(self) -> FDivergence:
        """The divergence itself."""
        return (
            f_divergences.alpha_divergence(self.alpha) if self.divergence == "alpha" else DIVERGENCES[self.divergence]
        )

    def prepare(self, spec: Spec) -> Spec:
        purpose = spec.need("purpose", "a score, an indicator or features, as functions of (prompts, completions)")
        terms = len(getattr(purpose, "terms", (purpose,)))
        if terms != len(self.factors):
            raise TelosError(
                "each term of the purpose is one factor of the target",
                expected=f"{terms} factors",
                got=f"factors={self.factors}",
                fix="name them in the order of the purpose's terms",
            )
        spec = policy_and_reference(spec)
        prompts = tokenise_prompts(spec.given["model"], spec.data, self.max_new_tokens)
        numbers: dict[tuple[int, ...], int] = {}
        contexts = [
            numbers.setdefault(tuple(ids.tolist()) if self.conditional else (), len(numbers)) for ids in prompts
        ]
        given = {**spec.given, "contexts": torch.tensor(contexts), "target": Target(self)}
        spec = spec.replace(given=given)
        if not self.moments:
            return spec
        coefficients = self.fitted_coefficients(spec)
        note = f"lambda = {[round(value, 4) for value in coefficients.tolist()]}"
        return spec.replace(
            given={**given, "target": Target(self, coefficients)}, notes={**spec.notes, "moments": note}
        )

    def fitted_coefficients(self, spec: Spec) -> Tensor:
        """(k,) lambda, on samples of the base model for some of the prompts."""
        rows = torch.from_numpy(np.unique(spec.given["contexts"].numpy(), return_index=True)[1])
        if not self.conditional:
            rows = torch.arange(len(spec.data))
        chosen = rows[spec.rng.at("moments").numpy().permutation(len(rows))[:MOMENT_CONTEXTS]]
        source = self.source(spec)
        _, features = source.sample(
            LanguagePolicy(spec.given["reference"]), chosen.tolist(), -(-self.moment_samples // len(chosen)),
            spec.rng.at("moments").torch(spec.device),
        )  # fmt: skip
        kinds = torch.tensor([kind == "moment" for kind in self.factors])
        others = Target(self).log_factor(features)
        shape = (len(chosen) if self.conditional else 1, -1)
        return f_divergences.fit_coefficients(
            features[:, kinds].view(*shape, len(self.moments)), torch.tensor(self.moments), others.view(shape)
        )

    def learner(self, spec: Spec, rng: Rng) -> FDPGLearner:
        return FDPGLearner(self, spec.given["model"], int(spec.given["contexts"].max()) + 1)

    def source(self, spec: Spec) -> TargetSource:
        rollout_source = RolloutSource.of(
            spec,
            prompts_per_batch=self.prompts_per_batch,
            n=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
        )
        return TargetSource(rollout_source, spec.given["target"], spec.given["contexts"])


@dataclass(frozen=True)
class Target:
    """The factors of P = a F, of each term of the purpose its own.

    Args:
        coefficients: (k,) lambda of the moments; without them moments do not count yet.
    """

    method: FDPG
    coefficients: Tensor | None = None

    def log_factor(self, features: Float[Tensor, "b m"]) -> Float[Tensor, "b"]:
        """log F of completions, from their values of every term; -inf where a constraint excludes them."""
        total = torch.zeros(len(features), dtype=torch.float64, device=features.device)
        moments = []
        for kind, values in zip(self.method.factors, features.double().unbind(-1), strict=True):
            if kind == "tilt":
                total = total + f_divergences.tilt(values, self.method.beta)
            elif kind == "constraint":
                total = total + f_divergences.constraint(values)
            else:
                moments.append(values)
        if self.coefficients is not None:
            total = total + f_divergences.moments(torch.stack(moments, -1), self.coefficients)
        return total


@dataclass(frozen=True)
class Draws(Record):
    """Samples with their target: one row a completion, the completions of a prompt side by side.

    Args:
        sequences: tokens (B, T), lengths and boundaries (B,).
        sampler_log_probs: (B, T) log q of each token, 0 off the completion.
        base_log_probs: (B,) log a. log_targets: (B,) log P, float64, -inf where a constraint excludes the sample.
        scores: (B,) sum of the purpose's terms. contexts: (B,) number of the prompt, for its Z.
    """

    sequences: Sequences
    sampler_log_probs: Tensor
    base_log_probs: Tensor
    log_targets: Tensor
    scores: Tensor
    contexts: Tensor


class TargetSource(Source):
    """Completions of the behaviour at temperature 1, each with log P.

    Args:
        rollouts: prompts, purpose, base model and order of prompts.
        contexts: (N,) number of each prompt.
    """

    def __init__(self, rollout_source: RolloutSource, target: Target, contexts: Tensor):
        self.rollouts, self.target, self.contexts = rollout_source, target, contexts

    def sample(
        self, policy: LanguagePolicy, chosen: list[int], n: int, generator: torch.Generator
    ) -> tuple[Completions, Tensor]:
        """n completions of each chosen prompt, and (N, m) values of the purpose's terms, weights included."""
        inner = self.rollouts
        drawn = policy.generate(
            [inner.prompts[i] for i in chosen], n=n, rng=generator, max_new_tokens=inner.max_new_tokens
        )
        rows = [i for i in chosen for _ in range(n)]
        columns = {name: [values[i] for i in rows] for name, values in inner.columns.items()}
        terms = getattr(inner.purpose, "terms", ((inner.purpose, 1.0),))
        values = [weight * scores(term, drawn, policy.model.tokenizer, columns) for term, weight in terms]
        return drawn, torch.stack(values, -1)

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Draws:
        policy = behaviour()
        assert isinstance(policy, LanguagePolicy)
        chosen, n = self.rollouts.order.next(behaviour, rng).tolist(), self.rollouts.n
        drawn, features = self.sample(policy, chosen, n, rng.torch(policy.model.device))
        batch = rollouts(drawn, features.sum(-1), self.rollouts.reference, n)
        base = batch.reference_log_probs.sum(-1)
        return Draws(
            sequences=batch.sequences,
            sampler_log_probs=batch.sampler_log_probs,
            base_log_probs=base,
            log_targets=base.double() + self.target.log_factor(features.to(base.device)),
            scores=batch.rewards,
            contexts=self.contexts[chosen].repeat_interleave(n).to(base.device),
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return self.rollouts.state()

    def load_state(self, tensors: Any, numbers: Any) -> None:
        self.rollouts.load_state(tensors, numbers)


def pseudo_rewards(
    row: FDivergence,
    log_policy: Float[Tensor, "b"],
    log_target: Float[Tensor, "b"],
    log_z: Float[Tensor, "b"],
    floor: float | None = None,
    ceiling: float | None = None,
) -> Float[Tensor, "b"]:
    """-f'(Z pi / P), without gradient, kept within [floor, ceiling].

    Args:
        log_target: log P, not normalised; -inf where P is 0.
    """
    rewards = row.pseudo_reward(log_target - log_z - log_policy.detach())
    return rewards if floor is None and ceiling is None else rewards.clamp(floor, ceiling)


def score_function(
    log_probs: Float[Tensor, "b"], advantages: Float[Tensor, "b"], log_weights: Float[Tensor, "b"]
) -> tuple[Float[Tensor, ""], int]:
    """-(pi / q) A log pi summed over samples of q, and their number; only the last log pi carries gradient.

    Args:
        log_weights: log pi - log q, 0 on policy.
    """
    return -((log_weights.exp() * advantages).detach() * log_probs).sum(), len(log_probs)


class Partition(nn.Module):
    """Z of each context: the mean of P / q over its samples so far, kept as logs.

    Args:
        window: batches of a context that count, 0 for all.
    """

    log_sums: Tensor
    counts: Tensor
    visits: Tensor

    def __init__(self, contexts: int, window: int, device: torch.device):
        super().__init__()
        slots = {"size": (contexts, max(window, 1)), "dtype": torch.float64, "device": device}
        self.window = window
        self.register_buffer("log_sums", torch.full(fill_value=NO_MASS, **slots))
        self.register_buffer("counts", torch.zeros(**slots))
        self.register_buffer("visits", torch.zeros(contexts, dtype=torch.long, device=device))

    def add(
        self, contexts: Int[Tensor, "b"], log_ratios: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b"], Bool[Tensor, "b"]]:
        """Takes log P - log q of a batch; log Z of each sample's context (0 for Z = 0), and whether Z > 0."""
        number = len(self.visits)
        counts = torch.zeros_like(self.counts[:, 0]).index_add(0, contexts, torch.ones_like(log_ratios))
        log_sums = f_divergences.grouped_logsumexp(log_ratios, contexts, number).clamp(min=NO_MASS)
        seen = counts.nonzero()[:, 0]
        slots = self.visits[seen] % self.log_sums.shape[1]
        if self.window:
            self.log_sums[seen, slots], self.counts[seen, slots] = log_sums[seen], counts[seen]
        else:
            self.log_sums[seen, 0] = torch.logaddexp(self.log_sums[seen, 0], log_sums[seen])
            self.counts[seen, 0] += counts[seen]
        self.visits[seen] += 1
        log_z = (self.log_sums.logsumexp(-1) - self.counts.sum(-1).log())[contexts]
        known = log_z > NO_MASS / 2
        return torch.where(known, log_z, 0.0), known


class RecentMean(nn.Module):
    """Mean of the latest `window` numbers; 0 before the first."""

    recent: Tensor
    seen: Tensor

    def __init__(self, window: int, device: torch.device):
        super().__init__()
        self.register_buffer("recent", torch.zeros(window, dtype=torch.float64, device=device))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long, device=device))

    def mean(self) -> Tensor:
        """()"""
        return self.recent.sum() / self.seen.clamp(1, len(self.recent))

    def add(self, values: Float[Tensor, "b"]) -> None:
        """Takes in the next numbers, in their order."""
        values = values[-len(self.recent) :]
        self.recent[(self.seen + torch.arange(len(values), device=values.device)) % len(self.recent)] = values
        self.seen += len(values)


class FDPGLearner(Learner):
    """The policy and its optimiser, Z of every context, the baseline, and off policy the proposal."""

    constant: ClassVar[tuple[str, ...]] = ("model", "proposal")

    def __init__(self, method: FDPG, model: LanguageModel, contexts: int):
        self.method, self.model, self.row = method, model, method.row()
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.partition = Partition(contexts, method.partition_window, model.device)
        self.baseline = RecentMean(method.baseline_window, model.device)
        self.proposal = model.frozen() if method.off_policy else model
        if method.off_policy:
            self.proposal_network = self.proposal.network
        self.updates = self.replaced = 0
        self.gain = 0.0

    def update(self, batch: Draws, rng: Rng, micro: int = 1) -> Metrics:
        m, parts = self.method, split(batch, micro)
        log_q = batch.sampler_log_probs.sum(-1).double()
        log_pi = self.log_probs(parts).double() if m.off_policy else log_q
        log_z, known = self.partition.add(batch.contexts, batch.log_targets - log_q)
        if m.largest_log_z is not None:
            log_z = log_z.clamp(max=m.largest_log_z)
        rewards = pseudo_rewards(self.row, log_pi, batch.log_targets, log_z, m.floor, m.ceiling)
        if not (rewards[known] > -torch.inf).all():
            raise TelosError(
                f"{m.divergence} rewards a sample that the constraint excludes with minus infinity",
                expected="a finite reward for every sample",
                fix="set floor (-50 will do), soften the constraint, or take another divergence",
            )
        rewards = torch.where(known, rewards, 0.0)  # a context without a hit yet is left out of the gradient
        advantages = torch.where(known, rewards - self.baselines(rewards), 0.0)
        self.baseline.add(rewards[known])
        sums = Accumulator()
        weights, sizes = log_pi - log_q, [len(part) for part in parts]
        for part, advantage, weight in zip(parts, advantages.split(sizes), weights.split(sizes), strict=True):
            tokens = token_log_probs(self.model, part.sequences)
            if not m.off_policy:
                first_ratio(tokens, part.sampler_log_probs, part.sequences.mask)
            sums.add(*score_function(tokens.sum(-1), advantage.float(), weight.float()))
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        if m.off_policy:
            self.consider_proposal(batch.log_targets - log_q - log_z, weights)
        lengths = (batch.sequences.lengths - batch.sequences.boundaries).float()
        return {
            "score": batch.scores.mean(),
            "allowed": (batch.log_targets > -torch.inf).double().mean(),
            "log_z": log_z[known].sum() / known.sum().clamp(min=1),
            "known": known.double().mean(),
            "pseudo_reward": rewards[known].sum() / known.sum().clamp(min=1),
            "kl": (log_q - batch.base_log_probs).mean(),
            "replaced": float(self.replaced),
            "loss": loss,
            "length": lengths.mean(),
            "grad_norm": norm,
        }

    def baselines(self, rewards: Tensor) -> Tensor:
        """(B,) or (): what is subtracted; the window's mean is the one before this batch, which the first lacks."""
        if self.method.baseline == "leave_one_out":
            rows = rewards.view(-1, self.method.samples_per_prompt)
            return (rows - leave_one_out(rows)).flatten()
        return self.baseline.mean() if self.method.baseline == "window" else torch.zeros_like(rewards)

    @torch.no_grad()
    def log_probs(self, parts: list[Draws]) -> Tensor:
        """(B,) log pi of the policy as it is, in a first pass."""
        return torch.cat([token_log_probs(self.model, part.sequences).sum(-1) for part in parts])

    def consider_proposal(self, log_ratios: Tensor, log_weights: Tensor) -> None:
        """Replaces the proposal where KL(p || q) - KL(p || pi) = E_q (p / q) log(pi / q) is positive so far."""
        self.gain += float((log_ratios.exp() * log_weights).mean())
        if self.updates % self.method.proposal_every:
            return
        if self.gain > 0:
            self.proposal.network.load_state_dict(self.network.state_dict())
            self.replaced += 1
        self.gain = 0.0

    def behaviour(self) -> LanguagePolicy:
        return LanguagePolicy(self.proposal)

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
