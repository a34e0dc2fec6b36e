"""Worker: updates of an offline method of telos, by `fit` as users call it: sampling, logging and health included."""

import sys

import telos
from flops import gflop
from offline_data import ACTIONS, UPDATES, columns
from ours import gate
from telos.data.records import Box, Transitions

data = Transitions.validated(**columns(), action_space=Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS))
method = telos.use(sys.argv[1])
work = gate(updates=UPDATES, GFLOP=UPDATES * gflop(method, data))
method.fit(data, steps=1_000_000, device="cpu", evaluate=work, evaluate_every=UPDATES)
