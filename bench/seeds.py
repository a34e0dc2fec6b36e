"""Worker: updates of an offline method of telos, several seeds in one process.

    python seeds.py METHOD SEEDS [WIDTH BATCH]

One seed is trained by itself, as `fit` does it without `seeds`.
"""

import sys

import telos
from offline_data import ACTIONS, BATCH, HIDDEN, columns
from ours import gate
from telos.data.records import Box, Transitions

EACH, seeds = 20, int(sys.argv[2])
width, batch = map(int, sys.argv[3:]) if sys.argv[3:] else (HIDDEN, BATCH)
data = Transitions.validated(**columns(), action_space=Box((-1.0,) * ACTIONS, (1.0,) * ACTIONS))
work, calls = gate(updates=EACH * seeds), 0


def evaluate(*_: object) -> dict[str, float]:
    """Each seed calls it every EACH updates; a round is over once all have."""
    global calls
    calls += 1
    return work() if calls % seeds == 0 else {}


method = telos.use(sys.argv[1], hidden=(width, width), batch_size=batch)
together = {"seeds": seeds} if seeds > 1 else {}
method.fit(data, steps=1_000_000, device="cpu", evaluate=evaluate, evaluate_every=EACH, **together)
