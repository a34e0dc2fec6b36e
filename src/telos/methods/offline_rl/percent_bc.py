"""%BC: behaviour cloning of the best episodes alone.

Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas, Mordatch: Decision Transformer, NeurIPS 2021,
arXiv 2106.01345 (the baseline there).

With R the return of a step's episode, the steps that are imitated are those of the episodes with the highest R until
they hold `share` of all steps, and of these the ones with R > above, where that is given (Yang et al. 2022,
arXiv 2210.13435, imitate episodes of positive return).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Learner, Method, Source, Spec
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.records import Transitions
from telos.data.returns import returns_to_go
from telos.data.windows import episode_bounds

if TYPE_CHECKING:
    from jaxtyping import Bool

BASELINE = {
    "method": "%BC",
    "title": "Behaviour cloning of the best episodes",
    "reference": "Chen et al., NeurIPS 2021, arXiv 2106.01345",
    "year": 2021,
    "purpose": ["reward"],
    "product": "Policy",
    "data": "offline transitions",
    "summary": "Behaviour cloning of the episodes with the highest returns: what selection alone earns.",
    "equations": [
        r"\mathcal D^\star=\left\{(s,a)\in\tau:R(\tau)\ge c\right\},\quad c\text{ so that }|\mathcal D^\star|\approx"
        r"\rho\,|\mathcal D|",
        r"\mathcal L_\pi=\mathbb E_{\mathcal D^\star}\left[(\pi(s)-a)^2\right]"
        r"\text{ or }-\mathbb E_{\mathcal D^\star}\left[\log\pi(a\mid s)\right]",
    ],
    "deviations": ["The last episode that counts is taken whole.", "Cloning is `bc`, not a transformer."],
}


@dataclass(frozen=True)
class PercentBC(Method):
    """Behaviour cloning of the episodes with the highest returns, for continuous and discrete actions."""

    data = Transitions

    share: float = 0.1
    """Of all steps, how many are imitated, above 0 to 1; whole episodes, at least one. Paper: 0.1, 0.25, 0.4, 1."""
    above: float | None = None
    """Imitate only episodes that return more than this; None for any. DoC's baseline: 0."""
    bc: Method = use("bc")  # noqa: RUF009
    """How they are imitated, with its own options."""

    def prepare(self, spec: Spec) -> Spec:
        if not 0 < self.share <= 1:
            raise TelosError("%BC: option share is out of range", expected="above 0 to 1", got=f"{self.share:g}")
        if not isinstance(spec.data, Transitions):
            raise TelosError("%BC learns from a data set", expected="Transitions", got=type(spec.data).__name__)
        return self.bc.prepare(spec.replace(data=spec.data[best(spec.data, self.share, self.above)]))

    def source(self, spec: Spec) -> Source:
        return self.bc.source(spec)

    def learner(self, spec: Spec, rng: Rng) -> Learner:
        return self.bc.learner(spec, rng)


def best(data: Transitions, share: float, above: float | None) -> Bool[Tensor, " N"]:
    """Which steps are imitated.

    Raises:
        TelosError: no episode returns more than `above`.
    """
    first, last = episode_bounds(data)
    starts = torch.unique(first)
    returns, lengths = returns_to_go(data)[starts], last[starts] - starts + 1
    order = returns.argsort(descending=True, stable=True)
    # An episode counts where those before it do not suffice.
    before = lengths[order].cumsum(0) - lengths[order]
    kept = torch.zeros_like(returns, dtype=torch.bool)
    kept[order] = before < share * len(data)
    if above is not None:
        kept &= returns > above
    if not kept.any():
        raise TelosError(
            f"%BC: no episode returns more than {above:g}",
            expected="a lower threshold",
            got=f"at most {returns.max():g}",
        )
    return kept[torch.searchsorted(starts, first)]
