r"""Nash-MD: the equilibrium of a preference game by policy gradient against a mixture of the policy and its reference.

Munos et al. 2023, arXiv 2312.00886. The game, with preferences that need not follow from scores, is

    J(pi, pi') = P(pi > pi') - tau KL(pi || mu) + tau KL(pi' || mu)

and its equilibrium the one pi with pi = mu exp(P(. > pi) / tau) / Z. For language models, one step is one ascent of

    g = E_{y ~ pi, y' ~ pi'} sum_n grad log pi(y_n | x, y_<n) A_n
    A_n = P(y > y' | x) - 1/2 - tau sum_{m >= n} log pi(y_m | x, y_<m) / mu(y_m | x, y_<m)

A_n carries no gradient. The sum over later tokens leaves out only terms whose mean is 0; over all tokens it is the
gradient of the sequence form, with more noise. pi' is one of

    mixture    log pi' = (1 - beta) log pi + beta log mu + c, token by token     Nash-MD; beta is the weight of mu
    ema        the policy with averaged weights, w <- decay w + (1 - decay) theta     Nash-EMA
    self, reference    beta = 0 and beta = 1: self-play and the best response to mu

and is held fixed in the gradient. With pi' = pi the equilibrium is the point where the mean of g is 0; with a mixture,
where beta need not depend on tau, it is near it for small beta. The tabular recursion of the theorem is in
nash_md_variants.py.

What differs from the paper and why:
- Warm-up, then a constant step size, AdamW and a clipped norm: the paper's optimiser could not be read.
- An oracle is made antisymmetric by asking it both ways round; a purpose that scores becomes one by Bradley-Terry.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Source, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Prompts
from telos.lm.log_probs import token_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import Rollouts, first_ratio, rollouts
from telos.lm.rounds import judgements, with_answers
from telos.lm.sample import sample
from telos.lm.setup import OPTIMIZERS, policy_and_reference, step_optimizer
from telos.lm.soup import GeometricMixture
from telos.lm.tokens import Ids, tokenise_prompts

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

PAPER = {
    "method": "Nash-MD / Nash-EMA",
    "title": "Nash Learning from Human Feedback (NLHF)",
    "arxiv": "2312.00886",
    "year": 2023,
    "url": "https://arxiv.org/abs/2312.00886",
    "purpose": ["preference"],
    "product": "Generator",
    "data": "prompts + preference oracle",
    "summary": "Finds the Nash policy of a preference model by mirror descent against a mixture of the present policy "
    "and its reference.",
    "claim": "Nash-MD's last iterate obeys its KL bound on a cyclic 3-arm game; with 30 arms, pure best response to "
    "the reference is the most exploitable setting.",
    "paper_claim": {
        "where": "theorem on the last iterate; table of pairwise win rates on TL;DR",
        "text": "The last iterate of tabular Nash-MD approaches the regularised equilibrium at a rate of 1/T. Against "
        "RLHF, judged by a large model, small mixture weights do best and the best response to the reference worst, "
        "although all of them beat the supervised model by far. It is not said that the game beats RLHF in general.",
        "value": "win rate against RLHF (read second-hand): self-play 0.489; beta = 0.125: 0.598; 0.25: 0.519; 0.375: "
        "0.561; 0.5: 0.501; 0.625: 0.436; 0.75: 0.284; best response 0.148; EMA 0.468 and 0.320; against the "
        "supervised model 0.94 to 0.99",
        "data": "TL;DR summaries, 92,820 pairs for the preference model",
        "model": "T5X-large policy, 3B preference model",
        "mechanism": "Whoever only answers the reference learns what beats the reference, and others beat that where "
        "preferences run in a circle. With 3 or 30 responses the equilibrium, the bound and what a best opponent wins "
        "are exact; policies of the 30 are trained by the method file's own loss on samples. Summaries by language "
        "models and a judge of them are not tested.",
    },
    "equations": [
        r"J(\pi,\pi')=P(\pi\succ\pi')-\tau\,\mathrm{KL}(\pi\Vert\pi_{\mathrm{ref}})"
        r"+\tau\,\mathrm{KL}(\pi'\Vert\pi_{\mathrm{ref}})",
        r"\pi_t^{\mathrm{mix}}(y)\propto\pi_t(y)^{1-\eta_t\tau}\,\pi_{\mathrm{ref}}(y)^{\eta_t\tau},\quad"
        r"\pi_{t+1}(y)\propto\pi_t^{\mathrm{mix}}(y)\,\exp\left(\eta_t P(y\succ\pi_t^{\mathrm{mix}})\right)",
        r"\eta_t=\frac{2}{\tau(t+2)}\;\Rightarrow\;\mathrm{KL}(\pi^*\Vert\pi_T)\le\frac{8}{\tau^2(T+1)}",
        r"\pi'(y_n\mid x,y_{<n})\propto\pi_\theta(y_n\mid x,y_{<n})^{1-\beta}\,"
        r"\pi_{\mathrm{ref}}(y_n\mid x,y_{<n})^{\beta}",
        r"A_n=P(y\succ y'\mid x)-\frac12-\tau\sum_{m\ge n}\log\frac{\pi_\theta(y_m\mid x,y_{<m})}"
        r"{\pi_{\mathrm{ref}}(y_m\mid x,y_{<m})}",
        r"\mathcal L=-\mathbb E_{y\sim\pi_\theta,\,y'\sim\pi'}\left[\sum_n A_n\log\pi_\theta(y_n\mid x,y_{<n})\right]",
    ],
    "deviations": [
        "AdamW with a clipped norm and a constant step size after the warm-up; the paper's optimiser could not be "
        "read.",
        "Oracles are made antisymmetric by asking both ways round; scores become chances by Bradley-Terry.",
    ],
    "traps": [
        "A token's score function needs the log-ratios of all later tokens too: with its own alone, as a well-known "
        "trainer has it, the step is no gradient of the objective.",
        "beta is the weight of the reference in the opponent. It is neither DPO's beta nor the decay of the average.",
        "Rewards that come from scores cannot express a circle, so the game is then RLHF's.",
        "With a constant eta the tabular recursion settles beside the equilibrium; the gap vanishes with eta.",
        "The first step of the decaying schedule forgets where it began, so KL may rise at first.",
    ],
    "terms": ["intransitive", "self-improvement", "zero-sum", "minimax", "general preferences", "online RLHF"],
    "usage": [
        "telos fit nash_md --data prompts.jsonl --model telos:tiny --purpose keywords:good1,good2 --beta 0.125 "
        "--tau 0.02 --steps 10 --prompts-per-batch 16 --learning-rate 1e-3 --max-new-tokens 16 --out runs/nash",
        'prompts = telos.load("prompts.jsonl")',
        "def longer(prompts, first, second): return [0.9 if len(a) > len(b) else 0.5 if len(a) == len(b) else 0.1 "
        "for a, b in zip(first, second)]",
        'method = telos.NashMD(opponent="ema", decay=0.9, tau=0.02, learning_rate=1e-3, max_new_tokens=16)',
        'policy = method.fit(prompts, model="telos:tiny", purpose=longer, steps=5)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit nash_md --data tldr_prompts.jsonl --model runs/sft --purpose preference_model.py:prefers "
    "--beta 0.125 --tau 0.008 --prompts-per-batch 128 --learning-rate 1e-6 --max-new-tokens 53 --steps 10000",
}


@dataclass(frozen=True)
class NashMD(Method):
    """Nash-MD and Nash-EMA by policy gradient; self-play and the best response to the reference are among its settings.

    Given: model, purpose (an oracle of preferences, or anything that scores), reference (default: the model as it
    was), lora.
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")

    opponent: Literal["mixture", "ema", "self", "reference"] = "mixture"
    """Who writes what the policy is compared with: the mixture with weight beta, the policy with averaged weights, the
    policy itself, or the reference. Paper: mixture (Nash-MD) and ema (Nash-EMA)."""
    beta: float = 0.125
    """Weight of the reference in the mixture, 0 to 1: 0 is self-play, 1 the best response. Paper: 0.125."""
    decay: float = 0.999
    """Of the averaged weights at each step, 0 <= decay < 1; for ema only. Paper: 0.999 to 0.9999."""
    deliver: Literal["last", "averaged"] = "last"
    """The policy that is shipped; averaged for ema only. Paper: both."""
    tau: float = 0.008
    """Strength of the pull to the reference, >= 0; small for long texts. Paper: 0.008, of 0.005 to 0.02."""
    kl: Literal["causal", "sequence"] = "causal"
    """Log-ratios in a token's advantage: its own and later ones, or all of them, which is noisier. Paper: causal."""
    prompts_per_batch: int = 32
    """Prompts an update, each with one completion of the policy and one of the opponent. telos: 32."""
    learning_rate: float = 1e-5
    """AdamW step size. telos: 1e-5; 1e-3 suits the bundled models."""
    warmup_steps: int = 0
    """Linear warm-up. telos: 0."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. telos: 1."""
    max_new_tokens: int = 64
    """Longest completion. telos: 64."""

    def __post_init__(self) -> None:
        if not (0 <= self.beta <= 1 and 0 <= self.decay < 1 and self.tau >= 0 and self.prompts_per_batch >= 1):
            raise TelosError(
                "an option of Nash-MD is out of range",
                expected="beta in [0, 1], decay in [0, 1), tau >= 0, prompts_per_batch >= 1",
                got=f"beta={self.beta}, decay={self.decay}, tau={self.tau}, prompts={self.prompts_per_batch}",
            )
        known = self.opponent in OPPONENTS and self.kl in LATER and self.deliver in ("last", "averaged")
        if not known or (self.deliver == "averaged" and self.opponent != "ema"):
            raise TelosError(
                "no such opponent, kl or deliver",
                expected=f"{' or '.join(OPPONENTS)}; {' or '.join(LATER)}; last, or averaged with opponent=ema",
                got=f"opponent={self.opponent!r}, kl={self.kl!r}, deliver={self.deliver!r}",
            )

    def prepare(self, spec: Spec) -> Spec:
        spec.need("purpose", "an oracle of preferences, a reward model, or a function of (prompts, completions)")
        spec = policy_and_reference(spec)
        model, reference = spec.given["model"], spec.given["reference"]
        if model.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
            raise TelosError(
                "the reference has another vocabulary than the model", fix="use a model of the same family"
            )
        return spec

    def learner(self, spec: Spec, rng: Rng) -> NashLearner:
        return NashLearner(self, spec.given["model"], spec.given["reference"])

    def source(self, spec: Spec) -> DuelSource:
        return DuelSource(self, spec)


def later(log_ratios: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """The sum of each token's own and all later log-ratios."""
    return log_ratios.flip(-1).cumsum(-1).flip(-1)


def whole(log_ratios: Float[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """The sum of all log-ratios, at each token."""
    return log_ratios.sum(-1, keepdim=True).expand_as(log_ratios)


LATER: dict[str, Callable[[Tensor], Tensor]] = {"causal": later, "sequence": whole}


def nash_advantages(
    chance: Float[Tensor, "b"],
    log_ratios: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    tau: float,
    kl: str = "causal",
) -> Float[Tensor, "b t"]:
    """What each token's score function is multiplied with; 0 off the completion, without gradient.

    Args:
        chance: P(y > y') of the whole completions; 1/2 is the baseline, what the policy has against itself.
        log_ratios: log pi - log mu of the tokens, 0 off the completion.
        kl: a name in `LATER`.
    """
    return ((chance[:, None] - 0.5 - tau * LATER[kl](log_ratios)) * mask).detach()


def nash_loss(log_probs: Float[Tensor, "b t"], advantages: Float[Tensor, "b t"]) -> tuple[Float[Tensor, ""], int]:
    """-sum_n A_n log pi(y_n) summed over completions, and their count."""
    return -(advantages * log_probs).sum(), len(log_probs)


def mixture(learner: NashLearner) -> LanguageModel | GeometricMixture:
    """The geometric mixture with weight beta of the reference; one model alone at the ends."""
    beta = learner.method.beta
    if beta in (0, 1):
        return learner.reference if beta else learner.model
    return GeometricMixture([learner.model, learner.reference], [1 - beta, beta])


OPPONENTS: dict[str, Callable[[NashLearner], LanguageModel | GeometricMixture]] = {
    "mixture": mixture,
    "ema": lambda learner: learner.averaged,
    "self": lambda learner: learner.model,
    "reference": lambda learner: learner.reference,
}


class Player(LanguagePolicy):
    """The policy with its opponent, as the source samples them; both change with the learner."""

    def __init__(self, model: LanguageModel, opponent: LanguageModel | GeometricMixture):
        super().__init__(model)
        self.opponent = opponent


class NashLearner(Learner):
    """The policy, its optimiser, and for ema the averaged weights."""

    constant: ClassVar[tuple[str, ...]] = ("model", "reference", "averaged")

    def __init__(self, method: NashMD, model: LanguageModel, reference: LanguageModel):
        self.method, self.model, self.reference = method, model, reference
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.averaged = model.copy() if method.opponent == "ema" else model
        self.average = self.averaged.network if method.opponent == "ema" else None
        self.updates = 0

    def behaviour(self) -> Player:
        return Player(self.model, OPPONENTS[self.method.opponent](self))

    def update(self, batch: Rollouts, rng: Rng, micro: int = 1) -> Metrics:
        m, sums = self.method, Accumulator()
        for part in split(batch, micro):
            log_probs = token_log_probs(self.model, part.sequences)
            first_ratio(log_probs, part.sampler_log_probs, part.sequences.mask)
            advantages = nash_advantages(part.rewards, part.log_ratios, part.sequences.mask, m.tau, m.kl)
            sums.add(*nash_loss(log_probs, advantages))
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        if self.average is not None:
            with torch.no_grad():
                torch._foreach_lerp_([*self.average.parameters()], [*self.network.parameters()], 1 - m.decay)
        lengths = (batch.sequences.lengths - batch.sequences.boundaries).float()
        return {
            "win_rate": batch.rewards.mean(),
            "kl": batch.log_ratios.sum(-1).mean(),
            "loss": loss,
            "length": lengths.mean(),
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.averaged if self.method.deliver == "averaged" else self.model)


@dataclass(frozen=True)
class PromptRows:
    """Tokenised prompts with their further columns, as a data set for `Epochs`."""

    ids: Sequence[Ids]
    columns: Mapping[str, Sequence[Any]]

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, index: np.ndarray) -> PromptRows:
        columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
        return PromptRows([self.ids[i] for i in index], columns)


class DuelSource(Source):
    """Takes the next prompts, has policy and opponent write one completion each at temperature 1, and asks which is
    preferred: rollouts of the policy with the chance P(y > y') as their reward."""

    def __init__(self, method: NashMD, spec: Spec):
        model: LanguageModel = spec.given["model"]
        ids = tokenise_prompts(model, spec.data, method.max_new_tokens)
        self.order = Epochs(PromptRows(ids, spec.data.columns), method.prompts_per_batch, spec.rng.at("order"))
        self.judge, self.reference, self.max_new_tokens = (
            spec.given["purpose"], spec.given["reference"], method.max_new_tokens,
        )  # fmt: skip

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Rollouts:
        player = behaviour()
        assert isinstance(player, Player)
        chosen: PromptRows = self.order.next(behaviour, rng)
        model = player.model
        own, other = (
            sample(writer, chosen.ids, rng=rng.at(name).torch(model.device), max_new_tokens=self.max_new_tokens)
            for name, writer in (("policy", model), ("opponent", player.opponent))
        )
        rows = zip(other.tokens.numpy(), other.boundaries.tolist(), other.lengths.tolist(), strict=True)
        both = with_answers(own, [tokens[start:end] for tokens, start, end in rows], model)
        columns = {name: [v for v in values for _ in range(2)] for name, values in chosen.columns.items()}
        _, prefers = judgements(self.judge, both, 2, model, columns)
        return rollouts(own, prefers[:, 0, 1], self.reference, 1)

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return self.order.state()

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        self.order.load_state(tensors, numbers)
