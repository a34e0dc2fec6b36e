"""Bit chain: the exact figures that the dossier gives."""

import math

import pytest
import torch

from telos.worlds import bit_chain


def test_the_base_is_a_distribution_and_a_chain():
    log_a, bits = bit_chain.base_log_probs(), bit_chain.strings()
    assert bits.shape == (256, 8) and bits[5].tolist() == [0, 0, 0, 0, 0, 1, 0, 1]
    assert float(log_a.exp().sum()) == pytest.approx(1)
    assert math.exp(float(log_a[5])) == pytest.approx(0.5 * 0.6**4 * 0.4**3)


@pytest.mark.parametrize(("target", "entropy"), [("bimodal", 2.84), ("unimodal", 3.51)])
def test_the_targets_have_the_stated_entropies(target, entropy):
    log_p = (bit_chain.base_log_probs() + bit_chain.FACTORS[target]()).log_softmax(-1)
    assert -float(torch.xlogy(log_p.exp(), log_p.exp()).sum()) == pytest.approx(entropy, abs=0.005)
    assert float((log_p > -torch.inf).sum()) == {"bimodal": 18, "unimodal": 37}[target]


def test_coins_are_independent():
    logits = torch.linspace(-2, 1, 8, dtype=torch.float64)
    log_pi = bit_chain.coin_log_probs(logits)
    assert float(log_pi.exp().sum()) == pytest.approx(1)
    assert torch.allclose(log_pi.exp() @ bit_chain.strings(), logits.sigmoid())


def test_measures_of_the_target_itself_and_of_fair_coins():
    log_p = (bit_chain.base_log_probs() + bit_chain.soft()).log_softmax(-1)
    found = bit_chain.measures(log_p, log_p)
    assert {k: found[k] for k in ("tv", "js", "kl", "reverse_kl")} == pytest.approx(
        {"tv": 0, "js": 0, "kl": 0, "reverse_kl": 0}, abs=1e-12
    )
    log_p = (bit_chain.base_log_probs() + bit_chain.bimodal()).log_softmax(-1)
    found = bit_chain.measures(bit_chain.coin_log_probs(torch.zeros(8, dtype=torch.float64)), log_p)
    assert found["alignment"] == pytest.approx(18 / 256)
    assert found["entropy"] == pytest.approx(8 * math.log(2))
    assert "reverse_kl" not in found
    assert bit_chain.measures(log_p, log_p)["entropy"] == pytest.approx(2.84, abs=0.005)
