"""DoC's claim: codes freed from luck find the good arm; conditioning on the return believes in luck.

World: the paper's Bernoulli bandit. A reward is luck once the arm is known.
"""

from __future__ import annotations

from typing import Any

import torch

from telos.core.method import Method
from telos.core.registry import use
from telos.judge.claim import Arm, Claim, Measures, Trial
from telos.judge.verdict import Better, Holds, Threshold
from telos.worlds import bernoulli_bandit

PULLS, P, STEPS, BASELINE_STEPS = 1000, 0.1, 1500, 1000
SHARED = {
    "hidden": (32,), "learning_rate": 0.01, "energy_learning_rate": 0.01, "constrained": "reward", "negatives": 32,
}  # fmt: skip
BASELINE = {"hidden": (32,), "learning_rate": 0.01, "batch_size": 64}


def pulled(trial: Trial, method: Method) -> Measures:
    """A policy from 1,000 pulls, and what its next pull earns."""
    data = bernoulli_bandit.dataset(trial.count(PULLS), P, trial.rng.at("data"))
    policy = trial.fit(method, data, steps=STEPS)
    return scored(policy.probabilities([0.0]))


def cloned(trial: Trial, method: Method, only_paid: bool) -> Measures:
    """Imitation of all pulls, or of those that paid."""
    data = bernoulli_bandit.dataset(trial.count(PULLS), P, trial.rng.at("data"))
    policy = trial.fit(method, data[data.rewards > 0] if only_paid else data, steps=BASELINE_STEPS)
    return scored(policy.probabilities([0.0]))


def conditioned(trial: Trial, method: Method) -> Measures:
    """A policy that is told the return, asked for a return of 1."""
    data = bernoulli_bandit.dataset(trial.count(PULLS), P, trial.rng.at("data"))
    policy = trial.fit(method, data, steps=BASELINE_STEPS)
    with torch.no_grad():
        logits = policy(policy.play.look([0.0], [1.0], None))[0, -1]
    return scored(logits.softmax(-1))


def scored(probabilities: torch.Tensor) -> Measures:
    """The exact expectation of the reward."""
    reward = bernoulli_bandit.expected_reward(probabilities, P)
    return {"reward": reward, "at_least_085": float(reward >= 0.85)}


def doc(label: str, **options: Any) -> Arm:
    """The same networks, updates, batch and learning rates for all."""
    return Arm(pulled, {"method": use("doc", **SHARED, **options)}, label=label, group="DoC")


CLAIMS = {
    "laptop": Claim(
        statement="On the Bernoulli bandit with p = 0.1 DoC earns 0.85 or more on every seed, a policy told the return "
        "0.5 and imitation 0.18; with codes that the value trains and nothing constrains, or with the released "
        "code's sign, it earns less.",
        source="Bernoulli bandit",
        world="Bernoulli bandit, p = 0.1: 1,000 pulls",
        parts=(
            Holds("at_least_085", "doc"),
            Threshold("rcsl", "reward", at_least=0.45, at_most=0.55),
            Threshold("bc", "reward", at_least=0.13, at_most=0.23),
            Better("doc", "unconstrained", "reward"),
            Better("doc", "released", "reward"),
        ),
        arms={
            "doc": doc("DoC"),
            "unconstrained": doc("constraint off, value trains codes", constraint="none", value_grad_to_q=True),
            "released": doc("sign of the released code", constraint="released"),
            "detached": doc("constraint off, value does not", constraint="none"),
            "rcsl": Arm(
                conditioned,
                {"method": use("stitching", condition="return", augment_prob=0.0, weight_decay=0.0, **BASELINE)},
                label="told the return (RCSL)",
            ),
            "bc": Arm(cloned, {"method": use("bc", **BASELINE), "only_paid": False}, label="imitation (BC)"),
            "bc_paid": Arm(cloned, {"method": use("bc", **BASELINE), "only_paid": True}, label="BC of paid pulls"),
        },
        seeds=tuple(range(10)),
        refuted_if="DoC earns less than 0.7 on a seed, or the policy told the return more than 0.6.",
        metrics={
            "reward": "expected reward of the policy's next pull (best 0.9, worst 0.1), exact",
            "at_least_085": "1 if that is 0.85 or more",
        },
        minutes=3,
        notes=(
            "The paper's set-up with small nets (one hidden layer of 32) in the place of tables, and 1,500 updates.",
            "The policy told the return is TDA-OCBC without swaps (condition='return').",
            "Closed forms: 0.5 for the policy told the return, 2p(1 - p) = 0.18 for imitation.",
            "The constraint is not what saves the bandit where the value leaves codes alone: codes then have only "
            "arms to tell, and the arm 'constraint off, value does not' is as good on development seeds. It is shown, "
            "and no part judges it.",
            "Developed on seeds 1000 to 1004.",
        ),
    )
}
