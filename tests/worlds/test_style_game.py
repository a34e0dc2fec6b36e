"""Games: the named circles, the style game's rules, labels of pairs, fits and averages."""

import math

import pytest
import torch

from telos.core.rng import Rng
from telos.ops import games
from telos.worlds.games import (
    MATRICES,
    Game,
    average,
    circle,
    duels,
    fitted,
    observed_win_rates,
    rewards,
    style_game,
    style_masses,
    style_oracle,
)


@pytest.mark.parametrize("name", MATRICES)
def test_circles_are_antisymmetric_and_go_round(name):
    p = circle(name).preferences
    assert torch.allclose(p + p.T, torch.ones(3, 3).double())
    assert p[0, 1] > 0.5 and p[1, 2] > 0.5 and p[2, 0] > 0.5
    assert circle(name).log_reference.exp().tolist() == pytest.approx([0.6, 0.3, 0.1])


def test_the_dice():
    faces = [(2, 4, 9), (1, 6, 8), (3, 5, 7)]
    for i, one in enumerate(faces):
        for j, other in enumerate(faces):
            if i != j:
                wins = sum(a > b for a in one for b in other) / 9
                assert MATRICES["dice"][i][j] == pytest.approx(wins)


def test_the_style_game_is_quality_and_a_circle_of_styles():
    game = style_game(Rng(1000).at("game"))
    p = game.preferences
    assert p.shape == (30, 30) and torch.allclose(p + p.T, torch.ones(30, 30).double())
    logit = p.logit()
    # Among arms of one style the logits are differences of quality; from style 0 to 1 to 2 to 0 they gain 3 times 2.
    assert logit[0, 3].item() + logit[3, 6].item() == pytest.approx(logit[0, 6].item())
    assert (logit[0, 1] + logit[1, 2] + logit[2, 0]).item() == pytest.approx(6.0)
    assert style_game(Rng(1000).at("game"), edge=0.0).preferences.logit()[0, 4].item() == pytest.approx(
        logit[0, 4].item() - 2.0
    )
    assert float(game.log_reference.logsumexp(0)) == pytest.approx(0.0, abs=1e-12)
    assert torch.equal(p, style_game(Rng(1000).at("game")).preferences)
    assert not torch.equal(p, style_game(Rng(1001).at("game")).preferences)


def test_distances_of_a_known_policy():
    game = style_game(Rng(1000).at("game"))
    aim = game.equilibrium(0.1)
    assert game.distances(aim, aim) == pytest.approx(
        {
            "tv": 0.0,
            "exploitability": float(games.exploitability(game.preferences, aim)),
            "excess": 0.0,
            "style": float(style_masses(aim).max()),
        }
    )
    sure = torch.full((30,), -torch.inf, dtype=torch.float64)
    sure[4] = 0.0
    found = game.distances(sure, aim)
    assert found["tv"] == pytest.approx(1 - float(aim[4].exp())) and found["style"] == 1.0
    assert found["exploitability"] == pytest.approx(float(game.preferences[:, 4].max()) - 0.5)


def test_duels_are_drawn_from_the_policy_and_labelled_by_the_game():
    game = circle("uneven")
    pairs = duels(game, game.log_reference, 200_000, Rng(0).torch())
    assert pairs.responses.shape == (200_000, 2)
    shares = torch.bincount(pairs.responses.flatten(), minlength=3) / 400_000
    assert torch.allclose(shares.double(), game.log_reference.exp(), atol=0.005)
    between = (pairs.responses.sort(-1).values == torch.tensor([0, 1])).all(-1)
    assert (pairs.responses[between, 0] == 0).double().mean().item() == pytest.approx(0.9, abs=0.005)
    assert torch.equal(pairs.chance, game.preferences[pairs.responses[:, 0], pairs.responses[:, 1]])
    won = observed_win_rates(pairs, 4)
    assert torch.allclose(won[:3], games.win_rates(game.preferences, game.log_reference), atol=0.01) and won[3] == 0.5


def test_a_fit_reaches_a_known_minimum_and_an_average_is_of_probabilities():
    aim = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    found = fitted(torch.zeros(3).double().log_softmax(0), lambda p: -(aim * p).sum(), steps=400)
    assert torch.allclose(found.exp(), aim, atol=1e-4)
    both = torch.tensor([[0.5, 0.5], [0.1, 0.9]], dtype=torch.float64).log()
    assert average(both).exp().tolist() == pytest.approx([0.3, 0.7])


def test_bradley_terry_rewards_of_a_game_that_has_them():
    quality = torch.tensor([1.0, 0.0, -1.0]).double()
    game = Game((quality[:, None] - quality[None, :]).sigmoid(), torch.full((3,), -math.log(3), dtype=torch.float64))
    pairs = duels(game, game.log_reference, 50_000, Rng(2).torch())
    assert torch.allclose(rewards(game, pairs.responses), quality, atol=0.05)


def test_the_oracle_of_styles():
    texts = ["word0 word3 good1", "word1 word4", "word2 word5", "good1 good2", "word0 word1"]

    def chance(i, j):
        return float(style_oracle(["topic1"], [texts[i]], [texts[j]])[0])

    sigma = torch.tensor([2.3, 2.0, 2.0 - 0.3, -0.3]).sigmoid().tolist()
    assert [chance(0, 1), chance(1, 2), chance(2, 0), chance(4, 0)] == pytest.approx(sigma)
    assert chance(3, 1) == pytest.approx(float(torch.tensor(0.6).sigmoid()))  # no style of its own
    for i in range(5):
        for j in range(5):
            assert chance(i, j) + chance(j, i) == pytest.approx(1.0)
