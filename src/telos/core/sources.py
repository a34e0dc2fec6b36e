"""Sources over data sets that are in memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from telos.core.method import Source
from telos.core.products import Product
from telos.core.rng import Rng
from telos.data.records import Record


class Uniform(Source):
    """Rows drawn uniformly with replacement, indexed on the device where the data lives."""

    def __init__(self, data: Record, batch_size: int):
        self.data, self.batch_size = data, batch_size
        self.device = next(c for c in data.columns().values() if isinstance(c, Tensor)).device

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Record:
        index = torch.randint(len(self.data), (self.batch_size,), generator=rng.torch(self.device), device=self.device)
        return self.data[index]


class Epochs(Source):
    """Every item once an epoch in a new order, items of like length together, the last short batch included.

    Args:
        data: has `len` and `batch(index) -> Record`.
        lengths: (N,) sizes of the items, for buckets; None for a plain shuffle.
        order: the stream that fixes each epoch's order (the source's own, not a step's).
    """

    def __init__(self, data: Any, batch_size: int, order: Rng, lengths: np.ndarray | None = None):
        self.data, self.batch_size, self.order, self.lengths = data, batch_size, order, lengths
        self.cursor = 0
        self.batches_per_epoch = -(-len(data) // batch_size)
        self._epoch, self._plan = -1, [np.zeros(0, int)]

    def plan(self, epoch: int) -> list[np.ndarray]:
        """The epoch's batches of indices: shuffled, sorted by length within windows of 16 batches, shuffled."""
        rng = self.order.at(epoch).numpy()
        order = rng.permutation(len(self.data))
        if self.lengths is None:
            return [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        batches: list[np.ndarray] = []
        window = 16 * self.batch_size
        for start in range(0, len(order), window):
            part = order[start : start + window]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Any:
        epoch, place = divmod(self.cursor, self.batches_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._plan = epoch, self.plan(epoch)
        self.cursor += 1
        return self.data.batch(self._plan[place])

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return {}, {"cursor": self.cursor}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, int | float]) -> None:
        self.cursor = int(numbers["cursor"])
