"""What coarser matrix products do to results: the same runs with `numerics="auto"` and `"medium"`, seed by seed.

    python bench/precision.py [--steps 2000] [--seeds 5] [--out FOLDER]

On HalfCheetah-v5 with our own records (telos.worlds.half_cheetah): the return of ten episodes after training, and the
time of training. Seeds are trained together. Writes a section of RESULTS.md and a row of results.json.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

import telos
from report import HERE, about, record
from telos.core.rng import Rng
from telos.judge.evaluate import evaluate
from telos.judge.stats import paired_t
from telos.worlds import half_cheetah

METHODS = ("iql", "td3_bc")
PRESETS = ("auto", "medium")


def returns(name: str, preset: str, data: Any, steps: int, seeds: int) -> tuple[list[float], float]:
    """The return of each seed's policy, and the seconds of training."""
    start = time.perf_counter()
    policies = telos.use(name).fit(data, steps=steps, seeds=seeds, numerics=preset)
    seconds = time.perf_counter() - start
    return [evaluate(policy, half_cheetah.NAME, episodes=10, seed=7).mean for policy in policies], seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    options = parser.parse_args()
    os.environ["TELOS_PROGRESS"] = "0"
    data = half_cheetah.records(20, Rng(0).at("data"))
    rows: dict[str, Any] = {}
    for name in METHODS:
        found = {preset: returns(name, preset, data, options.steps, options.seeds) for preset in PRESETS}
        (own, own_seconds), (coarse, coarse_seconds) = (found[preset] for preset in PRESETS)
        rows[name] = {
            "returns": {preset: values for preset, (values, _) in found.items()},
            "difference": paired_t([b - a for a, b in zip(own, coarse, strict=True)]).to_json(),
            "speed": own_seconds / coarse_seconds,
        }
        print(name, rows[name], flush=True)
    work = (
        f"HalfCheetah-v5, {options.steps:,} updates on 20 recorded episodes of an erring expert, {options.seeds} seeds "
        "trained together, return of ten episodes"
    )
    print(record("precision", {"work": work, "rows": rows, **about(torch.get_num_threads())}, options.out))


if __name__ == "__main__":
    main()
