"""bench/run.py: the ratio and its interval, workers in processes, the table of rows and what RESULTS.md says."""

from __future__ import annotations

import json
import math
import sys

import numpy as np
import pytest

WORKER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from serve import Gate, serve
serve(lambda: time.sleep(float(sys.argv[2])), Gate("numpy", things=float(sys.argv[3])))
"""


def row(**changes):
    base = {
        "kind": "speed", "sense": "at least", "aim": 2.0, "figure": 3.0, "low": 2.5, "high": 3.6, "rounds": 10,
        "work": "updates", "against": "peer", "peer": "", "unit": "updates", "their_unit": "",
        "per_second": [30.0, 10.0], "megabytes": [100.0, 200.0], "versions": [{"telos": "1"}, {"peer": "2"}],
        "seconds": 1.0, "date": "2026-01-01", "machine": "M", "commit": "c",
    }  # fmt: skip
    return base | changes


def test_the_ratio_is_that_of_the_sums():
    from run import ratio

    assert ratio([1.0, 3.0], [2.0, 6.0]) == pytest.approx((2.0, 2.0, 2.0))
    estimate, low, high = ratio([1.0, 3.0], [3.0, 3.0])
    assert estimate == pytest.approx(1.5) and low < 1.5 < high and low * high == pytest.approx(1.5**2)
    # Errors 3 - 1.5 and 3 - 4.5: sd sqrt(4.5), of the mean sqrt(4.5 / 2) = 1.5, relative to 3: 0.5; t(1) = 12.706.
    assert high == pytest.approx(1.5 * math.exp(12.706 * 0.5), rel=1e-3)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Rounds of unequal work, as batches of short and of long texts are."""
    from run import ratio

    draw, inside = np.random.default_rng(0), 0
    for _ in range(400):
        ours = draw.gamma(4, 1, 10)
        theirs = 2 * draw.gamma(4, 1, 10)
        _, low, high = ratio(ours.tolist(), theirs.tolist())
        inside += low <= 2 <= high
    assert 0.91 <= inside / 400 <= 0.98


def test_a_pair_of_workers_alternates_in_processes_of_its_own(bench, tmp_path):
    """20 ms for 2 things against 30 ms for 1: three times as fast; as a cost, a third."""
    from rows import Pair
    from run import pair

    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    arguments = [(str(script), str(bench), *more) for more in (("0.02", "2"), ("0.03", "1"))]
    found = pair("x", Pair("work", "peer", "", *arguments, "things", 2.0), 3, 1)
    assert found["figure"] == pytest.approx(3.0, rel=0.3) and found["low"] <= found["figure"] <= found["high"]
    assert all(5 < megabytes < 200 for megabytes in found["megabytes"])
    assert found["versions"][1] == {"numpy": np.__version__} and found["sense"] == "at least"
    cost = pair("x", Pair("work", "peer", "", *arguments, "things", 2.0, "cost"), 2, 1)
    assert cost["figure"] == pytest.approx(1 / 3, rel=0.3) and cost["sense"] == "at most"
    script.write_text("raise SystemExit('no luck')")
    with pytest.raises(SystemExit, match="no luck"):
        pair("x", Pair("work", "peer", "", *arguments, "things", 2.0), 1, 1)


def test_a_command_is_timed_with_its_memory():
    from rows import Command
    from run import command

    found = command("x", Command("sleep", ("-c", "import time; b = bytearray(60 << 20); time.sleep(0.1)"), 1.0), 3, 1)
    assert 0.1 < found["low"] <= found["figure"] <= found["high"] < 5 and 60 < found["megabytes"][0] < 100
    with pytest.raises(SystemExit, match="ZeroDivisionError"):
        command("x", Command("fails", ("-c", "1 / 0"), 1.0), 1, 1)


def test_rows_are_chosen_by_how_their_names_begin(bench):
    from rows import ROWS, Command, chosen
    from workers import PEERS

    assert chosen([]) == list(ROWS) and chosen(["iql/jax"]) == ["iql/jax"]
    assert set(chosen(["sampling/tiny-32"])) == {"sampling/tiny-32/generate", "sampling/tiny-32/compiled"}
    assert set(chosen(["iql"])) == {"iql/d3rlpy", "iql/single_file", "iql/jax", "iql/peak"}
    with pytest.raises(KeyError, match="iq"):
        chosen(["iq"])
    for one in ROWS.values():
        if not isinstance(one, Command):
            assert one.peer in ("", *PEERS)
            assert all((bench / script[0]).is_file() for script in (one.ours, one.theirs) if script)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "met"),
        ({"low": 1.9}, "met, within noise"),
        ({"figure": 1.9, "low": 1.8}, "**missed**"),
        ({"sense": "at most", "figure": 1.0, "high": 1.9}, "met"),
        ({"sense": "at most", "figure": 1.0, "high": 2.1}, "met, within noise"),
        ({"sense": "at most", "figure": 2.1}, "**missed**"),
        ({"aim": None}, "-"),
    ],
)
def test_whether_an_aim_is_met(changes, said):
    from row_tables import met

    assert met(row(**changes)) == said


def test_results_say_what_is_missed_and_drop_what_nothing_makes(tmp_path):
    import report

    (tmp_path / "results.json").write_text(json.dumps({"iql": row(), "iql/d3rlpy": row(date="2026-01-02")}))
    report.record("td3_bc/jax", row(figure=1.2, low=1.1), tmp_path)
    report.record("beso/forward", row(kind="cost", sense="at most", aim=None, their_unit="forwards"), tmp_path)
    report.record("command/import", row(kind="command", sense="at most", aim=5.0, megabytes=[30.0]), tmp_path)
    check = {name: value for name, value in row().items() if name not in ("low", "high", "megabytes", "versions")}
    report.record("dpo/losses", check | {"kind": "check", "sense": "at most", "figure": 2e-6, "aim": 1e-4}, tmp_path)
    text = report.record("prdc/single_file", row(megabytes=[300.0, 200.0]), tmp_path)
    assert set(json.loads((tmp_path / "results.json").read_text())) == {
        "iql/d3rlpy", "td3_bc/jax", "beso/forward", "command/import", "dpo/losses", "prdc/single_file",
    }  # fmt: skip
    lines = text.splitlines()
    missed = lines[lines.index("Aims that are missed:") + 2 :]
    assert missed[:3] == [
        "- td3_bc/jax: 1.20, aim at least 2.00",
        "- prdc/single_file: memory 300 / 200 MB, aim at most the peer's",
        "",
    ]
    assert (
        "| iql/d3rlpy: updates | peer (peer 2) | 30 updates/s | 10 updates/s | **3.00** [2.50, 3.60] | at least 2.00 | "
        "met | 100 / 200 | (1) |"
    ) in lines
    assert any("30 updates/s | 10 forwards/s" in line for line in lines)
    assert any(line.startswith("| dpo/losses") and "**2e-06** | at most 0.0001 | met" in line for line in lines)
    assert "1. 2026-01-02, M, commit c, telos 1" in lines and "2. 2026-01-01, M, commit c, telos 1" in lines
    for line in lines:
        if line.startswith("|---"):
            assert line.count("|") == lines[lines.index(line) - 1].count("|")


def test_the_command_line_names_what_it_does_not_know(monkeypatch, capsys):
    import run

    monkeypatch.setattr(sys, "argv", ["run.py", "iql/torch"])
    with pytest.raises(SystemExit):
        run.main()
    assert "no benchmark is called 'iql/torch'" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["run.py", "iql/jax", "growth", "--list"])
    run.main()
    assert capsys.readouterr().out.split() == ["iql/jax", "growth"]
    monkeypatch.setattr(sys, "argv", ["run.py", "profiles", "growth", "--list"])
    run.main()
    assert capsys.readouterr().out.split() == ["growth", "profiles"]
