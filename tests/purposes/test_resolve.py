"""Purposes by name."""

from pathlib import Path

import pytest

from telos.core.errors import TelosError
from telos.purposes import named_again, resolve


def test_a_function_in_a_file(tmp_path: Path):
    file = tmp_path / "reward.py"
    file.write_text(
        "SCALE = 2.0\n\ndef score(prompts, completions):\n    return [SCALE * len(c) for c in completions]\n"
    )
    purpose = resolve(f"{file}:score")
    assert purpose(["a", "b"], ["x", "yyy"]) == [2.0, 6.0]
    name, _, digest = purpose.origin.partition(" sha256:")
    assert name == "reward.py:score" and len(digest) == 64
    assert resolve(f"{file}:score").origin == purpose.origin
    file.write_text(file.read_text() + "\n")
    assert resolve(f"{file}:score").origin != purpose.origin


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "no such purpose"),
        ("missing.py:score", "cannot be read"),
        ("reward.py", "no such purpose"),
        ("reward.py:other", "no function 'other'"),
        ("reward.py:SCALE", "no function 'SCALE'"),
        ("broken.py:score", "SyntaxError"),
        (".", "not a product"),
    ],
)
def test_what_cannot_be_a_purpose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reward.py").write_text("SCALE = 2.0\n\ndef score(prompts, completions):\n    return [0.0]\n")
    (tmp_path / "broken.py").write_text("def score(:\n")
    with pytest.raises(TelosError, match=message):
        resolve(text)


def test_what_a_run_records_is_compared_on_resume(tmp_path: Path):
    file = tmp_path / "reward.py"
    file.write_text("def score(prompts, completions):\n    return [0.0]\n")
    mixed = f"0.7*length + 0.3*{file}:score"
    before = resolve(mixed).origin
    assert before.startswith("0.7*length + 0.3*reward.py:score sha256:") and named_again(before)
    assert resolve(mixed).origin == before
    file.write_text(file.read_text() + "\n")
    assert resolve(mixed).origin != before
    assert not named_again(resolve("0.7*length + 0.3*keywords:cat").origin)
    assert getattr(resolve({"length": 1, len: 2.0}), "origin", "in memory") == "in memory"
