"""Measures telos against its peers: each pair alternately in one run, ratios with intervals.

    python bench/run.py [NAME ...] [--rounds N] [--threads N] [--out FOLDER] [--list]

A NAME is a row (iql/jax), or how several begin (iql, sampling/tiny-32); all by default, with growth.py and profiles.py
at the end. The peers live in environments of their own (they pin other packages), which are made on first use. Writes
results.json and RESULTS.md, beside itself or, for a trial, in FOLDER; rows that were not measured now are kept. What
memory.py, measure.py, precision.py and real_pairs.py find has its own commands.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from report import HERE, about, record
from rows import ROWS, Check, Command, Pair, chosen
from workers import Worker, environment, told

FURTHER = ("growth", "profiles")
"""Scripts beside this one that make their own part."""


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """sum(theirs) / sum(ours) over rounds, with its 95 % interval.

    Rounds may be unequal (batches of short and of long texts), so the sums count. The interval is the t interval of
    the linearised ratio, taken of its logarithm.
    """
    n, estimate = len(ours), sum(theirs) / sum(ours)
    if n < 2:
        return estimate, estimate, estimate
    errors = [peer - estimate * own for own, peer in zip(ours, theirs, strict=True)]
    relative = math.sqrt(sum(e * e for e in errors) / (n - 1) / n) / (sum(theirs) / n)
    spread = math.exp(float(student.ppf(0.975, n - 1)) * relative)
    return estimate, estimate / spread, estimate * spread


def pair(name: str, row: Pair, rounds: int, threads: int) -> dict[str, Any]:
    """Alternating rounds of both workers."""
    pythons = environment(""), environment(row.peer)
    with Worker(pythons[0], row.ours, threads) as ours, Worker(pythons[1], row.theirs, threads) as theirs:
        times: dict[Worker, list[float]] = {ours: [], theirs: []}
        memory: dict[Worker, float] = {}
        for index in range(rounds):
            for worker in [ours, theirs] if index % 2 == 0 else [theirs, ours]:
                seconds, memory[worker] = worker.go()
                times[worker].append(seconds)
            print(f"{name} round {index + 1}/{rounds}: {times[ours][-1]:.2f} s, {times[theirs][-1]:.2f} s", flush=True)
    amounts = ours.amounts[row.unit], theirs.amounts[row.their_unit or row.unit]
    scale = amounts[0] / amounts[1]
    figure, low, high = (scale * value for value in ratio(times[ours], times[theirs]))
    if row.figure == "cost":
        figure, low, high = 1 / figure, 1 / high, 1 / low
    return {
        "figure": figure, "low": low, "high": high, "rounds": rounds,
        "sense": "at most" if row.figure == "cost" else "at least",
        "per_second": [amount * rounds / sum(times[w]) for amount, w in zip(amounts, times, strict=True)],
        "megabytes": [memory[ours], memory[theirs]],
        "versions": [ours.versions, theirs.versions],
    }  # fmt: skip


def check(name: str, row: Check, rounds: int, threads: int) -> dict[str, Any]:
    """Once: the number, or the largest difference of two lists."""
    found = told(environment(""), row.ours, threads)
    if row.theirs:
        theirs = told(environment(row.peer), row.theirs, threads)
        found = max(abs(a - b) for a, b in zip(found, theirs, strict=True))
    print(f"{name}: {found:.3g}", flush=True)
    return {"figure": found}


def command(name: str, row: Command, rounds: int, threads: int) -> dict[str, Any]:
    """Median, least and most seconds, and the peak memory in MB, of new processes."""
    times, memory = [], 0.0
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            variables = {**os.environ, "TELOS_CACHE": f"{folder}/cache", "TELOS_PROGRESS": "0"}
            launcher = [sys.executable, "-I", "-S", HERE / "launch.py", sys.executable, *row.arguments]
            done = subprocess.run(launcher, cwd=folder, env=variables, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-4000:]}")
        seconds, megabytes = map(float, done.stdout.split()[-2:])
        times.append(seconds)
        memory = max(memory, megabytes)
    print(f"{name}: {statistics.median(times):.2f} s", flush=True)
    return {
        "figure": statistics.median(times), "low": min(times), "high": max(times), "sense": "at most",
        "rounds": rounds, "megabytes": [memory],
    }  # fmt: skip


MEASURE: dict[type, Callable[..., dict[str, Any]]] = {Pair: pair, Check: check, Command: command}


def measured(name: str, rounds: int | None, threads: int) -> dict[str, Any]:
    """A row of results.json."""
    row, start = ROWS[name], time.perf_counter()
    wanted = rounds or getattr(row, "rounds", 1)
    if rounds and isinstance(row, Command):
        wanted = min(rounds, row.rounds)
    found = MEASURE[type(row)](name, row, wanted, threads)
    said = {key: value for key, value in asdict(row).items() if key not in ("ours", "theirs", "arguments", "figure")}
    kind = row.figure if isinstance(row, Pair) else type(row).__name__.lower()
    return {**said, "kind": kind, **found, "seconds": time.perf_counter() - start, **about(threads)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="all by default")
    parser.add_argument("--rounds", type=int, help="by default as the table says")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and RESULTS.md")
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    options = parser.parse_args()
    further = [name for name in FURTHER if name in options.names or not options.names]
    asked = [name for name in options.names if name not in FURTHER]
    try:
        names = chosen(asked) if asked or not options.names else []
    except KeyError as error:
        parser.error(f"no benchmark is called {error}; --list prints all")
    if options.list:
        print(*names, *further, sep="\n")
        return
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in names:
        try:
            record(name, measured(name, options.rounds, options.threads), options.out)
        except SystemExit as error:
            failed.append(name)
            print(f"{name} failed: {error}", file=sys.stderr)
    for name in further:
        arguments = [sys.executable, HERE / f"{name}.py", "--out", options.out, "--threads", str(options.threads)]
        failed += [name] if subprocess.run(arguments).returncode else []
    print((options.out / "RESULTS.md").read_text())
    if failed:
        raise SystemExit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
