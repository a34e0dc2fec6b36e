"""Nearest neighbours by comparison with every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float, Int


def nearest_rows(
    keys: Float[Tensor, "B D"], rows: Float[Tensor, "N D"], k: int, block: int = 16384
) -> tuple[Float[Tensor, "B k"], Int[Tensor, "B k"]]:
    """Euclidean distances to the k nearest rows, ascending, and their indices.

    A matrix product ranks the rows of each block; its rounding is undone by measuring a few more candidates
    than asked for exactly.
    """
    spare = 4
    centre = rows.mean(0)
    centred = keys - centre
    distances, indices = [], []
    for start in range(0, len(rows), block):
        part = rows[start : start + block]
        shifted = part - centre
        # |key|^2 is the same for all rows, so it plays no part in the ranking.
        rank = torch.addmm(shifted.square().sum(-1), centred, shifted.T, alpha=-2.0)
        found = rank.topk(min(k + spare, len(part)), largest=False).indices
        distances.append((part[found] - keys[:, None]).square().sum(-1))
        indices.append(found + start)
    nearest, place = torch.cat(distances, -1).topk(k, largest=False)
    return nearest.sqrt(), torch.cat(indices, -1).gather(-1, place)
