"""bench/real_pairs.py on a small file of its own: the split, the intervals, and a short run of everything."""

import json
import sys
from pathlib import Path

import pytest

from telos.core.rng import Rng

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    import real_pairs

    return real_pairs


def write_pairs(file: Path) -> Path:
    """30 dialogues on 12 first turns: kind answers are chosen, some dialogues go on, one answer is long."""
    rows = []
    for i in range(30):
        turn = f"\n\nHuman: Tell me  about day {i % 12}." if i < 15 else f"\n\nHuman: tell me about Day {i % 12}."
        more = "\n\nAssistant: It was sunny.\n\nHuman: And then?" if i % 3 == 0 else ""
        prompt = turn + more + "\n\nAssistant:"
        kind, rude = f" Tim was happy on day {i}." + " He ran." * (i == 7) * 40, f" Go away on day {i}."
        rows.append({"chosen": prompt + kind, "rejected": prompt + rude})
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_dialogue_is_on_one_side_only(bench, tmp_path):
    pairs = bench.read(str(write_pairs(tmp_path / "pairs.jsonl")))
    assert len(pairs) == 30 and all(prompt.endswith("\n\nAssistant:") for prompt, _, _ in pairs)
    assert pairs[1] == (
        "\n\nHuman: Tell me  about day 1.\n\nAssistant:",
        " Tim was happy on day 1.",
        " Go away on day 1.",
    )
    turns = [bench.first_turn(prompt) for prompt, _, _ in pairs]
    assert turns[1] == turns[13] == turns[25] == "tell me about day 1." and len(set(turns)) == 12
    assert turns[0] == turns[12]  # of dialogues that go on, too
    found = set()
    for seed in range(20):
        training, held_out = bench.split(pairs, Rng(seed))
        assert sorted([*training, *held_out]) == list(range(30))
        assert not {turns[i] for i in training} & {turns[i] for i in held_out}
        found.add(tuple(sorted(training)))
    assert len(found) > 10


def test_prompts_keep_their_end_and_answers_their_beginning(bench):
    prompt, chosen, rejected = bench.clipped(("a" * 200 + "\n\nAssistant:", " yes" * 100, " no"))
    assert prompt == "a" * 84 + "\n\nAssistant:" and chosen == " yes" * 36 and rejected == " no"


def test_the_interval_over_prompts_resamples_first_turns(bench):
    """Two turns, right and wrong in every split: a resample has 0, 1/2 or 1, with probabilities 1/4, 1/2, 1/4."""
    groups = ["a", "b"]
    split = ([0, 1], {"x": [1.0, 0.0], "y": [1.0, 1.0]})
    assert bench.over_prompts([split] * 5, "x", groups) == {"low": 0.0, "high": 1.0}
    assert bench.over_prompts([split] * 5, "y", groups) == {"low": 1.0, "high": 1.0}
    many = [str(i) for i in range(400)]
    half = (list(range(400)), {"x": [1.0, 0.0] * 200})
    interval = bench.over_prompts([half] * 3, "x", many)
    # The same prompts in three splits say no more than in one: half-width 1.96 sqrt(0.25 / 400).
    assert interval["high"] - interval["low"] == pytest.approx(2 * 0.049, rel=0.15)


def test_a_short_run_writes_every_row(bench, tmp_path, monkeypatch, capsys):
    file = write_pairs(tmp_path / "pairs.jsonl")
    out = tmp_path / "out"
    out.mkdir()
    command = ["real_pairs.py", "--data", str(file), "--seeds", "1000", "1001", "--out", str(out), "--quick"]
    monkeypatch.setattr(sys, "argv", [*command, "--jobs", "1"])
    bench.main()
    row = json.loads((out / "results.json").read_text())["real_pairs"]
    assert set(row["rows"]) == set(bench.ROWS) and all(len(found["means"]) == 2 for found in row["rows"].values())
    # Kind answers are the longer ones; what is no tie sums to one.
    assert row["rows"]["longer"]["means"] == [1.0, 1.0] and row["rows"]["shorter"]["means"] == [0.0, 0.0]
    for found in row["rows"].values():
        assert 0 <= found["prompts"]["low"] <= found["seeds"]["estimate"] <= found["prompts"]["high"] <= 1
    text = (out / "RESULTS.md").read_text()
    assert text in capsys.readouterr().out and "30 pairs" in text and "| longer: the longer answer | 100.0 % |" in text
