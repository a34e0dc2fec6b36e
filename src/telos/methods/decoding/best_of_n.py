r"""Best-of-n: sample n completions, return the one that the purpose scores highest. Nothing is trained.

Stiennon et al. 2020 (arXiv 2009.01325). For distinct scores KL(best-of-n || policy) <= log n - (n - 1) / n
(equality when the policy gives no completion a noticeable mass).
"""

from __future__ import annotations

from collections.abc import Generator as Steps
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.files import write_json
from telos.core.method import Learner, Method, Source, Spec, Stage
from telos.core.products import Completions, Generator, Product, load_product
from telos.core.rng import Rng
from telos.data.records import Prompts
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.lm.rollouts import Purpose, scores
from telos.lm.setup import policy_model
from telos.purposes.names import again

BASELINE = {
    "method": "Best-of-n",
    "title": "Learning to summarize from human feedback (rejection sampling)",
    "reference": "arXiv 2009.01325",
    "year": 2020,
    "purpose": ["reward"],
    "product": "Generator",
    "data": "a model and a purpose",
    "summary": "Samples n completions and returns the best-scored one.",
    "equations": [
        r"y_1,\dots,y_n\sim\pi(\cdot\mid x),\quad y^*=\operatorname{argmax}_{y_i}h(y_i,x)",
        r"\mathrm{KL}(\pi_n\Vert\pi)\le\log n-\frac{n-1}{n}",
    ],
    "deviations": [],
}


@dataclass(frozen=True)
class BestOfN(Method):
    """Best of n samples. Given: model, purpose (a Scorer or a function of (prompts, completions))."""

    data: ClassVar[type | None] = None
    accepts: ClassVar[tuple[type, ...]] = (Prompts,)
    takes: ClassVar[tuple[str, ...]] = ("model", "purpose")
    trains: ClassVar[bool] = False

    n: int = 16
    """Samples for each answer, >= 1: more raise the score and the cost. DPO's paper: 128."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise TelosError("n is out of range", expected="n >= 1", got=str(self.n))

    def stages(self, spec: Spec, rng: Rng) -> Steps[Stage, Product, Product]:
        yield from ()
        purpose = spec.need("purpose", "a reward model, or a function of (prompts, completions)")
        return BestOf(LanguagePolicy(policy_model(spec)), purpose, self.n)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        raise TelosError("best_of_n trains nothing", fix="call fit without steps")

    def source(self, spec: Spec) -> Source:
        raise TelosError("best_of_n trains nothing", fix="call fit without steps")


class BestOf(Generator):
    """A policy whose answers are the best of n by a purpose.

    Saved with its scorer. Of a function in a user's file only the name is saved, and it is asked for again on load;
    any other function cannot be saved.
    """

    def __init__(self, policy: LanguagePolicy, purpose: Purpose, n: int):
        super().__init__()
        self.policy, self.n = policy, n
        self.purpose = purpose

    def config(self) -> dict[str, Any]:
        return {"n": self.n}

    def probe(self) -> dict[str, Tensor]:
        return self.policy.probe()

    def write(self, folder: Path) -> None:
        origin = getattr(self.purpose, "origin", None)
        parts: dict[str, Product] = {"policy": self.policy}
        if isinstance(self.purpose, RewardScorer):
            parts["scorer"], origin = self.purpose, None
        elif origin is None:
            raise TelosError(
                "this best-of-n uses a function as its purpose, which cannot be saved",
                expected="a reward model, or telos.purposes.resolve('file.py:function')",
                fix="save the model alone and call telos.BestOfN(...).fit(model=..., purpose=...) again",
            )
        for name, part in parts.items():
            (folder / name).mkdir()
            part.write(folder / name)
        config = {**self.config(), "purpose": origin}
        write_json(
            folder / "config.json",
            {"kind": type(self).__name__, "config": config, "provenance": self.provenance},
        )

    @classmethod
    def read(cls, folder: Path, header: dict[str, Any]) -> Self:
        origin = header["config"]["purpose"]
        purpose = load_product(folder / "scorer") if origin is None else again(origin)
        product = cls(load_product(folder / "policy"), purpose, header["config"]["n"])
        product.provenance = header["provenance"]
        return product

    def generate(
        self, prompts: list[Any], *, n: int = 1, rng: torch.Generator | None = None, **sampling: Any
    ) -> Completions:
        """`n` answers a prompt, each the best of `self.n` samples; ties go to the first."""
        drawn = self.policy.generate(prompts, n=n * self.n, rng=rng, **sampling)
        values = scores(self.purpose, drawn, self.policy.model.tokenizer).view(-1, self.n)
        keep = torch.arange(len(values)) * self.n + values.argmax(-1)
        rows = keep.tolist()
        return replace(
            drawn,
            texts=[drawn.texts[i] for i in rows],
            prompts=[drawn.prompts[i] for i in rows],
            tokens=drawn.tokens[keep],
            lengths=drawn.lengths[keep],
            boundaries=drawn.boundaries[keep],
            log_probs=drawn.log_probs[keep],
            finished=drawn.finished[keep],
        )
