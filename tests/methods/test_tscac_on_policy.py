"""TSCAC in an environment: ratios of 1, weights by hand, the fixed point on a bandit, and learning in sessions."""

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from telos.core.errors import TelosError
from telos.core.method import Spec, Stage
from telos.core.rng import Rng
from telos.methods.decisions.tscac import TSCAC, Logged, OnPolicyTSCAC, Rollouts
from telos.nets.response_policies import ResponsePolicy
from telos.worlds import sessions

WATCH, LIKE = (1.0, 0.9, 0.0), (0.0, 1.0, 0.5)
TABLE: dict[str, Any] = {
    "hidden": (), "learning_rate": 0.05, "critic_learning_rate": 0.05, "warm_start": False, "normalise": False,
}  # fmt: skip


class Bandit(gymnasium.Env):
    """One state, one step, three actions: 0 is watched most, 1 is liked most, 2 is liked and not watched."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: Any = None, options: Any = None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any):
        return np.ones(1, np.float32), WATCH[action], True, False, {"like": LIKE[action]}


def stages(method: OnPolicyTSCAC, env: Any, steps: int = 10) -> Any:
    spec = method.prepare(Spec(None, {"env": env}, steps, torch.device("cpu"), Rng(0)))
    return method.stages(spec, Rng(0))


def test_fresh_steps_have_a_ratio_of_one_and_the_weights_are_the_equations():
    options = {**TABLE, "lambdas": 0.5, "scale_advantages": False, "uniform_mix": 0.1, "auxiliary_steps": 40}
    method = OnPolicyTSCAC(("like",), TSCAC(**options), environments=4, steps_per_update=16)
    run = stages(method, Bandit)
    first: Stage = next(run)
    assert first.name == "auxiliary0" and first.steps == 40 and isinstance(first.source, Rollouts)
    for step in range(40):
        batch = first.source.next(first.learner.behaviour, Rng(1).at(step))
        metrics = first.learner.update(batch, Rng(2).at(step))
        assert float(metrics["ratio"]) == pytest.approx(1, abs=1e-5)
    liked = first.learner.product()
    second: Stage = run.send(liked)
    assert second.name == "main" and second.first == 40
    batch = second.source.next(second.learner.behaviour, Rng(3))
    assert isinstance(batch, Logged) and len(batch) == 64
    main, like = second.learner.product(), liked
    assert isinstance(main, ResponsePolicy) and isinstance(like, ResponsePolicy)
    actions, seen = batch.steps.actions, batch.steps.observations
    own, theirs = (p.log_likelihood(seen, actions).detach() for p in (main, like))
    assert torch.allclose(batch.log_probs, own, atol=1e-6) and len(actions.unique()) == 3
    assert torch.allclose(batch.anchor, (0.9 * theirs.exp() + 0.1 / 3).log() - own, atol=1e-5)
    learner: Any = second.learner
    advantages = torch.tensor(WATCH)[actions] - main.state_values(seen)[0].detach()
    ratios, _, found = learner.seen(batch)
    assert torch.allclose(found[0], advantages, atol=1e-6) and torch.allclose(ratios, torch.ones(64), atol=1e-5)
    weights = learner.weights(found, ratios, batch.anchor)
    exact = (0.9 * theirs.exp() + 0.1 / 3) / own.exp() * (advantages / 0.5).exp()
    assert torch.allclose(weights[0], exact.clamp(max=20), rtol=1e-4)
    # Stage 1 is A2C: the advantages themselves are the weights.
    stage_1: Any = first.learner
    assert torch.equal(stage_1.weights(found, torch.ones(64), torch.zeros(64)), found)


def test_on_a_bandit_it_comes_to_the_auxiliary_policy_times_the_exponential_of_advantages():
    options = {**TABLE, "learning_rate": 0.03, "lambdas": 0.4, "scale_advantages": False, "uniform_mix": 0.0}
    method = OnPolicyTSCAC(("like",), TSCAC(**options, auxiliary_steps=10), environments=8, steps_per_update=16)
    policy = method.fit(env=Bandit, steps=150, seed=1000, device="cpu")
    like, main = (p.probabilities([1.0]).detach() for p in (policy.only("like"), policy))
    assert like[1] > 0.6 and like.min() > 0.03  # it has begun to learn what is liked
    wanted = like * (torch.tensor(WATCH) / 0.4).exp()
    assert torch.allclose(main, wanted / wanted.sum(), atol=0.05) and (main - like).abs().max() > 0.1
    assert float(policy.values([1.0])["main"]) == pytest.approx(float(main @ torch.tensor(WATCH)), abs=0.04)


def test_in_sessions_it_gains_likes_and_shares_and_watch_time():
    found = {}
    for variant in ("main_only", "tscac"):
        rates = {**TABLE, "hidden": (32,), "learning_rate": 0.01, "critic_learning_rate": 0.02}
        rest = TSCAC(**rates, lambdas=0.25, variant=variant)  # type: ignore[arg-type]
        method = OnPolicyTSCAC(tscac=rest, environments=16, steps_per_update=10)
        policy = method.fit(env=sessions.environment, steps=60, seed=1000, device="cpu")
        found[variant] = sessions.play(policy.probabilities, 1000, Rng(1001)).means()
    uniform = sessions.play(lambda seen: torch.full((len(seen), 12), 1 / 12), 1000, Rng(1001)).means()
    ours, main = found["tscac"], found["main_only"]
    assert main["watch"] > 1.4 * uniform["watch"] and ours["watch"] > 1.2 * uniform["watch"]
    assert ours["interactions"] > 1.25 * max(main["interactions"], uniform["interactions"])


def test_what_cannot_be_done_in_an_environment_is_refused():
    for rest, match in (
        (TSCAC(), "nothing is recorded"), (TSCAC(**TABLE, actor="deterministic"), "nothing is recorded"),
        (TSCAC(**TABLE, lambdas=0.0), "out of range"), (TSCAC(**TABLE, lambdas=(0.1, 0.2)), "lambdas"),
    ):  # fmt: skip
        with pytest.raises(TelosError, match=match):
            OnPolicyTSCAC(("like",), rest, environments=1, steps_per_update=4).fit(env=Bandit, steps=1)
    with pytest.raises(TelosError, match="'env' is missing"):
        OnPolicyTSCAC().fit(steps=1)
    with pytest.raises(TelosError, match="'share' is missing"):
        OnPolicyTSCAC(environments=1, steps_per_update=4).fit(env=Bandit, steps=1)
