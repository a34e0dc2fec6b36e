"""Texts through the data door: every form, every container, and what a broken file is told."""

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from telos.core.errors import TelosError
from telos.data.formats import load
from telos.data.records import Demonstrations, Preferences, Prompts, Rankings, Transitions

HH = Path(__file__).parents[2] / "../shared/data/hh_rlhf_harmless/test.jsonl.gz"

USER = {"role": "user", "content": "Hello?"}
GOOD = {"role": "assistant", "content": "Hello! How can I help?"}
BAD = {"role": "assistant", "content": "Go away."}
PAIR = {"prompt": "2+2=", "chosen": "4", "rejected": "5"}


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return lines(tmp_path / "pairs.jsonl", [PAIR, {"prompt": "1+1=", "chosen": "2", "rejected": "3"}])


def test_explicit_prompts(pairs):
    record = load(pairs)
    assert isinstance(record, Preferences)
    assert (record.prompts, record.chosen, record.rejected) == (["2+2=", "1+1="], ["4", "2"], ["5", "3"])
    assert record.origin == str(pairs)


def test_preferences_as_demonstrations_and_prompts(pairs):
    shown = load(pairs, kind=Demonstrations)
    assert isinstance(shown, Demonstrations)
    assert (shown.prompts, shown.completions) == (["2+2=", "1+1="], ["4", "2"])
    asked = load(pairs, kind=Prompts)
    assert isinstance(asked, Prompts)
    assert asked.prompts == ["2+2=", "1+1="]


def test_implicit_plain_prompt_stays_implicit(tmp_path):
    path = lines(tmp_path / "p.jsonl", [{"chosen": "Q: a\nA: b", "rejected": "Q: a\nA: c"}])
    assert load(path).prompts == [None]
    shown = load(path, kind=Demonstrations)
    assert (shown.prompts, shown.completions) == ([""], ["Q: a\nA: b"])
    with pytest.raises(TelosError, match=r"p\.jsonl, line 1: no prompt"):
        load(path, kind=Prompts)


def test_implicit_conversation_splits_at_the_last_common_message(tmp_path):
    before = [USER, GOOD, {"role": "user", "content": "And now?"}]
    path = lines(tmp_path / "c.jsonl", [{"chosen": [*before, GOOD], "rejected": [*before, BAD]}])
    record = load(path)
    assert (record.prompts, record.chosen, record.rejected) == ([before], [[GOOD]], [[BAD]])
    assert load(path, kind=Prompts).prompts == [before]
    # Were all messages equal, the last one would still be a completion.
    lines(path, [{"chosen": [USER, GOOD], "rejected": [USER, GOOD]}])
    assert load(path).chosen == [[GOOD]]


def test_explicit_conversation_and_repeated_plain_prompt(tmp_path):
    path = lines(tmp_path / "c.jsonl", [{"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}])
    explicit = load(path)
    assert (explicit.prompts, explicit.chosen) == ([[USER]], [[GOOD]])
    # The form of ultrafeedback_binarized: the prompt as text, and whole conversations.
    lines(path, [{"prompt": "Hello?", "chosen": [USER, GOOD], "rejected": [USER, BAD]}])
    assert load(path).prompts == explicit.prompts
    assert load(path).rejected == explicit.rejected


def test_demonstration_forms(tmp_path):
    path = lines(tmp_path / "d.jsonl", [{"prompt": "a", "completion": "b"}])
    record = load(path)
    assert isinstance(record, Demonstrations)
    assert (record.prompts, record.completions) == (["a"], ["b"])
    assert load(path, kind=Prompts).prompts == ["a"]
    lines(path, [{"text": "once upon a time"}])
    assert (load(path).prompts, load(path).completions) == ([""], ["once upon a time"])
    lines(path, [{"messages": [USER, BAD, USER, GOOD]}])
    assert (load(path).prompts, load(path).completions) == ([[USER, BAD, USER]], [[GOOD]])
    lines(path, [{"prompt": [USER]}, {"prompt": [USER, GOOD, USER]}])
    record = load(path)
    assert isinstance(record, Prompts)
    assert len(record) == 2


def test_columns_can_be_named(tmp_path):
    path = lines(tmp_path / "gsm.jsonl", [{"question": "2+2?", "answer": "4"}])
    record = load(path, prompt="question", completion="answer")
    assert (record.prompts, record.completions) == (["2+2?"], ["4"])
    assert record.origin == f"{path}?completion=answer&prompt=question"
    assert load(record.origin).fingerprint() == record.fingerprint()
    with pytest.raises(TelosError, match="column 'prompt' is missing") as error:
        load(path, kind=Prompts)
    assert "question, answer" in error.value.got


def containers(folder: Path, rows: list) -> list[Path]:
    """The same rows in every container."""
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = "".join(json.dumps(row) + "\n" for row in rows)
    plain = lines(folder / "a.jsonl", rows)
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    (folder / "c.json").write_text(json.dumps(rows))
    (folder / "lines.json").write_text(text)
    (folder / "bom.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\n")
    pq.write_table(pa.Table.from_pylist(rows), folder / "d.parquet")
    datasets.Dataset.from_list(rows).save_to_disk(str(folder / "saved"))
    splits = {"train": datasets.Dataset.from_list(rows), "test": datasets.Dataset.from_list(rows[:1])}
    datasets.DatasetDict(splits).save_to_disk(str(folder / "splits"))
    (folder / "hub" / "data").mkdir(parents=True)
    for i, row in enumerate(rows):
        pq.write_table(pa.Table.from_pylist([row]), folder / f"hub/data/train-{i:05d}-of-{len(rows):05d}.parquet")
    (folder / "hub" / "README.md").write_text("a card")
    names = ["b.jsonl.gz", "c.json", "lines.json", "bom.jsonl", "d.parquet", "saved", "splits", "hub"]
    return [plain, *(folder / name for name in names)]


@pytest.mark.parametrize("conversational", [False, True])
def test_every_container_gives_the_same_record(tmp_path, conversational):
    rows: list = [PAIR, {"prompt": "ünï ", "chosen": "c", "rejected": "d"}]
    if conversational:
        tool = {"role": "assistant", "content": "x", "name": "only here"}
        rows = [{"chosen": [USER, GOOD], "rejected": [USER, BAD]}, {"chosen": [USER, GOOD], "rejected": [USER, tool]}]
    paths = containers(tmp_path, rows)
    expected = load(paths[0])
    for path in paths:
        record = load(path)
        assert (record.prompts, record.chosen, record.rejected) == (
            expected.prompts,
            expected.chosen,
            expected.rejected,
        ), path
        assert load(record.origin).fingerprint() == expected.fingerprint(), path


def test_splits(tmp_path):
    lines(tmp_path / "test.jsonl", [{"prompt": "test"}])
    assert load(tmp_path).prompts == ["test"], "the only file"
    lines(tmp_path / "train.jsonl", [{"prompt": "train"}])
    assert load(tmp_path).prompts == ["train"]
    record = load(f"{tmp_path}?split=test")
    assert record.prompts == ["test"]
    assert record.origin == f"{tmp_path}?split=test"
    assert load(tmp_path, split="test").origin == record.origin
    with pytest.raises(TelosError, match="no split 'dev'") as error:
        load(tmp_path, split="dev")
    assert "split=test or split=train" in error.value.expected
    (tmp_path / "train.jsonl").rename(tmp_path / "other.jsonl")
    with pytest.raises(TelosError, match="several splits"):
        load(tmp_path)


def test_relative_paths_become_absolute(pairs, monkeypatch):
    monkeypatch.chdir(pairs.parent)
    origin = load("pairs.jsonl?chosen=rejected").origin
    monkeypatch.chdir("/")
    assert load(origin).chosen == ["5", "3"]


def test_a_question_mark_in_a_name(tmp_path):
    path = lines(tmp_path / "what?.jsonl", [PAIR])
    assert load(path).origin == str(path)
    record = load(path, chosen="rejected")
    assert load(record.origin).chosen == ["5"]


def test_real_dialogues_load_quickly():
    if not HH.exists():
        pytest.skip(f"{HH} is not there")
    load(HH)
    start = time.perf_counter()
    record = load(HH)
    assert time.perf_counter() - start < 1
    assert len(record) == 2312
    assert set(record.prompts) == {None}
    assert all(chosen.startswith("\n\nHuman:") for chosen in record.chosen)
    assert len(load(HH.parent)) == 2312


BROKEN = {
    # name: (file, contents, kind, parts of the message)
    "missing column": ("a.jsonl", [{"prompt": "p", "chosen": "c"}], Preferences, ["line 1", "'rejected' is missing"]),
    "unknown columns": ("a.jsonl", [{"x": 1}], None, ["line 1", "'chosen' is missing", "got: x"]),
    "missing later": ("a.jsonl", [PAIR, {"prompt": "p", "chosen": "c"}], None, ["line 2", "'rejected' is missing"]),
    "prompt missing later": ("a.jsonl", [PAIR, {"chosen": "c", "rejected": "r"}], None, ["line 2", "'prompt'"]),
    "number": ("a.jsonl", [PAIR, {**PAIR, "chosen": 5}], None, ["line 2", "field 'chosen'", "got: int 5"]),
    "null": ("a.jsonl", [{**PAIR, "rejected": None}], None, ["line 1", "field 'rejected'", "got: null"]),
    "NaN": ("a.jsonl", b'{"text": NaN}', None, ["line 1", "field 'text'", "got: float nan"]),
    "null prompt": ("a.jsonl", [{**PAIR, "prompt": None}], None, ["line 1", "field 'prompt'", "null"]),
    "empty file": ("a.jsonl", b"", None, ["is empty", "expected"]),
    "blank lines only": ("a.jsonl", b"\n\n", None, ["has no records"]),
    "empty list": ("a.json", b"[]", None, ["has no records"]),
    "truncated gzip": ("a.jsonl.gz", gzip.compress(os.urandom(99) * 9)[:-30], None, ["a.jsonl.gz"]),
    "no gzip": ("a.jsonl.gz", b'{"text": "x"}', None, ["damaged after line 0", "gzip"]),
    "damaged parquet": ("a.parquet", b"PAR1 and no more", None, ["damaged", "parquet"]),
    "invalid JSON": ("a.jsonl", b'{"text": "x"}\n{"text": "x"\n', None, ["line 2", "not JSON"]),
    "invalid JSON list": ("a.json", b'[{"text": "x"', None, ["a.json is not JSON"]),
    "single value": ("a.json", b'"text"', None, ["a single value"]),
    "not an object": ("a.jsonl", b'["x"]', None, ["line 1", "not an object"]),
    "invalid UTF-8": ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}', None, ["line 2", "not UTF-8", "0xff"]),
    "surrogate": ("a.jsonl", b'{"text": "\\ud800"}', None, ["line 1", "field 'text'", "ud800"]),
    "mixed record": ("a.jsonl", [{"chosen": "x", "rejected": [BAD]}], None, ["line 1", "'chosen' and 'rejected'"]),
    "mixed file": ("a.jsonl", [{"prompt": "x"}, {"prompt": [USER]}], None, ["line 2", "conversational"]),
    "mixed prompt": ("a.jsonl", [{"prompt": "x", "chosen": [GOOD], "rejected": [BAD]}], None, ["'prompt'", "line 1"]),
    "mixed completion": ("a.jsonl", [{"prompt": [USER], "completion": "x"}], None, ["line 1", "'completion'"]),
    "no role": ("a.jsonl", [{"messages": [{"content": "x"}]}], None, ["line 1", "'messages', message 1", "no 'role'"]),
    "ShareGPT": ("a.jsonl", [{"messages": [{"from": "human", "value": "x"}]}], None, ["line 1", "rename 'from'"]),
    "no content": ("a.jsonl", [{"prompt": [USER, {"role": "user"}]}], None, ["message 2", "no 'content'"]),
    "parts": ("a.jsonl", [{"prompt": [{"role": "user", "content": [1]}]}], None, ["message 1", "'content'", "type"]),
    "not a message": ("a.jsonl", [{"prompt": ["hi"]}], None, ["line 1", "'prompt', message 1", "not a message"]),
    "no messages": ("a.jsonl", [{"prompt": []}], None, ["line 1", "field 'prompt'", "empty"]),
    "user last": ("a.jsonl", [{"messages": [GOOD, USER]}], None, ["line 1", "role 'user'"]),
    "plain messages": ("a.jsonl", [{"messages": "x"}], None, ["line 1", "field 'messages'", "plain text"]),
    "no common prompt": ("a.jsonl", [{"chosen": [GOOD], "rejected": [BAD]}], None, ["line 1", "in common"]),
    "empty completion": ("a.jsonl", [{"prompt": "x", "completion": ""}], None, ["line 1", "'completion' is empty"]),
    "empty chosen": ("a.jsonl", [PAIR, {**PAIR, "chosen": " "}], None, ["line 2", "'chosen' is empty"]),
    "empty prompt": ("a.jsonl", [{"prompt": " "}], None, ["line 1", "'prompt' is empty"]),
    "unpaired": ("a.jsonl", [{"prompt": "x", "completion": "y", "label": False}], None, ["line 1", "'label'"]),
    "texts as transitions": ("a.jsonl", [PAIR], Transitions, ["holds texts", "expected: Transitions"]),
    "unknown suffix": ("a.tsv", b"x", None, ["unknown suffix '.tsv'", ".jsonl"]),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_named(tmp_path, name):
    file, contents, kind, parts = BROKEN[name]
    path = tmp_path / file
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    else:
        lines(path, contents)
    with pytest.raises(TelosError) as error:
        load(path, kind=kind)
    for part in [str(path), *parts]:
        assert part in str(error.value)
    assert error.value.expected


def test_truncated_gzip_names_the_last_good_line(tmp_path):
    noise = [{"text": os.urandom(3000).hex()} for _ in range(50)]
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in noise).encode())
    path = tmp_path / "half.jsonl.gz"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TelosError, match=r"half\.jsonl\.gz is damaged after line (1\d|2\d)"):
        load(path)


def test_truncated_parquet_and_dataset_folder(tmp_path):
    paths = {path.name: path for path in containers(tmp_path, [PAIR] * 3)}
    data = paths["d.parquet"].read_bytes()
    paths["d.parquet"].write_bytes(data[: len(data) // 2])
    with pytest.raises(TelosError, match=r"d\.parquet is damaged"):
        load(paths["d.parquet"])
    arrow = next(paths["saved"].glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:40])
    with pytest.raises(TelosError, match="saved cannot be read"):
        load(paths["saved"])
    with pytest.raises(TelosError, match=r"splits: no split 'dev'"):
        load(paths["splits"], split="dev")


def test_paths_and_options_that_are_wrong(pairs, tmp_path):
    with pytest.raises(TelosError, match=r"no such file or folder: .*nothing\.jsonl"):
        load(tmp_path / "nothing.jsonl")
    with pytest.raises(TelosError, match="unknown option 'spilt'"):
        load(pairs, spilt="test")
    with pytest.raises(TelosError, match="unknown option 'steps'"):
        load(f"{pairs}?steps=3")
    with pytest.raises(TelosError, match="the options '\\?steps' cannot be read"):
        load(f"{pairs}?steps")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TelosError, match="empty holds no data set"):
        load(tmp_path / "empty")
    (tmp_path / "empty" / "notes.txt").touch()
    with pytest.raises(TelosError, match=r"notes\.txt"):
        load(tmp_path / "empty")
    with pytest.raises(TelosError, match="int cannot be read from files"):
        load(pairs, kind=int)


def test_unreadable_file(pairs):
    root = os.geteuid() == 0
    pairs.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(TelosError, match=r"pairs\.jsonl cannot be read") as error:
            load(pairs)
    finally:
        if root:
            os.seteuid(0)
    assert "Permission denied" in error.value.got


def test_the_hub_and_minari_without_a_network():
    code = """
from telos.core.errors import TelosError
from telos.data.formats import load
for name in ("telos-nobody/no-such-data", "minari:D4RL/nobody/none-v0"):
    try:
        load(name)
    except TelosError as error:
        print(error)
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=60)
    assert "'telos-nobody/no-such-data' is no file or folder here" in result.stdout, result.stderr
    assert "without a network" in result.stdout
    assert "minari:D4RL/nobody/none-v0 is not on this machine and cannot be downloaded" in result.stdout


def test_a_missing_package_names_its_extra(tmp_path, monkeypatch):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(TelosError) as error:
        load(path)
    assert 'pip install "telos[lm]"' in str(error.value)
    assert "pyarrow" in str(error.value)


def test_rankings_from_files_with_explicit_and_implicit_prompts(tmp_path: Path) -> None:
    path = tmp_path / "ranked.jsonl"
    path.write_text(json.dumps({"prompt": "p", "ranked": [" a", " b", " c"]}) + "\n")
    data = load(path, kind=Rankings)
    assert list(data.prompts) == ["p"] and [tuple(group) for group in data.completions] == [(" a", " b", " c")]
    path.write_text(json.dumps({"ranked": ["p a", "p b"]}) + "\n")
    assert list(load(path, kind=Rankings).prompts) == [None]
    path.write_text(json.dumps({"prompt": "p", "chosen": " a", "rejected": " b"}) + "\n")
    assert [tuple(group) for group in load(path, kind=Rankings).completions] == [(" a", " b")]


@pytest.mark.parametrize("ranked", ["a", ["a"], ["a", 3], ["a", ""], ["a", [{"role": "user", "content": "b"}]]])
def test_a_broken_ranking_names_record_and_field(tmp_path: Path, ranked: object) -> None:
    path = tmp_path / "ranked.jsonl"
    path.write_text(
        json.dumps({"prompt": "p", "ranked": ["x", "y"]}) + "\n" + json.dumps({"prompt": "p", "ranked": ranked})
    )
    with pytest.raises(TelosError, match="line 2") as caught:
        load(path, kind=Rankings)
    assert "ranked" in str(caught.value)
