"""Meta-World tasks with a shared observation, scripted demonstrations of them, and honest goals.

An observation has 39 numbers: hand (3), gripper (1), two objects (3 + 4 each), the same of the step before, and the
task's target (3), which the scripted experts read and policies should not: `STATE` leaves it out. `GOAL` is the hand,
the gripper and the first object: what a goal shows. An action is a velocity of the hand (3) and the gripper's force,
in [-1, 1].

Meta-World (Yu et al., CoRL 2019; version 3) does not seed its tasks by `reset(seed=...)`; `environment` does.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.extras import extra
from telos.data.records import Box, Transitions

if TYPE_CHECKING:
    import gymnasium as gym

TASKS = ("reach-v3", "push-v3", "pick-place-v3", "faucet-open-v3", "faucet-close-v3")
STATE, GOAL = tuple(range(18)), tuple(range(7))
LIMIT = 150
"""Steps of an attempt; the experts need 40 to 95."""
DWELL = 5
"""Steps that a demonstration goes on after success, so that its end is a state to stay in."""


def environment(task: str, limit: int = LIMIT) -> gym.Env[Any, Any]:
    """A task whose `reset(seed=...)` draws objects and target from the seed; it ends at success or after `limit` steps.

    Raises:
        TelosError: an unknown task, or the package is missing.
    """
    with extra("robots", f"Meta-World task '{task}'"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import gymnasium as gym
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS

    if task not in ALL_V3_ENVIRONMENTS:
        raise TelosError(f"Meta-World has no task '{task}'", expected=", ".join(TASKS) + ", ... (see its list)")
    inner: Any = ALL_V3_ENVIRONMENTS[task]()
    inner._partially_observable, inner._freeze_rand_vec = False, False
    inner._set_task_called, inner.seeded_rand_vec = True, True
    # Kept from the time when the target was hidden, it would clip the target to zero.
    inner.__dict__.pop("sawyer_observation_space", None)

    class Seeded(gym.Wrapper[Any, Any, Any, Any]):
        """Seeds, ends at success, and counts its own steps."""

        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            if seed is not None:
                inner.seed(seed)
            self.steps = 0
            return self.env.reset()

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            observation, reward, _, _, info = self.env.step(np.clip(action, -1, 1))
            self.steps += 1
            return observation, float(reward), bool(info["success"]), self.steps >= limit, info

    wide = gym.spaces.Box(-np.inf, np.inf, (39,), np.float64)
    seeded = Seeded(inner)
    seeded.observation_space = wide
    return seeded


def expert(task: str) -> Callable[[NDArray[Any]], NDArray[np.float64]]:
    """The task's scripted policy: a whole observation -> an action in [-1, 1]."""
    with extra("robots", f"Meta-World task '{task}'"):
        from metaworld.policies import ENV_POLICY_MAP
    scripted: Any = ENV_POLICY_MAP[task]()

    def act(observation: NDArray[Any]) -> NDArray[np.float64]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.clip(np.asarray(scripted.get_action(np.asarray(observation, dtype=np.float64))), -1, 1)

    return act


def demonstrate(
    env: gym.Env[Any, Any], task: str, seed: int, rng: np.random.Generator | None
) -> tuple[list[tuple[Any, ...]], bool]:
    """One demonstration, DWELL steps past success: (observation, action, reward, next) rows, and whether it succeeded.

    Args:
        rng: for a demonstrator's speed (half to whole) and noise (deviation 0 to .3); None for the bare expert.
    """
    act, rows = expert(task), []
    speed, noise = (1.0, 0.0) if rng is None else (rng.uniform(0.5, 1.0), rng.uniform(0.0, 0.3))
    observation, _ = env.reset(seed=seed)
    left = None
    for _ in range(2 * LIMIT):
        action = act(observation)
        action[:3] *= speed
        if rng is not None:
            action = np.clip(action + noise * rng.standard_normal(4), -1, 1)
        following, reward, succeeded, _, _ = env.step(action.astype(np.float32))
        rows.append((observation, action, reward, following))
        observation = following
        left = DWELL if left is None and succeeded else left
        if left == 0:
            break
        left = None if left is None else left - 1
    return rows, left is not None


def demonstrations(tasks: Sequence[str] = TASKS, n: int = 40, rng: Rng | None = None) -> Transitions:
    """`n` successful demonstrations of each task by operators of different speed and care, whole observations.

    Args:
        rng: the stream of seeds, speeds and noise; Rng(0) without it.

    Raises:
        TelosError: a task's expert fails ten times in a row.
    """
    rng = (rng or Rng(0)).at("metaworld")
    columns: tuple[list[Any], ...] = ([], [], [], [])
    truncated: list[bool] = []
    for task in tasks:
        env = environment(task)
        made, tried = 0, 0
        while made < n:
            stream = rng.at(task, tried)
            rows, succeeded = demonstrate(env, task, stream.at("seed").integer() % 2**31, stream.at("operator").numpy())
            tried += 1
            if not succeeded:
                if tried >= 10 + 2 * n:
                    raise TelosError(f"Meta-World task '{task}': its expert fails", got=f"{made} of {tried} succeeded")
                continue
            made += 1
            for column, values in zip(columns, zip(*rows)):
                column.extend(values)
            truncated += [False] * (len(rows) - 1) + [True]
        env.close()
    observations, actions, rewards, nexts = (np.asarray(column, dtype=np.float32) for column in columns)
    return Transitions.validated(
        observations=observations, actions=actions, rewards=rewards, next_observations=nexts,
        terminated=np.zeros(len(truncated), dtype=bool), truncated=np.array(truncated),
        action_space=Box((-1.0,) * 4, (1.0,) * 4),
    )  # fmt: skip


@functools.cache
def rehearsal(task: str) -> gym.Env[Any, Any]:
    """The environment in which experts show goals: made once, for a reset with a seed forgets what was before."""
    return environment(task)


@functools.cache
def reached(task: str, seed: int) -> tuple[float, ...]:
    """The columns GOAL of the state in which the bare expert ends from that seed's objects and target.

    Where it fails, which is rare in TASKS, that is no success, and asks every policy for the same wrong thing.
    """
    rows, _ = demonstrate(rehearsal(task), task, seed, None)
    return tuple(float(value) for value in rows[-1][3][list(GOAL)])


def goals(task: str) -> Callable[[int, NDArray[np.float32]], tuple[float, ...]]:
    """For `telos.evaluate(goal=...)`: the goal of an episode is where an expert that is not in the data got to.

    The expert runs in a separate environment with the episode's seed, so the same objects and target; the policy sees
    its last state, and neither the target nor the way.
    """
    return lambda seed, first: reached(task, seed)
