"""Time and memory of measuring a large data set: what `telos data measure` does with 10 million transitions.

    python bench/measure.py [--rows 10000000] [--observations 17] [--actions 6]

The data are random numbers in a .npz that telos wrote, so that they are mapped and not read. Every row is a process of
its own with one thread; its peak is of resident memory, of which pages of the file can be given up at any time, so the
rest is told apart (Linux only). Results go to results.json and RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import telos
from report import HERE, about, record
from resident import Watch, status
from telos.core.rng import Rng
from telos.data.formats import save_npz
from telos.data.measures import measure
from telos.data.records import Box, Transitions

ROWS = {"exact": "64-bit hashes, sorted", "hashed": "HyperLogLog"}
EPISODE = 1000


def write(path: Path, rows: int, observations: int, actions: int) -> int:
    """Random transitions, and their size in bytes."""
    draw = Rng(0).numpy()
    states = torch.from_numpy(draw.standard_normal((rows, observations), dtype=np.float32))
    data = Transitions(
        observations=states,
        actions=torch.from_numpy(2 * draw.random((rows, actions), dtype=np.float32) - 1),
        rewards=torch.from_numpy(draw.standard_normal(rows, dtype=np.float32)),
        next_observations=states,
        terminated=torch.zeros(rows, dtype=torch.bool),
        truncated=torch.arange(rows) % EPISODE == EPISODE - 1,
        action_space=Box((-1.0,) * actions, (1.0,) * actions),
    )
    save_npz(data, path)
    return path.stat().st_size


def worker(counter: str, file: str) -> dict[str, float]:
    """Loads and measures: seconds, and peaks in bytes."""
    with Watch() as watch:
        begun = time.perf_counter()
        data = telos.load(file)
        loaded = time.perf_counter()
        assert isinstance(data, Transitions)
        found = measure(data, counter="hashed" if counter == "hashed" else "exact")
        ended = time.perf_counter()
    return {
        "load_seconds": loaded - begun, "measure_seconds": ended - loaded, "resident": status("VmHWM"),
        "own": watch.most, "unique": found.unique,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--observations", type=int, default=17)
    parser.add_argument("--actions", type=int, default=6)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(worker(*options.worker)))
        return
    rows: dict[str, dict] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.npz"
        size = write(file, options.rows, options.observations, options.actions)
        for counter, work in ROWS.items():
            command = [sys.executable, __file__, "--worker", counter, str(file)]
            variables = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=variables, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{counter} failed:\n{done.stderr}")
            rows[counter] = {"work": work, **json.loads(done.stdout.splitlines()[-1])}
            print(counter, rows[counter], flush=True)
    work = f"{options.rows:,} transitions with {options.observations} observations and {options.actions} actions"
    result = {"work": work, "bytes": size, "rows": rows, **about(1)}
    print(record("measure", result, options.out))


if __name__ == "__main__":
    main()
