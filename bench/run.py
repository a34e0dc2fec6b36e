"""Measures telos against its peers: each pair alternately in one run, ratios with intervals.

    python bench/run.py [iql td3_bc prdc dpo ...] [--rounds 10]

The peers live in environments of their own (they pin other packages), which this script makes on first use. Writes
RESULTS.md and results.json beside itself; rows that were not measured now are kept, as are the sections of memory.py
and real_pairs.py. A worker prints "ready" once it is warm; for every "go" it does a fixed amount of work and prints the
seconds that it took.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from report import HERE, about, record
from telos.judge.stats import paired_t

PEERS = {"d3rlpy": ["d3rlpy==2.8.1"], "trl": ["trl==1.16.0"]}


@dataclass(frozen=True)
class Pair:
    """One row of the table: our worker and the peer's, and what one round of work is."""

    ours: tuple[str, ...]
    peer: str
    theirs: tuple[str, ...]
    work: str
    unit: str
    amount: int
    aim: float


OFFLINE = "batch 256, two hidden layers of 256, observation 17, action 6, 100,000 rows"
PAIRS = {
    "iql": Pair(("offline.py", "iql"), "d3rlpy", ("peer_d3rlpy.py", "iql"), OFFLINE, "updates", 100, 2.0),
    "td3_bc": Pair(("offline.py", "td3_bc"), "d3rlpy", ("peer_d3rlpy.py", "td3_bc"), OFFLINE, "updates", 100, 2.0),
    "dpo": Pair(
        ("dpo.py",), "trl", ("peer_trl.py",), "Llama of 4.2 M parameters, 32 pairs, lengths of real dialogues",
        "pairs", 160, 1.5,
    ),
}  # fmt: skip


def environment(peer: str) -> Path:
    """The Python of the peer's own environment, made if it is not there."""
    folder = HERE / f".venv-{peer}"
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        torch = next(
            line for line in (HERE.parent / "constraints.txt").read_text().split() if line.startswith("torch=")
        )
        subprocess.run([python, "-m", "pip", "install", "--quiet", torch], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PEERS[peer]], check=True)
        (folder / ".ready").touch()
    return python


class Worker:
    """A process that works on demand."""

    def __init__(self, python: Path, arguments: tuple[str, ...], threads: int):
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "TELOS_PROGRESS": "0", "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(
            [python, HERE / arguments[0], *arguments[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True, env=variables,
        )  # fmt: skip
        self.answer("ready")

    def answer(self, start: str) -> str:
        """What follows `start` in the next line that begins with it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line[len(start) :].strip()
        raise SystemExit(f"a worker ended early: {self.process.args}")

    def go(self) -> tuple[float, float]:
        """One round: its seconds, and the worker's peak memory in MB so far."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        seconds, memory = self.answer("took").split()
        return float(seconds), float(memory)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def measure(name: str, rounds: int, threads: int) -> dict:
    """Alternating rounds of one pair; the ratio's interval is a t interval of log ratios, back-transformed."""
    pair = PAIRS[name]
    ours = Worker(Path(sys.executable), pair.ours, threads)
    theirs = Worker(environment(pair.peer), pair.theirs, threads)
    times = []
    for index in range(rounds):
        order = [ours, theirs] if index % 2 == 0 else [theirs, ours]
        taken = {id(worker): worker.go() for worker in order}
        times.append((taken[id(ours)], taken[id(theirs)]))
        print(f"{name} round {index + 1}/{rounds}: {times[-1][1][0] / times[-1][0][0]:.2f}x", flush=True)
    ours.close()
    theirs.close()
    interval = paired_t([math.log(peer[0] / own[0]) for own, peer in times])
    return {
        "work": pair.work, "unit": pair.unit, "peer": f"{PEERS[pair.peer][0]}", "aim": pair.aim, "rounds": rounds,
        "ours_per_second": pair.amount * rounds / sum(own[0] for own, _ in times),
        "peer_per_second": pair.amount * rounds / sum(peer[0] for _, peer in times),
        "ratio": math.exp(interval.estimate), "low": math.exp(interval.low), "high": math.exp(interval.high),
        "ours_megabytes": max(own[1] for own, _ in times), "peer_megabytes": max(peer[1] for _, peer in times),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PAIRS)}; all by default")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in PAIRS]
    if unknown:
        parser.error(f"no benchmark is called {unknown[0]}; there are {', '.join(PAIRS)}")
    for name in options.names or PAIRS:
        text = record(name, {**measure(name, options.rounds, options.threads), **about(options.threads)})
    print(text)


if __name__ == "__main__":
    main()
