"""A whole check: processes, cache, verdict, files; killed and interrupted checks."""

import dataclasses
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from toys import TOY, write_toy

from telos.core.errors import TelosError
from telos.core.files import read_json
from telos.core.registry import use
from telos.judge.check import _close, check, completed, rejudge, stale, verify
from telos.judge.claim import load_claim
from telos.judge.results import changes, mark_stale, read_results

PNG = b"\x89PNG\r\n\x1a\n"


def runs(result):
    return {
        name: [(run["seed"], run["measures"], run["points"]) for run in arm["runs"]]
        for name, arm in result["arms"].items()
    }


def test_a_check_writes_what_it_can_be_judged_from_again(monkeypatch, tmp_path, capsys):
    toy = write_toy(monkeypatch, tmp_path)
    monkeypatch.setenv("TELOS_PROGRESS", "1")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    result = check(toy, jobs=2)
    shown = capsys.readouterr()
    assert "confirmed: 2 of 2 parts hold" in shown.out
    assert "new > old by more than 1" in shown.out
    assert "new seed 4 done in" in shown.err and "(10/10)" in shown.err

    folder = tmp_path / "runs" / "check" / "toy.laptop"
    assert (folder / "figure.png").read_bytes().startswith(PNG)
    stored = read_json(folder / "result.json")
    assert stored == json.loads(json.dumps(result))
    verdict = rejudge(stored)
    assert verdict.status == stored["verdict"] == "confirmed"
    assert [part.to_json()["interval"] for part in verdict.parts] == [part["interval"] for part in stored["parts"]]
    # new - old is a gain of 1 over 3 steps, and the seed's noise is common to both.
    assert stored["parts"][0]["values"] == pytest.approx([3.0] * 5)
    assert all(len(arm["digest"]) == 2 for arm in stored["arms"].values())
    assert set(stored["versions"]) == {"telos", "python", "torch", "numpy", "scipy"}
    assert set(stored["machine"]) == {"cpu", "cores"}

    # Again with one process: from the cache; and without a cache: the same numbers.
    cached = check(toy, jobs=1)
    assert "10 of 10 arms from the cache" in capsys.readouterr().err
    monkeypatch.setenv("TELOS_CACHE", str(tmp_path / "other"))
    alone = check(toy, jobs=1)
    assert "from the cache" not in capsys.readouterr().err
    assert runs(result) == runs(cached) == runs(alone)
    assert multiprocessing.active_children() == []


def test_an_observer_hears_of_every_run_and_of_the_verdict(monkeypatch, tmp_path, capsys):
    toy = write_toy(monkeypatch, tmp_path)
    heard = []
    quick = check(toy, quick=True, jobs=2, observer=heard.append)
    start, *ran, verdict = heard
    assert start == {
        "event": "start", "slug": "toy", "scale": "laptop", "mode": "quick", "runs": 4, "cached": 0,
        "arms": {"new": "new", "old": "old"}, "metrics": {"gold": "a score", "exact": "1 where it holds"},
        "seeds": [0, 1], "minutes": 0.1,
    }  # fmt: skip
    assert [(event["event"], event["done"], event["total"]) for event in ran] == [("run", i, 4) for i in (1, 2, 3, 4)]
    measured = {(name, run["seed"]): run for name, arm in quick["arms"].items() for run in arm["runs"]}
    assert {(event["arm"], event["seed"]) for event in ran} == measured.keys()
    for event in ran:
        run = measured[event["arm"], event["seed"]]
        assert (event["measures"], event["seconds"]) == (run["measures"], run["seconds"])
        assert event["label"] == event["arm"] and event["cached"] is False and event["left"] >= 0
    assert ran[-1]["left"] == 0
    assert (verdict["event"], verdict["verdict"], verdict["quick"]) == ("verdict", "indicative", True)
    assert verdict["parts"] == [
        {key: part[key] for key in ("text", "status", "interval")} for part in quick["parts"]
    ]  # fmt: skip
    assert json.loads(json.dumps(heard)) == heard

    # All from the cache: the same runs, nothing left; when the verdict is heard the files are there.
    there = []
    check(toy, jobs=1, out=tmp_path / "out")
    heard.clear()
    check(
        toy, jobs=1, out=tmp_path / "out",
        observer=lambda event: (heard.append(event), there.append((tmp_path / "out" / "figure.png").is_file())),
    )  # fmt: skip
    assert (heard[0]["mode"], heard[0]["runs"], heard[0]["cached"], heard[0]["minutes"]) == ("full", 10, 10, 0.1)
    assert [(e["done"], e["cached"], e["left"]) for e in heard[1:-1]] == [(i, True, 0) for i in range(1, 11)]
    assert heard[-1]["verdict"] == "confirmed" and heard[-1]["quick"] is False and there[-1]
    capsys.readouterr()
    monkeypatch.setenv("TELOS_PROGRESS", "1")
    check(toy, jobs=1, out=tmp_path / "out", observer=heard.append)
    assert capsys.readouterr().err == "10 of 10 arms from the cache\n"


def test_quick_runs_every_part_and_writes_nothing(monkeypatch, tmp_path, capsys):
    toy = write_toy(monkeypatch, tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    result = check(toy, quick=True, jobs=1)
    assert list(Path.cwd().iterdir()) == []
    assert (result["verdict"], result["seeds"], len(result["parts"])) == ("indicative", [0, 1], 2)
    shown = capsys.readouterr().out
    assert "2 seeds are too few for a verdict" in shown and "these numbers measure nothing" in shown


def test_a_failing_arm_is_named_and_cancels_the_rest(monkeypatch, tmp_path):
    text = TOY.replace('{"gain": 1.0}', '{"gain": 1.0, "fails_on": 1}').replace("3, 4)", "3, 4, *range(5, 200))")
    toy = write_toy(monkeypatch, tmp_path, text.replace('{"gain": 2.0}', '{"gain": 2.0, "wait": 0.05}'))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        TelosError, match=r"arm 'old' failed on seed 1(.|\n)*ValueError: the arm broke here(.|\n)*toy.py"
    ):
        check(toy, jobs=2)
    assert multiprocessing.active_children() == []
    assert not (tmp_path / "runs").exists()
    assert 3 <= len(list((tmp_path / "cache").rglob("*.json"))) < 100


def test_arms_of_derive_are_judged(monkeypatch, tmp_path):
    text = TOY.replace('Better("new", "old", "gold", 1.0)', 'Better("best", "old", "gold", 1.0)')
    best = """
def best(arms):
    return {"best": {"gold": max(point["gold"] for arm in arms.values() for point in arm["points"])}}

ARMS ="""
    text = text.replace("minutes=0.1", "minutes=0.1, derive=best").replace("ARMS =", best, 1)
    toy = write_toy(monkeypatch, tmp_path, text)
    result = check(toy, jobs=1, out=tmp_path / "out")
    assert result["verdict"] == rejudge(result).status == "confirmed"
    measured = [[run["measures"]["gold"] for run in result["arms"][name]["runs"]] for name in ("best", "new")]
    assert measured[0] == measured[1]
    assert result["arms"]["best"]["run"] is None
    # The derived metric is computed again from the stored points: a tenth of it refutes.
    claim = load_claim(toy, "laptop")
    tenth = dataclasses.replace(claim, derive=lambda arms: {"best": {"gold": claim.derive(arms)["best"]["gold"] / 10}})
    assert rejudge(result, claim).status == "confirmed" and rejudge(result, tenth).status == "refuted"


def test_a_share_that_is_1_on_every_seed_is_not_taken_for_a_coin(monkeypatch, tmp_path):
    share = TOY.replace('"exact": True', '"exact": True, "share": 1.0 if gain > 1 else 0.7 + trial.seed / 100')
    share = share.replace("METRICS = {", 'METRICS = {"share": "a share", ')
    result = check(write_toy(monkeypatch, tmp_path, share), jobs=1)
    new, old = (result["arms"][name]["summary"] for name in ("new", "old"))
    assert new["share"]["interval"]["low"] == new["share"]["interval"]["high"] == 1
    assert 0.7 < old["share"]["interval"]["low"] < 0.72 < old["share"]["interval"]["high"] < 0.74
    assert new["exact"]["interval"]["low"] == pytest.approx(0.025 ** (1 / 5))


def test_a_dirty_source_tree_is_not_recorded(monkeypatch, tmp_path):
    toy = write_toy(monkeypatch, tmp_path)
    root = tmp_path / "tree"
    (root / "results").mkdir(parents=True)
    with pytest.raises(TelosError, match="git checkout"):
        check(toy, record=True, root=root)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    subprocess.run([*git, "init", "-q"], cwd=root, check=True)
    (root / "code.py").write_text("a = 1\n")
    subprocess.run([*git, "add", "code.py"], cwd=root, check=True)
    subprocess.run([*git, "commit", "-qm", "one"], cwd=root, check=True)
    (root / "code.py").write_text("a = 2\n")
    with pytest.raises(TelosError, match=r"uncommitted changes(.|\n)*code\.py"):
        check(toy, record=True, root=root)
    subprocess.run([*git, "commit", "-qam", "two"], cwd=root, check=True)
    for refused in ({"quick": True}, {"seeds": (1000, 1001)}):
        with pytest.raises(TelosError, match="only a whole claim"):
            check(toy, record=True, root=root, **refused)
    result = check(toy, record=True, root=root, jobs=1)
    assert read_json(root / "results" / "toy.laptop.json") == result
    assert result["git"]["dirty"] is False and len(result["git"]["commit"]) == 40
    assert result["history"] == []
    assert (root / "results" / "toy.laptop.png").is_file()

    # A result that replaces another one keeps what that one said.
    mark_stale("toy", folder=root / "results")
    again = check(toy, record=True, root=root, jobs=1)
    commit, since = result["git"]["commit"], again["history"][1]["date"]
    assert again["history"] == [
        {"date": result["date"], "verdict": "confirmed", "commit": commit},
        {"date": since, "verdict": "stale", "commit": commit},
    ]
    assert again["stale"] is False and result["date"] <= since <= again["date"]
    words = [change.verdict for change in changes(read_results(root / "results"))]
    assert words == ["confirmed", "stale", "confirmed"]

    # The record against changed code: words, code that computes the same, other numbers, another margin.
    assert stale(toy, folder=root / "results") == "fresh"
    write_toy(monkeypatch, tmp_path, TOY.replace("    time.sleep", "    # note\n    time.sleep"))
    assert stale(toy, folder=root / "results") == "fresh"
    write_toy(monkeypatch, tmp_path, TOY.replace("time.sleep(wait)", "time.sleep(wait * 1)"))
    assert stale(toy, jobs=1, folder=root / "results") == "same digest"
    # Once verified and noted, nothing needs to run again.
    assert verify(toy, jobs=1, root=root) == "same digest"
    noted = read_json(root / "results" / "toy.laptop.json")
    assert noted["verified"]["commit"] == again["git"]["commit"] and noted["closure"] == again["closure"]
    assert stale(toy, folder=root / "results") == verify(toy, root=root) == "fresh"
    write_toy(monkeypatch, tmp_path, TOY.replace("rng.gauss(0, 0.1)", "rng.gauss(0, 0.2)"))
    assert verify(toy, jobs=1, root=root) == "stale"
    assert changes(read_results(root / "results"))[0].verdict == "stale"
    write_toy(monkeypatch, tmp_path, TOY.replace('"gold", 1.0)', '"gold", 0.5)'))
    assert stale(toy, folder=root / "results") == "stale"


def test_rounding_of_another_processor_makes_no_result_stale():
    assert _close([1.0, 0.0], [1.0005, 0.0], here=True)
    assert not _close([1.0, 0.0], [1.02, 0.0], here=True)
    assert _close([1.0, 0.0], [1.02, 0.0], here=False)
    assert not _close([1.0, 0.0], [1.1, 0.0], here=False)
    assert not _close([1.0], [1.0, 0.0], here=False)


def alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be collected does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def press(process: subprocess.Popen[bytes]) -> None:
    """Ctrl-C, again and again: Python loses one that comes while it runs a callback of the collector's."""
    while process.poll() is None:
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.3)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
@pytest.mark.parametrize(("blow", "jobs"), [(signal.SIGKILL, 2), (signal.SIGINT, 1)])
def test_a_killed_check_leaves_no_process_and_keeps_finished_arms(monkeypatch, tmp_path, capsys, blow, jobs):
    toy = write_toy(monkeypatch, tmp_path, TOY.replace("wait: float = 0.0", "wait: float = 0.3"))
    pids = tmp_path / "pids"
    pids.mkdir()
    program = tmp_path / "program.py"
    program.write_text(
        # What a shell starts in the background ignores Ctrl-C, and so would this program.
        "import signal\nfrom telos.judge.check import check\nif __name__ == '__main__':\n"
        f"    signal.signal(signal.SIGINT, signal.default_int_handler)\n    check('{toy}', jobs={jobs})\n"
    )
    environment = {**os.environ, "TOY_PIDS": str(pids), "PYTHONPATH": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, str(program)], cwd=tmp_path, env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def kept() -> int:
        return len(list((tmp_path / "cache").rglob("*.json")))

    try:
        wait_until(lambda: kept() >= 5)
        workers = [int(path.name) for path in pids.iterdir()]
        assert 5 <= kept() < 12 and len(workers) == jobs and all(map(alive, workers))
    finally:
        # Ctrl-C reaches the whole group, kill -9 the parent alone.
        process.kill() if blow == signal.SIGKILL else press(process)
    assert process.wait(timeout=10) != 0
    wait_until(lambda: not any(map(alive, workers)))
    assert not any(map(alive, workers))
    assert not (tmp_path / "runs").exists()

    if blow == signal.SIGKILL:
        found = kept()
        monkeypatch.setenv("TELOS_PROGRESS", "1")
        monkeypatch.chdir(tmp_path)
        assert check(toy, jobs=1)["verdict"] == "confirmed"
        # Two of them are the digests, which are not counted.
        assert f"{found - 2} of 10 arms from the cache" in capsys.readouterr().err


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_an_option_that_a_method_gained_later_changes_no_arm_at_its_default():
    salsa = {"use": "salsa", **use("salsa").options()}
    held = next(name for name, value in salsa.items() if isinstance(value, dict) and "learning_rate" in value)
    arm = {"method": {"use": "dqn", **use("dqn", hidden=(8,), double=False).options()}, "several": [salsa], "beta": 2}
    recorded = json.loads(json.dumps(arm))
    del recorded["method"]["epsilon"], recorded["several"][0][held]["learning_rate"]
    assert recorded != arm and completed(recorded) == arm and completed(arm) == arm
    # What was recorded stays, also where it is not the default of today; an option of old fits no arm.
    assert completed({"method": {"use": "dqn", "double": False}})["method"]["double"] is False
    old = {"method": {"use": "dqn", "gone": 1}}
    assert completed(old) == old
