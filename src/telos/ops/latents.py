"""Latents of states: distances that count steps, directions, sub-goals, and losses of other features."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float


def goal_values(latents: Float[Tensor, "*B D"], goals: Float[Tensor, "*B D"]) -> Float[Tensor, "*B"]:
    """-|| phi(s) - phi(g) ||, at most -0.001: the root has no slope that could be followed at 0."""
    return -(latents - goals).square().sum(-1).clamp(min=1e-6).sqrt()


def toward(latents: Float[Tensor, "*B D"]) -> Float[Tensor, "*B D"]:
    """Unit vectors; zero stays zero."""
    return torch.nn.functional.normalize(latents, dim=-1)


def solved(features: Float[Tensor, "B D"], rewards: Float[Tensor, " B"]) -> Float[Tensor, " D"]:
    """The w of least mean (r - <features, w>)^2, of minimum norm where there are several."""
    inverse = torch.linalg.pinv(features.double(), rtol=max(features.shape) * torch.finfo(features.dtype).eps)
    return (inverse @ rewards.double()).to(features.dtype)


def subgoals(
    here: Float[Tensor, "B D"], goals: Float[Tensor, "B D"], landmarks: Float[Tensor, "N D"], rounds: int, best: int
) -> Float[Tensor, "B D"]:
    """States on the way: again and again the mean of the `best` landmarks w of least max(|here - w|, |w - goal|).

    Park et al. 2024, arXiv 2402.15567 (HILP-Plan).
    """
    for _ in range(rounds):
        longest = torch.maximum(torch.cdist(here, landmarks), torch.cdist(goals, landmarks))
        goals = landmarks[longest.topk(min(best, len(landmarks)), largest=False).indices].mean(1)
    return goals


def laplacian_loss(
    latents: Float[Tensor, "members B D"], nexts: Float[Tensor, "members B D"], others: Float[Tensor, "members B D"]
) -> tuple[Float[Tensor, ""], int]:
    """Neighbours are near, and features of independent states orthonormal (up to a constant); `others` is any state."""
    near = (latents - nexts).square().sum(-1)
    spread = (latents * others).sum(-1).square() - latents.square().sum(-1) - others.square().sum(-1)
    return (near + spread).sum(), latents.shape[1]


def contrastive_loss(
    latents: Float[Tensor, "B D"], own: Float[Tensor, "B D"], every: Float[Tensor, "N D"]
) -> tuple[Float[Tensor, ""], int]:
    """InfoNCE on cosines, - c(s, g) + log sum_j exp c(s, g_j), summed over rows, and their number.

    Args:
        own: of the state g that followed each one; every: of those of all rows, the row's own among them.
    """
    here = toward(latents)
    return ((here @ toward(every).T).logsumexp(-1) - (here * toward(own)).sum(-1)).sum(), len(latents)


def measure_loss(
    forward: Float[Tensor, "members B D"],
    own: Float[Tensor, "B D"],
    every: Float[Tensor, "N D"],
    later: tuple[Float[Tensor, "members B D"], Float[Tensor, "N D"]],
    discount: float,
) -> tuple[Float[Tensor, ""], int]:
    """The Bellman residual of successor measures <F(s, a), B(s'')> as densities, summed over members and rows.

    Its minimiser without the min over members is sum_t discount^t P(s_{t+1} = s'' | s, a) over the share of s''.

    Args:
        own: B of each row's next state; every: B of N states that were drawn on their own.
        later: F' at the next states and actions, and B' of the N states; no gradient reaches them.
    """
    with torch.no_grad():
        wanted = discount * (later[0] @ later[1].T).amin(0)
    squares = 0.5 * (forward @ every.T - wanted).square().mean(-1)
    return (squares - (forward * own).sum(-1)).sum(), len(own)


def orthonormal_loss(own: Float[Tensor, "B D"], every: Float[Tensor, "N D"]) -> tuple[Float[Tensor, ""], int]:
    """|| E B B^T - I ||^2 up to a constant, from two independent draws of states, summed over rows."""
    return ((own @ every.T).square().mean(-1) - 2 * own.square().sum(-1)).sum(), len(own)


def successor_targets(
    cumulants: Float[Tensor, "B D"], later: Float[Tensor, "2 B D"], directions: Float[Tensor, "B D"], discount: float
) -> Float[Tensor, "B D"]:
    """phi~ + discount F'(s', z, a') with the member F' of the smaller <F', z>."""
    first = (later[0] * directions).sum(-1) < (later[1] * directions).sum(-1)
    return cumulants + discount * torch.where(first[:, None], later[0], later[1])


def successor_loss(
    features: Float[Tensor, "2 B D"], targets: Float[Tensor, "B D"], directions: Float[Tensor, "B D"], scalar: bool
) -> tuple[Float[Tensor, ""], int]:
    """Squared errors of <F, z> where `scalar`, else of F (mean over D); summed over members and rows, and the rows."""
    errors = features - targets
    squares = (errors * directions).sum(-1).square() if scalar else errors.square().mean(-1)
    return squares.sum(), len(targets)
