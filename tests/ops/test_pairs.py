"""Builders of pairs: who meets whom, closed forms, and the checks of the dossiers of INPO, DNO and RSO."""

import math

import pytest
import torch

from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.ops import pairs

SCORES = torch.tensor([[3.0, 1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]])


def test_chances_of_scores():
    chances = pairs.bradley_terry(SCORES)
    assert chances[0, 0, 1].item() == pytest.approx(1 / (1 + math.exp(-2))) and (chances[1] == 0.5).all()
    assert torch.allclose(chances + chances.mT, torch.ones(2, 4, 4))
    sharp = pairs.sharp(SCORES)
    assert sharp[0].tolist() == [[0.5, 1, 1, 1], [0, 0.5, 0, 1], [0, 1, 0.5, 1], [0, 0, 0, 0.5]]
    assert (sharp[1] == 0.5).all()


def test_a_drawn_label_is_one_outcome_of_both_directions():
    prefers = torch.full((20_000, 3, 3), 0.5)
    prefers[:, 0, 1], prefers[:, 1, 0] = 0.8, 0.2
    drawn = pairs.labelled(prefers, Rng(0).torch())
    assert (drawn + drawn.mT == 1).all()
    off = ~torch.eye(3, dtype=torch.bool)
    assert set(drawn[:, off].unique().tolist()) == {0.0, 1.0} and (drawn[:, ~off] == 0.5).all()
    assert drawn[:, 0, 1].mean().item() == pytest.approx(0.8, abs=0.01)
    assert drawn[:, 2, 0].mean().item() == pytest.approx(0.5, abs=0.012)


def test_independent_pairs_are_disjoint_neighbours_and_ties_are_left_out():
    eight = torch.arange(8.0)[None]
    assert pairs.independent(pairs.sharp(eight)).tolist() == [[0, 1, 0], [0, 3, 2], [0, 5, 4], [0, 7, 6]]
    assert pairs.independent(pairs.sharp(eight[:, :7])).tolist() == [[0, 1, 0], [0, 3, 2], [0, 5, 4]]
    assert pairs.independent(pairs.sharp(SCORES)).tolist() == [[0, 0, 1], [0, 2, 3]]


def test_every_pair_best_against_worst_and_nothing_of_equal_scores():
    found = pairs.every(pairs.sharp(SCORES)).tolist()
    assert sorted(found) == [[0, 0, 1], [0, 0, 2], [0, 0, 3], [0, 1, 3], [0, 2, 1], [0, 2, 3]]
    assert pairs.best_worst(SCORES).tolist() == [[0, 0, 3]]
    assert pairs.best_worst(torch.tensor([[1.0, 4.0, 4.0, 0.0, 0.0]])).tolist() == [[0, 1, 3]]


def test_a_tournament_of_eight_has_seven_pairs_and_its_winner_is_in_three():
    scores = torch.randn((50, 8), generator=Rng(1).torch())
    found = pairs.tournament(pairs.sharp(scores))
    assert torch.bincount(found[:, 0]).tolist() == [7] * 50
    for prompt, best in enumerate(scores.argmax(-1).tolist()):
        own = found[found[:, 0] == prompt]
        assert (own[:, 1] == best).sum() == 3 and not (own[:, 2] == best).any()
        assert (scores[prompt][own[:, 1]] > scores[prompt][own[:, 2]]).all()
        # Everybody else loses once.
        assert sorted(own[:, 2].tolist()) == [i for i in range(8) if i != best]


def test_in_a_tournament_an_odd_one_waits_and_of_a_tie_the_first_goes_on():
    assert pairs.tournament(pairs.sharp(torch.tensor([[1.0, 2.0, 3.0]]))).tolist() == [[0, 1, 0], [0, 2, 1]]
    assert pairs.tournament(pairs.sharp(torch.tensor([[5.0, 5.0, 3.0, 4.0]]))).tolist() == [[0, 3, 2], [0, 0, 3]]
    assert pairs.tournament(torch.full((2, 1, 1), 0.5)).shape == (0, 3)


def test_a_play_off_of_scores_is_the_best_against_the_worst():
    scores = torch.randn((50, 8), generator=Rng(2).torch())
    assert torch.equal(pairs.playoff(pairs.sharp(scores)), pairs.best_worst(scores))
    assert pairs.playoff(pairs.sharp(torch.tensor([[1.0, 2.0]]))).tolist() == [[0, 1, 0]]


def test_a_play_off_drops_a_winner_that_loses_the_last_comparison():
    # 0 wins the winners' match; 1 loses the losers' match.
    wins = {(0, 1): 1.0, (2, 3): 1.0, (0, 2): 1.0, (1, 3): 0.0, (0, 3): 1.0, (1, 2): 0.0}
    prefers = torch.full((1, 4, 4), 0.5)
    for (i, j), chance in wins.items():
        prefers[0, i, j], prefers[0, j, i] = chance, 1 - chance
    assert pairs.playoff(prefers).tolist() == [[0, 0, 1]]
    prefers[0, 1, 3], prefers[0, 3, 1] = 1.0, 0.0  # now 3 is the loser of losers,
    prefers[0, 0, 3], prefers[0, 3, 0] = 0.0, 1.0  # which beats the winner of winners
    assert pairs.playoff(prefers).tolist() == []
    prefers[0, 0, 3], prefers[0, 3, 0] = 0.5, 0.5
    assert pairs.playoff(prefers).tolist() == []
    # All tie but 0 against 3: of a tie the first is the winner, so that 0 wins and 3 is last of last.
    tied = torch.full((1, 4, 4), 0.5)
    tied[0, 0, 3], tied[0, 3, 0] = 0.6, 0.4
    assert pairs.playoff(tied).tolist() == [[0, 0, 3]]


@pytest.mark.parametrize("n", [1, 3, 6])
def test_a_play_off_needs_a_power_of_two(n):
    with pytest.raises(TelosError, match="power of two"):
        pairs.playoff(torch.full((1, n, n), 0.5))


def test_margins_of_teacher_and_students():
    scores = torch.tensor([[5.0, 5.0, 4.0, 2.0, 6.0, 6.0]])  # the teacher is the last
    margin = torch.ones(1, 6, 6)
    margin[:, 5] = 2
    found = pairs.beyond(scores, margin, 5.0)
    teacher_first, teacher_second = (found[:, 1] == 5).sum(), (found[:, 2] == 5).sum()
    assert (len(found), teacher_first, teacher_second) == (10, 2, 0)
    assert [(found[:, 1] == i).sum().item() for i in range(5)] == [2, 2, 0, 0, 4]
    assert (scores[0][found[:, 1]] > scores[0][found[:, 2]]).all()


def test_rejection_with_a_large_beta_takes_the_first_and_with_a_small_one_the_highest():
    scores = torch.tensor([0.3, 2.0, -1.0, 5.0, 1.0, 4.0])
    assert pairs.rejection_sample(scores, 1e9, 4, Rng(0).torch()).tolist() == [0, 1, 2, 3]
    for seed in range(20):
        assert sorted(pairs.rejection_sample(scores, 1e-9, 3, Rng(seed).torch()).tolist()) == [1, 3, 5]
    assert sorted(pairs.rejection_sample(scores, 0.5, 99, Rng(0).torch()).tolist()) == list(range(6))


def test_rejection_is_blind_to_an_offset():
    scores = torch.randn(40, generator=Rng(4).torch(), dtype=torch.float64)
    for seed in range(10):
        one, other = (pairs.rejection_sample(s, 0.7, 8, Rng(seed).torch()) for s in (scores, scores + 64.0))
        assert torch.equal(one, other) and len(set(one.tolist())) == 8


def test_rejection_of_one_out_of_two():
    ascending = torch.tensor([0.0, math.log(2.0)])
    first = [pairs.rejection_sample(ascending, 1.0, 1, Rng(seed).torch()).item() == 0 for seed in range(4000)]
    assert sum(first) / 4000 == pytest.approx(0.5, abs=0.025)
    assert {pairs.rejection_sample(ascending.flip(0), 1.0, 1, Rng(seed).torch()).item() for seed in range(100)} == {0}


def test_what_is_accepted_follows_the_tilted_distribution():
    rewards, generator = torch.tensor([0.0, 1.0, 2.0]), Rng(6).torch()
    candidates = torch.randint(3, (4000,), generator=generator)
    kept = candidates[pairs.rejection_sample(rewards[candidates], 1.0, 500, generator)]
    shares = torch.bincount(kept, minlength=3) / 500
    assert torch.allclose(shares, rewards.softmax(0), atol=0.05)
