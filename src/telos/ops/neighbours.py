"""Nearest neighbours by comparison with every row."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.numerics import PLAIN, using

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

GROUP = 64
"""Neighbouring rows that are ranked by their best member."""
SPARE = 4
"""Groups that are measured besides the k best, for the rounding of the ranks."""


class NearestRows:
    """The rows nearest to keys in Euclidean distance, found where the rows live.

    Matrix products rank groups of rows by their best member: the k nearest rows are in the k best groups at most. The
    members of those and of some more are then measured. Where a row of the other groups could still be nearer, as far
    as the rounding of the products goes, all is repeated in float64.

    Args:
        rows: (N, D), of which a copy is kept.
    """

    def __init__(self, rows: Float[Tensor, "N D"]):
        self.count, width = rows.shape
        # Products of large numbers are rounded more, so columns far from 0 are centred. Theirs is an exact difference
        # (of numbers within a factor of two); that of other columns would not be, and gain little.
        mean = rows.mean(0)
        self.centre = mean.where(mean.abs() > 4 * rows.std(0, correction=0), 0)
        # |row|^2 is a further column, so that the product with (-2 key, 1) is a rank.
        self.table = rows.new_zeros(-(-self.count // GROUP) * GROUP, width + 1)
        torch.sub(rows, self.centre, out=self.table[: self.count, :-1])
        # On a CPU the products of a block should stay in the cache; on a GPU there should be few blocks. So with keys
        # that are measured at once.
        self.groups, self.measured = (32, 64) if rows.device.type == "cpu" else (2048, 4096)
        self.blocks = self.table.split(self.groups * GROUP)
        for block in self.blocks:
            block[:, -1] = block[:, :-1].square().sum(-1)
        self.table[self.count :, -1] = torch.inf

    @torch.no_grad()
    def __call__(self, keys: Float[Tensor, "B D"], k: int) -> Int[Tensor, "B k"]:
        """Indices of the k nearest rows, 1 <= k <= N, nearest first."""
        keys = keys - self.centre
        index, sure = self.by_rank(keys, k)
        if not sure.all():
            index[~sure] = self.in_float64(keys[~sure], k)
        return index

    def by_rank(self, keys: Float[Tensor, "B D"], k: int) -> tuple[Int[Tensor, "B k"], Bool[Tensor, " B"]]:
        """The nearest rows of the best groups, and whether no other can be nearer."""
        ranks, groups = self.best_groups(keys, k + SPARE)
        index = (groups[..., None] * GROUP + torch.arange(GROUP, device=keys.device)).flatten(1)
        exact = keys.double()
        pairs = zip(groups.split(self.measured), exact.split(self.measured))
        squares = torch.cat([self.squares(*pair) for pair in pairs]).masked_fill_(index >= self.count, torch.inf)
        nearest, place = squares.topk(k, largest=False)
        # A nearer row of another group is at most |key| + distance long, which bounds the rounding of its rank.
        lengths, last = exact.norm(dim=-1), nearest[:, -1]
        rounding = 2 * torch.finfo(keys.dtype).eps * self.table.shape[1] * (2 * lengths + last.sqrt()).square()
        return index.gather(1, place), ranks[:, -1] + lengths.square() - rounding >= last

    def best_groups(
        self, keys: Float[Tensor, "B D"], count: int
    ) -> tuple[Float[Tensor, "B count"], Int[Tensor, "B count"]]:
        """Least |row|^2 - 2 row key of the `count` best groups, or of all, and their numbers."""
        weights = torch.cat([-2 * keys, torch.ones_like(keys[:, :1])], -1).T
        products = keys.new_empty(self.groups * GROUP, len(keys))
        ranks = keys.new_empty(len(self.blocks), self.groups, len(keys))
        ranks.flatten(0, 1)[len(self.table) // GROUP :] = torch.inf
        with using(PLAIN):
            for block, rank in zip(self.blocks, ranks):
                torch.mm(block, weights, out=products[: len(block)])
                torch.amin(products[: len(block)].view(-1, GROUP, len(keys)), 1, out=rank[: len(block) // GROUP])
        # Blocks first, since the k best groups are in the k best blocks at most.
        blocks = ranks.amin(1).T.topk(min(count, len(ranks)), largest=False).indices
        within = ranks[blocks, :, torch.arange(len(keys), device=keys.device)[:, None]].flatten(1)
        best, place = within.topk(min(count, within.shape[1]), largest=False)
        return best, blocks.gather(1, place // self.groups) * self.groups + place % self.groups

    def squares(self, groups: Int[Tensor, "B groups"], keys: Float[Tensor, "B D"]) -> Float[Tensor, "B members"]:
        """Squared distances to all members, in float64."""
        table = self.table.view(-1, GROUP, self.table.shape[1])
        members = table[groups.clamp(max=len(table) - 1)].flatten(1, 2)[..., :-1].double()
        return members.sub_(keys[:, None]).square_().sum(-1)

    def in_float64(self, keys: Float[Tensor, "B D"], k: int) -> Int[Tensor, "B k"]:
        """The k nearest by all distances."""
        keys = keys.double()
        nearest = keys.new_full((len(keys), k), torch.inf)
        index = torch.zeros_like(nearest, dtype=torch.int64)
        for start, block in zip(range(0, self.count, self.groups * GROUP), self.blocks):
            rows = block[: self.count - start, :-1].double()
            distances, place = torch.cdist(keys, rows).topk(min(k, len(rows)), largest=False)
            nearest, order = torch.cat([nearest, distances], 1).topk(k, largest=False)
            index = torch.cat([index, place + start], 1).gather(1, order)
        return index
