"""What SquareCB's claim measures: one seed's numbers from its curve, and how alike the arms are."""

from typing import Any

import pytest

from telos.claims.squarecb_adyen import CLAIMS, CONTROLS, GENERATIONS, summary
from telos.judge.claim import Trial
from telos.judge.verdict import judge_parts

CLAIM = CLAIMS["laptop"]


def curve(*values: float) -> list[dict[str, float]]:
    return [{"generation": float(g), "value": v, "reward": v - 0.1} for g, v in enumerate(values)]


def test_a_curve_that_goes_down_and_up_in_turn():
    found = summary(curve(0.8, 0.7, 0.8, 0.65, 0.75, 0.6, 0.7))
    assert found["dip"] == pytest.approx(0.1) and found["alternates"] == 1
    # Generations 2 to 6: +0.1, -0.15, +0.1, -0.15, +0.1, counted as positive all.
    assert found["swing"] == pytest.approx(0.6 / 5)
    assert found["reward_1"] == pytest.approx(0.6) and found["reward_6"] == pytest.approx(0.6)
    assert found["reward"] == pytest.approx((0.6 + 0.7 + 0.55 + 0.65 + 0.5 + 0.6) / 6)
    assert found["last_value"] == 0.7


@pytest.mark.parametrize(
    ("values", "alternates", "swing"),
    [
        ((0.8, 0.7, 0.8, 0.8, 0.9, 0.8, 0.9), 0.0, (0.1 + 0 + 0.1 + 0.1 + 0.1) / 5),
        ((0.7, 0.8, 0.7, 0.8, 0.7, 0.8, 0.7), 1.0, -0.1),
        ((0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), 0.0, 0.1 / 5),
        ((0.5,) * 7, 0.0, 0.0),
    ],
)
def test_other_curves(values: tuple[float, ...], alternates: float, swing: float):
    found = summary(curve(*values))
    assert found["alternates"] == alternates and found["swing"] == pytest.approx(swing)


def table(alternating: int = 10, dip: float = 0.14, control: float = 0.0) -> dict[str, dict[str, list[float]]]:
    noise = [0.001 * (i % 3 - 1) for i in range(10)]
    arms: dict[str, dict[str, list[float]]] = {}
    for name in CLAIM.arms:
        better = 0.0 if name == "uniform" else 0.15
        calm = name in CONTROLS
        arms[name] = {f"reward_{g}": [0.58 + better + n for n in noise] for g in range(1, GENERATIONS)}
        arms[name]["dip"] = [(control if calm else dip) + n for n in noise]
        arms[name]["swing"] = [(control if calm else 0.08) + n for n in noise]
        arms[name]["alternates"] = [float(i < alternating) for i in range(10)]
    return arms


def test_parts_decide_as_the_claim_says():
    statuses = [part.status for part in judge_parts(CLAIM.parts, table()).parts]
    assert statuses.count("not shown") == 1  # 10 of 10 alternate: at least 0.69 of them, which is below 0.75
    assert statuses.count("confirmed") == len(CLAIM.parts) - 1
    for worse in (table(alternating=2), table(dip=0.01), table(control=0.05)):
        assert judge_parts(CLAIM.parts, worse).status == "refuted"


def test_arms_differ_in_exploration_and_memory_only():
    options = {name: arm.options["method"].options() for name, arm in CLAIM.arms.items()}
    free = {"exploration", "gamma", "epsilon", "memory"}
    rest = [{k: v for k, v in o.items() if k not in free} for o in options.values()]
    assert all(other == rest[0] for other in rest)
    assert [name for name, o in options.items() if o["memory"] != 1] == ["squarecb_100_memory_4"]
    assert {o["weighting"] for o in options.values()} == {"none"} and {o["delay"] for o in options.values()} == {0}


@pytest.mark.parametrize("name", CLAIM.arms)
def test_every_arm_runs_and_starts_from_the_same_generation(name: str):
    arm = CLAIM.arms[name]
    found: dict[str, Any] = arm.run(Trial(1000, "quick"), **arm.options)
    first = found["points"][0]
    uniform = CLAIM.arms["uniform"]
    other = uniform.run(Trial(1000, "quick"), **uniform.options)["points"][0]
    assert len(found["points"]) == GENERATIONS and first == other
    assert first["effective_share"] == pytest.approx(1.0, abs=1e-6)
    assert all(0 <= p["reward"] <= 1 and p["failures"] == pytest.approx(1 - p["reward"]) for p in found["points"])
