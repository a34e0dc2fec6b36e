"""Built-in purposes, with numbers."""

import subprocess
import sys

import pytest

from telos.core.errors import TelosError
from telos.purposes import (
    BUILT_IN,
    AllKeywords,
    Answer,
    Keywords,
    Length,
    Match,
    MaxWords,
    Regex,
    Weighted,
    resolve,
    score,
)

FIVE = "one two three four five"


def values(purpose, *completions, **columns):
    return score(resolve(purpose), ["p"] * len(completions), completions, columns=columns).tolist()


def test_length():
    assert values("length", FIVE, "", "  a \n b ") == [5, 0, 2]
    assert values("length:limit=3", FIVE, "a b") == [3, 2]
    assert values("length:target=3", FIVE, "a b c", "") == [-2, 0, -3]
    assert values("length:target=3,limit=2", "", FIVE + " six") == [-2, -2]
    assert resolve("length:limit=2,target=3") == Length(target=3, limit=2)


def test_max_words():
    assert values("max_words:4", FIVE, FIVE + " six", "a b c d", "") == [-1, -2, 1, 1]
    assert resolve("max_words:4") == MaxWords(4)


@pytest.mark.parametrize(
    ("word", "yes", "no"),
    [
        ("cat", "two Cats; the cat's tail", "catalogue concat scatter"),
        ("run", "running runs", "ran runner"),
        ("bake", "baked baking bakes", "bak baker"),
        ("try", "tries tried trying", "tryst tri"),
        ("box", "boxes boxed", "boxer"),
        ("lie", "lying lied", "lier"),
        ("knife", "knives", "kniv"),
        ("leaf", "leaves", "leave"),
        ("play", "played plays playing", "plaies"),
        ("ice cream", "Ice  creams", "ice scream"),
        ("café", "cafés", "caf"),
        ("a.b", "a.b", "axb"),
    ],
)
def test_inflections_of_a_keyword(word, yes, no):
    keyword = Keywords((word,))
    separate = [yes] if " " in word else yes.replace(";", "").split()
    assert keyword([], [part for part in separate if part not in ("two", "the", "tail")]) == [1.0] * len(
        [part for part in separate if part not in ("two", "the", "tail")]
    )
    assert keyword([], [no] if " " in word else no.split()) == [0.0] * (1 if " " in word else len(no.split()))


def test_coverage_is_soft_and_all_of_them_hard():
    texts = ["A dog chased cats.", "Dogs!", "nothing", "cat"]
    assert values("keywords:cat,dog", *texts) == [1, 0.5, 0, 0.5]
    assert values("all_keywords:cat, dog", *texts) == [1, 0, 0, 0]
    assert resolve("keywords:cat, dog") == Keywords(("cat", "dog"))
    assert AllKeywords(("cat", "dog")).origin == "all_keywords:cat,dog"


def test_patterns():
    assert values("regex:b+", "abbc", "ac") == [1, 0]
    assert values("match:ab+c", "abbc", "xabc", "abcd", "abc\n") == [1, 0, 0, 0]
    assert values("regex:^a: b$", "a: b") == [1]
    assert values("regex:(?i)YES", "yes") == [1]
    assert (resolve("regex:x"), resolve("match:x")) == (Regex("x"), Match("x"))


@pytest.mark.parametrize(
    ("completion", "reference", "expected"),
    [
        ("so 3 and 4 make 7", "7", 1),
        ("7 is the sum of 3 and 4", "7", 0),
        ("The answer is $1,234.50.", "1234.5", 1),
        ("it is 72 eggs", "She has 24+48 = <<24+48=72>>72.\n#### 72", 1),
        ("it is 48", "She sold 48/2 = 24.\n#### 72", 0),
        ("5-3", "3", 1),
        ("x = -3", "-3", 1),
        ("x = -3", "3", 0),
        ("the year 2,024, or", "2024", 1),
        ("1, 2, 3", 3, 1),
        ("7.0", 7, 1),
        ("0.1", "0.10", 1),
        ("\\boxed{12}", "12", 1),
        ("no number", "7", 0),
        ("", 7.5, 0),
    ],
)
def test_the_last_number_is_the_answer(completion, reference, expected):
    assert values("answer", completion, answer=[reference]) == [expected]
    assert values("answer:solution", completion, solution=[reference]) == [expected]


def test_an_answer_needs_its_column():
    with pytest.raises(TelosError, match=r"needs the column 'answer'(.|\n)*there are: solution"):
        values("answer", "7", solution=["7"])
    with pytest.raises(TelosError, match="holds no number for prompt 'p'"):
        values("answer", "7", "8", answer=["7", "none"])
    assert resolve("answer:solution") == Answer("solution")


def test_sentiment():
    pytest.importorskip("vaderSentiment")
    good, bad, neutral, empty = values("sentiment", "I love this, it is great!", "I hate this.", "a table", "")
    assert 0.5 < good < 1 and -1 < bad < -0.4 and neutral == empty == 0


def test_sentiment_names_its_extra_when_the_package_is_missing():
    check = (
        "import sys; sys.modules['vaderSentiment'] = None\nfrom telos.purposes import resolve\n"
        "try: resolve('sentiment')\nexcept Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert "TelosError" in done.stdout and "telos[purposes]" in done.stdout, done.stderr


def test_messages_count_as_their_contents():
    message = [{"role": "assistant", "content": "two cats"}]
    assert values("length", message) == [2]
    assert values("keywords:cat", message) == [1]


@pytest.mark.parametrize(
    "name",
    [
        "length",
        "length:target=3",
        "length:target=3,limit=9",
        "max_words:4",
        "keywords:cat,ice cream",
        "all_keywords:a",
        "regex:a+ - 2*b",
        "match:x:y",
        "answer",
        "answer:solution",
        "0.7*length + 0.3*keywords:cat,dog - 2*regex:a + b",
        "- 1e-05*length + 0.3333333333333333*answer",
    ],
)
def test_the_origin_names_the_same_purpose(name):
    purpose = resolve(name)
    assert purpose.origin == name
    assert resolve(purpose.origin) == purpose


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lenght", r"no such purpose: lenght(.|\n)*length, max_words, keywords(.|\n)*did you mean length"),
        ("length + sentiment", "its weight"),
        ("length:words=3", "no option 'words=3'"),
        ("length:target=-3", "target is wrong"),
        ("max_words", "max_words is wrong"),
        ("max_words:0", "at least 1"),
        ("keywords", "empty word"),
        ("keywords:cat,,dog", "empty word"),
        ("regex:(", "not a regular expression"),
        ("match:", "no pattern"),
        ("sentiment:fast", "no options"),
        ("0.5*nothing + 0.5*length", "no such purpose: nothing"),
    ],
)
def test_wrong_names_and_options(name, message):
    with pytest.raises(TelosError, match=message):
        resolve(name)


def test_weights():
    text = resolve("0.5*length - 2*keywords:cat")
    assert isinstance(text, Weighted)
    assert values("0.5*length - 2*keywords:cat", "a cat", "a dog here") == [-1, 1.5]
    expected = score(text, ["p"], ["the cat sat"])
    assert expected.tolist() == [0.5 * 3 - 2]
    for same in (
        {"length": 0.5, "keywords:cat": -2.0},
        {Length(): 0.5, "keywords:cat": -2},
        [("length", 0.5), ("keywords:cat", -2)],
    ):
        assert resolve(same) == text
        assert score(resolve(same), ["p"], ["the cat sat"]).tolist() == expected.tolist()
    assert values(["length", "keywords:cat"], "a cat") == [3]
    assert text([], []).tolist() == []
    assert text(["p"], ["the cat sat"]).tolist() == expected.tolist()


def test_weights_that_are_wrong():
    for wrong in ({}, {"length": float("nan")}, {"length": "1"}):
        with pytest.raises(TelosError, match=r"no terms|not a finite number"):
            resolve(wrong)
    with pytest.raises(TelosError, match="not a purpose"):
        resolve(3)


def test_every_built_in_is_documented_by_name():
    import telos.purposes

    documented = {
        line.split("|")[1].split(":")[0].strip() for line in telos.purposes.__doc__.splitlines() if "|" in line
    }
    assert set(BUILT_IN) <= documented


def test_no_torch_is_loaded():
    check = (
        "import telos.purposes as p, sys\np.score(p.resolve('length'), ['a'], ['b'])\nassert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
