"""Worker: updates of d3rlpy, its own sampling included."""

import sys

import d3rlpy
import numpy as np

from offline_data import BATCH, UPDATES, columns
from serve import Gate, serve

table = columns()
data = d3rlpy.dataset.MDPDataset(
    table["observations"], table["actions"], table["rewards"], table["terminated"].astype(np.float32),
    table["truncated"].astype(np.float32),
)  # fmt: skip
config = {"iql": d3rlpy.algos.IQLConfig, "td3_bc": d3rlpy.algos.TD3PlusBCConfig}[sys.argv[1]]
algorithm = config(batch_size=BATCH).create(device="cpu:0")
algorithm.build_with_dataset(data)


def work() -> None:
    for _ in range(UPDATES):
        algorithm.update(data.sample_transition_batch(BATCH))


serve(work, Gate("d3rlpy", "torch", updates=UPDATES))
