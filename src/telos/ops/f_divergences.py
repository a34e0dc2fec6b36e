r"""f-divergences from a policy to an explicit target, the score-function rewards that descend them, and such targets.

For convex f with f(1) = 0, t = pi(x) / p(x) and u = log p(x) - log pi(x) = -log t (Go et al. 2023, arXiv 2302.08215):

    D_f(pi || p)      = E_{x ~ p} f(t) + f'(inf) pi(p = 0)
    grad D_f(pi || p) = E_{x ~ pi} f'(t) grad log pi(x)

so a sample's reward is -f'(t), a constant. Everything is a function of log t or u: f's limit at t -> 0 is at log t =
-inf, the reward of a sample that the target excludes, -f'(inf), at u = -inf, and both come out of the same formulas.

    kl            KL(p || pi)       -log t                             e^u
    reverse_kl    KL(pi || p)       t log t                            u - 1
    tv            total variation   |1 - t| / 2                        sign(u) / 2
    js            2 Jensen-Shannon  t log 2t/(t+1) + log 2/(t+1)       softplus(u) - log 2
    chi2          chi^2(p || pi)    (1 - t)^2 / t                      e^2u - 1
    reverse_chi2  chi^2(pi || p)    (t - 1)^2                          2 (1 - e^-u)
    alpha         between the KLs   (alpha t + 1 - alpha - t^alpha) / alpha   e^((1 - alpha) u) - 1

`js` is KL(p || m) + KL(pi || m) with m = (p + pi) / 2: twice the divergence that is usually called so. `alpha` lies in
(0, 1): its reward is alpha-DPG's. At 0 it is kl's less 1; divided by 1 - alpha it tends to reverse_kl's plus 1 at 1.

A target is P(x) = a(x) prod_i e^(factor_i(x)) with a frozen model a; factors add up in log space, and Z = sum P.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import softplus

from telos.core.errors import TelosError

if TYPE_CHECKING:
    from jaxtyping import Float, Int

LOG_2 = math.log(2)


@dataclass(frozen=True)
class FDivergence:
    """One row of the table above.

    Args:
        generator: log t -> f(t), at log t = -inf its limit f(0).
        pseudo_reward: u -> -f'(e^-u), at u = -inf its limit -f'(inf).
        slope: f'(inf), what a unit of probability costs where the target has none.
    """

    generator: Callable[[Tensor], Tensor]
    pseudo_reward: Callable[[Tensor], Tensor]
    slope: float


DIVERGENCES: dict[str, FDivergence] = {
    "kl": FDivergence(lambda log_t: -log_t, lambda u: u.exp(), 0.0),
    "reverse_kl": FDivergence(lambda log_t: torch.xlogy(log_t.exp(), log_t.exp()), lambda u: u - 1, math.inf),
    "tv": FDivergence(lambda log_t: torch.expm1(log_t).abs() / 2, lambda u: u.sign() / 2, 0.5),
    "js": FDivergence(
        lambda log_t: torch.xlogy(log_t.exp(), 2 * log_t.sigmoid()) + LOG_2 - softplus(log_t),
        lambda u: softplus(u) - LOG_2,
        LOG_2,
    ),
    "chi2": FDivergence(lambda log_t: 4 * torch.sinh(log_t / 2).square(), lambda u: torch.expm1(2 * u), 1.0),
    "reverse_chi2": FDivergence(
        lambda log_t: torch.expm1(log_t).square(), lambda u: -2 * torch.expm1(-u), math.inf
    ),
}  # fmt: skip


def alpha_divergence(alpha: float) -> FDivergence:
    """The row `alpha`, for 0 < alpha < 1."""
    return FDivergence(
        lambda log_t: (alpha * torch.expm1(log_t) - torch.expm1(alpha * log_t)) / alpha,
        lambda u: torch.expm1((1 - alpha) * u),
        1.0,
    )


def divergence(
    row: FDivergence, log_policy: Float[Tensor, "*b n"], log_target: Float[Tensor, "*b n"]
) -> Float[Tensor, "*b"]:
    """D_f(pi || p) over n states, with gradient; both are normalised, either may be -inf somewhere."""
    inside = log_target > -torch.inf
    log_t = log_policy - torch.where(inside, log_target, 0.0)
    # Masked twice, so that an infinite slope gives no NaN to states which it does not concern.
    outside = ~inside & (log_policy > -torch.inf)
    cost = torch.where(outside, row.slope * torch.where(outside, log_policy.exp(), 1.0), 0.0)
    return torch.where(inside, log_target.exp() * row.generator(log_t), cost).sum(-1)


def jensen_shannon(log_p: Float[Tensor, "*b n"], log_q: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """The usual one, [KL(p || m) + KL(q || m)] / 2, in nats: at most log 2."""
    return divergence(DIVERGENCES["js"], log_p, log_q) / 2


def tilt(scores: Float[Tensor, "*b"], beta: float) -> Float[Tensor, "*b"]:
    """Log factor of a e^(r / beta): the optimum of RL with reward r and a KL penalty of weight beta > 0."""
    return scores / beta


def constraint(indicator: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
    """Log factor of a b: 0 where b is 1, -inf where it is 0; values between are a softened constraint.

    Raises:
        TelosError: a value outside of [0, 1].
    """
    if ((indicator < 0) | (indicator > 1)).any():
        raise TelosError(
            "a constraint is not an indicator",
            expected="0 or 1 (or between)",
            got=f"{float(indicator.min()):g} to {float(indicator.max()):g}",
            fix="use a purpose that says 1 for what is wanted, or make it a tilt",
        )
    return indicator.log()


def moments(features: Float[Tensor, "*b k"], coefficients: Float[Tensor, "k"]) -> Float[Tensor, "*b"]:
    """Log factor of a e^(lambda . phi): the distribution nearest to a (in KL) with given means of phi."""
    return features @ coefficients.to(features)


def fit_coefficients(
    features: Float[Tensor, "g n k"],
    means: Float[Tensor, "k"],
    log_weights: Float[Tensor, "g n"],
    tolerance: float = 1e-5,
    iterations: int = 1000,
) -> Float[Tensor, "k"]:
    """lambda with E_p phi = `means` for p = a e^(other factors + lambda . phi), by importance sampling from a.

    Minimises the convex mean_g log sum_n w e^(lambda . phi) - lambda . means, whose gradient is E_p phi - means, by
    L-BFGS; each of the g contexts has a normaliser of its own and counts alike.

    Args:
        features: phi of n samples of a for each of g contexts.
        log_weights: the other factors of these samples, -inf for those that they exclude.
        tolerance: largest error of a mean.

    Raises:
        TelosError: no sample is left, or no lambda gives these means on these samples.
    """
    kept = log_weights.amax(-1) > -torch.inf
    if not kept.any():
        raise TelosError(
            "no sample of the base model meets the constraints",
            expected="some, to fit the coefficients of the moments on",
            got=f"0 of {log_weights.numel()}",
            fix="draw more moment_samples, or loosen the constraint",
        )
    features, log_weights, means = features[kept].double(), log_weights[kept].double(), means.double()
    coefficients = torch.zeros_like(means, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [coefficients], max_iter=iterations, tolerance_grad=tolerance / 2, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (log_weights + features @ coefficients).logsumexp(-1).mean() - coefficients @ means
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    found = coefficients.detach()
    shares = (log_weights + features @ found).softmax(-1)
    reached = (shares[..., None] * features).sum(1).mean(0)
    if not (reached - means).abs().max() <= tolerance:
        raise TelosError(
            "no coefficients give the moments",
            expected=f"means {means.tolist()} within {tolerance:g}",
            got=f"{[round(value, 4) for value in reached.tolist()]}; the samples have "
            f"{features.amin((0, 1)).tolist()} to {features.amax((0, 1)).tolist()}",
            fix="ask for means that samples of the base model can have, or draw more moment_samples",
        )
    return found


def grouped_logsumexp(values: Float[Tensor, "b"], groups: Int[Tensor, "b"], count: int) -> Float[Tensor, "g"]:
    """log sum e^value for each of `count` groups; -inf for a group that is empty or has -inf only."""
    empty = torch.full((count,), -torch.inf, dtype=values.dtype, device=values.device)
    peak = empty.scatter_reduce(0, groups, values, "amax")
    shift = torch.where(peak > -torch.inf, peak, 0.0)
    return shift + torch.zeros_like(shift).index_add(0, groups, (values - shift[groups]).exp()).log()
