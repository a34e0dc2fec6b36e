"""Scored texts: the record's door, and its three forms in files."""

import json

import pytest

import telos
from telos.core.errors import TelosError
from telos.data.records import Preferences, Prompts
from telos.data.scored import ScoredTexts, numbers


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_three_forms_are_one_record(tmp_path):
    files = [
        write(tmp_path / "a.jsonl", [{"prompt": "p", "responses": [" a", " b"], "scores": [2, 1.5]}]),
        write(
            tmp_path / "b.jsonl",
            [{"prompt": "p", "response_1": " a", "response_2": " b", "reward_1": 2, "reward_2": 1.5}],
        ),
        write(
            tmp_path / "c.jsonl",
            [{"prompt": "p", "chosen": " a", "rejected": " b", "score_chosen": 2.0, "score_rejected": 1.5}],
        ),
    ]
    prints = set()
    for file in files:
        data = telos.load(file, kind=ScoredTexts)
        assert isinstance(data, ScoredTexts) and len(data) == 1 and data.single and data.attributes == 1
        assert list(data.prompts) == ["p"] and tuple(data.completions[0]) == (" a", " b")
        assert tuple(data.scores[0]) == (2.0, 1.5)
        prints.add(data.fingerprint())
    assert len(prints) == 1
    # What is not asked for scores is read as before.
    assert isinstance(telos.load(files[2]), Preferences)
    assert telos.load(files[0]).columns["scores"] == [[2, 1.5]]
    assert telos.load(files[2], kind=Prompts).columns == {"score_chosen": [2.0], "score_rejected": [1.5]}


def test_conversations_columns_of_other_names_and_attributes(tmp_path):
    ask = {"role": "user", "content": "hello"}
    rows = [
        {
            "prompt": "hello",
            "chosen": [ask, {"role": "assistant", "content": "a"}],
            "rejected": [ask, {"role": "assistant", "content": "b"}],
            "s1": 9.0,
            "s2": 8,
        }
    ]
    data = telos.load(
        write(tmp_path / "chat.jsonl", rows), kind=telos.ScoredTexts, score_chosen="s1", score_rejected="s2"
    )
    assert data.prompts[0] == [ask] and data.completions[0][1] == [{"role": "assistant", "content": "b"}]
    rows = [{"prompt": "p", "responses": ["a", "b", "c"], "scores": [[1, 2], [3, 4], [5, 6.5]]}]
    many = telos.load(write(tmp_path / "many.jsonl", rows), kind=ScoredTexts)
    assert not many.single and many.attributes == 2 and many.scores[0][2] == (5.0, 6.5)
    assert [tuple(group) for group in many.groups().completions] == [("a", "b", "c")]
    assert len(many[:0]) == 0


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1]}, "2 scores"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, "x"]}, "no score"),
        ({"prompt": "p", "responses": ["a", "b"], "scores": [1, None]}, "no score"),
        ({"prompt": "p", "responses": ["a", "b"]}, "scores"),
        ({"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": 1}, "score_rejected"),
        (
            {"prompt": "p", "chosen": "a", "rejected": "b", "score_chosen": float("nan"), "score_rejected": 1},
            "no score",
        ),
        ({"prompt": "p", "response_1": "a", "response_2": "", "reward_1": 1, "reward_2": 0}, "empty"),
    ],
)
def test_bad_files_are_refused_with_the_line_and_the_field(tmp_path, row, word):
    with pytest.raises(TelosError, match=word) as refused:
        telos.load(write(tmp_path / "bad.jsonl", [row]), kind=ScoredTexts)
    assert "bad.jsonl, line 1" in str(refused.value)


@pytest.mark.parametrize(
    ("completions", "scores"),
    [
        ([("a", "b")], [(1.0,)]),
        ([("a", "b")], [(1.0, float("inf"))]),
        ([("a", "b")], [(1.0, (2.0, 3.0))]),
        ([("a", "b")], [((1.0,), (2.0, 3.0))]),
        ([("a",)], [(1.0,)]),
        ([("a", "b")], []),
    ],
)
def test_bad_records_are_refused(completions, scores):
    with pytest.raises(TelosError):
        ScoredTexts(["p"] * len(completions), completions, scores)


def test_numbers():
    assert numbers(2) == (2.0,) and numbers([1, 2.5]) == (1.0, 2.5)
    assert all(numbers(bad) is None for bad in (None, "1", True, [], [1, None], float("nan")))
