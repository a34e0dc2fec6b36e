"""HalfCheetah-v5 with records of our own: a small SAC expert, shipped here, that errs in most episodes.

The expert (`half_cheetah_expert`) is what `python -m telos.worlds.half_cheetah OUT` makes: SAC of this library with two
layers of 128, 40,000 steps of the environment, seed 1000. Records are whole episodes of 1,000 steps. In each, every
action is replaced by a uniform one with a probability of the episode's own, drawn uniformly from `ERRORS`: returns
reach from those of a random walk to nearly the expert's, and good actions stand beside bad ones in the same states.
"""

from __future__ import annotations

import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from telos.core.products import Policy, load_product
from telos.core.registry import use
from telos.core.rng import Rng
from telos.data.environments import make
from telos.data.records import Box, Transitions
from telos.judge.evaluate import evaluate

if TYPE_CHECKING:
    from telos.core.method import Method
    from telos.judge.claim import Measures, Trial

NAME, LENGTH = "HalfCheetah-v5", 1000
EXPERT = Path(__file__).parent / "half_cheetah_expert"
ERRORS = (0.2, 1.0)
STEPS, SEED = 40_000, 1000
UPDATES = 5000
"""Of each method that learns from the records."""


@cache
def expert() -> Policy:
    """The shipped policy, loaded once a process."""
    return load_product(EXPERT)


def records(episodes: int, rng: Rng, errors: tuple[float, float] = ERRORS) -> Transitions:
    """`episodes` whole episodes of the expert, who errs in each with a probability drawn from `errors`.

    Raises:
        TelosError: the package for MuJoCo is missing.
    """
    envs: list[Any] = [make(NAME) for _ in range(episodes)]
    policy, draws = expert(), rng.at("errors").numpy()
    wrong = draws.uniform(*errors, size=(episodes, 1))
    space = envs[0].action_space
    now = np.stack([env.reset(seed=rng.at("episode", i).integer() % 2**31)[0] for i, env in enumerate(envs)])
    columns: dict[str, list[np.ndarray]] = {"observations": [], "actions": [], "rewards": [], "next_observations": []}
    for _ in range(LENGTH):
        own = policy.act(torch.from_numpy(now.astype(np.float32))).action.numpy()
        other = draws.uniform(space.low, space.high, size=own.shape).astype(np.float32)
        actions = np.where(draws.random((episodes, 1)) < wrong, other, own)
        steps = [env.step(action) for env, action in zip(envs, actions, strict=True)]
        after = np.stack([step[0] for step in steps])
        for name, value in zip(columns, (now, actions, [step[1] for step in steps], after), strict=True):
            columns[name].append(np.asarray(value, dtype=np.float32))
        now = after
    whole: dict[str, Any] = {}
    for name, rows in columns.items():
        stacked = np.stack(rows, 1)
        whole[name] = stacked.reshape(episodes * LENGTH, *stacked.shape[2:])
    ends = np.zeros((episodes, LENGTH), dtype=bool)
    ends[:, -1] = True
    return Transitions.validated(
        **whole,
        terminated=np.zeros(episodes * LENGTH, dtype=bool), truncated=ends.ravel(),
        action_space=Box(tuple(space.low.tolist()), tuple(space.high.tolist())),
    )  # fmt: skip


def learnt(trial: Trial, method: Method) -> Measures:
    """What a method earns in ten episodes that learns from the seed's 40, and the mean return of these."""
    full = trial.budget == "full"
    data = records(40 if full else 1, trial.rng.at("data"))
    policy = trial.fit(method, data, steps=UPDATES)
    seed = trial.rng.at("tested").integer() % 2**31
    earned = evaluate(policy, NAME, episodes=10 if full else 1, seed=seed)
    return {"return": earned.mean, "recorded": float(data.rewards.sum()) / int(data.truncated.sum())}


def main(out: str) -> None:
    """Trains the expert and saves it to the folder `out`."""
    method = use("sac", hidden=(128, 128), warmup=2000, capacity=STEPS + 2000, learning_rate=1e-3)
    torch.set_num_threads(1)
    run = Path(out).with_name(Path(out).name + "-run")
    policy = method.fit(env=NAME, steps=STEPS, seed=SEED, device="cpu", out=run, checkpoint_every=10_000)
    policy.save(out)


if __name__ == "__main__":
    main(sys.argv[1])
