"""Windows of steps and their goals, as row numbers over a whole data set of play.

Rows are in time order and an episode ends where a row is terminated or truncated. A window of k steps is named by its
newest row t: rows t-k+1 .. t, where those before the episode's first row repeat that row and are marked False in the
mask. So each row is the newest of one window, as it is when a policy acts. (BESO's code slices whole windows only and
lets them grow at the start of an episode; the two agree but for windows near a start.)

Goals are states that follow the window: state j of `next_observations` lies one step after row j.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.data.records import Record, Transitions

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int


@dataclass(frozen=True)
class Windows(Record):
    """A batch of windows, newest step last.

    Args:
        observations: (B, k, O); actions: (B, k, A); what is before the episode's start repeats its first row.
        mask: (B, k) bool, False for these repetitions.
        goals: (B, G, O) consecutive future observations, whole; zeros where `has_goal` is False.
        has_goal: (B,) bool, False where no G states follow.
    """

    observations: Tensor
    actions: Tensor
    mask: Tensor
    goals: Tensor
    has_goal: Tensor


def episode_bounds(data: Transitions) -> tuple[Int[Tensor, " N"], Int[Tensor, " N"]]:
    """The first and the last row of each row's episode; the data's last row ends one whatever it says."""
    ended = data.terminated | data.truncated
    ended[-1] = True
    last_rows = ended.nonzero().squeeze(-1)
    episode = torch.cumsum(ended, 0) - ended.long()
    first_rows = torch.cat([last_rows.new_zeros(1), last_rows[:-1] + 1])
    return first_rows[episode], last_rows[episode]


def window_rows(
    newest: Int[Tensor, " B"], first: Int[Tensor, " B"], length: int
) -> tuple[Int[Tensor, "B k"], Bool[Tensor, "B k"]]:
    """Rows of the windows of `length` steps that end at `newest`, and which of them lie within the episode.

    Args:
        first: the first row of each one's episode.
    """
    rows = newest[:, None] + torch.arange(1 - length, 1, device=newest.device)
    return torch.maximum(rows, first[:, None]), rows >= first[:, None]


def future_rows(
    newest: Int[Tensor, " B"], last: Int[Tensor, " B"], length: int, u: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """First rows of goals: uniform over the slices of `length` states that follow the newest step."""
    choices = (last - newest + 2 - length).clamp(min=1)
    return newest + torch.minimum((u * choices).long(), choices - 1)


def final_rows(
    newest: Int[Tensor, " B"], last: Int[Tensor, " B"], length: int, u: Float[Tensor, " B"]
) -> Int[Tensor, " B"]:
    """First rows of goals: the last `length` states of the episode."""
    return torch.maximum(last - length + 1, newest)


GOALS: dict[str, Callable[[Tensor, Tensor, int, Tensor], Tensor]] = {"future": future_rows, "final": final_rows}
"""Goal samplers by name: (newest, last, length, u in [0, 1)) -> the first row of each goal."""


def goal_rows(
    newest: Int[Tensor, " B"],
    last: Int[Tensor, " B"],
    length: int,
    shares: Mapping[str, float],
    draws: Float[Tensor, "2 B"],
) -> tuple[Int[Tensor, "B G"], Bool[Tensor, " B"]]:
    """Rows of goals of `length` states, each from one of the named samplers, and whether so many states follow.

    Args:
        shares: sampler -> its probability; they sum to 1.
        draws: uniform in [0, 1): which sampler, and what it draws.
    """
    wrong = [name for name in shares if name not in GOALS]
    if wrong or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise TelosError(
            "shares of goals are wrong", expected=f"probabilities of {', '.join(GOALS)} that sum to 1", got=str(shares)
        )
    start, edge = newest, 0.0
    for name, share in shares.items():
        start = torch.where(draws[0] >= edge, GOALS[name](newest, last, length, draws[1]), start)
        edge += share
    rows = start[:, None] + torch.arange(length, device=newest.device)
    return torch.minimum(rows, last[:, None]), newest + length - 1 <= last


def take_windows(
    data: Transitions, rows: Int[Tensor, "B k"], mask: Bool[Tensor, "B k"], goals: Int[Tensor, "B G"],
    has_goal: Bool[Tensor, " B"],
) -> Windows:  # fmt: skip
    """The batch at these rows."""
    states = data.next_observations[goals] * has_goal[:, None, None]
    return Windows(data.observations[rows], data.actions[rows], mask, states, has_goal)
