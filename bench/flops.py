"""Floating-point operations of an offline method's update, and of a matrix product."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from telos.core.method import Method, Spec
from telos.core.numerics import PLAIN, using
from telos.core.rng import Rng
from telos.data.records import Transitions

UPDATES = 2
"""Counted and averaged: TD3's policy learns in every second update."""


def gflop(method: Method, data: Transitions) -> float:
    """10^9 operations of the matrix products of one update, forward and backward, of a learner made anew.

    By torch's own kernels: the counter does not know others, which do the same products.
    """
    rng, counter = Rng(0), FlopCounterMode(display=False)
    spec = method.prepare(Spec(data, {}, 1000, torch.device("cpu"), rng))
    with using(PLAIN):
        learner, source = method.learner(spec, rng.at("init")), method.source(spec)
        batches: list[Any] = [source.next(learner.behaviour, rng.at("source", i)) for i in range(UPDATES)]
        with counter:
            for index, batch in enumerate(batches):
                learner.update(batch, rng.at("update", index))
    return counter.get_total_flops() / UPDATES / 1e9
