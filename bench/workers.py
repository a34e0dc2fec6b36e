"""Peers' environments, and processes that work on demand (see serve.py for their side)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO, Self

from report import HERE

CONSTRAINTS = HERE.parent / "constraints.txt"
PEERS = {
    "d3rlpy": ["d3rlpy==2.8.1"],
    "trl": ["trl==1.16.0", "-c", str(CONSTRAINTS)],
    "jax": ["jax==0.10.2"],
}
"""What pip installs into a peer's own environment. torch comes first, as constraints.txt pins it."""


def environment(peer: str) -> Path:
    """The Python of the peer's own environment, made if it is not there; of ours where it needs none."""
    if peer not in PEERS:
        return Path(sys.executable)
    folder = HERE / f".venv-{peer}"
    python = folder / "bin" / "python"
    if not (folder / ".ready").is_file():
        torch = next(line for line in CONSTRAINTS.read_text().split() if line.startswith("torch="))
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        for packages in ([] if peer == "jax" else [[torch]]) + [PEERS[peer]]:
            subprocess.run([python, "-m", "pip", "install", "--quiet", *packages], check=True)
        (folder / ".ready").touch()
    return python


def variables(threads: int, folder: str) -> dict[str, str]:
    """Of a worker's process: its threads, quiet, offline, what it leaves behind in `folder`."""
    quiet = {"TELOS_PROGRESS": "0", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return {**os.environ, **quiet, "OMP_NUM_THREADS": str(threads), "TMPDIR": folder}


class Worker:
    """A process that works on demand; `amounts` of work a round and `versions` are as it tells.

    Args:
        arguments: a script beside this one, and what it is given.
    """

    def __init__(self, python: Path, arguments: tuple[str, ...], threads: int):
        self.folder = tempfile.TemporaryDirectory(prefix="telos-bench-")
        self.errors: IO[str] = open(f"{self.folder.name}/errors", "w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, HERE / arguments[0], *arguments[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self.errors, text=True, env=variables(threads, self.folder.name),
        )  # fmt: skip
        about = json.loads(self.answer("ready"))
        self.amounts: dict[str, float] = about["amounts"]
        self.versions: dict[str, str] = about["versions"]

    def answer(self, start: str) -> str:
        """What follows `start` in the next line that begins with it."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith(start):
                return line[len(start) :].strip()
        self.errors.seek(0)
        raise SystemExit(f"a worker ended early: {self.process.args}\n{self.errors.read()[-4000:]}")

    def go(self) -> tuple[float, float]:
        """One round: its seconds, and the worker's peak memory in MB so far."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        seconds, memory = self.answer("took").split()
        return float(seconds), float(memory)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.errors.close()
        self.folder.cleanup()


def told(python: Path, arguments: tuple[str, ...], threads: int) -> dict:
    """What a script that ends by itself prints in its last line: JSON."""
    command = [python, HERE / arguments[0], *arguments[1:]]
    with tempfile.TemporaryDirectory(prefix="telos-bench-") as folder:
        done = subprocess.run(command, env=variables(threads, folder), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.splitlines()[-1])
