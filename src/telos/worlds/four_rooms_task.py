"""Four rooms as a task: from one corner to the other within 60 steps, the sooner the better; data of five schemes.

Deterministic and small, so that the expected return of any policy is exact.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from telos.core.rng import Rng
from telos.data.records import Discrete, Transitions
from telos.data.schemes import Scheme, random_share
from telos.worlds.four_rooms import COUNT, DISTANCES, GOAL, MOVES, NEXT, START, one_hot, shortest

if TYPE_CHECKING:
    from jaxtyping import Float

LIMIT = 60


def reward(step: int) -> float:
    """Of arriving at the goal by the given step, 1 .. 60; all else earns 0."""
    return 1 - 0.9 * step / LIMIT


EXPERT_RETURN = reward(int(DISTANCES[START, GOAL]))


def dataset(scheme: Scheme, steps: int, rng: Rng) -> Transitions:
    """`steps` transitions of one-hot cells, episode after episode; the expert takes a shortest way."""
    share = random_share(scheme, steps)
    draws = rng.at(scheme).numpy()
    chance, moves = draws.random(steps), draws.integers(len(MOVES), size=steps)
    following = NEXT.tolist()
    best = shortest(torch.arange(COUNT), torch.full((COUNT,), GOAL)).tolist()
    cells, actions, after, rewards, terminated, truncated = [], [], [], [], [], []
    cell, age = START, 0
    for step in range(steps):
        move = int(moves[step]) if chance[step] < share(step) else best[cell]
        reached = following[cell][move]
        age += 1
        arrived = reached == GOAL
        cells.append(cell)
        actions.append(move)
        after.append(reached)
        rewards.append(reward(age) if arrived else 0.0)
        terminated.append(arrived)
        truncated.append(not arrived and (age == LIMIT or step == steps - 1))
        cell, age = (START, 0) if arrived or age == LIMIT else (reached, age)
    return Transitions.validated(
        observations=one_hot(torch.tensor(cells)),
        actions=actions,
        rewards=rewards,
        next_observations=one_hot(torch.tensor(after)),
        terminated=terminated,
        truncated=truncated,
        action_space=Discrete(len(MOVES)),
    )


def expected_return(probabilities: Float[torch.Tensor, "C 4"]) -> float:
    """Of a policy, given the probability of each move in each cell."""
    leads = torch.zeros(COUNT, COUNT, dtype=torch.float64)
    leads.index_put_((torch.arange(COUNT)[:, None], NEXT), probabilities.detach().double(), accumulate=True)
    mass = torch.zeros(COUNT, dtype=torch.float64)
    mass[START] = 1
    total = 0.0
    for step in range(1, LIMIT + 1):
        mass = mass @ leads
        total += float(mass[GOAL]) * reward(step)
        mass[GOAL] = 0
    return total
