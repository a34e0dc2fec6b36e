"""Claims run for the page: one at a time, each in a process of its own, kept in a folder that outlives the server.

FOLDER/<slug>.<scale>.<mode>/ holds the latest run of each kind: job.json (its state), events.jsonl, log.txt,
result.json and check/ (what a full check writes). A run that the server's end cut short is begun again at the next
start; the arms it had finished come from the cache of arms. This module loads no torch and imports no claim.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, get_args

from telos.core.errors import TelosError
from telos.core.files import explained, folder_atomic, read_json, write_atomic, write_json
from telos.core.registry import PACKAGE, entry
from telos.judge.results import SCALES, Result

try:
    import fcntl
except ImportError:  # Windows has no such lock.
    fcntl = None

Mode = Literal["full", "quick"]
State = Literal["waiting", "running", "done", "failed", "cancelled", "lost"]

FOLDER_NAME = re.compile(r"(.+)\.([^.]+)\.(full|quick)")
LEFTOVER = re.compile(r"\..+\.(full|quick)\.\w+\.(tmp|old)")
"""What a server leaves that is killed while it replaces a job's folder."""
ACTIVE = ("waiting", "running")
MOST_ACTIVE = 2
"""One that runs and one that waits."""
LIMIT_FACTOR, LEAST_LIMIT = 20, 600.0
"""The time limit: a multiple of the claim's own minutes, and the least in seconds."""
GRACE = 5.0
"""Seconds from SIGTERM to SIGKILL."""
POLL = 0.1
LOG_END = 4000
"""Characters of a crashed job's log that its message shows."""


class Busy(TelosError):
    """One job runs and one waits already."""


@dataclass(frozen=True)
class Job:
    """One run of a claim; `id` is <slug>.<scale>.<mode>, times are ISO 8601 in UTC.

    Args:
        state: "lost" is a job whose files cannot be read any more.
        message: why it failed, was cancelled or was lost; empty otherwise.
    """

    id: str
    slug: str
    scale: str
    mode: Mode
    state: State
    submitted: str
    started: str | None = None
    ended: str | None = None
    message: str = ""

    @property
    def active(self) -> bool:
        """Whether it waits or runs."""
        return self.state in ACTIVE

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Read:
    """What has been read of an events file: whole lines only."""

    offset: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)


def claim_scales(slug: str) -> tuple[str, ...]:
    """The scales of a paper's claim, read from its source: the literal keys of CLAIMS, all scales where it has none.

    Raises:
        TelosError: no such paper, one that is planned, or one without a claim.
    """
    if entry(slug).claim_module is None:
        raise TelosError(f"'{slug}' has no claim", fix="`telos papers` shows which papers have one")
    for node in ast.parse((PACKAGE / "claims" / f"{slug}.py").read_text()).body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "CLAIMS" for target in targets):
                return tuple(str(key.value) for key in node.value.keys if isinstance(key, ast.Constant))
    return SCALES


class Jobs:
    """The queue: one job runs, one may wait. Every method may be called from any thread.

    Args:
        folder: where jobs live; one server a folder.
        time_limit: seconds that a job may run; None for 20 times the claim's minutes, at least 10 minutes.
        scales: a slug's scales, TelosError for one that may not be run.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        time_limit: float | None = None,
        scales: Callable[[str], tuple[str, ...]] = claim_scales,
    ):
        self.folder, self.time_limit = Path(folder).absolute(), time_limit
        self._scales = scales
        # Oldest first. All fields below are read and written under the condition's lock.
        self._jobs: dict[str, Job] = {}
        self._read: dict[str, _Read] = {}
        self._changed = threading.Condition()
        self._stopping = self._cancelling = False
        self._worker: threading.Thread | None = None
        self._lock: IO[bytes] | None = None

    def __enter__(self) -> Jobs:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        """Reads the folder and begins to work; jobs that the last server left waiting or running are run again.

        Raises:
            TelosError: another server works in the folder, or it cannot be written.
        """
        with self._changed:
            if self._worker is not None:
                return
            self._lock_folder()
            for path in self.folder.iterdir():
                if LEFTOVER.fullmatch(path.name):
                    shutil.rmtree(path, ignore_errors=True)
            found = [self._load(path) for path in self.folder.iterdir() if FOLDER_NAME.fullmatch(path.name)]
            self._jobs = {job.id: job for job in sorted(found, key=lambda job: (job.submitted, job.id))}
            self._read = {}
            for job in [job for job in self._jobs.values() if job.active]:
                with contextlib.suppress(TelosError):  # a full disk: the job itself will say so
                    write_atomic(self.folder / job.id / "events.jsonl", json.dumps({"event": "resumed"}) + "\n")
                self._set(job, state="waiting", started=None)
            self._stopping = False
            self._worker = threading.Thread(target=self._work, name="telos-jobs", daemon=True)
            self._worker.start()

    def stop(self) -> None:
        """Ends the running job's processes and the work; what waited or ran does so again after the next start."""
        with self._changed:
            worker, self._stopping = self._worker, True
            self._changed.notify_all()
        if worker is not None:
            worker.join()
        with self._changed:
            self._worker = None
            if self._lock is not None:
                self._lock.close()
                self._lock = None

    def submit(self, slug: str, scale: str, mode: str) -> Job:
        """Puts a job into the queue and returns it; one that waits or runs already is returned as it is.

        The files of the last run of the same kind are replaced, and its events are counted from 1 again.

        Raises:
            Busy: one runs and one waits.
            TelosError: no such claim, scale or mode; the server is stopped; the folder cannot be written.
        """
        known = self._known(slug, scale, mode)
        id = f"{slug}.{scale}.{known}"
        with self._changed:
            self._refuse_stopped()
            active = [job for job in self._jobs.values() if job.active]
            for job in active:
                if job.id == id:
                    return job
            if len(active) >= MOST_ACTIVE:
                raise Busy(
                    "the queue is full", got=" and ".join(job.id for job in active),
                    fix="wait until one has ended, or cancel one",
                )  # fmt: skip
            job = Job(id, slug, scale, known, "waiting", _now())
            with folder_atomic(self.folder / id) as new:
                write_json(new / "job.json", job.to_json())
            self._jobs.pop(id, None)
            self._read.pop(id, None)
            self._jobs[id] = job
            self._changed.notify_all()
            return job

    def cancel(self, id: str) -> Job:
        """Takes a job out of the queue or ends its processes, and returns it once that is done (seconds at most).

        A job that has ended already is returned as it is.
        """
        with self._changed:
            job = self.get(id)
            self._refuse_stopped()
            if job.state == "waiting":
                return self._set(job, state="cancelled", ended=_now())
            if job.state == "running":
                self._cancelling = True
                self._changed.notify_all()
                # The worker needs GRACE and a second at most.
                self._changed.wait_for(lambda: self._stopping or self._jobs[id] != job, timeout=GRACE + 5)
            return self.get(id)

    def get(self, id: str) -> Job:
        """The job of that id; TelosError where there is none."""
        with self._changed:
            if id not in self._jobs:
                raise TelosError(f"there is no job '{id}'", expected="the id of a job, as dpo.laptop.quick")
            return self._jobs[id]

    def all(self) -> list[Job]:
        """Every job that the folder holds, newest first."""
        with self._changed:
            return list(reversed(self._jobs.values()))

    def events(self, id: str, after: int = 0) -> list[tuple[int, dict[str, Any]]]:
        """The job's events with their line numbers, from 1, without the first `after`: what `check` tells an observer.

        Also {"event": "resumed"}, first where the server ended in between, and {"event": "failed", "message"}, last.
        """
        with self._changed:
            self.get(id)
            read = self._read.setdefault(id, _Read())
            path = self.folder / id / "events.jsonl"
            if path.is_file() and path.stat().st_size > read.offset:
                with path.open("rb") as file:
                    file.seek(read.offset)
                    new = file.read()
                *whole, torn = new.split(b"\n")
                read.offset += len(new) - len(torn)
                read.events += map(_event, whole)
            return list(enumerate(read.events[max(after, 0) :], max(after, 0) + 1))

    def result(self, id: str) -> Result:
        """The result of a job that is done; TelosError where it has none."""
        job = self.get(id)
        if job.state != "done":
            raise TelosError(f"the job '{id}' has no result", got=f"it is {job.state}", fix="run it to its end")
        return read_json(self.folder / id / "result.json")

    def _known(self, slug: str, scale: str, mode: str) -> Mode:
        """The mode, where all three may be run."""
        scales = self._scales(slug)
        if scale not in scales:
            raise TelosError(f"'{slug}' has no scale '{scale}'", expected=" or ".join(scales))
        for known in get_args(Mode):
            if mode == known:
                return known
        raise TelosError(f"no mode is called '{mode}'", expected=" or ".join(get_args(Mode)))

    def _refuse_stopped(self) -> None:
        if self._worker is None or self._stopping:
            raise TelosError("the job runner is stopped", fix="start the server again")

    def _lock_folder(self) -> None:
        """Holds FOLDER/.lock for as long as this process works in the folder; the system lets go where it dies."""
        with explained(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = (self.folder / ".lock").open("wb")
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            lock.close()
            raise TelosError(
                f"another server runs its jobs in {self.folder}", fix="stop it, or give this one a folder by --runs"
            ) from error
        self._lock = lock

    def _load(self, folder: Path) -> Job:
        """The job of a folder; a lost one where its files do not say."""
        slug, scale, mode = folder.name.rsplit(".", 2)
        assert mode == "full" or mode == "quick"
        try:
            values = read_json(folder / "job.json")
            optional = ("started", "ended")
            if not isinstance(values, dict) or values.keys() != {each.name for each in fields(Job)}:
                raise TelosError("job.json has other fields", expected=", ".join(each.name for each in fields(Job)))
            if not all(isinstance(value, str) or (value is None and key in optional) for key, value in values.items()):
                raise TelosError("job.json has fields of other types", expected="text")
            job = Job(**values)
            if (job.id, job.slug, job.scale, job.mode) != (folder.name, slug, scale, mode):
                raise TelosError("job.json is another job's", expected=folder.name, got=job.id)
            if job.state not in get_args(State):
                raise TelosError("job.json has no such state", expected=", ".join(get_args(State)), got=job.state)
            if job.active:
                self._known(slug, scale, mode)
            if job.state == "done":
                read_json(folder / "result.json")
            return job
        except (TelosError, OSError) as error:
            written = datetime.fromtimestamp(folder.stat().st_mtime, UTC).isoformat(timespec="milliseconds")
            lost = Job(folder.name, slug, scale, mode, "lost", written)
            return self._set(lost, message=f"{error}", ended=_now())

    def _set(self, job: Job, **values: Any) -> Job:
        """Changes a job, in memory and on disk."""
        with self._changed:
            job = self._jobs[job.id] = replace(job, **values)
            # On a full disk the state is lost at the next start; the queue must go on.
            with contextlib.suppress(TelosError):
                write_json(self.folder / job.id / "job.json", job.to_json())
            self._changed.notify_all()
            return job

    def _work(self) -> None:
        """The worker thread: runs what waits, the oldest first."""
        while (job := self._next()) is not None:
            try:
                end = self._run(job)
            except Exception as error:
                end = "failed", f"the job could not be started: {type(error).__name__}: {error}"
            if end is not None:
                self._set(job, state=end[0], message=end[1], ended=_now())

    def _next(self) -> Job | None:
        with self._changed:
            while not self._stopping:
                for job in self._jobs.values():
                    if job.state == "waiting":
                        self._cancelling = False
                        return self._set(job, state="running", started=_now())
                self._changed.wait()
            return None

    def _run(self, job: Job) -> tuple[State, str] | None:
        """Runs the job to its end: its last state and message; None where the server stops in between."""
        folder, begun = self.folder / job.id, time.monotonic()
        with (folder / "log.txt").open("wb") as log:
            # -P: the folder that the server was started in is no place to import from.
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "telos.site.job", str(folder)], start_new_session=True,
                stdin=subprocess.PIPE, stdout=log, stderr=log, env={**os.environ, "TELOS_PROGRESS": "0"},
            )  # fmt: skip
        limit = 0.0
        try:
            with self._changed:
                while process.poll() is None and not (self._stopping or self._cancelling):
                    limit = self._limit(job.id)
                    if time.monotonic() - begun > limit:
                        break
                    self._changed.wait(POLL)
                cancelled, stopped = self._cancelling, self._stopping
            code = process.returncode
        finally:
            _end_group(process)
        if code is not None:
            return self._outcome(job.id, code)
        if cancelled:
            return "cancelled", ""
        if stopped:
            return None
        return "cancelled", f"ended after {limit:.0f} s, the time limit; finished arms are kept for the next run"

    def _limit(self, id: str) -> float:
        """Seconds that the job may run; the claim's minutes come with the event of its start."""
        if self.time_limit is not None:
            return self.time_limit
        minutes = [event["minutes"] for _, event in self.events(id) if event.get("event") == "start"]
        return max(LEAST_LIMIT, 60 * LIMIT_FACTOR * minutes[0] if minutes else 0.0)

    def _outcome(self, id: str, code: int) -> tuple[State, str]:
        """What the exit code of a job that ended by itself says."""
        if code == 0:
            return "done", ""
        said = [str(event["message"]) for _, event in self.events(id) if event.get("event") == "failed"]
        if code == 2 and said:
            return "failed", said[-1]
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with code {code}"
        log = (self.folder / id / "log.txt").read_bytes()[-4 * LOG_END :].decode(errors="replace")
        return "failed", f"the process {how}\n{log[-LOG_END:]}".strip()


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started: SIGTERM, after 5 s SIGKILL."""
    ended = process.poll() is not None
    assert process.stdin is not None
    process.stdin.close()
    _blow(process.pid, signal.SIGTERM)
    if ended:
        return
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    # A moment for the rest: multiprocessing's helper removes its semaphores once the workers are gone.
    deadline = time.monotonic() + 1
    while _blow(process.pid, 0) and time.monotonic() < deadline:
        time.sleep(0.02)
    _blow(process.pid, signal.SIGKILL)
    process.wait()


def _blow(group: int, number: int) -> bool:
    """Sends a signal to a group; whether there was one."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS says the latter of a group that has just ended
        return False
    return True


def _event(line: bytes) -> dict[str, Any]:
    """One line of an events file; a damaged one keeps its number."""
    with contextlib.suppress(ValueError):
        value = json.loads(line)
        if isinstance(value, dict):
            return value
    return {"event": "unreadable"}


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
