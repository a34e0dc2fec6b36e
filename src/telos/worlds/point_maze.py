"""The U-shaped point maze of gymnasium-robotics, with decisions of five steps each, and scripted records of it.

A mass is pushed through a U of seven cells of side 1 by a force in [-1, 1]^2. Start and goal lie anywhere in two
different cells, and the goal is entered within 0.45. What is observed are 8 numbers: the position (`POSITION`), the
goal (`DESIRED`), and position and velocity (`STATE`).
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from telos.core.rng import Rng
from telos.data.environments import flatten, make
from telos.data.extras import extra
from telos.data.records import Box, Transitions

if TYPE_CHECKING:
    import gymnasium as gym

NAME = "PointMaze_UMaze-v3"
REPEAT, LIMIT = 5, 60
"""Steps of a decision, and decisions of an episode."""
POSITION, DESIRED, STATE = (0, 1), (2, 3), (4, 5, 6, 7)
RADIUS = 0.45
WAY: NDArray[np.float64] = np.array([(-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)], dtype=np.float64)
"""Centres of the cells, from one end of the U to the other."""


def environment(continuing: bool = False) -> gym.Env[Any, Any]:
    """The maze, a decision being five steps; an episode ends after 60 decisions.

    Args:
        continuing: whether it goes on when the goal is reached.

    Raises:
        TelosError: the package is missing.
    """
    with extra("robots", f"environment '{NAME}'"):
        import gymnasium as gym
    inner: Any = make(NAME).unwrapped

    class Repeated(gym.Wrapper[Any, Any, Any, Any]):
        """Holds each action for five steps."""

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            self.left = LIMIT
            return self.env.reset(seed=seed)

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            made: Any = None
            for _ in range(REPEAT):
                made = self.env.step(action)
                if made[4]["success"] and not continuing:
                    break
            observation, reward, _, _, info = made
            self.left -= 1
            return observation, float(reward), info["success"] and not continuing, self.left <= 0, info

    return Repeated(inner)


def waypoint(observation: NDArray[np.float32], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    """The force of a controller that goes from cell to cell, then to the goal.

    Args:
        observation: (8,).
        noise: (2,) added to it.
    """
    position, goal, velocity = observation[:2], observation[2:4], observation[6:]
    here, there = (int(np.square(WAY - place).sum(1).argmin()) for place in (position, goal))
    target = goal if here == there else WAY[here + (1 if there > here else -1)]
    return np.clip(4 * (target - position) - velocity + noise, -1, 1)


def records(episodes: int, rng: Rng, expert: float = 0.1) -> Transitions:
    """Episodes of 60 decisions, each towards a goal of its own.

    Args:
        expert: share of episodes, the first ones, that the controller steers, with noise of 0.3; in the others forces
            are uniform, each held for 1 to 8 decisions.
    """
    env, columns = environment(continuing=True), defaultdict[str, Any](list)
    draws = rng.at("actions").numpy()
    for episode in range(episodes):
        raw, _ = env.reset(seed=rng.at("episode", episode).integer() % 2**31)
        seen, force = flatten(env.observation_space, one(raw), 1, NAME)[0], np.zeros(2)
        held = 0
        for step in range(LIMIT):
            if episode < round(expert * episodes):
                force = waypoint(seen, 0.3 * draws.normal(size=2))
            elif held == 0:
                force, held = draws.uniform(-1, 1, 2), int(draws.integers(1, 9))
            held -= 1
            raw, _, _, _, _ = env.step(force)
            after = flatten(env.observation_space, one(raw), 1, NAME)[0]
            for name, value in (
                ("observations", seen), ("actions", force), ("rewards", 0.0), ("next_observations", after),
                ("terminated", False), ("truncated", step == LIMIT - 1),
            ):  # fmt: skip
                columns[name].append(value)
            seen = after
    env.close()
    return Transitions.validated(action_space=Box((-1.0, -1.0), (1.0, 1.0)), **columns)


def one(raw: dict[str, Any]) -> dict[str, Any]:
    """A Dict observation as a batch of one."""
    return {name: value[None] for name, value in raw.items()}
