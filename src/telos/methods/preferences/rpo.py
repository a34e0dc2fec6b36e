r"""RPO: DPO plus a small imitation term, which is pessimism about rewards that the preference data leaves open.

Liu et al. 2024, arXiv 2405.16436. Not TRL's `rpo_alpha` (iterative reasoning preference optimisation, 2404.19733) and
not NeMo's RPO (reward-aware preference optimisation): three methods share the letters.

The best policy against the worst reward that fits the pairs D, with a baseline policy that the data covers,

    max_pi min_r  eta E_{a ~ pi, a0 ~ base}[ r(x,a) - r(x,a0) - beta KL(pi || pi_ref) ] + L_D(r)

becomes, after min and max are swapped and r is written as beta log(pi / pi_ref) + beta log Z, one loss to minimise:

    L = eta beta E_{a0 ~ base}[ -log pi(a0|x) ] + E_D[ -log sigma(beta h) ]
    h = log pi(a_cho|x) / pi_ref(a_cho|x) - log pi(a_rej|x) / pi_ref(a_rej|x)

log pi sums over the completion's tokens. The imitation term's weight is eta *times beta*.

What differs from the paper and why:
- Warm-up and then a constant rate, as this family's other methods; the paper decays it by a cosine.
- pi_ref's log-probs are computed once before training.
- Baseline responses that are not the chosen ones are drawn independently of the batch's pairs, which has the same mean.
- The sampled baseline ("reference") holds one completion a pair, drawn once before training.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.products import Product
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Demonstrations, Preferences, Record
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel, load_model
from telos.lm.products import LanguagePolicy
from telos.lm.setup import OPTIMIZERS, prepare_groups, step_optimizer
from telos.lm.tokens import Ranked, Sequences, TokenGroups, tokenise
from telos.ops import preferences

PAPER = {
    "method": "RPO",
    "title": "Provably Mitigating Overoptimization in RLHF: Your SFT Loss is Implicitly an Adversarial Regularizer",
    "arxiv": "2405.16436",
    "year": 2024,
    "url": "https://arxiv.org/abs/2405.16436",
    "purpose": ["preference"],
    "product": "Generator",
    "data": "preference pairs",
    "summary": "DPO plus a weighted likelihood of chosen responses, which amounts to pessimism about rewards that the "
    "data leaves open.",
    "claim": "Where pairs cover part of a bit-string space, RPO ends at least 1 gold reward above DPO of the same beta "
    "and not below the reference policy.",
    "paper_claim": {
        "where": "Table 1, Table 2, Figures 1 and 4",
        "text": "Fitted to the same pairs, RPO's answers are preferred to DPO's; DPO's log-probability of the chosen "
        "answers falls throughout training, RPO's stays notably higher.",
        "value": "judged by GPT-4 on 150 prompts RPO wins against DPO 56.0 % (Mistral) and 54.0 % (Gemma); "
        "AlpacaEval 2, length-controlled: 23.28 against 21.15, and 15.51 against 15.36",
        "data": "UltraFeedback, binarised (60k pairs), and DPO-Mix-7k",
        "model": "Mistral-7B (zephyr's SFT model) and Gemma-7B (zephyr's SFT model)",
        "mechanism": "Pairs cover strings with few ones, where more ones are better; beyond them the gold reward turns "
        "down, which no pair shows. A method that trusts its extrapolation falls into the trap, a pessimistic one does "
        "not. Everything is enumerated, so gold and log-probabilities are exact. Judges of chat, models of billions "
        "and the theory's rate in the number of pairs are not tested.",
    },
    "equations": [
        r"h=\log\frac{\pi_\theta(y_w\mid x)}{\pi_{\mathrm{ref}}(y_w\mid x)}"
        r"-\log\frac{\pi_\theta(y_l\mid x)}{\pi_{\mathrm{ref}}(y_l\mid x)}",
        r"\mathcal L=\eta\beta\,\mathbb E_{x,\,y_0\sim\pi_{\mathrm{base}}}\left[-\log\pi_\theta(y_0\mid x)\right]"
        r"+\mathbb E\left[-\log\sigma(\beta h)\right]",
        r"\max_\pi\min_r\;\eta\,\mathbb E_{x,\,y\sim\pi,\,y_0\sim\pi_{\mathrm{base}}}"
        r"\left[r(x,y)-r(x,y_0)-\beta\,\mathrm{KL}(\pi\,\|\,\pi_{\mathrm{ref}})\right]+\mathcal L_{\mathcal D}(r)",
        r"\mathcal L_{\mathrm{mean}}=\eta\,\mathbb E\left[-\frac{1}{|y_w|}\log\pi_\theta(y_w\mid x)\right]"
        r"+\mathbb E\left[-\log\sigma(\beta h)\right]",
    ],
    "deviations": [
        "A constant rate after the warm-up in place of the cosine.",
        "Reference log-probs are computed once, not in every step.",
        "Baseline responses other than the chosen ones are drawn independently of the batch's pairs.",
    ],
    "traps": [
        "The weight of the summed term is eta times beta: without beta it is 100 times too strong at beta 0.01.",
        "The summed term grows with the length: long answers are regularised more strongly than short ones.",
        "A very large eta is fine-tuning on the chosen answers.",
        "TRL's rpo_alpha and NeMo's RPO are other methods.",
    ],
    "terms": ["over-optimisation", "reward hacking", "maximin", "partial coverage", "likelihood displacement"],
    "usage": [
        "telos fit rpo --data pairs.jsonl --model telos:tiny --beta 0.1 --eta 0.2 --steps 40 --batch-size 16 "
        "--learning-rate 3e-4 --warmup-steps 0 --out runs/rpo",
        "telos eval runs/rpo --data pairs.jsonl",
        'pairs = telos.load("pairs.jsonl")',
        "method = telos.RPO(beta=0.1, eta=0.2, learning_rate=3e-4, warmup_steps=0)",
        'policy = method.fit(pairs, model="telos:tiny", steps=20)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit rpo --data HuggingFaceH4/ultrafeedback_binarized?split=train_prefs --model "
    "HuggingFaceH4/mistral-7b-sft-beta --beta 0.01 --eta 0.005 --learning-rate 5e-7 --batch-size 128 --micro 32 "
    "--warmup-steps 48 --max-length 1024 --overlong truncate --steps 478",
}


@dataclass(frozen=True)
class RPO(Method):
    """Regularised preference optimisation on pairs of texts: DPO with an imitation term.

    Given: model (path, name or object), reference (the same, default: the model as it was), lora (adapter rank).
    """

    data: ClassVar[type] = Preferences
    takes: ClassVar[tuple[str, ...]] = ("model", "reference", "lora")
    shares: ClassVar[bool] = True

    beta: float = 0.01
    """Strength of the pull to the reference, > 0. Paper: 0.01 (Mistral), 0.05 (Gemma); repository, averaged: 0.5."""
    eta: float = 0.005
    """Weight of imitation, >= 0; 0 is DPO. Paper: 0.005 with the sum; repository: 0.2 with the average."""
    sft_reduction: Literal["sum", "token_mean"] = "sum"
    """sum: eta times beta times summed log-probs; token_mean: eta times their mean over tokens. Paper: sum."""
    baseline: str = "chosen"
    """Whom to imitate: chosen, reference (samples drawn before training), or a data set of prompts and completions.
    Paper: chosen."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """The loss of pairs: sigmoid (DPO), ipo (squared), hinge (on log-ratios to the reference). Paper: sigmoid."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 5e-7 for 7B models; telos: 3e-4 suits the bundled 0.1 M model."""
    warmup_steps: int = 150
    """Linear warm-up, then constant. telos: as DPO; the paper warms up a tenth of the run."""
    max_grad_norm: float = 10.0
    """Clip of the global gradient norm. telos: as DPO."""
    batch_size: int = 128
    """Pairs an update. Paper: 128."""
    max_length: int | None = None
    """Tokens of prompt and completion; the prompt's beginning is cut first. None: the context. Paper: 1024."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """What happens to a pair whose completion alone is too long. telos: refuse."""
    boundary: Literal["joint", "separate"] = "joint"
    """joint: a prompt may not end inside a token; separate: prompt and completion are tokenised apart. telos: joint."""

    def __post_init__(self) -> None:
        if not self.beta > 0 or not 0 <= self.eta < float("inf"):
            raise TelosError(
                "beta or eta is out of range", expected="beta > 0, eta >= 0", got=f"beta={self.beta}, eta={self.eta}"
            )
        if self.sft_reduction not in ("sum", "token_mean") or self.loss not in PAIR_LOSSES:
            raise TelosError(
                "no such loss or reduction",
                expected=f"loss {' or '.join(PAIR_LOSSES)}; sft_reduction sum or token_mean",
                got=f"loss={self.loss!r}, sft_reduction={self.sft_reduction!r}",
            )

    @property
    def imitation_weight(self) -> float:
        """eta beta of the summed log-probs, or eta of their mean."""
        return self.eta * self.beta if self.sft_reduction == "sum" else self.eta

    def prepare(self, spec: Spec) -> Spec:
        spec = prepare_groups(spec, self)
        if self.baseline == "chosen":
            return spec
        found = sampled_responses(spec) if self.baseline == "reference" else given_responses(spec, self)
        return spec.replace(given={**spec.given, "responses": found})

    def learner(self, spec: Spec, rng: Rng) -> RPOLearner:
        return RPOLearner(self, spec.given["model"])

    def source(self, spec: Spec) -> RPOSource:
        groups: TokenGroups = spec.data
        order = spec.rng.at("order")
        return RPOSource(groups, self.batch_size, order, groups.lengths, responses=spec.given.get("responses"))


def sampled_responses(spec: Spec) -> TokenGroups:
    """One completion of the reference for each pair's prompt, no longer than the longest of the pairs'."""
    groups: TokenGroups = spec.data
    model: LanguageModel = spec.given["model"]
    other = spec.given.get("reference")
    reference = load_model(other, spec.device) if other is not None else model
    longest = max(len(ids) for group in groups.completions for ids in group)
    room = model.context - max(map(len, groups.prompts))
    drawn = LanguagePolicy(reference).generate(
        groups.prompts, rng=spec.rng.at("responses").torch(spec.device), max_new_tokens=min(longest, room)
    )
    rows = zip(drawn.tokens.cpu().numpy(), drawn.boundaries.tolist(), drawn.lengths.tolist(), strict=True)
    return replace(groups, completions=[(ids[start:end],) for ids, start, end in rows], reference=None)


def given_responses(spec: Spec, method: RPO) -> TokenGroups:
    """The completions in the data set that `baseline` names."""
    from telos.data.formats import load

    data = load(method.baseline, kind=Demonstrations)
    assert isinstance(data, Demonstrations)
    model: LanguageModel = spec.given["model"]
    return tokenise(
        model, data, max_length=method.max_length, overlong=method.overlong, boundary=method.boundary,
        device=spec.device,
    )  # fmt: skip


PAIR_LOSSES: dict[str, Callable[[Tensor, float], Tensor]] = {
    "sigmoid": preferences.sigmoid,
    "ipo": preferences.squared,
    "hinge": preferences.hinge,
}


def rpo_loss(
    ratios: Tensor, imitated: Tensor, beta: float, weight: float, pair_loss: Callable[[Tensor, float], Tensor]
) -> Tensor:
    """(B,) loss of pairs plus weight times the negative log-likelihood of baseline responses.

    Args:
        ratios: (B, 2) log pi / pi_ref of chosen and rejected.
        imitated: (B,) log pi of the baseline's responses, summed (weight eta beta) or per token (weight eta).
    """
    return pair_loss(preferences.margin(ratios), beta) - weight * imitated


@dataclass(frozen=True)
class Beside(Record):
    """Pairs with as many responses of the baseline beside them, which may answer other prompts.

    Args:
        sequences, reference: as in Ranked, (B, 2, T) and (B, 2).
        responses: (B, T').
    """

    sequences: Sequences
    reference: Tensor
    responses: Sequences


class RPOSource(Epochs):
    """Every pair once an epoch; baseline responses, where there are any, uniformly with replacement."""

    def __init__(self, *args: Any, responses: TokenGroups | None):
        super().__init__(*args)
        self.responses = responses

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Ranked | Beside:
        pairs: Ranked = super().next(behaviour, rng)
        if self.responses is None:
            return pairs
        rows: np.ndarray = rng.at("responses").numpy().integers(len(self.responses), size=len(pairs))
        return Beside(pairs.sequences, pairs.reference, self.responses.sequences(rows).flat())


class RPOLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: RPO, model: LanguageModel):
        self.method, self.model = method, model
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def imitated(self, part: Ranked | Beside, log_probs: Tensor) -> Tensor:
        """(B,) log pi of the responses to imitate, reduced over tokens as the method says."""
        sequences, values = part.sequences[:, 0] if isinstance(part, Ranked) else part.responses, log_probs[:, 0]
        if isinstance(part, Beside):
            values = sequence_log_probs(self.model, sequences)
        if self.method.sft_reduction == "sum":
            return values
        return values / (sequences.lengths - sequences.boundaries)

    def update(self, batch: Ranked | Beside, rng: Rng, micro: int = 1) -> Metrics:
        m, sums = self.method, Accumulator()
        correct = chosen = margin = imitation = ratio = torch.zeros((), device=self.model.device)
        for part in split(batch, micro):
            log_probs = sequence_log_probs(self.model, part.sequences)
            ratios = preferences.anchored(log_probs, (1.0, part.reference))
            imitated = self.imitated(part, log_probs)
            sums.add(rpo_loss(ratios, imitated, m.beta, m.imitation_weight, PAIR_LOSSES[m.loss]).sum(), len(part))
            h = preferences.margin(ratios.detach())
            correct = correct + (h > 0).sum() + 0.5 * (h == 0).sum()
            margin, ratio = margin + h.sum(), ratio + ratios.detach()[:, 0].sum()
            chosen, imitation = chosen + log_probs.detach()[:, 0].sum(), imitation - imitated.detach().sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, m.warmup_steps, m.max_grad_norm)
        correct, margin, ratio, chosen, imitation = sums.totals(correct, margin, ratio, chosen, imitation)
        count = len(batch)
        return {
            "loss": loss,
            "accuracy": correct / count,
            "margin": m.beta * margin / count,
            "chosen_log_prob": chosen / count,
            "chosen_log_ratio": ratio / count,
            "imitation": imitation / count,
            "grad_norm": norm,
        }

    def product(self) -> LanguagePolicy:
        return LanguagePolicy(self.model)
