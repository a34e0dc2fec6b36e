r"""RSO: an offline loss of preferences on pairs that rejection sampling draws from the estimated optimal policy.

Liu et al. 2023, arXiv 2309.06657. The optimum of E[r] - beta KL(pi || pi_sft) is the SFT policy tilted by the reward.
A loss of pairs is a maximum-likelihood fit of it, which wants its pairs from there: those of the SFT policy or of
unknown old policies lie elsewhere, and where the policy cannot represent the optimum they pull it elsewhere, too.

    pi_r(y|x) = pi_sft(y|x) exp(r(x,y) / beta) / Z(x)
    a candidate y ~ pi_sft is accepted with probability exp((r(x,y) - r_max) / beta)

r_max is the maximum over the candidates that are left, taken anew after each pass, until num_samples are accepted;
strings count once. The share of a first pass is E_sft[exp((r - r_max) / beta)] (theorem 1). The accepted ones are
paired, the likelier of each pair is preferred, and with h = log pi(y_w|x)/pi_sft(y_w|x) - log pi(y_l|x)/pi_sft(y_l|x)

    sigmoid_norm  -log sigma(gamma h)                                        (DPO's, with a gamma of its own)
    hinge_norm    max(0, 1 - gamma h)
    hinge         max(0, 1 - gamma (log pi(y_w|x) - log pi(y_l|x)))
    slic          max(0, 1/gamma - log pi(y_w|x) + log pi(y_l|x)) - lambda log pi(y_ref|x)

A pairwise judge rho becomes a reward through one random completion y_b of each prompt: r(x,y) = logit rho(x, y, y_b).

What differs from the paper and why:
- The judge is given: any purpose, reward model or oracle. `telos fit reward_model` fits one to pairs.
- A point-wise purpose ranks by its scores; an oracle is asked about all pairs of the accepted, not only those used.
- No checkpoint is picked by the judge's win rate: the last one is the product.
- AdamW in place of Adafactor.
- The paper leaves open what happens with too few distinct candidates: all are taken, and it is said once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Source, Spec, Stage, Stages, split
from telos.core.products import Completions
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Demonstrations, Preferences, Prompts
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel
from telos.lm.products import LanguagePolicy
from telos.lm.rollouts import scores
from telos.lm.rounds import Collector, Judged, Judgements, JudgeSource, judged, judgements, with_answers
from telos.lm.setup import OPTIMIZERS, policy_and_reference, prepare_groups, step_optimizer
from telos.lm.tokens import Ids, Ranked, TokenGroups, TokenReport, tokenise, tokenise_prompts
from telos.ops import pairs, preferences
from telos.purposes.oracles import Oracle, as_oracle, asked

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

PAPER = {
    "method": "RSO",
    "title": "Statistical Rejection Sampling Improves Preference Optimization",
    "arxiv": "2309.06657",
    "year": 2023,
    "url": "https://arxiv.org/abs/2309.06657",
    "purpose": ["preference"],
    "product": "Generator",
    "data": "preference pairs + prompts",
    "summary": "Draws its training pairs from the estimated optimum by rejection sampling with a reward model; "
    "logistic or hinge loss.",
    "claim": "On a misspecified bit-string bandit, rejection-sampled pairs give more KL-regularised true reward than "
    "as many pairs drawn from the SFT policy or from an old one, with each of three losses.",
    "paper_claim": {
        "where": "main table: proxy, gold and AutoSxS win rates on TL;DR and HH; ablations of the sources of pairs",
        "text": "With each of three losses, pairs that were rejection-sampled from the estimated optimum give a higher "
        "win rate than pairs of the SFT policy, and these a higher one than the human pairs themselves.",
        "value": "win rate against SFT targets on TL;DR by the proxy, by a gold model and by AutoSxS: DPO 84.35, 76.09 "
        "and 67.72; logistic loss on SFT samples 88.63, 78.14 and 69.02; RSO 92.37, 82.22 and 71.86",
        "data": "Reddit TL;DR and Anthropic HH (helpful): human pairs for the ranking model and for DPO, prompts for "
        "the rest",
        "model": "T5-large (770M) and T5-XXL (11B); a pairwise ranking model of 11B",
        "mechanism": "The policy class cannot represent the optimum, so the fit depends on where its pairs lie. All "
        "strings of 8 bits are enumerated: the optimum, the reward reached and the KL are exact, and only the source "
        "of the pairs differs. Texts, an estimated reward and judges are not tested there.",
    },
    "equations": [
        r"\pi_r(y\mid x)=\frac{1}{Z(x)}\,\pi_{\mathrm{sft}}(y\mid x)\exp\left(\frac{r(x,y)}{\beta}\right)",
        r"P(\mathrm{accept}\;y)=\exp\left(\frac{r(x,y)-r_{\max}}{\beta}\right),\quad y\sim\pi_{\mathrm{sft}}",
        r"r(x,y)=\log\frac{\rho(x,y,y_b)}{1-\rho(x,y,y_b)}",
        r"h=\log\frac{\pi_\theta(y_w\mid x)}{\pi_{\mathrm{sft}}(y_w\mid x)}"
        r"-\log\frac{\pi_\theta(y_l\mid x)}{\pi_{\mathrm{sft}}(y_l\mid x)}",
        r"\mathcal L_{\mathrm{sigmoid}}=-\mathbb E\left[\log\sigma(\gamma h)\right],\quad"
        r"\mathcal L_{\mathrm{hinge}}=\mathbb E\left[\max(0,1-\gamma h)\right]",
        r"\mathcal L_{\mathrm{SLiC}}=\mathbb E\left[\max\left(0,\delta-\log\pi_\theta(y_w\mid x)"
        r"+\log\pi_\theta(y_l\mid x)\right)-\lambda\log\pi_\theta(y_{\mathrm{ref}}\mid x)\right]",
    ],
    "deviations": [
        "The judge is given, not trained here.",
        "An oracle is asked about all pairs of the accepted candidates.",
        "The last checkpoint is the product; AdamW in place of Adafactor.",
    ],
    "traps": [
        "beta of sampling and gamma of the loss are different knobs; DPO ties them, TRL's hinge calls gamma beta.",
        "beta must be on the reward's scale, which for a pairwise judge is that of logits.",
        "Candidates sorted by reward bias the sample: the last pass stops at the quota.",
        "hinge without a reference drifts and hacks its judge: do not report the judge's win rate alone.",
        "Equal candidates count once, so a cold policy may have fewer than num_samples.",
    ],
    "terms": ["SVM", "SLiC-HF", "best-of-N", "reward-ranked fine-tuning", "RLHF", "off-policy"],
    "usage": [
        "telos fit rso --data prompts.jsonl --model telos:tiny --purpose keywords:good1,good2 --candidates 16 "
        "--num-samples 4 --temperature 1 --gamma 0.3 --steps 12 --batch-size 16 --learning-rate 3e-4 "
        "--max-new-tokens 16 --out runs/rso",
        "telos fit rso --data pairs.jsonl --pairs direct --loss hinge_norm --model telos:tiny --steps 12 "
        "--batch-size 16 --learning-rate 3e-4 --out runs/slic-direct",
        'prompts = telos.load("prompts.jsonl")',
        "method = telos.RSO(candidates=16, num_samples=4, temperature=1, learning_rate=3e-4, max_new_tokens=16)",
        'policy = method.fit(prompts, model="telos:tiny", purpose="keywords:good1,good2", steps=6)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit rso --data Anthropic/hh-rlhf --model EleutherAI/pythia-2.8b --purpose pair_model.py:prefers "
    "--beta 0.5 --gamma 0.05 --candidates 64 --num-samples 8 --batch-size 32 --learning-rate 1e-6 "
    "--max-new-tokens 256 --steps 20000",
}


@dataclass(frozen=True)
class RSO(Method):
    """Preference optimisation on rejection-sampled pairs; `steps` are those of the fit, after the sampling.

    Given: model, purpose (an oracle of preferences, or anything that scores), reference (default: the model as it
    was), lora. Learns from prompts, or from pairs: as they are, or for their prompts.
    """

    data: ClassVar[type] = Prompts
    accepts: ClassVar[tuple[type, ...]] = (Preferences,)
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose", "reference", "lora")
    shares: ClassVar[bool] = True

    pairs: Literal["auto", "rso_sample_rank", "sft_sample_rank", "direct"] = "auto"
    """rso_sample_rank: accepted candidates, ranked; sft_sample_rank: samples as they come, ranked; direct: the data's
    own pairs; auto: rso_sample_rank with a purpose, direct without. Paper: rso_sample_rank."""
    loss: Literal["sigmoid_norm", "hinge_norm", "hinge", "slic", "raft", "rest"] = "sigmoid_norm"
    """On pairs: sigmoid_norm (DPO), hinge_norm, hinge (no reference), slic (its SFT term, too). For comparison raft
    imitates the best candidate, rest all with a high one. Paper: sigmoid_norm and hinge_norm."""
    gamma: float = 0.05
    """Slope of the loss, > 0: a margin of 1 / gamma nats is enough for a hinge. Paper: 0.05 of 0.005, 0.05, 0.5."""
    beta: float = 0.5
    """Of the sampling, >= 0, in the unit of the rewards: small is greedy (0: the highest), large takes all.
    Paper: 0.5 of 0, 0.05, 0.5, 5."""
    ranking: Literal["first_round", "tournament"] = "first_round"
    """first_round: disjoint pairs; tournament: winners play on, n - 1 pairs. Paper: first_round."""
    candidates: int = 64
    """Samples of each prompt that are scored. Paper: 64."""
    num_samples: int = 8
    """Those of them that are kept, at most `candidates`. Paper: 8."""
    temperature: float = 0.7
    """Of sampling. Paper: 0.7."""
    top_k: int = 40
    """Of sampling; 0: all tokens. Paper: 40."""
    sft_weight: float = 0.1
    """slic only: lambda, weight of log pi(y_ref), >= 0. telos: 0.1."""
    targets: str | None = None
    """slic only: the prompts' column with y_ref; None: the preferred one of the pair. telos: None."""
    threshold: float = 0.7
    """rest only: imitate candidates above it, rewards of a prompt scaled to 0 to 1. Paper: 0.7."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 1e-5 with Adafactor; telos: 3e-4 suits the bundled models."""
    warmup_steps: int = 0
    """Linear warm-up, then constant. telos: 0."""
    max_grad_norm: float = 10.0
    """Clip of the global gradient norm. telos: as DPO."""
    batch_size: int = 32
    """Pairs an update. Paper: 32."""
    max_new_tokens: int = 64
    """Longest completion that is sampled. telos: 64."""
    judge_batch: int = 64
    """Prompts whose candidates are sampled and judged in one step. telos: 64."""
    max_length: int | None = None
    """direct only: tokens of prompt and completion. None: the context. telos: as DPO."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """direct only: what happens to a pair whose completion alone is too long. telos: as DPO."""
    boundary: Literal["joint", "separate"] = "joint"
    """direct only: whether prompt and completion are tokenised together. telos: as DPO."""

    def __post_init__(self) -> None:
        if not self.gamma > 0 or not 0 <= self.beta < float("inf") or not self.sft_weight >= 0:
            raise TelosError(
                "gamma, beta or sft_weight is out of range", expected="gamma > 0, beta >= 0, sft_weight >= 0",
                got=f"gamma={self.gamma}, beta={self.beta}, sft_weight={self.sft_weight}",
            )  # fmt: skip
        for name, known in (("pairs", PAIRS), ("loss", LOSSES), ("ranking", RANKINGS)):
            if getattr(self, name) not in known:
                raise TelosError(f"no such {name}", expected=" or ".join(known), got=str(getattr(self, name)))
        if not 2 <= self.num_samples <= self.candidates or self.judge_batch < 1:
            raise TelosError(
                "num_samples, candidates or judge_batch is out of range",
                expected="2 <= num_samples <= candidates, judge_batch >= 1",
                got=f"num_samples={self.num_samples}, candidates={self.candidates}, judge_batch={self.judge_batch}",
            )  # fmt: skip
        if self.imitates and self.pairs in ("direct", "sft_sample_rank"):
            raise TelosError(f"loss={self.loss} imitates candidates", got=f"pairs={self.pairs}", fix="leave pairs out")

    @property
    def imitates(self) -> bool:
        """Whether it learns from single texts (the comparators) instead of pairs."""
        return self.loss in ("raft", "rest")

    def chosen_pairs(self, spec: Spec) -> str:
        """Where the pairs come from, with auto resolved."""
        if self.pairs != "auto":
            return self.pairs
        return "rso_sample_rank" if self.imitates or spec.given.get("purpose") is not None else "direct"

    def prepare(self, spec: Spec) -> Spec:
        if self.chosen_pairs(spec) == "direct":
            if not isinstance(spec.data, Preferences):
                raise TelosError(
                    "there is no judge, and no pairs either", got="prompts",
                    fix="pass purpose=... (or --purpose) to rank samples, or data with chosen and rejected texts",
                )  # fmt: skip
            return prepare_groups(spec, self)
        spec.need("purpose", "an oracle of preferences, a reward model, or a function of (prompts, completions)")
        if isinstance(spec.data, Preferences):
            asked_for = [prompt for prompt in spec.data.prompts if prompt is not None]
            if len(asked_for) < len(spec.data):
                raise TelosError("these pairs have implicit prompts", fix="give prompts apart, or use pairs=direct")
            spec = spec.replace(data=Prompts(asked_for, spec.data.origin, {"chosen": spec.data.chosen}))
        spec = policy_and_reference(spec)
        answers = reference_answers(spec, self) if self.loss == "slic" and self.targets is not None else None
        return spec.replace(given={**spec.given, "answers": answers})

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        groups = spec.data
        if spec.steps == 0:
            return LanguagePolicy(spec.given["model"])
        if not isinstance(groups, TokenGroups):
            source = JudgeSource(Candidates(spec, self), self.judge_batch)
            sampling = Collector(LanguagePolicy(spec.given["model"]), source.room())
            found = yield Stage("sample", sampling, source, source.steps, evaluated=False)
            assert isinstance(found, Judgements)
            groups = token_groups(found.judged, self, spec.given["answers"] is not None)
        order = Epochs(groups, self.batch_size, spec.rng.at("order"), groups.lengths)
        return (yield Stage("train", self.learner(spec, rng), order, spec.steps))

    def learner(self, spec: Spec, rng: Rng) -> RSOLearner:
        return RSOLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> Source:
        raise TelosError("rso has a source for each of its stages", fix="see stages")


def sigmoid_norm(log_probs: Float[Tensor, "b k"], reference: Float[Tensor, "b k"], method: RSO) -> Float[Tensor, "b"]:
    """-log sigma(gamma h) of log-ratios to the reference; DPO where gamma is its beta."""
    return preferences.sigmoid(preferences.margin(preferences.anchored(log_probs, (1.0, reference))), method.gamma)


def hinge_norm(log_probs: Float[Tensor, "b k"], reference: Float[Tensor, "b k"], method: RSO) -> Float[Tensor, "b"]:
    """max(0, 1 - gamma h) of log-ratios to the reference."""
    return preferences.hinge(preferences.margin(preferences.anchored(log_probs, (1.0, reference))), method.gamma)


def hinge(log_probs: Float[Tensor, "b k"], reference: Float[Tensor, "b k"], method: RSO) -> Float[Tensor, "b"]:
    """max(0, 1 - gamma h) of log-probs themselves: SLiC's calibration in units of its margin."""
    return preferences.hinge(preferences.margin(log_probs), method.gamma)


def slic(log_probs: Float[Tensor, "b k"], reference: Float[Tensor, "b k"], method: RSO) -> Float[Tensor, "b"]:
    """SLiC-HF (Zhao et al. 2023, arXiv 2305.10425): max(0, delta - h) of log-probs, delta = 1 / gamma, and the SFT
    term on the third text, or on the preferred one where there are two."""
    target = log_probs[:, 2] if log_probs.shape[1] == 3 else log_probs[:, 0]
    return hinge(log_probs[:, :2], reference, method) / method.gamma - method.sft_weight * target


def imitation(log_probs: Float[Tensor, "b 1"], reference: Float[Tensor, "b 1"], method: RSO) -> Float[Tensor, "b"]:
    """-log pi of the text: what RAFT (Dong et al. 2023, arXiv 2304.06767) and one round of ReST (Gulcehre et al. 2023,
    arXiv 2308.08998) minimise, each on the texts that it selects."""
    return -log_probs[:, 0]


LOSSES: dict[str, Callable[[Tensor, Tensor, RSO], Tensor]] = {
    "sigmoid_norm": sigmoid_norm,
    "hinge_norm": hinge_norm,
    "hinge": hinge,
    "slic": slic,
    "raft": imitation,
    "rest": imitation,
}
PAIRS = ("auto", "rso_sample_rank", "sft_sample_rank", "direct")
RANKINGS: dict[str, Callable[[Tensor], Tensor]] = {"first_round": pairs.independent, "tournament": pairs.tournament}
GREEDY = 1e-6
"""beta = 0 as a number, in units of the range of the rewards."""


def acceptance_rate(log_sft: Float[Tensor, "m"], rewards: Float[Tensor, "m"], beta: float) -> Float[Tensor, ""]:
    """Theorem 1: the share of candidates that a first pass accepts, E_sft[exp((r - r_max) / beta)]."""
    return (log_sft + (rewards - rewards.max()) / beta).logsumexp(0).exp()


def point_wise(
    oracle: Oracle, prompts: Sequence[str], texts: Sequence[str], baselines: Sequence[str]
) -> Float[Tensor, "n"]:
    """logit of the chance that a text is preferred to its prompt's baseline, within +-13.8 (a chance of 1e-6)."""
    chances = torch.from_numpy(asked(oracle, prompts, texts, baselines))
    return chances.logit(1e-6).float()


def scaled(rewards: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
    """The rewards of a prompt from 0 to 1; all 0 where they are equal."""
    return (rewards - rewards.min()) / (rewards.max() - rewards.min()).clamp(min=1e-12)


def selected(
    rewards: Float[Tensor, "n"], fresh: Bool[Tensor, "n"], method: RSO, generator: torch.Generator, *, reject: bool
) -> Int[Tensor, "k"]:
    """The candidates of one prompt to learn from, in random order.

    Args:
        fresh: False for a candidate whose text an earlier one has.
        reject: accept by reward; else the first num_samples.
    """
    places = fresh.nonzero()[:, 0]
    left = rewards[places]
    if method.loss == "raft":
        return places[left.argmax()][None]
    if method.loss == "rest":
        return places[scaled(left) > method.threshold]
    if reject:
        beta = method.beta or GREEDY * max(float(left.max() - left.min()), 1e-30)
        places = places[pairs.rejection_sample(left, beta, method.num_samples, generator)]
    places = places[: method.num_samples]
    # The first to be accepted tend to score higher: pairs must not be of neighbours in that order.
    return places[torch.randperm(len(places), generator=generator)]


def reference_answers(spec: Spec, method: RSO) -> list[Ids]:
    """Token ids of y_ref for each prompt, closed or cut at max_new_tokens."""
    column = spec.data.columns.get(method.targets)
    if column is None:
        raise TelosError(
            f"no column '{method.targets}' for slic's targets", expected=", ".join(spec.data.columns) or "a column",
            fix="name one of the data's columns, or leave targets out",
        )  # fmt: skip
    texts = Demonstrations(spec.data.prompts, [str(text) for text in column])
    groups = tokenise(spec.given["model"], texts, overlong="truncate", boundary=method.boundary)
    return [ids[: method.max_new_tokens] for (ids,) in groups.completions]


def taken(completions: Completions, rows: Tensor) -> Completions:
    """The completions at `rows`."""
    columns = ("tokens", "lengths", "boundaries", "log_probs", "finished")
    return replace(
        completions,
        texts=[completions.texts[i] for i in rows.tolist()],
        prompts=[completions.prompts[i] for i in rows.tolist()],
        **{name: getattr(completions, name)[rows] for name in columns},
    )


def token_groups(judged: Judged, method: RSO, targets: bool) -> TokenGroups:
    """What is trained on: pairs, preferred first, then their target if there is one; or single texts.

    Args:
        judged: completions of one prompt side by side, empty where fewer were kept; a target is the last.
    """
    if method.imitates:
        rows = (judged.sequences.lengths > judged.sequences.boundaries).nonzero()
    else:
        rows = RANKINGS[method.ranking](judged.prefers)
        if targets:
            rows = torch.cat([rows, torch.full_like(rows[:, :1], judged.prefers.shape[1] - 1)], 1)
    if len(rows) == 0:
        raise TelosError(
            "nothing is left to learn from", got=f"{len(judged)} prompts whose candidates are all equal or tied",
            fix="more candidates, a higher temperature, or a finer purpose",
        )  # fmt: skip
    prompt, texts = rows[:, :1].cpu(), rows[:, 1:].cpu()
    ids = judged.sequences.tokens.cpu().numpy()
    starts, ends = judged.sequences.boundaries.cpu(), judged.sequences.lengths.cpu()
    return TokenGroups(
        [ids[p, i[0], : starts[p, i[0]]] for (p,), i in zip(prompt.tolist(), texts.tolist(), strict=True)],
        [
            tuple(ids[p, i, starts[p, i] : ends[p, i]] for i in row)
            for (p,), row in zip(prompt.tolist(), texts.tolist(), strict=True)
        ],
        TokenReport(len(rows), len(rows)),
        judged.reference.cpu()[prompt, texts],
        judged.reference.device,
    )


class Candidates:
    """The policy writes candidates of each prompt, which are judged and selected from. A `Judge`.

    Args:
        spec: with Prompts as data, and model, reference, purpose and answers (y_ref, or None) as given.
    """

    def __init__(self, spec: Spec, method: RSO):
        self.method, self.judge, self.reference = method, spec.given["purpose"], spec.given["reference"]
        self.oracle, self.answers, self.columns = as_oracle(self.judge), spec.given["answers"], spec.data.columns
        self.reject = method.chosen_pairs(spec) == "rso_sample_rank"
        self.count = method.candidates if self.reject else method.num_samples
        self.samples = {"raft": 1, "rest": method.candidates}.get(method.loss, method.num_samples)
        self.prompts = tokenise_prompts(spec.given["model"], spec.data, method.max_new_tokens)
        self.rng, self.device, self.warned = spec.rng.at("sample"), self.reference.device, False

    @property
    def sizes(self) -> tuple[int, int, int]:
        width = max(map(len, self.prompts)) + self.method.max_new_tokens
        return len(self.prompts), self.samples + (self.answers is not None), width

    def judged(self, policy: LanguagePolicy, chosen: range) -> Judged:
        """What is kept for the prompts at these places; slots that stay empty hold completions of no token."""
        rng, model, m = self.rng.at(chosen.start), policy.model, self.method
        # A pairwise judge measures all candidates of a prompt against one more sample.
        versus = self.oracle is not None and self.reject
        drawn = policy.generate(
            [self.prompts[i] for i in chosen], n=self.count + versus, rng=rng.torch(model.device),
            temperature=m.temperature, top_k=m.top_k, max_new_tokens=m.max_new_tokens,
        )  # fmt: skip
        numbers = torch.arange(len(drawn.texts)).view(len(chosen), -1)
        own = taken(drawn, numbers[:, : self.count].flatten())
        rewards = self.rewards(own, [drawn.texts[i] for i in numbers[:, -1].tolist()], model, chosen)
        places, present = self.select(own, rewards, rng)
        kept = taken(own, (torch.arange(len(chosen))[:, None] * self.count + places).flatten())
        said = rewards.gather(1, places)
        prefers = self.ranked(kept, said, model, chosen).where(present[:, :, None] & present[:, None, :], 0.5)
        if self.answers is not None:
            kept = with_answers(kept, [self.answers[i] for i in chosen], model)
            present, said = (torch.nn.functional.pad(part, (0, 1), value=1) for part in (present, said))
            prefers = torch.nn.functional.pad(prefers, (0, 1, 0, 1), value=0.5)
        kept = replace(kept, lengths=torch.where(present.flatten(), kept.lengths, kept.boundaries))
        return judged(model, self.reference, kept, said, prefers)

    def rewards(
        self, own: Completions, baselines: list[str], model: LanguageModel, chosen: range
    ) -> Float[Tensor, "g n"]:
        """Of each candidate; 0 for samples that a pairwise judge only ranks."""
        shape = (len(chosen), self.count)
        if self.oracle is None:
            return scores(self.judge, own, model.tokenizer, self.rows(chosen, self.count)).view(shape)
        if not self.reject:
            return torch.zeros(shape)
        versus = [text for text in baselines for _ in range(self.count)]
        return point_wise(self.oracle, own.prompts, own.texts, versus).view(shape)

    def select(self, own: Completions, rewards: Tensor, rng: Rng) -> tuple[Int[Tensor, "g k"], Bool[Tensor, "g k"]]:
        """Which candidates are kept, and which of the slots are filled; the others repeat a candidate."""
        m = self.method
        places = torch.zeros(len(rewards), self.samples, dtype=torch.int64)
        present = torch.zeros(places.shape, dtype=torch.bool)
        fewest = m.num_samples
        for row, values in enumerate(rewards):
            texts = own.texts[row * self.count : (row + 1) * self.count]
            fresh = torch.tensor([texts.index(text) == i for i, text in enumerate(texts)])
            found = selected(values, fresh, m, rng.at("select", row).torch(), reject=self.reject)
            places[row, : len(found)], present[row, : len(found)] = found, True
            fewest = min(fewest, int(fresh.sum()))
        if fewest < m.num_samples and not m.imitates and not self.warned:
            self.warned = True
            print(
                f"rso: a prompt has {fewest} distinct candidates of {self.count}, fewer than num_samples="
                f"{m.num_samples}; all of them are taken (a higher temperature or more candidates would help)",
                file=sys.stderr,
            )
        return places, present

    def ranked(self, kept: Completions, said: Tensor, model: LanguageModel, chosen: range) -> Float[Tensor, "g k k"]:
        """The chance that one is preferred to another."""
        if self.method.imitates:
            return torch.full((*said.shape, self.samples), 0.5)
        if self.oracle is None:
            return pairs.bradley_terry(said)
        return judgements(self.judge, kept, self.samples, model, self.rows(chosen, self.samples))[1]

    def rows(self, chosen: range, count: int) -> dict[str, list[Any]]:
        """The data's further columns, one value a completion."""
        return {name: [values[i] for i in chosen for _ in range(count)] for name, values in self.columns.items()}


class RSOLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: RSO, model: LanguageModel):
        self.method, self.model, self.loss = method, model, LOSSES[method.loss]
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Ranked, rng: Rng, micro: int = 1) -> Metrics:
        m, sums = self.method, Accumulator()
        correct = first = margin = torch.zeros((), device=self.model.device)
        for part in split(batch, micro):
            current = sequence_log_probs(self.model, part.sequences)
            sums.add(self.loss(current, part.reference, m).sum(), len(part))
            ratios = preferences.anchored(current.detach(), (1.0, part.reference))
            first = first + ratios[:, 0].sum()
            if not m.imitates:
                h = preferences.margin(ratios[:, :2])
                correct, margin = correct + (h > 0).sum() + 0.5 * (h == 0).sum(), margin + h.sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        correct, first, margin = sums.totals(correct, first, margin)
        count = len(batch)
        metrics: Metrics = {"loss": loss, "first_log_ratio": first / count, "grad_norm": norm}
        if not m.imitates:
            metrics |= {"accuracy": correct / count, "margin": m.gamma * margin / count}
        return metrics

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
