"""How a worker works on demand: plain Python, since the peers' environments have no telos."""

import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

from resident import status


class Gate:
    """Called between rounds of work: prints what the round before took, and waits for a line on standard input.

    Args:
        packages: whose versions are told.
        amounts: what one round does, by unit: updates=100.
    """

    def __init__(self, *packages: str, **amounts: float):
        self.about: dict[str, dict] = {"versions": {name: version(name) for name in packages}, "amounts": amounts}
        self.start: float | None = None

    def __call__(self, *_: object) -> dict[str, float]:
        """The first call ends the warm-up; it takes and gives what `fit(evaluate=gate)` asks for."""
        if self.start is None:
            print("ready", json.dumps(self.about), flush=True)
        else:
            print("took", time.perf_counter() - self.start, status("VmHWM") / 2**20, flush=True)
        if not sys.stdin.readline():
            sys.exit()
        self.start = time.perf_counter()
        return {}


def serve(work: Callable[[], object], gate: Gate) -> None:
    """Does `work` once to warm up, and then for every line on standard input."""
    while True:
        work()
        gate()
