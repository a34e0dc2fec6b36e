"""The cache of arms: what is the same run, and what is another."""

import pytest
from test_claim import Halving
from toys import TOY, write_toy

from telos.judge import cache
from telos.judge.claim import Arm, load_claim


def keys(toy):
    claim = load_claim(toy, "laptop")
    return {name: cache.arm_key(arm, 0, "full") for name, arm in claim.arms.items()}


def test_keys_tell_runs_apart(monkeypatch, tmp_path):
    run = load_claim(write_toy(monkeypatch, tmp_path), "laptop").arms["new"].run
    arms = [Arm(run, {"gain": 1.0}), Arm(run, {"gain": 2.0}), Arm(run, {"method": Halving(0.1)}),
            Arm(run, {"method": Halving(0.2)})]  # fmt: skip
    found = {cache.arm_key(arm, seed, budget) for arm in arms for seed in (0, 1) for budget in ("full", "digest")}
    assert len(found) == 16
    relabelled = Arm(run, {"gain": 1.0}, label="other", group="g")
    assert cache.arm_key(relabelled, 0, "full") == cache.arm_key(arms[0], 0, "full")
    assert cache.arm_key(Arm(run, {"method": Halving(0.1)}), 1, "full") in found


@pytest.mark.parametrize(
    ("before", "after", "hit"),
    [("    time.sleep", "    # a comment\n    time.sleep", True), ("rng.gauss(0, 0.1)", "rng.gauss(0, 0.3)", False)],
)
def test_comments_hit_and_code_misses(monkeypatch, tmp_path, before, after, hit):
    first = keys(write_toy(monkeypatch, tmp_path))
    cache.keep(first["new"], {"measures": {"gold": 1.5}})
    second = keys(write_toy(monkeypatch, tmp_path, TOY.replace(before, after)))
    assert cache.find(second["new"]) == ({"measures": {"gold": 1.5}} if hit else None)


def test_a_broken_file_is_a_miss(monkeypatch, tmp_path):
    monkeypatch.setenv("TELOS_CACHE", str(tmp_path))
    cache.keep("ab12", {"measures": {}})
    (file,) = tmp_path.rglob("*.json")
    file.write_text(file.read_text()[:5])
    assert cache.find("ab12") is None
    cache.keep("ab12", {"measures": {"x": 1.0}})
    assert cache.find("ab12") == {"measures": {"x": 1.0}}
