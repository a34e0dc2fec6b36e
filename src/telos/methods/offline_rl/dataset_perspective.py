"""TQ and SACo: two measures of a data set that foretell which kind of offline algorithm does well on it.

Schweighofer, Dinu, Radler, Hofmarcher, Patil, Bitto-Nemling, Eghbal-zadeh, Hochreiter: A Dataset Perspective on Offline
Reinforcement Learning, CoLLAs 2022, arXiv 2111.04714.

With g the mean return of whole episodes and u the number of unique (state, action) pairs,

    TQ(D) = (g(D) - g(D_min)) / (g(D_expert) - g(D_min))                                              (1)
    SACo(D) = u(D) / u(D_ref),    lSACo(D) = log u(D) / log u(D_ref)                                  (2)

where D_min is a random data set and D_ref what an online learner saw, of the same size. exp of the naive entropy of the
pairs is at most u. Nothing is trained: `fit` counts and returns a report, as `telos data measure` does; all counting is
in telos.data.measures.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import ClassVar, Literal, cast

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Source, Spec, Stage
from telos.core.products import Product, Report
from telos.core.rng import Rng
from telos.data.formats import load
from telos.data.measures import measure
from telos.data.records import Transitions

PAPER = {
    "method": "Dataset measures TQ and SACo",
    "title": "A Dataset Perspective on Offline Reinforcement Learning",
    "arxiv": "2111.04714",
    "year": 2021,
    "url": "https://arxiv.org/abs/2111.04714",
    "purpose": ["reward"],
    "product": "Report",
    "data": "several data sets of one environment",
    "summary": "Two measures of a data set, trajectory quality and state-action coverage, that foretell which offline "
    "algorithm will do well.",
    "claim": "On four-rooms data, the score of cloning correlates with trajectory quality (r 0.8 or more) and that of "
    "DQN with coverage (r 0.4 or more).",
    "paper_claim": {
        "where": "correlations over all data sets; scatter plots of performance in the plane of TQ and SACo",
        "text": "Cloning does as well as the data's episodes; the DQN family needs data that cover states and actions, "
        "whatever their quality; algorithms that stay near the data (BCQ, CQL, CRR) do well with either.",
        "value": "correlation with TQ: BC 0.97, DQN -0.17, BCQ 0.30, CQL 0.26, CRR 0.37; with SACo: BC 0.12, DQN 0.60, "
        "BCQ 0.48, CQL 0.38, CRR 0.69",
        "data": "150 data sets: six environments (CartPole, MountainCar, two of MiniGrid, two of MinAtar), five "
        "schemes, five seeds",
        "model": "networks of three layers of 256 units for each of nine algorithms",
        "mechanism": "The five schemes take the same environment through few and many states by good and bad ways. "
        "One small deterministic grid with rewards at the end only cannot show what noise, function approximation "
        "from pixels or dense rewards change.",
    },
    "equations": [
        r"\mathrm{TQ}(D)=\frac{\bar g(D)-\bar g(D_{\min})}{\bar g(D_{\mathrm{expert}})-\bar g(D_{\min})}",
        r"\mathrm{SACo}(D)=\frac{u_{s,a}(D)}{u_{s,a}(D_{\mathrm{ref}})},\qquad"
        r"\mathrm{lSACo}(D)=\frac{\log u_{s,a}(D)}{\log u_{s,a}(D_{\mathrm{ref}})}",
        r"\hat H(D)=-\sum_{s,a}\frac{n_{s,a}}{N}\log\frac{n_{s,a}}{N},\qquad e^{\hat H(D)}\le u_{s,a}(D)",
    ],
    "deviations": [
        "States and actions are counted together as pairs; the released exact counter adds their numbers.",
        "Bins lie between the limits of the reference for both sets, also in grids, where the released code takes each "
        "set's own.",
        "Sets of different sizes are compared by as many transitions as the smaller one has, drawn at random.",
        "Without returns of a random and an expert policy, the lowest and highest return of an episode take their "
        "place, and the report says so.",
        "In the claim the replay scheme is an expert whose share of random actions falls; in `telos data study` it is "
        "what an online learner saw.",
    ],
    "traps": [
        "Coverage by each data set's own limits cannot be compared: share them.",
        "Unique pairs grow with the size of the data, so compare equal sizes.",
        "TQ of recorded expert data can be below 1: the policy that recorded may be worse than the best one seen.",
        "The paper scores the best evaluation in training, which is an oracle's choice; look at the last one too.",
        "Check that the learner solves the data with full coverage before its failure elsewhere is blamed on the data.",
    ],
    "terms": ["logged experience", "exploration and exploitation", "HyperLogLog", "dataset difficulty", "benchmarking"],
    "usage": [
        "telos fit dataset_perspective --data transitions.npz --reference transitions.npz --out runs/report",
        "telos data measure transitions.npz --random -1400 --expert -150 --plot measures.png --json measures.json",
        "report = telos.DatasetPerspective().fit('transitions.npz', reference='gym:Pendulum-v1?steps=500')",
        "print(report.values['saco'], report.values['tq'], report.values['inferred'])",
        "report.save('report')",
    ],
    "at_scale": "telos fit dataset_perspective --data gym:CartPole-v1?steps=100000 --reference replay.npz "
    "--random-return 21 --expert-return 500 --out runs/cartpole",
}


@dataclass(frozen=True)
class DatasetPerspective(Method):
    """Measures of transitions. Given: reference, transitions (or where they are) that coverage is compared with."""

    data: ClassVar[type | None] = Transitions
    takes: ClassVar[tuple[str, ...]] = ("reference",)
    trains: ClassVar[bool] = False

    discount: float = 1.0
    """Of returns, above 0, at most 1. Repository: 1."""
    bins: int = 100
    """Into which a continuous dimension is divided, >= 1: more tell more states apart. Paper: 100."""
    counter: Literal["exact", "hashed"] = "exact"
    """exact, or hashed by HyperLogLog in constant memory, 0.6 % standard error. Paper: HyperLogLog; telos: exact."""
    random_return: float | None = None
    """Mean return of a random policy; None: the lowest of an episode. Paper: of a random data set."""
    expert_return: float | None = None
    """Mean return of an expert; None: the highest of an episode. Paper: of the best policy found online."""
    equal_size: bool = True
    """Compare as many transitions of data and reference. Paper: sets of one size."""

    def stages(self, spec: Spec, rng: Rng) -> Generator[Stage, Product, Product]:
        yield from ()
        reference = spec.given.get("reference")
        if isinstance(reference, str):
            reference = load(reference, kind=Transitions)
        if not isinstance(reference, Transitions | None):
            raise TelosError("the reference holds no transitions", got=type(reference).__name__)
        found = measure(
            cast(Transitions, spec.data), discount=self.discount, bins=self.bins, counter=self.counter,
            reference=reference, random_return=self.random_return, expert_return=self.expert_return,
            equal_size=self.equal_size, seed=spec.rng.seed,
        )  # fmt: skip
        return Report(found.to_json())

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        raise TelosError("dataset_perspective trains nothing", fix="call fit without steps")

    def source(self, spec: Spec) -> Source:
        raise TelosError("dataset_perspective trains nothing", fix="call fit without steps")
