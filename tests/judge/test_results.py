"""Results on disk and the state of the source tree."""

import subprocess

import pytest

from telos.core.errors import TelosError
from telos.core.files import write_json
from telos.judge.results import (
    Change,
    changes,
    git_state,
    history_with,
    mark_stale,
    now,
    read_result,
    read_results,
    repository,
    results_folder,
)


def test_results_are_read_by_slug_and_scale(tmp_path):
    for name in ("rso.laptop", "dpo.laptop", "dpo.standard", "not a result"):
        write_json(tmp_path / f"{name}.json", {"name": name})
    found = read_results(tmp_path)
    assert list(found) == [("dpo", "laptop"), ("dpo", "standard"), ("rso", "laptop")]
    assert found["dpo", "standard"] == read_result("dpo", "standard", tmp_path) == {"name": "dpo.standard"}
    with pytest.raises(TelosError, match="no result of 'ppo'"):
        read_result("ppo", folder=tmp_path)


def result(date, verdict, **more):
    return {"date": date, "verdict": verdict, "git": {"commit": f"c-{date}", "dirty": False}, "stale": False, **more}


def test_a_mark_has_its_date_and_the_word_before_goes_into_the_history(tmp_path):
    first, begun = result("2026-01-01T00:00:00+00:00", "confirmed"), now()
    write_json(tmp_path / "dpo.laptop.json", first)
    mark_stale("dpo", stale=False, folder=tmp_path)
    assert read_result("dpo", folder=tmp_path) == first

    mark_stale("dpo", folder=tmp_path)
    marked = read_result("dpo", folder=tmp_path)
    confirmed = {"date": first["date"], "verdict": "confirmed", "commit": f"c-{first['date']}"}
    assert begun <= marked["stale_since"] <= now()
    assert marked == {**first, "stale": True, "stale_since": marked["stale_since"], "history": [confirmed]}
    mark_stale("dpo", folder=tmp_path)
    assert read_result("dpo", folder=tmp_path) == marked

    mark_stale("dpo", stale=False, folder=tmp_path)
    back = read_result("dpo", folder=tmp_path)
    stale = {"date": marked["stale_since"], "verdict": "stale", "commit": confirmed["commit"]}
    assert back == {**first, "fresh_since": back["fresh_since"], "history": [confirmed, stale]}
    assert history_with(back) == [confirmed, stale, {**confirmed, "date": back["fresh_since"]}]
    assert [change.verdict for change in changes({("dpo", "laptop"): back})] == ["confirmed", "stale", "confirmed"]

    mark_stale("dpo", folder=tmp_path)
    last = read_result("dpo", folder=tmp_path)
    assert "fresh_since" not in last and last["history"] == history_with(back)


def test_changes_are_what_a_reader_has_not_heard_yet():
    days = [f"2026-01-0{day}T00:00:00+00:00" for day in range(1, 8)]
    history = []
    for day, verdict in ((0, "not shown"), (2, "confirmed"), (3, "confirmed")):
        history = history_with(result(days[day], verdict, history=history))
    found = {
        # Written before results had histories.
        ("old", "laptop"): result(days[1], "refuted"),
        ("dpo", "laptop"): result(days[4], "confirmed", history=history, stale=True, stale_since=days[5]),
        ("dpo", "standard"): result(days[6], "indicative", git=None),
    }
    assert changes(found) == [
        Change(days[6], "dpo", "standard", "indicative", None),
        Change(days[5], "dpo", "laptop", "stale", "confirmed"),
        Change(days[2], "dpo", "laptop", "confirmed", "not shown"),
        Change(days[1], "old", "laptop", "refuted", None),
        Change(days[0], "dpo", "laptop", "not shown", None),
    ]
    assert history_with(found["dpo", "standard"])[0]["commit"] is None
    # Within one second the order is that of the history.
    at_once = result(days[0], "refuted", history=history_with(result(days[0], "confirmed")))
    assert [change.before for change in changes({("a", "laptop"): at_once})] == ["confirmed", None]


def test_the_recorded_results_each_have_a_first_verdict():
    found = changes(read_results())
    assert {(change.slug, change.scale) for change in found if change.before is None} == read_results().keys()
    assert [change.date for change in found] == sorted((change.date for change in found), reverse=True)


def test_this_source_tree_is_found():
    root = repository()
    assert root is not None and (root / "src" / "telos").is_dir()
    assert results_folder() == root / "results"


def test_git_state_leaves_out_results(tmp_path):
    assert git_state(tmp_path) is None
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t.invalid"]
    subprocess.run([*git, "init", "-q"], cwd=tmp_path, check=True)
    (tmp_path / "code.py").write_text("a = 1\n")
    subprocess.run([*git, "add", "code.py"], cwd=tmp_path, check=True)
    subprocess.run([*git, "commit", "-qm", "one"], cwd=tmp_path, check=True)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "dpo.laptop.json").write_text("{}")
    clean = git_state(tmp_path)
    assert clean is not None and clean["dirty"] == [] and len(clean["commit"]) == 40
    (tmp_path / "code.py").write_text("a = 2\n")
    (tmp_path / "new file.py").write_text("")
    dirty = git_state(tmp_path)
    assert dirty is not None and sorted(dirty["dirty"]) == ["code.py", "new file.py"]
