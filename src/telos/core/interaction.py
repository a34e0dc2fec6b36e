"""Experience that a policy makes itself: steps in Gymnasium environments, kept to be learnt from again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from telos.core.errors import TelosError
from telos.core.method import Source
from telos.core.products import Policy, Product
from telos.core.rng import Rng
from telos.data.environments import action_space, bounded, env_actions, flatten, open_vector
from telos.data.records import Box, Discrete, Transitions

if TYPE_CHECKING:
    from numpy.typing import NDArray

LONGEST_REST = 2_000
"""Steps that episodes are waited for before a checkpoint; what still runs then is cut."""


class Interaction(Source):
    """Steps of the behaviour policy in `environments` copies of an environment, as a replay memory of transitions.

    Each batch is drawn uniformly from what is kept, after `steps` further steps of every copy; before the first batch
    `warmup` transitions with uniform actions are taken. What a time limit ends is `truncated`, what the task ends
    `terminated`, and the next observation is always the true one.

    An environment cannot be saved. Where a checkpoint is due, also in runs that write none, copies whose episode ends
    wait for the others, and then all begin anew: so a resumed run does what the uninterrupted one did.

    Args:
        env: a registered name, or a function that makes a new gymnasium.Env at each call.
        rng: of episodes' seeds.
        capacity: transitions that are kept; then the oldest are replaced.
        newest: how many of them batches are drawn from, the newest ones; None for all.
        auxiliary: further responses to each step, one number each, by their names in the step's info.
        log_probs: whether those of the actions are kept, too; the policy must give them.

    Raises:
        TelosError: an environment or an action space that cannot be used.
    """

    def __init__(
        self, env: str | Callable[[], Any], rng: Rng, *, batch_size: int, capacity: int = 1_000_000,
        warmup: int = 1_000, environments: int = 1, steps: int = 1, device: torch.device | str = "cpu",
        newest: int | None = None, auxiliary: Sequence[str] = (), log_probs: bool = False,
    ):  # fmt: skip
        self.where = f"environment '{env if isinstance(env, str) else getattr(env, '__name__', type(env).__name__)}'"
        drawn_from = capacity if newest is None else min(newest, capacity)
        if min(batch_size, warmup, environments, steps) < 1 or drawn_from < batch_size:
            raise TelosError(
                "experience: an option is out of range", got=f"batch_size={batch_size}, warmup={warmup}, "
                f"environments={environments}, steps={steps}, capacity={drawn_from}",
                expected="1 or more each, and capacity not below batch_size",
            )  # fmt: skip
        from gymnasium.vector import AutoresetMode

        self.envs: Any = open_vector(env, environments, False, self.where)
        if self.envs.metadata.get("autoreset_mode") is not AutoresetMode.DISABLED:
            raise TelosError(
                f"{self.where} resets itself", expected="a function that makes single environments",
                fix="pass the environment's name and how many copies",
            )  # fmt: skip
        self.rng, self.batch_size, self.warmup, self.steps, self.newest = rng, batch_size, warmup, steps, newest
        self.action_space = bounded(action_space(self.envs.single_action_space, self.where), self.where)
        self.device = torch.device(device)
        self.raw: Any = None
        self.seen = self.episodes = self.waited = 0
        self.pausing = False
        self.running: NDArray[np.bool_] = np.zeros(environments, dtype=bool)
        self.memory = self._empty(capacity, tuple(auxiliary), log_probs)
        if auxiliary:  # a response that is missing is noticed before anything is written
            actions, _ = self._uniform(environments, rng.at("probe"))
            chosen = env_actions(self.envs.single_action_space, actions, environments, self.where)
            self._responses(self.envs.step(chosen)[4])

    @property
    def observation_size(self) -> int:
        """O, numbers of a flat observation."""
        return self.memory.observations.shape[1]

    def __len__(self) -> int:
        return min(self.seen, len(self.memory.rewards))

    def _empty(self, capacity: int, auxiliary: tuple[str, ...], log_probs: bool) -> Transitions:
        raw, _ = self.envs.reset(seed=0)
        size = flatten(self.envs.single_observation_space, raw, self.envs.num_envs, self.where).shape[1]
        observations = torch.empty(capacity, size, device=self.device)
        discrete = isinstance(self.action_space, Discrete)
        actions = torch.empty(
            (capacity,) if discrete else (capacity, self.action_space.size),
            dtype=torch.int64 if discrete else torch.float32, device=self.device,
        )  # fmt: skip
        flags = torch.empty(capacity, dtype=torch.bool, device=self.device)
        return Transitions(
            observations, actions, torch.empty(capacity, device=self.device), torch.empty_like(observations), flags,
            torch.empty_like(flags), self.action_space, auxiliary_names=auxiliary,
            auxiliary=torch.empty(capacity, len(auxiliary), device=self.device) if auxiliary else None,
            log_probs=torch.empty(capacity, device=self.device) if log_probs else None,
        )  # fmt: skip

    def experience(self) -> Transitions:
        """All that is kept, oldest first while nothing was replaced."""
        return replace(self.memory, **{name: column[: len(self)] for name, column in self.memory.columns().items()})

    def next(self, behaviour: Callable[[], Product], rng: Rng) -> Transitions:
        policy = behaviour()
        if not isinstance(policy, Policy):
            raise TelosError(f"a {type(policy).__name__} does not act", expected="a learner that behaves as a Policy")
        if self.raw is None:
            self._begin()
        while self.seen < self.warmup:
            self._step(None, rng.at("warm-up", self.seen))
        for number in range(self.steps):
            self._step(policy, rng.at("act", number))
        count = len(self) if self.newest is None else min(self.newest, len(self))
        rows = torch.randint(count, (self.batch_size,), generator=rng.at("rows").torch(self.device), device=self.device)
        # By age, so that the same steps are drawn however many are kept besides.
        return self.memory[rows if self.newest is None else (self.seen - count + rows) % len(self.memory.rewards)]

    def rests(self) -> bool:
        """Whether no episode is under way; from the first call on, those that end wait until it is so."""
        if self.waited >= LONGEST_REST:
            last = (torch.arange(self.seen - int(self.running.sum()), self.seen)) % len(self.memory.rewards)
            self.memory.truncated[last.to(self.device)] = True
            self.running[:] = False
        self.pausing = bool(self.running.any())
        self.waited = self.waited + 1 if self.pausing else 0
        if not self.pausing:
            self.raw = None
        return not self.pausing

    def _begin(self) -> None:
        self.running[:] = True
        self.raw, _ = self.envs.reset(seed=self._seeds(self.running))

    def _seeds(self, fresh: NDArray[np.bool_]) -> list[int]:
        """Each copy's seed: a new one for those that begin an episode."""
        numbers = self.episodes + np.cumsum(fresh) - 1
        self.episodes += int(fresh.sum())
        return [self.rng.at("episode", int(number)).integer() % 2**31 for number in numbers]

    def _step(self, policy: Policy | None, rng: Rng) -> None:
        """One step of every copy; those that wait are stepped, too, but nothing is kept of it."""
        count = self.envs.num_envs
        observations = torch.from_numpy(flatten(self.envs.single_observation_space, self.raw, count, self.where))
        if policy is None:
            actions, log_probs = self._uniform(count, rng)
        else:
            act = policy.act(observations.to(self.device), rng=rng.torch(self.device), explore=True)
            actions, log_probs = act.action.detach().cpu(), act.log_prob
        self.raw, rewards, terminated, truncated, info = self.envs.step(
            env_actions(self.envs.single_action_space, actions, count, self.where)
        )
        after = torch.from_numpy(flatten(self.envs.single_observation_space, self.raw, count, self.where))
        rewards = torch.as_tensor(np.asarray(rewards), dtype=torch.float32)
        if not rewards.isfinite().all():
            raise TelosError(f"{self.where}: a reward is not finite", got=str(rewards.tolist()))
        live = torch.from_numpy(self.running.copy())
        further: list[tuple[Tensor, Tensor]] = []
        if self.memory.auxiliary is not None:
            further.append((self.memory.auxiliary, self._responses(info)))
        if self.memory.log_probs is not None:
            if log_probs is None:
                raise TelosError(f"a {type(policy).__name__} gives no log-probs of what it does")
            further.append((self.memory.log_probs, log_probs.detach().cpu()))
        rows = (self.seen + torch.arange(int(live.sum()))) % len(self.memory.rewards)
        for column, values in (
            (self.memory.observations, observations), (self.memory.actions, actions), (self.memory.rewards, rewards),
            (self.memory.next_observations, after), (self.memory.terminated, torch.as_tensor(np.asarray(terminated))),
            (self.memory.truncated, torch.as_tensor(np.asarray(truncated))), *further,
        ):  # fmt: skip
            column[rows.to(self.device)] = values[live].to(self.device)
        self.seen += len(rows)
        ended = np.asarray(terminated) | np.asarray(truncated)
        if self.pausing:
            self.running &= ~ended
        if ended.any():
            self.raw, _ = self.envs.reset(seed=self._seeds(ended), options={"reset_mask": ended})

    def _responses(self, info: Mapping[str, Any]) -> Tensor:
        """(E, m) what the environments say of this step besides its reward."""
        count, columns = self.envs.num_envs, []
        for name in self.memory.auxiliary_names:
            values = np.asarray(info.get(name, np.nan))
            told = values.shape == (count,) and values.dtype.kind in "fiub" and np.all(info.get(f"_{name}", True))
            if not told or not np.isfinite(values.astype(np.float64)).all():
                given = ", ".join(key for key in info if not key.startswith("_"))
                raise TelosError(
                    f"{self.where}: the response '{name}' is missing", got=str(info.get(name, given or "no info")),
                    expected=f"a finite number at info['{name}'] of every step",
                )  # fmt: skip
            columns.append(torch.from_numpy(values.astype(np.float32)))
        return torch.stack(columns, 1)

    def _uniform(self, count: int, rng: Rng) -> tuple[Tensor, Tensor]:
        """Actions from all over the space, and their log-probs or log-densities."""
        if isinstance(self.action_space, Discrete):
            actions = torch.randint(self.action_space.size, (count,), generator=rng.torch())
            return actions, torch.full((count,), -math.log(self.action_space.size))
        assert isinstance(self.action_space, Box)
        low, high = torch.tensor(self.action_space.low), torch.tensor(self.action_space.high)
        actions = low + (high - low) * torch.rand((count, len(low)), generator=rng.torch())
        return actions, (-(high - low).log().sum()).expand(count)

    def state(self) -> tuple[dict[str, Tensor], dict[str, int | float]]:
        return dict(self.experience().columns()), {"seen": self.seen, "episodes": self.episodes}

    def load_state(self, tensors: Any, numbers: Any) -> None:
        self.seen, self.episodes = int(numbers["seen"]), int(numbers["episodes"])
        for name, column in self.memory.columns().items():
            column[: len(self)] = tensors[name].to(self.device)
