"""Sessions: a recommender's users, who watch for seconds, sometimes like, seldom share; after arXiv 2302.01680.

A user z ~ N(0, I_4) is shown one of 12 items a step, with vectors V_a drawn once from N(0, I_4). With the affinity
u = z.V_a / 2 the responses to an item are

    watch   softplus(u + bait_a) times a log-normal of deviation 0.3, halved if the item is the one just shown
    like    1 with probability q^L_a exp(0.6 clip(u, -2, 2))
    share   the same with q^S_a

The bait of 0.9 on items 0-3 makes them watched and little else; items 4-7 are liked (q^L = 0.104, else 0.004), 8-11 are
shared (q^S = 0.064, else 0.004). A user leaves with probability 0.05 a step, and a session is cut after 20. What is
observed is z, the last item as 0/1, and a running mean of u - bait, 0.7 old + 0.3 new. The logging policy is
softmax(0.6 (u + bait)). The more watched items are not those that are liked or shared: what serves watch time alone
loses interactions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, softplus

from telos.core.rng import Rng
from telos.data.extras import extra
from telos.data.records import Discrete, Transitions

if TYPE_CHECKING:
    import gymnasium as gym
    from jaxtyping import Bool, Float, Int

ITEMS, WIDTH, LONGEST = 12, 4, 20
RESPONSES = ("watch", "like", "share")
LEAVE, NOISE = 0.05, 0.3
VECTORS: Tensor = torch.from_numpy(np.random.default_rng(7).normal(size=(ITEMS, WIDTH))).float()
"""(12, 4) the items."""
BAIT: Tensor = torch.where(torch.arange(ITEMS) < 4, 0.9, 0.0)
LIKED: Tensor = torch.where((torch.arange(ITEMS) >= 4) & (torch.arange(ITEMS) < 8), 0.104, 0.004)
SHARED: Tensor = torch.where(torch.arange(ITEMS) >= 8, 0.064, 0.004)
NAMES = (*(f"z{i}" for i in range(WIDTH)), *(f"last={i}" for i in range(ITEMS)), "mood")
"""What an observation holds."""

Chooser = Callable[["Float[Tensor, 'B 17']"], "Float[Tensor, 'B 12']"]
"""Probabilities of the items at observations."""


def affinities(users: Float[Tensor, "B 4"]) -> Float[Tensor, "B 12"]:
    """u of every item."""
    return users @ VECTORS.T / 2


def observations(
    users: Float[Tensor, "B 4"], last: Int[Tensor, " B"], mood: Float[Tensor, " B"]
) -> Float[Tensor, "B 17"]:
    """What is seen; `last` is -1 at a session's start."""
    shown = one_hot(last.clamp(min=0), ITEMS) * (last >= 0)[:, None]
    return torch.cat([users, shown.float(), mood[:, None]], -1)


def expected(users: Float[Tensor, "B 4"], last: Int[Tensor, " B"]) -> Float[Tensor, "B 12 3"]:
    """The mean of each response to each item."""
    u = affinities(users)
    repeated = last[:, None] == torch.arange(ITEMS)
    watch = softplus(u + BAIT) * torch.where(repeated, 0.5, 1.0) * torch.tensor(NOISE**2 / 2).exp()
    drawn = torch.exp(0.6 * u.clamp(-2, 2))
    return torch.stack([watch, LIKED * drawn, SHARED * drawn], -1)


def logging_policy(seen: Float[Tensor, "B 17"]) -> Float[Tensor, "B 12"]:
    """softmax(0.6 (u + bait))."""
    return torch.softmax(0.6 * (affinities(seen[:, :WIDTH]) + BAIT), -1)


@dataclass(frozen=True)
class Played:
    """Sessions S of T = 20 steps each, of which the first ones took place.

    Args:
        observations: (S, T + 1, 17); actions: (S, T); log_probs: (S, T) of these actions.
        responses: (S, T, 3) as drawn; expected: (S, T, 3) their means under the policy at what it saw.
        alive: (S, T) the step took place; left: (S, T) the user left after it.
    """

    observations: Float[Tensor, "S T1 17"]
    actions: Int[Tensor, "S T"]
    log_probs: Float[Tensor, "S T"]
    responses: Float[Tensor, "S T 3"]
    expected: Float[Tensor, "S T 3"]
    alive: Bool[Tensor, "S T"]
    left: Bool[Tensor, "S T"]

    def record(self) -> Transitions:
        """The steps as a log: watch is the main response; a session that is cut after 20 steps is truncated."""
        alive, left = self.alive, self.left
        cut = torch.zeros_like(left)
        cut[:, -1] = ~left[:, -1]
        return Transitions.validated(
            observations=self.observations[:, :-1][alive], actions=self.actions[alive],
            rewards=self.responses[..., 0][alive], next_observations=self.observations[:, 1:][alive],
            terminated=left[alive], truncated=cut[alive], log_probs=self.log_probs[alive],
            auxiliary=self.responses[..., 1:][alive], auxiliary_names=RESPONSES[1:], observation_names=NAMES,
            action_space=Discrete(ITEMS),
        )  # fmt: skip

    def means(self) -> dict[str, float]:
        """Expected responses of a step, and of a session (`watch_a_session`, ...); `interactions`: likes and shares."""
        counted = torch.where(self.alive[..., None], self.expected.double(), 0.0)
        step, session = counted.sum((0, 1)) / self.alive.sum(), counted.sum((0, 1)) / len(self.alive)
        found = dict(zip(RESPONSES, step.tolist())) | {"interactions": float(step[1:].sum())}
        return found | {f"{name}_a_session": value for name, value in zip(RESPONSES, session.tolist())}

    def returns(self, discount: float) -> Float[Tensor, "S T 3"]:
        """Discounted expected responses from each step to the session's end; 0 after it."""
        earned = torch.where(self.alive[..., None], self.expected, 0.0)
        found, following = torch.zeros_like(earned), torch.zeros_like(earned[:, 0])
        for t in reversed(range(LONGEST)):
            found[:, t] = following = earned[:, t] + discount * following
        return found


@torch.no_grad()
def play(choose: Chooser, sessions: int, rng: Rng) -> Played:
    """`sessions` sessions with items drawn from a policy's probabilities.

    Users, their chances and when they leave depend on `rng` alone: policies compared on one stream meet the same ones.
    """
    users = torch.randn(sessions, WIDTH, generator=rng.at("users").torch())
    leaves = torch.rand(sessions, LONGEST, generator=rng.at("leaves").torch()) < LEAVE
    chances = torch.rand(sessions, LONGEST, 3, generator=rng.at("chances").torch())
    noise = torch.randn(sessions, LONGEST, generator=rng.at("noise").torch())
    last, mood = torch.full((sessions,), -1), torch.zeros(sessions)
    u, rows = affinities(users), torch.arange(sessions)
    seen, columns = [observations(users, last, mood)], []
    for t in range(LONGEST):
        shares = choose(seen[-1])
        action = (shares.cumsum(-1) < chances[:, t, :1] * shares.sum(-1, keepdim=True)).sum(-1).clamp(max=ITEMS - 1)
        means = expected(users, last)
        of_item = means[rows, action]
        watch = of_item[:, 0] * torch.exp(NOISE * noise[:, t] - NOISE**2 / 2)
        drawn = torch.cat([watch[:, None], (chances[:, t, 1:] < of_item[:, 1:]).float()], -1)
        columns.append((action, shares[rows, action].log(), drawn, (shares[..., None] * means).sum(1)))
        mood = 0.7 * mood + 0.3 * (u[rows, action] - BAIT[action])
        last = action
        seen.append(observations(users, last, mood))
    gone = torch.cat([torch.zeros(sessions, 1, dtype=torch.bool), leaves[:, :-1].cumsum(1) > 0], 1)
    actions, log_probs, responses, means = (torch.stack(parts, 1) for parts in zip(*columns))
    return Played(torch.stack(seen, 1), actions, log_probs, responses, means, ~gone, leaves & ~gone)


def log(sessions: int, rng: Rng) -> Transitions:
    """What the logging policy's sessions leave behind, about 12.8 steps each, with its log-probs."""
    return play(logging_policy, sessions, rng).record()


def environment() -> gym.Env[Any, Any]:
    """One session an episode, whose reward is the time watched; `like` and `share` are in the info of each step.

    Raises:
        TelosError: gymnasium is missing.
    """
    with extra("rl", "the sessions' environment"):
        import gymnasium as gym

    class Session(gym.Env[Any, Any]):
        """A user draws from the generator that `reset` seeds."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (len(NAMES),), np.float32)
        action_space = gym.spaces.Discrete(ITEMS)

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=seed)
            user = torch.from_numpy(self.np_random.normal(size=(1, WIDTH))).float()
            self.pull, self.means = affinities(user)[0].numpy(), expected(user, torch.tensor([-1]))[0].numpy()
            self.seen, self.last, self.steps = observations(user, torch.tensor([-1]), torch.zeros(1))[0].numpy(), -1, 0
            return self.seen.copy(), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            item, (watch, like, share), chances = int(action), self.means[int(action)], self.np_random.random(3)
            watch *= np.exp(NOISE * self.np_random.normal() - NOISE**2 / 2) * (0.5 if item == self.last else 1)
            self.seen[WIDTH:-1] = np.arange(ITEMS) == item
            self.seen[-1] = 0.7 * self.seen[-1] + 0.3 * (self.pull[item] - float(BAIT[item]))
            self.last, self.steps = item, self.steps + 1
            left = bool(chances[2] < LEAVE)
            told = {"like": float(chances[0] < like), "share": float(chances[1] < share)}
            return self.seen.copy(), float(watch), left, self.steps == LONGEST and not left, told

    return Session()
