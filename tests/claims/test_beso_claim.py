"""What BESO's claim measures: rows of settings, equal treatment of the arms, and how its parts decide."""

import pytest
import torch

from telos.claims.beso import CLAIMS, DENOISING_STEPS, DRAWN, STRENGTHS, paths, reach, reach_in_steps, settings
from telos.judge.claim import Trial
from telos.judge.verdict import judge_parts
from telos.worlds import bypass2d

CLAIM = CLAIMS["laptop"]


def test_each_setting_becomes_a_row():
    names = ("success", "collided", "above")
    measures = {
        "beso": {f"{name}_{n}": n + i for n in DENOISING_STEPS for i, name in enumerate(names)},
        "cfg": {f"{name}_{g:g}": 10 * g + i for g in STRENGTHS for i, name in enumerate(names)},
    }
    rows = settings(measures)
    assert rows["beso_3"] == {"success": 3, "collided": 4, "above": 5} and rows["cfg_1.5"]["success"] == 15
    assert len(rows) == len(DENOISING_STEPS) + len(STRENGTHS)
    for part in CLAIM.parts:
        arms = {part.a, getattr(part, "b", part.a)}  # type: ignore[union-attr]
        assert arms <= set(rows) | set(CLAIM.arms)


def test_arms_differ_in_the_method_only():
    options = {name: arm.options["method"].options() for name, arm in CLAIM.arms.items()}
    for name in ("hidden", "final_goals", "learning_rate", "batch_size", "scaling"):
        assert len({str(o[name]) for o in options.values()}) == 1, name
    assert options["beso"]["window"] == options["ddpm"]["window"] == options["gcbc"]["window"] == 4
    changed = {name for name, value in options["beso"].items() if value != options["cfg"][name]}
    assert changed == {"goal_dropout"} and options["ddpm"]["chain"] >= 30 and options["beso"]["denoising_steps"] == 3
    standard = {name: arm.options["method"].options() for name, arm in CLAIMS["standard"].arms.items()}
    for name in ("window", "hidden", "learning_rate", "batch_size", "observation_columns", "goal_columns"):
        assert len({str(o[name]) for o in standard.values()}) == 1, name


def table(three: float, ten: float = 0.92, chain: float = 0.9, gcbc: float = 0.45, free: float = 0.35, up: float = 0.5):
    wobble = (-0.01, 0.0, 0.01, -0.005, 0.005)

    def row(success: float, above: float = 0.5) -> dict[str, list[float]]:
        return {"success": [success + w for w in wobble], "above": [above + w for w in reversed(wobble)]}

    return {
        "beso_3": row(three, up), "beso_10": row(ten), "ddpm": row(chain), "gcbc": row(gcbc),
        "gcbc_single": row(gcbc + 0.2), "cfg_0": row(free), "cfg_1.5": row(0.9),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "status"),
    [
        ({"three": 0.88}, "confirmed"),
        ({"three": 0.5}, "refuted"),
        ({"three": 0.88, "gcbc": 0.88}, "refuted"),
        ({"three": 0.88, "ten": 1.0}, "refuted"),
        ({"three": 0.88, "up": 0.05}, "refuted"),
        ({"three": 0.88, "free": 0.85}, "refuted"),
    ],
)
def test_parts_decide_as_the_claim_says(options: dict, status: str):
    assert judge_parts(CLAIM.parts, table(**options)).status == status


def test_on_a_small_budget_an_arm_measures_what_its_parts_name():
    measures = reach_in_steps(Trial(1000, "quick"), CLAIM.arms["beso"].options["method"])
    assert {f"success_{n}" for n in DENOISING_STEPS} <= set(measures)
    single = reach(Trial(1000, "quick"), CLAIM.arms["gcbc"].options["method"])
    assert {"success", "collided", "above"} <= set(single)
    # Ways end where they are; each has the same number of points.
    points = single["points"]
    assert len(points) == DRAWN * (bypass2d.LIMIT + 1) and {p["way"] for p in points} == set(range(DRAWN))
    made = bypass2d.Attempts(*[torch.zeros(DRAWN + 3, 2, 2)] * 6)
    assert len(paths(made)) == 2 * DRAWN
