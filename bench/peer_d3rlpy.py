"""Worker: updates of d3rlpy, its own sampling included."""

import sys

import d3rlpy
import numpy as np

from serve import serve

ROWS, OBSERVATIONS, ACTIONS, UPDATES = 100_000, 17, 6, 100

rng = np.random.default_rng(0)
data = d3rlpy.dataset.MDPDataset(
    rng.standard_normal((ROWS, OBSERVATIONS)).astype(np.float32),
    rng.uniform(-1, 1, (ROWS, ACTIONS)).astype(np.float32),
    rng.standard_normal(ROWS).astype(np.float32),
    np.zeros(ROWS, np.float32),
    (np.arange(ROWS) % 1000 == 999).astype(np.float32),
)
config = {"iql": d3rlpy.algos.IQLConfig, "td3_bc": d3rlpy.algos.TD3PlusBCConfig}[sys.argv[1]]
algorithm = config(batch_size=256).create(device="cpu:0")
algorithm.build_with_dataset(data)


def work(updates: int = UPDATES) -> None:
    for _ in range(updates):
        algorithm.update(data.sample_transition_batch(256))


work(30)
serve(work)
