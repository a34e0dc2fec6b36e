"""Divergences between policies."""

from __future__ import annotations

import math


def best_of_n_kl(n: int) -> float:
    """log n - (n - 1) / n nats: the KL of best-of-n to its policy where scores are distinct, else an upper bound.

    Stiennon et al. 2020, arXiv 2009.01325; a bound by Beirami et al. 2024, arXiv 2401.01879.
    """
    return math.log(n) - (n - 1) / n
