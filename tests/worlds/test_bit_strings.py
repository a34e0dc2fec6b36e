"""Bit strings: normalisation, means and pairs against counts by hand."""

import math

import pytest
import torch

from telos.core.rng import Rng
from telos.worlds import bit_strings


@pytest.fixture(scope="module")
def texts():
    return bit_strings.strings(10)


def test_all_strings_stand_in_the_order_of_their_numbers(texts):
    powers = 2.0 ** torch.arange(9, -1, -1, dtype=torch.float64)
    assert texts.shape == (1024, 10) and torch.equal(texts @ powers, torch.arange(1024, dtype=torch.float64))


def test_by_ones_counts_the_strings_of_each_number_of_ones(texts):
    log_policy = bit_strings.by_ones(texts, centre=4, slope=1.2)
    weights = [math.comb(10, s) * math.exp(-1.2 * abs(s - 4)) for s in range(11)]
    for s in (0, 4, 9):
        mass = log_policy.exp()[texts.sum(-1) == s].sum().item()
        assert mass == pytest.approx(weights[s] / sum(weights), rel=1e-12)


def test_a_chain_is_normalised_and_repeats_as_often_as_it_says(texts):
    log_policy = bit_strings.chain(texts, stay=0.6)
    assert log_policy.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    repeats = (texts[:, 1:] == texts[:, :-1]).double().sum(-1)
    assert (log_policy.exp() * repeats).sum().item() == pytest.approx(9 * 0.6, abs=1e-12)
    assert log_policy[0].item() == pytest.approx(math.log(0.5 * 0.6**9), abs=1e-12)


def test_features_are_bits_and_products_and_a_tilt_by_one_bit_is_its_logistic(texts):
    features = bit_strings.pairwise_features(texts)
    assert features.shape == (1024, 55)
    assert torch.equal(features[:, :10], texts) and torch.equal(features[-1], torch.ones(55, dtype=torch.float64))
    assert features[0b1100000000].sum() == 3  # two bits and their product
    uniform = torch.full((1024,), -math.log(1024), dtype=torch.float64)
    policy = bit_strings.tilted(uniform, 2.0 * texts[:, 3])
    assert (policy.exp() * texts[:, 3]).sum().item() == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-12)


def test_the_hump_rises_to_six_and_falls(texts):
    gold = bit_strings.hump(texts, 6)
    by_ones = [gold[texts.sum(-1) == s].unique().tolist() for s in range(11)]
    assert by_ones == [[0], [1], [2], [3], [4], [5], [6], [3], [2], [1], [0]]
    reference = bit_strings.by_ones(texts, centre=4, slope=1.2)
    assert (reference.exp() * gold).sum().item() == pytest.approx(4.185, abs=1e-3)


def test_pairs_are_labelled_by_bradley_terry(texts):
    policy, gold = bit_strings.by_ones(texts, centre=5, slope=0.0), texts[:, 0] * 2.0
    pairs = bit_strings.noisy_pairs(policy, gold, 20_000, Rng(1000).torch())
    differ = pairs[gold[pairs[:, 0]] != gold[pairs[:, 1]]]
    right = (gold[differ[:, 0]] > gold[differ[:, 1]]).double().mean().item()
    assert right == pytest.approx(1 / (1 + math.exp(-2)), abs=0.01)  # 4 standard errors
    assert texts[pairs].mean().item() == pytest.approx(0.5, abs=0.005)


def test_minimise_takes_the_steps_that_it_says_and_reports_each():
    point, seen = torch.zeros(2, dtype=torch.float64, requires_grad=True), []
    bit_strings.minimise(lambda: ((point - 1) ** 2).sum(), [point], 300, 0.05, each=seen.append)
    assert seen == list(range(301)) and torch.allclose(point.detach(), torch.ones(2, dtype=torch.float64), atol=1e-3)
