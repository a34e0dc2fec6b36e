"""What SALSA's claim runs: checkpoints on disjoint halves, and arms that differ in their reference alone."""

import pytest
import torch

from telos.claims.salsa import BAND, CLAIMS, SCENE, checkpoints, held_out, matched, measure, sentences
from telos.core.rng import Rng
from telos.judge.claim import Trial
from telos.lm.products import LanguagePolicy

CLAIM = CLAIMS["laptop"]


def test_checkpoints_are_made_once_and_differ():
    found = checkpoints(1000, 64, 4)
    assert checkpoints(1000, 64, 4) is found and set(found) == {"one", "two", "all"}
    weights = [model.network.state_dict()["lm_head.weight"] for model in (*found.values(), SCENE.reference)]
    assert all(not torch.equal(a, b) for i, a in enumerate(weights) for b in weights[:i])


def test_the_corpus_is_tilted():
    plain, tilted = 0, 0
    for text in sentences(400, Rng(1000)).completions:
        assert isinstance(text, str)
        tilted, plain = tilted + text.count("good"), plain + text.count("bad")
    # The odds of a drawn good word against a bad one are e^0.8.
    assert tilted / plain == pytest.approx(2.2255, rel=0.1)


def test_kl_of_the_reference_to_itself_is_0_and_its_loss_is_known():
    trial = Trial(1000, "quick")
    found = measure(trial, LanguagePolicy(SCENE.reference), {"kl": SCENE.reference})
    assert found["kl"] == pytest.approx(0, abs=1e-4)
    assert 2.6 < held_out(trial, SCENE.reference) < 3.2


def test_arms_differ_in_what_the_kl_refers_to():
    base = CLAIM.arms["soup_1"].options["method"]
    for name, arm in CLAIM.arms.items():
        kind, beta = name.split("_")
        method = arm.options["method"]
        assert method.rl == (base.rl if beta == "1" else CLAIM.arms["soup_0.3"].options["method"].rl)
        assert method.rl.beta == float(beta) and method.initial == "theta_1"
        assert (method.anchor == "start") == (kind == "start")
        assert arm.options["other"] == ("all" if kind == "all" else "two")
        assert method.alpha == (0.0 if kind == "all" else None)


def test_gold_at_matched_kl_pools_both_coefficients():
    start, end = {"step": 0.0, "kl": 0.0, "gold": -1.0}, {"step": 20.0, "kl": BAND[0], "gold": 4.0}
    measures = {name: {"points": [start]} for name in CLAIM.arms}
    measures["soup_0.3"] = {"points": [start, end]}
    found = matched(measures)
    assert found["soup_matched"]["frontier"] == pytest.approx(4.0)
    assert found["start_matched"]["frontier"] == found["all_matched"]["frontier"] == pytest.approx(-1.0)
