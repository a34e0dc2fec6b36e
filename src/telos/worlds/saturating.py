"""Saturating: answers are points, and what makes one good near the centre stops helping, then harms, further out.

An answer to any prompt is z ~ N(0, I) in 40 dimensions. Its gold reward rises along one direction w, |w| = 1, but only
so far, and falls with the distance from the centre:

    gold(z) = 2 tanh(w . z) - |z|^2 / 20 + 2,      E gold = 0

A model of it that was fitted near the centre extrapolates the rise, so the answers that it likes best are worse than it
thinks: best-of-n over-optimises. The world is ours, for ensembles of reward models.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from telos.core.rng import Rng

FEATURES = 40
RISE, FALL = 2.0, 0.05


@dataclass(frozen=True)
class Saturating:
    """One draw of the world.

    Args:
        direction: (40,) of unit length.
    """

    direction: Tensor

    @classmethod
    def draw(cls, rng: Rng) -> Saturating:
        """A direction, uniform on the sphere."""
        direction = torch.randn(FEATURES, generator=rng.at("direction").torch())
        return cls(direction / direction.norm())

    def gold(self, answers: Tensor) -> Tensor:
        """(...,) gold reward of answers (..., 40), at most 4."""
        return RISE * torch.tanh(answers @ self.direction) - FALL * answers.square().sum(-1) + FALL * FEATURES

    def pairs(self, count: int, flipped: float, rng: Rng) -> Tensor:
        """(count, 2, 40) pairs, the preferred answer first; a label is wrong with probability `flipped` in [0, 1]."""
        answers = torch.randn((count, 2, FEATURES), generator=rng.at("answers").torch())
        gold = self.gold(answers)
        wrong = torch.rand(count, generator=rng.at("flips").torch()) < flipped
        first_is_better = (gold[:, 0] > gold[:, 1]) ^ wrong
        return torch.where(first_is_better[:, None, None], answers, answers.flip(1))


def answers(prompts: int, pool: int, rng: Rng) -> Tensor:
    """(prompts, pool, 40) answers of the policy."""
    return torch.randn((prompts, pool, FEATURES), generator=rng.torch())
