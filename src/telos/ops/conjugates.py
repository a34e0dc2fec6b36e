r"""Convex conjugates of f-divergences, and the implicit maximisers that come from them.

For a convex f with f(1) = 0, the conjugate over all w and over w >= 0, and the ratio that attains the latter:

    f*(y)   = max over w of       w y - f(w)
    f*_p(y) = max over w >= 0 of  w y - f(w),       ratio(y) = max(0, f'^-1(y))

    chi2   f = (w - 1)^2      f* = y + y^2 / 4         f*_p the same, -1 below y = -2
    tv     f = |w - 1| / 2    f* = y on [-1/2, 1/2]    f*_p = max(y, -1/2);    infinite above 1/2, f* also below -1/2
    rkl    f = w log w        f* = f*_p = e^(y - 1)

An implicit maximiser is a loss in d = Q - V whose minimiser V lies between mean and maximum of Q. The losses of
Sikchi et al. 2023 (Dual RL, arXiv 2302.08560), as in their code, with a share or temperature `weight`:

    chi2        weight max(d + d^2 / 4, 0) - (1 - weight) d
    tv          weight max(d, 0)           - (1 - weight) d         V: the (2 weight - 1) / weight quantile
    rkl         e^z - z - 1, z = d / weight                         V: weight log mean e^(Q / weight); XQL
    expectile   |weight - 1(d < 0)| d^2                             V: an expectile; IQL
    exact       weight f*_p(d) - (1 - weight) d
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


@dataclass(frozen=True)
class Conjugate:
    """One row of the first table.

    Args:
        generator: w -> f(w), w >= 0.
        conjugate: y -> f*(y).
        positive: y -> f*_p(y).
        ratio: y -> the w >= 0 that attains f*_p(y); where several do (tv at its kinks), the one nearest to 1.
    """

    generator: Callable[[Tensor], Tensor]
    conjugate: Callable[[Tensor], Tensor]
    positive: Callable[[Tensor], Tensor]
    ratio: Callable[[Tensor], Tensor]


def _chi2_positive(y: Tensor) -> Tensor:
    inside = y.clamp(min=-2)
    return inside + inside.square() / 4


CONJUGATES: dict[str, Conjugate] = {
    "chi2": Conjugate(
        lambda w: (w - 1).square(), lambda y: y + y.square() / 4, _chi2_positive, lambda y: (1 + y / 2).clamp(min=0)
    ),
    "tv": Conjugate(
        lambda w: (w - 1).abs() / 2,
        lambda y: torch.where(y.abs() <= 0.5, y, torch.inf),
        lambda y: torch.where(y <= 0.5, y.clamp(min=-0.5), torch.inf),
        lambda y: torch.where(y <= 0.5, (y >= -0.5).to(y), torch.inf),
    ),
    "rkl": Conjugate(
        lambda w: torch.xlogy(w, w), lambda y: (y - 1).exp(), lambda y: (y - 1).exp(), lambda y: (y - 1).exp()
    ),
}


def chi2_maximiser(d: Float[Tensor, "*b"], weight: float) -> Float[Tensor, "*b"]:
    """Flat in V but for the second term while V is up to 4 above Q; beyond it rises again, which f*_p does not."""
    return weight * (d + d.square() / 4).clamp(min=0) - (1 - weight) * d


def tv_maximiser(d: Float[Tensor, "*b"], weight: float) -> Float[Tensor, "*b"]:
    """A quantile's loss: its slopes are 2 weight - 1 and -(1 - weight)."""
    return weight * d.clamp(min=0) - (1 - weight) * d


def expectile_maximiser(d: Float[Tensor, "*b"], weight: float) -> Float[Tensor, "*b"]:
    """An expectile's loss, IQL's."""
    return torch.where(d < 0, 1 - weight, weight) * d.square()


def exact_maximiser(name: str, d: Float[Tensor, "*b"], weight: float) -> Float[Tensor, "*b"]:
    """With f*_p itself; for tv with its finite part max(d, -1/2), since an infinite loss cannot be descended."""
    positive = d.clamp(min=-0.5) if name == "tv" else CONJUGATES[name].positive(d)
    return weight * positive - (1 - weight) * d


def gumbel_exponent(d: Float[Tensor, "*b"], weight: float, clip: float | None) -> Float[Tensor, "*b"]:
    """z = d / weight, cut at `clip`."""
    return d / weight if clip is None else (d / weight).clamp(max=clip)


def gumbel_shift(d: Float[Tensor, "*b"], weight: float, clip: float | None = None) -> Float[Tensor, ""]:
    """max(largest z of the batch, -1), by whose exponential XQL's code divides its loss."""
    return gumbel_exponent(d.detach(), weight, clip).max().clamp(min=-1)


def gumbel_maximiser(
    d: Float[Tensor, "*b"], weight: float, clip: float | None = None, shift: Tensor | float = 0.0
) -> Float[Tensor, "*b"]:
    """(e^z - z - 1) / e^shift without overflow; a shift changes the size of a batch's gradient, not its zero.

    Args:
        clip: largest z that counts, with no gradient above: it hides an explosion and biases V downwards.
        shift: 0, or `gumbel_shift` of the whole batch.
    """
    z = gumbel_exponent(d, weight, clip)
    scale = torch.exp(-torch.as_tensor(shift, dtype=z.dtype, device=z.device))
    return torch.exp(z - shift) - z * scale - scale
