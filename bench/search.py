"""Workers: the nearest of a million recorded pairs to 256 pairs (recorded state, policy's action), as PRDC asks.

search.py STATE ACTION BATCHES telos    by what PRDC's search="auto" takes for states and actions of these sizes
search.py STATE ACTION BATCHES scipy    by scipy's KDTree, as the paper's code, on all threads
search.py STATE ACTION BATCHES equal    prints the largest relative difference of their distances
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from scipy.spatial import KDTree
from torch import Tensor

from ours import gate
from serve import serve
from telos.core.rng import Rng
from telos.methods.offline_rl.prdc import DatasetAnchor

ROWS, KEYS, BETA = 1_000_000, 256, 2.0
Search = Callable[[Tensor], Tensor]
"""(B, D) keys -> (B,) rows."""


def pairs(state: int, action: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """States (N, S) and actions (N, A) of the data, and `count` keys (count, S + A)."""
    draw = Rng(0).torch()
    states, actions = torch.randn(ROWS, state, generator=draw), torch.rand(ROWS, action, generator=draw) * 2 - 1
    rows = torch.randint(ROWS, (count,), generator=draw)
    own = torch.rand(count, action, generator=draw) * 2 - 1
    return states, actions, torch.cat([BETA * states[rows], own], -1)


def by_telos(states: Tensor, actions: Tensor) -> Search:
    anchor = DatasetAnchor(states, actions, BETA, 1, torch.ones(actions.shape[1]))
    return lambda keys: anchor.search(keys, 1)[:, 0]


def by_scipy(states: Tensor, actions: Tensor) -> Search:
    tree = KDTree(torch.cat([BETA * states, actions], -1).numpy())
    return lambda keys: torch.from_numpy(tree.query(keys.numpy(), k=1, workers=torch.get_num_threads())[1])


SEARCHES: dict[str, Callable[[Tensor, Tensor], Search]] = {"telos": by_telos, "scipy": by_scipy}


def difference(states: Tensor, actions: Tensor, keys: Tensor) -> float:
    """Distances are compared, for rows at equal distance are both right; in float64."""
    data = torch.cat([BETA * states, actions], -1)
    found = [build(states, actions)(keys) for build in SEARCHES.values()]
    ours, theirs = ((data[index].double() - keys.double()).norm(dim=-1) for index in found)
    return float(((ours - theirs).abs() / theirs.clamp(min=1e-6)).max())


def main() -> None:
    state, action, batches = map(int, sys.argv[1:4])
    states, actions, keys = pairs(state, action, batches * KEYS)
    if sys.argv[4] == "equal":
        print(json.dumps(difference(states, actions, keys)))
        return
    search = SEARCHES[sys.argv[4]](states, actions)

    def work() -> None:
        for part in keys.split(KEYS):
            search(part)

    serve(work, gate("scipy", queries=len(keys)))


if __name__ == "__main__":
    main()
