"""Worker: updates of an offline method of telos, by `fit` as users call it: sampling, logging and health included.

offline.py METHOD             amounts are updates
offline.py METHOD GFLOP       amounts are their operations, for which a second learner is made
"""

import sys

import telos
from flops import gflop
from offline_data import ACTIONS, UPDATES, columns
from ours import gate
from telos.data.records import Box, Transitions

data = Transitions.validated(**columns(), action_space=Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS))
method = telos.use(sys.argv[1])
unit, each = ("GFLOP", gflop(method, data)) if sys.argv[2:] else ("updates", 1)
work = gate(**{unit: UPDATES * each})
method.fit(data, steps=1_000_000, device="cpu", evaluate=work, evaluate_every=UPDATES)
