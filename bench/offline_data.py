"""The common work of the offline rows: random transitions, the same in every worker."""

from typing import Any

import numpy as np

ROWS, OBSERVATIONS, ACTIONS, BATCH, HIDDEN, UPDATES, EPISODE = 100_000, 17, 6, 256, 256, 100, 1000


def columns(rows: int = ROWS, observations: int = OBSERVATIONS, actions: int = ACTIONS) -> dict[str, Any]:
    """Arrays of `rows` transitions, float32 and bool; actions are within [-1, 1]."""
    draw = np.random.default_rng(0)
    return {
        "observations": draw.standard_normal((rows, observations), dtype=np.float32),
        "actions": 2 * draw.random((rows, actions), dtype=np.float32) - 1,
        "rewards": draw.standard_normal(rows, dtype=np.float32),
        "next_observations": draw.standard_normal((rows, observations), dtype=np.float32),
        "terminated": np.zeros(rows, bool),
        "truncated": np.arange(rows) % EPISODE == EPISODE - 1,
    }
