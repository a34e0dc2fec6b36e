"""Best-of-n without sampling n anew for every n: an unbiased curve from one pool of scored samples.

Nakano et al. 2021, arXiv 2112.09332. Of N samples sorted by proxy score S_1 <= ... <= S_N, the best of n that
are drawn without replacement has rank i with probability C(i - 1, n - 1) / C(N, n), therefore

    G(n) = sum_{i = n}^{N} C(i - 1, n - 1) / C(N, n) gold(S_i).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.errors import TelosError

if TYPE_CHECKING:
    from jaxtyping import Float


def best_of_n_weights(n: int, pool: int) -> Float[Tensor, "pool"]:
    """Probability that the best of `n` out of `pool` samples has rank 1 (worst) .. `pool`; float64, sums to 1.

    By log-gamma, since the binomials overflow.

    Raises:
        TelosError: n is not within 1 .. pool.
    """
    if not 1 <= n <= pool:
        raise TelosError("n of a best-of-n curve is out of range", expected=f"1 to the pool's {pool}", got=str(n))
    rank = torch.arange(1, pool + 1, dtype=torch.float64)
    size, all_ = torch.tensor(float(n), dtype=torch.float64), torch.tensor(float(pool), dtype=torch.float64)
    below = torch.lgamma(rank) - torch.lgamma(size) - torch.lgamma((rank - size + 1).clamp(min=1))
    total = torch.lgamma(all_ + 1) - torch.lgamma(size + 1) - torch.lgamma(all_ - size + 1)
    return torch.where(rank >= size, (below - total).exp(), 0.0)


def best_of_n_curve(
    gold: Float[Tensor, "*batch pool"], proxy: Float[Tensor, "*batch pool"], n: Sequence[int]
) -> Float[Tensor, "*batch n"]:
    """Expected gold of the best of n by `proxy`, for each n; float64.

    Args:
        gold: what is measured of each sample, put into the proxy's order; `gold=proxy` gives the proxy's own curve.
        proxy: what selects; of equal scores the later sample counts as the better one.
        n: sizes, each within 1 .. pool.
    """
    ordered = gold.double().gather(-1, proxy.argsort(dim=-1, stable=True))
    weights = torch.stack([best_of_n_weights(size, gold.shape[-1]) for size in n])
    return ordered @ weights.T.to(ordered)
