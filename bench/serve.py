"""The loop of a worker: plain Python, since the peers' environments have no telos."""

import resource
import sys
import time
from collections.abc import Callable


def serve(work: Callable[[], float | None]) -> None:
    """Prints "ready", then for each line on standard input does `work` and prints seconds and peak megabytes.

    `work` may return the seconds itself, where only a part of it counts.
    """
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        seconds = work()
        if seconds is None:
            seconds = time.perf_counter() - start
        print("took", seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, flush=True)
