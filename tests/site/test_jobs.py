"""Jobs as a server runs them: real processes, killed servers, broken files."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "judge"))

from toys import TOY, write_toy

from telos.core.errors import TelosError
from telos.core.files import read_json, write_json
from telos.core.registry import entries
from telos.judge.results import read_results
from telos.site.jobs import Busy, Job, Jobs, claim_scales

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")

SLOW = TOY.replace("wait: float = 0.0", "wait: float = 60.0")
BOTH_SCALES = '\nCLAIMS["standard"] = CLAIMS["laptop"]\n'


def toy_scales(slug: str) -> tuple[str, ...]:
    """In place of the catalogue's claims: modules of the tests' own."""
    if not slug.startswith("toys."):
        raise TelosError(f"no toy is called '{slug}'")
    return ("laptop", "standard")


@pytest.fixture
def place(monkeypatch, tmp_path):
    """A folder whose toys the jobs' processes find, and where arms leave the ids of their processes."""
    (tmp_path / "pids").mkdir()
    monkeypatch.setenv("TOY_PIDS", str(tmp_path / "pids"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def wait_until(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def groups(place: Path) -> set[int]:
    """The process groups in which an arm of this test has run."""
    found = {status(int(path.name)) for path in (place / "pids").iterdir()}
    return {status[1] for status in found if status is not None}


def status(pid: int) -> tuple[str, int] | None:
    """A process's state and group."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return words[0], int(words[2])
    except (FileNotFoundError, ProcessLookupError):
        return None


def members(groups: set[int]) -> list[int]:
    """Processes of these groups that run; those that ended and wait to be collected do not."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = {pid: status(pid) for pid in pids}
    return [pid for pid, status in found.items() if status and status[1] in groups and status[0] != "Z"]


def working_in(folder: Path) -> list[str]:
    """The command lines of the processes that run a job of this folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text())
    return [line for line in found if "telos.site.job\0" in line and f"{folder}/" in line]


def ended(jobs: Jobs, id: str) -> bool:
    return not jobs.get(id).active


def test_a_job_runs_to_its_end_and_may_run_again(monkeypatch, place):
    toy = write_toy(monkeypatch, place)
    with Jobs(place / "jobs", scales=toy_scales) as jobs:
        job = jobs.submit(toy, "laptop", "full")
        assert (job.id, job.state, job.started) == ("toys.toy.laptop.full", "waiting", None)
        wait_until(lambda: ended(jobs, job.id))
        done = jobs.get(job.id)
        assert (done.state, done.message, done.submitted) == ("done", "", job.submitted)
        assert done.ended > done.started >= done.submitted
        folder = place / "jobs" / job.id
        assert Job(**read_json(folder / "job.json")) == done
        assert (folder / "check" / "figure.png").is_file() and "confirmed" in (folder / "log.txt").read_text()
        assert jobs.result(job.id) == read_json(folder / "check" / "result.json")

        events = jobs.events(job.id)
        assert [number for number, _ in events] == list(range(1, 13))
        assert [event["event"] for _, event in events] == ["start", *["run"] * 10, "verdict"]
        assert events[0][1]["cached"] == 0 and events[-1][1]["verdict"] == jobs.result(job.id)["verdict"] == "confirmed"
        assert jobs.events(job.id, 10) == events[10:] and jobs.events(job.id, 12) == jobs.events(job.id, 99) == []
        # A line that is being written is not read before its end.
        with (folder / "events.jsonl").open("a") as file:
            file.write('{"event": "ex')
            file.flush()
            assert jobs.events(job.id, 12) == []
            file.write('tra"}\n')
            file.flush()
            assert jobs.events(job.id, 12) == [(13, {"event": "extra"})]

        # The next run of the same kind replaces this one.
        assert jobs.submit(toy, "laptop", "full").submitted > done.submitted
        assert jobs.events(job.id) == [] and not (folder / "check").exists()
        jobs.cancel(job.id)
        quick = jobs.submit(toy, "laptop", "quick")
        wait_until(lambda: ended(jobs, quick.id))
        assert [job.mode for job in jobs.all()] == ["quick", "full"]
        assert jobs.result(quick.id)["quick"] is True and not (place / "jobs" / quick.id / "check").exists()
        assert jobs.events(quick.id)[-1][1]["quick"] is True
    # What the folder says is what the next server knows.
    with Jobs(place / "jobs", scales=toy_scales) as later:
        assert later.all() == jobs.all() and later.events(quick.id) == jobs.events(quick.id)


def test_one_runs_one_waits_and_both_can_be_cancelled(monkeypatch, place):
    toy = write_toy(monkeypatch, place, SLOW + BOTH_SCALES)
    with Jobs(place / "jobs", scales=toy_scales) as jobs:
        for wrong in (("dpo", "laptop", "full"), (toy, "huge", "full"), (toy, "laptop", "slow"), ("../toy", "", "")):
            with pytest.raises(TelosError, match=r"no toy is called|no scale 'huge'|no mode is called"):
                jobs.submit(*wrong)
        assert jobs.all() == []
        running, waiting = jobs.submit(toy, "laptop", "full"), jobs.submit(toy, "laptop", "quick")
        with pytest.raises(Busy, match=r"toys\.toy\.laptop\.full and toys\.toy\.laptop\.quick"):
            jobs.submit(toy, "standard", "full")
        assert not (place / "jobs" / "toys.toy.standard.full").exists()
        wait_until(lambda: groups(place))
        assert jobs.get(running.id).state == "running"
        assert jobs.submit(toy, "laptop", "full") == jobs.get(running.id)
        assert jobs.submit(toy, "laptop", "quick") == waiting

        assert jobs.cancel(waiting.id).state == jobs.cancel(waiting.id).state == "cancelled"
        used = groups(place)
        assert len(used) == 1 and used != {os.getpgrp()} and len(members(used)) >= 2
        assert all(os.getpriority(os.PRIO_PROCESS, pid) >= 10 for pid in members(used))
        begun = time.monotonic()
        cancelled = jobs.cancel(running.id)
        assert time.monotonic() - begun < 5
        assert (cancelled.state, cancelled.message) == ("cancelled", "") and cancelled.ended
        wait_until(lambda: not members(used), 2)
        assert jobs.cancel(running.id) == cancelled
        for ask in (jobs.cancel, jobs.get, jobs.events, jobs.result):
            with pytest.raises(TelosError, match="no job 'toys"):
                ask("toys.toy.standard.full")
        with pytest.raises(TelosError, match="it is cancelled"):
            jobs.result(running.id)


def test_a_stopped_server_leaves_its_jobs_to_the_next(monkeypatch, place):
    toy = write_toy(monkeypatch, place, SLOW)
    folder = place / "jobs"
    with Jobs(folder, scales=toy_scales) as jobs:
        full, quick = jobs.submit(toy, "laptop", "full"), jobs.submit(toy, "laptop", "quick")
        wait_until(lambda: working_in(folder))
    assert working_in(folder) == []
    states = {job.id: read_json(folder / job.id / "job.json")["state"] for job in (full, quick)}
    assert states == {full.id: "running", quick.id: "waiting"}
    for use in (lambda: jobs.submit(toy, "laptop", "full"), lambda: jobs.cancel(full.id)):
        with pytest.raises(TelosError, match="stopped"):
            use()
    # The same runner starts again as well as another one would.
    with jobs:
        wait_until(lambda: working_in(folder))
        assert [(job.id, job.state) for job in jobs.all()] == [(quick.id, "waiting"), (full.id, "running")]
        assert [event for _, event in jobs.events(full.id)] == [{"event": "resumed"}]
        assert jobs.cancel(quick.id).state == jobs.cancel(full.id).state == "cancelled"
        assert working_in(folder) == []
    with Jobs(folder, scales=toy_scales) as jobs:
        assert [job.state for job in jobs.all()] == ["cancelled", "cancelled"]


def test_a_killed_server_leaves_no_process_and_the_next_one_goes_on(monkeypatch, place):
    toy = write_toy(monkeypatch, place, TOY.replace("wait: float = 0.0", "wait: float = 0.3"))
    program = place / "server.py"
    program.write_text(
        "import sys, time\nfrom pathlib import Path\nfrom telos.site.jobs import Jobs\n"
        "jobs = Jobs(Path(sys.argv[1]), scales=lambda slug: ('laptop',))\njobs.start()\n"
        f"jobs.submit('{toy}', 'laptop', 'full')\njobs.submit('{toy}', 'laptop', 'quick')\ntime.sleep(600)\n"
    )
    folder = place / "jobs"
    server = subprocess.Popen([sys.executable, str(program), str(folder)])
    events = folder / f"{toy}.laptop.full" / "events.jsonl"
    try:
        wait_until(lambda: events.is_file() and events.read_text().count('"run"') >= 3)
        with pytest.raises(TelosError, match=r"another server runs its jobs(.|\n)*--runs"):
            Jobs(folder, scales=toy_scales).start()
        used = groups(place)
        assert members(used)
    finally:
        server.kill()
    server.wait()
    wait_until(lambda: not members(used), 5)

    full, quick = f"{toy}.laptop.full", f"{toy}.laptop.quick"
    with Jobs(folder, scales=toy_scales) as jobs:
        assert [(job.id, job.active) for job in jobs.all()] == [(quick, True), (full, True)]
        wait_until(lambda: jobs.get(quick).state == "running")
        assert jobs.get(full).state == "done" and jobs.result(full)["verdict"] == "confirmed"
        told = [event for _, event in jobs.events(full)]
        assert [event["event"] for event in told] == ["resumed", "start", *["run"] * 10, "verdict"]
        assert 3 <= told[1]["cached"] < 10


def test_what_cannot_be_read_is_lost_and_the_rest_stands(tmp_path):
    job = Job("toys.a.laptop.full", "toys.a", "laptop", "full", "failed", "2026-01-01T00:00:00.000+00:00")
    write_json(tmp_path / job.id / "job.json", job.to_json())
    broken = {
        "toys.b.laptop.full": '{"id": "toys.b', "toys.c.laptop.quick": "[1]", "toys.d.laptop.quick": '{"id": 3}',
        "toys.e.laptop.full": json.dumps(job.to_json()), "dpo.laptop.full": "", "toys.f.laptop.full": "",
        "toys.g.laptop.full": "",
    }  # fmt: skip
    # A paper that is gone, a state of another version, a result that is gone.
    for state, slug in (("running", "dpo"), ("sleeping", "toys.f"), ("done", "toys.g")):
        id = f"{slug}.laptop.full"
        broken[id] = json.dumps({**job.to_json(), "id": id, "slug": slug, "state": state})
    for id, text in broken.items():
        (tmp_path / id).mkdir()
        (tmp_path / id / "job.json").write_text(text)
    (tmp_path / "toys.h.laptop.full").mkdir()
    leftover, foreign = tmp_path / ".toys.a.laptop.full.abc_1234.tmp", tmp_path / ".editor.old"
    for path in (leftover, foreign, tmp_path / "notes"):
        path.mkdir()
    with Jobs(tmp_path, scales=toy_scales) as jobs:
        states = {job.id: job.state for job in jobs.all()}
        assert states == {job.id: "failed", **dict.fromkeys([*broken, "toys.h.laptop.full"], "lost")}
        assert jobs.all()[-1] == job
        assert "not JSON" in jobs.get("toys.b.laptop.full").message
        assert "no toy is called 'dpo'" in jobs.get("dpo.laptop.full").message
        assert jobs.events("toys.b.laptop.full") == []
        lost = jobs.get("toys.c.laptop.quick")
        assert (lost.slug, lost.scale, lost.mode) == ("toys.c", "laptop", "quick")
    assert read_json(tmp_path / "toys.b.laptop.full" / "job.json")["state"] == "lost"
    assert foreign.is_dir() and not leftover.exists()


def test_a_failure_and_a_crash_say_what_happened(monkeypatch, place):
    failing = write_toy(monkeypatch, place, TOY.replace('{"gain": 1.0}', '{"gain": 1.0, "fails_on": 1}'))
    crashing = write_toy(monkeypatch, place, 'print("x" * 9000)\nraise RuntimeError("broken at import")\n', "crash")
    killed = write_toy(monkeypatch, place, "import os\nos.kill(os.getpid(), 9)\n", "killed")
    messages = {}
    with Jobs(place / "jobs", scales=toy_scales) as jobs:
        for slug in (failing, crashing, killed):
            job = jobs.submit(slug, "laptop", "quick")
            wait_until(lambda id=job.id: ended(jobs, id))
            assert jobs.get(job.id).state == "failed"
            messages[slug] = jobs.get(job.id).message
        assert jobs.events(f"{failing}.laptop.quick")[-1][1] == {"event": "failed", "message": messages[failing]}
    assert "arm 'old' failed on seed 1" in messages[failing] and "the arm broke here" in messages[failing]
    assert messages[crashing].startswith("the process ended with code 1\n")
    assert messages[crashing].endswith("RuntimeError: broken at import") and 4000 <= len(messages[crashing]) < 4100
    assert messages[killed].startswith("the process was killed by SIGKILL")


def test_a_job_ends_at_its_time_limit(monkeypatch, place):
    # Its arms start a process that does not hear SIGTERM.
    deaf = """    import subprocess
    subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 60"])
    time.sleep"""
    toy = write_toy(monkeypatch, place, SLOW.replace("    time.sleep", deaf))
    with Jobs(place / "jobs", time_limit=60, scales=toy_scales) as jobs:
        job = jobs.submit(toy, "laptop", "quick")
        wait_until(lambda: groups(place))
        used = groups(place)
        jobs.time_limit = 1.0  # long over: how soon the arms began depends on the machine
        wait_until(lambda: ended(jobs, job.id))
        assert jobs.get(job.id).state == "cancelled" and "after 1 s, the time limit" in jobs.get(job.id).message
        wait_until(lambda: not members(used), 2)


def test_the_time_limit_follows_the_claims_minutes(tmp_path):
    job = Job("toys.a.laptop.full", "toys.a", "laptop", "full", "cancelled", "2026-01-01T00:00:00.000+00:00")
    write_json(tmp_path / job.id / "job.json", job.to_json())
    with Jobs(tmp_path, scales=toy_scales) as jobs:
        limits = [jobs._limit(job.id)]
        for minutes in (5, 0.1):
            (tmp_path / job.id / "events.jsonl").write_text(json.dumps({"event": "start", "minutes": minutes}) + "\n")
            jobs._read.clear()
            limits.append(jobs._limit(job.id))
    assert limits == [600, 6000, 600]


def test_scales_are_read_from_the_claims_sources(tmp_path):
    assert claim_scales("dpo") == ("laptop", "standard") and claim_scales("doc") == ("laptop",)
    assert all(scale in claim_scales(slug) for slug, scale in read_results() if slug in entries())
    baseline = next(slug for slug, entry in entries().items() if entry.baseline)
    with Jobs(tmp_path) as jobs:
        for slug, words in ((baseline, "has no claim"), ("../dpo", "no method is called"), ("toys.toy", "no method")):
            with pytest.raises(TelosError, match=words):
                jobs.submit(slug, "laptop", "quick")
        with pytest.raises(TelosError, match="no scale 'standard'"):
            jobs.submit("doc", "standard", "quick")
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
