"""Named random streams, computed from (seed, names, step): nothing global, nothing to save.

A stream's generator depends only on its path, so a resumed run draws what the uninterrupted one
would have drawn, whatever was drawn elsewhere in between.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Rng:
    """A place in the tree of streams; `at` walks down, `torch` and `numpy` give generators there.

    >>> Rng(0).at("batch", 3).numpy().integers(10) == Rng(0).at("batch", 3).numpy().integers(10)
    True
    """

    seed: int
    path: tuple[str | int, ...] = ()

    def at(self, *names: str | int) -> Rng:
        """The stream below this one, for example `rng.at("update", step)`."""
        return Rng(self.seed, (*self.path, *names))

    def integer(self) -> int:
        """A 63-bit integer that depends on seed and path only."""
        text = "\x1f".join([str(self.seed), *(f"{type(name).__name__}:{name}" for name in self.path)])
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def torch(self, device: torch.device | str = "cpu") -> torch.Generator:
        """A fresh torch generator on `device`, at the start of this stream."""
        return torch.Generator(device).manual_seed(self.integer())

    def numpy(self) -> np.random.Generator:
        """A fresh numpy generator at the start of this stream."""
        return np.random.Generator(np.random.Philox(self.integer()))
