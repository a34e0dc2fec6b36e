"""The ledger of decisions, and a user's stream: late, unordered, partial and repeated feedback, kills, resumption."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.online import Decision, Ledger, Online, Stream, load_online
from telos.core.registry import use
from telos.core.rng import Rng

SMALL = {"generation": 20, "epochs": 2, "batch_size": 8, "hidden": (6,), "memory": 2, "delay": 1}


def ledger() -> Ledger:
    return Ledger({"context": torch.zeros(0, 2), "action": torch.zeros(0, dtype=torch.int64)})


def add(book: Ledger, count: int) -> torch.Tensor:
    numbers = torch.arange(book.next, book.next + count)
    return book.add(context=numbers[:, None] * torch.tensor([1.0, 10.0]), action=numbers % 3)


def stream(out: Path | None = None, **options: Any) -> Online:
    return use("squarecb_adyen", **{**SMALL, **options}).online(context_size=3, n_actions=4, seed=5, out=out)


def contexts(count: int = 120) -> torch.Tensor:
    return torch.randn(count, 3, generator=Rng(1000).torch())


def masks(count: int = 120) -> torch.Tensor:
    allowed = torch.rand(count, 4, generator=Rng(1001).torch()) < 0.7
    allowed[:, 1] = True
    return allowed


def outcome(i: int) -> float:
    """Of decision i, whatever it was."""
    return float((7 * i) % 3 == 0)


def follow(online: Online, start: int, stop: int) -> list[tuple[int, float, int]]:
    """One decision at a time; feedback comes 5 late, swapped in pairs, every seventh never, every tenth twice."""
    seen = []
    for i in range(start, stop):
        decision = online.act(contexts()[i], mask=masks()[i])
        assert decision.log_prob is not None and isinstance(decision.id, int)
        seen.append((int(decision.action), float(decision.log_prob), decision.id))
        told = (i - 5) ^ 1
        if told >= 0 and told % 7:
            online.learn(outcome(told), told)
            if told % 10 == 0:
                online.learn(outcome(told), told)
    return seen


def everything(online: Online) -> dict[str, torch.Tensor]:
    tensors, numbers = online.state()
    book, counts = online.ledger.state()
    text = json.dumps([numbers, counts], sort_keys=True).encode()
    return {**tensors, **{f"ledger/{k}": v for k, v in book.items()}, "numbers": torch.tensor(list(text))}


def same(a: Online, b: Online) -> bool:
    first, second = everything(a), everything(b)
    return set(first) == set(second) and all(
        torch.equal(torch.nan_to_num(first[k], nan=-9.0), torch.nan_to_num(second[k], nan=-9.0)) for k in first
    )


# The ledger.


def test_ids_count_and_what_is_settled_comes_back_in_order():
    book = ledger()
    assert add(book, 3).tolist() == [0, 1, 2] and add(book, 200).tolist() == list(range(3, 203))
    book.settle(torch.tensor([150, 2]), torch.tensor([0.25, 1.0]))
    rows = book.settled(0, 203)
    assert rows["id"].tolist() == [2, 150] and rows["feedback"].tolist() == [1.0, 0.25]
    assert rows["context"].tolist() == [[2, 20], [150, 1500]] and rows["action"].tolist() == [2, 0]
    assert book.settled(3, 150)["id"].tolist() == [] and book.settled(150, 151)["id"].tolist() == [150]


def test_what_is_forgotten_is_gone_and_the_rest_stays():
    book = ledger()
    add(book, 10)
    book.settle(torch.arange(10), torch.arange(10.0))
    book.forget(4)
    assert book.settled(0, 10)["feedback"].tolist() == [4, 5, 6, 7, 8, 9]
    assert add(book, 1).tolist() == [10]
    book.settle(torch.tensor([3, 10, 0]), torch.tensor([77.0, 5.0, 0.0]))
    assert book.late == 2 and book.settled(9, 11)["feedback"].tolist() == [9, 5]
    book.forget(2)
    assert book.first == 4
    book.forget(99)
    assert book.first == book.next == 11 and add(book, 2).tolist() == [11, 12]


def test_repeated_outcomes_are_counted_and_contradictions_change_nothing():
    book = ledger()
    add(book, 5)
    book.settle(torch.tensor([1, 1, 2]), torch.tensor([0.5, 0.5, 0.1]))
    book.settle(torch.tensor([1]), torch.tensor([0.5]))
    assert book.repeated == 2
    for ids, values, message in (
        ([3, 1], [1.0, 0.7], "decision 1 has feedback already"),
        ([3, 3], [1.0, 0.0], "decision 3 has feedback already"),
        ([3, 5], [1.0, 0.0], "no decision has the id 5"),
        ([3, -1], [1.0, 0.0], "no decision has the id -1"),
    ):
        with pytest.raises(TelosError, match=message):
            book.settle(torch.tensor(ids), torch.tensor(values))
    assert book.settled(0, 5)["id"].tolist() == [1, 2] and book.repeated == 2
    book.settle(torch.zeros(0, dtype=torch.int64), torch.zeros(0))


# A stream.


def test_killed_at_any_point_it_goes_on_bit_for_bit(tmp_path: Path):
    whole = stream()
    expected = follow(whole, 0, 120)
    assert whole.generation == 5 and whole.ledger.repeated > 0  # type: ignore[attr-defined]
    online, seen = stream(), []
    for start, stop in ((0, 1), (1, 19), (19, 20), (20, 47), (47, 80), (80, 120)):
        seen += follow(online, start, stop)
        online.save(tmp_path / "saved")
        del online
        online = load_online(tmp_path / "saved")
    assert seen == expected and same(online, whole)
    assert sorted(p.name for p in (tmp_path / "saved").iterdir()) == ["online.json", "state.safetensors"]
    assert not list(tmp_path.glob(".saved*"))


def test_without_saving_the_journal_has_what_was_said(tmp_path: Path):
    whole = stream()
    expected = follow(whole, 0, 120)
    online, seen = stream(tmp_path / "run"), []
    for start, stop in ((0, 3), (3, 20), (20, 57), (57, 120)):
        seen += follow(online, start, stop)
        online = telos.load_online(tmp_path / "run")
    assert seen == expected and same(online, whole)
    assert len(list((tmp_path / "run").iterdir())) == 2
    with pytest.raises(TelosError, match="is not empty"):
        stream(tmp_path / "run")


KILLED = """
import sys, time
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from test_online import follow, stream
online = stream(Path(sys.argv[2]))
for i in range(120):
    follow(online, i, i + 1)
    print(i, flush=True)
    time.sleep(0.005)
"""


def test_a_real_kill(tmp_path: Path):
    last = 61
    code = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(tmp_path / "run")]
    with subprocess.Popen(code, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if int(line) == last:
                process.kill()
                break
    assert process.returncode == -signal.SIGKILL
    online = load_online(tmp_path / "run")
    answered = online.ledger.next  # the process may have got further than what was read from it
    assert answered > last
    whole = stream()
    expected = follow(whole, 0, 120)
    # The kill may have come between the last decision and the feedback that follows it: tell it again.
    told = (answered - 6) ^ 1
    if told % 7:
        online.learn(outcome(told), told)
    assert follow(online, answered, 120) == expected[answered:]


def test_a_line_cut_short_was_never_answered(tmp_path: Path):
    online = stream(tmp_path / "run")
    follow(online, 0, 25)
    journal = next((tmp_path / "run").glob("journal-*"))
    text = journal.read_text()
    journal.write_text(text + '{"act": [[0.1, 0.2')
    assert same(load_online(tmp_path / "run"), online)


def test_batches_decide_as_single_contexts_do():
    one, many = stream(delay=0), stream(delay=0)
    seen = []
    for i in range(70):
        decision = one.act(contexts()[i], mask=masks()[i])
        seen.append(int(decision.action))
    decision = many.act(contexts()[:70], mask=masks()[:70])
    assert decision.action.tolist() == seen and decision.id.tolist() == list(range(70))
    assert isinstance(decision, Decision) and decision.action.shape == (70,)


def test_what_act_refuses_leaves_no_decision():
    online = stream()
    for context, mask, message in (
        ([1.0, 2.0], None, "context does not fit"),
        (torch.zeros(2, 4), None, "context does not fit"),
        (torch.zeros(0, 3), None, "context does not fit"),
        ([1.0, float("nan"), 2.0], None, "not finite"),
        ([1.0, 2.0, 3.0], [0, 0, 0, 0], "allows no action"),
        (torch.zeros(2, 3), [[1, 0, 0, 0], [0, 0, 0, 0]], "row 1 of the mask"),
        ([1.0, 2.0, 3.0], [1, 1, 1], "mask of allowed actions does not fit"),
    ):
        with pytest.raises(TelosError, match=message):
            online.act(context, mask=mask)
    assert online.act([0.0, 0.0, 0.0]).id == 0


def test_what_learn_refuses_changes_nothing():
    online = stream()
    online.act(contexts()[:4])
    for feedback, ids, message in (
        (1.0, 4, "no decision has the id 4"),
        ([1.0, 0.0], [0], "feedback and ids do not fit"),
        (1.0, 0.5, "feedback and ids do not fit"),
        ([0.0, float("nan")], [0, 1], "decision 1 is not finite"),
        ([0.0, 1.5], [0, 1], "out of range"),
    ):
        with pytest.raises(TelosError, match=message):
            online.learn(feedback, ids)
    assert online.ledger.settled(0, 4)["id"].tolist() == []
    online.learn([1, 0], torch.tensor([3, 1]))
    assert online.ledger.settled(0, 4)["id"].tolist() == [1, 3]


def test_a_stream_is_described_or_refused():
    for sizes, message in (((0, 3), "needs contexts"), ((3, 0), "needs contexts")):
        with pytest.raises(TelosError, match=message):
            Stream(*sizes)
    with pytest.raises(TelosError, match="action_names do not fit"):
        Stream(2, 3, action_names=("a", "b"))


def test_folders_that_hold_no_stream(tmp_path: Path):
    with pytest.raises(TelosError, match="holds no stream"):
        load_online(tmp_path)
    online = stream()
    online.act(contexts()[:30])
    folder = online.save(tmp_path / "saved")
    (folder / "state.safetensors").write_bytes((folder / "state.safetensors").read_bytes()[:50])
    with pytest.raises(TelosError, match="cannot be read"):
        load_online(folder)
