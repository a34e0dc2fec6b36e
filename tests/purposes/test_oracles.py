"""Oracles: antisymmetric answers, refusals, and functions that are oracles."""

import numpy as np
import pytest

from telos.core.errors import TelosError
from telos.purposes import resolve
from telos.purposes.oracles import Oracle, Sharpened, as_oracle, asked

PROMPTS = ["p", "q"]


class First:
    """Likes what stands first, whatever it is, and long texts."""

    def prefers(self, prompts, first, second):
        return [min(1.0, 0.6 + 0.1 * (len(a) - len(b))) for a, b in zip(first, second, strict=True)]


def test_a_bias_to_the_first_place_cancels():
    there, back = asked(First(), PROMPTS, ["aaa", "a"], ["a", "a"]), asked(First(), PROMPTS, ["a", "a"], ["aaa", "a"])
    assert there.tolist() == pytest.approx([0.7, 0.5]) and (there + back == 1).all()
    assert asked(Sharpened(First()), PROMPTS, ["aaa", "a"], ["a", "a"]).tolist() == [1.0, 0.5]


@pytest.mark.parametrize("answers", [[0.5], [[0.5, 0.5]], [0.5, 1.2], [-0.1, 0.5], [0.5, float("nan")]])
def test_other_answers_are_refused(answers):
    class Odd:
        def prefers(self, prompts, first, second):
            return answers

    with pytest.raises(TelosError, match="oracle"):
        asked(Odd(), PROMPTS, ["a", "b"], ["c", "d"])


def test_functions_of_three_texts_are_oracles_and_others_are_not(tmp_path):
    file = tmp_path / "judge.py"
    file.write_text(
        "def longer(prompts, first, second):\n    return [float(len(a) > len(b)) for a, b in zip(first, second)]\n"
        "def score(prompts, completions):\n    return [0.0 for _ in prompts]\n"
    )
    found = as_oracle(resolve(f"{file}:longer"))
    assert isinstance(found, Oracle)
    assert np.array_equal(asked(found, PROMPTS, ["aaa", "b"], ["a", "bb"]), [1.0, 0.0])
    oracle = First()
    assert as_oracle(oracle) is oracle
    for scorer in (resolve(f"{file}:score"), resolve("length"), lambda prompts, completions: [0.0]):
        assert as_oracle(scorer) is None
