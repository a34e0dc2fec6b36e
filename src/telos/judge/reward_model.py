"""A reward model for logged decisions: ridge regression with one line for all actions and deviations of each.

    f(x, a) = u . (w + v_a),   u = (1, standardised x),   penalty |w|^2 (not on the constant) + |v_a|^2

An action with few rows stays near the common line. The normal equations are solved by eliminating the v_a, so the cost
is one small system an action.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

FOLDS = 5
PENALTY = 1.0


def cross_fitted(
    contexts: Tensor, actions: Tensor, rewards: Tensor, n_actions: int, rng: np.random.Generator
) -> Tensor:
    """(N, K) float64 predictions for every action, each row by a model that has not seen its fold.

    Args:
        contexts: (N, D); actions: (N,) int64; rewards: (N,).
        rng: deals the rows into 5 folds (N for fewer rows).
    """
    x = contexts.double()
    # A column that is constant but for rounding says nothing.
    spread = x.std(0, correction=0)
    x = (x - x.mean(0)) / torch.where(spread > 1e-6 * x.abs().amax(0).clamp(min=1e-12), spread, torch.inf)
    u = torch.cat([torch.ones(len(x), 1, dtype=torch.float64), x], 1)
    target = rewards.double()
    folds = torch.from_numpy(rng.permutation(len(u)) % min(FOLDS, len(u)))
    size, count = u.shape[1], int(folds.max()) + 1
    grams = torch.zeros(count, n_actions, size, size, dtype=torch.float64)
    moments = torch.zeros(count, n_actions, size, dtype=torch.float64)
    for fold in range(count):
        for action in actions[folds == fold].unique().tolist():
            rows = (folds == fold) & (actions == action)
            grams[fold, action] = u[rows].T @ u[rows]
            moments[fold, action] = u[rows].T @ target[rows]
    predictions = torch.empty(len(u), n_actions, dtype=torch.float64)
    for fold in range(count):
        common, deviations = solve(grams.sum(0) - grams[fold], moments.sum(0) - moments[fold])
        predictions[folds == fold] = u[folds == fold] @ (common + deviations).T
    return predictions


def solve(grams: Tensor, moments: Tensor) -> tuple[Tensor, Tensor]:
    """w (P,) and v (K, P) from the sums of u u' (K, P, P) and of u r (K, P) of each action."""
    size = grams.shape[-1]
    own = torch.linalg.solve(
        grams + PENALTY * torch.eye(size, dtype=grams.dtype), torch.cat([grams, moments[..., None]], -1)
    )
    shrunk, line = own[..., :size], own[..., size]
    penalty = PENALTY * torch.eye(size, dtype=grams.dtype)
    # Without any row (one decision in all) the constant would be undetermined.
    penalty[0, 0] = 1e-9
    left = (grams - grams @ shrunk).sum(0) + penalty
    right = (moments - (grams @ line[..., None])[..., 0]).sum(0)
    common = torch.linalg.solve(left, right)
    return common, line - (shrunk @ common)
