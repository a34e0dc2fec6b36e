"""Resident memory of this process, from Linux. Plain Python, for peers' environments too.

getrusage would not do: it counts what the process that started this one held then.
"""

import threading
from pathlib import Path
from typing import Self


def status(name: str) -> int:
    """Bytes by their name in /proc: VmHWM is the most so far, RssAnon what there is now without pages of files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


class Watch:
    """The most anonymous memory inside the block, in bytes above what there was before: pages of files do not count."""

    def __enter__(self) -> Self:
        self.before = self.highest = status("RssAnon")
        self.done = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.done.wait(0.01):
            self.highest = max(self.highest, status("RssAnon"))

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()

    @property
    def most(self) -> int:
        return max(self.highest, status("RssAnon")) - self.before
