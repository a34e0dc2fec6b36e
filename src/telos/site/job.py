"""One job in a process of its own: `python -m telos.site.job FOLDER`, as telos.site.jobs starts it.

Reads FOLDER/job.json (slug, scale, mode), runs the check, and writes FOLDER/events.jsonl (what `check` tells its
observer, a line each), FOLDER/result.json (also of a quick check) and FOLDER/check/ (what a full check writes).
Exit codes: 0; 2 after {"event": "failed", "message"}, what a user can put right; anything else is a crash.

The process leads a group of its own, with its workers, and its parent holds the other end of its standard input. When
that closes, because the parent let go or died (also by kill -9), the whole group ends at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from telos.core.errors import TelosError
from telos.core.files import read_json, write_json

NICE = 10
"""How far jobs step back behind whatever else the machine does."""


def main(folder: Path) -> int:
    # A disposition to ignore would have been inherited.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.nice(NICE)
    with (folder / "events.jsonl").open("a") as file:

        def observe(event: dict[str, Any]) -> None:
            file.write(json.dumps(event, allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())

        try:
            job = read_json(folder / "job.json")
            # Seconds of imports, which the thread above already watches over.
            from telos.judge.check import check

            quick = job["mode"] == "quick"
            result = check(job["slug"], scale=job["scale"], quick=quick, out=folder / "check", observer=observe)
            write_json(folder / "result.json", result)
        except TelosError as error:
            observe({"event": "failed", "message": str(error)})
            return 2
    return 0


def _end_with_parent() -> None:
    # Not through sys.stdin: its lock, held by this thread, would abort the interpreter's own end.
    while os.read(0, 1024):
        pass
    os.killpg(os.getpgrp(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
