"""Starts the page's server in a process of its own, as a user does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple


class Served(NamedTuple):
    """A running server."""

    address: str
    process: subprocess.Popen[str]
    folder: Path

    def stop(self, how: int = signal.SIGINT) -> int:
        """Ends the server and gives its exit code."""
        self.process.send_signal(how)
        return self.process.wait(20)


def start(folder: Path, *options: str, cache: Path | None = None) -> Served:
    """`telos serve` on a free port, with its runs in `folder`."""
    command = [sys.executable, "-m", "telos", "serve", "--port", "0", "--runs", str(folder / "runs"), *options]
    environment = os.environ | {"TELOS_CACHE": str(cache or folder / "cache")}
    log = (folder / "serve.log").open("a+")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=log, text=True, env=environment, cwd=folder)
    assert process.stderr is not None
    for line in process.stderr:
        found = re.search(r"http://\S+/", line)
        if found:
            return Served(found[0].replace("0.0.0.0", "127.0.0.1"), process, folder)
    raise AssertionError("the server did not start")
