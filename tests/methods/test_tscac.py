"""TSCAC: the weights of stage 2 in closed form, its limits and invariances, stages, variants, and what it learns."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import telos
from telos.core.errors import TelosError
from telos.core.rng import Rng
from telos.data.records import Box, Discrete, Transitions
from telos.methods.decisions.tscac import (
    TSCAC,
    Logged,
    StochasticLearner,
    Task,
    log_anchor,
    mixed_with_uniform,
    no_anchor,
    projection_weights,
    shape,
)
from telos.nets.response_policies import log_density, untrained
from telos.ops.objectives import pareto_step, raised_multipliers
from telos.ops.off_policy import truncated_ratios
from telos.ops.values import advantage_weights

STREAM = Rng(5)
SMALL: dict[str, Any] = {
    "hidden": (),
    "batch_size": 64,
    "learning_rate": 0.05,
    "critic_learning_rate": 0.05,
    "normalise": False,
}


def random_policy(name: str, states: int = 6, actions: int = 4) -> torch.Tensor:
    """(S, K) log-probabilities."""
    return torch.randn(states, actions, generator=STREAM.at(name).torch()).log_softmax(-1)


def decisions(rows: int = 600, **more: Any) -> Transitions:
    """One step a session, one state, three actions in turn: 0 is watched most, 1 nearly as much and liked, 2 is not."""
    action = torch.arange(rows) % 3
    watch = torch.tensor([1.0, 0.9, 0.0])[action]
    columns: dict[str, Any] = {
        "observations": torch.ones(rows, 1), "actions": action, "rewards": watch,
        "next_observations": torch.ones(rows, 1), "terminated": torch.ones(rows, dtype=torch.bool),
        "truncated": torch.zeros(rows, dtype=torch.bool), "auxiliary": (action == 1).float()[:, None],
        "auxiliary_names": ("like",), "action_space": Discrete(3),
    }  # fmt: skip
    return Transitions.validated(**{**columns, **more})


def points(rows: int = 600) -> Transitions:
    """One step a session over one continuous action: watched most at 0.5, liked most at -0.5."""
    action = 2 * torch.rand(rows, 1, generator=STREAM.at("points").torch()) - 1
    return decisions(
        rows, actions=action, rewards=-(action - 0.5).square(), auxiliary=-(action + 0.5).square(),
        action_space=Box((-1.0,), (1.0,)),
    )  # fmt: skip


# The dossier's five checks.


def test_with_infinite_lambda_weights_are_the_ratio_and_the_fit_is_the_auxiliary_policy():
    own, logging = random_policy("own"), random_policy("logging")
    advantages = torch.randn(6, 4, generator=STREAM.at("a").torch())
    weights = projection_weights(own - logging, advantages, 1e9, 1e9)
    assert torch.allclose(weights, (own - logging).exp(), rtol=1e-5)
    # The minimum of -E_b[w log pi] over tables is b w, normalised.
    fitted = logging.exp() * weights
    assert torch.allclose(fitted / fitted.sum(1, keepdim=True), own.exp(), atol=1e-6)
    policy = TSCAC(lambdas=1e6, uniform_mix=0.0, **SMALL).fit(decisions(), steps=120, device="cpu")
    near, main = policy.only("like").probabilities([1.0]), policy.probabilities([1.0])  # type: ignore[attr-defined]
    assert near[1] > 0.6 and torch.allclose(near, main, atol=0.05)


def test_where_auxiliary_policies_are_the_logging_one_it_is_advantage_weighted_regression():
    advantages = torch.randn(50, generator=STREAM.at("b").torch())
    logging = torch.rand(50, generator=STREAM.at("c").torch()).log()
    anchor = log_anchor(torch.stack([logging, logging, logging], 1), logging, (0.1, 0.2, 0.7))
    assert torch.allclose(anchor, torch.zeros(50), atol=1e-6)
    for temperature in (0.2, 1.0):
        weights = projection_weights(torch.zeros(50), advantages, temperature, 20.0)
        assert torch.allclose(weights, advantage_weights(advantages, 1 / temperature, 20.0), rtol=1e-5)
    # As whole learners: with an anchor of 0 the updates are main_only's, bit for bit.
    data = decisions()
    rows = Logged(data, torch.full((600,), math.log(1 / 3)), no_anchor(data, "stochastic"))
    states = []
    for variant in ("tscac", "main_only"):
        learner = StochasticLearner(TSCAC(variant=variant, **SMALL), rows, Task("main", 0), None, Rng(1))
        for step in range(5):
            learner.update(rows[torch.arange(step, 600, 7)], Rng(step))
        states.append(learner.policy.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_constant_for_each_state_scales_its_weights_and_leaves_its_optimum():
    own, logging = random_policy("own"), random_policy("logging")
    advantages = torch.randn(6, 4, generator=STREAM.at("d").torch())
    shift = torch.randn(6, 1, generator=STREAM.at("e").torch())
    optima = []
    for added in (torch.zeros(6, 1), shift):
        weights = projection_weights(own - logging, advantages + added, 0.5, 1e9)
        optima.append(logging.exp() * weights / (logging.exp() * weights).sum(1, keepdim=True))
    one, other = (projection_weights(own - logging, advantages + x, 0.5, 1e9) for x in (0.0, shift))
    assert torch.allclose(other, one * torch.exp(shift / 0.5), rtol=1e-5)
    assert torch.allclose(optima[0], optima[1], atol=1e-6)
    # It is the policy that solves stage 2: pi_2 exp(A / Lambda) / Z.
    assert torch.allclose(optima[0], (own + advantages / 0.5).softmax(1), atol=1e-6)


def test_scaling_lambdas_and_advantages_alike_changes_nothing():
    policies, logging = torch.stack([random_policy("f")[:, 0], random_policy("g")[:, 0]], 1), random_policy("h")[:, 0]
    advantages = torch.randn(6, generator=STREAM.at("i").torch())
    found = []
    for factor in (1.0, 7.0):
        lambdas = (0.3 * factor, 0.1 * factor)
        anchor = log_anchor(policies, logging, lambdas)
        found.append(projection_weights(anchor, factor * advantages, sum(lambdas), 20.0))
    assert torch.allclose(found[0], found[1], rtol=1e-5)
    exact = (0.75 * policies[:, 0] + 0.25 * policies[:, 1] - logging + advantages / 0.4).exp().clamp(max=20)
    assert torch.allclose(found[0], exact, rtol=1e-5)


def test_the_order_of_auxiliary_responses_with_their_lambdas_does_not_matter():
    data = decisions()
    rows = Logged(data, torch.full((600,), math.log(1 / 3)), no_anchor(data, "stochastic"))
    method = TSCAC(lambdas=(0.3, 0.1), hidden=(8,))
    swapped = TSCAC(lambdas=(0.1, 0.3), hidden=(8,))
    first, second = (untrained(data, (name,), (name,), *shape(method), Rng(3).at(name)) for name in ("like", "share"))
    anchors = method.anchor(rows, [first, second]), swapped.anchor(rows, [second, first])
    assert torch.allclose(anchors[0], anchors[1], atol=1e-6)
    assert not torch.allclose(anchors[0], method.anchor(rows, [second, first]), atol=1e-3)


# Pieces.


def test_weights_cannot_overflow_and_are_clipped():
    anchor, advantages = torch.tensor([0.0, 500.0, -500.0]), torch.tensor([900.0, 0.0, 0.0])
    assert projection_weights(anchor, advantages, 1e-4, 20.0).tolist() == pytest.approx([20, 20, 0])
    ratios = truncated_ratios(torch.tensor([0.0, -1.0, 90.0]), torch.tensor([0.0, -2.0, -90.0]), 5.0)
    assert ratios.tolist() == pytest.approx([1, math.e, 5])


def test_a_share_of_uniform_gives_every_action_mass():
    mixed = mixed_with_uniform(torch.tensor([0.0, -math.inf, math.log(0.5)]), 0.02, 4)
    assert mixed.exp().tolist() == pytest.approx([0.98 + 0.005, 0.005, 0.49 + 0.005])
    assert mixed_with_uniform(mixed, 0.0, 4) is mixed


def test_each_response_has_its_own_critic_and_discount():
    n = 4
    data = decisions(
        n, rewards=torch.arange(4.0), auxiliary=torch.stack([10 + torch.arange(4.0), 20 + torch.arange(4.0)], 1),
        terminated=[False, True, False, True], auxiliary_names=("like", "share"),
    )  # fmt: skip
    rows = Logged(data, torch.zeros(n), torch.zeros(n))
    values = torch.tensor([[1.0] * 4, [2.0] * 4, [4.0] * 4])
    cases: list[tuple[dict[str, Any], Task, list[list[float]]]] = [
        ({"variant": "tscac"}, Task("main", 0), [[0.5, 1, 2.5, 3]]),
        ({"variant": "tscac"}, Task("share", 2), [[20.9, 21, 22.9, 23]]),
        ({"variant": "joint_critic", "coefficients": (2.0, 0.5)}, Task("main", 0), [[30.5, 33.5, 37.5, 40.5]]),
        (
            {"variant": "rcpo_multi_critic"},
            Task("main", 0),
            [[0.5, 1, 2.5, 3], [10.5, 11, 12.5, 13], [23.6, 21, 25.6, 23]],
        ),
    ]
    for options, task, targets in cases:
        method = TSCAC(discount=(0.5, 0.25, 0.9), hidden=(4,), **options)
        learner = StochasticLearner(method, rows, task, None, Rng(0))
        assert len(learner.policy.critics) == len(targets)
        assert learner.targets(data, values[: len(targets)]).tolist() == [pytest.approx(row) for row in targets]


def test_advantages_of_several_critics_add_up_by_the_coefficients():
    data = decisions(6)
    rows = Logged(data, torch.zeros(6), torch.zeros(6))
    method = TSCAC(variant="rcpo_multi_critic", coefficients=3.0, lambdas=2.0, scale_advantages=False, hidden=(4,))
    learner = StochasticLearner(method, rows, Task("main", 0), None, Rng(0))
    advantages = torch.tensor([[1.0, 0.0], [0.5, -1.0]])
    weights = learner.weights(advantages, torch.ones(2), torch.zeros(2))
    assert weights.tolist() == [pytest.approx([math.exp(2.5 / 2), math.exp(-3 / 2)])]


def test_rcpo_raises_the_coefficients_of_responses_below_their_bounds():
    moved = raised_multipliers(torch.tensor([1.0, 2.0, 0.1]), (0.5, 0.2), torch.tensor([9.0, 0.1, 0.9]), 0.5)
    assert moved.tolist() == pytest.approx([1, 2.2, 0])
    method = TSCAC(variant="joint_critic", coefficients=0.0, bounds=(0.9,), multiplier_rate=0.05, **SMALL)
    data = decisions()
    rows = Logged(data, torch.full((600,), math.log(1 / 3)), no_anchor(data, "stochastic"))
    learner = StochasticLearner(method, rows, Task("main", 0), None, Rng(1))
    for step in range(150):
        learner.update(rows, Rng(step))
    # A third of the logged steps are liked; the coefficient rises from 0 until nine in ten are.
    assert learner.multipliers[0] == 1 and learner.multipliers[1] > 0.2
    assert 0.75 < float(learner.policy.probabilities([1.0])[1]) < 0.97


def test_pareto_weights_find_the_shortest_mix_of_gradients():
    gradients = torch.tensor([[3.0, 0.0], [0.0, 1.0]])
    weights = torch.tensor([0.5, 0.5])
    for _ in range(400):
        weights = pareto_step(weights, gradients, 0.1)
    # Orthogonal gradients: weights are inverse to their squares.
    assert weights.tolist() == pytest.approx([0.1, 0.9], abs=1e-3)
    # One gradient in the direction of another, and shorter: it is the shortest mix.
    weights = torch.tensor([0.5, 0.5])
    for _ in range(400):
        weights = pareto_step(weights, torch.tensor([[2.0, 0.0], [1.0, 0.0]]), 0.1)
    assert weights.tolist() == pytest.approx([0, 1], abs=1e-3)


def test_densities_of_several_centres_are_their_geometric_mean():
    actions, centres = torch.tensor([[0.3, -0.2]]), torch.tensor([[[0.1, 0.0], [0.5, 0.4]]])
    normal = torch.distributions.Normal(centres, 0.2)
    exact = (normal.log_prob(actions[:, None]).sum(-1) * torch.tensor([0.25, 0.75])).sum(-1)
    assert torch.allclose(log_density(actions, centres, (0.25, 0.75), 0.2), exact, atol=1e-5)
    assert log_density(actions, centres[:, :0], (), 0.2).tolist() == [0]


# Stages and products.


def stages(folder: Path) -> list[str]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return list(dict.fromkeys(row["stage"] for row in rows))


def test_stages_are_named_and_cloning_is_left_out_where_it_is_not_needed(tmp_path: Path):
    data = decisions(60)
    logged = decisions(60, log_probs=torch.full((60,), math.log(1 / 3)))
    runs: dict[str, tuple[TSCAC, Transitions, list[str]]] = {
        "all": (TSCAC(), data, ["behaviour", "auxiliary0", "main"]),
        "warm": (TSCAC(), logged, ["behaviour", "auxiliary0", "main"]),
        "logged": (TSCAC(warm_start=False), logged, ["auxiliary0", "main"]),
        "cold": (TSCAC(warm_start=False), data, ["behaviour", "auxiliary0", "main"]),
        "main": (TSCAC(variant="main_only"), data, ["behaviour", "main"]),
        "joint": (TSCAC(variant="joint_critic"), data, ["behaviour", "main"]),
    }
    for name, (method, rows, expected) in runs.items():
        method.fit(rows, steps=2, out=tmp_path / name, device="cpu")
        assert stages(tmp_path / name) == expected, name


def test_the_product_holds_all_policies_and_critics(tmp_path: Path):
    policy = TSCAC(hidden=(8,)).fit(decisions(), steps=3, device="cpu")
    loaded = telos.load_product(policy.save(tmp_path / "policy"))
    assert loaded.policies == loaded.critics == ("main", "like")
    like = loaded.only("like")
    assert torch.equal(like.probabilities([[1.0]]), policy.only("like").probabilities([[1.0]]))  # type: ignore[attr-defined]
    assert not torch.equal(like.probabilities([[1.0]]), loaded.probabilities([[1.0]]))
    assert set(loaded.values([1.0])) == {"main", "like"} and loaded.values([[1.0]])["like"].shape == (1,)
    assert float(loaded.log_prob([1.0], 1).detach()) == pytest.approx(
        float(loaded.probabilities([1.0])[1].log()), abs=1e-5
    )
    with pytest.raises(TelosError, match="no policy is called 'share'"):
        loaded.only("share")


def test_it_reads_tables_of_sessions_and_keeps_their_names(tmp_path: Path):
    pytest.importorskip("pyarrow", reason="reading tables needs pyarrow, an extra")
    rows = "".join(f"{i // 4},{i % 5},{'ab'[i % 2]},{i % 3},{i % 2}\n" for i in range(40))
    (tmp_path / "s.csv").write_text("session,age,action,reward,like\n" + rows)
    policy = TSCAC(hidden=(4,)).fit(f"{tmp_path / 's.csv'}?auxiliary=like", steps=2, device="cpu")
    assert policy.action_names == ("a", "b") and policy.observation_names == ("age",)
    with pytest.raises(TelosError, match="needs auxiliary responses") as error:
        TSCAC().fit(tmp_path / "s.csv", steps=2)
    assert "?auxiliary=" in str(error.value)


@pytest.mark.parametrize(
    "options",
    [
        {"lambdas": 0.0}, {"lambdas": (0.1, 0.2)}, {"discount": (0.9,)}, {"discount": 1.1}, {"uniform_mix": 1.0},
        {"weight_clip": 0.0}, {"coefficients": -1.0}, {"bounds": (0.1,)}, {"bounds": (0.1, 0.2)}, {"sigma": 0.0},
        {"actor": "deterministic"},
    ],
)  # fmt: skip
def test_options_out_of_range_are_refused(options: dict[str, Any]):
    with pytest.raises(TelosError, match="TSCAC"):
        TSCAC(**options).fit(decisions(), steps=1)


# Learning.


@pytest.mark.parametrize("update", ["policy_gradient", "weighted"])
def test_likes_are_gained_and_little_watch_time_is_lost(update: str):
    found = {}
    for variant in ("main_only", "tscac"):
        method = TSCAC(variant=variant, lambdas=0.5, auxiliary_update=update, **SMALL)  # type: ignore[arg-type]
        found[variant] = method.fit(decisions(), steps=150, device="cpu").probabilities([1.0])
    main, ours = found["main_only"], found["tscac"]
    # AWR at 0.5 on advantages over their deviation, 0.45: the ratio of two actions is exp of their scaled gap.
    assert float((main[0] / main[1]).log()) == pytest.approx(0.1 / 0.45 / 0.5, abs=0.25)
    watch = torch.tensor([1.0, 0.9, 0.0])
    assert ours[1] > main[1] + 0.15 and float(ours @ watch) > 0.94 * float(main @ watch)


POINTS: dict[str, Any] = {
    "hidden": (16,), "batch_size": 64, "learning_rate": 0.01, "critic_learning_rate": 0.02, "tau": 0.1,
    "behaviour_steps": 50,
}  # fmt: skip


@pytest.mark.parametrize(
    "options", [{"lambdas": 1.0}, {"actor": "deterministic", "anchor_coefficient": 0.3, "sigma": 5.0}]
)
def test_continuous_actions_lie_between_what_is_watched_and_what_is_liked(options: dict[str, Any]):
    policy = TSCAC(**POINTS, **options).fit(points(), steps=120, device="cpu")
    alone = TSCAC(variant="main_only", **POINTS, **options).fit(points(), steps=120, device="cpu")
    like, main, watch = (float(p.act([1.0]).action) for p in (policy.only("like"), policy, alone))
    assert like < -0.2 and like + 0.1 < main < watch - 0.1


def test_with_a_strong_anchor_a_deterministic_actor_is_the_weighted_mean_of_auxiliary_ones():
    data = decisions(
        300, actions=2 * torch.rand(300, 2, generator=STREAM.at("j").torch()) - 1,
        auxiliary=torch.randn(300, 2, generator=STREAM.at("k").torch()), auxiliary_names=("like", "share"),
        action_space=Box((-1.0, -1.0), (1.0, 1.0)),
    )  # fmt: skip
    method = TSCAC(
        actor="deterministic", lambdas=(0.3, 0.1), anchor_coefficient=1e4, hidden=(), learning_rate=0.02, batch_size=64,
        normalise=False, behaviour_steps=0, auxiliary_steps=30,
    )  # fmt: skip
    policy = method.fit(data, steps=100, device="cpu")
    like, share = (policy.only(name).act([1.0]).action for name in ("like", "share"))  # type: ignore[attr-defined]
    assert torch.allclose(policy.act([1.0]).action, 0.75 * like + 0.25 * share, atol=0.02)
