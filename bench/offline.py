"""Worker: updates of an offline method of telos, sampling included."""

import sys

import torch

import telos
from serve import serve
from telos.core.method import Spec
from telos.core.rng import Rng
from telos.data.records import Box, Transitions

ROWS, OBSERVATIONS, ACTIONS, UPDATES = 100_000, 17, 6, 100

draw = Rng(0).torch()
data = Transitions.validated(
    observations=torch.randn(ROWS, OBSERVATIONS, generator=draw),
    actions=torch.rand(ROWS, ACTIONS, generator=draw) * 2 - 1,
    rewards=torch.randn(ROWS, generator=draw),
    next_observations=torch.randn(ROWS, OBSERVATIONS, generator=draw),
    terminated=torch.zeros(ROWS, dtype=torch.bool),
    truncated=torch.arange(ROWS) % 1000 == 999,
    action_space=Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS),
)
method = telos.use(sys.argv[1])
rng = Rng(0)
spec = method.prepare(Spec(data, {}, 1_000_000, torch.device("cpu"), rng))
learner, source = method.learner(spec, rng.at("init")), method.source(spec)
done = 0


def work(updates: int = UPDATES) -> None:
    global done
    for _ in range(updates):
        learner.update(source.next(learner.behaviour, rng.at("source", done)), rng.at("update", done))
        done += 1


work(30)
serve(work)
