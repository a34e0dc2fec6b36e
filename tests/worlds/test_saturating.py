"""Saturating: gold's moments and shape, and what the labels of pairs say."""

import pytest
import torch

from telos.core.rng import Rng
from telos.worlds.saturating import FEATURES, Saturating, answers

WORLD = Saturating.draw(Rng(1000))


def test_gold_by_hand():
    w = WORLD.direction
    assert w.norm().item() == pytest.approx(1, abs=1e-6)
    assert WORLD.gold(torch.zeros(FEATURES)).item() == pytest.approx(2, abs=1e-6)
    for distance in (1.0, 3.0):
        expected = 2 * torch.tanh(torch.tensor(distance)).item() - distance**2 / 20 + 2
        assert WORLD.gold(distance * w).item() == pytest.approx(expected, abs=1e-5)


def test_it_rises_along_the_direction_and_falls_further_out():
    along = WORLD.gold(torch.linspace(0, 8, 81)[:, None] * WORLD.direction)
    best = int(along.argmax())
    assert 15 < best < 25 and (along[: best + 1].diff() > 0).all() and (along[best:].diff() < 0).all()


def test_gold_of_the_policy_has_mean_0():
    gold = WORLD.gold(answers(50, 1000, Rng(1001)))
    assert gold.shape == (50, 1000)
    # Its deviation is 1.34, so the mean's is 0.006.
    assert gold.mean().item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize("flipped", [0.0, 0.25, 1.0])
def test_labels_are_wrong_as_often_as_said(flipped):
    pairs = WORLD.pairs(4000, flipped, Rng(1002))
    gold = WORLD.gold(pairs)
    wrong = (gold[:, 0] < gold[:, 1]).float().mean().item()
    assert wrong == pytest.approx(flipped, abs=0.03 if 0 < flipped < 1 else 0)


def test_the_answers_of_pairs_are_the_same_at_every_noise():
    clean, noisy = (WORLD.pairs(50, flipped, Rng(1003)) for flipped in (0.0, 0.25))
    assert torch.equal(clean.sum(1), noisy.sum(1)) and not torch.equal(clean, noisy)
