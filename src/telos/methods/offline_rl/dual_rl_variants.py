"""The unifying view of Dual RL as a table that runs: which divergence, data and reward give which method.

For a finite MDP with visitations d (normalised, discounted), P the transitions and pi a policy,

    dual-Q:  max_pi min_Q (1 - g) E_{d_0, pi} Q + alpha E_{d^O} f*((r + g P pi Q - Q) / alpha)       (1)
    dual-V:         min_V (1 - g) E_{d_0} V     + alpha E_{d^O} f*_p((r + g P V - V) / alpha)        (2)

both have the value of  max_pi E_{d^pi} r - alpha D_f(d^pi || d^O).  Imitation sets r = 0 and compares with the expert's
d^E. On mixtures of both with the data's d^S, which need no coverage, with b in (0, 1],

    max_pi min_Q b (1 - g) E_{d_0, pi} Q + E_{b d^E + (1 - b) d^S} f*(T Q - Q) - (1 - b) E_{d^S} [T Q - Q]   (3)

with T Q = g P pi Q is ReCOIL. Semi-gradient methods replace d_0 by the data's states and T V by a fixed Q in (2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from telos.ops.conjugates import CONJUGATES

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class View:
    """What a method is in this view.

    Args:
        form: (1), (2), or (3) for mixtures.
        f: the divergence, of CONJUGATES; where a method allows any, a usual one.
        reward: the task's, none (imitation), or log d^E / d^O, which needs a discriminator and coverage.
        data: what visitations are compared with.
        semi: whether the method takes semi-gradients of it.
    """

    form: Literal["q", "v", "mixture"]
    f: str
    reward: Literal["task", "none", "log_ratio"] = "task"
    data: Literal["offline", "expert", "both"] = "offline"
    semi: bool = False


VIEWS: dict[str, View] = {
    "algaedice": View("q", "chi2"),
    "cql": View("q", "chi2"),
    "optidice": View("v", "chi2"),
    "xql": View("v", "rkl", semi=True),
    "f_dvl_chi2": View("v", "chi2", semi=True),
    "f_dvl_tv": View("v", "tv", semi=True),
    "valuedice": View("q", "rkl", "none", "expert"),
    "iqlearn": View("q", "chi2", "none", "expert"),
    "opolo": View("q", "chi2", "log_ratio"),
    "smodice": View("v", "rkl", "log_ratio"),
    "smodice_chi2": View("v", "chi2", "log_ratio"),
    "recoil": View("mixture", "chi2", "none", "both"),
}
"""The paper's table. CQL is AlgaeDICE's objective written out (ATAC, a reviewer says); IQL fits in by its loss only, an
expectile in place of f*_p."""


@dataclass(frozen=True)
class Finite:
    """A finite MDP.

    Args:
        start: (S,) distribution of the first state.
        moves: (S, A, S) transition probabilities.
        rewards: (S, A).
        discount: below 1.
    """

    start: Tensor
    moves: Tensor
    rewards: Tensor
    discount: float

    def visitation(self, policy: Float[Tensor, "S A"]) -> Float[Tensor, "S A"]:
        """d^pi, which sums to 1."""
        flow = torch.einsum("sa,sat->ts", policy, self.moves)
        eye = torch.eye(len(self.start), dtype=flow.dtype)
        states = torch.linalg.solve(eye - self.discount * flow, (1 - self.discount) * self.start)
        return states[:, None] * policy

    def backup(self, rewards: Float[Tensor, "S A"], values: Float[Tensor, " S"]) -> Float[Tensor, "S A"]:
        """r + discount P V."""
        return rewards + self.discount * torch.einsum("sat,t->sa", self.moves, values)


@dataclass(frozen=True)
class Problem:
    """What a view is applied to: an MDP, the visitations of data and of an expert, alpha and the share b of (3)."""

    mdp: Finite
    offline: Tensor
    expert: Tensor
    alpha: float = 1.0
    share: float = 0.5

    def rewards(self, view: View) -> Float[Tensor, "S A"]:
        """What the view maximises."""
        if view.reward == "task":
            return self.mdp.rewards
        return (self.expert / self.offline).log() if view.reward == "log_ratio" else torch.zeros_like(self.offline)


def objective(
    view: View, problem: Problem, values: Tensor, policy: Float[Tensor, "S A"] | None = None
) -> Float[Tensor, ""]:
    """(1), (2) or (3), which `values` minimise: V (S,) for dual-V, else Q (S, A) with the policy's maximisation left.

    Semi-gradient views are given in full: what such a method descends is the loss in telos.ops.conjugates.
    """
    mdp, f = problem.mdp, CONJUGATES[view.f]
    if view.form == "v":
        states, below = values, values[:, None]
    else:
        assert policy is not None
        states, below = (policy * values).sum(-1), values
    errors = mdp.backup(problem.rewards(view), states) - below
    first = (1 - mdp.discount) * mdp.start @ states
    if view.form == "mixture":
        b, mixed = problem.share, problem.share * problem.expert + (1 - problem.share) * problem.offline
        return b * first + (mixed * f.conjugate(errors)).sum() - (1 - b) * (problem.offline * errors).sum()
    data = problem.expert if view.data == "expert" else problem.offline
    conjugate = f.positive if view.form == "v" else f.conjugate
    return first + problem.alpha * (data * conjugate(errors / problem.alpha)).sum()


def primal(view: View, problem: Problem, policy: Float[Tensor, "S A"]) -> Float[Tensor, ""]:
    """What the dual bounds from above and meets at its solution: E r - alpha D_f, or -D_f between the mixtures."""
    visited, f = problem.mdp.visitation(policy), CONJUGATES[view.f].generator
    if view.form == "mixture":
        b = problem.share
        mixed = b * problem.expert + (1 - b) * problem.offline
        return -(mixed * f((b * visited + (1 - b) * problem.offline) / mixed)).sum()
    data = problem.expert if view.data == "expert" else problem.offline
    return (visited * problem.rewards(view)).sum() - problem.alpha * (data * f(visited / data)).sum()


def minimise(view: View, problem: Problem, policy: Tensor | None = None, start: Tensor | None = None) -> Tensor:
    """The V of (2), or the Q of (1) or (3) for a given policy, by L-BFGS; f must be smooth (chi2, rkl)."""
    shape = problem.offline.shape[:1] if view.form == "v" else problem.offline.shape
    values = torch.zeros(shape, dtype=problem.offline.dtype) if start is None else start.clone()
    values.requires_grad_()
    optimiser = torch.optim.LBFGS(
        [values], max_iter=500, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = objective(view, problem, values, policy)
        loss.backward()
        return loss

    optimiser.step(closure)  # type: ignore[arg-type]
    return values.detach()


def visited(view: View, problem: Problem, values: Float[Tensor, " S"]) -> Float[Tensor, "S A"]:
    """The visitation that the minimiser of (2) stands for: w d^O with the ratio w of its Bellman errors."""
    errors = problem.mdp.backup(problem.rewards(view), values) - values[:, None]
    return CONJUGATES[view.f].ratio(errors / problem.alpha) * problem.offline


def improve(view: View, problem: Problem, steps: int = 200, rate: float = 0.1) -> Float[Tensor, "S A"]:
    """The policy of (1) or (3): Adam on its logits, uphill on the objective at the Q that minimises it there."""
    logits = torch.zeros_like(problem.offline, requires_grad=True)
    optimiser = torch.optim.Adam([logits], rate)
    values = None
    for _ in range(steps):
        values = minimise(view, problem, logits.detach().softmax(-1), values)
        optimiser.zero_grad()
        (-objective(view, problem, values, logits.softmax(-1))).backward()
        optimiser.step()
    return logits.detach().softmax(-1)
