"""Results on disk and the state of the source tree."""

import subprocess

import pytest

from telos.core.errors import TelosError
from telos.core.files import write_json
from telos.judge.results import git_state, mark_stale, read_result, read_results, repository, results_folder


def test_results_are_read_by_slug_and_scale(tmp_path):
    for name in ("rso.laptop", "dpo.laptop", "dpo.standard", "not a result"):
        write_json(tmp_path / f"{name}.json", {"name": name})
    found = read_results(tmp_path)
    assert list(found) == [("dpo", "laptop"), ("dpo", "standard"), ("rso", "laptop")]
    assert found["dpo", "standard"] == read_result("dpo", "standard", tmp_path) == {"name": "dpo.standard"}
    with pytest.raises(TelosError, match="no result of 'ppo'"):
        read_result("ppo", folder=tmp_path)


def test_marking_changes_the_one_field(tmp_path):
    write_json(tmp_path / "dpo.laptop.json", {"verdict": "confirmed", "stale": False})
    mark_stale("dpo", folder=tmp_path)
    assert read_result("dpo", folder=tmp_path) == {"verdict": "confirmed", "stale": True}
    mark_stale("dpo", stale=False, folder=tmp_path)
    assert read_result("dpo", folder=tmp_path)["stale"] is False


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
