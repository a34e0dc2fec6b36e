"""What P3O's claim measures: offsets that cancel exactly, and the numbers that are derived from curves."""

import numpy as np
import pytest

from telos.claims.p3o import CLAIMS, GRID, UNDER_OFFSETS, WORLDS, Shifted, compared, mean_gain
from telos.core.rng import Rng
from telos.judge.claim import part_arms
from telos.worlds import tiny_sent


def test_offsets_are_shared_by_a_prompts_completions_new_each_round_and_exact_in_float32():
    prompts, texts = ["topic0"] * 6, ["good1", "bad1 bad2", "good1 good2", "word1", "good3", "bad0"]
    purpose = Shifted(tiny_sent.gold, 7.5, 2, Rng(1000))
    first, second = purpose(prompts, texts), purpose(prompts, texts)
    offsets = first - tiny_sent.gold(prompts, texts)
    assert (offsets[::2] == offsets[1::2]).all() and len(set(offsets)) == 3
    assert not (first == second).any() and not purpose.cache
    assert (offsets * GRID == np.round(offsets * GRID)).all()
    assert (np.float32(first) - np.float32(offsets) == tiny_sent.gold(prompts, texts)).all()
    drawn = np.array([Shifted(lambda p, t: np.zeros(len(p)), 7.5, 1, Rng(i))(["x"], ["y"])[0] for i in range(400)])
    assert abs(drawn.mean()) < 1.2 and drawn.std() == pytest.approx(7.5, rel=0.1)
    plain = Shifted(tiny_sent.gold, 0.0, 2, Rng(1000))
    assert plain(prompts, texts).tolist() == tiny_sent.gold(prompts, texts).tolist()


def curve(*golds):
    return [{"step": float(i), "gold": gold, "kl": 2.0 * i} for i, gold in enumerate(golds)]


def test_derived_numbers_by_hand():
    assert mean_gain(curve(1.0, 2.0, 4.0)) == 2.0 and mean_gain(curve(1.0)) == 0.0
    measures = {name: {"gold": 5.0, "kl": 4.0, "points": curve(1.0, 3.0, 5.0)} for name in CLAIMS["laptop"].arms}
    measures["ppo_shifted"] = {"gold": 3.0, "kl": 4.0, "points": curve(1.0, 1.0, 2.5)}
    found = compared("laptop", measures)
    assert found["ppo"]["retained"] == pytest.approx(0.75 / 3.0) and found["ppo"]["unmoved"] == 0.0
    for name in ("p3o_joint", "p3o_separate"):
        assert found[name]["retained"] == pytest.approx(1.0) and found[name]["unmoved"] == 1.0
    # Budgets 2 to 10: the first 7 of 29 allow a KL of 2 to 3.99..., the others 4.
    low = sum(2 + 8 * i / 28 < 4 for i in range(29))
    assert found["rloo"]["frontier"] == pytest.approx((3.0 * low + 5.0 * (29 - low)) / 29)


@pytest.mark.parametrize("scale", ["laptop", "standard"])
def test_arms_are_alike(scale):
    claim = CLAIMS[scale]
    budget = {}
    for name, arm in claim.arms.items():
        method = arm.options["method"]
        budget[name] = method.prompts_per_batch * getattr(method, "samples_per_prompt", 2)
        assert arm.options["samples"] == budget[name] // method.prompts_per_batch
        assert method.max_new_tokens == WORLDS[scale].scene.new_tokens
    assert set(budget.values()) == {64}
    for name in [name for name in UNDER_OFFSETS if name in claim.arms]:
        a, b = claim.arms[name].options, claim.arms[f"{name}_shifted"].options
        assert {k for k in a if a[k] != b[k]} == {"shifted"}
    assert {arm for part in claim.parts for arm in part_arms(part)} <= set(claim.arms)
