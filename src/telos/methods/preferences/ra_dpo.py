r"""RA-DPO: pairs relabelled for both responses' scores, so that DPO learns every level of quality and can be asked.

Zhang et al. 2024, arXiv 2410.08067. The prompt names a score g, and the reward of a response is how near it comes:

    R(x, y, g) = -(g - r(x, y))^2

A pair with scores r_w > r_l becomes two, one for each of its scores: (g = r_w: y_w over y_l) and (g = r_l: y_l over
y_w). DPO's loss, unchanged, on 2N pairs; policy and reference both see the prompt with its goal:

    L = -E log sigma( beta log pi(y+|x,g)/pi_ref(y+|x,g) - beta log pi(y-|x,g)/pi_ref(y-|x,g) )

At deployment the highest score is asked for. Scores with several attributes are vectors, distances add up.

What differs from the paper and why:
- The official recipes for models without a system role leave the responses of the second half unswapped (they swap the
  user's message, which is the same in both); the paper's text swaps them, and so does this. `no_swap` is that slip.
- Ties (equal scores) are dropped: their two halves contradict each other.
- The product puts the goal into every prompt that it is given, the highest score of the data unless told otherwise.
- Warm-up and then a constant rate; the reference's log-probs are computed once before training.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Accumulator, Learner, Method, Metrics, Spec, split
from telos.core.products import Completions, Generator, check_probe
from telos.core.rng import Rng
from telos.core.sources import Epochs
from telos.data.records import Preferences, Text
from telos.data.scored import Score, ScoredTexts, numbers
from telos.lm.log_probs import sequence_log_probs
from telos.lm.model import LanguageModel, load_model
from telos.lm.products import PROBE_FILE, LanguagePolicy, write_folder
from telos.lm.setup import OPTIMIZERS, prepare_groups, step_optimizer
from telos.lm.tokens import Ranked, TokenGroups
from telos.ops import preferences

PAPER = {
    "method": "RA-DPO",
    "title": "Reward-Augmented Data Enhances Direct Preference Alignment of LLMs",
    "arxiv": "2410.08067",
    "year": 2024,
    "url": "https://arxiv.org/abs/2410.08067",
    "purpose": ["preference", "score"],
    "product": "Generator",
    "data": "preference pairs with scores",
    "summary": "Conditions the policy on a requested score and relabels each pair for both scores, so plain DPO learns "
    "every level of quality.",
    "claim": "On bit strings the achieved score follows the requested one, far less so if responses are left "
    "unswapped, and the top request gives more gold reward than DPO.",
    "paper_claim": {
        "where": "the main table (AlpacaEval 2, MT-Bench, Arena-Hard) and the ablations",
        "text": "On the same pairs, relabelled, DPO gains far more than on the pairs as they are, on three models; it "
        "also keeps more of the probability of high-scoring losers.",
        "value": "AlpacaEval 2, length-controlled: Qwen2-7B 31.17 against DPO's 21.46, Gemma-2-9B 59.27 against 50.70, "
        "its SPPO version 60.97 against 52.75 (read second-hand)",
        "data": "UltraFeedback with its overall scores",
        "model": "Qwen2-7B-Instruct, gemma-2-9b-it and its SPPO iteration 3; Mistral-7B-Instruct",
        "mechanism": "Scores that can be checked stand in for a judge's: whether the policy delivers what was asked "
        "for is then exact (strings) or counted (sentences). Gains on chat benchmarks, a judge's noise and models of "
        "billions are not tested; a gain at the top request alone would not show that relabelling works.",
    },
    "equations": [
        r"R(x,y,g)=-\left(g-r(x,y)\right)^2",
        r"(x,y_w,y_l)\;\mapsto\;(x,\,g=r_w,\;y_w\succ y_l),\quad(x,\,g=r_l,\;y_l\succ y_w)",
        r"h=\log\frac{\pi_\theta(y^+\mid x,g)}{\pi_{\mathrm{ref}}(y^+\mid x,g)}"
        r"-\log\frac{\pi_\theta(y^-\mid x,g)}{\pi_{\mathrm{ref}}(y^-\mid x,g)}",
        r"\mathcal L=-\mathbb E\left[\log\sigma(\beta h)\right]",
        r"r(x,y)=\beta_0\log\frac{\pi_{\mathrm{DPO}}(y\mid x)}{\pi_{\mathrm{ref}}(y\mid x)}",
    ],
    "deviations": [
        "The responses of the second half are swapped, as the paper says; some official recipes do not.",
        "Ties are dropped.",
        "A constant rate after the warm-up; reference log-probs are computed once.",
        "Implicit scores are computed by a function before fit, not by a flag.",
    ],
    "traps": [
        "Without the goal in the prompt the policy is out of its distribution: ask for a score, always.",
        "A better result at the top score alone shows nothing: look at requested against achieved scores.",
        "Relabelling doubles the data: compare with DPO at equal updates a pair.",
        "A goal that is cut off with the beginning of a long prompt is not learnt.",
    ],
    "terms": ["reward-conditioned", "hindsight", "UDRL", "SteerLM", "controllable", "goal-conditioned", "AI feedback"],
    "usage": [
        "telos fit ra_dpo --data scored.jsonl --model telos:tiny --beta 0.1 --template '<spare{score}> {prompt}' "
        "--steps 40 --batch-size 16 --learning-rate 3e-4 --warmup-steps 0 --out runs/ra_dpo",
        'scored = telos.load("scored.jsonl", kind=telos.ScoredTexts)',
        'method = telos.RADPO(beta=0.1, template="<spare{score}> {prompt}", learning_rate=3e-4, warmup_steps=0)',
        'policy = method.fit(scored, model="telos:tiny", steps=20)',
        'print(policy.generate(["topic1"], temperature=0).texts)',
        'print(policy.generate(["topic1"], goal=1, temperature=0).texts)',
        'policy.save("my-model")',
    ],
    "at_scale": "telos fit ra_dpo --data HuggingFaceH4/ultrafeedback_binarized?split=train_prefs --model "
    "Qwen/Qwen2-7B-Instruct --beta 0.01 --loss cdpo --label-smoothing 0.3 --learning-rate 5e-7 --batch-size 128 "
    "--micro 32 --warmup-steps 95 --max-length 1024 --overlong truncate --steps 950",
}

TEMPLATE = (
    "Answer in a way that deserves the score below, on a scale from 1 (worst) to 10 (best).\n"
    "Overall score: {score}.\n\n{prompt}"
)


@dataclass(frozen=True)
class RADPO(Method):
    """Reward-augmented DPO on texts with scores; the product is asked for a score.

    Given: model (path, name or object), reference (the same, default: the model as it was), lora (adapter rank).
    """

    data: ClassVar[type] = ScoredTexts
    takes: ClassVar[tuple[str, ...]] = ("model", "reference", "lora")
    shares: ClassVar[bool] = True

    beta: float = 0.01
    """Strength of the pull to the reference, > 0: larger stays closer. Paper: 0.01."""
    relabel: Literal["both", "half", "winner", "no_swap"] = "both"
    """both: N pairs become 2N; half: half of the pairs, both ways, N in all; winner: the winner's score alone; no_swap:
    both goals, the winner preferred under both (an ablation). Paper: both."""
    template: str = TEMPLATE
    """Where the goal stands: a text with {score} and, once, {prompt}. Paper: a target score on a scale of 1 to 10, then
    "Overall score: 8."."""
    place: Literal["user", "system"] = "user"
    """Conversations only: before the user's first message, or as a system message (what stands before {prompt}). Plain
    texts have it before the prompt. Repository: both, by model."""
    decimals: int = 1
    """Most decimals of a score in the text, >= 0; whole numbers have none. telos: 1, as "8.5" in the paper."""
    loss: Literal["sigmoid", "cdpo", "ipo", "hinge"] = "sigmoid"
    """The loss of pairs: sigmoid (DPO), cdpo (noisy labels), ipo (squared), hinge. Paper: sigmoid, or cdpo by model."""
    label_smoothing: float = 0.0
    """cdpo only: probability that a label is wrong, in [0, 0.5). Paper: 0.3 (Qwen2, Gemma-2), 0 (Mistral, SPPO)."""
    learning_rate: float = 1e-5
    """AdamW step size. Paper: 5e-7 for 7B models; telos: 3e-4 suits the bundled 0.1 M model."""
    warmup_steps: int = 150
    """Linear warm-up, then constant. telos: as DPO; the paper warms up a tenth of the run."""
    max_grad_norm: float = 10.0
    """Clip of the global gradient norm. telos: as DPO."""
    batch_size: int = 128
    """Relabelled pairs an update. Paper: 128."""
    max_length: int | None = None
    """Tokens of prompt and completion; the prompt's beginning is cut first. None: the context. Paper: 1024."""
    overlong: Literal["refuse", "truncate"] = "refuse"
    """What happens to a pair whose completion alone is too long. telos: refuse."""
    boundary: Literal["joint", "separate"] = "joint"
    """joint: a prompt may not end inside a token; separate: prompt and completion are tokenised apart. telos: joint."""

    def __post_init__(self) -> None:
        if not self.beta > 0 or self.loss not in LOSSES or self.relabel not in RELABEL or self.decimals < 0:
            raise TelosError(
                "an option of RA-DPO is out of range",
                expected=f"beta > 0; loss {' or '.join(LOSSES)}; relabel {' or '.join(RELABEL)}; decimals >= 0",
                got=f"beta={self.beta}, loss={self.loss!r}, relabel={self.relabel!r}, decimals={self.decimals}",
            )
        if not 0 <= self.label_smoothing < 0.5 or (self.label_smoothing and self.loss != "cdpo"):
            raise TelosError(
                "label_smoothing is out of range, or without effect",
                expected='0 <= label_smoothing < 0.5, and loss="cdpo" if it is not 0',
                got=f'label_smoothing={self.label_smoothing}, loss="{self.loss}"',
            )
        check_template(self.template, self.place)

    def prepare(self, spec: Spec) -> Spec:
        data: ScoredTexts = spec.data
        scores = as_array(data)
        found = relabelled(scores, self.relabel, spec.rng.at("half").numpy())
        if not found:
            raise TelosError(
                f"{data.origin or 'the data'}: no two scores of a prompt differ", got=f"{len(data)} groups"
            )
        pairs = goal_pairs(data, scores, found, self)
        ready = prepare_groups(spec.replace(data=pairs), self)
        top = tuple(float(value) for value in scores.reshape(-1, scores.shape[-1]).max(0))
        note = f"{ready.notes['data']}; {len(found)} relabelled pairs of {len(data)} groups, top score {top}"
        return ready.replace(given={**ready.given, "top": top}, notes={**ready.notes, "data": note})

    def learner(self, spec: Spec, rng: Rng) -> RADPOLearner:
        return RADPOLearner(self, spec.given["model"], spec.given["top"])

    def source(self, spec: Spec) -> Epochs:
        groups: TokenGroups = spec.data
        return Epochs(groups, self.batch_size, spec.rng.at("order"), groups.lengths)


def goal_reward(goal: np.ndarray, score: np.ndarray) -> np.ndarray:
    """R = -|g - r|^2 over the last axis, the attributes."""
    return -((goal - score) ** 2).sum(-1)


def as_array(data: ScoredTexts) -> np.ndarray:
    """Scores (N, K, A)."""
    return np.array([[numbers(score) for score in group] for group in data.scores], dtype=np.float64)


Relabelled = tuple[int, int, int, int]
"""Group, and within it: whose score is the goal, which response is preferred, and over which."""


def relabelled(scores: np.ndarray, how: str, rng: np.random.Generator) -> list[Relabelled]:
    """What the pairs of each group become; groups of more than two give all their pairs, ties none.

    Args:
        scores: (N, K, A). rng: draws the half of the pairs for "half".
    """
    pairs: list[tuple[int, int, int]] = []
    for group, values in enumerate(scores):
        for i, j in itertools.combinations(range(len(values)), 2):
            if (values[i] != values[j]).any():
                # The winner has the higher mean score; where means agree, attributes being traded, the first.
                pairs.append((group, i, j) if values[i].mean() >= values[j].mean() else (group, j, i))
    if how == "half":
        kept = rng.permutation(len(pairs))[: (len(pairs) + 1) // 2]
        pairs = [pairs[row] for row in sorted(kept)]
    first = [(group, win, win, lose) for group, win, lose in pairs]
    if how == "winner":
        return first
    second = [(g, lose, win, lose) if how == "no_swap" else (g, lose, lose, win) for g, win, lose in pairs]
    return first + second


def shown_score(score: Score, decimals: int = 1) -> str:
    """8.0 as "8", 8.5 as "8.5"; several attributes with commas."""
    values = numbers(score)
    if values is None:
        raise TelosError("a goal is no score", expected="a finite number, or several", got=repr(score)[:80])
    return ", ".join(
        f"{round(value, decimals) + 0.0:.{decimals}f}".rstrip("0").rstrip(".") if decimals else f"{value:.0f}"
        for value in values
    )


def goal_prompt(prompt: Text, score: Score, template: str = TEMPLATE, place: str = "user", decimals: int = 1) -> Text:
    """A prompt that asks for `score`: plain texts and users' messages go through the template.

    Args:
        prompt: a text or a conversation.
        template: with {score} and {prompt}.
        place: of conversations: "user" (the first user's message) or "system" (a message of its own in front).
    """
    head, tail = template.replace("{score}", shown_score(score, decimals)).split("{prompt}")
    if isinstance(prompt, str):
        return head + prompt + tail
    if place == "system":
        return [{"role": "system", "content": head.strip()}, *prompt]
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), None)
    if first is None:
        raise TelosError("a conversation without a user's message", got=f"{len(prompt)} messages")
    asked = {**prompt[first], "content": head + prompt[first]["content"] + tail}
    return [*prompt[:first], asked, *prompt[first + 1 :]]


def check_template(template: str, place: str) -> None:
    """Raises TelosError unless {prompt} occurs once, and a system message says something."""
    head, _, tail = template.partition("{prompt}")
    if template.count("{prompt}") != 1 or place not in ("user", "system"):
        raise TelosError(
            "template or place is out of range", expected="{prompt} once in the template; place user or system",
            got=f"{template[:80]!r}, {place!r}",
        )  # fmt: skip
    if place == "system" and (tail.strip() or not head.strip()):
        raise TelosError("a system message stands before the prompt", expected="a template that ends with {prompt}")


def goal_pairs(data: ScoredTexts, scores: np.ndarray, found: list[Relabelled], method: RADPO) -> Preferences:
    """The relabelled pairs with their goals in the prompts."""
    rows: list[tuple[Text, Text, Text]] = []
    for group, goal, preferred, other in found:
        prompt, texts = data.prompts[group], data.completions[group]
        if prompt is None:
            raise TelosError(
                f"{data.origin or 'the data'}, record {group + 1}: the prompt is implicit",
                expected="a column 'prompt', in which a goal can stand", fix="add it",
            )  # fmt: skip
        asked = goal_prompt(prompt, scores[group, goal].tolist(), method.template, method.place, method.decimals)
        rows.append((asked, texts[preferred], texts[other]))
    prompts, chosen, rejected = (list(column) for column in zip(*rows, strict=True))
    return Preferences(prompts, chosen, rejected, data.origin)


def implicit_scores(pairs: Preferences, policy: LanguagePolicy, reference: Any, beta: float) -> ScoredTexts:
    """Scores for pairs without any: the implicit rewards beta log(pi / pi_ref) of a policy that DPO fitted to them.

    Args:
        policy: of DPO, with the beta of that run; reference: the model that it started from (path, name or object).
    """
    if None in pairs.prompts:
        raise TelosError("the prompts are implicit", expected="a column 'prompt', in which a goal can stand")
    prompts = [prompt for prompt in pairs.prompts if prompt is not None]
    before = LanguagePolicy(load_model(reference, policy.model.device))
    columns = [
        beta * (policy.log_prob(prompts, texts) - before.log_prob(prompts, texts))
        for texts in (pairs.chosen, pairs.rejected)
    ]
    scores = torch.stack(columns, -1).tolist()
    return ScoredTexts(prompts, list(zip(pairs.chosen, pairs.rejected, strict=True)), scores, pairs.origin)


def sigmoid_loss(ratios: Tensor, method: RADPO) -> Tensor:
    """(B,) -log sigma(beta h) for log-ratios (B, 2)."""
    return preferences.sigmoid(preferences.margin(ratios), method.beta)


def cdpo_loss(ratios: Tensor, method: RADPO) -> Tensor:
    """(B,) the same for labels that are wrong with probability label_smoothing."""
    return preferences.smoothed_sigmoid(preferences.margin(ratios), method.beta, method.label_smoothing)


def ipo_loss(ratios: Tensor, method: RADPO) -> Tensor:
    """(B,) (h - 1 / (2 beta))^2."""
    return preferences.squared(preferences.margin(ratios), method.beta)


def hinge_loss(ratios: Tensor, method: RADPO) -> Tensor:
    """(B,) max(0, 1 - beta h)."""
    return preferences.hinge(preferences.margin(ratios), method.beta)


LOSSES: dict[str, Callable[[Tensor, RADPO], Tensor]] = {
    "sigmoid": sigmoid_loss,
    "cdpo": cdpo_loss,
    "ipo": ipo_loss,
    "hinge": hinge_loss,
}
RELABEL = ("both", "half", "winner", "no_swap")


class RADPOLearner(Learner):
    """The policy and its optimiser."""

    constant: ClassVar[tuple[str, ...]] = ("model",)

    def __init__(self, method: RADPO, model: LanguageModel, top: tuple[float, ...]):
        self.method, self.model, self.top = method, model, top
        self.network, self.parameters = model.network, model.trainable()
        self.optimizer = OPTIMIZERS["adamw"](self.parameters, method.learning_rate)
        self.updates = 0

    def update(self, batch: Ranked, rng: Rng, micro: int = 1) -> Metrics:
        sums = Accumulator()
        correct = margin = chosen = rejected = torch.zeros((), device=self.model.device)
        for part in split(batch, micro):
            log_probs = sequence_log_probs(self.model, part.sequences)
            ratios = preferences.anchored(log_probs, (1.0, part.reference))
            sums.add(LOSSES[self.method.loss](ratios, self.method).sum(), len(part))
            h = preferences.margin(ratios.detach())
            correct = correct + (h > 0).sum() + 0.5 * (h == 0).sum()
            margin, chosen = margin + h.sum(), chosen + ratios.detach()[:, 0].sum()
            rejected = rejected + ratios.detach()[:, 1].sum()
        loss = sums.divide(self.parameters)
        norm = step_optimizer(self, self.method.warmup_steps, self.method.max_grad_norm)
        correct, margin, chosen, rejected = sums.totals(correct, margin, chosen, rejected)
        count = len(batch)
        return {
            "loss": loss,
            "accuracy": correct / count,
            "margin": self.method.beta * margin / count,
            "chosen_log_ratio": chosen / count,
            "rejected_log_ratio": rejected / count,
            "grad_norm": norm,
        }

    def product(self) -> GoalPolicy:
        m = self.method
        return GoalPolicy(self.model, list(self.top), m.template, m.place, m.decimals)


class GoalPolicy(Generator):
    """A language model that is asked for a score: the goal is put into every prompt. A transformers folder, as any.

    Args:
        top: the score that is asked for unless another is named, one number an attribute.
        template, place, decimals: how it stands in the prompt.
    """

    def __init__(self, model: LanguageModel, top: Sequence[float], template: str, place: str, decimals: int):
        super().__init__()
        self.model, self.network = model, model.network
        self.top, self.template, self.place, self.decimals = list(top), template, place, decimals

    def prompt(self, prompt: Text, goal: Score | None = None) -> Text:
        """The prompt that asks for `goal`, or for the top score."""
        return goal_prompt(prompt, self.top if goal is None else goal, self.template, self.place, self.decimals)

    def generate(
        self,
        prompts: list[Any],
        *,
        goal: Score | None = None,
        n: int = 1,
        rng: torch.Generator | None = None,
        **sampling: Any,
    ) -> Completions:
        """As LanguagePolicy.generate, with the goal in every text or conversation; token ids are taken as they are."""
        asked = [p if isinstance(p, np.ndarray) else self.prompt(p, goal) for p in prompts]
        return LanguagePolicy(self.model).generate(asked, n=n, rng=rng, **sampling)

    def log_prob(
        self, prompts: Sequence[Text], completions: Sequence[Text], boundary: str = "joint", goal: Score | None = None
    ) -> Tensor:
        """As LanguagePolicy.log_prob, with the goal in every text or conversation."""
        asked = [self.prompt(prompt, goal) for prompt in prompts]
        return LanguagePolicy(self.model).log_prob(asked, completions, boundary)

    def config(self) -> dict[str, Any]:
        return {
            "top": self.top, "template": self.template, "place": self.place, "decimals": self.decimals,
            "adapters": self.model.adapted,
        }  # fmt: skip

    def write(self, folder: Path) -> None:
        in_memory = self.model.adapted and self.model.origin is None
        network = self.model.merged().network if in_memory else self.model.network
        write_folder(self, network, self.model.tokenizer, folder)

    @classmethod
    def read(cls, folder: Path, header: dict[str, Any]) -> Self:
        options = {name: value for name, value in header["config"].items() if name != "adapters"}
        product = cls(load_model(str(folder)), **options)
        product.provenance = header["provenance"]
        check_probe(product, load_file(folder / PROBE_FILE), folder)
        return product

    def probe(self) -> dict[str, Tensor]:
        return LanguagePolicy(self.model).probe()
