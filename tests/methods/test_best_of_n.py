"""Best-of-n against order statistics, its KL against the bound, and its limits."""

import math

import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.products import Completions, Generator, load_product
from telos.core.rng import Rng
from telos.lm.model import TINY, load_model
from telos.lm.products import LanguagePolicy, RewardScorer
from telos.methods.decoding.best_of_n import BestOf, BestOfN
from telos.ops.divergences import best_of_n_kl
from telos.worlds import tiny_sent


def rng(*names):
    return Rng(1000).at("best", *names).torch()


def length(prompts, completions):
    return [len(text.split()) for text in completions]


def test_one_sample_is_plain_sampling():
    policy = LanguagePolicy(load_model(TINY))
    best = BestOfN(n=1).fit(model=TINY, purpose=tiny_sent.gold, device="cpu")
    ours = best.generate(["topic1", "topic2"], n=3, rng=rng("a"), max_new_tokens=12)
    plain = policy.generate(["topic1", "topic2"], n=3, rng=rng("a"), max_new_tokens=12)
    assert ours.texts == plain.texts and torch.equal(ours.tokens, plain.tokens)


def test_each_answer_is_the_best_of_its_own_samples_and_ties_go_to_the_first():
    policy = LanguagePolicy(load_model(TINY))
    prompts = ["topic1", "topic2", "topic3"]
    best = BestOf(policy, length, 4)
    ours = best.generate(prompts, n=5, rng=rng("b"), max_new_tokens=12)
    drawn = policy.generate(prompts, n=20, rng=rng("b"), max_new_tokens=12)
    values = np.array(length(drawn.prompts, drawn.texts)).reshape(15, 4)
    rows = [4 * i + int(np.flatnonzero(row == row.max())[0]) for i, row in enumerate(values)]
    assert any((row == row.max()).sum() > 1 for row in values)  # ties occur
    assert ours.texts == [drawn.texts[i] for i in rows] and ours.prompts == [drawn.prompts[i] for i in rows]
    assert torch.equal(ours.tokens, drawn.tokens[rows]) and torch.equal(ours.finished, drawn.finished[rows])
    assert BestOf(policy, lambda p, c: np.zeros(len(c)), 4).generate(prompts, rng=rng("b"), max_new_tokens=4).texts == [
        policy.generate(prompts, n=4, rng=rng("b"), max_new_tokens=4).texts[4 * i] for i in range(3)
    ]


class Die(Generator):
    """An enumerable policy: 200 equally likely texts, each a number."""

    def config(self):
        return {}

    def probe(self):
        return {}

    class model:
        tokenizer = None

    def generate(self, prompts, *, n=1, rng=None, **sampling):
        faces = torch.randint(200, (len(prompts) * n,), generator=rng)
        zeros = torch.zeros(len(faces), dtype=torch.int64)
        texts = [str(int(face)) for face in faces]
        repeated = [p for p in prompts for _ in range(n)]
        return Completions(texts, repeated, zeros[:, None], zeros, zeros, zeros[:, None].float(), zeros.bool())


@pytest.mark.parametrize("n", [4, 16])
def test_expected_maximum_and_kl_of_an_enumerable_policy(n):
    faces = 200
    cumulative = (np.arange(faces + 1) / faces) ** n
    exact = np.diff(cumulative)  # P(the best is face k), known in closed form
    mean = float(exact @ np.arange(faces))
    sd = math.sqrt(float(exact @ (np.arange(faces) - mean) ** 2))
    draws = 4000
    texts = BestOf(Die(), lambda p, c: [float(t) for t in c], n).generate(["x"], n=draws, rng=rng("die", n)).texts
    assert abs(np.mean([int(t) for t in texts]) - mean) < 4 * sd / math.sqrt(draws)
    kl = float((exact * np.log(np.maximum(exact, 1e-300) * faces)).sum())
    assert kl <= best_of_n_kl(n) and kl == pytest.approx(best_of_n_kl(n), abs=0.05)
    assert best_of_n_kl(1) == 0 and best_of_n_kl(4) == pytest.approx(math.log(4) - 0.75)


def test_more_samples_more_gold():
    golds = []
    for n in (1, 4, 16):
        best = BestOfN(n=n).fit(model=TINY, purpose=tiny_sent.gold, device="cpu")
        drawn = best.generate(["topic1", "topic5"], n=40, rng=rng("gold"), max_new_tokens=21)
        golds.append(tiny_sent.gold(drawn.prompts, drawn.texts).mean())
    assert golds[0] + 1 < golds[1] < golds[2] - 1


def test_saving_needs_a_reward_model_and_errors_are_named(tmp_path):
    policy = LanguagePolicy(load_model(TINY))
    with pytest.raises(TelosError, match="cannot be saved"):
        BestOf(policy, length, 2).save(tmp_path / "f")
    assert not (tmp_path / "f").exists()
    with pytest.raises(TelosError, match="n is out of range"):
        BestOfN(n=0)
    with pytest.raises(TelosError, match="'purpose' is missing"):
        BestOfN().fit(model=TINY, device="cpu")
    for purpose, message in (
        (lambda p, c: [0.0], "wrong number of scores"),
        (lambda p, c: [float("nan")] * len(c), "returned nan for prompt"),
    ):
        with pytest.raises(TelosError, match=message):
            BestOf(policy, purpose, 2).generate(["topic1"], rng=rng("c"), max_new_tokens=4)

    scorer = RewardScorer.from_language_model(policy.model, Rng(0))
    with torch.no_grad():
        scorer.network.score.weight.copy_(torch.randn(1, 64, generator=rng("head")))
    best = BestOf(policy, scorer, 3)
    best.save(tmp_path / "b")
    loaded = load_product(tmp_path / "b")
    one, two = (b.generate(["topic1"], n=4, rng=rng("d"), max_new_tokens=8) for b in (best, loaded))
    assert one.texts == two.texts and loaded.n == 3
    drawn = policy.generate(["topic1"], n=12, rng=rng("d"), max_new_tokens=8)
    values = scorer.score(drawn.prompts, [" " + t for t in drawn.texts]).view(4, 3)
    assert one.texts == [drawn.texts[3 * i + int(values[i].argmax())] for i in range(4)]


def test_of_a_function_in_a_file_the_name_is_saved_and_asked_for_again(tmp_path):
    from telos.purposes import resolve

    (tmp_path / "mine.py").write_text("def longest(prompts, completions):\n    return [len(c) for c in completions]\n")
    purpose = resolve(f"{tmp_path / 'mine.py'}:longest")
    best = BestOfN(n=3).fit(model="telos:tiny", purpose=purpose)
    loaded = load_product(best.save(tmp_path / "best"))
    with pytest.raises(TelosError, match="needs its purpose again") as caught:
        loaded.generate(["topic1"], rng=Rng(1000).torch(), max_new_tokens=4)
    assert "mine.py" in str(caught.value)
    loaded.purpose = purpose
    drawn = [b.generate(["topic1"], rng=Rng(1000).torch(), max_new_tokens=4).texts for b in (best, loaded)]
    assert drawn[0] == drawn[1]
