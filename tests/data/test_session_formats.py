"""Sessions from tables: order, what follows, several responses, names; and the auxiliary columns of transitions."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.data.formats import save_npz
from telos.data.records import Box, Discrete, LoggedBandit, Transitions

pa = pytest.importorskip("pyarrow", reason="reading tables needs pyarrow, an extra")
pq = pytest.importorskip("pyarrow.parquet")

TABLE = """session,timestamp,country,age,action,reward,like,share,propensity
b,5,US,30,film,1.5,0,1,0.5
a,2,NL,20,song,0.5,1,0,0.25
b,4,US,31,song,2.5,0,0,1.0
a,1,NL,21,film,3.5,0,0,0.5
b,6,US,32,film,4.5,1,1,0.1
"""
OPTIONS = "?auxiliary=like,share"


def written(tmp_path: Path, text: str = TABLE, name: str = "sessions.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def loaded(path: Path | str, **options: Any) -> Transitions:
    data = telos.load(path, **options)
    assert isinstance(data, Transitions)
    return data


def rows(n: int = 6, **more: Any) -> Transitions:
    columns: dict[str, Any] = {
        "observations": np.arange(n), "actions": np.arange(n) % 2, "rewards": np.arange(n),
        "next_observations": np.arange(n) + 1, "terminated": np.arange(n) % 3 == 2, "truncated": np.zeros(n, bool),
    }  # fmt: skip
    return Transitions.validated(action_space=Discrete(2), **{**columns, **more})


# Several responses in transitions.


def test_responses_are_a_column_like_the_others_and_none_by_default(tmp_path: Path):
    both = np.stack([np.arange(6) / 2, -np.arange(6)], 1)
    plain, data = rows(), rows(auxiliary=both, auxiliary_names=("like", "share"), action_names=("left", "right"))
    assert plain.auxiliary is None and plain.auxiliary_names == () and "auxiliary" not in plain.columns()
    assert data.auxiliary is not None and data.auxiliary.dtype == torch.float32
    assert data[[1, 4]].auxiliary.tolist() == [[0.5, -1], [2, -4]]  # type: ignore[union-attr]
    assert data[[1]].auxiliary_names == ("like", "share") and data.to("cpu").action_names == ("left", "right")
    assert data.fingerprint() != plain.fingerprint() == replace(data, auxiliary=None).fingerprint()
    assert rows(auxiliary=np.arange(6)).auxiliary.shape == (6, 1)  # type: ignore[union-attr]
    assert rows(auxiliary=both).auxiliary_names == ("auxiliary0", "auxiliary1")
    for one in (plain, data):
        back = loaded(save_npz(one, tmp_path / "d.npz"))
        assert back.fingerprint() == one.fingerprint() and back.auxiliary_names == one.auxiliary_names
        assert back.action_names == one.action_names
    with np.load(tmp_path / "d.npz", allow_pickle=False) as file:
        assert file["auxiliary_rewards"].tolist() == both.tolist()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"auxiliary": np.ones((5, 2))}, "column 'auxiliary' has 5 rows"),
        ({"auxiliary": [[0.0]] * 4 + [[np.inf]] * 2}, "column 'auxiliary', row 4 is not finite"),
        ({"auxiliary": np.ones((6, 2, 2))}, "column 'auxiliary' has shape"),
        ({"auxiliary": np.ones((6, 0))}, "column 'auxiliary' has shape"),
        ({"auxiliary": ["a"] * 6}, "column 'auxiliary' has type"),
        ({"auxiliary": np.ones((6, 2)), "auxiliary_names": ("like",)}, "auxiliary_names do not fit"),
        ({"auxiliary": np.ones((6, 2)), "auxiliary_names": ("like", "like")}, "auxiliary_names do not fit"),
        ({"auxiliary_names": ("like",)}, "auxiliary_names do not fit"),
        ({"action_names": ("a", "b", "c")}, "action_names do not fit"),
        ({"observation_names": ("a", "b")}, "observation_names do not fit"),
    ],
)
def test_responses_that_are_refused(columns: dict[str, Any], message: str):
    with pytest.raises(TelosError, match=message):
        rows(**columns)


# Sessions.


def test_steps_are_put_in_order_and_followed_by_the_next_of_their_session(tmp_path: Path):
    data = loaded(f"{written(tmp_path)}{OPTIONS}")
    # Sessions as they first appear, b before a; each by time.
    assert data.rewards.tolist() == [2.5, 1.5, 4.5, 3.5, 0.5]
    assert data.auxiliary is not None and data.auxiliary.tolist() == [[0, 0], [0, 1], [1, 1], [0, 0], [1, 0]]
    assert data.auxiliary_names == ("like", "share")
    assert data.observation_names == ("country=NL", "country=US", "age")
    assert data.observations[:, 2].tolist() == [31, 30, 32, 21, 20]
    assert data.next_observations[:, 2].tolist() == [30, 32, 32, 20, 20]
    assert data.terminated.tolist() == [False, False, True, False, True] and not data.truncated.any()
    assert data.action_space == Discrete(2) and data.action_names == ("film", "song")
    assert data.actions.tolist() == [1, 0, 0, 0, 1]
    assert data.log_probs is not None
    assert data.log_probs.exp().tolist() == pytest.approx([1.0, 0.5, 0.1, 0.5, 0.25])
    assert loaded(str(data.origin)).fingerprint() == data.fingerprint()


def test_all_formats_hold_the_same(tmp_path: Path):
    path = written(tmp_path)
    expected = loaded(f"{path}{OPTIONS}")
    table = pa.csv.read_csv(path)
    pq.write_table(table, tmp_path / "sessions.parquet")
    lines = "".join(json.dumps(row) + "\n" for row in table.to_pylist())
    written(tmp_path, lines, "sessions.jsonl")
    for name, text in (("packed.csv.gz", TABLE), ("packed.jsonl.gz", lines)):
        (tmp_path / name).write_bytes(gzip.compress(text.encode()))
    for name in ("sessions.parquet", "sessions.jsonl", "packed.csv.gz", "packed.jsonl.gz"):
        for kind in (None, Transitions):
            assert loaded(f"{tmp_path / name}{OPTIONS}", kind=kind).fingerprint() == expected.fingerprint()


def test_options_say_what_columns_are_called(tmp_path: Path):
    text = TABLE.replace("session,timestamp", "visit,hour").replace("action,reward", "item,seconds")
    options = "session=visit&timestamp=hour&action=item&reward=seconds&context=age&auxiliary=share"
    data = loaded(f"{written(tmp_path, text)}?{options}")
    assert data.rewards.tolist() == [2.5, 1.5, 4.5, 3.5, 0.5] and data.observations.shape == (5, 1)
    assert data.auxiliary_names == ("share",)
    # Another log, in which one country and one action are missing, is read as the first one was.
    first = loaded(f"{written(tmp_path)}{OPTIONS}")
    other = written(tmp_path, "session,country,age,action,reward,like,share\n1,US,9,song,1,0,0\n", "other.csv")
    again = loaded(f"{other}{OPTIONS}", context=",".join(first.observation_names), actions=",".join(first.action_names))
    assert again.observations.tolist() == [[0, 1, 9]] and again.actions.tolist() == [1]
    assert again.action_space == first.action_space and again.log_probs is None


def test_sessions_that_the_log_cut_lose_their_last_step(tmp_path: Path):
    text = "session,x,action,reward,terminated\na,1,0,1,0\na,2,1,2,0\na,3,0,3,0\nb,4,1,4,0\nb,5,1,5,1\n"
    data = loaded(written(tmp_path, text))
    assert data.rewards.tolist() == [1, 2, 4, 5] and data.next_observations[:, 0].tolist() == [2, 3, 5, 5]
    assert data.terminated.tolist() == [False, False, False, True]
    assert data.truncated.tolist() == [False, True, False, False]


def test_continuous_actions_and_lists_of_numbers(tmp_path: Path):
    lines = [
        {"session": 1, "seen": [0.5, 1.5], "a": -1, "b": 0.5, "reward": 1},
        {"session": 1, "seen": [2, 3], "a": 1, "b": 0, "reward": 2},
    ]
    path = written(tmp_path, "".join(json.dumps(row) + "\n" for row in lines), "s.jsonl")
    data = loaded(f"{path}?action=a,b&action_low=-1&action_high=1")
    assert data.action_space == Box((-1.0, -1.0), (1.0, 1.0)) and data.actions.tolist() == [[-1, 0.5], [1, 0]]
    assert data.observations.tolist() == [[0.5, 1.5], [2, 3]] and data.observation_names == ("seen0", "seen1")
    with pytest.raises(TelosError, match="actions of 2 columns need bounds"):
        loaded(f"{path}?action=a,b")
    bad = written(tmp_path, json.dumps(lines[0]) + "\n" + json.dumps({**lines[1], "seen": [1]}) + "\n", "bad.jsonl")
    with pytest.raises(TelosError, match="column 'seen', row 1 is no list like the others"):
        loaded(f"{bad}?action=a&action_low=-1&action_high=1")


@pytest.mark.parametrize(
    ("old", "new", "options", "message"),
    [
        ("reward", "watch", "", "column 'reward' is missing"),
        ("", "", "&session=visit", "column 'visit' is missing"),
        ("", "", "&auxiliary=likes", "column 'likes' is missing"),
        ("", "", "&reward=like", "column 'like' is asked for twice"),
        ("", "", "&actions=song", "row 0 is no known action"),
        ("", "", "&split=train", "unknown option 'split'"),
        ("2.5", "much", "", "column 'reward', row 2 is not a number"),
        ("2.5", "", "", "column 'reward', row 2 is empty"),
        ("\na,2", "\n,2", "", "column 'session', row 1 is empty"),
        (",0.25\n", ",1.25\n", "", "column 'propensity', row 1 is no probability"),
        (",0.1\n", ",0\n", "", "column 'propensity', row 4 is no probability"),
        ("propensity", "terminated", "", "column 'terminated', row 2 ends its session, which goes on"),
    ],
)
def test_what_is_refused_and_how(tmp_path: Path, old: str, new: str, options: str, message: str):
    path = written(tmp_path, TABLE.replace(old, new, 1) if old else TABLE)
    query = "?auxiliary=like,share" + options if "auxiliary" not in options else "?" + options[1:]
    with pytest.raises(TelosError, match=message) as error:
        telos.load(f"{path}{query}", kind=Transitions)
    assert str(path) in str(error.value) or "option" in message


def test_sessions_and_decisions_are_told_apart(tmp_path: Path):
    path = written(tmp_path)
    assert isinstance(telos.load(path, kind=LoggedBandit), LoggedBandit)
    assert isinstance(telos.load(path), Transitions)
    decisions = written(tmp_path, TABLE.replace("session", "user"), "log.csv")
    assert isinstance(telos.load(decisions), LoggedBandit)
    assert isinstance(telos.load(f"{decisions}?session=user"), Transitions)
