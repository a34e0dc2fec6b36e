r"""INPO: self-play mirror descent in a preference game, as a squared loss on sampled pairs with two anchors.

Zhang et al. 2024, arXiv 2407.00617. The game is

    J(pi, pi') = P(pi > pi') - tau KL(pi || pi_ref) + tau KL(pi' || pi_ref)

A step of online mirror descent from pi_t, of size 1 / eta with 0 <= tau <= eta, is

    pi_{t+1} = exp(P(y > pi_t) / eta) pi_ref^(tau / eta) pi_t^(1 - tau / eta) / Z

Its fixed point is the game's equilibrium, whatever eta. In the paper's sampled form no win rate has to be known:

    h = log pi(y_w)/pi(y_l) - tau/eta log pi_ref(y_w)/pi_ref(y_l) - (1 - tau/eta) log pi_t(y_w)/pi_t(y_l)
    L = E (h - 1 / (2 eta))^2,    y, y' ~ pi_t independently, (y_w, y_l) drawn by P(y > y')

whose minimiser is that step (proposition 6). tau = 0 leaves the reference out, tau = eta leaves pi_t out (online IPO).
The exact recursion on finite games is in inpo_variants.py.

What differs from the paper and why:
- The paper gives no rule for responses that tie in its play-off beyond "the first goes on"; pairs whose last comparison
  is a tie are dropped here, since they say nothing.
- A purpose that scores becomes an oracle by Bradley-Terry; `pairs="iid"` draws each label, the other two builders take
  the likelier one, as the paper's experiments do.
- Warm-up, then a constant step size: the paper's decays as a cosine.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Source, Spec, Stages, split
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rounds import Judged, Pairs, Plan, rounds
from telos.lm.setup import OPTIMIZERS, policy_and_reference, step_optimizer
from telos.ops import pairs, preferences

if TYPE_CHECKING:
    from jaxtyping import Float

PAPER = {
    "method": "INPO",
    "title": "Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning",
    "arxiv": "2407.00617",
    "year": 2024,
    "url": "https://arxiv.org/abs/2407.00617",
    "purpose": ["preference"],
    "product": "Generator",
    "data": "prompts + preference oracle",
    "summary": "Self-play in a KL-regularised preference game through a squared loss on sampled pairs with two "
    "anchors; win rates are not needed.",
    "claim": "On a 30-arm cyclic game INPO's last policy lies within 0.15 total variation of the regularised "
    "equilibrium; iterative DPO ends farther away at each tested beta.",
    "paper_claim": {
        "where": "main results on AlpacaEval 2, Arena-Hard and MT-Bench; theorems on the last iterate",
        "text": "Three rounds of INPO with a pairwise preference model win more often against GPT-4 than iterative DPO "
        "and SPPO with the same oracle; the last policy approaches the equilibrium of the game.",
        "value": "length-controlled win rate on AlpacaEval 2: SFT 16.0, iterative DPO 28.5, SPPO 32.8, INPO 42.6, "
        "without the KL term 41.6",
        "data": "three sets of 20,000 prompts (RLHFlow), one a round",
        "model": "LLaMA-3-8B after SFT; also LLaMA-3-8B-Instruct",
        "mechanism": "Preferences that run in a circle have an equilibrium which mixes and which no scalar reward "
        "has as its optimum. With 30 responses it can be computed, so the distance of the last policy to it is "
        "exact, for INPO's own loss on sampled pairs and for iterative DPO on as many. Win rates of language models "
        "by a judge are not tested.",
    },
    "equations": [
        r"J(\pi,\pi')=P(\pi\succ\pi')-\tau\,\mathrm{KL}(\pi\Vert\pi_{\mathrm{ref}})"
        r"+\tau\,\mathrm{KL}(\pi'\Vert\pi_{\mathrm{ref}})",
        r"\pi_{t+1}(y)\propto\exp\left(\frac{P(y\succ\pi_t)}{\eta}\right)"
        r"\pi_{\mathrm{ref}}(y)^{\tau/\eta}\,\pi_t(y)^{1-\tau/\eta}",
        r"h=\log\frac{\pi_\theta(y_w\mid x)}{\pi_\theta(y_l\mid x)}"
        r"-\frac{\tau}{\eta}\log\frac{\pi_{\mathrm{ref}}(y_w\mid x)}{\pi_{\mathrm{ref}}(y_l\mid x)}"
        r"-\frac{\eta-\tau}{\eta}\log\frac{\pi_t(y_w\mid x)}{\pi_t(y_l\mid x)}",
        r"\mathcal L=\mathbb E_{y,y'\sim\pi_t}\left[\left(h-\frac{1}{2\eta}\right)^2\right]",
        r"\eta_t=\frac{\tau(t+2)}{2}",
    ],
    "deviations": [
        "A play-off whose last comparison ties gives no pair.",
        "With pairs=iid labels are drawn from the oracle's chances; the other builders take the likelier response.",
        "Constant step size after the warm-up instead of a cosine.",
    ],
    "traps": [
        "Two anchors: the cached log-probs of pi_ref must not be overwritten by those of pi_t.",
        "eta = 0.005 asks for a margin of 100 nats: right for long answers, far too much for short ones (0.1 to 1).",
        "eta must exceed tau clearly, or the recursion itself does not converge.",
        "Best against worst with certain labels overstates P, so the target overshoots: a heuristic of practice.",
    ],
    "terms": ["NLHF", "intransitive", "two-player", "zero-sum", "minimax", "RLAIF", "alignment"],
    "usage": [
        "telos fit inpo --data prompts.jsonl --model telos:tiny --purpose keywords:good1,good2 --eta 0.5 --tau 0.1 "
        "--rounds 2 --steps 12 --batch-size 16 --learning-rate 3e-4 --max-new-tokens 16 --out runs/inpo",
        'prompts = telos.load("prompts.jsonl")',
        'method = telos.INPO(eta=0.5, tau=0.1, pairs="iid", rounds=2, learning_rate=3e-4, max_new_tokens=16)',
        'policy = method.fit(prompts, model="telos:tiny", purpose="keywords:good1,good2", steps=6)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit inpo --data RLHFlow/iterative-prompt-v1-iter1-20K --model RLHFlow/LLaMA3-SFT "
    "--purpose preference_model.py:prefers --rounds 3 --batch-size 128 --learning-rate 5e-7 --max-new-tokens 1024 "
    "--steps 480",
}


@dataclass(frozen=True)
class INPO(Method):
    """Iterative Nash policy optimisation; `steps` are shared equally among the rounds.

    Given: model, purpose (an oracle of preferences, or anything that scores), reference (default: the model as it
    was), lora.
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")
    shares: ClassVar[bool] = True

    eta: float = 0.005
    """Inverse step size, > 0: the target margin is 1 / (2 eta) nats. 0.1 to 1 for short texts. Paper: 0.005."""
    tau: float = 0.005 / 3
    """Strength of the pull to the reference, 0 <= tau <= eta; 0 drops it, eta is online IPO. Paper: eta / 3."""
    schedule: Literal["constant", "growing"] = "constant"
    """constant: eta; growing: eta_t = tau (t + 2) / 2 in round t, of the theory, instead of eta. Paper: constant."""
    pairs: Literal["iid", "best_worst", "playoff"] = "playoff"
    """iid: independent pairs with drawn labels, as the theory has it; best_worst by score; playoff by preference.
    Paper: playoff with a preference model, best_worst with a reward model."""
    rounds: int = 3
    """Rounds of sampling and fitting. Paper: 3."""
    prompts_per_round: int | None = None
    """Prompts a round; None: an equal share of the data, so that each round has its own. Paper: 20,000 of 60,000."""
    samples_per_prompt: int = 8
    """Completions of a prompt; a power of two for playoff. Paper: 8."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 5e-7 for 8B models; telos: 3e-4 suits the bundled models."""
    warmup_steps: int = 0
    """Linear warm-up of each round. Paper: 3 % of the steps."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. telos: 1."""
    batch_size: int = 128
    """Pairs an update. Paper: 128."""
    max_new_tokens: int = 64
    """Longest completion. telos: 64."""

    def __post_init__(self) -> None:
        # With a growing schedule tau is all there is: eta_1 = 1.5 tau.
        in_range = self.tau > 0 if self.schedule == "growing" else 0 <= self.tau <= self.eta
        if not self.eta > 0 or not in_range:
            raise TelosError(
                "eta or tau is out of range", expected="eta > 0, 0 <= tau <= eta; tau > 0 with a growing schedule",
                got=f"eta={self.eta}, tau={self.tau}, schedule={self.schedule!r}",
            )  # fmt: skip
        if self.schedule not in ("constant", "growing") or self.pairs not in PAIRS:
            raise TelosError(
                "no such schedule or choice of pairs", expected=f"constant or growing; {' or '.join(PAIRS)}",
                got=f"schedule={self.schedule!r}, pairs={self.pairs!r}",
            )  # fmt: skip
        n = self.samples_per_prompt
        if self.pairs == "playoff" and (n < 2 or n & (n - 1)):
            raise TelosError("a play-off needs a power of two samples", expected="2, 4, 8, ...", got=f"{n}")

    def eta_at(self, number: int) -> float:
        """eta of a round, counted from 1."""
        return self.tau * (number + 2) / 2 if self.schedule == "growing" else self.eta

    def prepare(self, spec: Spec) -> Spec:
        spec.need("purpose", "an oracle of preferences, a reward model, or a function of (prompts, completions)")
        return policy_and_reference(spec)

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        plan = Plan(
            self.rounds, self.prompts_per_round or -(-len(spec.data) // self.rounds), self.samples_per_prompt,
            self.batch_size, self.max_new_tokens,
        )  # fmt: skip
        numbers = itertools.count(1)

        def learner(model: LanguageModel) -> Learner:
            given = {**spec.given, "model": model, "round": next(numbers)}
            return self.learner(spec.replace(given=given), rng)

        return rounds(spec, plan, learner, PAIRS[self.pairs])

    def learner(self, spec: Spec, rng: Rng) -> INPOLearner:
        return INPOLearner(self, spec.given["model"], self.eta_at(spec.given.get("round", 1)))

    def source(self, spec: Spec) -> Source:
        raise TelosError("inpo has a source for each stage of a round", fix="see stages")


def independent(judged: Judged, generator: torch.Generator) -> Tensor:
    """Pairs (P, 3) of independent completions, each labelled by one draw from the oracle's chance."""
    return pairs.independent(pairs.labelled(judged.prefers, generator))


def best_worst(judged: Judged, generator: torch.Generator) -> Tensor:
    """The highest score (an oracle's: mean chance against the others) against the lowest."""
    return pairs.best_worst(judged.scores)


def playoff(judged: Judged, generator: torch.Generator) -> Tensor:
    """The winner of winners against the loser of losers."""
    return pairs.playoff(judged.prefers)


PAIRS: dict[str, Callable[[Judged, torch.Generator], Tensor]] = {
    "iid": independent,
    "best_worst": best_worst,
    "playoff": playoff,
}


def inpo_ratios(
    log_probs: Float[Tensor, "b 2"],
    reference: Float[Tensor, "b 2"],
    current: Float[Tensor, "b 2"],
    eta: float,
    tau: float,
) -> Float[Tensor, "b 2"]:
    """log pi less its two anchors; the gradient goes through log_probs only.

    Args:
        reference, current: summed log-probs of the same completions under pi_ref and pi_t.
    """
    return preferences.anchored(log_probs, (tau / eta, reference), (1 - tau / eta, current))


def inpo_loss(ratios: Float[Tensor, "b 2"], eta: float) -> Float[Tensor, "b"]:
    """(h - 1 / (2 eta))^2 for pairs with the preferred completion first."""
    return preferences.squared(preferences.margin(ratios), eta)


class INPOLearner(Learner):
    """The policy and its optimiser in one round.

    Args:
        eta: of this round.
    """

    constant: ClassVar[tuple[str, ...]] = ("model", "eta")

    def __init__(self, method: INPO, model: LanguageModel, eta: float):
        self.method, self.model, self.eta = method, model, eta
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Pairs, rng: Rng, micro: int = 1) -> Metrics:
        m, sums = self.method, Accumulator()
        ahead = margin = moved = torch.zeros((), device=self.model.device)
        for part in split(batch, micro):
            log_probs = sequence_log_probs(self.model, part.sequences)
            ratios = inpo_ratios(log_probs, part.reference, part.current, self.eta, m.tau)
            sums.add(inpo_loss(ratios, self.eta).sum(), len(part))
            h = preferences.margin(ratios.detach())
            ahead, margin = ahead + (h > 0).sum() + 0.5 * (h == 0).sum(), margin + h.sum()
            moved = moved + (log_probs.detach() - part.current).mean(-1).sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        ahead, margin, moved = sums.totals(ahead, margin, moved)
        count = len(batch)
        return {
            "loss": loss,
            "accuracy": ahead / count,
            "margin": margin / count,
            "log_ratio_to_round": moved / count,
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
