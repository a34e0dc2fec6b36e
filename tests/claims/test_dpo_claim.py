"""What DPO's claim measures: the staircase on hand-made points, the data, the KL, and how alike the arms are."""

import pytest
import torch

from telos.claims.dpo import BAND, CLAIMS, NEW_TOKENS, SCENE, compared, pairs
from telos.core.rng import Rng
from telos.judge.claim import Trial
from telos.judge.language import staircase as over_band
from telos.judge.verdict import judge_parts
from telos.lm.products import LanguagePolicy
from telos.worlds import tiny_sent


def staircase(points):
    return over_band(points, BAND)


START = tiny_sent.mean_gold()
CLAIM = CLAIMS["laptop"]


def point(kl, gold):
    return {"kl": kl, "gold": gold, "step": 25.0}


def test_staircase_by_hand():
    start = point(0.0, START)
    assert BAND == (3.0, 10.0)
    assert staircase([start]) == pytest.approx(START)
    assert staircase([start, point(3.0, 5.0)]) == pytest.approx(5.0)
    assert staircase([start, point(10.01, 50.0)]) == pytest.approx(START)  # beyond all budgets
    # Budgets 3, 3.25, ..., 10: the last 15 of 29 allow a KL of 6.5, the last one a KL of 10.
    assert staircase([start, point(6.5, 4.0)]) == pytest.approx((14 * START + 15 * 4.0) / 29)
    assert staircase([start, point(10.0, 4.0)]) == pytest.approx((28 * START + 4.0) / 29)
    assert staircase([start, point(1.0, 2.0), point(6.5, 4.0)]) == pytest.approx((14 * 2 + 15 * 4) / 29)


def test_staircase_only_rises_with_more_points_and_ignores_dominated_ones():
    points = [point(1.0, 2.0), point(6.5, 4.0)]
    for worse in (point(7.0, 3.9), point(2.0, 1.0), point(0.1, START - 5), point(11.0, 99.0)):
        assert staircase([*points, worse]) == pytest.approx(staircase(points))
    assert staircase([*points, point(5.0, 4.0)]) > staircase(points)
    assert staircase(points[::-1]) == staircase(points)


def test_frontiers_pool_the_settings_of_a_method():
    measures = {name: {"points": [point(0.0, START), point(20.0, 0.0)]} for name in CLAIM.arms}
    measures["dpo_0.05"] = {"points": [point(1.0, 2.0)]}
    measures["dpo_0.3"] = {"points": [point(6.5, 4.0)]}
    measures["rloo_0.1"] = {"points": [point(2.0, 1.0), point(3.0, 3.0)]}
    found = compared(measures)
    assert set(found) == {"dpo", "rloo", "sft", "best_of_4", "best_of_16"}
    assert found["dpo"]["frontier"] == pytest.approx((14 * 2 + 15 * 4) / 29)
    assert found["rloo"]["frontier"] == pytest.approx(3.0) and found["sft"]["frontier"] == pytest.approx(START)
    assert found["rloo"]["furthest"] == 20.0
    for part in CLAIM.parts:
        assert {part.a, part.b} <= set(found)


def test_parts_decide_as_the_claim_says():
    def table(dpo):
        values = {"dpo": dpo, "rloo": [5.0, 5.1, 4.9, 5.0, 5.0], "sft": [1.0] * 5, "best_of_4": [1.5] * 5}
        return {name: {"frontier": numbers} for name, numbers in values.items()}

    assert judge_parts(CLAIM.parts, table([6.0, 6.2, 5.9, 6.1, 6.0])).status == "confirmed"
    assert judge_parts(CLAIM.parts, table([4.0, 4.2, 3.9, 4.1, 4.0])).status == "refuted"
    assert judge_parts(CLAIM.parts, table([5.3, 4.6, 5.4, 4.7, 5.1])).status == "not shown"


def test_arms_have_the_same_number_of_settings_and_differ_in_beta_only():
    for group, only in (("dpo", "beta"), ("rloo", "beta")):
        arms = [arm for arm in CLAIM.arms.values() if arm.group == group]
        options = [arm.options["method"].options() for arm in arms]
        assert len(arms) == 3 and len({o[only] for o in options}) == 3
        rest = [{k: v for k, v in o.items() if k != only} for o in options]
        assert all(other == rest[0] for other in rest)
    assert sum(arm.group == "sft" for arm in CLAIM.arms.values()) == 2
    # A completion and its end fit into what is sampled, so that none is cut that the corpus could hold.
    assert max(tiny_sent.LENGTHS) + 1 <= NEW_TOKENS


def test_pairs_are_shared_noisy_and_from_the_reference():
    data, again = pairs(1000, 60), pairs.__wrapped__(1000, 60)
    assert data.fingerprint() == again.fingerprint() != pairs(1001, 60).fingerprint()
    chosen, rejected = (
        tiny_sent.gold(data.prompts, [t.strip() for t in texts]) for texts in (data.chosen, data.rejected)
    )
    gaps = chosen - rejected
    assert (gaps != 0).all() and 200 < len(gaps) <= 360
    expected = 1 / (1 + torch.exp(-torch.from_numpy(gaps).abs()))  # P(label right | gap)
    sd = float((expected * (1 - expected)).sum().sqrt()) / len(gaps)
    assert abs((gaps > 0).mean() - float(expected.mean())) < 4 * sd and 0.6 < (gaps > 0).mean() < 0.98


def test_the_reference_has_no_kl_and_the_gold_of_the_corpus():
    trial = Trial(1000)
    found = SCENE.measure(trial, LanguagePolicy(SCENE.reference))
    assert abs(found["kl"]) < 1e-4 and found["gold"] == pytest.approx(START, abs=0.5)
    assert SCENE.measure(trial, LanguagePolicy(SCENE.reference)) == found

    # Samples of the reference, said to be 0.25 nats likelier under their policy than they are under the reference.
    class Shifted(LanguagePolicy):
        def generate(self, prompts, **options):
            drawn = super().generate(prompts, **options)
            drawn.log_probs[torch.arange(len(prompts)), drawn.boundaries] += 0.25
            return drawn

    assert SCENE.measure(trial, Shifted(SCENE.reference))["kl"] == pytest.approx(0.25, abs=1e-4)


@pytest.mark.parametrize("name", ["dpo_0.1", "rloo_0.1", "sft_0.001", "best_of_4"])
def test_each_kind_of_arm_runs_and_starts_from_the_reference(name):
    arm = CLAIM.arms[name]
    found = arm.run(Trial(1000, "quick"), **arm.options)
    assert found["points"] and found["gold"] == found["points"][-1]["gold"]
    if name != "best_of_4":
        assert found["points"][-1]["step"] == 20.0 and 0 <= abs(found["kl"]) < 20
    assert all(not p.requires_grad for p in SCENE.reference.network.parameters())


def test_training_an_arm_leaves_the_reference_alone():
    before = [p.clone() for p in SCENE.reference.network.parameters()]
    arm = CLAIM.arms["sft_0.001"]
    arm.run(Trial(1001, "quick"), **arm.options)
    assert all(torch.equal(a, b) for a, b in zip(before, SCENE.reference.network.parameters(), strict=True))
    assert Rng(1001).integer() == Trial(1001).rng.integer()
