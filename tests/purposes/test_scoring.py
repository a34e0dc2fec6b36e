"""Asking a purpose: signatures, columns, memory, checks."""

import functools
from pathlib import Path

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.data.formats import load
from telos.data.records import Prompts
from telos.purposes import resolve, score
from telos.purposes.scoring import REMEMBERED

P, C = ["p1", "p2"], ["c", "ccc"]
COLUMNS = {"answer": [1, 2], "level": ["a", "b"]}


def seen_by(function):
    """The score of a function that records its arguments."""
    return score(function, P, C, columns=COLUMNS, completion_ids=[[1], [2, 3]])


def test_signatures():
    seen = []

    def trl(prompts, completions, **kwargs):
        seen.append((prompts, completions, kwargs))
        return [0, 0]

    def no_prompts(completions, **kwargs):
        seen.append((completions, kwargs))
        return [0, 0]

    def columns_by_name(completions, answer, missing=7):
        seen.append((completions, answer, missing))
        return [0, 0]

    def column_first(answer, completions):
        seen.append((answer, completions))
        return [0, 0]

    def ids(completion_ids, **kwargs):
        seen.append((completion_ids, kwargs))
        return [0, 0]

    def swapped(completions, prompts):
        seen.append((prompts, completions))
        return [0, 0]

    def other_names(questions, texts, level=None):
        seen.append((questions, texts, level))
        return [0, 0]

    def second_named(_, completions):
        seen.append((_, completions))
        return [0, 0]

    def first_named(prompts, texts, **rest):
        seen.append((prompts, texts, rest))
        return [0, 0]

    def keywords_only(*, completions, level):
        seen.append((completions, level))
        return [0, 0]

    def anything(*both):
        seen.append(both)
        return [0, 0]

    functions = [trl, no_prompts, columns_by_name, column_first, ids, swapped, other_names, second_named, first_named]
    for function in [*functions, keywords_only, anything, functools.partial(columns_by_name, missing=8)]:
        seen_by(function)
    assert seen == [
        (P, C, COLUMNS),
        (C, {"prompts": P, **COLUMNS}),
        (C, [1, 2], 7),
        ([1, 2], C),
        ([[1], [2, 3]], {"prompts": P, "completions": C, **COLUMNS}),
        (P, C),
        (P, C, ["a", "b"]),
        (P, C),
        (P, C, COLUMNS),
        (C, ["a", "b"]),
        (P, C),
        (C, [1, 2], 8),
    ]
    assert seen_by(lambda a, b: [len(t) for t in b]).tolist() == [1, 3]


def test_signatures_that_cannot_be_served():
    with pytest.raises(TelosError, match=r"'f' needs the column 'truth'(.|\n)*there are: answer, level"):

        def f(completions, truth):
            return [0, 0]

        seen_by(f)
    with pytest.raises(TelosError, match="names a column of the data but not the completions"):
        seen_by(lambda texts, answer: [0, 0])
    with pytest.raises(TelosError, match="'answer' has 1 rows"):
        score(resolve("length"), P, C, columns={"answer": [1]})
    with pytest.raises(TelosError, match="'completions' has 1 rows"):
        score(resolve("length"), P, ["c"])


def test_what_a_function_may_return():
    for returned in ([1, 2], (1.0, 2.0), np.array([1, 2]), torch.tensor([1.0, 2.0], requires_grad=True), [True, 2]):
        found = score(lambda p, c, returned=returned: returned, P, C)
        assert found.dtype == np.float32 and found.tolist() == [1, 2]
    assert score(lambda p, c: torch.tensor([1, 2], dtype=torch.bfloat16), P, C).tolist() == [1, 2]
    assert score(lambda p, c: [], [], []).shape == (0,)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1], "wrong number of scores"),
        ([1, 2, 3], "wrong number of scores"),
        (3.0, "failed on a batch of 2 that begins with prompt 'p1'"),
        (None, "failed on a batch"),
        ([1, float("nan")], r"returned nan for prompt 'p2'(.|\n)*'ccc'"),
        ([float("inf"), 1], r"returned inf for prompt 'p1'(.|\n)*'c'"),
        ([1, 1e300], r"returned 1e\+300 for prompt 'p2'"),
        ([1, "2"], "returned '2' for prompt 'p2'"),
        ([[1], [2]], r"returned \[1\] for prompt 'p1'"),
        ([1, None], r"returned None for prompt 'p2'(.|\n)*only beside another purpose"),
    ],
)
def test_wrong_answers_name_prompt_and_completion(returned, message):
    def mine(prompts, completions):
        return returned

    with pytest.raises(TelosError, match=message) as error:
        score(mine, P, C)
    assert "'mine'" in error.value.what


def test_an_exception_inside_names_the_first_prompt_and_the_line(tmp_path: Path):
    (tmp_path / "mine.py").write_text("def f(prompts, completions):\n    return [{}[c] for c in completions]\n")
    with pytest.raises(TelosError, match=r"'mine.py:f' failed on a batch of 1 that begins with prompt 'p2'") as error:
        score(resolve(f"{tmp_path / 'mine.py'}:f"), P[1:], C[1:])
    assert error.value.got == "KeyError: 'ccc' (mine.py, line 2)"
    assert isinstance(error.value.__cause__, KeyError)


def test_none_is_left_out_of_a_weighted_sum():
    def odd(prompts, completions):
        return [1.0 if len(c) % 2 else None for c in completions]

    def long(prompts, completions):
        return [2.0 if len(c) > 2 else None for c in completions]

    assert score(resolve([(odd, 3.0), (long, 0.5)]), ["p"] * 3, ["c", "ccc", "cccc"]).tolist() == [3, 4, 1]
    with pytest.raises(TelosError, match="returned None for prompt 'p3'"):
        score(resolve([odd, long]), ["p1", "p2", "p3"], ["c", "ccc", "cc"])


def test_batches():
    sizes = []

    def f(prompts, completions):
        sizes.append(len(prompts))
        return [len(c) for c in completions]

    f.cache = False
    texts = ["c" * i for i in range(10)]
    assert score(f, ["p"] * 10, texts, batch_size=4).tolist() == list(range(10))
    assert sizes == [4, 4, 2]


def test_equal_rows_are_asked_once_and_remembered():
    asked = []

    def f(prompts, completions, level=None):
        asked.extend(zip(prompts, completions, level or [None] * len(prompts), strict=True))
        return [len(asked)] * len(prompts)

    first = score(f, ["p", "p", "q"], ["c", "c", "c"])
    assert asked == [("p", "c", None), ("q", "c", None)] and first.tolist() == [2, 2, 2]
    assert score(f, ["q", "p"], ["c", "d"]).tolist() == [2, 3]
    assert asked[2:] == [("p", "d", None)]
    # Another value of a column is another row.
    score(f, ["p"], ["c"], columns={"level": ["a"]})
    score(f, ["p", "p"], ["c", "c"], columns={"level": ["a", "b"]})
    assert asked[3:] == [("p", "c", "a"), ("p", "c", "b")]
    long, other = np.zeros(5000), np.zeros(5000)
    other[2500] = 1
    score(f, ["p", "p"], ["c", "c"], columns={"level": [long, other]})
    assert len(asked) == 7


def test_the_memory_is_bounded(monkeypatch):
    monkeypatch.setattr("telos.purposes.scoring.REMEMBERED", 3)
    asked = []

    def f(prompts, completions):
        asked.extend(completions)
        return [0] * len(prompts)

    for text in ("a", "b", "c", "a", "d", "a", "b"):
        score(f, ["p"], [text])
    assert asked == ["a", "b", "c", "d", "b"]
    assert score(f, ["p"] * 9, list("efghijklm")).shape == (9,)
    assert REMEMBERED > 10_000


def test_what_is_not_remembered():
    class Stateful:
        calls = 0

        def __call__(self, prompts, completions):
            self.calls += 1
            return [self.calls] * len(prompts)

    purpose = Stateful()
    assert [score(purpose, ["p", "p"], ["c", "c"]).tolist() for _ in range(2)] == [[1, 1], [2, 2]]
    purpose.cache = True
    assert [score(purpose, ["p"], ["c"]).tolist() for _ in range(2)] == [[3], [3]]


def test_a_file_can_opt_out(tmp_path: Path):
    (tmp_path / "mine.py").write_text(
        "CALLS = []\n\ndef kept(prompts, completions):\n    CALLS.append(1)\n    return [len(CALLS)] * len(prompts)\n\n"
        "def fresh(prompts, completions):\n    return kept(prompts, completions)\n\nfresh.cache = False\n"
    )
    kept, fresh = (resolve(f"{tmp_path / 'mine.py'}:{name}") for name in ("kept", "fresh"))
    assert [score(kept, ["p"], ["c"])[0] for _ in range(3)] == [1, 1, 1]
    assert [score(fresh, ["p"], ["c"])[0] for _ in range(3)] == [1, 2, 3]
    assert kept(["p"], ["c"]) == [2]


def test_columns_of_a_file_reach_the_purpose(tmp_path: Path):
    (tmp_path / "gsm.jsonl").write_text(
        '{"question": "1+1?", "answer": "it is #### 2", "level": 1}\n{"question": "2+2?", "answer": "#### 4"}\n'
    )
    data = load(f"{tmp_path / 'gsm.jsonl'}?prompt=question", kind=Prompts)
    assert isinstance(data, Prompts)
    assert data.columns == {"answer": ["it is #### 2", "#### 4"], "level": [1, None]}
    part = data[[1, 0, 1]]
    assert (part.prompts, part.columns["answer"]) == (["2+2?", "1+1?", "2+2?"], ["#### 4", "it is #### 2", "#### 4"])
    assert data[1:].columns == {"answer": ["#### 4"], "level": [None]}
    found = score(resolve("answer"), part.prompts, ["4", "4", "it is 4."], columns=part.columns)
    assert found.tolist() == [1, 0, 1]


def test_the_fingerprint_reads_the_columns():
    plain = Prompts(["a", "b"])
    assert plain.fingerprint() == Prompts(["a", "b"], "x", {}).fingerprint()
    prints = {
        Prompts(["a", "b"], None, columns).fingerprint()
        for columns in ({}, {"n": [1, 2]}, {"n": [2, 1]}, {"m": [1, 2]})
    }
    assert len(prints) == 4
    with pytest.raises(TelosError, match="column 'n' has 1 rows"):
        Prompts(["a", "b"], None, {"n": [1]})


def test_prompts_in_a_table_keep_their_columns(tmp_path: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"prompt": "1+1?", "answer": "2", "other": 3}, {"prompt": "2+2?", "answer": "4", "other": None}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    data = load(tmp_path / "d.parquet")
    assert isinstance(data, Prompts) and data.columns == {"answer": ["2", "4"], "other": [3, None]}
    pairs = [{"prompt": "1+1?", "chosen": "2", "rejected": "3", "level": 5}]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "p.parquet")
    data = load(tmp_path / "p.parquet", kind=Prompts)
    assert (data.prompts, data.columns) == (["1+1?"], {"level": [5]})
