"""Part of a data set kept aside to judge by: whole episodes, later decisions, or other prompts."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import LoggedBandit, Preferences, Transitions


def hold_out(data: Any, share: float, rng: Rng) -> tuple[Any, Any]:
    """What to train on, and what to judge by; neither names an origin, for neither is the whole file.

    Transitions are split by episodes and preferences by prompts, drawn from `rng`; of logged decisions the last ones
    are kept aside.

    Args:
        share: of episodes, decisions or prompts that is kept aside, in (0, 1); at least one, and one stays.

    Raises:
        TelosError: a share out of range, another record, a single episode, decision or prompt.
    """
    if not 0 < share < 1:
        raise TelosError("the share that is held out is out of range", expected="above 0, below 1", got=str(share))
    split = SPLITS.get(type(data))
    if split is None:
        raise TelosError(
            f"{type(data).__name__} cannot be split", expected=" or ".join(kind.__name__ for kind in SPLITS)
        )
    kept, aside = split(data, share, rng)
    return replace(data[kept], origin=None), replace(data[aside], origin=None)


def _count(groups: int, share: float, what: str, where: str | None) -> int:
    if groups < 2:
        raise TelosError(
            f"{where or 'the data'}: a single {what} cannot be split", expected=f"two {what}s or more",
            fix="give more data, or judge in an environment",
        )  # fmt: skip
    return min(max(1, round(share * groups)), groups - 1)


def by_episode(data: Transitions, share: float, rng: Rng) -> tuple[Any, Any]:
    """Row numbers (long tensors) of the episodes that stay and of those kept aside, in their order."""
    ends = (data.terminated | data.truncated).cpu()
    episodes = torch.cumsum(ends, 0) - ends.long()
    total = int(episodes[-1]) + 1
    drawn = rng.numpy().permutation(total)[: _count(total, share, "episode", data.origin)]
    aside = torch.isin(episodes, torch.from_numpy(drawn))
    return (~aside).nonzero()[:, 0], aside.nonzero()[:, 0]


def by_time(data: LoggedBandit, share: float, rng: Rng) -> tuple[Any, Any]:
    """Row numbers of the earlier and of the later decisions."""
    cut = len(data) - _count(len(data), share, "decision", data.origin)
    return torch.arange(cut), torch.arange(cut, len(data))


def by_prompt(data: Preferences, share: float, rng: Rng) -> tuple[Any, Any]:
    """Row numbers; pairs of one prompt stay together (an implicit prompt is the common beginning of both texts)."""
    rows = zip(data.prompts, data.chosen, data.rejected, strict=True)
    names = np.array([prompt_key(*row) for row in rows])
    prompts = np.unique(names)
    drawn = rng.numpy().permutation(len(prompts))[: _count(len(prompts), share, "prompt", data.origin)]
    aside = np.isin(names, prompts[drawn])
    return np.flatnonzero(~aside).tolist(), np.flatnonzero(aside).tolist()


def prompt_key(prompt: Any, chosen: Any, rejected: Any) -> str:
    """What pairs of the same prompt have in common, as text."""
    if prompt is None:
        first, second = (text if isinstance(text, str) else json.dumps(text) for text in (chosen, rejected))
        differ = (place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        prompt = first[: next(differ, min(len(first), len(second)))]
    return " ".join((prompt if isinstance(prompt, str) else json.dumps(prompt)).split()).casefold()


SPLITS: dict[type, Callable[[Any, float, Rng], tuple[Any, Any]]] = {
    Transitions: by_episode,
    LoggedBandit: by_time,
    Preferences: by_prompt,
}
