"""Progress with an estimate: a live line on a terminal, a line now and then elsewhere, nothing in tests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping


def muted() -> bool:
    """Whether nothing is to be shown: TELOS_PROGRESS=0."""
    return os.environ.get("TELOS_PROGRESS", "1") == "0"


def say(line: str) -> None:
    """Prints a line on standard error."""
    if not muted():
        print(line, file=sys.stderr, flush=True)


class Progress:
    """Shows `step/total`, rate, time left and the metrics of a run on standard error.

    Silent when TELOS_PROGRESS=0. On a terminal the line is rewritten; elsewhere one is printed every 15 seconds.
    """

    def __init__(self, title: str, total: int, start: int = 0, silent: bool = False):
        self.title, self.total, self.start = title, total, start
        self.begun = self.shown = time.monotonic()
        self.silent = silent or muted()
        self.live = sys.stderr.isatty()
        self.open = False

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the state at `step`, not too often."""
        now = time.monotonic()
        if self.silent or now - self.shown < (0.2 if self.live else 15.0):
            return
        self.shown, self.open = now, True
        rate = (step - self.start) / max(now - self.begun, 1e-9)
        left = (self.total - step) / max(rate, 1e-9)
        numbers = "  ".join(f"{name} {value:.4g}" for name, value in list(metrics.items())[:5])
        line = f"{self.title}  {step}/{self.total}  {rate:.1f}/s  {left:.0f} s left  {numbers}"
        print(f"\r\x1b[2K{line}" if self.live else line, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Ends a live line."""
        if self.open and self.live:
            print(file=sys.stderr)
