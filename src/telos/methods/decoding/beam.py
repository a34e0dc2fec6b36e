r"""Beam search: keep the `width` likeliest partial answers; width 1 is greedy decoding. Nothing is trained.

Graves 2012 (arXiv 1211.3711), Sutskever et al. 2014 (arXiv 1409.3215). Lengths are not normalised.
"""

from __future__ import annotations

from collections.abc import Generator as Steps
from dataclasses import dataclass
from typing import ClassVar

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Source, Spec, Stage
from telos.core.products import Product
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.search import Node, Problem, beam_search, search_policy

BASELINE = {
    "method": "Beam search",
    "title": "Sequence Transduction with Recurrent Neural Networks (beam search); width 1 is greedy decoding",
    "reference": "arXiv 1211.3711",
    "year": 2012,
    "purpose": ["reward"],
    "product": "Generator",
    "data": "a model, and a purpose if the beams are to be reranked",
    "summary": "Grows the likeliest partial answers token by token; with a purpose it returns the best-scored of them.",
    "equations": [
        r"c(y_t)=\log\pi(y_{1:t}\mid x)",
        r"\mathcal B_t=\operatorname{top}_b\left\{(y_{1:t-1},y_t):\ y_{1:t-1}\in\mathcal B_{t-1}\right\}"
        r"\text{ by }c(y_t)",
        r"y^*=\operatorname{argmax}_{y\in\mathcal B}\log\pi(y\mid x),\quad\text{or}\quad "
        r"y^*=\operatorname{argmax}_{y\in\mathcal B}h(y,x)",
    ],
    "deviations": ["A beam that ends leaves its place, so the search is over when all have ended."],
}


@dataclass(frozen=True)
class Beam(Method):
    """Beam search. Given: model; with a purpose it returns the best-scored of the finished beams (reranking)."""

    data: ClassVar[type | None] = None
    accepts: ClassVar[tuple[type, ...]] = (Prompts,)
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose")
    trains: ClassVar[bool] = False

    width: int = 4
    """Partial answers that are kept, >= 1: 1 is greedy decoding."""
    max_new_tokens: int = 64
    """Longest answer in tokens; half the context where that is less."""

    def __post_init__(self) -> None:
        if min(self.width, self.max_new_tokens) < 1:
            got = f"{self.width}, {self.max_new_tokens}"
            raise TelosError("width or max_new_tokens is out of range", expected="1 or more", got=got)

    @property
    def rows(self) -> int:
        return self.width

    @property
    def stochastic(self) -> bool:
        return False

    def search(self, problem: Problem) -> list[Node]:
        """The likeliest finished beam of each prompt, or the best-scored one where there is a purpose."""
        found = beam_search(
            problem.model,
            problem.heads,
            boundaries=problem.boundaries,
            width=self.width,
            k=self.width,
            steps=problem.room,
            cost=problem.cost,
        )
        if problem.rewards is None:
            return [nodes[0] for nodes in found]
        flat = [node for nodes in found for node in nodes]
        values = iter(problem.rewards([node.prompt for node in flat], [node.tokens for node in flat]))
        # max keeps the first of equals, and beams come in the order of their likelihood.
        return [max(((next(values), -i, node) for i, node in enumerate(nodes)))[2] for nodes in found]

    def stages(self, spec: Spec, rng: Rng) -> Steps[Stage, Product, Product]:
        yield from ()
        return search_policy(self, spec)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        raise TelosError("beam trains nothing", fix="call fit without steps")

    def source(self, spec: Spec) -> Source:
        raise TelosError("beam trains nothing", fix="call fit without steps")
