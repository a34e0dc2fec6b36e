"""Logs of decisions: the record's checks, and reading them from .csv and .parquet."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.data.records import LoggedBandit, Preferences, Transitions

pa = pytest.importorskip("pyarrow", reason="reading logs needs pyarrow, an extra")
pq = pytest.importorskip("pyarrow.parquet")

LOG = """amount,country,action,propensity,reward,allowed,timestamp
10.5,NL,visa,0.5,1,visa|sepa,3
20,US,amex,0.25,0,visa|sepa|amex,1
-3,NL,sepa,1.0,1,sepa,2
"""


def written(tmp_path: Path, text: str = LOG, name: str = "log.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def record(**changes: Any) -> LoggedBandit:
    columns: dict[str, Any] = {
        "contexts": np.arange(6.0).reshape(3, 2), "actions": [0, 2, 1], "rewards": [0.0, 1.0, 0.5],
        "propensities": [0.5, 1.0, 0.1], "n_actions": 3,
    }  # fmt: skip
    return LoggedBandit.validated(**{**columns, **changes})


# The record.


def test_types_defaults_and_names():
    log = record()
    assert (log.contexts.dtype, log.actions.dtype, log.rewards.dtype) == (torch.float32, torch.int64, torch.float32)
    assert (log.allowed.dtype, log.timestamps.dtype) == (torch.bool, torch.float64)
    assert log.allowed.all() and log.n_actions == 3 and log.timestamps.tolist() == [0, 1, 2]
    assert log.action_names == ("0", "1", "2") and log.context_names == ("x0", "x1")
    assert log[1:].actions.tolist() == [2, 1] and log[1:].action_names == log.action_names


def test_rows_are_put_in_the_order_of_time_and_ties_keep_theirs():
    log = record(timestamps=[5.0, 1.0, 1.0], received=[9.0, 1.0, 2.0])
    assert log.actions.tolist() == [2, 1, 0] and log.contexts[0].tolist() == [2, 3]
    assert log.received is not None and log.received.tolist() == [1, 2, 9]


def test_without_propensities_it_stands_but_says_what_cannot_be_done():
    log = record(propensities=None)
    assert log.propensities is None and len(log.to("cpu")[:2]) == 2 and log.fingerprint() != record().fingerprint()
    with pytest.raises(TelosError, match="no propensities") as error:
        log.need_propensities("off-policy evaluation")
    assert "off-policy evaluation" in error.value.expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rewards": [0, np.nan, 1]}, "'rewards', row 1 is not finite"),
        ({"contexts": np.full((3, 2), 1e300)}, "'contexts', row 0 is not finite"),
        ({"propensities": [0.5, 0.0, 1]}, "'propensities', row 1 is out of range"),
        ({"propensities": [0.5, 0.5, 1.01]}, "'propensities', row 2 is out of range"),
        ({"propensities": [0.5, 0.5, 1e-50]}, "'propensities', row 2 is out of range"),
        ({"actions": [0, 1, 3]}, "'actions', row 2 is out of range"),
        ({"actions": [0, 1.5, 2]}, "'actions', row 1 is out of range"),
        ({"actions": [0, -1, 2]}, "'actions', row 1 is out of range"),
        ({"allowed": [[1, 0, 0], [0, 1, 1], [1, 0, 1]]}, "row 2 takes the action '1', which was not allowed"),
        ({"rewards": [0, 1]}, "'rewards' has 2 rows"),
        ({"rewards": ["a", "b", "c"]}, "'rewards' has type"),
        ({"received": [0, 0, 5]}, "'received', row 1 is out of range"),
        ({"contexts": np.zeros(3)}, "'contexts' has type"),
        ({"contexts": np.zeros((0, 2))}, "no decisions"),
        ({"n_actions": None}, "number of actions is missing"),
        ({"action_names": ["a", "b"]}, "action_names"),
        ({"context_names": ["a", "a"]}, "context_names"),
    ],
)
def test_the_first_bad_row_is_named(change: dict[str, Any], message: str):
    with pytest.raises(TelosError) as error:
        record(**change)
    assert message in error.value.what


# Files.


def test_a_csv_with_texts_lists_and_times(tmp_path: Path):
    log = telos.load(written(tmp_path))
    assert isinstance(log, LoggedBandit)
    assert log.action_names == ("amex", "sepa", "visa") and log.context_names == ("amount", "country=NL", "country=US")
    assert log.actions.tolist() == [0, 1, 2] and log.rewards.tolist() == [0, 1, 1]
    assert log.contexts.tolist() == [[20, 0, 1], [-3, 1, 0], [10.5, 1, 0]]
    assert log.allowed.tolist() == [[True, True, True], [False, True, False], [False, True, True]]
    assert log.propensities is not None and log.propensities.tolist() == [0.25, 1.0, 0.5]
    again = telos.load(log.origin, kind=LoggedBandit)
    assert again.fingerprint() == log.fingerprint()


def test_the_same_from_parquet_with_real_lists_flags_and_dates(tmp_path: Path):
    np_table = {
        "x": [1, 2], "vip": [True, False], "action": [10, 9], "reward": [0.5, 1.5], "allowed": [[10, 9], [9]],
        "timestamp": [np.datetime64("2024-01-01T00:00:02", "us"), np.datetime64("2024-01-01T00:00:01", "us")],
    }  # fmt: skip
    pq.write_table(pa.table(np_table), tmp_path / "log.parquet")
    log = telos.load(tmp_path / "log.parquet")
    assert isinstance(log, LoggedBandit) and log.propensities is None
    assert log.action_names == ("9", "10") and log.context_names == ("x", "vip")
    assert log.actions.tolist() == [0, 1] and log.contexts.tolist() == [[2, 0], [1, 1]]
    assert log.allowed.tolist() == [[True, False], [True, True]]
    assert (log.timestamps[1] - log.timestamps[0]).item() == 1.0


def test_columns_by_other_names_and_flags_of_what_is_allowed(tmp_path: Path):
    text = "arm,paid,p,x1,x2,note,allowed_b,allowed_a,allowed_c\nb,1,0.5,1,2,u,1,0,1\na,0,1,3,4,v,0,1,0\n"
    log = telos.load(
        f"{written(tmp_path, text)}?action=arm&reward=paid&propensity=p", kind=LoggedBandit, context="x2,x1"
    )
    assert log.action_names == ("b", "a", "c") and log.context_names == ("x2", "x1")
    assert log.contexts.tolist() == [[2, 1], [4, 3]] and log.actions.tolist() == [0, 1]
    assert log.allowed.tolist() == [[True, False, True], [False, True, False]]
    assert telos.load(log.origin, kind=LoggedBandit).fingerprint() == log.fingerprint()


def test_the_names_of_one_log_read_another_alike(tmp_path: Path):
    first = telos.load(written(tmp_path), kind=LoggedBandit)
    second = written(tmp_path, "country,amount,action,reward\nUS,7,visa,1\n", "other.csv")
    log = telos.load(second, kind=LoggedBandit, context=first.context_names, actions=first.action_names)
    assert log.context_names == first.context_names and log.action_names == first.action_names
    assert log.contexts.tolist() == [[7, 0, 1]] and log.actions.tolist() == [2] and log.allowed.all()
    unseen = written(tmp_path, "country,amount,action,reward\nFR,7,visa,1\n", "unseen.csv")
    with pytest.raises(TelosError, match="category that was not named"):
        telos.load(unseen, kind=LoggedBandit, context=first.context_names, actions=first.action_names)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("action,", "arm,", "column 'action' is missing"),
        ("reward,", "paid,", "column 'reward' is missing"),
        ("visa,0.5,1,", "visa,0.5,x,", "column 'reward', row 0 is not a number"),
        ("visa,0.5,1,", "visa,0.5,,", "column 'reward', row 0 is empty"),
        ("visa,0.5,1,", "visa,0.5,nan,", "column 'reward', row 0 is empty"),
        ("visa,0.5,1,", "visa,0.5,inf,", "'rewards', row 0 is not finite"),
        ("visa,0.5,1,", "visa,0,1,", "'propensities', row 0 is out of range"),
        ("amex,0.25,0,visa|sepa|amex", "amex,0.25,0,visa|sepa", "row 1 takes the action 'amex', which was not allowed"),
        ("sepa,1.0,1,sepa", "sepa,1.0,1,", "row 2 allows nothing"),
        ("NL,visa", "NL,", "column 'action', row 0 is no action"),
        ("20,US", ",US", "column 'amount', row 1 is empty"),
        ("amount,country", "amount,", "column 1 has no name"),
        ("amount,country", "amount,amount", "column 'amount' occurs twice"),
        ("20,US", '20,"a,b"', "holds 'a,b'"),
        ("20,US,amex", "20,US", "cannot be read"),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path: Path, old: str, new: str, message: str):
    assert old in LOG
    with pytest.raises(TelosError) as error:
        telos.load(written(tmp_path, LOG.replace(old, new)), kind=LoggedBandit)
    assert message in error.value.what and str(tmp_path) in error.value.what


@pytest.mark.parametrize("text", ["", LOG.split("\n")[0] + "\n", "\n"])
def test_empty_files(tmp_path: Path, text: str):
    with pytest.raises(TelosError, match=r"empty|cannot be read"):
        telos.load(written(tmp_path, text), kind=LoggedBandit)


def test_a_column_that_is_no_category_is_refused(tmp_path: Path):
    rows = "".join(f"key{i},a,1\n" for i in range(100))
    with pytest.raises(TelosError, match="column 'id' has 100 different texts"):
        telos.load(written(tmp_path, "id,action,reward\n" + rows), kind=LoggedBandit)
    rows = "".join(f"{'oops' if i == 60 else i},a,1\n" for i in range(100))
    with pytest.raises(TelosError) as error:
        telos.load(written(tmp_path, "x,action,reward\n" + rows), kind=LoggedBandit)
    assert error.value.got == "'oops' in row 60"


def test_options_that_do_not_fit(tmp_path: Path):
    path = written(tmp_path)
    for options, message in (
        ({"actions": "visa"}, "no known action"),
        ({"actions": "visa,visa"}, "option 'actions' is wrong"),
        ({"context": "size"}, "column 'size' is missing"),
        ({"propensity": "p"}, "column 'p' is missing"),
        ({"split": "train"}, "unknown option 'split'"),
    ):
        with pytest.raises(TelosError, match=message):
            telos.load(path, kind=LoggedBandit, **options)


def test_other_kinds_and_logs_are_told_apart(tmp_path: Path):
    for kind, message in ((Transitions, "column 'session' is missing"), (Preferences, "read as logged decisions")):
        with pytest.raises(TelosError, match=message):
            telos.load(written(tmp_path), kind=kind)
    texts = written(tmp_path, '{"prompt": "a", "chosen": "b", "rejected": "c"}\n', "pairs.jsonl")
    with pytest.raises(TelosError, match="holds texts"):
        telos.load(texts, kind=LoggedBandit)
    pq.write_table(pa.table({"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}), tmp_path / "pairs.parquet")
    assert isinstance(telos.load(tmp_path / "pairs.parquet"), Preferences)


def test_an_index_that_pandas_wrote_is_not_learnt_from(tmp_path: Path):
    table = pa.table({"x": [1.0], "action": ["a"], "reward": [1], "__index_level_0__": [7]})
    pq.write_table(table, tmp_path / "log.parquet")
    assert telos.load(tmp_path / "log.parquet", kind=LoggedBandit).context_names == ("x",)


def test_dates_are_no_context(tmp_path: Path):
    path = written(tmp_path, "when,x,action,reward\n2024-01-02,1,a,1\n2024-01-01,2,b,0\n")
    with pytest.raises(TelosError, match="column 'when' holds dates") as error:
        telos.load(path, kind=LoggedBandit)
    assert "?timestamp=when" in error.value.fix
    assert telos.load(f"{path}?timestamp=when", kind=LoggedBandit).contexts.tolist() == [[2], [1]]
