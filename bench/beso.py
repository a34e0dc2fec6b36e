"""Workers: BESO's action in three denoising steps, one robot, the window full; and its network alone.

beso.py act        actions of a policy as `fit` returns it, of the paper's size for Block-Push
beso.py forward    forward passes of the same network on what it was given in such an action
"""

from __future__ import annotations

import sys

import torch

import telos
from ours import gate
from serve import serve
from telos.core.rng import Rng
from telos.data.records import Box, Transitions

OBSERVATIONS, ACTIONS, ROWS, REPEATS = 10, 2, 2000, 20

draw = Rng(0).torch()
states = torch.randn(ROWS, OBSERVATIONS, generator=draw)
data = Transitions.validated(
    observations=states,
    actions=torch.rand(ROWS, ACTIONS, generator=draw) * 2 - 1,
    rewards=torch.zeros(ROWS),
    next_observations=states,
    terminated=torch.zeros(ROWS, dtype=torch.bool),
    truncated=torch.arange(ROWS) % 100 == 99,
    action_space=Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS),
)
policy = telos.BESO(batch_size=16).fit(data, steps=1, device="cpu")
seen: list = []
hook = policy.net.register_forward_pre_hook(lambda net, inputs: seen.append(inputs))
state = None
for row in range(2 * policy.play.window):
    state = policy.act(data.observations[row], goal=data.observations[99], state=state, rng=draw).state
hook.remove()


def act() -> None:
    for row in range(REPEATS):
        policy.act(data.observations[row], goal=data.observations[99], state=state, rng=draw)


@torch.no_grad()
def forward() -> None:
    for _ in range(REPEATS):
        policy.net(*seen[-1])


work, unit = {"act": (act, "actions"), "forward": (forward, "forwards")}[sys.argv[1]]
serve(work, gate(**{unit: REPEATS}))
