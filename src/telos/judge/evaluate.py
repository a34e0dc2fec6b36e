"""Evaluation of a policy in a Gymnasium environment: the returns of whole episodes."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.products import Act, Policy
from telos.core.rng import Rng
from telos.data.environments import action_space, env_actions, flatten, open_vector, policy_device
from telos.data.records import Box, Discrete
from telos.judge.stats import Interval, paired_t

if TYPE_CHECKING:
    from gymnasium.vector import VectorEnv

ENVIRONMENTS = 8
LONGEST = 200_000
"""Steps after which an episode counts as endless."""

Goal = str | NDArray[Any] | Tensor | Callable[[int, NDArray[np.float32]], Any]
"""What a policy is asked to reach; see `evaluate`."""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What a policy earned in whole episodes.

    Args:
        returns: (episodes,) float64 undiscounted sums of rewards.
        lengths: (episodes,) int64 steps.
        successes: (episodes,) bool, where the environment reports "success" or "is_success"; else None.
        env, seed: what was evaluated.
    """

    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    successes: NDArray[np.bool_] | None
    env: str
    seed: int

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    @property
    def interval(self) -> Interval | None:
        """Student's t interval of the mean return over episodes, 95 %; None for a single episode.

        It says how well these episodes measure this one policy; a claim about a method needs seeds.
        """
        return paired_t(self.returns) if len(self.returns) > 1 else None

    @property
    def success_rate(self) -> float | None:
        """The fraction of episodes with success, or None where the environment reports none."""
        return None if self.successes is None else float(self.successes.mean())

    def to_json(self) -> dict[str, Any]:
        """Everything as JSON."""
        interval = self.interval
        return {
            "env": self.env, "seed": self.seed, "episodes": len(self.returns), "mean": self.mean,
            "interval": None if interval is None else interval.to_json(), "success_rate": self.success_rate,
            "returns": self.returns.tolist(), "lengths": self.lengths.tolist(),
            "successes": None if self.successes is None else self.successes.tolist(),
        }  # fmt: skip

    def __str__(self) -> str:
        interval = self.interval
        text = f"{self.env}: mean return {self.mean:.4g}"
        if interval is not None:
            text += f" [{interval.low:.4g}, {interval.high:.4g}]"
        text += f" over {len(self.returns)} episodes of {self.lengths.mean():.4g} steps"
        return text if self.success_rate is None else f"{text}, success {self.success_rate:.1%}"


def evaluate(
    policy: Policy, env: str | Callable[[], Any], *, episodes: int = 10, seed: int = 0, vector: int | None = None,
    processes: bool = False, explore: bool = False, success: Literal["any", "last"] = "any",
    goal: Goal | None = None,
) -> Evaluation:  # fmt: skip
    """Runs exactly `episodes` episodes and returns what the policy earned.

    Episode k starts from its own seed, so the set of episodes is fixed beforehand: short ones are not
    over-represented, and a policy that draws nothing gets the same returns whatever `vector` is. A vector environment
    that resets itself is seeded once, and each of its n parts gives its first episodes / n.

    Args:
        policy: gets observations as (n, O) float32, Dict observations as one vector (telos.data.environments.flatten).
        env: a registered name, or a function that makes a new gymnasium.Env or a gymnasium.vector.VectorEnv.
        vector: environments stepped together; by default as many as episodes, 8 at most, or with `processes` one a
            core.
        processes: each environment in a process of its own: for steps of some milliseconds, on several cores. The
            results are the same.
        explore: whether the policy adds its exploration.
        success: an episode succeeded if "any" of its steps says so, or only if its "last" does.
        goal: passed to the policy as its raw goal: an array (G,) for all episodes or (episodes, G); the name of a
            part of Dict observations ("desired_goal"), read at each step; or a function of an episode's seed, which
            the environment is reset with, and its first observation (O,), that returns (G,).

    Raises:
        TelosError: an unknown environment, action spaces that do not fit, an action outside the space, a reward
            that is not finite, an episode without end, a goal that does not fit.
    """
    name = env if isinstance(env, str) else getattr(env, "__name__", type(env).__name__)
    where = f"environment '{name}'"
    if not isinstance(policy, Policy):
        raise TelosError(f"a {type(policy).__name__} does not act", expected="a Policy")
    if episodes < 1 or (vector is not None and vector < 1) or success not in ("any", "last"):
        raise TelosError(
            "evaluate: an option is wrong", expected="episodes >= 1, vector >= 1, success 'any' or 'last'",
            got=f"episodes={episodes}, vector={vector}, success={success!r}",
        )  # fmt: skip
    at_once = vector or ((os.cpu_count() or 1) if processes else ENVIRONMENTS)
    envs = open_vector(env, min(episodes, at_once), processes, where)
    training = policy.training
    policy.eval()
    try:
        check_spaces(policy, envs, where)
        with torch.no_grad():
            goals = Goals(goal, envs, episodes, where)
            rng = Rng(seed).at("evaluate")
            returns, lengths, reached = run(policy, envs, episodes, rng, explore, success, goals, where)
    finally:
        policy.train(training)
        envs.close()
    successes = None if np.isnan(reached).all() else np.nan_to_num(reached) > 0
    return Evaluation(returns, lengths, successes, name, seed)


class Goals:
    """The goals of the episodes that run, one row an environment; what `goal` may be is said at `evaluate`."""

    def __init__(self, goal: Goal | None, envs: VectorEnv[Any, Any, Any], episodes: int, where: str):
        from gymnasium.spaces import Dict
        from gymnasium.vector import AutoresetMode

        self.goal, self.episodes, self.where = goal, episodes, where
        self.fixed: NDArray[np.float32] | None = None
        self.rows: list[Any] = [None] * envs.num_envs
        self.part = goal if isinstance(goal, str) else None
        if goal is None:
            return
        if isinstance(goal, str):
            space = envs.single_observation_space
            if not isinstance(space, Dict) or goal not in space.spaces:
                raise TelosError(
                    f"{where}: observations have no part '{goal}'", got=str(space), expected="a Dict with that part",
                    fix="pass the goal as an array, or as a function of seed and first observation",
                )  # fmt: skip
            self.space = space[goal]
        elif callable(goal):
            if envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
                raise TelosError(
                    f"{where}: the seeds of its episodes are not known, for it resets itself",
                    expected="a function that makes single environments", fix="or pass the goals as an array",
                )  # fmt: skip
        else:
            self.fixed = np.asarray(torch.as_tensor(goal).cpu(), dtype=np.float32)
            if self.fixed.ndim not in (1, 2) or (self.fixed.ndim == 2 and len(self.fixed) != episodes):
                raise TelosError(
                    "evaluate: 'goal' has the wrong shape", expected=f"(G,) or ({episodes}, G)",
                    got=str(self.fixed.shape),
                )  # fmt: skip
            self.fixed = np.broadcast_to(self.fixed, (episodes, self.fixed.shape[-1]))

    def begin(self, part: int, episode: int, seed: int, first: NDArray[np.float32]) -> None:
        """Environment `part` starts an episode; those beyond the last one keep the goal that they had."""
        if self.fixed is not None:
            self.rows[part] = self.fixed[min(episode, len(self.fixed) - 1)]
        elif callable(self.goal) and episode < self.episodes:
            row = np.asarray(self.goal(seed, first), dtype=np.float32)
            if row.ndim != 1 or not np.isfinite(row).all():
                raise TelosError(
                    f"{self.where}, episode {episode}: the goal cannot be used", expected="finite numbers, (G,)",
                    got=f"shape {row.shape}" if row.ndim != 1 else str(row.tolist()),
                )  # fmt: skip
            self.rows[part] = row

    def now(self, raw: Any, device: torch.device) -> Tensor | None:
        """(n, G), or None."""
        if self.part is not None:
            return torch.from_numpy(flatten(self.space, raw[self.part], len(self.rows), self.where)).to(device)
        return None if self.goal is None else torch.from_numpy(np.stack(self.rows)).to(device)


def check_spaces(policy: Policy, envs: VectorEnv[Any, Any, Any], where: str) -> None:
    """Raises TelosError if the policy's action space, where it has one, is not within the environment's."""
    theirs = action_space(envs.single_action_space, where)
    ours = policy_space(policy)
    if ours is None or ours == theirs:
        return
    fits = isinstance(ours, Box) and isinstance(theirs, Box) and ours.size == theirs.size
    if fits and isinstance(ours, Box) and isinstance(theirs, Box):
        tolerance = 1e-4 * np.maximum(1, np.abs(ours.high))
        fits = bool(np.all(np.array(ours.low) >= theirs.low - tolerance)) and bool(
            np.all(np.array(ours.high) <= theirs.high + tolerance)
        )
    if not fits:
        raise TelosError(
            f"{where}: the policy's action space does not fit", expected=str(theirs), got=str(ours),
            fix="use the environment that the policy was trained for",
        )  # fmt: skip


def policy_space(policy: Policy) -> Box | Discrete | None:
    """The action space that the policy states (`action_space`, `low` and `high`, or `actions`), or None."""
    space = getattr(policy, "action_space", None)
    if isinstance(space, Box | Discrete):
        return space
    low, high = getattr(policy, "low", None), getattr(policy, "high", None)
    if isinstance(low, tuple) and isinstance(high, tuple):
        return Box(low, high)
    actions = getattr(policy, "actions", None)
    return Discrete(actions) if isinstance(actions, int) else None


def run(
    policy: Policy, envs: VectorEnv[Any, Any, Any], episodes: int, rng: Rng, explore: bool, success: str, goals: Goals,
    where: str,
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:  # fmt: skip
    """Returns, lengths and successes (NaN where not reported) of episodes 0 .. episodes - 1.

    Part i of n runs episodes i, i + n, i + 2 n, ...; what it does beyond them is not counted.
    """
    from gymnasium.vector import AutoresetMode

    mode = envs.metadata.get("autoreset_mode")
    if mode not in tuple(AutoresetMode):
        raise TelosError(
            f"{where}: the vector environment does not say how it resets", got=f"autoreset_mode={mode}",
            expected="metadata['autoreset_mode'], a gymnasium.vector.AutoresetMode",
        )  # fmt: skip
    n = envs.num_envs
    returns, lengths = np.zeros(episodes), np.zeros(episodes, dtype=np.int64)
    reached = np.full(episodes, np.nan)
    current = np.arange(n)
    total, steps, succeeded = np.zeros(n), np.zeros(n, dtype=np.int64), np.full(n, np.nan)
    device = policy_device(policy)
    generator = rng.at("policy").torch(device)

    # A list of seeds, one a part, which gymnasium's vector environments take and their base class does not declare.
    def seeds() -> Any:
        return [rng.at("episode", int(k)).integer() % 2**31 for k in current]

    def act(observations: Any, state: Any, fresh: NDArray[np.bool_]) -> Act:
        flat = flatten(envs.single_observation_space, observations, n, where)
        for i in np.flatnonzero(fresh):
            goals.begin(int(i), int(current[i]), seeds()[i], flat[i])
        batch, goal = torch.from_numpy(flat).to(device), goals.now(observations, device)
        if fresh.all():
            state = None
        if state is None or not fresh.any():
            return policy.act(batch, goal=goal, state=state, rng=generator, explore=explore)
        going = policy.act(batch, goal=goal, state=state, rng=generator, explore=explore)
        starting = policy.act(batch, goal=goal, state=None, rng=generator, explore=explore)
        rows = torch.from_numpy(fresh).to(device)
        return Act(
            torch.where(rows.view(-1, *[1] * (going.action.dim() - 1)), starting.action, going.action),
            where_rows(rows, starting.state, going.state),
        )

    raw, _ = envs.reset(seed=seeds())
    state, fresh, resetting = None, np.ones(n, dtype=bool), np.zeros(n, dtype=bool)
    while (current < episodes).any():
        decision = act(raw, state, fresh)
        state = decision.state
        raw, rewards, terminated, truncated, infos = envs.step(
            env_actions(envs.single_action_space, decision.action, n, where)
        )
        # In NEXT_STEP mode the step after an episode's end only resets: it belongs to no episode.
        live, fresh = ~resetting, resetting
        total[live] += np.asarray(rewards)[live]
        steps[live] += 1
        ended = (np.asarray(terminated) | np.asarray(truncated)) & live
        now = reported_success(infos, n, ended if mode is AutoresetMode.SAME_STEP else None)
        succeeded[live] = np.fmax(succeeded, now)[live] if success == "any" else now[live]
        for i in np.flatnonzero(ended):
            if current[i] < episodes:
                if not np.isfinite(total[i]):
                    raise TelosError(
                        f"{where}, episode {current[i]}: the return is not finite", expected="finite rewards",
                        got=str(total[i]), fix="mend the environment's reward",
                    )  # fmt: skip
                returns[current[i]], lengths[current[i]], reached[current[i]] = total[i], steps[i], succeeded[i]
            current[i] += n
            total[i], steps[i], succeeded[i] = 0.0, 0, np.nan
        if steps[current < episodes].max(initial=0) >= LONGEST:
            raise TelosError(
                f"{where}: an episode has not ended after {LONGEST} steps", expected="an end or a time limit",
                fix="wrap the environment in gymnasium.wrappers.TimeLimit",
            )  # fmt: skip
        if mode is AutoresetMode.NEXT_STEP:
            resetting = ended
        else:
            fresh = ended
            if mode is AutoresetMode.DISABLED and ended.any():
                raw, _ = envs.reset(seed=seeds(), options={"reset_mask": ended})
    return returns, lengths, reached


def reported_success(infos: dict[str, Any], n: int, finished: NDArray[np.bool_] | None) -> NDArray[np.float64]:
    """(n,) 1 or 0 as the environments' infos say, NaN where they say nothing.

    Args:
        finished: parts whose infos of the last step are in "final_info" (they have been reset already).
    """
    values = np.full(n, np.nan)
    sources = [(infos, np.ones(n, dtype=bool) if finished is None else ~finished)]
    if finished is not None:
        sources.append((infos.get("final_info", {}), finished))
    for source, rows in sources:
        for key in ("success", "is_success"):
            if key in source:
                rows = rows & np.asarray(source.get(f"_{key}", True), dtype=bool)
                values[rows] = np.asarray(source[key])[rows].astype(np.float64)
                break
    return values


def where_rows(rows: Tensor, yes: Any, no: Any) -> Any:
    """`yes` in the given rows (n,) and `no` elsewhere, in every tensor (n, ...) of a policy's state."""
    if isinstance(yes, Tensor):
        return torch.where(rows.view(-1, *[1] * (yes.dim() - 1)), yes, no)
    if isinstance(yes, dict):
        return {name: where_rows(rows, yes[name], no[name]) for name in yes}
    if isinstance(yes, tuple | list):
        return type(yes)([where_rows(rows, a, b) for a, b in zip(yes, no, strict=True)])
    raise TelosError(
        "the policy's state cannot be reset for one episode alone", got=type(yes).__name__,
        expected="tensors with one row an environment, in dicts, tuples or lists", fix="evaluate with vector=1",
    )  # fmt: skip
