"""Arms in worker processes: one thread each, nothing but strings and numbers across, none left behind.

A lifeline ties the workers to their parent: a pipe whose writing end only the parent holds. When it closes, because
the parent closed it or died (also by kill -9), each worker ends at once. Workers keep what they finish in the cache
of arms themselves. This module loads no torch: workers fix their threads before they do.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import astuple, dataclass
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from telos.core.errors import TelosError

if TYPE_CHECKING:
    from telos.judge.claim import Budget

WORKER_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
    "TELOS_PROGRESS": "0",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One arm on one seed, as a worker is told of it; `key` is its place in the cache of arms."""

    slug: str
    scale: str
    arm: str
    seed: int
    budget: Budget
    key: str


def default_jobs() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_tasks(tasks: Sequence[Task], jobs: int, done: Callable[[Task, dict[str, Any]], None]) -> None:
    """Runs the tasks in `jobs` processes, started in the given order; `done` hears of each as it ends.

    A value is what `claim.run_arm` gives and "seconds". The first failure cancels the rest.

    Raises:
        TelosError: an arm failed (named, with its seed and error), or a worker was killed.
    """
    whole = {astuple(task): task for task in tasks}

    def ended(arguments: tuple[Any, ...], value: dict[str, Any]) -> None:
        task = whole[arguments]
        if "error" in value:
            raise TelosError(
                f"arm '{task.arm}' failed on seed {task.seed} ({task.slug}, {task.scale}, {task.budget})",
                got=value["error"],
                fix=f"raised at {value['place']}, TELOS_TRACEBACK=1 shows how; finished arms are in the cache",
            )  # fmt: skip
        done(task, value)

    run_in_workers(_work, list(whole), jobs, ended)


def run_in_workers(
    work: Callable[..., dict[str, Any]],
    tasks: Sequence[tuple[Any, ...]],
    jobs: int,
    done: Callable[[Any, dict[str, Any]], None],
    shared: Any = None,
) -> None:
    """Calls work(*task), a module's function, for each task in `jobs` processes; what `done` raises cancels the rest.

    Args:
        shared: sent to each process once and given to `work` as its first argument, where it is not None.

    Raises:
        TelosError: a worker was killed.
    """
    if not tasks:
        return
    context = multiprocessing.get_context("spawn")
    lifeline, parent_end = context.Pipe(duplex=False)
    with _environment(WORKER_ENVIRONMENT):
        pool = ProcessPoolExecutor(min(jobs, len(tasks)), context, _start_worker, (lifeline, shared))
        try:
            waiting = {pool.submit(_call, work, task): task for task in tasks}
            for future in as_completed(waiting):
                done(waiting[future], future.result())
            pool.shutdown()
        except BrokenProcessPool as error:
            raise TelosError(
                "a worker process was killed", got="most often too little memory",
                fix="--jobs 1, or free some memory; what is finished is kept",
            ) from error  # fmt: skip
        finally:
            parent_end.close()
            pool.shutdown(cancel_futures=True)
            lifeline.close()


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Variables that processes started inside inherit: set before a child's first import."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


_shared: Any = None


def _start_worker(lifeline: Connection, shared: Any) -> None:
    global _shared
    _shared = shared
    # Ctrl-C reaches the whole group; the parent answers it and lets go of the lifeline.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(lifeline,), daemon=True).start()


def _end_with(lifeline: Connection) -> None:
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    os._exit(1)


def _call(work: Callable[..., dict[str, Any]], task: tuple[Any, ...]) -> dict[str, Any]:
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    return work(*task) if _shared is None else work(_shared, *task)


def _work(slug: str, scale: str, arm: str, seed: int, budget: Budget, key: str) -> dict[str, Any]:
    """In the worker: runs the arm, keeps and returns its value, or says what went wrong and where."""
    try:
        from telos.judge import cache
        from telos.judge.claim import load_claim, run_arm

        load_claim(slug, scale)
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        begun = time.monotonic()
        value = run_arm(slug, scale, arm, seed, budget)
        value["seconds"] = round(time.monotonic() - begun, 3)
        cache.keep(key, value)
        return value
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        frame = next((f for f in reversed(frames) if not f.filename.startswith(sys.prefix)), frames[-1])
        if os.environ.get("TELOS_TRACEBACK"):
            traceback.print_exc()
        place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
        return {"error": f"{type(error).__name__}: {error}", "place": place}
