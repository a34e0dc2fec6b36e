"""Noise, cycles, length and learnability of preference pairs, where the truth is known."""

import numpy as np
import pytest

from telos.core.rng import Rng
from telos.data.pair_measures import Share, cycles, disagreement, measure_pairs, noise
from telos.data.records import Preferences


def test_disagreement_and_noise_in_closed_form():
    assert disagreement([(1, 1)]).value == 1 and disagreement([(2, 0), (0, 3)]).value == 0
    assert disagreement([(2, 1)]).value == pytest.approx(2 / 3) and disagreement([(1, 0)]).count == 0
    for p in (0.0, 0.1, 0.25, 0.5):
        assert noise(2 * p * (1 - p)) == pytest.approx(p)
    assert noise(0.8) == 0.5


def judged(noisy, repeats, seed=1000, prompts=60, texts=5):
    """All comparisons of `texts` numbered answers of each prompt, the larger number better, labels flipped."""
    draw = Rng(seed).at("judged").numpy()
    rows = []
    for prompt in range(prompts):
        for a in range(texts):
            for b in range(a):
                for _ in range(repeats):
                    winner, loser = (b, a) if draw.random() < noisy else (a, b)
                    rows.append((f"p{prompt} ", f"answer {winner}", f"answer {loser}"))
    return Preferences(*map(list, zip(*rows, strict=True)))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.3])
def test_the_noise_of_labels_is_found_from_repeats(p):
    found = measure_pairs(judged(p, 4))
    assert found.repeated == found.judged == 600 and found.pairs == 2400 and found.prompts == 60
    assert found.noise == pytest.approx(p, abs=0.02)


def test_cycles_of_an_order_come_from_noise_alone():
    assert measure_pairs(judged(0.0, 1)).cycles.value == 0
    # Each of the labels of a triad is wrong with probability p: p (1 - p) of the triads close.
    assert measure_pairs(judged(0.2, 1, prompts=200)).cycles.value == pytest.approx(0.16, abs=0.02)
    assert measure_pairs(judged(0.5, 1, prompts=200)).cycles.value == pytest.approx(0.25, abs=0.02)


def test_a_cycle_is_a_cycle_and_half_a_triad_is_none():
    ring = {("q", "a", "b"): [1, 0], ("q", "b", "c"): [1, 0], ("q", "a", "c"): [0, 1]}
    assert (cycles(ring).hits, cycles(ring).count) == (1, 1)
    assert cycles({**ring, ("q", "a", "c"): [1, 0]}).hits == 0
    assert cycles({**ring, ("q", "a", "c"): [1, 1]}).count == 0
    assert cycles({**ring, ("q", "a", "d"): [1, 0]}).count == 1
    assert cycles({("q", "a", "b"): [1, 0], ("r", "b", "c"): [1, 0], ("q", "a", "c"): [0, 1]}).count == 0


def test_length_words_and_what_words_cannot_tell():
    draw = Rng(1000).at("words").numpy()
    fill = [" ".join(f"w{n}" for n in draw.integers(0, 30, 6)) for _ in range(600)]
    prompts = [f"q{i}" for i in range(300)]
    told = measure_pairs(Preferences(prompts, [f"{t} kind" for t in fill[:300]], [f"{t} rude" for t in fill[300:]]))
    assert told.words.value == 1.0 and told.words.count == 300 and told.longer.value == pytest.approx(0.5, abs=0.15)
    blind = measure_pairs(Preferences(prompts, fill[:300], fill[300:]))
    assert blind.words.low < 0.5 < blind.words.high
    longer = measure_pairs(Preferences(prompts, [t + " and more" for t in fill[:300]], fill[:300]))
    assert longer.longer.value == 1.0 and longer.chosen_length - longer.rejected_length == len(" and more")
    few = measure_pairs(Preferences(prompts[:3], fill[:3], fill[3:6]))
    assert few.words.count == 0 and few.noise is None


def test_equal_texts_and_crowded_prompts_are_counted():
    found = measure_pairs(Preferences(["q", "q", "q", None], ["a", "b", "a", "x y"], ["a", " b ", "c", "x z"]))
    assert found.same == 2 and found.judged == 2 and found.largest == 0.75 and found.implicit == 1


def test_wilson_intervals():
    share = Share(50, 100)
    assert (share.low, share.high) == pytest.approx((0.4038, 0.5962), abs=1e-4)
    assert Share(0, 10).low == 0 and Share(0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert (Share(0, 0).low, Share(0, 0).high) == (0, 1) and np.isnan(Share(0, 0).value)
