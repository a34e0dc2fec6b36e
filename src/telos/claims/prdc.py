"""PRDC's claim: only the constraint to the data set escapes wrong recorded actions without falling into the trap.

World: Lineworld with a trap (dossier, in the spirit of the paper's toy). In every other cell the only recorded action
leads the wrong way, and actions that nobody recorded crash.
"""

from __future__ import annotations

import torch

from telos.core.method import Method
from telos.core.registry import use
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.verdict import Better
from telos.worlds import half_cheetah, lineworld

STEPS = 3000
SHARED = {"hidden": (64, 64), "learning_rate": 1e-3, "batch_size": 128, "tau": 0.01, "discount": 0.95}


def walk(trial: Trial, method: Method) -> Measures:
    """Learns from 1,000 recorded steps, then walks from x = 0 without exploration."""
    data = lineworld.dataset(1000, trial.rng.at("data"))
    policy = trial.fit(method, data, steps=STEPS)
    measured = lineworld.reach(policy)
    with torch.no_grad():
        actions = policy.act(torch.linspace(0, 9.5, 39)[:, None]).action[:, 0]
    points = [{"x": 0.25 * i, "action": float(action)} for i, action in enumerate(actions)]
    return {**measured, "points": points}


def arms() -> dict[str, Arm]:
    """The same networks, steps, batch and learning rate for all; each baseline with its own paper's constants."""
    imitation = {name: SHARED[name] for name in ("hidden", "learning_rate", "batch_size")}
    return {
        "prdc": Arm(walk, {"method": use("prdc", beta=2.0, alpha=2.5, **SHARED)}, label="PRDC beta=2"),
        "prdc_stiff": Arm(walk, {"method": use("prdc", beta=50.0, alpha=2.5, **SHARED)}, label="PRDC beta=50"),
        "td3_bc": Arm(walk, {"method": use("td3_bc", alpha=2.5, **SHARED)}, label="TD3+BC"),
        "td3": Arm(walk, {"method": use("td3", normalise=True, **SHARED)}, label="TD3"),
        "iql": Arm(walk, {"method": use("iql", normalise=True, **SHARED)}, label="IQL"),
        "bc": Arm(walk, {"method": use("bc", **imitation)}, label="BC"),
    }


CHEETAH = {"hidden": (128, 128), "learning_rate": 1e-3, "batch_size": 256}


CLAIMS = {
    "laptop": Claim(
        statement="On a line whose data hold a wrong action in every other cell, PRDC (beta 2) walks to the goal; "
        "TD3+BC, PRDC with beta 50 and TD3 without a constraint do not: they get stuck or fall into the trap.",
        source="didactic Lineworld; ablation of beta",
        world="Lineworld with a trap: 1,000 recorded steps",
        parts=(
            Better("prdc", "td3_bc", "reached"),
            Better("prdc", "td3", "reached"),
            Better("prdc", "prdc_stiff", "reached"),
        ),
        arms=arms(),
        seeds=tuple(range(10)),
        refuted_if="PRDC with beta 2 does not beat TD3+BC, or beta 50 does not fail as TD3+BC does.",
        metrics={
            "reached": "1 if the goal was reached from x = 0 within 60 steps without a crash",
            "crashed": "1 if the walk ended in the trap",
            "steps": "steps walked, 60 at most",
        },
        minutes=5,
        notes=(
            "The world is ours, in the spirit of the paper's toy; it was tuned in a prototype (dossier).",
            "Each run gives 0 or 1, so the intervals are exact ones for paired proportions.",
            "With the trap, beta 50 fails by stepping over the edge of the data at x = 0 more often than by getting "
            "stuck; what is scored is whether the goal was reached.",
            "Actions are compared in raw units, as in the dossier's prototype.",
            "Developed on seeds 1000 to 1002.",
        ),
    ),
    "standard": Claim(
        statement="On HalfCheetah, from episodes of an expert who errs, PRDC earns more than TD3+BC at equal weight of "
        "the value, and more than cloning.",
        source="main table, D4RL locomotion",
        world="Gymnasium HalfCheetah-v5: 40 recorded episodes, 20 to 100 % of their actions uniform",
        parts=(
            Better("prdc", "td3_bc", "return"),
            Better("prdc", "bc", "return"),
        ),
        arms={
            "prdc": Arm(half_cheetah.learnt, {"method": use("prdc", alpha=2.5, **CHEETAH)}, label="PRDC, alpha 2.5"),
            "td3_bc": Arm(
                half_cheetah.learnt, {"method": use("td3_bc", alpha=2.5, **CHEETAH)}, label="TD3+BC, alpha 2.5"
            ),
            "bc": Arm(half_cheetah.learnt, {"method": use("bc", **CHEETAH)}, label="BC"),
        },
        seeds=tuple(range(5)),
        refuted_if="PRDC earns no more than TD3+BC at equal alpha.",
        metrics={
            "return": "mean return of 10 episodes of 1,000 steps",
            "recorded": "mean return of the recorded episodes",
        },
        minutes=30,
        notes=(
            "The expert is ours: SAC with 2 x 128 and 40,000 steps (telos.worlds.half_cheetah), shipped with the "
            "library; the errors are what makes imitation poor.",
            "alpha 40 is the papers' for HalfCheetah in a million updates; with 5,000 it ran away (seed 1000: TD3+BC "
            "-84, PRDC 15, A2PR -116, the records 891). So alpha is TD3+BC's own 2.5 for both.",
            "Two layers of 128 and 5,000 updates at 1e-3 for all; the papers take 256 and a million.",
        ),
    ),
}
