r"""DNO: a game of general preferences solved by rounds of contrastive regression on the current policy's own samples.

Rosset et al. 2024, arXiv 2404.03715. With r_t(x, y) = E_{y' ~ pi_t} P(y > y' | x), a win rate, and log-ratios to pi_t

    D = r_t(x, y_1) - r_t(x, y_2),    d = eta [log pi(y_1)/pi_t(y_1) - log pi(y_2)/pi_t(y_2)]
    soft:  L = -sigma(D) log sigma(d) - sigma(-D) log sigma(-d)
    hard:  L = -log sigma(d),  y_1 preferred

eta is an inverse step size. The soft loss has its minimum at pi_{t+1} = pi_t exp(r_t / eta) / Z; the average of all
rounds' policies approaches the equilibrium, the last one may circle around it. DNO-Prct is the practical form: hard
labels, a teacher's answer among the candidates, only pairs with a clear lead, and pairs of earlier rounds again.
Appendix A pulls to a reference: pi_t^(1 - tau/eta) pi_ref^(tau/eta) in place of pi_t.

What differs from the paper and why:
- The product is the last round's policy, as in the paper's practice; `--out` keeps every round's policy under stages/,
  of which the theory's even mixture can be made. Exact games have it in dno_variants.py.
- The paper does not say what its repetition detector is: here a repeated run of `repeated_tokens` tokens.
- "Up to 30 %, 15 %, ..." of earlier rounds' pairs is read as shares of those rounds' own pairs.
- Sampling from the geometric mixture (option II of appendix A) is not offered; both options have the same loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Source, Spec, Stage, Stages, split
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Demonstrations, Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.rounds import Judged, Pairs, PairSet, Plan, pooled, rounds
from telos.lm.setup import OPTIMIZERS, policy_and_reference, step_optimizer
from telos.lm.tokens import Ids, Sequences, tokenise
from telos.ops import pairs, preferences

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

PAPER = {
    "method": "DNO",
    "title": "Direct Nash Optimization: Teaching Language Models to Self-Improve with General Preferences",
    "arxiv": "2404.03715",
    "year": 2024,
    "url": "https://arxiv.org/abs/2404.03715",
    "purpose": ["preference"],
    "product": "Generator",
    "data": "prompts + preference oracle, optional teacher",
    "summary": "Solves a preference game by rounds of contrastive regression on the current policy's own samples, a "
    "teacher's answer among them.",
    "claim": "On a 30-arm game with cyclic preferences DNO's average policy is less exploitable than Bradley-Terry "
    "RLHF and than iterative DPO with a fixed reference.",
    "paper_claim": {
        "where": "main results on AlpacaEval 2.0; theorems 1 and 2",
        "text": "Rounds on its own judged samples and a teacher's answers lift a 7B model on AlpacaEval above offline "
        "DPO, SPIN and variants of itself without parts; on average its policies approach the equilibrium.",
        "value": "length-controlled / plain win rate: SFT 10.76 / 6.99, SPIN 16.18 / 16.13, offline DPO 19.49 / "
        "18.22, restrictive 21.61 / 19.21, DNO 22.59 / 24.97; with ten times the prompts 33.05 / 34.38",
        "data": "UltraFeedback's 60,000 prompts in three parts; 600,000 in six",
        "model": "Orca-2.5-SFT (Mistral-7B); GPT-4-Turbo judges and is the teacher",
        "mechanism": "Preferences that run in a circle have no reward whose optimum cannot be exploited; on 30 "
        "responses exploitability is exact. Bit strings with a teacher, a graded score and a policy class that "
        "cannot represent everything show what judged pairs with a lead do against always preferring the teacher. "
        "Language models and a judge's own biases are not tested.",
    },
    "equations": [
        r"r_t(x,y)=\mathbb E_{y'\sim\pi_t}\left[P(y\succ y'\mid x)\right],\quad\Delta=r_t(x,y_1)-r_t(x,y_2)",
        r"\Delta_\pi=\eta\log\frac{\pi_\theta(y_1\mid x)}{\pi_t(y_1\mid x)}"
        r"-\eta\log\frac{\pi_\theta(y_2\mid x)}{\pi_t(y_2\mid x)}",
        r"\mathcal L_{\mathrm{soft}}=-\mathbb E\left[\sigma(\Delta)\log\sigma(\Delta_\pi)"
        r"+\sigma(-\Delta)\log\sigma(-\Delta_\pi)\right]",
        r"\mathcal L_{\mathrm{hard}}=-\mathbb E\left[\log\sigma(\Delta_\pi)\right],\quad y_1\succ y_2",
        r"\pi_{t+1}\propto\pi_t\exp\left(\frac{r_t}{\eta}\right)",
        r"\pi_t\to\pi_t^{1-\tau/\eta}\,\pi_{\mathrm{ref}}^{\tau/\eta}",
    ],
    "deviations": [
        "The last round's policy is returned; the even mixture of all rounds' is left to the reader of stages/.",
        "The repetition detector is ours: a run of tokens that occurs again.",
        "Shares of replayed pairs are of the earlier rounds' own pairs, drawn at random.",
        "Sampling from the geometric mixture is not offered.",
    ],
    "traps": [
        "eta is an inverse step size: INPO's eta, and 1 over Nash-MD's.",
        "Hard labels on all pairs, near-ties included, need the filter on leads; soft ones need win rates without "
        "self-comparisons.",
        "The anchor is this round's policy, not the first one: its log-probs are computed anew for old pairs, too.",
        "On a circle the last policy looks like a failure: the theory speaks of the average.",
        "Answers grow longer in the first rounds (twofold and more in the paper): report lengths.",
    ],
    "terms": ["RLAIF", "self-play", "zero-sum", "distillation", "minimax", "on-policy", "alignment"],
    "usage": [
        "telos fit dno --data prompts.jsonl --model telos:tiny --purpose keywords:good1,good2 --eta 0.3 "
        "--least-score 0.5 --student-margin 0.5 --rounds 2 --steps 12 --batch-size 16 --learning-rate 3e-4 "
        "--max-new-tokens 16 --out runs/dno",
        'prompts = telos.load("prompts.jsonl")',
        'method = telos.DNO(loss="soft", pairs="every", eta=0.3, rounds=2, learning_rate=3e-4, max_new_tokens=16)',
        'policy = method.fit(prompts, model="telos:tiny", purpose="keywords:good1,good2", steps=6)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit dno --data ultrafeedback_prompts.jsonl --teacher gpt4_answer --model microsoft/Orca-2-7b "
    "--purpose judge.py:six_points --rounds 3 --batch-size 64 --learning-rate 5e-7 --max-new-tokens 1024 --steps 3000",
}


@dataclass(frozen=True)
class DNO(Method):
    """Direct Nash optimisation; by default DNO-Prct. `steps` are shared equally among the rounds.

    Given: model, purpose (an oracle of preferences, whose mean chances are the scores, or anything that scores),
    reference (for tau > 0; default: the model as it was), lora.
    """

    data: ClassVar[type] = Prompts
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")
    shares: ClassVar[bool] = True

    loss: Literal["soft", "hard"] = "hard"
    """soft: cross-entropy to sigma of the difference of win rates; hard: the preferred one wins. Paper: hard."""
    eta: float = 0.1
    """Inverse step size, > 0; small steps where it is large. Paper: 0.1 or 0.05 with hard labels."""
    tau: float = 0.0
    """Pull to the reference, 0 <= tau <= eta (appendix A). Paper: 0."""
    pairs: Literal["every", "full", "restrictive", "spin"] = "full"
    """every: all, as soft labels need; full: those with a clear lead; restrictive: the teacher's wins of these; spin:
    the teacher always wins, nobody judges. Paper: full."""
    regime: Literal["rounds", "offline", "lookahead"] = "rounds"
    """rounds; offline: all steps on the first policy's pairs; lookahead: half of the steps in rounds, half from the
    first policy on all rounds' pairs. Paper: rounds."""
    teacher: str | None = None
    """A column of the data with a teacher's answers, or a model of the same vocabulary that writes them (temperature
    1). Paper: GPT-4-Turbo's answers."""
    least_score: float = 5.0
    """Lowest score of a preferred completion. Paper: 5 of 6 points."""
    teacher_margin: float = 2.0
    """Least lead of a preferred teacher's answer, > 0. Paper: 2 points."""
    student_margin: float = 1.0
    """Least lead of a preferred completion of the policy's own, > 0. Paper: 1 point."""
    repeated_tokens: int = 0
    """Length of a run of tokens whose second occurrence bars a completion from being preferred; 0: off. telos: 0."""
    replay: float = 0.3
    """Share of the last round's pairs that are used again, half of it one round further back; hard labels only, since
    win rates are against this round's policy. Paper: 0.3."""
    rounds: int = 3
    """Rounds of sampling and fitting. Paper: 3, or 6 with more prompts."""
    prompts_per_round: int | None = None
    """Prompts a round; None: an equal share of the data. Paper: a third of 60,000."""
    samples_per_prompt: int = 5
    """Completions of a prompt, besides the teacher's. Paper: 5."""
    temperature: float = 0.7
    """Of sampling. Paper: 0.7."""
    top_p: float = 0.95
    """Nucleus of sampling. Paper: 0.95."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 5e-5 as printed; telos: 3e-4 suits the bundled models."""
    warmup_steps: int = 0
    """Linear warm-up of each round. telos: 0."""
    max_grad_norm: float = 1.0
    """Clip of the global gradient norm. telos: 1."""
    batch_size: int = 64
    """Pairs an update. Paper: 64."""
    max_new_tokens: int = 64
    """Longest completion; a teacher's answer is cut there. telos: 64."""

    def __post_init__(self) -> None:
        if not self.eta > 0 or not 0 <= self.tau <= self.eta:
            raise TelosError(
                "eta or tau is out of range", expected="eta > 0, 0 <= tau <= eta", got=f"eta={self.eta}, tau={self.tau}"
            )
        if not min(self.teacher_margin, self.student_margin) > 0 or self.repeated_tokens < 0:
            raise TelosError(
                "a margin is out of range", expected="margins > 0, repeated_tokens >= 0",
                got=f"{self.teacher_margin}, {self.student_margin}, {self.repeated_tokens}",
            )  # fmt: skip
        for name, known in (
            ("loss", ("soft", "hard")),
            ("pairs", PAIRS),
            ("regime", ("rounds", "offline", "lookahead")),
        ):
            if getattr(self, name) not in known:
                raise TelosError(f"no such {name}", expected=" or ".join(known), got=str(getattr(self, name)))
        if self.pairs in ("restrictive", "spin") and self.teacher is None:
            raise TelosError(f"pairs={self.pairs} needs a teacher", fix="--teacher COLUMN or MODEL")
        if self.pairs == "spin" and self.loss == "soft":
            raise TelosError("spin has no win rates for soft labels", fix="loss=hard")

    def prepare(self, spec: Spec) -> Spec:
        if self.pairs != "spin":
            spec.need("purpose", "an oracle of preferences, a reward model, or a function of (prompts, completions)")
        spec = policy_and_reference(spec)
        return spec.replace(given={**spec.given, "answers": teachers_answers(self, spec)})

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        count = 1 if self.regime == "offline" else self.rounds
        plan = Plan(
            count, self.prompts_per_round or -(-len(spec.data) // count), self.samples_per_prompt, self.batch_size,
            self.max_new_tokens, sampling={"temperature": self.temperature, "top_p": self.top_p},
            replay=self.replay if self.regime == "rounds" and self.loss == "hard" else 0.0,
        )  # fmt: skip
        judge = None if self.pairs == "spin" else spec.given["purpose"]
        ahead = spec.steps // 2 if self.regime == "lookahead" else spec.steps
        playing = spec.replace(steps=ahead, given={**spec.given, "purpose": judge})
        model: LanguageModel = spec.given["model"]
        first = copy.deepcopy(model.network.state_dict()) if self.regime == "lookahead" else {}
        history: list[PairSet] = []
        product = yield from rounds(
            playing, plan, lambda _: self.learner(spec, rng), self.chosen, answers=spec.given["answers"],
            history=history,
        )  # fmt: skip
        if self.regime != "lookahead" or not history:
            return product
        model.network.load_state_dict(first)
        whole = pooled([old.anchored_at(model) for old in history])
        order = Epochs(whole, self.batch_size, rng.at("lookahead"), whole.lengths)
        return (yield Stage("lookahead", self.learner(spec, rng), order, spec.steps - ahead, first=ahead))

    def chosen(self, judged: Judged, generator: torch.Generator) -> Tensor:
        """The pairs of a round, (P, 3)."""
        scores = judged.scores
        if self.repeated_tokens:
            scores = scores.masked_fill(repetitive(judged.sequences, self.repeated_tokens), -torch.inf)
        return PAIRS[self.pairs](scores, self)

    def learner(self, spec: Spec, rng: Rng) -> DNOLearner:
        return DNOLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> Source:
        raise TelosError("dno has a source for each stage of a round", fix="see stages")


def teachers_answers(method: DNO, spec: Spec) -> list[Ids] | None:
    """Token ids of the teacher's answer to each prompt, or None without a teacher."""
    data, model, most = spec.data, spec.given["model"], method.max_new_tokens
    if method.teacher is None:
        return None
    if method.teacher in data.columns:
        texts = Demonstrations(data.prompts, [str(text) for text in data.columns[method.teacher]])
        groups = tokenise(model, texts, overlong="truncate")
        return [ids[:most] for (ids,) in groups.completions]
    try:
        teacher = load_model(method.teacher, spec.device)
    except TelosError as error:
        raise TelosError(
            f"the teacher '{method.teacher}' is neither a column of the data nor a model",
            expected=f"one of {', '.join(data.columns) or 'no columns'}, or a model", got=str(error).splitlines()[0],
        ) from error  # fmt: skip
    if teacher.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        raise TelosError("the teacher has another vocabulary", fix="write its answers into a column of the data")
    rng = spec.rng.at("teacher").torch(teacher.device)
    drawn = LanguagePolicy(teacher).generate(list(data.prompts), rng=rng, max_new_tokens=most)
    rows = zip(drawn.tokens.cpu().numpy(), drawn.boundaries.tolist(), drawn.lengths.tolist(), strict=True)
    return [ids[start:end] for ids, start, end in rows]


def repetitive(sequences: Sequences, run: int) -> Bool[Tensor, "b n"]:
    """Whether a run of `run` tokens of the completion occurs in it again."""
    flat = sequences.flat()
    found = []
    for row, start, end in zip(flat.tokens.tolist(), flat.boundaries.tolist(), flat.lengths.tolist(), strict=True):
        runs = [tuple(row[i : i + run]) for i in range(start, end - run + 1)]
        found.append(len(set(runs)) < len(runs))
    return torch.tensor(found, device=flat.tokens.device).view(sequences.lengths.shape)


def every_pair(scores: Float[Tensor, "g n"], method: DNO) -> Int[Tensor, "p 3"]:
    """All pairs of each prompt, the higher score first; for soft labels equal ones, too, in any order."""
    return as_they_stand(scores) if method.loss == "soft" else pairs.every(pairs.sharp(scores))


def as_they_stand(scores: Float[Tensor, "g n"]) -> Int[Tensor, "p 3"]:
    """All pairs of each prompt as they stand, whatever the scores."""
    g, n = scores.shape
    first, second = torch.triu_indices(n, n, 1, device=scores.device)
    prompts = torch.arange(g, device=scores.device).repeat_interleave(len(first))
    return torch.stack([prompts, first.repeat(g), second.repeat(g)], -1)


def leading_pairs(scores: Float[Tensor, "g n"], method: DNO) -> Int[Tensor, "p 3"]:
    """All pairs whose preferred one scores enough and leads by its margin; a teacher's answer stands last."""
    n = scores.shape[1]
    margin = scores.new_full((len(scores), n, n), method.student_margin)
    if method.teacher is not None:
        margin[:, -1] = method.teacher_margin
    return pairs.beyond(scores, margin, method.least_score)


def restrictive_pairs(scores: Float[Tensor, "g n"], method: DNO) -> Int[Tensor, "p 3"]:
    """Those of the leading pairs in which the teacher's answer is preferred."""
    found = leading_pairs(scores, method)
    return found[found[:, 1] == scores.shape[1] - 1]


def spin_pairs(scores: Float[Tensor, "g n"], method: DNO) -> Int[Tensor, "p 3"]:
    """The teacher's answer against each of the policy's own, whatever the scores."""
    found = as_they_stand(scores)
    return found[found[:, 2] == scores.shape[1] - 1][:, [0, 2, 1]]


PAIRS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "every": every_pair,
    "full": leading_pairs,
    "restrictive": restrictive_pairs,
    "spin": spin_pairs,
}


def dno_ratios(
    log_probs: Float[Tensor, "b 2"],
    current: Float[Tensor, "b 2"],
    reference: Float[Tensor, "b 2"],
    eta: float,
    tau: float = 0.0,
) -> Float[Tensor, "b 2"]:
    """log pi less pi_t's, or less their geometric mixture with pi_ref's; the gradient goes through log_probs only."""
    return preferences.anchored(log_probs, (1 - tau / eta, current), (tau / eta, reference))


def soft_loss(ratios: Float[Tensor, "b 2"], win_rates: Float[Tensor, "b 2"], eta: float) -> Float[Tensor, "b"]:
    """Cross-entropy of sigma(eta h) to sigma of the difference of win rates."""
    labels = (win_rates[:, 0] - win_rates[:, 1]).sigmoid()
    return preferences.soft_sigmoid(preferences.margin(ratios), eta, labels)


def hard_loss(ratios: Float[Tensor, "b 2"], eta: float) -> Float[Tensor, "b"]:
    """-log sigma(eta h), the preferred one first: DPO's with pi_t as its reference."""
    return preferences.sigmoid(preferences.margin(ratios), eta)


class DNOLearner(Learner):
    """The policy and its optimiser in one round."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: DNO, model: LanguageModel):
        self.method, self.model = method, model
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Pairs, rng: Rng, micro: int = 1) -> Metrics:
        m, sums = self.method, Accumulator()
        ahead = margin = lengths = torch.zeros((), device=self.model.device)
        for part in split(batch, micro):
            log_probs = sequence_log_probs(self.model, part.sequences)
            ratios = dno_ratios(log_probs, part.current, part.reference, m.eta, m.tau)
            losses = soft_loss(ratios, part.win_rates, m.eta) if m.loss == "soft" else hard_loss(ratios, m.eta)
            sums.add(losses.sum(), len(part))
            h = preferences.margin(ratios.detach())
            ahead, margin = ahead + (h > 0).sum() + 0.5 * (h == 0).sum(), margin + h.sum()
            lengths = lengths + (part.sequences.lengths - part.sequences.boundaries)[:, 0].sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        ahead, margin, lengths = sums.totals(ahead, margin, lengths)
        count = len(batch)
        return {
            "loss": loss,
            "accuracy": ahead / count,
            "margin": m.eta * margin / count,
            "first_length": lengths / count,
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
