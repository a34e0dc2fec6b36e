"""Nearest neighbours by comparison with every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def nearest_rows(
    keys: Float[Tensor, "B D"], rows: Float[Tensor, "N D"], k: int, group: int = 32, spare: int = 4
) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """Euclidean distances to the k nearest rows, ascending, and their indices.

    Matrix products rank groups of neighbouring rows by their best member: the k nearest rows are in the k best
    groups at most. The members of those and of `spare` more (for the rounding of the products) are then measured
    exactly.
    """
    # On a CPU a block's ranks should stay in the cache; on a GPU there should be few launches.
    block = (64 if keys.device.type == "cpu" else 2048) * group
    best = []
    for part in rows.split(block):
        # |key|^2 is the same for all rows, so it plays no part in the ranking.
        rank = torch.addmm(part.square().sum(-1, keepdim=True), part, keys.T, alpha=-2.0)
        rank = F.pad(rank, (0, 0, 0, -len(part) % group), value=torch.inf)
        best.append(rank.view(-1, group, len(keys)).amin(1))
    ranks = torch.cat(best).T.contiguous()
    groups = ranks.topk(min(k + spare, ranks.shape[1]), largest=False).indices
    index = (groups[..., None] * group + torch.arange(group, device=keys.device)).flatten(1)
    squares = (rows[index.clamp(max=len(rows) - 1)] - keys[:, None]).square().sum(-1)
    nearest, place = squares.masked_fill(index >= len(rows), torch.inf).topk(k, largest=False)
    return nearest.sqrt(), index.gather(-1, place)
