r"""RM ensembles: k reward models that differ by seed alone, combined conservatively, so that optimising them goes wrong
later.

Coste et al. 2023, arXiv 2310.02743. Where a policy leaves the data, a learned reward model errs, and what selects by it
finds the errors. Members that saw the same pairs in another order, from another head, err differently. Each is
standardised by mean m_i and deviation s_i of its scores on a set of answers:

    R_i    = (r_i(x, y) - m_i) / s_i
    mean   R = 1/k sum_i R_i
    WCO    R = min_i R_i
    UWO    R = 1/k sum_i R_i - lambda 1/k sum_i (R_i - mean)^2

The variance is the population's (divided by k), as in the paper; the authors' code divides by k - 1 in PPO only. The
ensemble is a purpose: best-of-n selects by it, RL maximises it. The unbiased best-of-n curve is in
`telos.ops.best_of_n`.

What differs from the paper and why:
- Standardising stands in the authors' code, not in the text: a Bradley-Terry score has no origin and no unit, so a
  minimum over raw scores would pick the member with the lowest offset. Here the answers are the training pairs' own
  texts; `RewardEnsemble.standardised` takes any others.
- The members are any method that trains a reward model, by default this library's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from telos.core.errors import TelosError
from telos.core.files import write_json
from telos.core.method import Learner, Method, Source, Spec, Stage, Stages
from telos.core.products import Completions, Scorer, check_probe, load_product
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Preferences, Text
from telos.lm.products import PROBE_FILE, RewardScorer
from telos.lm.tokens import TokenGroups

if TYPE_CHECKING:
    from jaxtyping import Float

PAPER = {
    "method": "RM ensembles",
    "title": "Reward Model Ensembles Help Mitigate Overoptimization",
    "arxiv": "2310.02743",
    "year": 2023,
    "url": "https://arxiv.org/abs/2310.02743",
    "purpose": ["preference"],
    "product": "Scorer",
    "data": "preference pairs",
    "summary": "Several reward models that differ by seed, combined by their minimum or by mean minus variance, to "
    "resist over-optimisation.",
    "claim": "With a quarter of the labels flipped, best-of-2048 by the minimum or the variance-penalised mean of five "
    "reward models earns more gold reward than by one of them.",
    "paper_claim": {
        "where": "best-of-n and PPO curves; tables of win rates against single reward models (44M)",
        "text": "Selecting the best of 12,500 by the minimum, or by the mean minus the variance, of five reward models "
        "ends with about 30 % more gold reward than by one of them, and with 75 % more where a quarter of the labels "
        "is wrong. The plain mean over-optimises under noise. With PPO the conservative combinations and a small KL "
        "coefficient remove over-optimisation.",
        "value": "win rate against a single reward model, best-of-n without noise / with 25 %: mean 54.9 / 57.8, WCO "
        "57.1 / 58.3, UWO 57.2 / 58.2; PPO: mean 58.1 / 60.2, WCO 59.4 / 62.2, UWO 60.2 / 63.0",
        "data": "AlpacaFarm prompts; answers labelled by a gold reward model in place of people, a quarter of the "
        "labels flipped",
        "model": "Pythia 1.4B as policy; reward models of 7M, 44M and 1.3B; a gold reward model of 7B",
        "mechanism": "Five small networks fitted to 500 noisy pairs select among 2048 candidates whose gold reward "
        "saturates in the direction that the labels show and falls with distance, which no pair near the centre tells. "
        "The same combinations as for texts. Language models, PPO and its KL coefficient are not measured.",
    },
    "equations": [
        r"\mathcal L_i=-\mathbb E\left[\log\sigma\left(r_i(x,y_w)-r_i(x,y_l)\right)\right],\quad "
        r"R_i=\frac{r_i-m_i}{s_i},\quad i=1,\dots,k",
        r"R_{\mathrm{mean}}=\bar R=\frac{1}{k}\sum_{i=1}^{k}R_i",
        r"R_{\mathrm{WCO}}=\min_i R_i",
        r"R_{\mathrm{UWO}}=\bar R-\lambda\,\frac{1}{k}\sum_{i=1}^{k}\left(R_i-\bar R\right)^2",
        r"\hat G(n)=\sum_{i=n}^{N}\frac{\binom{i-1}{n-1}}{\binom{N}{n}}\,r_{\mathrm{gold}}(S_i),\quad "
        r"S_1\le\dots\le S_N",
    ],
    "deviations": [
        "Standardised on the training pairs' texts unless other answers are given.",
        "The variance is divided by k everywhere; the authors' PPO code divides by k - 1.",
        "No penalty on the size of scores; the authors' code has one of 0.001 (the member's `centre` is near it).",
    ],
    "traps": [
        "A minimum over scores that are not standardised follows the member with the lowest offset.",
        "The penalty lambda has units of 1 / score: 0.1 to 0.5 suits standardised scores.",
        "A curve of best-of-n must permute gold with the same order as the scores.",
        "Compare with the average over single members, not with the best of them.",
        "Errors that all members share are not noticed: expect less over-optimisation, not none.",
    ],
    "terms": ["reward hacking", "Goodhart", "uncertainty", "pessimism", "worst-case", "robustness", "RLHF"],
    "usage": [
        "telos fit rm_ensembles --data pairs.jsonl --model telos:tiny --members 3 --steps 20 "
        "--member.learning-rate 1e-3 --member.batch-size 16 --out runs/rm_ensembles",
        "telos fit rloo --data prompts.jsonl --model telos:tiny --purpose runs/rm_ensembles --steps 2 "
        "--max-new-tokens 16 --out runs/rloo",
        'pairs = telos.load("pairs.jsonl")',
        'method = telos.RMEnsembles(members=3, objective="uwo", penalty=0.5)',
        'ensemble = method.fit(pairs, model="telos:tiny", steps=10)',
        'print(ensemble.using("wco").score(["topic1"], [" good1 good2"]))',
        'ensemble.save("my-ensemble")',
        'best = telos.BestOfN(n=4).fit(model="telos:tiny", purpose="my-ensemble")',
        'print(best.generate(["topic1"], rng=__import__("torch").Generator().manual_seed(0)).texts)',
    ],
    "at_scale": "telos fit rm_ensembles --data tlc4418/1.4b-policy_preference_data_gold_labelled --model "
    "tlc4418/pythia_70m_sft --members 5 --member.learning-rate 1e-5 --member.batch-size 32 --member.warmup-steps 50 "
    "--steps 7200",
}

Objective = Literal["mean", "wco", "uwo"]


@dataclass(frozen=True)
class RMEnsembles(Method):
    """An ensemble of reward models on a language model's body; `steps` counts those of each member. Given: model.

    Every member sees all pairs; only the order and the first head differ. Each is a stage of its own.
    """

    data: ClassVar[type] = Preferences
    takes: ClassVar[tuple[str, ...]] = ("model",)

    member: Method = use("reward_model")  # noqa: RUF009
    """What trains one reward model. Paper: Bradley-Terry, learning rate 1e-5, batch 32, 5 epochs."""
    members: int = 5
    """k, >= 1: cost and memory grow with it. Paper: 5 (4 suffice, 3 are visibly worse)."""
    objective: Objective = "wco"
    """mean; wco, the minimum; uwo, mean minus penalty times variance. Paper: all three, the last two best."""
    penalty: float = 0.5
    """uwo only: lambda >= 0, in units of 1 / standardised score. Paper: 0.5 for best-of-n, 0.1 for PPO."""
    head_deviation: float = 0.02
    """Standard deviation of a member's first head, >= 0: members differ by it. telos: 0.02, as transformers has it."""

    def __post_init__(self) -> None:
        check_objective(self.objective, self.penalty)
        if self.members < 1 or self.head_deviation < 0:
            raise TelosError(
                "members or head_deviation is out of range",
                expected="members >= 1, head_deviation >= 0",
                got=f"members={self.members}, head_deviation={self.head_deviation}",
            )

    def prepare(self, spec: Spec) -> Spec:
        return self.member.prepare(spec)

    def stages(self, spec: Spec, rng: Rng) -> Stages:
        scorers: list[RewardScorer] = []
        for number in range(self.members):
            name = f"member{number}"
            own = spec.replace(rng=spec.rng.at(name))
            learner, first = self.learner(own, rng.at(name)), number * spec.steps
            made = yield Stage(name, learner, self.source(own), spec.steps, first)
            assert isinstance(made, RewardScorer)
            scorers.append(made)
        groups: TokenGroups = spec.data
        scores = torch.stack([scores_of(scorer, groups) for scorer in scorers])
        return RewardEnsemble(scorers, *moments(scores), self.objective, self.penalty)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        """One member's, with a head of its own."""
        learner = self.member.learner(spec, rng)
        scorer = learner.product()
        if not isinstance(scorer, RewardScorer):
            raise TelosError(
                f"{type(self.member).__name__} trains no reward model",
                expected="a method whose product scores whole texts",
                got=type(scorer).__name__,
                fix='member=use("reward_model")',
            )
        weight = scorer.network.score.weight
        nn.init.normal_(weight, std=self.head_deviation, generator=rng.at("head").torch(weight.device))
        return learner

    def source(self, spec: Spec) -> Source:
        return self.member.source(spec)


def check_objective(objective: str, penalty: float) -> None:
    """Raises TelosError for an unknown objective or a negative penalty."""
    if objective not in ("mean", "wco", "uwo") or not penalty >= 0:
        raise TelosError(
            "objective or penalty is out of range",
            expected="objective mean, wco or uwo; penalty >= 0",
            got=f"objective={objective}, penalty={penalty}",
        )


def moments(scores: Float[Tensor, "k n"]) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Mean and population deviation of each member's scores; 1 in place of a deviation of 0 (a constant member)."""
    deviations = scores.std(-1, correction=0)
    return scores.mean(-1), torch.where(deviations > 0, deviations, 1.0)


def standardise(
    scores: Float[Tensor, "k n"], means: Float[Tensor, "k"], deviations: Float[Tensor, "k"]
) -> Float[Tensor, "k n"]:
    """Each member's scores in its own deviations from its own mean."""
    return (scores - means[:, None]) / deviations[:, None]


def combine(scores: Float[Tensor, "k n"], objective: str, penalty: float = 0.5) -> Float[Tensor, "n"]:
    """The ensemble's score of n answers, from standardised ones of k members.

    Args:
        objective: mean, wco (minimum) or uwo (mean minus penalty times the population variance).
        penalty: lambda >= 0, read by uwo only.
    """
    if objective == "mean":
        return scores.mean(0)
    if objective == "wco":
        return scores.amin(0)
    return scores.mean(0) - penalty * scores.var(0, correction=0)


@torch.no_grad()
def scores_of(scorer: RewardScorer, groups: TokenGroups, batch: int = 128) -> Float[Tensor, "n"]:
    """Scores of all completions of tokenised groups, of like length together."""
    order = torch.from_numpy(groups.lengths.argsort(kind="stable")).split(batch)
    return torch.cat([scorer.score_tokens(groups.sequences(index.tolist())).flatten() for index in order])


class RewardEnsemble(Scorer):
    """Reward models with the moments that standardise them, and an objective that makes one score of theirs.

    Saved as a folder with one transformers folder a member. As a purpose it is given by that folder's path, or itself.

    Args:
        members: k reward models of one tokenizer.
        means, deviations: (k,) of each member's scores on the answers that standardise.
    """

    means: Tensor
    deviations: Tensor

    def __init__(
        self,
        members: Sequence[RewardScorer],
        means: Tensor,
        deviations: Tensor,
        objective: Objective = "wco",
        penalty: float = 0.5,
    ):
        super().__init__()
        check_objective(objective, penalty)
        self.members = nn.ModuleList(members)
        self.register_buffer("means", means)
        self.register_buffer("deviations", deviations)
        self.objective: Objective = objective
        self.penalty = penalty

    @property
    def scorers(self) -> list[RewardScorer]:
        """The members."""
        return list(self.members)  # type: ignore[arg-type]

    @property
    def tokenizer(self) -> Any:
        return self.scorers[0].tokenizer

    def using(self, objective: Objective, penalty: float | None = None) -> RewardEnsemble:
        """The same members under another objective; nothing is copied."""
        own = self.penalty if penalty is None else penalty
        return self._with(self.scorers, self.means, self.deviations, objective, own)

    def only(self, member: int) -> RewardEnsemble:
        """One member alone, standardised: the single reward model of comparisons."""
        kept = slice(member, member + 1)
        return self._with(self.scorers[kept], self.means[kept], self.deviations[kept], self.objective, self.penalty)

    def standardised(self, prompts: Sequence[Text], completions: Sequence[Text]) -> RewardEnsemble:
        """The same members, standardised on these answers (the paper's code: answers held out for evaluation)."""
        scores = torch.stack([scorer.score(prompts, completions) for scorer in self.scorers])
        means, deviations = (value.to(self.means) for value in moments(scores))
        return self._with(self.scorers, means, deviations, self.objective, self.penalty)

    def _with(self, *arguments: Any) -> RewardEnsemble:
        other = RewardEnsemble(*arguments)
        other.provenance = self.provenance
        return other

    def each(self, score: Callable[[RewardScorer], Tensor]) -> Float[Tensor, "k n"]:
        """Standardised scores of every member, from its raw ones; on the CPU, as a member's scores are."""
        scores = torch.stack([score(scorer).cpu() for scorer in self.scorers])
        return standardise(scores, self.means.cpu(), self.deviations.cpu())

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """(N,) scores of whole completions (an end token is added)."""
        return combine(self.each(lambda member: member.score(prompts, completions)), self.objective, self.penalty)

    def score_sampled(self, completions: Completions) -> Tensor:
        """(N,) scores of sampled tokens of the members' vocabulary, without going through their texts."""
        return combine(self.each(lambda member: member.score_sampled(completions)), self.objective, self.penalty)

    def __call__(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
        """As a purpose: the same as `score`."""
        return self.score(prompts, completions)

    def config(self) -> dict[str, Any]:
        return {
            "members": len(self.members),
            "objective": self.objective,
            "penalty": self.penalty,
            "means": self.means.tolist(),
            "deviations": self.deviations.tolist(),
        }

    def probe(self) -> dict[str, Tensor]:
        each = self.each(lambda member: member.probe()["scores"])
        return {"scores": combine(each, self.objective, self.penalty), "members": each}

    def write(self, folder: Path) -> None:
        for number, scorer in enumerate(self.scorers):
            (folder / f"member{number}").mkdir()
            scorer.write(folder / f"member{number}")
        with torch.no_grad():
            save_file({name: value.contiguous() for name, value in self.probe().items()}, folder / PROBE_FILE)
        header = {"kind": type(self).__name__, "config": self.config(), "provenance": self.provenance}
        write_json(folder / "config.json", header)

    @classmethod
    def read(cls, folder: Path, header: dict[str, Any]) -> Self:
        config = header["config"]
        members = [load_product(folder / f"member{number}") for number in range(config["members"])]
        means, deviations = torch.tensor(config["means"]), torch.tensor(config["deviations"])
        product = cls(members, means, deviations, config["objective"], config["penalty"])
        product.provenance = header["provenance"]
        check_probe(product, load_file(folder / PROBE_FILE), folder)
        return product
